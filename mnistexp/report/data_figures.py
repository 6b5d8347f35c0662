"""Figures of the data: what was taken for what, and pictures of digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mnistexp.report.canvas import FAINT, GREY, INK, SMALL, WRONG, sentence, sheet, shortened, styled

READABLE = 20  # classes up to which there is room for a number in each cell
COLUMNS = 8  # pictures in a row


@styled
def confusion(matrix: npt.ArrayLike, classes: int | Sequence[str]) -> Figure:
    """How many images of each class were taken for which: what is wrong in colour, by its share of the row.

    Args:
        matrix: counts [classes, classes]; rows are the true classes, columns what they were taken for.
        classes: how many there are, or their names.
    """
    counts = np.asarray(matrix, dtype=np.int64)
    names = [str(each) for each in range(classes)] if isinstance(classes, int) else [shortened(e, 12) for e in classes]
    if not counts.size or not counts.sum():
        return sentence("There are no images to be taken for anything.")
    figure = sheet(4.9 if len(names) > 5 else 3.2)
    axes = figure.subplots()
    wrong = _wrong_shares(counts)
    top = float(wrong.max()) or 1.0
    cells = axes.imshow(wrong, cmap=WRONG, vmin=0, vmax=top)
    diagonal = np.ma.masked_where(~np.eye(len(names), dtype=bool), np.ones_like(wrong))
    axes.imshow(diagonal, cmap="Greys", vmin=0, vmax=9)
    if len(names) <= READABLE:
        _numbers(axes, counts, wrong / top)
    else:
        per_cent = FuncFormatter(lambda share, _: f"{100 * share:.3g}")
        figure.colorbar(
            cells, ax=axes, label="share of the class's images (%)", aspect=30, pad=0.02, shrink=0.8, format=per_cent
        )
    _class_axes(axes, names)
    return figure


def _wrong_shares(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Each cell's share of its row, and 0 on the diagonal; a class without images has none."""
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    np.fill_diagonal(shares, 0.0)
    return np.asarray(shares, dtype=np.float64)


def _numbers(axes: Axes, counts: npt.NDArray[np.int64], darkness: npt.NDArray[np.float64]) -> None:
    size = SMALL if len(counts) <= 10 else 5
    for (row, column), count in np.ndenumerate(counts):
        if not count and row != column:
            continue
        ink = GREY if row == column else "white" if darkness[row, column] > 0.6 else INK
        weight = "normal" if row == column else "bold"
        axes.text(column, row, str(count), ha="center", va="center", fontsize=size, color=ink, weight=weight)


def _class_axes(axes: Axes, names: Sequence[str]) -> None:
    step = math.ceil(len(names) / READABLE)
    marks = list(range(0, len(names), step))
    turned = max(map(len, names)) > 3
    axes.set_xticks(
        marks, [names[mark] for mark in marks], rotation=40 if turned else 0, ha="left" if turned else "center"
    )
    axes.set_yticks(marks, [names[mark] for mark in marks])
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set(xlabel="taken for", ylabel="true class")
    axes.set_xticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color=FAINT, linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)


@styled
def digits(images: npt.ArrayLike, titles: Sequence[str]) -> Figure:
    """Small pictures in rows, ink on paper, each under its title.

    Args:
        images: [n, h, w], [n, h, w, channels] or flat, [n, h * w], where a square is one and anything else a row; of
            any numeric type, dark where it is 0.
        titles: n of them, such as "4 → 9"; "" for none.
    """
    pictures = _pictures(np.asarray(images, dtype=np.float64))
    if not len(pictures):
        return sentence("There are no pictures to show.")
    rows = -(-len(pictures) // COLUMNS)
    lines = max((title.count("\n") + 1 for title in titles if title), default=0)
    figure = sheet(rows * (0.62 + 0.15 * lines))
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.05, wspace=0.0, hspace=0.0)  # type: ignore[union-attr,call-arg]
    panels: Any = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    low, high = float(pictures.min()), float(pictures.max())
    for axes, picture, title in zip(panels, pictures, titles, strict=False):
        axes.imshow(picture, cmap="gray_r", vmin=low, vmax=high if high > low else low + 1, interpolation="nearest")
        axes.set_title(title, fontsize=SMALL, pad=2)
    for axes in panels:
        axes.axis("off")
    return figure


def _pictures(images: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Images as [n, h, w]: colours are averaged."""
    if images.ndim <= 2 and len(images):
        flat = images.reshape(len(images), -1)
        side = math.isqrt(flat.shape[1])
        images = flat.reshape(len(flat), *((side, side) if side * side == flat.shape[1] else (1, -1)))
    while images.ndim > 3:
        images = images.mean(axis=-1)
    if images.ndim == 2:  # an image of one dimension: a strip
        images = images[:, None, :]
    return images
