"""The command `sweep`: run a study, or continue one."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from mnistexp.commands.args import CommandArgs
from mnistexp.config import user_code
from mnistexp.config.compose import ParsedOverrides
from mnistexp.config.schema import Config
from mnistexp.errors import INTERRUPTED, StoreError
from mnistexp.storage.urls import redact, storage_overrides
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.runs import address, open_tracker
from mnistexp.workers.start import start_workers

if TYPE_CHECKING:
    from mnistexp.analysis.history import History
    from mnistexp.study.database import Database
    from mnistexp.study.sweep import Summary


def sweep(request: ParsedOverrides, asked: CommandArgs) -> int:
    """Run a study, or go on with it. Any number of these commands may do so at once."""
    from mnistexp.commands.plan import checked, plan, warn

    if asked.flags.get("--plan"):
        return plan(request)
    from mnistexp.search import space as search_space
    from mnistexp.study import database as storage
    from mnistexp.study.sweep import Sweep
    from mnistexp.terminal import display

    request, space = checked(request)
    config = space.root.template.config()
    view = display.choose(asked.flags, config.study.timeout)
    prepared = run_context.prepare(request)
    console.warn_fallback(prepared)
    database = storage.open_for_sweep(config.study.storage)  # before any worker, or a second driver, can race for it
    executor = start_workers(
        prepared.config,
        at_most=config.study.trials,
        dataset=prepared.dataset,
        fingerprint=prepared.dataset.fingerprint,
    )
    try:
        if prepared.request != request:  # `auto` became a data set: trials record its name
            space = search_space.build(prepared.request)
        warn(prepared, space)
        tracker = open_tracker(config.tracking, prepared.experiment)
        session = Sweep(database, run_context.session(prepared), space, tracker, view.listener)
        summary = display.run(session, executor, view)
        history = _history(database, session.name)
    finally:
        executor.close()
        database.close()
    stores = storage_overrides(request.overrides)
    _say_summary(summary, session.name, history, [*stores, *user_code.words()], _dashboard(config, stores))
    return INTERRUPTED if summary.interrupted else int(summary.gave_up or summary.progress.best is None)


def _say_summary(summary: Summary, name: str, history: History | None, where: Iterable[str], dashboard: str) -> None:
    from mnistexp.analysis import comparison as analysis

    standing = analysis.standing(history, resamples=1) if history else None  # the winner's luck is the report's
    for line in console.summary_lines(summary, name, history, standing, where, dashboard):
        console.say(line)


def _history(database: Database, name: str) -> History | None:
    """The study's history; None where another version of mnistexp wrote some of it, which is no fault of this sweep."""
    from mnistexp.analysis import history

    with suppress(StoreError):
        return database.retry(lambda: history.load(database.storage, name))
    return None


def _dashboard(config: Config, stores: Iterable[str]) -> str:
    """What to type to see the runs; empty where none is logged."""
    uri = address(config.tracking)
    if not uri:
        return ""
    return redact(uri) if uri.startswith("http") else shlex.join(["python", "-m", "mnistexp", "ui", *stores])
