"""The result of a training: pydantic models that a worker sends as JSON and that the databases store as JSON.

`model_dump(mode="json")` gives JSON types, `model_validate` reads them back. Every float survives exactly.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

Stopped = Literal["completed", "max_steps", "early_stopping", "pruned"]


def _from_base64(value: Any) -> Any:
    return base64.b64decode(value, validate=True) if isinstance(value, str) else value


def _to_base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


# pydantic's own val_json_bytes="base64" covers JSON texts alone; Optuna returns its user attributes as dicts.
PackedBytes = Annotated[bytes, BeforeValidator(_from_base64), PlainSerializer(_to_base64, when_used="json")]


class Record(BaseModel):
    """The base class: frozen, without unknown fields. A test loss may be infinite or NaN, which JSON writes as such."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class EpochScores(Record):
    """The scores of one epoch. Losses are mean cross-entropies in nats, accuracies are in [0, 1].

    As in Keras, `loss` and `accuracy` are running means over the epoch's minibatches, while the weights change;
    `val_loss` and `val_accuracy` are computed with the weights at the end of the epoch. `loss` is the minimised
    quantity, with label smoothing and the regularisers of a user's network. `val_loss` is the plain cross-entropy,
    unlike in Keras, so that runs with different label smoothing can be compared.
    """

    epoch: int  # from 1
    steps: int  # optimizer steps since the start of the run
    learning_rate: float  # of the epoch's last step
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float  # wall clock, with validation and, in a first epoch, compilation


class FitResult(Record):
    """One training, without the test split: the objective is computed from this, so it cannot use test scores."""

    epochs: tuple[EpochScores, ...]
    best_epoch: int  # from 1: the epoch of the kept weights; the last one with trainer.restore_best_weights=false
    stopped: Stopped
    parameters: int  # trainable scalars in the network
    seconds: float  # wall clock of the whole training
    validation_correct: (
        PackedBytes  # np.packbits of bool [validation size]: which images the kept weights classify right
    )
    wrong_predictions: PackedBytes  # uint16, little-endian: the predicted class of each misclassified image

    @property
    def best(self) -> EpochScores:
        """The scores of the epoch of the kept weights."""
        return self.epochs[self.best_epoch - 1]

    @property
    def images(self) -> int:
        """The number of validation images: the correct ones, and two bytes for each wrong prediction."""
        return int.from_bytes(self.validation_correct, "big").bit_count() + len(self.wrong_predictions) // 2


class RunResult(Record):
    """One finished run: the training, and the scores of the kept weights on the test split if they were evaluated."""

    fit: FitResult
    test_accuracy: float | None  # None: the test split was not evaluated
    test_loss: float | None
    weights_hash: str  # SHA-256 of the kept weights' bytes, layer by layer
    data_fingerprint: str
    device: str  # e.g. "CPU (no GPU visible to TensorFlow)"
    flags: dict[str, str]  # other settings that can change the bits: see worker.py


def objective_value(fit: FitResult) -> float:
    """Return the value that a study maximises: the validation accuracy of the kept weights."""
    return fit.best.val_accuracy
