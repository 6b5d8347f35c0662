"""The child process that makes a network a model that MLflow can serve. `python -m mnistexp.champion.export`.

The only place where Keras and MLflow meet. It knows no store: it reads a weights file, writes a folder, and the
parent registers that.

    parent  Order, as one JSON object on stdin
    child   {"folder"}, or {"error"}: one sentence
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from mnistexp.champion import inference
from mnistexp.errors import MnistexpError
from mnistexp.schema import RunConfig, Settings

if TYPE_CHECKING:
    import keras

REQUIREMENTS = ("mlflow", "keras", "tensorflow", "numpy")


class Order(Settings):
    """What to make a model of."""

    config: RunConfig
    weights: str  # a .weights.h5 file
    weights_hash: str
    features: int = Field(ge=1)
    classes: int = Field(ge=2)
    example: list[list[float]]  # images as the network gets them, in [0, 1]
    metadata: dict[str, str]
    folder: str  # not there yet
    run_id: str
    model_id: str


def main() -> None:
    """Answer one order."""
    sink, sys.stdout = sys.stdout, sys.stderr  # libraries print what they like
    os.environ["KERAS_BACKEND"] = "tensorflow"
    try:
        write(Order.model_validate_json(sys.stdin.read()))
        answer = {"folder": "made"}
    except MnistexpError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), file=sink)


def write(order: Order) -> None:
    """Write MLflow's folder of one model. Raises: StoreError if the weights aren't those of the record."""
    import mlflow.keras
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    served = served_network(order)
    Path(order.folder).mkdir()  # MLflow writes the example before it makes the folder
    inputs = TensorSpec(np.dtype(np.float32), (-1, order.features))
    outputs = TensorSpec(np.dtype(np.float32), (-1, order.classes))
    mlflow.keras.save_model(
        served,
        order.folder,
        mlflow_model=Model(run_id=order.run_id, model_id=order.model_id, model_uuid=order.model_id),
        signature=ModelSignature(Schema([inputs]), Schema([outputs])),
        input_example=np.asarray(order.example, dtype=np.float32),
        pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        metadata=order.metadata,
    )


def served_network(order: Order) -> keras.Sequential:
    """The network with its weights, and probabilities in the end: float32 [N, features] to [N, classes]."""
    import keras

    weights = Path(order.weights)
    network = inference.network(order.config, weights, order.weights_hash, order.features, order.classes)
    return keras.Sequential([keras.Input((order.features,)), *network.layers, keras.layers.Softmax()])


if __name__ == "__main__":
    main()
