from __future__ import annotations

import re
import shutil
from contextlib import closing
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeExecutor, Step
from histories import HitsExecutor, study, trial
from sweeps import by_rate, open_sweep

from mnistexp.analysis import comparison as analysis
from mnistexp.analysis import history
from mnistexp.analysis.history import Importances
from mnistexp.commands.args import CommandArgs
from mnistexp.commands.report import report, study_report
from mnistexp.config.compose import parse_request
from mnistexp.config.schema import RunConfig
from mnistexp.errors import ConfigError, StoreError
from mnistexp.report import comparison, document
from mnistexp.report.document import Code, Commands, Document, Note, Paragraph, Section, Strong, Table, paragraph
from mnistexp.report.report_data import ReportData, gather
from mnistexp.study.database import Database, open_for_sweep
from mnistexp.tracking.runs import MlflowTracker

RATES = "optimizer.learning_rate=tag(log, interval(1e-3, 1e-1))"
SECTIONS = (
    "real",
    "confirmed",
    "course",
    "parameters",
    "space",
    "curves",
    "costs",
    "digits",
    "top",
    "envelope",
    "ended",
    "provenance",
)
HOSTILE = "<script>alert(1)</script> | `x` [a](https://evil.example/) ${7*7} {{ 7*7 }} \"'&amp;"


@dataclass
class Page(HTMLParser):
    """A page as a browser would see it: its tags, their attributes, its text by section."""

    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str]] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)  # section's id → its text
    open: list[str] = field(default_factory=list)
    section: str = ""

    VOID = ("meta", "br", "wbr", "img")

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self.open += [] if tag in self.VOID else [tag]
        if tag == "section":
            self.section = dict(attrs).get("id") or ""

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "a tag was closed that was not open"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts[self.section] = self.texts.get(self.section, "") + data


def parsed(html: str) -> Page:
    """A page, read to its end: everything that was opened is closed."""
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    return page


def check_self_contained(html: str) -> Page:
    """No script, no address that a browser would ask for, no file."""
    page = parsed(html)
    asked = [value for name, value in page.attributes if name in ("href", "xlink:href", "src", "action", "data")]
    styles = [value for name, value in page.attributes if name == "style"] + re.findall(
        r"<style>(.*?)</style>", html, re.S
    )
    assert not {"script", "link", "iframe", "object", "embed", "form", "base", "img"} & set(page.tags)
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in asked)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"@import|url\((?!#)", " ".join(styles))
    assert "default-src 'none'" in next(value for name, value in page.attributes if "default-src" in (value or ""))
    return page


# ------------------------------------------------------------------------------------------------- whole studies


def mixed(job: int, config: RunConfig) -> list[Step]:
    """Trials of all kinds: one fails, some are worse from the start, the rest go by their learning rate."""
    if job == 7:
        return ["its loss is NaN"]
    scale = 0.8 if job % 5 == 4 else 1.0
    return [scale * score for score in by_rate(job, config)]


@dataclass(frozen=True)
class Studied:
    """A folder with two studies, in which their reports were written."""

    folder: Path
    uri: str

    def words(self, *more: str) -> list[str]:
        return [f"study.storage=sqlite:///{self.folder / 'optuna.db'}", f"tracking.uri={self.uri}", *more]

    def report(self, *names: str, out: str = "out", **keys: str) -> Path:
        """Have a report written. Returns: the folder."""
        where = self.folder / out
        assert report(parse_request(self.words()), CommandArgs({"out": str(where), **keys}, names)) == 0
        return where


@pytest.fixture(scope="module")
def studied(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Studied:
    """A study of twenty trials, pruned and failed ones among them, and one of four; their runs are in MLflow."""
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


def test_the_report_has_every_section(studied: Studied, written: Path) -> None:
    """One page with an answer and all sections, in the reader's order, that needs nothing else."""
    html = (written / "report-digits.html").read_text()
    page = check_self_contained(html)
    with closing(open_for_sweep(f"sqlite:///{studied.folder / 'optuna.db'}")) as opened:
        found = history.load(opened.storage, "digits")
    best = found.ranked[0]

    assert [value for name, value in page.attributes if name == "id" and value in SECTIONS] == list(SECTIONS)
    assert f"trial {best.number}," in page.texts["answer"]
    assert f"{best.val_accuracy:.4f}" in page.texts["answer"]
    assert "the config that the sweep started from" in page.texts["answer"]
    assert all(page.texts[section].strip() for section in SECTIONS)
    assert html.count("<svg") == 13
    assert len(html) < 5_000_000


def test_the_envelope_says_how_often_it_was_opened(studied: Studied, written: Path) -> None:
    """As often as trials were tested; and no other trial's test accuracy stands anywhere."""
    page = parsed((written / "report-digits.html").read_text())
    with closing(open_for_sweep(f"sqlite:///{studied.folder / 'optuna.db'}")) as opened:
        looks = history.load(opened.storage, "digits").test_evaluations

    assert f"looked at the test split {looks} times" in page.texts["envelope"]
    assert "0.6667" not in "".join(text for section, text in page.texts.items() if section != "answer")


def test_what_failed_is_told(studied: Studied, written: Path) -> None:
    """Reasons with their trials, and what pruning spared."""
    page = parsed((written / "report-digits.html").read_text())
    with closing(open_for_sweep(f"sqlite:///{studied.folder / 'optuna.db'}")) as opened:
        spent = analysis.costs(history.load(opened.storage, "digits"))

    assert "#7its loss is NaN" in re.sub(r"\s", "", page.texts["ended"]).replace("itslossisNaN", "its loss is NaN")
    assert f"spared {spent.spared} epochs" in page.texts["ended"]
    assert spent.pruned > 0


def test_the_markdown_shows_its_figures(written: Path) -> None:
    """The same in Markdown: each picture that it names is a PNG file beside it, and the headings are the page's."""
    text = (written / "report-digits.md").read_text()
    html = (written / "report-digits.html").read_text()
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)

    assert len(pictures) == 13
    assert all((written / path).read_bytes().startswith(b"\x89PNG") for path in pictures)
    assert re.findall(r"^## (.*)$", text, re.M) == re.findall(r"<h2>(.*?)</h2>", html)
    assert not re.search(r"\n{3,}", text)
    assert not re.search(r"[^\n|]\n[A-Z*]", text.split("```")[0])  # paragraphs stay apart


def test_the_report_is_logged_to_the_parent_run(studied: Studied, written: Path) -> None:
    """MLflow has it with the sweep's own run: the page, the Markdown, whose links hold there too, and the figures."""
    from mlflow import MlflowClient

    client = MlflowClient(studied.uri)
    experiment = client.get_experiment_by_name("digits")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    names = {file.path for file in client.list_artifacts(parent.info.run_id, "report")}
    figures = {file.path for file in client.list_artifacts(parent.info.run_id, "report/figures")}
    markdown = Path(client.download_artifacts(parent.info.run_id, "report/report.md")).read_text()

    assert {"report/report.html", "report/report.md", "report/figures"} <= names
    assert figures == {f"report/{path}" for path in re.findall(r"\]\((figures/[^)]+)\)", markdown)}
    assert len(figures) == 13


def test_without_mlflow_the_files_are_written_all_the_same(
    studied: Studied, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that can't be used costs a sentence, not the report; a study without a run there likewise."""
    away = parse_request(studied.words("tracking.uri=http://127.0.0.1:9"))
    status = report(away, CommandArgs({"out": str(studied.folder / "away")}, ("other",)))
    told = capsys.readouterr()

    assert status == 0
    assert (studied.folder / "away" / "report-other.html").exists()
    assert "not logged: tracking.uri=http://127.0.0.1:9: no MLflow server answers there" in told.err
    assert "report-other.html" in told.out


def test_two_studies_side_by_side(studied: Studied) -> None:
    """Their courses, the test between their winners on the same images, and their costs."""
    where = studied.report("digits", "other")
    page = check_self_contained((where / "compare-digits-other.html").read_text())
    with closing(open_for_sweep(f"sqlite:///{studied.folder / 'optuna.db'}")) as opened:
        both = [history.load(opened.storage, name) for name in ("digits", "other")]
    winners = analysis.winners(both)

    assert winners is not None
    (test,) = (each.test for each in winners if each.test)
    assert f"{test.better} : {test.worse}" in page.texts["winners"]
    assert all(f"{each.trial.val_accuracy:.4f}" in page.texts["winners"] for each in winners)
    assert {"winners", "course", "costs"} <= set(page.texts)
    assert (where / "compare-digits-other.md").exists()


# -------------------------------------------------------------------------------------------------- thin studies


def material(*trials: history.Trial, name: str = "study", **more: Any) -> ReportData:
    """A study that was read, of data that aren't here."""
    found = study(*trials, name=name, **more)
    axes = ("optimizer.learning_rate", "model.activation")
    none = Importances({}, 0, "it takes 10 complete trials")
    return ReportData(found, none, analysis.standing(found), None, None, "the data set isn't on this machine", axes)


def told(found: ReportData) -> dict[str, str]:
    """A report's text by section, after looking that both forms can be written."""
    page = study_report(found, "Written by a test.")
    assert document.to_markdown(page, "figures")
    return check_self_contained(document.to_html(page)).texts


def test_a_study_of_one_trial_has_no_rivals() -> None:
    """Its report stands, and says what one trial can't show; the data that are missing cost their pictures alone."""
    texts = told(material(trial(0, baseline=True, params={"optimizer.learning_rate": 0.01})))

    assert "trial 0" in texts["answer"]
    assert "no other trial beat that" in texts["answer"]
    assert "no rival" in texts["real"]
    assert "the data set isn't on this machine" in texts["digits"]
    assert "Importances can't be given: it takes 10 complete trials." in texts["parameters"]


def test_a_study_that_searched_nothing_and_tested_nothing_says_that() -> None:
    """Trials completed, so it isn't said that none did; and no look at the test split is no look."""
    texts = told(material(trial(0, test=None), trial(1, test=None), searched={}))

    assert "No parameter was searched" in texts["space"]
    assert "No trial completed" not in "".join(texts.values())
    assert "This study has never looked at the test split" in texts["envelope"]
    assert "The best score was reached when 1 of 2 trials had ended" in texts["course"]
    assert "the test is corrected for that (Holm)" in texts["real"]


@pytest.mark.parametrize(
    ("trials", "answer"),
    [
        ((), "No trial of this study has ended yet"),
        (
            (trial(0, state="FAILED", reason="NaN"), history.Trial(1, "FAILED", {}, None, "no")),
            "2 failed and 0 were pruned",
        ),
        ((trial(0, state="PRUNED"),), "0 failed and 1 were pruned"),
    ],
    ids=["no trial", "all failed", "all pruned"],
)
def test_a_study_without_a_complete_trial_says_so(trials: tuple[history.Trial, ...], answer: str) -> None:
    """There is no best config, and every section that needs one says that there is none."""
    texts = told(material(*trials))

    assert answer in texts["answer"]
    assert set(SECTIONS) <= set(texts)
    assert "No trial completed" in texts["top"]


def test_nothing_in_a_database_becomes_markup() -> None:
    """Names, values and reasons of another's making are shown as the text that they are, in both forms."""
    bad = replace(trial(0, state="FAILED", reason=HOSTILE), params={"optimizer.learning_rate": 0.1})
    good = [trial(n, 80 + n, params={"model.activation": HOSTILE, "optimizer.learning_rate": 0.01 * n}) for n in (1, 2)]
    found = material(bad, *good, name=HOSTILE, searched={f"search.{HOSTILE}": '{"values": ["<b>"]}'})
    page = study_report(found, HOSTILE)
    html = document.to_html(page)
    texts = check_self_contained(html).texts
    markdown = document.to_markdown(page, "figures")

    assert HOSTILE in texts["ended"]
    assert HOSTILE in texts[""]
    assert "<script" not in html
    assert "<b>" not in html
    assert "\\<script>" in markdown
    assert not re.search(r"(?<!\\)<(script|b)>", re.sub(r"`+[^`]*`+", "", markdown))
    assert not re.search(r"(?<!\\)\]\(https", re.sub(r"`+[^`]*`+", "", markdown))


def test_studies_on_other_images_are_not_compared() -> None:
    """Their accuracies stand side by side, with a sentence that says why there is no test."""
    here, there = material(trial(0), name="here"), material(trial(0, 80, data="0" * 32), name="there")
    none = material(name="none")

    text = check_self_contained(document.to_html(comparison.compare([here, there], ""))).texts
    empty = check_self_contained(document.to_html(comparison.compare([here, none], ""))).texts

    assert "were not scored on the same images" in text["answer"]
    assert "No trial of none completed" in empty["answer"]


# ------------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("own", "words", "message"),
    [
        (
            CommandArgs({"heatmap": "optimizer.lerning_rate,model.activation"}),
            (),
            r"did you mean optimizer\.learning_rate\?",
        ),
        (CommandArgs({"heatmap": "model.activation"}), (), "takes two different parameters, such as heatmap="),
        (CommandArgs({"heatmap": "a,b"}, ("digits", "other")), (), "for the report of one study"),
        (
            CommandArgs({"by": "optimizer"}),
            (),
            r"by=optimizer: the study didn't search it; it searched .*model\.activation",
        ),
        (CommandArgs({"by": "model.activation"}, ("digits", "other")), (), "by: is for the report of one study"),
        (CommandArgs({"sections": "by,top"}), (), "the report has no section 'by'; it has real, confirmed, course"),
        (CommandArgs({}, ("digits", "digits")), (), "stands there twice"),
        (CommandArgs({}, ("nobody",)), (), r"no such study here; there are digits, other"),
        (CommandArgs({}, ("../up",)), (), "must be 1 to 100 letters"),
        (CommandArgs({}, ("digits",)), ("study.name=other",), "named already"),
        (CommandArgs(), ("model.dropout=0.1",), "reads a study as it is"),
        (CommandArgs(), ("model.activation=choice(relu, tanh)",), "reads a study as it is"),
        (
            CommandArgs(),
            ("search.model.dropout=choice(0.1, 0.2)",),
            r"search\.model\.dropout: a report reads a study as it is",
        ),
        (CommandArgs(), ("~search.model.activation",), r"search\.model\.activation: a report reads a study as it is"),
    ],
)
def test_a_mistake_gets_a_sentence(studied: Studied, own: CommandArgs, words: tuple[str, ...], message: str) -> None:
    """What was given, what is allowed, what to type."""
    request = parse_request(studied.words("data=digits", *words))

    with pytest.raises((ConfigError, StoreError), match=message):
        report(request, own)


def test_a_folder_that_cannot_be_made_is_named(studied: Studied) -> None:
    """A file in the place of the folder is a sentence, not a traceback."""
    (studied.folder / "taken").write_text("")

    with pytest.raises(StoreError, match=r"out=.*taken: can't be written to"):
        studied.report("other", out="taken")


def test_data_that_changed_are_not_shown(database: Database) -> None:
    """Labels of another data set would make a confusion matrix of nonsense, so there is none."""
    sweep = open_sweep(database, RATES, "study.trials=1")
    sweep.run(FakeExecutor(by_rate))
    known = gather(database.storage, "digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "mnistexp.report.report_data.dataset.load", lambda config: replace(known.dataset, fingerprint="other")
        )  # type: ignore[type-var]
        changed = gather(database.storage, "digits")

    assert known.dataset is not None
    assert changed.dataset is None
    assert "isn't the one that the study was trained on" in changed.missing


# -------------------------------------------------------------------------------------------------- the document


def test_markdown_means_what_is_written() -> None:
    """Text is text, code is code whatever backticks it has, a bar ends no cell, a number starts no list."""
    blocks = (
        paragraph("1. not a list, ", Code("a`b"), " and ", Strong("x*y"), "."),
        Note("# no headline"),
        Table(("a|b",), ((Code("c|d"),), ("e|f",)), "r", "cap_tion"),
        Commands(("echo ```", "ls")),
    )
    page = Document("T", "s", (Paragraph(("x",)),), (Section("id", "S", blocks),), "end")
    text = document.to_markdown(page, "my figures")

    assert "1\\. not a list, ``a`b`` and **x\\*y**." in text
    assert "> \\# no headline" in text
    assert "| a\\|b |\n| ---: |\n| `c\\|d` |\n| e\\|f |\n" in text
    assert "````sh\necho ```\nls\n````" in text
