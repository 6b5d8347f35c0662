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

LOCK_WAITS = 30  # of locks.WAIT_SECONDS, before the user gets a note
PAUSE = 0.5  # seconds between two tries
BUSY_SECONDS = 5  # that SQLite itself waits for a lock; during a longer wait Ctrl-C would have no effect
FILE: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}}
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


class Database:
    """A study's open database.

    Attributes:
        storage: Optuna's.
        on_retry: called once with the reason each time that the database is away.
        should_abort: called between two tries; True raises KeyboardInterrupt.
        check_lock: raises an error that repeats the work of `locked` if its lock was lost; called before what must
            not happen twice.
    """

    def __init__(self, address: str, open_storage: Callable[[], RDBStorage], lock: Lock, upload_lock: Lock) -> None:
        """Open the database under its lock, so that one process creates the tables."""
        self._address, self._lock, self._upload_lock = address, lock, upload_lock
        self.check_lock: locks.Check = bool
        self.on_retry: Callable[[str], None] = lambda _: None
        self.should_abort: Callable[[], bool] = lambda: False
        self.storage = self.locked(open_storage)

    def close(self) -> None:
        """Close its connections."""
        self.storage.engine.dispose()

    def locked(self, work: Callable[[], T]) -> T:
        """Do `work`, which reads, decides and writes, while no other process does; repeat it as `retry` does."""

        def with_lock() -> T:
            with self._lock() as self.check_lock:
                return work()

        return self.retry(with_lock)

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
        noted, lock_waits, away_since = False, 0, None
        while True:
            try:
                return work()
            except locks.LockTimeout:  # another process works: no fault, so there is no limit
                lock_waits, away_since = lock_waits + 1, None
                why = "another sweep holds its lock; is it suspended?" if lock_waits > LOCK_WAITS else ""
            except AWAY as error:
                why = reason(error, self._address)
                away_since = away_since or time.monotonic()
                if not _is_transient(error) or time.monotonic() - away_since > PATIENCE:
                    raise StoreError(f"{_setting(self._address)}: Optuna can't use it: {why}") from None
                why += f"; trying again for up to {PATIENCE:.0f} s"
                time.sleep(PAUSE)
            if self.should_abort():
                raise KeyboardInterrupt from None
            if why and not noted:
                noted = True
                self.on_retry(f"{_setting(self._address)}: {why}")


def _is_transient(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    return isinstance(cause, TRANSIENT) and not any(word in str(cause).lower() for word in FINAL)


# ---------------------------------------------------------------------------------------------- opening


def open_for_sweep(address: str) -> Database:
    """Open a study's database for a sweep, and create it if necessary. Raises: StoreError."""
    path = _check_address(address)
    if path is None:
        _has_all_tables(address)  # it refuses another program's database
        # A new connection for each lock: fifty processes with two connections each would use up a server's hundred.
        engine = sqlalchemy.create_engine(address, **NO_POOL, **SERVER)
        lock, upload_lock = locks.server_lock(engine), locks.server_lock(engine, locks.LOCK_ID + 1)
        return Database(address, lambda: _rdb(address), lock, upload_lock)

    def open_storage() -> RDBStorage:
        create_atomically(path, lambda new: _rdb(f"sqlite:///{new}", NO_POOL).remove_session())
        return _rdb(address)

    upload_lock = locks.file_lock(path.with_name(f"{path.name}.upload"))
    return Database(address, open_storage, locks.file_lock(path), upload_lock)


def in_memory() -> Database:
    """Return a database in memory, to see what a study would do without a trace."""
    no_lock: Lock = lambda: nullcontext(bool)  # noqa: E731 - it needs a type
    return Database("sqlite://", lambda: _rdb("sqlite://", {}), no_lock, no_lock)


@contextmanager
def reading(address: str) -> Iterator[RDBStorage]:
    """Open an existing database during a block, without changing it.

    Raises: StoreError if it isn't there or fails; a reader doesn't wait for a locked database.
    """
    if not is_there(address):
        raise StoreError(f"{_setting(address)}: there is no such database; run `python -m mnistexp sweep` here first")
    with store_errors(f"{_setting(address)}: try again, Optuna can't use it now", address):
        storage = _rdb(address)
        try:
            yield storage
        finally:
            storage.remove_session()
            storage.engine.dispose()


def is_there(address: str) -> bool:
    """Return whether a database exists; creates nothing. Raises: StoreError."""
    path = _check_address(address)
    return path.exists() if path else _has_all_tables(address)


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
    kind = network_filesystem(path) if path else ""
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


def _rdb(address: str, options: Mapping[str, Any] | None = None) -> RDBStorage:
    """Optuna's storage of a database.

    Args:
        options: of SQLAlchemy's engine.

    Raises: StoreError if its tables are another version's, or the database's error.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url, usual = address, SERVER
    if path := sqlite_path(address):  # by hand, because SQLAlchemy would write spaces as %20 too
        url, usual = f"sqlite:///{path}".replace("%", "%25").replace("?", "%3F"), FILE
    url = url.replace("{", "{{").replace("}", "}}")  # Optuna runs str.format on it
    try:
        return RDBStorage(url, engine_kwargs=dict(usual if options is None else options))
    except RuntimeError as error:  # Optuna's sentence names the command that upgrades the tables or Optuna
        raise StoreError(f"{_setting(address)}: {error} Or give another study.storage") from None
