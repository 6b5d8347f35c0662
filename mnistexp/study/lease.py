"""Leases: which sweep processes of a study are alive. Each has one entry with a heartbeat in the study's database.

A trial names its process, so one heartbeat renews the lease of all its trials. Optuna's own heartbeat works only in
`study.optimize`, and its thread ends when the database is locked once.

On the same machine a process is dead when the operating system no longer has it, which is known at once; a suspended
process is alive. On another machine it is dead when its entry has not changed for the lease's time by the observer's
clock: the clocks of two machines are never compared.
"""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
import psutil

from mnistexp.study.trial_attrs import LeaseEntry, StudyAttrs, parse_attr

PREFIX = "process:"
COUNT = "processes"  # see StudyAttrs


@dataclass(frozen=True)
class _Observation:
    """What this process has seen of another machine's heartbeat, by its own clock."""

    heartbeat: float
    since: float  # when it was first seen
    checked: float


class Lease:
    """This process's entry, and its view of the others.

    Args:
        study: where the entries are.
        seconds: a process on another machine is dead after this time without a heartbeat.
        clock: seconds, monotonic.
    """

    def __init__(self, study: optuna.Study, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._study, self._seconds, self._clock = study, seconds, clock
        self._observations: dict[int, _Observation] = {}
        self._written = clock()
        self._released = False
        self.number = -1

    def register(self) -> None:
        """Become the study's next process; call it under the lock. A number is never used again."""
        self.number = parse_attr(StudyAttrs, self._study.user_attrs, "this study").processes
        self._study.set_user_attr(COUNT, self.number + 1)
        self._write()

    def heartbeat(self) -> None:
        """Renew the lease when a quarter of its time has passed."""
        if self._clock() - self._written >= self._seconds / 4:
            self._write()

    def release(self) -> None:
        """Record that this process has no trials any more."""
        self._released = True
        self._write()

    def alive(self, *, mark_dead: bool = False) -> set[int]:
        """Return the numbers of the processes that may still work on their trials.

        Call it every few seconds: the silence of another machine counts only while this process watches it.

        Args:
            mark_dead: also record which processes are dead; only under the lock.
        """
        alive = set()
        for key, value in self._study.user_attrs.items():
            text = key.removeprefix(PREFIX)
            if not key.startswith(PREFIX) or not text.isdecimal():
                continue
            number, entry = int(text), parse_attr(LeaseEntry, value, f"the study's attribute {key}")
            if self._is_alive(number, entry):
                alive.add(number)
            elif mark_dead and not entry.ended:
                self._study.set_user_attr(key, {**value, "ended": True})
        return alive

    def _is_alive(self, number: int, entry: LeaseEntry) -> bool:
        if number == self.number:
            return not self._released
        if entry.ended:
            return False
        if entry.machine == this_machine():
            return _is_running(entry)
        now, last = self._clock(), self._observations.get(number)
        # After a long gap the wait starts again: while the database was away, no process could write a heartbeat.
        if last is None or last.heartbeat != entry.heartbeat or now - last.checked > self._seconds / 2:
            since = now
        else:
            since = last.since
        self._observations[number] = _Observation(entry.heartbeat, since, now)
        return now - since < self._seconds

    def _write(self) -> None:
        entry = LeaseEntry(
            machine=this_machine(),
            pid=os.getpid(),
            started=_start_time(os.getpid()),
            ended=self._released,
            heartbeat=time.time(),
        )
        self._study.set_user_attr(f"{PREFIX}{self.number}", entry.model_dump())
        self._written = self._clock()


@functools.cache
def this_machine() -> str:
    """Return what identifies this machine since its last start; a container has process numbers of its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


def _is_running(entry: LeaseEntry) -> bool:
    """Whether a process of this machine is running."""
    if entry.pid == os.getpid():
        return False  # an earlier session of this process, which works on one study at a time
    try:
        same = abs(_start_time(entry.pid) - entry.started) < 0.5
        return same and psutil.Process(entry.pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError, ValueError, OverflowError):  # the last two: an impossible process number
        return False


def _start_time(pid: int) -> float:
    """When a process started: on Linux in clock ticks since the machine's start, which setting the clock can't change.

    Raises: OSError or psutil.Error if there is no such process.
    """
    if not Path("/proc/self").exists():
        return psutil.Process(pid).create_time()
    stat = Path(f"/proc/{pid}/stat").read_text()
    return float(stat.rpartition(")")[2].split()[19])  # field 22 of proc(5); the name may contain spaces
