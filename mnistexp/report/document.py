"""A report as Markdown, and the HTML page that is made from this Markdown.

The template holds the sentences. Every value in it is escaped, because names and messages may come from a database
that others can write to.
"""

from __future__ import annotations

import html
import itertools
import re
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import PurePosixPath
from string import Template
from typing import Any
from urllib.parse import quote

import jinja2
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markupsafe import Markup
from matplotlib.figure import Figure

from mnistexp.report.plot_style import to_png, to_svg

Rows = Sequence[Sequence[str]]


@dataclass(frozen=True, eq=False)
class Report:
    """A template with its values and figures."""

    template: str
    values: Mapping[str, Any]
    figures: Mapping[str, Figure] = field(default_factory=dict)  # by the name of the file, without ending

    @cached_property
    def png(self) -> dict[str, bytes]:
        """The figures as PNG files."""
        return {name: to_png(figure, 160) for name, figure in self.figures.items()}

    @cached_property
    def svg(self) -> dict[str, str]:
        """The figures as SVG elements of an HTML page."""
        return {name: to_svg(figure) for name, figure in self.figures.items()}

    def markdown(self, folder: str) -> str:
        """Return the report as Markdown, which refers to PNG files in `folder`, a relative path."""
        environment = jinja2.Environment(
            loader=jinja2.FunctionLoader(_resource),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            finalize=lambda value: value if isinstance(value, Markup) else escape(str(value)),  # of every {{ value }}
        )
        environment.globals |= {"table": table, "commands": commands, "folder": quote(folder), "figures": self.figures}
        return re.sub(r"\n{3,}", "\n\n", environment.get_template(self.template).render(self.values))

    def html(self) -> str:
        """Return the report as one page that needs no other file and no address."""
        markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        markdown.disable(["link", "autolink", "reference"])
        markdown.add_render_rule("image", _inline_svg)
        markdown.add_render_rule("table_open", lambda *_: '<div class="table" tabindex="0"><table>\n')
        markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
        tokens = _with_captions(markdown.parse(self.markdown(".")))
        headings = [i for i, token in enumerate(tokens) if token.type == "heading_open" and token.tag == "h2"]
        titles = ["".join(child.content for child in tokens[i + 1].children or ()) for i in headings]
        bounds = itertools.pairwise([0, *headings, len(tokens)])
        head, *parts = (markdown.renderer.render(tokens[a:b], markdown.options, {"svg": self.svg}) for a, b in bounds)
        ids = [re.sub(r"\W+", "-", title.lower()).strip("-") for title in titles]
        links = " ".join(f'<a href="#{i}">{html.escape(title)}</a>' for i, title in zip(ids, titles, strict=True))
        sections = [f'<section id="{i}">\n{part}</section>\n' for i, part in zip(ids, parts, strict=True)]
        body = f"<header>\n{head}</header>\n<nav>{links}</nav>\n{''.join(sections)}"
        return PAGE.substitute(title=html.escape(self.values["title"]), css=_resource("report.css"), body=body)


# ---------------------------------------------------------------------------------------------------- Markdown


def escape(text: str) -> str:
    """Escape all Markdown and HTML in a text, and write it in one line."""
    escaped = re.sub(r"([\\`*_\[\]<|&~$])", r"\\\1", re.sub(r"\s+", " ", text))
    escaped = re.sub(r"^([-+=#>])", r"\\\1", escaped)  # a list, a heading or a quotation
    escaped = re.sub(r"^(\d+)(?=[.)](?:\s|$))", r"\1\\", escaped)  # a numbered list
    return escaped.replace("://", ":\\//")  # some readers make links of addresses


def table(rows: Rows, head: Sequence[str] = ("", ""), align: str = "l") -> Markup:
    """Write a table.

    Args:
        align: l or r for each column; the last letter is for the rest.
    """
    letters = align + align[-1] * len(head)
    rule = ["---:" if letter == "r" else "---" for letter in letters[: len(head)]]
    lines = [[escape(cell) for cell in head], rule, *([escape(cell) for cell in row] for row in rows)]
    return Markup("\n".join(f"| {' | '.join(line)} |" for line in lines))


def commands(*lines: str) -> Markup:
    """Write a code block, with more backticks around it than any line contains."""
    runs = re.findall("`+", "".join(lines))
    fence = "`" * max([3, *(1 + len(run) for run in runs)])
    return Markup("\n".join([f"{fence}sh", *(" ".join(line.splitlines()) for line in lines), fence]))


def _resource(name: str) -> str:
    return resources.files("mnistexp.report").joinpath("templates", name).read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------- HTML

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>$title</title>
<style>
$css</style>
</head>
<body>
$body</body>
</html>
""")


def _inline_svg(_: RendererHTML, tokens: Sequence[Token], index: int, __: object, env: MutableMapping[str, Any]) -> str:
    svg = env["svg"][PurePosixPath(str(tokens[index].attrs["src"])).stem]
    return f'<div class="drawing" role="img" aria-label="{html.escape(tokens[index].content)}">{svg}</div>'


def _with_captions(tokens: list[Token]) -> list[Token]:
    """Make a figure with a caption of each paragraph that starts with a picture."""
    for index, token in enumerate(tokens):
        children = token.children or []
        if children and children[0].type == "image":
            tokens[index - 1].tag = tokens[index + 1].tag = "figure"
            caption = [Token("caption_open", "figcaption", 1), *children[2:], Token("caption_close", "figcaption", -1)]
            token.children = [children[0], *caption]
    return tokens
