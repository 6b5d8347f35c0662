from __future__ import annotations

import functools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import runs
from fakes import RecordingTracker, epoch_scores, run_result

from mnistexp.config.compose import compose, parse_request, run_config
from mnistexp.config.schema import Config, RunConfig
from mnistexp.errors import ConfigError, DataError
from mnistexp.machine import source_state
from mnistexp.tracking import run_context
from mnistexp.tracking.run_context import PreparedRun, RunContext
from mnistexp.tracking.runs import LoggedRun, RunRecord

DIGITS = ("data=digits", "search=none", "trainer.epochs=3")


@functools.cache
def prepared(*overrides: str) -> PreparedRun:
    """A request for the digits, ready to be trained."""
    return run_context.prepare(parse_request([*DIGITS, *overrides]))


def session(provenance: dict[str, Any] | None = None, source: dict[str, Any] | None = None) -> RunContext:
    """A command's session on the digits."""
    return RunContext(prepared(), source or {}, provenance or {})


def record(given: RunContext | None = None, **more: Any) -> RunRecord:
    """A complete trial, number 3 of study digits, unless `more` says otherwise."""
    known: dict[str, Any] = {
        "result": run_result([0.5, 0.7]),
        "tags": {"study": "digits", "study_id": "1", "trial": "3"},
        **more,
    }
    kind, state = known.pop("kind", "trial"), known.pop("state", "COMPLETE")
    config = known.pop("config", run_config(prepared().config))
    overrides = prepared().request.run_overrides
    return (given or session()).record(kind, config, overrides, 1.0, state, **known)


def logged(*records: RunRecord) -> list[LoggedRun]:
    """What a tracker gives back."""
    tracker = RecordingTracker()
    for each in records:
        tracker.log(each)
    return list(tracker.find({}))


# --------------------------------------------------------------------------------------- before a training


@pytest.fixture
def no_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without MNIST, where its mirrors don't answer; returns a --config-dir that says so."""
    monkeypatch.delenv("MNISTEXP_DATA", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache"))
    option = tmp_path / "conf" / "data" / "offline.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("defaults: [auto, _self_]\nmirrors: ['http://127.0.0.1:1/']\ntimeout: 0.5\n")
    return tmp_path / "conf"


def test_auto_becomes_the_mnist_that_is_here(mnist_folder: Path) -> None:
    """`data=auto` is recorded as mnist where MNIST is here, and nothing is to be warned of."""
    found = run_context.prepare(parse_request([f"data.root={mnist_folder}", "search=none"]))

    assert (found.config.data.name, found.dataset.name, found.fallback) == ("mnist", "mnist", "")
    assert "data=mnist" in found.request.run_overrides
    assert found.study_name == "mnist"


def test_auto_becomes_digits_with_a_reason(no_mnist: Path) -> None:
    """Without MNIST and a network it is digits, named so everywhere, and says why."""
    found = run_context.prepare(parse_request(["data=offline", "search=none"], no_mnist))

    assert (found.config.data.name, found.dataset.name, found.study_name) == ("digits", "digits", "digits")
    assert "no MNIST here" in found.fallback
    assert "127.0.0.1" in found.fallback
    assert "data=digits" in found.request.run_overrides


@pytest.mark.parametrize("words", [["data.mirrors=['http://127.0.0.1:1/']"], ["data.timeout=0.5"]])
def test_auto_becomes_digits_whatever_was_said_of_downloads(no_mnist: Path, words: list[str]) -> None:
    """Settings that digits has no use for don't stand in its way."""
    found = run_context.prepare(parse_request(["data=offline", "search=none", *words], no_mnist))

    assert found.dataset.name == "digits"
    assert "no MNIST here" in found.fallback


def test_a_mistake_of_the_digits_that_auto_became_says_so(no_mnist: Path) -> None:
    """Who asked for 10,000 validation images had MNIST in mind, and hears why it isn't that."""
    with pytest.raises(ConfigError, match=r"(?s)at most 1137.*data=auto became digits: no MNIST here"):
        run_context.prepare(parse_request(["data=offline", "search=none", "trainer.batch_size=2000"], no_mnist))


def test_a_folder_that_lacks_files_is_no_reason_to_fall_back(tmp_path: Path) -> None:
    """Who gives data.root wants those files: digits instead would be a surprise."""
    with pytest.raises(DataError, match="lacks train-images"):
        run_context.prepare(parse_request([f"data.root={tmp_path}", "search=none"]))


def test_a_minibatch_has_at_most_all_images() -> None:
    """What only the data can refuse is refused before any worker starts."""
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=1138: must be at most 1137"):
        prepared("trainer.batch_size=1138")

    assert prepared("trainer.batch_size=1137").config.trainer.batch_size == 1137


def test_a_study_is_named_before_its_data_are_loaded(no_mnist: Path, mnist_folder: Path) -> None:
    """`best` and `rerun` mean the study that `sweep` with the same words would make."""
    assert run_context.study_name(compose(parse_request(["study.name=wide"]))) == "wide"
    assert run_context.study_name(compose(parse_request(["data=kmnist"]))) == "kmnist"
    assert run_context.study_name(compose(parse_request([]))) == "digits"
    assert run_context.study_name(compose(parse_request([f"data.root={mnist_folder}"]))) == "mnist"


# ------------------------------------------------------------------------------------------------- records


def test_a_record_holds_what_a_rerun_needs() -> None:
    """Config, overrides, data, and the provenance with the device and flags that the worker reported."""
    made = record(session({"versions": {"keras": "3"}}))

    assert made.config == run_config(compose(parse_request(made.overrides)))
    assert (made.data_name, made.data_source) == ("digits", "scikit-learn")
    assert made.data_fingerprint == prepared().dataset.fingerprint
    assert made.provenance["versions"] == {"keras": "3"}
    assert made.provenance["device"] == "CPU (fake)"
    assert made.provenance["flags"]["jit_compile"] == "true"
    assert made.result is not None
    assert made.epochs == made.result.fit.epochs
    assert made.started < made.ended


def test_a_failed_record_holds_its_epochs() -> None:
    """A run without a result keeps the epochs that it was given."""
    made = record(state="FAILED", result=None, reason="died", epochs=(epoch_scores(1, 0.5),))

    assert (made.result, made.reason, len(made.epochs)) == (None, "died", 1)


def test_the_codes_difference_is_a_file() -> None:
    """A changed working tree is logged as a patch; a clean one, or an installed wheel, has none."""
    dirty = session({"git": {"commit": "abc"}}, {"commit": "abc", "dirty": True, "patch": "+x\n"})

    assert dirty.files()["source.patch"] == "+x\n"
    assert json.loads(dirty.files()["provenance.json"]) == {"git": {"commit": "abc"}}
    assert session().files().keys() == {"provenance.json"}


def test_a_session_looks_at_this_machine() -> None:
    """A command's provenance names packages, processor and host; the patch is no part of it."""
    looked = run_context.create_context(prepared())

    assert looked.provenance["versions"]["optuna"].startswith("5")
    assert looked.provenance["machine"]["cpu"]
    assert "patch" not in looked.provenance["git"]


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (("optimizer=momentum",), "momentum lr=0.05 relu 300 b=128"),
        (("optimizer=nesterov", "model.hidden_units=[500,200]"), "nesterov lr=0.05 relu 500-200 b=128"),
        (("optimizer=sgd", "model.hidden_units=[]"), "sgd lr=0.1 relu no hidden layer b=128"),
        (("optimizer=adam", "model.dropout=0.25"), "adam lr=0.001 relu 300 b=128 drop=0.25"),
        (
            ("optimizer=sgd", "optimizer.schedule=cosine", "model.batch_normalization=true", "augmentation=elastic"),
            "sgd lr=0.1 cosine relu 300 norm b=128 elastic",
        ),
        (
            ("optimizer=sgd", "model.input_dropout=0.1", "trainer.ema_momentum=0.999", "augmentation.shift=1.0"),
            "sgd lr=0.1 relu 300 b=128 in-drop=0.1 ema=0.999 affine",
        ),
    ],
)
def test_names_read_well(overrides: tuple[str, ...], name: str) -> None:
    """A run's name says what sets it apart; a trial's begins with its number."""
    config = run_config(compose(parse_request([*DIGITS, *overrides])))

    assert run_context.run_name(config) == name
    assert run_context.run_name(config, 7) == f"007 {name}"


def test_a_commit_without_the_option_is_dirty(tmp_path: Path) -> None:
    """An experiment's option that git doesn't have yet is part of what ran; its results are not."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    (tmp_path / "mnistexp").mkdir()
    (tmp_path / "mnistexp/a.py").touch()
    results = tmp_path / "experiments/mine/results"
    results.mkdir(parents=True)
    for words in (["init", "-q"], ["add", "mnistexp"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True)

    (results / "best.yaml").touch()
    clean = source_state(tmp_path)["dirty"]
    (results.parent / "sweep.yaml").touch()

    assert not clean
    assert source_state(tmp_path)["dirty"]


def test_a_recorded_training_runs_with_todays_stores_and_data_location(tmp_path: Path) -> None:
    """Config and seed are the record's; executor, data.root and trainer.device are the request's if they are given."""
    here, gone = runs.mnist_data(tmp_path), runs.mnist_data(tmp_path / "gone")

    def again(recorded: RunConfig, *words: str) -> Config:
        request = parse_request(["executor.workers=7", "optimizer=adam", "seed=9", *words])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run_context.data, "load", lambda _: prepared().dataset)
            return run_context.prepare_recorded(request, compose(request), recorded).config

    recorded = runs.run_config(data=here)
    assert run_config(again(recorded)) == recorded
    assert again(recorded).executor.workers == 7
    assert again(runs.run_config(data=gone)).data.root is None
    assert again(recorded, "data.root=/mine").data.root == "/mine"
    assert again(recorded, "trainer.device=cpu").trainer.device == "cpu"
