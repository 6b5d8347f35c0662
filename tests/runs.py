"""Run configs for tests of the child's side, without Hydra: plain values, checked by the schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mnistexp.schema import RunConfig

MODEL = {
    "name": "mlp",
    "hidden_units": [32],
    "activation": "relu",
    "dropout": 0.0,
    "initializer": "glorot_uniform",
    "initializer_stddev": 0.05,
    "bias_initializer_stddev": 0.0,
}
SCHEDULE = {"learning_rate": 0.1, "schedule": "constant", "warmup_epochs": 0.0, "weight_decay": 0.0}
TRAINER = {
    "epochs": 2,
    "max_steps": None,
    "batch_size": 100,
    "patience": None,
    "restore_best_weights": True,
    "label_smoothing": 0.0,
    "device": "auto",
    "threads": 1,
}
SGD = {"name": "sgd", "momentum": 0.0, "nesterov": False}
MOMENTUM = {"name": "sgd", "momentum": 0.9, "nesterov": False, "learning_rate": 0.02}
NESTEROV = {"name": "sgd", "momentum": 0.9, "nesterov": True, "learning_rate": 0.02}
MOMENTS = {"beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-6, "learning_rate": 0.002}
ADAM = {"name": "adam", **MOMENTS}
ADAMW = {"name": "adamw", **MOMENTS}
NADAM = {"name": "nadam", **MOMENTS}
RMSPROP = {"name": "rmsprop", "rho": 0.8, "momentum": 0.0, "epsilon": 1e-6, "learning_rate": 0.002}
RMSPROP_MOMENTUM = {**RMSPROP, "momentum": 0.5}
LION = {"name": "lion", "beta_1": 0.9, "beta_2": 0.99, "learning_rate": 0.0003}


def mnist_data(folder: Path | str) -> dict[str, Any]:
    """A data config of the MNIST files in a folder, without their digests' origin: they are taken as given."""
    import yaml

    conf = Path(__file__).resolve().parent.parent / "conf" / "data" / "mnist.yaml"
    return {**yaml.safe_load(conf.read_text()), "root": str(folder)}


def run_config(
    optimizer: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    seed: int = 0,
    data: dict[str, Any] | None = None,
    **trainer: Any,
) -> RunConfig:
    """A small run: 784-32-10, SGD, two epochs; each part takes what differs."""
    plain = {
        "seed": seed,
        "data": data or mnist_data("nowhere"),
        "model": MODEL | (model or {}),
        "optimizer": SCHEDULE | (optimizer or SGD),
        "trainer": TRAINER | trainer,
    }
    return RunConfig.model_validate_json(json.dumps(plain))
