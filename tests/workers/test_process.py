"""Worker processes on this machine: their environment, their exit, the setup that they get."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import runs
from runs import DIGITS, PLANT, SCRIPTED, gone, next_event, start_local, until_done, wait_idle, wait_until

from mnistexp.config.schema import UserCode
from mnistexp.errors import DataError, WorkerError
from mnistexp.training.messages import Ready
from mnistexp.workers import pool as pools
from mnistexp.workers import process
from mnistexp.workers.pool import Finished, Lost, Received, WorkerExit
from mnistexp.workers.process import LocalPool, WorkerProcess, ask, worker_environment, worker_exit


def config(seed: int = 0, epochs: int = 2) -> Any:
    """A scripted training."""
    return runs.run_config(seed=seed, data=DIGITS, epochs=epochs, device="cpu")


def pids(pool: LocalPool) -> list[int]:
    """The workers' process ids."""
    return [worker.connection._process.pid for worker in pool._workers]


@pytest.fixture
def pair() -> Iterator[LocalPool]:
    """Two scripted workers."""
    pool = start_local(2, environment=SCRIPTED)
    yield pool
    pool.close()


# -------------------------------------------------------------------------------------------- real processes


def test_two_workers_share_the_trainings(pair: LocalPool) -> None:
    """A killed worker loses its training and is replaced, while the other goes on; close ends idle and busy ones."""
    wait_idle(pair, 2)
    idle = pair._workers[0]
    idle.connection.kill()
    assert wait_until(lambda: gone(idle.connection._process.pid))

    pair.submit(1, config())
    lost = next_event(pair)
    events = until_done(pair, {job: config(seed=job) for job in (2, 3, 4)})
    wait_idle(pair, 2)
    pair.submit(5, config(epochs=100_000))
    everybody = pids(pair)
    pair.close()

    assert isinstance(lost, Lost)
    assert sorted(event.job for event in events if isinstance(event, Finished)) == [2, 3, 4]
    assert idle.connection._process.pid not in everybody
    assert wait_until(lambda: all(map(gone, everybody)))


def test_workers_that_die_at_once_end_the_command(tmp_path: Path) -> None:
    """Three starts that end before they are ready raise an error with the end of the log, less TensorFlow's lines."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "os.write(1, b'libcublas.so.12: no such file\\n')\n"
        "os.write(2, b'E0000 00:00:1795.10 cpu_aot_loader.cc:220] as always\\n')\n"
        "os._exit(7)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(PLANT.parents[2])])
    pool = start_local(1, environment={"PYTHONPATH": paths})

    with pytest.raises(WorkerError, match=r"\(exit code 7\).*libcublas.so.12: no such file$"):
        wait_idle(pool, 1)
    pool.close()


def test_damaged_data_are_an_error_of_the_data(tmp_path: Path) -> None:
    """No other worker is started for what no worker can load."""
    (tmp_path / "mine.npz").write_bytes(b"PK\x03\x04 and no more")
    npz = {"name": "npz", "root": str(tmp_path / "mine.npz"), "validation_size": 5, "split": "first", "split_seed": 0}
    pool = LocalPool(runs.setup(npz), workers=1, at_most=1, environment=SCRIPTED)

    with pytest.raises(DataError, match=r"mine\.npz"):
        wait_idle(pool, 1)
    pool.close()


@pytest.mark.timeout(120)
def test_a_large_setup_does_not_block_the_parent() -> None:
    """A worker reads a --code file of 256 KB only after its imports; starting it returns before that."""
    code = UserCode(name="mine.py", text="#" * 256 * 1024)

    pool = start_local(1, code=code, environment=SCRIPTED | {"MNISTEXP_PLANT": "stop-at-start"})
    [stopped] = pids(pool)
    pool.close()

    assert wait_until(lambda: gone(stopped))


# ------------------------------------------------------------------------------------- exit and environment


@pytest.mark.parametrize(
    ("code", "how", "lost"),
    [
        (0, "exit code 0", False),
        (7, "exit code 7", False),
        (-signal.SIGSEGV, "signal SIGSEGV", False),
        (-signal.SIGABRT, "signal SIGABRT", False),
        (-signal.SIGTERM, "signal SIGTERM", True),
        (-signal.SIGXCPU, "signal SIGXCPU", True),
        (-signal.SIGKILL, "signal SIGKILL, which the system's out-of-memory killer sends as well", True),
        (-40, "signal 40", True),
    ],
)
def test_worker_exit(code: int, how: str, lost: bool) -> None:
    """What code does to itself is its own fault; a signal from outside loses the worker."""
    assert worker_exit(code, "tail") == WorkerExit(how, lost, "tail")


def test_each_gpu_has_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers take the GPUs in turn; the user's XLA flags stay, beside ours."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")

    environments = [worker_environment(1, ["3", "GPU-b"], slot, {}) for slot in range(3)]

    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["3", "GPU-b", "3"]
    assert environments[0]["XLA_FLAGS"] == "--xla_dump_to=/tmp/x --xla_gpu_deterministic_ops=true"


def test_a_cpu_worker_keeps_the_users_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are set, the package is found from any folder, the user's variables stay, recorded ones win."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    monkeypatch.setenv("PYTHONPATH", "/home/me/lib")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")

    environment = worker_environment(4, [], 0, {"TF_ENABLE_ONEDNN_OPTS": "0"})

    assert environment["PYTHONPATH"] == f"{Path(process.__file__).parents[2]}{os.pathsep}/home/me/lib"
    assert environment["OMP_NUM_THREADS"] == "4"
    assert environment["XLA_FLAGS"] == "--xla_dump_to=/tmp/x"
    assert environment["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert environment.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(("cache", "used"), [("cache", True), ("my cache", False), ("file/cache", False)])
def test_compiled_epochs_are_kept_where_possible(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: str, used: bool
) -> None:
    """XLA's cache is in the user's cache folder, unless its flag cannot name the folder or it cannot be made."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(process.platformdirs, "user_cache_dir", lambda name: str(tmp_path / cache / name))
    monkeypatch.setenv("TF_XLA_FLAGS", "--mine")

    flags = worker_environment(1, [], 0, {})["TF_XLA_FLAGS"].split()

    assert flags[0] == "--mine"
    assert [flag.partition("=")[0] for flag in flags[1:]] == ["--tf_xla_persistent_cache_directory"] * used


class Recorded(WorkerProcess):
    """Starts no process, keeps its environment, and is ready on the CPU."""

    environments: ClassVar[list[dict[str, str]]] = []

    def __init__(self, environment: dict[str, str], setup: object) -> None:
        self.environments.append(environment)

    def messages(self) -> Iterator[Received]:
        yield Ready(device="CPU (no GPU visible to TensorFlow)", devices=(), flags={}, fingerprint="", versions={})

    def kill(self) -> None:
        pass


def test_a_gpu_without_cuda_in_tensorflow_gives_a_worker_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """All workers get the same flags, because these are recorded: the first, later ones, and replacements."""
    monkeypatch.setattr(process, "visible_gpus", lambda: ["0"])
    monkeypatch.setattr(process, "WorkerProcess", Recorded)
    monkeypatch.setattr(pools, "cores", lambda: 3)
    monkeypatch.setattr(pools, "GPU_SHARE", 1)
    Recorded.environments.clear()
    pool = LocalPool(runs.setup().model_copy(update={"device": "auto"}), workers="auto", at_most=9)
    before = pool.size

    while pool.idle() < 3:
        pool.next_event(60)
    pool._replace(pool._workers[0])

    assert (before, pool.size) == (1, 3)
    assert len({(each["XLA_FLAGS"], each["CUDA_VISIBLE_DEVICES"]) for each in Recorded.environments}) == 1


# -------------------------------------------------------------------------------------------------- ask


def test_ask_reads_the_answer_among_other_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules may print before and after the answer; a child without an answer is an error with its log."""
    (tmp_path / "child.py").write_text(
        "import atexit, json, sys\natexit.register(print, 'noise')\nprint('noise')\n"
        "number = json.load(sys.stdin)['number']\nprint('why it ends', file=sys.stderr)\nsys.stderr.flush()\n"
        "print(json.dumps({'double': 2 * number}))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    assert ask("child", {"number": 21}) == {"double": 42}
    with pytest.raises(WorkerError, match=r"child: ended with exit code 1: .*KeyError"):
        ask("child", {})
