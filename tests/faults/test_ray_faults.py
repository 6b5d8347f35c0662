"""A sweep on Ray whose actor, worker or own process is killed."""

from __future__ import annotations

import importlib.util
import signal
import sys
from contextlib import suppress

import psutil
import pytest
from harness import Place, Running
from services import wait_until

from mnistexp.study.trial_attrs import DEATHS

pytest_plugins = ["fault_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="kills processes, and reads /proc"),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'mnistexp[ray]'"),
]

RAY = ("executor=ray", "executor.workers=1", "executor.address=local")


def begun_at(place: Place) -> Running:
    """A sweep of three trials on a Ray of its own, in the middle of trial 1."""
    running = place.sweep(3, *RAY, **place.waiting(1))
    place.reached(1, running)
    return running


def actors(place: Place) -> list[psutil.Process]:
    """The processes that Ray runs our actors in."""
    found = []
    for process in place.processes():
        with suppress(psutil.Error):
            if "NodeWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.parametrize("victim", ["the actor", "the actor's worker"])
def test_a_ray_worker_is_killed(place: Place, victim: str) -> None:
    """kill -9 in mid-trial: the trial is run again by another, with the same parameters and seed."""
    running = begun_at(place)
    before = [trial.params for trial in place.trials("digits")]
    [process] = actors(place) if victim == "the actor" else place.workers()

    process.kill()
    running.says("it will be run again (1 of 2)")
    place.let(1)
    running.ends()

    after = place.trials("digits")
    assert [trial.params for trial in after][:2] == before
    assert len(after[1].user_attrs[DEATHS]) == 1
    place.check(3)
    place.finish(4)


def test_a_driver_on_ray_is_killed(place: Place) -> None:
    """kill -9: its Ray and all that runs on it end with it, and the next session does what is left."""
    running = begun_at(place)

    running.send(signal.SIGKILL).ends(-signal.SIGKILL)
    wait_until(lambda: not place.workers(), 60, "the end of the workers")
    place.nobody_is_left()

    place.finish(3)
