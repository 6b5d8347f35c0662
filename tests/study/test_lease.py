"""Which sweep processes are alive: real ones of this machine, and entries as other machines write them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import optuna
import psutil
import pytest

from mnistexp.study import lease as leases
from mnistexp.study.lease import PREFIX, Lease
from mnistexp.study.trial_attrs import LeaseEntry


@pytest.fixture
def study() -> optuna.Study:
    """A study without a process."""
    return optuna.create_study()


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that waits for its end."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as started:
        yield started
        started.kill()


def write(study: optuna.Study, process: int, **changes: Any) -> None:
    """Make process 0 of a study that of a process of this machine, with changes."""
    started = leases._start_time(process)
    entry = LeaseEntry(machine=leases.this_machine(), pid=process, started=started, ended=False, heartbeat=time.time())
    study.set_user_attr(f"{PREFIX}0", entry.model_dump() | changes)


def test_a_killed_process_is_dead_at_once_and_a_stopped_one_is_not(
    study: optuna.Study, process: subprocess.Popen[bytes]
) -> None:
    """On one machine no time has to pass: a suspended process is alive; a killed one and a zombie are not."""
    lease, seen = Lease(study, seconds=0.0), []
    write(study, process.pid)

    seen.append(lease.alive())
    process.send_signal(signal.SIGSTOP)
    seen.append(lease.alive())
    process.kill()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    seen.append(lease.alive())
    process.wait()
    seen.append(lease.alive())

    assert seen == [{0}, {0}, set(), set()]


@pytest.mark.parametrize(
    ("changes", "alive"),
    [
        ({}, True),
        ({"started": 5.0}, False),  # another process has the number now
        ({"pid": 2**40}, False),
        ({"ended": True}, False),
        ({"machine": "elsewhere", "pid": 2**40}, True),  # only its heartbeat can show
    ],
)
def test_what_an_entry_shows(
    study: optuna.Study, process: subprocess.Popen[bytes], changes: dict[str, object], alive: bool
) -> None:
    """A process number means something only on its machine, in its container and since its start."""
    write(study, process.pid, **changes)

    assert Lease(study, seconds=60).alive() == ({0} if alive else set())


def test_dead_processes_are_marked(study: optuna.Study) -> None:
    """A process that was found dead stays dead for all others."""
    write(study, 1, pid=2**40)

    Lease(study, seconds=60).alive(mark_dead=True)

    assert study.user_attrs[f"{PREFIX}0"]["ended"] is True


def test_an_earlier_session_of_this_process_is_over(study: optuna.Study) -> None:
    """A process works on one study at a time; numbers are given once."""
    first, second = Lease(study, 60), Lease(study, 60)
    first.register()
    second.register()

    assert (first.number, second.number) == (0, 1)
    assert second.alive() == {1}
    second.release()
    assert second.alive() == set()


def test_four_heartbeats_in_a_lease(study: optuna.Study) -> None:
    """A heartbeat is written when it is due, not oftener: 15 seconds of a lease of 60."""
    now = [0.0]
    lease = Lease(study, 60, clock=lambda: now[0])
    lease.register()
    heartbeats = set()

    for second in range(0, 61, 5):
        now[0] = second
        lease.heartbeat()
        heartbeats.add(study.user_attrs[f"{PREFIX}0"]["heartbeat"])

    assert len(heartbeats) == 5


def test_other_machines_are_judged_by_our_clock(study: optuna.Study) -> None:
    """A heartbeat of the year 1970 is as good as any: only that it changes within the lease's time counts."""
    now, seen = [1000.0], []
    lease = Lease(study, 60, clock=lambda: now[0])

    for heartbeat, later in ((0.0, 29), (1.0, 29), (1.0, 29), (1.0, 3), (1.0, 0)):
        write(study, 1, machine="elsewhere", heartbeat=heartbeat)
        seen.append(lease.alive())
        now[0] += later

    assert seen == [{0}, {0}, {0}, {0}, set()]


def test_a_silence_counts_only_while_it_is_watched(study: optuna.Study) -> None:
    """While the database is away no process can renew its lease, so after a long gap the wait starts again."""
    now, seen = [0.0], []
    lease = Lease(study, 60, clock=lambda: now[0])
    write(study, 1, machine="elsewhere")

    for now[0] in (0.0, 300.0, 325.0, 350.0, 361.0):
        seen.append(lease.alive())

    assert seen == [{0}, {0}, {0}, {0}, set()]
