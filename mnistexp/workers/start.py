"""Start the workers that a config asks for, wait for the first one, and run one training on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mnistexp.config import user_code
from mnistexp.config.schema import Config, RayExecutorConfig, RunConfig
from mnistexp.data import dataset as data
from mnistexp.data.dataset import Dataset
from mnistexp.errors import TrainingError
from mnistexp.training.messages import Setup
from mnistexp.training.results import EpochScores, RunResult
from mnistexp.workers.pool import POLL_SECONDS, EpochEnded, Failed, Finished, Lost, WorkerPool
from mnistexp.workers.process import LocalPool
from mnistexp.workers.ray import RayPool


def start_workers(
    config: Config,
    *,
    at_most: int,
    dataset: Dataset | None = None,
    fingerprint: str = "",
    environment: Mapping[str, str] | None = None,
) -> WorkerPool:
    """Start the workers that a config asks for. They get ready while the caller goes on.

    Args:
        at_most: the number of trainings that are left. With 0 no worker and no Ray is started.
        dataset: what `config.data` loads, if the caller has it: Ray sends it to its nodes.
        fingerprint: of the data set; every worker must load the same.
        environment: variables for the workers (recorded flags of a rerun).

    Raises: WorkerError if there is no Ray where the config asks for it.
    """
    trainer = config.trainer
    setup = Setup(data=config.data, threads=trainer.threads, device=trainer.device, code=user_code.code())
    options: dict[str, Any] = {
        "at_most": at_most,
        "fingerprint": fingerprint,
        "max_memory": config.executor.max_worker_memory * 1e9,
        "environment": environment,
    }
    if isinstance(config.executor, RayExecutorConfig) and at_most:
        return RayPool(setup, config.executor, dataset or data.load(config.data), **options)
    return LocalPool(setup, config.executor.workers, **options)


def wait_until_ready(pool: WorkerPool) -> Mapping[str, Any]:
    """Wait for the first worker. Returns: its device, flags and versions. Raises: WorkerError if none starts."""
    while not pool.idle():
        pool.next_event(POLL_SECONDS)
    return pool.worker_info


def run_training(
    pool: WorkerPool,
    config: RunConfig,
    on_epoch: Callable[[EpochScores], None],
    weights_path: Path | None = None,
    stop_after: float = math.inf,
    *,
    test: bool = True,
) -> RunResult:
    """Run one training to its end, or to the end of epoch `stop_after` (the rerun of a pruned run).

    Raises: TrainingError with the reason if it fails.
    """
    wait_until_ready(pool)
    pool.submit(0, config, weights_path, test=test)
    while True:
        match pool.next_event(POLL_SECONDS):
            case EpochEnded(job, scores):
                on_epoch(scores)
                pool.answer(job, go=scores.epoch < stop_after)
            case Finished(_, result):
                return result
            case Failed(_, reason) | Lost(_, reason):
                raise TrainingError(f"the training failed: {reason}")
