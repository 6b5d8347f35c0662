"""Better, or just lucky? Tests, intervals and the winner's luck, on arrays alone.

Two things make a measured accuracy differ from the true one: which images it was measured on, and which seed the
network was trained with. `mcnemar`, `against_best`, `proportion_interval` and `selection_optimism` are about the
images, `mean_interval` of several seeds' accuracies about the seeds, `crossed` about both at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Not scipy.stats: the same numbers to 11 digits, checked in the tests, but a second more for the import.
from scipy.special import bdtr, ndtri, stdtr, stdtrit

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_BATCH = 100  # resamples at a time: 100 × 5,000 images × 8 bytes are 4 MB, all 1,000 at once would be 40


@dataclass(frozen=True)
class Rival:
    """One config beside the best one, on the same images."""

    index: int  # its row among the hits
    better: int  # images that only the best config got right
    worse: int  # images that only this rival got right
    p_value: float  # exact McNemar test of this pair alone, two-sided
    adjusted: float  # the same, corrected for all the pairs that could have come out on top
    distinguishable: bool  # adjusted <= alpha


@dataclass(frozen=True)
class Interval:
    """A mean, and the interval [low, high] for the true one."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class NoiseParts:
    """What part of an accuracy's noise comes from the seeds, and what from the images; see `crossed`."""

    mean: float  # over all seeds and images
    seed_sd: float  # of one run's accuracy on these images, from seed to seed
    split_sd: float  # of the accuracy averaged over all possible seeds, from one draw of N images to the next
    low: float  # the interval for the true mean, over new seeds and new images
    high: float
    degrees: float  # of freedom, of that interval: >= 1, not whole


# ---------------------------------------------------------------------------------- configs on the same images


def hits_matrix(packed: Sequence[bytes], size: int) -> Bools:
    """Unpack which images each config got right.

    Args:
        packed: for each config np.packbits of [size] bools, as in `FitResult.validation_correct`.
        size: number of images, >= 1.

    Returns:
        bool [configs, size].

    Raises:
        ValueError: one has another number of bytes, or a bit set beyond the last image: it is of another split.
    """
    _at_least("size", size, 1)
    width = (size + 7) // 8
    for index, row in enumerate(packed):
        if len(row) != width:
            raise ValueError(f"packed[{index}] has {len(row)} bytes; {size} images are {width}")
    rows = np.frombuffer(b"".join(packed), dtype=np.uint8).reshape(len(packed), width)
    bits = np.unpackbits(rows, axis=1).view(np.bool_)
    if stray := np.flatnonzero(bits[:, size:].any(axis=1)).tolist():
        raise ValueError(f"packed[{stray[0]}] has hits beyond image {size}")
    return np.ascontiguousarray(bits[:, :size])


def mcnemar(first: Bools, second: Bools) -> float:
    """Test whether two configs, fixed before anyone looked at these images, are equally accurate.

    McNemar's exact test (McNemar 1947; advised for this by Dietterich 1998): only the images that one of them got
    right and the other wrong tell them apart, and among those, equals win like a fair coin. So a binomial test. It is
    much sharper than comparing two accuracies' intervals, since the images that are hard for both cancel.

    Args:
        first, second: bool [N], N >= 1: which images each got right, in the same order.

    Returns:
        The two-sided p-value, in (0, 1]; 1 if no image tells them apart.

    Raises:
        ValueError: other types or shapes.
    """
    one, other = _hits("first", first, 1), _hits("second", second, 1)
    if one.shape != other.shape:
        raise ValueError(f"first has {one.size} images, second {other.size}; they must be the same ones")
    better, worse = np.count_nonzero(one & ~other), np.count_nonzero(other & ~one)
    return float(_exact(np.array([better]), np.array([worse]))[0])


def against_best(hits: Bools, best: int, alpha: float = 0.05) -> tuple[Rival, ...]:
    """Compare each config with the best one, knowing that the best was picked by these very images.

    The pick is what makes this hard (the winner's curse). Of equal configs the one on top is there by luck, and its
    lead over the last is the largest of all pairs' leads, not that of a pair named beforehand. Correcting for the
    K - 1 comparisons with the best is too little: among 20 equals it finds a difference in every seventh sweep. Any
    of the K (K - 1) / 2 pairs could have become the one looked at, so Holm's correction is taken over them all. Then,
    whatever picked the best and however the configs' hits depend on each other, with probability >= 1 - alpha every
    rival called distinguishable does differ from the best in true accuracy.

    Indistinguishable isn't equal: these images are too few to tell. And each config is here the one network that was
    trained: if a lucky seed made it better, better it is.

    Args:
        hits: bool [K, N]: which of N images each of K configs got right.
        best: row of the best config.
        alpha: in (0, 1): the share of sweeps in which a false difference is tolerated.

    Returns:
        A Rival for each other row, in order of rows.

    Raises:
        ValueError: other types, shapes or ranges.
    """
    rows = _hits("hits", hits, 2)
    _fraction("alpha", alpha)
    if not 0 <= best < len(rows):
        raise ValueError(f"best is {best}; it must be a row of hits: 0 to {len(rows) - 1}")
    one, other = np.triu_indices(len(rows), k=1)
    better, worse = _discordant(rows, one, other)
    p_values = _exact(better, worse)
    adjusted = holm(p_values)
    mine = np.flatnonzero((one == best) | (other == best))  # in order of the rival's row, as triu_indices has them
    turned = other[mine] == best
    index = np.where(turned, one[mine], other[mine])
    won = np.where(turned, worse[mine], better[mine])
    lost = np.where(turned, better[mine], worse[mine])
    columns = (index, won, lost, p_values[mine], adjusted[mine], adjusted[mine] <= alpha)
    return tuple(Rival(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def holm(p_values: Floats) -> Floats:
    """Adjust p-values so that all those <= alpha can be believed together.

    Holm's step-down (Holm 1979): the smallest of M is multiplied by M, the next by M - 1, and so on, none below the
    one before. As valid as Bonferroni's M times each, for any dependence, and never less sharp.

    Args:
        p_values: [M], in [0, 1].

    Returns:
        [M], in the same order: the chance of one or more false calls, if this one is the limit.

    Raises:
        ValueError: not one-dimensional, or outside [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError("p_values must be a one-dimensional array of numbers from 0 to 1")
    order = np.argsort(values)
    factors = np.arange(len(values), 0, -1)
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * values[order]))
    return adjusted


def selection_optimism(hits: Bools, rng: np.random.Generator, resamples: int = 1000) -> float:
    """Estimate how much of the winner's accuracy is luck: measured minus true accuracy of the best row, on average.

    The bootstrap estimate of optimism (Efron 1983; of a pick's, after Tibshirani & Tibshirani 2009): draw N of the N
    images with replacement, let the best on these win, and see how far it falls back on the original images:
    sqrt(2) times the mean of the winner's fall less the original best's. The latter is 0 on average; taking it off
    removes most of the chance from the mean, and all where the winner never changes. So the result is never negative.

    The sqrt(2) is not Efron's. A resample has the original's image noise and as much again, so its winner stands out
    by sqrt(2) times the noise, and of that only the new half falls back: for equal configs 1 / sqrt(2) of the luck
    looked for. With it the estimate is right within a tenth for equals, and up to a third too high for configs
    that differ by about their noise.

    It covers luck in images only. A config with a lucky seed keeps its lead on new images; only new seeds show it.

    Args:
        hits: bool [K, N]: which of N images each of K configs got right, K >= 1.
        rng: where the resamples come from.
        resamples: how many, >= 1.

    Returns:
        In accuracy, >= 0: take it off the best row's.

    Raises:
        ValueError: other types, shapes or ranges.
    """
    rows = _hits("hits", hits, 2)
    _at_least("resamples", resamples, 1)
    columns = rows.T.astype(np.float32)  # [N, K], whose sums are whole numbers: exact below 2**24 images
    done = range(0, resamples, _BATCH)
    luck = sum(_fallback(columns, rng, min(_BATCH, resamples - start)) for start in done)
    return math.sqrt(2) * luck / resamples


def _fallback(columns: npt.NDArray[np.float32], rng: np.random.Generator, resamples: int) -> float:
    """The sum over resamples of how much further the resample's winner falls back than the original best."""
    size = len(columns)
    weights = rng.multinomial(size, np.full(size, 1 / size), size=resamples).astype(np.float32)
    scores = weights @ columns  # [resamples, K]: hits in each resample
    total = columns.sum(axis=0)
    best, winner = total.argmax(), scores.argmax(axis=1)
    lead = scores.max(axis=1) - scores[:, best]  # >= 0: on the resample …
    deficit = total[best] - total[winner]  # >= 0: … and on the original
    return float(np.sum(lead + deficit, dtype=np.float64)) / size


def _discordant(rows: Bools, one: Counts, other: Counts) -> tuple[Counts, Counts]:
    """Count for each pair of rows the images that only one got right, and only the other.

    By one matrix product: 2,000 configs on 5,000 images, two million pairs, take a second or two and 150 MB.
    """
    numbers = rows.astype(np.float32)  # whole numbers, exact below 2**24 images
    shared = (numbers @ numbers.T).astype(np.int64)
    total = np.diagonal(shared)
    both = shared[one, other]
    return total[one] - both, total[other] - both


def _exact(better: Counts, worse: Counts) -> Floats:
    """The two-sided binomial p-value of each pair of counts, each with chance 1/2."""
    # The coin is fair, so both tails are alike: twice the smaller one, which passes 1 if the counts are equal.
    tail: Floats = bdtr(np.minimum(better, worse).astype(np.float64), better + worse, 0.5)
    return np.minimum(1.0, 2 * tail)


# --------------------------------------------------------------------------------------------------- intervals


def proportion_interval(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for one config's accuracy, from its hits among n images (Wilson 1927).

    Not accuracy ± 1.96 standard errors: near 100 %, where MNIST is, that one is too short and passes 1.

    Args:
        successes: 0 to n.
        n: images, >= 1.
        level: in (0, 1).

    Returns:
        (low, high), in [0, 1].

    Raises:
        ValueError: outside these ranges.
    """
    _at_least("n", n, 1)
    _fraction("level", level)
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes}; it must be from 0 to n = {n}")
    z = float(ndtri((1 + level) / 2))
    centre = (successes + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(successes * (n - successes) / n + z**2 / 4)
    # At 0 and n hits one end is exact, and rounding would move it.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def rounding(step: float) -> float:
    """The variance that an accuracy has at least, whatever a few seeds of it look like: that of rounding.

    An accuracy is a whole number of images, a multiple of `step` = 1 / images, so a few of them are often equal though
    their seeds differ: of two equal configs' differences with 2 seeds on 5,000 images one pair in 20. Student's t,
    shown no variance, would be certain of such a lead. What is less than a step can't be seen, so it is taken to be
    spread evenly over one (Sheppard 1898): step**2 / 12 for an accuracy, twice that for the difference of two.

    In simulations with 2, 3 and 5 seeds, and seeds' noise from 0.2 to 50 steps, tests with this floor call equals
    different no more often than their level says, from 0.05 down to 0.0001.

    Raises:
        ValueError: step <= 0.
    """
    if not step > 0:
        raise ValueError(f"step is {step}; it must be above 0")
    return step**2 / 12


def mean_interval(values: Sequence[float] | Floats, level: float = 0.95, floor: float = 0.0) -> Interval:
    """Student's t interval for the mean of independent values, e.g. one config's accuracies with several seeds.

    Of accuracies on one validation split, it is the interval for new seeds on that split: the one to rank configs
    by there. For new images too it is too short; see `crossed`.

    Args:
        values: [n], finite, n >= 2.
        level: in (0, 1).
        floor: what a value's variance is at least; see `rounding`.

    Raises:
        ValueError: outside these ranges: one value says nothing about the noise.
    """
    _fraction("level", level)
    numbers = _finite("values", values, 1)
    _at_least("the number of values", len(numbers), 2)
    mean = float(numbers.mean())
    error = math.sqrt(_variance_of_mean(numbers, floor))
    half = float(stdtrit(len(numbers) - 1, (1 + level) / 2)) * error
    return Interval(mean, mean - half, mean + half)


def paired_t(differences: Sequence[float] | Floats, floor: float) -> float:
    """Student's t test of whether paired differences, e.g. two configs' accuracies seed by seed, are 0 on average.

    Args:
        differences: [n], finite, n >= 2.
        floor: what a difference's variance is at least, > 0: twice `rounding` for those of two accuracies.

    Returns:
        The two-sided p-value, 1 if the mean is 0.

    Raises:
        ValueError: outside these ranges.
    """
    numbers = _finite("differences", differences, 1)
    _at_least("the number of differences", len(numbers), 2)
    return _two_sided(float(numbers.mean()), _variance_of_mean(numbers, _above_0(floor)), len(numbers) - 1)


def welch_t(first: Sequence[float] | Floats, second: Sequence[float] | Floats, floor: float) -> float:
    """Welch's t test (1947) of whether two independent samples, whose variances may differ, have one mean.

    Args:
        first, second: [n] each, finite, n >= 2.
        floor: what a value's variance is at least, > 0: `rounding` for accuracies.

    Returns:
        The two-sided p-value, 1 if the means are equal.

    Raises:
        ValueError: outside these ranges.
    """
    samples = [_finite("first", first, 1), _finite("second", second, 1)]
    for each in samples:
        _at_least("the number of values", len(each), 2)
    parts = [_variance_of_mean(each, _above_0(floor)) for each in samples]
    weights = sum(part**2 / (len(each) - 1) for part, each in zip(parts, samples, strict=True))
    degrees = sum(parts) ** 2 / weights
    return _two_sided(float(samples[0].mean() - samples[1].mean()), sum(parts), degrees)


def _variance_of_mean(numbers: Floats, floor: float) -> float:
    """Of [n] numbers whose variance is `floor` at least."""
    return max(float(numbers.var(ddof=1)), floor) / len(numbers)


def _above_0(floor: float) -> float:
    if not floor > 0:
        raise ValueError(f"floor is {floor}; it must be above 0: without any variance there is no test")
    return floor


def _two_sided(difference: float, variance: float, degrees: float) -> float:
    """Of a mean with this variance, by Student's t."""
    return min(1.0, 2 * float(stdtr(degrees, -abs(difference) / math.sqrt(variance))))


def crossed(scores: npt.NDArray[np.generic], level: float = 0.95) -> NoiseParts:
    """Split one config's noise into that of the seeds and that of the images, and give an interval for both.

    Two-way random effects without replication (Searle, Casella & McCulloch 1992, ch. 4), as every run sees the same
    images: y[s, i] = mu + a[s] + b[i] + e[s, i], with variances A, B, E. With the mean squares of seeds, images and
    rest, MSa, MSb and MSe, whose expectations are N A + E, S B + E and E:

        seed_sd  = sqrt(MSa / N), which estimates sqrt(A + E / N) and is the sample sd of the runs' accuracies
        split_sd = sqrt(max(0, MSb - MSe) / (S N)), which estimates sqrt(B / N)
        variance of the mean = (MSa + MSb - MSe) / (S N), which estimates A / S + B / N + E / (S N)

    and Satterthwaite's (1946) degrees of freedom for that sum. In simulations at level 0.95 the interval holds the
    true mean in 94 to 97 % of cases for S >= 5 seeds, 92 to 96 % for 3, 88 to 96 % for 2 (98 % if A = B = 0).

    Args:
        scores: [S, N], S >= 2 seeds, N >= 2 images: hits as 0 and 1 (or bools); or, to compare two configs with
            paired seeds, differences of hits -1, 0 and 1.
        level: in (0, 1).

    Raises:
        ValueError: other shapes, ranges, or not finite.
    """
    _fraction("level", level)
    y = _finite("scores", scores, 2)
    seeds, images = y.shape
    _at_least("the number of seeds", seeds, 2)
    _at_least("the number of images", images, 2)
    of_seeds, of_images, rest = _mean_squares(y)
    variance, degrees = _variance_of_sum(of_seeds, of_images, rest, seeds - 1, images - 1)
    mean = float(y.mean())
    half = float(stdtrit(degrees, (1 + level) / 2)) * math.sqrt(variance / y.size)
    return NoiseParts(
        mean=mean,
        seed_sd=math.sqrt(of_seeds / images),
        split_sd=math.sqrt(max(0.0, of_images - rest) / y.size),
        low=mean - half,
        high=mean + half,
        degrees=degrees,
    )


def _mean_squares(y: Floats) -> tuple[float, float, float]:
    """The mean squares of the rows, the columns and the rest of a table, [S, N]."""
    seeds, images = y.shape
    rows, columns = y.mean(axis=1), y.mean(axis=0)
    rest = y - rows[:, None] - columns + y.mean()
    return (
        images * float(rows.var(ddof=1)),
        seeds * float(columns.var(ddof=1)),
        float(np.sum(rest**2)) / ((seeds - 1) * (images - 1)),
    )


def _variance_of_sum(of_seeds: float, of_images: float, rest: float, a: int, b: int) -> tuple[float, float]:
    """MSa + MSb - MSe, floored, and its degrees of freedom; MSa has `a` of them, MSb `b`, MSe `a * b`.

    The floor is the larger of MSa and MSb. Each alone is the variance with the other source of noise left out
    (N A + E without images' B, S B + E without seeds' A), so neither can exceed the truth but by chance; a difference
    below one says only that A or B was estimated as negative. The interval is then that source's own t interval.
    """
    if rest >= min(of_seeds, of_images):
        return (of_seeds, float(a)) if of_seeds >= of_images else (of_images, float(b))
    variance = of_seeds + of_images - rest
    degrees = variance**2 / (of_seeds**2 / a + of_images**2 / b + rest**2 / (a * b))
    return variance, max(degrees, float(min(a, b)))  # no sum is known worse than its worst known part


# ------------------------------------------------------------------------------------------------------ checks


def _hits(name: str, value: Bools, dimensions: int) -> Bools:
    array = np.asarray(value)
    if array.dtype != np.bool_ or array.ndim != dimensions or array.size == 0:
        shape = {1: "[images]", 2: "[configs, images]"}[dimensions]
        raise ValueError(f"{name} must be bools {shape}, and not empty; it is {array.dtype} {list(array.shape)}")
    return array


def _finite(name: str, value: npt.ArrayLike, dimensions: int) -> Floats:
    array = np.asarray(value, dtype=np.float64)
    if array.ndim != dimensions or not np.all(np.isfinite(array)):
        raise ValueError(f"{name} must be finite numbers in {dimensions} dimensions; it has shape {list(array.shape)}")
    return array


def _fraction(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; it must be between 0 and 1")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
