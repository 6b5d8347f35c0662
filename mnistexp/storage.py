"""Optuna's database: where it is, whether it can be used, and who else is using it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
import optuna
import sqlalchemy
from optuna.storages import BaseStorage

from mnistexp.errors import StoreError
from mnistexp.tracking import check_writable, shown


@contextlib.contextmanager
def open_for_sweep(address: str) -> Iterator[BaseStorage]:
    """Optuna's database for a sweep: made if it isn't there, and, if it is a file, no other sweep's meanwhile.

    Raises: StoreError if it can't be used, or another sweep is using it.
    """
    url = _url(address)
    if url.drivername != "sqlite":
        yield _open(url)
        return
    try:
        with filelock.FileLock(f"{url.database}.lock", timeout=0):
            yield _open(url)
    except filelock.Timeout:
        raise StoreError(
            f"{url.database}: another sweep is running on it; wait for it, or give study.storage=sqlite:///OTHER.db"
        ) from None


def open_to_read(address: str) -> BaseStorage:
    """Optuna's database as it is. Raises: StoreError if there is none, or it can't be used."""
    url = _url(address)
    if url.drivername == "sqlite" and not Path(str(url.database)).exists():
        raise StoreError(f"{url.database}: there is no such database; run `python -m mnistexp sweep` here first")
    return _open(url)


def check_usable(address: str) -> str:
    """Say where a study would be kept. Raises: StoreError if it can't be: no access, no server, no driver."""
    url = _url(address)
    if url.drivername == "sqlite":
        return f"{url.database} ({'is here' if Path(str(url.database)).exists() else 'will be made'})"
    try:
        with sqlalchemy.create_engine(url, connect_args={"connect_timeout": 3}).connect():
            return shown(address)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise StoreError(f"study.storage={shown(address)}: {str(error).splitlines()[0]}") from None


def same_database(address: str, uri: str) -> bool:
    """Whether two addresses are one database, however they are written."""
    return _place(_url(address)) == _place(_url(uri))


def _place(url: sqlalchemy.URL) -> tuple[str | None, int | None, str | None]:
    file = str(Path(str(url.database)).resolve()) if url.drivername == "sqlite" else url.database
    return url.host, url.port, file


def _open(url: sqlalchemy.URL) -> BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return optuna.storages.RDBStorage(_template(url), engine_kwargs=_engine(url))
    except (sqlalchemy.exc.SQLAlchemyError, RuntimeError, ImportError) as error:
        why = (str(error).strip().splitlines() or ["unknown"])[0]
        raise StoreError(f"study.storage={shown(str(url))}: Optuna can't use it: {why}") from None


def _url(address: str) -> sqlalchemy.URL:
    """The address, with a file's path absolute and taken as it is: no %20, no braces with a meaning."""
    if address.startswith("sqlite:///"):
        path = Path(address.removeprefix("sqlite:///")).expanduser().absolute()
        check_writable(path, "study.storage=sqlite:///FILE.db")
        return sqlalchemy.URL.create("sqlite", database=str(path))
    try:
        return sqlalchemy.make_url(address)
    except sqlalchemy.exc.ArgumentError:
        raise StoreError(f"study.storage={shown(address)}: must be like sqlite:///FILE.db or postgresql://…") from None


def _template(url: sqlalchemy.URL) -> str:
    """The address as text that SQLAlchemy reads back as it is meant; Optuna runs str.format on it before."""
    if url.drivername == "sqlite":  # only what must be quoted: SQLAlchemy itself would also write spaces as %20
        text = f"sqlite:///{url.database}".replace("%", "%25").replace("?", "%3F")
    else:
        text = url.render_as_string(hide_password=False)
    return text.replace("{", "{{").replace("}", "}}")


def _engine(url: sqlalchemy.URL) -> dict[str, Any]:
    # SQLite's own 5 s are less than what eight busy processes wait for each other
    return {"connect_args": {"timeout": 60}} if url.drivername == "sqlite" else {"pool_pre_ping": True}
