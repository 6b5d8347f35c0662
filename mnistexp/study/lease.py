"""Leases: which sweep processes of a study are alive. Each has one entry with a heartbeat in the study's database.

A trial names its process, so one heartbeat renews the lease of all its trials. Optuna's own heartbeat works only in
`study.optimize`, and its thread ends when the database is locked once.

On the same machine a process is dead when the operating system no longer has it, which is known at once; a suspended
process is alive. On another machine it is dead when its entry has not changed for the lease's time by the observer's
clock: the clocks of two machines are never compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import psutil

from mnistexp.storage.urls import host_id
from mnistexp.study.trial_attrs import LeaseEntry, StudyAttrs, parse_attr

PREFIX = "process:"
COUNT = "processes"  # see StudyAttrs


class Attributes(Protocol):
    """A study's user attributes: optuna.Study."""

    @property
    def user_attrs(self) -> dict[str, Any]: ...

    def set_user_attr(self, key: str, value: Any) -> None: ...


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
        local: whether the database is a file, so that all processes are on this machine.
    """

    def __init__(
        self, study: Attributes, seconds: float, clock: Callable[[], float] = time.monotonic, *, local: bool = False
    ) -> None:
        self._study, self._seconds, self._clock, self._local = study, seconds, clock, local
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

    def is_alive(self, number: int) -> bool:
        """Return whether a process may still work on its trials."""
        if number == self.number:
            return not self._released
        return self._is_alive(number, self._study.user_attrs)

    def count_others(self) -> int:
        """Return how many other processes may be working on this study."""
        entries = self._study.user_attrs
        return sum(self._is_alive(number, entries) for number in self._others(entries))

    def mark_dead(self) -> None:
        """Record which processes are dead; call it under the lock.

        Call it every few seconds: the silence of another machine counts only while this process watches it.
        """
        entries = self._study.user_attrs
        for number in self._others(entries):
            key = f"{PREFIX}{number}"
            if not self._is_alive(number, entries) and not entries[key]["ended"]:
                self._study.set_user_attr(key, {**entries[key], "ended": True})

    def _others(self, entries: Mapping[str, Any]) -> list[int]:
        numbers = [key.removeprefix(PREFIX) for key in entries if key.startswith(PREFIX)]
        return [int(text) for text in numbers if text.isdecimal() and int(text) != self.number]

    def _is_alive(self, number: int, entries: Mapping[str, Any]) -> bool:
        key = f"{PREFIX}{number}"
        if key not in entries:
            return False
        entry = parse_attr(LeaseEntry, entries[key], f"the study's attribute {key}")
        if entry.ended:
            return False
        on_this_machine = _runs_here(entry, self._local)
        return self._has_heartbeat(number, entry) if on_this_machine is None else on_this_machine

    def _has_heartbeat(self, number: int, entry: LeaseEntry) -> bool:
        """Whether another machine's heartbeat has changed within the lease's time."""
        now = self._clock()
        last = self._observations.get(number)
        # After a long gap the wait starts again: while the database was away, no process could write a heartbeat.
        if last is None or last.heartbeat != entry.heartbeat or now - last.checked > self._seconds / 2:
            since = now
        else:
            since = last.since
        self._observations[number] = _Observation(entry.heartbeat, since, now)
        return now - since < self._seconds

    def _write(self) -> None:
        entry = this_process(ended=self._released)
        self._study.set_user_attr(f"{PREFIX}{self.number}", entry.model_dump())
        self._written = self._clock()


def this_process(*, ended: bool = False) -> LeaseEntry:
    """Return what identifies this process among all processes of all machines, with the present time."""
    return LeaseEntry(
        host=host_id(),
        boot=_read(Path("/proc/sys/kernel/random/boot_id").read_text),
        namespace=_read(partial(os.readlink, "/proc/self/ns/pid")),  # process numbers differ between containers
        pid=os.getpid(),
        started=_start_time(os.getpid()),
        ended=ended,
        heartbeat=time.time(),
    )


def _runs_here(entry: LeaseEntry, local: bool) -> bool | None:
    """Whether a process of this machine is running; None if this can't be seen from here."""
    own = this_process()
    if entry.host != own.host:
        return None
    if entry.boot != own.boot:
        return False if local else None  # the machine was restarted, or another machine has this name and image
    if entry.namespace != own.namespace:
        return None
    if entry.pid == own.pid:
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


def _read(read: Callable[[], str]) -> str:
    try:
        return read().strip()
    except OSError:
        return ""
