"""Ctrl-C, SIGTERM and SIGHUP: asked once, a sweep ends in order; asked twice, at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""A terminal sends the first, Slurm and Kubernetes the second, a terminal that is closed the third."""


class RaiseInterrupt:
    """A signal's handler: KeyboardInterrupt, as Ctrl-C has it.

    What is raised is lost where Python calls back from an import or a destructor; `heard` is left for who comes next.
    """

    def __init__(self) -> None:
        self.heard = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.heard = True
        raise KeyboardInterrupt


def exit_now(_number: int, _frame: FrameType | None) -> None:
    """A signal's handler while modules are imported, when nothing has begun.

    Not KeyboardInterrupt: an import runs callbacks of Python's own, which swallow what is raised in them.
    """
    os.write(2, b"mnistexp: interrupted before anything began\n")
    os._exit(130)


def install_signal_handlers(handler: Callable[[int, FrameType | None], None]) -> None:
    """Have every signal that ends a process be handled alike, but for those that the user ignores (nohup)."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def ignore_unraisable_interrupts() -> None:
    """Have Python print no traceback of a KeyboardInterrupt that it swallows: `RaiseInterrupt` has kept it."""

    def hook(lost: sys.UnraisableHookArgs) -> None:
        if not isinstance(lost.exc_value, KeyboardInterrupt):
            sys.__unraisablehook__(lost)

    sys.unraisablehook = hook


class StopRequest:
    """While its block runs, a first signal is noted in `asked`; a second raises KeyboardInterrupt.

    One that `RaiseInterrupt` has heard before, and that was lost, counts as the first.
    """

    def __init__(self) -> None:
        self.asked = False
        self._at = 0.0
        self._before: dict[int, Any] = {}

    @property
    def seconds(self) -> float:
        """Since the first signal; 0 before it."""
        return time.monotonic() - self._at if self.asked else 0.0

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            before = signal.getsignal(number)
            if before != signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, self._note)
            if isinstance(before, RaiseInterrupt) and before.heard and not self.asked:
                self._ask()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self._ask()

    def _ask(self) -> None:
        self.asked, self._at = True, time.monotonic()
