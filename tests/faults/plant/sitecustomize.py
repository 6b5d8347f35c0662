"""Faults planted in real workers, without a line of them in the package.

A folder on PYTHONPATH with a file of this name is imported by every Python at its start. This one does something only
in `python -m mnistexp.training.worker`, as these variables say:

    MNISTEXP_SCRIPTED    1: the worker imports no TensorFlow, and scripted_trainer.py stands in for the trainer. It is
                         ready in half a second instead of four. tests/runs.py has SCRIPTED, the variables to set.
    MNISTEXP_NOISE       1: the worker prints when Python starts, when a module is imported, and at its end
    MNISTEXP_PLANT       FAULT[@epochN][#SEED], several with commas: "segfault@epoch2#12,hang". The epoch is the one
                         that is not reported any more, 1 if none is given; with a seed only that training is struck.
    MNISTEXP_PLANT_ONCE  a path: the first fault that strikes makes this file, and none strikes once it is there.

    exception              raises RuntimeError
    segfault, abort        SIGSEGV by a read of address 0; SIGABRT
    hang                   sleeps without end
    wait                   sleeps until there is a file of this name: $MNISTEXP_PLANT_GATES/SEED
    oom                    allocates until there is a MemoryError, 256 MB above what is held
    kill-at-start          SIGKILL before the worker is ready
    stop-at-start          SIGSTOP before the worker reads anything
    kill-mid-epoch         SIGKILL when the epoch is trained and not sent yet
    kill-between-epochs    SIGKILL when the epoch is sent, before the next begins
    garbage                sends a line that is no message instead of an epoch
    kill-half-sent-result  SIGKILL in the middle of the result's line
"""

from __future__ import annotations

import atexit
import ctypes
import importlib.abc
import importlib.machinery
import importlib.util
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
DATASET = "mnistexp.data.dataset"


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

    def planted_send(channel: Any, message: Any) -> None:
        event = getattr(message, "event", "")
        if event == "result" and plan.strikes(("kill-half-sent-result",), None, seeds[-1]):
            line = message.model_dump_json()
            channel._stream.write(line[: len(line) // 2])
            channel._stream.flush()
            die()
        if event == "epoch" and plan.strikes(("garbage",), message.scores.epoch, seeds[-1]):
            channel._stream.write("garbage\n")
            channel._stream.flush()
        send(channel, message)
        if event == "epoch" and plan.strikes(("kill-between-epochs",), message.scores.epoch, seeds[-1]):
            die()

    trainer.Fit.__next__ = planted_train  # type: ignore[attr-defined]
    main.Channel.send = planted_send  # type: ignore[attr-defined]


def after_import(
    spec: importlib.machinery.ModuleSpec | None, change: Callable[[ModuleType], None]
) -> importlib.machinery.ModuleSpec:
    """The spec, so that the module is changed as soon as it has been imported."""
    assert spec is not None
    assert spec.loader is not None
    run = spec.loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        change(module)

    spec.loader.exec_module = exec_module  # type: ignore[method-assign]
    return spec


def cache_digits(dataset: ModuleType) -> None:
    """Have the digits read from a file after the first time: scikit-learn alone takes 2 s to import."""
    load, sources = dataset.load, os.path.dirname(dataset.__file__ or "")  # noqa: PTH120

    def cached(config: Any) -> Any:
        if config.name != "digits":
            return load(config)
        import hashlib
        import pickle
        import tempfile
        from pathlib import Path

        version = [(path.name, path.stat().st_mtime_ns) for path in sorted(Path(sources).glob("*.py"))]
        key = hashlib.sha256(f"{sources} {version} {config!r}".encode()).hexdigest()[:16]
        file = Path(tempfile.gettempdir()) / f"mnistexp-test-digits-{os.getuid()}-{key}"
        if not file.exists():
            part = file.with_name(f"{file.name}.{os.getpid()}")
            part.write_bytes(pickle.dumps(load(config)))
            part.replace(file)
        return pickle.loads(file.read_bytes())

    dataset.load = cached  # type: ignore[attr-defined]


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
        return after_import(importlib.util.find_spec(name), lambda module: plant(module, self.plan))


class ScriptedTrainer(importlib.abc.MetaPathFinder):
    """Has scripted_trainer.py imported as the trainer's module, and modules without content as TensorFlow and Keras."""

    _busy = False

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """The spec of a replaced module, or None."""
        if name == DATASET and not self._busy:
            self._busy = True  # the spec is looked for here too
            try:
                return after_import(importlib.util.find_spec(name), cache_digits)
            finally:
                self._busy = False
        if name == TRAINER:
            file = os.path.join(os.path.dirname(__file__), "scripted_trainer.py")  # noqa: PTH118, PTH120
            return importlib.util.spec_from_file_location(name, file)
        if name in ("tensorflow", "keras"):
            return importlib.machinery.ModuleSpec(name, self)  # type: ignore[arg-type]  # it has a loader's methods
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module in which every name is an object that can be called, and answers nothing."""
        from unittest.mock import MagicMock

        module = MagicMock(name=spec.name, __spec__=spec)
        module.config.list_physical_devices.return_value = []
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Print, if there shall be noise."""
        noise()


def noise() -> None:
    """Print from Python and from another process."""
    if os.environ.get("MNISTEXP_NOISE"):
        print("noise", flush=True)
        os.system("echo noise")


if "mnistexp.training.worker" in sys.orig_argv:
    noise()
    atexit.register(noise)
    if os.environ.get("MNISTEXP_SCRIPTED"):
        sys.meta_path.insert(0, ScriptedTrainer())
    if os.environ.get("MNISTEXP_PLANT") == "stop-at-start":
        os.kill(os.getpid(), signal.SIGSTOP)
    if os.environ.get("MNISTEXP_PLANT"):
        sys.meta_path.insert(0, Hook(Plan(os.environ["MNISTEXP_PLANT"])))
