"""Records, settings and a client for the tests of tracking."""

from __future__ import annotations

from typing import Any

import runs
from fakes import run_result

from mnistexp.config.schema import RunConfig, TrackingConfig
from mnistexp.tracking.records import RunRecord

FINGERPRINT = "0123456789abcdef" * 2
PROVENANCE = {"git": {"commit": "abc"}, "versions": {"keras": "3.15"}, "flags": {"XLA_FLAGS": "--x 'y'"}}


def a_config() -> RunConfig:
    """A config in which few values are defaults."""
    return runs.run_config(runs.ADAM, {"hidden_units": [32, 16]}, seed=3)


def a_record(**more: Any) -> RunRecord:
    """A trial of three epochs, of which the second was kept; `more` replaces fields."""
    fields = {
        "name": "003 adam",
        "kind": "trial",
        "config": a_config(),
        "overrides": ("data=mnist", "optimizer.learning_rate=0.002", "study.name='a,b'"),
        "data_name": "mnist",
        "data_fingerprint": FINGERPRINT,
        "data_source": "/data/mnist",
        "provenance": PROVENANCE,
        "started": 1_700_000_000.0,
        "ended": 1_700_000_002.5,
        "state": "COMPLETE",
        "result": run_result([0.1, 2 / 3, 1 / 3], test_accuracy=1 / 7),
        "tags": {"study": "digits", "trial": "3"},
    }
    return RunRecord(**{**fields, **more})


def settings(uri: str | None, name: str = "mlflow") -> TrackingConfig:
    """The settings with this tracking.uri."""
    return TrackingConfig.model_validate({"name": name, "uri": uri, "experiment": None, "save_weights": False})


def client(uri: str) -> Any:
    """MLflow's own client."""
    from mlflow import MlflowClient

    return MlflowClient(uri)
