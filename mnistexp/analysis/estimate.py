"""Estimate how long a sweep takes from a few epochs that are really trained."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mnistexp.config.schema import Config, RunConfig
from mnistexp.machine import visible_gpus
from mnistexp.tracking.run_context import PreparedRun
from mnistexp.training.results import EpochScores
from mnistexp.workers.pool import WorkerPool, worker_count
from mnistexp.workers.start import run_training, start_workers, wait_until_ready

EPOCHS = 3  # of each timed training; the first contains the compilation
OVERHEAD = 0.6  # seconds of a trial at most for the sampler, the databases and the messages
CROWDED = 1.5  # slowdown at most if all workers run: they share caches and memory, and XLA compiles with threads
HARMLESS_RATE = 1e-6  # learning rate of a timed training: as fast as any other, and its loss stays finite


@dataclass(frozen=True)
class Timing:
    """What was measured on this machine, in seconds."""

    start: float  # until the first worker was ready
    compile: tuple[float, ...]  # of each timed network
    epoch: tuple[float, ...]
    workers: int  # 0: only the Ray cluster can decide it
    device: str


def time_networks(prepared: PreparedRun, configs: Sequence[RunConfig]) -> Timing:
    """Train some configs for EPOCHS epochs in one worker. Raises: TrainingError, WorkerError."""
    dataset, began = prepared.dataset, time.monotonic()
    executor = start_workers(prepared.config, at_most=1, dataset=dataset, fingerprint=dataset.fingerprint)
    try:
        device = str(wait_until_ready(executor).get("device", ""))
        start = time.monotonic() - began
        compiled, epochs = zip(*(_time_network(executor, config) for config in configs), strict=True)
    finally:
        executor.close()
    return Timing(start, compiled, epochs, planned_workers(prepared.config, device), device)


def _time_network(executor: WorkerPool, config: RunConfig) -> tuple[float, float]:
    """Returns: the seconds of the compilation, and of an epoch."""
    optimizer = config.optimizer.model_copy(update={"learning_rate": HARMLESS_RATE})
    trainer = config.trainer.model_copy(update={"epochs": EPOCHS, "max_steps": None, "patience": None})
    scores: list[EpochScores] = []
    began = time.monotonic()
    timed = config.model_copy(update={"optimizer": optimizer, "trainer": trainer})
    run_training(executor, timed, scores.append, test=False)
    epoch = statistics.fmean(each.seconds for each in scores[1:])
    return max(0.0, time.monotonic() - began - EPOCHS * epoch), epoch


def planned_workers(config: Config, device: str) -> int:
    """The number of workers that a sweep starts; 0 if only the Ray cluster can decide it."""
    asked = config.executor.workers
    if asked == "auto" and config.executor.name == "ray":
        return 0
    gpus = 0 if device.startswith("CPU") else len(visible_gpus())
    return min(config.study.trials, worker_count(asked, config.trainer.threads, gpus))


def estimate(prepared: PreparedRun, drawn: Sequence[RunConfig], timing: Timing, trials: int) -> tuple[float, float]:
    """Estimate the seconds that a sweep takes: trials x epochs x seconds of an epoch / workers.

    Args:
        drawn: configs of the space, for their numbers of epochs.

    Returns: at least (all trials are like the fastest timed network, end as early as possible, and find it compiled),
        and at most (all are like the slowest, run all their epochs, and compile it).
    """
    pruner, images = prepared.config.study.pruner, len(prepared.dataset.train.labels)
    trainers = [config.trainer for config in drawn]
    most = [trainer.most_epochs(trainer.steps_per_epoch(images)) for trainer in trainers]
    earliest = {"none": max(most), "median": pruner.warmup_epochs + 1, "hyperband": pruner.min_epochs}[pruner.name]
    fewest = min(earliest, *most, *(trainer.patience + 1 for trainer in trainers if trainer.patience is not None))
    workers = min(trials, timing.workers or 1)
    low = timing.start + min(timing.compile) + trials * fewest * min(timing.epoch) / workers
    trial = max(most) * max(timing.epoch) + max(timing.compile) + OVERHEAD
    return low, timing.start + (CROWDED if workers > 1 else 1.1) * math.ceil(trials / workers) * trial
