"""Run mnistexp in a process that sends itself a signal at one exact point, with no code for it in the package.

python planted.py SIGKILL:MODULE:NAME:N:before sweep ...

The signal comes before or after the N-th call of MODULE's NAME (`Class.method` too), in the process that calls it; or
before it and `inside` a destructor, where Python swallows what its handler raises.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import os
import signal
import sys
from typing import Any

import mnistexp.tracking  # noqa: F401 - first: it sets what MLflow reads when it is imported


class Destructor:
    """Sends its own process a signal when it is no longer needed."""

    def __init__(self, number: signal.Signals) -> None:
        self._number = number

    def __del__(self) -> None:
        signal.raise_signal(self._number)


def plant(number: signal.Signals, module: str, dotted: str, fatal: int, when: str) -> None:
    """Wrap what the point names."""
    owner: Any = importlib.import_module(module)
    *path, name = dotted.split(".")
    for part in path:
        owner = getattr(owner, part)
    inner, calls = getattr(owner, name), itertools.count(1)

    @functools.wraps(inner)
    def struck(*args: Any, **more: Any) -> Any:
        strikes = next(calls) == fatal
        if strikes and when == "before":
            os.kill(os.getpid(), number)
        if strikes and when == "inside":
            Destructor(number)
        result = inner(*args, **more)
        if strikes and when == "after":
            os.kill(os.getpid(), number)
        return result

    setattr(owner, name, struck)


if __name__ == "__main__":
    own, sys.argv = sys.argv[1], ["mnistexp", *sys.argv[2:]]
    signal_name, module, dotted, fatal, when = own.split(":")
    from mnistexp.__main__ import main

    plant(signal.Signals[signal_name], module, dotted, int(fatal), when)
    sys.exit(main())
