"""What the browser tests share: a study with its report, its dashboards, and a real Chromium.

The pages of MLflow and optuna-dashboard are theirs, and change: what we want a person to see in them is looked
for by its text. Every test keeps a picture, in the folder that MNISTEXP_SHOTS names, else in pytest's own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from histories import HitsExecutor
from pages import NO_DISPLAY, SECONDS, Folder, Shoot
from playwright.sync_api import Browser, Page, sync_playwright
from services import skip_or_fail
from sweeps import by_rate

from mnistexp.cli import main

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking")
SIZE = {"width": 1280, "height": 800}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder with a study of the digits and its report; the trials are scripted, so nothing is trained."""
    folder = Folder(tmp_path_factory.mktemp("swept"), NO_DISPLAY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.path)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr("mnistexp.commands.sweep.start_workers", lambda *_, **__: HitsExecutor(by_rate, workers=2))
        space = ("search=none", "optimizer=choice(sgd, adam)", "model.dropout=interval(0, 0.5)")
        assert main(["sweep", "-q", "data=digits", "study.trials=8", "trainer.epochs=6", *space]) == 0
        assert main(["report", "data=digits", "sections=course"]) == 0
    return folder


@pytest.fixture(scope="module")
def dashboard(swept: Folder) -> Iterator[str]:
    """The address of MLflow's pages, as `mnistexp ui` serves them."""
    with swept.serving("data=digits", "--port", "0") as address:
        yield address


@pytest.fixture(scope="module")  # not the session's: while it is open an event loop runs in this thread, for all tests
def chromium() -> Iterator[Browser]:
    """A real browser: Playwright's own, or one that is installed."""
    with sync_playwright() as playwright:
        flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # Chromium refuses to sandbox for root
        own, found = Path(playwright.chromium.executable_path), next(filter(None, map(shutil.which, CHROMIUM)), None)
        if not own.exists() and found is None:
            skip_or_fail("no Chromium: install it (Debian: apt-get install chromium; or: playwright install chromium)")
        browser = playwright.chromium.launch(executable_path=None if own.exists() else found, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page of a browser that has never been here."""
    context = chromium.new_context(viewport=SIZE, device_scale_factor=1)
    context.set_default_timeout(1000 * SECONDS)
    page = context.new_page()
    yield page
    context.close()


@pytest.fixture
def shoot(tmp_path: Path) -> Shoot:
    """Keep a picture of a page as it is, by a name."""
    folder = Path(os.environ.get("MNISTEXP_SHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def keep(page: Page, name: str) -> None:
        page.wait_for_timeout(1500)  # for charts to draw themselves: a picture is looked at, nothing is asserted by it
        page.screenshot(path=folder / f"{name}.png")

    return keep
