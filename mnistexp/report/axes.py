"""Axes of accuracies and of hyperparameters, and trials as points on them."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mnistexp.analysis import parameters
from mnistexp.analysis.history import Trial
from mnistexp.config.schema import format_value
from mnistexp.report.plot_style import BLUE, GREY, INK, ORANGE, printable

Floats = npt.NDArray[np.float64]
Limits = tuple[float, float]
Which = Literal["x", "y"]

FEW = 6  # numbers of which there are no more, each drawn twice on average, are categories
MANY = 400  # from this number of points or lines the SVG holds them as pixels: each would take 100 bytes
STEPS = (1, 2, 5, 10)  # between ticks
GOLDEN = 0.618034  # multiples of it, modulo 1, are spread evenly

PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}")  # PercentFormatter writes 98.000, not 98

STAR: Mapping[str, Any] = {"marker": "*", "color": ORANGE, "markeredgecolor": "white", "linestyle": "none"}
MARKERS: Mapping[str, Mapping[str, Any]] = {  # in the order of drawing
    "FAILED": {"marker": "x", "color": INK, "linewidths": 1.0},
    "PRUNED": {"marker": "o", "facecolors": "white", "edgecolors": GREY, "linewidths": 0.8},
    "COMPLETE": {"marker": "o", "facecolors": BLUE, "edgecolors": "white", "linewidths": 0.5},
}


# -------------------------------------------------------------------------------------------------- accuracies


def scores(trials: Sequence[Trial]) -> Floats:
    """Return the validation accuracies, [trials]; NaN where a trial has none."""
    values = [math.nan if trial.val_accuracy is None else trial.val_accuracy for trial in trials]
    found = np.array(values, dtype=np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def completed(trials: Sequence[Trial]) -> npt.NDArray[np.bool_]:
    """Return which trials are complete and have a score, [trials]."""
    states = np.array([trial.state == "COMPLETE" for trial in trials], dtype=np.bool_)
    return states & np.isfinite(scores(trials))


def ranked(trials: Sequence[Trial]) -> list[Trial]:
    """Return the complete trials that have a score, best first, then by number."""
    complete = [trial for trial, done in zip(trials, completed(trials)) if done]
    return sorted(complete, key=lambda trial: (-trial.accuracy, trial.number))


def percent(share: float, digits: int = 2) -> str:
    """Format a share as a percentage.

    >>> percent(0.98349)
    '98.35 %'
    """
    return f"{100 * share:.{digits}f} %"


def accuracy_limits(values: Iterable[float]) -> Limits:
    """Choose the range of an axis of accuracies: it leaves out low outliers, which would squeeze the others.

    An outlier is more than 1.5 interquartile ranges below the lower quartile (Tukey 1977).
    """
    found = np.array([value for value in values if math.isfinite(value)], dtype=np.float64)
    if not found.size:
        return 0.0, 1.0
    lower, upper = np.quantile(found, (0.25, 0.75))
    if len(found) > 4 and upper > lower:
        found = found[found >= lower - 1.5 * (upper - lower)]
    low, high = float(found.min()), float(found.max())
    pad = 0.06 * (high - low) or 0.005
    return low - pad, min(high + pad, 1.0 + pad / 4)


def accuracy_axis(axes: Axes, which: Which, limits: Limits, label: str = "validation accuracy (%)") -> None:
    """Show shares in percent within these limits."""
    axes.set(**{f"{which}lim": limits})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(PERCENT)
    axis.set_label_text(label)
    axis.grid(True)


def scatter(axes: Axes, x: Floats, trials: Sequence[Trial], limits: Limits, area: float = 26) -> None:
    """Draw each trial at its accuracy. One below the limits, or without an accuracy, is drawn on the lower end.

    Args:
        x: [trials]; a trial at NaN is not drawn.
        area: of a point, in square points; of many points less.
    """
    y, states = scores(trials), np.array([trial.state for trial in trials])
    drawn, inside = np.isfinite(x), y >= limits[0]
    size = area * min(1.0, max(0.25, 100 / len(trials)))
    common: dict[str, Any] = {"s": size, "zorder": 3, "clip_on": False, "rasterized": len(trials) > MANY}
    for state, look in MARKERS.items():
        mine = states == state
        label = f"{np.count_nonzero(mine)} {state.lower()}"
        spots, below = mine & inside & drawn, mine & ~inside & drawn
        if np.any(spots):
            axes.scatter(x[spots], y[spots], label=label, **common, **look)
        if np.any(below):
            if state != "FAILED":
                look = {**look, "marker": "v"}
                label = f"{np.count_nonzero(mine & ~inside)} {state.lower()}, below {percent(limits[0], 1)}"
            axes.scatter(x[below], np.full(np.count_nonzero(below), limits[0]), label=label, **common, **look)
    for best in ranked(trials)[:1]:
        place, score = [x[list(trials).index(best)]], best.accuracy
        axes.plot(
            place,
            [score],
            **STAR,
            markersize=11,
            zorder=5,
            clip_on=False,
            label=f"best: #{best.number}, {percent(score)}",
        )


# --------------------------------------------------------------------------------------------- hyperparameters


def short_names(names: Iterable[str]) -> dict[str, str]:
    r"""Return short names of parameters that still tell them apart.

    >>> short_names(["model.dropout", "optimizer.learning_rate@adam|lion"])
    {'model.dropout': 'dropout', 'optimizer.learning_rate@adam|lion': 'learning_rate\n(adam, lion)'}
    """
    keys = {name: parameters.key_of(name) for name in names}
    found = {}
    for name, key in keys.items():
        last = key.rpartition(".")[2]
        unique = all(other == key or other.rpartition(".")[2] != last for other in keys.values())
        options = name.partition("@")[2].replace("|", ", ")
        found[name] = printable(last if unique else key) + (f"\n({printable(options)})" if options else "")
    return found


@dataclass(frozen=True, eq=False)
class Parameter:
    """A hyperparameter of some trials, as numbers on an axis."""

    label: str
    values: Floats  # [trials]: numbers, or indices of categories; NaN: the trial has no value
    categories: tuple[str, ...] = ()  # empty: the values are numbers
    log: bool = False

    @classmethod
    def read(cls, trials: Sequence[Trial], key: str, label: str, log: Collection[str] = ()) -> Parameter:
        """Read the values of an override key.

        Args:
            log: the names of parameters that were searched on a logarithmic scale.
        """
        missing = math.nan  # None is a value: null
        found = [parameters.values_of(trial, [key]).get(key, missing) for trial in trials]
        found = [missing if isinstance(value, float) and not math.isfinite(value) else value for value in found]
        numbers = np.array([float(v) if parameters.is_number(v) else missing for v in found], dtype=np.float64)
        texts = ["" if value is missing else format_value(value, digits=3) for value in found]
        finite = numbers[np.isfinite(numbers)]
        words = [value for value in found if value is not None and not parameters.is_number(value)]
        if words or len(set(finite.tolist())) <= max(1, min(FEW, len(finite) // 2)):
            categories = sorted(set(texts) - {""}, key=_category_order)
            index = [categories.index(text) if text else missing for text in texts]
            return cls(label, np.array(index, dtype=np.float64), tuple(printable(each, 20) for each in categories))
        logarithmic = min(finite) > 0 and any(key in (name, parameters.key_of(name)) for name in log)
        return cls(label, numbers, log=bool(logarithmic))

    @property
    def empty(self) -> bool:
        """Whether no trial has a value."""
        return bool(np.all(np.isnan(self.values)))

    @property
    def limits(self) -> Limits:
        """The ends of the axis: 4 % of its length from the outermost values."""
        if self.categories:
            return -0.5, len(self.categories) - 0.5
        low, high = float(np.nanmin(self.values)), float(np.nanmax(self.values))
        if self.log:
            pad = (high / low) ** 0.04
            return low / pad, high * pad
        return low - 0.04 * (high - low), high + 0.04 * (high - low)

    @property
    def norm(self) -> Normalize:
        """The map from the axis to 0 … 1."""
        return LogNorm(*self.limits) if self.log else Normalize(*self.limits)

    def edges(self, bins: int) -> Floats:
        """Return the edges of equal bins; of categories, one bin each."""
        if self.categories:
            return np.arange(-0.5, len(self.categories), dtype=np.float64)
        low, high = self.limits
        return np.geomspace(low, high, bins + 1) if self.log else np.linspace(low, high, bins + 1)

    def jittered(self, step: float = GOLDEN) -> Floats:
        """Return the values; those of a category side by side."""
        offsets = 0.5 * ((np.arange(len(self.values)) * step) % 1 - 0.5)
        return self.values + offsets if self.categories else self.values

    def ticks(self, count: int = 4) -> FixedLocator | LogLocator | MaxNLocator:
        """Return the locator of the ticks."""
        if self.categories:
            return FixedLocator(range(len(self.categories)))
        if self.log:
            low, high = self.limits
            return LogLocator(subs=(1.0,) if high / low > 300 else (1.0, 2.0, 5.0), numticks=count + 1)
        whole = bool(np.all(self.values[np.isfinite(self.values)] % 1 == 0))
        return MaxNLocator(nbins=count, steps=STEPS, integer=whole)

    def tick_label(self, value: float) -> str:
        """Return the text at a tick."""
        return self.categories[round(value)] if self.categories else f"{value:g}".replace("e-0", "e-")

    def set_axis(self, axes: Axes, which: Which, letters: int = 40) -> None:
        """Set up an axis that has room for so many letters."""
        axes.set(**{f"{which}scale": "log" if self.log else "linear", f"{which}lim": self.limits})
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_label_text(self.label)
        axis.set_major_locator(self.ticks())
        axis.set_major_formatter(FuncFormatter(lambda value, _: self.tick_label(value)))
        axis.set_minor_formatter(NullFormatter())
        if which == "x" and len(self.categories) * (max(map(len, self.categories), default=0) + 1) > letters:
            axis.set_tick_params(rotation=30)


def _category_order(text: str) -> tuple[int, list[float], str]:
    """Sort numbers by size, then lists by length and sizes, then words by alphabet."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if parameters.is_number(value):
        return 0, [value], text
    if isinstance(value, list) and all(map(parameters.is_number, value)):
        return 1, [len(value), *value], text
    return 2, [], text
