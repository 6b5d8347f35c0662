"""A user's folder and the dashboards that are started in it, and helpers to read a page."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from e2e.conftest import Folder as WorkingFolder
from playwright.sync_api import Error, Locator, Page
from services import kill_tree

SECONDS = 60  # for a page on a busy machine
Shoot = Callable[[Page, str], None]
NO_DISPLAY = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": ""}


@dataclass(frozen=True)
class Folder(WorkingFolder):
    """A user's working folder with a study of the digits."""

    @contextmanager
    def serving(self, *words: str) -> Iterator[str]:
        """Run `mnistexp ui`. Yields: the address that it prints. It must end with exit code 0."""
        process = self.start("ui", *words)
        try:
            yield _address(process)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=SECONDS)
            assert process.returncode == 0
            assert "Traceback" not in err
        finally:
            kill_tree(process.pid)
            process.communicate()

    def client(self) -> Any:
        """An MLflow client of the runs here."""
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.path / 'mlflow.db'}")

    def experiment_id(self) -> str:
        """The id of the study's experiment."""
        return str(self.client().get_experiment_by_name("digits").experiment_id)

    def best_first(self, query: str) -> list[Any]:
        """The runs that a query finds, best first."""
        order = ["metrics.val_accuracy DESC"]
        return list(self.client().search_runs([self.experiment_id()], query, order_by=order))


def _address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("http"), process.communicate()[1]
    return line.split()[0]


def columns(page: Page) -> list[str]:
    """The table's headings that are drawn, from left to right."""
    names(page)
    found = [heading for heading in page.locator(".ag-header-cell[col-id]").all() if heading.inner_text().strip()]
    placed = [((heading.bounding_box() or {"x": 0.0})["x"], heading.inner_text().strip()) for heading in found]
    return [text for _, text in sorted(placed)]


def names(page: Page) -> list[str]:
    """The runs in the table, from top to bottom."""
    links = page.locator("[role=gridcell][col-id*='Run Name'] a")
    links.first.wait_for()
    placed = [((link.bounding_box() or {"y": 0.0})["y"], link.inner_text().strip()) for link in links.all()]
    return [text for _, text in sorted(placed)]


def follow(page: Page, text: str) -> Page:
    """Click a link of a description, which opens a page of its own. Returns: that page."""
    with page.expect_popup() as opened:
        page.get_by_role("link", name=text, exact=True).first.click()
    opened.value.set_viewport_size(page.viewport_size or {"width": 1280, "height": 800})
    return opened.value


def seen(place: Page | Locator, text: str) -> Locator:
    """Wait for an element that shows a text, and return it."""
    found = place.get_by_text(text).first
    try:
        found.wait_for()
    except Error as error:
        raise AssertionError(f"{text!r} is not shown: {error}") from None
    return found
