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
    another process takes over `_finish_trial`: this process was suspended, or its machine was unreachable
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mnistexp.config.schema import RunConfig
from mnistexp.errors import MnistexpError
from mnistexp.search.space import Space
from mnistexp.study.database import Database
from mnistexp.study.parent_run import ParentRun
from mnistexp.study.progress import Progress, stop_reason
from mnistexp.study.signals import StopRequest
from mnistexp.study.study import ClaimedTrial, InvalidTrial, SharedStudy
from mnistexp.study.upload_queue import UploadQueue
from mnistexp.tracking.records import RunRecord, State
from mnistexp.tracking.run_context import RunContext
from mnistexp.tracking.runs import Ending, Tracker
from mnistexp.training.results import EpochScores
from mnistexp.workers.pool import POLL_SECONDS, EpochEnded, Event, Failed, Finished, Lost, WorkerPool
from mnistexp.workers.start import wait_until_ready

CHECK_SECONDS = 2.0  # between two checks of what other processes did
BY_SIGNAL = "interrupted"  # Summary.stopped after Ctrl-C
STOP_SECONDS = 6.0  # for running epochs to end after Ctrl-C; the rest of ten seconds is for writing


@dataclass(frozen=True)
class Summary:
    """How a session of a sweep ended."""

    progress: Progress
    stopped: str  # why no further trial started
    trials: int  # that this session ran
    seconds: float  # since the first trial's start
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
        self._parent = ParentRun(self._study, tracker, title, page)
        save_weights = self._config.tracking.save_weights
        self._uploads = UploadQueue(self._study, tracker, self._parent, save_weights, callbacks.on_note)
        self._running: dict[int, ClaimedTrial] = {}  # trials on workers, by their numbers
        self._ran, self._checked = 0, 0.0
        self._started = math.inf  # when the first trial could start
        self._noted: set[str] = set()
        self._failures: list[str] = []  # reasons of the latest trials in a row that failed alike
        self._stop = StopRequest()
        self._others = self._study.recover_stale_trials()
        self.progress = self._study.progress()
        finished = self.progress.done >= self._config.study.trials
        self._uploads.catch_up(None if self._others else "FINISHED" if finished else "KILLED")

    @property
    def name(self) -> str:
        return self._study.name

    def open_parent(self) -> str:
        """Open the sweep's own run. Returns: its id."""
        return self._parent.open()

    def run(self, executor: WorkerPool | None) -> Summary:
        """Run trials until there is a reason to stop.

        Args:
            executor: None if no trial is left: see `trials_left`.

        Raises: MnistexpError if the sweep can't go on, KeyboardInterrupt at a second signal.
        """
        stopped = self._stop_reason()
        if executor is not None and stopped is None:
            self._parent.worker_info = wait_until_ready(executor)
        with self._stop:
            self._database.should_abort = lambda: self._stop.seconds > STOP_SECONDS + 2
            self._started = time.monotonic()
            if stopped is None:
                assert executor is not None, "there are trials left, but no workers"
                stopped = self._run_trials(executor)
            return self._shut_down(executor, "KILLED" if stopped == BY_SIGNAL else "FINISHED", stopped)

    def _run_trials(self, executor: WorkerPool) -> str:
        self._uploads.open_parent()
        try:
            return self._loop(executor)
        except MnistexpError:
            self._database.should_abort = lambda: True  # it was waited for already
            with suppress(Exception, KeyboardInterrupt):  # the first error is the one to report
                self._shut_down(executor, "FAILED", "failed")
            raise

    # ------------------------------------------------------------------------------------ the loop

    def _loop(self, executor: WorkerPool) -> str:
        while True:
            self._study.heartbeat()
            self._uploads.flush()
            self._check_other_processes()
            stopped = self._stop_reason()
            if stopped is None:
                self._start_trials(executor)
            elif not self._running or (stopped == BY_SIGNAL and self._can_interrupt()):
                return stopped
            elif stopped == BY_SIGNAL:
                self._note_once("interrupted: running trials end their epoch; once more, and it ends at once")
            self._handle(executor.next_event(POLL_SECONDS), executor)

    def _stop_reason(self) -> str | None:
        """Why no further trial starts, or None."""
        study = self._config.study
        if self._stop.asked:
            return BY_SIGNAL
        if reason := stop_reason(study, self.progress):
            return reason
        if study.timeout is not None and time.monotonic() - self._started >= study.timeout:
            return f"study.timeout={study.timeout:g} is over"
        if self._has_failed_alike:
            return f"{len(self._failures)} trials in a row failed alike (study.max_failures): {self._failures[-1]}"
        return None

    def _can_interrupt(self) -> bool:
        return all(trial.interrupted for trial in self._running.values()) or self._stop.seconds > STOP_SECONDS

    def _check_other_processes(self) -> None:
        """Recover the trials and the runs of dead processes, and update the progress."""
        if time.monotonic() - self._checked < CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        others = self._study.recover_stale_trials()
        if self._others - others:
            self._uploads.catch_up()
        self._others = others
        self.progress = self._study.progress()

    def _start_trials(self, executor: WorkerPool) -> None:
        """Give each idle worker a trial, as long as there are any."""
        while executor.idle() and self._stop_reason() is None:
            if len(self._running) + self.progress.done >= self._config.study.trials:
                return
            match self._study.claim():
                case None:
                    if not self._running:
                        self._note_once("other sweeps of this study have the trials that are left; waiting for them")
                    return
                case InvalidTrial(number, reason):
                    self._ran += 1
                    self.progress = self._study.progress()
                    self._count_failure("FAILED", reason)
                    self._callbacks.on_refused(reason, number, self.progress)
                case ClaimedTrial() as trial if self._stop.asked:  # meanwhile
                    self._study.requeue(trial.number)
                case ClaimedTrial() as trial if trial.number not in self._running:
                    self._submit(executor, trial)
                case _:  # another process has requeued a trial that is still trained here, which goes on
                    pass

    def _submit(self, executor: WorkerPool, trial: ClaimedTrial) -> None:
        self._running[trial.number] = trial
        weights = self._uploads.weights_path(trial.number) if trial.save_weights else None
        executor.submit(trial.number, trial.config, weights, test=trial.evaluate_test)
        self._callbacks.on_start(trial.number, trial.config)

    # ------------------------------------------------------------------------------------ one trial

    def _handle(self, event: Event | None, executor: WorkerPool) -> None:
        match event:
            case EpochEnded(number, scores):
                self._continue_or_prune(self._running[number], scores, executor)
            case Finished(number, result):
                state: State = "PRUNED" if result.fit.stopped == "pruned" else "COMPLETE"
                self._finish_trial(self._running.pop(number), state, result=result)
            case Failed(number, reason):
                self._fail_trial(self._running.pop(number), reason)
            case Lost(number, reason):
                self._retry_or_fail(self._running.pop(number), reason)

    def _continue_or_prune(self, trial: ClaimedTrial, scores: EpochScores, executor: WorkerPool) -> None:
        """Report an epoch and answer its worker; after Ctrl-C the worker gets no answer."""
        trial.epochs.append(scores)
        self._callbacks.on_epoch(trial.number, scores)
        if self._stop.asked and scores.epoch < trial.config.trainer.epochs:
            trial.interrupted = True
        else:
            executor.answer(trial.number, go=self._study.report(trial, scores))

    def _retry_or_fail(self, trial: ClaimedTrial, reason: str) -> None:
        """Run a trial again if its worker was lost without a fault of the training, up to executor.retries times."""
        retries = self._config.executor.retries
        if not self._stop.asked:  # Slurm sends SIGTERM to workers too
            deaths = self._study.count_death(trial.number)
            if deaths > retries:
                self._fail_trial(trial, f"{reason}; it was run {deaths} times (executor.retries={retries})")
                return
            self._callbacks.on_note(f"trial {trial.number}: {reason}; it will be run again ({deaths} of {retries})")
        self._callbacks.on_gone(trial.number)
        self._study.requeue(trial.number)
        self.progress = self._study.progress()

    def _fail_trial(self, trial: ClaimedTrial, reason: str) -> None:
        self._finish_trial(trial, "FAILED", reason=reason, epochs=tuple(trial.epochs))

    def _finish_trial(self, trial: ClaimedTrial, state: State, **outcome: Any) -> None:
        """Write a trial's record, its value and its run, in the order that the top of this file explains."""
        number, began = trial.number, time.monotonic()
        record = self._study.record(trial, state, **outcome)
        finished = self._study.finish(number, record)
        self.progress = self._study.progress()
        if not finished:
            self._uploads.discard_weights(number)
            self._callbacks.on_gone(number)
            self._callbacks.on_note(f"trial {number}: another sweep process has taken it over; this result is left out")
            return
        self._ran += 1
        was_slow = time.monotonic() - began > self._config.study.lease / 4  # another process may have uploaded it
        self._uploads.put(record, check_first=was_slow)
        self._count_failure(record.state, record.reason)
        self._callbacks.on_trial(record, self.progress)

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

    def _shut_down(self, executor: WorkerPool | None, ending: Ending, stopped: str) -> Summary:
        """Requeue running trials, stop the workers, upload what waits, release the lease, close the parent run."""
        for number in self._running:
            self._study.requeue(number)
        if executor is not None:
            executor.close()  # before the slow steps: nothing that workers could still send is needed
        for trial in self._running.values():
            self._uploads.try_once(self._study.record(trial, "INTERRUPTED", epochs=tuple(trial.epochs)))
        self._running.clear()
        self._uploads.flush(now=not self._uploads.is_away)
        last = self._study.release()
        if ending == "FINISHED":
            last = last or self._wait_for_others()
            self._uploads.catch_up(ending if last else None)  # the runs of a process that died before it uploaded them
            self._uploads.flush(math.inf, now=True, should_stop=lambda: self._stop.asked)
        self.progress = self._study.progress()
        seconds = time.monotonic() - self._started
        self._uploads.close(self.progress, seconds, ending if last else None)
        return Summary(
            progress=self.progress,
            stopped=stopped,
            trials=self._ran,
            seconds=seconds,
            interrupted=stopped == BY_SIGNAL,
            unlogged=len(self._uploads),
            gave_up=stopped != BY_SIGNAL and self.progress.done < self.progress.total and self._has_failed_alike,
        )

    def _wait_for_others(self) -> bool:
        """Wait, at most a lease's time and until Ctrl-C, for the other processes of a finished study to end.

        Returns: whether none is left.
        """
        if self.progress.done < self._config.study.trials:
            return False
        until = time.monotonic() + self._config.study.lease + CHECK_SECONDS
        others = self._study.recover_stale_trials()
        if others:
            self._callbacks.on_note(
                f"all trials are done; waiting for other sweeps of this study to end ({len(others)})"
            )
        while others and time.monotonic() < until and not self._stop.asked:
            time.sleep(1)
            others = self._study.recover_stale_trials()
        return not others


def _cause(reason: str) -> str:
    """A failure's reason with its numbers replaced."""
    return re.sub(r"[-+]?\b(\d[\d.e+-]*|nan|inf)\b", "#", reason)
