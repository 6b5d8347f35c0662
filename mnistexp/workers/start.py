"""Start the workers that a config asks for, wait for the first one, and run one training on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mnistexp.config.schema import Config, RayExecutorConfig, RunConfig
from mnistexp.data import dataset as data
from mnistexp.data.dataset import Dataset
from mnistexp.errors import TrainingError
from mnistexp.training.results import EpochScores, RunResult
from mnistexp.workers.local import LocalExecutor
from mnistexp.workers.pool import EpochEnded, Executor, Failed, Finished, Lost
from mnistexp.workers.ray import RayExecutor

POLL_SECONDS = 1.0
"""How long one wait for workers lasts, because on some platforms a wait blocks the handler of Ctrl-C."""


def start_workers(
    config: Config,
    *,
    at_most: int,
    dataset: Dataset | None = None,
    fingerprint: str = "",
    environment: Mapping[str, str] | None = None,
) -> Executor:
    """Start the executor that a config asks for; its workers get ready while the caller goes on.

    Args:
        dataset: what `config.data` loads, where the caller has it: Ray sends it to its nodes.
        fingerprint: the data set's, which every worker must find as well.

    Raises: WorkerError if there is no Ray that the config asks for.
    """
    common: dict[str, Any] = {
        "fingerprint": fingerprint,
        "threads": config.trainer.threads,
        "device": config.trainer.device,
        "at_most": at_most,
        "max_memory": config.executor.max_worker_memory * 1e9,
        "environment": environment,
    }
    if isinstance(config.executor, RayExecutorConfig):
        return RayExecutor(config.executor, config.data, dataset or data.load(config.data), **common)
    return LocalExecutor(config.data, workers=config.executor.workers, **common)


def wait_until_ready(executor: Executor) -> Mapping[str, Any]:
    """Wait for a first worker. Returns: what it says of itself. Raises: WorkerError if none ever starts."""
    while not executor.idle():
        executor.next_event(POLL_SECONDS)
    return executor.facts


def run_training(
    executor: Executor,
    config: RunConfig,
    on_epoch: Callable[[EpochScores], None],
    weights_path: Path | None = None,
    stop_after: float = math.inf,
    *,
    test: bool = True,
) -> RunResult:
    """Run one training to its end, or (as a pruned one that is run again) to the end of epoch `stop_after`.

    Raises: TrainingError with the reason if it fails.
    """
    wait_until_ready(executor)
    executor.submit(0, config, weights_path, test=test)
    while True:
        match executor.next_event(POLL_SECONDS):
            case EpochEnded(job, scores):
                on_epoch(scores)
                executor.answer(job, go=scores.epoch < stop_after)
            case Finished(_, result):
                return result
            case Failed(_, reason) | Lost(_, reason):
                raise TrainingError(f"the training failed: {reason}")
