"""The child process that loads a trained network: `python -m mnistexp.training.inference`.

The network is built from its checked config and gets the weights of the file, so no file with code is loaded. A
network of a user's function also needs the user's file, which comes from the command line and never from a record.

    parent  a PredictRequest or LogModelRequest as one JSON object on stdin
    child   {"probabilities": [[float, …], …]}, {"model_id": str} or {"error": one sentence}
"""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, TypeAdapter

from mnistexp.config import user_code
from mnistexp.config.schema import RunConfig, Settings, UserCode, UserModel
from mnistexp.errors import MnistexpError, StoreError

if TYPE_CHECKING:
    import keras

REQUIREMENTS = ("mlflow", "keras", "tensorflow", "numpy")  # of a logged model, for `mlflow models serve`


class TrainedNetwork(Settings):
    """A network as a run's record describes it."""

    config: RunConfig
    code: UserCode | None = None  # the user's Python file
    weights: str  # path of a .weights.h5 file
    weights_hash: str  # of the run's record
    features: int = Field(ge=1)
    classes: int = Field(ge=2)


class PredictRequest(TrainedNetwork):
    """Images to classify."""

    images: list[list[float]]  # [N, features], scaled as for training


class LogModelRequest(TrainedNetwork):
    """A run of MLflow that gets a model."""

    tracking_uri: str
    run_id: str
    name: str  # of the logged model


def main() -> None:
    """Read one request from stdin and write the answer, or the reason of a failure, to stdout."""
    stdout, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    os.environ["KERAS_BACKEND"] = "tensorflow"
    requests = TypeAdapter[PredictRequest | LogModelRequest](PredictRequest | LogModelRequest)
    request = requests.validate_json(sys.stdin.read())
    answer: dict[str, Any]
    try:
        network = load_network(request)
        if isinstance(request, PredictRequest):
            answer = {"probabilities": predict(network, request.images)}
        else:
            answer = {"model_id": log_model(network, request)}
    except MnistexpError as error:
        answer = {"error": str(error)}
    print(json.dumps(answer), file=stdout)


def predict(network: keras.Model, images: list[list[float]]) -> list[list[float]]:
    """Return the probability of each class for each image, [N, features] to [N, classes]."""
    import keras
    import numpy as np

    logits = network(np.asarray(images, np.float32), training=False)
    return np.asarray(keras.ops.softmax(logits), np.float64).tolist()  # type: ignore[no-any-return]


def log_model(network: keras.Model, request: LogModelRequest) -> str:
    """Log a network that returns probabilities to a finished run of MLflow. Returns: the model's id.

    This is `mlflow.keras.log_model`, which has no argument for the run and would reopen it. An input example is left
    out, because MLflow 3.17 writes it to a folder that does not exist yet.
    """
    import keras
    import mlflow.keras
    import numpy as np
    from mlflow.models import Model, infer_signature

    layers = network.layers if isinstance(network, keras.Sequential) else [network]
    served = keras.Sequential([keras.Input((request.features,)), *layers, keras.layers.Softmax()])
    example = np.zeros((1, request.features), np.float32)  # for its shape
    mlflow.set_tracking_uri(request.tracking_uri)
    logged = Model.log(
        artifact_path=None,
        name=request.name,
        flavor=mlflow.keras,
        run_id=request.run_id,
        model=served,
        model_type="classifier",
        signature=infer_signature(example, np.asarray(served(example))),
        pip_requirements=[f"{package}=={version(package)}" for package in REQUIREMENTS],
    )
    return str(logged.model_id)


def load_network(trained: TrainedNetwork) -> keras.Model:
    """Return a network with its weights: [N, features] to logits [N, classes].

    Raises: StoreError if the file has other weights; ConfigError if the network needs another file of functions.
    """
    from mnistexp.training import trainer
    from mnistexp.training.model import build_model

    model_config, path = trained.config.model, Path(trained.weights)
    user_code.use(trained.code)
    if isinstance(model_config, UserModel):
        user_code.require(model_config)
    model = build_model(model_config, trained.features, trained.classes)
    try:
        model.load_weights(path)
    except (OSError, ValueError, KeyError):  # Keras's own message has twenty lines
        shapes = ", ".join(str(tuple(weight.shape)) for weight in model.weights)
        raise StoreError(f"{path.name}: does not have the weights of the run's network ({shapes})") from None
    if trainer.weights_hash(trainer.all_weights(model)) != trained.weights_hash:
        raise StoreError(f"{path.name}: the weights have another hash than the run's record")
    return model


if __name__ == "__main__":
    main()
