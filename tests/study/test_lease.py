"""Who counts as alive: with real processes of this machine, and entries as other machines write them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from mnistexp.study.lease import PREFIX, Lease

ROOT = Path(__file__).resolve().parents[2]
ANOTHER = """
import json, sys, time
from mnistexp.study.lease import Lease
class Printed(dict):
    user_attrs = property(lambda self: self)
    set_user_attr = dict.__setitem__
kept = Printed()
drivers = Lease(kept, 60)
drivers.register()
print(json.dumps(kept), flush=True)
sys.stdin.read()
"""


class Kept(dict[str, Any]):
    """A study's attributes, in memory."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        return self

    def set_user_attr(self, key: str, value: Any) -> None:
        self[key] = value


@pytest.fixture
def kept() -> Kept:
    """No driver yet."""
    return Kept()


def another(kept: Kept) -> subprocess.Popen[str]:
    """A driver in a process of its own, registered as the next one."""
    process = subprocess.Popen(
        [sys.executable, "-c", ANOTHER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    kept[f"{PREFIX}{len(kept)}"] = json.loads(process.stdout.readline())[f"{PREFIX}0"]
    return process


def closed(process: subprocess.Popen[str]) -> None:
    """Let go of a process's pipes."""
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()


def test_a_killed_process_is_dead_at_once_and_a_stopped_one_is_not(kept: Kept) -> None:
    """On one machine no time has to pass: a driver that sleeps lives, one that was killed doesn't, a zombie neither."""
    process, drivers = another(kept), Lease(kept, seconds=0.0)

    running = drivers.is_alive(0)
    process.send_signal(signal.SIGSTOP)
    stopped = drivers.is_alive(0)
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    zombie = drivers.is_alive(0)
    process.wait()
    closed(process)

    assert (running, stopped, zombie, drivers.is_alive(0)) == (True, True, False, False)


@pytest.mark.parametrize(
    ("changes", "local", "alive"),
    [
        ({"started": 5.0}, False, False),  # another process has the number now
        ({"boot": "before"}, True, False),  # the database is a file, so the machine was started anew
        ({"boot": "before"}, False, True),  # perhaps another machine of the same image: only its beats can tell
        ({"ended": True}, False, False),
        ({"namespace": "pid:[1]"}, False, True),  # another container of this machine
        ({"host": "elsewhere", "boot": "theirs", "pid": 1}, False, True),
    ],
)
def test_what_an_entry_says(kept: Kept, changes: dict[str, object], local: bool, alive: bool) -> None:
    """A process number means something on its machine, in its container and since its start alone."""
    process = another(kept)
    kept[f"{PREFIX}0"] |= changes

    found = Lease(kept, seconds=60, local=local).is_alive(0)
    process.kill()
    process.wait()
    closed(process)

    assert found is alive


def test_an_earlier_session_of_this_process_is_over(kept: Kept) -> None:
    """A process drives a study once at a time; numbers are given once."""
    first, second = Lease(kept, 60), Lease(kept, 60)
    first.register()
    second.register()

    assert (first.number, second.number) == (0, 1)
    assert second.is_alive(0) is False
    assert second.is_alive(1) is True
    assert second.is_alive(2) is False
    assert second.count_others() == 0


def test_a_driver_beats_four_times_in_a_lease(kept: Kept) -> None:
    """A beat is written when it is due, not oftener: 15 seconds of a lease of 60."""
    now = [0.0]
    drivers = Lease(kept, 60, clock=lambda: now[0])
    drivers.register()
    beats = set()

    for second in range(0, 61, 5):
        now[0] = second
        drivers.heartbeat()
        beats.add(kept[f"{PREFIX}0"]["heartbeat"])

    assert len(beats) == 5


def test_other_machines_are_judged_by_our_clock(kept: Kept) -> None:
    """A beat of the year 1970 is as good as any: only that it changes within the lease's time counts."""
    now = [1000.0]
    process = another(kept)
    process.kill()
    process.wait()
    closed(process)
    drivers = Lease(kept, 60, clock=lambda: now[0])
    seen = []

    for heartbeat, later in ((0.0, 29), (1.0, 29), (1.0, 29), (1.0, 3)):
        kept[f"{PREFIX}0"] |= {"host": "elsewhere", "heartbeat": heartbeat}
        seen.append(drivers.is_alive(0))
        now[0] += later
    seen.append(drivers.is_alive(0))

    assert seen == [True, True, True, True, False]
