from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_of_statsmodels
from statsmodels.stats.multitest import multipletests

from mnistexp.analysis.statistics import (
    compare_with_best,
    crossed,
    holm,
    mean_interval,
    paired_t,
    rounding_variance,
    selection_bias,
    unpack_correct,
)

Bools = npt.NDArray[np.bool_]


def mcnemar(first: Bools, second: Bools) -> float:
    """The p-value of McNemar's exact test by statsmodels."""
    only_first, only_second = np.sum(first & ~second), np.sum(second & ~first)
    return min(1.0, float(mcnemar_of_statsmodels([[0, only_first], [only_second, 0]], exact=True).pvalue))


def draw_correct(rng: np.random.Generator, skills: npt.NDArray[np.float64], images: int) -> Bools:
    """Correct predictions of configs with these skills on images of different difficulty; the best config first."""
    ease = rng.normal(3.5, 2.0, size=images)
    found = rng.random((len(skills), images)) < stats.norm.cdf(ease + skills[:, None])
    return found[np.argsort(-found.sum(axis=1), kind="stable")]


# ----------------------------------------------------------------------------------------------- unpack_correct


@settings(deadline=None)
@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20)))
def test_packed_predictions_are_unpacked(correct: Bools) -> None:
    """Any number of images, multiple of 8 or not, survives np.packbits; no config gives no row."""
    unpacked = unpack_correct([np.packbits(row).tobytes() for row in correct], correct.shape[1])

    np.testing.assert_array_equal(unpacked, correct)
    assert unpack_correct([], 12).shape == (0, 12)


@pytest.mark.parametrize(
    ("packed", "size"),
    [([b"\xff", b""], 8), ([b"\xff\xff"], 8), ([b"\xf0", b"\xff"], 5), ([], 0)],
)
def test_predictions_of_another_split_are_rejected(packed: list[bytes], size: int) -> None:
    """Bytes that cannot be of this many images raise an error."""
    with pytest.raises(ValueError, match=r"images?|bits beyond"):
        unpack_correct(packed, size)


# -------------------------------------------------------------------------------------- McNemar, Holm, the best


@settings(max_examples=5, deadline=None)  # statsmodels collects garbage at each call: 50 ms
@given(st.lists(st.sampled_from([0.0, 1e-9, 0.02, 0.02, 1.0]) | st.floats(0, 1)), st.integers(0, 5))
def test_holm_equals_that_of_statsmodels(p_values: list[float], more: int) -> None:
    """Also with ties, and with tests that have no p-value and count as 1."""
    adjusted = holm(np.array(p_values, dtype=float), len(p_values) + more)

    reference = multipletests([*p_values, *[1.0] * more], method="holm")[1] if p_values else []
    np.testing.assert_allclose(adjusted, reference[: len(p_values)], rtol=1e-12)


@settings(max_examples=5, deadline=None)
@given(st.integers(1, 7), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_each_config_is_compared_with_the_best(configs: int, images: int, seed: int) -> None:
    """Counts, p-values and correction equal a loop over all pairs with statsmodels' Holm."""
    correct = np.random.default_rng(seed).random((configs, images)) < np.linspace(0.95, 0.1, configs)[:, None]
    pairs = list(itertools.combinations(range(configs), 2))
    raw = [mcnemar(correct[one], correct[other]) for one, other in pairs]
    adjusted = dict(zip(pairs, multipletests(raw, method="holm")[1] if pairs else [], strict=True))

    tests = compare_with_best(correct)

    assert [test.index for test in tests] == list(range(1, configs))
    for test in tests:
        assert test.only_best == np.sum(correct[0] & ~correct[test.index])
        assert test.only_this == np.sum(correct[test.index] & ~correct[0])
        assert test.p_value == pytest.approx(mcnemar(correct[0], correct[test.index]))
        assert test.adjusted == pytest.approx(adjusted[0, test.index], rel=1e-9)
        assert test.significant == (test.adjusted <= 0.05)


def test_ten_thousand_configs_need_little_memory() -> None:
    """Memory is linear in the number of configs; results are those of single tests, corrected by at most all pairs."""
    configs, images = 10_000, 200
    correct = draw_correct(np.random.default_rng(2), np.linspace(0.0, -2.5, configs), images)
    pairs = configs * (configs - 1) // 2

    tracemalloc.start()
    tests = compare_with_best(correct)
    bias = selection_bias(correct, np.random.default_rng(0), resamples=20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 8 * pairs / 4  # one number for each pair would take four times as much
    assert 0 < bias < 0.1
    assert len(tests) == configs - 1
    for test in tests[::500]:
        assert test.p_value == pytest.approx(mcnemar(correct[0], correct[test.index]))
        assert test.p_value <= test.adjusted <= min(1.0, pairs * test.p_value) * (1 + 1e-9)
    assert [test.significant for test in (tests[0], tests[-1])] == [False, True]


# ----------------------------------------------------------------------------------------------- selection_bias


def test_the_selection_bias_of_equal_configs_is_the_expected_maximum() -> None:
    """On average it is the expected maximum of 20 normal deviates, 1.867 (Tippett 1925), times the standard error."""
    rng = np.random.default_rng(12)
    expected = 1.867 * np.sqrt(0.9 * 0.1 / 1000)

    estimated = [selection_bias(rng.random((20, 1000)) < 0.9, rng, resamples=100) for _ in range(40)]

    assert np.mean(estimated) == pytest.approx(expected, rel=0.15)


def test_without_a_choice_there_is_no_selection_bias() -> None:
    """It is 0 for one config or a clear best one, never negative, and the same for the same seed."""
    rng = np.random.default_rng(13)
    clear = np.stack([np.ones(300, dtype=np.bool_), np.zeros(300, dtype=np.bool_)])
    close = draw_correct(rng, np.linspace(-1, 0, 5), 200)

    assert selection_bias(draw_correct(rng, np.zeros(1), 300), rng) == selection_bias(clear, rng) == 0
    first, again = (selection_bias(close, np.random.default_rng(15), 250) for _ in range(2))
    assert first == again >= 0


# -------------------------------------------------------------------------------------------- intervals, t tests


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=12), st.lists(st.floats(0, 1), min_size=2, max_size=12))
def test_intervals_and_t_tests_equal_those_of_scipy(first: list[float], second: list[float]) -> None:
    """They do where the variance is above the least one that is assumed."""
    size = min(len(first), len(second))
    differences = np.subtract(first[:size], second[:size])

    if np.ptp(first) > 1e-6:
        interval = mean_interval(first, 0.9)
        reference = stats.t.interval(0.9, len(first) - 1, np.mean(first), stats.sem(first))
        assert (interval.low, interval.high) == pytest.approx(reference)
    if np.ptp(differences) > 1e-6:
        assert paired_t(differences, 1e-20) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=1e-9)


def test_equal_scores_are_not_certain() -> None:
    """The least variance is that of rounding to whole images, so accuracies that are equal by chance prove nothing."""
    floor = rounding_variance(1 / 100)

    assert paired_t([0.01, 0.01], 2 * floor) > 0.1
    assert mean_interval([0.9, 0.9], 0.95, floor).low < 0.88


# ------------------------------------------------------------------------------------------------------ crossed


def test_the_parts_of_noise_are_those_of_an_analysis_of_variance() -> None:
    """Standard deviations and interval equal those from statsmodels' table of a two-way layout."""
    rng = np.random.default_rng(8)
    scores = 0.5 * rng.standard_normal((4, 1)) + rng.standard_normal(30) + 0.5 * rng.standard_normal((4, 30))
    seed, image = np.indices(scores.shape)
    frame = pd.DataFrame({"score": scores.ravel(), "seed": seed.ravel(), "image": image.ravel()})
    anova = anova_lm(ols("score ~ C(seed) + C(image)", data=frame).fit())
    a, b, e = squares = (anova["sum_sq"] / anova["df"]).to_numpy()
    degrees = (a + b - e) ** 2 / np.sum(squares**2 / anova["df"])

    parts = crossed(scores)

    assert (parts.seed_sd, parts.split_sd) == pytest.approx((np.sqrt(a / 30), np.sqrt((b - e) / 120)))
    reference = stats.t.interval(0.95, degrees, loc=scores.mean(), scale=np.sqrt((a + b - e) / 120))
    assert (parts.low, parts.high) == pytest.approx(reference)


def test_noise_of_one_source_has_the_interval_of_that_source() -> None:
    """If only the seeds differ, the interval is Student's over the seeds."""
    runs = np.array([1, 0, 1, 1])

    parts = crossed(np.repeat(runs[:, None], 5, axis=1))

    assert (parts.low, parts.high) == pytest.approx(stats.t.interval(0.95, 3, runs.mean(), stats.sem(runs)))
    assert parts.split_sd == 0
