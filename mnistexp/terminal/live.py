"""The live view of a session in a terminal, drawn by Rich: progress, workers, the last trials, the best so far.

The sweep's thread only notes what happened on the board; a thread of its own draws it. So a slow, stopped or closed
terminal holds no trial up, and a second Ctrl-C, which may come at any line of the sweep, never comes amid a drawing.
"""

from __future__ import annotations

import math
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from threading import Event, Thread
from types import TracebackType

from rich.console import Console, Group
from rich.control import Control
from rich.live import Live as Region
from rich.text import Text

from mnistexp.study.study import Best, Progress
from mnistexp.study.sweep import SweepCallbacks
from mnistexp.terminal import console
from mnistexp.terminal.progress import Ended, ProgressState, Running, thinned
from mnistexp.tracking.records import RunRecord

REFRESH = 0.25  # seconds between two looks at the board
TICK = 1.0  # seconds after which the clocks are drawn anew although nothing happened
WIDEST = 110  # columns: longer lines are hard to read
TRIALS = 8  # of the last, in the table
MARGIN = "  "
BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN = str.maketrans("…·—━─→" + BLOCKS, "~.-=->" + "_.,-=+*#")
"""For terminals that have ASCII alone: signs of the same width."""

COLOURS = {"COMPLETE": "green", "PRUNED": "yellow", "FAILED": "red"}


class Live:
    """Shows a session: see show.Show.

    Args:
        board: what is shown.
        terminal: where; stdout by default.
    """

    def __init__(self, board: ProgressState, terminal: Console | None = None) -> None:
        self._board = board
        # Rich's own guess at what a terminal can do is overruled: show.choose has made that choice.
        self._terminal = terminal or Console(
            file=sys.stdout, force_terminal=True, force_interactive=True, highlight=False, emoji=False, markup=False
        )
        self._region = Region(console=self._terminal, auto_refresh=False, get_renderable=self._drawn)
        self._notes: deque[str] = deque()
        self._ended = Event()
        self._thread = Thread(target=self._draw_on, name="live view", daemon=True)
        self._widest = 0  # columns of what was drawn last
        self._streams = (sys.stdout, sys.stderr)

    @property
    def listener(self) -> SweepCallbacks:
        """What the sweep is to tell."""
        board = self._board
        return SweepCallbacks(self._trial, board.refused, self._note, board.start, board.epoch, board.gone)

    def begin(self, name: str, progress: Progress, workers: int) -> None:
        """A session begins: take the terminal over."""
        self._board.begin(name, progress, workers)
        self._streams = (sys.stdout, sys.stderr)
        self._region.start(refresh=True)
        self._thread.start()

    def ready(self, device: str) -> None:
        """A first worker is ready."""
        self._board.ready(device)

    def __enter__(self) -> None: ...

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Leave the last picture, without the workers, and give the terminal back, whatever happens meanwhile."""
        if not self._region.is_started:
            return
        try:
            self._ended.set()
            self._thread.join(2)  # seconds: a terminal that is stopped by Ctrl-S takes nothing
            self._board.running.clear()
            with suppress(OSError):
                self._say_notes()
                self._region.stop()
        finally:
            sys.stdout, sys.stderr = self._streams
            with suppress(OSError, ValueError):  # a terminal that is gone needs nothing
                sys.stdout.write("\x1b[?25h\x1b[0m" * (not self._terminal.legacy_windows))
                sys.stdout.flush()

    # ------------------------------------------------------------------------------ the drawing thread

    def _trial(self, record: RunRecord, progress: Progress) -> None:
        self._board.trial(record, progress)
        if record.state == "FAILED":  # in full: the table has one line for it, and only for a while
            self._note(f"trial {record.tags['trial']} failed: {record.reason}")

    def _note(self, text: str) -> None:
        if self._region.is_started:
            self._notes.append(text)
        else:
            console.note(text)

    def _say_notes(self) -> None:
        while self._notes:
            self._terminal.print(Text(_printable(self._notes.popleft()), style="yellow"))

    def _draw_on(self) -> None:
        seen, drawn = -1, 0.0
        with suppress(OSError, ValueError):  # the terminal is gone or closed; the session goes on
            while not self._ended.wait(REFRESH):
                now = self._board.clock()
                if seen != self._board.changes or now - drawn >= TICK or self._notes:
                    seen, drawn = self._board.changes, now
                    self._after_resize()
                    self._say_notes()
                    self._region.refresh()

    def _after_resize(self) -> None:
        """Begin at the top where lines that were drawn have been broken in two: Rich can't know how high they are."""
        if self._terminal.width < self._widest:
            self._terminal.control(Control.home(), Control.clear())

    def _drawn(self) -> Group:
        size = self._terminal.size
        with self._board.lock:
            lines = frame(self._board, size.width - 1, size.height - 1)
        if not has_blocks(self._terminal.encoding, os.environ):
            lines = [_in_ascii(line) for line in lines]
        self._widest = max(line.cell_len for line in lines)
        return Group(*lines)


def has_blocks(encoding: str, environment: Mapping[str, str]) -> bool:
    """Whether a terminal shows block characters; Linux's own console has no font for most."""
    return encoding.lower().startswith("utf") and environment.get("TERM") != "linux"


def _in_ascii(line: Text) -> Text:
    plain = line.plain.translate(PLAIN).encode("ascii", "replace").decode()
    return Text(plain, spans=line.spans, no_wrap=True)


def _printable(text: str) -> str:
    """A text from anywhere in one line, without what would steer the terminal."""
    return "".join(sign if sign.isprintable() else " " for sign in text)


# ------------------------------------------------------------------------------------------- the picture


def frame(board: ProgressState, width: int, height: int) -> list[Text]:
    """A board as lines, at most `height` of at most `width` columns; what matters least is left out first."""
    width = max(20, min(width, WIDEST))
    head = _head(board, width)
    free = height - len(head)
    best = _best(board, width, lines=2 if free >= 16 else 1)[: max(0, free)]
    free -= len(best)
    workers = _workers(board, most=max(1, min(len(board.running), free // 2 - 1)))[: max(0, free)]
    free -= len(workers)
    trials = _trials(board, most=min(TRIALS, free - 1))
    free -= len(trials)
    blocks = [block for block in (head, best, workers, trials) if block]
    apart = [Text()] if free >= len(blocks) - 1 else []
    lines = [line for block in blocks for line in [*apart, *block]][len(apart) :]
    for line in lines:
        line.truncate(width, overflow="ellipsis")
        line.no_wrap = True
    return lines[: max(1, height)]


def _head(board: ProgressState, width: int) -> list[Text]:
    progress, crew = board.progress, f"{board.workers} worker{'s' * (board.workers != 1)}"
    doing = f"{crew} on {board.device}" if board.device else f"starting {crew}"
    title = Text.assemble((board.name, "bold"), "  ", (doing, "dim"))
    share = progress.done / progress.total if progress.total else 1.0
    whole = min(100, 100 * progress.done // progress.total) if progress.total else 100  # whole: no 100 % before it is
    told = f"  {progress.done}/{progress.total}  {whole} %"
    length = max(0, min(60, width - len(told)))
    full = round(length * min(1.0, share))
    bar = Text.assemble(("━" * full, "green"), ("─" * (length - full), "dim"), told)
    return [title, bar, *_flow(_counts(progress) + _clocks(board), width, " · ")]


def _counts(progress: Progress) -> list[Text]:
    return [
        Text(f"{progress.complete} complete", "green"),
        Text(f"{progress.pruned} pruned", "yellow" if progress.pruned else "dim"),
        Text(f"{progress.failed} failed", "bold red" if progress.failed else "dim"),
    ]


def _clocks(board: ProgressState) -> list[Text]:
    pace, left = board.seconds_per_trial, board.seconds_left
    rate = f"{60 / pace:.3g}" if pace else "—"
    return [
        Text(f"elapsed {clock(board.elapsed)}"),
        Text(f"left {clock(left) if left is not None else '—'}"),
        Text(f"{rate} trials/min"),
    ]


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:05 or 1:02:33."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _best(board: ProgressState, width: int, lines: int) -> list[Text]:
    best = board.progress.best
    if best is None:
        return [Text("no best yet: no trial is complete", "dim")]
    name = board.title(best.config)
    title = Text.assemble("best  ", (f"{best.val_accuracy:.4f}", "bold green"), f"  trial {best.number}  {name}")
    params = [Text(param, "cyan") for param in short_params(best)]
    told = _flow(params, width - len(MARGIN), "  ")
    if len(told) > lines:
        told[lines - 1].append("  …")
    return [title, *(Text(MARGIN).append_text(line) for line in told[:lines]), *_spark(board.bests, width)]


def short_params(best: Best) -> Iterator[str]:
    """What a best config sets, keys without their group and numbers to three digits: to look at, not to type."""
    for override in best.overrides:
        key, _, value = override.partition("=")
        if key in ("data", "seed"):  # which no one chose for being good
            continue
        with suppress(ValueError):
            value = value if value.lstrip("-").isdecimal() else f"{float(value):.3g}"
        yield f"{key.rpartition('.')[2]}={_printable(value)}"


def _spark(bests: Sequence[float], width: int) -> list[Text]:
    told = f"  {bests[0]:.4f} → {bests[-1]:.4f}  best so far"
    steps = thinned(bests, min(60, width - len(told) - len(MARGIN)))
    return [Text.assemble(MARGIN, (sparkline(steps), "green"), (told, "dim"))] if len(bests) > 1 and steps else []


def sparkline(accuracies: Sequence[float]) -> str:
    """A block for each accuracy, by the logarithm of its error: from 0.98 to 0.99 is as far as from 0.90 to 0.95."""
    logs = [-math.log(max(1 - accuracy, 1e-6)) for accuracy in accuracies]
    low, high = min(logs), max(logs)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round(top * (each - low) / (high - low))] if high > low else BLOCKS[0] for each in logs)


def _workers(board: ProgressState, most: int) -> list[Text]:
    if not board.running:
        return []
    title = Text(f"{'worker':>6}  {'trial':>5}  {'epoch':>7}  {'val acc':>7}  config", "dim")
    rows = [_worker(place, trial) for place, trial in sorted(board.running.items())]
    more = len(rows) - most
    return (
        [title, *rows[:most]] if more <= 0 else [title, *rows[: most - 1], Text(f"{more + 1:>6} more at work", "dim")]
    )


def _worker(place: int, trial: Running) -> Text:
    epoch = f"{trial.epoch}/{trial.epochs}"
    accuracy = "" if trial.val_accuracy is None else f"{trial.val_accuracy:.4f}"
    return Text(f"{place:>6}  {trial.number:>5}  {epoch:>7}  {accuracy:>7}  {_printable(trial.name)}")


def _trials(board: ProgressState, most: int) -> list[Text]:
    if not board.ended or most < 1:
        return []
    best = board.progress.best
    title = Text(f"{'trial':>6}  {'state':<8}  {'val acc':>7}  {'ep':>3}  {'s':>6}  config", "dim")
    newest = list(board.ended)[-most:][::-1]
    return [title, *(_trial(trial, best is not None and best.number == trial.number) for trial in newest)]


def _trial(trial: Ended, is_best: bool) -> Text:
    state = "best" if is_best else trial.state.lower()
    if trial.val_accuracy is None:
        return Text(f"{trial.number:>6}  {state:<8}  {_printable(trial.reason)}", "red")
    colour = "bold green" if is_best else COLOURS[trial.state]
    numbers = f"  {trial.val_accuracy:>7.4f}  {trial.epochs:>3}  {trial.seconds:>6.1f}  "
    return Text.assemble(f"{trial.number:>6}  ", (f"{state:<8}", colour), numbers, _printable(trial.name))


def _flow(parts: Iterable[Text], width: int, between: str) -> list[Text]:
    """Put parts into as few lines as they need; none is broken in two."""
    lines: list[Text] = []
    for part in parts:
        if lines and lines[-1].cell_len + len(between) + part.cell_len <= width:
            lines[-1].append(between, "dim").append_text(part)
        else:
            lines.append(Text().append_text(part))
    return lines
