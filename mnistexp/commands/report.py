"""The command `report`: read studies, write what they say as HTML and Markdown, log it to MLflow."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mnistexp import __version__
from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config.overrides import ParsedOverrides, override_text
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError, StoreError
from mnistexp.paths import expanded
from mnistexp.report import answers as words
from mnistexp.report import artifacts, comparison, document, group_text, report_data
from mnistexp.report import sections as parts
from mnistexp.report.document import Document, Section
from mnistexp.report.report_data import ReportData
from mnistexp.storage.urls import storage_overrides
from mnistexp.study import database as storage
from mnistexp.terminal import console
from mnistexp.terminal.formatting import counted
from mnistexp.tracking import run_context

NODES = ("study", "tracking", "data")  # of the config, that a report reads

SECTIONS: Mapping[str, Callable[[ReportData], Section]] = {  # by their ids, in the reader's order
    "by": group_text.by_value,
    "real": words.reality,
    "confirmed": words.confirmed,
    "course": parts.course,
    "parameters": parts.parameters,
    "space": parts.cuts,
    "curves": parts.curves,
    "costs": parts.prices,
    "digits": parts.digits,
    "top": parts.top_ten,
    "envelope": words.envelope,
    "ended": parts.ended_early,
    "provenance": parts.provenance,
}


def report(request: ParsedOverrides, own: CommandArgs) -> int:
    """Write a study's report, or that of several studies side by side."""
    requests, folder = _requests(request, own), _folder(own.keys.get("out", "."))
    composed = [configs.compose(each) for each in requests]
    materials = [_material(each, request, own) for each in composed]
    if len(materials) == 1:
        (found,) = materials
        page = study_report(found, _footer(), own.keys.get("sections", ""))
        name = f"report-{found.history.name}"
    else:
        page, name = (
            comparison.compare(materials, _footer()),
            f"compare-{'-'.join(each.history.name for each in materials)}",
        )
    try:
        paths = _write(page, folder, name[:150], name[:150])
    except OSError as error:
        raise StoreError(f"{folder}: the report can't be written there ({error.strerror}); give out=FOLDER") from None
    for path in paths:
        console.say(str(path))
    if len(materials) == 1:
        _log(page, composed[0], materials[0])
    return 0


def _requests(request: ParsedOverrides, own: CommandArgs) -> list[ParsedOverrides]:
    """One request for each study. Raises: ConfigError for what a report can't be told."""
    given = sorted(
        key for key in (*request.fixed_keys, *request.swept_keys) if key.split(".")[0].split("/")[0] not in NODES
    )
    given += [f"search.{key}" for key, _ in request.search if key not in request.swept_keys]
    if given or request.swept_keys:
        raise ConfigError(f"{(given or request.swept_keys)[0]}: a report reads a study as it is; leave it out")
    if not own.names:
        return [request]
    if "study.name" in request.fixed_keys:
        raise ConfigError(f"study.name: the study is named already ({own.names[0]}); leave one of them out")
    if len(set(own.names)) < len(own.names):
        raise ConfigError(f"{' '.join(own.names)}: a study stands there twice; name different ones")
    for key in ("heatmap", "by", "sections"):
        if len(own.names) > 1 and key in own.keys:
            raise ConfigError(f"{key}: is for the report of one study; leave it out, or name one study")
    return [request.with_overrides([override_text("study.name", name)]) for name in own.names]


def _material(config: Config, request: ParsedOverrides, own: CommandArgs) -> ReportData:
    with storage.reading(config.study.storage) as database:
        name, asked = run_context.study_name(config), {key: own.keys.get(key, "") for key in ("heatmap", "by")}
        return report_data.gather(
            database, name, config.data.root, **asked, stores=storage_overrides(request.overrides)
        )


def _footer() -> str:
    return f"Written by mnistexp {__version__} on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}."


def study_report(found: ReportData, footer: str, wanted: str = "") -> Document:
    """All that is told of one study, in the reader's order.

    Args:
        wanted: ids of sections, with commas between them, which alone are written; empty: all.

    Raises: ConfigError if there are no such sections.
    """
    history = found.history
    record = next((trial.record for trial in history.trials if trial.record), None)
    about = f"Which hyperparameters are best on {record.data_name}, by validation accuracy?" if record else ""
    done = f"{counted(len(history.trials), 'trial')}, {len(history.complete)} of them complete."
    sections = tuple(SECTIONS[name](found) for name in _wanted(found, wanted))
    answer = (*group_text.answer(found), *words.answer(found), *group_text.hint(found))
    return Document(f"Study {history.name}", f"{about} {done}".strip(), answer, sections, footer)


def _wanted(found: ReportData, text: str) -> list[str]:
    """Ids of sections, in the reader's order."""
    there = [name for name in SECTIONS if name != "by" or found.groups]
    names = [name.strip() for name in text.split(",")] if text else there
    if unknown := [name for name in names if name not in there]:
        raise ConfigError(f"sections={text}: the report has no section {unknown[0]!r}; it has {', '.join(there)}")
    return [name for name in there if name in names]


# ---------------------------------------------------------------------------------------------------- writing


def _folder(text: str) -> Path:
    """Where to write, made if it isn't there: before anything is read and drawn. Raises: StoreError."""
    folder = expanded(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StoreError(f"out={text}: can't be written to ({error.strerror}); give another out=FOLDER") from None
    return folder


def _write(page: Document, folder: Path, name: str, figures: str) -> tuple[Path, Path, Path]:
    """Write NAME.html, NAME.md and the figures in a folder beside them."""
    drawings = folder / figures
    drawings.mkdir(exist_ok=True)
    for picture in page.pictures:
        (drawings / f"{picture.name}.png").write_bytes(picture.png)
    html, markdown = folder / f"{name}.html", folder / f"{name}.md"
    html.write_text(document.to_html(page), encoding="utf-8")
    markdown.write_text(document.to_markdown(page, figures), encoding="utf-8")
    return html, markdown, drawings


def _log(page: Document, config: Config, found: ReportData) -> None:
    """Put the report to the study's parent run; where that can't be, say so: the files are written."""
    if config.tracking.name == "none":
        return
    experiment = config.tracking.experiment or found.history.name
    with tempfile.TemporaryDirectory(prefix="mnistexp-") as scratch:
        try:
            _write(page, Path(scratch), "report", "figures")
            run_id = artifacts.log_to_parent(config.tracking, experiment, found.history.id, Path(scratch), "report")
        except (OSError, StoreError) as error:
            console.note(f"not logged: {error}")
            return
    console.note(f"logged to run {run_id}, as report/" if run_id else "not logged: MLflow has no run of this study's")
