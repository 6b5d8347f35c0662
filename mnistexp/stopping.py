"""Ctrl-C, SIGTERM and SIGHUP: asked once, a sweep ends in order; asked twice, at once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""A terminal sends the first, Slurm and Kubernetes the second, a terminal that is closed the third."""


def raise_interrupt(_number: int, _frame: FrameType | None) -> None:
    """A signal's handler: KeyboardInterrupt, as Ctrl-C has it."""
    raise KeyboardInterrupt


def leave_at_once(_number: int, _frame: FrameType | None) -> None:
    """A signal's handler while modules are imported, when nothing has begun.

    Not KeyboardInterrupt: an import runs callbacks of Python's own, which swallow what is raised in them.
    """
    os.write(2, b"mnistexp: interrupted before anything began\n")
    os._exit(130)


def stop_alike(handler: Callable[[int, FrameType | None], None] = raise_interrupt) -> None:
    """Have every signal that ends a process be handled alike, but for those that the user ignores (nohup)."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


class StopRequest:
    """While its block runs, a first signal is noted in `asked`; a second raises KeyboardInterrupt."""

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
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked, self._at = True, time.monotonic()
