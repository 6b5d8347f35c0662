"""A sweep whose own process is killed, interrupted or suspended, alone or beside another."""

from __future__ import annotations

import signal
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import filelock
import psutil
import pytest
from harness import PATIENCE, Place, Running
from services import wait_until

from mnistexp.study.trial_attrs import DEATHS, RECORD

pytest_plugins = ["fault_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="signals processes, and reads /proc"),
]

KILLED = -signal.SIGKILL
INTERRUPTED = 130

STORE = "mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore"


def in_trial_1(place: Place) -> Running:
    """A sweep of three trials that waits in the middle of the second."""
    running = place.sweep(3, **place.waiting(1))
    place.reached(1, running)
    return running


def params(place: Place) -> list[dict[str, object]]:
    """The trials' parameters, by their numbers."""
    return [trial.params for trial in place.trials(place.study)]


# ------------------------------------------------------------------------------------------- kill -9


@pytest.mark.parametrize(
    ("point", "finished"),
    [  # tests/study/test_sweep.py kills before every write to the study; here MLflow is real
        pytest.param("optuna.study:Study.ask:2:after", 2, id="after ask"),
        pytest.param("optuna.study:Study.tell:2:before", 2, id="between record and value"),
        pytest.param(f"{STORE}._log_metrics:2:after", 2, id="in the MLflow write, metrics without tags"),
        pytest.param("mlflow:MlflowClient.set_terminated:1:before", 2, id="in the MLflow write, run not closed"),
    ],
)
def test_a_killed_process_costs_nothing(place: Place, point: str, finished: int) -> None:
    """kill -9 at an exact point: finished trials stay, and claimed ones are run with the same parameters."""
    place.sweep(3, strike=f"SIGKILL:{point}").ends(KILLED)
    place.nobody_is_left()
    before = place.trials("digits")

    place.finish(3)

    after = place.trials("digits")
    assert sum(trial.state.is_finished() for trial in before) == finished
    for old, new in zip(before, after, strict=False):
        assert new.params == old.params or not old.params
        assert new.user_attrs.get(RECORD) == old.user_attrs.get(RECORD, new.user_attrs[RECORD])  # not trained again
        assert not old.state.is_finished() or old.datetime_complete == new.datetime_complete


def test_workers_do_not_outlive_a_killed_process(place: Place) -> None:
    """In mid-trial: a worker that hangs dies with its parent; the trial is run again with the same parameters."""
    running = in_trial_1(place)
    before, workers = params(place), place.workers()

    running.send(signal.SIGKILL).ends(KILLED)
    place.nobody_is_left()
    place.finish(3)

    assert len(workers) == 1
    assert params(place)[:2] == before
    assert len(place.trials("digits")[1].user_attrs[DEATHS]) == 1


# ------------------------------------------------------------------------------------------- orderly stops


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        pytest.param(signal.SIGINT, True, id="Ctrl-C"),
        pytest.param(signal.SIGTERM, False, id="SIGTERM"),
        pytest.param(signal.SIGTERM, True, id="SIGTERM to the group, as Slurm sends it"),
    ],
)
def test_a_signal_ends_it_in_order(place: Place, number: signal.Signals, whole_group: bool) -> None:
    """Even if a training hangs: its trial is requeued, with its curves in MLflow, and the summary is printed."""
    running = in_trial_1(place)
    before = params(place)

    (running.press if whole_group else running.send)(number)
    running.ends(INTERRUPTED)
    place.nobody_is_left()
    requeued = place.trials("digits")[1]
    kept = [run for run in place.all_runs() if run.info.status == "KILLED" and run.data.tags["kind"] == "trial"]
    place.finish(3)

    assert requeued.state.name == "WAITING"
    assert "trial 0" in running.out
    if not (whole_group and number == signal.SIGTERM):  # that one ends the workers too
        assert [(run.data.tags["trial"], run.data.metrics["epochs"]) for run in kept] == [("1", 1.0)]
    assert params(place)[:2] == before
    assert DEATHS not in place.trials("digits")[1].user_attrs


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
    left = place.trials("digits")[1].state.name
    place.finish(3)

    assert left == "RUNNING"
    assert "interrupted" in running.err
    assert params(place)[:2] == before


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("optuna.study:Study.set_user_attr:2:before", id="when the process is registered"),
        pytest.param("mnistexp.workers.start:wait_until_ready:1:before", id="when workers start"),
    ],
)
def test_ctrl_c_during_start_up(place: Place, point: str) -> None:
    """It ends with one line and exit code 130, no process is left, and the next session does everything."""
    running = place.sweep(2, strike=f"SIGINT:{point}").ends(INTERRUPTED)
    place.nobody_is_left()

    place.finish(2)

    assert "interrupted" in running.err.splitlines()[-1]
    assert running.out == ""


def test_a_signal_that_python_swallows_during_start_up(place: Place) -> None:
    """Imports and destructors swallow what a signal's handler raises; the sweep ends in order all the same."""
    running = place.sweep(2, strike="SIGTERM:mnistexp.study.database:open_for_sweep:1:inside").ends(INTERRUPTED)
    place.nobody_is_left()

    place.finish(2)

    assert "ignored" not in running.err


def test_ctrl_c_while_python_imports(place: Place) -> None:
    """As soon as the package is being imported: one line, exit code 130, and nothing was begun."""
    running = place.sweep(2)
    maps = Path(f"/proc/{running.pid}/maps")
    wait_until(lambda: "pydantic_core" in maps.read_text(), PATIENCE, "the import of pydantic")

    running.press(signal.SIGINT).ends(INTERRUPTED)
    place.nobody_is_left()

    assert running.err.startswith("mnistexp: interrupted")
    assert len(place.trials("digits")) == 1


# ------------------------------------------------------------------------------------------- two processes


def done_but_one(place: Place, *words: str) -> Running:
    """A second sweep of four trials that has done all but the one in which the first waits."""
    second = place.sweep(4, *words)
    wait_until(lambda: place.states().count("COMPLETE") == 3, PATIENCE, f"three trials from\n{second}")
    return second


def test_a_process_is_killed_while_another_runs(place: Place) -> None:
    """The other takes its trial over, with the same parameters, and ends the study alone, in one session."""
    first = place.sweep(4, **place.waiting(1))
    place.reached(1, first)
    before = params(place)
    second = done_but_one(place)

    first.send(signal.SIGKILL).ends(KILLED)
    second.ends()

    trial = place.trials("digits")[1]
    assert (place.owner(1), len(trial.user_attrs[DEATHS])) == (place.owner(3), 1)
    assert params(place)[:2] == before
    place.check(4)


def suspend_between_writes(running: Running, place: Place) -> None:
    """SIGSTOP where the process holds no lock: one that is suspended with a lock stops all others."""
    database = place.path / "optuna.db"
    while True:
        running.send(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(running.pid).status() == psutil.STATUS_STOPPED, PATIENCE, "SIGSTOP")
        with suppress(filelock.Timeout, sqlite3.OperationalError), filelock.FileLock(f"{database}.lock", timeout=0):
            with closing(sqlite3.connect(database, timeout=0)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
            return
        running.send(signal.SIGCONT)


def test_a_suspended_process_loses_nothing(place: Place) -> None:
    """SIGSTOP for more than a lease: on one machine its trial stays its own, and it goes on when it is resumed."""
    words = ("study.lease=10",)
    first = place.sweep(4, *words, **place.waiting(1))
    place.reached(1, first)
    suspend_between_writes(first, place)
    owner = place.owner(1)
    second = done_but_one(place, *words)

    def outlived() -> bool:
        beats = place.heartbeats()
        return max(beats.values()) - beats[owner] > 12

    wait_until(outlived, PATIENCE, "a silence of more than a lease")
    between = place.states()[1]
    first.send(signal.SIGCONT)
    place.let(1)
    first.ends()
    second.ends()

    assert between == "RUNNING"
    assert place.owner(1) == owner
    assert DEATHS not in place.trials("digits")[1].user_attrs
    place.check(4)
