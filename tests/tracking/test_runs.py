from __future__ import annotations

import base64
import json
import math
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
import runs
import yaml
from fakes import epoch_scores, run_result

from mnistexp.config.compose import flatten, signature
from mnistexp.config.schema import RunConfig, TrackingConfig
from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import StoreRefusal
from mnistexp.storage.urls import redact
from mnistexp.tracking import runs as tracking
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.runs import MlflowTracker, open_tracker, params
from mnistexp.tracking.store import check_reachable, resolved_uri

ROOT = Path(__file__).resolve().parents[2]
FINGERPRINT = "0123456789abcdef" * 2
PROVENANCE = {"git": {"commit": "abc"}, "versions": {"keras": "3.15"}, "flags": {"XLA_FLAGS": "--x 'y'"}}


def a_config(seed: int = 3) -> RunConfig:
    """A config in which little is a default."""
    return runs.run_config(runs.ADAM, {"hidden_units": [32, 16]}, seed=seed)


def a_record(**more: Any) -> RunRecord:
    """A trial of three epochs, of which the second was kept; `more` says what differs."""
    result = run_result([0.1, 2 / 3, 1 / 3], test_accuracy=1 / 7)
    known = {
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
        "result": result,
        "epochs": result.fit.epochs,
        "tags": {"study": "digits", "trial": "3"},
    }
    return RunRecord(**{**known, **more})


def failed_record() -> RunRecord:
    """A run whose third epoch's loss became NaN."""
    epochs = (
        epoch_scores(1, 0.5),
        epoch_scores(2, 0.25),
        epoch_scores(3, 0.1).model_copy(update={"val_loss": math.nan}),
    )
    return a_record(state="FAILED", result=None, epochs=epochs, reason="val_loss became nan in epoch 3")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow's: making one takes seconds, copying it nothing."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        MlflowTracker(f"sqlite:///{folder / 'mlflow.db'}", "unused")
    return folder / "mlflow.db"


@pytest.fixture
def uri(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of the test's own, in its working folder."""
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{shutil.copy(fresh, tmp_path / 'mlflow.db')}"


@pytest.fixture
def tracker(uri: str) -> MlflowTracker:
    """A tracker on the test's own database."""
    return MlflowTracker(uri, "digits")


def client(uri: str) -> Any:
    """MLflow's own client: what anybody else would use."""
    from mlflow import MlflowClient

    return MlflowClient(uri)


# ------------------------------------------------------------------------------------------ what is logged


def test_a_run_is_logged_whole(tracker: MlflowTracker, uri: str) -> None:
    """Params, curves, final scores, times, data set, tags and artifacts: anybody's client finds them."""
    record = a_record()

    run_id = tracker.log(record, files={"source.patch": "+ line\n"})

    run = client(uri).get_run(run_id)
    assert run.data.params == params(record.config)
    assert {"seed", "optimizer.beta_1", "model.hidden_units", "trainer.batch_size", "data"} <= run.data.params.keys()
    assert json.loads(run.data.params["model.hidden_units"]) == [32, 16]
    assert float(run.data.params["optimizer.epsilon"]) == 1e-6
    assert run.data.metrics["val_accuracy"] == 2 / 3
    assert run.data.metrics["test_accuracy"] == 1 / 7
    assert run.data.metrics["seconds"] == 2.5
    assert run.data.metrics["chosen_epoch"] == 2
    assert (run.info.status, run.info.run_name) == ("FINISHED", "003 adam")
    assert run.info.end_time - run.info.start_time == 2500
    tags = {"study": "digits", "trial": "3", "kind": "trial", "state": "COMPLETE", "data_fingerprint": FINGERPRINT}
    assert tags.items() <= run.data.tags.items()
    [given] = run.inputs.dataset_inputs
    assert (given.dataset.name, given.dataset.digest) == ("mnist", FINGERPRINT)
    names = {info.path for info in client(uri).list_artifacts(run_id)}
    assert names == {"config.yaml", "record.json", "source.patch"}


def test_curves_have_names_of_their_own(tracker: MlflowTracker, uri: str) -> None:
    """One value per epoch under curve/…; what the table shows, val_accuracy and test_accuracy, stands there once."""
    record = a_record()

    run_id = tracker.log(record)

    def history(name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client(uri).get_metric_history(run_id, name)]

    for name in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"):
        assert history(f"curve/{name}") == [(scores.epoch, getattr(scores, name)) for scores in record.epochs]
    for name in ("val_accuracy", "val_loss", "test_accuracy", "test_loss", "seconds", "epochs"):
        assert len(history(name)) == 1


def test_artifacts_load_back(tracker: MlflowTracker, uri: str) -> None:
    """config.yaml is the config, and record.json the result, to the last digit."""
    from mlflow.artifacts import load_text

    from mnistexp.training.results import RunResult

    record = a_record()

    place = client(uri).get_run(tracker.log(record)).info.artifact_uri

    config = RunConfig.model_validate_json(json.dumps(yaml.safe_load(load_text(f"{place}/config.yaml"))))
    whole = json.loads(load_text(f"{place}/record.json"))
    assert config == record.config
    assert RunResult.model_validate(whole["result"]) == record.result
    assert tuple(whole["overrides"]) == record.overrides


def test_a_run_comes_back_exactly(tracker: MlflowTracker) -> None:
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


def test_runs_come_oldest_first(tracker: MlflowTracker) -> None:
    """In the order of their starts, however they were logged; none for tags that no run has."""
    for trial, started in (("1", 3.0), ("2", 1.0), ("3", 2.0)):
        tracker.log(a_record(tags={"study": "s", "trial": trial}, started=started, ended=9.0))

    assert [run.tags["trial"] for run in tracker.find({"study": "s"})] == ["2", "3", "1"]
    assert list(tracker.find({"study": "t"})) == []


def test_a_long_run_is_logged_whole(tracker: MlflowTracker, uri: str) -> None:
    """400 epochs are more than MLflow takes in one batch; what makes a run findable comes with its final scores."""
    result = run_result([0.5] * 400)
    record = a_record(result=result, epochs=result.fit.epochs)

    run_id = tracker.log(record)

    history = client(uri).get_metric_history(run_id, "curve/val_loss")
    names = [name for name, _, _ in tracking._metrics(record)]
    assert sorted(metric.step for metric in history) == list(range(1, 401))
    assert {"val_accuracy", "val_loss", "test_accuracy", "test_loss"} <= set(names[:10])


def test_a_store_that_breaks_is_said(tracker: MlflowTracker, tmp_path: Path) -> None:
    """A fault in mid-sweep is one sentence with the store's address, not a traceback of MLflow's."""
    with sqlite3.connect(tmp_path / "mlflow.db") as connection:
        connection.execute("drop table metrics")
    connection.close()

    with pytest.raises(StoreError, match=r"tracking\.uri=sqlite:////.*mlflow\.db: MLflow can't use it: ") as caught:
        tracker.log(a_record())

    assert "\n" not in str(caught.value)


def test_a_failed_run_keeps_what_there_was(tracker: MlflowTracker, uri: str) -> None:
    """Reason and epochs so far, less what is not finite; no final scores; MLflow says FAILED."""
    run_id = tracker.log(failed_record())

    run = client(uri).get_run(run_id)
    [found] = tracker.find({"state": "FAILED"})
    assert run.info.status == "FAILED"
    assert run.data.tags["reason"] == "val_loss became nan in epoch 3"
    assert run.data.metrics["curve/val_accuracy"] == 0.1
    assert [m.step for m in client(uri).get_metric_history(run_id, "curve/val_loss")] == [1, 2]
    assert not {"val_accuracy", "test_accuracy"} & run.data.metrics.keys()
    assert found.state == "FAILED"


def test_a_pruned_run_is_finished(tracker: MlflowTracker, uri: str) -> None:
    """Pruning is no failure: MLflow says FINISHED, the state says PRUNED."""
    run_id = tracker.log(a_record(state="PRUNED"))

    run = client(uri).get_run(run_id)

    assert (run.info.status, run.data.tags["state"]) == ("FINISHED", "PRUNED")


def test_weights_are_an_artifact_where_there_are_any(tracker: MlflowTracker, uri: str, tmp_path: Path) -> None:
    """The file that a worker wrote is logged under its name; one that it never wrote is no fault."""
    (tmp_path / "7.weights.h5").write_bytes(b"weights")

    with_weights = tracker.log(a_record(weights_path=tmp_path / "7.weights.h5"))
    without = tracker.log(a_record(weights_path=tmp_path / "8.weights.h5"))

    assert "7.weights.h5" in {info.path for info in client(uri).list_artifacts(with_weights)}
    assert len(client(uri).list_artifacts(without)) == 2


def test_values_over_mlflows_limits_are_logged_whole(tracker: MlflowTracker, uri: str) -> None:
    """A config, provenance or bit mask over 8,000 characters comes back from tags; a name and a param are shortened."""
    settings = {f"option_{number}": "é" * 900 for number in range(64)}
    model = {"name": "custom", "function": "network", "settings": settings, "code": None}
    config = RunConfig.model_validate(a_config().model_dump() | {"model": model})
    result = run_result([0.5])
    large = result.model_copy(
        update={"fit": result.fit.model_copy(update={"validation_correct": bytes(range(250)) * 40})}
    )
    provenance = {"versions": {f"package-{number}": "1.2.3" for number in range(1000)}}
    record = a_record(config=config, result=large, provenance=provenance, overrides=("x" * 9000,), name="n" * 300)

    run_id = tracker.log(record)

    [found] = tracker.find({"study": "digits"})
    assert (found.config, found.overrides, found.provenance) == (config, record.overrides, provenance)
    assert base64.b64decode(found.tags["mnistexp.validation_correct"]) == large.fit.validation_correct
    run = client(uri).get_run(run_id)
    assert len(run.info.run_name) == 250
    assert run.data.params == params(config)
    assert max(map(len, run.data.params.values())) <= 6000


@pytest.mark.parametrize("refused", [{"reason": "half a character: \ud800"}, {"data_name": "x" * 600}])
def test_a_run_that_mlflow_does_not_accept_is_told_from_a_store_that_is_away(
    tracker: MlflowTracker, uri: str, refused: dict[str, Any]
) -> None:
    """It raises StoreRefusal, leaves no half-written run, and the next run is logged."""
    with pytest.raises(StoreRefusal, match="MLflow can't use it"):
        tracker.log(a_record(**refused))

    run_id = tracker.log(a_record())
    assert [run.info.run_id for run in client(uri).search_runs([tracker._experiment_id])] == [run_id]


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


# --------------------------------------------------------------------------------------- a sweep's parent run


def test_trials_are_children_of_their_sweep(tracker: MlflowTracker, uri: str) -> None:
    """The parent holds description, files and summary; a second session opens the same one again."""
    first = tracker.start_parent(
        "sweep", {"study": "s", "study_id": "s", "kind": "sweep"}, "1 trial", {"provenance.json": "{}"}
    )
    child = tracker.log(a_record(), parent=first)
    tracker.finish_parent(first, {"best_val_accuracy": 0.5}, "best: 0.5", "FINISHED")
    finished = client(uri).get_run(first)
    again = tracker.start_parent("sweep", {"study": "s", "study_id": "s", "kind": "sweep"}, "2 trials", {})
    other = tracker.start_parent("sweep", {"study": "t", "study_id": "t", "kind": "sweep"}, "", {})

    assert client(uri).get_run(child).data.tags["mlflow.parentRunId"] == first
    assert (finished.info.status, finished.data.metrics) == ("FINISHED", {"best_val_accuracy": 0.5})
    assert finished.data.tags["mlflow.note.content"] == "best: 0.5"
    assert again == first != other
    assert client(uri).get_run(first).info.status == "RUNNING"
    assert [run.run_id for run in tracker.find({"study": "s"})] == []  # a parent is no training


def test_what_is_no_run_is_named(tracker: MlflowTracker) -> None:
    """An unknown id, and a sweep's parent, can't be taken for a training."""
    parent = tracker.start_parent("sweep", {"study": "s", "study_id": "s", "kind": "sweep"}, "", {})

    with pytest.raises(StoreError, match="run=abc: MLflow has no such run; `python -m mnistexp ui` shows the ids"):
        next(tracker.find({}, "abc"))
    with pytest.raises(StoreError, match=f"run={parent}: is no training"):
        next(tracker.find({}, parent))


def test_nothing_is_kept_where_nothing_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tracking=none keeps nothing, makes no file and finds no run."""
    monkeypatch.chdir(tmp_path)

    tracker = open_tracker(settings(None, name="none"), "digits")

    assert tracker.log(a_record(), tracker.start_parent("sweep", {}, "", {})) == ""
    tracker.finish_parent("", {}, "", "FINISHED")
    tracker.close_stale_runs({}, "KILLED", lambda _: False)
    assert list(tracker.find({})) == []
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ where runs are kept


def settings(uri: str | None, name: str = "mlflow") -> TrackingConfig:
    """The settings with this tracking.uri."""
    return TrackingConfig.model_validate({"name": name, "uri": uri, "experiment": None, "save_weights": False})


def test_addresses_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given, else from the environment, else ./mlflow.db; always explicit, whatever else lies there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)  # an old file store flips MLflow's own default
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\nname: Default\n")

    assert resolved_uri(settings(None)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolved_uri(settings("sqlite:///sub/my.db")) == f"sqlite:///{tmp_path}/sub/my.db"
    assert resolved_uri(settings(f"sqlite:///{tmp_path}/x.db")) == f"sqlite:///{tmp_path}/x.db"
    assert resolved_uri(settings("http://host:5000")) == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///env.db")
    assert resolved_uri(settings(None)) == f"sqlite:///{tmp_path}/env.db"
    assert resolved_uri(settings("sqlite:///given.db")) == f"sqlite:///{tmp_path}/given.db"


def test_an_old_file_store_changes_nothing(uri: str, tmp_path: Path) -> None:
    """Beside an old ./mlruns with its meta.yaml, runs go to the database all the same."""
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\nname: Default\n")

    tracker = open_tracker(settings(None), "digits")
    tracker.log(a_record())

    assert len(list(MlflowTracker(uri, "digits").find({"study": "digits"}))) == 1


@pytest.mark.parametrize("folder", ["my runs", "50% off", "{x}#1"])
def test_any_folder_will_do(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """Folders with spaces, percent signs and braces in their names hold runs and artifacts as any other."""
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    shutil.copy(fresh, "mlflow.db")

    tracker = open_tracker(settings(None), "digits")
    run_id = tracker.log(a_record())

    assert next(open_tracker(settings(None), "digits").find({}, run_id)).run_id == run_id
    assert [path.name for path in tmp_path.iterdir()] == [folder]
    assert len(list((tmp_path / folder).rglob("record.json"))) == 1


@pytest.mark.parametrize("folder", ["my%20runs", "what?"])
def test_a_folder_that_mlflow_misreads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """MLflow takes %20 for a space and a question mark for the end: it would make another folder, so we don't start."""
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)

    with pytest.raises(StoreError, match="MLflow misreads paths with"):
        open_tracker(settings(None), "digits")

    assert [path.name for path in tmp_path.rglob("*")] == [folder]


def test_a_file_store_is_refused() -> None:
    """MLflow's file store is closed; the message says what to give instead."""
    with pytest.raises(StoreError, match=r"tracking\.uri=\./mlruns: MLflow's file store is closed; give sqlite:///"):
        resolved_uri(settings("./mlruns"))


def left_open(tracker: MlflowTracker, **tags: str) -> str:
    """A run as a killed process leaves it. Returns: its id."""
    return str(tracker._client.create_run(tracker._experiment_id, tags={"kind": "trial", **tags}).info.run_id)


def test_what_killed_drivers_left_open_is_settled(tracker: MlflowTracker) -> None:
    """A whole run ends as its scores say, a half one is taken away; a living driver's and other studies' are left."""
    half = left_open(tracker, study_id="1", process="0")
    whole = left_open(tracker, study_id="1", process="0", state="PRUNED")
    living = left_open(tracker, study_id="1", process="1")
    other = left_open(tracker, study_id="2", process="0")

    tracker.close_stale_runs({"study_id": "1"}, None, lambda driver: driver == "1")

    ends = [tracker._client.get_run(run_id).info for run_id in (half, whole, living, other)]
    assert [end.status for end in ends] == ["KILLED", "FINISHED", "RUNNING", "RUNNING"]
    assert [end.lifecycle_stage for end in ends] == ["deleted", "active", "active", "active"]


def test_a_parent_run_is_settled_only_where_nobody_is_at_work(tracker: MlflowTracker) -> None:
    """With no ending a parent run stays open; with one it gets that."""
    tags = {"study": "s", "study_id": "s", "kind": "sweep", "process": "0"}
    parent = tracker.start_parent("sweep", tags, "", {})

    tracker.close_stale_runs({"study_id": "s"}, None, lambda _: False)
    between = tracker._client.get_run(parent).info.status
    tracker.close_stale_runs({"study_id": "s"}, "KILLED", lambda _: False)

    assert between == "RUNNING"
    assert tracker._client.get_run(parent).info.status == "KILLED"


def test_a_run_that_may_be_there_is_logged_once(tracker: MlflowTracker) -> None:
    """Logged again, a whole run stays the only one; a half one is replaced; an interrupted attempt is another run."""
    record = a_record(tags={"study_id": "1", "trial": "3"})
    interrupted = tracker.log(record.model_copy(update={"state": "INTERRUPTED", "result": None}))
    half = left_open(tracker, study_id="1", trial="3")

    first = tracker.log(record, may_exist=True)
    second = tracker.log(record, may_exist=True)

    kept = sorted(run.run_id for run in tracker.find({"study_id": "1", "trial": "3"}))
    assert first == second
    assert kept == sorted([interrupted, first])
    assert tracker._client.get_run(half).info.lifecycle_stage == "deleted"
    assert tracker._client.get_run(interrupted).info.status == "KILLED"


def test_a_run_that_a_user_deleted_is_still_known(tracker: MlflowTracker) -> None:
    """Asked for deleted runs too, find gives one that was thrown away, so that nobody logs it again."""
    run_id = tracker.log(a_record(tags={"study_id": "1", "trial": "3"}))
    tracker._client.delete_run(run_id)

    assert list(tracker.find({"study_id": "1"})) == []
    assert [run.run_id for run in tracker.find({"study_id": "1"}, deleted=True)] == [run_id]


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        ("90e64c465722", "was made by an older MLflow.*keep a copy and run `mlflow db upgrade"),
        ("ffffffffffff", "was made by a newer MLflow.*pip install -U mlflow"),
    ],
)
def test_another_versions_database_is_left_alone(uri: str, tmp_path: Path, revision: str, words: str) -> None:
    """MLflow would upgrade an older database unasked; it is refused with what to do, and not a byte is changed."""
    MlflowTracker(uri, "digits")
    path = Path(shutil.copy(uri.removeprefix("sqlite:///"), tmp_path / "other.db"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("update alembic_version set version_num = ?", (revision,))
        connection.commit()
    before = path.read_bytes()

    with pytest.raises(StoreError, match=words):
        MlflowTracker(f"sqlite:///{path}", "digits")

    assert path.read_bytes() == before


def test_a_process_killed_while_making_the_database_leaves_none(tmp_path: Path) -> None:
    """What an earlier process left half made is made anew; nothing of it is taken for a database."""
    (tmp_path / "mlflow.db.new").write_bytes(b"SQLite format 3\0 and no more")
    (tmp_path / "mlflow.db").touch()

    MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "digits").log(a_record())

    assert {path.name for path in tmp_path.glob("mlflow.db*")} == {"mlflow.db", "mlflow.db.lock"}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://me:s3c/r@t@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("https://me:secret@host", "https://me:***@host"),
        (
            "postgresql://host/db?user=me&password=s3cret&sslmode=off",
            "postgresql://host/db?user=me&password=***&sslmode=off",
        ),
        ("https://me@host", "https://me@host"),
        ("https://host:5000", "https://host:5000"),
        ("sqlite:////data/my:db@home.db", "sqlite:////data/my:db@home.db"),
    ],
)
def test_passwords_are_not_shown(uri: str, expected: str) -> None:
    """An address is shown without its password, and otherwise as it is."""
    assert redact(uri) == expected


def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_a_server_that_is_not_there_is_said_at_once(scheme: str) -> None:
    """A closed port is a message without the password; MLflow itself would try for minutes."""
    with pytest.raises(StoreError, match=rf"tracking\.uri={scheme.replace('+', '.')}://me:\*\*\*@127\.0") as caught:
        MlflowTracker(f"{scheme}://me:secret@127.0.0.1:{closed_port()}/db", "digits")

    assert "answers there" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_an_address_that_is_none_is_refused() -> None:
    """A scheme that nobody knows is MLflow's to refuse; we say whose setting it was."""
    with pytest.raises(StoreError, match=r"tracking\.uri=nosuch://"):
        MlflowTracker("nosuch://host/db", "digits")


def test_a_silent_server_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that accepts and then says nothing is given up after the limit."""
    monkeypatch.setattr("mnistexp.tracking.store.REACHABLE_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()

        with pytest.raises(StoreError, match="no MLflow server answers there"):
            check_reachable(f"http://127.0.0.1:{silent.getsockname()[1]}")


def test_reading_makes_nothing(tmp_path: Path) -> None:
    """`rerun` in an empty folder makes no database that it would then find empty."""
    with pytest.raises(StoreError, match=r"mlflow\.db: no runs are logged here; run `python -m mnistexp sweep` first"):
        MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "digits", create=False)

    assert list(tmp_path.iterdir()) == []


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    """A file of another kind, and a folder that isn't there, are named."""
    (tmp_path / "mlflow.db").write_text("remember the milk\n")

    with pytest.raises(StoreError, match=r"mlflow\.db: is not an SQLite database; move it away, or give tracking\.uri"):
        MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "digits")
    with pytest.raises(StoreError, match="nowhere: no such folder"):
        MlflowTracker(f"sqlite:///{tmp_path / 'nowhere' / 'mlflow.db'}", "digits")

    assert (tmp_path / "mlflow.db").read_text() == "remember the milk\n"


def test_a_deleted_experiment_is_said(tracker: MlflowTracker, uri: str) -> None:
    """MLflow keeps deleted experiments' names; the message says how to go on."""
    store = client(uri)
    store.delete_experiment(store.get_experiment_by_name("digits").experiment_id)

    with pytest.raises(StoreError, match=r"tracking\.experiment=digits: was deleted in MLflow; restore it there"):
        MlflowTracker(uri, "digits")


# ----------------------------------------------------------------------------------- with other processes

CREATE_AND_LOG = """
import sys
sys.path.insert(0, {tests!r})
sys.path.append(r"{tests}/tracking"); import test_runs as t

tracker = t.open_tracker(t.settings(None), "digits")
tracker.log(t.a_record(tags={{"study": "digits", "trial": sys.argv[1]}}))
"""


def environment() -> dict[str, str]:
    """Variables for another process: no store of somebody else's, and the package that is tested."""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return {**quiet, "PYTHONPATH": str(ROOT), "MLFLOW_DISABLE_TELEMETRY": "true"}


def test_two_processes_may_create_one_database(tmp_path: Path) -> None:
    """Started at once in an empty folder both log their run, and a client that knows nothing of us finds them."""
    code = CREATE_AND_LOG.format(tests=str(Path(__file__).parents[1]))
    both = [
        subprocess.Popen([sys.executable, "-c", code, trial], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE)
        for trial in "12"
    ]
    errors = [process.communicate()[1].decode() for process in both]

    assert [process.returncode for process in both] == [0, 0], errors
    store = client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = store.get_experiment_by_name("digits")
    found = store.search_runs([experiment.experiment_id], "metrics.test_accuracy > 0.1")
    assert sorted(run.data.tags["trial"] for run in found) == ["1", "2"]


@pytest.fixture
def server(fresh: Path, tmp_path: Path) -> Iterator[str]:
    """A real MLflow server on loopback, as lean as it gets: one worker."""
    port = closed_port()
    database = shutil.copy(fresh, tmp_path / "server.db")
    lean = {**environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    options = ["--workers", "1", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri"]
    command = [sys.executable, "-m", "mlflow", "server", *options, f"sqlite:///{database}"]
    log = tmp_path / "server.log"
    with log.open("wb") as sink:
        process = psutil.Popen(command, cwd=tmp_path, env=lean, stdout=sink, stderr=sink)
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        family = [process, *process.children(recursive=True)]
        for member in family:
            member.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=1).ok
    except requests.RequestException:
        return False


def test_a_real_server_keeps_runs(server: str) -> None:
    """Log, find, parent and artifacts work over HTTP as they do on a file."""
    tracker = open_tracker(settings(server), "digits")
    parent = tracker.start_parent(
        "sweep", {"study": "digits", "study_id": "1", "kind": "sweep"}, "**bold**", {"provenance.json": "{}"}
    )
    record = a_record()

    run_id = tracker.log(record, parent)
    tracker.finish_parent(parent, {"best_val_accuracy": 0.5}, "done", "FINISHED")

    [found] = tracker.find({"study": "digits", "kind": "trial"})
    assert record.result is not None
    assert (found.run_id, found.config) == (run_id, record.config)
    assert found.metrics["val_loss"] == record.result.fit.best.val_loss
    assert found.tags["mlflow.parentRunId"] == parent
    assert {info.path for info in client(server).list_artifacts(run_id)} == {"config.yaml", "record.json"}
