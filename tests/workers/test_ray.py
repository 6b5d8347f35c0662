"""What only Ray has: where its processes listen, what remains of them, lost nodes, and how it is joined."""

from __future__ import annotations

import importlib.util
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import runs
from runs import gone, next_event, until_done, wait_idle, wait_until

from mnistexp.config.schema import RayExecutorConfig, RunConfig
from mnistexp.data import dataset as data
from mnistexp.errors import WorkerError
from mnistexp.training.messages import Broken, Ready
from mnistexp.workers import ray
from mnistexp.workers.pool import EpochEnded, Finished, Lost, WorkerExit
from mnistexp.workers.ray import Cluster, RayPool

ROOT = Path(ray.__file__).parents[2]
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or sys.platform != "linux",
    reason="needs Ray (pip install 'mnistexp[ray]') on Linux, where it can be looked at from outside",
)


def config(epochs: int = 2) -> RunConfig:
    """A training of about a tenth of a second."""
    return runs.run_config(data=runs.DIGITS, epochs=epochs, batch_size=64, device="cpu", timeout=60.0)


def settings(address: str | None = "local", **more: Any) -> RayExecutorConfig:
    """One worker."""
    plain = {"workers": 1, "max_worker_memory": 1.0, "retries": 0, "cpus_per_trial": 1.0, "gpus_per_trial": 0.0}
    return RayExecutorConfig.model_validate({"name": "ray", "address": address, **plain, **more})


def start(address: str = "local", environment: Mapping[str, str] = runs.SCRIPTED, **more: Any) -> RayPool:
    """One actor, with a scripted trainer, on a Ray of our own."""
    loaded = data.load(runs.setup().data)
    return RayPool(runs.setup(), settings(address, **more), loaded, at_most=9, environment=environment)


def family() -> list[psutil.Process]:
    """This process and all below it."""
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


@pytest.fixture
def pool() -> Iterator[RayPool]:
    """A Ray of its own with one ready worker."""
    started = start()
    wait_idle(started, 1)
    yield started
    started.close()


# --------------------------------------------------------------------------------------- a Ray of our own


@needs_ray
def test_our_ray_listens_on_this_machine_alone_and_leaves_nothing(pool: RayPool) -> None:
    """All sockets are on 127.0.0.1, its folder is private, and after close no process and no file is left.

    A training has the scores, data and flags of a local worker's. A killed actor loses its training and is replaced.
    """
    local = runs.start_local(1, environment=runs.SCRIPTED)
    results = [until_done(each, {1: config()})[-1] for each in (local, pool)]
    local.close()
    cluster = pool._cluster
    assert cluster is not None
    assert cluster._folder is not None
    sockets = [found for process in family() for found in process.net_connections("inet")]
    listening = {found.laddr.ip for found in sockets if found.status == psutil.CONN_LISTEN}
    mode = stat.S_IMODE(cluster._folder.stat().st_mode)

    pool.submit(1, config(epochs=100_000))
    assert isinstance(next_event(pool), EpochEnded)
    [worker] = [each for each in family() if runs.alive(each) and "mnistexp.training.worker" in each.cmdline()]
    actor = worker.parent()
    assert actor is not None
    actor.kill()
    lost = next_event(pool)
    *_, last = until_done(pool, {2: config()})
    rays = psutil.Process().children(recursive=True)
    pool.close()
    pool.close()  # starts no other Ray

    assert all(isinstance(event, Finished) for event in (*results, last))
    assert runs.bits(results[0].result) == runs.bits(results[1].result)
    assert listening == {"127.0.0.1", "::ffff:127.0.0.1"}
    assert mode == 0o700
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert isinstance(lost, Lost)
    assert lost.reason.startswith("its worker was lost (its Ray actor or its node was lost: ActorDiedError): ")
    assert len(rays) > 5
    assert not cluster.ray.is_initialized()
    assert wait_until(lambda: all(gone(process.pid) for process in [worker, *rays]))
    assert not cluster._folder.exists()


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
first = runs.next_event(executor)
cluster.remove_node(node, allow_graceful=False)
lost = runs.next_event(executor)
cluster.add_node(num_cpus=1)
*_, last = runs.until_done(executor, {{2: t.config()}})
size = executor.size
executor.close()
cluster.shutdown()
print("ANSWER", type(first).__name__, type(lost).__name__, type(last).__name__, size)
"""


@needs_ray
@pytest.mark.slow
def test_a_lost_node_loses_its_trainings_and_a_new_one_takes_over() -> None:
    """A node that is gone in mid-training is a Lost; the worker waits for room, and has it on the next node."""
    code = NODES.format(tests=str(Path(__file__).parents[1]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)

    assert "ANSWER EpochEnded Lost Finished 1" in done.stdout, done.stderr[-3000:]


def test_a_lost_actor_is_interpreted() -> None:
    """A node without mnistexp is an error with advice; any other error is a lost worker."""
    missing = RuntimeError("The actor died because of an error\nModuleNotFoundError: No module named 'mnistexp'")

    broken = ray.lost_actor(missing)

    assert isinstance(broken, Broken)
    assert "a Ray node cannot import mnistexp" in broken.message
    assert ray.lost_actor(ValueError()) == WorkerExit(
        "its Ray actor or its node was lost: ValueError", True, "ValueError"
    )


def test_a_node_with_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of one study may not come from two versions of the code: both are named."""
    monkeypatch.setattr(ray, "worker_versions", lambda: {"keras": "3.15", "mnistexp": "9.9.9"})
    pool = object.__new__(RayPool)
    pool._fingerprint = ""
    there = Ready(device="", devices=(), flags={}, fingerprint="", versions={"keras": "3.15", "mnistexp": "0.1"})

    with pytest.raises(WorkerError, match=r"a Ray node has mnistexp 0\.1 \(here 9\.9\.9\): one study"):
        pool._check(there)


# -------------------------------------------------------------------------------------- what can be mistyped


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """executor=ray on a plain installation is one sentence."""
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(WorkerError, match=r"pip install 'mnistexp\[ray\]', or give executor=local"):
        Cluster("local")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense", "127.0.0.1:99999"])
def test_an_address_where_nothing_answers_is_refused_at_once(address: str) -> None:
    """Ray itself would wait for minutes."""
    with pytest.raises(WorkerError, match=f"executor.address={address}: nothing answers there"):
        Cluster(address)


def test_a_gpu_has_to_be_asked_for() -> None:
    """trainer.device=gpu without a share of one would wait for a GPU that Ray never gives."""
    setup = runs.setup().model_copy(update={"device": "gpu"})

    with pytest.raises(WorkerError, match=r"trainer\.device=gpu: give executor\.gpus_per_trial=1"):
        RayPool(setup, settings(), data.load(setup.data), at_most=1)


def cluster_of(resources: dict[str, float]) -> Cluster:
    """A cluster of one node that has these resources."""
    cluster = object.__new__(Cluster)
    nodes = [{"Alive": True, "Resources": resources}]
    cluster.ray = SimpleNamespace(nodes=lambda: nodes, cluster_resources=lambda: resources)
    return cluster


def test_more_than_there_is_is_refused_on_this_machine(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On a Ray of our own no node will ever come that has it; on a cluster one may, so it is a warning."""
    cluster = cluster_of({"CPU": 4.0})

    cluster._folder = None
    cluster.check_room(8, 0)
    cluster._folder = tmp_path
    cluster.check_room(4, 0)
    with pytest.raises(WorkerError, match=r"executor\.cpus_per_trial=4 executor\.gpus_per_trial=1: no node"):
        cluster.check_room(4, 1)

    assert "executor.cpus_per_trial=8" in caplog.text


@pytest.mark.parametrize(
    ("there", "cpus", "gpus", "count"),
    [
        ({"CPU": 64.0}, 4.0, 0.0, 16),
        ({"CPU": 1.0}, 0.1, 0.0, 10),
        ({"CPU": 64.0, "GPU": 2.0}, 1.0, 0.25, 8),
        ({"CPU": 4.0, "GPU": 8.0}, 1.0, 1.0, 4),
        ({}, 1.0, 0.0, 1),
    ],
)
def test_auto_is_what_the_cluster_has_room_for(there: dict[str, float], cpus: float, gpus: float, count: int) -> None:
    """CPUs and GPUs each set a limit; a cluster that starts from nothing gets one worker, for which it grows."""
    assert cluster_of(there).room(cpus, gpus) == count
