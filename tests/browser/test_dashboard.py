"""What MLflow's pages and Optuna's show, in a real browser."""

from __future__ import annotations

from typing import Any

import pytest
from pages import Folder, Shoot, columns, follow, names, seen
from playwright.sync_api import Page, expect

pytest_plugins = ["browser_fixtures"]
pytestmark = pytest.mark.slow


def best(swept: Folder) -> Any:
    """The trial with the highest validation accuracy, as MLflow has it."""
    return swept.best_first("tags.kind = 'trial' and tags.study = 'digits'")[0]


def parent(swept: Folder) -> Any:
    """The sweep's parent run."""
    return swept.best_first("tags.kind = 'sweep' and attributes.run_name = 'sweep digits'")[0]


def run_page(dashboard: str, run: Any) -> str:
    """The address of a run's page."""
    return f"{dashboard.partition('/#')[0]}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"


def test_the_address_shows_the_best_run_first(swept: Folder, dashboard: str, page: Page, shoot: Shoot) -> None:
    """The printed address shows runs by validation accuracy, with our columns and a description of them."""
    wanted = ["Run Name", "val_accuracy", "test_accuracy", "epochs", "seconds", "state", "optimizer.name"]
    scores = {
        run.info.run_name: run.data.metrics["val_accuracy"] for run in swept.best_first("metrics.val_accuracy > 0")
    }

    page.set_viewport_size({"width": 1800, "height": 800})  # MLflow's assistant takes 330 on a first visit
    page.goto(dashboard)
    shown = names(page)
    shoot(page, "table")

    assert [name for name in columns(page) if name in wanted] == wanted
    listed = [scores[name] for name in shown if name in scores]
    assert listed[0] == max(scores.values())
    assert listed == sorted(listed, reverse=True)
    expect(page.get_by_test_id("saved-views-trigger")).to_have_text("Best first")
    page.locator("[data-component-id='mlflow.experiment.metadata_editor.expand_button']").click()
    seen(page, "is what the search maximises")


def test_curves_compare_across_runs(dashboard: str, page: Page, shoot: Shoot) -> None:
    """The link `Curves` shows the validation curves of the best runs in one chart, and what was searched."""
    page.set_viewport_size({"width": 1280, "height": 1330})
    page.goto(dashboard)
    charts = follow(page, "Curves")

    seen(charts, "Learning curves")
    seen(charts, "curve/val_accuracy")
    lines = charts.locator(".js-plotly-plot").first.locator(".scatterlayer .trace")
    lines.nth(7).wait_for(state="attached")  # they come one by one
    seen(charts, "Parallel Coordinates")
    charts.locator(".parcoords, canvas").first.wait_for(state="attached")
    shoot(charts, "curves")
    assert lines.count() >= 8


def test_a_sweep_contains_its_trials(swept: Folder, dashboard: str, page: Page, shoot: Shoot) -> None:
    """By time, trials are grouped under their sweep, and unfold."""
    page.goto(dashboard)
    tree = follow(page, "Sweeps, each with its trials")

    folded = names(tree)
    row = tree.locator("[role=row]").filter(has_text="sweep digits").first
    row.locator("[col-id*='Run Name'] button").first.click()
    seen(tree, best(swept).info.run_name)
    shoot(tree, "tree")
    assert folded == ["sweep digits"]
    assert set(names(tree)) > {"sweep digits", best(swept).info.run_name}


def test_a_sweeps_page_shows_the_best_trial_and_the_report(
    swept: Folder, dashboard: str, page: Page, shoot: Shoot
) -> None:
    """The parent run has the best trial's scores at once, and its space, the next commands and the report."""
    run, scores = parent(swept), best(swept).data.metrics
    files = [file.path for file in swept.client().list_artifacts(run.info.run_id, "report")]
    html = next(path for path in files if path.endswith(".html"))
    page.set_viewport_size({"width": 1800, "height": 1000})  # MLflow's assistant takes 330 on a first visit
    page.goto(run_page(dashboard, run))

    expect(seen(page, f"validation accuracy {scores['val_accuracy']:.4f}")).to_be_in_viewport()
    expect(seen(page, f"test accuracy {scores['test_accuracy']:.4f}")).to_be_in_viewport()
    page.get_by_text("Show more").first.click()
    seen(page, "sgd, adam")
    seen(page, "python -m mnistexp confirm study.name=digits")
    shoot(page, "sweep")
    page.goto(f"{run_page(dashboard, run)}/artifacts/{html}")
    report = page.frame_locator("iframe").first
    report.locator("h1").first.wait_for()
    report.locator("svg, img").first.wait_for()
    shoot(page, "report")


def test_optunas_dashboard_shows_the_study(swept: Folder, page: Page, shoot: Shoot) -> None:
    """`ui --optuna` opens the study's own page, with its history, and names its values."""
    with swept.serving("--optuna", "study.name=digits", "--port", "0") as address:
        page.goto(address)
        seen(page, "digits (id=")
        seen(page, "Hyperparameter Importance")
        seen(page, "validation accuracy")
        page.locator(".js-plotly-plot .trace").first.wait_for(state="attached")
        shoot(page, "optuna")
