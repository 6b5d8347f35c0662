"""What the end-to-end tests share: a folder of their own, and the command line as a process in it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from mnistexp.study.database import reading

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Folder:
    """A user's working folder, and what is typed there."""

    path: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def variables(self) -> dict[str, str]:
        """The user's environment: no store of somebody else's, and the package that is tested."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MNISTEXP_"))}
        return {**kept, "PYTHONPATH": str(ROOT), **self.environment}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a command, in a process group of its own, as a terminal does."""
        return subprocess.Popen(
            [sys.executable, "-m", "mnistexp", *words],
            cwd=self.path,
            env=self.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, which must be this exit code."""
        process = self.start(*words)
        out, err = process.communicate(timeout=360)
        assert process.returncode == expect, f"{' '.join(words)}: exit code {process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(words, process.returncode, out, err)

    def trials(self, study: str) -> list[FrozenTrial]:
        """The study's trials, as Optuna has them."""
        with reading(f"sqlite:///{self.path / 'optuna.db'}") as database:
            return optuna.load_study(study_name=study, storage=database).get_trials()

    def runs(self, query: str, experiment: str) -> list[Any]:
        """The runs that a query finds, as MLflow has them, oldest first."""
        from mlflow import MlflowClient

        store = MlflowClient(f"sqlite:///{self.path / 'mlflow.db'}")
        number = store.get_experiment_by_name(experiment).experiment_id
        return list(store.search_runs([number], query, order_by=["attributes.start_time"]))


def accuracies(output: str) -> dict[str, str]:
    """'validation accuracy' and 'test accuracy' as a command printed them."""
    lines = [line.strip().partition(" accuracy ") for line in output.splitlines()]
    return {name: rest.split()[0] for name, _, rest in lines if name in ("validation", "test")}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """An empty working folder."""
    return Folder(tmp_path)
