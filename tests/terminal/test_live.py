"""The live view, on a small terminal that is simulated here."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeExecutor, RecordingTracker, Script
from sweeps import parts

from mnistexp.config.schema import RunConfig
from mnistexp.study.database import Database
from mnistexp.study.sweep import Summary, Sweep
from mnistexp.terminal import display
from mnistexp.terminal.live import Live

CODE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


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


Open = Callable[..., Screen]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens a terminal as stdout and stderr."""

    def open_screen(columns: int = 100, rows: int = 40, kind: type[Screen] = Screen) -> Screen:
        screen = kind(columns, rows)
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, screen)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("LINES", str(rows))
        return screen

    return open_screen


def play(database: Database, view: Live, script: Script, *overrides: str, workers: int = 2) -> Summary:
    """Run a sweep with scripted trials, and show it."""
    session, space = parts(*overrides)
    sweep = Sweep(database, session, space, RecordingTracker(), view.callbacks)
    return display.run(sweep, FakeExecutor(script, workers), view)


def drawn(view: Live, screen: Screen) -> str:
    """The screen after one more drawing."""
    view._region.refresh()
    return "\n".join(screen.lines())


def test_running_and_finished_trials_are_shown(database: Database, terminal: Open) -> None:
    """A row for each running trial; then finished trials, newest first, with score and epochs, or the reason."""
    screen, shown = terminal(), []
    view = Live()

    def script(job: int, config: RunConfig) -> list[float | str]:
        shown.append(drawn(view, screen))
        if job == 2:
            return [0.5, "ValueError: \x1b[2Jthe loss is NaN"]
        return [0.95 if job == 3 else 0.9 - job / 100] * config.trainer.epochs

    play(database, view, script, "study.trials=5")

    text = "\n".join(screen.lines())
    assert any(re.search(r"^ +\d \W+ 0/3 +\S", frame, re.MULTILINE) for frame in shown)
    rows = [row.split() for row in re.findall(r"^ +\d  (?:best|complete|failed) .*$", text, re.MULTILINE)]
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)
    assert sorted(row[:2] for row in rows if row[1] != "complete") == [["2", "failed"], ["3", "best"]]
    assert ["3", "best", "0.9500", "3"] in [row[:4] for row in rows]
    assert "4 complete, 0 pruned, 1 failed" in text
    assert re.search(r"^best +0\.9500, +trial 3", text, re.MULTILINE)
    assert "5/5" in text
    assert "\x1b[2Jthe" not in screen.getvalue()  # a reason cannot clear the screen


@pytest.mark.parametrize("size", [(40, 8), (60, 20), (200, 70)])
def test_the_view_fits_the_terminal(database: Database, terminal: Open, size: tuple[int, int]) -> None:
    """No line is wider and no drawing higher than the terminal; the progress is always there."""
    screen, shown = terminal(*size), []
    view = Live()

    def script(job: int, config: RunConfig) -> list[float | str]:
        shown.append(drawn(view, screen))
        return [0.9] * config.trainer.epochs

    play(database, view, script, "study.trials=12", workers=5)

    assert all(len(line) <= size[0] for text in shown for line in text.splitlines())
    assert all(len(text.splitlines()) <= size[1] for text in shown)
    assert all("/12" in text for text in shown)


def test_notes_stay_above_the_view(database: Database, terminal: Open) -> None:
    """However often the view is drawn, one drawing is left; notes and full reasons of failures are above it."""
    screen, reason = terminal(), "ValueError: " + "a long reason, " * 10
    view = Live()

    def script(job: int, config: RunConfig) -> list[float | str]:
        view.callbacks.on_note(f"note {job}")
        drawn(view, screen)
        return [reason] if job == 1 else [0.9] * config.trainer.epochs

    play(database, view, script, "study.trials=4")

    lines = screen.lines()
    assert sum("complete, " in line for line in lines) == 1
    assert {f"note {number}" for number in range(4)} <= set(lines)
    assert reason.strip() in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("ending", [[ValueError("broken")], [signal.SIGINT, signal.SIGINT], [signal.SIGINT]])
def test_the_terminal_is_restored(database: Database, terminal: Open, ending: list[Any]) -> None:
    """After an error and after one or two Ctrl-C the cursor is visible, and print writes to the same streams."""
    screen = terminal()
    before = sys.stdout, sys.stderr

    with contextlib.suppress(ValueError, KeyboardInterrupt):
        play(database, Live(), lambda *_: [0.5, *ending, 0.5], "study.trials=3", workers=1)

    assert (sys.stdout, sys.stderr) == before
    assert "\x1b[?25l" in screen.getvalue()  # it was hidden
    assert screen.getvalue().rstrip().endswith("\x1b[?25h")


class ClosedScreen(Screen):
    """A terminal that is closed during the sweep."""

    def write(self, text: str) -> int:
        if "best" in self.getvalue():
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_closed_terminal_does_not_stop_the_sweep(database: Database, terminal: Open) -> None:
    """The sweep runs to its end although the view can no longer be drawn."""
    screen = terminal(kind=ClosedScreen)
    view = Live()

    def script(job: int, config: RunConfig) -> list[float | str]:
        view._region.refresh()
        return [0.9] * config.trainer.epochs

    assert play(database, view, script, "study.trials=4").progress.complete == 4
    assert "best" in screen.getvalue()
