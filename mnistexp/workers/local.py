"""executor=local: worker processes on this machine, one per core, or a few per GPU."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from typing import Any, Literal

from mnistexp.config import user_code
from mnistexp.config.schema import DataConfig
from mnistexp.machine import visible_gpus
from mnistexp.workers.pool import Connection, Deliver, WorkerPool, worker_count
from mnistexp.workers.process import WorkerProcess, worker_environment


class LocalExecutor(WorkerPool):
    """Worker processes on this machine; see Executor for the contract.

    Args:
        data: what every worker loads, once. Resolved: never `auto`.
        threads: CPU threads of each worker.
        device: auto, cpu or gpu.
        workers: how many, or auto.
        at_most, fingerprint, max_memory: see Supervisor.
        environment: variables that win over the user's (a rerun's recorded flags).
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        threads: int,
        device: Literal["auto", "cpu", "gpu"],
        workers: int | Literal["auto"],
        at_most: int,
        fingerprint: str = "",
        max_memory: float = math.inf,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(at_most=at_most, fingerprint=fingerprint, max_memory=max_memory)
        self._threads, self._asked = threads, workers
        hello = {"data": data.model_dump(mode="json"), "threads": threads, "device": device, "code": user_code.plain()}
        self._hello: Mapping[str, Any] = hello
        self._gpus = visible_gpus() if device != "cpu" else []
        self._environment = environment or {}
        self._fill()

    def _count(self) -> int:
        return worker_count(self._asked, self._threads, len(self._gpus))

    def _open(self, place: int, deliver: Deliver) -> Connection:
        environment = worker_environment(self._threads, self._gpus, place, self._environment)
        process = WorkerProcess(environment, self._hello)
        threading.Thread(target=process.listen, args=(deliver,), daemon=True).start()
        return process

    def _look_at(self, facts: Mapping[str, Any]) -> None:
        super()._look_at(facts)
        if self._gpus and str(facts["device"]).startswith("CPU"):
            self._gpus = []  # there is a card, but this TensorFlow has no CUDA: a worker per core then
            self._fill()
