"""Rank a study's best configs by their runs with fresh seeds, and read the score of the one tested network.

The validation images are those of the sweep, so fresh seeds do not remove the selection bias that comes from the
images. The test score has neither bias: no choice used it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mnistexp.analysis import history as histories
from mnistexp.analysis.history import History, Storage, Trial
from mnistexp.analysis.statistics import (
    Bools,
    Interval,
    NoiseParts,
    crossed,
    mean_interval,
    proportion_interval,
    rounding_variance,
    unpack_correct,
)
from mnistexp.config.compose import signature
from mnistexp.config.schema import RunConfig
from mnistexp.errors import StoreError
from mnistexp.study import repeats
from mnistexp.study.fingerprint import CONFIRMATION
from mnistexp.study.repeats import Candidate, Repeat
from mnistexp.tracking.records import RunRecord
from mnistexp.training.results import FitResult, objective_value

LEVEL = 0.95


@dataclass(frozen=True)
class ConfirmedConfig:
    """A config of the study, trained again with fresh seeds."""

    number: int  # of its trial in the study
    val_accuracy: float  # of that trial
    config: RunConfig
    overrides: tuple[str, ...]
    scores: tuple[float, ...]  # validation accuracy with each fresh seed, in the order of the seeds
    interval: Interval  # of the mean over seeds, on these images
    noise: NoiseParts  # of the mean over seeds and images; its interval is for new ones of both
    difference: NoiseParts | None  # chosen minus this one, paired by image and seed; None for the chosen config
    correct: tuple[bytes, ...] = ()  # np.packbits of the images that each seed's network classified correctly
    images: int = 0

    @property
    def significant(self) -> bool:
        """Whether this config is significantly worse than the chosen one."""
        return self.difference is not None and self.difference.low > 0


@dataclass(frozen=True)
class TestScore:
    """The test score of the chosen config's best network."""

    accuracy: float
    low: float  # Wilson's interval at 95 %
    high: float
    images: int
    seed: int
    val_accuracy: float  # of this network
    same_weights: bool = True  # as the run with this config and seed; another machine, device or version may differ


@dataclass(frozen=True)
class Confirmation:
    """A study's best configs over fresh seeds."""

    name: str  # of the confirmation's study
    seeds: int
    configs: tuple[ConfirmedConfig, ...]  # by their mean, best first; the first is the chosen one
    test: TestScore | None
    decision: str  # one sentence on the champion; "" before a network was registered
    test_evaluations: int = 0  # by all confirmations of the study: more than one after other seeds or another top=
    left_out: tuple[int, ...] = ()  # trials with a failed run, which have no mean to rank
    winner: int = 0  # the study's own best trial
    level: float = LEVEL  # of the intervals in `difference`: corrected, so that all of them hold together

    @property
    def chosen(self) -> ConfirmedConfig:
        """The config with the best mean."""
        return self.configs[0]

    @property
    def best_seed_index(self) -> int:
        """The seed of the chosen config's best network by validation accuracy; the first of equals."""
        return self.chosen.scores.index(max(self.chosen.scores))


def candidates(study: History, top: int) -> tuple[Candidate, ...]:
    """Return a study's best configs, best first, at most `top`. Configs that differ only in the seed count once."""
    found: dict[str, Candidate] = {}
    for each in map(_candidate, study.ranked):
        found.setdefault(signature(each.config, seed=False), each)
    return tuple(found.values())[:top]


def _candidate(trial: Trial) -> Candidate:
    assert trial.record is not None
    assert trial.val_accuracy is not None
    return Candidate(trial.number, trial.val_accuracy, trial.record.config, trial.record.overrides)


def load(storage: Storage, study: History) -> Confirmation | None:
    """Return a study's newest confirmation that has two seeds of its configs; None if there is none.

    Raises: StoreError if another version of mnistexp wrote it.
    """
    names = histories.study_names(storage, repeats.prefix(study.name))
    newest = sorted((histories.load(storage, name) for name in names), key=_ended, reverse=True)
    return next((found for each in newest if (found := read(storage, study, each)) is not None), None)


def read(storage: Storage, study: History, confirm: History) -> Confirmation | None:
    """Return one confirmation; None if it belongs to another study, or no config has two seeds yet."""
    ranked_trials = _repeated_trials(study, confirm)
    try:
        found = rank(confirm.name, ranked_trials, confirm) if ranked_trials else None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"study.name={confirm.name}: was not written by this version of mnistexp") from None
    if found is None:
        return None
    config_index = [each.number for each in ranked_trials].index(found.chosen.number)
    repeat = Repeat(config_index, found.best_seed_index)
    tested = repeats.tested_runs(storage, confirm.name).get(repeat)
    first = next(trial.record for trial in confirm.complete if _repeat(trial) == repeat)
    return replace(
        found,
        test=_test_score(tested, first) if tested else None,
        decision=repeats.decision(storage, confirm.name),
        test_evaluations=_test_evaluations(storage, study),
    )


def _test_evaluations(storage: Storage, study: History) -> int:
    """Count the test evaluations of all confirmations of a study."""
    names = histories.study_names(storage, repeats.prefix(study.name))
    ours = [name for name in names if _repeated_trials(study, histories.load(storage, name))]
    return sum(len(repeats.tested_runs(storage, name)) for name in ours)


def _ended(confirm: History) -> float:
    return max((trial.record.ended for trial in confirm.trials if trial.record), default=0.0)


def _repeated_trials(study: History, confirm: History) -> tuple[Candidate, ...]:
    """Return the trials of `study` that were trained again; none if the confirmation is of another study."""
    try:
        plain = json.loads(confirm.fingerprint[CONFIRMATION])
        numbers = [int(number) for number in plain["trials"]] if plain["study"] == study.id else []
    except (KeyError, ValueError, TypeError):
        return ()
    known = {trial.number: trial for trial in study.complete}
    if not all(number in known for number in numbers):
        return ()
    return tuple(_candidate(known[number]) for number in numbers)


# ------------------------------------------------------------------------------------------------- the ranking


def rank(name: str, candidates: Sequence[Candidate], confirm: History) -> Confirmation | None:
    """Order configs by their mean over fresh seeds. None unless one of them has two seeds and no failed run."""
    runs = {_repeat(trial): trial for trial in confirm.complete}
    failed = {_repeat(trial).config_index for trial in confirm.trials if trial.state != "COMPLETE"}
    rankable = [index for index in range(len(candidates)) if index not in failed]
    seeds = min((_consecutive_seeds(runs, index) for index in rankable), default=0)
    if seeds < 2:
        return None
    fits = {index: [_fit(runs[Repeat(index, seed)]) for seed in range(seeds)] for index in rankable}
    mean = {index: sum(objective_value(fit) for fit in fits[index]) for index in rankable}
    order = sorted(rankable, key=lambda index: (-mean[index], candidates[index].number))
    # The same runs decide which config is the best, so any pair could have been compared: Bonferroni over all pairs.
    level = 1 - (1 - LEVEL) / max(1, len(order) * (len(order) - 1) // 2)
    best = _hits(fits[order[0]])
    configs = [_confirmed(candidates[index], fits[index], best, level) for index in order]
    return Confirmation(
        name,
        seeds,
        (replace(configs[0], difference=None), *configs[1:]),
        test=None,
        decision="",
        left_out=tuple(candidates[index].number for index in sorted(failed)),
        winner=candidates[0].number,
        level=level,
    )


def _confirmed(candidate: Candidate, fits: Sequence[FitResult], best: Bools, level: float) -> ConfirmedConfig:
    """Return a config's mean with its interval, and its difference from the best one."""
    hits, scores = _hits(fits), tuple(objective_value(fit) for fit in fits)
    return ConfirmedConfig(
        number=candidate.number,
        val_accuracy=candidate.val_accuracy,
        config=candidate.config,
        overrides=candidate.overrides,
        scores=scores,
        interval=mean_interval(scores, LEVEL, floor=rounding_variance(1 / images(fits[0]))),
        noise=crossed(hits, LEVEL),
        difference=crossed(best.astype("int8") - hits.astype("int8"), level),
        correct=tuple(fit.validation_correct for fit in fits),
        images=images(fits[0]),
    )


def _repeat(trial: Trial) -> Repeat:
    return Repeat(int(trial.params["config_index"]), int(trial.params["seed_index"]))


def _consecutive_seeds(runs: Mapping[Repeat, Trial], config_index: int) -> int:
    """Count a config's seeds up to the first gap."""
    count = 0
    while Repeat(config_index, count) in runs:
        count += 1
    return count


def _fit(trial: Trial) -> FitResult:
    assert trial.record is not None
    assert trial.record.result is not None
    return trial.record.result.fit


def _hits(fits: Sequence[FitResult]) -> Bools:
    """Return which images each run classified correctly, bool [seeds, images]."""
    return unpack_correct([fit.validation_correct for fit in fits], images(fits[0]))


def images(fit: FitResult) -> int:
    """Count the validation images: the correct ones, and two bytes for each wrong prediction."""
    return int.from_bytes(fit.validation_correct, "big").bit_count() + len(fit.wrong_predictions) // 2


def _test_score(record: RunRecord, first: RunRecord | None) -> TestScore:
    """Return the score of a tested run. `first` is the run without the test split that it repeats."""
    assert record.result is not None
    assert record.result.test_accuracy is not None
    accuracy, count = record.result.test_accuracy, int(record.tags["test_images"])
    low, high = proportion_interval(round(accuracy * count), count, LEVEL)
    same = bool(first and first.result and first.result.weights_hash == record.result.weights_hash)
    return TestScore(accuracy, low, high, count, record.config.seed, objective_value(record.result.fit), same)


def compare_with_champion(new: ConfirmedConfig, champion: Sequence[bytes], count: int) -> NoiseParts | None:
    """Compare a confirmed config with the champion, paired by image; None if they cannot be compared.

    Args:
        champion: np.packbits of the validation images that each of the champion's runs classified correctly.
        count: how many configs the new one was chosen from. The best of many is ahead by chance more often than a
            config that was fixed before: the level is corrected by Bonferroni.
    """
    try:
        theirs = unpack_correct(list(champion), new.images)
    except ValueError:  # of another number of images
        return None
    seeds = min(len(theirs), len(new.correct))
    if seeds < 2:
        return None
    ours = unpack_correct(list(new.correct[:seeds]), new.images)
    return crossed(ours.astype("int8") - theirs[:seeds].astype("int8"), 1 - (1 - LEVEL) / count)
