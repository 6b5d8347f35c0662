"""The worker pool: start, watch and replace workers, give them trainings, and return what happens as events.

Each worker is a process of its own, started by name (a fork hangs after TensorFlow ran) and watched one by one (a
process pool fails all its tasks when one process is killed). All state is in the parent: a killed worker costs at most
the training that it had. The subclasses start workers: LocalPool in process.py and RayPool in ray.py.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from mnistexp import errors
from mnistexp.config.schema import RunConfig
from mnistexp.machine import cores
from mnistexp.training.messages import Answer, Broken, EpochEnd, Job, JobFailed, JobResult, Message, Ready, Setup
from mnistexp.training.results import EpochScores, RunResult

MAX_STARTS = 3
"""A slot whose workers die so many times in a row before one is ready: the installation is broken."""

MIN_JOBS = 8
"""A worker is not replaced for its size before so many trainings: a network may simply be large."""

START_SECONDS = 300.0
"""A worker that is not ready after this time hangs. 4-6 s are usual, a minute on a network file system."""

POLL_SECONDS = 1.0
"""The longest wait for a message: deadlines are checked after it, and on some platforms it blocks Ctrl-C."""

GAP_SECONDS = 5.0
"""A longer time between two looks is not counted: this process was stopped, or its caller was busy."""

LEAVE_SECONDS = 10.0
"""How long `close` waits for a killed worker."""

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


class Connection(Protocol):
    """A connection to one worker."""

    def messages(self) -> Iterator[Received]:
        """Yield what the worker sends, until it is gone. A thread of the pool's own waits here."""

    def send(self, message: Message) -> None:
        """Send a message. A worker that has just died is reported by its WorkerExit, not here."""

    def kill(self) -> None:
        """Kill the worker. May be called twice."""


@dataclass(eq=False)
class Worker:
    """The state of one worker."""

    slot: int  # decides which device it gets
    connection: Connection
    starts: int = 1  # workers started in this slot since one was ready
    listener: threading.Thread = field(init=False)
    info: Ready | None = None  # None: not ready yet
    job: int | None = None
    epoch_timeout: float = math.inf  # of its job, in seconds
    jobs_done: int = 0
    deadline: float = math.inf  # of its next message, on the pool's clock
    hung: bool = False  # it was killed because it did not get ready

    @property
    def idle(self) -> bool:
        """Whether it can take a training."""
        return self.info is not None and self.job is None


# ----------------------------------------------------------------------------------------------- pool


class WorkerPool(ABC):
    """Runs trainings on workers and returns their events. The caller numbers the trainings.

    Args:
        setup: what every worker loads. Its data set is resolved: never `auto`.
        at_most: the largest number of workers that have work. 0 starts none.
        fingerprint: of the data set; a worker that loads another one is an error. Empty: not checked.
        max_memory: bytes; a worker that holds more after a training is replaced.
        environment: variables of the workers that replace the user's (recorded flags of a rerun).
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        setup: Setup,
        *,
        at_most: int,
        fingerprint: str = "",
        max_memory: float = math.inf,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._setup, self._environment = setup, dict(environment or {})
        self._at_most, self._fingerprint, self._max_memory = at_most, fingerprint, max_memory
        self._messages: queue.Queue[tuple[Worker, Received]] = queue.Queue()
        self._workers: list[Worker] = []
        self._clock, self._last_look = clock, clock()
        self._counted = 0.0  # seconds that count for deadlines

    @abstractmethod
    def _count(self) -> int:
        """Return how many workers the devices can run, or the number that the user set."""

    @abstractmethod
    def _open(self, slot: int) -> Connection:
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
        worker.job, worker.epoch_timeout = job, config.trainer.timeout or math.inf
        worker.deadline = self._counted + worker.epoch_timeout
        path = str(weights_path) if weights_path else None
        worker.connection.send(Job(config=config, weights_path=path, test=test))

    def answer(self, job: int, *, go: bool) -> None:
        """Let a training that ended an epoch train another one, or stop it."""
        worker = next((worker for worker in self._workers if worker.job == job), None)
        if worker is not None:  # else it died in the meantime, which is an event
            worker.deadline = self._counted + worker.epoch_timeout
            worker.connection.send(Answer(go=go))

    def next_event(self, timeout: float) -> Event | None:
        """Wait for the next event, at most `timeout` and at most POLL_SECONDS.

        Returns: None if there is none yet, for example because a worker started, became ready or was replaced.

        A training that ends no epoch within its `trainer.timeout` fails. Only time during calls of this counts.

        Raises: MnistexpError if workers cannot start or their data are damaged.
        """
        try:
            worker, message = self._messages.get(timeout=min(timeout, POLL_SECONDS))
        except queue.Empty:  # every message was read, so the deadlines are right
            self._advance()
            return self._kill_overdue()
        self._advance()
        return self._handle(worker, message)

    def close(self) -> None:
        """Stop all workers and wait until they are gone. May be called twice."""
        for worker in self._workers:  # killed, because TensorFlow takes a second to end by itself
            worker.connection.kill()
        for worker in self._workers:
            worker.listener.join(LEAVE_SECONDS)

    def _fill(self) -> None:
        """Start the missing workers."""
        count = min(self._at_most, max(1, self._count()))
        self._workers += [self._start(slot) for slot in range(len(self._workers), count)]

    def _start(self, slot: int, starts: int = 1) -> Worker:
        worker = Worker(slot, self._open(slot), starts)
        worker.listener = threading.Thread(target=self._listen, args=(worker,), daemon=True)
        worker.listener.start()
        return worker

    def _listen(self, worker: Worker) -> None:
        """Queue a worker's messages. Any failure becomes a WorkerExit, or the caller would wait without end."""
        try:
            for message in worker.connection.messages():
                self._messages.put((worker, message))
        except Exception as error:  # noqa: BLE001 - see above
            worker.connection.kill()
            how = f"its messages cannot be read: {type(error).__name__}"
            self._messages.put((worker, WorkerExit(how, True, " ".join(str(error).split())[:500])))

    def _replace(self, worker: Worker) -> None:
        worker.connection.kill()
        starts = 1 if worker.info else worker.starts + 1
        self._workers[self._workers.index(worker)] = self._start(worker.slot, starts)

    def _advance(self) -> None:
        """Count the time since the last look, unless it is a gap."""
        now = self._clock()
        if now - self._last_look <= GAP_SECONDS:
            self._counted += now - self._last_look
        self._last_look = now

    def _kill_overdue(self) -> Event | None:
        """Kill a worker whose next message is overdue."""
        worker = next((worker for worker in self._workers if worker.deadline < self._counted), None)
        if worker is None:
            return None
        if worker.job is None:  # it was starting; its WorkerExit will bring the end of its log
            worker.deadline, worker.hung = math.inf, True
            worker.connection.kill()
            return None
        self._replace(worker)
        return Failed(
            worker.job,
            f"no epoch ended within trainer.timeout={worker.epoch_timeout:g} s, so its worker was killed; "
            "give trainer.timeout more seconds if an epoch takes that long here, or null for no limit",
        )

    def _handle(self, worker: Worker, message: Received) -> Event | None:
        if worker not in self._workers:  # it was replaced
            return None
        worker.deadline = self._counted + START_SECONDS if isinstance(message, Starting) else math.inf
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
        job, worker.job, worker.jobs_done = worker.job, None, worker.jobs_done + 1
        if message.memory > self._max_memory and worker.jobs_done >= MIN_JOBS:
            self._replace(worker)
        return Finished(job, message.result) if isinstance(message, JobResult) else Failed(job, message.reason)

    def _exited(self, worker: Worker, ended: WorkerExit) -> Event | None:
        """Replace a dead worker. Raises: WorkerError if too many died before one was ready."""
        if worker.info is None and worker.starts >= MAX_STARTS:
            how = f"not ready within {START_SECONDS:g} s" if worker.hung else ended.how
            raise errors.WorkerError(
                f"workers end before they are ready ({how}); run `mnistexp doctor`, or give executor.workers=1 if "
                f"memory is short. End of the log: {ended.log_tail}"
            )
        self._replace(worker)
        if worker.job is None:
            return None
        if ended.lost:
            return Lost(worker.job, f"its worker was lost ({ended.how}): {ended.log_tail}")
        return Failed(worker.job, f"its worker died ({ended.how}): {ended.log_tail}")


def worker_count(workers: int | Literal["auto"], threads: int, gpus: int) -> int:
    """Return the number of workers that the user set, or else what the cores can run: at most GPU_SHARE per GPU."""
    if workers != "auto":
        return workers
    by_cores = max(1, cores() // threads)
    return gpus * max(1, min(GPU_SHARE, by_cores // gpus)) if gpus else by_cores
