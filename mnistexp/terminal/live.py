"""The live view of a sweep in a terminal: progress, best trial, running trials, last trials.

The sweep only stores what happened; Rich draws it four times a second in a thread of its own. So a slow or stopped
terminal (Ctrl-S) does not delay a trial, and a second Ctrl-C never interrupts the middle of a drawing.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live as Region
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from mnistexp.config.schema import RunConfig
from mnistexp.study.progress import Progress
from mnistexp.study.sweep import SweepCallbacks
from mnistexp.terminal.console import note
from mnistexp.terminal.display import Quiet
from mnistexp.terminal.formatting import counted
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.run_context import run_name
from mnistexp.training.results import EpochScores

LAST_TRIALS = 8  # rows of the table of finished trials
PACE_SECONDS = 600  # the time left is estimated from the trials of this period: pruning makes later ones shorter
COLOURS = {"complete": "green", "pruned": "yellow", "failed": "red", "best": "bold green"}
WIDTHS = {"trial": 5, "state": 8, "val acc": 7, "epochs": 6, "s": 5, "finished config": 15}


class _Terminal:
    """A terminal that may be closed while the sweep goes on: what cannot be written is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Region(Region):
    """A live region below the notes, which its own thread prints too: a terminal that is stopped delays no trial."""

    def __init__(self, **more: Any) -> None:
        self.notes: deque[str] = deque()
        super().__init__(vertical_overflow="crop", **more)

    def refresh(self) -> None:
        while self.notes:
            self.console.print(Text(self.notes.popleft(), "yellow"))
        super().refresh()


class Live(Quiet):
    """Show a sweep in a terminal.

    Args:
        title: gives the name of a running trial.
    """

    def __init__(self, title: Callable[[RunConfig], str] = run_name) -> None:
        self._title, self._head, self._progress = title, "", Progress(0, 0, 0, 0, None)
        # display.is_live has decided that this is a terminal, so Rich need not guess.
        file: Any = _Terminal(sys.stdout)
        console = Console(file=file, force_terminal=True, force_interactive=True, highlight=False, emoji=False)
        times = TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()
        columns = (BarColumn(None), MofNCompleteColumn(), *times)
        self._bar = Bars(*columns, expand=True, speed_estimate_period=PACE_SECONDS)
        self._task = self._bar.add_task("", total=None, start=False)
        accuracy, name = TextColumn("{task.fields[accuracy]:6}"), TextColumn("{task.description}", markup=False)
        self._running = Bars(TextColumn("{task.fields[number]:5}"), BarColumn(12), MofNCompleteColumn(), accuracy, name)
        self._tasks: dict[int, TaskID] = {}  # of the running trials
        self._finished: deque[tuple[int, str, list[str]]] = deque(maxlen=LAST_TRIALS)  # newest first
        self._region = _Region(console=console, get_renderable=self._frame)

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
        """Start drawing. Until its end, `print` writes above the view."""
        self._head = f"{name}  {counted(workers, 'worker')}"
        self._bar.start_task(self._task)
        self._update(progress)
        self._region.start(refresh=True)

    def ready(self, device: str) -> None:
        """Show the device."""
        self._head += f" on {device}"

    def __exit__(self, *_: object) -> None:
        """Draw the last state and restore the terminal."""
        for number in list(self._tasks):
            self._trial_leaves(number)
        self._region.stop()

    def _trial_starts(self, number: int, config: RunConfig) -> None:
        name, epochs = _printable(self._title(config)), config.trainer.epochs
        self._tasks[number] = self._running.add_task(name, total=epochs, number=number, accuracy="")

    def _epoch_ends(self, number: int, scores: EpochScores) -> None:
        if number in self._tasks:
            self._running.update(self._tasks[number], completed=scores.epoch, accuracy=f"{scores.val_accuracy:.4f}")

    def _trial_leaves(self, number: int) -> None:
        if number in self._tasks:
            self._running.remove_task(self._tasks.pop(number))

    def _trial_ends(self, record: RunRecord, progress: Progress) -> None:
        number, state = int(record.tags["trial"]), record.state.lower()
        score = f"{record.result.fit.best.val_accuracy:.4f}" if record.result else ""
        name = record.name.removeprefix(f"{number:03d} ") if record.result else record.reason
        seconds = f"{record.ended - record.started:.1f}"
        self._finish(number, progress, state, score, str(len(record.epochs)), seconds, name)
        if not record.result:  # the table has one line for the reason, and only for a while
            self._note(f"trial {number} failed: {record.reason}")

    def _trial_is_invalid(self, reason: str, number: int, progress: Progress) -> None:
        self._finish(number, progress, "failed", "", "0", "", f"invalid: {reason}")

    def _finish(self, number: int, progress: Progress, state: str, *cells: str) -> None:
        self._trial_leaves(number)
        self._finished.appendleft((number, state, list(map(_printable, cells))))
        self._update(progress)

    def _update(self, progress: Progress) -> None:
        self._progress = progress
        self._bar.update(self._task, completed=progress.done, total=progress.total)

    def _note(self, text: str) -> None:
        if self._region.is_started:
            self._region.notes.append(_printable(text))
        else:
            note(text)

    # ---------------------------------------------------------------------- called by the drawing thread

    def _frame(self) -> RenderableType:
        """The view as it is now; the least important part is at the bottom, where a low terminal cuts it off."""
        counts, best = self._progress, self._progress.best
        lines = [f"{counts.complete} complete, {counts.pruned} pruned, {counts.failed} failed"]
        if best:
            name = _printable(self._title(best.config))
            lines.append(f"best {best.val_accuracy:.4f}, trial {best.number}: {name}")
        parts: list[RenderableType] = [_line(self._head, "bold"), self._bar.get_renderable(), *map(_line, lines)]
        parts += [_line("\nrunning trials", "dim"), self._running.get_renderable()] if self._tasks else []
        parts += [_line(""), self._finished_table()] if self._finished else []
        return Group(*parts)

    def _finished_table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name, width in WIDTHS.items():
            justify: Literal["left", "right"] = "left" if name in ("state", "finished config") else "right"
            table.add_column(name, justify=justify, min_width=width, no_wrap=True, overflow="crop")
        for number, state, cells in list(self._finished):
            shown = "best" if self._progress.best and self._progress.best.number == number else state
            table.add_row(str(number), Text(shown, COLOURS[shown]), *map(Text, cells))
        return table


def _line(text: str, style: str = "") -> Text:
    return Text(text, style, no_wrap=True, overflow="crop")


def _printable(text: str) -> str:
    """Replace control characters, which could move the cursor, by blanks."""
    return "".join(sign if sign.isprintable() else " " for sign in text)
