"""What a confirmation found: a study's best configs over fresh seeds, ranked, with intervals, and the one look at test.

Read from the study's database alone, nothing written. The images are those that the sweep chose by, so luck with
*them* isn't taken out by new seeds; the test score of the one that was chosen is the number that nothing was chosen by.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from optuna.storages import BaseStorage

from mnistexp.analysis import history as histories
from mnistexp.analysis.history import History, Trial
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
from mnistexp.config.schema import RunConfig
from mnistexp.errors import StoreError
from mnistexp.study import repeats as reruns
from mnistexp.study.fingerprint import CONFIRMATION
from mnistexp.study.repeats import Contender, Point
from mnistexp.training.results import FitResult, objective_value

LEVEL = 0.95

Runs = Mapping[Point, Trial]


@dataclass(frozen=True)
class ConfirmedConfig:
    """One of a study's best configs, trained again."""

    number: int  # the trial in the study
    val_accuracy: float  # its score in the sweep, by which it got here
    config: RunConfig
    overrides: tuple[str, ...]
    scores: tuple[float, ...]  # validation accuracy with each fresh seed, in the order of the seeds
    interval: Interval  # of the mean over seeds, on these images
    noise: NoiseParts  # of the mean over seeds and images; its interval is for new ones of both
    difference: NoiseParts | None  # chosen less this one, image by image and seed by seed; None for the chosen itself
    hits: tuple[bytes, ...] = ()  # np.packbits of which images each seed's network got right
    images: int = 0

    @property
    def significant(self) -> bool:
        """Whether it is really behind the chosen one."""
        return self.difference is not None and self.difference.low > 0


@dataclass(frozen=True)
class TestScore:
    """The one look at the test split, by the chosen config's best network."""

    accuracy: float
    low: float  # Wilson's interval at 95 %
    high: float
    images: int
    seed: int
    val_accuracy: float  # of this network


@dataclass(frozen=True)
class Confirmation:
    """A study's best configs over fresh seeds."""

    name: str  # of its own study
    seeds: int
    configs: tuple[ConfirmedConfig, ...]  # by their mean, best first; the first is the chosen one
    test: TestScore | None
    decision: str  # one sentence on the champion; "" if none was registered yet
    test_evaluations: int = 0  # by all confirmations of the study: more than one after other seeds or another top=
    left_out: tuple[int, ...] = ()  # trials of which a run failed, so that there is no mean to rank
    winner: int = 0  # the sweep's own best trial
    level: float = LEVEL  # of the intervals in `difference`: higher, so that all of them hold together

    @property
    def chosen(self) -> ConfirmedConfig:
        """The best by its mean."""
        return self.configs[0]

    @property
    def best_repeat(self) -> int:
        """Which of the chosen one's seeds gave its best network, by validation; the first of equals."""
        return self.chosen.scores.index(max(self.chosen.scores))


def load(storage: BaseStorage, study: History) -> Confirmation | None:
    """A study's newest confirmation that has two seeds of its configs; None if there is none.

    Raises: StoreError if another version of mnistexp wrote it.
    """
    begun = [histories.load(storage, name) for name in histories.study_names(storage, reruns.prefix(study.name))]
    newest = sorted((each for each in begun if "search.final" not in each.fingerprint), key=_ended, reverse=True)
    return next((found for each in newest if (found := read(storage, study, each)) is not None), None)


def read(storage: BaseStorage, study: History, confirm: History) -> Confirmation | None:
    """One confirmation; None if it is another study's, or no config of it has two seeds yet."""
    whose = _contenders(study, confirm)
    try:
        found = rank(confirm.name, whose, confirm) if whose else None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"study.name={confirm.name}: was not written by this version of mnistexp") from None
    if found is None:
        return None
    index = [each.number for each in whose].index(found.chosen.number)
    last = reruns.final_name(confirm.name, Point(index, found.best_repeat))
    test = test_look(histories.load(storage, last)) if last in histories.study_names(storage, last) else None
    return replace(found, test=test, decision=confirm.verdict, test_evaluations=_test_looks(storage, study))


def _test_looks(storage: BaseStorage, study: History) -> int:
    """How often the test split was looked at by a study's confirmations, whatever their configs and seeds."""
    names = histories.study_names(storage, reruns.prefix(study.name))
    begun = [histories.load(storage, name) for name in names if ".final." in name]
    return sum(final.test_evaluations for final in begun if _contenders(study, final))


def _ended(confirm: History) -> float:
    return max((trial.record.ended for trial in confirm.trials if trial.record), default=0.0)


def _contenders(study: History, confirm: History) -> tuple[Contender, ...]:
    """The trials of `study` that were trained again; none if they aren't this study's."""
    try:
        plain = json.loads(confirm.fingerprint[CONFIRMATION])
        numbers = [int(number) for number in plain["trials"]] if plain["study"] == study.id else []
    except (KeyError, ValueError, TypeError):
        return ()
    known = {trial.number: trial for trial in study.complete}
    if not all(number in known for number in numbers):
        return ()
    return tuple(reruns.contender(known[number]) for number in numbers)


# ------------------------------------------------------------------------------------------------- the ranking


def rank(name: str, contenders: Sequence[Contender], confirm: History) -> Confirmation | None:
    """Order configs by their mean over fresh seeds. None unless one of them has two seeds and no failed run."""
    runs = {_point(trial): trial for trial in confirm.complete}
    failed = {_point(trial).rival for trial in confirm.trials if trial.state != "COMPLETE"}
    whole = [rival for rival in range(len(contenders)) if rival not in failed]
    seeds = min((_repeats(runs, rival) for rival in whole), default=0)
    if seeds < 2:
        return None
    fits = {rival: [_fit(runs[Point(rival, repeat)]) for repeat in range(seeds)] for rival in whole}
    mean = {rival: sum(objective_value(fit) for fit in fits[rival]) for rival in whole}
    order = sorted(whole, key=lambda rival: (-mean[rival], contenders[rival].number))
    level = 1 - (1 - LEVEL) / max(1, len(order) * (len(order) - 1) // 2)
    best = _hits(fits[order[0]])
    rivals = [_confirmed(contenders[rival], fits[rival], best, level) for rival in order]
    chosen = replace(rivals[0], difference=None)
    left_out = tuple(contenders[rival].number for rival in sorted(failed))
    return Confirmation(
        name, seeds, (chosen, *rivals[1:]), None, "", left_out=left_out, winner=contenders[0].number, level=level
    )


def _confirmed(contender: Contender, fits: Sequence[FitResult], best: Bools, level: float) -> ConfirmedConfig:
    """A config's means and intervals, and how far it is behind the best.

    Which config is the best was decided by these very runs, so any pair could have been the one compared: `level`
    is corrected for all of them, as in statistics.compare_with_best (by Bonferroni: intervals have no Holm).
    """
    hits, scores = _hits(fits), tuple(objective_value(fit) for fit in fits)
    return ConfirmedConfig(
        number=contender.number,
        val_accuracy=contender.val_accuracy,
        config=contender.config,
        overrides=contender.overrides,
        scores=scores,
        interval=mean_interval(scores, LEVEL, floor=rounding_variance(1 / images(fits[0]))),
        noise=crossed(hits, LEVEL),
        difference=crossed(best.astype("int8") - hits.astype("int8"), level),
        hits=tuple(fit.validation_correct for fit in fits),
        images=images(fits[0]),
    )


def _point(trial: Trial) -> Point:
    return Point(int(trial.params["rival"]), int(trial.params["repeat"]))


def _repeats(runs: Runs, rival: int) -> int:
    """How many seeds a config has, without a gap."""
    repeat = 0
    while Point(rival, repeat) in runs:
        repeat += 1
    return repeat


def _fit(trial: Trial) -> FitResult:
    assert trial.record is not None
    assert trial.record.result is not None
    return trial.record.result.fit


def _hits(fits: Sequence[FitResult]) -> Bools:
    """Which images each run got right, bool [seeds, images]."""
    return unpack_correct([fit.validation_correct for fit in fits], images(fits[0]))


def images(fit: FitResult) -> int:
    """How many validation images there were: those that were right, and two bytes for each that wasn't."""
    return int.from_bytes(fit.validation_correct, "big").bit_count() + len(fit.wrong_predictions) // 2


# ---------------------------------------------------------------------------------------------------- the test


def test_look(final: History) -> TestScore | None:
    """The look at the test split, from the study that holds the one run that took it."""
    trial = next(iter(final.complete), None)
    if trial is None or trial.record is None or trial.record.result is None:
        return None
    record, accuracy = trial.record, trial.record.result.test_accuracy
    if accuracy is None:
        return None
    count = int(record.tags["test_images"])
    low, high = proportion_interval(round(accuracy * count), count, LEVEL)
    return TestScore(accuracy, low, high, count, record.config.seed, trial.val_accuracy or 0.0)
