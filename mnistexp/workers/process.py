"""One worker process: started with its environment, spoken to in lines, its end understood.

The local executor starts it on this machine, a Ray actor on its node;
either way it is `python -m mnistexp.training.worker`.
A process of its own on Ray too, not a thread in the actor: Ray tells a segfault from a kill by nothing at all, and
TensorFlow needs its environment before the interpreter's first import.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs

from mnistexp.machine import cpu_model
from mnistexp.workers.pool import Deliver, WorkerExit

CHATTER = re.compile(r"[IWE]\d{4} |WARNING: All log messages before absl")

OWN_FAULTS = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP", "SIGSYS")
"""Signals that code brings upon itself. Any other comes from outside, and the same training may end well next time."""


class WorkerProcess:
    """A child process that trains. On Linux it also dies with the *thread* that makes this object.

    Args:
        environment: all of its variables.
        hello: the first line that it is sent; see worker.Setup.
        inherited: open files that it may read, by their numbers.
    """

    def __init__(self, environment: Mapping[str, str], hello: Mapping[str, Any], inherited: Iterable[int] = ()) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed by wait
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mnistexp.training.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            encoding="utf-8",
            env=environment,
            pass_fds=tuple(inherited),
        )
        self.send(hello)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def listen(self, deliver: Deliver) -> None:
        """Deliver what it says until it is gone, then its Death. Blocks: pipes can't be polled portably."""
        assert self._process.stdout is not None
        deliver({"event": "starting"})
        with self._process.stdout as lines:
            for line in lines:
                if line.endswith("\n"):  # else it was killed in mid-sentence
                    deliver(json.loads(line))
        deliver(death(self._process.wait(), self._last_words()))

    def send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def close_stdin(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # a line that it was sent after its death can't be delivered any more
            self._process.stdin.close()

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> None:
        self._process.wait()
        self.close_stdin()
        self._log.close()

    def _last_words(self) -> str:
        """The end of its log, for a message; TensorFlow's own chatter, of which every worker has some, left out."""
        try:
            self._log.seek(0)
            text = self._log.read()
        except ValueError:  # closed: the executor was, and nobody reads a message
            text = ""
        lines = [line.strip() for line in text.splitlines() if line.strip() and not CHATTER.match(line)]
        return " | ".join(lines[-5:])[-1000:] or "it wrote nothing"


def death(code: int, log_tail: str) -> WorkerExit:
    """What an exit status means: a training's own fault, or something done to it."""
    if code >= 0:
        return WorkerExit(f"exit code {code}", False, log_tail)
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = str(-code)
    killer = ", which the system's out-of-memory killer sends as well" if name == "SIGKILL" else ""
    return WorkerExit(f"signal {name}{killer}", name not in OWN_FAULTS, log_tail)


def worker_environment(threads: int, gpus: list[str], index: int, more: Mapping[str, str]) -> dict[str, str]:
    """What a worker's libraries read before its first line of Python runs."""
    environment = dict(os.environ)
    environment |= {"TF_CPP_MIN_LOG_LEVEL": "2", "OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])
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
