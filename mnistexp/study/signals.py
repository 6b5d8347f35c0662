"""Ctrl-C, SIGTERM and SIGHUP: the first one ends a sweep in order, the second one at once."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""A terminal sends the first, Slurm and Kubernetes the second, a terminal that is closed the third."""


class RaiseInterrupt:
    """A signal handler that raises KeyboardInterrupt.

    Python swallows what is raised in a callback of an import or in a destructor; a StopRequest then reads `pending`.
    """

    def __init__(self) -> None:
        self.pending = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.pending = True
        raise KeyboardInterrupt


def exit_now(_number: int, _frame: FrameType | None) -> None:
    """End the process: a signal handler for the time of the imports, in which KeyboardInterrupt may be swallowed."""
    os.write(2, b"mnistexp: interrupted before anything began\n")
    os._exit(130)


def install_signal_handlers(handler: Callable[[int, FrameType | None], None]) -> None:
    """Handle all signals of SIGNALS alike, except those that the user ignores (nohup)."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_unraisable_interrupts() -> None:
    """Print no traceback of a KeyboardInterrupt that Python swallows: `RaiseInterrupt` has recorded it."""

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = hook


class StopRequest:
    """During its block the first signal sets `asked`, and the second raises KeyboardInterrupt.

    A signal that RaiseInterrupt received before and that Python swallowed counts as the first.
    """

    def __init__(self) -> None:
        self.asked = False
        self._asked_at = math.inf
        self._before: dict[int, Any] = {}

    @property
    def seconds(self) -> float:
        """Return the seconds since the first signal; 0 before it."""
        return max(0.0, time.monotonic() - self._asked_at)

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        install_signal_handlers(self._handle)
        if any(isinstance(handler, RaiseInterrupt) and handler.pending for handler in self._before.values()):
            self._ask()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self._ask()

    def _ask(self) -> None:
        self.asked, self._asked_at = True, time.monotonic()
