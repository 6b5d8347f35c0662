"""The commands: each puts the parts together, in the order in which things can go wrong most cheaply."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.compose import ParsedOverrides
from mnistexp.config.schema import Config, RunConfig
from mnistexp.errors import INTERRUPTED, StoreError, TrainingError, without_passwords
from mnistexp.storage.urls import shown, storage_overrides
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.run_context import PreparedRun
from mnistexp.tracking.runs import Tracker, address, open_tracker
from mnistexp.training.results import EpochScores
from mnistexp.workers.pool import Executor

if TYPE_CHECKING:
    from mnistexp.analysis.history import History
    from mnistexp.study.database import Database
    from mnistexp.study.sweep import Summary


def show_config(request: ParsedOverrides) -> int:
    """Print the composed config (`--cfg job`)."""
    text = yaml.safe_dump(configs.compose(request).model_dump(mode="json"), sort_keys=False, width=10**6)
    console.say(without_passwords(text.rstrip()))
    return 0


def train(request: ParsedOverrides, _: CommandArgs) -> int:
    """Run one training, log it, print its scores."""
    configs.refuse_search(request, "train")
    prepared = run_context.prepare(request)
    console.warn_fallback(prepared)
    executor = run_context.start_workers(
        prepared.config, at_most=1, dataset=prepared.dataset, fingerprint=prepared.dataset.fingerprint
    )
    try:
        tracker = open_tracker(prepared.config.tracking, prepared.experiment)  # while TensorFlow starts over there
        with TemporaryDirectory(prefix="mnistexp-") as scratch:
            record, files = _trained(prepared, executor, tracker, Path(scratch) / "model.weights.h5")
            assert record.result is not None
            for line in console.result_lines(record.result):  # before it is logged: whatever comes, this is known
                console.say(line)
            run_id = tracker.log(record, files=files)
    finally:
        executor.close()
    console.note(f"on {record.result.device}; {f'logged as run {run_id}' if run_id else 'not logged'}")
    return 0


def _trained(
    prepared: PreparedRun, executor: Executor, tracker: Tracker, weights: Path
) -> tuple[RunRecord, dict[str, str]]:
    """Train. Returns: the record and its files. Raises: TrainingError, after logging why and how far it got."""
    config, overrides = configs.run_config(prepared.config), prepared.request.run_overrides
    session, started = run_context.session(prepared), time.time()
    weights_path = weights if prepared.config.tracking.save_weights else None
    epochs: list[EpochScores] = []
    try:
        result = run_context.train(executor, config, _epoch_shower(config, epochs), weights_path)
    except TrainingError as error:
        failed = session.record("train", config, overrides, started, "FAILED", reason=str(error), epochs=tuple(epochs))
        try:
            tracker.log(failed)
        except StoreError as away:  # why the training failed is what the user needs
            console.note(f"not logged: {away}")
        raise
    record = session.record("train", config, overrides, started, "COMPLETE", result=result, weights_path=weights_path)
    return record, session.files()


def _epoch_shower(config: RunConfig, kept: list[EpochScores]) -> Callable[[EpochScores], None]:
    """Show each epoch as it ends, and keep it: a training that fails later is logged with its curves."""

    def show(scores: EpochScores) -> None:
        kept.append(scores)
        console.note(console.epoch_line(scores, config.trainer.epochs))

    return show


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
    executor = run_context.start_workers(
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
    return shown(uri) if uri.startswith("http") else shlex.join(["python", "-m", "mnistexp", "ui", *stores])


def best(request: ParsedOverrides, _: CommandArgs) -> int:
    """Print a study's best config, as YAML and as one command."""
    from mnistexp.analysis import history
    from mnistexp.study import database as storage

    configs.refuse_search(request, "best")
    configs.refuse_hyperparameters(request, "best")
    config = configs.compose(request)
    with storage.reading(config.study.storage) as database:
        found, config_dir = history.best(database, run_context.study_name(config))
    config_dir = request.config_dir or config_dir  # the user's word: the folder may have moved
    user_code.require_for(found.config)
    overrides = configs.rebuild(found.config, found.overrides, config_dir)
    for line in console.best_lines(found, console.train_command(overrides, config_dir, user_code.words())):
        console.say(line)
    return 0


def rerun(request: ParsedOverrides, asked: CommandArgs) -> int:
    """Train a logged run again (a study's best, or `run=ID`), log it, and compare."""
    configs.refuse_search(request, "rerun")
    configs.refuse_hyperparameters(request, "rerun")
    config, run_id = configs.compose(request), asked.keys.get("run", "")
    name = run_context.study_name(config)
    tracker = open_tracker(config.tracking, config.tracking.experiment or name, create=False, run_id=run_id)
    before = run_context.find_logged(tracker, name, run_id)
    user_code.require_for(before.config)
    device = config.trainer.device if "trainer.device" in request.fixed else None
    recorded = run_context.here(before.config, config.data.root, device)
    prepared = run_context.prepare_recorded(config, recorded)
    console.note(f"run {before.run_id}: {before.name}")
    executor = run_context.start_workers(
        prepared.config,
        at_most=1,
        dataset=prepared.dataset,
        fingerprint=prepared.dataset.fingerprint,
        environment=run_context.recorded_environment(before),
    )
    try:
        started, last, sealed = time.time(), before.metrics["epochs"], "test_accuracy" not in before.metrics
        result = run_context.train(executor, recorded, _epoch_shower(recorded, []), stop_after=last, test=not sealed)
    finally:
        executor.close()
    record = run_context.session(prepared).record(
        "rerun",
        recorded,
        before.overrides,
        started,
        before.state,
        name=f"rerun of {before.name}",
        result=result,
        tags={"rerun_of": before.run_id},
    )
    comparison = run_context.compare(before, record)
    for line in console.comparison_lines(comparison):
        console.say(line)
    tracker.log(record, files=run_context.code_file())
    return 0 if comparison.identical else 1
