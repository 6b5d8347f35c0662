"""A figure as a document's picture."""

from __future__ import annotations

import re

from matplotlib.figure import Figure

from mnistexp.report import figures
from mnistexp.report.document import Picture

DPI = 160  # of the PNG files


def picture(name: str, figure: Figure, alt: str, caption: str) -> Picture:
    """Draw a figure both ways."""
    return Picture(name, alt, caption, inline(figures.to_svg(figure)), figures.to_png(figure, DPI))


def inline(svg: str) -> str:
    """An SVG file's drawing alone, to stand in an HTML page.

    HTML needs none of its namespaces, which look like addresses; and of its ids only those that are referred to.
    """
    drawing = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)  # each text once more, by whoever named things
    drawing = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", drawing)
    referred = set(re.findall(r'(?:url\(|href=")#([^")]+)', drawing))
    return re.sub(r'\sid="([^"]*)"', lambda found: found[0] if found[1] in referred else "", drawing)
