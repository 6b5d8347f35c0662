"""Ctrl-C, SIGTERM and SIGHUP: asked once, a sweep ends in order; asked twice, at once."""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""A terminal sends the first, Slurm and Kubernetes the second, a terminal that is closed the third."""


def raise_interrupt(_number: int, _frame: FrameType | None) -> None:
    """A signal's handler: KeyboardInterrupt, as Ctrl-C has it."""
    raise KeyboardInterrupt


def stop_alike() -> None:
    """Have every signal that ends a process raise KeyboardInterrupt, but for those that the user ignores (nohup)."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, raise_interrupt)


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
