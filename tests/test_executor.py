from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import runs

from mnistexp import executor as executors
from mnistexp import machine
from mnistexp.errors import DataError, WorkerError
from mnistexp.executor import (
    MIN_JOBS,
    EpochEnded,
    Event,
    Failed,
    Finished,
    LocalExecutor,
    require_device,
    worker_count,
    worker_environment,
)
from mnistexp.results import RunResult
from mnistexp.schema import RunConfig

DIGITS = {
    "name": "digits",
    "root": None,
    "validation_size": 300,
    "split": "stratified",
    "split_seed": 0,
    "test_size": 360,
}
QUICK = {"batch_size": 64, "device": "cpu"}


def config(seed: int = 0, epochs: int = 2, **model: Any) -> RunConfig:
    """A training of about a tenth of a second."""
    return runs.run_config(model=model, seed=seed, data=DIGITS, epochs=epochs, **QUICK)


def start(workers: int, **more: Any) -> LocalExecutor:
    """Workers that have the digits in memory."""
    return LocalExecutor(config().data, threads=1, device="cpu", workers=workers, at_most=workers, **more)


def wait_idle(executor: LocalExecutor, workers: int) -> None:
    """Wait until so many workers are idle, with no event on the way."""
    while executor.idle() < workers:
        assert executor.next_event(60) is None


def until_done(
    executor: LocalExecutor, jobs: Mapping[int, RunConfig], go: Callable[[EpochEnded], bool] = lambda event: True
) -> list[Event]:
    """Every event of these jobs, which are submitted as workers get free."""
    events: list[Event] = []
    waiting, left = list(jobs), set(jobs)
    while left:
        while waiting and executor.idle():
            number = waiting.pop(0)
            executor.submit(number, jobs[number])
        event = executor.next_event(60)
        if event is None:
            continue
        events.append(event)
        if isinstance(event, EpochEnded):
            executor.answer(event.job, go=go(event))
        else:
            left.remove(event.job)
    return events


def results_of(events: list[Event]) -> dict[int, RunResult]:
    """The results by job."""
    return {event.job: event.result for event in events if isinstance(event, Finished)}


def bits(result: RunResult) -> RunResult:
    """A result less its wall-clock times, which are never the same."""
    epochs = tuple(replace(scores, seconds=0.0) for scores in result.fit.epochs)
    return replace(result, fit=replace(result.fit, epochs=epochs, seconds=0.0))


def pids(executor: LocalExecutor) -> list[int]:
    """The workers' process ids."""
    return [worker.process.pid for worker in executor._workers]


def gone(pid: int) -> bool:
    """Whether there is no such process any more, or only its entry in the table."""
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until(true: Callable[[], bool], seconds: float = 30) -> bool:
    """Wait for something that another process does; how long it takes is not what is tested."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return true()


# ------------------------------------------------------------------------------------------ real workers


@pytest.fixture(scope="module")
def pair() -> Iterator[LocalExecutor]:
    """Two real workers, which the tests below leave idle."""
    executor = start(2)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def single() -> Iterator[LocalExecutor]:
    """One real worker, which is large enough to be replaced after a fair number of jobs."""
    executor = start(1, max_memory=1.0)
    yield executor
    executor.close()


def test_workers_get_ready_by_themselves(pair: LocalExecutor) -> None:
    """Once ready they are idle and have said what they run on."""
    wait_idle(pair, 2)

    assert pair.size == 2
    assert pair.facts["device"] == "CPU (trainer.device=cpu)"
    assert pair.facts["flags"]["threads"] == "1"


def test_where_a_job_runs_does_not_matter(pair: LocalExecutor, single: LocalExecutor) -> None:
    """Two jobs on two workers at once give the same bits as one after the other on a single, worn worker."""
    jobs = {1: config(seed=1, dropout=0.3), 2: config(seed=2, hidden_units=[16, 8])}
    wait_idle(pair, 2)

    at_once = results_of(until_done(pair, jobs))
    until_done(single, {0: config(seed=3, dropout=0.3)})
    one_by_one = results_of(until_done(single, jobs))

    assert bits(at_once[1]) == bits(one_by_one[1])
    assert bits(at_once[2]) == bits(one_by_one[2])
    assert at_once[1].weights_hash != at_once[2].weights_hash


def test_epochs_stream_and_a_no_prunes(pair: LocalExecutor) -> None:
    """Each epoch is an event that waits for an answer; after answer(go=False) the job ends there, as pruned."""
    events = until_done(pair, {5: config(epochs=50)}, go=lambda event: event.scores.epoch < 3)

    result = results_of(events)[5]
    assert [event.scores.epoch for event in events if isinstance(event, EpochEnded)] == [1, 2, 3]
    assert (result.fit.stopped, len(result.fit.epochs)) == ("pruned", 3)
    assert 0 < result.test_accuracy < 1


def test_a_failed_job_costs_one_job(pair: LocalExecutor) -> None:
    """A training that blows up fails with its reason, in the worker that then takes the next job."""
    wild = runs.run_config(runs.SGD | {"learning_rate": 1000.0}, {"activation": "linear"}, data=DIGITS, **QUICK)
    before = pids(pair)

    [failed, *_] = until_done(pair, {1: wild})
    events = until_done(pair, {2: config()})

    assert isinstance(failed, Failed)
    assert "lower optimizer.learning_rate" in failed.reason
    assert "\n" not in failed.reason
    assert list(results_of(events)) == [2]
    assert pids(pair) == before


def test_weights_go_where_they_are_asked_for(pair: LocalExecutor, tmp_path: Path) -> None:
    """The kept weights of one job are written to its path."""
    pair.submit(1, config(epochs=1), tmp_path / "model.weights.h5")
    while not isinstance(event := pair.next_event(60), Finished):
        if isinstance(event, EpochEnded):
            pair.answer(1, go=True)

    assert (tmp_path / "model.weights.h5").stat().st_size > 4 * event.result.fit.parameters


def test_nothing_to_report_is_none(pair: LocalExecutor) -> None:
    """Where no event comes within the timeout, the answer is None."""
    assert pair.next_event(0.01) is None


def test_a_killed_worker_is_replaced(pair: LocalExecutor) -> None:
    """SIGKILL in mid-trial fails that trial with the signal's name; a new worker takes the next job."""
    wait_idle(pair, 2)
    pair.submit(1, config(epochs=100_000))
    assert isinstance(pair.next_event(60), EpochEnded)
    victim = next(worker for worker in pair._workers if worker.job == 1)

    victim.process.kill()
    event = pair.next_event(60)
    pair.answer(1, go=True)  # too late, and no fault
    events = until_done(pair, {2: config(seed=1), 3: config(seed=2), 4: config(seed=3)})

    assert isinstance(event, Failed)
    assert event.job == 1
    assert event.reason == "its worker died (signal SIGKILL): it wrote nothing"
    assert victim.process.pid not in pids(pair)
    assert sorted(results_of(events)) == [2, 3, 4]


def test_a_job_for_a_worker_that_just_died_fails(pair: LocalExecutor) -> None:
    """An idle worker that dies unnoticed costs the job that it is given next, and is replaced."""
    wait_idle(pair, 2)
    victim = pair._workers[0]
    victim.process.kill()
    assert wait_until(lambda: gone(victim.process.pid))

    pair.submit(1, config())
    event = pair.next_event(60)

    assert isinstance(event, Failed)
    assert event.job == 1
    assert event.reason.startswith("its worker died (signal SIGKILL): ")
    assert victim.process.pid not in pids(pair)


def test_a_large_worker_is_replaced_between_jobs(single: LocalExecutor) -> None:
    """One that holds more than max_memory makes room for a new one, after a fair number of jobs; none is lost."""
    wait_idle(single, 1)
    [old], before = single._workers, pids(single)

    jobs = {job: config(epochs=1) for job in range(MIN_JOBS + 1 - old.jobs_done)}

    results = results_of(until_done(single, jobs))

    hashes = {result.weights_hash for result in results.values()}
    assert results.keys() == jobs.keys()
    assert old.jobs_done == MIN_JOBS
    assert len(hashes) == 1
    assert pids(single) != before
    assert gone(old.process.pid)


def test_no_worker_outlives_close(pair: LocalExecutor, single: LocalExecutor) -> None:
    """Idle, busy and just starting: when close returns, all are gone. (Closing twice is no fault.)"""
    wait_idle(pair, 2)
    wait_idle(single, 1)
    single.submit(1, config(epochs=100_000))
    single._workers.append(single._start(1))
    everybody = pids(pair) + pids(single)

    pair.close()
    single.close()

    assert len(everybody) == 4
    assert all(gone(pid) for pid in everybody)


PARENT = """
import json, sys
sys.path.insert(0, {tests!r})
import test_executor as t

executor = t.start(1)
t.wait_idle(executor, 1)
executor.submit(1, t.config(epochs=100_000, hidden_units=[2000]))  # busy: it doesn't look at its input
print(json.dumps(t.pids(executor)), flush=True)
while True:
    if event := executor.next_event(60):
        executor.answer(1, go=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_no_worker_outlives_a_killed_parent() -> None:
    """kill -9 leaves a parent no time to close anything: its busy worker leaves all the same."""
    root, tests = Path(executors.__file__).parent.parent, Path(__file__).parent
    code = PARENT.format(tests=str(tests))
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        [worker] = json.loads(parent.stdout.readline())
        was_alive = not gone(worker)
        parent.send_signal(signal.SIGKILL)

    assert was_alive
    assert wait_until(lambda: gone(worker))


# ------------------------------------------------------------------------------- workers that can't start


def listen_for_ever(executor: LocalExecutor, seen: set[int] | None = None) -> None:
    """Wait for events until something is raised; the ids of all workers that there were go to `seen`."""
    seen = set() if seen is None else seen
    while True:
        seen.update(pids(executor))
        executor.next_event(60)


def test_a_broken_installation_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TensorFlow that kills its process ends the wait after three starts, with its last words."""
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(
        "import os, sys\n"
        "print('libcublas.so.12: no such file', file=sys.stderr)\n"
        "print('E0000 00:00:1795.10 cpu_aot_loader.cc:220] as ever', file=sys.stderr, flush=True)\n"
        "os._exit(7)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    executor = start(1)
    starts: set[int] = set()

    with pytest.raises(WorkerError) as caught:
        listen_for_ever(executor, starts)
    executor.close()

    assert "workers die before they are ready (exit code 7)" in str(caught.value)
    assert str(caught.value).endswith("Last words: libcublas.so.12: no such file")
    assert len(starts) == 3


def test_damaged_data_is_said_as_such(tmp_path: Path) -> None:
    """What a worker can't load is the data's fault, and no reason to start another."""
    (tmp_path / "mine.npz").write_bytes(b"PK\x03\x04 and no more")
    npz = {"name": "npz", "root": str(tmp_path / "mine.npz"), "validation_size": 5, "split": "first", "split_seed": 0}
    executor = LocalExecutor(runs.run_config(data=npz).data, threads=1, device="cpu", workers=1, at_most=1)

    with pytest.raises(DataError, match=r"mine\.npz"):
        listen_for_ever(executor)
    executor.close()


SCRIPTED = """#!{python}
import sys, time
sys.stdin.readline()
{body}
"""


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], LocalExecutor]:
    """Start one worker that is another program: it reads its first line and then does as `body` says."""

    def started(body: str) -> LocalExecutor:
        program = tmp_path / "worker"
        program.write_text(SCRIPTED.format(python=sys.executable, body=body))
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        return start(1)

    return started


@pytest.mark.skipif(sys.platform == "win32", reason="runs a script by its first line")
def test_half_a_line_is_no_event(scripted: Callable[[str], LocalExecutor]) -> None:
    """A worker that is killed in mid-sentence has died, and nobody waits for the rest."""
    executor = scripted("print('{\"event\": \"rea', end='', flush=True); sys.exit(3)")

    with pytest.raises(WorkerError, match=r"\(exit code 3\).*Last words: it wrote nothing"):
        listen_for_ever(executor)
    executor.close()


@pytest.mark.skipif(sys.platform == "win32", reason="runs a script by its first line")
def test_a_worker_that_does_not_leave_is_killed(scripted: Callable[[str], LocalExecutor]) -> None:
    """close() doesn't depend on the good will of a worker that looks at nothing."""
    ready = {"event": "ready", "device": "none", "flags": {}, "fingerprint": "", "versions": {}}
    executor = scripted(f"print({json.dumps(json.dumps(ready))}, flush=True)\nwhile True: time.sleep(60)")
    wait_idle(executor, 1)
    [stubborn] = pids(executor)

    executor.close()

    assert gone(stubborn)


def test_a_card_that_tensorflow_cannot_use_leaves_a_worker_per_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a driver but without CUDA's libraries it is a CPU's sweep, on all of its cores."""
    monkeypatch.setattr(executors, "visible_gpus", lambda: ["0"])
    monkeypatch.setattr(executors, "cores", lambda: 2)
    executor = LocalExecutor(config().data, threads=1, device="auto", workers="auto", at_most=9)
    try:
        assert executor.size == 1
        wait_idle(executor, 1)
        assert executor.size == 2
    finally:
        executor.close()


def test_other_data_than_the_parents_are_refused() -> None:
    """A file that changes between the parent's look and a worker's is an error, not a mixed study."""
    executor = LocalExecutor(config().data, threads=1, device="cpu", workers=1, at_most=1, fingerprint="another")
    try:
        with pytest.raises(DataError, match="the data changed while this command ran"):
            wait_idle(executor, 1)
    finally:
        executor.close()


def test_a_gpu_that_is_not_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """device=gpu without a GPU is refused by name; the other two are content with what there is."""
    monkeypatch.setattr(executors, "visible_gpus", list)

    with pytest.raises(WorkerError, match=r"trainer\.device=gpu: no NVIDIA GPU is visible here; give"):
        require_device("gpu")
    require_device("auto")
    require_device("cpu")


# ------------------------------------------------------------------------------ devices and environment


def test_how_many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as asked for; else one per GPU; else as many as the cores carry, and always one."""
    monkeypatch.setattr(executors, "cores", lambda: 8)

    assert worker_count(3, threads=1, gpus=0) == 3
    assert worker_count(5, threads=4, gpus=2) == 5
    assert worker_count("auto", threads=1, gpus=2) == 2
    assert worker_count("auto", threads=1, gpus=0) == 8
    assert worker_count("auto", threads=3, gpus=0) == 2
    assert worker_count("auto", threads=16, gpus=0) == 1


def test_no_more_workers_than_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study of two trials starts two workers, whatever the cores."""
    monkeypatch.setattr(LocalExecutor, "_start", lambda self, index: index)

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

    root = str(Path(executors.__file__).parent.parent)
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
    monkeypatch.setattr(executors.platformdirs, "user_cache_dir", lambda name: str(tmp_path / cache / name))
    monkeypatch.setenv("TF_XLA_FLAGS", "--mine")

    flags = worker_environment(1, [], 0, {})["TF_XLA_FLAGS"].split()

    assert flags[0] == "--mine"
    assert [flag.partition("=")[0] for flag in flags[1:]] == ["--tf_xla_persistent_cache_directory"] * used


def test_the_memory_limit_is_off_by_default() -> None:
    """An executor that isn't told a limit replaces no worker for its size."""
    assert LocalExecutor.__init__.__kwdefaults__["max_memory"] == math.inf
