"""What becomes of a sweep whose worker dies, hangs, runs out of memory or trains to no number."""

from __future__ import annotations

import sys

import pytest
from harness import Place

from mnistexp.study.study import trial_seed
from mnistexp.study.trial_attrs import DEATHS

pytest_plugins = ["fault_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="kills processes, and reads /proc"),
]

TRIAL = 1  # the one that is struck: the first after the one that is there


def planted(fault: str, **more: str) -> dict[str, str]:
    """The environment of workers in which this fault strikes the trial."""
    return {"MNISTEXP_PLANT": fault.format(seed=trial_seed(0, TRIAL)), **more}


@pytest.mark.parametrize(
    ("fault", "deaths"),
    [
        pytest.param("kill-at-start", None, id="kill -9 at start"),
        pytest.param("kill-mid-epoch@epoch2#{seed}", 1, id="kill -9 in mid-epoch"),
        pytest.param("kill-between-epochs@epoch2#{seed}", 1, id="kill -9 between epochs"),
        pytest.param("kill-half-sent-result#{seed}", 1, id="kill -9 while sending its result"),
    ],
)
def test_a_killed_worker_costs_nothing(place: Place, fault: str, deaths: int | None) -> None:
    """The trial is run again by a new worker with the same parameters and seed, once, and the sweep does all."""
    struck = place.gates / "struck"

    sweep = place.sweep(3, **planted(fault, MNISTEXP_PLANT_ONCE=str(struck))).ends()

    trial = place.trials("digits")[TRIAL]
    assert struck.exists()
    assert "all 3 trials are done: 3 complete, 0 pruned, 0 failed; 2 of them now" in sweep.out
    assert len(trial.user_attrs.get(DEATHS, [])) == (deaths or 0)
    assert (f"trial {TRIAL}: its worker was lost (signal SIGKILL" in sweep.err) == (deaths is not None)
    place.check(3)
    place.finish(4)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param("exception@epoch2#{seed}", "RuntimeError: planted", id="exception"),
        pytest.param("segfault@epoch2#{seed}", "its worker died (signal SIGSEGV)", id="segfault"),
        pytest.param("hang@epoch2#{seed}", "no epoch ended within trainer.timeout=20 s", id="hang"),
        pytest.param("oom@epoch2#{seed}", "MemoryError", id="out of memory by a limit"),
    ],
)
def test_a_trainings_own_fault_is_a_failed_trial(place: Place, fault: str, reason: str) -> None:
    """The trial has failed, at its first attempt, for a reason that both stores and the user get; the sweep goes on."""
    sweep = place.sweep(3, "trainer.timeout=20", **planted(fault)).ends()

    trial = place.trials("digits")[TRIAL]
    assert "all 3 trials are done: 2 complete, 0 pruned, 1 failed; 2 of them now" in sweep.out
    assert f"failed: {reason}" in sweep.out
    assert "it will be run again" not in sweep.err
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["reason"].startswith(reason)
    assert list(trial.intermediate_values) == [1]
    assert DEATHS not in trial.user_attrs
    place.finish(4)


def test_nan_is_a_failed_trial(place: Place) -> None:
    """NaN: a learning rate of 1000 fails its trial with what to type; it is never the best, whatever it scores."""
    words = ("study/sampler=grid", "optimizer.learning_rate=choice(0.1, 1e3)", "model.activation=linear")

    sweep = place.on("wild").sweep(2, *words).ends()
    [good, bad] = place.trials("wild")

    assert (good.state.name, bad.state.name) == ("COMPLETE", "FAIL")
    assert bad.params["optimizer.learning_rate"] == 1000
    assert "lower optimizer.learning_rate" in bad.user_attrs["reason"]
    assert "Best of study wild: trial 0" in sweep.out
    place.on("wild").check(2)


def test_a_worker_that_is_killed_each_time_fails_its_trial(place: Place) -> None:
    """kill -9, again and again: after executor.retries more attempts the trial has failed, and the sweep goes on."""
    sweep = place.sweep(3, "executor.retries=1", **planted("kill-mid-epoch@epoch1#{seed}")).ends()

    reason = place.trials("digits")[TRIAL].user_attrs["reason"]
    assert "all 3 trials are done: 2 complete, 0 pruned, 1 failed" in sweep.out
    assert sweep.err.count("it will be run again") == 1
    assert "it was run 2 times (executor.retries=1)" in reason
    place.check(3)
