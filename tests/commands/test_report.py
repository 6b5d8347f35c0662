from __future__ import annotations

import re
import shutil
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeExecutor, Step
from histories import VALIDATION, HitsExecutor
from html_pages import check_self_contained
from sweeps import by_rate, open_sweep

from mnistexp.analysis import history
from mnistexp.analysis.comparison import compare_winners
from mnistexp.analysis.history import History
from mnistexp.commands.args import CommandArgs
from mnistexp.commands.report import report
from mnistexp.config.compose import parse_request
from mnistexp.config.schema import RunConfig
from mnistexp.errors import ConfigError, StoreError
from mnistexp.report.report_data import gather
from mnistexp.study.database import Database, open_for_sweep
from mnistexp.tracking.runs import MlflowTracker

RATES = "optimizer.learning_rate=tag(log, interval(1e-3, 1e-1))"
FIGURES = {
    "rivals", "best_so_far", "importances", "slices", "heatmap", "curves", "pareto_seconds", "pareto_parameters",
    "confusion", "mistakes",
}  # fmt: skip


def mixed(job: int, config: RunConfig) -> list[Step]:
    """One trial fails, some are worse from the start, the others depend on their learning rate."""
    if job == 7:
        return ["its loss is NaN"]
    scale = 0.8 if job % 5 == 4 else 1.0
    return [scale * score for score in by_rate(job, config)]


@dataclass(frozen=True)
class Studied:
    """A folder with two studies and their reports."""

    folder: Path
    uri: str

    def words(self, *more: str) -> list[str]:
        return [f"study.storage=sqlite:///{self.folder / 'optuna.db'}", f"tracking.uri={self.uri}", *more]

    def report(self, *names: str, out: str = "out", **keys: str) -> Path:
        """Write a report. Returns: the folder."""
        where = self.folder / out
        assert report(parse_request(self.words()), CommandArgs({"out": str(where), **keys}, names)) == 0
        return where

    def load(self, name: str) -> History:
        with closing(open_for_sweep(f"sqlite:///{self.folder / 'optuna.db'}")) as opened:
            return history.load(opened.storage, name)


@pytest.fixture(scope="module")
def studied(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Studied:
    """A study of twenty trials, with pruned and failed ones, and one of four; the runs of the first are in MLflow."""
    folder = tmp_path_factory.mktemp("studied")
    found = Studied(folder, f"sqlite:///{folder / 'mlflow.db'}")
    pruned = ("study/pruner=median", "study.pruner.startup_trials=9", "study.pruner.warmup_epochs=1")
    with (
        closing(open_for_sweep(f"sqlite:///{shutil.copy(fresh, folder / 'optuna.db')}")) as opened,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.chdir(folder)
        tracker: Any = MlflowTracker(found.uri, "digits")
        open_sweep(opened, RATES, "study.trials=20", *pruned, tracker=tracker).run(HitsExecutor(mixed))
        open_sweep(opened, RATES, "study.trials=4", "study.name=other").run(HitsExecutor(by_rate))
    return found


@pytest.fixture(scope="module")
def written(studied: Studied) -> Path:
    """The folder with the report of the larger study."""
    return studied.report("digits")


def test_the_report_is_one_page_with_every_section(studied: Studied, written: Path) -> None:
    """The page needs no other file and contains the facts of the study."""
    html = (written / "report-digits.html").read_text()
    found = studied.load("digits")

    page = check_self_contained(html)

    best = found.ranked[0]
    assert f"trial {best.number}," in page.texts["result"]
    assert f"{best.accuracy:.4f}" in page.texts["result"]
    assert "its loss is NaN" in page.texts["how-the-search-went"]
    assert f"{found.test_evaluations}" in page.texts["use-of-the-test-set"]
    assert "0.6667" not in "".join(text for section, text in page.texts.items() if section != "result")  # test scores
    assert html.count("<img") == len(FIGURES)
    assert len(html) < 5_000_000


def test_the_markdown_has_the_same_sections_and_its_figures(written: Path) -> None:
    """Each picture is a PNG file in the folder next to it."""
    markdown, html = (written / "report-digits.md").read_text(), (written / "report-digits.html").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\((.+?)\)", markdown)

    assert {Path(path).stem for path in pictures} == FIGURES
    assert all((written / path).read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == re.findall(r"<h2 id=.*?>(.*?)</h2>", html)


def test_the_report_is_logged_to_the_parent_run(studied: Studied, written: Path) -> None:
    """MLflow has the page, the Markdown and its figures in the run of the sweep."""
    from mlflow import MlflowClient

    assert written.is_dir()
    client = MlflowClient(studied.uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    names = {file.path for file in client.list_artifacts(parent.info.run_id, "report")}
    figures = {file.path for file in client.list_artifacts(parent.info.run_id, "report/figures")}
    markdown = Path(client.download_artifacts(parent.info.run_id, "report/report.md")).read_text()

    assert {"report/report.html", "report/report.md", "report/figures"} <= names
    assert figures == {f"report/{path}" for path in re.findall(r"\]\((figures/.+?)\)", markdown)}
    assert len(figures) == len(FIGURES)


def test_without_mlflow_the_files_are_written(studied: Studied, capsys: pytest.CaptureFixture[str]) -> None:
    """A store that does not answer gives a message, not an error."""
    request = parse_request(studied.words("tracking.uri=http://127.0.0.1:9"))
    away = CommandArgs({"out": str(studied.folder / "away"), "sections": "top"}, ("other",))

    status = report(request, away)

    assert status == 0
    assert (studied.folder / "away" / "report-other.html").exists()
    assert "not logged: tracking.uri=http://127.0.0.1:9: " in capsys.readouterr().err


def test_two_studies_are_compared(studied: Studied) -> None:
    """The page has their winners with the test on the same images, their courses and their costs."""
    where = studied.report("digits", "other")
    page = check_self_contained((where / "compare-digits-other.html").read_text())
    winners = compare_winners([studied.load("digits"), studied.load("other")])

    assert winners is not None
    assert all(f"{each.trial.accuracy:.4f}" in page.texts["result"] for each in winners)
    assert page.texts["result"].splitlines().count("best of all") == 1
    assert {"result", "how-the-searches-went", "costs"} <= set(page.texts)
    assert (where / "compare-digits-other.md").exists()


def by_config(job: int, config: RunConfig) -> list[Step]:
    """tanh is better, the lower rate too; seed 1 of relu with the higher rate fails."""
    if (config.model.activation, config.optimizer.learning_rate, config.seed) == ("relu", 0.1, 1):
        return ["its loss is NaN"]
    score = 0.8 + 0.1 * (config.model.activation == "tanh") - config.optimizer.learning_rate / 10 + config.seed / 100
    return [score] * config.trainer.epochs


def test_a_grid_over_seeds_is_reported_by_a_key(fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The means are those of the trials, also after the sweep was continued."""
    monkeypatch.chdir(tmp_path)
    grid = ("study/sampler=grid", "seed=range(0,3)", "optimizer.learning_rate=choice(0.01,0.1)")
    with closing(open_for_sweep(f"sqlite:///{shutil.copy(fresh, tmp_path / 'optuna.db')}")) as opened:
        for total in (7, 12):
            open_sweep(opened, *grid, f"study.trials={total}").run(HitsExecutor(by_config))
    asked = {"by": "model.activation", "sections": "provenance,by", "out": str(tmp_path / "out")}

    assert report(parse_request(["tracking=none"]), CommandArgs(asked, ("digits",))) == 0

    markdown = (tmp_path / "out" / "report-digits.md").read_text()
    assert re.findall("^## (.*)$", markdown, re.MULTILINE) == ["Result", "By model.activation", "Provenance"]
    assert {path.name for path in (tmp_path / "out" / "report-digits").iterdir()} == {"by.png", "by_number.png"}
    rows = {row[1]: row for line in markdown.splitlines() if len(row := [cell.strip() for cell in line.split("|")]) > 6}
    mean = sum(round((0.899 + seed / 100) * VALIDATION) / VALIDATION for seed in range(3)) / 3
    assert rows["tanh"][2:5] == ["0.01", "3", f"{mean:.4f}"]
    assert rows["relu"][2:4] == ["0.01", "3"]
    assert rows["relu"][11:14] == ["2", "0", "1"]


# ------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("keys", "names", "words", "message"),
    [
        (
            {"heatmap": "optimizer.lerning_rate,model.activation"},
            (),
            (),
            r"heatmap=.*did you mean optimizer\.learning_rate\?",
        ),
        ({"heatmap": "model.activation"}, (), (), "heatmap=model.activation: .*two"),
        ({"by": "optimizer"}, (), (), r"by=optimizer: .* it searched .*model\.activation"),
        ({"by": "model.activation"}, ("digits", "other"), (), "by: is for the report of one study"),
        ({"sections": "by,top"}, (), (), "the report has no section 'by'; it has real, confirmed, course"),
        ({}, ("digits", "digits"), (), "given twice"),
        ({}, ("missing",), (), r"no such study here; there are digits, other"),
        ({}, ("../up",), (), "must match pattern"),
        ({}, ("digits",), ("study.name=other",), "named already"),
        ({}, (), ("model.dropout=0.1",), "model.dropout: "),
        ({}, (), ("model.activation=choice(relu, tanh)",), "model.activation: "),
        ({}, (), ("search.model.dropout=choice(0.1, 0.2)",), r"model\.dropout: "),
        ({}, (), ("~search.model.activation",), r"model\.activation: "),
    ],
)
def test_a_mistake_gets_a_sentence(
    studied: Studied, keys: dict[str, str], names: tuple[str, ...], words: tuple[str, ...], message: str
) -> None:
    """What was given, what is allowed, what to type."""
    request = parse_request(studied.words("data=digits", *words))

    with pytest.raises((ConfigError, StoreError), match=message):
        report(request, CommandArgs({"out": str(studied.folder), **keys}, names))


def test_a_folder_that_cannot_be_made_is_named(studied: Studied) -> None:
    """A file with the name of the folder gives a message."""
    (studied.folder / "taken").write_text("")

    with pytest.raises(StoreError, match=r"out=.*taken: can't be written to"):
        studied.report("other", out="taken")


def test_data_that_changed_are_not_shown(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of another data set would give a wrong confusion matrix, so there is none."""
    open_sweep(database, RATES, "study.trials=1").run(FakeExecutor(by_rate))
    known = gather(database.storage, "digits").dataset
    assert known is not None

    monkeypatch.setattr("mnistexp.report.report_data.data.load", lambda config: replace(known, fingerprint="other"))

    changed = gather(database.storage, "digits")
    assert changed.dataset is None
    assert "is not the one of the study" in changed.missing
