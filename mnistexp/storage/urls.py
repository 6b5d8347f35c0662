"""Addresses of databases, for Optuna and MLflow alike: parse, redact and compare them, and check what is there."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from mnistexp.errors import StoreError, without_passwords
from mnistexp.paths import expanded

REACHABLE_SECONDS = 3  # MLflow itself would try for 101 s
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "glusterfs", "lustre", "gpfs", "beegfs", "fuse.sshfs"}
"""File systems on which SQLite's locks are not reliable (sqlite.org/faq.html#q5)."""


def redact(address: str) -> str:
    """Return an address, or an override with an address, without its password."""
    return address if "sqlite:" in address.partition("//")[0] else without_passwords(address)


def storage_overrides(overrides: Iterable[str]) -> tuple[str, ...]:
    """Return the overrides of the study's and the runs' stores, without passwords: the next command needs them too."""
    return tuple(redact(text) for text in overrides if text.startswith(("study.storage=", "tracking")))


def sqlite_path(address: str) -> Path | None:
    """Return the absolute path of a sqlite:///FILE address, without decoding; None for any other address."""
    if not address.startswith("sqlite:///") or address == "sqlite:///":
        return None
    return expanded(address.removeprefix("sqlite:///")).absolute()


def same_database(one: str, other: str) -> bool:
    """Return whether two addresses mean one database, even if they are written differently."""
    place = _place(one)
    return place is not None and place == _place(other)


def _place(address: str) -> object:
    """A file's resolved path, or a server's kind, host, port and database; None for a web server."""
    if path := sqlite_path(address):
        return path.resolve()
    try:
        parts = urlsplit(address)
        kind = parts.scheme.partition("+")[0]
        port = parts.port or PORTS.get(kind)
    except ValueError:  # an unclosed [ or a port that is no number
        return None
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return (kind, host, port, parts.path.strip("/")) if kind in PORTS else None


def check_port(setting: str, address: str) -> None:
    """Check that a database server accepts connections. Raises: StoreError."""
    try:
        parts = urlsplit(address)
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    except ValueError:
        raise StoreError(
            f"{setting}={redact(address)}: its host or port can't be read; write a / in the password as %2F, an @ "
            f"as %40, and brackets as %5B and %5D"
        ) from None
    if not parts.hostname or not port:
        return  # a socket file, or a scheme that the caller checks
    try:
        socket.create_connection((parts.hostname, port), REACHABLE_SECONDS).close()
    except OSError as error:
        raise StoreError(
            f"{setting}={redact(address)}: no database answers there ({error.strerror or error}); "
            f"start it, or leave {setting} out for a file here"
        ) from None


def check_file(path: Path, setting: str, table: str) -> None:
    """Check that a database file can be created or written, and is not another program's. Raises: StoreError."""
    folder = path.parent
    if not os.access(folder, os.F_OK):
        raise StoreError(f"{folder}: no such folder; make it, or give {setting}")
    for target, mode in ((folder, os.W_OK | os.X_OK), (path, os.R_OK | os.W_OK)):  # a journal is made beside the file
        if os.access(target, os.F_OK) and not os.access(target, mode):
            raise StoreError(f"{target}: may not be read and written; work in a folder of your own, or give {setting}")
    if path.exists() and (problem := _content_problem(path, table)):
        raise StoreError(f"{path}: {problem}; move it away, or give {setting}")


def _content_problem(path: Path, table: str) -> str:
    """What is wrong with the content of a file, read without writing; "" also for an empty or a locked one."""
    if path.is_dir():
        return "is a folder, not a database file"
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError:  # later use reports a lasting lock
        return ""
    except sqlite3.DatabaseError as error:
        return f"is not an SQLite database, or is damaged ({error})"
    return "" if not tables or table in tables else f"is another program's database (it has no table {table})"


def network_filesystem(path: Path) -> str:
    """Return the kind of network file system that holds a path; "" for a local one."""
    kinds = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    kind = next((kinds[folder] for folder in path.resolve().parents if folder in kinds), "")
    return kind if kind in NETWORK else ""


def create_atomically(path: Path, create: Callable[[Path], None]) -> None:
    """Create a database under another name and rename it when it is complete; keep a file that exists.

    Optuna and MLflow can't use a database whose migrations were interrupted. Call this under a lock that every
    process that may create the file takes.
    """
    if path.exists() and path.stat().st_size:
        return
    new = path.with_name(f"{path.name}.new")
    for leftover in (new, new.with_name(f"{new.name}-journal")):
        leftover.unlink(missing_ok=True)
    create(new)
    new.replace(path)
