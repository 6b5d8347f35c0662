"""A study by one of its hyperparameters: for each value its best config over seeds, and which of those really differ.

Pure: a History goes in, values come out. Configs are chosen and ordered by mean validation accuracy; the test
accuracies of the same trainings are only carried along.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mnistexp.analysis import comparison, statistics
from mnistexp.analysis.comparison import ALPHA
from mnistexp.analysis.history import History, Trial
from mnistexp.config.compose import signature
from mnistexp.config.schema import suggestion
from mnistexp.errors import ConfigError

SEED = "seed"
Verdict = Literal["worse", "ahead", "can't tell"]


@dataclass(frozen=True)
class Score:
    """One config's accuracies over its seeds."""

    values: tuple[float, ...]  # a value for each seed, in order of the seeds
    step: float = 0.0  # between two accuracies, one image: what equal scores leave open

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval for new seeds; None of one seed alone."""
        if len(self.values) < 2:
            return None
        floor = statistics.rounding(self.step) if self.step else 0.0
        found = statistics.mean_interval(self.values, 1 - ALPHA, floor=floor)
        return found.low, found.high


@dataclass(frozen=True)
class Repeated:
    """Complete trials that are equal but for the seed."""

    trials: Mapping[int, Trial]  # seed → trial, in order of the seeds
    settings: Mapping[str, Any]  # the other searched keys' values

    @property
    def validation(self) -> Score:
        """Their validation accuracies."""
        return Score(tuple(map(comparison.accuracy_of, self.trials.values())), self.step)

    @property
    def step(self) -> float:
        """One validation image; 0 where no trial says how many there are."""
        images = next(filter(None, map(comparison.images_of, self.trials.values())), None)
        return 1 / images if images else 0.0

    @property
    def test(self) -> Score | None:
        """Their test accuracies; None unless each was tested."""
        results = [trial.record.result for trial in self.trials.values() if trial.record]
        found = [each.test_accuracy for each in results if each is not None and each.test_accuracy is not None]
        # How many test images there are no record says; mostly more, so that the step is no shorter than theirs.
        return Score(tuple(found), self.step) if len(found) == len(self.trials) else None

    def mean_cost(self, cost: comparison.Cost) -> float:
        """What a training of it costs on average."""
        return math.fsum(comparison.cost_of(trial, cost) for trial in self.trials.values()) / len(self.trials)

    @property
    def order(self) -> tuple[float, int]:
        """What sorts them best first: the mean, then the lowest trial."""
        return -self.validation.mean, min(trial.number for trial in self.trials.values())


@dataclass(frozen=True)
class Behind:
    """A value's best config beside the best of all."""

    difference: float  # the best one's mean validation accuracy less this one's, of the seeds that were compared
    paired: int  # seeds that both have, and that the test went by; 0: Welch's test of all seeds of each
    partial: bool  # either has further seeds, so the difference is not that of their means
    p_value: float
    adjusted: float  # corrected for all pairs of values that could be tested
    distinguishable: bool

    @property
    def verdict(self) -> Verdict:
        """What the test says of this one. Ahead of the best it can only be by a part of the seeds."""
        if not self.distinguishable:
            return "can't tell"
        return "worse" if self.difference > 0 else "ahead"


@dataclass(frozen=True)
class Group:
    """One value of the key."""

    value: Any
    configs: tuple[Repeated, ...]  # those that compete, best first: at least one
    fewer: tuple[Repeated, ...]  # those with fewer seeds than the fullest of them: they don't compete
    pruned: int
    failed: int
    full: int  # the most seeds that a config of any value has; 0 where no seeds were searched
    behind: Behind | None = None  # None: it is the best, or can't be tested for lack of seeds

    @property
    def best(self) -> Repeated:
        """Its best config by mean validation accuracy."""
        return self.configs[0]

    @property
    def short(self) -> bool:
        """Whether it has no config with as many seeds as another value's: its mean is of the luckier seeds, perhaps."""
        return len(self.best.trials) < self.full

    @property
    def every(self) -> tuple[Repeated, ...]:
        """All of its configs with a complete trial."""
        return (*self.configs, *self.fewer)

    def at_end(self, key: str) -> bool:
        """Whether its best config has the lowest or highest of three or more values of a number that were tried."""
        tried = {each.settings[key] for each in self.every if comparison.is_number(each.settings.get(key))}
        return len(tried) > 2 and self.best.settings.get(key) in (min(tried), max(tried))


@dataclass(frozen=True)
class Groups:
    """A study by the values of one searched key."""

    key: str
    others: tuple[str, ...]  # what else was searched, but for the seed
    groups: tuple[Group, ...]  # best first, and those that are short of seeds behind all others
    empty: Mapping[str, tuple[int, int]]  # values of which no trial completed, as shown → pruned, failed
    without: int  # trials that have no value of it, as Adam has no momentum; null is a value

    @property
    def repeated(self) -> bool:
        """Whether any value's best config has more than one seed."""
        return any(len(group.best.trials) > 1 for group in self.groups)

    @property
    def short(self) -> tuple[Group, ...]:
        """The values with fewer seeds than others, best first."""
        return tuple(group for group in self.groups if group.short)

    @property
    def number(self) -> str:
        """The one other key that was searched, if its values are numbers: what means can be drawn over. Else empty."""
        found = [each.settings.get(key) for key in self.others for group in self.groups for each in group.every]
        numbers = [value for value in found if comparison.is_number(value)]
        return self.others[0] if len(self.others) == 1 and len(set(numbers)) > 1 and numbers == found else ""


def keys(history: History) -> tuple[str, ...]:
    """What a study can be told by: what it searched, but for seeds."""
    return tuple(key for key in comparison.keys(history) if key != SEED)


def only(history: History) -> Repeated | None:
    """The one config of a study that searched nothing but seeds; None of another study, or before two completed."""
    configs = _configs(history.ranked, ()) if comparison.repeats_one_config(history) else []
    return configs[0] if len(configs) == 1 and len(configs[0].trials) > 1 else None


def checked(history: History, key: str) -> str:
    """A key that the study can be told by. Raises: ConfigError with those that there are."""
    known = keys(history)
    if key in known:
        return key
    searched = f"it searched {', '.join(known)}" if known else "it searched no hyperparameter"
    if key == SEED:
        raise ConfigError(f"by=seed: seeds are what each value's mean is taken over; {searched}, so name one of those")
    raise ConfigError(f"by={key}: the study didn't search it; {searched}{suggestion(key, known)}")


def by(history: History, key: str) -> Groups:
    """Sort a study's trials by their values of a key. Raises: ConfigError if it didn't search that."""
    key = checked(history, key)
    others = tuple(each for each in keys(history) if each != key)
    scored = {trial.number for trial in history.ranked}
    found: dict[str, list[Trial]] = {}
    values: dict[str, Any] = {}
    for trial in history.trials:
        for value in comparison.settings(trial, [key]).values():
            same = repr(float(value) if comparison.is_number(value) else value)  # 0 is 0.0; floats may be shown alike
            values.setdefault(same, value)
            found.setdefault(same, []).append(trial)
    configs = {text: _configs([t for t in trials if t.number in scored], others) for text, trials in found.items()}
    full = _most(itertools.chain(*configs.values())) if SEED in comparison.keys(history) else 0
    groups, empty = [], {}
    for text, trials in found.items():
        pruned, failed = (sum(trial.state == state for trial in trials) for state in ("PRUNED", "FAILED"))
        if configs[text]:
            competing, fewer = _competing(configs[text], repeated=full > 0)
            groups.append(Group(values[text], competing, fewer, pruned, failed, full))
        else:
            empty[comparison.shown(values[text])] = (pruned, failed)
    without = len(history.trials) - sum(map(len, found.values()))
    groups.sort(key=lambda group: (group.short, group.best.order))
    # Where no trial got an image right, all accuracies are 0 and equal, whatever their step.
    images = next(filter(None, map(comparison.images_of, history.ranked)), 1)
    return Groups(key, others, _tested(groups, 1 / images), empty, without)


def _configs(trials: Iterable[Trial], others: Sequence[str]) -> list[Repeated]:
    """Trials that are equal but for the seed, together; the first of those that are equal altogether."""
    found: dict[str, dict[int, Trial]] = {}
    for trial in sorted(trials, key=lambda each: each.number):
        assert trial.record is not None
        config = trial.record.config
        found.setdefault(signature(config, seed=False), {}).setdefault(config.seed, trial)
    return [
        Repeated(dict(sorted(seeds.items())), comparison.settings(next(iter(seeds.values())), others))
        for seeds in found.values()
    ]


def _most(configs: Iterable[Repeated]) -> int:
    """The most seeds that one of them has."""
    return max((len(each.trials) for each in configs), default=0)


def _competing(configs: Sequence[Repeated], *, repeated: bool) -> tuple[tuple[Repeated, ...], tuple[Repeated, ...]]:
    """Those that may be a value's best, best first, and those that may not.

    Where seeds were searched, a config that has fewer than the fullest was interrupted, or failed with some seeds:
    its mean is that of the seeds that went well, or luck. Elsewhere a second seed is chance.
    """
    ranked = sorted(configs, key=lambda each: each.order)
    most = _most(configs) if repeated else 0
    return (
        tuple(each for each in ranked if len(each.trials) >= most),
        tuple(each for each in ranked if len(each.trials) < most),
    )


# ------------------------------------------------------------------------------------------- who really differs


def _tested(groups: Sequence[Group], step: float) -> tuple[Group, ...]:
    """Test each value's best config against the first one's.

    Corrected (Holm) for all pairs, not for those with the best alone: it was picked by these very scores, so any pair
    could have become the one looked at.

    Args:
        step: between two accuracies, one image.
    """
    pairs = itertools.combinations(range(len(groups)), 2)
    tests = {(a, b): test for a, b in pairs if (test := _test(groups[a].best, groups[b].best, step))}
    adjusted = statistics.holm(np.array([test.p_value for test in tests.values()], dtype=np.float64))
    found = list(groups)
    for ((first, second), test), corrected in zip(tests.items(), adjusted.tolist(), strict=True):
        if first == 0:
            behind = replace(test, adjusted=corrected, distinguishable=corrected <= ALPHA)
            found[second] = replace(found[second], behind=behind)
    return tuple(found)


def _test(first: Repeated, second: Repeated, step: float) -> Behind | None:
    """By the seeds that both have; by all seeds of each where they share less than two; None if there are too few."""
    shared = [seed for seed in first.trials if seed in second.trials]
    floor = statistics.rounding(step)
    if len(shared) > 1:
        scores = [[comparison.accuracy_of(each.trials[seed]) for seed in shared] for each in (first, second)]
        differences = np.array(scores[0]) - np.array(scores[1])
        partial, p_value = len(shared) < _most((first, second)), statistics.paired_t(differences, 2 * floor)
        return Behind(float(differences.mean()), len(shared), partial, p_value, 1.0, False)
    if min(len(first.trials), len(second.trials)) < 2:
        return None
    one, other = first.validation, second.validation
    p_value = statistics.welch_t(one.values, other.values, floor)
    return Behind(one.mean - other.mean, 0, False, p_value, 1.0, False)
