"""Killed workers, and the workers of a killed sweep process, here and on Ray. tests/workers has other faults."""

from __future__ import annotations

import importlib.util
import signal
import sys

import pytest
from harness import PATIENCE, Place
from services import wait_until

from mnistexp.study.trial_attrs import DEATHS

pytest_plugins = ["fault_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="kills processes, and reads /proc"),
]

NO_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'mnistexp[ray]'")
RAY = ("executor=ray", "executor.address=local")


on_both = pytest.mark.parametrize("words", [(), pytest.param(RAY, marks=NO_RAY)], ids=["local", "Ray"])


@on_both
def test_a_killed_worker_costs_nothing(place: Place, words: tuple[str, ...]) -> None:
    """kill -9 in the middle of a trial: another worker runs it again, once, with the same parameters and seed."""
    running = place.sweep(3, *words, **place.waiting(1))
    place.reached(1, running)
    before = place.trials()
    [worker] = place.workers()

    worker.kill()
    running.says("trial 1: its worker was lost (signal SIGKILL")
    place.let(1)
    running.ends()

    after = place.trials()
    assert [trial.params for trial in after[:2]] == [trial.params for trial in before]
    assert len(after[1].user_attrs[DEATHS]) == 1
    place.check(3)


@on_both
def test_workers_do_not_outlive_a_killed_process(place: Place, words: tuple[str, ...]) -> None:
    """In mid-trial: a worker that hangs, and its Ray, end with it; the trial is run again with the same parameters."""
    running = place.sweep(3, *words, **place.waiting(1))
    place.reached(1, running)
    before, workers = [trial.params for trial in place.trials()[:2]], place.workers()

    running.send(signal.SIGKILL).ends(-signal.SIGKILL)
    wait_until(lambda: not place.workers(), PATIENCE, "the end of the workers")
    place.nobody_is_left()
    place.finish(3)

    assert len(workers) == 1
    assert [trial.params for trial in place.trials()[:2]] == before
    assert len(place.trials()[1].user_attrs[DEATHS]) == 1
