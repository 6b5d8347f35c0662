"""MLflow's own pages, served by this very process.

`mlflow ui` is two processes and 500 MB (as it stands: 15 and 2.5 GB), has the database's password in one's
environment, and outlives a parent that is killed. One process can't: nothing is left of it, however it ends.
"""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import socket
from typing import Any

from sqlalchemy import NullPool, create_engine, inspect
from sqlalchemy.exc import SQLAlchemyError

from mnistexp.dashboards.front import Front
from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import reason
from mnistexp.storage.urls import redact, sqlite_path
from mnistexp.study.signals import SIGNALS
from mnistexp.tracking import ui_pages
from mnistexp.tracking.runs import check_reachable, ready_database

GRACE = 1  # seconds that an answer under way gets when the server is stopped


def check(uri: str) -> None:
    """Look, at once, whether there is a database of runs to show; makes none. Raises: StoreError."""
    check_reachable(uri)
    if uri.startswith("http"):
        return
    path = sqlite_path(uri)
    if not (path.exists() if path else _has_runs(uri)):
        raise StoreError(f"{path or redact(uri)}: no runs are logged here; run `python -m mnistexp sweep` first")


def _has_runs(uri: str) -> bool:
    try:
        return bool(inspect(create_engine(uri, poolclass=NullPool)).has_table("experiments"))
    except (SQLAlchemyError, ImportError) as error:
        raise StoreError(f"tracking.uri={redact(uri)}: can't be looked into: {reason(error, uri)}") from None


def first_page(uri: str, experiment: str) -> str:
    """Where to begin, from the `#` on: this experiment in our view, else the newest; "" where there is none."""
    with _told(uri):
        from mlflow import MlflowClient

        if not uri.startswith("http"):
            ready_database(uri)
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage != "active":
            others = [other for other in client.search_experiments() if other.experiment_id != "0"]
            found = max(others, key=lambda other: other.last_update_time or 0, default=None)
    if found is None:
        return ""
    with suppress(Exception):  # one that may only look sees MLflow's own columns
        ui_pages.describe(client, found.experiment_id)
    return ui_pages.address(found.experiment_id)


def serve(uri: str, page: str, listener: socket, hosts: Sequence[str], ready: Callable[[], None]) -> None:
    """Answer until a signal says stop; then raises KeyboardInterrupt.

    Args:
        page: where the bare address leads, from the `#` on.
        listener: bound.
        hosts: HOST:PORT, by which it may be called; a page of another name (DNS rebinding) gets nothing.
        ready: called once it answers.

    Raises: StoreError if it can't start.
    """
    with _told(uri):
        app = Front(_app(uri, hosts), page)
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            ready()

    # No lifespan: all that MLflow does in it is to tidy up after its assistant.
    quiet: dict[str, Any] = {"log_config": None, "access_log": False, "lifespan": "off"}
    server = Server(uvicorn.Config(app, timeout_graceful_shutdown=GRACE, **quiet))
    for number in set(SIGNALS) - set(uvicorn.server.HANDLED_SIGNALS):  # raised into its loop, one would hang it
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, server.handle_exit)
    server.run([listener])


def _app(uri: str, hosts: Sequence[str]) -> Any:
    """MLflow's web application as `mlflow ui` sets it up."""
    from mlflow.server import constants

    os.environ |= {  # all are read when the application is imported
        "MLFLOW_SERVER_ALLOWED_HOSTS": os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS") or ",".join(hosts),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its queue is a process and 200 MB more
        constants.BACKEND_STORE_URI_ENV_VAR: uri,
        constants.REGISTRY_STORE_URI_ENV_VAR: uri,
        constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
        constants.SERVE_ARTIFACTS_ENV_VAR: "true",
        constants.ARTIFACTS_DESTINATION_ENV_VAR: str(Path("mlartifacts").absolute()),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's use of Starlette is not the user's to mend
        from mlflow.server.fastapi_app import app
    from mlflow.server.handlers import initialize_backend_stores

    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # what goes wrong with a page is said on that page
    initialize_backend_stores(uri, uri, os.environ[constants.ARTIFACT_ROOT_ENV_VAR])
    return app


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """Raise the faults of MLflow and of its database as StoreError."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError, AttributeError) as error:
        raise StoreError(f"tracking.uri={redact(uri)}: MLflow can't show it: {reason(error, uri)}") from None
