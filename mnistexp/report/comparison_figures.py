"""Figures that compare: the best trial with others, configs over fresh seeds, and the values of one hyperparameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from mnistexp.analysis.by_value import Group, Groups, Score
from mnistexp.analysis.comparison import Rival
from mnistexp.analysis.confirmation import Confirmation, ConfirmedConfig
from mnistexp.report import axes
from mnistexp.report import plot_style as style

ROWS = 15  # in a figure of trials, at most
VALUES = 20  # of a hyperparameter
PANELS = 12
WORSE, SIMILAR = "significantly worse", "no significant difference"
HOLLOW: dict[str, Any] = {"markerfacecolor": "white"}


def _rows(ax: Axes, names: Sequence[str]) -> None:
    """Name the rows of a figure, from top to bottom."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)


# -------------------------------------------------------------------------------------- is the best one better?


@style.styled
def rivals(versus: Sequence[Rival], best: int | None = None) -> Figure:
    """Draw for each other trial how many images only the best one classified correctly, and how many only the other.

    Args:
        versus: best first.
        best: the number of the best trial.
    """
    if not versus:
        return style.message("There is no other complete trial.")
    drawn = versus[:ROWS]
    figure = style.new_figure(0.95 + 0.2 * len(drawn))
    ax = figure.subplots()
    for significant, color, label in ((True, style.BLUE, WORSE), (False, style.PALE, SIMILAR)):
        places = [place for place, each in enumerate(drawn) if each.test.significant == significant]
        if not places:
            continue
        count = sum(each.test.significant == significant for each in versus)
        better = ax.barh(places, [drawn[p].test.only_best for p in places], 0.7, color=color, label=f"{count} {label}")
        worse = ax.barh(places, [-drawn[p].test.only_this for p in places], 0.7, color=color, alpha=0.55)
        for bars in (better, worse):
            ax.bar_label(bars, fmt=lambda value: f"{abs(value):g}", padding=2, fontsize=style.SMALL - 1)
    right = 1.15 * max(1, *(each.test.only_best for each in drawn))
    left = max(0.35 * right, 1.15 * max(each.test.only_this for each in drawn))
    name = "the best" if best is None else f"#{best}"
    ax.set(xlim=(-left, right), xlabel=f"images correct: only the other trial | only {name}")
    ax.axvline(0, color=style.INK, linewidth=0.8)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=axes.STEPS))
    _rows(ax, [f"#{each.trial.number}" for each in drawn])
    if len(versus) > ROWS:
        ax.set_title(f"the best {ROWS} of {len(versus)}", loc="right")
    return style.with_legend(figure)


@style.styled
def confirmed(confirmation: Confirmation) -> Figure:
    """Draw each config's accuracy with each fresh seed, their mean with both intervals, and its score in the sweep."""
    rows, test = confirmation.configs, confirmation.test
    if not rows:
        return style.message("No config was confirmed.")
    figure = style.new_figure(1.1 + 0.36 * (len(rows) + bool(test)))
    ax = figure.subplots()
    ends: list[float] = []
    for place, each in enumerate(rows):
        look: dict[str, Any] = {"color": style.BLUE if place else style.ORANGE}
        wide, narrow = (np.clip([part.low, part.high], 0, 1) for part in (each.noise, each.interval))
        ax.plot(wide, [place, place], "-", linewidth=1.0, **look, label="95 %, new seeds and images")
        ax.plot(narrow, [place, place], "-", linewidth=5.0, alpha=0.35, **look, label="95 %, new seeds")
        ax.plot(each.interval.mean, place, "|", markersize=13, markeredgewidth=2.2, **look, label="mean")
        ax.plot(each.scores, [place + 0.2] * len(each.scores), ".", color=style.INK, label="one fresh seed")
        ax.plot(each.val_accuracy, place - 0.2, "o", color=style.INK, **HOLLOW, label="score in the sweep")
        ends += [*wide, *each.scores, each.val_accuracy]
    names = [f"#{each.number}" for each in rows]
    if test is not None:
        error = [[test.accuracy - test.low], [test.high - test.accuracy]]
        ax.errorbar(test.accuracy, len(rows), xerr=error, fmt="D", color=style.GREEN, label="test split, 95 %")
        ax.axhline(len(rows) - 0.5, color=style.FAINT, linewidth=0.8)
        names.append(f"#{rows[0].number} on test")
        ends += [test.low, test.high]
    pad = 0.04 * (max(ends) - min(ends)) or 0.005
    axes.accuracy_axis(ax, "x", (min(ends) - pad, max(ends) + pad), "accuracy (%)")
    _rows(ax, names)
    return style.with_legend(figure)


@style.styled
def noise(rivals: Sequence[ConfirmedConfig]) -> Figure:
    """Draw each config's difference to the chosen one, with its interval for new seeds and new images."""
    others = [(each.number, each.significant, each.difference) for each in rivals if each.difference is not None]
    if not others:
        return style.message("Only one config was confirmed, so there is no difference to show.")
    figure = style.new_figure(0.95 + 0.3 * len(others))
    ax = figure.subplots()
    for place, (_, significant, parts) in enumerate(others):
        look: dict[str, Any] = {"color": style.BLUE} if significant else {"color": style.GREY, **HOLLOW}
        error = [[parts.mean - parts.low], [parts.high - parts.mean]]
        label = WORSE if significant else SIMILAR
        ax.errorbar(parts.mean, place, xerr=error, fmt="o", label=label, **look)
    ax.axvline(0, color=style.INK, linewidth=0.8)
    ax.grid(True, axis="x")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=axes.STEPS))
    ax.xaxis.set_major_formatter(axes.PERCENT)
    chosen = next((f"#{each.number}" for each in rivals if each.difference is None), "the chosen config")
    ax.set_xlabel(f"{chosen} is better by (percentage points)")
    _rows(ax, [f"#{number}" for number, _, _ in others])
    return style.with_legend(figure)


# --------------------------------------------------------------------------------- the values of a hyperparameter


@style.styled
def by_value(found: Groups) -> Figure:
    """Draw for each value the accuracy of its best config: each seed, the mean, and its interval over seeds."""
    drawn = found.groups[:VALUES]
    if not drawn:
        return style.message(f"No trial completed, so no values of {found.key} can be compared.")
    scores = [score for group in drawn for score in (group.best.validation, group.best.test) if score]
    limits = axes.accuracy_limits([value for score in scores for value in (score.mean, *score.values)])
    figure = style.new_figure(1.3 + 0.36 * len(drawn))
    ax = figure.subplots()
    for place, group in enumerate(drawn):
        label, look = _result(place, group)
        _score(ax, place - 0.17, group.best.validation, limits, f"validation: {label}", {"fmt": "o", **look})
        if group.best.test is not None:
            look = {"fmt": "D", "color": style.GREEN, "markersize": 4}
            _score(ax, place + 0.17, group.best.test, limits, "test", look)
        ax.axhline(place + 0.5, color=style.FAINT, linewidth=0.5, zorder=0)
    _rows(ax, [_name(group) for group in drawn])
    axes.accuracy_axis(ax, "x", limits, "accuracy (%)")
    if len(found.others) == 1:
        (key,) = found.others
        texts = [style.printable(group.best.settings.get(key, "–"), 20) for group in drawn]
        right = ax.secondary_yaxis("right")
        right.set_yticks(range(len(drawn)), texts)
        right.tick_params(length=0)
        right.set_ylabel(axes.short_names([key])[key])
    if len(found.groups) > VALUES:
        ax.set_title(f"the first {VALUES} of {len(found.groups)} values", loc="right")
    return style.with_legend(figure)


def _name(group: Group) -> str:
    """Return a value, and its number of seeds if others have more."""
    seeds = f" ({len(group.best.trials)} of {group.full} seeds)" if group.short else ""
    return f"{style.printable(group.value, 20)}{seeds}"


def _interval(score: Score) -> axes.Limits:
    low, high = score.interval or (score.mean, score.mean)
    return min(max(0.0, low), score.mean), max(min(1.0, high), score.mean)  # rounding may put an end past the mean


def _result(place: int, group: Group) -> tuple[str, dict[str, Any]]:
    """Return what the test against the best value says, and the look of the point."""
    if place == 0:
        return "best", {"color": style.ORANGE}
    if group.against_best is None:
        return "not tested", {"color": style.BLUE, **HOLLOW}
    return {
        "worse": (WORSE, {"color": style.BLUE}),
        "better": ("better over the shared seeds", {"color": style.ORANGE, **HOLLOW}),
    }.get(group.against_best.verdict, (SIMILAR, {"color": style.BLUE, **HOLLOW}))


def _score(ax: Axes, y: float, score: Score, limits: axes.Limits, label: str, look: dict[str, Any]) -> None:
    """Draw a mean with its interval, and a dot for each seed; a mean below the limits is written at the left end."""
    if score.mean < limits[0]:
        ax.plot(limits[0], y, "<", color=look["color"], markersize=5, clip_on=False)
        ax.annotate(
            axes.percent(score.mean),
            (limits[0], y),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=style.SMALL - 1,
        )
        return
    low, high = _interval(score)
    ax.errorbar(score.mean, y, xerr=[[score.mean - low], [high - score.mean]], **look, zorder=3, label=label)
    if len(score.values) > 1:
        ax.plot(score.values, [y] * len(score.values), ".", color=style.INK, markersize=3, zorder=4, label="one seed")


@style.styled
def by_number(found: Groups) -> Figure:
    """Draw for each value, best first, the mean accuracy of its configs over the other searched number."""
    key, drawn = found.number, found.groups[:PANELS]
    if not key or not drawn:
        return style.message(f"There is not one number besides {found.key} to draw its values over.")
    numbers = [float(each.settings[key]) for group in drawn for each in group.every]
    limits = axes.accuracy_limits([each.validation.mean for group in drawn for each in group.every])
    columns = next((count for count in (3, 2) if len(drawn) % count == 0), min(3, len(drawn)))
    rows = math.ceil(len(drawn) / columns)
    figure = style.new_figure(1.25 + rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
    best = f"for comparison: {style.printable(drawn[0].value, 20)}"
    for ax, group in zip(panels, drawn):
        _means(ax, drawn[0], key, "-", color=style.PALE, label=best)
        _means(ax, group, key, "o-", color=style.BLUE, label="mean, 95 % over seeds")
        star = group.best.validation.mean
        ax.plot(group.best.settings[key], star, **axes.STAR, markersize=9, zorder=4, label="the value's best")
        ax.set_title(_name(group), loc="left", pad=3)
        axes.accuracy_axis(ax, "y", limits, "")
        ax.grid(True, axis="x")
        ax.tick_params(labelbottom=True)
    for ax in panels[len(drawn) :]:
        ax.remove()
    logarithmic = min(numbers) > 0 and max(numbers) / min(numbers) >= 20
    axis = axes.Parameter("", np.array(numbers), log=logarithmic)
    axis.set_axis(panels[0], "x")
    figure.supxlabel(axes.short_names([key])[key], fontsize=9)
    figure.supylabel("validation accuracy (%)", fontsize=9)
    return style.with_legend(figure)


def _means(ax: Axes, group: Group, key: str, line: str, **look: Any) -> None:
    """Draw the mean accuracy of each config of a value over the other number, with its interval over seeds."""
    configs = sorted(group.every, key=lambda config: float(config.settings[key]))
    numbers, means = zip(*((config.settings[key], config.validation.mean) for config in configs))
    low, high = zip(*(_interval(config.validation) for config in configs))
    error = [np.subtract(means, low), np.subtract(high, means)]
    ax.errorbar(numbers, means, error, fmt=line, markersize=3.5, linewidth=1.3, **look)
