"""A real sweep of real networks becomes a report."""

from __future__ import annotations

import re

from conftest import Folder


def test_a_sweep_becomes_a_report(folder: Folder) -> None:
    """The best trial's real mistakes are counted, on the data that it was scored on; and its run in MLflow has them."""
    folder.run("sweep", "study.name=one", "data=digits", "trainer.epochs=2", "executor.workers=1", "study.trials=3")

    done = folder.run("report", "one", "out=pages")

    html = (folder.path / "pages" / "report-one.html").read_text()
    best = max(trial.value or 0.0 for trial in folder.trials("one"))
    assert f"{best:.4f}" in html
    assert re.search(rf"wrong predictions[^>]*</td>\s*<td[^>]*>{round(300 * (1 - best))}</td>", html)
    assert done.stdout.splitlines()[0] == "pages/report-one.html"
    assert "logged to run" in done.stderr
