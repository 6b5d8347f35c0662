"""Rank a study's best configs by their runs with fresh seeds, and read the score of the one tested network.

The validation images are those of the sweep, so fresh seeds do not remove the selection bias that comes from the
images. The test score has neither bias: no choice used it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
from mnistexp.study.progress import CONFIRMATION
from mnistexp.study.repeats import Candidate, Repeat
from mnistexp.training.results import FitResult, objective_value

LEVEL = 0.95
FIRST = Repeat(0, 0)


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
    trial: int = -1  # its number in the confirmation's study


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
    best: Repeat = FIRST  # the chosen config's best run by validation accuracy; the first of equals

    @property
    def chosen(self) -> ConfirmedConfig:
        """The config with the best mean."""
        return self.configs[0]


def candidates(study: History, top: int) -> tuple[Candidate, ...]:
    """Return a study's best configs, best first, at most `top`. Configs that differ only in the seed count once."""
    found: dict[str, Candidate] = {}
    for each in map(_candidate, study.ranked):
        found.setdefault(signature(each.config, seed=False), each)
    return tuple(found.values())[:top]


def _candidate(trial: Trial) -> Candidate:
    assert trial.record is not None
    return Candidate(trial.number, trial.accuracy, trial.record.config, trial.record.overrides)


def load(storage: Storage, study: History, name: str = "") -> Confirmation | None:
    """Return a study's newest confirmation, or the one of this name, if it has two seeds of its configs.

    Raises: StoreError if another version of mnistexp wrote it.
    """
    names = histories.study_names(storage, repeats.prefix(study.name))
    ours = [each for each in (histories.load(storage, known) for known in names) if _repeated_trials(study, each)]
    wanted = [each for each in ours if name in ("", each.name)]
    wanted.sort(key=lambda each: max((record.ended for record in each.records), default=0.0), reverse=True)
    found = next((found for each in wanted if (found := rank(study, each)) is not None), None)
    return found and replace(found, test_evaluations=sum(each.test_evaluations for each in ours))


def _repeated_trials(study: History, confirm: History) -> tuple[Candidate, ...]:
    """Return the trials of `study` that were trained again; none if the confirmation is of another study."""
    try:
        plain = json.loads(confirm.fingerprint[CONFIRMATION])
        numbers = [int(number) for number in plain["trials"]] if plain["study"] == study.id else []
    except (KeyError, ValueError, TypeError):
        return ()
    known = {trial.number: trial for trial in study.complete}
    return tuple(_candidate(known[number]) for number in numbers if number in known)


def repeat_of(trial: Trial) -> Repeat:
    """Return what a confirmation's trial repeats. Raises: StoreError if another version of mnistexp wrote it."""
    try:
        return Repeat(**trial.params)
    except TypeError:
        raise StoreError(
            f"trial {trial.number} of a confirmation: was not written by this version of mnistexp"
        ) from None


# ------------------------------------------------------------------------------------------------- the ranking


def rank(study: History, confirm: History) -> Confirmation | None:
    """Order configs by their mean over fresh seeds. None unless one of them has two seeds and no failed run."""
    candidates = _repeated_trials(study, confirm)
    runs = {repeat_of(trial): trial for trial in confirm.complete}
    ended = [(repeat_of(trial), trial.state) for trial in confirm.trials]
    failed = {repeat.config_index for repeat, state in ended if state != "COMPLETE" and not repeat.test}
    rankable = [index for index in range(len(candidates)) if index not in failed]
    seeds = 0
    while rankable and all(Repeat(index, seeds) in runs for index in rankable):
        seeds += 1
    if seeds < 2:
        return None
    fits = {index: [_fit(runs[Repeat(index, seed)]) for seed in range(seeds)] for index in rankable}
    scores = {index: [objective_value(fit) for fit in fits[index]] for index in rankable}
    order = sorted(rankable, key=lambda index: (-sum(scores[index]), candidates[index].number))
    # The same runs decide which config is the best, so any pair could have been compared: Bonferroni over all pairs.
    level = 1 - (1 - LEVEL) / max(1, len(order) * (len(order) - 1) // 2)
    chosen = _correct(fits[order[0]])
    configs = [_confirmed(candidates[index], fits[index], chosen, level) for index in order]
    best = Repeat(order[0], scores[order[0]].index(max(scores[order[0]])))
    tested = next((trial for repeat, trial in runs.items() if repeat.test and repeat[:2] == best[:2]), None)
    return Confirmation(
        name=confirm.name,
        seeds=seeds,
        configs=(replace(configs[0], difference=None), *configs[1:]),
        test=_test_score(tested, runs[best]) if tested else None,
        decision=confirm.decision,
        left_out=tuple(candidates[index].number for index in sorted(failed)),
        winner=candidates[0].number,
        level=level,
        best=best,
    )


def _confirmed(candidate: Candidate, fits: Sequence[FitResult], chosen: Bools, level: float) -> ConfirmedConfig:
    """Return a config's mean with its interval, and its difference from the chosen one."""
    correct, scores, images = _correct(fits), tuple(objective_value(fit) for fit in fits), fits[0].images
    return ConfirmedConfig(
        number=candidate.number,
        val_accuracy=candidate.val_accuracy,
        config=candidate.config,
        overrides=candidate.overrides,
        scores=scores,
        interval=mean_interval(scores, LEVEL, floor=rounding_variance(1 / images)),
        noise=crossed(correct, LEVEL),
        difference=crossed(chosen.astype("int8") - correct.astype("int8"), level),
        correct=tuple(fit.validation_correct for fit in fits),
        images=images,
    )


def _fit(trial: Trial) -> FitResult:
    assert trial.fit is not None
    return trial.fit


def _correct(fits: Sequence[FitResult]) -> Bools:
    """Return which images each run classified correctly, bool [seeds, images]."""
    return unpack_correct([fit.validation_correct for fit in fits], fits[0].images)


def _test_score(tested: Trial, repeated: Trial) -> TestScore:
    """Return the score of a tested run, which repeats another run without the test split."""
    assert tested.record is not None
    assert tested.test_accuracy is not None
    accuracy, count = tested.test_accuracy, int(tested.record.tags["test_images"])
    low, high = proportion_interval(round(accuracy * count), count, LEVEL)
    hashes = {each.record.result.weights_hash for each in (tested, repeated) if each.record and each.record.result}
    seed = tested.record.config.seed
    return TestScore(accuracy, low, high, count, seed, tested.accuracy, len(hashes) == 1, tested.number)


def difference_to_champion(new: ConfirmedConfig, champion: Sequence[bytes], count: int) -> NoiseParts | None:
    """Return a confirmed config minus the champion, paired by image; None if they cannot be compared.

    Args:
        champion: np.packbits of the validation images that each of the champion's runs classified correctly.
        count: how many configs the new one was chosen from. The best of many is ahead by chance more often than a
            config that was fixed before: the level is corrected by Bonferroni.
    """
    seeds = min(len(champion), len(new.correct))
    try:
        ours, theirs = (unpack_correct(list(each[:seeds]), new.images) for each in (new.correct, champion))
    except ValueError:  # of another number of images
        return None
    return crossed(ours.astype("int8") - theirs.astype("int8"), 1 - (1 - LEVEL) / count) if seeds > 1 else None
