"""A folder of files, put to a study's parent run in MLflow."""

from __future__ import annotations

import re
from pathlib import Path

from mnistexp.config.schema import TrackingConfig
from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import reason
from mnistexp.storage.urls import redact
from mnistexp.tracking.runs import open_tracker
from mnistexp.tracking.store import resolved_uri


def log_to_parent(config: TrackingConfig, experiment: str, study_id: str, folder: Path, place: str) -> str:
    """Put a folder's files into a sweep's parent run, over those that were there.

    Args:
        experiment: its name in MLflow.
        study_id: the study's, by which its parent run is found: names come again.
        place: the folder among the run's artifacts.

    Returns: the run's id; empty where nothing is logged, or the study has no run there.
    Raises: StoreError if MLflow can't be reached, or not be written to.
    """
    if config.name == "none" or not re.fullmatch(r"[0-9a-f]{32}", study_id):
        return ""
    open_tracker(config, experiment, create=False)  # looks at the store first: MLflow itself would wait for minutes
    from mlflow import MlflowClient  # 2 s, so not before it is needed
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    uri = resolved_uri(config)
    try:
        client = MlflowClient(uri)
        found = client.get_experiment_by_name(experiment)
        clauses = f"tags.study_id = '{study_id}' and tags.kind = 'sweep'"
        runs = client.search_runs([found.experiment_id], clauses, max_results=1) if found else []
        for run in runs:
            client.log_artifacts(run.info.run_id, str(folder), place)
            return str(run.info.run_id)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise StoreError(f"tracking.uri={redact(uri)}: MLflow can't use it: {reason(error, uri)}") from None
    return ""
