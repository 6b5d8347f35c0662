"""The child process that asks a network about images. `python -m mnistexp.champion.inference`.

The network is rebuilt from its checked config and given weights alone: nothing that could hold code is loaded.

    parent  Question, as one JSON object on stdin
    child   {"probabilities": [[float, …], …]}, or {"error"}: one sentence
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mnistexp.errors import MnistexpError, StoreError
from mnistexp.schema import RunConfig, Settings

if TYPE_CHECKING:
    import keras


class Question(Settings):
    """A network and what it is shown."""

    config: RunConfig
    weights: str  # a .weights.h5 file
    weights_hash: str
    features: int = Field(ge=1)
    classes: int = Field(ge=2)
    images: list[list[float]]  # [N, features] in [0, 1]


def main() -> None:
    """Answer one question."""
    sink, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        question = Question.model_validate_json(sys.stdin.read())
        answer: dict[str, Any] = {"probabilities": probabilities(question)}
    except MnistexpError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), file=sink)


def probabilities(question: Question) -> list[list[float]]:
    """The probability of each class for each image, [N, classes]. Raises: StoreError as `network`."""
    import keras
    import numpy as np

    asked = network(question.config, Path(question.weights), question.weights_hash, question.features, question.classes)
    logits = asked(np.asarray(question.images, np.float32), training=False)
    return np.asarray(keras.ops.softmax(logits), np.float64).tolist()  # type: ignore[no-any-return]


def network(config: RunConfig, weights: Path, weights_hash: str, features: int, classes: int) -> keras.Sequential:
    """A config's network with a run's weights: [N, features] to logits [N, classes].

    Args:
        weights_hash: what the run's record says of them.

    Raises: StoreError if the file holds other weights.
    """
    from mnistexp import trainer
    from mnistexp.model import build_model

    model = build_model(config.model, features, classes)
    try:
        model.load_weights(weights)
    except (OSError, ValueError, KeyError):  # Keras's own message is twenty lines, most of them numbers
        layers = "-".join(map(str, (features, *config.model.hidden_units, classes)))
        raise StoreError(f"{weights.name}: holds no weights of a network of {layers}, as its run says it is") from None
    variables: list[Any] = model.trainable_variables
    if trainer.weights_hash([variable.numpy() for variable in variables]) != weights_hash:
        raise StoreError(f"{weights.name}: holds other weights than the run's record says (by their hash)")
    return model


if __name__ == "__main__":
    main()
