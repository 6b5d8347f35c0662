from __future__ import annotations

import itertools

import numpy as np
import pytest
from histories import study, trial
from sklearn.metrics import confusion_matrix
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mnistexp.analysis.comparison import compare_best, compare_winners, wrong_predictions


def rows(*counts: int, images: int = 400) -> list[np.ndarray]:
    """Correct predictions of configs with these counts, on different images."""
    rng = np.random.default_rng(0)
    return [rng.permutation(images) < count for count in counts]


def test_rivals_are_tested_as_in_statsmodels() -> None:
    """McNemar's exact test on the same images, Holm's correction over all pairs, Wilson's interval; best first."""
    correct = rows(380, 376, 340, 372)
    pairs = list(itertools.combinations(range(4), 2))
    p_values = [
        mcnemar([[0, np.sum(correct[a] & ~correct[b])], [np.sum(~correct[a] & correct[b]), 0]], exact=True).pvalue
        for a, b in pairs
    ]
    adjusted = dict(zip(pairs, multipletests(p_values, method="holm")[1], strict=True))

    found = compare_best(study(*(trial(n, row) for n, row in enumerate(correct))))

    assert found is not None
    assert found.best.number == 0
    assert [rival.trial.number for rival in found.rivals] == [1, 3, 2]
    assert [rival.test.adjusted for rival in found.rivals] == pytest.approx([adjusted[0, n] for n in (1, 3, 2)])
    assert [each.number for each in found.tied] == [1, 3]
    assert found.interval == pytest.approx(proportion_confint(380, 400, method="wilson"))


def test_the_selection_bias_is_reproducible() -> None:
    """The same study gives the same number; one trial alone has no bias and no rivals."""
    correct = rows(370, 371, 369)
    first, again = (compare_best(study(*(trial(n, row) for n, row in enumerate(correct)))) for _ in range(2))
    alone = compare_best(study(trial(0, correct[0])))

    assert first
    assert again
    assert alone
    assert first.selection_bias == again.selection_bias > 0
    assert (alone.selection_bias, alone.rivals) == (0, ())


def test_records_that_do_not_fit_the_scores_are_not_compared() -> None:
    """A record of another split gives no test instead of a wrong one."""
    good, other = trial(0, rows(380)[0]), trial(1, rows(90, images=100)[0])

    assert compare_best(study(good, other)) is None
    assert compare_best(study()) is None


def test_winners_are_compared_on_the_same_images_only() -> None:
    """The winners of studies are tested against the best of all; studies with other data or no trial are not."""
    correct = rows(390, 350, 388, 300)
    first = study(trial(0, correct[1]), trial(1, correct[0]), name="first")
    second = study(trial(0, correct[2]), trial(1, correct[3]), name="second")

    found = compare_winners([second, first])

    assert found is not None
    assert [(each.study, each.trial.number) for each in found] == [("second", 0), ("first", 1)]
    assert found[1].test is None
    assert found[0].test is not None
    counts = (np.sum(correct[0] & ~correct[2]), np.sum(correct[2] & ~correct[0]))
    assert (found[0].test.only_best, found[0].test.only_this) == counts
    assert compare_winners([first, study(trial(0, correct[2], data="0" * 32), name="elsewhere")]) is None
    assert compare_winners([first, study(name="empty")]) is None


def test_the_confusion_matrix_is_that_of_scikit_learn() -> None:
    """It follows from labels and stored predictions; images that most trials classify wrongly come first."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, 100).astype(np.int32)
    predicted = np.where(rng.random(100) < 0.8, labels, (labels + rng.integers(1, 10, 100)) % 10)
    correct = predicted == labels
    missed = np.flatnonzero(~correct)
    worse = np.arange(100) > missed[0] + 30
    found = compare_best(study(trial(0, correct, mistakes=predicted[~correct]), trial(1, worse)))
    assert found is not None

    wrong = wrong_predictions(found, labels, 10)

    assert wrong is not None
    assert found.best.number == 0
    assert wrong.confusion.tolist() == confusion_matrix(labels, predicted, labels=range(10)).tolist()
    assert {each.index: (each.label, each.predicted) for each in wrong.images} == {
        int(i): (labels[i], predicted[i]) for i in missed
    }
    assert [each.missed_by for each in wrong.images] == sorted((1 + int(not worse[i]) for i in missed), reverse=True)
