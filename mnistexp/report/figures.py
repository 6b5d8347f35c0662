"""The figures of a study. Where there is too little data, a figure shows a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from mnistexp.analysis import progress
from mnistexp.analysis.history import Trial
from mnistexp.report import axes
from mnistexp.report import plot_style as style

BARS = 15  # of importances, at most
READABLE = 20  # classes up to which there is room for a number in each cell
COLUMNS = 8  # of pictures


# ------------------------------------------------------------------------------------------- the search's course


@style.styled
def best_so_far(trials: Sequence[Trial], by: progress.By = "trials") -> Figure:
    """Draw each trial in the order in which they ended, and the best complete one so far."""
    ended = progress.ended(trials)
    if not ended:
        return style.message("No trial has ended.")
    x, limits = _places(ended, by), axes.accuracy_limits(axes.scores(ended))
    unit, label = _unit(by, x.max())
    figure = style.new_figure(2.9)
    ax = figure.subplots()
    _running_best(ax, ended, x / unit, limits, color=style.INK, linestyle="-", label="best so far")
    axes.scatter(ax, x / unit, ended, limits)
    axes.accuracy_axis(ax, "y", limits)
    _course_axis(ax, x.max() / unit, label)
    return style.with_legend(figure)


@style.styled
def best_so_far_compared(studies: Mapping[str, Sequence[Trial]], by: progress.By = "trials") -> Figure:
    """Draw the best complete trial so far of several studies."""
    ended = {name: progress.ended(trials) for name, trials in studies.items() if axes.ranked(trials)}
    if not ended:
        return style.message("No study has a complete trial.")
    longest = max(_places(trials, by).max() for trials in ended.values())
    unit, label = _unit(by, longest)
    limits = axes.accuracy_limits([step.val_accuracy for each in ended.values() for step in progress.best_so_far(each)])
    figure = style.new_figure(2.9 + 0.16 * len(studies))
    ax = figure.subplots()
    for name, trials in studies.items():
        if name in ended:
            text = f"{style.printable(name, 40)}: {axes.percent(axes.ranked(trials)[0].accuracy)}"
            _running_best(ax, ended[name], _places(ended[name], by) / unit, limits, label=text)
        else:
            ax.plot([], [], " ", label=f"{style.printable(name, 40)}: no complete trial")
    axes.accuracy_axis(ax, "y", limits, "best validation accuracy so far (%)")
    _course_axis(ax, longest / unit, label)
    return style.with_legend(figure)


def _running_best(ax: Axes, ended: Sequence[Trial], x: axes.Floats, limits: axes.Limits, **look: Any) -> None:
    """Draw the running maximum over the complete trials as steps, with a dot at its end."""
    best = np.fmax.accumulate(np.where(axes.completed(ended), axes.scores(ended), np.nan))
    ax.step(x, np.maximum(best, limits[0]), where="post", marker=".", markevery=[-1], zorder=2, **look)


def _places(ended: Sequence[Trial], by: progress.By) -> axes.Floats:
    places = range(1, len(ended) + 1) if by == "trials" else progress.active_seconds(ended)
    return np.array(places, dtype=np.float64)


def _unit(by: progress.By, longest: float) -> tuple[float, str]:
    """Choose what to divide places by, and the label of the axis."""
    if by == "trials":
        return 1.0, "trials ended"
    unit, name = (1.0, "s") if longest < 180 else (60.0, "min") if longest < 10800 else (3600.0, "h")
    return unit, f"time with a trial at work ({name})"


def _course_axis(ax: Axes, longest: float, label: str) -> None:
    ax.set(xlim=(0, 1.03 * longest or 1.0), xlabel=label)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=label == "trials ended", steps=axes.STEPS))


@style.styled
def curves(trials: Sequence[Trial], top: int = 5) -> Figure:
    """Draw validation accuracy by epoch: the best complete trials in colour, a pruned one up to a cross."""
    ran = [trial for trial in trials if _curve(trial) and trial.state != "FAILED"]
    if not ran:
        return style.message("No trial has an epoch with an accuracy.")
    best = axes.ranked(trials)[:top]
    limits = axes.accuracy_limits([value for trial in best or ran for value in _curve(trial)])
    figure = style.new_figure(3.2)
    ax = figure.subplots()
    for trial in best:
        label = f"#{trial.number}: {axes.percent(trial.accuracy)}"
        epochs, fit = range(1, len(_curve(trial)) + 1), trial.fit
        kept = [fit.best_epoch - 1] if fit else []
        ax.plot(epochs, _curve(trial), marker="o", markersize=4, markevery=kept, zorder=4, label=label)
    drawn = {trial.number for trial in best}
    others = [trial for trial in ran if trial.number not in drawn]
    _background(ax, [trial for trial in others if trial.state == "COMPLETE"], limits, "other complete")
    _background(ax, [trial for trial in others if trial.state == "PRUNED"], limits, "pruned")
    longest = max(len(_curve(trial)) for trial in ran)
    axes.accuracy_axis(ax, "y", limits)
    ax.set(xlim=(0.8, max(longest, 2) + 0.2), xlabel="epoch")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=axes.STEPS))
    return style.with_legend(figure)


def _curve(trial: Trial) -> list[float]:
    return [epoch.val_accuracy for epoch in trial.record.epochs] if trial.record else []


def _background(ax: Axes, trials: Sequence[Trial], limits: axes.Limits, label: str) -> None:
    """Draw thin lines. A pruned one ends in a cross; one of a single epoch is a dot."""
    if not trials:
        return
    paths = [list(enumerate(_curve(trial), start=1)) for trial in trials]
    many, pruned = len(trials) > axes.MANY, label == "pruned"
    lines = LineCollection(paths, colors=style.PALE, linewidths=0.7, zorder=1, rasterized=many)
    ends = np.array([path[-1] for path in paths if pruned or len(path) == 1]).reshape(-1, 2)
    ends = ends[ends[:, 1] >= limits[0]]
    look: dict[str, Any] = {"marker": "x", "color": style.GREY} if pruned else {"marker": ".", "color": style.PALE}
    points = ax.scatter(ends[:, 0], ends[:, 1], s=18, linewidths=0.9, zorder=2, rasterized=many, **look)
    (points if pruned else lines).set_label(f"{len(trials)} {label}")
    ax.add_collection(lines)


# ------------------------------------------------------------------------------------------ importances, costs


@style.styled
def importances(shares: Mapping[str, float]) -> Figure:
    """Draw the importance of each parameter as a bar.

    Args:
        shares: parameter → importance; together 1.
    """
    finite = {name: share for name, share in shares.items() if math.isfinite(share)}
    if not finite:
        return style.message("No hyperparameter's importance is known.")
    ordered = sorted(finite, key=lambda name: -finite[name])[:BARS]
    names = axes.short_names(finite)
    figure = style.new_figure(0.35 + 0.3 * len(ordered) + 0.12 * sum("@" in name for name in ordered))
    ax = figure.subplots()
    bars = ax.barh(range(len(ordered)), [finite[name] for name in ordered], height=0.62)
    ax.bar_label(bars, fmt=lambda share: "< 1 %" if 0 < share < 0.005 else axes.percent(share, 0), padding=3)
    ax.set_yticks(range(len(ordered)), [names[name] for name in ordered])
    ax.tick_params(left=False, bottom=False, labelbottom=False)
    ax.set(xlim=(0, 1.12 * max(finite.values()) or 1.0), ylim=(len(ordered) - 0.5, -0.5))
    ax.spines["bottom"].set_visible(False)
    if len(finite) > BARS:
        ax.set_xlabel(f"{len(finite) - BARS} more, each less")
    return figure


@style.styled
def pareto(trials: Sequence[Trial], cost: progress.Cost = "seconds") -> Figure:
    """Draw accuracy against what a training costs, and the Pareto front."""
    complete = [trial for trial in axes.ranked(trials) if progress.cost_of(trial, cost) > 0]
    if not complete:
        return style.message("No trial is complete.")
    costs = np.array([progress.cost_of(trial, cost) for trial in complete])
    front = progress.pareto_front(complete, cost)
    limits, right = axes.accuracy_limits(axes.scores(complete)), 1.25 * costs.max()
    figure = style.new_figure(3.2)
    ax = figure.subplots()
    x = np.array([*(progress.cost_of(trial, cost) for trial in front), right])
    y = np.maximum([*axes.scores(front), front[-1].accuracy], limits[0])
    ax.set(xscale="log", xlim=(costs.min() / 1.35, right))
    ax.step(x, y, "-", where="post", color=style.INK, linewidth=1.2, label="Pareto front")
    axes.scatter(ax, costs, complete, limits)
    axes.accuracy_axis(ax, "y", limits)
    ax.set_xlabel("training time (s)" if cost == "seconds" else "trainable parameters")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if right / costs.min() < 100 else (1,), numticks=9))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}") if cost == "seconds" else EngFormatter(sep=""))
    ax.xaxis.set_minor_formatter(NullFormatter())
    named = math.inf
    for trial, left, top in reversed(list(zip(front, x, y))):
        if left < 0.85 * named:  # far enough from the one before
            named = left
            ax.annotate(
                f"#{trial.number}", (left, top), (-4, 3), textcoords="offset points", ha="right", fontsize=style.SMALL
            )
    return style.with_legend(figure)


# --------------------------------------------------------------------------------------------------- the data


@style.styled
def confusion(matrix: npt.ArrayLike, classes: int | Sequence[str]) -> Figure:
    """Draw a confusion matrix: the errors in colour by their share of the true class, the diagonal grey.

    sklearn.metrics.ConfusionMatrixDisplay has one colour scale for all cells. On it one error in a hundred is as
    white as none; with the diagonal left out it can't write the correct counts. And it imports pyplot.

    Args:
        matrix: counts [classes, classes]; rows are the true classes, columns the predicted ones.
        classes: their number, or their names.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    names = (
        [str(each) for each in range(classes)]
        if isinstance(classes, int)
        else [style.printable(e, 12) for e in classes]
    )
    if not counts.sum():
        return style.message("There are no images to classify.")
    errors = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    np.fill_diagonal(errors, 0.0)
    figure = style.new_figure(4.9 if len(names) > 5 else 3.2)
    ax = figure.subplots()
    most = float(errors.max()) or 1.0
    cells = ax.pcolormesh(errors, cmap=style.ERROR_COLORS, vmin=0, vmax=most, edgecolors=style.FAINT, linewidth=0.4)
    ax.set_aspect("equal")
    ax.invert_yaxis()
    if len(names) <= READABLE:
        _write_counts(ax, counts, errors / most)
    else:
        figure.colorbar(cells, ax=ax, label="share of the true class", aspect=30, shrink=0.8)
    marks = range(0, len(names), math.ceil(len(names) / READABLE))
    middles, texts = [mark + 0.5 for mark in marks], [names[mark] for mark in marks]
    ax.set_xticks(middles, texts, rotation=40 if max(map(len, names)) > 3 else 0)
    ax.set_yticks(middles, texts)
    ax.set(xlabel="predicted class", ylabel="true class")
    ax.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False)
    ax.xaxis.set_label_position("top")
    ax.spines[:].set_visible(False)
    return figure


def _write_counts(ax: Axes, counts: npt.NDArray[np.int64], darkness: axes.Floats) -> None:
    """Write the counts, but no zeros off the diagonal."""
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": style.SMALL if len(counts) <= 10 else 5}
    for (row, column), count in np.ndenumerate(counts):
        color = "white" if darkness[row, column] > 0.6 else style.INK
        if row == column:
            ax.text(column + 0.5, row + 0.5, str(count), color=style.GREY, **look)
        elif count:
            ax.text(column + 0.5, row + 0.5, str(count), color=color, weight="bold", **look)


@style.styled
def digits(images: npt.ArrayLike, titles: Sequence[str]) -> Figure:
    """Draw small pictures in rows, dark on white, each under its title.

    Args:
        images: [n, height, width].
        titles: [n], such as "4 → 9".
    """
    pictures = np.asarray(images, dtype=np.float64)
    if not len(pictures):
        return style.message("There are no pictures to show.")
    rows = -(-len(pictures) // COLUMNS)
    figure = style.new_figure(0.77 * rows)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    low, high = float(pictures.min()), float(pictures.max())
    for ax, picture, title in zip(panels, pictures, titles):
        ax.imshow(picture, cmap="gray_r", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
        ax.set_title(title, pad=2)
    for ax in panels:
        ax.axis("off")
    return figure
