"""The style of the figures, and their PNG.

Figures are made with matplotlib.figure.Figure, because pyplot keeps each figure in a global list. Each is drawn and
saved in one style: a matplotlibrc changes nothing, and equal data give equal bytes.
"""

from __future__ import annotations

import io
import re
from typing import Any

from cycler import cycler
from matplotlib import style
from matplotlib.artist import Artist
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from mnistexp.config.schema import format_value

WIDTH = 5.0  # inches: 360 points, about the width of a phone in pixels, so letters there have the size of the page's
SMALL = 8  # points

# Okabe and Ito (2008): distinct for all common kinds of colour vision. Markers and lines differ in shape as well.
BLUE, ORANGE, GREEN, PURPLE, SKY = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#56B4E9"
INK, GREY, PALE = "#222222", "#777777", "#B5B5B5"
ACCURACY_COLORS = LinearSegmentedColormap.from_list("accuracy", ["#FDE9A9", "#8CC5A2", "#2E7F9E", "#1B2A6B"])

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with Matplotlib: the same on every machine
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": SMALL,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "axes.edgecolor": GREY,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(
        color=[BLUE, ORANGE, GREEN, PURPLE, INK, SKY], linestyle=["-", "--", "-.", ":", "-", "--"]
    ),
    "grid.color": "#E8E8E8",
    "text.parse_math": False,  # a $ in a name is a character
}

styled = style.context(["default", STYLE])  # decorates a function that draws; the settings before are restored


def new_figure(height: float) -> Figure:
    """Make an empty figure of this height in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def with_legend(figure: Figure) -> Figure:
    """Put one legend with the labels of all panels above them, in as many columns as fit, and return the figure."""
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    inches = 0.062 * max(map(len, entries), default=0) + 0.5  # of one column: a letter takes 0.062 inches
    columns = max(1, int(figure.get_figwidth() / inches))
    figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns)
    return figure


def printable(value: object, max_length: int = 32) -> str:
    """Format a value in at most this many characters, without those that the font may lack."""
    return re.sub("[^ -ÿ…]", "?", format_value(value, digits=3, max_length=max_length))


@styled
def to_png(figure: Figure) -> bytes:
    """Return a figure as a PNG file."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=200, metadata={"Software": None}, pil_kwargs={"optimize": True})
    return file.getvalue()
