"""Run configs for tests of the child's side, without Hydra; and what tests of real executors do with them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from mnistexp.config.schema import RunConfig, UserCode
from mnistexp.training.messages import Setup
from mnistexp.training.results import RunResult
from mnistexp.workers.pool import EpochEnded, Event, WorkerPool
from mnistexp.workers.process import LocalPool

MODEL = {
    "name": "mlp",
    "hidden_units": [32],
    "activation": "relu",
    "batch_normalization": False,
    "input_dropout": 0.0,
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
    "ema_momentum": 0.0,
    "device": "auto",
    "threads": 1,
    "timeout": None,
}
PLAIN = {"shift": 0.0, "rotate": 0.0, "scale": 0.0, "shear": 0.0, "elastic_alpha": 0.0, "elastic_sigma": 4.0}
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
    augmentation: dict[str, Any] | None = None,
    **trainer: Any,
) -> RunConfig:
    """A small run: 784-32-10, SGD, two epochs; each part takes what differs."""
    plain = {
        "seed": seed,
        "data": data or mnist_data("nowhere"),
        "model": MODEL | (model or {}),
        "optimizer": SCHEDULE | (optimizer or SGD),
        "augmentation": PLAIN | (augmentation or {}),
        "trainer": TRAINER | trainer,
    }
    return RunConfig.model_validate_json(json.dumps(plain))


# ------------------------------------------------------------------------------------------ real executors

DIGITS = {
    "name": "digits",
    "root": None,
    "validation_size": 300,
    "split": "stratified",
    "split_seed": 0,
    "test_size": 360,
}


PLANT = Path(__file__).resolve().parent / "faults" / "plant"

SCRIPTED = {"MNISTEXP_SCRIPTED": "1", "PYTHONPATH": os.pathsep.join([str(PLANT), str(PLANT.parents[2])])}
"""Environment of worker processes that train without TensorFlow: see plant/scripted_trainer.py."""


def start_local(workers: int, code: UserCode | None = None, **more: Any) -> LocalPool:
    """Worker processes that have the digits in memory."""
    return LocalPool(setup(code=code), workers=workers, **{"at_most": workers, **more})


def setup(data: dict[str, Any] = DIGITS, **more: Any) -> Setup:
    """What workers on the CPU load."""
    return Setup(data=run_config(data=data).data, threads=1, device="cpu", **more)


def wait_idle(executor: WorkerPool, workers: int) -> None:
    """Wait until so many workers are idle, with no event on the way."""
    while executor.idle() < workers:
        assert executor.next_event(60) is None


def next_event(executor: WorkerPool) -> Event:
    """The next event, however long it takes."""
    return next(event for _ in range(100) if (event := executor.next_event(60)))


def until_done(
    executor: WorkerPool, jobs: Mapping[int, RunConfig], go: Callable[[EpochEnded], bool] = lambda event: True
) -> list[Event]:
    """Every event of these jobs, which are submitted as workers get free."""
    events: list[Event] = []
    waiting, left = list(jobs), set(jobs)
    while left:
        while waiting and executor.idle():
            number = waiting.pop(0)
            executor.submit(number, jobs[number])
        event = executor.next_event(60)
        if event is None:
            continue
        events.append(event)
        if isinstance(event, EpochEnded):
            executor.answer(event.job, go=go(event))
        else:
            left.remove(event.job)
    return events


def bits(result: RunResult) -> RunResult:
    """A result less its wall-clock times, which are never the same."""
    epochs = tuple(scores.model_copy(update={"seconds": 0.0}) for scores in result.fit.epochs)
    fit = result.fit.model_copy(update={"epochs": epochs, "seconds": 0.0})
    return result.model_copy(update={"fit": fit})


def alive(process: psutil.Process) -> bool:
    """Whether a process runs: not one that is gone, nor only its entry in the table."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def gone(pid: int) -> bool:
    """Whether there is no such process any more, or only its entry in the table."""
    try:
        return not alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return True


def wait_until(true: Callable[[], bool], seconds: float = 60) -> bool:
    """Wait for something that another process does; how long it takes is not what is tested."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()
