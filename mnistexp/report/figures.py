"""The figures of a study. They are drawn only if there are data for them; see text.py.

optuna.visualization.matplotlib draws complete trials only and gives each conditional range a panel of its own, with
names that overlap. Its lines through all parameters lead to a tick "None" where a trial has no value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from mnistexp.analysis import parameters, progress
from mnistexp.analysis.history import History, Trial
from mnistexp.report import axes
from mnistexp.report import plot_style as style

CURVES = 6  # in colour
BARS = 15  # of importances, at most
BINS = 6  # of a number in the heat map
READABLE = 20  # classes up to which there is room for a number in each cell
COLUMNS = 8  # of pictures

# ------------------------------------------------------------------------------------------- the search's course


@style.styled
def best_so_far(studies: Sequence[History], by: progress.By = "trials") -> Figure:
    """Draw the best complete trial so far of each study; of a single study also each trial, at its end."""
    unit, ended = (1 if by == "trials" else 60), progress.ended(studies[0].trials) if len(studies) == 1 else ()
    improvements = [progress.best_so_far(study.trials, by) for study in studies]
    limits = axes.accuracy_limits([*(step.val_accuracy for each in improvements for step in each), *axes.scores(ended)])
    figure = style.new_figure(3.1)
    ax = figure.subplots()
    for study, found in zip(studies, improvements):
        positions = progress.positions(study.trials, by)
        x, y = [each.at for each in found], [each.val_accuracy for each in found]
        if found:  # the last one holds until the end
            x, y = [*x, positions[-1]], [*y, y[-1]]
        label = style.printable(study.name, 40) if len(studies) > 1 else "best so far"
        ax.step(np.divide(x, unit), np.maximum(y, limits[0]), where="post", marker=".", label=label)
        if ended:
            axes.scatter(ax, np.divide(positions, unit), ended, limits[0], study.ranked[0])
    axes.accuracy_axis(ax, "y", limits)
    ax.set_xlim(left=0)
    ax.set_xlabel("trials ended" if by == "trials" else "time with a trial running (min)")
    return style.with_legend(figure)


@style.styled
def curves(history: History) -> Figure:
    """Draw validation accuracy by epoch: the best complete trials in colour, a pruned one up to a cross."""
    best, ran = history.ranked[:CURVES], [trial for trial in history.trials if _curve(trial)]
    limits = axes.accuracy_limits([value for trial in best or ran for value in _curve(trial)])
    figure = style.new_figure(3.2)
    ax = figure.subplots()
    for trial in best:
        label, epochs = f"#{trial.number}: {axes.percent(trial.accuracy)}", range(1, len(_curve(trial)) + 1)
        kept = [trial.fit.best_epoch - 1] if trial.fit else []
        ax.plot(epochs, _curve(trial), marker="o", markersize=4, markevery=kept, zorder=4, label=label)
    drawn = {trial.number for trial in best}
    for state, label, end in (("COMPLETE", "other complete", "."), ("PRUNED", "pruned", "x")):
        paths = [_curve(trial) for trial in ran if trial.state == state and trial.number not in drawn]
        if paths:
            x = [epoch for path in paths for epoch in (*range(1, len(path) + 1), math.nan)]  # NaN breaks the line
            y = [value for path in paths for value in (*path, math.nan)]
            ends = np.cumsum([len(path) + 1 for path in paths]) - 2
            look = {"markersize": 4, "markevery": ends.tolist(), "markeredgecolor": style.GREY}
            ax.plot(x, y, "-", color=style.PALE, linewidth=0.7, marker=end, label=f"{len(paths)} {label}", **look)
    axes.accuracy_axis(ax, "y", limits)
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    return style.with_legend(figure)


def _curve(trial: Trial) -> list[float]:
    return [epoch.val_accuracy for epoch in trial.record.epochs] if trial.record and trial.state != "FAILED" else []


@style.styled
def pareto(history: History, cost: progress.Cost) -> Figure:
    """Draw accuracy against what a training costs, and the Pareto front."""
    ranked = history.ranked
    costs = np.array([progress.cost_of(trial, cost) for trial in ranked])
    front = progress.pareto_front(ranked, cost)
    limits = axes.accuracy_limits(axes.scores(ranked))
    figure = style.new_figure(3.2)
    ax = figure.subplots()
    x = [*(progress.cost_of(trial, cost) for trial in front), 1.25 * costs.max()]
    y = np.maximum([*axes.scores(front), front[-1].accuracy], limits[0])
    ax.step(x, y, "-", where="post", color=style.INK, linewidth=1.2, label="Pareto front")
    axes.scatter(ax, costs, ranked, limits[0], ranked[0])
    axes.accuracy_axis(ax, "y", limits)
    axes.log_axis(ax, "x", costs)
    ax.set_xlabel("training time (s)")
    if cost == "parameters":
        ax.set_xlabel("trainable parameters")
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    return style.with_legend(figure)


# --------------------------------------------------------------------------------------------- hyperparameters


@style.styled
def importances(shares: Mapping[str, float]) -> Figure:
    """Draw the importance of each parameter as a bar.

    Args:
        shares: parameter → importance, largest first; together 1.
    """
    short = parameters.short_names(tuple(shares))
    names = [style.printable(short[name], 60).replace(" (", "\n(") for name in list(shares)[:BARS]]
    figure = style.new_figure(0.4 + 0.36 * len(names))
    ax = figure.subplots()
    bars = ax.barh(range(len(names)), list(shares.values())[:BARS], height=0.62)
    ax.bar_label(bars, fmt=lambda share: axes.percent(share, 0), padding=3)
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.xaxis.set_visible(False)
    ax.spines["bottom"].set_visible(False)
    return figure


@style.styled
def slices(history: History, keys: Sequence[str]) -> Figure:
    """Draw each trial's accuracy against each hyperparameter, one panel per override key."""
    trials = history.trials
    limits, columns = axes.accuracy_limits(axes.scores(trials)), min(2, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure = style.new_figure(0.35 + 1.75 * rows)
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for ax, key in zip(panels, keys):
        parameter = axes.Parameter.read(history, key)
        axes.scatter(ax, parameter.jittered, trials, limits[0], history.ranked[0])
        axes.accuracy_axis(ax, "y", limits, "")
        parameter.set_axis(ax, "x")
    for ax in panels[len(keys) :]:
        ax.remove()
    figure.supylabel("validation accuracy (%)", fontsize=9)
    return style.with_legend(figure)


@style.styled
def heatmap(history: History, x: str, y: str) -> Figure | None:
    """Draw the mean accuracy of the complete trials over two override keys; None if no trial has both.

    A cell has its mean and its number of trials; one without a trial stays white.
    """
    across, up = (axes.Parameter.read(history, key) for key in (x, y))
    ranked = {trial.number for trial in history.ranked}
    complete = np.array([trial.number in ranked for trial in history.trials])
    used = complete & np.isfinite(across.values) & np.isfinite(up.values)
    if not used.any():
        return None
    edges = across.edges(BINS), up.edges(BINS)
    points, weights = (across.values[used], up.values[used]), axes.scores(history.trials)[used]
    counts = np.histogram2d(*points, bins=edges)[0].T  # [y, x]
    sums = np.histogram2d(*points, bins=edges, weights=weights)[0].T
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    figure = style.new_figure(3.9)
    ax = figure.subplots()
    colors = Normalize(axes.accuracy_limits(means.flatten())[0], float(np.nanmax(means)), clip=True)
    ax.pcolormesh(*edges, means, cmap=style.ACCURACY_COLORS, norm=colors, edgecolors="white", linewidth=0.8)
    across.set_axis(ax, "x")
    up.set_axis(ax, "y")
    for row, column in np.argwhere(counts > 0):
        color = "white" if float(colors(means[row, column])) > 0.5 else style.INK
        text = f"{100 * means[row, column]:.1f}\n×{counts[row, column]:.0f}"
        place = across.centers(edges[0])[column], up.centers(edges[1])[row]
        ax.text(*place, text, ha="center", va="center", fontsize=style.SMALL - 1, color=color)
    return figure


# --------------------------------------------------------------------------------------------------- the data


@style.styled
def confusion(counts: npt.NDArray[np.int64]) -> Figure:
    """Draw a confusion matrix, with the colours chosen for the errors: all correct counts are dark.

    Args:
        counts: [classes, classes]; rows are the true classes, columns the predicted ones.
    """
    from sklearn.metrics import ConfusionMatrixDisplay  # 1 s

    classes = len(counts)
    most = max(1, int((counts - np.diag(np.diag(counts))).max()))
    figure = style.new_figure(4.6)
    ax = figure.subplots()
    ConfusionMatrixDisplay(counts).plot(
        ax=ax,
        cmap="Blues",
        colorbar=False,
        include_values=classes <= READABLE,
        im_kw={"norm": PowerNorm(0.5, 0, 4 * most, clip=True)},
        text_kw={"fontsize": style.SMALL if classes <= 10 else 5},
    )
    ax.set(xlabel="predicted class", ylabel="true class")
    return figure


@style.styled
def digits(images: npt.ArrayLike, titles: Sequence[str]) -> Figure:
    """Draw small pictures in rows, dark on white, each under its title.

    Args:
        images: [n, height, width].
        titles: [n], such as "4 → 9".
    """
    pictures = np.asarray(images, dtype=np.float64)
    rows = math.ceil(len(pictures) / COLUMNS)
    figure = style.new_figure(0.77 * rows)
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for ax, picture, title in zip(panels, pictures, titles):
        ax.imshow(picture, cmap="gray_r", vmin=pictures.min(), vmax=pictures.max(), interpolation="nearest")
        ax.set_title(title, pad=2)
    for ax in panels:
        ax.axis("off")
    return figure
