"""The command `train`: one training, logged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config.overrides import ParsedOverrides, refuse_search
from mnistexp.config.schema import RunConfig
from mnistexp.errors import StoreError, TrainingError
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.run_context import PreparedRun
from mnistexp.tracking.runs import Tracker, open_tracker
from mnistexp.training.results import EpochScores, RunResult
from mnistexp.workers.pool import WorkerPool
from mnistexp.workers.start import run_training, start_workers


def train(request: ParsedOverrides, _: CommandArgs) -> int:
    """Run one training, log it, print its scores."""
    refuse_search(request, "train")
    prepared = run_context.prepare(request)
    console.warn_not_mnist(prepared.fallback)
    executor = start_workers(
        prepared.config, at_most=1, dataset=prepared.dataset, fingerprint=prepared.dataset.fingerprint
    )
    try:
        tracker = open_tracker(prepared.config.tracking, prepared.experiment)  # while TensorFlow starts over there
        with TemporaryDirectory(prefix="mnistexp-") as scratch:
            record, files = _trained(prepared, executor, tracker, Path(scratch) / "model.weights.h5")
            assert record.result is not None
            console.say_lines(_result_lines(record.result))  # first, since logging may fail
            run_id = tracker.log(record, files=files)
    finally:
        executor.close()
    console.note(f"on {record.result.device}; {f'logged as run {run_id}' if run_id else 'not logged'}")
    return 0


def _trained(
    prepared: PreparedRun, executor: WorkerPool, tracker: Tracker, weights: Path
) -> tuple[RunRecord, dict[str, str]]:
    """Train. Returns: the record and its files. Raises: TrainingError, after the failed run is logged."""
    config, overrides = configs.run_config(prepared.config), prepared.request.run_overrides
    session, started = run_context.create_context(prepared), time.time()
    weights_path = weights if prepared.config.tracking.save_weights else None
    epochs: list[EpochScores] = []
    try:
        result = run_training(executor, config, epoch_callback(config, epochs), weights_path)
    except TrainingError as error:
        failed = session.record("train", config, overrides, started, "FAILED", reason=str(error), epochs=tuple(epochs))
        try:
            tracker.log(failed)
        except StoreError as unlogged:  # the reason of the failed training matters more
            console.note(f"not logged: {unlogged}")
        raise
    record = session.record("train", config, overrides, started, "COMPLETE", result=result, weights_path=weights_path)
    return record, session.files()


def epoch_callback(config: RunConfig, kept: list[EpochScores]) -> Callable[[EpochScores], None]:
    """Print each epoch and append it to `kept`, so that a training that fails later is logged with its curves."""

    def show(scores: EpochScores) -> None:
        kept.append(scores)
        console.note(console.epoch_line(scores, config.trainer.epochs))

    return show


def _result_lines(result: RunResult) -> Iterator[str]:
    fit = result.fit
    kept = f"epoch {fit.best_epoch} of {len(fit.epochs)}, {fit.stopped}"
    yield f"validation accuracy  {fit.best.val_accuracy:.4f}  ({kept})"
    if result.test_accuracy is not None:
        yield f"test accuracy        {result.test_accuracy:.4f}"
