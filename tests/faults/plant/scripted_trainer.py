"""A trainer without TensorFlow: its scores are a formula of the config.

sitecustomize.py puts it in the place of mnistexp.training.trainer in worker processes that have MNISTEXP_SCRIPTED=1.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mnistexp.config.schema import RunConfig
from mnistexp.data.dataset import Dataset
from mnistexp.training.results import EpochScores, FitResult

Weights = list[npt.NDArray[np.float32]]


def weights_hash(weights: Weights) -> str:
    """SHA-256 of the weights' bytes."""
    return hashlib.sha256(b"".join(array.tobytes() for array in weights)).hexdigest()


class Trainer:
    """Has the interface of the real Trainer as far as a worker uses it."""

    def __init__(self, dataset: Dataset) -> None:
        self._validation_size = len(dataset.validation.labels)

    def fit(self, config: RunConfig) -> Fit:
        """Start a training."""
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

    def model(self) -> Model:
        """What saves the weights."""
        return Model(self.weights())


class Model:
    """Has save_weights, as a Keras model does; the file is none that Keras can read."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights

    def save_weights(self, path: str) -> None:
        """Write the weights' bytes."""
        Path(path).write_bytes(b"".join(array.tobytes() for array in self._weights))
