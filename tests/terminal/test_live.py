"""The live view, on a small terminal that is simulated here."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
from typing import Any

import pytest
from fakes import FakeExecutor, RecordingTracker, Script, run_result
from rich.console import Console
from sweeps import parts

from mnistexp.config.compose import run_config
from mnistexp.config.schema import RunConfig
from mnistexp.study.database import Database
from mnistexp.study.progress import Progress
from mnistexp.study.sweep import Summary, Sweep
from mnistexp.terminal import display
from mnistexp.terminal.live import Live

CODE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")
WIDE = (100, 40)


class Screen(io.StringIO):
    """A terminal that keeps what was written, and can show its screen. It knows the control codes that Rich writes."""

    encoding = "utf-8"

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """The lines on the screen and above it, without empty lines at the end."""
        lines, row, column, top = [""], 0, 0, 0
        for private, number, code, control, text in CODE.findall(self.getvalue()):
            if text:
                lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
                column += len(text)
            elif control:
                column, row = 0, row + (control == "\n")
                lines += [""] * (row + 1 - len(lines))
                top = max(top, row + 1 - self.rows)
            elif code == "A":
                row = max(top, row - int(number or 1))
            elif code == "H":
                row, column = top, 0
            elif (code, number) == ("K", "2"):
                lines[row] = ""
            elif (code, number) == ("J", "2"):
                lines[top:] = [""] * (len(lines) - top)
            else:
                assert code == "m" or private, f"unknown control code: {number}{code}"
        return "\n".join(lines).rstrip().split("\n")


def console_on(screen: Screen) -> Console:
    """A Rich console on a screen, as the live view makes it."""
    size = {"width": screen.columns, "height": screen.rows}
    return Console(file=screen, force_terminal=True, force_interactive=True, highlight=False, **size)


def play(database: Database, view: Live, script: Script, *overrides: str, workers: int = 2) -> Summary:
    """Run a sweep with scripted trials, and show it."""
    session, space = parts(*overrides)
    sweep = Sweep(database, session, space, RecordingTracker(), view.callbacks)
    return display.run(sweep, FakeExecutor(script, workers), view)


def scores(job: int, config: RunConfig) -> list[float | str]:
    """Trial 0 scores 0.9, then each a little less, but trial 3 more; trial 2 fails after an epoch."""
    if job == 2:
        return [0.5, "ValueError: \x1b[2Jthe loss is NaN"]
    return [0.95 if job == 3 else 0.9 - job / 100] * config.trainer.epochs


def drawn(view: Live, screen: Screen) -> str:
    """The screen after one more drawing."""
    view.draw()
    return "\n".join(screen.lines())


def test_running_trials_are_shown_with_their_epochs_and_scores(database: Database) -> None:
    """A row for each running trial, which leaves when the trial ends."""
    screen, shown = Screen(*WIDE), []
    view = Live(console=console_on(screen))

    def script(job: int, config: RunConfig) -> list[float | str]:
        shown.append(drawn(view, screen))
        return scores(job, config)

    play(database, view, script, "study.trials=5")

    assert any(re.search(r"^ +\d +0/3 +\S", text, re.MULTILINE) for text in shown)
    assert "running config" not in "\n".join(screen.lines())


def test_the_last_state_shows_trials_counts_and_the_best(database: Database) -> None:
    """Finished trials with score, epochs or the reason of a failure, newest first; the best trial above them."""
    screen = Screen(*WIDE)

    play(database, Live(console=console_on(screen)), scores, "study.trials=5")

    text = "\n".join(screen.lines())
    rows = [row.split() for row in re.findall(r"^ +\d  (?:best|complete|failed) .*$", text, re.MULTILINE)]
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)
    assert sorted(row[:2] for row in rows if row[1] != "complete") == [["2", "failed"], ["3", "best"]]
    assert ["3", "best", "0.9500", "3"] in [row[:4] for row in rows]
    assert "4 complete, 0 pruned, 1 failed" in text
    assert re.search(r"^best +0\.9500 +trial 3", text, re.MULTILINE)
    assert "5/5 100%" in text
    assert "\x1b[2Jthe" not in screen.getvalue()  # a reason cannot clear the screen


@pytest.mark.parametrize("size", [(40, 8), (60, 20), (200, 70)])
def test_the_view_fits_the_terminal(database: Database, size: tuple[int, int]) -> None:
    """No line is wider and no drawing higher than the terminal; progress and best are always there."""
    screen, shown = Screen(*size), []
    view = Live(console=console_on(screen))

    def script(job: int, config: RunConfig) -> list[float | str]:
        shown.append(drawn(view, screen))
        return [0.9] * config.trainer.epochs

    play(database, view, script, "study.trials=12", workers=5)

    assert all(len(line) <= size[0] for text in shown for line in text.splitlines())
    assert all(len(text.splitlines()) <= size[1] for text in shown)
    assert all("/12" in text for text in shown)


def test_notes_stay_above_the_view(database: Database) -> None:
    """However often the view is drawn, one drawing is left; notes and full reasons of failures are above it."""
    screen, reason = Screen(*WIDE), "ValueError: " + "a long reason, " * 10
    view = Live(console=console_on(screen))

    def script(job: int, config: RunConfig) -> list[float | str]:
        view.callbacks.on_note(f"note {job}")
        view.draw()
        return [reason] if job == 1 else [0.9] * config.trainer.epochs

    play(database, view, script, "study.trials=4")

    lines = screen.lines()
    assert sum("complete, " in line for line in lines) == 1
    assert {f"note {number}" for number in range(4)} <= set(lines)
    assert reason.strip() in " ".join(" ".join(lines).split())


def test_a_narrower_terminal_is_cleared(database: Database) -> None:
    """The terminal has broken the old lines in two, so the view starts again at the top."""
    screen = Screen(*WIDE)
    console = console_on(screen)
    view = Live(console=console)

    def script(job: int, config: RunConfig) -> list[float | str]:
        view.draw()
        console.size = (50, 40)
        view.draw()
        return [0.9] * config.trainer.epochs

    play(database, view, script, "study.trials=1", workers=1)

    assert sum("complete, " in line for line in screen.lines()) == 1
    assert max(map(len, screen.lines())) <= 50


@pytest.mark.parametrize("ending", [[ValueError("broken")], [signal.SIGINT, signal.SIGINT], [signal.SIGINT]])
def test_the_terminal_is_restored(database: Database, ending: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error and after one or two Ctrl-C the cursor is visible, and print writes to the same streams."""
    screen = Screen(*WIDE)
    monkeypatch.setattr(sys, "stdout", screen)
    before = sys.stdout, sys.stderr

    with contextlib.suppress(ValueError, KeyboardInterrupt):
        play(database, Live(console=console_on(screen)), lambda *_: [0.5, *ending, 0.5], "study.trials=3", workers=1)

    assert (sys.stdout, sys.stderr) == before
    assert "\x1b[?25l" in screen.getvalue()  # it was hidden
    assert screen.getvalue().endswith("\x1b[?25h\x1b[0m")


class ClosedScreen(Screen):
    """A terminal that is closed during the sweep."""

    def write(self, text: str) -> int:
        if "best" in self.getvalue():
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_closed_terminal_does_not_stop_the_sweep(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep runs to its end although the view can no longer be drawn."""
    screen = ClosedScreen(*WIDE)
    monkeypatch.setattr(sys, "stdout", screen)
    view = Live(console=console_on(screen))

    def script(job: int, config: RunConfig) -> list[float | str]:
        with contextlib.suppress(OSError):
            view.draw()
        return [0.9] * config.trainer.epochs

    assert play(database, view, script, "study.trials=4").progress.complete == 4


def test_an_ascii_terminal_gets_ascii(database: Database) -> None:
    """No character is lost or raises on a terminal without Unicode."""
    raw = io.BytesIO()
    console = Console(
        file=io.TextIOWrapper(raw, encoding="ascii"), force_terminal=True, force_interactive=True, width=60, height=40
    )

    play(database, Live(console=console), scores, "study.trials=5")
    console.file.flush()

    assert "best" in raw.getvalue().decode("ascii")


def test_the_time_left_is_known_once_as_many_trials_have_ended_as_there_are_workers() -> None:
    """Two trials in 10 s on two workers are 5 s each; the study's timeout ends the sweep earlier."""
    now = 0.0
    config = run_config(parts()[0].prepared.config)
    view = Live(timeout=30.0, console=console_on(Screen(*WIDE)), clock=lambda: now)
    view._workers = 2
    view._bar.start_task(view._task)
    view.ready("CPU")
    left = []

    for seconds, done in ((8.0, 1), (10.0, 2), (29.0, 6)):
        now = seconds
        record = parts()[0].trial(done, config, (), 0.0, "COMPLETE", {}, result=run_result([0.9]))
        view.callbacks.on_trial(record, Progress(done, 0, 0, 100, None))
        left.append(view.seconds_left())

    assert left == [None, 20.0, 1.0]
