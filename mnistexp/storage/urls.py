"""Addresses of databases, Optuna's and MLflow's alike: shown without passwords, looked at before anyone writes."""

from __future__ import annotations

import os
import re
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
"""File systems on which SQLite's locks can't be relied on (sqlite.org/faq.html#q5)."""


def shown(address: str) -> str:
    """An address, or an override with one, without its password."""
    if "sqlite:" in address.partition("//")[0]:
        return address
    return without_passwords(address)


def storage_overrides(overrides: Iterable[str]) -> tuple[str, ...]:
    """The overrides that say where a study and its runs are, without passwords: the next command needs them too."""
    return tuple(shown(text) for text in overrides if text.startswith(("study.storage=", "tracking")))


def sqlite_path(address: str) -> Path | None:
    """The absolute path of an sqlite:///FILE address, taken as it is written; None for any other address."""
    if not address.startswith("sqlite:///") or address == "sqlite:///":
        return None
    return expanded(address.removeprefix("sqlite:///")).absolute()


def same_database(one: str, other: str) -> bool:
    """Whether two addresses mean one database, however they are written."""
    files = [path.resolve() for path in map(sqlite_path, (one, other)) if path]
    if len(files) == 2:
        return files[0] == files[1]
    places = [_place(address) for address in (one, other)]
    return None not in places and places[0] == places[1]


def _place(address: str) -> tuple[object, ...] | None:
    """Host, port and database of a server's address; None for a file or a web server."""
    try:
        parts = urlsplit(address)
    except ValueError:  # a [ that ends nowhere
        return None
    kind = parts.scheme.partition("+")[0]
    if kind not in PORTS or not parts.hostname:
        return None
    host = "127.0.0.1" if parts.hostname == "localhost" else parts.hostname
    return kind, host, _port(address) or PORTS[kind], parts.path.strip("/")


def _port(address: str) -> int | None:
    try:
        return urlsplit(address).port
    except ValueError:
        return None


def check_port(setting: str, address: str) -> None:
    """Look whether a database server listens. Raises: StoreError."""
    try:
        parts = urlsplit(address)
        port = parts.port or PORTS.get(parts.scheme.partition("+")[0])
    except ValueError:
        raise StoreError(
            f"{setting}={shown(address)}: its host or port can't be read; write a / in the password as %2F, an @ "
            f"as %40, and brackets as %5B and %5D"
        ) from None
    if not parts.hostname or not port:
        return  # a socket file, or a scheme that is another's to refuse
    try:
        socket.create_connection((parts.hostname, port), REACHABLE_SECONDS).close()
    except OSError as error:
        raise StoreError(
            f"{setting}={shown(address)}: no database answers there ({error.strerror or error}); "
            f"start it, or leave {setting} out for a file here"
        ) from None


def check_file(path: Path, setting: str, table: str) -> None:
    """Raises: StoreError if a database file can't be made or written there, or has other tables than `table`."""
    try:
        _check_file(path, setting, table)
    except PermissionError as error:
        raise StoreError(
            f"{error.filename}: may not be read; work in a folder of your own, or give {setting}"
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
    if path.exists() and path.stat().st_size and _first_bytes(path) != b"SQLite format 3\0":
        raise StoreError(f"{path}: is not an SQLite database; move it away, or give {setting}")
    tables = _tables(path, setting) if path.exists() else set()
    if tables and table not in tables:
        raise StoreError(f"{path}: is somebody else's database (it has no table {table}); give another {setting}")


def _tables(path: Path, setting: str) -> set[str]:
    """A database's tables, looked at without writing; none where it is locked: that is said when it stays so."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
            return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.OperationalError:
        return set()
    except sqlite3.DatabaseError as error:
        raise StoreError(
            f"{path}: is damaged ({error}); restore it from a copy, or move it away, or give {setting}"
        ) from None


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def network_filesystem(path: Path) -> str:
    """The kind of network file system that a path lies on; empty for a local one."""
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    resolved = path.resolve()
    nearest = next((folder for folder in (resolved, *resolved.parents) if folder in mounts), None)
    kind = mounts[nearest] if nearest else ""
    return kind if kind in NETWORK else ""


def made_whole(path: Path, make: Callable[[Path], None]) -> None:
    """Have a new database made beside its place and put there when it is whole; a file that is there stays.

    A process killed in the middle of Optuna's or MLflow's migrations would leave one that neither can use.
    Call it under a lock that every maker of this file takes.
    """
    if path.exists() and path.stat().st_size:
        return
    new = path.with_name(f"{path.name}.new")
    for leftover in (new, new.with_name(f"{new.name}-journal")):
        leftover.unlink(missing_ok=True)
    make(new)
    new.replace(path)


def reason(error: BaseException, address: str = "") -> str:
    """A library's database error in one line, without the password and without SQLAlchemy's headings."""
    inner = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    lines = str(getattr(inner, "orig", None) or inner).strip().splitlines()
    line = re.sub(r"^\(\S+\) ", "", lines[0]) if lines else type(inner).__name__
    if "Max retries exceeded" in line:  # 300 characters of requests' that say no more
        line = "the server doesn't answer"
    password = _password(address)
    return line.replace(password, "***") if password else line


def _password(address: str) -> str:
    try:
        return urlsplit(address).password or ""
    except ValueError:
        return ""


def host() -> str:
    """This machine's name and identity: what tells two machines of one name apart."""
    try:
        identity = Path("/etc/machine-id").read_text().strip()[:8]
    except OSError:
        identity = sys.platform
    return f"{socket.gethostname()} ({identity})"
