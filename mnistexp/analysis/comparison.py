"""The best trial compared with the others on the same validation images, and what it classifies wrongly.

Nothing here is ordered by a test score.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from mnistexp.analysis import statistics
from mnistexp.analysis.history import History, Trial
from mnistexp.analysis.statistics import Bools, Counts, PairedTest

Labels = npt.NDArray[np.int32]

ALPHA = 0.05  # the accepted probability that a study's report shows one or more false differences
PREDICTION = np.dtype("<u2")  # of FitResult.wrong_predictions


@dataclass(frozen=True)
class Rival:
    """A complete trial other than the best, and its test against the best."""

    trial: Trial
    test: PairedTest


@dataclass(frozen=True, eq=False)
class BestComparison:
    """The best trial compared with all other complete trials."""

    best: Trial
    correct: Bools  # [complete trials, images], best first
    rivals: tuple[Rival, ...]  # best first

    @property
    def images(self) -> int:
        """The number of validation images."""
        return int(self.correct.shape[1])

    @property
    def tied(self) -> tuple[Trial, ...]:
        """The rivals without a significant difference to the best, best first."""
        return tuple(rival.trial for rival in self.rivals if not rival.test.significant)

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the best trial's accuracy for new images."""
        return statistics.proportion_interval(int(self.correct[0].sum()), self.images)

    @cached_property
    def selection_bias(self) -> float:
        """By how much the best accuracy is too high because it is the highest. The same study gives the same number."""
        return statistics.selection_bias(self.correct, np.random.default_rng(0))


def compare_best(history: History) -> BestComparison | None:
    """Test the best trial against each other complete one; None if no trial completed, or if records do not fit."""
    ranked = history.ranked
    correct = _correct(ranked)
    if correct is None:
        return None
    tests = statistics.compare_with_best(correct, ALPHA)
    return BestComparison(ranked[0], correct, tuple(Rival(ranked[test.index], test) for test in tests))


def _correct(trials: Sequence[Trial]) -> Bools | None:
    """Return which images each trial classifies correctly, [trials, images]; None if records do not fit the scores."""
    fits = [trial.fit for trial in trials if trial.fit]
    if not fits:
        return None
    try:
        correct = statistics.unpack_correct([fit.validation_correct for fit in fits], fits[0].images)
    except ValueError:
        return None
    return correct if np.allclose(correct.mean(axis=1), [trial.accuracy for trial in trials], atol=1e-6) else None


@dataclass(frozen=True)
class Winner:
    """A study's best trial, and its test against the best of all studies."""

    study: str
    trial: Trial
    test: PairedTest | None  # None: it is the best of all


def compare_winners(histories: Sequence[History]) -> tuple[Winner, ...] | None:
    """Test the best trials of several studies; None unless all trials were scored on the same images.

    The correction is for all pairs of all their complete trials, because these images selected each winner.
    """
    winners = [history.ranked[0] for history in histories if history.ranked]
    fingerprints = {record.data_fingerprint for history in histories for record in history.records}
    trials = sorted((trial for history in histories for trial in history.ranked), key=lambda trial: -trial.accuracy)
    correct = _correct(trials)
    if len(winners) < len(histories) or len(fingerprints) > 1 or correct is None:
        return None
    tests = {id(trials[test.index]): test for test in statistics.compare_with_best(correct, ALPHA)}
    return tuple(Winner(each.name, best, tests.get(id(best))) for each, best in zip(histories, winners, strict=True))


@dataclass(frozen=True)
class WrongPrediction:
    """A validation image that the best trial classifies wrongly."""

    index: int  # in the validation split
    label: int
    predicted: int
    missed_by: int  # how many of the complete trials classify it wrongly


@dataclass(frozen=True, eq=False)
class WrongPredictions:
    """The best trial's errors on the validation split."""

    confusion: Counts  # [classes, classes]: rows are labels, columns predictions
    images: tuple[WrongPrediction, ...]  # those that most trials classify wrongly come first
    trials: int  # complete ones


def wrong_predictions(comparison: BestComparison, labels: Labels, classes: int) -> WrongPredictions:
    """Return what the best trial predicts wrongly.

    Args:
        labels: [images], of the validation split of the study's data set.
    """
    assert comparison.best.fit is not None
    missed = np.flatnonzero(~comparison.correct[0])
    predicted = labels.astype(np.int64)
    predicted[missed] = np.frombuffer(comparison.best.fit.wrong_predictions, PREDICTION)
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    missed_by = np.sum(~comparison.correct, axis=0)
    images = [WrongPrediction(int(i), int(labels[i]), int(predicted[i]), int(missed_by[i])) for i in missed]
    images.sort(key=lambda image: (-image.missed_by, image.index))
    return WrongPredictions(confusion, tuple(images), len(comparison.correct))
