"""A study by the values of one hyperparameter: the best config of each value over seeds, and which values differ.

Configs are selected and ordered by mean validation accuracy. Test accuracies of the same trainings are only reported.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Score:
    """One config's accuracies over its seeds."""

    values: tuple[float, ...]  # in the order of the seeds
    step: float  # between two possible accuracies: 1 / images

    @property
    def mean(self) -> float:
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
    def step(self) -> float:
        """Between two possible accuracies: one validation image."""
        return next(1 / trial.fit.images for trial in self.trials.values() if trial.fit)

    @property
    def validation(self) -> Score:
        return Score(tuple(trial.accuracy for trial in self.trials.values()), self.step)

    @property
    def test(self) -> Score | None:
        """The test accuracies; None unless each trial was tested."""
        found = [trial.test_accuracy for trial in self.trials.values() if trial.test_accuracy is not None]
        # No record holds the number of test images; there are mostly more, so their step is no longer than this one.
        return Score(tuple(found), self.step) if len(found) == len(self.trials) else None

    def mean_cost(self, cost: Cost) -> float:
        """Return the mean cost of one training."""
        return math.fsum(cost_of(trial, cost) for trial in self.trials.values()) / len(self.trials)

    @property
    def sort_key(self) -> tuple[float, int]:
        """Best first: the highest mean, then the lowest trial number."""
        return -self.validation.mean, min(trial.number for trial in self.trials.values())


@dataclass(frozen=True)
class SeedTest:
    """A value's best config compared with the best of all by a paired t test over the seeds that both have."""

    difference: float  # mean validation accuracy of the best less that of this one, over the compared seeds
    seeds: int  # two or more
    partial: bool  # one has further seeds, so the difference is not that of the two means
    p_value: float
    adjusted: float = 1.0  # corrected for all pairs of values

    @property
    def verdict(self) -> Literal["worse", "better", "not significant"]:
        """The result for this value. It can be better than the best only if the test uses a part of the seeds."""
        if self.adjusted > ALPHA:
            return "not significant"
        return "worse" if self.difference > 0 else "better"


@dataclass(frozen=True)
class Group:
    """One value of the key."""

    value: Any
    configs: tuple[SeededConfig, ...]  # best first; those with fewer seeds than others of this value come last
    pruned: int
    failed: int
    short: bool  # another value has a config with more seeds than any of this value
    against_best: SeedTest | None = None  # None: it is the best, or there are too few seeds

    @property
    def best(self) -> SeededConfig:
        """Its best config by mean validation accuracy."""
        return self.configs[0]

    @property
    def verdict(self) -> Literal["worse", "better", "not significant", "not tested"]:
        """The result of its test against the best value."""
        return self.against_best.verdict if self.against_best else "not tested"


@dataclass(frozen=True)
class Groups:
    """A study by the values of one searched key."""

    key: str
    others: tuple[str, ...]  # the other searched keys, except the seed
    groups: tuple[Group, ...]  # best first; those with fewer seeds come last
    empty: tuple[Group, ...]  # values without a complete trial
    without: int  # trials that have no value of the key, as Adam has no momentum; null is a value

    @property
    def number(self) -> str:
        """The only other searched key, if its values are numbers and can be an axis; else empty."""
        found = [each.settings.get(key) for key in self.others for group in self.groups for each in group.configs]
        one_axis = len(self.others) == 1 and len(set(found)) > 1 and all(map(is_number, found))
        return self.others[0] if one_axis else ""


def keys(history: History) -> tuple[str, ...]:
    """Return the keys by which a study can be reported: all searched ones except the seed."""
    return tuple(key for key in parameters.keys(history) if key != SEED)


def single_config(history: History) -> SeededConfig | None:
    """Return the only config of a study that searched nothing but seeds; else None, or before two trials completed."""
    configs = _configs(history.ranked, ()) if parameters.searches_only_seeds(history) else ()
    return configs[0] if len(configs) == 1 and len(configs[0].trials) > 1 else None


def by_value(history: History, key: str) -> Groups:
    """Group a study's trials by their values of a key.

    Raises: ConfigError with the searched keys if `key` is none of them.
    """
    known = keys(history)
    if key not in known:
        searched = ", ".join(known) or "nothing but seeds"
        raise ConfigError(f"by={key}: the study has no such parameter; it searched {searched}{suggestion(key, known)}")
    others = tuple(each for each in known if each != key)
    by_text: dict[str, list[Trial]] = {}
    values: dict[str, Any] = {}
    for trial in history.trials:
        for value in parameters.values_of(trial, [key]).values():
            text = repr(float(value) if is_number(value) else value)  # 0 and 0.0 are one value
            values.setdefault(text, value)
            by_text.setdefault(text, []).append(trial)
    repeated = SEED in parameters.keys(history)  # otherwise a second seed is a coincidence
    scored = {trial.number for trial in history.ranked}
    found = []
    for text, trials in by_text.items():
        pruned, failed = (sum(trial.state == state for trial in trials) for state in ("PRUNED", "FAILED"))
        configs = _configs([t for t in trials if t.number in scored], others, most_seeds_first=repeated)
        found.append(Group(values[text], configs, pruned, failed, short=False))
    groups = [group for group in found if group.configs]
    if repeated:
        most = max((len(group.best.trials) for group in groups), default=0)
        groups = [replace(group, short=len(group.best.trials) < most) for group in groups]
    groups.sort(key=lambda group: (group.short, group.best.sort_key))
    empty = tuple(group for group in found if not group.configs)
    return Groups(key, others, _tested(groups), empty, len(history.trials) - sum(map(len, by_text.values())))


def _configs(
    trials: Sequence[Trial], others: Sequence[str], *, most_seeds_first: bool = False
) -> tuple[SeededConfig, ...]:
    """Group trials with the same config except for the seed, best first. Of trials with the same seed the first counts.

    Args:
        most_seeds_first: put configs with fewer seeds than others last. They were interrupted, or failed with some
            seeds, so their mean may be that of lucky ones.
    """
    by_config: dict[str, dict[int, Trial]] = {}
    for trial in sorted(trials, key=lambda each: each.number):
        assert trial.record is not None
        config = trial.record.config
        by_config.setdefault(signature(config, seed=False), {}).setdefault(config.seed, trial)
    found = [
        SeededConfig(dict(sorted(seeds.items())), parameters.values_of(next(iter(seeds.values())), others))
        for seeds in by_config.values()
    ]
    most = max((len(each.trials) for each in found), default=0) if most_seeds_first else 0
    return tuple(sorted(found, key=lambda each: (len(each.trials) < most, each.sort_key)))


def _tested(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Test each value's best config against the first one's.

    Holm's correction is for all pairs of values, because the same scores selected the best: any pair could have been
    the one compared.
    """
    pairs = itertools.combinations(range(len(groups)), 2)
    tests = {(a, b): test for a, b in pairs if (test := _test(groups[a].best, groups[b].best))}
    adjusted = statistics.holm(np.array([test.p_value for test in tests.values()], dtype=np.float64))
    found = list(groups)
    for ((first, second), test), corrected in zip(tests.items(), adjusted.tolist(), strict=True):
        if first == 0:
            found[second] = replace(found[second], against_best=replace(test, adjusted=corrected))
    return tuple(found)


def _test(first: SeededConfig, second: SeededConfig) -> SeedTest | None:
    shared = sorted(first.trials.keys() & second.trials.keys())
    if len(shared) < 2:
        return None
    differences = [first.trials[seed].accuracy - second.trials[seed].accuracy for seed in shared]
    floor = 2 * statistics.rounding_variance(first.step)
    partial = len(shared) < max(len(first.trials), len(second.trials))
    return SeedTest(float(np.mean(differences)), len(shared), partial, statistics.paired_t(differences, floor))
