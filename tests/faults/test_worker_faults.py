"""A sweep whose worker is killed, on this machine and on Ray. tests/workers has the other faults of workers."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from harness import Place

from mnistexp.study.trial_attrs import DEATHS

pytest_plugins = ["fault_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="kills processes, and reads /proc"),
]

NO_RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'mnistexp[ray]'")
RAY = ("executor=ray", "executor.address=local")


@pytest.mark.parametrize("words", [(), pytest.param(RAY, marks=NO_RAY)], ids=["local", "Ray"])
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
