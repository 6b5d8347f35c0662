"""A sweep process that is killed or interrupted, alone or beside another."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from harness import PATIENCE, Place, Running
from services import wait_until

from mnistexp.study.trial_attrs import DEATHS, PROCESS, RECORD

pytest_plugins = ["fault_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="signals processes, and reads /proc"),
]

KILLED = -signal.SIGKILL
INTERRUPTED = 130


def in_trial_1(place: Place) -> Running:
    """A sweep of three trials that waits in the middle of the second."""
    running = place.sweep(3, **place.waiting(1))
    place.reached(1, running)
    return running


def params(place: Place) -> list[dict[str, object]]:
    """The parameters of the first two trials."""
    return [trial.params for trial in place.trials()[:2]]


# ------------------------------------------------------------------------------------------- kill -9


@pytest.mark.parametrize(
    "point",
    [  # tests/study/test_sweep.py kills before every write to the study; here MLflow is real
        pytest.param("mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore._log_metrics:2:after", id="without tags"),
        pytest.param("mlflow:MlflowClient.set_terminated:1:before", id="run not closed"),
    ],
)
def test_a_process_killed_while_it_logs_costs_nothing(place: Place, point: str) -> None:
    """kill -9 in the middle of the MLflow write: the trial is not trained again, and its run is there once."""
    place.sweep(3, strike=f"SIGKILL:{point}").ends(KILLED)
    place.nobody_is_left()
    before = place.trials()

    place.finish(3)

    assert [trial.state.is_finished() for trial in before] == [True, True]
    for old, new in zip(before, place.trials(), strict=False):
        assert new.params == old.params
        assert new.user_attrs[RECORD] == old.user_attrs[RECORD]
        assert new.datetime_complete == old.datetime_complete


def test_a_process_is_killed_while_another_runs(place: Place) -> None:
    """The other takes its trial over, with the same parameters, and ends the study alone, in one session."""
    first = place.sweep(4, **place.waiting(1))
    place.reached(1, first)
    before = params(place)
    second = place.sweep(4)
    states = ["COMPLETE", "RUNNING", "COMPLETE", "COMPLETE"]
    wait_until(lambda: [trial.state.name for trial in place.trials()] == states, PATIENCE, f"two trials from\n{second}")

    first.send(signal.SIGKILL).ends(KILLED)
    second.ends()

    trials = place.trials()
    assert trials[1].user_attrs[PROCESS] == trials[3].user_attrs[PROCESS]
    assert len(trials[1].user_attrs[DEATHS]) == 1
    assert params(place) == before
    place.check(4)


# ------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM, as Slurm sends it"])
def test_a_signal_to_the_group_ends_it_in_order(place: Place, number: signal.Signals) -> None:
    """Even if a training hangs: its trial is requeued, with its curves in MLflow, and the summary is printed."""
    running = in_trial_1(place)
    before = params(place)

    running.press(number).ends(INTERRUPTED)
    place.nobody_is_left()
    requeued = place.trials()[1]
    kept = [run for run in place.all_runs() if run.info.status == "KILLED" and run.data.tags["kind"] == "trial"]
    place.finish(3)

    assert requeued.state.name == "WAITING"
    assert "trial 0" in running.out
    if number == signal.SIGINT:  # SIGTERM ends the workers too
        assert [(run.data.tags["trial"], run.data.metrics["epochs"]) for run in kept] == [("1", 1.0)]
    assert params(place) == before
    assert DEATHS not in place.trials()[1].user_attrs


def handled(running: Running) -> bool:
    """Whether the process has received the signals that it was sent."""
    status = Path(f"/proc/{running.pid}/status").read_text()
    return all(int(line.split()[1], 16) == 0 for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd")))


def test_ctrl_c_twice_ends_it_at_once(place: Place) -> None:
    """Nothing more is written: the next session finds the trial RUNNING and runs it again."""
    running = in_trial_1(place)
    before = params(place)

    running.press(signal.SIGINT)
    wait_until(lambda: handled(running), PATIENCE, "the first Ctrl-C's delivery")
    running.press(signal.SIGINT).ends(INTERRUPTED)
    place.nobody_is_left()
    left = place.trials()[1].state.name
    place.finish(3)

    assert left == "RUNNING"
    assert "interrupted" in running.err
    assert params(place) == before


@pytest.mark.parametrize(
    "strike",
    [
        pytest.param("SIGINT:mnistexp.workers.start:wait_until_ready:1:before", id="when workers start"),
        pytest.param("SIGTERM:mnistexp.study.database:open_for_sweep:1:inside", id="where Python swallows it"),
    ],
)
def test_a_signal_during_start_up(place: Place, strike: str) -> None:
    """It ends with a line and exit code 130, no process is left, and the next session does everything.

    Destructors and imports swallow what a signal's handler raises; the sweep ends in order all the same.
    """
    running = place.sweep(2, strike=strike).ends(INTERRUPTED)
    place.nobody_is_left()

    place.finish(2)

    assert "ignored" not in running.err
    assert "interrupted" in running.out + running.err


def test_ctrl_c_while_python_imports(place: Place) -> None:
    """As soon as the package is being imported: one line, exit code 130, and nothing was begun."""
    running = place.sweep(2)
    maps = Path(f"/proc/{running.pid}/maps")
    wait_until(lambda: "pydantic_core" in maps.read_text(), PATIENCE, "the import of pydantic")

    running.press(signal.SIGINT).ends(INTERRUPTED)
    place.nobody_is_left()

    assert running.err.startswith("mnistexp: interrupted")
    assert len(place.trials()) == 1
