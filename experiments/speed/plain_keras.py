"""A plain script: Optuna's `optimize`, Keras's `fit`, MLflow's log calls.

python plain_keras.py --data FOLDER [--jit --steps-per-execution 50]

Runs the configs of configs.json as one study, writes optuna.db and mlflow.db to the working folder, and prints one
line of JSON. It does not use mnistexp.
"""
# ruff: noqa: E402 - the imports are timed

from __future__ import annotations

import time

STARTED = time.perf_counter()

import argparse
import gzip
import json
from pathlib import Path

import keras
import mlflow
import numpy as np
import optuna

IMPORTED = time.perf_counter()
OPTIMIZERS = {
    "sgd": lambda rate: keras.optimizers.SGD(rate),
    "momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    "nesterov": lambda rate: keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
    "adam": lambda rate: keras.optimizers.Adam(rate),
    "adamw": lambda rate: keras.optimizers.AdamW(rate),
    "rmsprop": lambda rate: keras.optimizers.RMSprop(rate),
}


def read_idx(path: Path, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def load_mnist(folder: Path) -> dict[str, np.ndarray]:
    """Images float32 [N, 784] in [0, 1], labels uint8 [N]."""
    arrays = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 16).reshape(-1, 784)
        arrays[f"{split}_images"] = images.astype("float32") / 255
        arrays[f"{split}_labels"] = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 8)
    return arrays


def build(config: dict, options: argparse.Namespace) -> keras.Model:
    hidden = [keras.layers.Dense(units, config["activation"]) for units in config["hidden_units"]]
    model = keras.Sequential([keras.Input((784,)), *hidden, keras.layers.Dense(10)])
    model.compile(
        OPTIMIZERS[config["optimizer"]](config["learning_rate"]),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=options.jit or "auto",
        steps_per_execution=options.steps_per_execution,
    )
    return model


def train(config: dict, data: dict[str, np.ndarray], options: argparse.Namespace) -> float:
    """Train and log one config. Returns: the best epoch's validation accuracy."""
    keras.utils.set_random_seed(config["seed"])
    model = build(config, options)
    with mlflow.start_run():
        mlflow.log_params(config)
        # Explicit calls: with TensorFlow 2.21 mlflow.tensorflow.autolog fails, and mlflow.keras.autolog makes a run
        # seven times slower.
        log = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: mlflow.log_metrics(logs, step=epoch))
        history = model.fit(  # the first 5,000 are for validation
            data["train_images"][5000:],
            data["train_labels"][5000:],
            batch_size=config["batch_size"],
            epochs=options.epochs,
            validation_data=(data["train_images"][:5000], data["train_labels"][:5000]),
            callbacks=[log],
            verbose=0,
        )
        _, test_accuracy = model.evaluate(data["test_images"], data["test_labels"], verbose=0)
        mlflow.log_metric("test_accuracy", test_accuracy)
    return max(history.history["val_accuracy"])


def suggest(trial: optuna.Trial) -> dict:
    """Define the search space of such a script. The configs are queued, so the suggestions return them."""
    return {
        "seed": trial.suggest_int("seed", 0, 99),
        "hidden_units": json.loads(
            trial.suggest_categorical("hidden_units", ["[300]", "[500]", "[300, 100]", "[500, 200]"])
        ),
        "activation": trial.suggest_categorical("activation", ["relu", "gelu", "tanh"]),
        "optimizer": trial.suggest_categorical("optimizer", list(OPTIMIZERS)),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1.0, log=True),
        "batch_size": trial.suggest_categorical("batch_size", [32, 64, 128]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four .gz files")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--jit", action="store_true", help="compile(jit_compile=True)")
    parser.add_argument("--steps-per-execution", type=int, default=1)
    options = parser.parse_args()

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mlflow.set_tracking_uri("sqlite:///mlflow.db")
    mlflow.set_experiment("speed")
    data = load_mnist(options.data)
    study = optuna.create_study(storage="sqlite:///optuna.db", study_name="speed", direction="maximize")
    configs = json.loads(Path(__file__).with_name("configs.json").read_text())
    for config in configs:
        study.enqueue_trial({**config, "hidden_units": json.dumps(config["hidden_units"])})
    study.optimize(lambda trial: train(suggest(trial), data, options), n_trials=len(configs))

    values = [trial.value for trial in study.trials]
    print(json.dumps({"import_seconds": IMPORTED - STARTED, "val_accuracy": values}))


if __name__ == "__main__":
    main()
