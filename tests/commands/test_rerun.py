"""The command `rerun`: which run it repeats, what it takes over, and how it compares."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from fakes import RecordingTracker, run_result

from mnistexp.commands import rerun
from mnistexp.config.compose import parse_request, run_config
from mnistexp.errors import StoreError
from mnistexp.tracking import run_context
from mnistexp.tracking.records import LoggedRun, RunRecord
from mnistexp.tracking.run_context import PreparedRun, RunContext

PROVENANCE = {
    "git": {"commit": "abc", "dirty": False},
    "versions": {"keras": "3.15", "numpy": "2"},
    "machine": {"cpu": "x", "host": "here"},
}


@functools.cache
def prepared() -> PreparedRun:
    """A training on the digits."""
    return run_context.prepare(parse_request(["data=digits", "search=none", "trainer.epochs=3"]))


def record(provenance: dict[str, Any] | None = None, **more: Any) -> RunRecord:
    """A complete trial, number 3 of study digits, unless `more` differs."""
    fields: dict[str, Any] = {
        "kind": "trial",
        "state": "COMPLETE",
        "result": run_result([0.5, 0.7]),
        "tags": {"study": "digits", "study_id": "1", "trial": "3"},
        **more,
    }
    context, config = RunContext(prepared(), {}, provenance or {}), run_config(prepared().config)
    return context.record(config=config, overrides=(), started=1.0, **fields)


def logged(made: RunRecord) -> LoggedRun:
    """The record as a tracker returns it."""
    tracker = RecordingTracker()
    tracker.log(made)
    return next(tracker.find({}))


def test_the_best_run_is_complete_with_the_highest_score_and_the_lowest_number() -> None:
    """Pruned runs, reruns and other studies do not count."""
    tracker = RecordingTracker()
    for trial, score, more in [
        ("1", 0.9, {"state": "PRUNED"}),
        ("10", 0.8, {}),
        ("9", 0.8, {}),
        ("2", 0.7, {}),
        ("3", 0.99, {"kind": "rerun"}),
    ]:
        tags = {"study": "digits", "study_id": "1", "trial": trial}
        tracker.log(record(result=run_result([score]), tags=tags, **more))
    tracker.log(record(result=run_result([0.95]), tags={"study": "other", "study_id": "2", "trial": "0"}))

    best = rerun.best_logged(tracker, "digits")

    assert best is not None
    assert best.tags["trial"] == "9"
    assert rerun.best_logged(tracker, "empty") is None


def test_a_run_without_scores_is_refused() -> None:
    """The run is found by its id, or else as the study's best; a failed or interrupted one cannot be compared."""
    tracker = RecordingTracker()
    good, failed = tracker.log(record()), tracker.log(record(state="FAILED", result=None))
    interrupted = tracker.log(record(state="INTERRUPTED", result=None))

    assert rerun.find_logged(tracker, "digits", "").run_id == good
    assert rerun.find_logged(tracker, "any", good).run_id == good
    with pytest.raises(StoreError, match=r"study\.name=other: MLflow has no complete trial"):
        rerun.find_logged(tracker, "other", "")
    for run_id in (failed, interrupted):
        with pytest.raises(StoreError, match=f"run={run_id}: .*nothing to compare with"):
            rerun.find_logged(tracker, "digits", run_id)


@pytest.mark.parametrize(
    ("other", "changed"),
    [
        ({}, set()),
        ({"fit": run_result([0.5, 0.7]).fit.model_copy(update={"best_epoch": 1})}, {"val_accuracy", "val_loss"}),
        ({"test_accuracy": 2 / 3 + 1e-16}, {"test_accuracy"}),
        ({"test_loss": 0.3333333333333334}, {"test_loss"}),
        ({"weights_hash": "another"}, {"weights_hash"}),
    ],
)
def test_one_bit_is_a_difference(other: dict[str, Any], changed: set[str]) -> None:
    """The last digit of any score counts, and so do other weights with equal scores."""
    now = record(result=run_result([0.5, 0.7]).model_copy(update=other))

    pairs = rerun.outcomes(logged(record()), now)

    assert len(pairs) == 5
    assert {name for name, before, after in pairs if before != after} == changed


def test_another_host_and_folder_are_no_cause() -> None:
    """They cannot change a bit."""
    elsewhere = {**PROVENANCE, "machine": {"cpu": "x", "host": "there"}, "config_dir": "/elsewhere"}

    assert rerun.causes(logged(record(PROVENANCE)), record(elsewhere, kind="rerun")) == []


def test_what_differs_is_named() -> None:
    """Data, packages, the worker's processor, flags and code: each with its values before and now, nothing else."""
    before, now = (
        run_result([0.5, 0.7]).model_copy(update={"flags": {"cpu": cpu, "threads": threads}})
        for cpu, threads in (("x", "1"), ("y", "2"))
    )
    provenance = {"git": {"commit": "def", "dirty": False}, "versions": {"keras": "3.16", "numpy": "2", "jax": "1"}}
    repeated = record(provenance, result=now).model_copy(update={"data_fingerprint": "other"})

    causes = rerun.causes(logged(record(PROVENANCE, result=before)), repeated)

    assert {name: values for name, *values in causes} == {
        "data": [prepared().dataset.fingerprint, "other"],
        "versions.keras": ["3.15", "3.16"],
        "versions.jax": ["not recorded", "1"],
        "cpu": ["x", "y"],
        "git.commit": ["abc", "def"],
        "flags.threads": ["1", "2"],
    }


def test_recorded_flags_become_the_environment() -> None:
    """Only known variables are set, empty ones too; one that names a file is refused."""
    flags = {"XLA_FLAGS": "", "LD_PRELOAD": "evil.so"}
    result = run_result([0.5])

    found = rerun.recorded_environment(logged(record(result=result.model_copy(update={"flags": flags}))))

    assert found == {"XLA_FLAGS": ""}
    dump = result.model_copy(update={"flags": {"XLA_FLAGS": "--xla_dump_to=x"}})
    with pytest.raises(StoreError, match="XLA_FLAGS"):
        rerun.recorded_environment(logged(record(result=dump)))
