"""How a search went: the best score so far, what the trials cost, and why trials failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mnistexp.analysis.history import History, Trial
from mnistexp.tracking.records import RunRecord

By = Literal["trials", "seconds"]
Cost = Literal["seconds", "parameters"]


@dataclass(frozen=True)
class Improvement:
    """A trial that was better than all trials that ended before it."""

    at: float  # trials that have ended, this one included; or seconds, see `positions`
    number: int
    val_accuracy: float


def ended(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Return the trials whose training started, in the order of their ends."""
    return tuple(sorted((t for t in trials if t.record), key=lambda t: (_record(t).ended, t.number)))


def positions(trials: Iterable[Trial], by: By) -> tuple[float, ...]:
    """Return for each trial, in the order of their ends, how many had ended then, or for how long any had been running.

    The latter is not wall-clock time: a study that continues the next day did not search during the night.
    """
    in_order = ended(trials)
    if by == "trials":
        return tuple(float(place) for place in range(1, len(in_order) + 1))
    ends = np.array([_record(trial).ended for trial in in_order])
    starts = np.minimum([_record(trial).started for trial in in_order], ends)  # a clock may have been set back
    times = np.unique([starts, ends])
    started, done = (np.searchsorted(np.sort(each), times[:-1], side="right") for each in (starts, ends))
    active = np.cumsum([0.0, *np.where(started > done, np.diff(times), 0.0)])  # [times]
    return tuple(active[np.searchsorted(times, ends)].tolist())


def best_so_far(trials: Iterable[Trial], by: By = "trials") -> tuple[Improvement, ...]:
    """Return each improvement of the best score, in order. A pruned trial is never an improvement."""
    found: list[Improvement] = []
    in_order = ended(trials)
    for position, trial in zip(positions(in_order, by), in_order, strict=True):
        scored = trial.state == "COMPLETE" and math.isfinite(trial.accuracy)
        if scored and (not found or trial.accuracy > found[-1].val_accuracy):
            found.append(Improvement(position, trial.number, trial.accuracy))
    return tuple(found)


@dataclass(frozen=True)
class Costs:
    """What a study cost."""

    trials: int
    complete: int
    pruned: int
    failed: int
    epochs: int  # trained
    epochs_saved: int  # not trained, because the pruner stopped the trial
    training_seconds: float  # sum over all trials
    active_seconds: float  # with one trial or more running


def costs(history: History) -> Costs:
    """Add up what a study cost."""
    states = Counter(trial.state for trial in history.trials)
    ran = ended(history.trials)
    pruned = [_record(trial) for trial in ran if trial.state == "PRUNED"]
    return Costs(
        trials=len(history.trials),
        complete=states["COMPLETE"],
        pruned=states["PRUNED"],
        failed=states["FAILED"],
        epochs=sum(len(record.epochs) for record in history.records),
        epochs_saved=sum(_planned_epochs(record) - len(record.epochs) for record in pruned),
        training_seconds=sum(record.ended - record.started for record in history.records),
        active_seconds=max(positions(ran, "seconds"), default=0.0),
    )


def _planned_epochs(record: RunRecord) -> int:
    trainer = record.config.trainer
    return trainer.most_epochs(record.epochs[0].steps) if record.epochs else trainer.epochs


def failures(history: History) -> dict[str, tuple[int, ...]]:
    """Return why trials failed: each reason with the numbers of the trials."""
    found: dict[str, tuple[int, ...]] = {}
    for trial in history.trials:
        if trial.state == "FAILED":
            reason = trial.reason or (trial.record.reason if trial.record else "") or "no reason was recorded"
            found[reason] = (*found.get(reason, ()), trial.number)
    return found


def _record(trial: Trial) -> RunRecord:
    assert trial.record is not None
    return trial.record


def cost_of(trial: Trial, cost: Cost) -> float:
    """Return the wall-clock seconds of a trial's training, or its number of trainable parameters."""
    assert trial.fit is not None
    return trial.fit.seconds if cost == "seconds" else float(trial.fit.parameters)


def pareto_front(trials: Iterable[Trial], cost: Cost) -> tuple[Trial, ...]:
    """Return the trials for which no other is better at the same or lower cost, cheapest first; of equals the first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda each: (cost_of(each, cost), -each.accuracy, each.number)):
        if not front or trial.accuracy > front[-1].accuracy:
            front.append(trial)
    return tuple(front)
