"""Figures of the search space: accuracy against each hyperparameter, all of them, and two of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from mnistexp.analysis import parameters
from mnistexp.analysis.history import Trial
from mnistexp.report import axes
from mnistexp.report import plot_style as style

NOTHING = "No trial has both a hyperparameter and an accuracy."


def _parameters(trials: Sequence[Trial], keys: Sequence[str], log: Collection[str]) -> list[axes.Parameter]:
    """Read the parameters of which any trial has a value."""
    found = [axes.Parameter.read(trials, key, label, log) for key, label in axes.short_names(keys).items()]
    return [parameter for parameter in found if not parameter.empty]


# ------------------------------------------------------------------------------------------------------- slices


@style.styled
def slices(trials: Sequence[Trial], keys: Sequence[str], log: Collection[str] = ()) -> Figure:
    """Draw each trial's accuracy against each hyperparameter, one panel per override key.

    optuna.visualization.matplotlib.plot_slice draws complete trials only, in one row of panels, and changes pyplot's
    global style.

    Args:
        log: the names of parameters that were searched on a logarithmic scale.
    """
    found = _parameters(trials, keys, log)
    if not found or np.all(np.isnan(axes.scores(trials))):
        return style.message(NOTHING)
    limits, columns = axes.accuracy_limits(axes.scores(trials)), min(2, len(found))
    rows = -(-len(found) // columns)
    figure = style.new_figure(0.35 + 1.75 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for ax, parameter in zip(panels, found):
        axes.scatter(ax, parameter.jittered(), trials, limits, area=18)
        _medians(ax, parameter, trials, limits)
        axes.accuracy_axis(ax, "y", limits, "")
        parameter.set_axis(ax, "x", letters=70 // columns)
    for ax in panels[len(found) :]:
        ax.remove()
    figure.supylabel("validation accuracy (%)", fontsize=9)
    return style.with_legend(figure)


def _medians(ax: Axes, parameter: axes.Parameter, trials: Sequence[Trial], limits: axes.Limits) -> None:
    """Draw the median of each category's complete trials."""
    for index in range(len(parameter.categories)):
        mine = axes.scores(trials)[axes.completed(trials) & (parameter.values == index)]
        if len(mine):
            y = max(float(np.median(mine)), limits[0])
            ax.plot(
                [index - 0.36, index + 0.36], [y, y], "-", color=style.INK, linewidth=1.2, label="median of complete"
            )


# ----------------------------------------------------------------------------------------- parallel coordinates


@style.styled
def parallel(trials: Sequence[Trial], keys: Sequence[str], log: Collection[str] = ()) -> Figure:
    """Draw a line for each trial through its hyperparameters, from top to bottom, to its accuracy.

    The ax are horizontal, so that their names fit on a phone. A line has a gap where its trial has no value; the
    lines of optuna.visualization.matplotlib.plot_parallel_coordinate would lead to a tick "None" there.
    """
    scored = [trial for trial, score in zip(trials, axes.scores(trials)) if np.isfinite(score)]
    found = _parameters(scored, keys, log)
    if not found:
        return style.message(NOTHING)
    limits = axes.accuracy_limits(axes.scores(axes.ranked(scored) or scored))
    figure = style.new_figure(0.55 + 0.56 * len(found))
    ax = figure.subplots()
    _lines(ax, scored, found, limits)
    for height, parameter in zip(range(len(found), 0, -1), found):
        ticks = parameter.ticks(5).tick_values(*parameter.limits)
        _horizontal_axis(ax, height, parameter.norm, [(tick, parameter.tick_label(tick)) for tick in ticks])
    ticks = [tick for tick in MaxNLocator(nbins=5, steps=axes.STEPS).tick_values(*limits) if tick <= 1]
    labels = [(tick, axes.PERCENT(tick)) for tick in ticks]
    if np.any(axes.scores(scored) < limits[0]):
        labels.append((limits[0], f"≤ {axes.percent(limits[0], 1)}"))
    _horizontal_axis(ax, 0, Normalize(*limits), labels)
    ax.set_yticks(range(len(found) + 1), ["validation\naccuracy (%)", *(each.label for each in reversed(found))])
    ax.tick_params(left=False, bottom=False, labelbottom=False, pad=9)
    ax.spines[:].set_visible(False)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.4, len(found) + 0.15))
    return style.with_legend(figure)


def _lines(ax: Axes, scored: Sequence[Trial], found: Sequence[axes.Parameter], limits: axes.Limits) -> None:
    """Draw pruned trials first and the best one last."""
    y = axes.scores(scored)
    rows = [np.ma.filled(each.norm(each.jittered()), np.nan) for each in found]
    rows.append(np.clip(Normalize(*limits)(y), 0.0, 1.0))
    heights = np.arange(len(found), -1, -1)
    paths = [np.column_stack([x, heights]) for x in np.column_stack(rows)]
    by_score, complete = np.argsort(y, kind="stable"), axes.completed(scored)
    worse, better = by_score[~complete[by_score]], by_score[complete[by_score]]
    width = 0.9 if len(scored) <= axes.MANY else 0.3
    layers: list[tuple[npt.NDArray[np.int64], str, dict[str, Any]]] = [
        (worse, "pruned", {"colors": style.FAINT, "linewidths": width / 2}),
        (better, "complete, dark is good", {"array": y[better], "cmap": style.ACCURACY_COLORS, "linewidths": width}),
    ]
    for index, label, look in layers:
        if len(index):
            lines = LineCollection(
                [paths[i] for i in index], label=f"{len(index)} {label}", norm=Normalize(*limits), **look
            )
            lines.set_rasterized(len(index) > axes.MANY)
            ax.add_collection(lines, autolim=False)
    for best in axes.ranked(scored)[:1]:
        path = paths[list(scored).index(best)]
        ax.plot(*path.T, "-", color=style.ORANGE, linewidth=2.2, zorder=3, label=f"best: #{best.number}")


def _horizontal_axis(ax: Axes, height: float, norm: Normalize, ticks: Sequence[tuple[float, str]]) -> None:
    """Draw one of the ax with its tick labels on white above the lines."""
    ax.plot([0, 1], [height, height], "-", color=style.GREY, linewidth=0.8, zorder=4)
    white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 0.6}
    for value, text in ticks:
        x = float(norm(value)) if value > 0 or not isinstance(norm, LogNorm) else -1.0
        if 0 <= x <= 1:
            ax.plot([x, x], [height - 0.06, height], "-", color=style.GREY, linewidth=0.8, zorder=4)
            ax.text(
                x,
                height - 0.1,
                text,
                ha="center" if x else "left",
                va="top",
                fontsize=style.SMALL - 1,
                zorder=6,
                bbox=white,
            )


# ----------------------------------------------------------------------------------------------------- heat map


@style.styled
def heatmap(trials: Sequence[Trial], x: str, y: str, log: Collection[str] = ()) -> Figure:
    """Draw the mean accuracy of the complete trials over two override keys; a cell without one stays white."""
    names = axes.short_names([x, y])
    trials = [trial for trial in trials if parameters.values_of(trial, [x, y]).keys() == {x, y}]
    across, up = (axes.Parameter.read(trials, key, names[key], log) for key in (x, y))
    used = axes.completed(trials) & np.isfinite(across.values) & np.isfinite(up.values)
    if x == y or not np.any(used):
        return style.message(f"No complete trial has both {names[x]} and {names[y]}.")
    bins = int(np.clip(round(np.count_nonzero(used) ** 0.5), 3, 8))
    edges = across.edges(bins), up.edges(bins)
    spots = across.values[used], up.values[used]
    counts = np.histogram2d(*spots, bins=edges)[0].T
    sums = np.histogram2d(*spots, bins=edges, weights=axes.scores(trials)[used])[0].T
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    figure = style.new_figure(3.9)
    ax = figure.subplots()
    colors = Normalize(axes.accuracy_limits(means.flatten())[0], float(np.nanmax(means)), clip=True)
    mesh = ax.pcolormesh(*edges, means, cmap=style.ACCURACY_COLORS, norm=colors, edgecolors="white", linewidth=0.8)
    across.set_axis(ax, "x")
    up.set_axis(ax, "y")
    if up.categories:
        ax.invert_yaxis()  # words are read from above
    if across.categories and up.categories:
        _write_cells(ax, counts, means, colors)
    else:
        _dots(ax, trials, across.jittered(), up.jittered(axes.GOLDEN**2))
    bar = figure.colorbar(mesh, ax=ax, label="mean validation accuracy (%)", aspect=30, format=axes.PERCENT)
    bar.outline.set_visible(False)
    return style.with_legend(figure)


def _write_cells(ax: Axes, counts: axes.Floats, means: axes.Floats, colors: Normalize) -> None:
    """Write each cell's mean and its number of trials."""
    for row, column in np.argwhere(counts > 0):
        color = "white" if float(colors(means[row, column])) > 0.5 else style.INK
        text = f"{100 * means[row, column]:.1f}\n×{counts[row, column]:.0f}"
        ax.text(column, row, text, ha="center", va="center", fontsize=style.SMALL, color=color)


def _dots(ax: Axes, trials: Sequence[Trial], x: axes.Floats, y: axes.Floats) -> None:
    """Draw each trial, whatever its accuracy, and the best one as a star."""
    states = np.array([trial.state for trial in trials])
    for state, look in axes.MARKERS.items():
        mine = states == state
        look = {**look, "facecolors": style.INK} if state == "COMPLETE" else look
        if np.any(mine):
            label = f"{np.count_nonzero(mine)} {state.lower()}"
            ax.scatter(x[mine], y[mine], 14, zorder=3, label=label, rasterized=len(trials) > axes.MANY, **look)
    best = axes.ranked(trials)[0]
    index = list(trials).index(best)
    label = f"best: #{best.number}, {axes.percent(best.accuracy)}"
    ax.plot([x[index]], [y[index]], **axes.STAR, markersize=12, zorder=4, label=label)
