"""What an experiment's tags make of MLflow's pages; that the pages take them so is for the browser's tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from mnistexp.tracking import ui_pages
from mnistexp.tracking.runs import MlflowTracker

BEST = f"{ui_pages.SAVED}{ui_pages.BEST_FIRST}"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    """Of a database in which mnistexp has logged."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('view') / 'mlflow.db'}"
    MlflowTracker(uri, "seen")
    return MlflowClient(uri)


def columns(client: MlflowClient, experiment: str) -> list[str]:
    """The hyperparameters that the view has as columns."""
    tags: dict[str, str] = client.get_experiment(experiment).tags
    state: dict[str, Any] = json.loads(json.loads(tags[BEST])["state"])
    return [text.split("`")[1] for text in state["selectedColumns"] if text.startswith("params.")]


def test_a_new_experiment_is_described_at_once(client: MlflowClient) -> None:
    """Whoever opens MLflow while the first run is under way sees the description and both views."""
    found = client.get_experiment_by_name("seen")

    assert {BEST, f"{ui_pages.SAVED}{ui_pages.SWEEPS}"} <= set(found.tags)
    assert f"#/experiments/{found.experiment_id}/runs?viewStateShareKey=mnistexp" in found.tags["mlflow.note.content"]


def test_what_is_searched_becomes_columns_study_by_study(client: MlflowClient) -> None:
    """A choice of an option shows as its name, a key for some options once, and a second study adds to the first."""
    made = client.create_experiment("studies")

    ui_pages.describe(client, made, ["optimizer", "optimizer.learning_rate@sgd", "optimizer.learning_rate@adam|adamw"])
    first = columns(client, made)
    ui_pages.describe(client, made, ["seed", "optimizer"])

    assert first == ["optimizer.name", "optimizer.learning_rate"]
    assert columns(client, made) == ["optimizer.name", "optimizer.learning_rate", "seed"]


def test_a_group_that_no_run_logs_is_no_column(client: MlflowClient) -> None:
    """Of augmentation=affine a run logs what that sets; a column of its name would stay empty."""
    made = client.create_experiment("groups")

    ui_pages.describe(client, made, ui_pages.fitting(["augmentation", "optimizer", "augmentation.shift", "seed"]))

    assert columns(client, made) == ["optimizer.name", "augmentation.shift", "seed"]


def test_what_a_person_wrote_stays(client: MlflowClient) -> None:
    """A description of the user's own is never overwritten; a view by our key is ours."""
    made = client.create_experiment("own")
    client.set_experiment_tag(made, "mlflow.note.content", "mine")
    client.set_experiment_tag(made, BEST, "not JSON")

    ui_pages.describe(client, made)

    assert client.get_experiment(made).tags["mlflow.note.content"] == "mine"
    assert columns(client, made)[0] == "optimizer.name"


@pytest.mark.parametrize("length", [3, 30, 100, 700])
def test_a_space_of_any_size_fits(client: MlflowClient, length: int) -> None:
    """MLflow refuses a tag of more than 5,000 characters, whatever a space's keys are."""
    made = client.create_experiment(f"wide {length}")

    ui_pages.describe(client, made, [f"model.{'x' * length}{number}" for number in range(200)])

    assert len(client.get_experiment(made).tags[BEST]) <= 5000


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    """A dashboard that is only opened changes nothing."""
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowTracker(uri, "seen")
    client = MlflowClient(uri)
    made = client.get_experiment_by_name("seen").experiment_id
    before = (tmp_path / "mlflow.db").read_bytes()

    ui_pages.describe(client, made)

    assert (tmp_path / "mlflow.db").read_bytes() == before
