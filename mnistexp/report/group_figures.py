"""Figures of a study by one of its hyperparameters: its values with intervals over seeds, and each over a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from mnistexp.analysis.by_value import Group, Groups, Score, SeededConfig
from mnistexp.analysis.parameters import is_number
from mnistexp.report import scales
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
    percent,
    sentence,
    sheet,
    styled,
    zoom,
)
from mnistexp.report.points import STAR

ROWS = 20  # values in a figure, at most
PANELS = 12
PALE = "#B0B0B0"  # of the best value's line, behind the others'
OFFSET = 0.17  # of a row: validation stands above its middle, test below


# --------------------------------------------------------------------------------------- values with intervals


@styled
def by_value(found: Groups) -> Figure:
    """A row for each value, best first: its best config's accuracy with each seed, the means, and their intervals."""
    rows = found.groups[:ROWS]
    if not rows:
        return sentence(f"No trial completed, so no value of {found.key} can be compared.")
    limits = _limits([score for group in rows for score in _scores(group)])
    figure = sheet(1.3 + 0.36 * len(rows))
    axes = figure.subplots()
    for place, group in enumerate(rows):
        _row(axes, place, group, limits)
    axes.set_yticks(range(len(rows)), [_name(group) for group in rows])
    axes.set_ylim(len(rows) - 0.45, -0.6)
    axes.tick_params(axis="y", length=0)
    accuracy_axis(axes, "x", limits, "accuracy (%)")
    if len(found.others) == 1:
        _settings(axes, found.others[0], rows)
    legend(figure, _legend(found, rows), columns=2)
    return figure


def _name(group: Group) -> str:
    """A value, and how many of the seeds it has unless it has all."""
    seeds = f" ({len(group.best.trials)} of {group.full} seeds)" if group.short else ""
    return f"{scales.shown(group.value)}{seeds}"


def _scores(group: Group) -> list[Score]:
    """Its validation score, and its test score if there is one."""
    return [group.best.validation, *([group.best.test] if group.best.test else [])]


def _limits(scores: Sequence[Score]) -> Zoom:
    """The range that shows all means but those that fail utterly, with their intervals and seeds.

    Of intervals no more than three times as much as of means: those of two seeds can be as wide as the axis is long.
    """
    means = zoom([score.mean for score in scores])
    inside = [score for score in scores if score.mean >= means.low]
    ends = [value for score in inside for value in (*_ends(score), *score.values)]
    room = 3 * (means.high - means.low)
    low, high = max(min(ends), means.low - room), min(max(ends), means.high + room)
    pad = 0.04 * (high - low) or 0.005
    return Zoom(min(means.low, low - pad), min(max(means.high, high + pad), 1.0 + pad), means.below)


def _ends(score: Score) -> tuple[float, ...]:
    """What of a score shall be seen: its mean and its interval, as far as that is an accuracy."""
    low, high = score.interval or (score.mean, score.mean)
    return max(0.0, low), score.mean, min(1.0, high)


def _row(axes: Axes, place: int, group: Group, limits: Zoom) -> None:
    best = group.best
    _score(axes, place - OFFSET, best.validation, limits, "validation", _look(place, group))
    if best.test is not None:
        _score(axes, place + OFFSET, best.test, limits, "test", {"marker": "D", "color": GREEN, "markersize": 4})
    axes.axhline(place + 0.5, color=FAINT, linewidth=0.5, zorder=0, label="_row")


def _look(place: int, group: Group) -> dict[str, Any]:
    """The best one's own colour; hollow is what can't be told apart from it, or wasn't tested, or is ahead."""
    if place == 0:
        return {"marker": "o", "color": ORANGE, "markersize": 6}
    verdict = group.against_best.verdict if group.against_best else None
    if verdict == "better":
        return {"marker": "o", "color": ORANGE, "markersize": 6, "markerfacecolor": "white"}
    worse = verdict == "worse"
    return {"marker": "o", "color": BLUE, "markersize": 6, **({} if worse else {"markerfacecolor": "white"})}


def _score(axes: Axes, y: float, score: Score, limits: Zoom, label: str, look: dict[str, Any]) -> None:
    """A mean with its interval, and a dot for each seed; what lies off the axis is written at its left end."""
    low, mean, high = _ends(score)
    color = look["color"]
    if mean < limits.low:
        inside = limits.low + 0.015 * (limits.high - limits.low)
        axes.plot([inside], [y], marker="<", color=color, markersize=5, label=f"{label} below")
        axes.text(inside, y, f"  {percent(mean, 2)}", color=color, fontsize=SMALL - 1, va="center", ha="left")
        return
    if len(score.values) > 1:
        axes.plot([max(low, limits.low), high], [y, y], color=color, linewidth=1.6, zorder=2, label=f"{label} interval")
        if low < limits.low:
            axes.plot([limits.low], [y], marker="<", color=color, markersize=4, clip_on=False, label=f"{label} cut")
        seeds = [value for value in score.values if value >= limits.low]
        axes.plot(seeds, [y] * len(seeds), ".", color=INK, markersize=3, zorder=4, alpha=0.75, label=f"{label} seeds")
    axes.plot([mean], [y], **look, zorder=3, clip_on=False, label=label)


def _settings(axes: Axes, key: str, rows: Sequence[Group]) -> None:
    """What else each row's config has, at the right."""
    right: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    name = scales.labels([key])[key]
    axes.annotate(name, (1.0, -0.6), (8, 4), **right, fontsize=SMALL, color=GREY, ha="left", annotation_clip=False)
    for place, group in enumerate(rows):
        text = scales.shown(group.best.settings[key]) if key in group.best.settings else "–"
        axes.annotate(text, (1.0, place), (8, 0), **right, fontsize=SMALL, ha="left", annotation_clip=False)


def _legend(found: Groups, rows: Sequence[Group]) -> list[Artist]:
    verdicts = {group.against_best.verdict if group.against_best else "not tested" for group in rows[1:]}
    hollow = {"not significant": "can't be told apart", "not tested": "not tested"}
    unsure = " or ".join(text for verdict, text in hollow.items() if verdict in verdicts)
    entries: list[tuple[bool, str, dict[str, Any]]] = [
        (True, "validation: the best", {"marker": "o", "color": ORANGE}),
        ("worse" in verdicts, "validation: really worse", {"marker": "o", "color": BLUE}),
        (bool(unsure), f"validation: {unsure}", {"marker": "o", "color": BLUE, "mfc": "white"}),
        ("better" in verdicts, "validation: ahead by shared seeds", {"marker": "o", "color": ORANGE, "mfc": "white"}),
        (any(group.best.test for group in rows), "test: the same ones", {"marker": "D", "color": GREEN}),
    ]
    sizes, line = {"o": 6, "D": 4}, "-" if found.repeated else "none"
    handles: list[Artist] = [
        Line2D([], [], **{"linestyle": line, "markersize": sizes[look["marker"]], "label": text, **look})
        for there, text, look in entries
        if there
    ]
    handles += [dot("one seed", marker=".", color=INK, markersize=4)] if found.repeated else []
    return [*handles, *_more(found, len(rows))]


def _more(found: Groups, drawn: int) -> list[Artist]:
    """How many values there was no room for."""
    rest = found.groups[drawn:]
    less = "" if any(group.short for group in rest) else ", each less"
    return [dot(f"{len(rest)} more values{less}", marker="")] if rest else []


# --------------------------------------------------------------------------------------- values over a number


@styled
def by_number(found: Groups) -> Figure:
    """A panel for each value, best first: the mean accuracy of each of its configs over the other searched number."""
    key, shown = found.number, found.groups[:PANELS]
    lines = [_line(group, key) for group in shown]
    if not key or not lines:
        return sentence(f"There is not one number beside {found.key} to draw its values over.")
    columns = next((count for count in (3, 2) if len(lines) % count == 0), min(3, len(lines)))  # no gap, if it can be
    rows = math.ceil(len(lines) / columns)
    limits = zoom([each.validation.mean for line in lines for _, each in line])
    figure = sheet(1.25 + rows)
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for place, axes in enumerate(panels):
        if place >= len(lines):
            axes.set_visible(False)
            continue
        axes.plot(*_path(lines[0]), color=PALE, linewidth=1.2, zorder=1, label="_best")
        _panel(axes, lines[place], limits, shown[place])
        if place + columns >= len(lines):  # the lowest of its column
            axes.tick_params(labelbottom=True)
    _axes(panels, lines, limits)
    figure.supxlabel(scales.labels([key])[key], fontsize=9)
    figure.supylabel("validation accuracy (%)", fontsize=9)
    legend(figure, _number_legend(found, limits), columns=3)
    return figure


def _line(group: Group, key: str) -> list[tuple[float, SeededConfig]]:
    """Its configs by their number, the lowest first."""
    found = [(float(each.settings[key]), each) for each in group.every if is_number(each.settings.get(key))]
    return sorted(found, key=lambda entry: entry[0])


def _path(line: Sequence[tuple[float, SeededConfig]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in line], [each.validation.mean for _, each in line]


def _panel(axes: Axes, line: Sequence[tuple[float, SeededConfig]], limits: Zoom, group: Group) -> None:
    axes.plot(*_path(line), color=BLUE, linewidth=1.3, zorder=3, label="means")
    for x, each in line:
        low, mean, high = _ends(each.validation)
        under = mean < limits.low
        if not under:
            axes.plot([x, x], [max(low, limits.low), high], color=BLUE, linewidth=1.0, zorder=2, label="interval")
        look: dict[str, Any] = {"marker": "v" if under else "o", "color": BLUE, "markersize": 3.5}
        look |= {"markerfacecolor": "white"} if each in group.fewer else {}
        if each is group.best and not under:
            look = {**STAR, "markersize": 9}
        axes.plot([x], [max(limits.low, mean)], **look, linestyle="none", zorder=4, clip_on=False, label="mean")
    axes.set_title(_name(group), fontsize=SMALL, loc="left", pad=3)


def _axes(panels: Sequence[Axes], lines: Sequence[Sequence[tuple[float, SeededConfig]]], limits: Zoom) -> None:
    """The same axes for all panels: a logarithmic one where numbers span more than a decade or so."""
    numbers = [x for line in lines for x, _ in line]
    log = min(numbers) > 0 and max(numbers) / min(numbers) >= 20
    for axes in panels:
        accuracy_axis(axes, "y", limits, "")
        axes.grid(True, axis="x")
        if log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(numticks=6))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _power(float(value))))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlim(min(numbers) / 1.5, max(numbers) * 1.5)
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
            pad = 0.06 * float(np.ptp(numbers))
            axes.set_xlim(min(numbers) - pad, max(numbers) + pad)


def _power(value: float) -> str:
    """A power of ten in a few letters."""
    return f"{value:.0e}".replace("e-0", "e-") if value < 0.001 else f"{value:g}"


def _number_legend(found: Groups, limits: Zoom) -> list[Artist]:
    text = "mean over seeds, 95 %" if found.repeated else "accuracy"
    handles: list[Artist] = [
        Line2D([], [], color=BLUE, marker="o", markersize=4, label=text),
        dot("the value's best", **STAR, markersize=9),
    ]
    best = scales.shown(found.groups[0].value)
    handles += [Line2D([], [], color=PALE, linewidth=1.2, label=f"for comparison: {best}")] if found.groups[1:] else []
    handles += [dot(f"below {percent(limits.low)}", marker="v", color=BLUE, markersize=4)] if limits.below else []
    if any(group.fewer for group in found.groups):
        handles.append(dot("fewer seeds", marker="o", color=BLUE, mfc="white", markersize=4))
    return [*handles, *_more(found, PANELS)]
