"""Runs in MLflow: what is logged, what is found again, and what is repaired."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes import epoch_scores, run_result
from sample_records import FINGERPRINT, PROVENANCE, a_config, a_record, client

from mnistexp.config.compose import flatten, signature
from mnistexp.config.schema import RunConfig
from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import StoreRefusal
from mnistexp.tracking import runs as tracking
from mnistexp.tracking.records import parse_record
from mnistexp.tracking.runs import MlflowTracker, params

SWEEP = {"study": "s", "study_id": "s", "kind": "sweep"}


# ------------------------------------------------------------------------------------------ what is logged


def test_a_run_is_logged_completely(tracker: MlflowTracker, uri: str) -> None:
    """Params, final scores, curves, times, data set, tags and artifacts, by MLflow's own client."""
    from mlflow.artifacts import load_text

    record = a_record()

    run_id = tracker.log(record, files={"source.patch": "+ line\n"})

    run = client(uri).get_run(run_id)
    assert run.data.params == params(record.config)
    assert json.loads(run.data.params["model.hidden_units"]) == [32, 16]
    scores = {"val_accuracy": 2 / 3, "test_accuracy": 1 / 7, "seconds": 2.5, "chosen_epoch": 2}
    assert scores.items() <= run.data.metrics.items()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "003 adam")
    assert run.info.end_time - run.info.start_time == 2500
    tags = {"study": "digits", "trial": "3", "kind": "trial", "state": "COMPLETE", "data_fingerprint": FINGERPRINT}
    assert tags.items() <= run.data.tags.items()
    [given] = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("mnist", FINGERPRINT)
    names = {info.path for info in client(uri).list_artifacts(run_id)}
    assert names == {"config.yaml", "record.json", "source.patch"}
    place = run.info.artifact_uri
    config = RunConfig.model_validate_json(json.dumps(yaml.safe_load(load_text(f"{place}/config.yaml"))))
    assert config == record.config
    assert parse_record(json.loads(load_text(f"{place}/record.json"))) == record
    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"):
        history = client(uri).get_metric_history(run_id, f"curve/{name}")
        assert [(each.step, each.value) for each in history] == [(e.epoch, getattr(e, name)) for e in record.epochs]
    assert len(client(uri).get_metric_history(run_id, "val_accuracy")) == 1  # MLflow's table shows the last value


def test_a_run_is_found_exactly(tracker: MlflowTracker) -> None:
    """By its tags and by its id: config, overrides, provenance, and floats to the last bit."""
    record = a_record()
    run_id = tracker.log(record)
    tracker.log(a_record(tags={"study": "digits", "trial": "4"}))
    tracker.log(a_record(tags={"study": "other", "trial": "3"}))

    [found] = tracker.find({"study": "digits", "trial": "3", "kind": "trial"})

    assert found == next(tracker.find({}, run_id))
    assert (found.run_id, found.name, found.state) == (run_id, record.name, "COMPLETE")
    assert (found.config, found.overrides) == (record.config, record.overrides)
    assert (found.data_fingerprint, found.provenance) == (FINGERPRINT, PROVENANCE)
    assert record.result is not None
    assert found.metrics["val_accuracy"] == record.result.fit.best.val_accuracy
    assert found.metrics["val_loss"] == record.result.fit.best.val_loss
    assert found.metrics["test_loss"] == record.result.test_loss
    assert found.weights_hash == record.result.weights_hash
    assert found.tags["signature"] == signature(record.config)


def test_a_long_run_is_logged_completely(tracker: MlflowTracker, uri: str) -> None:
    """400 epochs are more metrics than one of MLflow's batches holds; the final scores come first."""
    record = a_record(result=run_result([0.5] * 400))

    run_id = tracker.log(record)

    history = client(uri).get_metric_history(run_id, "curve/val_loss")
    assert sorted(metric.step for metric in history) == list(range(1, 401))
    first = {name for name, _, _ in list(tracking._metrics(record))[:10]}
    assert {"val_accuracy", "val_loss", "test_accuracy", "test_loss"} <= first


def test_a_failed_run_keeps_its_finite_epochs(tracker: MlflowTracker, uri: str) -> None:
    """It has its reason and no final scores; a pruned run, which did not fail, is FINISHED."""
    diverged = epoch_scores(3, 0.1).model_copy(update={"val_loss": math.nan})
    epochs = (epoch_scores(1, 0.5), epoch_scores(2, 0.25), diverged)
    failed = tracker.log(a_record(state="FAILED", result=None, epochs=epochs, reason="val_loss became nan"))
    pruned = tracker.log(a_record(state="PRUNED"))

    run = client(uri).get_run(failed)
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "val_loss became nan")
    assert run.data.metrics["curve/val_accuracy"] == 0.1
    assert [each.step for each in client(uri).get_metric_history(failed, "curve/val_loss")] == [1, 2]
    assert not {"val_accuracy", "test_accuracy"} & run.data.metrics.keys()
    assert [found.run_id for found in tracker.find({"state": "FAILED"})] == [failed]
    assert client(uri).get_run(pruned).info.status == "FINISHED"


def test_weights_are_an_artifact(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    """The worker's file is logged under its name; a missing one is ignored."""
    (tmp_path / "7.weights.h5").write_bytes(b"weights")

    with_weights = tracker.log(a_record(weights_path=tmp_path / "7.weights.h5"))
    without = tracker.log(a_record(weights_path=tmp_path / "8.weights.h5"))

    assert "7.weights.h5" in {info.path for info in client(uri).list_artifacts(with_weights)}
    assert len(client(uri).list_artifacts(without)) == 2


def test_values_over_mlflows_limits_are_logged_completely(tracker: MlflowTracker, uri: str) -> None:
    """A config, provenance or bit mask over 8,000 characters comes back from tags; a name and a param are shortened."""
    options = {f"option_{number}": "é" * 900 for number in range(64)}
    model = {"name": "custom", "function": "network", "settings": options, "code": None}
    config = RunConfig.model_validate(a_config().model_dump() | {"model": model})
    result = run_result([0.5])
    fit = result.fit.model_copy(update={"validation_correct": bytes(range(250)) * 40})
    large = result.model_copy(update={"fit": fit})
    provenance = {"versions": {f"package-{number}": "1.2.3" for number in range(1000)}}
    record = a_record(config=config, result=large, provenance=provenance, overrides=("x" * 9000,), name="n" * 300)

    run_id = tracker.log(record)

    [found] = tracker.find({"study": "digits"})
    assert (found.config, found.overrides, found.provenance) == (config, record.overrides, provenance)
    assert base64.b64decode(found.tags["mnistexp.validation_correct"]) == fit.validation_correct
    run = client(uri).get_run(run_id)
    assert len(run.info.run_name) == 250
    assert run.data.params == params(config)
    assert max(map(len, run.data.params.values())) <= 6000


def test_every_hyperparameter_is_a_param() -> None:
    """All keys of a config are params by their override keys, except those that say where the data files are."""
    digits = {"name": "digits", "root": None, "validation_size": 360, "split": "stratified", "split_seed": 0}
    config = RunConfig.model_validate(a_config().model_dump() | {"data": {**digits, "test_size": 300}})

    flat = params(config)

    keys = set(flatten(config.model_dump(mode="json"))) - {"data.root", "data.name"} | {"data"}
    assert flat.keys() == keys
    assert (flat["data"], flat["data.test_size"]) == ("digits", "300")
    assert (flat["optimizer.name"], flat["trainer.max_steps"]) == ("adam", "null")
    assert not {"data.root", "data.files", "data.mirrors", "data.timeout"} & params(a_config()).keys()


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("refused", [{"reason": "half a character: \ud800"}, {"data_name": "x" * 600}])
def test_a_refused_run_leaves_nothing(tracker: MlflowTracker, uri: str, refused: dict[str, Any]) -> None:
    """A value that MLflow does not accept raises StoreRefusal, and the next run is logged."""
    with pytest.raises(StoreRefusal, match="MLflow can't use it"):
        tracker.log(a_record(**refused))

    run_id = tracker.log(a_record())
    assert [run.info.run_id for run in client(uri).search_runs([tracker._experiment_id])] == [run_id]


def test_an_id_that_is_no_training_is_named(tracker: MlflowTracker) -> None:
    """An unknown id, a sweep's parent run, and a run whose tags are damaged."""
    parent, damaged = tracker.start_parent("sweep", SWEEP, "", {}), tracker.log(a_record())
    tracker._client.set_tag(damaged, "mnistexp.config", "{")

    for run_id, words in (
        ("abc", "MLflow has no such run"),
        (parent, "is no training"),
        (damaged, "was not logged by"),
    ):
        with pytest.raises(StoreError, match=f"run={run_id}: {words}"):
            next(tracker.find({}, run_id))


# --------------------------------------------------------------------------------- parent runs and repairs


def test_trials_are_children_of_their_sweep(tracker: MlflowTracker, uri: str) -> None:
    """The parent has description, files and summary; a second session opens the same one again."""
    first = tracker.start_parent("sweep", SWEEP, "1 trial", {"provenance.json": "{}"})
    child = tracker.log(a_record(), parent=first)
    tracker.finish_parent(first, {"best_val_accuracy": 0.5}, "b" * 9000, "FINISHED")
    finished = client(uri).get_run(first)
    again = tracker.start_parent("sweep", SWEEP, "2 trials", {})
    other = tracker.start_parent("sweep", {**SWEEP, "study_id": "t"}, "", {})

    assert client(uri).get_run(child).data.tags["mlflow.parentRunId"] == first
    assert (finished.info.status, finished.data.metrics) == ("FINISHED", {"best_val_accuracy": 0.5})
    assert finished.data.tags["mlflow.note.content"] == "b" * 8000
    assert again == first != other
    assert client(uri).get_run(first).info.status == "RUNNING"
    assert list(tracker.find({"study": "s"})) == []  # a parent is no training


def left_open(tracker: MlflowTracker, **tags: str) -> str:
    """A run as a killed process leaves it. Returns: its id."""
    return str(tracker._client.create_run(tracker._experiment_id, tags={"kind": "trial", **tags}).info.run_id)


def test_runs_of_dead_processes_are_closed(tracker: MlflowTracker) -> None:
    """A complete run gets its state, an incomplete one is deleted; a living process's and other studies' stay."""
    half = left_open(tracker, study_id="s", process="0")
    complete = left_open(tracker, study_id="s", process="0", state="PRUNED")
    living = left_open(tracker, study_id="s", process="1")
    other = left_open(tracker, study_id="2", process="0")
    parent = tracker.start_parent("sweep", SWEEP, "", {})

    def states() -> list[tuple[str, str]]:
        infos = [tracker._client.get_run(run_id).info for run_id in (half, complete, living, other, parent)]
        return [(info.status, info.lifecycle_stage) for info in infos]

    trials = [("KILLED", "deleted"), ("FINISHED", "active"), ("RUNNING", "active"), ("RUNNING", "active")]
    tracker.close_stale_runs({"study_id": "s"}, None, lambda process: process == "1")
    assert states() == [*trials, ("RUNNING", "active")]
    tracker.close_stale_runs({"study_id": "s"}, "KILLED", lambda process: process == "1")
    assert states() == [*trials, ("KILLED", "active")]


def test_a_run_that_may_exist_is_logged_once(tracker: MlflowTracker) -> None:
    """A complete run stays the only one; an incomplete one is replaced; an interrupted attempt is another run."""
    record = a_record(tags={"study_id": "1", "trial": "3"})
    interrupted = tracker.log(record.model_copy(update={"state": "INTERRUPTED", "result": None}))
    half = left_open(tracker, study_id="1", trial="3")

    first = tracker.log(record, may_exist=True)
    second = tracker.log(record, may_exist=True)

    found = sorted(run.run_id for run in tracker.find({"study_id": "1", "trial": "3"}))
    assert first == second
    assert found == sorted([interrupted, first])
    assert tracker._client.get_run(half).info.lifecycle_stage == "deleted"
    assert tracker._client.get_run(interrupted).info.status == "KILLED"


def test_a_deleted_run_is_found_on_request(tracker: MlflowTracker) -> None:
    """So that a run that a user deleted is not logged again."""
    run_id = tracker.log(a_record(tags={"study_id": "1", "trial": "3"}))
    tracker._client.delete_run(run_id)

    assert list(tracker.find({"study_id": "1"})) == []
    assert [run.run_id for run in tracker.find({"study_id": "1"}, deleted=True)] == [run_id]
