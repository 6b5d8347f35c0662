"""What is known of a session while it runs: who is at work on what, what came out, how fast it goes. No drawing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Lock

from mnistexp.config.schema import RunConfig
from mnistexp.study.study import Progress
from mnistexp.tracking.records import RunRecord, State
from mnistexp.tracking.run_context import run_name
from mnistexp.training.results import EpochScores

KEPT = 50  # ended trials that a view may list
NOTHING = Progress(0, 0, 0, 0, None)
WINDOW = 30  # trials that the pace is taken from: pruning makes later ones shorter


@dataclass
class Running:
    """A trial on a worker."""

    number: int
    name: str
    epochs: int  # at most
    epoch: int = 0  # that has ended
    val_accuracy: float | None = None  # after it


@dataclass(frozen=True)
class Ended:
    """A trial that needs no more work."""

    number: int
    state: State
    name: str
    reason: str = ""  # of a failure
    val_accuracy: float | None = None
    epochs: int = 0
    seconds: float = 0.0


@dataclass
class ProgressState:
    """A session as it stands. Its methods are a sweep's listener; views read its fields while they hold `lock`.

    Args:
        timeout: seconds after which the session ends in any case, if it does.
        clock: seconds, from anywhere.
        title: how a trial that begins is called.
    """

    timeout: float | None = None
    clock: Callable[[], float] = time.monotonic
    title: Callable[[RunConfig], str] = run_name
    name: str = ""
    device: str = ""  # empty until a worker is ready
    workers: int = 0
    progress: Progress = NOTHING
    running: dict[int, Running] = field(default_factory=dict)  # by the worker's place, from 1
    ended: deque[Ended] = field(default_factory=lambda: deque(maxlen=KEPT))  # newest last
    bests: list[float] = field(default_factory=list)  # best validation accuracy after each ended trial
    changes: int = 0  # so that a view can see that there is something to draw
    lock: Lock = field(default_factory=Lock)
    _began: float = 0.0
    _pace: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=WINDOW + 1))  # when, trials done

    def begin(self, name: str, progress: Progress, workers: int) -> None:
        """A session begins; its workers start."""
        with self.lock:
            self.name, self.workers, self._began = name, workers, self.clock()
            self._known(progress)

    def ready(self, device: str) -> None:
        """A first worker is ready."""
        with self.lock:
            self.device = device
            self._pace.append((self.clock(), self.progress.done))
            self.changes += 1

    # ---------------------------------------------------------------------- what a sweep tells

    def start(self, number: int, config: RunConfig) -> None:
        """A trial is on a worker."""
        with self.lock:
            place = next(place for place in range(1, len(self.running) + 2) if place not in self.running)
            self.running[place] = Running(number, self.title(config), config.trainer.epochs)
            self.changes += 1

    def epoch(self, number: int, scores: EpochScores) -> None:
        """A trial has ended an epoch."""
        with self.lock:
            for trial in self.running.values():
                if trial.number == number:
                    trial.epoch, trial.val_accuracy = scores.epoch, scores.val_accuracy
            self.changes += 1

    def gone(self, number: int) -> None:
        """A trial is on no worker any more."""
        with self.lock:
            self._leave(number)
            self.changes += 1

    def trial(self, record: RunRecord, progress: Progress) -> None:
        """A trial has ended."""
        fit = record.result.fit if record.result else None
        number = int(record.tags["trial"])
        name = record.name.removeprefix(f"{number:03d} ")
        accuracy = fit.best.val_accuracy if fit else None
        seconds = record.ended - record.started
        self._end(Ended(number, record.state, name, record.reason, accuracy, len(record.epochs), seconds), progress)

    def refused(self, reason: str, number: int, progress: Progress) -> None:
        """A trial has failed before it began."""
        self._end(Ended(number, "FAILED", "", f"before it began: {reason}"), progress)

    def _end(self, ended: Ended, progress: Progress) -> None:
        with self.lock:
            self._leave(ended.number)
            self.ended.append(ended)
            self._pace.append((self.clock(), progress.done))
            self._known(progress)

    def _leave(self, number: int) -> None:
        self.running = {place: trial for place, trial in self.running.items() if trial.number != number}

    def _known(self, progress: Progress) -> None:
        self.progress = progress
        self.bests += [progress.best.val_accuracy] if progress.best else []
        self.changes += 1

    # ---------------------------------------------------------------------- how fast it goes

    @property
    def elapsed(self) -> float:
        """Seconds since the session began."""
        return self.clock() - self._began

    @property
    def seconds_per_trial(self) -> float | None:
        """Wall clock, all workers and other sweeps of the study together; None until each worker has shown its speed.

        The first trials to end are the quick ones, so fewer than there are workers say little.
        """
        if not self._pace:
            return None
        (since, before), (until, done) = self._pace[0], self._pace[-1]
        return (until - since) / (done - before) if done - before >= max(2, self.workers) and until > since else None

    @property
    def seconds_left(self) -> float | None:
        """Until all trials are done, or the time is over; None where nobody knows: too early, or overdue."""
        pace = self.seconds_per_trial
        if self.progress.done >= self.progress.total:
            return 0.0
        if pace is None:
            return None
        left = pace * (self.progress.total - self.progress.done) - (self.clock() - self._pace[-1][0])
        if self.timeout is not None:
            left = min(left, self.timeout - (self.clock() - self._began))
        return left if left > 0 else None


def thinned(values: Sequence[float], most: int) -> list[float]:
    """At most so many values: the last of each of as many equal stretches."""
    count = min(len(values), most)
    return [values[(place + 1) * len(values) // count - 1] for place in range(count)]
