"""The fakes: an executor that plays scripted scores, and a tracker that keeps runs in a list."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnistexp.config.schema import RunConfig
from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import StoreRefusal
from mnistexp.tracking.records import LoggedRun, RunRecord
from mnistexp.tracking.runs import Ending, Tracker
from mnistexp.training.results import EpochScores, FitResult, RunResult, Stopped
from mnistexp.workers.pool import EpochEnded, Event, Failed, Finished, Lost

Step = float | str | signal.Signals | BaseException | None
"""One step of a script: an epoch's validation accuracy, why the job fails there, a signal to this process, what ends
the whole session, or None: the job's worker is killed."""

Script = Callable[[int, RunConfig], Sequence[Step]]
"""What happens to a job: its number and config → its epochs."""


def epoch_scores(epoch: int, val_accuracy: float) -> EpochScores:
    """One epoch's scores, all derived from the accuracy; none is a round number, so that lost digits show."""
    loss = 2.0 - val_accuracy + 1 / 3
    return EpochScores(
        epoch=epoch,
        steps=10 * epoch,
        learning_rate=0.1 / 3,
        loss=loss,
        accuracy=val_accuracy / 3,
        val_loss=loss + 1 / 7,
        val_accuracy=val_accuracy,
        seconds=0.25,
    )


def run_result(
    accuracies: Sequence[float],
    test_accuracy: float | None = 2 / 3,
    stopped: Stopped = "completed",
    hash_of: object = "",
) -> RunResult:
    """A training with these validation accuracies; its best epoch, the first of equals, is kept."""
    epochs = tuple(epoch_scores(epoch, accuracy) for epoch, accuracy in enumerate(accuracies, start=1))
    fit = FitResult(
        epochs=epochs,
        best_epoch=1 + accuracies.index(max(accuracies)),
        stopped=stopped,
        parameters=1234,
        seconds=0.5,
        validation_correct=b"\xf0\x0f",
        wrong_predictions=b"\x03\x00" * 8,
    )
    flags = {"jit_compile": "true", "threads": "1", "XLA_FLAGS": ""}
    test_loss = None if test_accuracy is None else 1 - test_accuracy
    return RunResult(
        fit=fit,
        test_accuracy=test_accuracy,
        test_loss=test_loss,
        weights_hash=f"hash of {hash_of}",
        data_fingerprint="f" * 32,
        device="CPU (fake)",
        flags=flags,
    )


@dataclass
class _Playing:
    """A job on the fake stage: what is still to come, and what was."""

    steps: deque[Step]
    seen: list[float] = field(default_factory=list)
    go: bool = True


class FakeExecutor:
    """Plays scripts on imagined workers; jobs take turns by epoch. See WorkerPool.

    Args:
        script: what happens to each job.
        workers: how many jobs play at once.
        test_accuracy: of each job, by its number.
    """

    def __init__(
        self, script: Script, workers: int = 1, test_accuracy: Callable[[int], float] = lambda _: 2 / 3
    ) -> None:
        self._script, self._workers, self._test_accuracy = script, workers, test_accuracy
        self._playing: dict[int, _Playing] = {}
        self._turns: deque[int] = deque()
        self.jobs: dict[int, RunConfig] = {}
        self.sealed: set[int] = set()  # jobs that don't look at the test split
        self.waits = 0  # times that somebody asked for an event when none was to come

    @property
    def worker_info(self) -> Mapping[str, Any]:
        return {"device": "CPU (fake)", "flags": {"threads": "1"}}

    @property
    def size(self) -> int:
        return self._workers

    def idle(self) -> int:
        return self._workers - len(self._playing)

    def submit(self, job: int, config: RunConfig, weights_path: Path | None = None, *, test: bool = True) -> None:
        assert self.idle(), "submitted to busy workers"
        if weights_path is not None:
            weights_path.write_bytes(b"weights")
        self.jobs[job] = config
        self.sealed |= set() if test else {job}
        self._playing[job] = _Playing(deque(self._script(job, config)))
        self._turns.append(job)

    def next_event(self, timeout: float) -> Event | None:
        if not self._turns:
            self.waits += 1
            assert self.waits < 100, "the caller waits for events that never come"
            return None
        job = self._turns.popleft()
        playing = self._playing[job]
        ended = not (playing.go and playing.steps)
        step = None if ended else playing.steps.popleft()
        if isinstance(step, signal.Signals):
            signal.raise_signal(step)
            self._turns.appendleft(job)
            return None
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, float):
            playing.seen.append(step)
            return EpochEnded(job, epoch_scores(len(playing.seen), step))
        del self._playing[job]
        if isinstance(step, str):
            return Failed(job, step)
        if not ended:
            return Lost(job, "its worker was killed")
        stopped: Stopped = "completed" if not playing.steps else "pruned"
        test = None if job in self.sealed else self._test_accuracy(job)
        return Finished(job, run_result(playing.seen, test, stopped, self.jobs[job].seed))

    def answer(self, job: int, *, go: bool) -> None:
        self._playing[job].go = go
        self._turns.append(job)

    def close(self) -> None:
        self._playing.clear()


class RecordingTracker(Tracker):
    """Keeps records in a list. `faults`: run number → what is raised right after that run was kept."""

    def __init__(self, faults: Mapping[int, BaseException] | None = None) -> None:
        self.faults = dict(faults or {})
        self.away = False  # every method raises StoreError
        self.refused: set[str] = set()  # trials whose runs are refused
        self.records: list[RunRecord] = []
        self.parents: list[str] = []  # of each record
        self.open: set[str] = set()  # parent runs
        self.sweeps: list[tuple[str, str, Mapping[str, float], Ending | None]] = []  # each summary that was written

    def start_parent(self, name: str, tags: Mapping[str, str], description: str, files: Mapping[str, str]) -> str:
        self._answer()
        self.open.add(f"parent of {tags['study']}")
        return f"parent of {tags['study']}"

    def log(
        self, record: RunRecord, parent: str = "", files: Mapping[str, str] | None = None, *, may_exist: bool = False
    ) -> str:
        self._answer()
        if record.tags.get("trial") in self.refused:
            raise StoreRefusal(f"tracking.uri=…: does not accept the run {record.name}")
        if may_exist:
            for number, kept in enumerate(self.records):
                if kept.tags == record.tags and kept.state == record.state:
                    return str(number)
        self.records.append(record)
        self.parents.append(parent)
        fault = self.faults.pop(len(self.records) - 1, None)
        if fault is not None:
            raise fault
        return str(len(self.records) - 1)

    def finish_parent(self, run_id: str, metrics: Mapping[str, float], description: str, ending: Ending | None) -> None:
        self._answer()
        self.sweeps.append((run_id, description, metrics, ending))
        if ending is not None:
            self.open.discard(run_id)

    def close_stale_runs(self, tags: Mapping[str, str], ending: Ending | None, is_alive: Callable[[str], bool]) -> None:
        self._answer()
        if ending is not None:
            self.open.discard(f"parent of {tags['study']}")

    def find(self, tags: Mapping[str, str], run_id: str = "", *, deleted: bool = False) -> Iterator[LoggedRun]:
        self._answer()
        logged = [_logged(str(number), record) for number, record in enumerate(self.records)]
        if run_id and not any(run.run_id == run_id for run in logged):
            raise StoreError(f"run={run_id}: no such run")
        wanted = [run for run in logged if run_id in ("", run.run_id)]
        yield from (run for run in wanted if tags.items() <= run.tags.items())

    def _answer(self) -> None:
        if self.away:
            raise StoreError("tracking.uri=…: MLflow can't use it: it is away")


def _logged(run_id: str, record: RunRecord) -> LoggedRun:
    """A record as a store gives it back."""
    result = record.result
    metrics: dict[str, float] = {}
    if result is not None:
        metrics = {"val_accuracy": result.fit.best.val_accuracy, "val_loss": result.fit.best.val_loss}
    if result is not None and result.test_accuracy is not None and result.test_loss is not None:
        metrics |= {"test_accuracy": result.test_accuracy, "test_loss": result.test_loss}
    return LoggedRun(
        run_id=run_id,
        name=record.name,
        config=record.config,
        overrides=record.overrides,
        state=record.state,
        metrics=metrics,
        weights_hash=result.weights_hash if result else "",
        data_fingerprint=record.data_fingerprint,
        provenance=record.provenance,
        tags={"kind": record.kind, "state": record.state, **record.tags},
    )
