"""Locks between processes, on a file or on a PostgreSQL server. A lock ends with the process that holds it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from mnistexp.errors import StoreError

if TYPE_CHECKING:  # 0.2 s, which `--cfg job` doesn't need
    import sqlalchemy

LOCK_ID = 0x6D6E_6973_7465_7870  # "mnistexp": PostgreSQL's advisory locks have numbers, separate in each database
WAIT_SECONDS = 1  # how long one try waits, so that a caller can react to Ctrl-C
MAX_HOLD_SECONDS = 120  # then the server ends the connection of a suspended holder (PostgreSQL 14 and newer)

Check = Callable[[], object]
"""Raises the database's error if the lock was lost meanwhile: its holder may have been suspended."""

Lock = Callable[[], contextlib.AbstractContextManager[Check]]
"""Holds the lock during its block. Raises: LockTimeout if another process holds it for longer than WAIT_SECONDS."""


class LockTimeout(Exception):
    """Another process holds the lock."""


def file_lock(path: Path) -> Lock:
    """Return the lock of a file on this machine, PATH.lock. It raises StoreError if the file can't be locked."""
    # Not a soft lock: a killed process would leave it behind. The file stays, since deleting it would be a race.
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


def server_lock(engine: sqlalchemy.Engine, lock_id: int = LOCK_ID) -> Lock:
    """Return an advisory lock of a PostgreSQL database; it belongs to a connection of its own and ends with it."""
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError, SQLAlchemyError

    @contextlib.contextmanager
    def held() -> Iterator[Check]:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"SET lock_timeout = '{WAIT_SECONDS}s'"))
            with contextlib.suppress(SQLAlchemyError):  # a suspended holder must not stop all others
                connection.execute(text(f"SET idle_session_timeout = '{MAX_HOLD_SECONDS}s'"))
            try:
                connection.execute(text(f"SELECT pg_advisory_lock({lock_id})"))
            except OperationalError as error:
                if getattr(error.orig, "sqlstate", "") == "55P03":  # lock_not_available
                    raise LockTimeout from None
                raise
            try:
                yield lambda: connection.execute(text("SELECT 1"))
            finally:
                with contextlib.suppress(SQLAlchemyError):  # a lost connection holds no lock
                    connection.execute(text(f"SELECT pg_advisory_unlock({lock_id})"))

    return held


@contextlib.contextmanager
def wait_for(lock: Lock) -> Iterator[None]:
    """Hold a lock during the block, and wait for it as long as necessary."""
    with contextlib.ExitStack() as stack:
        while True:
            with contextlib.suppress(LockTimeout):
                stack.enter_context(lock())
                break
        yield
