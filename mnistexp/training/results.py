"""What a training gives back: frozen values that parent and worker share; standard library only."""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from typing import Any, Literal

Stopped = Literal["completed", "max_steps", "early_stopping", "pruned"]


@dataclass(frozen=True)
class EpochScores:
    """One epoch's scores. Losses are mean cross-entropies in nats, accuracies in [0, 1].

    `loss` and `accuracy` are running means over the epoch's minibatches, as in Keras: the weights
    changed while they were taken. `val_loss` and `val_accuracy` are of the weights at its end.
    `loss` is what is minimised, against smoothed labels and with a network's own penalties; `val_loss`
    is the plain cross-entropy, where Keras's has both: so it compares runs that smooth differently.
    """

    epoch: int  # from 1
    steps: int  # optimizer steps since the start of the run
    learning_rate: float  # of the epoch's last step
    loss: float
    accuracy: float
    val_loss: float
    val_accuracy: float
    seconds: float  # wall clock, validation and (in a first epoch) compilation included


@dataclass(frozen=True)
class FitResult:
    """One training, without the test split: there is no field here that a search could cheat with."""

    epochs: tuple[EpochScores, ...]
    chosen_epoch: int  # from 1: the epoch whose weights were kept
    stopped: Stopped
    parameters: int  # trainable scalars in the network
    seconds: float  # wall clock of the whole training
    validation_hits: bytes  # np.packbits of [validation size] bools: which images the kept weights got right
    validation_mistakes: bytes = b""  # uint16, little-endian: what each image that they got wrong was taken for

    @property
    def chosen(self) -> EpochScores:
        """The scores of the epoch whose weights were kept."""
        return self.epochs[self.chosen_epoch - 1]


@dataclass(frozen=True)
class RunResult:
    """One finished run: the training, and the one look at the test split that followed it, unless that stays sealed."""

    fit: FitResult
    test_accuracy: float | None  # None: the test split was not looked at
    test_loss: float | None
    weights_hash: str  # SHA-256 of the kept weights' bytes, layer by layer
    data_fingerprint: str
    device: str  # e.g. "CPU (no GPU visible to TensorFlow)"
    flags: dict[str, str]  # what else can change the bits: see worker.py


PACKED = ("validation_hits", "validation_mistakes")
"""A FitResult's bytes; base64 in JSON."""


def objective_value(fit: FitResult) -> float:
    """What a study maximises: the validation accuracy of the kept weights."""
    return fit.chosen.val_accuracy


def to_json(result: RunResult) -> dict[str, Any]:
    """A RunResult as JSON types; `from_json` gives back an equal one."""
    plain = asdict(result)
    for name in PACKED:
        plain["fit"][name] = base64.b64encode(getattr(result.fit, name)).decode()
    return plain


def from_json(plain: dict[str, Any]) -> RunResult:
    """The inverse of `to_json`."""
    fit = dict(plain["fit"])
    fit["epochs"] = tuple(EpochScores(**scores) for scores in fit["epochs"])
    fit |= {name: base64.b64decode(fit.get(name, "")) for name in PACKED}  # mistakes came later
    return RunResult(**{**plain, "fit": FitResult(**fit)})
