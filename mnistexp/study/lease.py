"""Who drives a study, and who is dead: one entry a driver, with a beat, in the study's own database.

A trial names its driver, so the driver's beat is the lease of every trial that it has: one write every few
seconds, however many trials. Optuna's own heartbeat serves `study.optimize` alone, and its thread dies when
the database is locked once.

A driver on this machine is dead when its process is gone: known at once, also for one that was stopped for an
hour. One on another machine is dead when its entry has not changed for the lease's time *by our clock*: no two
machines' clocks are ever compared.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import psutil

from mnistexp.errors import StoreError
from mnistexp.storage.urls import host_id
from mnistexp.study.trial_attrs import LeaseEntry, kept

PREFIX = "driver:"
COUNT = "drivers"  # how many there ever were: the next one's number


class Attributes(Protocol):
    """Where entries are kept: a study's user attributes."""

    def read(self) -> Mapping[str, Any]:
        """All of them."""

    def write(self, key: str, value: object) -> None:
        """Set one."""


class Lease:
    """This driver's entry, and what it sees of the others'.

    Args:
        lease: seconds without a beat after which a driver on another machine counts as dead.
        local: the database is a file, so all its drivers are on this machine, whatever their entries say of it.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        attributes: Attributes,
        lease: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        local: bool = False,
    ) -> None:
        self._attributes, self._lease, self._clock, self._local = attributes, lease, clock, local
        # driver → (its last new beat, when we first saw that, when we last looked)
        self._seen: dict[int, tuple[float, float, float]] = {}
        self._last_beat = clock()
        self._entry: dict[str, Any] = {**_process(), "ended": False}
        self.number = -1

    def register(self) -> None:
        """Become the study's next driver; call it in turn. Numbers are never given twice."""
        count = self._attributes.read().get(COUNT, 0)
        if not isinstance(count, int):
            raise StoreError(f"the study's attribute {COUNT} was not written by mnistexp; give another study.name")
        self.number = count
        self._attributes.write(COUNT, self.number + 1)
        self._write()

    def heartbeat(self) -> None:
        """Show that this driver lives, where a beat is due: four in a lease's time."""
        if self._clock() - self._last_beat >= self._lease / 4:
            self._write()

    def end(self) -> None:
        """Say that this driver has no trial any more."""
        self._entry["ended"] = True
        self._write()

    def alive(self, number: int) -> bool:
        """Whether a driver may still be at work on what it has."""
        if number == self.number:
            return not self._entry["ended"]
        return self._lives(number, self._attributes.read())

    def others(self) -> int:
        """How many other drivers may be at work on this study."""
        entries = self._attributes.read()
        return sum(self._lives(number, entries) for number in self._numbers(entries))

    def mark_dead(self) -> None:
        """Write down who is dead, so that nobody has to wait and see again; call it in turn.

        Look at everybody by it every few seconds: a silence is one only for who listened.
        """
        entries = self._attributes.read()
        for number in self._numbers(entries):
            key = f"{PREFIX}{number}"
            if not self._lives(number, entries) and not entries[key]["ended"]:
                self._attributes.write(key, {**entries[key], "ended": True})

    def _numbers(self, entries: Mapping[str, Any]) -> list[int]:
        """The other drivers that there ever were."""
        found = [key.removeprefix(PREFIX) for key in entries if key.startswith(PREFIX)]
        return [int(text) for text in found if text.isdecimal() and int(text) != self.number]

    def _lives(self, number: int, entries: Mapping[str, Any]) -> bool:
        key = f"{PREFIX}{number}"
        if key not in entries:
            return False
        entry = kept(LeaseEntry, entries[key], f"the study's attribute {key}")
        if entry.ended:
            return False
        here = _here(entry, self._local)
        return here if here is not None else self._beats(number, entry)

    def _beats(self, number: int, entry: LeaseEntry) -> bool:
        """Whether another machine's driver was seen to beat within the lease's time."""
        now = self._clock()
        heartbeat, since, looked = self._seen.get(number, (None, now, now))
        if heartbeat != entry.heartbeat or now - looked > self._lease / 2:  # no heartbeat while it was away
            since = now
        self._seen[number] = (entry.heartbeat, since, now)
        return now - since < self._lease

    def _write(self) -> None:
        self._attributes.write(f"{PREFIX}{self.number}", {**self._entry, "heartbeat": time.time()})
        self._last_beat = self._clock()


def _process() -> dict[str, Any]:
    """What identifies this process among all that ever ran on this machine."""
    return {
        "host": host_id(),
        "boot": _text("/proc/sys/kernel/random/boot_id"),
        "namespace": _link("/proc/self/ns/pid"),  # in another container our process numbers mean nothing
        "pid": os.getpid(),
        "started": _started(os.getpid()),
    }


def _here(entry: LeaseEntry, local: bool) -> bool | None:
    """Whether a process of this machine is there; None where that can't be seen from here."""
    own = _process()
    if entry.host != own["host"]:
        return None
    if entry.boot != own["boot"]:
        return False if local else None  # started anew; or another machine of the same name and image
    if entry.namespace != own["namespace"]:
        return None
    if entry.pid == own["pid"]:
        return False  # this process drives one study at a time, so that session is over
    try:
        same = abs(_started(entry.pid) - entry.started) < 0.5
        return same and psutil.Process(entry.pid).status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError, ValueError, OverflowError):  # the last two: a number that no process has
        return False


def _started(pid: int) -> float:
    """When a process started: clock ticks since the machine's start on Linux, where setting the clock moves the rest.

    Raises: OSError or psutil.Error if there is no such process.
    """
    stat = Path(f"/proc/{pid}/stat")
    if not stat.parent.parent.joinpath("self").exists():
        return psutil.Process(pid).create_time()
    return float(stat.read_text().rpartition(")")[2].split()[19])  # field 22 of proc(5); the name may have spaces


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""
