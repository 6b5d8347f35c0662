"""The command `report`: read studies, write a report as HTML and Markdown, log it to MLflow."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from mnistexp import __version__
from mnistexp.commands.args import CommandArgs
from mnistexp.config.compose import compose
from mnistexp.config.overrides import ParsedOverrides, override_text
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError, StoreError
from mnistexp.paths import expanded
from mnistexp.report.document import Report
from mnistexp.report.report_data import ReportData, gather
from mnistexp.report.studies_text import studies_report
from mnistexp.report.text import study_report
from mnistexp.storage.urls import storage_overrides
from mnistexp.study import database as storage
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.runs import open_tracker

NODES = ("study", "tracking", "data")  # the nodes of the config that a report reads


def report(request: ParsedOverrides, own: CommandArgs) -> int:
    """Write a study's report, or one on several studies side by side."""
    requests, folder = _requests(request, own), _folder(own.keys.get("out", "."))
    configs = [compose(each) for each in requests]
    studies = [_gather(each, request, own) for each in configs]
    footer = f"Written by mnistexp {__version__} on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}."
    if len(studies) == 1:
        found, prefix = study_report(studies[0], footer, own.keys.get("sections", "")), "report"
    else:
        found, prefix = studies_report(studies, footer), "compare"
    name = "-".join([prefix, *(data.history.name for data in studies)])[:150]
    try:
        paths = _write(found, folder, name, name)
    except OSError as error:
        raise StoreError(f"{folder}: the report can't be written there ({error.strerror}); give out=FOLDER") from None
    for path in paths:
        console.say(str(path))
    if len(studies) == 1:
        _log(found, configs[0], studies[0])
    return 0


def _requests(request: ParsedOverrides, own: CommandArgs) -> list[ParsedOverrides]:
    """Return a request for each study. Raises: ConfigError for arguments that a report does not take."""
    given = sorted(key for key in request.fixed_keys if key.split(".")[0].split("/")[0] not in NODES)
    given += [key for key, _ in request.search]
    if given:
        raise ConfigError(f"{given[0]}: a report reads a study as it is; leave it out")
    if not own.names:
        return [request]
    if "study.name" in request.fixed_keys:
        raise ConfigError(f"study.name: the study is named already ({own.names[0]}); leave one of them out")
    if len(set(own.names)) < len(own.names):
        raise ConfigError(f"{' '.join(own.names)}: a study is given twice; name different ones")
    for key in ("heatmap", "by", "sections"):
        if len(own.names) > 1 and key in own.keys:
            raise ConfigError(f"{key}: is for the report of one study; leave it out, or name one study")
    return [request.with_overrides([override_text("study.name", name)]) for name in own.names]


def _gather(config: Config, request: ParsedOverrides, own: CommandArgs) -> ReportData:
    asked = {key: own.keys.get(key, "") for key in ("heatmap", "by")}
    stores = storage_overrides(request.overrides)
    with storage.reading(config.study.storage) as database:
        return gather(database, run_context.study_name(config), config.data.root, **asked, stores=stores)


def _folder(text: str) -> Path:
    """Make the folder for the report, before anything is read. Raises: StoreError if it can't be written to."""
    folder = expanded(text)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise StoreError(f"out={text}: can't be written to ({error.strerror}); give another out=FOLDER") from None
    return folder


def _write(found: Report, folder: Path, name: str, figures: str) -> tuple[Path, Path, Path]:
    """Write NAME.html, NAME.md, and the figures as PNG files in a folder next to them."""
    html, markdown, drawings = folder / f"{name}.html", folder / f"{name}.md", folder / figures
    drawings.mkdir(exist_ok=True)
    for figure, png in found.png.items():
        (drawings / f"{figure}.png").write_bytes(png)
    html.write_text(found.html(), encoding="utf-8")
    markdown.write_text(found.markdown(figures), encoding="utf-8")
    return html, markdown, drawings


def _log(found: Report, config: Config, data: ReportData) -> None:
    """Log the report to the study's parent run in MLflow. A failure is only reported: the files are written."""
    if config.tracking.name == "none":
        return
    experiment = config.tracking.experiment or data.history.name
    with tempfile.TemporaryDirectory(prefix="mnistexp-") as scratch:
        try:
            _write(found, Path(scratch), "report", "figures")
            tracker = open_tracker(config.tracking, experiment, create=False)
            run_id = tracker.log_folder(data.history.id, Path(scratch), "report")
        except (OSError, StoreError) as error:
            console.note(f"not logged: {error}")
            return
    console.note(f"logged to run {run_id}, as report/" if run_id else "not logged: MLflow has no run of this study's")
