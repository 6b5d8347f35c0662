"""How figures look, and how they become SVG and PNG.

Matplotlib's object-oriented part alone: no pyplot, whose figures pile up in a global list, and no settings of the
user's, so that equal values give equal bytes. A figure is as wide as a phone, where its letters are then of the page's
size, and white, so that it reads in a dark page as on paper.
"""

from __future__ import annotations

import functools
import hashlib
import io
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec

import numpy as np
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

P = ParamSpec("P")

WIDTH = 5.0  # inches: 360 points, about a phone's width in pixels
SIZE = 9  # points, of all but the smallest letters
SMALL = 8

# Okabe and Ito (2008): told apart by all common kinds of colour vision; kinds of points differ in shape too.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#56B4E9"
INK, GREY, FAINT = "#222222", "#777777", "#D9D9D9"
SERIES = ((BLUE, "-"), (ORANGE, "--"), (GREEN, "-."), (PURPLE, ":"), (INK, "-"), (SKY, "--"))
GOOD_IS_DARK = LinearSegmentedColormap.from_list("good", ["#FDE9A9", "#8CC5A2", "#2E7F9E", "#1B2A6B"])
WRONG = LinearSegmentedColormap.from_list("wrong", ["#FFFFFF", "#F6B48F", "#D55E00", "#8A2E00"])

STYLE: dict[str, Any] = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same on every machine
    "font.size": SIZE,
    "axes.labelsize": SIZE,
    "axes.titlesize": SIZE,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "legend.handletextpad": 0.4,
    "legend.columnspacing": 1.2,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "lines.solid_capstyle": "round",
    "text.parse_math": False,  # a name with a $ in it is a name
    "svg.fonttype": "path",
    "svg.hashsalt": "mnistexp",
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Have a function draw in our style, whatever the user's matplotlibrc says, and leave theirs as it was."""

    @functools.wraps(draw)
    def in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style.context(["default", STYLE]):
            return draw(*args, **kwargs)

    return in_style


def sheet(height: float, width: float = WIDTH) -> Figure:
    """An empty figure of so many inches; its parts make room for each other when it is drawn."""
    return Figure(figsize=(width, height), layout="constrained")


@styled
def sentence(text: str) -> Figure:
    """A figure that says why there is none."""
    figure = sheet(0.7)
    figure.text(0.5, 0.5, textwrap.fill(text, 62), ha="center", va="center", color=GREY, fontsize=SIZE)
    return figure


def to_svg(figure: Figure) -> str:
    """A figure as an <svg> element for a page: letters as shapes, no date, and no id that another figure has."""
    text = _saved(figure, "svg", 200).decode()
    text = re.sub(r"\s+<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    own = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]  # else each figure of a page has an axes_1
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}-", text)


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """A figure as a PNG file, `dpi` pixels an inch."""
    return _saved(figure, "png", dpi)


def _saved(figure: Figure, kind: Literal["svg", "png"], dpi: int) -> bytes:
    file = io.BytesIO()
    metadata = {"Date": None} if kind == "svg" else {"Software": None}
    options: dict[str, Any] = {} if kind == "svg" else {"pil_kwargs": {"optimize": True}}
    with style.context(["default", STYLE]):
        figure.savefig(file, format=kind, dpi=dpi, metadata=metadata, **options)
    return file.getvalue()


# --------------------------------------------------------------------------------------------------- accuracies


@dataclass(frozen=True)
class Zoom:
    """The range of accuracies that is worth the space."""

    low: float
    high: float
    below: int  # values that lie under it


def zoom(values: Sequence[float]) -> Zoom:
    """Leave out what fails utterly: what lies more than 1.5 interquartile ranges below the lower quartile.

    That is Tukey's rule for outliers. Above there are none, since good values crowd.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return Zoom(0.0, 1.0, 0)
    lower, upper = np.quantile(values, (0.25, 0.75))
    fence = lower - 1.5 * (upper - lower) if len(values) > 4 and upper > lower else min(values)
    low, high = min(value for value in values if value >= fence), max(values)
    pad = 0.06 * (high - low) or 0.005
    floor, ceiling = low - pad, min(high + 1.5 * pad, max(1.0, high) + pad / 2)
    return Zoom(floor, ceiling, sum(value < floor for value in values))


def percent(value: float, digits: int = 1) -> str:
    """A share as a percentage.

    >>> percent(0.98349)
    '98.3 %'
    """
    return f"{100 * value:.{digits}f} %"


def accuracy_axis(axes: Axes, which: Literal["x", "y"], limits: Zoom, label: str = "validation accuracy (%)") -> None:
    """Let an axis show shares in percent, from limits.low to limits.high."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xlim if which == "x" else axes.set_ylim)(limits.low, limits.high)
    axis.set_major_locator(_PercentLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
    axis.set_label_text(label)
    axis.grid(True)


class _PercentLocator(MaxNLocator):
    """Shares that are round numbers in percent."""

    def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
        return percents(vmin, vmax, 5)


def percents(low: float, high: float, count: int = 5) -> list[float]:
    """A few shares from low to high that are round numbers in percent; none outside of 0 … 100 %."""
    return [tick / 100 for tick in ticks(100 * low, 100 * high, count) if 0 <= tick <= 100]


def accuracy_colors(values: Sequence[float]) -> Normalize:
    """From accuracies to 0 … 1: light is bad, dark is good; all that fails utterly is as light as can be."""
    limits = zoom(values)
    return Normalize(limits.low, max(values, default=1.0), clip=True)


# ------------------------------------------------------------------------------------------------------ helpers


def series(place: int) -> tuple[str, str]:
    """The colour and the line of the place-th of several curves; no two of the first 36 share both."""
    count = len(SERIES)
    return SERIES[place % count][0], SERIES[(place + place // count) % count][1]


def dot(label: str, **options: Any) -> Line2D:
    """A legend's entry that is a marker alone."""
    return Line2D([], [], linestyle="none", label=label, **options)


def legend(figure: Figure, handles: Sequence[Artist], columns: int = 4) -> None:
    """Put a legend over the axes, in rows of so many entries, to be read row by row."""
    columns = next((n for n in range(min(columns, len(handles)), 1, -1) if _fits(figure, handles, n)), 1)
    by_column = [handle for column in range(columns) for handle in handles[column::columns]]  # as Matplotlib fills it
    if handles:
        figure.legend(handles=by_column, loc="outside upper left", ncols=columns, borderaxespad=0.2, handlelength=1.6)


def _fits(figure: Figure, handles: Sequence[Artist], columns: int) -> bool:
    """Whether a legend of so many columns is no wider than its figure: a letter is 0.062 inches, a marker 0.36."""
    longest = [max(len(str(handle.get_label())) for handle in handles[column::columns]) for column in range(columns)]
    return 0.062 * sum(longest) + 0.36 * columns <= figure.get_figwidth()


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart, as little as it takes.

    Args:
        places: where they would like to be, in any order.
        gap: what shall lie between two neighbours, if low … high has room for that.

    Returns:
        Where they go, inside of low … high, above each other in the same order.
    """
    order = np.argsort(np.asarray(places, dtype=float), kind="stable")
    gap = min(gap, (high - low) / max(1, len(places) - 1))
    blocks: list[tuple[float, int]] = []  # of labels that touch: where its first would like to be, how many they are
    for index in order:
        first, count = float(places[index]), 1
        while blocks and blocks[-1][0] + gap * blocks[-1][1] > first:
            before, many = blocks.pop()
            first, count = (before * many + (first - gap * many) * count) / (many + count), many + count
        blocks.append((first, count))
    wanted = [first + gap * place for first, count in blocks for place in range(count)]
    moved = [0.0] * len(places)
    for rank, (index, place) in enumerate(zip(order, wanted)):
        moved[index] = float(np.clip(place, low + gap * rank, high - gap * (len(places) - 1 - rank)))
    return moved


def ticks(low: float, high: float, count: int = 4, *, whole: bool = False) -> list[float]:
    """A few round numbers from low to high."""
    found = MaxNLocator(nbins=count, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    slack = 1e-9 * (high - low)
    return [float(tick) for tick in found if low - slack <= tick <= high + slack]


def shortened(text: str, most: int = 32) -> str:
    """A text with its middle left out if it is too long, and with nothing in it that the font lacks."""
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    plain = plain.encode("latin-1", "replace").decode("latin-1")
    return plain if len(plain) <= most else f"{plain[: most - most // 3 - 1]}…{plain[-(most // 3) :]}"


def time_unit(seconds: float) -> tuple[float, str]:
    """What to divide seconds by so that they read well, and the unit's name."""
    return (1.0, "s") if seconds < 180 else (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")
