"""Optuna's database: where it is, whether it can be used, and how drivers take turns at it."""

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
from mnistexp.storage import locks as turns
from mnistexp.storage.foreign_errors import reason
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
"""Seconds for which a database that is away, full or locked is asked again; trials under way are kept meanwhile."""

BUSY_NOTE = 30.0  # seconds of waiting for one's turn after which the user hears of it
PAUSE = 0.5  # seconds between two tries
BUSY_SECONDS = 5  # that SQLite itself waits for a lock; longer, and Ctrl-C would not be heard meanwhile
SERVER: dict[str, Any] = {
    "pool_pre_ping": True,  # without it a restart of the server is fatal
    "connect_args": {"connect_timeout": 10, "application_name": "mnistexp"},
}

AWAY = (optuna.exceptions.StorageInternalError, sqlalchemy.exc.SQLAlchemyError)
"""What Optuna raises where its database can't do what it is asked."""

TRANSIENT = (
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.InternalError,
    sqlalchemy.exc.PendingRollbackError,  # what a session says first whose connection a restart cut off
)
FINAL = ("readonly", "read-only", "no such table", "no such column", "malformed", "not a database")

RACE = {"23505": "unique_violation", "42P07": "duplicate_table", "42710": "duplicate_object"}
"""What PostgreSQL says to the slower of two that make Optuna's tables: a dashboard, or a script, knows no turns."""
RACES = 5  # times that making them is tried: Optuna does it in three transactions, and each can be lost once


class Database:
    """A study's database, open.

    `on_wait` is told, once for each time that the database is away, why; `give_up` is asked between tries.
    """

    def __init__(
        self,
        turn: Lock,
        delivery: Lock,
        opened: Callable[[], RDBStorage],
        setting: str,
        address: str,
    ) -> None:
        """Open it under its lock, so that one process makes the tables. `delivery`: see `try_upload_lock`."""
        self._turn, self._delivery, self._setting, self._address = turn, delivery, setting, address
        self._check: turns.Check = bool
        self.on_wait: Callable[[str], None] = lambda _: None
        self.give_up: Callable[[], bool] = lambda: False
        self.local = sqlite_path(address) is not None  # all its drivers are on this machine
        self.storage = self.locked(opened)

    def close(self) -> None:
        """Let go of its connections."""
        self.storage.engine.dispose()

    def locked(self, work: Callable[[], T]) -> T:
        """Do what no two drivers may do at once: look, decide and write. As `retry`.

        A killed driver's turn ends with its process.
        """

        def alone() -> T:
            with self._turn() as self._check:
                return work()

        return self.retry(alone)

    def check_lock(self) -> None:
        """Inside a turn, raise what has it tried again if it was lost meanwhile: before what must not be done twice."""
        self._check()

    def try_upload_lock(self, work: Callable[[], object]) -> bool:
        """Do `work`, which looks into another store and then writes there, unless another driver is at that now."""
        try:
            with self._delivery():
                work()
        except (turns.LockTimeout, *AWAY):
            return False
        return True

    def retry(self, work: Callable[[], T]) -> T:
        """Do `work`, and again while the database is away, locked or full: it must bear being done twice.

        Raises: StoreError when it stays so for PATIENCE seconds, or can't be mended by waiting.
        """
        told, busy_since, away_since = False, 0.0, 0.0
        while True:
            try:
                return work()
            except turns.LockTimeout:  # somebody lives and works: no fault
                now, away_since = time.monotonic(), 0.0
                busy_since = busy_since or now
                tell, why = now - busy_since > BUSY_NOTE, "another sweep holds its lock for long; is it suspended?"
            except AWAY as error:
                now, why = time.monotonic(), reason(error, self._address)
                away_since = away_since or now
                if not _is_transient(error) or now - away_since > PATIENCE:
                    raise StoreError(f"{self._setting}: Optuna can't use it any more: {why}") from None
                tell, why = True, f"{why}; trying again for up to {PATIENCE:.0f} s"
                time.sleep(PAUSE)
            if self.give_up():
                raise KeyboardInterrupt from None
            if tell and not told:
                told = True
                self.on_wait(f"{self._setting}: {why}")


def _is_transient(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    return isinstance(cause, TRANSIENT) and not any(word in str(cause).lower() for word in FINAL)


# ---------------------------------------------------------------------------------------------- opening


def open_for_sweep(address: str) -> Database:
    """Optuna's database for a sweep, made if it isn't there. Raises: StoreError if it can't be used."""
    path = _checked(address)
    if path is None:
        return _open_server(address)

    def opened() -> RDBStorage:
        create_atomically(path, _make)
        return _open_file(path)

    delivery = turns.file_lock(path.with_name(f"{path.name}.delivery"))
    return Database(turns.file_lock(path), delivery, opened, str(path), address)


def open_to_read(address: str) -> RDBStorage:
    """Optuna's database as it is. Raises: StoreError if there is none, or it can't be used."""
    path = _checked(address)
    if not is_there(address):
        where = path or redact(address)
        raise StoreError(f"{where}: there is no such database; run `python -m mnistexp sweep` here first")
    with _told(address):
        return _open_file(path) if path else _rdb(address, _setting(address), SERVER)


def is_there(address: str) -> bool:
    """Whether there is such a database; makes nothing. Raises: StoreError if it can't be used."""
    path = _checked(address)
    return path.exists() if path else _is_made(address)


def in_memory() -> Database:
    """A database of this process alone, which ends with it: to see what a study would do, and leave no trace."""
    address = "sqlite:///:memory:"
    alone: Lock = lambda: nullcontext(bool)  # noqa: E731 - typed where it stands
    return Database(alone, alone, lambda: _rdb(address, address, {}), address, address)


@contextmanager
def reading(address: str) -> Iterator[RDBStorage]:
    """`open_to_read` while a block runs. Raises: StoreError too where it gets locked, or goes away, meanwhile."""
    storage = open_to_read(address)
    try:
        with _told(address):
            yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def _told(address: str) -> Iterator[None]:
    """Have what Optuna raises where its database is locked or away be a sentence: a reader doesn't wait for it."""
    try:
        yield
    except AWAY as error:
        where = sqlite_path(address) or _setting(address)
        raise StoreError(f"{where}: Optuna can't use it now: {reason(error, address)}; try again") from None


def check_usable(address: str) -> str:
    """Say where a study would be kept; makes nothing. Raises: StoreError if it can't be."""
    path = _checked(address)
    if not (path.exists() if path else _is_made(address)):
        return f"{path or redact(address)} (will be made)"
    with reading(address) as storage:
        names = optuna.get_all_study_names(storage)
    return f"{path or redact(address)} ({', '.join(names) or 'no study in it yet'})"


def check_apart(address: str, uri: str) -> None:
    """Optuna and MLflow in one database break each other: both own a table called alembic_version.

    Raises: StoreError if the two addresses are one database, or the study's can't be written to.
    """
    if same_database(address, uri):
        raise StoreError(
            f"study.storage={redact(address)}: is MLflow's database as well, and the two can't share one; "
            f"give another, e.g. study.storage=sqlite:///optuna.db"
        )
    _checked(address)


def network_warning(address: str) -> str:
    """What to say of a study's file on a network file system; empty for any other."""
    path = sqlite_path(address)
    kind = network_filesystem(path.parent) if path else ""
    if not kind:
        return ""
    return (
        f"{path}: lies on a network file system ({kind}), whose locks SQLite can't rely on: run one sweep on it at a "
        f"time, or give study.storage=postgresql://… for several"
    )


def _checked(address: str) -> Path | None:
    """The file of an address, or None for a server that answers. Raises: StoreError."""
    path = sqlite_path(address)
    if path is not None:
        check_file(path, "study.storage=sqlite:///FILE.db", "studies")
        return path
    if not address.startswith(("postgresql://", "postgresql+psycopg://")):
        raise StoreError(
            f"study.storage={redact(address)}: must be like sqlite:///FILE.db, a file on this machine, "
            f"or postgresql://USER:PASSWORD@HOST/DATABASE, which several machines can share"
        )
    if importlib.util.find_spec("psycopg") is None:
        raise StoreError(
            f"study.storage={redact(address)}: needs the package psycopg; pip install 'mnistexp[postgres]'"
        )
    check_port("study.storage", address)
    return None


def _setting(address: str) -> str:
    return f"study.storage={redact(address)}"


def _tables(address: str) -> set[str]:
    """A server's tables; none where it has none yet. Raises: StoreError if it can't be asked, or they aren't ours."""
    try:
        engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.pool.NullPool, **SERVER)
        found = set(sqlalchemy.inspect(engine).get_table_names())
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        raise StoreError(f"{_setting(address)}: Optuna can't use it: {reason(error, address)}") from None
    if found and "studies" not in found:
        raise StoreError(
            f"{_setting(address)}: is another program's database (it has no table studies); give an empty one"
        )
    return found


def _is_made(address: str) -> bool:
    """Whether a server's database is whole; where it isn't, Optuna would make the rest, and a reader makes nothing."""
    return "alembic_version" in _tables(address)  # Optuna makes it last, with its row in one transaction


def _open_server(address: str) -> Database:
    """A PostgreSQL database, its tables made if it has none. Raises: StoreError."""
    made = _is_made(address)
    # A connection for each turn: fifty drivers that each keep two would use up a server's hundred.
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.pool.NullPool, **SERVER)
    setting, locks = _setting(address), (turns.server_lock(engine), turns.server_lock(engine, turns.LOCK_ID + 1))

    def opened() -> RDBStorage:
        if not made:
            _make_on_server(address, setting)
        return _rdb(address, setting, SERVER)

    return Database(*locks, opened, setting, address)


def _make_on_server(address: str, setting: str) -> None:
    """Have a server's database whole, whoever else makes its tables at the same time, and keep no connection."""
    for _ in range(RACES):
        try:
            return _rdb(address, setting, {"poolclass": sqlalchemy.pool.NullPool, **SERVER}).remove_session()
        except AWAY as error:
            if not _is_race(error):
                raise
        time.sleep(PAUSE)
    return None


def _open_file(path: Path) -> RDBStorage:
    return _rdb(f"sqlite:///{path}", str(path), {"connect_args": {"timeout": BUSY_SECONDS}})


def _make(path: Path) -> None:
    """A new file with Optuna's tables, and nobody holding it open."""
    _rdb(f"sqlite:///{path}", str(path), {"poolclass": sqlalchemy.pool.NullPool}).remove_session()


def _rdb(address: str, setting: str, options: Mapping[str, object]) -> RDBStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    text = address
    if address.startswith("sqlite"):  # by hand: SQLAlchemy would write spaces as %20 too
        text = text.replace("%", "%25").replace("?", "%3F")
    text = text.replace("{", "{{").replace("}", "}}")  # Optuna runs str.format on it
    try:
        return RDBStorage(text, engine_kwargs=dict(options))
    except RuntimeError as error:  # its tables are of another version of Optuna's
        raise StoreError(f"{setting}: {_of_another_version(str(error), address)}") from None
    except AWAY as error:
        if _is_transient(error) or _is_race(error):
            raise
        raise StoreError(f"{setting}: Optuna can't use it: {reason(error, address)}") from None


def _is_race(error: BaseException) -> bool:
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    return isinstance(cause, sqlalchemy.exc.DBAPIError) and getattr(cause.orig, "sqlstate", None) in RACE


def _of_another_version(said: str, address: str) -> str:
    """Optuna's message as what to do."""
    if "upgrade" in said and "pip install" not in said:
        return (
            f"was made by an older Optuna, whose tables differ; keep a copy and run "
            f"`optuna storage upgrade --storage '{redact(address)}'`, or give another study.storage"
        )
    return "was made by a newer Optuna, whose tables differ; pip install -U optuna, or give another study.storage"
