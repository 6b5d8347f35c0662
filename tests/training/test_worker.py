"""The worker process with TensorFlow, spoken to as its parent does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import runs

from mnistexp.config.schema import RunConfig
from mnistexp.data.dataset import load, write
from mnistexp.training.messages import (
    Answer,
    Broken,
    EpochEnd,
    Job,
    JobFailed,
    JobResult,
    Message,
    Ready,
    Setup,
    parse_worker_message,
)
from mnistexp.training.results import RunResult

SMALL = {"epochs": 2, "max_steps": 30, "batch_size": 1000}  # an MNIST epoch has 55 of these steps


class Worker:
    """A worker process."""

    def __init__(
        self, data: dict[str, Any], device: str = "auto", dataset: IO[bytes] | None = None, **environment: str
    ) -> None:
        ours, theirs = socket.socketpair()
        files = [theirs.fileno(), *([dataset.fileno()] if dataset else [])]
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mnistexp.training.worker", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | environment,
                pass_fds=files,
            )
        self._stream = ours.makefile("rw")
        self._socket = ours
        setup = {"data": data, "threads": 1, "device": device, "dataset": dataset.fileno() if dataset else None}
        self.send(Setup.model_validate(setup))
        self.first = self.receive()

    def send(self, message: Message) -> None:
        self._stream.write(message.model_dump_json() + "\n")
        self._stream.flush()

    def receive(self) -> Any:
        return parse_worker_message(self._stream.readline())

    def run(self, config: RunConfig, stop_after: int = 1000, weights: Path | None = None) -> list[Any]:
        """All messages of one job; the answer after epoch `stop_after` is stop."""
        self.send(Job(config=config, weights_path=str(weights) if weights else None))
        messages = [self.receive()]
        while isinstance(messages[-1], EpochEnd):
            self.send(Answer(go=len(messages) < stop_after))
            messages.append(self.receive())
        return messages

    def result(self, config: RunConfig) -> RunResult:
        """The result of one job."""
        *_, last = self.run(config)
        assert isinstance(last, JobResult), last
        return last.result

    def end(self) -> int:
        """Close its input. Returns: its exit status."""
        self._stream.close()
        self._socket.close()
        return self.process.wait(120)


@pytest.fixture(scope="module")
def data(mnist_folder: Path) -> dict[str, Any]:
    """The data config of the real MNIST files."""
    return runs.mnist_data(mnist_folder)


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where XLA writes each program that the worker compiles."""
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module")
def worker(data: dict[str, Any], dumps: Path) -> Iterator[Worker]:
    """One worker for the whole file; each test leaves it waiting for the next job."""
    started = Worker(data, XLA_FLAGS=f"--xla_dump_to={dumps} --xla_dump_hlo_as_text")
    yield started
    started.process.kill()
    started.end()


def test_ready_describes_what_decides_the_bits(worker: Worker) -> None:
    """The device with its reason, the data, the versions and each flag as text."""
    ready = worker.first

    assert isinstance(ready, Ready)
    assert ready.device.startswith(("CPU (no GPU visible", "GPU:0 ("))
    assert len(ready.fingerprint) == 32
    assert set(ready.versions) == {"python", "numpy", "tensorflow", "keras", "mnistexp"}
    assert ready.flags["threads"] == "1"
    assert "--xla_dump_to" in ready.flags["XLA_FLAGS"]


def test_a_job_gives_epochs_and_a_result(worker: Worker, data: dict[str, Any], tmp_path: Path) -> None:
    """The result repeats the epochs' scores and adds the test scores; a stop after the last epoch prunes nothing."""
    config = runs.run_config(data=data, epochs=3, batch_size=1000)

    *epochs, last = worker.run(config, stop_after=3, weights=tmp_path / "model.weights.h5")

    assert tuple(message.scores for message in epochs) == last.result.fit.epochs
    assert [scores.epoch for scores in last.result.fit.epochs] == [1, 2, 3]
    assert last.result.fit.stopped == "completed"
    assert 0.8 < last.result.test_accuracy < 1
    assert last.result.data_fingerprint == worker.first.fingerprint
    assert (tmp_path / "model.weights.h5").stat().st_size > 4 * last.result.fit.parameters


def test_a_failed_job_leaves_the_worker_alive(worker: Worker, data: dict[str, Any]) -> None:
    """NaN, another worker's threads, a line that is no job: each has its reason."""
    linear = {"hidden_units": [32, 32, 32], "activation": "linear"}
    wild = runs.run_config(runs.SGD | {"learning_rate": 1000.0}, linear, data=data, **SMALL)

    [nan] = worker.run(wild)
    [threads] = worker.run(runs.run_config(data=data, threads=2))
    worker.send(Answer(go=True))
    nonsense = worker.receive()
    worker.process.send_signal(signal.SIGINT)  # Ctrl-C is the parent's to handle
    sound = worker.result(runs.run_config(data=data, **SMALL))

    assert all(isinstance(each, JobFailed) and "\n" not in each.reason for each in (nan, threads, nonsense))
    assert "in epoch 1: lower optimizer.learning_rate" in nan.reason
    assert "trainer.threads" in threads.reason
    assert nonsense.reason.startswith("ValidationError")
    assert sound.fit.stopped == "max_steps"


def test_one_shape_is_one_compilation(worker: Worker, data: dict[str, Any], dumps: Path) -> None:
    """XLA itself compiles one epoch program for runs that differ in numbers only, max_steps among them."""

    def programs() -> int:
        return len(list(dumps.glob("*trace_epoch*before_optimizations.txt")))

    model = {"hidden_units": [5], "dropout": 0.5}
    worker.run(runs.run_config(runs.ADAM, model, data=data, **SMALL))
    before = programs()

    other = runs.ADAM | {"beta_1": 0.5, "learning_rate": 0.1, "schedule": "cosine", "warmup_epochs": 1.0}
    worker.run(runs.run_config(other, model | {"dropout": 0.2}, 9, data, **SMALL | {"max_steps": 7}))

    assert before > 0
    assert programs() == before


def test_one_thread_is_one_core(worker: Worker, data: dict[str, Any]) -> None:
    """With threads=1 the worker's processor time does not exceed the time that its epochs took."""
    config = runs.run_config(data=data, model={"hidden_units": [300]}, epochs=3, batch_size=1000)
    worker.run(config)  # compiles

    before = sum(psutil.Process(worker.process.pid).cpu_times()[:2])
    *epochs, _ = worker.run(config)
    used = sum(psutil.Process(worker.process.pid).cpu_times()[:2]) - before

    assert used < 1.3 * sum(message.scores.seconds for message in epochs) + 0.3


def test_two_processes_give_the_same_bits(worker: Worker, data: dict[str, Any]) -> None:
    """A new worker repeats to the bit what a used one did, and ends with its input."""
    config = runs.run_config(runs.NADAM, {"dropout": 0.3}, seed=11, data=data, **SMALL)
    other = Worker(data)

    results = [runs.bits(each.result(config)) for each in (worker, other)]

    assert results[0].model_copy(update={"flags": {}}) == results[1].model_copy(update={"flags": {}})
    assert other.end() == 0


def test_a_data_set_can_come_through_an_open_file() -> None:
    """A node without the data's files trains on those that its parent opened for it, to the same fingerprint."""
    config = runs.run_config(data=runs.DIGITS, epochs=1)
    loaded = load(config.data)
    with tempfile.TemporaryFile() as file:
        write(loaded, file)
        file.seek(0)
        worker = Worker(runs.DIGITS, dataset=file, **runs.SCRIPTED)

    assert worker.result(config).data_fingerprint == worker.first.fingerprint == loaded.fingerprint
    assert worker.end() == 0


def test_a_missing_gpu_is_refused(data: dict[str, Any]) -> None:
    """device=gpu does not fall back to the CPU."""
    worker = Worker(data, device="gpu", CUDA_VISIBLE_DEVICES="", **runs.SCRIPTED)

    assert isinstance(worker.first, Broken)
    assert worker.first.error == "WorkerError"
    assert "trainer.device=gpu, but no GPU is visible to TensorFlow" in worker.first.message
    assert worker.end() == 0
