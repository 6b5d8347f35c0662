"""A user's folder and the dashboards that are started in it, and what is read off a page."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, Locator, Page
from services import kill_tree

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60  # that a page may take on a busy machine
Shoot = Callable[[Page, str], None]


@dataclass(frozen=True)
class Folder:
    """A user's working folder, and what is typed there."""

    path: Path

    def start(self, *words: str, module: str = "mnistexp") -> subprocess.Popen[str]:
        """Start a command in a process group of its own, as a terminal does, with no display."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MNISTEXP_"))}
        without = {name: value for name, value in kept.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")}
        return subprocess.Popen(
            [sys.executable, "-m", module, *words],
            cwd=self.path,
            env={**without, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str) -> str:
        """Run a command to its end. Returns: what it prints."""
        process = self.start(*words)
        out, _ = process.communicate(timeout=360)
        assert process.returncode == 0, out
        return out

    @contextmanager
    def serving(self, *words: str) -> Iterator[str]:
        """Have `mnistexp ui` run. Yields: the address that it prints. It must end in order."""
        process = self.start("ui", *words)
        try:
            yield _address(process)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0
            assert "Traceback" not in out
        finally:
            kill_tree(process.pid)
            process.communicate()

    def client(self) -> Any:
        """MLflow's client of the runs here."""
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.path / 'mlflow.db'}")

    def experiment_id(self) -> str:
        """Of the study's experiment."""
        return str(self.client().get_experiment_by_name("digits").experiment_id)

    def runs(self, query: str) -> list[Any]:
        """The runs that a query finds, best first."""
        order = ["metrics.val_accuracy DESC"]
        return list(self.client().search_runs([self.experiment_id()], query, order_by=order))


def _address(process: subprocess.Popen[str]) -> str:
    """The first word of the line that says where it is."""
    assert process.stdout is not None
    said = []
    for line in process.stdout:
        if line.startswith("http"):
            return line.split()[0]
        said.append(line)
    raise AssertionError(f"no address, but:\n{''.join(said)}")


def columns(page: Page) -> list[str]:
    """The table's headings, from left to right, as far as they are drawn."""
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
    """What shows a text, once it does."""
    found = place.get_by_text(text).first
    try:
        found.wait_for()
    except Error as error:
        raise AssertionError(f"{text!r} is not to be seen: {error}") from None
    return found
