"""Show the progress of a sweep: a live view in a terminal, one line per trial elsewhere, or nothing.

A display is a context manager with `callbacks`, `begin` and `ready`, which `run` calls in this order. After the block
the terminal is as it was before.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from mnistexp.config.schema import RunConfig
from mnistexp.errors import ConfigError
from mnistexp.study.progress import Progress
from mnistexp.study.sweep import Summary, Sweep, SweepCallbacks
from mnistexp.terminal.console import epoch_line, note, say
from mnistexp.terminal.formatting import counted
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.run_context import run_name
from mnistexp.training.results import EpochScores
from mnistexp.workers.pool import WorkerPool
from mnistexp.workers.start import wait_until_ready


class Quiet:
    """Print only warnings and errors, to stderr. The base class of the other displays."""

    @property
    def callbacks(self) -> SweepCallbacks:
        """What the sweep calls."""
        return SweepCallbacks(lambda *_: None, on_note=note)

    def begin(self, name: str, progress: Progress, workers: int) -> None:
        """Called when the workers start."""

    def ready(self, device: str) -> None:
        """Called when the first worker is ready."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Plain(Quiet):
    """Print one line per trial, and with `epochs` one line per epoch."""

    def __init__(self, *, epochs: bool = False) -> None:
        self._every_epoch = epochs
        self._start = ""
        self._epochs: dict[int, int] = {}  # number of a running trial: its maximum of epochs

    @property
    def callbacks(self) -> SweepCallbacks:
        """What the sweep calls."""
        epochs: dict[str, Any] = (
            {"on_start": self._trial_starts, "on_epoch": self._epoch_ends} if self._every_epoch else {}
        )
        return SweepCallbacks(_trial_ends, _trial_is_invalid, note, **epochs)

    def begin(self, name: str, progress: Progress, workers: int) -> None:
        """Keep the first line until the device is known."""
        self._start = f"study {name}: {progress.done} of {progress.total} trials done; {counted(workers, 'worker')} on "

    def ready(self, device: str) -> None:
        """Print the first line."""
        note(self._start + device)

    def _trial_starts(self, number: int, config: RunConfig) -> None:
        self._epochs[number] = config.trainer.epochs
        say(f"trial {number:3d}  starts: {run_name(config)}")

    def _epoch_ends(self, number: int, scores: EpochScores) -> None:
        say(f"trial {number:3d}  {epoch_line(scores, self._epochs[number])}")


def make_display(flags: Mapping[str, object], title: Callable[[RunConfig], str] = run_name) -> Quiet:
    """Choose the display for a command line and for what stdout is.

    Args:
        flags: `-q` and `-v`.
        title: gives the name of a running trial in the live view.

    Raises: ConfigError if both flags are given.
    """
    if flags.get("-q") and flags.get("-v"):
        raise ConfigError("-q -v: -q prints less and -v prints more; give one of them, or none")
    if flags.get("-q"):
        return Quiet()
    if flags.get("-v") or not is_live(sys.stdout.isatty(), os.environ):
        return Plain(epochs=bool(flags.get("-v")))
    from mnistexp.terminal.live import Live

    return Live(title)


def is_live(terminal: bool, environment: Mapping[str, str]) -> bool:
    """Whether stdout is a terminal that can move its cursor and that a person watches."""
    dumb = environment.get("TERM", "" if os.name == "posix" else "windows") in ("", "dumb", "unknown")
    return terminal and not dumb and environment.get("CI", "").lower() in ("", "0", "false")


def run(sweep: Sweep, executor: WorkerPool | None, display: Quiet) -> Summary:
    """Run a sweep with a display. Raises: what Sweep.run raises."""
    with display:
        if executor is not None and sweep.progress.done < sweep.progress.total:  # else no worker is needed
            display.begin(sweep.name, sweep.progress, executor.size)
            display.ready(wait_until_ready(executor).get("device", ""))
        return sweep.run(executor)


def _trial_ends(record: RunRecord, progress: Progress) -> None:
    if record.result is None:
        outcome = f"failed: {record.reason}"
    else:
        fit, state = record.result.fit, "pruned" if record.state == "PRUNED" else "      "
        seconds = record.ended - record.started
        outcome = f"{state} val {fit.best.val_accuracy:.4f}  {len(fit.epochs):3d} epochs {seconds:5.1f} s"
    best = f"best {progress.best.val_accuracy:.4f} (#{progress.best.number})" if progress.best else "no best yet"
    say(f"{progress.done:>3}/{progress.total}  {outcome}  {best}  {record.name}")


def _trial_is_invalid(reason: str, number: int, progress: Progress) -> None:
    say(f"{progress.done:>3}/{progress.total}  trial {number:03d} is invalid: {reason}")
