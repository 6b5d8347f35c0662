"""What a person sees in MLflow's pages and in Optuna's, in a real browser."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from pages import SECONDS, Folder, Shoot, columns, follow, names, seen
from playwright.sync_api import Error, Page, expect
from services import free_port, kill_tree

pytest_plugins = ["browser_fixtures"]
pytestmark = pytest.mark.slow


def best(swept: Folder) -> Any:
    """The trial with the highest validation accuracy, as MLflow has it."""
    return swept.runs("tags.kind = 'trial' and tags.study = 'digits'")[0]


def parent(swept: Folder) -> Any:
    """The sweep's own run."""
    return swept.runs("tags.kind = 'sweep' and attributes.run_name = 'sweep digits'")[0]


def test_the_address_leads_to_the_best_run_first(swept: Folder, dashboard: str, page: Page, shoot: Shoot) -> None:
    """The bare address shows runs by validation accuracy, with the columns that matter, and nothing in the way."""
    wanted = ["Run Name", "val_accuracy", "test_accuracy", "epochs", "seconds", "state", "optimizer.name"]
    scores = {run.info.run_name: run.data.metrics["val_accuracy"] for run in swept.runs("metrics.val_accuracy > 0")}

    page.goto(dashboard)
    shown = names(page)
    shoot(page, "table")

    assert [name for name in columns(page) if name in wanted] == wanted
    listed = [scores[name] for name in shown if name in scores]
    assert listed[0] == max(scores.values())
    assert listed == sorted(listed, reverse=True)
    expect(page.get_by_test_id("saved-views-trigger")).to_have_text("Best first")  # MLflow's menu of views has it
    expect(page.get_by_text("MLflow Assistant")).not_to_be_visible()
    expect(page.get_by_text("Evaluation runs")).not_to_be_visible()  # of the menu about language models


def test_the_experiment_says_what_its_columns_mean(dashboard: str, page: Page, shoot: Shoot) -> None:
    """The description unfolds, and tells what was chosen by and what wasn't."""
    page.goto(dashboard)
    page.locator("[data-component-id='mlflow.experiment.metadata_editor.expand_button']").click()

    seen(page, "is what the search goes by")
    seen(page, "Nothing was chosen or ordered by it")
    shoot(page, "experiment")


def test_curves_compare_across_runs(swept: Folder, dashboard: str, page: Page, shoot: Shoot) -> None:
    """One click from there, the validation curves of the best runs lie in one chart, beside what was searched."""
    page.set_viewport_size({"width": 1280, "height": 1330})
    page.goto(dashboard)
    charts = follow(page, "Curves")

    seen(charts, "Learning curves")
    seen(charts, "curve/val_accuracy")
    lines = charts.locator(".js-plotly-plot").first.locator(".scatterlayer .trace")
    lines.nth(7).wait_for(state="attached")  # of the best runs, each with at least a line; they come one by one
    seen(charts, "Parallel Coordinates")
    charts.locator(".parcoords, canvas").first.wait_for(state="attached")
    shoot(charts, "curves")
    assert lines.count() >= 8


def test_a_sweep_holds_its_trials(swept: Folder, dashboard: str, page: Page, shoot: Shoot) -> None:
    """By time, trials are grouped under their sweep, and unfold."""
    page.goto(dashboard)
    tree = follow(page, "Sweeps, each with its trials")

    folded = names(tree)
    row = tree.locator("[role=row]").filter(has_text="sweep digits").first
    row.locator("[col-id*='Run Name'] button").first.click()
    seen(tree, best(swept).info.run_name)
    shoot(tree, "tree")
    assert folded == ["confirm digits", "sweep digits"]
    assert set(names(tree)) > {"confirm digits", "sweep digits", best(swept).info.run_name}


def test_a_sweeps_page_says_what_is_best(swept: Folder, dashboard: str, page: Page, shoot: Shoot) -> None:
    """The sweep's own run tells the best trial with both scores at once, and unfolds to its space and what is next."""
    run, scores = parent(swept), best(swept).data.metrics
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"{dashboard}/#/experiments/{swept.experiment_id()}/runs/{run.info.run_id}")

    expect(seen(page, f"validation accuracy {scores['val_accuracy']:.4f}")).to_be_in_viewport()
    expect(seen(page, f"test accuracy {scores['test_accuracy']:.4f}")).to_be_in_viewport()
    expect(seen(page, "About this run")).to_be_in_viewport()  # nothing pushes it away
    page.get_by_text("Show more").first.click()
    seen(page, "sgd, momentum, nesterov, adam, adamw, rmsprop")
    seen(page, "python -m mnistexp confirm study.name=digits")
    shoot(page, "sweep")


def test_the_report_shows_as_an_artifact(swept: Folder, dashboard: str, page: Page, shoot: Shoot) -> None:
    """The report with its figures opens inside the sweep's page."""
    run_id = parent(swept).info.run_id
    files = [file.path for file in swept.client().list_artifacts(run_id, "report")]
    html = next(path for path in files if path.endswith(".html"))

    page.goto(f"{dashboard}/#/experiments/{swept.experiment_id()}/runs/{run_id}/artifacts/{html}")
    report = page.frame_locator("iframe").first
    report.locator("h1").first.wait_for()
    report.locator("svg, img").first.wait_for()
    shoot(page, "report")


def test_a_trials_page_shows_its_data_and_scores(swept: Folder, dashboard: str, page: Page, shoot: Shoot) -> None:
    """A trial's page names the data set that it was trained on, its scores, its parameters and its sweep."""
    run = best(swept)
    page.goto(f"{dashboard}/#/experiments/{swept.experiment_id()}/runs/{run.info.run_id}")

    for text in (run.info.run_name, "val_accuracy", "optimizer.learning_rate", "digits (", "sweep digits"):
        seen(page, text)
    shoot(page, "trial")


def test_the_champion_is_in_the_registry(dashboard: str, page: Page, shoot: Shoot) -> None:
    """The confirmed model is registered under its study's name, with the alias that predict and serve go by."""
    page.goto(f"{dashboard}/#/models/digits")

    seen(page, "@ champion")
    shoot(page, "model")


def test_mlflows_own_command_leads_to_the_same(swept: Folder, page: Page, shoot: Shoot) -> None:
    """A bare `mlflow ui` in the folder has the description too, whose first link is the designed table."""
    port = free_port()
    process = swept.start("ui", "--workers", "1", "--port", str(port), module="mlflow")
    try:
        while not _opens(page, f"http://127.0.0.1:{port}/#/experiments/{swept.experiment_id()}/runs"):
            assert process.poll() is None
        page.keyboard.press("Escape")  # MLflow's assistant greets a new browser
        table = follow(page, "Best first")
        shown, headings = names(table), columns(table)
        shoot(table, "bare")
    finally:
        process.send_signal(signal.SIGTERM)
        kill_tree(process.pid)
        process.communicate(timeout=SECONDS)

    assert shown[0] == swept.runs("metrics.val_accuracy > 0")[0].info.run_name
    assert headings.index("val_accuracy") < headings.index("test_accuracy") < headings.index("epochs")


def _opens(page: Page, address: str) -> bool:
    try:
        page.goto(address)
    except Error:
        page.wait_for_timeout(200)
        return False
    return True


def test_optunas_dashboard_shows_the_study(swept: Folder, page: Page, shoot: Shoot) -> None:
    """`ui --optuna` opens on the study's own page, with its history, and calls its values what they are."""
    with swept.serving("--optuna", "study.name=digits", "--port", "0") as address:
        page.goto(address)
        seen(page, "digits (id=")
        seen(page, "Hyperparameter Importance")
        seen(page, "validation accuracy")
        page.locator(".js-plotly-plot .trace").first.wait_for(state="attached")
        shoot(page, "optuna")
