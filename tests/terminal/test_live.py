"""What a person sees while a sweep runs: the live view, on a small terminal that is played here, and plain lines."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeExecutor, RecordingTracker, Script
from rich.console import Console
from sweeps import parts

from mnistexp.config.schema import RunConfig
from mnistexp.errors import ConfigError
from mnistexp.study.database import Database, open_for_sweep
from mnistexp.study.study import Progress
from mnistexp.study.sweep import Summary, Sweep
from mnistexp.terminal import display, live
from mnistexp.terminal.display import Display, Plain, Quiet
from mnistexp.terminal.progress import ProgressState, Running, thinned

CODE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")
WIDE = (100, 40)


class Screen(io.StringIO):
    """A terminal: keeps what was written to it, and plays it on a screen. It knows what Rich writes, and no more."""

    encoding = "utf-8"

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.columns, self.rows = columns, rows

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """What stands on it, scrolled-off lines included, without empty lines at the end."""
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
                assert code == "m" or private, f"a control that this terminal doesn't know: {number}{code}"
        return "\n".join(lines).rstrip().split("\n")


def console_on(screen: Screen) -> Console:
    """Rich's console on it, as the live view opens its own."""
    size = {"width": screen.columns, "height": screen.rows}
    return Console(file=screen, force_terminal=True, force_interactive=True, highlight=False, **size)


@pytest.fixture
def database(quick_folder: Path) -> Iterator[Database]:
    """An empty database."""
    opened = open_for_sweep(f"sqlite:///{quick_folder}/optuna.db")
    yield opened
    opened.close()


def play(database: Database, view: Display, script: Script, *overrides: str, workers: int = 2) -> Summary:
    """A sweep whose trials play a script, shown."""
    session, space = parts(*overrides)
    sweep = Sweep(database, session, space, RecordingTracker(), view.listener)
    return display.run(sweep, FakeExecutor(script, workers), view)


def scores(job: int, config: RunConfig) -> list[float | str]:
    """Trial 0 scores 0.9, then each a little less, but trial 3 more; trial 2 fails after an epoch."""
    if job == 2:
        return [0.5, "ValueError: \x1b[2Jthe loss is NaN"]
    return [0.95 if job == 3 else 0.9 - job / 100] * config.trainer.epochs


def frames(
    database: Database, script: Script, size: tuple[int, int], *overrides: str, workers: int = 2
) -> list[list[str]]:
    """What a view of this size shows after each event of a sweep."""
    board, seen = ProgressState(), []

    def watched(method: Callable[..., None]) -> Callable[..., None]:
        def told(*what: Any) -> None:
            method(*what)
            seen.append([line.plain for line in live.frame(board, *size)])

        return told

    view = live.Live(board, console_on(Screen(*size)))
    listener = view.listener
    names = ("on_trial", "on_refused", "on_start", "on_epoch", "on_gone")
    spy = replace(listener, **{name: watched(getattr(listener, name)) for name in names})
    session, space = parts(*overrides)
    sweep = Sweep(database, session, space, RecordingTracker(), spy)
    display.run(sweep, FakeExecutor(script, workers), view)
    return seen


# --------------------------------------------------------------------------------------------- what it shows


def test_each_workers_trial_and_epoch_stand_there(database: Database) -> None:
    """A row for each trial under way, with its epochs and its score so far; it leaves when the trial ends."""
    seen = frames(database, scores, WIDE, "study.trials=5")

    under_way = next(frame for frame in seen if any("2/3" in line for line in frame))
    rows = [line.split() for line in under_way if re.match(r"\s+[12]\s+\d\s+\d/3", line)]
    assert [row[:3] for row in rows] == [["1", "0", "2/3"], ["2", "1", "1/3"]]
    assert [row[3] for row in rows] == ["0.9000", "0.8900"]
    assert rows[0][4] == "sgd"
    assert not any("worker  trial" in line for line in seen[-1])


def test_the_last_trials_the_counts_and_the_best(database: Database) -> None:
    """In the end all trials stand there, newest first, with score, epochs, or why they failed; and the best on top."""
    last = "\n".join(frames(database, scores, WIDE, "study.trials=5")[-1])

    rows = [line.split() for line in last.splitlines() if re.match(r"\s+\d  (best|comp|pru|fail)", line)]
    assert {row[0]: row[1] for row in rows} == {
        "0": "complete", "1": "complete", "2": "failed", "3": "best", "4": "complete"
    }  # fmt: skip
    assert [row[2:4] for row in rows if row[0] == "3"] == [["0.9500", "3"]]
    assert "5/5  100 %" in last
    assert "4 complete · 0 pruned · 1 failed" in last
    assert "ValueError:  [2Jthe loss is NaN" in last  # with nothing in it that steers the terminal
    assert re.search(r"^best  0\.9500  trial 3  sgd", last, re.MULTILINE)
    assert "activation=" in last
    assert "0.9000 → 0.9500  best so far" in last


@pytest.mark.parametrize("size", [(40, 8), (60, 20), (80, 24), (200, 70)])
def test_it_fits_every_terminal(database: Database, size: tuple[int, int]) -> None:
    """Nothing is ever wider or higher than asked for, and how far it is and what is best are always there."""
    columns, rows = size

    seen = frames(database, scores, size, "study.trials=12", workers=5)

    assert max(len(line) for frame in seen for line in frame) <= columns
    assert max(map(len, seen)) <= rows
    assert all(any(re.search(r"\d+/12", line) for line in frame) for frame in seen)
    assert any(line.startswith("best  0.9500") for line in seen[-1])


def test_a_low_terminal_says_how_many_workers_it_leaves_out() -> None:
    """With more workers than rows, the last row counts those that don't fit."""
    board = ProgressState()
    board.begin("digits", Progress(0, 0, 0, 100, None), 64)
    board.running = {place: Running(place, "sgd", 10) for place in range(1, 65)}

    lines = [line.plain for line in live.frame(board, 80, 24)]

    shown = [line for line in lines if re.match(r"\s+\d+\s+\d+\s+0/10", line)]
    assert f"{64 - len(shown)} more at work" in lines[-1]
    assert len(lines) <= 24


def test_why_a_trial_failed_stays_above_the_view_in_full(database: Database) -> None:
    """The table has one line for a failure, and later trials push it out; above, the whole reason can be read."""
    screen, reason = Screen(*WIDE), "ValueError: " + "a long story, " * 10

    play(database, live.Live(ProgressState(), console_on(screen)), lambda job, _: [reason] if job == 0 else [0.9] * 3,
         "study.trials=12")  # fmt: skip

    assert " ".join("\n".join(screen.lines()).split()).startswith(f"trial 0 failed: {reason.strip()}")


def test_a_worker_that_died_leaves_its_place(database: Database) -> None:
    """Its trial is not shown as running until it runs again; what happened is told."""
    deaths = iter([[0.4, None]])
    screen = Screen(*WIDE)

    play(
        database,
        live.Live(ProgressState(), console_on(screen)),
        lambda job, config: next(deaths, [0.9] * 3) if job == 0 else [0.8] * 3,
        "study.trials=2",
    )

    assert "its worker was killed; it will be run again" in screen.lines()[0]
    assert "2 complete" in "\n".join(screen.lines())


def test_the_share_that_is_done_is_rounded_down() -> None:
    """100 * (29 / 100) is 28.999…, and 29 % are done; 199 of 200 aren't 100 %."""
    told = []
    for done, total in ((29, 100), (199, 200), (9, 8)):
        board = ProgressState()
        board.begin("digits", Progress(done, 0, 0, total, None), 1)
        told.append(live.frame(board, 100, 30)[1].plain.split("  ")[-1])

    assert told == ["29 %", "99 %", "100 %"]


def test_blocks_rise_with_the_logarithm_of_the_error() -> None:
    """Halving the error is one step, from wherever; a course without a rise is flat."""
    assert live.sparkline([0.9, 0.99, 0.999]) == "▁▅█"
    assert live.sparkline([0.5, 0.75, 0.875, 0.9375])[1:3] == "▃▆"
    assert live.sparkline([0.9, 0.9]) == "▁▁"
    assert live.sparkline([0.2, 1.0])[-1] == "█"
    assert thinned(range(100), 10) == list(range(9, 100, 10))
    assert thinned([1, 2], 10) == [1, 2]


# ------------------------------------------------------------------------------------------------ how long


def test_time_left_is_unknown_until_every_worker_has_shown_its_speed() -> None:
    """Two trials in 10 s on two workers: then 5 s each, counted down, and unknown again once that is over."""
    now = 0.0
    board = ProgressState(clock=lambda: now)
    board.begin("digits", Progress(0, 0, 0, 6, None), 2)
    board.ready("CPU")

    now = 8.0
    board.refused("", 0, Progress(0, 0, 1, 6, None))
    told = [board.seconds_left]
    now = 10.0
    board.refused("", 1, Progress(0, 0, 2, 6, None))
    told.append(board.seconds_left)
    now = 13.0
    told.append(board.seconds_left)
    now = 31.0
    told.append(board.seconds_left)

    assert told == [None, 20.0, 17.0, None]
    assert board.seconds_per_trial == 5.0


def test_time_left_ends_with_the_studys_time() -> None:
    """study.timeout ends it earlier than the trials would; a study that is done has nothing left."""
    now = 0.0
    board = ProgressState(timeout=12.0, clock=lambda: now)
    board.begin("digits", Progress(4, 0, 0, 60, None), 1)
    board.ready("CPU")

    now = 10.0
    board.refused("", 4, Progress(4, 0, 2, 60, None))
    soon = board.seconds_left
    board.refused("", 5, Progress(58, 0, 2, 60, None))

    assert soon == 2.0
    assert board.seconds_left == 0.0


# ---------------------------------------------------------------------------------------- on the terminal


def test_the_view_is_redrawn_in_place_and_notes_stand_above(database: Database) -> None:
    """However often it was drawn, one picture is left; each note is left above it, and in no later redrawing lost."""
    screen = Screen(*WIDE)
    view = live.Live(ProgressState(), console_on(screen))

    def script(job: int, config: RunConfig) -> list[float]:
        view.listener.on_note(f"note {job}")
        view._region.refresh()
        return [0.9 - job / 100] * config.trainer.epochs

    play(database, view, script, "study.trials=4")

    lines = screen.lines()
    assert sum("complete ·" in line for line in lines) == 1
    assert sum(line.startswith("best  0.9000") for line in lines) == 1
    assert {f"note {number}" for number in range(4)} <= set(lines[:4])
    assert not any("worker  trial" in line for line in lines)  # nobody is at work any more


def test_a_terminal_that_gets_narrower_is_drawn_anew(database: Database) -> None:
    """Lines that it has broken in two are cleared, not left behind: the screen holds one picture again."""
    screen = Screen(*WIDE)
    console = console_on(screen)
    view = live.Live(ProgressState(), console)
    session, space = parts("study.trials=2")
    sweep = Sweep(database, session, space, RecordingTracker(), view.listener)

    with view:
        view.begin("digits", sweep.progress, 2)
        console.size = (50, 40)
        view._after_resize()
        view._region.refresh()
        sweep.run(FakeExecutor(scores, 2))

    assert "\x1b[2J" in screen.getvalue()
    assert sum("complete ·" in line for line in screen.lines()) == 1
    assert max(map(len, screen.lines())) < 50


@pytest.mark.parametrize("ending", [[ValueError("broken")], [signal.SIGINT, signal.SIGINT], [signal.SIGINT]])
def test_the_terminal_is_given_back(database: Database, ending: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error, one Ctrl-C and two, the cursor shows, colours are off, and print prints where it did."""
    screen = Screen(*WIDE)
    monkeypatch.setattr(sys, "stdout", screen)
    before = sys.stdout, sys.stderr
    error: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if len(ending) == 2 or not isinstance(ending[0], signal.Signals):
        error = pytest.raises((ValueError, KeyboardInterrupt))

    view = live.Live(ProgressState(), console_on(screen))
    with error:
        play(database, view, lambda *_: [0.5, *ending, 0.5, 0.5], "study.trials=3", workers=1)

    assert (sys.stdout, sys.stderr) == before
    assert "\x1b[?25l" in screen.getvalue()  # it was hidden
    assert screen.getvalue().endswith("\x1b[?25h\x1b[0m")
    assert screen.getvalue().rfind("\x1b[?25l") < screen.getvalue().rfind("\x1b[?25h")


def test_ctrl_c_is_seen_to_be_heard(database: Database) -> None:
    """What a first one does, and what a second would do, is told at once, above the view."""
    screen = Screen(*WIDE)

    view = live.Live(ProgressState(), console_on(screen))

    summary = play(database, view, lambda *_: [0.5, signal.SIGINT, 0.5, 0.5], "study.trials=3", workers=1)

    assert summary.interrupted
    assert "interrupted: running trials end their epoch; once more, and it ends at once" in screen.lines()


class Gone(Screen):
    """A terminal that was closed: nothing can be written to it any more."""

    def write(self, text: str) -> int:
        if "best" in self.getvalue():
            raise OSError(5, "Input/output error")
        return super().write(text)


def test_a_terminal_that_is_closed_stops_nothing(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep runs to its end although the view can't be drawn any more."""
    screen = Gone(*WIDE)
    monkeypatch.setattr(sys, "stdout", screen)
    view = live.Live(ProgressState(), console_on(screen))

    def script(job: int, config: RunConfig) -> list[float]:
        with contextlib.suppress(OSError):
            view._region.refresh()
        return [0.9] * config.trainer.epochs

    summary = play(database, view, script, "study.trials=4")

    assert summary.progress.complete == 4


def test_a_terminal_of_ascii_gets_ascii(database: Database) -> None:
    """Where no other sign can be shown, the same picture is drawn without; a bare Linux console counts as such."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii")
    console = Console(file=file, force_terminal=True, force_interactive=True, width=100, height=40)

    play(database, live.Live(ProgressState(), console), scores, "study.trials=5")
    file.flush()

    told = raw.getvalue().decode("ascii")
    assert "0.9000 > 0.9500  best so far" in told
    assert "?" not in re.sub(r"\x1b\[\?25[lh]", "", told)
    assert live.has_blocks("utf-8", {"TERM": "xterm"})
    assert not live.has_blocks("utf-8", {"TERM": "linux"})


def test_no_color(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR leaves the picture as it is, without colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen(*WIDE)
    monkeypatch.setattr(sys, "stdout", screen)

    play(database, live.Live(ProgressState()), scores, "study.trials=5")

    codes = {
        number for _, codes, kind, *_ in CODE.findall(screen.getvalue()) if kind == "m" for number in codes.split(";")
    }
    assert not {str(colour) for colour in (*range(30, 50), *range(90, 108))} & codes
    assert "1 failed" in "\n".join(screen.lines())


# ----------------------------------------------------------------------------------------- which is chosen


@pytest.mark.parametrize(
    ("terminal", "environment", "is_live"),
    [
        (True, {"TERM": "xterm-256color"}, True),
        (True, {"TERM": "xterm-256color", "NO_COLOR": "1", "CI": "false"}, True),
        (False, {"TERM": "xterm-256color", "FORCE_COLOR": "1"}, False),
        (True, {"TERM": "xterm-256color", "CI": "true"}, False),
        (True, {"TERM": "dumb"}, False),
        pytest.param(True, {}, False, marks=pytest.mark.skipif(sys.platform == "win32", reason="has no TERM")),
    ],
)
def test_a_live_view_is_for_a_person_alone(terminal: bool, environment: dict[str, str], is_live: bool) -> None:
    """A pipe, CI and a terminal that can't move its cursor get plain lines, whatever colours they want."""
    assert display.is_live(terminal, environment) is is_live


def test_flags_choose_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    """-q and -v overrule the terminal; both at once are refused; a terminal gets the live view."""
    monkeypatch.setattr(sys, "stdout", Screen(*WIDE))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)

    assert type(display.choose({"-q": True})) is Quiet
    assert type(display.choose({"-v": True})) is Plain
    assert type(display.choose({"-q": False, "-v": False})) is live.Live
    with pytest.raises(ConfigError, match="-q -v: the one prints less"):
        display.choose({"-q": True, "-v": True})


def test_plain_lines_in_a_pipe(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each trial on stdout, with nothing of a terminal in it; where the study stands, on stderr."""
    play(database, display.choose({}), scores, "study.trials=5")

    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [f"{done}/5" for done in range(1, 6)]
    assert "study digits: 0 of 5 done, 5 to go; 2 workers on CPU (fake)" in err
    assert "\x1b[?25l" not in out


def test_verbose_adds_every_epoch(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """-v prints each trial's start and each of its epochs, in order, under the trial's number."""
    play(database, display.choose({"-v": True}), scores, "study.trials=2", workers=1)

    out = capsys.readouterr().out
    assert [line.split()[:2] for line in out.splitlines() if line.startswith("trial ")] == [["trial", "0"]] * 4 + [
        ["trial", "1"]
    ] * 4
    assert out.splitlines()[1].startswith("trial   0  epoch   1/3  loss ")
    assert out.splitlines()[4].split()[0] == "1/2"


def test_quiet_says_what_went_wrong_alone(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """-q prints no trial; that a worker died is still told, on stderr."""
    deaths = iter([[0.4, None]])

    play(database, display.choose({"-q": True}), lambda *_: next(deaths, [0.9] * 3), "study.trials=2")

    out, err = capsys.readouterr()
    assert out == ""
    assert err == "trial 0: its worker was killed; it will be run again (1 of 2)\n"
