"""A report as Markdown, and the HTML page that is made from this Markdown.

The template holds the sentences. Every value in it is escaped, because names and messages may come from a database
that others can write to.
"""

from __future__ import annotations

import base64
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

from mnistexp.report.plot_style import to_png


@dataclass(frozen=True, eq=False)
class Report:
    """A template with its values and figures."""

    template: str
    values: Mapping[str, Any]
    figures: Mapping[str, Figure] = field(default_factory=dict)  # by the name of the file, without ending

    @cached_property
    def png(self) -> dict[str, bytes]:
        """The figures as PNG files."""
        return {name: to_png(figure) for name, figure in self.figures.items()}

    def markdown(self, folder: str) -> str:
        """Return the report as Markdown, which refers to PNG files in `folder`, a relative path."""

        def figure(name: str, description: str, caption: str) -> Markup:
            """Write a picture and its caption, if the report has it."""
            if name not in self.figures:
                return Markup()
            return Markup(f"![{escape(description)}]({quote(folder)}/{name}.png)\\\n{escape(caption)}")

        environment = jinja2.Environment(
            loader=jinja2.FunctionLoader(_resource),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            finalize=lambda value: value if isinstance(value, Markup) else escape(str(value)),  # of every {{ value }}
        )
        environment.globals |= {"table": table, "commands": commands, "figure": figure}
        return re.sub(r"\n{3,}", "\n\n", environment.get_template(self.template).render(self.values))

    def html(self) -> str:
        """Return the report as one page that needs no other file and no address."""
        markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        markdown.disable(["link", "autolink", "reference"])
        markdown.add_render_rule("image", _embedded)
        tokens = markdown.parse(self.markdown("."))
        links = []
        for heading, inline in itertools.pairwise(tokens):
            if heading.type == "heading_open" and heading.tag == "h2":
                title = "".join(child.content for child in inline.children or ())
                name = re.sub(r"\W+", "-", title.lower()).strip("-")
                heading.attrSet("id", name)
                links.append(f'<a href="#{name}">{html.escape(title)}</a>')
        body = markdown.renderer.render(tokens, markdown.options, {"png": self.png})
        title = html.escape(self.values["title"])
        return PAGE.substitute(title=title, css=_resource("report.css"), links=" ".join(links), body=body)


# ---------------------------------------------------------------------------------------------------- Markdown


def escape(text: str) -> str:
    """Escape all Markdown and HTML in a text, and write it in one line."""
    escaped = re.sub(r"([\\`*_\[\]<|&~$])", r"\\\1", re.sub(r"\s+", " ", text))
    escaped = re.sub(r"^([-+=#>])", r"\\\1", escaped)  # a list, a heading or a quotation
    escaped = re.sub(r"^(\d+)(?=[.)](?:\s|$))", r"\1\\", escaped)  # a numbered list
    return escaped.replace("://", ":\\//")  # some readers make links of addresses


def table(rows: Sequence[Sequence[str]], head: Sequence[str] = ("", ""), align: str = "l") -> Markup:
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
<nav>$links</nav>
<main>
$body</main>
</body>
</html>
""")


def _embedded(_: RendererHTML, tokens: Sequence[Token], index: int, __: object, env: MutableMapping[str, Any]) -> str:
    png = env["png"][PurePosixPath(str(tokens[index].attrs["src"])).stem]
    description = html.escape(tokens[index].content)
    return f'<img alt="{description}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
