"""The child process that makes a network a model that MLflow can serve. `python -m mnistexp.training.export`.

The only place where Keras and MLflow meet. It knows no store: it reads a weights file, writes a folder, and the
parent registers that.

    parent  Order, as one JSON object on stdin
    child   {"folder"}, or {"error"}: one sentence
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mnistexp.training import inference

if TYPE_CHECKING:
    import keras

REQUIREMENTS = ("mlflow", "keras", "tensorflow", "numpy")


class Order(inference.Stored):
    """What to make a model of."""

    example: list[list[float]]  # images as the network gets them, in [0, 1]
    metadata: dict[str, str]
    folder: str  # not there yet
    run_id: str
    model_id: str


def main() -> None:
    """Answer one order."""
    inference.answer(lambda text: write(Order.model_validate_json(text)))


def write(order: Order) -> dict[str, str]:
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
    return {"folder": order.folder}


def served_network(order: Order) -> keras.Model:
    """The network with its weights, and probabilities in the end: float32 [N, features] to [N, classes]."""
    import keras

    network = inference.network(order)
    layers = network.layers if isinstance(network, keras.Sequential) else [network]
    return keras.Sequential([keras.Input((order.features,)), *layers, keras.layers.Softmax()])


if __name__ == "__main__":
    main()
