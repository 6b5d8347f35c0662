"""Trials as points: what each state looks like, wherever trials are drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes

from mnistexp.analysis.history import Trial
from mnistexp.report.canvas import BLUE, GREY, INK, ORANGE, Zoom, dot, percent, zoom

LOOKS: Mapping[str, Mapping[str, Any]] = {  # by their shapes too, for print and for eyes that see no colours
    "COMPLETE": {"marker": "o", "facecolors": BLUE, "edgecolors": "white", "linewidths": 0.5},
    "PRUNED": {"marker": "o", "facecolors": "white", "edgecolors": GREY, "linewidths": 0.8},
    "FAILED": {"marker": "x", "color": INK, "linewidths": 1.0},
}
STAR: Mapping[str, Any] = {"marker": "*", "markerfacecolor": ORANGE, "markeredgecolor": "white", "markeredgewidth": 0.6}

MANY = 400  # points from which an SVG holds them as pixels: each takes 100 bytes else


def accuracy(trial: Trial) -> float | None:
    """A trial's validation accuracy; None if it has none."""
    value = trial.val_accuracy
    return value if value is not None and math.isfinite(value) else None


def accuracies(trials: Sequence[Trial]) -> list[float]:
    """The validation accuracies of those that have one."""
    return [value for trial in trials if (value := accuracy(trial)) is not None]


def complete(trials: Sequence[Trial]) -> list[Trial]:
    """Those that ran to their end, best first; the lowest number of equals."""
    there = [trial for trial in trials if trial.state == "COMPLETE" and accuracy(trial) is not None]
    return sorted(there, key=lambda trial: (-(accuracy(trial) or 0.0), trial.number))


def limits_of(trials: Sequence[Trial]) -> Zoom:
    """The range of accuracies that suits these trials."""
    return zoom(accuracies(trials))


def area_of(area: float, trials: Sequence[Trial]) -> float:
    """How large points are, in square points: smaller ones if they are many."""
    return area * min(1.0, max(0.25, 100 / max(1, len(trials))))


def scatter(
    axes: Axes, places: Sequence[float | None], trials: Sequence[Trial], limits: Zoom, area: float = 26
) -> None:
    """Draw each trial over its place, by its accuracy.

    What lies under the axis stands on it: as a triangle, or as a cross if it has no accuracy at all.

    Args:
        places: on the x axis; None: it isn't drawn.
    """
    size = area_of(area, trials)
    for state, look in reversed(list(LOOKS.items())):
        mine = [(x, accuracy(trial)) for x, trial in zip(places, trials) if trial.state == state and x is not None]
        inside = [(x, y) for x, y in mine if y is not None and y >= limits.low]
        under = [x for x, y in mine if y is None or y < limits.low]
        options = {"s": size, "zorder": 3, "clip_on": False, "rasterized": len(trials) > MANY, **look}
        if inside and state != "FAILED":
            axes.scatter(*zip(*inside), label=state.lower(), **options)
        if under:
            marker = {"marker": "x" if state == "FAILED" else "v"}
            axes.scatter(under, [limits.low] * len(under), label=f"{state.lower()} below", **{**options, **marker})
    winner = next(iter(complete(trials)), None)
    if winner is not None and (x := places[list(trials).index(winner)]) is not None:
        axes.plot([x], [accuracy(winner) or 0.0], **STAR, markersize=11, zorder=5, clip_on=False, label="best")


def legend_of(trials: Sequence[Trial], limits: Zoom) -> list[Artist]:
    """What the points mean and how many there are of each, only those that occur."""
    counts = {state: sum(trial.state == state for trial in trials) for state in LOOKS}
    found: list[Artist] = []
    if winner := next(iter(complete(trials)), None):
        found.append(dot(f"best: #{winner.number}, {percent(accuracy(winner) or 0.0, 2)}", **STAR, markersize=9))
    looks = {
        "COMPLETE": {"marker": "o", "color": BLUE},
        "PRUNED": {"marker": "o", "markerfacecolor": "white", "color": GREY},
        "FAILED": {"marker": "x", "color": INK},
    }
    for state, look in looks.items():
        if counts[state]:
            found.append(dot(f"{counts[state]} {state.lower()}", markersize=5, **look))
    if limits.below:
        found.append(dot(f"{limits.below} below {percent(limits.low)}", marker="v", color=GREY, markersize=5))
    return found
