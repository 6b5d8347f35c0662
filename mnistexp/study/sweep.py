"""The sweep's loop: claim, run, report or prune, tell, log; and what becomes of trials when something dies.

Order of writes, for every trial: its record into the study's database, its score into the same, its run into
MLflow. A crash before the first costs the training, which is run again with the same parameters and seed; a
crash after it costs nothing: the next driver tells what has a record, and logs what MLflow lacks.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mnistexp.config.schema import RunConfig
from mnistexp.errors import MnistexpError, StoreError
from mnistexp.search.space import Space
from mnistexp.storage.urls import storage_overrides
from mnistexp.study.database import Database
from mnistexp.study.signals import StopRequest
from mnistexp.study.study import ClaimedTrial, InvalidTrial, Progress, SharedStudy
from mnistexp.study.upload_queue import UploadQueue
from mnistexp.tracking.records import LoggedRun, RunRecord, State
from mnistexp.tracking.run_context import RunContext
from mnistexp.tracking.runs import Ending, Tracker
from mnistexp.tracking.sweep_page import sweep_page
from mnistexp.tracking.ui_pages import SEARCHED, fitting
from mnistexp.training.results import EpochScores, objective_value
from mnistexp.workers.pool import EpochEnded, Event, Executor, Failed, Finished, Lost
from mnistexp.workers.start import POLL_SECONDS, wait_until_ready

LOOK_SECONDS = 2.0  # between two looks at what other drivers did, where this one has nothing to do
ORDERLY_SECONDS = 6.0  # that running epochs get to end in after Ctrl-C; the rest of ten is for writing


@dataclass(frozen=True)
class Summary:
    """How a session of a sweep ended."""

    progress: Progress
    stopped: str  # why no further trial started
    trials: int  # that this session ran
    seconds: float  # from the first trial's start
    parent_cpu_seconds: float  # of this process in that time: composing, asking, logging, telling
    interrupted: bool = False
    unlogged: int = 0  # runs that MLflow hasn't got yet
    gave_up: bool = False  # study.max_failures ended it


@dataclass(frozen=True)
class SweepCallbacks:
    """Who is told what goes on."""

    on_trial: Callable[[RunRecord, Progress], None]  # a trial has ended
    on_refused: Callable[[str, int, Progress], None] = lambda *_: None  # why, which: it failed before it began
    on_note: Callable[[str], None] = lambda _: None
    on_start: Callable[[int, RunConfig], None] = lambda *_: None  # a trial is on a worker now
    on_epoch: Callable[[int, EpochScores], None] = lambda *_: None
    on_gone: Callable[[int], None] = lambda _: None  # a trial is on no worker any more, and hasn't ended


@dataclass
class _Job:
    """A claimed trial on a worker."""

    claim: ClaimedTrial
    started: float  # seconds since 1970
    held: bool = False  # ended its epoch after a stop was asked for, and gets no further word
    lost: bool = False  # another driver took it over
    again: ClaimedTrial | None = None  # and then it came back to us


class Sweep:
    """One driver of a study: goes on from what is there, up to the total of `study.trials`."""

    def __init__(
        self,
        database: Database,
        session: RunContext,
        space: Space,
        tracker: Tracker,
        listener: SweepCallbacks,
        *,
        sealed: bool = False,
        title: str = "",
        page: Callable[[Progress], str] | None = None,
        parent: Callable[[], str] | None = None,
    ) -> None:
        """With `sealed`, no trial looks at the test split.

        Args:
            title, page: the parent run's name and description, where it isn't a search's.
            parent: gives the id of a run of somebody else's, in which these are grouped instead.
        """
        self._session, self._space, self._tracker, self._listener = session, space, tracker, listener
        self._sealed, self._title, self._page, self._group = sealed, title, page, parent
        self._config = session.prepared.config
        self._database = database
        database.on_wait = listener.on_note
        self._study = SharedStudy(database, session, space)
        self._outbox = UploadQueue(self._study, tracker, parent or self.open_parent, listener.on_note)
        self._jobs: dict[int, _Job] = {}
        self._ran, self._looked, self._waiting_told, self._stopping_told = 0, 0.0, False, False
        self._facts: Mapping[str, Any] = {}  # what a worker says of its device and flags
        self._causes: list[str] = []  # of the failures in a row that ended last
        self._stop = StopRequest()
        self._todo: list[ClaimedTrial] = []  # claimed, and not on a worker yet
        if self._config.tracking.save_weights:
            self._outbox.weights_path(0)  # a folder that can't be made is said before anything is claimed
        self._study.recover_stale_trials()
        self.progress = self._study.progress()
        all_done = self.progress.done >= self._config.study.trials
        self._outbox.catch_up(None if self._study.others() else "FINISHED" if all_done else "KILLED")

    @property
    def name(self) -> str:
        """The study's name."""
        return self._study.name

    def logged_best(self) -> LoggedRun | None:
        """The best trial's run, if there are both."""
        best = self.progress.best
        if best is None:
            return None
        wanted = {**self._study.tags, "trial": str(best.number), "kind": "trial", "state": "COMPLETE"}
        with suppress(StoreError):  # MLflow is away: what it would say can be looked up later
            return next(self._tracker.find(wanted), None)
        return None

    def run(self, executor: Executor) -> Summary:
        """Run trials until the budget, the time or the target is reached; does not ask the executor if it is.

        A first Ctrl-C or SIGTERM ends it in order: no new trial, running ones go back to the study after their
        epoch. A second raises KeyboardInterrupt at once; the next start mends what that leaves.

        Raises: MnistexpError when something can't go on; the trials under way go back to the study first.
        """
        if (stopped := self._why_stop(0)) is not None:
            return self._close(executor, "FINISHED", stopped, time.monotonic(), time.process_time())
        self._facts = wait_until_ready(executor)
        with self._stop as stop:
            self._database.give_up = lambda: stop.seconds > ORDERLY_SECONDS + 2
            self._outbox.open()
            started, cpu = time.monotonic(), time.process_time()
            try:
                stopped = self._loop(executor, stop, started)
            except MnistexpError:
                self._database.give_up = lambda: True  # it has been waited for
                # What ended the session is what is told; the next start mends the rest.
                with suppress(Exception, KeyboardInterrupt):
                    self._close(executor, "FAILED", "failed", started, cpu)
                raise
            return self._close(executor, "KILLED" if stop.asked else "FINISHED", stopped, started, cpu)

    # ------------------------------------------------------------------------------------ the loop

    def _loop(self, executor: Executor, stop: StopRequest, started: float) -> str:
        while True:
            self._study.heartbeat()
            self._outbox.flush()
            self._look()
            stopped = "interrupted" if stop.asked else self._why_stop(time.monotonic() - started)
            self._say_stopping(stop)
            if stopped is None:
                self._fill(executor, stop)
            elif not self._jobs or (stop.asked and self._can_leave(stop)):
                return stopped
            self._handle(executor.next_event(POLL_SECONDS), executor, stop)

    def _can_leave(self, stop: StopRequest) -> bool:
        return stop.seconds > ORDERLY_SECONDS or all(job.held for job in self._jobs.values())

    def _look(self) -> None:
        """See what other drivers have done, and take over from dead ones."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        if self._study.recover_stale_trials():  # which looks at every driver
            self._outbox.catch_up()
        self.progress = self._study.progress()

    def _fill(self, executor: Executor, stop: StopRequest) -> None:
        """Give every idle worker a trial, as far as there are any."""
        while executor.idle() and not stop.asked and self._why_stop(0) is None:
            if self._todo:
                self._submit(executor, self._todo.pop())
                continue
            if len(self._jobs) + self.progress.done >= self._config.study.trials:
                return
            match self._study.claim():
                case None:  # other drivers have what is left
                    self._say_waiting()
                    return
                case InvalidTrial(number, reason):
                    self._refused(number, reason)
                case ClaimedTrial(number=number) as claim if number in self._jobs:  # taken from us, and back again
                    self._jobs[number].again = claim
                case ClaimedTrial() as claim:
                    self._todo.append(claim)

    def _say_stopping(self, stop: StopRequest) -> None:
        """Once: without a word, a Ctrl-C that has to wait for the ends of epochs looks like one that wasn't heard."""
        if stop.asked and self._jobs and not self._stopping_told:
            self._stopping_told = True
            self._listener.on_note("interrupted: running trials end their epoch; once more, and it ends at once")

    def _say_waiting(self) -> None:
        """Once, where this driver has nothing to do: the other may be a process that somebody has stopped."""
        if not self._jobs and not self._waiting_told:
            self._waiting_told = True
            self._listener.on_note(
                "other sweeps of this study have the trials that are left; waiting, to take over if they die"
            )

    def _refused(self, number: int, reason: str) -> None:
        self.progress = self._study.progress()
        self._ran += 1
        self._count_failures("FAILED", reason)
        self._listener.on_refused(reason, number, self.progress)

    def _submit(self, executor: Executor, claim: ClaimedTrial) -> None:
        self._jobs[claim.number] = _Job(claim, time.time())
        weights = self._outbox.weights_path(claim.number) if self._config.tracking.save_weights else None
        executor.submit(claim.number, claim.config, weights, test=not self._sealed)
        self._listener.on_start(claim.number, claim.config)

    def _why_stop(self, seconds: float) -> str | None:
        """Why no further trial starts, or None."""
        study, best = self._config.study, self.progress.best
        if self.progress.done >= study.trials:
            return f"all {study.trials} trials are done"
        if study.target is not None and best is not None and best.val_accuracy >= study.target:
            return f"trial {best.number} reached study.target={study.target:g}"
        if study.timeout is not None and seconds >= study.timeout:
            return f"study.timeout={study.timeout:g} is over"
        if self._fails_alike:
            return f"{len(self._causes)} trials in a row failed alike (study.max_failures): {self._causes[-1]}"
        return None

    @property
    def _fails_alike(self) -> bool:
        return len(self._causes) >= self._config.study.max_failures

    # ------------------------------------------------------------------------------------ one trial

    def _handle(self, event: Event | None, executor: Executor, stop: StopRequest) -> None:
        match event:
            case EpochEnded(number, scores):
                self._epoch_ended(self._jobs[number], scores, executor, stop)
            case Finished(number, result):
                state: State = "PRUNED" if result.fit.stopped == "pruned" else "COMPLETE"
                self._end(self._jobs.pop(number), state, result=result)
            case Failed(number, reason):
                job = self._jobs.pop(number)
                self._end(job, "FAILED", reason=reason, epochs=tuple(job.claim.epochs))
            case Lost(number, reason):
                self._worker_lost(self._jobs.pop(number), reason, stop)

    def _epoch_ended(self, job: _Job, scores: EpochScores, executor: Executor, stop: StopRequest) -> None:
        job.claim.epochs.append(scores)
        self._listener.on_epoch(job.claim.number, scores)
        last = scores.epoch == job.claim.config.trainer.epochs
        if stop.asked and not last:
            job.held = True
            return
        goes_on = self._study.goes_on(job.claim, scores)
        job.lost = goes_on is None
        executor.answer(job.claim.number, go=bool(goes_on))

    def _worker_lost(self, job: _Job, reason: str, stop: StopRequest) -> None:
        """A worker died through no fault of its training: that one is run again, but not for ever."""
        number, retries = job.claim.number, self._config.executor.retries
        deaths = 0 if stop.asked else self._study.died(number)  # Slurm sends its SIGTERM to workers too
        if deaths > retries:
            again = f"{reason}; it was run {deaths} times (executor.retries={retries})"
            self._end(job, "FAILED", reason=again, epochs=tuple(job.claim.epochs))
            return
        if not stop.asked:
            self._listener.on_note(f"trial {number}: {reason}; it will be run again ({deaths} of {retries})")
        self._listener.on_gone(number)
        self._study.requeue(number)

    def _end(self, job: _Job, state: State, **outcome: Any) -> None:
        """Tell a trial's score, then log its run: in this order, see the top of this file."""
        record = self._record(job, state, **outcome)
        value = objective_value(record.result.fit) if record.result and state == "COMPLETE" else None
        began = time.monotonic()
        ours = not job.lost and self._study.finish(job.claim.number, record, value)
        if not ours:
            self._outbox.forget(job.claim.number)
            self.progress = self._study.progress()
            self._todo += [job.again] if job.again else []
            self._listener.on_gone(job.claim.number)
            self._listener.on_note(
                f"trial {job.claim.number}: another driver has taken it over; this result is left out"
            )
            return
        self._ran += 1
        self.progress = self._study.progress()
        self._outbox.put(record, again=time.monotonic() - began > self._config.study.lease / 4)
        self._count_failures(record.state, record.reason)
        self._listener.on_trial(record, self.progress)

    def _record(self, job: _Job, state: State, **outcome: Any) -> RunRecord:
        claim = job.claim
        tags = {**self._study.tags, "driver": str(self._study.drivers.number)}
        return self._session.trial(
            claim.number, claim.config, claim.draw.overrides, job.started, state, tags, **outcome
        )

    def _count_failures(self, state: State, reason: str) -> None:
        """How many trials have failed alike, one after the other; numbers in the reason don't make it another."""
        if state != "FAILED" or (self._causes and _cause(self._causes[-1]) != _cause(reason)):
            self._causes.clear()
        if state == "FAILED":
            self._causes.append(reason)

    # ------------------------------------------------------------------------------------ the end

    def _close(self, executor: Executor, ending: Ending, stopped: str, started: float, cpu: float) -> Summary:
        """Hand back what is under way, deliver what waits, leave the study and close the parent run."""
        for claim in [*(job.claim for job in self._jobs.values()), *self._todo]:
            self._study.requeue(claim.number)
        executor.close()  # before anything that may take time: nothing it could still say is wanted
        for job in self._jobs.values():
            self._outbox.try_once(self._record(job, "INTERRUPTED", epochs=tuple(job.claim.epochs)))
        self._jobs.clear()
        self._todo.clear()
        self._outbox.flush(now=not self._outbox.away)
        last = self._study.leave()
        if ending == "FINISHED":
            last = last or self._wait_for_others()
            self._outbox.catch_up(ending if last else None)  # what a driver that died had told, and not logged
            self._deliver_the_rest()
        self.progress = self._study.progress()
        seconds, used = time.monotonic() - started, time.process_time() - cpu
        interrupted, unlogged = ending == "KILLED", len(self._outbox)
        gave_up = not interrupted and self.progress.done < self._config.study.trials and self._fails_alike
        summary = Summary(self.progress, stopped, self._ran, seconds, used, interrupted, unlogged, gave_up)
        self._close_parent(summary, ending if last else None)
        return summary

    def _wait_for_others(self) -> bool:
        """Wait for the other drivers of a study that is done: they are about to leave, or dead and about to be seen so.

        Returns: whether none is left, after a lease's time at most.
        """
        if self.progress.done < self._config.study.trials:
            return False
        until = time.monotonic() + self._config.study.lease + LOOK_SECONDS
        others = self._study.others()
        if others:
            self._listener.on_note(
                f"all is done; waiting for this study's other sweeps ({others}) to end, or to be seen dead"
            )
        while others and time.monotonic() < until and not self._stop.asked:
            time.sleep(1)
            self._study.recover_stale_trials()
            others = self._study.others()
        return others == 0

    def _deliver_the_rest(self) -> None:
        """Deliver as long as the store answers; what is left then is told in the summary."""
        while left := len(self._outbox):
            self._outbox.flush(now=True)
            if len(self._outbox) == left:
                return

    def _close_parent(self, summary: Summary, ending: Ending | None) -> None:
        if self._group is not None or self._outbox.parent is None or self._outbox.away:
            return  # somebody else's, or the next sweep closes it
        try:
            self._tracker.finish_parent(self._outbox.parent, _parent_metrics(summary), self._description(), ending)
        except StoreError as error:
            self._listener.on_note(f"{error}. The next sweep closes this one's parent run")

    def open_parent(self) -> str:
        """Open the sweep's own run; in turn, since two drivers that start at once would make two. Returns: its id."""
        driver = {"device": str(self._facts.get("device", "")), "driver": str(self._study.drivers.number)}
        searched = {SEARCHED: " ".join(fitting(self._space.descriptions()))} if self._page is None else {}
        tags = {**self._study.tags, "kind": "sweep", **driver, **searched, **self._session.tags()}
        # A folder per session: the next one, of changed code perhaps, must not overwrite what this one ran.
        folder, kept = f"sessions/{self._session.stamp}", self._session.files(self._facts)
        files = {f"{folder}/{name}": text for name, text in kept.items()}
        name, page = self._title or f"sweep {self.name}", self._description()
        return self._database.locked(lambda: self._tracker.start_parent(name, tags, page, files))

    def _description(self) -> str:
        """The parent run's page in MLflow, as Markdown."""
        if self._page is not None:
            return self._page(self.progress)
        dataset, study = self._session.prepared.dataset.name, self._config.study
        run, stores = self.logged_best(), storage_overrides(self._session.prepared.request.overrides)
        config_dir = self._session.prepared.request.config_dir
        return sweep_page(self.name, dataset, study, self._space.descriptions(), self.progress, run, stores, config_dir)


def _cause(reason: str) -> str:
    """A failure's reason without what differs from trial to trial."""
    return re.sub(r"[-+]?\b(\d[\d.e+-]*|nan|inf)\b", "#", reason)


def _parent_metrics(summary: Summary) -> dict[str, float]:
    found: dict[str, float] = {
        "sweep/trials": summary.progress.done,
        "sweep/pruned": summary.progress.pruned,
        "sweep/failed": summary.progress.failed,
        "sweep/session_seconds": summary.seconds,
        "sweep/session_parent_cpu_seconds": summary.parent_cpu_seconds,
    }
    if summary.progress.best is not None:
        found["best_val_accuracy"] = summary.progress.best.val_accuracy
    return found
