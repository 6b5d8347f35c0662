"""A study by the values of one hyperparameter: the best config of each value over seeds, and which values differ.

Configs are selected and ordered by mean validation accuracy. Test accuracies of the same trainings are only reported.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from mnistexp.analysis import parameters, statistics
from mnistexp.analysis.comparison import ALPHA
from mnistexp.analysis.history import History, Trial
from mnistexp.analysis.parameters import SEED, is_number
from mnistexp.analysis.progress import Cost, cost_of
from mnistexp.config.compose import signature
from mnistexp.config.schema import suggestion
from mnistexp.errors import ConfigError

Verdict = Literal["worse", "better", "not significant"]


@dataclass(frozen=True)
class Score:
    """One config's accuracies over its seeds."""

    values: tuple[float, ...]  # in the order of the seeds
    step: float = 0.0  # between two possible accuracies: 1 / images

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return math.fsum(self.values) / len(self.values)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Student's 95 % interval for new seeds; None with one seed only."""
        if len(self.values) < 2:
            return None
        found = statistics.mean_interval(self.values, 1 - ALPHA, statistics.rounding_variance(self.step))
        return found.low, found.high


@dataclass(frozen=True)
class SeededConfig:
    """Complete trials with the same config except for the seed."""

    trials: Mapping[int, Trial]  # seed: trial, in the order of the seeds
    settings: Mapping[str, Any]  # the values of the other searched keys

    @property
    def validation(self) -> Score:
        """The validation accuracies."""
        return Score(tuple(trial.accuracy for trial in self.trials.values()), _step(self.trials.values()))

    @property
    def test(self) -> Score | None:
        """The test accuracies; None unless each trial was tested."""
        found = [trial.test_accuracy for trial in self.trials.values() if trial.test_accuracy is not None]
        # No record holds the number of test images; there are mostly more, so their step is no longer than this one.
        return Score(tuple(found), _step(self.trials.values())) if len(found) == len(self.trials) else None

    def mean_cost(self, cost: Cost) -> float:
        """The mean cost of one training."""
        return math.fsum(cost_of(trial, cost) for trial in self.trials.values()) / len(self.trials)

    @property
    def sort_key(self) -> tuple[float, int]:
        """Best first: the highest mean, then the lowest trial number."""
        return -self.validation.mean, min(trial.number for trial in self.trials.values())


@dataclass(frozen=True)
class SeedTest:
    """A value's best config compared with the best of all, over seeds."""

    difference: float  # mean validation accuracy of the best less that of this one, over the compared seeds
    paired: int  # the number of seeds that both have, for a paired t test; 0: Welch's test of all seeds of each
    partial: bool  # one has further seeds, so the difference is not that of the two means
    p_value: float
    adjusted: float  # corrected for all pairs of values
    significant: bool

    @property
    def verdict(self) -> Verdict:
        """The result for this value. It can be better than the best only if the test uses a part of the seeds."""
        if not self.significant:
            return "not significant"
        return "worse" if self.difference > 0 else "better"


@dataclass(frozen=True)
class Group:
    """One value of the key."""

    value: Any
    configs: tuple[SeededConfig, ...]  # one or more, best first: those with as many seeds as any of this value
    fewer: tuple[SeededConfig, ...]  # those with fewer seeds: they are not compared
    pruned: int
    failed: int
    full: int  # the most seeds that a config of any value has; 0 if no seeds were searched
    against_best: SeedTest | None = None  # None: it is the best, or there are too few seeds

    @property
    def best(self) -> SeededConfig:
        """Its best config by mean validation accuracy."""
        return self.configs[0]

    @property
    def short(self) -> bool:
        """Whether another value has a config with more seeds than any of this value."""
        return len(self.best.trials) < self.full

    @property
    def every(self) -> tuple[SeededConfig, ...]:
        """All of its configs with a complete trial."""
        return (*self.configs, *self.fewer)

    def at_end(self, key: str) -> bool:
        """Whether its best config has the lowest or highest of three or more numbers of another key."""
        numbers = {each.settings[key] for each in self.every if is_number(each.settings.get(key))}
        return len(numbers) > 2 and self.best.settings.get(key) in (min(numbers), max(numbers))


@dataclass(frozen=True)
class Groups:
    """A study by the values of one searched key."""

    key: str
    others: tuple[str, ...]  # the other searched keys, except the seed
    groups: tuple[Group, ...]  # best first; those with fewer seeds come last
    empty: tuple[tuple[Any, int, int], ...]  # values without a complete trial: value, pruned, failed
    without: int  # trials that have no value of the key, as Adam has no momentum; null is a value

    @property
    def repeated(self) -> bool:
        """Whether the best config of any value has more than one seed."""
        return any(len(group.best.trials) > 1 for group in self.groups)

    @property
    def short(self) -> tuple[Group, ...]:
        """The values with fewer seeds than others."""
        return tuple(group for group in self.groups if group.short)

    @property
    def number(self) -> str:
        """The only other searched key, if its values are numbers and can be an axis; else empty."""
        found = [each.settings.get(key) for key in self.others for group in self.groups for each in group.every]
        numbers = [value for value in found if is_number(value)]
        return self.others[0] if len(self.others) == 1 and len(set(numbers)) > 1 and numbers == found else ""


def keys(history: History) -> tuple[str, ...]:
    """Return the keys by which a study can be reported: all searched ones except the seed."""
    return tuple(key for key in parameters.keys(history) if key != SEED)


def single_config(history: History) -> SeededConfig | None:
    """Return the only config of a study that searched nothing but seeds; else None, or before two trials completed."""
    configs = _configs(history.ranked, ()) if parameters.searches_only_seeds(history) else []
    return configs[0] if len(configs) == 1 and len(configs[0].trials) > 1 else None


def by_value(history: History, key: str) -> Groups:
    """Group a study's trials by their values of a key.

    Raises: ConfigError with the searched keys if `key` is none of them.
    """
    known = keys(history)
    if key not in known:
        searched = f"it searched {', '.join(known)}" if known else "it searched no hyperparameter"
        if key == SEED:
            raise ConfigError(f"by=seed: each value's mean is over the seeds; {searched}; name one of those")
        raise ConfigError(f"by={key}: the study did not search it; {searched}{suggestion(key, known)}")
    others = tuple(each for each in known if each != key)
    by_text: dict[str, list[Trial]] = {}
    values: dict[str, Any] = {}
    for trial in history.trials:
        for value in parameters.values_of(trial, [key]).values():
            text = repr(float(value) if is_number(value) else value)  # 0 and 0.0 are one value
            values.setdefault(text, value)
            by_text.setdefault(text, []).append(trial)
    scored = {trial.number for trial in history.ranked}
    configs = {text: _configs([t for t in trials if t.number in scored], others) for text, trials in by_text.items()}
    full = _most_seeds(itertools.chain(*configs.values())) if SEED in parameters.keys(history) else 0
    groups, empty = [], []
    for text, trials in by_text.items():
        pruned, failed = (sum(trial.state == state for trial in trials) for state in ("PRUNED", "FAILED"))
        if configs[text]:
            groups.append(Group(values[text], *_compared(configs[text], repeated=full > 0), pruned, failed, full))
        else:
            empty.append((values[text], pruned, failed))
    without = len(history.trials) - sum(map(len, by_text.values()))
    groups.sort(key=lambda group: (group.short, group.best.sort_key))
    return Groups(key, others, _tested(groups, _step(history.ranked) or 1.0), tuple(empty), without)


def _configs(trials: Iterable[Trial], others: Sequence[str]) -> list[SeededConfig]:
    """Group trials with the same config except for the seed. Of trials with the same seed too, the first counts."""
    found: dict[str, dict[int, Trial]] = {}
    for trial in sorted(trials, key=lambda each: each.number):
        assert trial.record is not None
        config = trial.record.config
        found.setdefault(signature(config, seed=False), {}).setdefault(config.seed, trial)
    return [
        SeededConfig(dict(sorted(seeds.items())), parameters.values_of(next(iter(seeds.values())), others))
        for seeds in found.values()
    ]


def _most_seeds(configs: Iterable[SeededConfig]) -> int:
    return max((len(each.trials) for each in configs), default=0)


def _compared(
    configs: Sequence[SeededConfig], *, repeated: bool
) -> tuple[tuple[SeededConfig, ...], tuple[SeededConfig, ...]]:
    """Split a value's configs into those that can be its best, best first, and those that cannot.

    If seeds were searched, a config with fewer seeds than another was interrupted, or failed with some seeds, so its
    mean may be that of lucky ones. Otherwise a second seed is a coincidence.
    """
    ranked = sorted(configs, key=lambda each: each.sort_key)
    most = _most_seeds(configs) if repeated else 0
    full = [each for each in ranked if len(each.trials) >= most]
    return tuple(full), tuple(each for each in ranked if len(each.trials) < most)


def _step(trials: Iterable[Trial]) -> float:
    """One validation image; 0 without a trial."""
    return next((1 / trial.fit.images for trial in trials if trial.fit), 0.0)


def _tested(groups: Sequence[Group], step: float) -> tuple[Group, ...]:
    """Test each value's best config against the first one's.

    Holm's correction is for all pairs of values, because the same scores selected the best: any pair could have been
    the one compared.
    """
    pairs = itertools.combinations(range(len(groups)), 2)
    tests = {(a, b): test for a, b in pairs if (test := _test(groups[a].best, groups[b].best, step))}
    adjusted = statistics.holm(np.array([test.p_value for test in tests.values()], dtype=np.float64))
    found = list(groups)
    for ((first, second), test), corrected in zip(tests.items(), adjusted.tolist(), strict=True):
        if first == 0:
            test = replace(test, adjusted=corrected, significant=corrected <= ALPHA)
            found[second] = replace(found[second], against_best=test)
    return tuple(found)


def _test(first: SeededConfig, second: SeededConfig, step: float) -> SeedTest | None:
    """Test by the seeds that both have; if they are fewer than two, by all seeds of each; None if there are too few."""
    shared = [seed for seed in first.trials if seed in second.trials]
    floor = statistics.rounding_variance(step)
    if len(shared) > 1:
        differences = [first.trials[seed].accuracy - second.trials[seed].accuracy for seed in shared]
        partial, p_value = len(shared) < _most_seeds((first, second)), statistics.paired_t(differences, 2 * floor)
        return SeedTest(float(np.mean(differences)), len(shared), partial, p_value, 1.0, False)
    if min(len(first.trials), len(second.trials)) < 2:
        return None
    one, other = first.validation, second.validation
    return SeedTest(one.mean - other.mean, 0, False, statistics.welch_t(one.values, other.values, floor), 1.0, False)
