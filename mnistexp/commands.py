"""The commands: each puts the parts together, in the order in which things can go wrong most cheaply."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import yaml

from mnistexp import config as configs
from mnistexp import console, run
from mnistexp.config import Request
from mnistexp.databases import shown
from mnistexp.errors import INTERRUPTED, ConfigError, TrainingError, without_passwords
from mnistexp.executor import Executor
from mnistexp.records import RunRecord
from mnistexp.results import EpochScores
from mnistexp.run import Prepared
from mnistexp.schema import Config, RunConfig
from mnistexp.tracking import Tracker, open_tracker, resolved_uri

if TYPE_CHECKING:
    from mnistexp.study import Progress


def show_config(request: Request) -> int:
    """Print the composed config (`--cfg job`)."""
    text = yaml.safe_dump(configs.compose(request).model_dump(mode="json"), sort_keys=False, width=10**6)
    console.say(without_passwords(text.rstrip()))
    return 0


def train(request: Request) -> int:
    """Run one training, log it, print its scores."""
    _refuse_search(request, "train")
    prepared = run.prepare(request)
    console.warn_fallback(prepared)
    executor = run.start_workers(
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
    prepared: Prepared, executor: Executor, tracker: Tracker, weights: Path
) -> tuple[RunRecord, dict[str, str]]:
    """Train. Returns: the record and its files. Raises: TrainingError, after logging why and how far it got."""
    config, overrides = configs.run_config(prepared.config), prepared.request.run_overrides
    session, started = run.session(prepared), time.time()
    weights_path = weights if prepared.config.tracking.save_weights else None
    epochs: list[EpochScores] = []
    try:
        result = run.train(executor, config, _epoch_shower(config, epochs), weights_path)
    except TrainingError as error:
        failed = session.record("train", config, overrides, started, "FAILED", reason=str(error), epochs=tuple(epochs))
        tracker.log(failed)
        raise
    record = session.record("train", config, overrides, started, "COMPLETE", result=result, weights_path=weights_path)
    return record, session.files()


def _epoch_shower(config: RunConfig, kept: list[EpochScores]) -> Callable[[EpochScores], None]:
    """Show each epoch as it ends, and keep it: a training that fails later is logged with its curves."""

    def show(scores: EpochScores) -> None:
        kept.append(scores)
        console.note(console.epoch_line(scores, config.trainer.epochs))

    return show


def sweep(request: Request) -> int:
    """Run a study, or go on with it. Any number of these commands may do so at once."""
    from mnistexp import search_space, storage, strategy
    from mnistexp.sweep import Listener, Sweep

    request = run.with_local_data(request)
    space = search_space.build(request)
    config = space.root.template.config()
    strategy.check_study(config, space)
    storage.check_apart(config.study.storage, _uri(config))
    if warning := storage.network_warning(config.study.storage):
        console.note(f"warning: {warning}")
    prepared = run.prepare(request)
    console.warn_fallback(prepared)
    database = storage.open_for_sweep(config.study.storage)  # before any worker, or a second driver, can race for it
    executor = run.start_workers(
        prepared.config,
        at_most=config.study.trials,
        dataset=prepared.dataset,
        fingerprint=prepared.dataset.fingerprint,
    )
    try:
        if prepared.request != request:  # `auto` became a data set: trials record its name
            space = search_space.build(prepared.request)
        tracker = open_tracker(config.tracking, prepared.experiment)
        listener = Listener(_show_trial, _show_refused, console.note)
        session = Sweep(database, run.session(prepared), space, tracker, listener)
        if session.progress.done < config.study.trials:
            device = run.wait_until_ready(executor).get("device", "")
            console.note(console.start_line(session.name, session.progress, executor.size, device))
        summary = session.run(executor)
        logged = session.logged_best()
    finally:
        executor.close()
        database.close()
    stores = [shown(text) for text in request.overrides if text.startswith(("study.storage=", "tracking"))]
    for line in console.summary_lines(summary, session.name, logged, stores, _dashboard(config)):
        console.say(line)
    return INTERRUPTED if summary.interrupted else int(summary.progress.best is None)


def _show_trial(record: RunRecord, progress: Progress) -> None:
    console.say(console.trial_line(record, progress))


def _show_refused(reason: str, number: int, progress: Progress) -> None:
    console.say(f"{progress.done:>3}/{progress.total}  failed before it began: {reason}  {number:03d}")


def _uri(config: Config) -> str:
    """MLflow's address; empty where nothing is logged."""
    return "" if config.tracking.name == "none" else resolved_uri(config.tracking)


def _dashboard(config: Config) -> str:
    """What to type to see the runs; empty where none is logged."""
    uri = _uri(config)
    if not uri:
        return ""
    if uri.startswith("http"):
        return shown(uri)
    here = uri == f"sqlite:///{Path('mlflow.db').absolute()}"  # what a bare `mlflow ui` shows
    return "mlflow ui" if here else shlex.join(["mlflow", "ui", "--backend-store-uri", shown(uri)])


def best(request: Request) -> int:
    """Print a study's best config, as YAML and as one command."""
    from mnistexp import storage
    from mnistexp.study import load_best

    _refuse_search(request, "best")
    _refuse_hyperparameters(request, "best")
    config = configs.compose(request)
    with storage.reading(config.study.storage) as database:
        found, config_dir = load_best(database, run.study_name(config))
    config_dir = request.config_dir or config_dir  # the user's word: the folder may have moved
    overrides = configs.rebuild(found.config, found.overrides, config_dir)
    for line in console.best_lines(found, console.train_command(overrides, config_dir)):
        console.say(line)
    return 0


def rerun(request: Request, run_id: str) -> int:
    """Train a logged run again, log it, and compare."""
    _refuse_search(request, "rerun")
    _refuse_hyperparameters(request, "rerun")
    config = configs.compose(request)
    name = run.study_name(config)
    tracker = open_tracker(config.tracking, config.tracking.experiment or name, create=False, run_id=run_id)
    before = run.find_logged(tracker, name, run_id)
    device = config.trainer.device if "trainer.device" in request.fixed else None
    recorded = run.rerun_config(before, config.data.root, device)
    prepared = run.prepare_recorded(config, recorded)
    console.note(f"run {before.run_id}: {before.name}")
    executor = run.start_workers(
        prepared.config,
        at_most=1,
        dataset=prepared.dataset,
        fingerprint=prepared.dataset.fingerprint,
        environment=run.recorded_environment(before),
    )
    try:
        started = time.time()
        result = run.train(executor, recorded, _epoch_shower(recorded, []), stop_after=before.metrics["epochs"])
    finally:
        executor.close()
    record = run.session(prepared).record(
        "rerun",
        recorded,
        before.overrides,
        started,
        before.state,
        name=f"rerun of {before.name}",
        result=result,
        tags={"rerun_of": before.run_id},
    )
    comparison = run.compare(before, record)
    for line in console.comparison_lines(comparison):
        console.say(line)
    tracker.log(record)
    return 0 if comparison.identical else 1


def doctor(request: Request) -> int:
    """Say what is here, and whether it works."""
    from mnistexp.doctor import report

    return report(request)


def _refuse_search(request: Request, command: str) -> None:
    """One training has one value for each key."""
    swept = [*request.swept, *(f"search.{key}" for key, text in request.search if text and key not in request.swept)]
    if swept:
        raise ConfigError(
            f"{swept[0]}: {command} takes one value, not a distribution; give a value, or use the command sweep"
        )


def _refuse_hyperparameters(request: Request, command: str) -> None:
    """What is recorded is run or shown as it was; another value would be passed over in silence."""
    given = [key for key in request.fixed if key.partition(".")[0] in ("model", "optimizer", "trainer", "seed")]
    if command == "rerun":
        given = [key for key in given if key != "trainer.device"]  # the recorded one may be missing here
    if given:
        raise ConfigError(
            f"{min(given)}: {command} takes a recorded config as it is; leave it out, or use the command train"
        )
