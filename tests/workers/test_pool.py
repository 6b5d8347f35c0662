"""The pool's rules, with connections that a test scripts and a clock that it sets: no processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import runs
from fakes import run_result

from mnistexp.config.schema import RunConfig
from mnistexp.errors import DataError, WorkerError
from mnistexp.training.messages import Broken, EpochEnd, JobFailed, JobResult, Message, Ready
from mnistexp.workers import pool as pools
from mnistexp.workers.pool import (
    GAP_SECONDS,
    MIN_JOBS,
    START_SECONDS,
    EpochEnded,
    Failed,
    Finished,
    Lost,
    Received,
    Starting,
    Worker,
    WorkerExit,
    WorkerPool,
    worker_count,
)

KILL = WorkerExit("signal SIGKILL", True, "end of the log")
SEGFAULT = WorkerExit("signal SIGSEGV", False, "end of the log")
RESULT = run_result([0.5])
EPOCH = EpochEnd(scores=RESULT.fit.epochs[0])
READY = Ready(device="CPU", devices=(), flags={}, fingerprint="f", versions={})


def config(timeout: float | None = 100.0) -> RunConfig:
    """A training that is never run."""
    return runs.run_config(data=runs.DIGITS, timeout=timeout)


class FakeConnection:
    """A worker that does nothing by itself."""

    def __init__(self) -> None:
        self.killed = False

    def messages(self) -> Iterator[Received]:
        return iter(())

    def send(self, message: Message) -> None:
        pass

    def kill(self) -> None:
        self.killed = True


class FakePool(WorkerPool):
    """A pool of such workers, `started` in this order."""

    def __init__(self, workers: int = 1, **more: Any) -> None:
        self.now = 1000.0
        self.wanted = workers
        self.started: list[Worker] = []
        super().__init__(runs.setup(), **{"at_most": workers, "clock": lambda: self.now, **more})
        self._fill()

    def _count(self) -> int:
        return self.wanted

    def _open(self, slot: int) -> FakeConnection:
        return FakeConnection()

    def _start(self, slot: int, starts: int = 1) -> Worker:
        self.started.append(super()._start(slot, starts))
        return self.started[-1]

    def killed(self) -> list[bool]:
        """Whether each worker was killed."""
        return [worker.connection.killed for worker in self.started]  # type: ignore[attr-defined]

    def receive(self, message: Received, worker: int = -1) -> Any:
        """Have a worker send a message. Returns: the event that the pool makes of it."""
        self._messages.put((self.started[worker], message))
        return self.next_event(0)

    def make_ready(self) -> None:
        """Have the newest worker start and get ready."""
        self.receive(Starting())
        self.receive(READY)

    def let_pass(self, seconds: float) -> list[Any]:
        """Let time pass while the caller asks for events each second. Returns: the events."""
        events = []
        for _ in range(int(seconds)):
            self.now += 1.0
            events.append(self.next_event(0))
        return [event for event in events if event]


def ready_pool(timeout: float | None = 100.0, **more: Any) -> FakePool:
    """One worker that just got job 1; an epoch may take `timeout` seconds."""
    pool = FakePool(**more)
    pool.make_ready()
    pool.submit(1, config(timeout))
    return pool


@pytest.fixture
def busy() -> FakePool:
    """A pool whose only worker just got job 1."""
    return ready_pool()


# --------------------------------------------------------------------------------------------- timeouts


def test_a_training_without_an_epoch_fails_after_its_timeout(busy: FakePool) -> None:
    """Its worker is killed and replaced, and what the killed one still sends makes no event."""
    before = busy.let_pass(100)
    [failed] = busy.let_pass(50)
    late = [busy.receive(EPOCH, 0), busy.receive(KILL, 0)]
    busy.make_ready()

    assert before == []
    assert isinstance(failed, Failed)
    assert (failed.job, "trainer.timeout=100 s" in failed.reason) == (1, True)
    assert busy.killed() == [True, False]
    assert late == [None, None]
    assert (busy.idle(), busy.size) == (1, 1)


def test_each_epoch_resets_the_clock(busy: FakePool) -> None:
    """Ninety seconds per epoch are within a timeout of 100, however many epochs there are."""
    for _ in range(5):
        assert busy.let_pass(90) == []
        assert busy.receive(EPOCH) == EpochEnded(1, EPOCH.scores)
        busy.answer(1, go=True)


def test_time_without_an_expected_message_does_not_count(busy: FakePool) -> None:
    """An idle worker, one that waits for our answer, one without a timeout, one that waits for room."""
    waits_for_answer, idle, no_timeout, no_room = busy, ready_pool(), ready_pool(timeout=None), FakePool()
    waits_for_answer.receive(EPOCH)
    idle.receive(JobFailed(reason="", memory=0))

    for pool in (waits_for_answer, idle, no_timeout, no_room):
        assert pool.let_pass(4 * START_SECONDS) == []
        assert pool.killed() == [False]


def test_time_in_which_the_caller_slept_does_not_count(busy: FakePool) -> None:
    """A laptop's closed lid fails no training."""
    busy.let_pass(60)
    for _ in range(20):
        busy.now += GAP_SECONDS + 3600
        assert busy.next_event(0) is None

    assert busy.let_pass(40) == []
    assert len(busy.let_pass(2)) == 1


def test_unread_messages_come_before_a_timeout(busy: FakePool) -> None:
    """An epoch that ended in time but was not read yet is no hang."""
    busy.let_pass(99)
    busy.now += 4.0

    assert isinstance(busy.receive(EPOCH), EpochEnded)
    assert busy.killed() == [False]


# --------------------------------------------------------------------------------------- the end of a worker


@pytest.mark.parametrize(("how", "kind"), [(KILL, Lost), (SEGFAULT, Failed)])
def test_a_dead_worker_is_replaced(busy: FakePool, how: WorkerExit, kind: type[Lost | Failed]) -> None:
    """Whether its training can be run again depends on how it died; a late answer is ignored."""
    event = busy.receive(how)
    busy.answer(1, go=True)

    assert type(event) is kind
    assert event.job == 1
    assert how.how in event.reason
    assert (busy.size, len(busy.started)) == (1, 2)


def test_a_large_worker_is_replaced_between_trainings() -> None:
    """A worker above max_memory is replaced after MIN_JOBS trainings, without losing one."""
    pool = ready_pool(max_memory=100)

    for job in range(1, MIN_JOBS + 1):
        assert pool.killed() == [False]
        assert pool.receive(JobResult(result=RESULT, memory=101)) == Finished(job, RESULT)
        if pool.idle():
            pool.submit(job + 1, config())

    assert pool.receive(KILL, 0) is None
    assert (pool.size, pool.killed()) == (1, [True, False])


def test_workers_that_hang_at_their_start_end_the_command() -> None:
    """Three in a row that never get ready raise an error with the end of their log."""
    pool = FakePool()
    for _ in range(2):
        pool.receive(Starting())
        pool.let_pass(START_SECONDS + 1)
        pool.receive(KILL)
    pool.receive(Starting())
    pool.let_pass(START_SECONDS + 1)

    assert pool.killed() == [True] * 3
    with pytest.raises(WorkerError, match=r"not ready within 300 s.*end of the log"):
        pool.receive(KILL)


def test_early_deaths_count_by_slot() -> None:
    """Eight deaths at once are one per slot, and a ready worker resets all counts."""
    pool = FakePool(workers=8)
    for _ in range(2):
        for index in range(len(pool.started) - 8, len(pool.started)):
            pool.receive(KILL, index)
    pool.make_ready()
    for index in range(len(pool.started) - 8, len(pool.started) - 1):
        pool.receive(KILL, index)

    assert (pool.size, pool.idle()) == (8, 1)


def test_errors_that_every_worker_would_have_are_raised() -> None:
    """A broken data set, and one that has changed in the meantime, with both fingerprints."""
    with pytest.raises(DataError, match=r"mine\.npz"):
        FakePool().receive(Broken(error="DataError", message="mine.npz is damaged"))
    with pytest.raises(DataError, match=r"was another and is f\)"):
        FakePool(fingerprint="another").receive(READY)


class Unreadable(FakeConnection):
    """A worker that sends no message."""

    def messages(self) -> Iterator[Received]:
        raise ValueError("no message")


def test_a_failed_listener_is_a_lost_worker() -> None:
    """The worker is killed, and its training is lost with the error as the reason."""
    pool = ready_pool()
    worker = pool.started[0]
    worker.connection = Unreadable()

    pool._listen(worker)
    lost = pool.next_event(0)

    assert isinstance(lost, Lost)
    assert "ValueError): no message" in lost.reason
    assert pool.killed() == [True, False]


# ------------------------------------------------------------------------------------------ number of workers


@pytest.mark.parametrize(("wanted", "at_most", "started"), [(64, 2, 2), (2, 64, 2), (64, 0, 0)])
def test_no_more_workers_than_trainings(wanted: int, at_most: int, started: int) -> None:
    """A study with two trials left starts two workers, and a finished one starts none."""
    assert FakePool(wanted, at_most=at_most).size == started


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's number; else four per GPU while there are cores for them; else one per core, and at least one."""
    monkeypatch.setattr(pools, "cores", lambda: 8)
    expected = {
        (3, 1, 0): 3,
        (5, 4, 2): 5,
        ("auto", 1, 1): 4,
        ("auto", 1, 2): 8,
        ("auto", 2, 2): 4,
        ("auto", 1, 16): 16,
        ("auto", 1, 0): 8,
        ("auto", 3, 0): 2,
        ("auto", 16, 0): 1,
    }

    assert {case: worker_count(*case) for case in expected} == expected  # type: ignore[arg-type]
