"""The child process that asks a network about images. `python -m mnistexp.training.inference`.

The network is rebuilt from its checked config and given weights alone: nothing that could hold code is loaded. One
that a function of the user's builds needs that file too, which the user names on the command line, and no record.

    parent  Question, as one JSON object on stdin
    child   {"probabilities": [[float, …], …]}, or {"error"}: one sentence
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mnistexp.config import user_code
from mnistexp.config.schema import RunConfig, Settings, UserCode, UserModel
from mnistexp.errors import MnistexpError, StoreError

if TYPE_CHECKING:
    import keras


class Stored(Settings):
    """A network as a run's record and its weights say it is."""

    config: RunConfig
    code: UserCode | None = None  # the user's file of functions
    weights: str  # a .weights.h5 file
    weights_hash: str  # what the run's record says of them
    features: int = Field(ge=1)
    classes: int = Field(ge=2)


class Question(Stored):
    """A network and what it is shown."""

    images: list[list[float]]  # [N, features] in [0, 1]


def main() -> None:
    """Answer one question."""
    answer(lambda text: {"probabilities": probabilities(Question.model_validate_json(text))})


def answer(work: Callable[[str], Mapping[str, Any]]) -> None:
    """Do what stdin asks for, and write what comes of it, or why nothing does, as one JSON object to stdout."""
    sink, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        found = work(sys.stdin.read())
    except MnistexpError as error:
        found = {"error": str(error)}
    print(json.dumps(found), file=sink)


def probabilities(question: Question) -> list[list[float]]:
    """The probability of each class for each image, [N, classes]. Raises: StoreError as `network`."""
    import keras
    import numpy as np

    logits = network(question)(np.asarray(question.images, np.float32), training=False)
    return np.asarray(keras.ops.softmax(logits), np.float64).tolist()  # type: ignore[no-any-return]


def network(stored: Stored) -> keras.Model:
    """A network with its weights: [N, features] to logits [N, classes].

    Raises: StoreError if the file holds others; ConfigError if the network is a function's, and another file is given.
    """
    from mnistexp.training import trainer
    from mnistexp.training.model import build_model

    weights = Path(stored.weights)
    user_code.use(stored.code)
    if isinstance(stored.config.model, UserModel):
        user_code.require(stored.config.model)
    model = build_model(stored.config.model, stored.features, stored.classes)
    try:
        model.load_weights(weights)
    except (OSError, ValueError, KeyError):  # Keras's own message is twenty lines, most of them numbers
        raise StoreError(
            f"{weights.name}: holds no weights of a network of {_layers(stored)}, as its run says it is"
        ) from None
    if trainer.weights_hash(trainer.all_weights(model)) != stored.weights_hash:
        raise StoreError(f"{weights.name}: holds other weights than the run's record says (by their hash)")
    return model


def _layers(stored: Stored) -> str:
    """A network for a reader."""
    model = stored.config.model
    if isinstance(model, UserModel):
        return f"{model.function}({stored.features}, {stored.classes})"
    return "-".join(map(str, (stored.features, *model.hidden_units, stored.classes)))


if __name__ == "__main__":
    main()
