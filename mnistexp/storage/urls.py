"""Addresses of databases, for Optuna and MLflow alike: parse, redact and compare them, and check what is there."""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
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
        port = parts.port
    except ValueError:  # an unclosed [ or a port that is no number
        return None
    kind = parts.scheme.partition("+")[0]
    if kind not in PORTS or not parts.hostname:
        return None
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return kind, host, port or PORTS[kind], parts.path.strip("/")


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
    try:
        _check_file(path, setting, table)
    except PermissionError as error:
        raise StoreError(
            f"{error.filename}: may not be read; work in a folder of your own, or give {setting}"
        ) from None
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path}: is damaged ({error}); restore it from a copy, or move it away, or give {setting}"
        ) from None


def _check_file(path: Path, setting: str, table: str) -> None:
    folder = path.parent
    if path.is_dir():
        raise StoreError(f"{path}: is a folder, not a database file; give {setting}")
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder, so {path.name} can't be made; make it, or give {setting}")
    target = path if path.exists() else folder
    if not os.access(target, os.W_OK) or not os.access(folder, os.W_OK):
        raise StoreError(f"{target}: can't be written to; work in a folder of your own, or give {setting}")
    if not path.exists():
        return
    with path.open("rb") as file:
        magic = file.read(16)
    if magic not in (b"", b"SQLite format 3\0"):
        raise StoreError(f"{path}: is not an SQLite database; move it away, or give {setting}")
    tables = _tables(path)
    if tables and table not in tables:
        raise StoreError(f"{path}: is another program's database (it has no table {table}); give another {setting}")


def _tables(path: Path) -> set[str]:
    """A database's tables, read without writing; none while it is locked, since later use reports a lasting lock."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError:
        return set()


def network_filesystem(path: Path) -> str:
    """Return the kind of network file system that holds a path; "" for a local one."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    resolved = path.resolve()
    nearest = next((folder for folder in (resolved, *resolved.parents) if folder in mounts), None)
    kind = mounts[nearest] if nearest else ""
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


def host_id() -> str:
    """Return this machine's name and identity: two machines may have the same name."""
    try:
        identity = Path("/etc/machine-id").read_text().strip()[:8]
    except OSError:
        identity = sys.platform
    return f"{socket.gethostname()} ({identity})"
