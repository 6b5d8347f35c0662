"""Faults planted in real workers, without a line of them in the package.

A folder on PYTHONPATH with a file of this name is imported by every Python at its start. This one does something only
in `python -m mnistexp.training.worker`, as these variables say:

    MNISTEXP_PLANT       FAULT[@epochN][#SEED], several with commas: "segfault@epoch2#12,hang". The epoch is the one
                         that is not reported any more, 1 if none is given; with a seed only that training is struck.
    MNISTEXP_PLANT_ONCE  a path: the first fault that strikes makes this file, and none strikes once it is there.

    exception              raises RuntimeError
    segfault, abort        SIGSEGV by a read of address 0; SIGABRT
    hang                   sleeps for ever
    wait                   sleeps until there is a file of this name: $MNISTEXP_PLANT_GATES/SEED
    oom                    allocates until there is a MemoryError, 256 MB above what is held
    kill-at-start          SIGKILL before the worker is ready
    kill-mid-epoch         SIGKILL when the epoch is trained and not yet told
    kill-between-epochs    SIGKILL when the epoch is told, before the next begins
    kill-half-sent-result  SIGKILL in the middle of the result's line
"""

from __future__ import annotations

import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, NoReturn

PLANTED = re.compile(r"([a-z-]+)(?:@epoch(\d+))?(?:#(\d+))?")
TRAINER = "mnistexp.training.trainer"


class Plan:
    """Which fault strikes where."""

    def __init__(self, text: str) -> None:
        matches = [PLANTED.fullmatch(part) for part in text.split(",")]
        self.faults = [(match[1], int(match[2] or 1), match[3]) for match in matches if match]
        self.once = os.environ.get("MNISTEXP_PLANT_ONCE", "")

    def strikes(self, names: Sequence[str], epoch: int | None = None, seed: int | None = None) -> str:
        """The fault of these that strikes now, or ''."""
        for name, at, only in self.faults:
            if name in names and epoch in (None, at) and only in (None, str(seed)):
                return name if self._first() else ""
        return ""

    def _first(self) -> bool:
        if not self.once:
            return True
        try:
            os.close(os.open(self.once, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True


def die() -> NoReturn:
    """End here and now."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def exhaust_memory() -> None:
    """Allocate what is left below a limit; the MemoryError is the training's."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - at interpreter start, without pathlib
        held = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (256 << 20), before[1]))
    try:
        blocks = []
        while True:
            blocks.append(bytearray(16 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def strike(fault: str, seed: int) -> None:
    """Do what a fault says; exception and oom raise, wait returns in the end, the others don't."""
    if fault == "exception":
        raise RuntimeError("planted")
    if fault == "segfault":
        ctypes.string_at(0)
    if fault == "abort":
        os.abort()
    if fault == "oom":
        exhaust_memory()
    while fault == "hang":
        time.sleep(60)
    while fault == "wait" and not os.path.exists(f"{os.environ['MNISTEXP_PLANT_GATES']}/{seed}"):  # noqa: PTH110
        time.sleep(0.05)


def plant(trainer: ModuleType, plan: Plan) -> None:
    """Wrap what trains and what tells of it."""
    train, main = trainer.Fit.__next__, sys.modules["__main__"]
    send: Callable[..., None] = main.Channel.send  # type: ignore[attr-defined]
    seeds: list[int] = []

    def planted_train(fit: Any) -> Any:
        epoch, seed = len(fit._epochs) + 1, fit._config.seed
        seeds[:] = [seed]
        strike(plan.strikes(("exception", "segfault", "abort", "hang", "wait", "oom"), epoch, seed), seed)
        scores = train(fit)
        if plan.strikes(("kill-mid-epoch",), epoch, seed):
            die()
        return scores

    def planted_send(channel: Any, event: str, **fields: Any) -> None:
        if event == "result" and plan.strikes(("kill-half-sent-result",), None, seeds[-1]):
            line = json.dumps({"event": event, **fields})
            channel._sink.write(line[: len(line) // 2])
            channel._sink.flush()
            die()
        send(channel, event, **fields)
        if event == "epoch" and plan.strikes(("kill-between-epochs",), fields["scores"]["epoch"], seeds[-1]):
            die()

    trainer.Fit.__next__ = planted_train  # type: ignore[attr-defined]
    main.Channel.send = planted_send  # type: ignore[attr-defined]


class Hook(importlib.abc.MetaPathFinder):
    """Has the trainer's module planted as soon as it is imported."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The trainer's own spec, whose loader plants when it is done."""
        if name != TRAINER:
            return None
        sys.meta_path.remove(self)
        if self.plan.strikes(("kill-at-start",)):
            die()
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            plant(module, self.plan)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if os.environ.get("MNISTEXP_PLANT") and "mnistexp.training.worker" in sys.orig_argv:
    sys.meta_path.insert(0, Hook(Plan(os.environ["MNISTEXP_PLANT"])))
