"""MLflow databases for the tests of tracking."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mnistexp.tracking.runs import MlflowTracker


@pytest.fixture(scope="session")
def fresh_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow's: making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        MlflowTracker(f"sqlite:///{folder / 'mlflow.db'}", "unused")
    return folder / "mlflow.db"


@pytest.fixture
def uri(fresh_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of the test's own, in its working folder."""
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{shutil.copy(fresh_mlflow, tmp_path / 'mlflow.db')}"


@pytest.fixture
def tracker(uri: str) -> MlflowTracker:
    """A tracker on the test's own database."""
    return MlflowTracker(uri, "digits")
