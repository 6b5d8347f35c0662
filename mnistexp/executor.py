"""Where trainings run: supervised worker processes on this machine.

Each worker is a process of its own, started by name (a fork after TensorFlow ran hangs), watched one by
one (a pool loses or fails all its tasks when one process is killed), and told what to do in lines of JSON
on its stdin. All state is in the parent: killing a worker loses at most the one training it had.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal, Protocol

import platformdirs

from mnistexp import errors, results
from mnistexp.machine import cores, cpu_model, visible_gpus
from mnistexp.results import EpochScores, RunResult
from mnistexp.schema import DataConfig, RunConfig

MAX_STARTS = 3
"""Deaths in a row before any worker was ready: a broken installation, not bad luck."""

CHATTER = re.compile(r"[IWE]\d{4} |WARNING: All log messages before absl")

MIN_JOBS = 8
"""Trainings that a worker gets before it may be replaced for its size: a network may simply be large."""


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
    """A training failed, or its worker died; the reason is one line."""

    job: int
    reason: str


Event = EpochEnded | Finished | Failed


class Executor(Protocol):
    """Runs trainings and streams their events. Jobs are numbered by the caller."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the first ready worker said of itself: device, flags, versions; {} before one is ready."""

    def idle(self) -> int:
        """How many trainings can be submitted now."""

    def submit(self, job: int, config: RunConfig, weights_path: Path | None = None) -> None:
        """Start one training on an idle worker; its kept weights go to `weights_path` if that is given."""

    def next_event(self, timeout: float) -> Event | None:
        """The next event, or None when `timeout` seconds went by or a worker became ready.

        Raises: MnistexpError if the workers can't start, or what they load is damaged.
        """

    def answer(self, job: int, *, go: bool) -> None:
        """Let a training that ended an epoch go on, or make that epoch its last."""

    def close(self) -> None:
        """Stop all workers and wait until they are gone."""


@dataclass
class _Worker:
    """One child process and what is known of it."""

    process: subprocess.Popen[str]
    log: IO[str]  # what it and its libraries wrote to stderr
    device_index: int
    ready: bool = False
    job: int | None = None
    jobs_done: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def send(self, message: Mapping[str, Any]) -> None:
        """Write one line; a worker that just died is noticed by its reader, not here."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass

    def hang_up(self) -> None:
        """Close its input, at whose end an idle worker leaves."""
        assert self.process.stdin is not None
        with suppress(OSError):  # a line that it was sent after its death can't be delivered any more
            self.process.stdin.close()

    def last_words(self) -> str:
        """The end of its log, for a message; TensorFlow's own chatter, of which every worker has some, left out."""
        self.log.seek(0)
        lines = [line.strip() for line in self.log.read().splitlines() if line.strip() and not CHATTER.match(line)]
        return " | ".join(lines[-5:])[-1000:] or "it wrote nothing"


class LocalExecutor:
    """Worker processes on this machine; see Executor for the contract.

    Args:
        data: what every worker loads, once. Resolved: never `auto`.
        threads: CPU threads of each worker.
        device: auto, cpu or gpu.
        workers: how many, or auto.
        at_most: more workers than this would never be used.
        fingerprint: the data set's; a worker that finds another one is an error. Empty: any will do.
        max_memory: bytes; a worker that holds more after a training is replaced by a new one.
        environment: variables that win over the user's (a rerun's recorded flags).
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        threads: int,
        device: Literal["auto", "cpu", "gpu"],
        workers: int | Literal["auto"],
        at_most: int,
        fingerprint: str = "",
        max_memory: float = math.inf,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._threads = threads
        self._hello = {"data": data.model_dump(mode="json"), "threads": threads, "device": device}
        self._gpus = visible_gpus() if device != "cpu" else []
        self._environment = environment or {}
        self._messages: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
        self._fingerprint, self._max_memory = fingerprint, max_memory
        self._early_deaths = 0
        self._closing = False
        self._leaving: list[_Worker] = []
        self._workers: list[_Worker] = []
        self._asked, self._at_most = workers, at_most
        self._fill()

    @property
    def facts(self) -> Mapping[str, Any]:
        return next((worker.facts for worker in self._workers if worker.ready), {})

    @property
    def size(self) -> int:
        """How many workers there are, ready or not."""
        return len(self._workers)

    def idle(self) -> int:
        return sum(worker.ready and worker.job is None for worker in self._workers)

    def submit(self, job: int, config: RunConfig, weights_path: Path | None = None) -> None:
        worker = next(worker for worker in self._workers if worker.ready and worker.job is None)
        worker.job = job
        worker.send(
            {"config": config.model_dump(mode="json"), "weights_path": str(weights_path) if weights_path else None}
        )

    def answer(self, job: int, *, go: bool) -> None:
        worker = next((worker for worker in self._workers if worker.job == job), None)
        if worker is not None:  # else it died since: that is an event of its own
            worker.send({"go": go})

    def next_event(self, timeout: float) -> Event | None:
        try:
            worker, message = self._messages.get(timeout=timeout)
        except queue.Empty:
            return None
        return self._died(worker) if message is None else self._received(worker, message)

    def close(self) -> None:
        self._closing = True
        everybody = [*self._workers, *self._leaving]
        for worker in everybody:  # killed: they hold nothing, and TensorFlow takes a second to leave by itself
            worker.process.kill()
        for worker in everybody:
            worker.process.wait()
            worker.hang_up()
            worker.log.close()

    def _fill(self) -> None:
        """Start what is missing of the number that was asked for."""
        count = min(self._at_most, worker_count(self._asked, self._threads, len(self._gpus)))
        self._workers += [self._start(index) for index in range(len(self._workers), max(1, count))]

    def _start(self, index: int) -> _Worker:
        log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - lives with the worker
        process = subprocess.Popen(
            [sys.executable, "-m", "mnistexp.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            encoding="utf-8",
            env=worker_environment(self._threads, self._gpus, index, self._environment),
        )
        worker = _Worker(process, log, index)
        threading.Thread(target=self._read, args=(worker,), daemon=True).start()
        worker.send(self._hello)
        return worker

    def _replace(self, worker: _Worker) -> None:
        """Put a new worker into another's place."""
        self._workers[self._workers.index(worker)] = self._start(worker.device_index)

    def _read(self, worker: _Worker) -> None:
        """Forward a worker's lines until it is gone (a thread per worker: pipes can't be polled portably)."""
        assert worker.process.stdout is not None
        with worker.process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # else it was killed in mid-sentence
                    self._messages.put((worker, json.loads(line)))
        self._messages.put((worker, None))

    def _received(self, worker: _Worker, message: dict[str, Any]) -> Event | None:
        kind = message.pop("event")
        if kind == "ready":
            worker.ready, worker.facts, self._early_deaths = True, message, 0
            self._look_at(message)
            return None
        if kind == "broken":
            raise getattr(errors, message["error"], errors.WorkerError)(message["message"])
        job = worker.job
        assert job is not None, f"a worker without a job sent {kind}"
        if kind == "epoch":
            return EpochEnded(job, EpochScores(**message["scores"]))
        worker.job, worker.jobs_done = None, worker.jobs_done + 1
        if message["memory"] > self._max_memory and worker.jobs_done >= MIN_JOBS:
            worker.hang_up()
            self._leaving.append(worker)
            self._replace(worker)
        if kind == "result":
            return Finished(job, results.from_json(message["result"]))
        return Failed(job, message["reason"])

    def _look_at(self, facts: Mapping[str, Any]) -> None:
        """Compare what a worker found with what was expected: data that changed, a GPU that TensorFlow can't use."""
        if self._fingerprint and facts["fingerprint"] != self._fingerprint:
            raise errors.DataError(
                f"the data changed while this command ran (their fingerprint was {self._fingerprint} and is "
                f"{facts['fingerprint']}); run it again, with another study.name if it is a sweep"
            )
        if self._gpus and str(facts["device"]).startswith("CPU"):
            self._gpus = []  # there is a card, but this TensorFlow has no CUDA: a worker per core then
            self._fill()

    def _died(self, worker: _Worker) -> Event | None:
        """Replace a dead worker, unless none ever starts."""
        code = worker.process.wait()
        if self._closing:
            return None
        if worker not in self._workers:  # it was replaced for its size
            self._leaving.remove(worker)
            worker.log.close()
            return None
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        if not worker.ready:
            self._early_deaths += 1
        if self._early_deaths >= MAX_STARTS:
            raise errors.WorkerError(
                f"workers die before they are ready ({how}), so this installation of TensorFlow doesn't work; "
                f"`mnistexp doctor` says more. Last words: {worker.last_words()}"
            )
        last_words = worker.last_words()
        worker.hang_up()
        worker.log.close()
        self._replace(worker)
        return None if worker.job is None else Failed(worker.job, f"its worker died ({how}): {last_words}")


# ------------------------------------------------------------------------------- devices and environment


def require_device(device: Literal["auto", "cpu", "gpu"]) -> None:
    """Raises: WorkerError if a GPU is asked for and the driver has none: said before anything starts."""
    if device == "gpu" and not visible_gpus():
        raise errors.WorkerError(
            "trainer.device=gpu: no NVIDIA GPU is visible here; "
            "give trainer.device=cpu or auto, or see `mnistexp doctor`"
        )


def worker_count(workers: int | Literal["auto"], threads: int, gpus: int) -> int:
    """How many workers to start: as asked; else one per GPU; else as many as the CPU's cores carry."""
    if workers != "auto":
        return workers
    return gpus or max(1, cores() // threads)


def worker_environment(threads: int, gpus: list[str], index: int, more: Mapping[str, str]) -> dict[str, str]:
    """What a worker's libraries read before its first line of Python runs."""
    environment = dict(os.environ)
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])
    )
    environment["TF_XLA_FLAGS"] = " ".join(filter(None, [os.environ.get("TF_XLA_FLAGS"), _xla_cache_flag()]))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[index % len(gpus)]
        environment["XLA_FLAGS"] = " ".join(
            filter(None, [os.environ.get("XLA_FLAGS"), "--xla_gpu_deterministic_ops=true"])
        )
    return environment | dict(more)


def _xla_cache_flag() -> str:
    """Keep compiled epochs across processes: it takes a first epoch from 1.4 s to 0.8 s.

    The folder is per TensorFlow version and processor, since compiled code fits only its own.
    """
    key = hashlib.sha256(f"{version('tensorflow')} {cpu_model()}".encode()).hexdigest()[:16]
    folder = Path(platformdirs.user_cache_dir("mnistexp")) / "xla" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that can't be written to costs half a second a shape, not the run
        return ""
    return f"--tf_xla_persistent_cache_directory={folder}" if " " not in str(folder) else ""
