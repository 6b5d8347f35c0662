"""The command `train`: one training, logged."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config.compose import ParsedOverrides
from mnistexp.config.schema import RunConfig
from mnistexp.errors import StoreError, TrainingError
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.run_context import PreparedRun
from mnistexp.tracking.runs import Tracker, open_tracker
from mnistexp.training.results import EpochScores
from mnistexp.workers.pool import Executor
from mnistexp.workers.start import run_training, start_workers

if TYPE_CHECKING:
    pass


def train(request: ParsedOverrides, _: CommandArgs) -> int:
    """Run one training, log it, print its scores."""
    configs.refuse_search(request, "train")
    prepared = run_context.prepare(request)
    console.warn_fallback(prepared)
    executor = start_workers(
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
        result = run_training(executor, config, epoch_callback(config, epochs), weights_path)
    except TrainingError as error:
        failed = session.record("train", config, overrides, started, "FAILED", reason=str(error), epochs=tuple(epochs))
        try:
            tracker.log(failed)
        except StoreError as away:  # why the training failed is what the user needs
            console.note(f"not logged: {away}")
        raise
    record = session.record("train", config, overrides, started, "COMPLETE", result=result, weights_path=weights_path)
    return record, session.files()


def epoch_callback(config: RunConfig, kept: list[EpochScores]) -> Callable[[EpochScores], None]:
    """Show each epoch as it ends, and keep it: a training that fails later is logged with its curves."""

    def show(scores: EpochScores) -> None:
        kept.append(scores)
        console.note(console.epoch_line(scores, config.trainer.epochs))

    return show
