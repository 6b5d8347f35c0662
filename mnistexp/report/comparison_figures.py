"""Figures that compare: the best trial with others, configs over fresh seeds, and the values of one hyperparameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnistexp.analysis import parameters
from mnistexp.analysis.by_value import Group, Groups
from mnistexp.analysis.comparison import Rival
from mnistexp.analysis.confirmation import Confirmation
from mnistexp.report import axes
from mnistexp.report import plot_style as style

ROWS = 20  # in a figure, at most
SHAPES = "osD^vPX*<>hp"  # of the lines, and so at most twelve
HOLLOW: dict[str, Any] = {"markerfacecolor": "white"}


def _named_rows(names: Sequence[str], height: float) -> tuple[Figure, Axes]:
    """Make a figure with a row for each name, from top to bottom."""
    figure = style.new_figure(1.1 + height * len(names))
    ax = figure.subplots()
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    return figure, ax


@style.styled
def rivals(found: Sequence[Rival]) -> Figure:
    """Draw for each other trial how many images only the best one classified correctly, and how many only the other.

    Args:
        found: best first.
    """
    drawn = found[:ROWS]
    figure, ax = _named_rows([f"#{each.trial.number}" for each in drawn], 0.2)
    for significant, color, label in (
        (True, style.BLUE, "significantly worse"),
        (False, style.PALE, "not significant"),
    ):
        mine = [place for place, each in enumerate(drawn) if each.test.significant == significant]
        if mine:
            better = ax.barh(mine, [drawn[p].test.only_best for p in mine], 0.7, color=color, label=label)
            worse = ax.barh(mine, [-drawn[p].test.only_this for p in mine], 0.7, color=color, alpha=0.55)
            for bars in (better, worse):
                ax.bar_label(bars, fmt=lambda value: f"{abs(value):g}", padding=2, fontsize=style.SMALL - 1)
    ax.axvline(0, color=style.INK, linewidth=0.8)
    ax.margins(x=0.1)
    ax.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    ax.set_xlabel("images correct: only the other trial | only the best")
    return style.with_legend(figure)


@style.styled
def confirmed(confirmation: Confirmation) -> Figure:
    """Draw each config's accuracy with each fresh seed, their mean with both intervals, and its score in the sweep."""
    rows, test = confirmation.configs, confirmation.test
    names = [f"#{each.number}" for each in rows] + ([f"#{rows[0].number} on test"] if test else [])
    figure, ax = _named_rows(names, 0.36)
    for place, each in enumerate(rows):
        look: dict[str, Any] = {"color": style.BLUE if place else style.ORANGE}
        wide, narrow = (np.clip([part.low, part.high], 0, 1) for part in (each.noise, each.interval))
        ax.plot(wide, [place, place], "-", linewidth=1.0, **look, label="95 %, new seeds and images")
        ax.plot(narrow, [place, place], "-", linewidth=5.0, alpha=0.35, **look, label="95 %, new seeds")
        ax.plot(each.interval.mean, place, "|", markersize=13, markeredgewidth=2.2, **look, label="mean")
        ax.plot(each.scores, [place + 0.2] * len(each.scores), ".", color=style.INK, label="one fresh seed")
        ax.plot(each.val_accuracy, place - 0.2, "o", color=style.INK, **HOLLOW, label="score in the sweep")
    if test is not None:
        ax.plot([test.low, test.high], [len(rows)] * 2, "-", color=style.GREEN)
        ax.plot(test.accuracy, len(rows), "D", color=style.GREEN, label="test split, 95 %")
    axes.accuracy_axis(ax, "x", ax.get_xlim(), "accuracy (%)")
    return style.with_legend(figure)


@style.styled
def by_value(found: Groups) -> Figure:
    """Draw for each value the accuracy of its best config: each seed, the mean, and its interval over seeds.

    A value far below the others is not on the axis, but its mean is beside its name.
    """
    drawn = found.groups[:ROWS]
    names = [f"{style.printable(group.value, 20)}: {axes.percent(group.best.validation.mean)}" for group in drawn]
    figure, ax = _named_rows(names, 0.36)
    limits: list[float] = []
    for place, group in enumerate(drawn):
        validation, test = group.best.validation, group.best.test
        look: dict[str, Any] = {"marker": "o", "color": style.BLUE if place else style.ORANGE}
        look |= {"label": "validation: best"} if place == 0 else _result(group)
        scores = [(validation, place - 0.17, look)]
        if test:
            scores.append((test, place + 0.17, {"marker": "D", "color": style.GREEN, "label": "test", "markersize": 4}))
        for score, y, look in scores:
            ax.plot(
                score.values, [y] * len(score.values), ".", color=style.INK, markersize=3, label="one seed", zorder=3
            )
            if score.interval:
                ax.plot(score.interval, [y, y], "-", color=look["color"])
            ax.plot(score.mean, y, linestyle="none", **look)
            limits += [score.mean, *score.values]
        ax.axhline(place + 0.5, color=style.PALE, linewidth=0.5, zorder=0)
    axes.accuracy_axis(ax, "x", axes.accuracy_limits(limits), "accuracy (%)")
    return style.with_legend(figure)


def _result(group: Group) -> dict[str, Any]:
    """Return the label and the marker of a value other than the best."""
    return {"label": f"validation: {group.verdict}", **({} if group.verdict == "worse" else HOLLOW)}


@style.styled
def by_number(found: Groups) -> Figure:
    """Draw for each value the mean accuracy of its configs over the other searched number."""
    figure = style.new_figure(3.6)
    ax = figure.subplots()
    key, drawn = found.number, found.groups[: len(SHAPES)]
    points = []
    for shape, group in zip(SHAPES, drawn):
        line = sorted((float(each.settings[key]), each.validation.mean) for each in group.configs)
        ax.plot(*zip(*line), marker=shape, markersize=4, label=style.printable(group.value, 20))
        points += line
    numbers, means = np.array(points).T
    if numbers.min() > 0 and numbers.max() / numbers.min() >= 20:
        axes.log_axis(ax, "x", numbers)
    axes.accuracy_axis(ax, "y", axes.accuracy_limits(means))
    ax.set_xlabel(parameters.short_names([key])[key])
    return style.with_legend(figure)
