"""Log a folder of files to a study's parent run in MLflow."""

from __future__ import annotations

import re
from pathlib import Path

from mnistexp.config.schema import TrackingConfig
from mnistexp.storage.foreign_errors import store_errors
from mnistexp.storage.urls import redact
from mnistexp.tracking.store import open_client, resolved_uri


def log_to_parent(config: TrackingConfig, experiment: str, study_id: str, folder: Path, artifact_path: str) -> str:
    """Log the files of a folder to a sweep's parent run; files of the same names are replaced.

    Args:
        experiment: its name in MLflow.
        study_id: finds the parent run, because a study's name can be used again.
        artifact_path: the folder among the run's artifacts.

    Returns: the run's id; empty if nothing is logged, or if MLflow has no run of the study.
    Raises: StoreError if MLflow can't be reached or written to.
    """
    if config.name == "none" or not re.fullmatch(r"[0-9a-f]{32}", study_id):
        return ""
    uri = resolved_uri(config)
    with store_errors(f"tracking.uri={redact(uri)}: MLflow can't use it", uri):
        client = open_client(uri, create=False)
        found = client.get_experiment_by_name(experiment)
        query = f"tags.study_id = '{study_id}' and tags.kind = 'sweep'"
        runs = client.search_runs([found.experiment_id], query, max_results=1) if found else []
        if not runs:
            return ""
        client.log_artifacts(runs[0].info.run_id, str(folder), artifact_path)
        return str(runs[0].info.run_id)
