"""Which sweep processes are alive: real ones of this machine, and entries as other machines write them."""

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

from mnistexp.study.lease import PREFIX, Lease, this_process

ROOT = Path(__file__).resolve().parents[2]
ANOTHER = """
import json, sys, time
from mnistexp.study.lease import Lease
class Printed(dict):
    user_attrs = property(lambda self: self)
    set_user_attr = dict.__setitem__
kept = Printed()
own = Lease(kept, 60)
own.register()
print(json.dumps(kept), flush=True)
sys.stdin.read()
"""


class Attrs(dict[str, Any]):
    """A study's attributes, in memory."""

    @property
    def user_attrs(self) -> dict[str, Any]:
        return self

    def set_user_attr(self, key: str, value: Any) -> None:
        self[key] = value


@pytest.fixture
def kept() -> Attrs:
    """No process yet."""
    return Attrs()


def another(kept: Attrs) -> subprocess.Popen[str]:
    """A process with a lease, registered as the next one."""
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


def test_a_killed_process_is_dead_at_once_and_a_stopped_one_is_not(kept: Attrs) -> None:
    """On one machine no time has to pass: a suspended process is alive; a killed one and a zombie are not."""
    process, own = another(kept), Lease(kept, seconds=0.0)

    running = own.is_alive(0)
    process.send_signal(signal.SIGSTOP)
    stopped = own.is_alive(0)
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    zombie = own.is_alive(0)
    process.wait()
    closed(process)

    assert (running, stopped, zombie, own.is_alive(0)) == (True, True, False, False)


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
def test_what_an_entry_says(kept: Attrs, changes: dict[str, object], local: bool, alive: bool) -> None:
    """A process number means something on its machine, in its container and since its start alone."""
    process = another(kept)
    kept[f"{PREFIX}0"] |= changes

    found = Lease(kept, seconds=60, local=local).is_alive(0)
    process.kill()
    process.wait()
    closed(process)

    assert found is alive


def test_an_earlier_session_of_this_process_is_over(kept: Attrs) -> None:
    """A process works on one study at a time; numbers are given once."""
    first, second = Lease(kept, 60), Lease(kept, 60)
    first.register()
    second.register()

    assert (first.number, second.number) == (0, 1)
    assert second.is_alive(0) is False
    assert second.is_alive(1) is True
    assert second.is_alive(2) is False
    assert second.count_others() == 0


def test_four_heartbeats_in_a_lease(kept: Attrs) -> None:
    """A beat is written when it is due, not oftener: 15 seconds of a lease of 60."""
    now = [0.0]
    own = Lease(kept, 60, clock=lambda: now[0])
    own.register()
    beats = set()

    for second in range(0, 61, 5):
        now[0] = second
        own.heartbeat()
        beats.add(kept[f"{PREFIX}0"]["heartbeat"])

    assert len(beats) == 5


def test_other_machines_are_judged_by_our_clock(kept: Attrs) -> None:
    """A beat of the year 1970 is as good as any: only that it changes within the lease's time counts."""
    now = [1000.0]
    process = another(kept)
    process.kill()
    process.wait()
    closed(process)
    own = Lease(kept, 60, clock=lambda: now[0])
    seen = []

    for heartbeat, later in ((0.0, 29), (1.0, 29), (1.0, 29), (1.0, 3)):
        kept[f"{PREFIX}0"] |= {"host": "elsewhere", "heartbeat": heartbeat}
        seen.append(own.is_alive(0))
        now[0] += later
    seen.append(own.is_alive(0))

    assert seen == [True, True, True, True, False]


def test_a_silence_counts_only_while_it_is_watched(kept: Attrs) -> None:
    """While the database is away no process can renew its lease, so after a long gap the wait starts again."""
    now = [0.0]
    own = Lease(kept, 60, clock=lambda: now[0])
    kept[f"{PREFIX}0"] = this_process().model_dump() | {"host": "elsewhere"}
    seen = []

    for now[0] in (0.0, 300.0, 325.0, 350.0, 361.0):
        seen.append(own.is_alive(0))

    assert seen == [True, True, True, True, False]
