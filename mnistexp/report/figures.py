"""The figures of a study: values and trials in, Matplotlib figures out. Thin data gives a figure with a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mnistexp.analysis import progress
from mnistexp.analysis.history import Trial
from mnistexp.analysis.progress import By, Cost
from mnistexp.report import scales
from mnistexp.report.canvas import (
    BLUE,
    GREY,
    INK,
    SMALL,
    Zoom,
    accuracy_axis,
    dot,
    legend,
    percent,
    sentence,
    series,
    sheet,
    shortened,
    spread,
    styled,
    time_unit,
    to_png,
    to_svg,
    zoom,
)
from mnistexp.report.data_figures import confusion, digits
from mnistexp.report.group_figures import by_number, by_value
from mnistexp.report.points import MANY, accuracy, complete, legend_of, limits_of, scatter
from mnistexp.report.rival_figures import confirmed, noise, rivals
from mnistexp.report.space_figures import heatmap, parallel, slices

__all__ = [
    "best_so_far",
    "best_so_far_compared",
    "by_number",
    "by_value",
    "confirmed",
    "confusion",
    "curves",
    "digits",
    "heatmap",
    "importances",
    "noise",
    "parallel",
    "pareto",
    "rivals",
    "slices",
    "to_png",
    "to_svg",
]

PALE = "#BDBDBD"  # of curves in the background
STEPS = (1, 2, 5, 10)  # of marks on an axis that counts
ROWS = 15  # in a figure of rivals or of importances

# -------------------------------------------------------------------------------------------------- its course


@styled
def best_so_far(trials: Sequence[Trial], by: By = "trials") -> Figure:
    """Each trial in the order of their ends, and the best of those that had ended, as steps."""
    ended = progress.ended(trials)
    if not ended:
        return sentence("No trial has ended yet.")
    limits, places = limits_of(ended), _places(ended, by)
    divisor, label = _horizontal(max(places), by)
    figure = sheet(2.9)
    axes = figure.subplots()
    _steps(axes, ended, by, divisor, limits, color=INK, linewidth=1.4, label="best so far")
    scatter(axes, [place / divisor for place in places], ended, limits)
    accuracy_axis(axes, "y", limits)
    _from_zero(axes, max(places) / divisor, label, whole=by == "trials")
    legend(figure, legend_of(ended, limits))
    return figure


@styled
def best_so_far_compared(studies: Mapping[str, Sequence[Trial]], by: By = "trials") -> Figure:
    """The best so far of several studies, as steps over each other."""
    ended = {name: progress.ended(trials) for name, trials in studies.items()}
    led = {name: trials for name, trials in ended.items() if complete(trials)}
    if not led:
        return sentence("No study has a complete trial yet.")
    farthest = max(place for trials in led.values() for place in _places(trials, by))
    divisor, label = _horizontal(farthest, by)
    limits = zoom([step.val_accuracy for trials in led.values() for step in progress.best_so_far(trials, by)])
    figure, handles = sheet(2.9 + 0.16 * len(studies)), []
    axes = figure.subplots()
    for place, (name, trials) in enumerate(led.items()):
        color, line = series(place)
        text = f"{shortened(name, 40)}: {percent(accuracy(complete(trials)[0]) or 0.0, 2)}"
        handles += _steps(axes, trials, by, divisor, limits, color=color, linestyle=line, linewidth=1.8, label=text)
    accuracy_axis(axes, "y", limits, "best validation accuracy so far (%)")
    _from_zero(axes, farthest / divisor, label, whole=by == "trials")
    handles += [dot(f"{shortened(name, 40)}: no complete trial", marker="") for name in studies if name not in led]
    legend(figure, handles, columns=1 if max(map(len, studies)) > 18 else 2)
    return figure


def _steps(axes: Axes, ended: Sequence[Trial], by: By, divisor: float, limits: Zoom, **look: Any) -> list[Line2D]:
    """The running best as a line of steps, to the last trial; its end is a dot, so that one step alone is seen."""
    steps = progress.best_so_far(ended, by)
    if not steps:
        return []
    x = [step.at / divisor for step in steps]
    y = [max(limits.low, step.val_accuracy) for step in steps]
    end = max(_places(ended, by)) / divisor
    axes.plot([end], [y[-1]], marker="o", markersize=3, color=look["color"], clip_on=False, label="_end")
    return axes.plot([*x, end], [*y, y[-1]], drawstyle="steps-post", zorder=2, **look)


def _places(ended: Sequence[Trial], by: By) -> list[float]:
    return list(map(float, range(1, len(ended) + 1) if by == "trials" else progress.active_seconds(ended)))


def _horizontal(farthest: float, by: By) -> tuple[float, str]:
    """What to divide places by, and the axis's label."""
    if by == "trials":
        return 1.0, "trials ended"
    divisor, unit = time_unit(farthest)
    return divisor, f"time with a trial at work ({unit})"


def _from_zero(axes: Axes, farthest: float, label: str, *, whole: bool) -> None:
    axes.set_xlim(0, 1.03 * farthest or 1.0)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=whole, steps=STEPS))
    axes.set_xlabel(label)


@styled
def curves(trials: Sequence[Trial], top: int = 5) -> Figure:
    """Validation accuracy by epoch: the best complete trials with their names, behind them all others.

    A pruned one ends in a cross.
    """
    best = complete(trials)[:top]
    ran = [trial for trial in trials if _curve(trial) and trial.state != "FAILED"]
    if not ran:
        return sentence("No trial has an epoch with an accuracy yet.")
    named = {trial.number for trial in best}
    limits = zoom([value for trial in best or ran for value in _curve(trial)])
    figure = sheet(3.2)
    axes = figure.subplots()
    _background(axes, [trial for trial in ran if trial.number not in named], limits)
    for place, trial in reversed(list(enumerate(best))):
        color, line = series(place)
        _foreground(axes, trial, color, line)
    longest = max(len(_curve(trial)) for trial in ran)
    accuracy_axis(axes, "y", limits)
    axes.set_xlim(0.8, max(longest, 2) + 0.05 * longest)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=STEPS))
    axes.set_xlabel("epoch")
    _curve_labels(axes, best, limits)
    legend(figure, _curve_legend(ran, len(best)), columns=3)
    return figure


def _curve(trial: Trial) -> list[float]:
    """Its validation accuracies, epoch by epoch."""
    return [scores.val_accuracy for scores in trial.record.epochs] if trial.record else []


def _background(axes: Axes, others: Sequence[Trial], limits: Zoom) -> None:
    """Thin lines; those of pruned trials end in a cross, those of a single epoch are a dot."""
    paths = [list(enumerate(_curve(trial), start=1)) for trial in others]
    pixels = len(others) > MANY
    axes.add_collection(LineCollection(paths, colors=PALE, linewidths=0.7, zorder=1, label="others", rasterized=pixels))
    pruned = [path[-1] for path, trial in zip(paths, others) if trial.state == "PRUNED" and path[-1][1] >= limits.low]
    single = [path[-1] for path, trial in zip(paths, others) if trial.state == "COMPLETE" and len(path) == 1]
    for spots, marker, color in ((pruned, "x", GREY), (single, "o", PALE)):
        if spots:
            x, y = zip(*spots)
            label = "pruned" if marker == "x" else "one epoch"
            axes.scatter(x, y, 18, marker=marker, color=color, linewidths=0.9, zorder=2, label=label, rasterized=pixels)


def _foreground(axes: Axes, trial: Trial, color: str, line: str) -> None:
    y, fit = _curve(trial), trial.fit
    axes.plot(range(1, len(y) + 1), y, color=color, linestyle=line, linewidth=1.6, zorder=4, label=f"#{trial.number}")
    if fit is not None:
        chosen = fit.best_epoch
        axes.plot(
            [chosen], [y[chosen - 1]], marker="o", markersize=4.5, color=color, mec="white", zorder=5, label="kept"
        )


def _curve_labels(axes: Axes, best: Sequence[Trial], limits: Zoom) -> None:
    """Name each curve at the right, in its colour, with a thread from its end."""
    ends = [_curve(trial)[-1] for trial in best]
    right = axes.get_xlim()[1]
    gap = (limits.high - limits.low) * 0.075
    for place, (trial, end, y) in enumerate(zip(best, ends, spread(ends, gap, limits.low, limits.high))):
        color, x = series(place)[0], len(_curve(trial))
        thread: dict[str, Any] = {"color": color, "linewidth": 0.5, "zorder": 1, "clip_on": False, "label": "_thread"}
        axes.plot([x, right], [max(end, limits.low), y], **thread)
        text = f" #{trial.number}: {percent(accuracy(trial) or 0.0, 2)}"
        axes.text(
            right,
            y,
            text,
            color=color,
            fontsize=SMALL,
            va="center",
            ha="left",
            weight="bold" if not place else "normal",
        )


def _curve_legend(ran: Sequence[Trial], best: int) -> list[Line2D]:
    pruned = sum(trial.state == "PRUNED" for trial in ran)
    others = sum(trial.state == "COMPLETE" for trial in ran) - best
    found = [dot("epoch kept, accuracy at the right", marker="o", color=GREY, markersize=4.5)] if best else []
    found += [Line2D([], [], color=PALE, linewidth=1, label=f"{others} other complete")] if others > 0 else []
    found += [dot(f"{pruned} pruned", marker="x", color=GREY, markersize=4.5)] if pruned else []
    return found


# ----------------------------------------------------------------------------------- importances, costs


@styled
def importances(shares: Mapping[str, float]) -> Figure:
    """How much each hyperparameter decides, as bars.

    Args:
        shares: of Optuna's parameters or of override keys; together 1.
    """
    finite = {name: share for name, share in shares.items() if math.isfinite(share)}
    if not finite:
        return sentence("No hyperparameter's importance is known.")
    ordered = sorted(finite, key=lambda name: -finite[name])[:ROWS]
    short = scales.labels(finite)
    figure = sheet(0.35 + 0.3 * len(ordered) + 0.12 * sum("@" in name for name in ordered))
    axes = figure.subplots()
    places = list(range(len(ordered)))
    axes.barh(places, [finite[name] for name in ordered], height=0.62, color=BLUE)
    for place, name in zip(places, ordered):
        axes.text(finite[name], place, f" {_whole_percent(finite[name])}", va="center", ha="left", fontsize=SMALL)
    axes.set_yticks(places, [short[name].replace(" (", "\n(") for name in ordered])
    axes.set(xlim=(0, 1.12 * max(finite.values()) or 1.0), ylim=(len(ordered) - 0.5, -0.5))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    if len(finite) > ROWS:
        axes.set_xlabel(f"{len(finite) - ROWS} more, each less")
        axes.xaxis.set_visible(True)
        axes.set_xticks([])
    return figure


def _whole_percent(share: float) -> str:
    return "< 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


@styled
def pareto(trials: Sequence[Trial], cost: Cost = "seconds") -> Figure:
    """Accuracy over what a training costs, and the trials that none beats at their price."""
    ranked = [trial for trial in complete(trials) if progress.cost_of(trial, cost) > 0]
    if not ranked:
        return sentence("No trial is complete yet.")
    front = progress.pareto_front(ranked, cost)
    limits = limits_of(ranked)
    figure = sheet(3.2)
    axes = figure.subplots()
    x = [progress.cost_of(trial, cost) for trial in front]
    y = [max(limits.low, accuracy(trial) or 0.0) for trial in front]
    costs = [progress.cost_of(trial, cost) for trial in ranked]
    axes.set_xscale("log")
    axes.set_xlim(min(costs) / 1.35, max(costs) * 1.25)
    axes.plot([*x, axes.get_xlim()[1]], [*y, y[-1]], drawstyle="steps-post", color=INK, linewidth=1.2, label="front")
    scatter(axes, list(costs), ranked, limits)
    accuracy_axis(axes, "y", limits)
    _cost_axis(axes, cost)
    _front_labels(axes, front, x, y)
    line = Line2D([], [], color=INK, linewidth=1.2, label="none is better for less")
    legend(figure, [*legend_of(ranked, limits), line], columns=2)
    return figure


def _cost_axis(axes: Axes, cost: Cost) -> None:
    axes.set_xlabel("training time (s)" if cost == "seconds" else "trainable parameters")
    low, high = axes.get_xlim()
    marks: Sequence[float] = (
        (1.0,) if high / low > 50 else (1.0, 2.0, 5.0) if high / low > 12 else (1, 1.5, 2, 3, 4, 6, 8)
    )
    axes.xaxis.set_major_locator(LogLocator(subs=marks))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _counted(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _counted(value: float) -> str:
    """A number on an axis: 25k, 1.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _front_labels(axes: Axes, front: Sequence[Trial], x: Sequence[float], y: Sequence[float]) -> None:
    """Name the front's trials over its steps, the best first, as far as there is room."""
    low, high = map(math.log, axes.get_xlim())
    bottom, top_end = axes.get_ylim()
    named: list[tuple[float, float]] = []
    for trial, left, top in reversed(list(zip(front, x, y))):
        spot = ((math.log(left) - low) / (high - low), (top - bottom) / (top_end - bottom))
        if any(abs(spot[0] - other[0]) < 0.11 and abs(spot[1] - other[1]) < 0.07 for other in named):
            continue
        named.append(spot)
        axes.annotate(
            f"#{trial.number}",
            (left, top),
            (-4, 3),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize=SMALL,
        )
