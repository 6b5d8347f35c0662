"""A sweep whose worker is killed, crashes or trains to NaN."""

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

TRIAL = 1  # the first after the one that is there gets the fault


def planted(fault: str, **more: str) -> dict[str, str]:
    """The environment of workers that have this fault in the trial."""
    return {"MNISTEXP_PLANT": fault.format(seed=trial_seed(0, TRIAL)), **more}


@pytest.mark.parametrize(
    ("fault", "deaths"),
    [
        pytest.param("kill-at-start", 0, id="at its start"),
        pytest.param("kill-between-epochs@epoch2#{seed}", 1, id="between epochs"),
        pytest.param("kill-half-sent-result#{seed}", 1, id="while it sends its result"),
    ],
)
def test_a_killed_worker_costs_nothing(place: Place, fault: str, deaths: int) -> None:
    """After kill -9 a new worker runs the trial again, once, with the same parameters and seed."""
    struck = place.gates / "struck"

    sweep = place.sweep(3, **planted(fault, MNISTEXP_PLANT_ONCE=str(struck))).ends()

    assert struck.exists()
    assert len(place.trials("digits")[TRIAL].user_attrs.get(DEATHS, [])) == deaths
    assert (f"trial {TRIAL}: its worker was lost (signal SIGKILL" in sweep.err) == bool(deaths)
    place.check(3)
    place.finish(4)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param("exception@epoch2#{seed}", "RuntimeError: planted", id="exception"),
        pytest.param("segfault@epoch2#{seed}", "its worker died (signal SIGSEGV)", id="segfault"),
    ],
)
def test_a_trainings_own_fault_is_a_failed_trial(place: Place, fault: str, reason: str) -> None:
    """The trial fails at its first attempt, with the reason in both stores and on the screen; the sweep goes on."""
    sweep = place.sweep(3, **planted(fault)).ends()

    trial = place.trials("digits")[TRIAL]
    assert reason in sweep.out
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["reason"].startswith(reason)
    assert list(trial.intermediate_values) == [1]
    assert DEATHS not in trial.user_attrs
    place.finish(4)


def test_nan_is_a_failed_trial(place: Place) -> None:
    """A learning rate of 1000 gives NaN with TensorFlow: the trial fails with advice, and is never the best."""
    words = ("study/sampler=grid", "optimizer.learning_rate=choice(0.1, 1e3)", "model.activation=linear")

    place.on("wild").sweep(2, *words, MNISTEXP_SCRIPTED="").ends()
    [good, bad] = place.trials("wild")

    assert (good.state.name, bad.state.name) == ("COMPLETE", "FAIL")
    assert bad.params["optimizer.learning_rate"] == 1000
    assert "lower optimizer.learning_rate" in bad.user_attrs["reason"]
    place.on("wild").check(2)


def test_a_worker_that_is_killed_each_time_fails_its_trial(place: Place) -> None:
    """After executor.retries more attempts the trial fails, and the sweep goes on."""
    sweep = place.sweep(3, "executor.retries=1", **planted("kill-mid-epoch@epoch1#{seed}")).ends()

    assert sweep.err.count("it will be run again") == 1
    assert "it was run 2 times (executor.retries=1)" in place.trials("digits")[TRIAL].user_attrs["reason"]
    place.check(3)
