"""The loop of a sweep: claim trials, run them, prune, retry and record them, until there is a reason to stop.

For each trial it writes, in this order: the record into the study's database, the value into the same, the run into
MLflow. A crash before the first write costs the training, which is repeated with the same parameters and seed. A crash
after it costs nothing: the next sweep writes what is missing.

    first Ctrl-C, SIGTERM      no new trial; running trials end their epoch and are requeued (`_shut_down`)
    second Ctrl-C              KeyboardInterrupt at once; the next sweep recovers the running trials
    study's database is away   Database.retry waits; then StoreError, and `run` requeues what it still can
    MLflow is away or full     trials go on; UploadQueue keeps their runs and tries again
    MLflow refuses one run     UploadQueue reports it and goes on with the others
    a worker is lost           `_retry_or_fail`
    a training fails           `_finish_trial`; after study.max_failures alike in a row, `_stop_reason`
    another process takes over `_drop_result`: this process was suspended, or its machine was unreachable
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from mnistexp.config.schema import RunConfig
from mnistexp.errors import MnistexpError, StoreError
from mnistexp.search.space import Space
from mnistexp.study.database import Database
from mnistexp.study.parent_run import ParentRun
from mnistexp.study.progress import Progress, stop_reason
from mnistexp.study.signals import StopRequest
from mnistexp.study.study import ClaimedTrial, InvalidTrial, SharedStudy
from mnistexp.study.upload_queue import UploadQueue
from mnistexp.tracking.records import LoggedRun, RunRecord, State
from mnistexp.tracking.run_context import RunContext
from mnistexp.tracking.runs import Ending, Tracker
from mnistexp.training.results import EpochScores
from mnistexp.workers.pool import EpochEnded, Event, Failed, Finished, Lost, WorkerPool
from mnistexp.workers.start import POLL_SECONDS, wait_until_ready

CHECK_SECONDS = 2.0  # between two checks of what other processes did
STOP_SECONDS = 6.0  # for running epochs to end after Ctrl-C; the rest of ten seconds is for writing


@dataclass(frozen=True)
class Summary:
    """How a session of a sweep ended."""

    progress: Progress
    stopped: str  # why no further trial started
    trials: int  # that this session ran
    seconds: float  # since the first trial's start
    parent_cpu_seconds: float  # of this process in that time
    interrupted: bool = False
    unlogged: int = 0  # runs that MLflow doesn't have yet
    gave_up: bool = False  # study.max_failures ended it


@dataclass(frozen=True)
class SweepCallbacks:
    """What is called while a sweep runs."""

    on_trial: Callable[[RunRecord, Progress], None]  # a trial has ended
    on_refused: Callable[[str, int, Progress], None] = lambda *_: None  # reason, number: an invalid trial has failed
    on_note: Callable[[str], None] = lambda _: None
    on_start: Callable[[int, RunConfig], None] = lambda *_: None  # a worker has a trial
    on_epoch: Callable[[int, EpochScores], None] = lambda *_: None
    on_gone: Callable[[int], None] = lambda _: None  # a trial left its worker without an end


class JobState(Enum):
    """What has become of a claimed trial on a worker."""

    RUNNING = auto()
    STOPPED = auto()  # ended its epoch after Ctrl-C, and gets no further answer
    TAKEN_OVER = auto()  # by another process


@dataclass
class _Job:
    """A claimed trial on a worker."""

    claim: ClaimedTrial
    started: float  # seconds since 1970
    state: JobState = JobState.RUNNING
    reclaimed: ClaimedTrial | None = None  # the same trial, claimed again after it was taken over


class Sweep:
    """One sweep process of a study: it continues the study up to the total of `study.trials`.

    Args:
        title, page: see ParentRun.
    """

    def __init__(
        self,
        database: Database,
        context: RunContext,
        space: Space,
        tracker: Tracker,
        callbacks: SweepCallbacks,
        *,
        title: str = "",
        page: Callable[[Progress], str] | None = None,
    ) -> None:
        self._database, self._callbacks = database, callbacks
        self._config = context.prepared.config
        database.on_retry = callbacks.on_note
        self._study = SharedStudy(database, context, space)
        self._parent = ParentRun(database, context, space, self._study, tracker, title, page)
        self._uploads = UploadQueue(self._study, tracker, self.open_parent, callbacks.on_note)
        self._jobs: dict[int, _Job] = {}
        self._todo: list[ClaimedTrial] = []  # claimed, without a worker yet
        self._ran, self._checked = 0, 0.0
        self._noted: set[str] = set()
        self._worker_info: Mapping[str, Any] = {}
        self._failures: list[str] = []  # reasons of the latest trials in a row that failed alike
        self._stop = StopRequest()
        if self._config.tracking.save_weights:
            self._uploads.make_weights_folder()  # it raises before anything is claimed
        self._study.recover_stale_trials()
        self.progress = self._study.progress()
        finished = self.progress.done >= self._config.study.trials
        self._uploads.catch_up(None if self._study.count_others() else "FINISHED" if finished else "KILLED")

    @property
    def name(self) -> str:
        return self._study.name

    def logged_best(self) -> LoggedRun | None:
        """Return the best trial's run, if it is logged and MLflow answers."""
        return self._parent.best_run(self.progress)

    def open_parent(self) -> str:
        """Open the sweep's own run. Returns: its id."""
        return self._parent.open(self.progress, self._worker_info)

    def run(self, executor: WorkerPool | None) -> Summary:
        """Run trials until there is a reason to stop.

        Args:
            executor: None if no trial is left: see `trials_left`.

        Raises: MnistexpError if the sweep can't go on, KeyboardInterrupt at a second signal.
        """
        stopped = self._stop_reason(0)
        if executor is not None and stopped is None:
            self._worker_info = wait_until_ready(executor)
        with self._stop:
            self._database.should_abort = lambda: self._stop.seconds > STOP_SECONDS + 2
            started, cpu = time.monotonic(), time.process_time()
            if executor is not None and stopped is None:
                stopped = self._run_trials(executor, started)
            assert stopped is not None, "there are trials left, but no workers"
            ending: Ending = "KILLED" if stopped == "interrupted" else "FINISHED"
            return self._shut_down(executor, ending, stopped, started, cpu)

    def _run_trials(self, executor: WorkerPool, started: float) -> str:
        self._uploads.open_parent_run()
        try:
            return self._loop(executor, started)
        except MnistexpError:
            self._database.should_abort = lambda: True  # it was waited for already
            with suppress(Exception, KeyboardInterrupt):  # the first error is the one to report
                self._shut_down(executor, "FAILED", "failed", started, time.process_time())
            raise

    # ------------------------------------------------------------------------------------ the loop

    def _loop(self, executor: WorkerPool, started: float) -> str:
        while True:
            self._study.heartbeat()
            self._uploads.flush()
            self._check_other_processes()
            stopped = "interrupted" if self._stop.asked else self._stop_reason(time.monotonic() - started)
            if stopped is None:
                self._start_trials(executor)
            elif not self._jobs or (self._stop.asked and self._can_interrupt()):
                return stopped
            elif self._stop.asked:
                self._note_once("interrupted: running trials end their epoch; once more, and it ends at once")
            self._handle(executor.next_event(POLL_SECONDS), executor)

    def _stop_reason(self, seconds: float) -> str | None:
        """Why no further trial starts, or None."""
        study = self._config.study
        if reason := stop_reason(study, self.progress):
            return reason
        if study.timeout is not None and seconds >= study.timeout:
            return f"study.timeout={study.timeout:g} is over"
        if self._has_failed_alike:
            return f"{len(self._failures)} trials in a row failed alike (study.max_failures): {self._failures[-1]}"
        return None

    def _can_interrupt(self) -> bool:
        all_stopped = all(job.state is JobState.STOPPED for job in self._jobs.values())
        return all_stopped or self._stop.seconds > STOP_SECONDS

    def _check_other_processes(self) -> None:
        """Recover the trials of dead processes, and update the progress."""
        if time.monotonic() - self._checked < CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        if self._study.recover_stale_trials():
            self._uploads.catch_up()
        self.progress = self._study.progress()

    def _start_trials(self, executor: WorkerPool) -> None:
        """Give each idle worker a trial, as long as there are any."""
        while executor.idle() and not self._stop.asked and self._stop_reason(0) is None:
            if self._todo:
                self._submit(executor, self._todo.pop())
                continue
            if len(self._jobs) + self.progress.done >= self._config.study.trials:
                return
            match self._study.claim():
                case None:
                    if not self._jobs:
                        self._note_once("other sweeps of this study have the trials that are left; waiting for them")
                    return
                case InvalidTrial(number, reason):
                    self._ran += 1
                    self.progress = self._study.progress()
                    self._count_failure("FAILED", reason)
                    self._callbacks.on_refused(reason, number, self.progress)
                case ClaimedTrial(number=number) as claim if number in self._jobs:  # taken over and requeued
                    self._jobs[number].reclaimed = claim
                case ClaimedTrial() as claim:
                    self._todo.append(claim)

    def _submit(self, executor: WorkerPool, claim: ClaimedTrial) -> None:
        self._jobs[claim.number] = _Job(claim, time.time())
        suggestion, weights = claim.suggestion, None
        if self._config.tracking.save_weights or suggestion.config.tracking.save_weights:  # confirm keeps one network
            weights = self._uploads.weights_path(claim.number)
        executor.submit(claim.number, claim.config, weights, test=suggestion.evaluate_test)
        self._callbacks.on_start(claim.number, claim.config)

    # ------------------------------------------------------------------------------------ one trial

    def _handle(self, event: Event | None, executor: WorkerPool) -> None:
        match event:
            case EpochEnded(number, scores):
                self._continue_or_prune(self._jobs[number], scores, executor)
            case Finished(number, result):
                state: State = "PRUNED" if result.fit.stopped == "pruned" else "COMPLETE"
                self._finish_trial(self._jobs.pop(number), state, result=result)
            case Failed(number, reason):
                self._fail_trial(self._jobs.pop(number), reason)
            case Lost(number, reason):
                self._retry_or_fail(self._jobs.pop(number), reason)

    def _continue_or_prune(self, job: _Job, scores: EpochScores, executor: WorkerPool) -> None:
        """Report an epoch and answer its worker; after Ctrl-C the worker gets no answer."""
        job.claim.epochs.append(scores)
        self._callbacks.on_epoch(job.claim.number, scores)
        if self._stop.asked and scores.epoch < job.claim.config.trainer.epochs:
            job.state = JobState.STOPPED
            return
        decision = self._study.report(job.claim, scores)
        if decision == "lost":
            job.state = JobState.TAKEN_OVER
        executor.answer(job.claim.number, go=decision == "continue")

    def _retry_or_fail(self, job: _Job, reason: str) -> None:
        """Run a trial again if its worker was lost without a fault of the training, up to executor.retries times."""
        number, retries = job.claim.number, self._config.executor.retries
        deaths = 0 if self._stop.asked else self._study.count_death(number)  # Slurm sends SIGTERM to workers too
        if deaths > retries:
            self._fail_trial(job, f"{reason}; it was run {deaths} times (executor.retries={retries})")
            return
        if not self._stop.asked:
            self._callbacks.on_note(f"trial {number}: {reason}; it will be run again ({deaths} of {retries})")
        self._callbacks.on_gone(number)
        self._study.requeue(number)

    def _fail_trial(self, job: _Job, reason: str) -> None:
        self._finish_trial(job, "FAILED", reason=reason, epochs=tuple(job.claim.epochs))

    def _finish_trial(self, job: _Job, state: State, **outcome: Any) -> None:
        """Write a trial's record, its value and its run, in the order that the top of this file explains."""
        record, began = self._record(job, state, **outcome), time.monotonic()
        if job.state is JobState.TAKEN_OVER or not self._study.finish(job.claim.number, record):
            self._drop_result(job)
            return
        self._ran += 1
        self.progress = self._study.progress()
        was_slow = time.monotonic() - began > self._config.study.lease / 4  # another process may have uploaded it
        self._uploads.put(record, check_first=was_slow)
        self._count_failure(record.state, record.reason)
        self._callbacks.on_trial(record, self.progress)

    def _drop_result(self, job: _Job) -> None:
        number = job.claim.number
        self._uploads.discard_weights(number)
        self.progress = self._study.progress()
        if job.reclaimed is not None:
            self._todo.append(job.reclaimed)
        self._callbacks.on_gone(number)
        self._callbacks.on_note(f"trial {number}: another sweep process has taken it over; this result is left out")

    def _record(self, job: _Job, state: State, **outcome: Any) -> RunRecord:
        claim = job.claim
        return self._study.record(claim.number, claim.config, claim.suggestion.overrides, job.started, state, **outcome)

    def _count_failure(self, state: State, reason: str) -> None:
        """Count failures in a row with the same reason, apart from its numbers."""
        if state != "FAILED" or (self._failures and _cause(self._failures[-1]) != _cause(reason)):
            self._failures.clear()
        if state == "FAILED":
            self._failures.append(reason)

    @property
    def _has_failed_alike(self) -> bool:
        return len(self._failures) >= self._config.study.max_failures

    def _note_once(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._callbacks.on_note(text)

    # ------------------------------------------------------------------------------------ the end

    def _shut_down(
        self, executor: WorkerPool | None, ending: Ending, stopped: str, started: float, cpu: float
    ) -> Summary:
        """Requeue running trials, stop the workers, upload what waits, release the lease, close the parent run."""
        for claim in [*(job.claim for job in self._jobs.values()), *self._todo]:
            self._study.requeue(claim.number)
        if executor is not None:
            executor.close()  # before the slow steps: nothing that workers could still send is needed
        for job in self._jobs.values():
            self._uploads.try_once(self._record(job, "INTERRUPTED", epochs=tuple(job.claim.epochs)))
        self._jobs.clear()
        self._todo.clear()
        self._uploads.flush(now=not self._uploads.is_away)
        last = self._study.release()
        if ending == "FINISHED":
            last = last or self._wait_for_others()
            self._uploads.catch_up(ending if last else None)  # the runs of a process that died before it uploaded them
            self._uploads.flush_all(lambda: self._stop.asked)
        self._uploads.close()
        self.progress = self._study.progress()
        summary = self._summary(ending == "KILLED", stopped, started, cpu)
        self._close_parent(summary, ending if last else None)
        return summary

    def _wait_for_others(self) -> bool:
        """Wait, at most a lease's time and until Ctrl-C, for the other processes of a finished study to end.

        Returns: whether none is left.
        """
        if self.progress.done < self._config.study.trials:
            return False
        until = time.monotonic() + self._config.study.lease + CHECK_SECONDS
        others = self._study.count_others()
        if others:
            self._callbacks.on_note(f"all trials are done; waiting for other sweeps of this study to end ({others})")
        while others and time.monotonic() < until and not self._stop.asked:
            time.sleep(1)
            self._study.recover_stale_trials()
            others = self._study.count_others()
        return others == 0

    def _summary(self, interrupted: bool, stopped: str, started: float, cpu: float) -> Summary:
        return Summary(
            progress=self.progress,
            stopped=stopped,
            trials=self._ran,
            seconds=time.monotonic() - started,
            parent_cpu_seconds=time.process_time() - cpu,
            interrupted=interrupted,
            unlogged=len(self._uploads),
            gave_up=not interrupted and self.progress.done < self.progress.total and self._has_failed_alike,
        )

    def _close_parent(self, summary: Summary, ending: Ending | None) -> None:
        if self._uploads.parent is None or self._uploads.is_away:
            return  # the next sweep closes it
        try:
            self._parent.close(self._uploads.parent, self.progress, summary.seconds, summary.parent_cpu_seconds, ending)
        except StoreError as error:
            self._callbacks.on_note(f"{error}. The next sweep closes this one's parent run")


def _cause(reason: str) -> str:
    """A failure's reason with its numbers replaced."""
    return re.sub(r"[-+]?\b(\d[\d.e+-]*|nan|inf)\b", "#", reason)
