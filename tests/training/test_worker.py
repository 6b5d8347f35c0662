"""The worker process with TensorFlow; tests/workers has what needs no TensorFlow."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import runs
from runs import DIGITS, SCRIPTED, start_local, until_done, wait_idle

from mnistexp.config.schema import RunConfig
from mnistexp.data.dataset import load, write
from mnistexp.errors import WorkerError
from mnistexp.training.messages import Ready
from mnistexp.training.results import RunResult
from mnistexp.workers.pool import EpochEnded, Event, Failed, Finished
from mnistexp.workers.process import LocalPool, WorkerProcess


def config(optimizer: dict[str, object] = runs.SGD, seed: int = 0, threads: int = 1, **more: object) -> RunConfig:
    """A training of 20 steps."""
    trainer = {"max_steps": 20, "threads": threads, "device": "cpu", **more.pop("trainer", {})}  # type: ignore[dict-item]
    return runs.run_config(optimizer, seed=seed, data=DIGITS, **more, **trainer)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where XLA writes each program that the worker compiles."""
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module")
def pool(dumps: Path) -> Iterator[LocalPool]:
    """One worker for the whole file; each test leaves it waiting for the next job."""
    started = start_local(1, environment={"XLA_FLAGS": f"--xla_dump_to={dumps} --xla_dump_hlo_as_text"})
    wait_idle(started, 1)
    yield started
    started.close()


def last(pool: LocalPool, config: RunConfig) -> Event:
    """The last event of a training."""
    return until_done(pool, {1: config})[-1]


def result(pool: LocalPool, config: RunConfig) -> RunResult:
    """The result of a training."""
    finished = last(pool, config)
    assert isinstance(finished, Finished), finished
    return finished.result


def process(pool: LocalPool) -> psutil.Process:
    """The worker."""
    return psutil.Process(pool._workers[0].connection._process.pid)  # type: ignore[attr-defined]


def test_a_job_gives_epochs_and_a_result(pool: LocalPool, tmp_path: Path) -> None:
    """The result has what decides the bits, and the kept weights are where they were asked for."""
    info = pool.worker_info

    pool.submit(1, config(runs.ADAM, trainer={"epochs": 10, "max_steps": None}), tmp_path / "model.weights.h5")
    while not isinstance(event := pool.next_event(60), Finished):
        if isinstance(event, EpochEnded):
            pool.answer(1, go=True)
    got = event.result

    assert set(info["versions"]) == {"python", "numpy", "tensorflow", "keras", "mnistexp"}
    assert info["flags"]["threads"] == "1"
    assert "--xla_dump_to" in info["flags"]["XLA_FLAGS"]
    assert (got.flags, got.device, got.data_fingerprint) == (info["flags"], info["device"], info["fingerprint"])
    assert len(got.fit.epochs) == 10
    assert 0.8 < (got.test_accuracy or 0) < 1
    assert (tmp_path / "model.weights.h5").stat().st_size > 4 * got.fit.parameters


def test_a_failed_job_leaves_the_worker_alive(pool: LocalPool) -> None:
    """NaN and another worker's threads: each has its reason in one line. Ctrl-C is the parent's to handle."""
    linear = {"hidden_units": [32, 32, 32], "activation": "linear"}
    worker = process(pool)

    nan = last(pool, config(runs.SGD | {"learning_rate": 1000.0}, model=linear))
    threads = last(pool, config(threads=2))
    worker.send_signal(signal.SIGINT)
    sound = result(pool, config())

    assert isinstance(nan, Failed)
    assert isinstance(threads, Failed)
    assert "in epoch 1: lower optimizer.learning_rate" in nan.reason
    assert "trainer.threads" in threads.reason
    assert sound.fit.stopped == "max_steps"
    assert process(pool) == worker


def test_one_shape_is_one_compilation(pool: LocalPool, dumps: Path) -> None:
    """XLA itself compiles one epoch program for runs that differ in numbers only, max_steps among them."""

    def programs() -> int:
        return len(list(dumps.glob("*trace_epoch*before_optimizations.txt")))

    model = {"hidden_units": [5], "dropout": 0.5}
    result(pool, config(runs.ADAM, model=model))
    before = programs()

    other = runs.ADAM | {"beta_1": 0.5, "learning_rate": 0.1, "schedule": "cosine", "warmup_epochs": 1.0}
    result(pool, config(other, seed=9, model=model | {"dropout": 0.2}, trainer={"max_steps": 7}))

    assert before > 0
    assert programs() == before


def test_one_thread_is_one_core(pool: LocalPool) -> None:
    """With threads=1 the worker's processor time does not exceed the time that its epochs took."""
    large = config(model={"hidden_units": [1000, 1000]}, trainer={"max_steps": None, "batch_size": 500})
    result(pool, large)  # compiles

    before = sum(process(pool).cpu_times()[:2])
    epochs = result(pool, large).fit.epochs
    used = sum(process(pool).cpu_times()[:2]) - before

    assert used < 1.3 * sum(scores.seconds for scores in epochs) + 0.3


def test_two_processes_give_the_same_bits(pool: LocalPool) -> None:
    """A new worker repeats to the bit what a used one did."""
    nadam = config(runs.NADAM, seed=11, model={"dropout": 0.3})
    other = start_local(1)

    results = [runs.bits(result(each, nadam)).model_copy(update={"flags": {}}) for each in (pool, other)]
    other.close()

    assert results[0] == results[1]


def test_a_data_set_can_come_through_an_open_file() -> None:
    """A node without the data's files loads those that its parent opened for it, to the same fingerprint."""
    loaded = load(config().data)
    with tempfile.TemporaryFile() as file:
        write(loaded, file)
        file.seek(0)
        setup = runs.setup().model_copy(update={"dataset": file.fileno()})
        worker = WorkerProcess(os.environ | SCRIPTED, setup, [file.fileno()])

    fingerprints = []
    for message in worker.messages():
        if isinstance(message, Ready):
            fingerprints.append(message.fingerprint)
            worker.kill()

    assert fingerprints == [loaded.fingerprint]


def test_a_missing_gpu_is_refused() -> None:
    """device=gpu does not fall back to the CPU."""
    setup = runs.setup().model_copy(update={"device": "gpu"})
    pool = LocalPool(setup, 1, at_most=1, environment=SCRIPTED)

    with pytest.raises(WorkerError, match=r"trainer\.device=gpu, but no GPU is visible to TensorFlow"):
        wait_idle(pool, 1)
    pool.close()
