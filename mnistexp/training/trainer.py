"""The training loop: a training is an iterator of epoch scores, and each epoch is one compiled call.

Compiled programs are kept for the life of a Trainer and shared by all runs with the same compilation key.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mnistexp.config.schema import RunConfig
from mnistexp.data.dataset import Dataset
from mnistexp.errors import TrainingError
from mnistexp.training import optimizer
from mnistexp.training.compiled_epoch import CompiledEpoch, DeviceSplit, EpochOutput, compilation_key
from mnistexp.training.results import EpochScores, FitResult, Stopped

Weights = list[npt.NDArray[np.float32]]

PROGRAMS_KEPT = 16
"""Compiled programs held at once; each takes 0.7-1.3 s to compile. This limits networks and optimizers only: XLA keeps
some 8 MB of machine code per program for the life of the process, see worker.py."""


def weights_hash(weights: Weights) -> str:
    """Return the SHA-256 of the weights' bytes, layer by layer."""
    digest = hashlib.sha256()
    for array in weights:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def all_weights(model: keras.Model) -> Weights:
    """Return all weights in Keras's order, with the moving statistics of normalisations."""
    return [np.asarray(variable.numpy()) for variable in model.weights]


class Trainer:
    """Trains configs on one data set, which is copied to the device once. Only `evaluate` uses its test split."""

    def __init__(self, dataset: Dataset) -> None:
        # The data set itself is not kept: its training arrays, now on the device, can be freed (47 MB for MNIST).
        self._test, self._scale, self._classes = dataset.test, dataset.scale, dataset.classes
        self._train = DeviceSplit(dataset.train, dataset.scale, dataset.image_shape)
        self._validation = DeviceSplit(dataset.validation, dataset.scale)
        self._programs: OrderedDict[object, CompiledEpoch] = OrderedDict()

    def fit(self, config: RunConfig) -> Fit:
        """Start a training, which advances by one epoch with each `next`.

        Raises: ConfigError if a minibatch is larger than the training split, or the examples to augment are no images.
        """
        key = compilation_key(config)
        if key not in self._programs:
            self._programs[key] = CompiledEpoch(config, self._classes, self._train, self._validation)
            if len(self._programs) > PROGRAMS_KEPT:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return Fit(config, self._programs[key])

    def evaluate(self, fit: Fit) -> tuple[float, float]:
        """Return mean cross-entropy in nats and accuracy of the kept weights on the test split. Call it once per run.

        It is not compiled: one pass over 10,000 images takes less time than a compilation for each shape.
        """
        loss, predicted = fit.load().score(DeviceSplit(self._test, self._scale))
        return float(loss), float(np.mean(predicted.numpy() == self._test.labels))


class Fit(Iterator[EpochScores]):
    """One training: an iterator of epoch scores that keeps the weights of the best epoch.

    To prune it, do not call `next` again. The start of another run of the same program ends the iteration, but the
    results so far remain.
    """

    def __init__(self, config: RunConfig, program: CompiledEpoch) -> None:
        self._config = config
        self._program = program
        all_steps = config.trainer.epochs * program.epoch_steps
        self._total_steps = min(all_steps, config.trainer.max_steps or all_steps)
        self._started = self._finished = time.perf_counter()
        self._epochs: list[EpochScores] = []
        self._kept: KeptEpoch | None = None
        program.start(config, self)

    def __next__(self) -> EpochScores:
        """Train one epoch.

        Raises:
            StopIteration: epochs, max_steps or patience is reached.
            TrainingError: a loss or a weight is not finite.
        """
        if self.ended:
            raise StopIteration
        began, rates = time.perf_counter(), self._next_rates()
        output = self._program.run_epoch(self, rates, len(self._epochs))
        self._finished = time.perf_counter()
        scores = EpochScores(
            epoch=len(self._epochs) + 1,
            steps=self._steps() + len(rates),
            learning_rate=float(rates[-1]),
            loss=output.loss,
            accuracy=output.accuracy,
            val_loss=output.val_loss,
            val_accuracy=float(np.mean(output.correct)),
            seconds=self._finished - began,
        )
        check_numbers(scores, output.weights_finite)
        self._epochs.append(scores)
        if self._best() is scores or not self._config.trainer.restore_best_weights:
            self._kept = KeptEpoch(scores.epoch, output, self._program.snapshot())
        return scores

    @property
    def ended(self) -> bool:
        """Whether epochs, max_steps or patience is reached."""
        return self._stopped() is not None

    def result(self, pruned: bool = False) -> FitResult:
        """Return the result so far. `pruned`: the training was stopped from outside before its end."""
        kept = self._kept_epoch()
        wrong = kept.output.predicted[~kept.output.correct]
        return FitResult(
            epochs=tuple(self._epochs),
            best_epoch=kept.epoch,
            stopped="pruned" if pruned else self._stopped() or "pruned",
            parameters=self._program.parameters,
            seconds=self._finished - self._started,
            validation_correct=np.packbits(kept.output.correct).tobytes(),
            wrong_predictions=wrong.astype("<u2").tobytes(),
        )

    def weights(self) -> Weights:
        """Return the kept weights, in the order of `all_weights`."""
        return [tensor.numpy() for tensor in self._kept_epoch().weights]

    def load(self) -> CompiledEpoch:
        """Load the kept weights into the program's network. This ends the iteration: it would continue from them."""
        self._program.load(self._kept_epoch().weights)
        return self._program

    def _kept_epoch(self) -> KeptEpoch:
        if self._kept is None:
            raise RuntimeError("no epoch was trained yet: call next(fit) first")
        return self._kept

    def _best(self) -> EpochScores:
        """Return the earliest of the best epochs."""
        return max(self._epochs, key=score_key)

    def _steps(self) -> int:
        return self._epochs[-1].steps if self._epochs else 0

    def _next_rates(self) -> optimizer.Floats:
        """Return the learning rates of the next epoch's steps; max_steps may end it early."""
        first, total, epoch_steps = self._steps(), self._total_steps, self._program.epoch_steps
        return optimizer.learning_rates(
            self._config.optimizer, first, min(first + epoch_steps, total), total, epoch_steps
        )

    def _stopped(self) -> Stopped | None:
        """Return why the training has ended, or None if it has not."""
        trainer, done = self._config.trainer, len(self._epochs)
        if done == trainer.epochs and self._steps() == done * self._program.epoch_steps:
            return "completed"
        if self._steps() == self._total_steps:
            return "max_steps"
        if trainer.patience is not None and done and done - self._best().epoch >= trainer.patience:
            return "early_stopping"
        return None


def check_numbers(scores: EpochScores, weights_finite: bool) -> None:
    """Raise TrainingError unless every loss and weight is finite and every accuracy is in [0, 1].

    The accuracy alone is not enough: a network with a NaN loss still has a finite one (0.0958).
    """
    possible = {
        "loss": math.isfinite(scores.loss),
        "val_loss": math.isfinite(scores.val_loss),
        "accuracy": 0 <= scores.accuracy <= 1,
        "val_accuracy": 0 <= scores.val_accuracy <= 1,
    }
    wrong = [f"{name} became {getattr(scores, name)}" for name, good in possible.items() if not good]
    if not weights_finite:
        wrong.append("a weight became infinite or nan")
    if wrong:
        raise TrainingError(f"{wrong[0]} in epoch {scores.epoch}: lower optimizer.learning_rate")


def score_key(scores: EpochScores) -> tuple[float, float]:
    """Return the sort key of an epoch, larger is better: validation accuracy, then the lower validation loss."""
    return scores.val_accuracy, -scores.val_loss


@dataclass(frozen=True)
class KeptEpoch:
    """The epoch of the kept weights: the best one, or the last one with restore_best_weights=false."""

    epoch: int  # from 1
    output: EpochOutput
    weights: Sequence[tf.Tensor]  # on the device
