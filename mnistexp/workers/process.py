"""One worker process, the pool of such processes on this machine, and `ask`, a single request to a child process.

A Ray actor starts the same process on its node. It is a process of its own there too, because Ray does not tell a
segmentation fault from a kill, and TensorFlow's variables must be set before the interpreter's first import.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import platformdirs

from mnistexp.errors import StoreError, WorkerError
from mnistexp.machine import cpu_model, visible_gpus
from mnistexp.training.messages import Message, Ready, Setup, parse_worker_message
from mnistexp.workers.pool import Connection, Received, Starting, WorkerExit, WorkerPool, worker_count

TENSORFLOW_LOG = re.compile(r"[IWE]\d{4} |WARNING: All log messages before absl")

OWN_FAULTS = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS")
"""Signals that a process causes by itself. Any other comes from outside, so the same training may succeed next time."""

ASK_SECONDS = 300.0
"""How long `ask` waits: importing TensorFlow takes 4 to 13 s, and the rest less than one."""


class WorkerProcess:
    """A child process that trains. On Linux it also dies with the *thread* that makes this object.

    Args:
        environment: all of its variables.
        setup: the first message that it gets.
        inherited: numbers of open files that it may read.
    """

    def __init__(self, environment: Mapping[str, str], setup: Setup, inherited: Iterable[int] = ()) -> None:
        self._setup = setup
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - see messages
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "mnistexp.training.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                env=environment,
                pass_fds=(theirs.fileno(), *inherited),
            )

    def messages(self) -> Iterator[Received]:
        """Yield its messages until it has ended, then its WorkerExit.

        The setup is sent here, and not by the caller's thread, because it may be larger than the socket's buffer and
        the worker reads it only after its imports.
        """
        yield Starting()
        self.send(self._setup)
        with self._log, self._socket:
            try:
                with self._socket.makefile("r", encoding="utf-8") as lines, suppress(ConnectionError):
                    for line in lines:
                        if line.endswith("\n"):  # else it was killed while it wrote
                            yield parse_worker_message(line)
            except ValueError:  # no text, or no message
                self.kill()
                self._process.wait()
                raise
            code = self._process.wait()
            self._log.seek(0)
            yield worker_exit(code, log_tail(self._log.read(), 5))

    def send(self, message: Message) -> None:
        with suppress(OSError):
            self._socket.sendall(message.model_dump_json().encode() + b"\n")

    def kill(self) -> None:
        self._process.kill()


def log_tail(text: str, lines: int) -> str:
    """Return the last lines of a log in one line, without the messages that every TensorFlow process prints."""
    kept = [line.strip() for line in text.splitlines() if line.strip() and not TENSORFLOW_LOG.match(line)]
    return " | ".join(kept[-lines:])[-1000:] or "the log is empty"


def worker_exit(code: int, tail: str) -> WorkerExit:
    """Interpret an exit status: an own fault of the training, or something from outside."""
    if code >= 0:
        return WorkerExit(f"exit code {code}", False, tail)
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = str(-code)
    killer = ", which the system's out-of-memory killer sends as well" if name == "SIGKILL" else ""
    return WorkerExit(f"signal {name}{killer}", name not in OWN_FAULTS, tail)


# ------------------------------------------------------------------------------------ workers on this machine


class LocalPool(WorkerPool):
    """executor=local: worker processes on this machine, one per core, or a few per GPU.

    Args:
        setup, options: see WorkerPool.
        workers: how many, or auto.
    """

    def __init__(self, setup: Setup, workers: int | Literal["auto"], **options: Any) -> None:
        super().__init__(setup, **options)
        self._wanted = workers
        self._gpus = visible_gpus() if setup.device != "cpu" else []
        self._usable_gpus = len(self._gpus)
        self._fill()

    def _count(self) -> int:
        return worker_count(self._wanted, self._setup.threads, self._usable_gpus)

    def _open(self, slot: int) -> Connection:
        environment = worker_environment(self._setup.threads, self._gpus, slot, self._environment)
        return WorkerProcess(environment, self._setup)

    def _check(self, info: Ready) -> None:
        super()._check(info)
        if self._usable_gpus and info.device.startswith("CPU"):
            # There is a GPU, but this TensorFlow has no CUDA: run one worker per core. They keep the environment of a
            # GPU, because XLA_FLAGS is recorded and must be the same in all workers.
            self._usable_gpus = 0
            self._fill()


def worker_environment(threads: int, gpus: list[str], slot: int, replacing: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a worker's libraries read before its first line of Python runs."""
    environment = dict(os.environ)
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment["TF_XLA_FLAGS"] = " ".join(filter(None, [os.environ.get("TF_XLA_FLAGS"), _xla_cache_flag()]))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        flags = [os.environ.get("XLA_FLAGS"), "--xla_gpu_deterministic_ops=true"]
        environment["XLA_FLAGS"] = " ".join(filter(None, flags))
    return environment | dict(replacing)


def _xla_cache_flag() -> str:
    """Keep compiled epochs across processes: it takes a first epoch from 1.4 s to 0.8 s.

    The folder is per TensorFlow version and processor, because compiled code fits only its own.
    """
    key = hashlib.sha256(f"{version('tensorflow')} {cpu_model()}".encode()).hexdigest()[:16]
    folder = Path(platformdirs.user_cache_dir("mnistexp")) / "xla" / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a read-only home costs half a second per compilation, not the run
        return ""
    return f"--tf_xla_persistent_cache_directory={folder}" if " " not in str(folder) else ""


# --------------------------------------------------------------------------------------- a single request


def ask(module: str, request: Mapping[str, Any], timeout: float = ASK_SECONDS) -> dict[str, Any]:
    """Run `python -m MODULE` with the request as JSON on its stdin, on the CPU and in one thread.

    Returns: the last JSON object that it wrote to its stdout.

    Raises: StoreError if the object is {"error": sentence}; WorkerError with the end of its log if the process failed.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(request),
            env=worker_environment(1, [], 0, {"CUDA_VISIBLE_DEVICES": "-1"}),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WorkerError(f"{module}: gave no answer in {timeout:.0f} s; is the machine out of memory?") from None
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not answers:
        raise WorkerError(f"{module}: ended with exit code {done.returncode}: {log_tail(done.stderr, 3)}")
    answer = dict(json.loads(answers[-1]))
    if "error" in answer:
        raise StoreError(answer["error"])
    return answer
