"""Where trainings run: the events that they send, and the supervision of the workers that send them.

Each worker is a process of its own, started by name (a fork after TensorFlow ran hangs), watched one by
one (a pool loses or fails all its tasks when one process is killed), and told what to do in lines of JSON.
All state is in the parent: killing a worker loses at most the one training it had. How a worker is started and
reached is a `Link`'s business: local_executor.py and ray_executor.py; what follows from what it says is told here.
"""

from __future__ import annotations

import math
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from mnistexp import errors
from mnistexp.config.schema import RunConfig
from mnistexp.machine import cores
from mnistexp.training.results import EpochScores, RunResult

MAX_STARTS = 3
"""Deaths in a row in one place before any worker was ready: a broken installation, not bad luck."""

MIN_JOBS = 8
"""Trainings that a worker gets before it may be replaced for its size: a network may simply be large."""

START_SECONDS = 300.0
"""A worker that isn't ready by then hangs. 4-6 s are usual, a minute on a network file system."""

SLICE_SECONDS = 0.5
"""How long one look at the queue waits; after each, the workers' clocks are read."""

GAP_SECONDS = 5.0
"""A longer time between two looks isn't counted: this process was stopped, or its caller was busy elsewhere."""


@dataclass(frozen=True)
class EpochEnded:
    """A training finished an epoch and waits for a word: `answer(job, go)`."""

    job: int
    scores: EpochScores


@dataclass(frozen=True)
class Finished:
    """A training came to its end, by itself or because it was told to stop."""

    job: int
    result: RunResult


@dataclass(frozen=True)
class Failed:
    """A training failed by its own fault: it would do so again. The reason is one line."""

    job: int
    reason: str


@dataclass(frozen=True)
class Lost:
    """A training's worker was taken from it (killed, preempted, its node lost): run it again. The reason: one line."""

    job: int
    reason: str


Event = EpochEnded | Finished | Failed | Lost


class Executor(Protocol):
    """Runs trainings and streams their events. Jobs are numbered by the caller."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the first ready worker said of itself: device, flags, versions; {} before one is ready."""

    @property
    def size(self) -> int:
        """How many workers there are, ready or not."""

    def idle(self) -> int:
        """How many trainings can be submitted now."""

    def submit(self, job: int, config: RunConfig, weights_path: Path | None = None, *, test: bool = True) -> None:
        """Start one training on an idle worker.

        Args:
            weights_path: where its kept weights go, if that is given.
            test: whether the test split is looked at in the end.
        """

    def next_event(self, timeout: float) -> Event | None:
        """The next event, or None when `timeout` seconds went by or a worker started, got ready or was replaced.

        A training that ends no epoch for its `trainer.timeout` has failed; only time counts in which this is called.

        Raises: MnistexpError if the workers can't start, or what they load is damaged.
        """

    def answer(self, job: int, *, go: bool) -> None:
        """Let a training that ended an epoch go on, or make that epoch its last."""

    def close(self) -> None:
        """Stop all workers and wait until they are gone."""


# ------------------------------------------------------------------------------------ one worker, from outside


@dataclass(frozen=True)
class WorkerExit:
    """How a worker came to its end; the last thing that is heard of it."""

    how: str  # "signal SIGSEGV"
    lost: bool  # through no fault of what it trained
    log_tail: str  # the end of its log


Message = dict[str, Any] | WorkerExit
"""What comes from a worker: an event of worker.py's protocol, {"event": "starting"} before the first, or its death."""

Deliver = Callable[[Message], None]


class Connection(Protocol):
    """The way to one worker. What it says is delivered by a thread that ends with a Death."""

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one line; that a worker has just died shows in its Death, not here."""

    def close_stdin(self) -> None:
        """Close its input, at whose end an idle worker leaves."""

    def kill(self) -> None:
        """End it, whatever it does. Twice is no fault."""

    def wait(self) -> None:
        """Wait until a killed or dead one is gone, and free what it held here. Twice is no fault."""


@dataclass(eq=False)
class Worker:
    """One worker and what is known of it."""

    place: int  # which of the executor's devices it has
    starts: int = 1  # of workers in this place since one was ready
    link: Connection = field(init=False)
    ready: bool = False
    job: int | None = None
    timeout: float | None = None  # of the job: seconds for an epoch
    jobs_done: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    limit: float | None = None  # seconds that it may be silent; None: nobody waits for it
    silent: float = 0.0  # seconds that it was
    hung: str = ""  # why it was killed while it started

    def expect(self, limit: float | None) -> None:
        """Start its clock anew, or stop it (None)."""
        self.limit, self.silent = limit, 0.0


# ------------------------------------------------------------------------------------------- supervision


class WorkerPool(ABC):
    """What every executor does with its workers; see Executor for the contract.

    Args:
        at_most: more workers than this would never be used.
        fingerprint: the data set's; a worker that finds another one is an error. Empty: any will do.
        max_memory: bytes; a worker that holds more after a training is replaced by a new one.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        at_most: int,
        fingerprint: str = "",
        max_memory: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._at_most, self._fingerprint, self._max_memory = at_most, fingerprint, max_memory
        self._messages: queue.Queue[tuple[Worker, Message]] = queue.Queue()
        self._workers: list[Worker] = []
        self._leaving: list[Worker] = []
        self._looked = clock()

    @abstractmethod
    def _count(self) -> int:
        """How many workers the devices carry, or the user asked for."""

    @abstractmethod
    def _open(self, place: int, deliver: Deliver) -> Connection:
        """Start a worker process with all that it needs to get ready."""

    def _look_at(self, facts: Mapping[str, Any]) -> None:
        """Compare what a ready worker found with what was expected. Raises: MnistexpError."""
        if self._fingerprint and facts["fingerprint"] != self._fingerprint:
            raise errors.DataError(
                f"the data changed while this command ran (their fingerprint was {self._fingerprint} and is "
                f"{facts['fingerprint']}); run it again, with another study.name if it is a sweep"
            )

    @property
    def facts(self) -> Mapping[str, Any]:
        return next((worker.facts for worker in self._workers if worker.ready), {})

    @property
    def size(self) -> int:
        return len(self._workers)

    def idle(self) -> int:
        return sum(worker.ready and worker.job is None for worker in self._workers)

    def submit(self, job: int, config: RunConfig, weights_path: Path | None = None, *, test: bool = True) -> None:
        worker = next(worker for worker in self._workers if worker.ready and worker.job is None)
        worker.job, worker.timeout = job, config.trainer.timeout
        worker.expect(worker.timeout)
        weights = str(weights_path) if weights_path else None
        worker.link.send({"config": config.model_dump(mode="json"), "weights_path": weights, "test": test})

    def answer(self, job: int, *, go: bool) -> None:
        worker = next((worker for worker in self._workers if worker.job == job), None)
        if worker is not None:  # else it died since: that is an event of its own
            worker.expect(worker.timeout)
            worker.link.send({"go": go})

    def next_event(self, timeout: float) -> Event | None:
        deadline = self._clock() + timeout
        while True:
            left = deadline - self._clock()
            try:
                worker, message = self._messages.get(timeout=min(max(left, 0.0), SLICE_SECONDS))
            except queue.Empty:  # so nothing that a worker said is still to be read
                slept = self._tick()
                if not slept and (event := self._end_silence()):
                    return event
                if left <= SLICE_SECONDS:
                    return None
            else:
                self._tick()
                return self._died(worker, message) if isinstance(message, WorkerExit) else self._heard(worker, message)

    def close(self) -> None:
        everybody = [*self._workers, *self._leaving]
        for worker in everybody:  # killed: they hold nothing, and TensorFlow takes a second to leave by itself
            worker.link.kill()
        for worker in everybody:
            worker.link.wait()

    def _fill(self) -> None:
        """Start what is missing of the number that was asked for."""
        count = max(1, min(self._at_most, self._count()))
        self._workers += [self._start(place) for place in range(len(self._workers), count)]

    def _start(self, place: int, starts: int = 1) -> Worker:
        worker = Worker(place, starts)
        worker.link = self._open(place, lambda message: self._messages.put((worker, message)))
        return worker

    def _replace(self, worker: Worker) -> None:
        """Put a new worker into another's place."""
        starts = 1 if worker.ready else worker.starts + 1
        self._workers[self._workers.index(worker)] = self._start(worker.place, starts)

    def _tick(self) -> bool:
        """Let the workers' clocks run on; True where the time since the last look doesn't count."""
        now = self._clock()
        gap, self._looked = now - self._looked, now
        if gap > GAP_SECONDS:
            return True
        for worker in self._workers:
            worker.silent += gap
        return False

    def _end_silence(self) -> Event | None:
        """Kill a worker that has been silent for too long."""
        worker = next((one for one in self._workers if one.limit is not None and one.silent > one.limit), None)
        if worker is None:
            return None
        limit = worker.limit
        worker.expect(None)
        worker.link.kill()
        if not worker.ready or worker.job is None:  # an early death like any other, which comes with its last words
            worker.hung = f"not ready within {limit:g} s"
            return None
        self._leaving.append(worker)
        self._replace(worker)
        return Failed(
            worker.job,
            f"no epoch ended within trainer.timeout={limit:g} s, so its worker was killed; "
            "give trainer.timeout more seconds if an epoch takes that long here, or null for no limit",
        )

    def _heard(self, worker: Worker, message: dict[str, Any]) -> Event | None:
        kind = message.pop("event")
        if worker not in self._workers:  # it was killed for its silence just before it spoke
            return None
        worker.expect(START_SECONDS if kind == "starting" else None)
        if kind == "starting":
            return None
        if kind == "ready":
            worker.ready, worker.facts = True, message
            for other in self._workers:
                other.starts = 1
            self._look_at(message)
            return None
        if kind == "broken":
            raise getattr(errors, message["error"], errors.WorkerError)(message["message"])
        assert worker.job is not None, f"a worker without a job sent {kind}"
        if kind == "epoch":
            return EpochEnded(worker.job, EpochScores(**message["scores"]))
        return self._ended(worker, worker.job, kind, message)

    def _ended(self, worker: Worker, job: int, kind: str, message: Mapping[str, Any]) -> Event:
        """A training's end; its worker is idle again, or makes room for a new one if it has grown large."""
        worker.job, worker.jobs_done = None, worker.jobs_done + 1
        if message["memory"] > self._max_memory and worker.jobs_done >= MIN_JOBS:
            worker.link.close_stdin()
            self._leaving.append(worker)
            self._replace(worker)
        if kind == "result":
            return Finished(job, RunResult.model_validate(message["result"]))
        return Failed(job, message["reason"])

    def _died(self, worker: Worker, death: WorkerExit) -> Event | None:
        """Replace a dead worker, unless none ever starts."""
        worker.link.wait()
        if worker not in self._workers:  # it was replaced for its size or its silence
            self._leaving.remove(worker)
            return None
        if not worker.ready and worker.starts >= MAX_STARTS:
            raise errors.WorkerError(_never_ready(worker, death))
        self._replace(worker)
        if worker.job is None:
            return None
        how = "was lost" if death.lost else "died"
        reason = f"its worker {how} ({death.how}): {death.log_tail}"
        return Lost(worker.job, reason) if death.lost else Failed(worker.job, reason)


def _never_ready(worker: Worker, death: WorkerExit) -> str:
    if death.lost and not worker.hung:
        return (
            f"workers are lost before they are ready ({death.how}); "
            f"give fewer of them if memory is short: executor.workers=1. Last words: {death.log_tail}"
        )
    how = worker.hung or death.how
    return (
        f"workers die before they are ready ({how}), so this installation of TensorFlow doesn't work; "
        f"`mnistexp doctor` says more. Last words: {death.log_tail}"
    )


# --------------------------------------------------------------------------------------------- devices

GPU_SHARE = 4
"""Workers that share a GPU: one alone leaves it idle while it compiles, and a trial here is mostly that.
With 1, 4 and 8 the default sweep took 102, 34 and 32 s (experiments/speed, on a GPU)."""


def worker_count(workers: int | Literal["auto"], threads: int, gpus: int) -> int:
    """How many workers to start: as asked; else four per GPU while the cores carry them; else what the cores carry."""
    if workers != "auto":
        return workers
    carried = max(1, cores() // threads)
    return gpus * max(1, min(GPU_SHARE, carried // gpus)) if gpus else carried
