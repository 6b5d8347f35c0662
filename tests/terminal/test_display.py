"""Which display a sweep gets, and the plain ones."""

from __future__ import annotations

import sys

import pytest
from fakes import FakeExecutor, RecordingTracker, Script
from sweeps import by_rate, parts

from mnistexp.errors import ConfigError
from mnistexp.study.database import Database
from mnistexp.study.sweep import Sweep
from mnistexp.terminal import display
from mnistexp.terminal.display import Plain, Quiet, make_display
from mnistexp.terminal.live import Live


def play(database: Database, view: Quiet, script: Script, *overrides: str, workers: int = 2) -> None:
    """Run a sweep with scripted trials, and show it."""
    session, space = parts(*overrides)
    sweep = Sweep(database, session, space, RecordingTracker(), view.callbacks)
    display.run(sweep, FakeExecutor(script, workers), view)


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
def test_the_live_view_needs_a_terminal_and_a_person(
    terminal: bool, environment: dict[str, str], is_live: bool
) -> None:
    """A pipe, CI and a terminal that cannot move its cursor get plain lines."""
    assert display.is_live(terminal, environment) is is_live


def test_flags_choose_the_display(monkeypatch: pytest.MonkeyPatch) -> None:
    """-q and -v have priority over the terminal; both at once are refused."""
    monkeypatch.setattr(display, "is_live", lambda *_: True)

    assert type(make_display({"-q": True})) is Quiet
    assert type(make_display({"-v": True})) is Plain
    assert type(make_display({"-q": False, "-v": False})) is Live
    with pytest.raises(ConfigError, match="-q -v"):
        make_display({"-q": True, "-v": True})


def test_plain_prints_one_line_per_trial(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """On stdout, without control codes; the state of the study is on stderr."""
    play(database, make_display({}), by_rate, "study.trials=5")

    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [f"{done}/5" for done in range(1, 6)]
    assert "0 of 5" in err
    assert "\x1b" not in out


def test_verbose_prints_every_epoch(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """Each trial's start and its epochs in order, with the number of the trial."""
    play(database, make_display({"-v": True}), by_rate, "study.trials=2", workers=1)

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines if line[0] == "trial"] == ["0"] * 4 + ["1"] * 4
    assert [line[3] for line in lines if "epoch" in line] == ["1/3", "2/3", "3/3"] * 2


def test_quiet_prints_only_problems(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """No line per trial; that a worker died is printed on stderr."""
    deaths = iter([[0.4, None]])

    play(database, make_display({"-q": True}), lambda *_: next(deaths, [0.9] * 3), "study.trials=2")

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trial 0: ")
