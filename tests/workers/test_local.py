from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import runs
from runs import DIGITS, bits, gone, start_local, until_done, wait_idle, wait_until

from mnistexp.config.schema import RunConfig
from mnistexp.errors import DataError, WorkerError
from mnistexp.training.results import RunResult
from mnistexp.workers import local
from mnistexp.workers import pool as executors
from mnistexp.workers.local import LocalExecutor
from mnistexp.workers.pool import MIN_JOBS, EpochEnded, Event, Finished, Lost

QUICK = {"batch_size": 64, "device": "cpu"}
KILLED = "signal SIGKILL, which the system's out-of-memory killer sends as well"


def config(seed: int = 0, epochs: int = 2, **model: Any) -> RunConfig:
    """A training of about a tenth of a second."""
    return runs.run_config(model=model, seed=seed, data=DIGITS, epochs=epochs, **QUICK)


def results_of(events: list[Event]) -> dict[int, RunResult]:
    """The results by job."""
    return {event.job: event.result for event in events if isinstance(event, Finished)}


def pids(executor: LocalExecutor) -> list[int]:
    """The workers' process ids."""
    return [worker.link.pid for worker in executor._workers]


# ------------------------------------------------------------------------------------------ real workers


@pytest.fixture(scope="module")
def pair() -> Iterator[LocalExecutor]:
    """Two real workers, which the tests below leave idle."""
    executor = start_local(2)
    yield executor
    executor.close()


@pytest.fixture(scope="module")
def single() -> Iterator[LocalExecutor]:
    """One real worker, which is large enough to be replaced after a fair number of jobs."""
    executor = start_local(1, max_memory=1.0)
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


def test_nothing_to_report_is_none(pair: LocalExecutor) -> None:
    """Where no event comes within the timeout, the answer is None."""
    assert pair.next_event(0.01) is None


def test_a_killed_worker_is_replaced(pair: LocalExecutor) -> None:
    """SIGKILL in mid-trial loses that trial, by the signal's name; the others go on, and a new worker joins them."""
    wait_idle(pair, 2)
    pair.submit(1, config(epochs=100_000))
    assert isinstance(pair.next_event(60), EpochEnded)
    victim = next(worker for worker in pair._workers if worker.job == 1)

    victim.link.kill()
    event = pair.next_event(60)
    pair.answer(1, go=True)  # too late, and no fault
    events = until_done(pair, {2: config(seed=1), 3: config(seed=2), 4: config(seed=3)})

    assert event == Lost(1, f"its worker was lost ({KILLED}): it wrote nothing")
    assert victim.link.pid not in pids(pair)
    assert sorted(results_of(events)) == [2, 3, 4]


def test_a_job_for_a_worker_that_just_died_is_lost(pair: LocalExecutor) -> None:
    """An idle worker that dies unnoticed costs the job that it is given next, and is replaced."""
    wait_idle(pair, 2)
    victim = pair._workers[0]
    victim.link.kill()
    assert wait_until(lambda: gone(victim.link.pid))

    pair.submit(1, config())
    event = pair.next_event(60)

    assert isinstance(event, Lost)
    assert event.job == 1
    assert event.reason.startswith(f"its worker was lost ({KILLED}): ")
    assert victim.link.pid not in pids(pair)


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
    assert gone(old.link.pid)


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
import runs
sys.path.append(r"{tests}/workers"); import test_local as t

executor = runs.start_local(1)
runs.wait_idle(executor, 1)
executor.submit(1, t.config(epochs=100_000, hidden_units=[2000]))  # busy: it doesn't look at its input
print(json.dumps(t.pids(executor)), flush=True)
while True:
    if event := executor.next_event(60):
        executor.answer(1, go=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_no_worker_outlives_a_killed_parent() -> None:
    """kill -9 leaves a parent no time to close anything: its busy worker leaves all the same."""
    root, tests = Path(executors.__file__).parents[2], Path(__file__).parents[1]
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
    executor = start_local(1)
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
        return start_local(1)

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
    monkeypatch.setattr(local, "visible_gpus", lambda: ["0"])
    monkeypatch.setattr(executors, "cores", lambda: 2)
    monkeypatch.setattr(executors, "GPU_SHARE", 1)
    executor = LocalExecutor(config().data, threads=1, device="auto", workers="auto", at_most=9)
    try:
        assert executor.size == 1
        wait_idle(executor, 1)
        assert executor.size == 2
    finally:
        executor.close()
