"""What every executor does alike, on real workers: local processes, and actors of a real Ray on this machine."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import runs
from runs import DIGITS, bits, gone, start_local, until_done, wait_idle, wait_until

from mnistexp.config.schema import RayExecutorConfig, RunConfig
from mnistexp.data import dataset as data
from mnistexp.errors import DataError
from mnistexp.training.results import RunResult
from mnistexp.workers.pool import EpochEnded, Event, Executor, Failed, Finished, Lost
from mnistexp.workers.ray import Cluster, RayExecutor

if sys.platform != "linux":
    pytest.skip("kills processes, and reads /proc", allow_module_level=True)

PLANT = Path(__file__).parents[1] / "faults" / "plant"
FAULTS = "exception@epoch2#101,segfault@epoch2#102,hang@epoch3#103,abort#104,oom@epoch2#105,kill-half-sent-result#106"
PLANTED = {"MNISTEXP_PLANT": FAULTS, "PYTHONPATH": os.pathsep.join([str(PLANT), str(PLANT.parents[2])])}

Start = Callable[..., Executor]


def config(seed: int = 0, epochs: int = 3, **more: Any) -> RunConfig:
    """A training of about a tenth of a second; dropout, so that every source of randomness is in it."""
    trainer = {"batch_size": 64, "device": "cpu", "epochs": epochs, "timeout": 60.0}
    return runs.run_config(model={"dropout": 0.3}, seed=seed, data=DIGITS, **trainer | more)


def start_ray(**more: Any) -> RayExecutor:
    """One actor on the Ray that runs in this process."""
    settings = {"workers": 1, "max_worker_memory": 1.0, "retries": 0, "cpus_per_trial": 1.0, "gpus_per_trial": 0.0}
    ours = RayExecutorConfig.model_validate({"name": "ray", "address": "local", **settings})
    dataset = data.load(config().data)
    return RayExecutor(ours, config().data, dataset, threads=1, device="cpu", at_most=1, **more)


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """A Ray of our own, which all executors of this file use."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("Ray isn't installed: pip install 'mnistexp[ray]'")
    cluster = Cluster("local", 1_000_000)
    yield
    cluster.leave()


@pytest.fixture(scope="module", params=["local", "ray"])
def start(request: pytest.FixtureRequest) -> Start:
    """Start an executor of the kind with one worker."""
    if request.param == "ray":
        request.getfixturevalue("ray")
        return start_ray
    return lambda **more: start_local(1, **more)


@pytest.fixture(scope="module")
def executor(start: Start) -> Iterator[Executor]:
    """One worker in which faults are planted for some seeds; each test leaves it idle."""
    started = start(environment=PLANTED)
    yield started
    started.close()


@pytest.fixture(scope="module")
def reference() -> RunResult:
    """What a local worker makes of the config, with nothing planted."""
    started = start_local(1)
    try:
        return one(started, config(seed=7))
    finally:
        started.close()


def one(executor: Executor, config: RunConfig) -> RunResult:
    """The result of one training."""
    [*_, last] = until_done(executor, {0: config})
    assert isinstance(last, Finished), last
    return last.result


def end(executor: Executor, seed: int, **trainer: Any) -> tuple[int, Event]:
    """How many epochs a training reported, and its last event; the executor must then do the next one."""
    [*epochs, last] = until_done(executor, {5: config(seed=seed, **trainer)})
    assert all(isinstance(event, EpochEnded) for event in epochs)
    one(executor, config())
    return len(epochs), last


def worker_processes() -> list[psutil.Process]:
    """The worker processes below this one, in whatever way they were started."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if runs.alive(child) and "mnistexp.training.worker" in child.cmdline()]


# ------------------------------------------------------------------------------------------ what goes well


def test_a_training_streams_its_epochs(executor: Executor) -> None:
    """Each epoch is one event; the result repeats their scores exactly."""
    [*epochs, last] = until_done(executor, {3: config()})

    assert isinstance(last, Finished)
    assert [event.scores for event in epochs if isinstance(event, EpochEnded)] == list(last.result.fit.epochs)
    assert [event.job for event in epochs] == [3, 3, 3]
    assert executor.facts["device"] == "CPU (trainer.device=cpu)"


def test_stop_prunes(executor: Executor) -> None:
    """After answer(go=False) no epoch follows, and the result is pruned and scored."""
    events = until_done(executor, {4: config(epochs=50)}, go=lambda event: event.scores.epoch < 2)

    last = events[-1]
    assert len(events) == 3
    assert isinstance(last, Finished)
    assert last.result.fit.stopped == "pruned"
    assert last.result.test_accuracy > 0.1


def test_results_are_equal_bit_for_bit(executor: Executor, reference: RunResult) -> None:
    """Wherever a training runs, its weights, scores and predictions are the same."""
    assert bits(one(executor, config(seed=7))) == bits(reference)


def test_weights_arrive(executor: Executor, tmp_path: Path) -> None:
    """The kept weights lie where they were asked for when the result is there, and only then are they asked for."""
    wait_idle(executor, 1)
    executor.submit(1, config(epochs=1), tmp_path / "model.weights.h5")
    while not isinstance(event := executor.next_event(60), Finished):
        if isinstance(event, EpochEnded):
            executor.answer(1, go=True)
    one(executor, config(epochs=1))

    assert (tmp_path / "model.weights.h5").stat().st_size > 4 * event.result.fit.parameters
    assert [path.name for path in tmp_path.iterdir()] == ["model.weights.h5"]


# ----------------------------------------------------------------------------- a training's own faults: Failed


def test_numbers_that_blow_up_fail_and_the_worker_lives_on(executor: Executor) -> None:
    """NaN is the config's fault; the same process takes the next training."""
    before = worker_processes()
    wild = runs.run_config(runs.SGD | {"learning_rate": 1000.0}, {"activation": "linear"}, data=DIGITS, device="cpu")

    [*_, last] = until_done(executor, {1: wild})
    one(executor, config())

    assert isinstance(last, Failed)
    assert "lower optimizer.learning_rate" in last.reason
    assert worker_processes() == before


def test_an_exception_fails_and_the_worker_lives_on(executor: Executor) -> None:
    """What Python raises is told with its type; the same process takes the next training."""
    before = worker_processes()

    epochs, last = end(executor, 101)

    assert (epochs, last) == (1, Failed(5, "RuntimeError: planted"))
    assert worker_processes() == before


def test_no_memory_fails_and_the_worker_lives_on(executor: Executor) -> None:
    """A MemoryError is an exception like any other: the next training has memory again."""
    before = worker_processes()

    epochs, last = end(executor, 105)

    assert epochs == 1
    assert isinstance(last, Failed)
    assert last.reason.startswith("MemoryError")
    assert worker_processes() == before


@pytest.mark.parametrize(("seed", "signal", "reported"), [(102, "SIGSEGV", 1), (104, "SIGABRT", 0)])
def test_a_crash_fails(executor: Executor, seed: int, signal: str, reported: int) -> None:
    """A signal that code brings upon itself would come again: failed, by its name; a new worker takes the next."""
    epochs, last = end(executor, seed)

    assert epochs == reported
    assert isinstance(last, Failed)
    assert last.reason.startswith(f"its worker died (signal {signal}): ")


def test_a_hang_fails_after_the_timeout(executor: Executor) -> None:
    """A training that ends no epoch is killed, and failed with what to type; a new worker takes the next."""
    before = worker_processes()

    epochs, last = end(executor, 103, timeout=2.0)

    assert epochs == 2
    assert isinstance(last, Failed)
    assert "no epoch ended within trainer.timeout=2 s" in last.reason
    assert "give trainer.timeout more seconds" in last.reason
    assert wait_until(lambda: gone(before[0].pid))


# ----------------------------------------------------------------------------- what is done to it: Lost


def test_a_killed_worker_loses_its_training(executor: Executor) -> None:
    """SIGKILL in mid-training is no fault of the training: lost, and a new worker takes the next."""
    wait_idle(executor, 1)
    executor.submit(9, config(epochs=100_000))
    first = next(event for _ in range(100) if (event := executor.next_event(60)))
    [victim] = worker_processes()

    victim.kill()
    event = next(event for _ in range(100) if (event := executor.next_event(60)))
    executor.answer(9, go=True)  # too late, and no fault
    one(executor, config())

    assert isinstance(first, EpochEnded)
    assert isinstance(event, Lost)
    assert event.job == 9
    assert "its worker was lost (signal SIGKILL, which the system's out-of-memory killer sends as well)" in event.reason
    assert gone(victim.pid)


def test_half_a_result_is_none(executor: Executor) -> None:
    """A worker that is killed while it tells its result has told nothing: lost."""
    epochs, last = end(executor, 106)

    assert epochs == 3
    assert isinstance(last, Lost)


# ------------------------------------------------------------------------------------------ start and end


def test_other_data_are_refused(start: Start) -> None:
    """A worker whose data have another fingerprint than the caller's ends the wait."""
    started = start(fingerprint="another")
    try:
        with pytest.raises(DataError, match="the data changed while this command ran"):
            wait_idle(started, 1)
    finally:
        started.close()


def test_a_worker_that_dies_once_at_its_start_is_replaced(start: Start, tmp_path: Path) -> None:
    """One early death is bad luck; the next worker gets ready."""
    once = {"MNISTEXP_PLANT": "kill-at-start", "MNISTEXP_PLANT_ONCE": str(tmp_path / "struck")}
    started = start(environment=PLANTED | once)
    try:
        wait_idle(started, 1)
        assert (tmp_path / "struck").exists()
    finally:
        started.close()


def test_close_leaves_nobody(executor: Executor) -> None:
    """A busy worker is gone when close returns; closing twice is no fault."""
    wait_idle(executor, 1)
    executor.submit(1, config(epochs=100_000))
    busy = worker_processes()

    executor.close()
    left = worker_processes()
    executor.close()

    assert len(busy) == 1
    assert left == []
