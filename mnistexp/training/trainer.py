"""Trains a config's network: one compiled call per epoch, an iterator of its scores, no callbacks.

An epoch's minibatch steps are one XLA program. Programs are kept for the life of a
Trainer and shared by every run of the same shape: a second run of a shape compiles nothing.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mnistexp.config.schema import RunConfig
from mnistexp.data.dataset import Dataset
from mnistexp.errors import TrainingError
from mnistexp.training import model as models
from mnistexp.training.compiled_epoch import CompiledEpoch, DeviceSplit, EpochOutput, compilation_key
from mnistexp.training.results import EpochScores, FitResult, Stopped

Weights = list[npt.NDArray[np.float32]]

PROGRAMS_KEPT = 16
"""Compiled shapes held at once; one costs 0.7-1.3 s to compile. This bounds networks and optimizers only:
XLA keeps some 8 MB of machine code per shape for the life of the process, see worker.py."""


def weights_hash(weights: Weights) -> str:
    """SHA-256 of the weights' bytes, layer by layer."""
    digest = hashlib.sha256()
    for array in weights:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def all_weights(model: keras.Model) -> Weights:
    """Everything that a network's answers depend on, in Keras's order: a normalisation's moving statistics too."""
    return [np.asarray(variable.numpy()) for variable in model.weights]


class Trainer:
    """Trains configs on one data set, which is put on the device once.

    Args:
        dataset: its test split is not looked at before `evaluate`.
        clock: seconds, monotonic.
    """

    def __init__(self, dataset: Dataset, clock: Callable[[], float] = time.perf_counter) -> None:
        # Not the data set itself: the arrays that are on the device now can be freed (47 MB for MNIST).
        self._test, self._scale, self._classes = dataset.test, dataset.scale, dataset.classes
        self._clock = clock
        self._train = DeviceSplit(dataset.train, dataset.scale, dataset.image_shape)
        self._validation = DeviceSplit(dataset.validation, dataset.scale)
        self._programs: OrderedDict[object, CompiledEpoch] = OrderedDict()
        self.compilations = 0  # programs built so far

    def fit(self, config: RunConfig) -> Fit:
        """Start a training. It advances by one epoch with each `next`; stop by not asking for more.

        Raises:
            ConfigError: a minibatch is larger than the training split, or augmentation is asked for without images.
        """
        return Fit(config, self._program(config), self._clock)

    def evaluate(self, fit: Fit) -> tuple[float, float]:
        """Mean cross-entropy in nats and accuracy of the kept weights on the test split. Once per run.

        Not compiled: one pass over 10,000 images costs less than compiling it for each shape.
        """
        loss, predicted = fit.score(DeviceSplit(self._test, self._scale))
        return float(loss), float(np.mean(predicted.numpy() == self._test.labels))

    def _program(self, config: RunConfig) -> CompiledEpoch:
        key = compilation_key(config)
        if key not in self._programs:
            self._programs[key] = CompiledEpoch(config, self._classes, self._train, self._validation)
            self.compilations += 1
            if len(self._programs) > PROGRAMS_KEPT:
                self._programs.popitem(last=False)
        self._programs.move_to_end(key)
        return self._programs[key]


class Fit(Iterator[EpochScores]):
    """One training: an iterator of epoch scores that keeps the weights of the epoch to keep.

    Stop by not asking for the next. Starting another run of the same shape ends this one's iteration, but
    not its results.
    """

    def __init__(self, config: RunConfig, program: CompiledEpoch, clock: Callable[[], float]) -> None:
        self._config = config
        self._program = program
        self._clock = clock
        self._started = clock()
        self._finished = self._started
        self._epochs: list[EpochScores] = []
        self._best: _Kept | None = None
        self._kept: _Kept | None = None
        program.start(config, self)

    def __next__(self) -> EpochScores:
        """Train one epoch.

        Raises:
            StopIteration: epochs, max_steps or patience is used up.
            TrainingError: a loss or a weight isn't finite any more; the message says where and why.
        """
        if self.ended:
            raise StopIteration
        began = self._clock()
        outcome = self._program.run_epoch(self, self._next_rates(), len(self._epochs))
        self._finished = self._clock()
        scores = self._scores(outcome, self._finished - began)
        check_numbers(scores, outcome.weights_finite)
        self._epochs.append(scores)
        self._keep(scores, outcome)
        return scores

    @property
    def ended(self) -> bool:
        """No epoch follows: epochs, max_steps or patience is used up."""
        return self._stopped() is not None

    def result(self, pruned: bool = False) -> FitResult:
        """The training so far; `pruned`: it was stopped from outside before its end."""
        return FitResult(
            epochs=tuple(self._epochs),
            best_epoch=self._chosen().epoch,
            stopped="pruned" if pruned else self._stopped() or "pruned",
            parameters=self._program.parameters,
            seconds=self._finished - self._started,
            validation_correct=np.packbits(self._chosen().hits).tobytes(),
            wrong_predictions=self._chosen().mistakes.astype("<u2").tobytes(),
        )

    def weights(self) -> Weights:
        """The kept epoch's weights, in the order of `all_weights`."""
        return [tensor.numpy() for tensor in self._chosen().weights]

    def model(self) -> keras.Model:
        """The network with the kept epoch's weights; ends the iteration, since training would go on from them."""
        self._program.load(self._chosen().weights)
        return self._program.model

    def score(self, split: DeviceSplit) -> tuple[tf.Tensor, tf.Tensor]:
        """Loss and predicted classes of the kept weights on a split, see `Program.score`; ends the iteration."""
        self._program.load(self._chosen().weights)
        return self._program.score(split)

    def _chosen(self) -> _Kept:
        if self._kept is None:
            raise RuntimeError("no epoch was trained yet: call next(fit) first")
        return self._kept

    def _steps(self) -> int:
        return self._epochs[-1].steps if self._epochs else 0

    def _total_steps(self) -> int:
        whole = self._config.trainer.epochs * self._program.epoch_steps
        return min(whole, self._config.trainer.max_steps or whole)

    def _next_rates(self) -> models.Floats:
        """Learning rates of the next epoch's steps; fewer than a whole epoch's where max_steps ends it."""
        first, total, epoch_steps = self._steps(), self._total_steps(), self._program.epoch_steps
        stop = min(first + epoch_steps, total)
        return models.learning_rates(self._config.optimizer, first, stop, total, epoch_steps)

    def _scores(self, outcome: EpochOutput, seconds: float) -> EpochScores:
        return EpochScores(
            epoch=len(self._epochs) + 1,
            steps=self._steps() + outcome.steps,
            learning_rate=outcome.learning_rate,
            loss=outcome.loss,
            accuracy=outcome.accuracy,
            val_loss=outcome.val_loss,
            val_accuracy=float(np.mean(outcome.hits)),
            seconds=seconds,
        )

    def _keep(self, scores: EpochScores, outcome: EpochOutput) -> None:
        better = self._best is None or _rank(scores) > self._best.rank
        if better or not self._config.trainer.restore_best_weights:
            mistakes = outcome.predicted[~outcome.hits]
            self._kept = _Kept(scores.epoch, _rank(scores), outcome.hits, mistakes, self._program.snapshot())
        if better:
            self._best = self._kept

    def _stopped(self) -> Stopped | None:
        """Why no epoch follows, or None if one does."""
        trainer, done = self._config.trainer, len(self._epochs)
        if done == trainer.epochs and self._steps() == done * self._program.epoch_steps:
            return "completed"
        if self._steps() == self._total_steps():
            return "max_steps"
        best = self._best.epoch if self._best else 0
        if trainer.patience is not None and done - best >= trainer.patience:
            return "early_stopping"
        return None


def check_numbers(scores: EpochScores, weights_finite: bool) -> None:
    """Raise TrainingError unless every loss and weight is finite and every accuracy lies in [0, 1].

    All three are looked at, because a network whose loss is NaN still scores a finite accuracy (0.0958).
    """
    advice = f"in epoch {scores.epoch}: lower optimizer.learning_rate"
    for name in ("loss", "val_loss"):
        if not math.isfinite(getattr(scores, name)):
            raise TrainingError(f"{name} became {getattr(scores, name)} {advice}")
    if not weights_finite:
        raise TrainingError(f"a weight became infinite or nan {advice}")
    for name in ("accuracy", "val_accuracy"):
        if not 0 <= getattr(scores, name) <= 1:
            raise TrainingError(f"{name} is {getattr(scores, name)}, outside [0, 1], in epoch {scores.epoch}")


def _rank(scores: EpochScores) -> tuple[float, float]:
    """Larger is better: validation accuracy first, then the lower loss. Equal ranks: the earlier epoch."""
    return scores.val_accuracy, -scores.val_loss


@dataclass(frozen=True)
class _Kept:
    """An epoch whose weights are kept, on the device."""

    epoch: int
    rank: tuple[float, float]
    hits: npt.NDArray[np.bool_]
    mistakes: npt.NDArray[np.int32]  # [images that were missed], what they were taken for
    weights: Sequence[tf.Tensor]
