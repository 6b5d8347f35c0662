"""The command `sweep`: run a study, or continue one."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from mnistexp.commands.args import CommandArgs
from mnistexp.config import user_code
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.config.schema import Config
from mnistexp.errors import INTERRUPTED, StoreError
from mnistexp.storage.urls import redact, storage_overrides
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.runs import open_tracker
from mnistexp.tracking.store import resolved_uri
from mnistexp.workers.start import start_workers

if TYPE_CHECKING:
    from mnistexp.study.database import Database
    from mnistexp.study.sweep import Summary


def sweep(request: ParsedOverrides, asked: CommandArgs) -> int:
    """Run a study, or continue one. Several of these commands may share a study."""
    from mnistexp.commands.plan import check_space, plan
    from mnistexp.search import space as search_space
    from mnistexp.search import warnings
    from mnistexp.study import database as storage
    from mnistexp.study.progress import trials_left
    from mnistexp.study.sweep import Sweep
    from mnistexp.terminal import display

    if asked.flags.get("--plan"):
        return plan(request)
    request, space = check_space(request)
    config = space.root.template.config()
    view = display.make_display(asked.flags)
    prepared = run_context.prepare(request)
    console.warn_not_mnist(prepared.fallback)
    database = storage.open_for_sweep(config.study.storage)  # before the workers: another sweep may create it too
    executor = None
    try:
        if prepared.request != request:  # `auto` became a data set, and trials record its name
            space = search_space.build(prepared.request)
        if left := trials_left(database, prepared, space):
            found = prepared.dataset
            executor = start_workers(prepared.config, at_most=left, dataset=found, fingerprint=found.fingerprint)
        for sentence in warnings.likely_mistakes(space, prepared.config, len(prepared.dataset.train.labels)):
            console.note(f"warning: {sentence}")
        tracker = open_tracker(config.tracking, prepared.experiment)
        study = Sweep(database, run_context.create_context(prepared), space, tracker, view.callbacks)
        summary = display.run(study, executor, view)
        _print_summary(summary, study.name, database, config, storage_overrides(request.overrides))
    finally:
        if executor is not None:
            executor.close()
        database.close()
    return INTERRUPTED if summary.interrupted else int(summary.gave_up or summary.progress.best is None)


def _print_summary(summary: Summary, name: str, database: Database, config: Config, stores: Iterable[str]) -> None:
    from mnistexp.analysis import history
    from mnistexp.terminal.summary import summary_lines

    found = None
    with suppress(StoreError):  # another program may have written to the study: the summary works without it
        found = database.retry(lambda: history.load(database.storage, name))
    where = [*stores, *user_code.cli_args()]
    console.say_lines(summary_lines(summary, name, found, where, _dashboard(config, stores)))


def _dashboard(config: Config, stores: Iterable[str]) -> str:
    """What to type or to open to see the runs; empty if none is logged."""
    uri = resolved_uri(config.tracking)
    if not uri:
        return ""
    return redact(uri) if uri.startswith("http") else shlex.join(["python", "-m", "mnistexp", "ui", *stores])
