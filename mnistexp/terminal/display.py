"""What a session shows while it runs: a live view in a terminal, plain lines anywhere else, or nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import TracebackType
from typing import Protocol

from mnistexp.config.schema import RunConfig
from mnistexp.errors import ConfigError
from mnistexp.study.study import Progress
from mnistexp.study.sweep import Summary, Sweep, SweepCallbacks
from mnistexp.terminal import console
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.run_context import run_name
from mnistexp.training.results import EpochScores
from mnistexp.workers.pool import Executor
from mnistexp.workers.start import wait_until_ready


class Display(Protocol):
    """Shows one session of a sweep: `with show:`, begin, ready, and the sweep tells `listener` the rest.

    After its block the terminal is as it was before, however the block ended.
    """

    @property
    def listener(self) -> SweepCallbacks:
        """What the sweep is to tell."""

    def begin(self, name: str, progress: Progress, workers: int) -> None:
        """A session begins, and its workers start."""

    def ready(self, device: str) -> None:
        """A first worker is ready."""

    def __enter__(self) -> object: ...

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None: ...


def choose(
    flags: Mapping[str, object], timeout: float | None = None, title: Callable[[RunConfig], str] = run_name
) -> Display:
    """The show that a command line asks for and that stdout can bear.

    Args:
        flags: `-q` and `-v`.
        timeout: see board.Board.
        title: how the live view calls a trial that begins.

    Raises: ConfigError for both flags at once.
    """
    if flags.get("-q") and flags.get("-v"):
        raise ConfigError("-q -v: the one prints less, the other more; give one of them, or none")
    if flags.get("-q"):
        return Quiet()
    if flags.get("-v") or not is_live(sys.stdout.isatty(), os.environ):
        return Plain(epochs=bool(flags.get("-v")))
    from mnistexp.terminal.live import Live
    from mnistexp.terminal.progress import ProgressState

    return Live(ProgressState(timeout, title=title))


def run(session: Sweep, executor: Executor, view: Display) -> Summary:
    """Run a session and show it. Raises: as Sweep.run; the terminal is as it was before in any case."""
    with view:
        if session.progress.done < session.progress.total:  # else nothing is run, and no worker waited for
            view.begin(session.name, session.progress, executor.size)
            view.ready(wait_until_ready(executor).get("device", ""))
        return session.run(executor)


def is_live(terminal: bool, environment: Mapping[str, str]) -> bool:
    """Whether a person looks at stdout, in something that can move its cursor."""
    dumb = environment.get("TERM", "" if os.name == "posix" else "windows") in ("", "dumb", "unknown")
    return terminal and not dumb and environment.get("CI", "").lower() in ("", "0", "false")


class Quiet:
    """Only what went wrong, to stderr."""

    @property
    def listener(self) -> SweepCallbacks:
        return SweepCallbacks(lambda *_: None, on_note=console.note)

    def begin(self, name: str, progress: Progress, workers: int) -> None:
        """Say nothing."""

    def ready(self, device: str) -> None:
        """Say nothing."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None: ...


class Plain(Quiet):
    """One line for each trial; with `epochs`, one for each of its epochs too."""

    def __init__(self, *, epochs: bool = False) -> None:
        self._every_epoch = epochs
        self._session = ("", Progress(0, 0, 0, 0, None), 0)
        self._epochs: dict[int, int] = {}  # of the trials under way, at most

    @property
    def listener(self) -> SweepCallbacks:
        told = SweepCallbacks(_say_trial, _say_refused, console.note)
        return replace(told, on_start=self._start, on_epoch=self._epoch) if self._every_epoch else told

    def begin(self, name: str, progress: Progress, workers: int) -> None:
        """Keep it: the first line names the device too."""
        self._session = name, progress, workers

    def ready(self, device: str) -> None:
        """Say where the study stands, and what goes on with it."""
        console.note(console.start_line(*self._session, device))

    def _start(self, number: int, config: RunConfig) -> None:
        self._epochs[number] = config.trainer.epochs
        console.say(f"trial {number:3d}  starts: {run_name(config)}")

    def _epoch(self, number: int, scores: EpochScores) -> None:
        console.say(f"trial {number:3d}  {console.epoch_line(scores, self._epochs[number])}")


def _say_trial(record: RunRecord, progress: Progress) -> None:
    console.say(console.trial_line(record, progress))


def _say_refused(reason: str, number: int, progress: Progress) -> None:
    console.say(f"{progress.done:>3}/{progress.total}  failed before it began: {reason}  {number:03d}")
