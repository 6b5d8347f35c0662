"""Axes of accuracies and of hyperparameters, and trials as points on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mnistexp.analysis import parameters
from mnistexp.analysis.history import History, Trial
from mnistexp.config.schema import format_value
from mnistexp.report.plot_style import BLUE, GREY, INK, ORANGE, printable

Floats = npt.NDArray[np.float64]
Limits = tuple[float, float]
Which = Literal["x", "y"]

PERCENT = FuncFormatter(lambda share, _: f"{100 * share:.4g}")  # PercentFormatter writes 98.000, not 98
PLAIN = FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e-"))

FEW = 6  # whole numbers of which there are no more are categories
MARKERS: Mapping[str, Mapping[str, Any]] = {  # in the order of drawing
    "FAILED": {"marker": "x", "color": INK, "linewidths": 1.0},
    "PRUNED": {"marker": "o", "facecolors": "white", "edgecolors": GREY, "linewidths": 0.8},
    "COMPLETE": {"marker": "o", "facecolors": BLUE, "edgecolors": "white", "linewidths": 0.5},
}


def scores(trials: Sequence[Trial]) -> Floats:
    """Return the validation accuracies, [trials]; NaN where a trial has none."""
    return np.array([math.nan if trial.val_accuracy is None else trial.val_accuracy for trial in trials])


def percent(share: float, digits: int = 2) -> str:
    """Format a share as a percentage: '98.35 %'."""
    return f"{100 * share:.{digits}f} %"


def accuracy_limits(values: Iterable[float]) -> Limits:
    """Choose the range of an axis of accuracies: it leaves out low outliers, which would squeeze the others.

    An outlier is more than 1.5 interquartile ranges below the lower quartile (Tukey 1977).
    """
    found = np.array([value for value in values if math.isfinite(value)])
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


def log_axis(axes: Axes, which: Which, values: Floats) -> None:
    """Make an axis logarithmic, with plain numbers at its ticks."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    wide = np.nanmax(values) > 100 * np.nanmin(values)
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(PLAIN)
    axis.set_minor_formatter(NullFormatter())


def scatter(axes: Axes, x: Floats, trials: Sequence[Trial], lowest: float, best: Trial | None) -> None:
    """Draw each trial at its accuracy; one below `lowest`, or without an accuracy, is drawn there.

    Args:
        x: [trials]; a trial at NaN is not drawn.
        best: it is drawn as a star.
    """
    y = np.fmax(scores(trials), lowest)
    area = min(26.0, max(6.0, 2600 / max(1, len(trials))))  # square points
    for state, look in MARKERS.items():
        mine = [place for place, trial in enumerate(trials) if trial.state == state]
        if mine:
            label = f"{len(mine)} {state.lower()}"
            axes.scatter(x[mine], y[mine], area, label=label, zorder=3, clip_on=False, **look)
    for place, trial in enumerate(trials):
        if best is not None and trial.number == best.number:
            label = f"best: #{best.number}, {percent(best.accuracy)}"
            axes.scatter(
                x[place], y[place], 90, c=ORANGE, marker="*", label=label, zorder=5, clip_on=False, edgecolors="white"
            )


@dataclass(frozen=True, eq=False)
class Parameter:
    """A hyperparameter of a study's trials, as numbers on an axis."""

    label: str
    values: Floats  # [trials]: numbers, or indices of categories; NaN: the trial has no value
    categories: tuple[str, ...] = ()  # empty: the values are numbers
    log: bool = False

    @classmethod
    def read(cls, history: History, key: str) -> Parameter:
        """Read the values of an override key. A choice, and a few whole numbers, have an axis of categories."""
        ranges = [each for name, each in parameters.searched(history).items() if parameters.key_of(name) == key]
        label = printable(parameters.short_names(parameters.keys(history))[key])
        found = [parameters.values_of(trial, [key]).get(key, math.nan) for trial in history.trials]
        numbers = np.array([value if parameters.is_number(value) else math.nan for value in found], dtype=np.float64)
        different = np.unique(numbers[np.isfinite(numbers)])
        few = len(different) < 2 or (len(different) <= FEW and not np.any(different % 1))
        if not few and not any(each.values for each in ranges):
            return cls(label, numbers, log=bool(different[0] > 0) and any(each.log for each in ranges))
        searched = [value for each in ranges for value in each.values]
        in_order = (*searched, *different.tolist(), *found)  # the first trial may have another value than the searched
        texts = [format_value(value, digits=10, max_length=20) for value in in_order]
        categories = list(dict.fromkeys(text for text in texts if text != "nan"))
        places = [categories.index(text) if text != "nan" else math.nan for text in texts[len(texts) - len(found) :]]
        return cls(label, np.array(places, dtype=np.float64), tuple(map(printable, categories)))

    @property
    def jittered(self) -> Floats:
        """The values; those of one category side by side."""
        golden = (np.arange(len(self.values)) * 0.618034) % 1 - 0.5  # multiples of it are spread evenly
        return self.values + 0.5 * golden if self.categories else self.values

    def edges(self, bins: int) -> Floats:
        """Return the edges of equal bins; of categories, one bin each."""
        if self.categories:
            return np.arange(-0.5, len(self.categories))
        space = np.geomspace if self.log else np.linspace
        return space(np.nanmin(self.values), np.nanmax(self.values), bins + 1)

    def centers(self, edges: Floats) -> Floats:
        """Return the middle of each bin."""
        return np.sqrt(edges[:-1] * edges[1:]) if self.log else (edges[:-1] + edges[1:]) / 2

    def set_axis(self, axes: Axes, which: Which) -> None:
        """Set up an axis of this parameter."""
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_label_text(self.label)
        if self.log:
            log_axis(axes, which, self.values)
        elif self.categories:
            rotation = 30 if which == "x" and len("".join(self.categories)) > 24 else 0
            axis.set_ticks(range(len(self.categories)), self.categories, rotation=rotation)
            axes.set(**{f"{which}lim": (-0.5, len(self.categories) - 0.5)})
