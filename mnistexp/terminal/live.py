"""The live view of a sweep in a terminal: progress, best trial, running trials, last trials.

The thread of the sweep only stores what happened; a second thread draws it with Rich. So a terminal that is slow,
stopped (Ctrl-S) or closed does not delay a trial, and a second Ctrl-C never interrupts the middle of a drawing.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from threading import Event, Lock, Thread
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.control import Control
from rich.live import Live as Region
from rich.progress import BarColumn, MofNCompleteColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from mnistexp.config.schema import RunConfig
from mnistexp.study.progress import Best, Progress
from mnistexp.study.sweep import SweepCallbacks
from mnistexp.terminal.console import note
from mnistexp.terminal.display import Quiet
from mnistexp.terminal.formatting import duration
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.run_context import run_name
from mnistexp.training.results import EpochScores

REFRESH = 0.25  # seconds between two drawings
LAST_TRIALS = 8  # rows of the table of finished trials
PACE_TRIALS = 30  # the pace is measured over this many trials: pruning makes later trials shorter
COLOURS = {"COMPLETE": "green", "PRUNED": "yellow", "FAILED": "red"}


@dataclass
class RunningTrial:
    """A trial on a worker."""

    number: int
    name: str
    epochs: int  # maximum
    epoch: int = 0  # last finished epoch
    val_accuracy: str = ""  # after that epoch


class Live(Quiet):
    """Show a sweep in a terminal.

    Args:
        timeout: seconds after which the sweep starts no more trials, if limited.
        title: gives the name of a running trial.
        console: where to draw; stdout by default.
        clock: seconds from any start.
    """

    def __init__(
        self,
        timeout: float | None = None,
        title: Callable[[RunConfig], str] = run_name,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._timeout, self._title, self._clock = timeout, title, clock
        # display.is_live has decided that this is a terminal, so Rich need not guess.
        self._console = console or Console(
            file=sys.stdout, force_terminal=True, force_interactive=True, highlight=False, emoji=False, markup=False
        )
        columns = (BarColumn(None), MofNCompleteColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, TextColumn("{task.fields[left]}"), auto_refresh=False, get_time=clock, expand=True)
        self._task = self._bar.add_task("", total=0, left="", start=False)
        self._lock, self._stopped = Lock(), Event()
        self._thread = Thread(target=self._draw, name="live view", daemon=True)
        self._streams = (sys.stdout, sys.stderr)
        self._width = 0  # of the last drawing
        self._name, self._workers, self._device = "", 0, ""
        self._progress = Progress(0, 0, 0, 0, None)
        self._running: dict[int, RunningTrial] = {}
        self._finished: deque[tuple[int, str, list[str]]] = deque(
            maxlen=LAST_TRIALS
        )  # (number, state, cells), newest first
        self._notes: deque[str] = deque()
        self._pace: deque[tuple[float, int]] = deque(maxlen=PACE_TRIALS + 1)  # (time, finished trials)
        self._region = Region(
            console=self._console, auto_refresh=False, get_renderable=self.frame, vertical_overflow="crop"
        )

    @property
    def callbacks(self) -> SweepCallbacks:
        """What the sweep calls."""
        return SweepCallbacks(
            self._trial_ends,
            self._trial_is_invalid,
            self._note,
            self._trial_starts,
            self._epoch_ends,
            self._trial_leaves,
        )

    def begin(self, name: str, progress: Progress, workers: int) -> None:
        """Start drawing."""
        self._name, self._workers = name, workers
        self._bar.start_task(self._task)
        self._update(progress)
        self._streams = (sys.stdout, sys.stderr)
        self._region.start(refresh=True)
        self._thread.start()

    def ready(self, device: str) -> None:
        """Show the device, and start to measure the pace."""
        self._device = device
        self._pace.append((self._clock(), self._progress.done))

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Draw the last state and restore the terminal, even if drawing fails."""
        if not self._region.is_started:
            return
        try:
            self._stopped.set()
            self._thread.join(2)  # seconds: a terminal that is stopped by Ctrl-S takes no output
            self._running.clear()
            with suppress(OSError, ValueError):
                self._print_notes()
                self._region.stop()
        finally:
            sys.stdout, sys.stderr = self._streams
            with suppress(OSError, ValueError):  # the terminal may be closed
                sys.stdout.write("\x1b[?25h\x1b[0m" * (not self._console.legacy_windows))
                sys.stdout.flush()

    # ---------------------------------------------------------------------- called by the sweep

    def _trial_starts(self, number: int, config: RunConfig) -> None:
        with self._lock:
            self._running[number] = RunningTrial(number, self._title(config), config.trainer.epochs)

    def _epoch_ends(self, number: int, scores: EpochScores) -> None:
        with self._lock:
            if trial := self._running.get(number):
                trial.epoch, trial.val_accuracy = scores.epoch, f"{scores.val_accuracy:.4f}"

    def _trial_leaves(self, number: int) -> None:
        with self._lock:
            self._running.pop(number, None)

    def _trial_ends(self, record: RunRecord, progress: Progress) -> None:
        number, state = int(record.tags["trial"]), record.state
        score = f"{record.result.fit.best.val_accuracy:.4f}" if record.result else ""
        name = record.name.removeprefix(f"{number:03d} ") if record.result else record.reason
        seconds = f"{record.ended - record.started:.1f}"
        self._finish(number, progress, state, score, str(len(record.epochs)), seconds, name)
        if state == "FAILED":  # the table has one line for the reason, and only for a while
            self._note(f"trial {number} failed: {record.reason}")

    def _trial_is_invalid(self, reason: str, number: int, progress: Progress) -> None:
        self._finish(number, progress, "FAILED", "", "0", "", f"invalid: {reason}")

    def _finish(self, number: int, progress: Progress, state: str, *cells: str) -> None:
        with self._lock:
            self._running.pop(number, None)
            self._finished.appendleft((number, state, list(map(_printable, cells))))
            self._pace.append((self._clock(), progress.done))
            self._update(progress)

    def _update(self, progress: Progress) -> None:
        self._progress = progress
        self._bar.update(self._task, completed=progress.done, total=progress.total)

    def _note(self, text: str) -> None:
        if self._region.is_started:
            self._notes.append(text)
        else:
            note(text)

    # ---------------------------------------------------------------------- called by the drawing thread

    def _draw(self) -> None:
        with suppress(OSError, ValueError):  # the terminal is closed; the sweep continues
            while not self._stopped.wait(REFRESH):
                self.draw()

    def draw(self) -> None:
        """Print the notes above the view, and draw the view again."""
        if (
            self._console.width < self._width
        ):  # the terminal has broken the old lines, and Rich does not know their height
            self._console.control(Control.home(), Control.clear())
        self._width = self._console.width
        self._print_notes()
        self._region.refresh()

    def _print_notes(self) -> None:
        while self._notes:
            self._console.print(Text(_printable(self._notes.popleft()), style="yellow"))

    def frame(self) -> RenderableType:
        """The view as it is now; the least important part is at the bottom, where a low terminal cuts it off."""
        with self._lock:
            left = self.seconds_left()
            self._bar.update(self._task, left=f"about {duration(left)} left" if left else "")
            parts = [self._head(), self._bar.get_renderable(), self._counts(), *self._best()]
            if self._running:
                rows = [
                    (str(t.number), f"{t.epoch}/{t.epochs}", t.val_accuracy, _printable(t.name))
                    for t in sorted(self._running.values(), key=lambda trial: trial.number)
                ]
                parts += [Text(), _table(("trial", "epoch", "val acc", "running config"), rows)]
            if self._finished:
                head = ("trial", "state", "val acc", "epochs", "s", "finished config")
                parts += [Text(), _table(head, [self._finished_row(*trial) for trial in self._finished])]
            return Group(*parts)

    def _finished_row(self, number: int, state: str, cells: list[str]) -> tuple[Text | str, ...]:
        best = self._progress.best
        if best is not None and best.number == number:
            return str(number), Text("best", "bold green"), *cells
        return str(number), Text(state.lower(), COLOURS[state]), *cells

    def _head(self) -> Text:
        workers = f"{self._workers} worker{'s' * (self._workers != 1)}"
        where = f"{workers} on {self._device}" if self._device else f"starting {workers}"
        return _line((self._name, "bold"), "  ", (where, "dim"))

    def _counts(self) -> Text:
        counts, pace = self._progress, self.seconds_per_trial()
        rate = f", {60 / pace:.3g} trials/min" if pace else ""
        return _line(f"{counts.complete} complete, {counts.pruned} pruned, ", _failed(counts.failed), rate)

    def _best(self) -> Iterator[Text]:
        best = self._progress.best
        if best is None:
            yield _line(("no trial is complete yet", "dim"))
            return
        yield Text()
        name = self._title(best.config)
        yield _line("best  ", (f"{best.val_accuracy:.4f}", "bold green"), f"  trial {best.number}  {_printable(name)}")
        yield Text("  " + "  ".join(short_parameters(best)), "cyan", overflow="crop")

    def seconds_per_trial(self) -> float | None:
        """Wall-clock seconds per finished trial, over all workers and sweep processes of the study.

        None until as many trials have ended as there are workers, since the first to end are the quick ones.
        """
        if not self._pace:
            return None
        (since, before), (until, done) = self._pace[0], self._pace[-1]
        return (until - since) / (done - before) if done - before >= max(2, self._workers) and until > since else None

    def seconds_left(self) -> float | None:
        """Seconds until all trials are done or the time limit is reached; None if unknown."""
        pace = self.seconds_per_trial()
        if pace is None:
            return None
        left = pace * (self._progress.total - self._progress.done) - (self._clock() - self._pace[-1][0])
        if self._timeout is not None:
            left = min(left, self._timeout - (self._bar.tasks[0].elapsed or 0.0))
        return left if left > 0 else None


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, no_wrap=True, overflow="crop")


def _failed(count: int) -> tuple[str, str]:
    return f"{count} failed", "bold red" if count else "dim"


def _table(head: tuple[str, ...], rows: Iterable[tuple[Text | str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in head:
        numeric = not (name == "state" or name.endswith("config"))
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True, overflow="crop")
    for row in rows:
        table.add_row(*row)
    return table


def short_parameters(best: Best) -> Iterator[str]:
    """The parameters of the best trial without their groups, numbers with three digits: to look at, not to type."""
    for override in best.overrides:
        key, _, value = override.partition("=")
        if key in ("data", "seed"):
            continue
        with suppress(ValueError):
            value = value if value.lstrip("-").isdecimal() else f"{float(value):.3g}"
        yield f"{key.rpartition('.')[2]}={_printable(value)}"


def _printable(text: str) -> str:
    """Replace control characters, which could move the cursor, by blanks."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
