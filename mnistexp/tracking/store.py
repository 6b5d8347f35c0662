"""Open an MLflow store: its URI, whether it answers, its tables, and its errors."""

from __future__ import annotations

import logging
import os
import re
from typing import TYPE_CHECKING, Any

import requests

from mnistexp.config.schema import TrackingConfig
from mnistexp.errors import StoreError
from mnistexp.storage import locks
from mnistexp.storage.locks import wait_for
from mnistexp.storage.urls import REACHABLE_SECONDS, check_file, check_port, create_atomically, redact, sqlite_path

if TYPE_CHECKING:
    from sqlalchemy import Engine

# MLflow reads these when it is imported. A server that hangs must not delay trials for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines per run
os.environ.setdefault("MLFLOW_TRUNCATE_LONG_VALUES", "false")  # a value over a limit is an error, not cut
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

NO_RUNS = "{}: no runs are logged here; run `python -m mnistexp sweep` first"


def resolved_uri(config: TrackingConfig) -> str:
    """The absolute URI of the store: tracking.uri, else MLFLOW_TRACKING_URI, else ./mlflow.db; "" for tracking=none.

    It is always explicit, because an old ./mlruns folder changes MLflow's default.
    """
    if config.name == "none":
        return ""
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = sqlite_path(uri)
    if path is not None:
        return f"sqlite:///{path}"
    if "://" not in uri:
        raise StoreError(
            f"tracking.uri={uri}: MLflow's file store is closed; give sqlite:///FILE.db, postgresql://… or http://…"
        )
    return uri


def open_client(uri: str, *, create: bool) -> Any:
    """MLflow's client of a store that works; `create` makes the tables of an empty database.

    Raises: StoreError, or what MLflow raises.
    """
    check_reachable(uri)
    path = sqlite_path(uri)
    if path is not None and not create and not path.exists():
        raise StoreError(NO_RUNS.format(path))
    from mlflow import MlflowClient

    # A new database's migrations log 60 lines, and each error a traceback; the exception has the reason.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    if not uri.startswith("http"):
        _prepare_database(uri, create)
    return MlflowClient(uri)


def check_reachable(uri: str) -> None:
    """Check that a store answers before MLflow tries, which retries for minutes. Raises: StoreError."""
    path = sqlite_path(uri)
    if path is not None:
        if re.search(r"%[0-9A-Fa-f]{2}|\?", str(path)):
            raise StoreError(
                f"tracking.uri={uri}: MLflow misreads paths with `?` or `%20` in them, and would log to another "
                f"folder; work in a folder with a plainer name"
            )
        check_file(path, "tracking.uri=sqlite:///FILE.db", "experiments")
    elif uri.startswith("http"):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=REACHABLE_SECONDS).raise_for_status()
        except requests.RequestException as error:
            raise StoreError(
                f"tracking.uri={redact(uri)}: no MLflow server answers there ({type(error).__name__}); "
                f"start one with `mlflow server`, or leave tracking.uri out to log to mlflow.db here"
            ) from None
    else:
        check_port("tracking.uri", uri)


def _prepare_database(uri: str, create: bool) -> None:
    """Make MLflow's tables where there are none, one process at a time; refuse those of another version.

    MLflow would upgrade an older database unasked, and of eight processes on an empty database most fail.
    """
    from mlflow import MlflowClient
    from sqlalchemy import NullPool, create_engine

    path = sqlite_path(uri)
    if path is not None:
        with wait_for(locks.file_lock(path)):
            create_atomically(path, lambda new: _make_tables(MlflowClient(f"sqlite:///{new}")))
        _check_schema(create_engine(f"sqlite:///{path}", poolclass=NullPool), uri, create)
    elif uri.startswith("postgresql"):
        engine = create_engine(uri, poolclass=NullPool)
        with wait_for(locks.server_lock(engine)):
            _check_schema(engine, uri, create)
            _make_tables(MlflowClient(uri))


def _make_tables(client: Any) -> None:
    """Have MLflow make its tables, which the first query does, and close the file."""
    client.search_experiments(max_results=1)
    client._tracking_client.store.engine.dispose()


def _check_schema(engine: Engine, uri: str, create: bool) -> None:
    """Raises: StoreError if the tables are not MLflow's, or missing without `create`; MLflow's error for old ones."""
    from mlflow.store.db import utils
    from sqlalchemy import inspect

    tables = set(inspect(engine).get_table_names())
    if "experiments" in tables:
        verify: Any = utils._verify_schema  # untyped
        verify(engine)
    elif tables:
        raise StoreError(f"tracking.uri={redact(uri)}: has tables, but not MLflow's; give an empty database")
    elif not create:
        raise StoreError(NO_RUNS.format(redact(uri)))
