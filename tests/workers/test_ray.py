"""What is Ray's alone: where its processes listen, what is left of them, lost nodes, and how it is reached."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import runs
from runs import gone, until_done, wait_idle, wait_until

from mnistexp.config.schema import RayExecutorConfig, RunConfig
from mnistexp.data import dataset as data
from mnistexp.data.dataset import read, write
from mnistexp.errors import WorkerError
from mnistexp.workers import ray
from mnistexp.workers.pool import EpochEnded, Finished, Lost, WorkerExit
from mnistexp.workers.ray import Cluster, RayExecutor

ROOT = Path(ray.__file__).parents[2]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or sys.platform != "linux",
    reason="needs Ray (pip install 'mnistexp[ray]') on Linux, where it can be looked at from outside",
)


def config(epochs: int = 2) -> RunConfig:
    """A training of about a tenth of a second."""
    return runs.run_config(data=runs.DIGITS, epochs=epochs, batch_size=64, device="cpu", timeout=60.0)


def settings(**more: Any) -> RayExecutorConfig:
    """One worker on a Ray of our own."""
    plain = {"workers": 1, "max_worker_memory": 1.0, "retries": 0, "cpus_per_trial": 1.0, "gpus_per_trial": 0.0}
    return RayExecutorConfig.model_validate({"name": "ray", "address": "local", **plain, **more})


def start(address: str = "local", **more: Any) -> RayExecutor:
    """Actors that get the digits."""
    loaded = data.load(config().data)
    ours = settings(address=address, **more)
    return RayExecutor(ours, config().data, loaded, threads=1, device="cpu", at_most=9)


def family() -> list[psutil.Process]:
    """This process and all below it."""
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


@pytest.fixture
def executor() -> Iterator[RayExecutor]:
    """A Ray of its own with one ready worker."""
    started = start()
    wait_idle(started, 1)
    yield started
    started.close()


# --------------------------------------------------------------------------------------- a Ray of our own


@needs_ray
def test_our_ray_listens_on_this_machine_alone_and_leaves_nothing(executor: RayExecutor) -> None:
    """All of its sockets are on 127.0.0.1, its folder is ours, SIGTERM stays ours, and close takes all of it away."""
    sockets = [found for process in family() for found in process.net_connections("inet")]
    listening = {found.laddr.ip for found in sockets if found.status == psutil.CONN_LISTEN}
    folder = executor._cluster._folder
    assert folder is not None
    mode = stat.S_IMODE(folder.stat().st_mode)
    rays = psutil.Process().children(recursive=True)

    executor.close()

    executor.close()  # twice is no fault, and starts no other Ray

    assert listening == {"127.0.0.1", "::ffff:127.0.0.1"}
    assert mode == 0o700
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert len(rays) > 5
    assert not executor._ray.is_initialized()
    assert wait_until(lambda: all(gone(process.pid) for process in rays))
    assert not folder.exists()


@needs_ray
def test_a_killed_actor_loses_its_training(executor: RayExecutor) -> None:
    """The actor's death is its worker's, and no fault of the training; the next training has another."""
    executor.submit(1, config(epochs=100_000))
    assert isinstance(executor.next_event(60), EpochEnded)
    [worker] = [each for each in family() if runs.alive(each) and "mnistexp.training.worker" in each.cmdline()]
    actor = worker.parent()
    assert actor is not None

    actor.kill()
    event = executor.next_event(60)
    *_, last = until_done(executor, {2: config()})

    assert isinstance(event, Lost)
    assert event.reason.startswith("its worker was lost (its Ray actor or its node was lost: ActorDiedError): ")
    assert isinstance(last, Finished)
    assert wait_until(lambda: gone(worker.pid))


DRIVER = """
import json, sys
sys.path.insert(0, {tests!r})
import psutil, runs
sys.path.append(r"{tests}/workers"); import test_ray as t

executor = t.start()
runs.wait_idle(executor, 1)
executor.submit(1, t.config(epochs=100_000))
print(json.dumps([child.pid for child in psutil.Process().children(recursive=True)]), flush=True)
while True:
    if event := executor.next_event(60):
        executor.answer(1, go=True)
"""


@pytest.fixture(scope="module")
def orphans() -> list[psutil.Process]:
    """What ran below a driver that was killed in mid-training. Tests that Ray keeps waiting share its minute."""
    code = DRIVER.format(tests=str(Path(__file__).parents[1]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as driver:
        assert driver.stdout is not None
        children = [psutil.Process(pid) for pid in json.loads(driver.stdout.readline())]
        driver.kill()
    return children


# ------------------------------------------------------------------------------------------- a cluster

NODES = """
import os, sys
os.environ.update(RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="a" * 64)
sys.path.insert(0, {tests!r})
from ray.cluster_utils import Cluster
import runs
sys.path.append(r"{tests}/workers"); import test_ray as t

cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 0, "include_dashboard": False}})
node = cluster.add_node(num_cpus=1)
executor = t.start(cluster.address, workers="auto")
runs.wait_idle(executor, 1)
executor.submit(1, t.config(epochs=100_000))
first = executor.next_event(60)
cluster.remove_node(node, allow_graceful=False)
lost = next(event for _ in range(100) if (event := executor.next_event(60)))
executor.next_event(1)
cluster.add_node(num_cpus=1)
*_, last = runs.until_done(executor, {{2: t.config()}})
size = executor.size
executor.close()
cluster.shutdown()
print("ANSWER", type(first).__name__, type(lost).__name__, type(last).__name__, size)
"""


@needs_ray
@pytest.mark.slow
def test_a_lost_node_loses_its_trainings_and_a_new_one_takes_over(orphans: list[psutil.Process]) -> None:
    """A node that is gone in mid-training is a Lost; the worker waits for room, and has it on the next node."""
    code = NODES.format(tests=str(Path(__file__).parents[1]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)

    assert "ANSWER EpochEnded Lost Finished 1" in done.stdout, done.stderr[-3000:]


@needs_ray
def test_a_node_with_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of one study may not come from two versions of the code: both are named."""
    other = {**ray.worker_versions(), "mnistexp": "9.9.9"}
    monkeypatch.setattr(ray, "worker_versions", lambda: other)
    started = start()
    try:
        with pytest.raises(WorkerError, match=r"a Ray node has mnistexp 0.*\(here 9\.9\.9\): one study needs the same"):
            wait_idle(started, 1)
    finally:
        started.close()


@needs_ray
@pytest.mark.slow
def test_nothing_outlives_a_killed_driver(orphans: list[psutil.Process]) -> None:
    """kill -9 leaves no time to close anything: Ray, its actors and their workers leave all the same.

    The workers within seconds; two agents of Ray's first look for its head for a minute, and no setting shortens that.
    """
    assert len(orphans) > 5
    assert wait_until(lambda: not any(map(runs.alive, orphans)), seconds=200)


def test_a_node_without_mnistexp_is_named() -> None:
    """What Ray makes of a missing package becomes one sentence with what to do."""
    error = RuntimeError("The actor died because of an error\nModuleNotFoundError: No module named 'mnistexp'")

    said = ray._lost(error)

    assert isinstance(said, dict)
    assert said["event"] == "broken"
    assert "a Ray node can't import mnistexp" in said["message"]
    assert "install this version of it on every node" in said["message"]


def test_a_preempted_node_is_named() -> None:
    """Where Ray knows that a node was taken back, the reason says so."""
    error = RuntimeError("gone")
    error.preempted = True  # type: ignore[attr-defined]  # as ray.exceptions.ActorDiedError has it

    assert ray._lost(error) == WorkerExit("its node was preempted: RuntimeError", True, "gone")


# -------------------------------------------------------------------------------------- what can be mistyped


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """executor=ray on a plain installation is one sentence."""
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(WorkerError, match=r"pip install 'mnistexp\[ray\]', or give executor=local"):
        Cluster("local", 0)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "127.0.0.1:99999"])
def test_an_address_where_nothing_answers_is_refused_at_once(address: str) -> None:
    """Before Ray waits for minutes, one look says that nobody is there, and what to give."""
    with pytest.raises(WorkerError, match=f"executor.address={address}: nothing answers there; give HOST:PORT"):
        Cluster(address, 0)


@needs_ray
def test_more_cpus_than_there_are_is_refused() -> None:
    """On a Ray of our own no node will ever come that has them."""
    with pytest.raises(WorkerError, match=r"executor\.cpus_per_trial=4096 .*: this machine has \d+ CPUs and 0 GPUs"):
        start(cpus_per_trial=4096.0)
    assert not [each for each in family()[1:] if runs.alive(each) and "raylet" in each.name()]


def test_a_gpu_has_to_be_asked_for() -> None:
    """trainer.device=gpu without a share of one would wait for a GPU that Ray never gives."""
    with pytest.raises(WorkerError, match=r"trainer\.device=gpu: give executor\.gpus_per_trial=1"):
        RayExecutor(settings(), config().data, data.load(config().data), threads=1, device="gpu", at_most=1)


class Rooms:
    """A Ray that has these resources."""

    def __init__(self, **resources: float) -> None:
        self.resources = resources

    def cluster_resources(self) -> dict[str, float]:
        return self.resources


@pytest.mark.parametrize(
    ("there", "cpus", "gpus", "count"),
    [
        ({"CPU": 64.0}, 1.0, 0.0, 64),
        ({"CPU": 64.0}, 4.0, 0.0, 16),
        ({"CPU": 1.0}, 0.1, 0.0, 10),
        ({"CPU": 64.0, "GPU": 2.0}, 1.0, 0.25, 8),
        ({"CPU": 4.0, "GPU": 8.0}, 1.0, 1.0, 4),
        ({"CPU": 64.0}, 1.0, 1.0, 1),
        ({}, 1.0, 0.0, 1),
    ],
)
def test_auto_is_what_the_cluster_has_room_for(there: dict[str, float], cpus: float, gpus: float, count: int) -> None:
    """CPUs and GPUs each set a limit; a cluster that starts from nothing gets one worker, for which it grows."""
    cluster = object.__new__(Cluster)
    cluster.ray = Rooms(**there)

    assert cluster.room(cpus, gpus) == count


# ------------------------------------------------------------------------------------------- the data's way


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_data_set_survives_its_file(tmp_path: Path, dtype: type[Any]) -> None:
    """Every array, with its type, and every fact come out of the file as they went in."""
    loaded = data.load(config().data)
    train = replace(loaded.train, images=loaded.train.images.astype(dtype))
    dataset = replace(loaded, train=train)
    with (tmp_path / "file").open("w+b") as file:
        write(dataset, file)
        file.seek(0)
        back = read(file)

    for role in ("train", "validation", "test"):
        for part in ("images", "labels"):
            before, after = (getattr(getattr(each, role), part) for each in (dataset, back))
            assert before.dtype == after.dtype
            assert np.array_equal(before, after)
    facts = ("name", "classes", "image_shape", "scale", "fingerprint", "source")
    assert [getattr(back, name) for name in facts] == [getattr(dataset, name) for name in facts]
