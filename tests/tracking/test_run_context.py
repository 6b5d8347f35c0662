"""Preparing a run, its provenance, its record and its name."""

from __future__ import annotations

import functools
import json
import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import runs
from fakes import epoch_scores, run_result

from mnistexp.config.compose import compose, parse_request, run_config
from mnistexp.config.schema import Config, RunConfig
from mnistexp.errors import ConfigError, StoreError
from mnistexp.machine import source_state
from mnistexp.tracking import run_context
from mnistexp.tracking.records import parse_record
from mnistexp.tracking.run_context import PreparedRun, RunContext

DIGITS = ("data=digits", "search=none", "trainer.epochs=3")


@functools.cache
def prepared(*overrides: str) -> PreparedRun:
    """A prepared training on the digits."""
    return run_context.prepare(parse_request([*DIGITS, *overrides]))


def context(provenance: dict[str, Any] | None = None, source: dict[str, Any] | None = None) -> RunContext:
    """A command's context on the digits."""
    return RunContext(prepared(), source or {}, provenance or {})


# --------------------------------------------------------------------------------------- before a training


@pytest.fixture
def no_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without MNIST, and whose mirrors do not answer. Returns: a --config-dir for it."""
    monkeypatch.delenv("MNISTEXP_DATA", raising=False)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name: str(tmp_path / "cache"))
    option = tmp_path / "conf" / "data" / "offline.yaml"
    option.parent.mkdir(parents=True)
    option.write_text("defaults: [auto, _self_]\nmirrors: ['http://127.0.0.1:1/']\ntimeout: 0.5\n")
    return tmp_path / "conf"


def test_auto_becomes_the_mnist_that_is_here(mnist_folder: Path) -> None:
    """`data=auto` is recorded as mnist if MNIST is on this machine, without a warning."""
    found = run_context.prepare(parse_request([f"data.root={mnist_folder}", "search=none"]))

    assert (found.config.data.name, found.dataset.name, found.fallback) == ("mnist", "mnist", "")
    assert "data=mnist" in found.request.run_overrides
    assert found.study_name == "mnist"


def test_auto_becomes_digits_with_a_reason(no_mnist: Path) -> None:
    """Without MNIST and a network; overrides of keys that digits does not have are left out."""
    words = ["data=offline", "search=none", "data.mirrors=['http://127.0.0.1:1/']", "data.timeout=0.5"]

    found = run_context.prepare(parse_request(words, no_mnist))

    assert (found.config.data.name, found.dataset.name, found.study_name) == ("digits", "digits", "digits")
    assert "no MNIST here" in found.fallback
    assert "127.0.0.1" in found.fallback
    assert "data=digits" in found.request.run_overrides


def test_an_error_of_the_fallback_names_it(no_mnist: Path) -> None:
    """A batch size for MNIST may be too large for digits; the message has the reason for the fallback."""
    with pytest.raises(ConfigError, match=r"(?s)at most 1137.*data=auto became digits: no MNIST here"):
        run_context.prepare(parse_request(["data=offline", "search=none", "trainer.batch_size=2000"], no_mnist))


def test_a_study_is_named_before_its_data_are_loaded(no_mnist: Path, mnist_folder: Path) -> None:
    """`best` and `rerun` use the study that `sweep` makes from the same overrides."""
    assert run_context.study_name(compose(parse_request(["study.name=wide"]))) == "wide"
    assert run_context.study_name(compose(parse_request(["data=kmnist"]))) == "kmnist"
    assert run_context.study_name(compose(parse_request([]))) == "digits"
    assert run_context.study_name(compose(parse_request([f"data.root={mnist_folder}"]))) == "mnist"


# ------------------------------------------------------------------------------------------------- records


def test_a_record_holds_what_a_rerun_needs() -> None:
    """Config, overrides, data, and the provenance with the device and flags that the worker reported."""
    config, overrides = run_config(prepared().config), prepared().request.run_overrides

    made = context({"versions": {"keras": "3"}}).trial(
        3, config, overrides, 1.0, "COMPLETE", {"study": "digits"}, result=run_result([0.5, 0.7])
    )

    assert made.config == run_config(compose(parse_request(made.overrides)))
    assert (made.data_name, made.data_source) == ("digits", "scikit-learn")
    assert made.data_fingerprint == prepared().dataset.fingerprint
    assert made.provenance["versions"] == {"keras": "3"}
    assert made.provenance["device"] == "CPU (fake)"
    assert made.provenance["flags"]["jit_compile"] == "true"
    assert made.name.startswith("003 ")
    assert {"study": "digits", "kind": "trial", "trial": "3"}.items() <= made.tags.items()
    assert len(made.epochs) == 2
    assert made.started < made.ended


@pytest.mark.parametrize(
    "outcome",
    [
        {"state": "COMPLETE", "result": run_result([0.5, 0.7])},
        {"state": "PRUNED", "result": run_result([0.5], None).model_copy(update={"test_loss": math.inf})},
        {"state": "FAILED", "reason": "died", "epochs": (epoch_scores(1, 0.5),)},
    ],
)
def test_a_record_is_read_back_from_json(outcome: dict[str, Any]) -> None:
    """It is equal, its epochs are stored once, and the path of its weights is not stored."""
    record = context().record(
        "trial", run_config(prepared().config), (), 1.0, weights_path=Path("/mine"), tags={"trial": "3"}, **outcome
    )

    stored = json.loads(json.dumps(record.model_dump(mode="json")))

    assert parse_record(stored) == record.model_copy(update={"weights_path": None})
    assert len(stored["epochs"]) == (0 if record.result else 1)


@pytest.mark.parametrize("change", [{"state": "LOST"}, {"tags": {"trial": "../3"}}, {"config": {}}, {"more": 1}, None])
def test_a_damaged_record_is_refused(change: dict[str, Any] | None) -> None:
    """Another version's record, or a path in a trial's number, is one sentence."""
    stored = context().record("trial", run_config(prepared().config), (), 1.0, "FAILED").model_dump(mode="json")

    with pytest.raises(StoreError, match="not written by this version of mnistexp"):
        parse_record(None if change is None else {**stored, **change})


def test_the_codes_difference_is_a_file() -> None:
    """A changed working tree is logged as a patch; a clean one, or an installed wheel, has none."""
    dirty = context({"git": {"commit": "abc"}}, {"commit": "abc", "dirty": True, "patch": "+x\n"})

    assert dirty.files()["source.patch"] == "+x\n"
    assert json.loads(dirty.files()["provenance.json"]) == {"git": {"commit": "abc"}}
    assert context().files().keys() == {"provenance.json"}


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
def test_a_run_is_named_after_its_hyperparameters(overrides: tuple[str, ...], name: str) -> None:
    """Only settings that are switched on are in the name; a trial's begins with its number."""
    config = run_config(compose(parse_request([*DIGITS, *overrides])))

    assert run_context.run_name(config) == name
    assert run_context.run_name(config, 7) == f"007 {name}"


def test_a_commit_without_the_option_is_dirty(tmp_path: Path) -> None:
    """An untracked option of an experiment makes the commit dirty; its results do not."""
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
