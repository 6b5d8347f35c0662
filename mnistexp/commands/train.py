"""The command `train`: one training, logged."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config.overrides import ParsedOverrides, refuse_search
from mnistexp.config.schema import RunConfig
from mnistexp.errors import StoreError, TrainingError
from mnistexp.terminal import console
from mnistexp.tracking import run_context
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
    dataset, tracking = prepared.dataset, prepared.config.tracking
    executor = start_workers(prepared.config, at_most=1, dataset=dataset, fingerprint=dataset.fingerprint)
    try:
        tracker = open_tracker(tracking, prepared.experiment)  # while TensorFlow starts over there
        with TemporaryDirectory(prefix="mnistexp-") as folder:
            weights = Path(folder) / "model.weights.h5" if tracking.save_weights else None
            result, run_id = _train(prepared, executor, tracker, weights)
    finally:
        executor.close()
    console.note(f"on {result.device}; {f'logged as run {run_id}' if run_id else 'not logged'}")
    return 0


def _train(
    prepared: PreparedRun, executor: WorkerPool, tracker: Tracker, weights: Path | None
) -> tuple[RunResult, str]:
    """Train, print and log. Returns: the result, the run's id. Raises: TrainingError, after that run is logged."""
    config, overrides = configs.run_config(prepared.config), prepared.request.run_overrides
    context, started = run_context.create_context(prepared), time.time()
    epochs: list[EpochScores] = []
    try:
        result = run_training(executor, config, epoch_callback(config, epochs), weights)
    except TrainingError as error:
        failed = context.record("train", config, overrides, started, "FAILED", reason=str(error), epochs=tuple(epochs))
        try:
            tracker.log(failed)
        except StoreError as unlogged:  # the reason of the failed training matters more
            console.note(f"not logged: {unlogged}")
        raise
    record = context.record("train", config, overrides, started, "COMPLETE", result=result, weights_path=weights)
    fit = result.fit  # printed first, since logging may fail
    kept = f"epoch {fit.best_epoch} of {len(fit.epochs)}, {fit.stopped}"
    console.say(f"validation accuracy  {fit.best.val_accuracy:.4f}  ({kept})")
    if result.test_accuracy is not None:
        console.say(f"test accuracy        {result.test_accuracy:.4f}")
    return result, tracker.log(record, files=context.files())


def epoch_callback(config: RunConfig, kept: list[EpochScores]) -> Callable[[EpochScores], None]:
    """Print each epoch and append it to `kept`, so that a training that fails later is logged with its curves."""

    def show(scores: EpochScores) -> None:
        kept.append(scores)
        console.note(console.epoch_line(scores, config.trainer.epochs))

    return show
