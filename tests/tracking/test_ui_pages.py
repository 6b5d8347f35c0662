"""The tags that shape MLflow's pages; how the pages look is for the tests in a browser."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from runs import ADAM, run_config
from sweeps import parts

from mnistexp.tracking import ui_pages
from mnistexp.tracking.runs import MlflowTracker

BEST = f"{ui_pages.SAVED}{ui_pages.BEST_FIRST}"


@pytest.fixture(scope="module")
def client(fresh_mlflow: Path, tmp_path_factory: pytest.TempPathFactory) -> MlflowClient:
    """Of a database in which mnistexp has logged."""
    uri = f"sqlite:///{shutil.copy(fresh_mlflow, tmp_path_factory.mktemp('view') / 'mlflow.db')}"
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


def test_nothing_is_written_twice(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    """A dashboard that is only opened changes nothing."""
    before = (tmp_path / "mlflow.db").read_bytes()

    ui_pages.describe(MlflowClient(uri), tracker._experiment_id)

    assert (tmp_path / "mlflow.db").read_bytes() == before


# ------------------------------------------------------------------------------------ the description of a sweep

STUDY = parts("study.trials=40", "study.timeout=60", "study.target=0.99")[0].prepared.config.study
COUNTS = {"complete": 30, "pruned": 8, "failed": 2}
CONFIG = run_config(ADAM, {"hidden_units": [300, 100]})
BEST_TRIAL = ui_pages.BestTrial(7, 0.9812, 0.9765, CONFIG, ("optimizer=adam", "augmentation=none"))


def rows(space: dict[str, str]) -> list[list[str]]:
    """The cells of a sweep's table."""
    page = ui_pages.sweep_description("m", "m", STUDY, space, COUNTS, BEST_TRIAL)
    return [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]


def test_a_sweep_is_described_with_its_best_trial_first() -> None:
    """MLflow shows the first lines alone; a test score that is not known is not mentioned."""
    page = ui_pages.sweep_description(
        "my study", "mnist", STUDY, {}, COUNTS, BEST_TRIAL, ("tracking.uri=http://there",)
    )
    without = ui_pages.sweep_description("m", "mnist", STUDY, {}, COUNTS, replace(BEST_TRIAL, test_accuracy=None))

    first = page.splitlines()[0]
    assert all(fact in first for fact in ("trial 7", "0.9812", "0.9765"))
    assert "40 of 40 trials: 30 complete, 8 pruned, 2 failed" in page
    assert "test accuracy" not in without
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("    python")]
    assert [words[3] for words in commands] == ["report", "confirm", "rerun", "best"]
    assert all(words[-1] == "tracking.uri=http://there" for words in commands)
    assert "study.name=my study" in commands[1]


def test_a_sweep_without_a_best_trial_is_described() -> None:
    """Before the first complete trial there are the question, the budget and the space."""
    page = ui_pages.sweep_description("m", "mnist", STUDY, {"seed": "1, 2"}, COUNTS, None)

    assert "40 trials, 60 s per session, or until 0.99 is reached" in page
    assert "| `seed` | 1, 2 |  |" in page
    assert "Best" not in page


def test_the_table_has_the_best_values_where_they_apply() -> None:
    """A key for other options stays empty; numbers have four digits; brackets are escaped."""
    table = rows(
        {
            "optimizer": "sgd, adam",
            "optimizer.learning_rate@sgd": "0.01 to 1",
            "optimizer.learning_rate@adam|adamw": "0.001 to 0.01",
            "trainer.label_smoothing@adam/affine": "0 to 1",
            "trainer.batch_size@adam/none|sgd/affine": "32, 100",
            "model.hidden_units": "[300], [300,100]",
        }
    )

    assert [row[-1] if len(row) == 3 else "" for row in table] == ["adam", "", "0.002", "", "100", "\\[300,100\\]"]


def test_a_large_space_fits_into_a_description() -> None:
    """MLflow's tag has room for 8,000 characters."""
    space = {f"model.key_{number}": "a, b, c" * 100 for number in range(1000)}

    page = ui_pages.sweep_description("m", "m", STUDY, space, COUNTS, BEST_TRIAL)

    assert len(page) < 8000
    assert "1000 in all" in page
