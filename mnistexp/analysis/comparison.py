"""What a study says, in numbers: its course, its winner and its rivals, its costs, its mistakes. Pure.

A History goes in, values come out.

Nothing here is ordered by a test score, or looks at one.
"""

from __future__ import annotations

import bisect
import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from mnistexp.analysis import statistics
from mnistexp.analysis.history import History, Trial
from mnistexp.analysis.statistics import Bools, Counts, Rival
from mnistexp.config.compose import flatten
from mnistexp.config.schema import RunConfig
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.run_context import optimizer_name
from mnistexp.training.results import FitResult

Labels = npt.NDArray[np.int32]
By = Literal["trials", "seconds"]

ALPHA = 0.05  # the share of sweeps in which the report may call a difference real that is none
FROM_TO, LOGARITHMIC = " … ", ", logarithmic"
MISTAKE = np.dtype("<u2")  # of FitResult.wrong_predictions


def fit_of(trial: Trial) -> FitResult | None:
    """A trial's training; None if it failed."""
    return trial.record.result.fit if trial.record and trial.record.result else None


def accuracy_of(trial: Trial) -> float:
    """The validation accuracy of a trial that has one."""
    assert trial.val_accuracy is not None
    return trial.val_accuracy


# ---------------------------------------------------------------------------------------------- its parameters


def keys(history: History) -> tuple[str, ...]:
    """What was searched, as override keys: `optimizer.learning_rate` once, however many distributions it has."""
    return tuple(dict.fromkeys(key_of(name) for name in searched(history)))


def searched(history: History) -> dict[str, str]:
    """What was searched: Optuna's parameter → its distribution, for a reader."""
    prefix = "search."
    found = {name: described(text) for name, text in history.fingerprint.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): text for name, text in found.items() if text}


def repeats_one_config(history: History) -> bool:
    """Whether nothing was searched but seeds, so that all trials are one config and none of them beats another."""
    return keys(history) == ("seed",)


def key_of(name: str) -> str:
    """The override key of an Optuna parameter: `optimizer.learning_rate` of `optimizer.learning_rate@adam|nadam`."""
    return name.partition("@")[0]


def logarithmic(history: History) -> tuple[str, ...]:
    """Optuna's names of the parameters that were searched on a logarithmic scale."""
    return tuple(name for name, text in searched(history).items() if text.endswith(LOGARITHMIC))


def settings(trial: Trial, wanted: Sequence[str]) -> dict[str, Any]:
    """A trial's values of the searched keys: what was drawn, or else what its config has. Lists come as text.

    null is a value, and comes as None; a key is missing only where the trial has none, as Adam has no momentum.
    The first trial is the config as it stands, which may lie outside of the space; of a group's options it tells the
    optimizer's alone.
    """
    drawn = {key_of(name): value for name, value in trial.params.items()}
    lacking = trial.record is not None and not drawn.keys() >= set(wanted)  # else nothing is asked of its config
    values = {**(_configured(trial.record.config) if trial.record and lacking else {}), **drawn}
    found = {key: values[key] for key in wanted if key in values}
    return {key: shown(v) if isinstance(v, list) else v for key, v in found.items()}


def _configured(config: RunConfig) -> dict[str, Any]:
    return {**flatten(config.model_dump(mode="json")), "optimizer": optimizer_name(config)}


def by_key(shares: Mapping[str, float]) -> dict[str, float]:
    """Importances of Optuna's parameters as those of override keys, largest first."""
    total: Counter[str] = Counter()
    for name, share in shares.items():
        total[key_of(name)] += share  # type: ignore[assignment]  # a Counter adds floats as well
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def numeric(history: History) -> tuple[str, ...]:
    """The searched keys whose values are numbers, two different ones at least, or null: what can be an axis."""
    drawn = [settings(trial, keys(history)) for trial in history.trials]
    found = {key: {values.get(key) for values in drawn} - {None} for key in keys(history)}
    return tuple(key for key, values in found.items() if len(values) > 1 and all(map(is_number, values)))


def is_number(value: object) -> bool:
    """Whether a value is a number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


# -------------------------------------------------------------------------------------------------- its course


@dataclass(frozen=True)
class Step:
    """A trial that was better than all that had ended before it."""

    at: float  # trials that have ended, this one included; or seconds with a trial at work
    number: int
    val_accuracy: float


def ended(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """The trials that were run, in the order of their ends. One that was refused never ran."""
    ran = [trial for trial in trials if trial.record]
    return tuple(sorted(ran, key=lambda trial: (_record(trial).ended, trial.number)))


def best_so_far(trials: Iterable[Trial], by: By = "trials") -> tuple[Step, ...]:
    """Each trial that took the lead, in order. Pruned trials count as trials, and never lead."""
    in_order = ended(trials)
    at = range(1, len(in_order) + 1) if by == "trials" else busy_seconds(in_order)
    steps: list[Step] = []
    for place, trial in zip(at, in_order, strict=True):
        leads = trial.state == "COMPLETE" and (not steps or accuracy_of(trial) > steps[-1].val_accuracy)
        if leads:
            steps.append(Step(float(place), trial.number, accuracy_of(trial)))
    return tuple(steps)


def busy_seconds(in_order: Sequence[Trial]) -> tuple[float, ...]:
    """For each trial, in the order of their ends: for how long any had been at work when it ended.

    Not the wall clock: a study that goes on tomorrow didn't search all night.
    """
    ends = [_record(trial).ended for trial in in_order]
    spans = sorted((min(_record(trial).started, end), end) for trial, end in zip(in_order, ends, strict=True))
    merged: list[list[float]] = []
    for start, end in spans:
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    starts = [start for start, _ in merged]
    before = [0.0, *itertools.accumulate(until - start for start, until in merged)]
    places = [bisect.bisect_right(starts, end) - 1 for end in ends]
    return tuple(before[place] + (end - starts[place]) for place, end in zip(places, ends, strict=True))


@dataclass(frozen=True)
class Costs:
    """What a study took."""

    trials: int
    complete: int
    pruned: int
    failed: int
    epochs: int  # that were run
    spared: int  # that pruned trials didn't run any more
    training_seconds: float  # of all trials, one after the other
    busy_seconds: float  # with a trial at work

    @property
    def spared_share(self) -> float:
        """Of all epochs that would have been run."""
        return self.spared / max(1, self.epochs + self.spared)


def costs(history: History) -> Costs:
    """Add up what a study took."""
    states = Counter(trial.state for trial in history.trials)
    ran = ended(history.trials)
    epochs = [len(_record(trial).epochs) for trial in ran]
    planned = [_planned(_record(trial)) for trial in ran]
    return Costs(
        trials=len(history.trials),
        complete=states["COMPLETE"],
        pruned=states["PRUNED"],
        failed=states["FAILED"],
        epochs=sum(epochs),
        spared=sum(p - e for p, e, trial in zip(planned, epochs, ran, strict=True) if trial.state == "PRUNED"),
        training_seconds=sum(_record(trial).ended - _record(trial).started for trial in ran),
        busy_seconds=max(busy_seconds(ran), default=0.0),
    )


def _planned(record: RunRecord) -> int:
    """The epochs that a training would have had."""
    trainer = record.config.trainer
    return trainer.most_epochs(record.epochs[0].steps) if record.epochs else trainer.epochs


def failures(history: History) -> dict[str, tuple[int, ...]]:
    """Why trials failed: reason → their numbers."""
    found: dict[str, tuple[int, ...]] = {}
    for trial in history.trials:
        if trial.state == "FAILED":
            reason = trial.reason or (trial.record.reason if trial.record else "") or "no reason was recorded"
            found[reason] = (*found.get(reason, ()), trial.number)
    return found


def _record(trial: Trial) -> RunRecord:
    assert trial.record is not None
    return trial.record


# -------------------------------------------------------------------------------------------- is the best real?


@dataclass(frozen=True)
class Versus:
    """A complete trial beside the best one, on the same validation images."""

    trial: Trial
    test: Rival


@dataclass(frozen=True, eq=False)
class BestComparison:
    """The best trial among its rivals."""

    best: Trial
    images: int
    hits: Bools  # [complete trials, images], best first
    low: float  # Wilson's interval of the best one's accuracy, at 95 %
    high: float
    optimism: float  # how much of that accuracy is luck in images, on average
    rivals: tuple[Versus, ...]  # best first

    @property
    def alike(self) -> tuple[Trial, ...]:
        """The rivals that can't be told apart from the best, best first."""
        return tuple(versus.trial for versus in self.rivals if not versus.test.distinguishable)

    @property
    def standard_error(self) -> float:
        """Of one measured accuracy like the best one's, from image to image."""
        accuracy = accuracy_of(self.best)
        return math.sqrt(accuracy * (1 - accuracy) / self.images)


def standing(history: History, resamples: int = 1000) -> BestComparison | None:
    """Test the best trial against each other complete one. None if there is none, or the records of hits don't fit."""
    ranked = history.ranked
    hits = hits_of(ranked) if ranked else None
    if hits is None:
        return None
    tests = statistics.against_best(hits, 0, ALPHA) if len(ranked) > 1 else ()
    total = hits.shape[1]
    low, high = statistics.proportion_interval(int(hits[0].sum()), total)
    optimism = statistics.selection_optimism(hits, np.random.default_rng(0), resamples)  # the same luck each time
    rivals = tuple(Versus(ranked[test.index], test) for test in tests)
    return BestComparison(ranked[0], total, hits, low, high, optimism, rivals)


def images_of(trial: Trial) -> int | None:
    """How many validation images a complete trial was scored on; None if it got none right."""
    # No config says it: a user's own file may bring its validation split.
    fit = fit_of(trial)
    right = int.from_bytes(fit.validation_correct, "big").bit_count() if fit else 0
    return round(right / accuracy_of(trial)) if right and accuracy_of(trial) else None


def hits_of(trials: Sequence[Trial]) -> Bools | None:
    """Which validation images each trial got right, [trials, images]; None if the records don't fit their scores."""
    packed = [fit.validation_correct for trial in trials if (fit := fit_of(trial))]
    told = np.array([accuracy_of(trial) for trial in trials])
    images = images_of(trials[0])
    if images is None:
        return None
    try:
        hits = statistics.hits_matrix(packed, images)
    except ValueError:
        return None
    return hits if np.allclose(hits.mean(axis=1), told, atol=1e-6) else None


# ------------------------------------------------------------------------------------------- several studies


@dataclass(frozen=True)
class Winner:
    """A study's best trial beside the best of all studies."""

    study: str
    trial: Trial
    test: Rival | None  # None: it is the best of all


def winners(histories: Sequence[History]) -> tuple[Winner, ...] | None:
    """Test studies' best trials against each other; None unless all were scored on the same images.

    Corrected for all pairs of all their complete trials: each winner was picked by these very images.
    """
    ranked = [history.ranked for history in histories]
    if not all(ranked) or len({_record(trials[0]).data_fingerprint for trials in ranked}) > 1:
        return None
    everyone = tuple(itertools.chain.from_iterable(ranked))
    hits = hits_of(everyone)
    if hits is None:
        return None
    starts = list(itertools.accumulate((len(trials) for trials in ranked[:-1]), initial=0))
    best = max(starts, key=lambda start: (accuracy_of(everyone[start]), -start))
    tests = {test.index: test for test in statistics.against_best(hits, best, ALPHA)}
    return tuple(
        Winner(history.name, everyone[start], tests.get(start))
        for history, start in zip(histories, starts, strict=True)
    )


# ------------------------------------------------------------------------------------- how the space was cut down


@dataclass(frozen=True)
class Cut:
    """One parameter: what was searched, and what is left of it."""

    name: str  # Optuna's
    searched: str
    alike: str  # among the trials that can't be told apart from the best
    top: str  # among the top tenth


def cuts(history: History, alike: Sequence[Trial]) -> tuple[Cut, ...]:
    """How far each parameter's values among the good trials are narrower than what was searched.

    Args:
        alike: the trials that can't be told apart from the best, itself included.
    """
    top = top_tenth(history)
    return tuple(
        Cut(name, text, *(spread(trials, name, ranged=FROM_TO in text) for trials in (alike, top)))
        for name, text in searched(history).items()
    )


def top_tenth(history: History) -> tuple[Trial, ...]:
    """The best tenth of the complete trials, three at least if there are as many."""
    return history.ranked[: max(3, math.ceil(len(history.ranked) / 10))]


def described(distribution: str) -> str:
    """A distribution as a study's fingerprint has it, for a reader; empty if it is none.

    >>> described('{"high": 0.1, "log": true, "low": 0.001, "step": null}')
    '0.001 … 0.1, logarithmic'
    """
    try:
        plain = json.loads(distribution)
        if "values" in plain:
            return ", ".join(shown(value) for value in plain["values"])
        log = LOGARITHMIC if plain["log"] else ""
        return f"{shown(plain['low'])}{FROM_TO}{shown(plain['high'])}{log}"
    except (ValueError, KeyError, TypeError):
        return ""


def spread(trials: Sequence[Trial], name: str, *, ranged: bool) -> str:
    """The values of one parameter: from … to where a range was searched, else each with how often; `–` if none."""
    values = [trial.params[name] for trial in trials if name in trial.params]
    if not values:
        return "–"
    if ranged:
        return FROM_TO.join(dict.fromkeys(map(shown, (min(values), max(values)))))
    counts = Counter(map(shown, values)).most_common()
    return ", ".join(value if len(counts) == 1 else f"{value} ×{count}" for value, count in counts)


def shown(value: object) -> str:
    """A value in a few characters: three significant digits, and a list or null as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value, separators=(",", ":")) if isinstance(value, list) else str(value)
    return str(value) if isinstance(value, int) else f"{value:.3g}"


# ------------------------------------------------------------------------------------------- accuracy and cost

Cost = Literal["seconds", "parameters"]


def cost_of(trial: Trial, cost: Cost) -> float:
    """What a trial with a training cost: wall-clock seconds of it, or trainable parameters."""
    fit = fit_of(trial)
    assert fit is not None
    return fit.seconds if cost == "seconds" else float(fit.parameters)


def pareto(trials: Iterable[Trial], cost: Cost) -> tuple[Trial, ...]:
    """The trials to which no other is better without costing more, cheapest first; the first of equals."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda each: (cost_of(each, cost), -accuracy_of(each), each.number)):
        if not front or accuracy_of(trial) > accuracy_of(front[-1]):
            front.append(trial)
    return tuple(front)


# ------------------------------------------------------------------------------------------------- its mistakes


@dataclass(frozen=True)
class Miss:
    """A validation image that the best trial got wrong."""

    index: int  # in the validation split
    label: int
    taken_for: int
    missed_by: int  # how many of the complete trials got it wrong


@dataclass(frozen=True, eq=False)
class Mistakes:
    """What the best trial took for what."""

    confusion: Counts  # [classes, classes]: rows are labels, columns what they were taken for
    misses: tuple[Miss, ...]  # those that most trials miss first
    trials: int  # complete ones


def mistakes(found: BestComparison, labels: Labels, classes: int) -> Mistakes | None:
    """What the best trial got wrong; None if its record is of before that was kept, or of another split.

    Args:
        labels: [N], of the validation split.
    """
    hits, fit = found.hits[0], fit_of(found.best)
    missed = np.flatnonzero(~hits)
    kept = fit.wrong_predictions if fit else b""
    if len(labels) != len(hits) or len(kept) != MISTAKE.itemsize * len(missed):
        return None
    predicted = labels.astype(np.int64)
    predicted[missed] = np.frombuffer(kept, MISTAKE)
    if predicted.max() >= classes:
        return None
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    hardness = np.sum(~found.hits, axis=0)
    misses = [Miss(int(i), int(labels[i]), int(predicted[i]), int(hardness[i])) for i in missed]
    misses.sort(key=lambda miss: (-miss.missed_by, miss.index))
    return Mistakes(confusion, tuple(misses), len(found.hits))
