"""Figures for the question whether a study's best is really better: against its rivals, and over fresh seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mnistexp.analysis.comparison import Rival
from mnistexp.analysis.confirmation import Confirmation, ConfirmedConfig
from mnistexp.report.canvas import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SMALL,
    Zoom,
    accuracy_axis,
    dot,
    legend,
    sentence,
    sheet,
    styled,
)

ROWS = 15  # rivals in a figure, at most
ALIKE = "#9A9A9A"  # what can't be told apart from the best
BEHIND: dict[str, Any] = {"marker": "o", "color": BLUE}
NOT_BEHIND: dict[str, Any] = {"marker": "o", "color": GREY, "markerfacecolor": "white"}


@styled
def rivals(versus: Sequence[Rival], best: int | None = None) -> Figure:
    """The best trial against others on the same images: which only it got right, and which only they did.

    Args:
        versus: best first, as in `BestComparison.rivals`.
        best: the best trial's number.
    """
    if not versus:
        return sentence("The best trial has no rival.")
    shown = versus[:ROWS]
    figure = sheet(0.85 + 0.2 * len(shown))
    axes = figure.subplots()
    for place, each in enumerate(shown):
        _rival_row(axes, place, each)
    right = 1.15 * max(max(each.test.only_best, 1) for each in shown)
    left = max(0.35 * right, 1.15 * max(each.test.only_this for each in shown))
    axes.set(xlim=(-left, right), ylim=(len(shown) - 0.4, -0.6), xlabel="images that only one of the two got right")
    axes.axvline(0, color=INK, linewidth=0.8)
    name = "the best" if best is None else f"#{best}"
    for text, side, offset in (("← only the rival", "right", -6), (f"only {name} →", "left", 6)):
        axes.annotate(text, (0, -0.6), (offset, 3), textcoords="offset points", ha=side, va="bottom", fontsize=SMALL)
    axes.set_yticks(range(len(shown)), [f"#{each.trial.number}" for each in shown])
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    legend(figure, _rival_legend(versus, len(shown)), columns=3)
    return figure


def _rival_row(axes: Axes, place: int, each: Rival) -> None:
    better, worse = each.test.only_best, each.test.only_this
    color = BLUE if each.test.significant else ALIKE
    axes.barh(place, better, height=0.7, color=color, label="only the best")
    axes.barh(place, -worse, height=0.7, color=color, alpha=0.55, label="only the rival")
    axes.text(better, place, f" {better}", va="center", ha="left", fontsize=SMALL - 1)
    axes.text(-worse, place, f"{worse} ", va="center", ha="right", fontsize=SMALL - 1)


def _rival_legend(versus: Sequence[Rival], shown: int) -> list[Line2D]:
    worse = sum(each.test.significant for each in versus)
    found = [dot(f"{worse} really worse", marker="s", color=BLUE, markersize=6)] if worse else []
    if worse < len(versus):
        found.append(dot(f"{len(versus) - worse} can't be told apart", marker="s", color=ALIKE, markersize=6))
    return found + ([dot(f"the best {shown} of {len(versus)}", marker="", color=INK)] if shown < len(versus) else [])


@styled
def confirmed(confirmation: Confirmation) -> Figure:
    """Each confirmed config's accuracy with each fresh seed, its mean with intervals, and its score in the sweep."""
    rows = confirmation.configs
    if not rows:
        return sentence("No config has been confirmed.")
    test = confirmation.test
    figure = sheet(1.1 + 0.36 * (len(rows) + bool(test)))
    axes = figure.subplots()
    for place, each in enumerate(rows):
        _confirmed_row(axes, place, each, ORANGE if not place else BLUE)
    names = [f"#{each.number}" for each in rows]
    if test is not None:
        axes.plot([test.low, test.high], [len(rows)] * 2, color=GREEN, linewidth=1.2, label="test interval")
        axes.plot([test.accuracy], [len(rows)], marker="D", markersize=6, color=GREEN, mec="white", label="test")
        axes.axhline(len(rows) - 0.5, color=FAINT, linewidth=0.8)
        names.append(f"#{rows[0].number} on test")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    ends = [value for each in rows for value in (each.noise.low, each.noise.high, *each.scores, each.val_accuracy)]
    ends += [test.low, test.high] if test else []
    pad = 0.04 * (max(ends) - min(ends)) or 0.005
    accuracy_axis(axes, "x", Zoom(min(ends) - pad, min(1.002, max(ends) + pad), 0), "accuracy (%)")
    legend(figure, _confirmed_legend(test is not None), columns=2)
    return figure


def _confirmed_row(axes: Axes, place: int, each: ConfirmedConfig, color: str) -> None:
    low, high = (min(1.0, max(0.0, end)) for end in (each.interval.low, each.interval.high))
    axes.plot([each.noise.low, min(1.0, each.noise.high)], [place] * 2, color=color, linewidth=1.0, label="noise")
    axes.plot([low, high], [place] * 2, color=color, linewidth=5.0, alpha=0.35, solid_capstyle="butt", label="interval")
    axes.plot(each.scores, [place + 0.2] * len(each.scores), ".", color=INK, markersize=5, alpha=0.7, label="seeds")
    axes.plot([each.interval.mean], [place], marker="|", markersize=13, mew=2.2, color=color, label="mean")
    look: dict[str, Any] = {"marker": "o", "markersize": 6, "mfc": "white", "mec": INK, "mew": 1.0}
    axes.plot([each.val_accuracy], [place - 0.2], linestyle="none", label="sweep", **look)


def _confirmed_legend(tested: bool) -> list[Line2D]:
    found = [
        dot("score in the sweep", marker="o", markersize=6, mfc="white", color=INK),
        dot("one fresh seed", marker=".", color=INK, markersize=6),
        Line2D(
            [], [], color=BLUE, linewidth=5, alpha=0.35, marker="|", markersize=10, mew=2, label="mean, these images"
        ),
        Line2D([], [], color=BLUE, linewidth=1, label="new seeds, new images"),
    ]
    return found + ([dot("test split, once, 95 %", marker="D", color=GREEN, markersize=5)] if tested else [])


@styled
def noise(rivals: Sequence[ConfirmedConfig]) -> Figure:
    """How far each confirmed config lies behind the chosen one, with intervals for new seeds and new images."""
    behind = [(each, each.difference) for each in rivals if each.difference is not None]
    if not behind:
        return sentence("Only one config was confirmed: there is none to compare it with.")
    figure = sheet(0.95 + 0.3 * len(behind))
    axes = figure.subplots()
    for place, (each, parts) in enumerate(behind):
        look = BEHIND if each.significant else NOT_BEHIND
        axes.plot([parts.low, parts.high], [place] * 2, color=look["color"], linewidth=1.6, label="interval")
        axes.plot([parts.mean], [place], **look, markersize=6, label="mean")
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(behind)), [f"#{each.number}" for each, _ in behind])
    axes.set_ylim(len(behind) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
    chosen = next((each.number for each in rivals if each.difference is None), None)
    whose = "the chosen one" if chosen is None else f"#{chosen}"
    axes.set_xlabel(f"behind {whose} (percentage points)")
    worse = sum(each.significant for each, _ in behind)
    handles = [dot(f"{worse} really behind", **BEHIND, markersize=6)] if worse else []
    handles += [dot(f"{len(behind) - worse} can't be told apart", **NOT_BEHIND)] if worse < len(behind) else []
    legend(figure, handles)
    return figure
