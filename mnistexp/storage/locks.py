"""Locks that end with the process that holds them, however it dies: on a file, or on a PostgreSQL server."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from mnistexp.errors import StoreError

if TYPE_CHECKING:  # 0.2 s, which `--cfg job` needn't pay
    import sqlalchemy

NAME = 0x6D6E_6973_7465_7870  # "mnistexp": PostgreSQL's advisory locks are named by numbers, in each database anew
WAIT_SECONDS = 1  # how long one try waits: a caller that is told to stop must be able to
LONGEST_SECONDS = 120  # after which a server takes the turn from a holder that sleeps (PostgreSQL 14 and newer)

Check = Callable[[], object]
"""Raises an error of the database's if the turn has been lost meanwhile: a holder may have slept."""

Lock = Callable[[], contextlib.AbstractContextManager[Check]]
"""Holds the lock while its block runs. Raises: Busy where another keeps it for longer than one try waits."""


class LockTimeout(Exception):
    """Another process has the turn."""


def file_lock(path: Path) -> Lock:
    """Turns at a file of this machine; a lock file beside it stays there, since deleting it would be a race.

    A turn raises StoreError where the file can't be locked.
    """
    # Not a soft lock: one that a killed process leaves behind would never end.
    lock = filelock.FileLock(f"{path}.lock", timeout=WAIT_SECONDS, fallback_to_soft=False)

    @contextlib.contextmanager
    def held() -> Iterator[Check]:
        try:
            lock.acquire()
        except filelock.Timeout:
            raise LockTimeout from None
        except (OSError, NotImplementedError) as error:
            why = getattr(error, "strerror", None) or error
            raise StoreError(f"{path}.lock: can't be locked ({why}); work in a folder of your own") from None
        try:
            yield bool
        finally:
            lock.release()

    return held


def server_lock(engine: sqlalchemy.Engine, name: int = NAME) -> Lock:
    """Turns at a PostgreSQL database, over a connection of their own: the lock goes when that ends."""
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    @contextlib.contextmanager
    def held() -> Iterator[Check]:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"SET lock_timeout = '{WAIT_SECONDS}s'"))
            with contextlib.suppress(SQLAlchemyError):  # a laptop whose lid is closed in its turn must not stop all
                connection.execute(text(f"SET idle_session_timeout = '{LONGEST_SECONDS}s'"))
            try:
                connection.execute(text(f"SELECT pg_advisory_lock({name})"))
            except OperationalError as error:
                if getattr(error.orig, "sqlstate", "") == "55P03":  # lock_not_available
                    raise LockTimeout from None
                raise
            try:
                yield lambda: connection.execute(text("SELECT 1"))
            finally:
                with contextlib.suppress(SQLAlchemyError):  # a lost connection holds no lock
                    connection.execute(text(f"SELECT pg_advisory_unlock({name})"))

    return held


@contextlib.contextmanager
def wait_for(turn: Lock) -> Iterator[None]:
    """Hold a turn, however long it takes to get it."""
    with contextlib.ExitStack() as stack:
        while True:
            with contextlib.suppress(LockTimeout):
                stack.enter_context(turn())
                break
        yield
