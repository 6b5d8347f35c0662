"""The tags that shape MLflow's pages; how the pages look is for the tests in a browser."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sweeps import parts

from mnistexp.tracking import ui_pages
from mnistexp.tracking.runs import MlflowTracker

BEST = f"{ui_pages.SAVED}mnistexp"


class Client:
    """An experiment's tags, as an MlflowClient reads and writes them; MLflow refuses more than 5,000 characters."""

    def __init__(self, **tags: str) -> None:
        self.tags, self.written = tags, 0

    def get_experiment(self, experiment_id: str) -> Client:
        return self

    def set_experiment_tag(self, experiment_id: str, key: str, value: str) -> None:
        assert len(value) <= 5000
        self.tags[key], self.written = value, self.written + 1

    def columns(self) -> list[str]:
        """The hyperparameters that the view has as columns."""
        state: dict[str, Any] = json.loads(json.loads(self.tags[BEST])["state"])
        return [text.split("`")[1] for text in state["selectedColumns"] if text.startswith("params.")]


def test_a_new_experiment_is_described_at_once(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    """It has a description and both views; a dashboard that is only opened then changes nothing."""
    tags = tracker._client.get_experiment(tracker._experiment_id).tags
    before = (tmp_path / "mlflow.db").read_bytes()

    page = ui_pages.first_page(uri, "digits")

    assert {BEST, f"{BEST}-sweeps"} <= set(tags)
    assert page in tags["mlflow.note.content"]
    assert (tmp_path / "mlflow.db").read_bytes() == before
    assert ui_pages.first_page(uri, "unknown") == page  # the newest one


def test_what_is_searched_becomes_columns_study_by_study() -> None:
    """A group shows as its name, a key for some options once; a group that no run logs is left out."""
    client = Client()

    ui_pages.describe(client, "1", ["optimizer", "augmentation", "optimizer.learning_rate@sgd", "augmentation.shift"])
    first = client.columns()
    ui_pages.describe(client, "1", ["seed", "optimizer", "optimizer.learning_rate@adam|adamw"])

    assert first == ["optimizer.name", "optimizer.learning_rate", "augmentation.shift"]
    assert client.columns() == [*first, "seed"]


def test_what_a_person_wrote_stays() -> None:
    """A description of the user's own is never overwritten; a view by our key is ours."""
    client = Client(**{"mlflow.note.content": "mine", BEST: "not JSON"})

    ui_pages.describe(client, "1")
    written = client.written
    ui_pages.describe(client, "1")

    assert client.tags["mlflow.note.content"] == "mine"
    assert client.columns()[0] == "optimizer.name"
    assert client.written == written


@pytest.mark.parametrize("length", [3, 30, 100, 700])
def test_a_space_of_any_size_fits(length: int) -> None:
    """However many and long its keys are, no tag is too long for MLflow."""
    client = Client()

    ui_pages.describe(client, "1", [f"model.{'x' * length}{number}" for number in range(200)])

    assert client.columns()


# ------------------------------------------------------------------------------------ the description of a sweep

STUDY = parts("study.trials=40", "study.timeout=60", "study.target=0.99")[0].prepared.config.study
COUNTS = {"complete": 30, "pruned": 8, "failed": 2}
BEST_TRIAL = ui_pages.BestTrial(7, 0.9812, 0.9765, ("optimizer=adam", "model.hidden_units=[9]"))


def test_a_sweep_is_described_with_its_best_trial_first() -> None:
    """MLflow shows the first lines alone; a test score that is not known is not mentioned."""
    stores = ("tracking.uri=http://there",)

    page = ui_pages.sweep_description("my study", "mnist", STUDY, {}, COUNTS, BEST_TRIAL, stores)
    without = ui_pages.sweep_description("m", "mnist", STUDY, {}, COUNTS, replace(BEST_TRIAL, test_accuracy=None))

    first = page.splitlines()[0]
    assert all(fact in first for fact in ("trial 7", "0.9812", "0.9765"))
    assert "optimizer=adam model.hidden\\_units=\\[9\\]" in page
    assert "40 of 40 trials: 30 complete, 8 pruned, 2 failed" in page
    assert "test accuracy" not in without
    commands = [shlex.split(line) for line in page.splitlines() if line.startswith("    python")]
    assert [words[3] for words in commands] == ["report", "confirm", "rerun", "best"]
    assert all(words[4:] == ["study.name=my study", "tracking.uri=http://there"] for words in commands)


def test_a_sweep_without_a_best_trial_has_its_space() -> None:
    """Before the first complete trial; a parameter names the options that it is for, and brackets are escaped."""
    space = {"seed": "1, 2", "optimizer.learning_rate@adam|adamw": "0.001 to 0.01", "model.hidden_units": "[300], [9]"}

    page = ui_pages.sweep_description("m", "mnist", STUDY, space, COUNTS, None)

    assert "40 trials, 60 s per session, or until 0.99 is reached" in page
    rows = [[cell.strip() for cell in line.split(" |")] for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        ["| `seed`", "1, 2", "", ""],
        ["| `optimizer.learning_rate`", "0.001 to 0.01", "adam, adamw", ""],
        ["| `model.hidden_units`", "\\[300\\], \\[9\\]", "", ""],
    ]
    assert "Best" not in page


def test_a_large_space_fits_into_a_description() -> None:
    """MLflow's tag has room for 8,000 characters."""
    space = {f"model.key_{number}": "a, b, c" * 100 for number in range(1000)}

    page = ui_pages.sweep_description("m", "m", STUDY, space, COUNTS, BEST_TRIAL)

    assert len(page) < 8000
    assert "1000 in all" in page
