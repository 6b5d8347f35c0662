from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import runs

from mnistexp import machine
from mnistexp.config.schema import RunConfig
from mnistexp.errors import WorkerError
from mnistexp.workers import pool as executors
from mnistexp.workers import process
from mnistexp.workers.local import LocalExecutor
from mnistexp.workers.pool import (
    GAP_SECONDS,
    START_SECONDS,
    Connection,
    Deliver,
    EpochEnded,
    Failed,
    Lost,
    Message,
    WorkerExit,
    WorkerPool,
    worker_count,
)
from mnistexp.workers.process import death, worker_environment

KILL = WorkerExit("signal SIGKILL", True, "no last words")
SEGFAULT = WorkerExit("signal SIGSEGV", False, "no last words")
EPOCH = {"epoch": 1, "steps": 1, "learning_rate": 0.1, "loss": 1.0, "accuracy": 0.5, "val_loss": 1.0,
         "val_accuracy": 0.5, "seconds": 0.1}  # fmt: skip


def config(timeout: float | None = 100.0) -> RunConfig:
    """A training that is never run."""
    return runs.run_config(data=runs.DIGITS, timeout=timeout)


# -------------------------------------------------------------------------------- supervision, without processes


class ScriptedLink:
    """A worker that does nothing by itself: the test says what comes from it."""

    def __init__(self, deliver: Deliver) -> None:
        self.deliver = deliver
        self.sent: list[Mapping[str, Any]] = []
        self.killed = False

    def send(self, message: Mapping[str, Any]) -> None:
        self.sent.append(message)

    def close_stdin(self) -> None:
        self.killed = True

    def kill(self) -> None:
        self.killed = True

    def wait(self) -> None:
        pass


class Scripted(WorkerPool):
    """A supervisor of such workers, with a clock that a test sets."""

    def __init__(self, workers: int = 1) -> None:
        self.now = 1000.0
        self.asked = workers
        self.links: list[ScriptedLink] = []
        super().__init__(at_most=workers, clock=lambda: self.now)
        self._fill()

    def _count(self) -> int:
        return self.asked

    def _open(self, place: int, deliver: Deliver) -> Connection:
        self.links.append(ScriptedLink(deliver))
        return self.links[-1]

    def hear(self, link: ScriptedLink, message: Message) -> Any:
        """Have a worker say something; the event that it makes."""
        link.deliver(dict(message) if isinstance(message, dict) else message)
        return self.next_event(0)

    def make_ready(self) -> None:
        """Have the newest worker start and get ready."""
        self.hear(self.links[-1], {"event": "starting"})
        self.hear(self.links[-1], {"event": "ready", "fingerprint": ""})

    def let_pass(self, seconds: float) -> list[Any]:
        """Time goes by while somebody asks for events, each second."""
        events = []
        for _ in range(int(seconds)):
            self.now += 1.0
            events.append(self.next_event(0))
        return [event for event in events if event]


@pytest.fixture
def busy() -> Scripted:
    """One worker, which has had job 1 for no time yet; an epoch may take 100 s."""
    started = Scripted()
    started.make_ready()
    started.submit(1, config())
    return started


def test_silence_is_a_failure_in_the_end(busy: Scripted) -> None:
    """A training that ends no epoch for its timeout is killed and failed, once; a new worker takes its place."""
    before = busy.let_pass(100)
    [failed] = busy.let_pass(50)

    assert before == []
    assert isinstance(failed, Failed)
    assert failed.job == 1
    assert "trainer.timeout=100 s" in failed.reason
    assert [link.killed for link in busy.links] == [True, False]
    assert busy.idle() == 0  # the new one isn't ready yet


def test_what_a_killed_worker_still_says_counts_no_more(busy: Scripted) -> None:
    """Neither a last epoch nor its death make another event of a hung training."""
    busy.let_pass(101)
    first = busy.links[0]

    said = busy.hear(first, {"event": "epoch", "scores": EPOCH})
    died = busy.hear(first, KILL)
    busy.make_ready()

    assert (said, died) == (None, None)
    assert (busy.idle(), busy.size, len(busy.links)) == (1, 1, 2)


def test_each_epoch_starts_the_clock_anew(busy: Scripted) -> None:
    """Ninety seconds an epoch are no hang, however many there are."""
    for _ in range(5):
        assert busy.let_pass(90) == []
        assert isinstance(busy.hear(busy.links[0], {"event": "epoch", "scores": EPOCH}), EpochEnded)
        busy.answer(1, go=True)


def test_a_worker_that_waits_for_our_word_is_not_hung(busy: Scripted) -> None:
    """While the parent owes the answer, the clock stands still."""
    busy.hear(busy.links[0], {"event": "epoch", "scores": EPOCH})

    assert busy.let_pass(1000) == []
    assert not busy.links[0].killed


def test_a_parent_that_slept_judges_nobody(busy: Scripted) -> None:
    """After a closed laptop lid the hours before don't count, only those in which somebody asked."""
    busy.let_pass(60)
    for _ in range(20):
        busy.now += GAP_SECONDS + 3600
        assert busy.next_event(0) is None

    assert busy.let_pass(40) == []
    assert not busy.links[0].killed
    assert len(busy.let_pass(2)) == 1


def test_what_was_said_is_read_before_anybody_is_judged(busy: Scripted) -> None:
    """An epoch that ended in time but lies unread in the queue is no hang."""
    busy.let_pass(99)
    busy.links[0].deliver({"event": "epoch", "scores": dict(EPOCH)})
    busy.now += 4.0

    assert isinstance(busy.next_event(0), EpochEnded)
    assert not busy.links[0].killed


def test_without_a_timeout_there_is_no_hang() -> None:
    """trainer.timeout=null waits for ever."""
    patient = Scripted()
    patient.make_ready()
    patient.submit(1, config(timeout=None))

    assert patient.let_pass(5000) == []


def test_an_idle_worker_may_be_silent() -> None:
    """Nothing is expected of a worker without a job."""
    idle = Scripted()
    idle.make_ready()

    assert idle.let_pass(5000) == []
    assert not idle.links[0].killed


def test_a_worker_that_hangs_at_its_start_is_an_early_death() -> None:
    """Three in a row that never get ready end the wait, with what hung and the last words."""
    stuck = Scripted()
    for _ in range(2):
        stuck.hear(stuck.links[-1], {"event": "starting"})
        stuck.let_pass(START_SECONDS + 1)
        assert stuck.links[-1].killed
        stuck.hear(stuck.links[-1], KILL)
    stuck.hear(stuck.links[-1], {"event": "starting"})
    stuck.let_pass(START_SECONDS + 1)

    with pytest.raises(WorkerError, match=r"not ready within 300 s.*installation.*Last words: no last words"):
        stuck.hear(stuck.links[-1], KILL)


def test_a_worker_that_waits_for_room_is_not_starting() -> None:
    """An actor that no node has room for is no fault, however long it takes."""
    waiting = Scripted()

    assert waiting.let_pass(20 * START_SECONDS) == []
    assert not waiting.links[0].killed


def test_lost_at_the_start_says_so() -> None:
    """Workers that are killed before they are ready point at memory, not at TensorFlow."""
    short = Scripted()
    for _ in range(2):
        short.hear(short.links[-1], KILL)

    with pytest.raises(WorkerError, match=r"lost before they are ready \(signal SIGKILL\).*executor\.workers=1"):
        short.hear(short.links[-1], KILL)


def test_a_node_that_takes_all_its_starting_workers_along_is_one_bad_start() -> None:
    """Deaths count by place: eight at once are one for each, and a ready worker forgives all."""
    cluster = Scripted(workers=8)
    for _ in range(2):
        for link in cluster.links[-8:]:
            cluster.hear(link, KILL)
    cluster.make_ready()
    for link in cluster.links[-8:-1]:
        cluster.hear(link, KILL)

    assert (cluster.size, cluster.idle()) == (8, 1)


@pytest.mark.parametrize(("how", "kind"), [(KILL, Lost), (SEGFAULT, Failed)])
def test_a_death_is_the_trainings_fault_or_not(busy: Scripted, how: WorkerExit, kind: type[Lost | Failed]) -> None:
    """What took the worker decides whether its training may be run again; a new worker comes either way."""
    event = busy.hear(busy.links[0], how)

    assert type(event) is kind
    assert event.job == 1
    assert how.how in event.reason
    assert (busy.size, len(busy.links)) == (1, 2)


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM", "SIGHUP", "SIGINT", "SIGXCPU"])
def test_signals_from_outside_lose_a_worker(signal: str) -> None:
    """A kill, a shutdown, a lost terminal or a batch system's limit say nothing about the training."""
    dead = death(-getattr(process.signal, signal), "")

    assert dead.lost
    assert signal in dead.how
    assert ("out-of-memory killer" in dead.how) == (signal == "SIGKILL")


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"])
def test_signals_of_its_own_are_its_fault(signal: str) -> None:
    """What code does to itself it does again."""
    assert death(-getattr(process.signal, signal), "") == WorkerExit(f"signal {signal}", False, "")


@pytest.mark.parametrize("code", [0, 1, 7])
def test_an_exit_is_its_own_fault(code: int) -> None:
    """A worker that leaves in mid-training was told to by its own code."""
    assert death(code, "words") == WorkerExit(f"exit code {code}", False, "words")


# ------------------------------------------------------------------------------ devices and environment


def test_a_gpu_that_is_not_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """device=gpu without a GPU is refused by name; the other two are content with what there is."""
    monkeypatch.setattr(machine, "visible_gpus", list)

    with pytest.raises(WorkerError, match=r"trainer\.device=gpu: no NVIDIA GPU is visible here; give"):
        machine.require_device("gpu")
    machine.require_device("auto")
    machine.require_device("cpu")


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as asked for; else four per GPU while there are cores for them; else one per core, and always one."""
    monkeypatch.setattr(executors, "cores", lambda: 8)

    assert worker_count(3, threads=1, gpus=0) == 3
    assert worker_count(5, threads=4, gpus=2) == 5
    assert worker_count("auto", threads=1, gpus=1) == 4
    assert worker_count("auto", threads=1, gpus=2) == 8
    assert worker_count("auto", threads=2, gpus=2) == 4
    assert worker_count("auto", threads=1, gpus=16) == 16
    assert worker_count("auto", threads=1, gpus=0) == 8
    assert worker_count("auto", threads=3, gpus=0) == 2
    assert worker_count("auto", threads=16, gpus=0) == 1


def test_no_more_workers_than_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of two trials starts two workers, whatever the cores."""
    monkeypatch.setattr(LocalExecutor, "_start", lambda self, place: place)

    executor = LocalExecutor(config().data, threads=1, device="cpu", workers=64, at_most=2)

    assert executor.size == 2


class FakeDriver:
    """libcuda with `devices` GPUs."""

    def __init__(self, devices: int, status: int = 0) -> None:
        self._devices, self._status = devices, status

    def cuInit(self, flags: int) -> int:
        return self._status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self._devices
        return 0


def no_driver(name: str) -> object:
    """What loading libcuda does where there is none."""
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("driver", "listed", "expected"),
    [
        (no_driver, None, []),
        (lambda _: FakeDriver(2, status=100), None, []),
        (lambda _: FakeDriver(0), "", []),
        (lambda _: FakeDriver(2), None, ["0", "1"]),
        (lambda _: FakeDriver(2), "3,5", ["3", "5"]),
        (lambda _: FakeDriver(1), "3,99", ["3"]),
        (lambda _: FakeDriver(1), "GPU-abc", ["GPU-abc"]),
    ],
)
def test_visible_gpus(
    monkeypatch: pytest.MonkeyPatch, driver: Callable[[str], object], listed: str | None, expected: list[str]
) -> None:
    """What the driver counts, named as CUDA_VISIBLE_DEVICES names them; none without a driver that works."""
    monkeypatch.setattr(ctypes, "CDLL", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)

    assert machine.visible_gpus() == expected


def test_each_gpu_has_its_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are dealt to the GPUs in turn; the user's XLA flags stay, beside ours."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")

    environments = [worker_environment(1, ["3", "GPU-b"], index, {}) for index in range(3)]

    assert [each["CUDA_VISIBLE_DEVICES"] for each in environments] == ["3", "GPU-b", "3"]
    assert environments[0]["XLA_FLAGS"] == "--xla_dump_to=/tmp/x --xla_gpu_deterministic_ops=true"


def test_a_cpu_worker_keeps_the_users_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads are set, the package is found from any folder, the user's variables stay, recorded ones win."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/tmp/x")
    monkeypatch.setenv("PYTHONPATH", "/home/me/lib")
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")

    environment = worker_environment(4, [], 0, {"TF_ENABLE_ONEDNN_OPTS": "0"})

    root = str(Path(process.__file__).parents[2])
    assert environment["PYTHONPATH"] == f"{root}{os.pathsep}/home/me/lib"
    assert environment["OMP_NUM_THREADS"] == "4"
    assert environment["XLA_FLAGS"] == "--xla_dump_to=/tmp/x"
    assert environment["TF_ENABLE_ONEDNN_OPTS"] == "0"
    assert environment.get("CUDA_VISIBLE_DEVICES") == os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(("cache", "used"), [("cache", True), ("my cache", False), ("file/cache", False)])
def test_compiled_epochs_are_kept_where_they_can_be(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: str, used: bool
) -> None:
    """XLA's cache lies in the user's cache folder; one that its flag can't name, or can't be made, costs nothing."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(process.platformdirs, "user_cache_dir", lambda name: str(tmp_path / cache / name))
    monkeypatch.setenv("TF_XLA_FLAGS", "--mine")

    flags = worker_environment(1, [], 0, {})["TF_XLA_FLAGS"].split()

    assert flags[0] == "--mine"
    assert [flag.partition("=")[0] for flag in flags[1:]] == ["--tf_xla_persistent_cache_directory"] * used


def test_the_memory_limit_is_off_by_default() -> None:
    """An executor that isn't told a limit replaces no worker for its size."""
    assert LocalExecutor.__init__.__kwdefaults__["max_memory"] == math.inf
