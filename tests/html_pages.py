"""Read an HTML page in tests, and check that it needs no other file and no address."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = ("meta", "br", "hr", "img")


@dataclass
class Page(HTMLParser):
    """A page's tags, attributes, and text by section; a section begins with its heading."""

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # heading's id: text of the section
    open: list[str] = field(default_factory=list)
    section: str = ""

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        self.open += [] if tag in VOID else [tag]
        if tag == "h2":
            self.section = dict(attrs).get("id") or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, "a tag was closed that was not open"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts[self.section] = self.texts.get(self.section, "") + data


def check_self_contained(html: str) -> Page:
    """Check that a page has no script, no address that a browser would load, and no open tag. Returns: the page."""
    page = Page()
    page.feed(html)
    page.close()
    loaded = [value for name, value in page.attributes if name in ("href", "xlink:href", "src", "action", "data")]
    styles = [value for name, value in page.attributes if name == "style"]
    styles += re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert page.open == []
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in loaded)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"@import|url\((?!#)", " ".join(styles))
    assert "default-src 'none'" in next(value for _, value in page.attributes if "default-src" in value)
    return page
