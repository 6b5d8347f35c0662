"""Estimate how long a sweep takes from a few epochs that are really trained."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mnistexp.config.schema import Config, RunConfig, UserModel
from mnistexp.data.dataset import Dataset
from mnistexp.tracking.run_context import PreparedRun
from mnistexp.training.results import EpochScores
from mnistexp.workers.pool import WorkerPool
from mnistexp.workers.start import run_training, start_workers, wait_until_ready

EPOCHS = 3  # of each timed training; the first contains the compilation
OVERHEAD = 0.6  # seconds of a trial at most for the sampler, the databases and the messages
CROWDED = (
    1.5  # slowdown at most if all workers run: they share caches and memory, and XLA compiles with several threads
)
HARMLESS_RATE = 1e-6  # learning rate of a timed training: as fast as any other, and its loss stays finite


@dataclass(frozen=True)
class TimedNetwork:
    """A network that was trained for EPOCHS epochs."""

    cost: float  # see `epoch_cost`
    compile_seconds: float
    epoch_seconds: float


@dataclass(frozen=True)
class Timing:
    """What was measured on this machine."""

    networks: tuple[TimedNetwork, ...]  # cheapest first
    start_seconds: float  # until the first worker was ready
    workers: int
    device: str


@dataclass(frozen=True)
class Estimate:
    """The time that a sweep takes, in seconds."""

    low: float  # all trials are pruned as early as possible, and each network is compiled once by one worker
    high: float  # no trial is pruned, every trial is compiled, and the slowest one ends last
    epoch_seconds: float  # median
    compile_seconds: float  # median
    epochs: int  # maximum of a training


def time_networks(prepared: PreparedRun, configs: Sequence[RunConfig]) -> Timing:
    """Train the cheapest, the median and the most expensive of some configs for EPOCHS epochs in one worker.

    Raises: TrainingError if a training fails; WorkerError.
    """
    dataset = prepared.dataset
    ordered = sorted(configs, key=lambda config: epoch_cost(config, dataset))
    picked = {epoch_cost(c, dataset): c for c in (ordered[0], ordered[len(ordered) // 2], ordered[-1])}
    began = time.monotonic()
    executor = start_workers(prepared.config, at_most=1, dataset=dataset, fingerprint=dataset.fingerprint)
    try:
        device = str(wait_until_ready(executor).get("device", ""))
        start = time.monotonic() - began
        networks = [_time_network(executor, config, cost) for cost, config in picked.items()]
    finally:
        executor.close()
    return Timing(tuple(networks), start, planned_workers(prepared.config, device), device)


def _time_network(executor: WorkerPool, config: RunConfig, cost: float) -> TimedNetwork:
    optimizer = config.optimizer.model_copy(update={"learning_rate": HARMLESS_RATE})
    trainer = config.trainer.model_copy(update={"epochs": EPOCHS, "max_steps": None, "patience": None})
    epochs: list[EpochScores] = []
    began = time.monotonic()
    timed = config.model_copy(update={"optimizer": optimizer, "trainer": trainer})
    run_training(executor, timed, epochs.append, test=False)
    seconds = [scores.seconds for scores in epochs[1:]]
    epoch = statistics.median(seconds)
    return TimedNetwork(cost, max(0.0, time.monotonic() - began - sum(seconds) - epoch), epoch)


def epoch_cost(config: RunConfig, dataset: Dataset) -> float:
    """A number that grows with the time of an epoch: weights, and what warping an image costs, times steps.

    A warp sums over each pixel's row and column. Measured on one core at 28x28: 0.5 s per 55,000 images, and 0.8 s with
    elastic distortion, in which 784-190-10 and 784-320-10 take a training step on each image.
    """
    warped, elastic = config.augmentation.warps
    height, width = dataset.image_shape[:2]
    warp = (6 if elastic else 4) * math.prod(dataset.image_shape) * (height + width) if warped else 0
    return float((_weights(config, dataset) + warp) * config.trainer.steps_per_epoch(len(dataset.train.labels)))


def _weights(config: RunConfig, dataset: Dataset) -> int:
    """The number of weights; for a custom model the product of its whole-number settings, which orders sizes."""
    if isinstance(config.model, UserModel):
        settings = [value for value in config.model.settings.values() if isinstance(value, int | tuple)]
        return math.prod(max(1, sum(value) if isinstance(value, tuple) else value) for value in settings)
    sizes = [math.prod(dataset.image_shape), *config.model.hidden_units, dataset.classes]
    return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))


def planned_workers(config: Config, device: str) -> int:
    """The number of workers that a sweep starts; 0 if only the Ray cluster can decide it."""
    from mnistexp.machine import visible_gpus
    from mnistexp.workers.pool import worker_count

    asked = config.executor.workers
    if asked == "auto" and config.executor.name == "ray":
        return 0
    gpus = 0 if device.startswith("CPU") else len(visible_gpus())
    return min(config.study.trials, worker_count(asked, config.trainer.threads, gpus))


def estimate(config: Config, dataset: Dataset, drawn: Sequence[RunConfig], timing: Timing, trials: int) -> Estimate:
    """Estimate the time of `trials` trials like the drawn ones: trials x epochs x seconds of an epoch / workers.

    The seconds of an epoch are interpolated between the timed networks in proportion to the cost.
    """
    costs = [epoch_cost(each, dataset) for each in drawn]
    networks = timing.networks
    seconds = np.interp(costs, [n.cost for n in networks], [n.epoch_seconds for n in networks])
    steps = [each.trainer.steps_per_epoch(len(dataset.train.labels)) for each in drawn]
    epochs = np.array([each.trainer.most_epochs(n) for each, n in zip(drawn, steps, strict=True)])
    fewest = np.array(
        [_fewest_epochs(config, each.trainer.patience, most) for each, most in zip(drawn, epochs, strict=True)]
    )
    compiling = [network.compile_seconds for network in networks]
    workers = min(trials, timing.workers or 1)
    slowdown = CROWDED if workers > 1 else 1.1
    longest = float((seconds * epochs).max())
    low = timing.start_seconds + (trials * float((seconds * fewest).mean()) + min(compiling)) / workers
    each = float((seconds * epochs).mean()) + max(compiling) + OVERHEAD
    high = timing.start_seconds + slowdown * (trials * each / workers + longest * (workers - 1) / workers)
    return Estimate(low, high, float(np.median(seconds)), statistics.median(compiling), int(epochs.max()))


def _fewest_epochs(config: Config, patience: int | None, epochs: int) -> int:
    """Epochs of a trial that is stopped as early as possible."""
    pruner = config.study.pruner
    least = {"none": epochs, "median": 0, "hyperband": 0}[pruner.name]
    if pruner.name == "median":
        least = pruner.warmup_epochs + 1
    elif pruner.name == "hyperband":
        least = pruner.min_epochs
    return min(epochs, least, epochs if patience is None else patience + 1)
