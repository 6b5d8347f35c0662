"""The messages between a worker and its parent process: one JSON object per line, on a socket of their own.

    parent   Setup
    worker   Ready, or Broken and the end
    parent   Job
    worker   EpochEnd       after each epoch, also the last
    parent   Answer         the worker waits for it
    worker   JobResult or JobFailed

End of input ends the worker.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from mnistexp.config.schema import DataConfig, RunConfig, UserCode
from mnistexp.training.results import EpochScores, Record, RunResult


class Message(Record):
    """The base class."""


class Setup(Message):
    """The first message: what the worker loads and how it starts TensorFlow."""

    data: DataConfig
    threads: int
    device: Literal["auto", "cpu", "gpu"]
    dataset: int | None = None  # number of an inherited open file (see data/dataset.py); null: load `data`
    code: UserCode | None = None  # the user's Python file (--code)


class Job(Message):
    """The request for one run."""

    config: RunConfig
    weights_path: str | None = None  # where to save the kept weights
    test: bool = True  # evaluate the test split after training


class Answer(Message):
    """The answer to an EpochEnd: train another epoch, or stop."""

    go: bool


class Ready(Message):
    """The worker can train. These fields become part of each run's provenance."""

    event: Literal["ready"] = "ready"
    device: str  # with the reason, e.g. "CPU (trainer.device=cpu)"
    devices: tuple[str, ...]
    flags: dict[str, str]  # other settings that can change the bits of a run
    fingerprint: str  # of the data set
    versions: dict[str, str]


class Broken(Message):
    """The worker cannot start, and no other worker could: its data or its device are missing."""

    event: Literal["broken"] = "broken"
    error: str  # the name of a class in errors.py
    message: str


class EpochEnd(Message):
    """An epoch ended."""

    event: Literal["epoch"] = "epoch"
    scores: EpochScores


class JobResult(Message):
    """A run ended by itself or by an Answer."""

    event: Literal["result"] = "result"
    result: RunResult
    memory: int  # bytes in use: XLA keeps about 8 MB of each compiled shape for the life of the process


class JobFailed(Message):
    """A run raised an error; the worker can take the next job."""

    event: Literal["failed"] = "failed"
    reason: str  # one line
    memory: int


WorkerMessage = Annotated[Ready | Broken | EpochEnd | JobResult | JobFailed, Field(discriminator="event")]
"""What a worker sends."""

parse_worker_message = TypeAdapter[WorkerMessage](WorkerMessage).validate_json
