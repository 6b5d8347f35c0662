"""How long a sweep will take: a few really timed epochs, and arithmetic that says what it rests on."""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mnistexp.config.schema import Config, RunConfig, UserModel
from mnistexp.data.dataset import Dataset
from mnistexp.machine import visible_gpus
from mnistexp.tracking.run_context import PreparedRun
from mnistexp.training.results import EpochScores
from mnistexp.workers.pool import Executor, worker_count
from mnistexp.workers.start import run_training, start_workers, wait_until_ready

EPOCHS = 3
"""Timed in each training: the first contains the compilation."""

BESIDE = (0.05, 0.6)
"""Seconds of a trial beside its epochs and compilation, at least and at most: asked, judged, told, logged."""

CROWD = 1.5
"""How much slower a worker gets, at most, where all are at work: they share caches and memory, and XLA compiles with
several threads."""

HARMLESS_RATE = 1e-6
"""The learning rate of a timed training: as quick as any other, and its loss never becomes infinite."""


@dataclass(frozen=True)
class Shape:
    """What a training's time depends on."""

    cost: float  # of an epoch: parameters times steps
    epochs: int  # at most
    fewest: int  # if it is stopped as early as may be
    program: object  # equal ones are compiled once


@dataclass(frozen=True)
class Timed:
    """A network that was trained for a few epochs."""

    cost: float
    compiling: float  # seconds, once for each worker
    epoch: float  # seconds


@dataclass(frozen=True)
class Machine:
    """Where the trials will run."""

    workers: int  # 0: only a cluster knows
    device: str
    start: float  # seconds until a first worker was ready


@dataclass(frozen=True)
class Timings:
    """The drawn trainings, and those of them that were timed."""

    shapes: tuple[Shape, ...]
    timed: tuple[Timed, ...]  # by cost, cheapest first

    def epoch(self, cost: float) -> float:
        """Seconds of an epoch: between those that were timed, in proportion to the cost."""
        costs = [each.cost for each in self.timed]
        at = bisect.bisect_left(costs, cost)
        if at in (0, len(costs)):
            return self.timed[min(at, len(costs) - 1)].epoch
        below, above = self.timed[at - 1], self.timed[at]
        share = (cost - below.cost) / (above.cost - below.cost)
        return below.epoch + share * (above.epoch - below.epoch)


@dataclass(frozen=True)
class Estimate:
    """How long it takes. Seconds."""

    low: float
    high: float
    typical: float  # an epoch of the median training
    slowest: float  # an epoch of the largest
    compiling: float
    saved: float  # what early stopping spares at most
    epochs: tuple[int, int]  # of a training, fewest and most


def time_epochs(
    prepared: PreparedRun, configs: Sequence[RunConfig], note: Callable[[str], None]
) -> tuple[Timings, Machine]:
    """Time the smallest, the median and the largest of some trainings in one worker, apart from everything else.

    Raises: TrainingError if one of them fails, for want of memory for example; WorkerError.
    """
    shapes = [shape(config, prepared) for config in configs]
    picked = pick([each.cost for each in shapes])
    note(f"timing {EPOCHS} epochs of {len(picked)} of its networks, in one worker …")
    began = time.monotonic()
    dataset = prepared.dataset
    executor = start_workers(prepared.config, at_most=1, dataset=dataset, fingerprint=dataset.fingerprint)
    try:
        device = str(wait_until_ready(executor).get("device", ""))
        start = time.monotonic() - began
        timed = [_time(executor, configs[i], shapes[i].cost) for i in picked]
    finally:
        executor.close()
    timed, warm_up = _warmed(timed)
    return Timings(tuple(shapes), tuple(timed)), Machine(workers(prepared.config, device), device, start + warm_up)


def _warmed(timed: list[Timed]) -> tuple[list[Timed], float]:
    """The first network, less what the worker's first compilation took longer than later ones; and these seconds."""
    first, *others = timed
    compiling = min([first.compiling, *(each.compiling for each in others)])
    return [replace(first, compiling=compiling), *others], first.compiling - compiling


def pick(costs: Sequence[float]) -> list[int]:
    """The places of the lowest, the median and the highest cost, each cost once, in this order."""
    order = sorted(range(len(costs)), key=costs.__getitem__)
    chosen = (order[0], order[len(order) // 2], order[-1])
    return list({costs[i]: i for i in reversed(chosen)}.values())[::-1]


def _time(executor: Executor, config: RunConfig, cost: float) -> Timed:
    quick = {"epochs": EPOCHS, "max_steps": None, "patience": None}
    timed = config.model_copy(
        update={
            "optimizer": config.optimizer.model_copy(update={"learning_rate": HARMLESS_RATE}),
            "trainer": config.trainer.model_copy(update=quick),
        }
    )
    epochs: list[EpochScores] = []
    began = time.monotonic()
    run_training(executor, timed, epochs.append, test=False)
    seconds = [scores.seconds for scores in epochs]
    epoch = statistics.median(seconds[1:])
    return Timed(cost, max(0.0, time.monotonic() - began - sum(seconds[1:]) - epoch), epoch)


def workers(config: Config, device: str) -> int:
    """How many workers a sweep will have; 0 where only a cluster knows."""
    asked, trials = config.executor.workers, config.study.trials
    if asked == "auto" and config.executor.name == "ray":
        return 0
    gpus = 0 if device.startswith("CPU") else len(visible_gpus())
    return min(trials, worker_count(asked, config.trainer.threads, gpus))


def shape(config: RunConfig, prepared: PreparedRun) -> Shape:
    """What a training's time depends on."""
    trainer, dataset = config.trainer, prepared.dataset
    steps = trainer.steps_per_epoch(len(dataset.train.labels))
    epochs = trainer.most_epochs(steps)
    fewest = epochs if trainer.patience is None else min(epochs, trainer.patience + 1)
    knobs = {
        name: value > 0 if isinstance(value, float) else value
        for name, value in config.optimizer.model_dump(exclude={"learning_rate", "warmup_epochs", "schedule"}).items()
    }
    drawn = (tuple(knobs.items()), trainer.ema_momentum > 0, config.augmentation.warps)
    program = (trainer.batch_size, *_network(config), *drawn)
    work = parameters(config, dataset) + _warp_work(config, dataset)
    return Shape(float(work * steps), epochs, fewest, program)


def _warp_work(config: RunConfig, dataset: Dataset) -> int:
    """What warping an image costs, in weights that could be trained instead.

    A warp sums over each pixel's row and column. Measured on one core at 28x28: 0.5 s per 55,000 images, and 0.8 s
    where they are bent too, in which 784-190-10 and 784-320-10 take a step on each.
    """
    warped, bent = config.augmentation.warps
    if not warped:
        return 0
    height, width = dataset.image_shape[:2]
    return (6 if bent else 4) * math.prod(dataset.image_shape) * (height + width)


def _network(config: RunConfig) -> tuple[object, ...]:
    """What of a network decides how it is compiled."""
    model = config.model
    if isinstance(model, UserModel):
        return (model.model_dump_json(),)
    structure = {"hidden_units", "activation", "batch_normalization"}
    return model.model_dump_json(include=structure), model.dropout > 0, model.input_dropout > 0


def parameters(config: RunConfig, dataset: Dataset) -> int:
    """Weights and biases of a training's network.

    Of the user's own it isn't known before it is built, which takes TensorFlow: its whole numbers stand for it, units
    and blocks perhaps. So the smallest and the largest are those that are timed, and only what lies between is guessed.
    """
    if isinstance(config.model, UserModel):
        values = [value for value in config.model.settings.values() if type(value) in (int, tuple)]
        return math.prod(max(1, sum(value) if isinstance(value, tuple) else value) for value in values)
    sizes = [math.prod(dataset.image_shape), *config.model.hidden_units, dataset.classes]
    return sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(sizes))


def estimate(config: Config, timings: Timings, machine: Machine, left: int) -> Estimate:
    """The time of `left` trials alike to those that were drawn.

    At least: all that may be stopped early is, at once, and no worker waits. At most: nothing is stopped, all
    workers slow each other down, each compiles every network for itself, and the slowest trial comes last.
    """
    crew = min(left, machine.workers or 1)
    each = [(timings.epoch(shape.cost), shape) for shape in timings.shapes]
    full = left * statistics.fmean(seconds * shape.epochs for seconds, shape in each)
    least = left * statistics.fmean(seconds * _fewest(config, shape, left) for seconds, shape in each)
    programs = len({shape.program for shape in timings.shapes})
    few = min(left, math.ceil(programs * left / len(each))) if programs > len(each) / 2 else min(left, programs)
    many = min(left, few * crew)
    compiling = [timed.compiling for timed in timings.timed]
    last = max(seconds * shape.epochs for seconds, shape in each) * (crew - 1) / crew
    crowd = CROWD if crew > 1 else 1.1
    low = machine.start + (least + few * min(compiling) + left * BESIDE[0]) / crew
    high = machine.start + (crowd * (full + many * max(compiling)) + left * BESIDE[1]) / crew + last
    seconds = [second for second, _ in each]
    epochs = [shape.epochs for shape in timings.shapes]
    return Estimate(
        low,
        high,
        typical=statistics.median(seconds),
        slowest=max(seconds),
        compiling=statistics.fmean(compiling),
        saved=(full - least) / crew,
        epochs=(min(epochs), max(epochs)),
    )


def _fewest(config: Config, shape: Shape, left: int) -> float:
    """Epochs of a trial where every one that may be stopped early is."""
    pruner = config.study.pruner
    if pruner.name == "none":
        return shape.fewest
    if pruner.name == "hyperband":
        return min(shape.fewest, pruner.min_epochs)
    spared = min(1.0, pruner.startup_trials / left)
    return spared * shape.fewest + (1 - spared) * min(shape.fewest, pruner.warmup_epochs + 1)
