"""Optuna's database: where it is, whether it can be used, and who else is using it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock
import optuna
import sqlalchemy
from optuna.storages import BaseStorage

from mnistexp.errors import StoreError
from mnistexp.tracking import check_writable, shown


@contextlib.contextmanager
def open_for_sweep(address: str) -> Iterator[BaseStorage]:
    """Optuna's database for a sweep: made if it isn't there, and no other sweep's meanwhile.

    Raises: StoreError if it can't be used, fails on the way, or another sweep is using it.
    """
    path = _path(address)
    try:
        with filelock.FileLock(f"{path}.lock", timeout=0):
            yield _open(path)
    except filelock.Timeout:
        raise StoreError(
            f"{path}: another sweep is running on it; wait for it, or give study.storage=sqlite:///OTHER.db"
        ) from None
    except optuna.exceptions.StorageInternalError as error:
        raise StoreError(f"{path}: Optuna can't write to it any more: {error.__cause__ or error}") from None


def open_to_read(address: str) -> BaseStorage:
    """Optuna's database as it is. Raises: StoreError if there is none, or it can't be used."""
    path = _path(address)
    if not path.exists():
        raise StoreError(f"{path}: there is no such database; run `python -m mnistexp sweep` here first")
    return _open(path)


def check_usable(address: str) -> str:
    """Say where a study would be kept. Raises: StoreError if it can't be."""
    path = _path(address)
    if not path.exists():
        return f"{path} (will be made)"
    names = optuna.get_all_study_names(_open(path))
    return f"{path} ({', '.join(names) or 'no study in it yet'})"


def same_database(address: str, uri: str) -> bool:
    """Whether MLflow's address is this study's file, however the two are written."""
    files = [text.removeprefix("sqlite:///") for text in (address, uri) if text.startswith("sqlite:///")]
    return len(files) == 2 and Path(files[0]).expanduser().resolve() == Path(files[1]).resolve()


def check_apart(address: str, uri: str) -> None:
    """Optuna and MLflow in one database break each other: both own a table called alembic_version.

    Raises: StoreError if the two addresses are one file, or the study's can't be written to.
    """
    if same_database(address, uri):
        raise StoreError(
            f"study.storage={shown(address)}: is MLflow's database as well, and the two can't share one; "
            f"give another, e.g. study.storage=sqlite:///optuna.db"
        )
    _path(address)


def _path(address: str) -> Path:
    """The file of an address, taken as it is written: no %20, no braces with a meaning.

    A server's database is refused as yet: two drivers would take each other's living trials for dead ones.
    """
    if not address.startswith("sqlite:///") or address == "sqlite:///":
        raise StoreError(f"study.storage={shown(address)}: must be like sqlite:///FILE.db, a file on this machine")
    path = Path(address.removeprefix("sqlite:///")).expanduser().absolute()
    check_writable(path, "study.storage=sqlite:///FILE.db", "studies")
    return path


def _open(path: Path) -> BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Quoted by hand: SQLAlchemy would write spaces as %20 too, and Optuna runs str.format on the text.
    text = f"sqlite:///{path}".replace("%", "%25").replace("?", "%3F").replace("{", "{{").replace("}", "}}")
    try:  # SQLite's own 5 s are less than what busy processes wait for each other
        return optuna.storages.RDBStorage(text, engine_kwargs={"connect_args": {"timeout": 60}})
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError) as error:
        why = (str(error).strip().splitlines() or ["unknown"])[0]
        raise StoreError(f"study.storage=sqlite:///{path}: Optuna can't use it: {why}") from None
