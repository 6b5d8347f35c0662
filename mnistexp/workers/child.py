"""One question to a child process, one answer: JSON in, JSON out, for what needs TensorFlow once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from mnistexp.errors import WorkerError
from mnistexp.workers.process import CHATTER, worker_environment

SECONDS = 300.0  # importing TensorFlow takes 4 to 13 s, what follows less than one


def ask(module: str, question: Mapping[str, Any], timeout: float = SECONDS) -> dict[str, Any]:
    """Run `python -m MODULE` with the question on its stdin. Returns: the object that it wrote as its last line.

    On the CPU and in one thread, whatever else runs here. Raises: WorkerError with its last words.
    """
    environment = worker_environment(1, [], 0, {"CUDA_VISIBLE_DEVICES": "-1"})
    try:
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(question),
            env=environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WorkerError(f"{module}: gave no answer in {timeout:.0f} s; is the machine out of memory?") from None
    answer = done.stdout.strip().rpartition("\n")[2]
    if done.returncode or not answer.startswith("{"):
        raise WorkerError(f"{module}: ended with exit code {done.returncode}: {_last_words(done.stderr)}")
    return dict(json.loads(answer))


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not CHATTER.match(line)]
    return " | ".join(lines[-3:])[-800:] or "it wrote nothing"
