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
from mnistexp.workers.pool import EpochEnded, Failed, Finished, Lost, WorkerPool
from mnistexp.workers.ray import Cluster, RayPool

if sys.platform != "linux":
    pytest.skip("kills processes, and reads /proc", allow_module_level=True)

FAULTS = "exception@epoch2#101,segfault@epoch2#102,hang@epoch3#103,oom@epoch2#105,kill-half-sent-result#106,garbage#107"
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


@pytest.mark.parametrize(
    ("seed", "reported", "kind", "reason", "survives"),
    [
        pytest.param(101, 1, Failed, "RuntimeError: planted", True, id="exception"),
        pytest.param(105, 1, Failed, "MemoryError", True, id="out-of-memory"),
        pytest.param(102, 1, Failed, "its worker died (signal SIGSEGV): ", False, id="crash"),
        pytest.param(103, 2, Failed, "no epoch ended within trainer.timeout=3 s", False, id="hang"),
        pytest.param(106, 3, Lost, "its worker was lost (signal SIGKILL", False, id="half-a-result"),
        pytest.param(107, 0, Lost, "its worker was lost (its messages cannot be read: V", False, id="no-message"),
    ],
)
def test_a_fault_ends_its_training_alone(
    pool: WorkerPool, seed: int, reported: int, kind: type[Failed | Lost], reason: str, survives: bool
) -> None:
    """What a training does to itself fails it, what happens to its worker loses it; then the next one is run.

    After an exception in Python by the same process, after anything else by a new one.
    """
    wait_idle(pool, 1)
    before = worker_processes()

    [*epochs, last] = until_done(pool, {5: config(seed, timeout=3.0 if seed == 103 else 60.0)})
    one(pool, config())

    assert len(epochs) == reported
    assert type(last) is kind
    assert last.job == 5
    assert last.reason.startswith(reason)
    assert (worker_processes() == before) is survives
    assert survives or wait_until(lambda: gone(before[0].pid))


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
