"""A trainer without TensorFlow: its scores are a formula of the config, and faults may be planted in it.

sitecustomize.py puts it in the place of mnistexp.training.trainer in worker processes that have MNISTEXP_SCRIPTED=1.

    MNISTEXP_PLANT       FAULT[@epochN][#SEED], several with commas: "segfault@epoch2#12,hang". The epoch is the one
                         that is not reported any more, 1 if none is given; with a seed only that training is struck.
    MNISTEXP_PLANT_ONCE  a path: the first fault that strikes makes this file, and none strikes once it is there.

    exception              raises RuntimeError
    segfault, abort        SIGSEGV by a read of address 0; SIGABRT
    hang                   sleeps without end
    wait                   makes the file $MNISTEXP_PLANT_GATES/SEED.waiting, and sleeps until there is a file SEED
    oom                    allocates until there is a MemoryError, 256 MB above what is held
    kill-at-start          SIGKILL before the worker is ready
    stop-at-start          SIGSTOP before the worker reads anything
    garbage                sends a line that is no message instead of an epoch
    kill-half-sent-result  SIGKILL in the middle of the result's line
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import random
import re
import resource
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from sitecustomize import noise

from mnistexp.config.schema import RunConfig
from mnistexp.data.dataset import Dataset
from mnistexp.training.results import EpochScores, FitResult

PLANTED = re.compile(r"([a-z-]+)(?:@epoch(\d+))?(?:#(\d+))?")
IN_TRAINING = ("exception", "segfault", "abort", "hang", "wait", "oom")


class Plan:
    """Which fault strikes where."""

    def __init__(self, text: str) -> None:
        matches = [PLANTED.fullmatch(part) for part in text.split(",")]
        self.faults = [(match[1], int(match[2] or 1), match[3]) for match in matches if match]
        self.once = os.environ.get("MNISTEXP_PLANT_ONCE", "")

    def strikes(self, names: Sequence[str], epoch: int | None = None, seed: int | None = None) -> str:
        """The fault of these that strikes now, or ''."""
        for name, at, only in self.faults:
            if name in names and epoch in (None, at) and only in (None, str(seed)):
                return name if self._first() else ""
        return ""

    def _first(self) -> bool:
        if not self.once:
            return True
        try:
            Path(self.once).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def die() -> NoReturn:
    """End here and now."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def exhaust_memory() -> None:
    """Allocate what is left below a limit; the MemoryError is the training's."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (256 << 20), before[1]))
    try:
        blocks = []
        while True:
            blocks.append(bytearray(16 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def strike(fault: str, seed: int) -> None:
    """Do what a fault says; exception and oom raise, wait returns in the end, the others don't."""
    if fault == "exception":
        raise RuntimeError("planted")
    if fault == "segfault":
        ctypes.string_at(0)
    if fault == "abort":
        os.abort()
    if fault == "oom":
        exhaust_memory()
    while fault == "hang":
        time.sleep(60)
    if fault == "wait":
        gate = Path(os.environ["MNISTEXP_PLANT_GATES"]) / str(seed)
        gate.with_suffix(".waiting").touch()
        while not gate.exists():
            time.sleep(0.05)


PLAN = Plan(os.environ.get("MNISTEXP_PLANT", ""))


def plant_in_channel(seeds: Sequence[int]) -> None:
    """Plant the faults of what a worker sends. `seeds` ends with that of the present training."""
    channel: Any = sys.modules["__main__"].Channel  # type: ignore[attr-defined]
    send = channel.send

    def planted_send(self: Any, message: Any) -> None:
        if message.event == "result" and PLAN.strikes(("kill-half-sent-result",), None, seeds[-1]):
            line = message.model_dump_json()
            self._stream.write(line[: len(line) // 2])
            self._stream.flush()
            die()
        if message.event == "epoch" and PLAN.strikes(("garbage",), message.scores.epoch, seeds[-1]):
            self._stream.write("garbage\n")
            self._stream.flush()
        send(self, message)

    channel.send = planted_send


Weights = list[npt.NDArray[np.float32]]


def weights_hash(weights: Weights) -> str:
    """SHA-256 of the weights' bytes."""
    return hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest()


class Trainer:
    """Has the interface of the real Trainer as far as a worker uses it."""

    def __init__(self, dataset: Dataset) -> None:
        noise()
        self._validation_size = len(dataset.validation.labels)
        self._seeds: list[int] = []
        plant_in_channel(self._seeds)

    def fit(self, config: RunConfig) -> Fit:
        """Start a training."""
        self._seeds.append(config.seed)
        return Fit(config, self._validation_size)

    def evaluate(self, fit: Fit) -> tuple[float, float]:
        """Loss and accuracy on the test split."""
        return 1 - fit.quality, fit.quality


class Fit(Iterator[EpochScores]):
    """One training. Its scores depend on the seed and the optimizer, and each epoch is better than the one before."""

    def __init__(self, config: RunConfig, validation_size: int) -> None:
        self._config, self._validation_size = config, validation_size
        self._epochs: list[EpochScores] = []
        self.quality = random.Random(f"{config.seed} {config.optimizer!r}").uniform(0.3, 0.9)

    @property
    def ended(self) -> bool:
        """No epoch follows."""
        return len(self._epochs) == self._config.trainer.epochs

    def __next__(self) -> EpochScores:
        if self.ended:
            raise StopIteration
        epoch = len(self._epochs) + 1
        strike(PLAN.strikes(IN_TRAINING, epoch, self._config.seed), self._config.seed)
        accuracy = self.quality * (1 - 0.5**epoch)
        loss = 2.0 - accuracy
        scores = EpochScores(
            epoch=epoch,
            steps=10 * epoch,
            learning_rate=self._config.optimizer.learning_rate,
            loss=loss,
            accuracy=accuracy,
            val_loss=loss,
            val_accuracy=accuracy,
            seconds=0.01,
        )
        self._epochs.append(scores)
        return scores

    def result(self, pruned: bool = False) -> FitResult:
        """The training so far."""
        images = range(self._validation_size)
        correct = [image < self._epochs[-1].val_accuracy * self._validation_size for image in images]
        return FitResult(
            epochs=tuple(self._epochs),
            best_epoch=len(self._epochs),
            stopped="pruned" if pruned else "completed",
            parameters=1234,
            seconds=0.01 * len(self._epochs),
            validation_correct=np.packbits(correct).tobytes(),
            wrong_predictions=np.zeros(correct.count(False), "<u2").tobytes(),
        )

    def weights(self) -> Weights:
        """Two arrays that differ from config to config."""
        return [np.full((28, 10), self.quality, np.float32), np.zeros(10, np.float32)]

    def load(self) -> Program:
        """What has the network."""
        return Program(network=Network(self.weights()))


class Network:
    """Has save_weights, as a Keras model does; the file is none that Keras can read."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def save_weights(self, path: str) -> None:
        """Write the weights' bytes."""
        Path(path).write_bytes(b"".join(array.tobytes() for array in self._weights))


@dataclass(frozen=True)
class Program:
    """Has the network, as a CompiledEpoch does."""

    network: Network


if PLAN.strikes(("kill-at-start",)):
    die()
if PLAN.strikes(("stop-at-start",)):
    os.kill(os.getpid(), signal.SIGSTOP)
