"""What becomes of a sweep whose own process is killed, interrupted or stopped, alone or beside another."""

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

ASK = "optuna.study:Study.ask"
TELL = "optuna.study:Study.tell"
STORE = "mlflow.store.tracking.sqlalchemy_store:SqlAlchemyStore"


def begun_at(place: Place, number: int = 1) -> Running:
    """A sweep of three trials that is in the middle of this one, and stays there."""
    running = place.sweep(3, **place.waiting(number))
    place.reached(number, running)
    return running


def params(place: Place) -> list[dict[str, object]]:
    """The trials' parameters, by their numbers."""
    return [trial.params for trial in place.trials(place.study)]


# ------------------------------------------------------------------------------------------- kill -9


@pytest.mark.parametrize(
    ("point", "told"),
    [
        pytest.param(f"{ASK}:2:before", 2, id="before ask"),
        pytest.param(f"{ASK}:2:after", 2, id="after ask"),
        pytest.param("optuna.storages:RDBStorage.set_trial_user_attr:1:after", 1, id="in the middle of a claim"),
        pytest.param(f"{TELL}:2:before", 2, id="before tell"),
        pytest.param(f"{TELL}:2:after", 3, id="after tell"),
        pytest.param("mlflow:MlflowClient.create_run:1:after", 2, id="in the MLflow write, run made"),
        pytest.param(f"{STORE}._log_metrics:2:after", 2, id="in the MLflow write, metrics without tags"),
        pytest.param("mlflow:MlflowClient.set_terminated:1:before", 2, id="in the MLflow write, run not closed"),
        pytest.param("mlflow:MlflowClient.set_terminated:3:before", 3, id="before the parent run is closed"),
    ],
)
def test_a_killed_driver_costs_nothing(place: Place, point: str, told: int) -> None:
    """kill -9 of the parent at an exact point: what was told stays, what was drawn is run with the same parameters."""
    place.sweep(3, strike=f"SIGKILL:{point}").ends(KILLED)
    place.nobody_is_left()
    before = place.trials("digits")

    place.finish(3)

    after = place.trials("digits")
    assert sum(trial.state.is_finished() for trial in before) == told
    for old, new in zip(before, after, strict=False):
        assert new.params == old.params or not old.params
        assert new.user_attrs.get(RECORD) == old.user_attrs.get(RECORD, new.user_attrs[RECORD])  # not trained again
        assert not old.state.is_finished() or old.datetime_complete == new.datetime_complete


@pytest.mark.parametrize("whole_group", [False, True], ids=["kill -9 parent", "kill the process group"])
def test_workers_do_not_outlive_a_killed_driver(place: Place, whole_group: bool) -> None:
    """In mid-trial: a worker that hangs dies with its parent; the trial is run again with the same parameters."""
    running = begun_at(place)
    before, workers = params(place), place.workers()

    (running.press if whole_group else running.send)(signal.SIGKILL)
    running.ends(KILLED)
    place.nobody_is_left()
    resumed = place.finish(3)

    assert len(workers) == 1
    assert params(place)[:2] == before
    assert "study digits: 1 of 3 done" in resumed.err
    assert len(place.trials("digits")[1].user_attrs[DEATHS]) == 1


# ------------------------------------------------------------------------------------------- orderly stops


@pytest.mark.parametrize(
    ("number", "whole_group"),
    [
        pytest.param(signal.SIGINT, True, id="Ctrl-C once"),
        pytest.param(signal.SIGTERM, False, id="SIGTERM"),
        pytest.param(signal.SIGTERM, True, id="SIGTERM to the group, as Slurm sends it"),
    ],
)
def test_a_signal_ends_it_in_order(place: Place, number: signal.Signals, whole_group: bool) -> None:
    """Even where a training hangs: its trial goes back, with its curves in MLflow, and the summary is printed."""
    running = begun_at(place)
    before = params(place)

    (running.press if whole_group else running.send)(number)
    running.ends(INTERRUPTED)
    place.nobody_is_left()
    handed_back = place.trials("digits")[1]
    kept = [run for run in place.all_runs() if run.info.status == "KILLED" and run.data.tags["kind"] == "trial"]
    place.finish(3)

    assert "interrupted: 1 complete, 0 pruned, 0 failed; 0 of them now" in running.out
    assert "type the same command to continue" in running.out
    assert "Best of study digits: trial 0" in running.out
    assert handed_back.state.name == "WAITING"
    if not (whole_group and number == signal.SIGTERM):  # that one ends the workers too
        assert [(run.data.tags["trial"], run.data.metrics["epochs"]) for run in kept] == [("1", 1.0)]
    assert params(place)[:2] == before
    assert DEATHS not in place.trials("digits")[1].user_attrs


def handled(running: Running) -> bool:
    """Whether the process has taken the signals that it was sent."""
    status = Path(f"/proc/{running.pid}/status").read_text()
    return all(int(line.split()[1], 16) == 0 for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd")))


def test_ctrl_c_twice_ends_it_at_once(place: Place) -> None:
    """Nothing more is written: the next session finds the trial under way and runs it again."""
    running = begun_at(place)
    before = params(place)

    running.press(signal.SIGINT)
    wait_until(lambda: handled(running), PATIENCE, "the first Ctrl-C's delivery")
    running.press(signal.SIGINT).ends(INTERRUPTED)
    place.nobody_is_left()
    left = place.trials("digits")[1].state.name
    place.finish(3)

    assert left == "RUNNING"
    assert "mnistexp: interrupted; type the same command to continue" in running.err
    assert "Best of study" not in running.out
    assert params(place)[:2] == before


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("mnistexp.cli:parse_request:1:before", id="when the config is read"),
        pytest.param("mnistexp.study.database:open_for_sweep:1:before", id="when the database is opened"),
        pytest.param("mnistexp.commands.sweep:open_tracker:1:before", id="when MLflow is opened"),
        pytest.param("optuna.study:Study.set_user_attr:2:before", id="when the driver is registered"),
        pytest.param("mnistexp.workers.start:wait_until_ready:1:before", id="when workers start"),
    ],
)
def test_ctrl_c_during_start_up(place: Place, point: str) -> None:
    """It ends with one line and exit code 130, no process is left, and the next session does everything."""
    running = place.sweep(2, strike=f"SIGINT:{point}").ends(INTERRUPTED)
    place.nobody_is_left()

    place.finish(2)

    assert running.err.splitlines()[-1] == "mnistexp: interrupted; type the same command to continue"
    assert running.out == ""


def test_a_signal_that_python_swallows_during_start_up(place: Place) -> None:
    """Imports and destructors swallow what a signal's handler raises; the sweep ends in order all the same."""
    running = place.sweep(2, strike="SIGTERM:mnistexp.study.database:open_for_sweep:1:inside").ends(INTERRUPTED)
    place.nobody_is_left()

    place.finish(2)

    assert "interrupted: 1 complete, 0 pruned, 0 failed; 0 of them now" in running.out
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


# ------------------------------------------------------------------------------------------- two drivers


def test_a_driver_is_killed_while_another_runs(place: Place) -> None:
    """The other takes its trial over, with the same parameters, and ends the study alone, in one session."""
    first = place.sweep(4, **place.waiting(1))
    place.reached(1, first)
    before = params(place)
    second = place.sweep(4).says("  3/4  ")  # it has done all but the first driver's

    first.send(signal.SIGKILL).ends(KILLED)
    second.ends()

    trial = place.trials("digits")[1]
    assert (place.owner(1), len(trial.user_attrs[DEATHS])) == (place.owner(3), 1)
    assert params(place)[:2] == before
    assert "all 4 trials are done: 4 complete, 0 pruned, 0 failed; 3 of them now" in second.out
    place.check(4)


def stop_between_writes(running: Running, place: Place) -> None:
    """SIGSTOP where the process holds no lock: whoever is stopped with one holds up everybody, whatever the lease."""
    database = place.path / "optuna.db"
    while True:
        running.send(signal.SIGSTOP)
        wait_until(lambda: psutil.Process(running.pid).status() == psutil.STATUS_STOPPED, PATIENCE, "SIGSTOP")
        with suppress(filelock.Timeout, sqlite3.OperationalError), filelock.FileLock(f"{database}.lock", timeout=0):
            with closing(sqlite3.connect(database, timeout=0)) as connection:
                connection.execute("BEGIN EXCLUSIVE")
            return
        running.send(signal.SIGCONT)


def test_a_driver_that_was_stopped_has_lost_nothing(place: Place) -> None:
    """SIGSTOP for one and a half leases: on one machine its trial stays its own, and it goes on when it is woken."""
    words = ("study.lease=10",)
    first = place.sweep(4, *words, **place.waiting(1))
    place.reached(1, first)
    stop_between_writes(first, place)
    owner = place.owner(1)
    second = place.sweep(4, *words).says("  3/4  ")  # it has done all but the first driver's

    def outlived() -> bool:
        beats = place.beats()
        return max(beats.values()) - beats[owner] > 1.5 * 10

    wait_until(outlived, PATIENCE, "a silence of one and a half leases")
    between = place.trials("digits")[1]
    first.send(signal.SIGCONT)
    place.let(1)
    first.ends()
    second.ends()

    assert between.state.name == "RUNNING"
    assert place.owner(1) == owner
    assert "another driver has taken it over" not in first.err
    assert DEATHS not in place.trials("digits")[1].user_attrs
    assert "1 of them now" in first.out
    assert "2 of them now" in second.out
    place.check(4)
