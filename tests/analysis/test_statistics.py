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
from statsmodels.stats.proportion import proportion_confint

from mnistexp.analysis import statistics
from mnistexp.analysis.statistics import (
    compare_with_best,
    crossed,
    holm,
    mean_interval,
    paired_t,
    proportion_interval,
    rounding_variance,
    selection_bias,
    unpack_correct,
    welch_t,
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
    with pytest.raises(ValueError, match=r"size|bytes|bits beyond"):
        unpack_correct(packed, size)


# -------------------------------------------------------------------------------------- McNemar, Holm, the best


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (0, 2000), (900, 1100), (1000, 1001), (7, 7)])
def test_mcnemar_holds_for_few_and_many_images(first: int, second: int) -> None:
    """Far tails and equal counts match SciPy's binomial test; images on which both agree change nothing."""
    reference = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    counts = [5, first, second, 3]
    correct = np.stack([np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)])

    (test,) = compare_with_best(correct)

    assert test.p_value == test.adjusted == pytest.approx(reference, rel=1e-9)


@settings(max_examples=20, deadline=None)  # statsmodels collects garbage at each call: 50 ms
@given(st.lists(st.sampled_from([0.0, 1e-9, 0.02, 0.02, 1.0]) | st.floats(0, 1)), st.integers(0, 5))
def test_holm_equals_that_of_statsmodels(p_values: list[float], more: int) -> None:
    """Also with ties, and with tests that have no p-value and count as 1."""
    adjusted = holm(np.array(p_values, dtype=float), len(p_values) + more)

    reference = multipletests([*p_values, *[1.0] * more], method="holm")[1] if p_values else []
    np.testing.assert_allclose(adjusted, reference[: len(p_values)], rtol=1e-12)


@settings(max_examples=15, deadline=None)
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


def test_the_correction_is_conservative_beyond_the_tested_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """If fewer pairs are tested, no adjusted p-value becomes smaller."""
    correct = draw_correct(np.random.default_rng(3), np.linspace(0.0, -2.0, 30), 300)
    every = [test.adjusted for test in compare_with_best(correct)]

    monkeypatch.setattr(statistics, "PAIRED_CONFIGS", 10)

    some = [test.adjusted for test in compare_with_best(correct)]
    assert all(one >= other for one, other in zip(some, every, strict=True))
    assert some != every


# ----------------------------------------------------------------------------------------------- selection_bias


@pytest.mark.parametrize(("skills", "low", "high"), [(np.zeros(10), 0.85, 1.15), (np.linspace(-0.4, 0, 10), 0.9, 1.4)])
def test_the_selection_bias_is_estimated(skills: npt.NDArray[np.float64], low: float, high: float) -> None:
    """On average it is the excess of the best accuracy; for configs that differ by the noise it is somewhat higher."""
    rng = np.random.default_rng(12)
    true, estimated = [], []

    for _ in range(150):
        ease = rng.normal(3.5, 2.0, size=500)
        correct = rng.random((len(skills), 500)) < stats.norm.cdf(ease + skills[:, None])
        excess = correct.mean(axis=1) - stats.norm.cdf((3.5 + skills) / np.sqrt(5))
        true.append(excess[correct.sum(axis=1).argmax()] - excess.mean())
        estimated.append(selection_bias(correct, rng, resamples=100))

    assert low <= np.mean(estimated) / np.mean(true) <= high


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
@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0.01, 0.999))
def test_the_proportion_interval_is_wilsons(n: int, share: float, level: float) -> None:
    """It equals the interval of statsmodels."""
    correct = round(share * n)

    interval = proportion_interval(correct, n, level)

    assert interval == pytest.approx(proportion_confint(correct, n, alpha=1 - level, method="wilson"), abs=1e-9)


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
    if min(np.ptp(first), np.ptp(second)) > 1e-6:
        reference = stats.ttest_ind(first, second, equal_var=False).pvalue
        assert welch_t(first, second, 1e-20) == pytest.approx(reference, abs=1e-9)


@pytest.mark.parametrize("seeds", [2, 5])
@pytest.mark.parametrize("sd", [0.4, 3.0])  # of the noise of the seeds, in images
def test_equal_configs_with_equal_scores_are_rarely_significant(sd: float, seeds: int) -> None:
    """Accuracies are whole images, so a few are often equal by chance; the least variance keeps the level."""
    sweeps, images, rng = 2000, 5000, np.random.default_rng(11)
    scores = np.round(rng.normal(4900 + rng.random((sweeps, 1, 1)), sd, (sweeps, 2, seeds))) / images
    floor = rounding_variance(1 / images)

    paired_values = np.array([paired_t(one - other, 2 * floor) for one, other in scores])
    welch_values = np.array([welch_t(one, other, floor) for one, other in scores])

    for level in (0.05, 0.001):
        assert np.mean(paired_values <= level) <= stats.binom.ppf(0.999, sweeps, level) / sweeps
        assert np.mean(welch_values <= level) <= stats.binom.ppf(0.999, sweeps, level) / sweeps
    assert paired_t([10 / images] * 5, 2 * floor) < 1e-4


def test_one_value_has_no_interval_and_no_test() -> None:
    """One seed contains no information on the noise."""
    for call in (
        lambda: mean_interval([0.5]),
        lambda: paired_t([0.5], 1e-9),
        lambda: welch_t([0.5, 0.6], [0.5], 1e-9),
        lambda: crossed(np.ones((1, 5))),
    ):
        with pytest.raises(ValueError, match="at least 2"):
            call()


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
    assert parts.degrees == pytest.approx(degrees)
    reference = stats.t.interval(0.95, degrees, loc=scores.mean(), scale=np.sqrt((a + b - e) / 120))
    assert (parts.low, parts.high) == pytest.approx(reference)


@settings(deadline=None)
@given(arrays(np.int8, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=8), elements=st.integers(-1, 1)))
def test_the_interval_is_at_least_that_of_each_source_of_noise(scores: npt.NDArray[np.int8]) -> None:
    """The part of the seeds is the standard deviation of the runs, and no estimate is below that of one source."""
    parts = crossed(scores)

    runs, images = scores.mean(axis=1), scores.mean(axis=0)
    assert parts.seed_sd == pytest.approx(runs.std(ddof=1), abs=1e-12)
    error = (parts.high - parts.mean) / stats.t.ppf(0.975, parts.degrees)
    assert error >= max(stats.sem(runs), stats.sem(images)) - 1e-12


def test_the_crossed_interval_covers_new_seeds_and_images() -> None:
    """About 95 % of intervals of five seeds contain the true mean; intervals of the seeds alone miss it too often."""
    rng, truth = np.random.default_rng(11), float(stats.norm.cdf(4.0 / np.sqrt(1 + 0.15**2 + 2.0**2)))
    both = seeds_only = 0

    for _ in range(500):
        skill, difficulty = rng.normal(0, 0.15, size=(5, 1)), rng.normal(0, 2.0, size=1000)
        scores = 4.0 + skill + difficulty + rng.standard_normal((5, 1000)) > 0
        parts, alone = crossed(scores), mean_interval(scores.mean(axis=1))
        both += parts.low <= truth <= parts.high
        seeds_only += alone.low <= truth <= alone.high

    assert both >= stats.binom.ppf(0.001, 500, 0.95)
    assert seeds_only < 425
