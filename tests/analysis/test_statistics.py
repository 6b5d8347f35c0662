from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

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
from statsmodels.stats.contingency_tables import mcnemar as mcnemar_reference
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mnistexp.analysis.statistics import (
    Rival,
    against_best,
    crossed,
    hits_matrix,
    holm,
    mcnemar,
    mean_interval,
    paired_t,
    proportion_interval,
    rounding,
    selection_optimism,
    welch_t,
)

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


def paired(both: int, first: int, second: int, neither: int) -> tuple[Bools, Bools]:
    """Two configs' hits with these four counts of images."""
    counts = [both, first, second, neither]
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


def draw_hits(rng: np.random.Generator, skills: Floats, images: int) -> Bools:
    """Hits of configs with these skills (0: about 94 %) on new images whose difficulty they share, as in reality."""
    ease = rng.normal(3.5, 2.0, size=images)
    return rng.random((len(skills), images)) < stats.norm.cdf(ease + skills[:, None])


def most(rate: float, trials: int) -> float:
    """The share of trials that an event of this rate exceeds once in a thousand times."""
    return float(stats.binom.ppf(0.999, trials, rate)) / trials


def least(rate: float, trials: int) -> float:
    """The share of trials that an event of this rate stays below once in a thousand times."""
    return float(stats.binom.ppf(0.001, trials, rate)) / trials


# -------------------------------------------------------------------------------------------------- hits_matrix


@settings(deadline=None)
@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=20)))
def test_packed_hits_come_back(hits: Bools) -> None:
    """Hits of any size, multiple of 8 or not, survive np.packbits."""
    back = hits_matrix([np.packbits(row).tobytes() for row in hits], hits.shape[1])

    assert back.dtype == np.bool_
    np.testing.assert_array_equal(back, hits)


def test_no_configs_have_a_matrix_too() -> None:
    """A study without a finished trial gives no rows, of the right length."""
    assert hits_matrix([], 12).shape == (0, 12)


@pytest.mark.parametrize(
    ("packed", "size", "message"),
    [
        ([b"\xff", b""], 8, r"packed\[1\] has 0 bytes; 8 images are 1"),
        ([b"\xff\xff"], 8, r"packed\[0\] has 2 bytes"),
        ([b"\xf0", b"\xff"], 5, r"packed\[1\] has hits beyond image 5"),
        ([], 0, "size is 0; it must be at least 1"),
    ],
)
def test_hits_of_another_split_are_refused(packed: list[bytes], size: int, message: str) -> None:
    """Bytes that can't be of this many images are an error, not a shifted matrix."""
    with pytest.raises(ValueError, match=message):
        hits_matrix(packed, size)


# ------------------------------------------------------------------------------------------------------ mcnemar

counts = st.integers(0, 60)


@settings(max_examples=200, deadline=None)
@given(counts, counts, counts, counts)
def test_mcnemar_is_the_exact_test(both: int, first: int, second: int, neither: int) -> None:
    """It equals statsmodels' and SciPy's p-value, whatever the table."""
    hits = paired(both + 1, first, second, neither)

    p_value = mcnemar(*hits)

    reference = mcnemar_reference([[both + 1, first], [second, neither]], exact=True).pvalue
    assert p_value == pytest.approx(min(1.0, reference), rel=1e-9)
    if first + second:
        assert p_value == pytest.approx(stats.binomtest(first, first + second).pvalue, rel=1e-9)
    assert p_value == mcnemar(*reversed(hits))


@pytest.mark.parametrize(("first", "second"), [(0, 2000), (900, 1100), (1000, 1000), (1000, 1001), (1, 0)])
def test_mcnemar_holds_for_many_discordant_images(first: int, second: int) -> None:
    """Tails far out, and counts that are equal or nearly so, match SciPy's binomial test."""
    reference = stats.binomtest(first, first + second).pvalue

    assert mcnemar(*paired(3, first, second, 5)) == pytest.approx(reference, rel=1e-9)


def test_images_that_both_got_alike_tell_nothing() -> None:
    """Without a discordant image the p-value is 1, and images that both hit or both missed never change it."""
    assert mcnemar(*paired(7, 0, 0, 4)) == 1.0
    assert mcnemar(*paired(0, 9, 2, 0)) == mcnemar(*paired(500, 9, 2, 300))


def test_mcnemar_of_two_equal_configs_is_rarely_significant() -> None:
    """Fixed beforehand, two equal configs differ at 5 % in at most 5 % of splits, and in not absurdly fewer."""
    rng = np.random.default_rng(1)
    trials = 2000

    false = np.mean([mcnemar(*draw_hits(rng, np.zeros(2), 1000)) <= 0.05 for _ in range(trials)])

    assert 0.02 <= false <= most(0.05, trials)


# --------------------------------------------------------------------------------------------------------- holm


@settings(max_examples=40, deadline=None)  # statsmodels collects garbage at each call: 50 ms
@given(st.lists(st.sampled_from([0.0, 1e-9, 0.001, 0.01, 0.02, 0.02, 0.3, 1.0]) | st.floats(0, 1), min_size=1))
def test_holm_is_holms(p_values: list[float]) -> None:
    """It equals statsmodels', with ties, zeros and a single value too."""
    reference = multipletests(p_values, method="holm")[1]

    np.testing.assert_allclose(holm(np.array(p_values)), reference, rtol=1e-12)


def test_holm_of_nothing_is_nothing() -> None:
    """A lone config has no pairs, and that is no error."""
    assert holm(np.array([])).shape == (0,)


@pytest.mark.parametrize("p_values", [[0.5, 1.1], [-0.1], [np.nan], [[0.5]]])
def test_holm_refuses_what_is_no_p_value(p_values: Any) -> None:
    """Numbers outside [0, 1] or in a table aren't p-values."""
    with pytest.raises(ValueError, match="numbers from 0 to 1"):
        holm(np.array(p_values))


# ------------------------------------------------------------------------------------------------- against_best


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 60), st.integers(0, 2**32 - 1), st.data())
def test_rivals_are_those_of_every_pair_tested_one_by_one(configs: int, images: int, seed: int, data: Any) -> None:
    """Counts, p-values and correction equal a loop over pairs, with statsmodels' Holm, whichever is called best."""
    hits = np.random.default_rng(seed).random((configs, images)) < np.linspace(0.1, 0.95, configs)[:, None]
    best = data.draw(st.integers(0, configs - 1))

    rivals = against_best(hits, best)

    pairs = list(itertools.combinations(range(configs), 2))
    raw = {pair: mcnemar(hits[pair[0]], hits[pair[1]]) for pair in pairs}
    adjusted = dict(zip(pairs, multipletests(list(raw.values()), method="holm")[1], strict=True)) if pairs else {}
    assert [rival.index for rival in rivals] == [index for index in range(configs) if index != best]
    for rival in rivals:
        pair = (min(rival.index, best), max(rival.index, best))
        assert rival == Rival(
            index=rival.index,
            better=int(np.sum(hits[best] & ~hits[rival.index])),
            worse=int(np.sum(hits[rival.index] & ~hits[best])),
            p_value=pytest.approx(raw[pair], rel=1e-12),
            adjusted=pytest.approx(adjusted[pair], rel=1e-9),
            distinguishable=rival.adjusted <= 0.05,
        )


def test_two_thousand_configs_are_few_enough() -> None:
    """Two million pairs fit, and the counts among them are those of the rows."""
    hits = draw_hits(np.random.default_rng(2), np.zeros(2000), 500)
    best = int(hits.sum(axis=1).argmax())

    rivals = against_best(hits, best)

    assert len(rivals) == 1999
    assert [rival.better for rival in rivals[::100]] == [np.sum(hits[best] & ~hits[r.index]) for r in rivals[::100]]


def test_equal_configs_are_seldom_told_apart_though_the_best_was_picked() -> None:
    """A false "better" in at most 5 % of sweeps; without correction, or with one for K - 1 tests, in far more."""
    rng = np.random.default_rng(3)
    trials = 1000
    wrong = {"uncorrected": 0, "against K - 1": 0, "against all pairs": 0}

    for _ in range(trials):
        hits = draw_hits(rng, np.zeros(20), 1000)
        rivals = against_best(hits, int(hits.sum(axis=1).argmax()))
        p_values = np.array([rival.p_value for rival in rivals])
        wrong["uncorrected"] += bool(p_values.min() <= 0.05)
        wrong["against K - 1"] += bool(holm(p_values).min() <= 0.05)
        wrong["against all pairs"] += any(rival.distinguishable for rival in rivals)

    rates = {name: count / trials for name, count in wrong.items()}
    assert rates["against all pairs"] <= most(0.05, trials)
    assert rates["against K - 1"] > 2 * most(0.05, trials)
    assert rates["uncorrected"] > rates["against K - 1"]


def test_equal_configs_above_worse_ones_are_seldom_told_apart() -> None:
    """Clearly worse configs, which use up the step-down's large factors, make no false call among equals likelier."""
    rng = np.random.default_rng(4)
    trials = 1000
    skills = np.repeat([0.0, -1.5], 10)  # the first ten are equal, and the best
    wrong = 0

    for _ in range(trials):
        hits = draw_hits(rng, skills, 1000)
        rivals = against_best(hits, int(hits.sum(axis=1).argmax()))
        wrong += any(rival.distinguishable and rival.index < 10 for rival in rivals)

    assert wrong / trials <= most(0.05, trials)


def test_a_clearly_worse_config_is_found() -> None:
    """One config a few points below nineteen good ones is told apart nearly always."""
    rng = np.random.default_rng(5)
    skills = np.append(np.zeros(19), -1.0)
    found = []

    for _ in range(100):
        hits = draw_hits(rng, skills, 1000)
        found.append(against_best(hits, int(hits.sum(axis=1).argmax()))[-1].distinguishable)

    assert np.mean(found) >= 0.95


# ---------------------------------------------------------------------------------------------------- intervals


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0.01, 0.999))
def test_the_proportion_interval_is_wilsons(n: int, share: float, level: float) -> None:
    """It equals statsmodels', at 0 and n hits too."""
    successes = round(share * n)

    low, high = proportion_interval(successes, n, level)

    reference = proportion_confint(successes, n, alpha=1 - level, method="wilson")
    assert (low, high) == pytest.approx(reference, abs=1e-9)
    assert 0 <= low <= successes / n <= high <= 1


@pytest.mark.parametrize("accuracy", [0.5, 0.9, 0.98])
def test_the_proportion_interval_covers(accuracy: float) -> None:
    """About 95 % of intervals from 5,000 images hold the true accuracy."""
    trials = 2000
    hits = np.random.default_rng(6).binomial(5000, accuracy, size=trials)

    intervals = np.array([proportion_interval(int(count), 5000) for count in hits])

    covered = np.mean((intervals[:, 0] <= accuracy) & (accuracy <= intervals[:, 1]))
    assert least(0.94, trials) <= covered <= most(0.96, trials)


finite = st.floats(-1e3, 1e3)


@settings(max_examples=200, deadline=None)
@given(st.lists(finite, min_size=2, max_size=20), st.floats(0.01, 0.999))
def test_the_mean_interval_is_students(values: list[float], level: float) -> None:
    """It equals SciPy's; without any spread it is the value itself."""
    interval = mean_interval(values, level)

    assert interval.mean == pytest.approx(np.mean(values))
    if (error := stats.sem(values)) > 0:
        reference = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=error)
        assert (interval.low, interval.high) == pytest.approx(reference, rel=1e-9, abs=1e-9)
    else:
        assert interval.low == interval.mean == interval.high


@pytest.mark.parametrize("seeds", [2, 5])
def test_the_mean_interval_covers(seeds: int) -> None:
    """95 % of intervals from a few seeds hold the true mean."""
    trials = 2000
    runs = np.random.default_rng(7).normal(0.98, 0.001, size=(trials, seeds))

    covered = np.mean([(i := mean_interval(values)).low <= 0.98 <= i.high for values in runs])

    assert least(0.95, trials) <= covered <= most(0.95, trials)


# ------------------------------------------------------------------------------------------------------ t tests

accuracies = st.lists(st.floats(0, 1), min_size=2, max_size=12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=12))
def test_the_paired_test_is_students(pairs: list[tuple[float, float]]) -> None:
    """It equals SciPy's where the variance is above the floor; it is never sure."""
    first, second = np.array(pairs).T
    differences = first - second

    if np.ptp(differences) > 1e-6:
        reference = float(stats.ttest_rel(first, second).pvalue)
        assert paired_t(differences, 1e-20) == pytest.approx(reference, rel=1e-6, abs=1e-12)
    assert paired_t([0.0] * len(pairs), 1e-4) == 1
    assert 0 < paired_t([0.25] * len(pairs), 1e-4) < 0.05


@settings(max_examples=200, deadline=None)
@given(accuracies, accuracies)
def test_the_test_of_two_samples_is_welchs(first: list[float], second: list[float]) -> None:
    """It equals SciPy's where the variances are above the floor; it is never sure."""
    if min(np.ptp(first), np.ptp(second)) > 1e-6:
        reference = float(stats.ttest_ind(first, second, equal_var=False).pvalue)
        assert welch_t(first, second, 1e-20) == pytest.approx(reference, rel=1e-6, abs=1e-12)
    assert welch_t([0.5, 0.5], [0.5, 0.5, 0.5], 1e-4) == 1
    assert 0 < welch_t([0.5, 0.5], [0.25, 0.25], 1e-4) < 0.05


@pytest.mark.parametrize("test", ["paired", "welch"])
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("sd", [0.4, 1.0, 3.0, 10.0])
def test_equal_configs_are_seldom_called_different(sd: float, seeds: int, test: str) -> None:
    """Accuracies are whole images, so few are often equal by chance: no test takes that for certainty.

    The share of false positives is at most the level, also at those low ones that Holm's correction asks for.
    """
    trials, images = 4000, 5000
    rng = np.random.default_rng(11)
    rights = np.round(rng.normal(4900 + rng.random((trials, 1, 1)), sd, (trials, 2, seeds))) / images
    floor = rounding(1 / images)

    if test == "paired":
        p_values = np.array([paired_t(one - other, 2 * floor) for one, other in rights])
    else:
        p_values = np.array([welch_t(one, other, floor) for one, other in rights])

    for level in (0.05, 0.01, 0.001):
        assert np.mean(p_values <= level) <= most(level, trials)
    assert p_values.min() > 1e-6


def test_a_lead_of_many_images_is_found_though_all_seeds_agree() -> None:
    """The floor is that of rounding, so little: with five seeds alike some images are enough."""
    floor = rounding(1 / 5000)

    assert paired_t([10 / 5000] * 5, 2 * floor) < 1e-4
    assert welch_t([0.98] * 5, [0.978] * 5, floor) < 1e-4
    assert floor == pytest.approx(float(np.var((np.arange(1000) + 0.5) / 1000 / 5000)), rel=1e-5)
    alike = mean_interval([0.98] * 5, floor=floor)
    assert alike.high - alike.mean == pytest.approx(stats.t.ppf(0.975, 4) * np.sqrt(floor / 5))


# ------------------------------------------------------------------------------------------------------ crossed


def draw_scores(rng: np.random.Generator, seeds: int, images: int, seed_sd: float, image_sd: float) -> Floats:
    """Scores with mean 0 of the model that `crossed` assumes, with a rest of sd 0.5."""
    of_seeds = seed_sd * rng.standard_normal((seeds, 1))
    return of_seeds + image_sd * rng.standard_normal(images) + 0.5 * rng.standard_normal((seeds, images))


def test_the_parts_of_noise_follow_from_an_analysis_of_variance() -> None:
    """Spreads and interval equal those from statsmodels' ANOVA table of a two-way layout."""
    scores = draw_scores(np.random.default_rng(8), 4, 30, seed_sd=0.5, image_sd=1.0)
    seed, image = np.indices(scores.shape)
    frame = pd.DataFrame({"score": scores.ravel(), "seed": seed.ravel(), "image": image.ravel()})
    table = anova_lm(ols("score ~ C(seed) + C(image)", data=frame).fit())
    squares = (table["sum_sq"] / table["df"]).to_numpy()

    parts = crossed(scores)

    a, b, e = squares
    variance = (a + b - e) / 120
    degrees = (a + b - e) ** 2 / np.sum(squares**2 / table["df"])
    assert parts.seed_sd == pytest.approx(np.sqrt(a / 30))
    assert parts.split_sd == pytest.approx(np.sqrt((b - e) / 120))
    assert parts.degrees == pytest.approx(degrees)
    reference = stats.t.interval(0.95, degrees, loc=scores.mean(), scale=np.sqrt(variance))
    assert (parts.low, parts.high) == pytest.approx(reference)


def test_the_parts_of_noise_are_recovered() -> None:
    """On average over repeats, both variances are those that were put in."""
    rng = np.random.default_rng(9)
    seeds, images, seed_sd, image_sd = 6, 200, 0.1, 1.0

    parts = [crossed(draw_scores(rng, seeds, images, seed_sd, image_sd)) for _ in range(500)]

    assert np.mean([part.seed_sd**2 for part in parts]) == pytest.approx(seed_sd**2 + 0.25 / images, rel=0.1)
    assert np.mean([part.split_sd**2 for part in parts]) == pytest.approx(image_sd**2 / images, rel=0.05)


@settings(deadline=None)
@given(arrays(np.int8, array_shapes(min_dims=2, max_dims=2, min_side=2, max_side=8), elements=st.integers(-1, 1)))
def test_seed_noise_is_the_spread_of_the_runs_and_the_interval_is_floored(scores: npt.NDArray[np.int8]) -> None:
    """For any differences of hits: the seeds' part is what one sees, and neither source alone is wider than both."""
    parts = crossed(scores)

    seeds, images = scores.shape
    runs, pictures = scores.mean(axis=1), scores.mean(axis=0)
    assert parts.seed_sd == pytest.approx(runs.std(ddof=1), abs=1e-12)
    assert min(seeds, images) - 1 <= parts.degrees <= (seeds - 1) + (images - 1) + (seeds - 1) * (images - 1)
    assert (parts.low + parts.high) / 2 == pytest.approx(parts.mean, abs=1e-12)
    error = (parts.high - parts.mean) / stats.t.ppf(0.975, parts.degrees)
    assert error >= max(stats.sem(runs), stats.sem(pictures)) - 1e-12


def test_bools_are_scores() -> None:
    """A matrix of hits needs no conversion, and one without any noise has none."""
    hits = draw_hits(np.random.default_rng(10), np.zeros(3), 50)

    assert crossed(hits) == crossed(hits.astype(np.float64))
    sure = crossed(np.ones((3, 50), dtype=np.bool_))
    assert (sure.seed_sd, sure.split_sd, sure.low, sure.mean, sure.high) == (0, 0, 1, 1, 1)


Suggestion = Callable[[np.random.Generator], npt.NDArray[Any]]


def coverage(draw: Suggestion, truth: float, trials: int) -> tuple[float, float]:
    """How often the crossed interval, and the one of seeds alone, hold the truth."""
    rng = np.random.default_rng(11)
    both = alone = 0
    for _ in range(trials):
        scores = draw(rng)
        parts, seeds_only = crossed(scores), mean_interval(scores.mean(axis=1))
        both += parts.low <= truth <= parts.high
        alone += seeds_only.low <= truth <= seeds_only.high
    return both / trials, alone / trials


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize(("seed_sd", "image_sd"), [(0.05, 1.0), (0.2, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_the_crossed_interval_covers(seeds: int, seed_sd: float, image_sd: float) -> None:
    """With new seeds and new images about 95 % hold the true mean, also if only one of them, or neither, is noisy."""
    trials = 1000

    both, _ = coverage(lambda rng: draw_scores(rng, seeds, 400, seed_sd, image_sd), 0.0, trials)

    assert both >= least(0.95 if seeds >= 5 else 0.92, trials)
    assert both <= most(0.96, trials) or seed_sd == image_sd == 0  # then the floor makes it cautious


def test_the_crossed_interval_covers_for_hits_and_that_of_seeds_alone_does_not() -> None:
    """So for 0s and 1s of a network on hard and easy images: there 5 seeds alone miss the truth far too often."""
    ease, seed_sd, image_sd = 4.0, 0.15, 2.0
    truth = float(stats.norm.cdf(ease / np.sqrt(1 + seed_sd**2 + image_sd**2)))
    trials = 1000

    def draw(rng: np.random.Generator) -> Bools:
        skill, hardness = rng.normal(0, seed_sd, size=(5, 1)), rng.normal(0, image_sd, size=1000)
        return ease + skill + hardness + rng.standard_normal((5, 1000)) > 0

    both, alone = coverage(draw, truth, trials)

    assert least(0.95, trials) <= both <= most(0.96, trials)
    assert alone < 0.85


# ------------------------------------------------------------------------------------------- selection_optimism


@pytest.mark.parametrize("configs", [2, 10, 40])
def test_the_winners_luck_among_equals_is_estimated(configs: int) -> None:
    """On average over sweeps the estimate is what the winner's accuracy really exceeds the truth by."""
    rng = np.random.default_rng(12)
    true, estimated = [], []

    for _ in range(300):
        hits = draw_hits(rng, np.zeros(configs), 500)
        accuracy = hits.mean(axis=1)
        true.append(accuracy.max() - accuracy.mean())  # the mean of equals is the truth, but for luck that all share
        estimated.append(selection_optimism(hits, rng, resamples=100))

    assert np.mean(estimated) == pytest.approx(np.mean(true), rel=0.12)


def test_the_winners_luck_among_unequals_is_hardly_overestimated() -> None:
    """Where configs differ by about the noise, so that the better ones win more often, it is right or somewhat high."""
    rng = np.random.default_rng(16)
    skills = np.linspace(-0.4, 0.0, 10)
    truth = stats.norm.cdf((3.5 + skills) / np.sqrt(1 + 2.0**2))
    true, estimated = [], []

    for _ in range(300):
        hits = draw_hits(rng, skills, 500)
        error = hits.mean(axis=1) - truth
        true.append(error[hits.mean(axis=1).argmax()] - error.mean())
        estimated.append(selection_optimism(hits, rng, resamples=100))

    assert 0.95 * np.mean(true) <= np.mean(estimated) <= 1.35 * np.mean(true)


def test_without_a_choice_there_is_no_luck() -> None:
    """One config, or one that wins on any images, has an optimism of exactly 0."""
    rng = np.random.default_rng(13)
    lone = draw_hits(rng, np.zeros(1), 300)
    clear = np.stack([np.zeros(300, dtype=np.bool_), np.ones(300, dtype=np.bool_)])

    assert selection_optimism(lone, rng) == 0.0
    assert selection_optimism(clear, rng) == 0.0


def test_the_luck_is_reproducible_and_never_negative() -> None:
    """The same seed gives the same number, for any number of resamples."""
    hits = draw_hits(np.random.default_rng(14), np.linspace(-1, 0, 5), 200)

    for resamples in (1, 99, 250):
        first, again = (selection_optimism(hits, np.random.default_rng(15), resamples) for _ in range(2))
        assert first == again >= 0


# ------------------------------------------------------------------------------------------------------ refusals

HITS = np.eye(3, dtype=np.bool_)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mcnemar(HITS[0], HITS[0, :2]), "first has 3 images, second 2"),
        (lambda: mcnemar(HITS[0].astype(float), HITS[0]), r"first must be bools \[images\].* float64 \[3\]"),
        (lambda: mcnemar(HITS[0], HITS), r"second must be bools \[images\].* \[3, 3\]"),
        (lambda: mcnemar(HITS[0, :0], HITS[0, :0]), "not empty"),
        (lambda: against_best(HITS, 3), "best is 3; it must be a row of hits: 0 to 2"),
        (lambda: against_best(HITS, -1), "best is -1"),
        (lambda: against_best(HITS, 0, alpha=0), "alpha is 0; it must be between 0 and 1"),
        (lambda: against_best(HITS[0], 0), r"hits must be bools \[configs, images\]"),
        (lambda: against_best(HITS[:0], 0), "not empty"),
        (lambda: proportion_interval(0, 0), "n is 0; it must be at least 1"),
        (lambda: proportion_interval(4, 3), "successes is 4; it must be from 0 to n = 3"),
        (lambda: proportion_interval(-1, 3), "successes is -1"),
        (lambda: proportion_interval(1, 3, level=95), "level is 95; it must be between 0 and 1"),
        (lambda: mean_interval([0.5]), "the number of values is 1; it must be at least 2"),
        (lambda: mean_interval([0.5, np.nan]), "values must be finite numbers"),
        (lambda: mean_interval([0.5, 0.6], level=1), "level is 1;"),
        (lambda: rounding(0.0), "step is 0.0; it must be above 0"),
        (lambda: paired_t([0.1], 1.0), "the number of differences is 1; it must be at least 2"),
        (lambda: paired_t([0.1, 0.1], 0.0), "floor is 0.0; it must be above 0"),
        (lambda: welch_t([0.1, 0.2], [0.1, 0.2], 0.0), "floor is 0.0; it must be above 0"),
        (lambda: welch_t([0.1, 0.2], [0.1], 1.0), "the number of values is 1; it must be at least 2"),
        (lambda: crossed(HITS[:1]), "the number of seeds is 1; it must be at least 2"),
        (lambda: crossed(HITS[:, :1]), "the number of images is 1; it must be at least 2"),
        (lambda: crossed(HITS[0]), r"scores must be finite numbers in 2 dimensions; it has shape \[3\]"),
        (lambda: crossed(np.full((2, 2), np.inf)), "scores must be finite numbers"),
        (lambda: crossed(HITS, level=0), "level is 0;"),
        (lambda: selection_optimism(HITS, RNG, resamples=0), "resamples is 0; it must be at least 1"),
        (lambda: selection_optimism(HITS.astype(int), RNG), "hits must be bools"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[], object], message: str) -> None:
    """Each wrong input gets one sentence that says what it was and what is allowed."""
    with pytest.raises(ValueError, match=message):
        call()
