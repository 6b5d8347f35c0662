"""The worker pool: start, watch and replace workers, give them trainings, and return what happens as events.

Each worker is a process of its own, started by name (a fork hangs after TensorFlow ran) and watched one by one (a
process pool fails all its tasks when one process is killed). All state is in the parent: a killed worker costs at most
the training that it had. The subclasses start workers: LocalPool in process.py and RayPool in ray.py.
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
from mnistexp.training.messages import Answer, Broken, EpochEnd, Job, JobFailed, JobResult, Message, Ready
from mnistexp.training.results import EpochScores, RunResult

MAX_STARTS = 3
"""A slot whose workers die so many times in a row before one is ready: the installation is broken."""

MIN_JOBS = 8
"""A worker is not replaced for its size before so many trainings: a network may simply be large."""

START_SECONDS = 300.0
"""A worker that is not ready after this time hangs. 4-6 s are usual, a minute on a network file system."""

SLICE_SECONDS = 0.5
"""The longest wait for one message. After it the workers' clocks are advanced."""

GAP_SECONDS = 5.0
"""A longer time between two looks is not counted: this process was stopped, or its caller was busy."""

GPU_SHARE = 4
"""Workers per GPU. One alone leaves the GPU idle while it compiles, which is most of a short trial.
With 1, 4 and 8 the default sweep took 102, 34 and 32 s (experiments/speed, on a GPU)."""


# --------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class EpochEnded:
    """A training ended an epoch and waits for `WorkerPool.answer`."""

    job: int
    scores: EpochScores


@dataclass(frozen=True)
class Finished:
    """A training ended, by itself or because the answer was to stop."""

    job: int
    result: RunResult


@dataclass(frozen=True)
class Failed:
    """A training failed by its own fault, so it would fail again."""

    job: int
    reason: str  # one line


@dataclass(frozen=True)
class Lost:
    """A training lost its worker (killed, preempted, its node lost): run it again."""

    job: int
    reason: str  # one line


Event = EpochEnded | Finished | Failed | Lost


# ---------------------------------------------------------------------------------------- connections


@dataclass(frozen=True)
class Starting:
    """A worker process was started. A Ray actor may wait for room before that."""


@dataclass(frozen=True)
class WorkerExit:
    """A worker's process ended. The last message of each connection."""

    how: str  # "signal SIGSEGV"
    lost: bool  # not by the fault of the training
    log_tail: str


Received = Starting | Ready | Broken | EpochEnd | JobResult | JobFailed | WorkerExit
Deliver = Callable[[Received], None]


class Connection(Protocol):
    """A connection to one worker. A thread delivers what it receives."""

    def send(self, message: Message) -> None:
        """Send a message. A worker that has just died is reported by its WorkerExit, not here."""

    def close_stdin(self) -> None:
        """Close the worker's input; an idle worker then ends."""

    def kill(self) -> None:
        """Kill the worker. May be called twice."""

    def wait(self) -> None:
        """Wait until a killed or dead worker is gone and free its resources. May be called twice."""


@dataclass(eq=False)
class Worker:
    """The state of one worker."""

    slot: int  # decides which device it gets
    starts: int = 1  # workers started in this slot since one was ready
    connection: Connection = field(init=False)
    info: Ready | None = None  # None: not ready yet
    job: int | None = None
    epoch_timeout: float | None = None  # of its job, in seconds
    jobs_done: int = 0
    time_limit: float | None = None  # seconds until its next message is overdue; None: no message is expected
    idle_seconds: float = 0.0  # since its last message
    hung: str = ""  # why it was killed before it was ready

    @property
    def idle(self) -> bool:
        """Whether it can take a training."""
        return self.info is not None and self.job is None

    def expect(self, time_limit: float | None) -> None:
        """Reset its clock."""
        self.time_limit, self.idle_seconds = time_limit, 0.0


# ----------------------------------------------------------------------------------------------- pool


class WorkerPool(ABC):
    """Runs trainings on workers and returns their events. The caller numbers the trainings.

    Args:
        at_most: the largest number of workers that have work. 0 starts none.
        fingerprint: of the data set; a worker that loads another one is an error. Empty: not checked.
        max_memory: bytes; a worker that holds more after a training is replaced.
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
        self._messages: queue.Queue[tuple[Worker, Received]] = queue.Queue()
        self._workers: list[Worker] = []
        self._leaving: list[Worker] = []  # replaced, and not gone yet
        self._last_look = clock()

    @abstractmethod
    def _count(self) -> int:
        """Return how many workers the devices can run, or the number that the user set."""

    @abstractmethod
    def _open(self, slot: int, deliver: Deliver) -> Connection:
        """Start a worker."""

    def _check(self, info: Ready) -> None:
        """Compare a ready worker with what is expected. Raises: MnistexpError."""
        if self._fingerprint and info.fingerprint != self._fingerprint:
            raise errors.DataError(
                f"the data changed while this command ran (their fingerprint was {self._fingerprint} and is "
                f"{info.fingerprint}); run it again, with another study.name if it is a sweep"
            )

    @property
    def worker_info(self) -> Mapping[str, Any]:
        """The device, flags and versions of the first ready worker; {} before one is ready."""
        infos = [worker.info for worker in self._workers if worker.info]
        return infos[0].model_dump(exclude={"event"}) if infos else {}

    @property
    def size(self) -> int:
        """The number of workers, ready or not."""
        return len(self._workers)

    def idle(self) -> int:
        """Return how many trainings can be submitted now."""
        return sum(worker.idle for worker in self._workers)

    def submit(self, job: int, config: RunConfig, weights_path: Path | None = None, *, test: bool = True) -> None:
        """Start a training on an idle worker.

        Args:
            weights_path: where to save the kept weights.
            test: evaluate the test split after training.
        """
        worker = next(worker for worker in self._workers if worker.idle)
        worker.job, worker.epoch_timeout = job, config.trainer.timeout
        worker.expect(worker.epoch_timeout)
        path = str(weights_path) if weights_path else None
        worker.connection.send(Job(config=config, weights_path=path, test=test))

    def answer(self, job: int, *, go: bool) -> None:
        """Let a training that ended an epoch train another one, or stop it."""
        worker = next((worker for worker in self._workers if worker.job == job), None)
        if worker is not None:  # else it died in the meantime, which is an event
            worker.expect(worker.epoch_timeout)
            worker.connection.send(Answer(go=go))

    def next_event(self, timeout: float) -> Event | None:
        """Wait for the next event.

        Returns: None after `timeout` seconds, or when a worker started, became ready or was replaced.

        A training that ends no epoch within its `trainer.timeout` fails. Only time during calls of this counts.

        Raises: MnistexpError if workers cannot start or their data are damaged.
        """
        deadline = self._clock() + timeout
        while True:
            left = deadline - self._clock()
            try:
                worker, message = self._messages.get(timeout=min(max(left, 0.0), SLICE_SECONDS))
            except queue.Empty:  # every message was read, so the clocks are right
                if self._advance_clocks() and (event := self._kill_overdue()):
                    return event
                if left <= SLICE_SECONDS:
                    return None
            else:
                self._advance_clocks()
                return self._handle(worker, message)

    def close(self) -> None:
        """Stop all workers and wait until they are gone. May be called twice."""
        workers = [*self._workers, *self._leaving]
        for worker in workers:  # killed, because TensorFlow takes a second to end by itself
            worker.connection.kill()
        for worker in workers:
            worker.connection.wait()

    def _fill(self) -> None:
        """Start the missing workers."""
        count = min(self._at_most, max(1, self._count()))
        self._workers += [self._start(slot) for slot in range(len(self._workers), count)]

    def _start(self, slot: int, starts: int = 1) -> Worker:
        worker = Worker(slot, starts)
        worker.connection = self._open(slot, lambda message: self._messages.put((worker, message)))
        return worker

    def _replace(self, worker: Worker) -> None:
        starts = 1 if worker.info else worker.starts + 1
        self._workers[self._workers.index(worker)] = self._start(worker.slot, starts)

    def _advance_clocks(self) -> bool:
        """Add the time since the last look to the workers' clocks. Returns: False if it does not count."""
        now = self._clock()
        gap, self._last_look = now - self._last_look, now
        if gap > GAP_SECONDS:
            return False
        for worker in self._workers:
            worker.idle_seconds += gap
        return True

    def _kill_overdue(self) -> Event | None:
        """Kill a worker whose next message is overdue."""
        for worker in self._workers:
            limit = worker.time_limit
            if limit is not None and worker.idle_seconds > limit:
                worker.expect(None)
                worker.connection.kill()
                if worker.job is None:  # it was starting; its WorkerExit will bring the end of its log
                    worker.hung = f"not ready within {limit:g} s"
                    return None
                self._leaving.append(worker)
                self._replace(worker)
                return Failed(
                    worker.job,
                    f"no epoch ended within trainer.timeout={limit:g} s, so its worker was killed; "
                    "give trainer.timeout more seconds if an epoch takes that long here, or null for no limit",
                )
        return None

    def _handle(self, worker: Worker, message: Received) -> Event | None:
        if worker not in self._workers:  # it was replaced
            if isinstance(message, WorkerExit):
                worker.connection.wait()
                self._leaving.remove(worker)
            return None
        worker.expect(START_SECONDS if isinstance(message, Starting) else None)
        match message:
            case Starting():
                return None
            case Ready():
                worker.info = message
                for other in self._workers:
                    other.starts = 1
                self._check(message)
                return None
            case Broken():
                raise getattr(errors, message.error, errors.WorkerError)(message.message)
            case WorkerExit():
                return self._exited(worker, message)
        assert worker.job is not None, f"a worker without a job sent {message.event}"
        if isinstance(message, EpochEnd):
            return EpochEnded(worker.job, message.scores)
        return self._ended(worker, worker.job, message)

    def _ended(self, worker: Worker, job: int, message: JobResult | JobFailed) -> Event:
        """Make the worker idle, or replace it if it has grown too large."""
        worker.job, worker.jobs_done = None, worker.jobs_done + 1
        if message.memory > self._max_memory and worker.jobs_done >= MIN_JOBS:
            worker.connection.close_stdin()
            self._leaving.append(worker)
            self._replace(worker)
        return Finished(job, message.result) if isinstance(message, JobResult) else Failed(job, message.reason)

    def _exited(self, worker: Worker, ended: WorkerExit) -> Event | None:
        """Replace a dead worker. Raises: WorkerError if too many died before one was ready."""
        worker.connection.wait()
        if worker.info is None and worker.starts >= MAX_STARTS:
            raise errors.WorkerError(_never_ready(worker, ended))
        self._replace(worker)
        if worker.job is None:
            return None
        if ended.lost:
            return Lost(worker.job, f"its worker was lost ({ended.how}): {ended.log_tail}")
        return Failed(worker.job, f"its worker died ({ended.how}): {ended.log_tail}")


def _never_ready(worker: Worker, ended: WorkerExit) -> str:
    if ended.lost and not worker.hung:
        return (
            f"workers are lost before they are ready ({ended.how}); "
            f"give fewer of them if memory is short: executor.workers=1. End of the log: {ended.log_tail}"
        )
    how = worker.hung or ended.how
    return (
        f"workers die before they are ready ({how}), so this installation of TensorFlow does not work; "
        f"run `mnistexp doctor`. End of the log: {ended.log_tail}"
    )


def worker_count(workers: int | Literal["auto"], threads: int, gpus: int) -> int:
    """Return the number of workers that the user set, or else what the cores can run: at most GPU_SHARE per GPU."""
    if workers != "auto":
        return workers
    by_cores = max(1, cores() // threads)
    return gpus * max(1, min(GPU_SHARE, by_cores // gpus)) if gpus else by_cores
