"""Figures of the search space: accuracy over each hyperparameter, over all at once, and over two of them.

Hyperparameters are given by Optuna's names or by override keys, as `scales.values` takes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from mnistexp.analysis import parameters
from mnistexp.analysis.history import Trial
from mnistexp.report import scales
from mnistexp.report.canvas import (
    FAINT,
    GOOD_IS_DARK,
    GREY,
    INK,
    ORANGE,
    SMALL,
    Zoom,
    accuracy_axis,
    accuracy_colors,
    dot,
    legend,
    percent,
    percents,
    sentence,
    sheet,
    styled,
)
from mnistexp.report.points import LOOKS, MANY, accuracies, accuracy, area_of, complete, legend_of, limits_of, scatter
from mnistexp.report.scales import Scale

GOLDEN = 0.618034  # multiples of it, modulo 1, never come close to each other


@dataclass(frozen=True)
class _Parameter:
    """A hyperparameter with its value in each trial."""

    label: str
    values: list[Any]  # None: that trial has none
    scale: Scale

    def places(self) -> list[float | None]:
        """Where each trial stands, in 0 … 1."""
        return [None if value is None else self.scale.at(value) for value in self.values]


def _parameters(trials: Sequence[Trial], names: Sequence[str], log: Collection[str] | None) -> list[_Parameter]:
    """Those hyperparameters that any trial has, with their axes."""
    short = scales.labels(names)
    found = []
    for name in short:
        values = scales.values(trials, name)
        if any(value is not None for value in values):
            scale = scales.scale(values, scales.logarithmic(name, log))
            found.append(_Parameter(short[name], values, scale))
    return found


# ------------------------------------------------------------------------------------------------------- slices


@styled
def slices(trials: Sequence[Trial], params: Sequence[str], log: Collection[str] | None = None) -> Figure:
    """Each trial's accuracy over its value of each hyperparameter, one panel for each.

    Args:
        params: in the order of the panels.
        log: which of them were searched logarithmically; None: judged by their values.
    """
    found = _parameters(trials, params, log)
    if not found or not accuracies(trials):
        return sentence("No trial has a hyperparameter and an accuracy yet.")
    limits, columns = limits_of(trials), min(2, len(found))
    rows = -(-len(found) // columns)
    figure = sheet(0.35 + 1.75 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for axes, parameter in itertools.zip_longest(panels, found):
        if parameter is None:
            axes.remove()
            continue
        _slice(axes, parameter, trials, limits, wide=columns == 1)
    figure.supylabel("validation accuracy (%)", fontsize=9)
    categories = any(each.scale.kind == "category" for each in found) and len(complete(trials)) > 1
    median = [dot("median of complete", marker="_", color=INK, markersize=10, mew=1.2)] if categories else []
    legend(figure, [*legend_of(trials, limits), *median])
    return figure


def _slice(axes: Axes, parameter: _Parameter, trials: Sequence[Trial], limits: Zoom, *, wide: bool) -> None:
    places = parameter.places()
    if parameter.scale.kind == "category":
        width = 1 / len(parameter.scale.categories)
        _medians(axes, parameter, trials, limits)
        places = [
            None if place is None else place + width * 0.5 * ((trial.number * GOLDEN) % 1 - 0.5)
            for place, trial in zip(places, trials)
        ]
    scatter(axes, places, trials, limits, area=18)
    accuracy_axis(axes, "y", limits, "")
    axes.tick_params(labelleft=axes.get_subplotspec().is_first_col())  # type: ignore[union-attr]
    _parameter_axis(axes, "x", parameter, letters=70 if wide else 34)


def _medians(axes: Axes, parameter: _Parameter, trials: Sequence[Trial], limits: Zoom) -> None:
    """A dash at the median of each category's complete trials."""
    scored = {trial.number: accuracy(trial) for trial in complete(trials)}
    for place, text in parameter.scale.ticks():
        mine = [
            scored[trial.number]
            for trial, value in zip(trials, parameter.values)
            if trial.number in scored and value is not None and scales.shown(value) == text
        ]
        if mine:
            median, half = float(np.median(np.array(mine, dtype=float))), 0.36 / len(parameter.scale.categories)
            axes.plot(
                [place - half, place + half], [max(median, limits.low)] * 2, color=INK, linewidth=1.2, label="median"
            )


def _parameter_axis(axes: Axes, which: str, parameter: _Parameter, letters: int) -> None:
    """Label an axis that has room for so many letters; its texts are turned if two neighbours would touch."""
    marks = parameter.scale.ticks(3 if letters < 40 else 5)
    places, texts = [place for place, _ in marks], [text for _, text in marks]
    if which == "y":
        axes.set_ylim((1, 0) if parameter.scale.kind == "category" else (0, 1))  # words are read from above
        axes.set_yticks(places, texts)
        axes.set_ylabel(parameter.label.replace(" (", "\n("))
        return
    axes.set_xlim(0, 1)
    turned = any(
        (len(one) + len(other)) / 2 + 1 > letters * (right - left)
        for left, right, one, other in zip(places, places[1:], texts, texts[1:])
    )
    axes.set_xticks(places, texts, rotation=30 if turned else 0, ha="right" if turned else "center")
    if turned:
        axes.tick_params(axis="x", pad=1)
    axes.set_xlabel(parameter.label.replace(" (", "\n("))


# ----------------------------------------------------------------------------------------- parallel coordinates


@styled
def parallel(trials: Sequence[Trial], params: Sequence[str], log: Collection[str] | None = None) -> Figure:
    """A line for each trial through all of its hyperparameters down to its accuracy: dark is good.

    The axes lie, one under the other: so their names have room on a phone. Parameters that share a key share an axis.

    Args:
        params: from top to bottom.
        log: which of them were searched logarithmically; None: judged by their values.
    """
    scored = [trial for trial in trials if accuracy(trial) is not None]
    found = _parameters(scored, list(dict.fromkeys(map(parameters.key_of, params))), log)
    if not found:
        return sentence("No trial has a hyperparameter and an accuracy yet.")
    limits = limits_of(complete(scored) or scored)
    figure = sheet(0.55 + 0.56 * len(found))
    axes = figure.subplots()
    heights = [float(len(found) - row) for row in range(len(found) + 1)]
    _lines(axes, scored, found, limits)
    for height, parameter in zip(heights, found):
        _rung(axes, height, parameter.scale.ticks(5))
    marks = [(_along(tick, limits), f"{100 * tick:.4g}") for tick in percents(limits.low, limits.high)]
    _rung(axes, 0.0, marks)
    axes.set_yticks(heights, [*(each.label for each in found), "validation\naccuracy (%)"])
    axes.tick_params(left=False, bottom=False, labelbottom=False, pad=9)
    axes.spines[:].set_visible(False)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.4, len(found) + 0.15))
    _parallel_legend(figure, scored, limits)
    return figure


def _parallel_legend(figure: Figure, scored: Sequence[Trial], limits: Zoom) -> None:
    ranked = complete(scored)
    handles = [dot(f"best: #{ranked[0].number}", color=ORANGE, marker="_", markersize=12, mew=2.4)] if ranked else []
    if len(ranked) > 1:
        dark = GOOD_IS_DARK(0.9)
        handles.append(dot(f"{len(ranked) - 1} complete, dark is good", color=dark, marker="_", markersize=12, mew=1.4))
    if rest := len(scored) - len(ranked):
        handles.append(dot(f"{rest} pruned", color=FAINT, marker="_", markersize=12, mew=1.4))
    if below := sum(value < limits.low for value in accuracies(scored)):
        handles.append(dot(f"{below} below {percent(limits.low)}: at the left end", marker=""))
    legend(figure, handles, columns=3)


def _along(value: float, limits: Zoom) -> float:
    """Where an accuracy stands on the last rung; what lies below it stands at its end."""
    return max(0.0, (value - limits.low) / (limits.high - limits.low))


def _rung(axes: Axes, height: float, marks: Sequence[tuple[float, str]]) -> None:
    """One of the axes, with its texts under it on white, above the lines."""
    axes.plot([0, 1], [height, height], color=GREY, linewidth=0.8, zorder=4, label="rung")
    white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6}
    for place, text in marks:
        axes.plot([place, place], [height - 0.06, height], color=GREY, linewidth=0.8, zorder=4, label="mark")
        axes.text(place, height - 0.1, text, ha="center", va="top", fontsize=SMALL - 1, zorder=6, bbox=white)


def _lines(axes: Axes, scored: Sequence[Trial], found: Sequence[_Parameter], limits: Zoom) -> None:
    """Worst first, so that the best lie on top. A line is broken where its trial has no such hyperparameter."""
    ranked = complete(scored)
    rank = {trial.number: place for place, trial in enumerate(ranked)}
    fans = [_fan(each, scored, rank) for each in found]
    paths = {
        trial.number: [
            *((np.nan if (x := fan[index]) is None else x, len(found) - row) for row, fan in enumerate(fans)),
            (_along(accuracy(trial) or 0.0, limits), 0),
        ]
        for index, trial in enumerate(scored)
    }
    colors = accuracy_colors(accuracies(ranked))
    best, others = ranked[:1], list(reversed(ranked[1:]))
    pruned = [trial for trial in scored if trial.number not in rank]
    thin = 0.9 if len(scored) <= MANY else 0.3
    widths = [1.4 if rank[trial.number] < 5 else thin for trial in others]
    inks = [GOOD_IS_DARK(float(colors(accuracy(trial) or 0.0))) for trial in others]
    layers: tuple[tuple[str, list[Trial], dict[str, Any]], ...] = (
        ("pruned", pruned, {"colors": FAINT, "linewidths": min(0.6, thin), "zorder": 1}),
        ("complete", others, {"colors": inks, "linewidths": widths, "zorder": 2}),
        ("best", best, {"colors": ORANGE, "linewidths": 2.2, "zorder": 3}),
    )
    for label, mine, look in layers:
        lines = LineCollection([paths[trial.number] for trial in mine], label=label, **look)
        lines.set_rasterized(len(mine) > MANY)
        axes.add_collection(lines, autolim=False)


def _fan(parameter: _Parameter, trials: Sequence[Trial], rank: dict[int, int]) -> list[float | None]:
    """The places of trials on one axis; those in one category side by side there, better ones to the right."""
    places = parameter.places()
    if parameter.scale.kind != "category":
        return places
    width = 0.6 / len(parameter.scale.categories)
    fanned = list(places)
    for middle in {place for place in places if place is not None}:
        mine = [index for index, place in enumerate(places) if place == middle]
        mine.sort(key=lambda index: -rank.get(trials[index].number, len(trials)))
        for position, index in enumerate(mine):
            fanned[index] = middle + width * ((position + 0.5) / len(mine) - 0.5)
    return fanned


# ----------------------------------------------------------------------------------------------------- heat map


@styled
def heatmap(trials: Sequence[Trial], x: str, y: str, log: Collection[str] | None = None) -> Figure:
    """The mean accuracy of the complete trials over two hyperparameters; a cell without one stays white.

    Args:
        log: which of the two were searched logarithmically; None: judged by their values.
    """
    pairs = zip(trials, scales.values(trials, x), scales.values(trials, y))
    there = [trial for trial, *values in pairs if None not in values]
    ranked = complete(there)
    if not ranked or x == y:
        return sentence(f"No complete trial has both {' and '.join(scales.labels([x, y]).values())}.")
    across, up = (_parameters(there, [name], log)[0] for name in (x, y))
    grid = _Grid.of(there, across, up)
    figure = sheet(3.9)
    axes = figure.subplots()
    colors = accuracy_colors([*grid.means[grid.counts > 0].tolist()])
    mesh = axes.pcolormesh(
        grid.x_edges, grid.y_edges, grid.means, cmap=GOOD_IS_DARK, norm=colors, edgecolors="white", linewidth=0.8
    )
    if across.scale.kind == up.scale.kind == "category":
        _write_cells(axes, grid, colors)
    else:
        _trial_dots(axes, there, across, up)
    _parameter_axis(axes, "x", across, letters=50)
    _parameter_axis(axes, "y", up, letters=50)
    axes.tick_params(length=2)
    _color_bar(figure, axes, mesh, "mean validation accuracy (%)")
    _heatmap_legend(figure, there, plain=across.scale.kind == up.scale.kind == "category")
    return figure


@dataclass(frozen=True, eq=False)
class _Grid:
    """Complete trials sorted into cells."""

    x_edges: list[float]
    y_edges: list[float]
    means: npt.NDArray[np.float64]  # [rows, columns]; NaN where there is no trial
    counts: npt.NDArray[np.int64]

    @staticmethod
    def of(trials: Sequence[Trial], across: _Parameter, up: _Parameter) -> _Grid:
        done = [trial.state == "COMPLETE" for trial in trials]
        bins = int(np.clip(round(sum(done) ** 0.5), 3, 8))
        x_edges, y_edges = across.scale.edges(bins), up.scale.edges(bins)
        sums = np.zeros((len(y_edges) - 1, len(x_edges) - 1))
        counts = np.zeros(sums.shape, dtype=np.int64)
        for trial, column, row in zip(trials, across.places(), up.places()):
            score = accuracy(trial)
            if trial.state == "COMPLETE" and score is not None and column is not None and row is not None:
                cell = (_bin(row, len(y_edges) - 1), _bin(column, len(x_edges) - 1))
                sums[cell] += score
                counts[cell] += 1
        means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
        return _Grid(x_edges, y_edges, means, counts)


def _bin(place: float, bins: int) -> int:
    return min(bins - 1, int(place * bins))


def _write_cells(axes: Axes, grid: _Grid, colors: Normalize) -> None:
    """Each cell's mean and how many trials it is of."""
    for row, column in np.argwhere(grid.counts > 0):
        mean, count = grid.means[row, column], grid.counts[row, column]
        x = (grid.x_edges[column] + grid.x_edges[column + 1]) / 2
        y = (grid.y_edges[row] + grid.y_edges[row + 1]) / 2
        ink = "white" if float(colors(mean)) > 0.5 else INK
        axes.text(x, y, f"{100 * mean:.1f}\n×{count}", ha="center", va="center", fontsize=SMALL, color=ink)


def _trial_dots(axes: Axes, trials: Sequence[Trial], across: _Parameter, up: _Parameter) -> None:
    for state, look in reversed(list(LOOKS.items())):
        spots = [
            (_jittered(trial, x, across), _jittered(trial, y, up, GOLDEN**2))
            for trial, x, y in zip(trials, across.places(), up.places())
            if trial.state == state and x is not None and y is not None
        ]
        if spots:
            dark: dict[str, Any] = {**look, "facecolors": INK} if state == "COMPLETE" else dict(look)
            x, y = zip(*spots)
            size, pixels = area_of(20, trials), len(trials) > MANY
            axes.scatter(x, y, size, zorder=3, label=state.lower(), rasterized=pixels, **dark)
    winner = complete(trials)[0]
    index = list(trials).index(winner)
    left, top = across.places()[index], up.places()[index]
    if left is None or top is None:  # null, where the trials that have both show numbers
        return
    spot = _jittered(winner, left, across), _jittered(winner, top, up, GOLDEN**2)
    axes.plot(*([each] for each in spot), marker="*", markersize=12, color=ORANGE, mec="white", zorder=4, label="best")


def _jittered(trial: Trial, place: float, parameter: _Parameter, step: float = GOLDEN) -> float:
    """Spread what stands in one category."""
    if parameter.scale.kind != "category":
        return place
    return place + 0.5 * ((trial.number * step) % 1 - 0.5) / len(parameter.scale.categories)


def _color_bar(figure: Figure, axes: Axes, mesh: ScalarMappable, label: str) -> None:
    bar = figure.colorbar(mesh, ax=axes, label=label, aspect=30, pad=0.02)
    low, high = bar.ax.get_ylim()
    marks = percents(low, high)
    bar.set_ticks(marks, labels=[f"{100 * mark:.4g}" for mark in marks])
    bar.outline.set_visible(False)


def _heatmap_legend(figure: Figure, trials: Sequence[Trial], *, plain: bool) -> None:
    if plain:
        return
    ranked = complete(trials)
    pruned, failed = (sum(trial.state == state for trial in trials) for state in ("PRUNED", "FAILED"))
    handles = [
        dot(f"best: #{ranked[0].number}", marker="*", color=ORANGE, markersize=9),
        dot(f"{len(ranked)} complete", marker="o", color=INK, markersize=4),
    ]
    handles += [dot(f"{pruned} pruned", marker="o", mfc="white", color=GREY, markersize=4)] if pruned else []
    handles += [dot(f"{failed} failed", marker="x", color=INK, markersize=4)] if failed else []
    legend(figure, handles)
