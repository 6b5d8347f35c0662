"""A document of sections, tables and pictures, and how it becomes HTML and Markdown: the only file that knows Jinja.

What stands in it may come from anybody's database: everything is escaped, in both.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import ClassVar
from urllib.parse import quote

import jinja2


@dataclass(frozen=True)
class Code:
    """A word as one types it."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Strong:
    """A word that matters."""

    text: str
    kind: ClassVar[str] = "strong"


Text = str | Code | Strong


@dataclass(frozen=True)
class Paragraph:
    """Some sentences."""

    parts: tuple[Text, ...]
    kind: ClassVar[str] = "paragraph"


@dataclass(frozen=True)
class Note:
    """What is missing here, and why."""

    text: str
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Picture:
    """A figure, once for each way to show it."""

    name: str  # of its file, without ending
    alt: str  # what one would tell somebody who can't see it
    caption: str
    svg: str
    png: bytes
    kind: ClassVar[str] = "picture"


@dataclass(frozen=True)
class Table:
    """Rows under a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str | Code, ...], ...]
    align: str = ""  # a letter a column: l, r, or w for one with long texts; l where there is none
    caption: str = ""
    marked: int | None = None  # the row that stands out
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class Commands:
    """Lines to type."""

    lines: tuple[str, ...]
    kind: ClassVar[str] = "commands"


Block = Paragraph | Note | Picture | Table | Commands


@dataclass(frozen=True)
class Section:
    """One question, and what answers it."""

    id: str  # in addresses: letters, digits, hyphens
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """All that is told."""

    title: str
    subtitle: str
    answer: tuple[Block, ...]
    sections: tuple[Section, ...]
    footer: str

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """Every picture, in the order in which they come."""
        blocks = [*self.answer, *(block for section in self.sections for block in section.blocks)]
        return tuple(block for block in blocks if isinstance(block, Picture))


def paragraph(*parts: Text) -> Paragraph:
    """A paragraph of these parts, with a blank between none of them."""
    return Paragraph(parts)


def to_html(document: Document) -> str:
    """One page that needs nothing else: no file, no address."""
    return _render("report.html.jinja", document, autoescape=True)


def to_markdown(document: Document, folder: str) -> str:
    """The same as Markdown; its pictures are PNG files in `folder`, relative to it."""
    return _render("report.md.jinja", document, autoescape=False, folder=quote(folder))


def _render(template: str, document: Document, *, autoescape: bool, **more: str) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,  # a misspelled name is a fault, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(document=document, **more)


def _template(name: str) -> str:
    """From the package: a clone's folder, an editable install's, or a wheel."""
    return resources.files("mnistexp.report").joinpath("templates", name).read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------------- filters


def plain_markdown(text: str) -> str:
    """A text in which Markdown, and HTML inside of it, finds nothing to interpret; in one line.

    The blanks at its ends stay: they part it from what comes before and after.
    """
    escaped = re.sub(r"([\\`*_\[\]<|&~$])", r"\\\1", re.sub(r"\s+", " ", text))
    escaped = re.sub(r"^([-+=#>]|\d+(?=[.)](?:\s|$)))", _not_first, escaped)  # a list, a headline, a quotation
    return escaped.replace("://", ":\\//")  # or some make links of addresses


def _not_first(found: re.Match[str]) -> str:
    """Have a character mean itself at the start of a line; a number is made harmless by its dot."""
    return f"{found[0]}\\" if found[0].isdecimal() else f"\\{found[0]}"


def code_markdown(text: str) -> str:
    """A text as code, in one line."""
    line = " ".join(text.split())
    fence = _fence(line, 1)
    edge = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{edge}{line}{edge}{fence}"


def part_markdown(part: Text) -> str:
    """A part of a paragraph."""
    if isinstance(part, str):
        return plain_markdown(part)
    return code_markdown(part.text) if isinstance(part, Code) else f"**{plain_markdown(part.text)}**"


def parts_markdown(parts: Sequence[Text]) -> str:
    """A paragraph."""
    return "".join(map(part_markdown, parts))


def cell_markdown(part: Text) -> str:
    """A cell of a table; even in code a bar would end it."""
    return code_markdown(part.text).replace("|", "\\|") if isinstance(part, Code) else part_markdown(part)


def commands_markdown(lines: Sequence[str]) -> str:
    """Lines to type."""
    fence = _fence("".join(lines), 3)
    return "\n".join([f"{fence}sh", *lines, fence])


def _fence(text: str, least: int) -> str:
    """More backticks than the text has in a row itself."""
    return "`" * max([least, *(1 + len(run) for run in re.findall("`+", text))])


FILTERS: Mapping[str, Callable[..., object]] = {
    "plain": plain_markdown,
    "parts": parts_markdown,
    "cell": cell_markdown,
    "commands": commands_markdown,
}
