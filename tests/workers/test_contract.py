"""The behaviour that local processes and actors of a real Ray on this machine share, with a scripted trainer."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import runs
from runs import DIGITS, SCRIPTED, gone, next_event, start_local, until_done, wait_idle, wait_until

from mnistexp.config.schema import RayExecutorConfig, RunConfig
from mnistexp.data import dataset as data
from mnistexp.training.results import RunResult
from mnistexp.workers.pool import EpochEnded, Event, Failed, Finished, Lost, WorkerPool
from mnistexp.workers.ray import Cluster, RayPool

if sys.platform != "linux":
    pytest.skip("kills processes, and reads /proc", allow_module_level=True)

FAULTS = (
    "exception@epoch2#101,segfault@epoch2#102,hang@epoch3#103,abort#104,oom@epoch2#105,kill-half-sent-result#106,"
    "garbage#107"
)
PLANTED = SCRIPTED | {"MNISTEXP_PLANT": FAULTS}

Start = Callable[..., WorkerPool]


def config(seed: int = 0, epochs: int = 3, **trainer: Any) -> RunConfig:
    """A scripted training."""
    return runs.run_config(seed=seed, data=DIGITS, **{"device": "cpu", "epochs": epochs, "timeout": 60.0} | trainer)


def start_ray(**more: Any) -> RayPool:
    """One actor on the Ray that runs in this process."""
    settings = {"workers": 1, "max_worker_memory": 1.0, "retries": 0, "cpus_per_trial": 1.0, "gpus_per_trial": 0.0}
    ours = RayExecutorConfig.model_validate({"name": "ray", "address": "local", **settings})
    return RayPool(runs.setup(), ours, data.load(runs.setup().data), at_most=1, **more)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray of our own, which all pools of this file use."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray isn't installed: pip install 'mnistexp[ray]'")
    cluster = Cluster("local")
    yield
    cluster.leave()


@pytest.fixture(scope="module", params=["local", "ray"])
def start(request: pytest.FixtureRequest) -> Start:
    """Start a pool of the kind with one worker."""
    if request.param == "ray":
        request.getfixturevalue("ray")
        return start_ray
    return lambda **more: start_local(1, **more)


@pytest.fixture(scope="module")
def pool(start: Start) -> Iterator[WorkerPool]:
    """One worker in which faults are planted for some seeds; each test leaves it idle."""
    started = start(environment=PLANTED)
    yield started
    started.close()


def one(pool: WorkerPool, config: RunConfig) -> RunResult:
    """The result of one training."""
    [*_, last] = until_done(pool, {0: config})
    assert isinstance(last, Finished), last
    return last.result


def end(pool: WorkerPool, seed: int, **trainer: Any) -> tuple[int, Event]:
    """How many epochs a training reported, and its last event; the pool must then run the next one."""
    [*epochs, last] = until_done(pool, {5: config(seed=seed, **trainer)})
    assert all(isinstance(event, EpochEnded) for event in epochs)
    one(pool, config())
    return len(epochs), last


def worker_processes() -> list[psutil.Process]:
    """The worker processes below this one, in whatever way they were started."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if runs.alive(child) and "mnistexp.training.worker" in child.cmdline()]


def test_a_training_streams_its_epochs(pool: WorkerPool) -> None:
    """Each epoch is one event; the result repeats their scores exactly."""
    [*epochs, last] = until_done(pool, {3: config()})

    assert isinstance(last, Finished)
    assert [event.scores for event in epochs if isinstance(event, EpochEnded)] == list(last.result.fit.epochs)
    assert [event.job for event in epochs] == [3, 3, 3]
    assert pool.worker_info["device"] == "CPU (trainer.device=cpu)"
    assert pool.next_event(0.01) is None


def test_stop_prunes(pool: WorkerPool) -> None:
    """After answer(go=False) no epoch follows, and the result is pruned and evaluated."""
    events = until_done(pool, {4: config(epochs=50)}, go=lambda event: event.scores.epoch < 2)

    assert len(events) == 3
    assert isinstance(events[-1], Finished)
    assert events[-1].result.fit.stopped == "pruned"
    assert events[-1].result.test_accuracy is not None


def test_weights_arrive(pool: WorkerPool, tmp_path: Path) -> None:
    """The kept weights are where they were asked for when the result is there, and only if they were asked for."""
    wait_idle(pool, 1)
    pool.submit(1, config(epochs=1), tmp_path / "model.weights.h5")
    while not isinstance(event := pool.next_event(60), Finished):
        if isinstance(event, EpochEnded):
            pool.answer(1, go=True)
    one(pool, config(epochs=1))

    assert (tmp_path / "model.weights.h5").stat().st_size == 4 * (28 * 10 + 10)
    assert [path.name for path in tmp_path.iterdir()] == ["model.weights.h5"]


@pytest.mark.parametrize(("seed", "reason"), [(101, "RuntimeError: planted"), (105, "MemoryError")])
def test_an_exception_fails_and_the_worker_lives_on(pool: WorkerPool, seed: int, reason: str) -> None:
    """Whatever Python raises is reported with its type; the same process takes the next training."""
    wait_idle(pool, 1)
    before = worker_processes()

    epochs, last = end(pool, seed)

    assert (epochs, last) == (1, Failed(5, reason))
    assert worker_processes() == before


@pytest.mark.parametrize(("seed", "signal", "reported"), [(102, "SIGSEGV", 1), (104, "SIGABRT", 0)])
def test_a_crash_fails(pool: WorkerPool, seed: int, signal: str, reported: int) -> None:
    """A signal that code causes by itself would come again; a new worker takes the next training."""
    epochs, last = end(pool, seed)

    assert epochs == reported
    assert isinstance(last, Failed)
    assert last.reason.startswith(f"its worker died (signal {signal}): ")


def test_a_hang_fails_after_the_timeout(pool: WorkerPool) -> None:
    """A training that ends no epoch is killed and failed; a new worker takes the next training."""
    wait_idle(pool, 1)
    before = worker_processes()

    epochs, last = end(pool, 103, timeout=3.0)

    assert epochs == 2
    assert isinstance(last, Failed)
    assert "no epoch ended within trainer.timeout=3 s" in last.reason
    assert wait_until(lambda: gone(before[0].pid))


def test_a_killed_worker_loses_its_training(pool: WorkerPool) -> None:
    """SIGKILL is not the training's fault: lost, and a new worker takes the next training."""
    wait_idle(pool, 1)
    pool.submit(9, config(epochs=100_000))
    first = next_event(pool)
    [victim] = worker_processes()

    victim.kill()
    event = next_event(pool)
    pool.answer(9, go=True)  # too late
    one(pool, config())

    assert isinstance(first, EpochEnded)
    assert isinstance(event, Lost)
    assert event.job == 9
    assert "its worker was lost (signal SIGKILL, which the system's out-of-memory killer sends as well)" in event.reason
    assert gone(victim.pid)


@pytest.mark.parametrize(("seed", "reported", "reason"), [(106, 3, "signal SIGKILL"), (107, 0, "ValidationError")])
def test_a_message_that_cannot_be_read_is_a_lost_worker(
    pool: WorkerPool, seed: int, reported: int, reason: str
) -> None:
    """Half a result of a worker that is killed while it sends it, and a line that is no message."""
    epochs, last = end(pool, seed)

    assert epochs == reported
    assert isinstance(last, Lost)
    assert reason in last.reason


def test_what_modules_print_is_no_message() -> None:
    """A sitecustomize prints before the worker's first line runs, a module when it is imported, another at exit."""
    started = start_local(1, environment=SCRIPTED | {"MNISTEXP_NOISE": "1"})
    try:
        one(started, config())
    finally:
        started.close()


def test_close_leaves_no_process(pool: WorkerPool) -> None:
    """A busy worker ends with its pool, which may be closed twice."""
    wait_idle(pool, 1)
    pool.submit(1, config(epochs=100_000))
    busy = worker_processes()

    pool.close()
    pool.close()

    assert len(busy) == 1
    assert wait_until(lambda: not worker_processes())
