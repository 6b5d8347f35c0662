"""The style of the figures, and their SVG and PNG.

Figures are made with matplotlib.figure.Figure, because pyplot keeps each figure in a global list. Each is drawn and
saved in one style: a matplotlibrc changes nothing, and equal data give equal bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from typing import Any, Literal

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
INK, GREY, PALE, FAINT = "#222222", "#777777", "#B5B5B5", "#D9D9D9"
ACCURACY_COLORS = LinearSegmentedColormap.from_list("accuracy", ["#FDE9A9", "#8CC5A2", "#2E7F9E", "#1B2A6B"])
ERROR_COLORS = LinearSegmentedColormap.from_list("error", ["#FFFFFF", "#F6B48F", "#D55E00", "#8A2E00"])

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
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(
        color=[BLUE, ORANGE, GREEN, PURPLE, INK, SKY], linestyle=["-", "--", "-.", ":", "-", "--"]
    ),
    "grid.color": "#E8E8E8",
    "grid.linewidth": 0.6,
    "text.parse_math": False,  # a $ in a name is a character
    "svg.hashsalt": "mnistexp",
}

styled = style.context(["default", STYLE])  # decorates a function that draws; the settings before are restored


def new_figure(height: float) -> Figure:
    """Make an empty figure of this height in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


@styled
def message(text: str) -> Figure:
    """Make a figure that shows a sentence instead of data."""
    figure = new_figure(0.7)
    figure.text(0.5, 0.5, textwrap.fill(text, 62), ha="center", va="center", color=GREY)
    return figure


def with_legend(figure: Figure) -> Figure:
    """Put one legend with the labels of all panels above them, in as many columns as fit, and return the figure."""
    entries: dict[str, Artist] = {}
    for axes in figure.axes:
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
    if entries:
        inches = 0.062 * max(map(len, entries)) + 0.5  # of one column: a letter takes 0.062 inches
        columns = max(1, int(figure.get_figwidth() / inches))
        figure.legend(entries.values(), entries.keys(), loc="outside upper left", ncols=columns)
    return figure


def printable(value: object, most: int = 32) -> str:
    """Format a value in at most this many characters, without those that the font may lack."""
    return re.sub("[^ -ÿ…]", "?", format_value(value, digits=3, max_length=most))


def to_svg(figure: Figure) -> str:
    """Return a figure as an <svg> element for an HTML page: no namespaces, no date, no id of another figure."""
    svg = _saved(figure, "svg", 200).decode()
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    referenced = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in referenced else "", svg)
    prefix = "f" + hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)


def to_png(figure: Figure, dpi: int = 200) -> bytes:
    """Return a figure as a PNG file."""
    return _saved(figure, "png", dpi)


@styled
def _saved(figure: Figure, kind: Literal["svg", "png"], dpi: int) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"metadata": {"Date": None}}
    if kind == "png":
        options = {"metadata": {"Software": None}, "pil_kwargs": {"optimize": True}}
    figure.savefig(file, format=kind, dpi=dpi, **options)
    return file.getvalue()
