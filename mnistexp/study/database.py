"""Optuna's database: open it, lock it between processes, and repeat work while it is away."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import RDBStorage

from mnistexp.errors import StoreError
from mnistexp.storage import locks
from mnistexp.storage.foreign_errors import reason, store_errors
from mnistexp.storage.locks import Lock
from mnistexp.storage.urls import (
    check_file,
    check_port,
    create_atomically,
    network_filesystem,
    redact,
    same_database,
    sqlite_path,
)

T = TypeVar("T")

PATIENCE = 300.0
"""Seconds for which work is repeated while a database is away, full or locked; running trials wait meanwhile."""

LOCK_NOTE_SECONDS = 30.0  # of waiting for the lock before the user gets a note
PAUSE = 0.5  # seconds between two tries
BUSY_SECONDS = 5  # that SQLite itself waits for a lock; during a longer wait Ctrl-C would have no effect
NO_POOL: dict[str, Any] = {"poolclass": sqlalchemy.pool.NullPool}
SERVER: dict[str, Any] = {
    "pool_pre_ping": True,  # without it a restart of the server is fatal
    "connect_args": {"connect_timeout": 10, "application_name": "mnistexp"},
}

AWAY = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
"""What Optuna raises when its database fails."""

TRANSIENT = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.InternalError,
    sqlalchemy.exc.PendingRollbackError,  # the first error of a session whose connection a restart closed
)
FINAL = ("readonly", "read-only", "no such table", "no such column", "malformed", "not a database")

RACE = {"23505": "unique_violation", "42P07": "duplicate_table", "42710": "duplicate_object"}
"""PostgreSQL's errors for the slower of two programs that create Optuna's tables: not all take our lock."""
RACES = 5  # tries to create them: Optuna uses three transactions, and each can lose a race once


class Database:
    """A study's open database.

    Attributes:
        storage: Optuna's.
        on_retry: called once with the reason each time that the database is away.
        should_abort: called between two tries; True raises KeyboardInterrupt.
        local: whether it is a file, so that all its processes are on this machine.
    """

    def __init__(
        self, lock: Lock, upload_lock: Lock, open_storage: Callable[[], RDBStorage], setting: str, address: str
    ) -> None:
        """Open the database under its lock, so that one process creates the tables."""
        self._lock, self._upload_lock, self._setting, self._address = lock, upload_lock, setting, address
        self._check: locks.Check = bool
        self.on_retry: Callable[[str], None] = lambda _: None
        self.should_abort: Callable[[], bool] = lambda: False
        self.local = sqlite_path(address) is not None
        self.storage = self.locked(open_storage)

    def close(self) -> None:
        """Close its connections."""
        self.storage.engine.dispose()

    def locked(self, work: Callable[[], T]) -> T:
        """Do `work`, which reads, decides and writes, while no other process does; repeat it as `retry` does."""

        def with_lock() -> T:
            with self._lock() as self._check:
                return work()

        return self.retry(with_lock)

    def check_lock(self) -> None:
        """Raise an error that repeats the work if its lock was lost; call it before what must not happen twice."""
        self._check()

    def try_upload_lock(self, work: Callable[[], object]) -> bool:
        """Do `work`, which checks and then writes to MLflow, unless another process does so now; return whether."""
        try:
            with self._upload_lock():
                work()
        except (locks.LockTimeout, *AWAY):
            return False
        return True

    def retry(self, work: Callable[[], T]) -> T:
        """Do `work`, and repeat it while the database is away, locked or full; it must allow a repetition.

        Raises: StoreError after PATIENCE seconds, or at once for an error that waiting can't repair.
        """
        noted, locked_since, away_since = False, 0.0, 0.0
        while True:
            try:
                return work()
            except locks.LockTimeout:  # another process works: no fault, so there is no limit
                now, away_since = time.monotonic(), 0.0
                locked_since = locked_since or now
                note, why = now - locked_since > LOCK_NOTE_SECONDS, "another sweep holds its lock; is it suspended?"
            except AWAY as error:
                now, why = time.monotonic(), reason(error, self._address)
                away_since = away_since or now
                if not _is_transient(error) or now - away_since > PATIENCE:
                    raise StoreError(f"{self._setting}: Optuna can't use it any more: {why}") from None
                note, why = True, f"{why}; trying again for up to {PATIENCE:.0f} s"
                time.sleep(PAUSE)
            if self.should_abort():
                raise KeyboardInterrupt from None
            if note and not noted:
                noted = True
                self.on_retry(f"{self._setting}: {why}")


# ---------------------------------------------------------------------------------------------- opening


def open_for_sweep(address: str) -> Database:
    """Open a study's database for a sweep, and create it if necessary. Raises: StoreError."""
    path = _check_address(address)
    if path is None:
        return _open_server(address)

    def open_storage() -> RDBStorage:
        create_atomically(path, lambda new: _rdb(f"sqlite:///{new}", NO_POOL).remove_session())
        return _open_file(path)

    upload_lock = locks.file_lock(path.with_name(f"{path.name}.upload"))
    return Database(locks.file_lock(path), upload_lock, open_storage, _setting(address), address)


def open_to_read(address: str) -> RDBStorage:
    """Open an existing database without changing it. Raises: StoreError."""
    path = _check_address(address)
    if not is_there(address):
        where = path or redact(address)
        raise StoreError(f"{where}: there is no such database; run `python -m mnistexp sweep` here first")
    with _readable(address):
        return _open_file(path) if path else _rdb(address, SERVER)


def is_there(address: str) -> bool:
    """Return whether a database exists; creates nothing. Raises: StoreError."""
    path = _check_address(address)
    return path.exists() if path else _has_all_tables(address)


def in_memory() -> Database:
    """Return a database in memory, to see what a study would do without a trace."""
    address = "sqlite:///:memory:"
    no_lock: Lock = lambda: nullcontext(bool)  # noqa: E731 - it needs a type
    return Database(no_lock, no_lock, lambda: _rdb(address, {}), address, address)


@contextmanager
def reading(address: str) -> Iterator[RDBStorage]:
    """Open a database as `open_to_read` during a block. Raises: StoreError also if it fails within the block."""
    storage = open_to_read(address)
    try:
        with _readable(address):
            yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _readable(address: str) -> Any:
    """Raise Optuna's errors as StoreError: a reader doesn't wait for a locked database."""
    return store_errors(f"{_setting(address)}: try again, Optuna can't use it now", address)


def check_usable(address: str) -> str:
    """Describe a study's database for `doctor`; creates nothing. Raises: StoreError if it can't be used."""
    where = sqlite_path(address) or redact(address)
    if not is_there(address):
        return f"{where} (will be made)"
    with reading(address) as storage:
        names = optuna.get_all_study_names(storage)
    return f"{where} ({', '.join(names) or 'no study in it yet'})"


def check_apart(address: str, uri: str) -> None:
    """Check that Optuna and MLflow have different databases: both own a table alembic_version. Raises: StoreError."""
    if same_database(address, uri):
        raise StoreError(
            f"study.storage={redact(address)}: is MLflow's database as well, and the two can't share one; "
            f"give another, e.g. study.storage=sqlite:///optuna.db"
        )
    _check_address(address)


def network_warning(address: str) -> str:
    """Return a warning about a study's file on a network file system; "" for any other."""
    path = sqlite_path(address)
    kind = network_filesystem(path.parent) if path else ""
    if not kind:
        return ""
    return (
        f"{path}: is on a network file system ({kind}), on which SQLite's locks are not reliable: run one sweep on it "
        f"at a time, or give study.storage=postgresql://… for several"
    )


def _check_address(address: str) -> Path | None:
    """Check an address, and that its file or server can be used. Returns: the file. Raises: StoreError."""
    path = sqlite_path(address)
    if path is not None:
        check_file(path, "study.storage=sqlite:///FILE.db", "studies")
        return path
    if not address.startswith(("postgresql://", "postgresql+psycopg://")):
        raise StoreError(
            f"{_setting(address)}: must be like sqlite:///FILE.db, a file on this machine, "
            f"or postgresql://USER:PASSWORD@HOST/DATABASE, which several machines can share"
        )
    if importlib.util.find_spec("psycopg") is None:
        raise StoreError(f"{_setting(address)}: needs the package psycopg; pip install 'mnistexp[postgres]'")
    check_port("study.storage", address)
    return None


def _setting(address: str) -> str:
    """A database as messages name it."""
    return str(sqlite_path(address) or f"study.storage={redact(address)}")


# ---------------------------------------------------------------------------------------------- PostgreSQL


def _has_all_tables(address: str) -> bool:
    """Whether a server's database is complete: Optuna would create missing tables, and a reader must not.

    Raises: StoreError if it can't be asked, or has another program's tables.
    """
    with store_errors(f"{_setting(address)}: Optuna can't use it", address, ValueError):
        engine = sqlalchemy.create_engine(address, **NO_POOL, **SERVER)
        tables = set(sqlalchemy.inspect(engine).get_table_names())
    if tables and "studies" not in tables:
        raise StoreError(f"{_setting(address)}: is another program's database (no table studies); give an empty one")
    return "alembic_version" in tables  # Optuna creates it last, with its row in one transaction


def _open_server(address: str) -> Database:
    """Open a PostgreSQL database, and create its tables if it has none. Raises: StoreError."""
    complete = _has_all_tables(address)
    # A new connection for each lock: fifty processes with two connections each would use up a server's hundred.
    engine = sqlalchemy.create_engine(address, **NO_POOL, **SERVER)

    def open_storage() -> RDBStorage:
        if not complete:
            _create_tables(address)
        return _rdb(address, SERVER)

    lock, upload_lock = locks.server_lock(engine), locks.server_lock(engine, locks.LOCK_ID + 1)
    return Database(lock, upload_lock, open_storage, _setting(address), address)


def _create_tables(address: str) -> None:
    """Create Optuna's tables, also while another program does, and keep no connection."""
    for _ in range(RACES):
        try:
            _rdb(address, {**NO_POOL, **SERVER}).remove_session()
            return
        except AWAY as error:
            if not _is_race(error):
                raise
        time.sleep(PAUSE)


# ---------------------------------------------------------------------------------------------- Optuna's storage


def _open_file(path: Path) -> RDBStorage:
    return _rdb(f"sqlite:///{path}", {"connect_args": {"timeout": BUSY_SECONDS}})


def _rdb(address: str, options: Mapping[str, object]) -> RDBStorage:
    """Optuna's storage of a database. Raises: StoreError, or the database's error if a retry may help."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    text = address
    if address.startswith("sqlite"):  # by hand, because SQLAlchemy would write spaces as %20 too
        text = text.replace("%", "%25").replace("?", "%3F")
    text = text.replace("{", "{{").replace("}", "}}")  # Optuna runs str.format on it
    try:
        return RDBStorage(text, engine_kwargs=dict(options))
    except RuntimeError as error:  # its tables are another version's
        raise StoreError(f"{_setting(address)}: {_version_advice(str(error), address)}") from None
    except AWAY as error:
        if _is_transient(error) or _is_race(error):
            raise
        raise StoreError(f"{_setting(address)}: Optuna can't use it: {reason(error, address)}") from None


def _cause(error: BaseException) -> BaseException | None:
    return error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error


def _is_transient(error: BaseException) -> bool:
    cause = _cause(error)
    return isinstance(cause, TRANSIENT) and not any(word in str(cause).lower() for word in FINAL)


def _is_race(error: BaseException) -> bool:
    cause = _cause(error)
    return isinstance(cause, sqlalchemy.exc.DBAPIError) and getattr(cause.orig, "sqlstate", None) in RACE


def _version_advice(message: str, address: str) -> str:
    """What to do about Optuna's message on tables of another version."""
    if "upgrade" in message and "pip install" not in message:
        return (
            f"was made by an older Optuna, whose tables differ; keep a copy and run "
            f"`optuna storage upgrade --storage '{redact(address)}'`, or give another study.storage"
        )
    return "was made by a newer Optuna, whose tables differ; pip install -U optuna, or give another study.storage"
