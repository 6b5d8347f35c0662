"""MLflow's web application, as `mnistexp ui` runs it: in its own process, on loopback, with the settings below.

The command `mlflow server` runs the same application in a second process; that took twice the memory (516 MB, not
260) and twice the CPU time to start.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnistexp.storage.foreign_errors import store_errors
from mnistexp.storage.urls import redact
from mnistexp.tracking import ui_pages
from mnistexp.tracking.store import open_client


def first_page(uri: str, experiment: str) -> str:
    """The address of the experiment's run table, from the `#` on: of the newest one if it does not exist.

    Raises: StoreError if there is no database of runs.
    """
    with store_errors(f"tracking.uri={redact(uri)}: MLflow can't show it", uri):
        client = open_client(uri, create=False)
        found = client.get_experiment_by_name(experiment)
        if found is None or found.lifecycle_stage != "active":
            others = [other for other in client.search_experiments() if other.experiment_id != "0"]
            found = max(others, key=lambda other: other.last_update_time or 0, default=None)
    if found is None:
        return ""
    with suppress(Exception):  # without permission to write, the table has MLflow's own columns
        ui_pages.describe(client, found.experiment_id)
    return ui_pages.address(found.experiment_id)


def web_app(uri: str, allowed_hosts: Sequence[str]) -> Any:
    """MLflow's ASGI application on a store.

    Args:
        allowed_hosts: HOST:PORT values that a request's Host header may have; others are refused (DNS rebinding).
    """
    with store_errors(f"tracking.uri={redact(uri)}: MLflow can't show it", uri):
        from mlflow.server import constants

        os.environ |= {  # MLflow reads them when the application is imported
            "MLFLOW_SERVER_ALLOWED_HOSTS": os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS") or ",".join(allowed_hosts),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # another process of 200 MB
            constants.BACKEND_STORE_URI_ENV_VAR: uri,
            constants.REGISTRY_STORE_URI_ENV_VAR: uri,
            constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: str(Path("mlartifacts").absolute()),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated calls inside MLflow
            from mlflow.server.assistant.api import assistant_router

            assistant_router.routes.clear()  # it can run shell commands for anybody on this machine, and has no switch
            from mlflow.server.fastapi_app import app
        from mlflow.server.handlers import initialize_backend_stores

        initialize_backend_stores(uri, uri, os.environ[constants.ARTIFACT_ROOT_ENV_VAR])
    return app
