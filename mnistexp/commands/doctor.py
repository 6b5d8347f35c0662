"""The command `doctor`: try each part that a sweep would use, once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs

from mnistexp import machine
from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.config.schema import Config, IdxData
from mnistexp.data import dataset as data
from mnistexp.errors import MnistexpError, WorkerError
from mnistexp.storage.urls import redact
from mnistexp.study.database import check_apart, check_usable
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.store import check_reachable, resolved_uri
from mnistexp.workers.start import run_training, start_workers


def doctor(request: ParsedOverrides, _: CommandArgs) -> int:
    """Check everything that a sweep with these overrides would use. Returns: 0 if all of it works, else 1."""
    config = configs.compose(request)
    console.say("versions and this machine")
    hardware = {"processor": machine.cpu_model(), "cores": machine.cores()}
    console.say_lines(console.table(machine.versions() | hardware))
    console.say("\nwhat a sweep would use")
    checks: dict[str, Callable[[], str]] = {
        "data": lambda: _data(request, config),
        "training": lambda: _training(config),
        "study.storage": lambda: check_usable(config.study.storage),
        "tracking.uri": lambda: _tracking(config),
        "cache": _cache,
    }
    works = [_show(name, check) for name, check in checks.items()]  # all of them, even after a failure
    return 0 if all(works) else 1


def _show(name: str, check: Callable[[], str]) -> bool:
    try:
        found, works = check(), True
    except MnistexpError as error:
        found, works = str(error), False
    console.say(f"  {'ok  ' if works else 'FAIL'}  {name:<14} {found}")
    return works


def _data(request: ParsedOverrides, config: Config) -> str:
    """Load the data set, but do not download it: that may take minutes."""
    if isinstance(config.data, IdxData) and config.data.root is None and data.find(config.data) is None:
        return f"data={config.data.name}: not on this machine; `train` and `sweep` download it"
    any_device = request.with_overrides(["trainer.device=auto"])  # the device is checked below
    dataset = run_context.prepare(any_device).dataset
    sizes = " / ".join(f"{len(split.labels):,}" for split in (dataset.train, dataset.validation, dataset.test))
    return f"{dataset.name}, {sizes} images, from {dataset.source} (fingerprint {dataset.fingerprint})"


def _training(config: Config) -> str:
    """Train one epoch of the bundled digits in a real worker."""
    digits = configs.compose(ParsedOverrides(choices=("data=digits",), values=("trainer.epochs=1",)))
    trainer = digits.trainer.model_copy(update={"device": config.trainer.device})
    small = digits.model_copy(update={"trainer": trainer, "executor": config.executor})
    executor = start_workers(small, at_most=1)
    try:
        result = run_training(executor, configs.run_config(small), lambda _: None)
        devices = ", ".join(executor.worker_info["devices"])
    finally:
        executor.close()
    return f"{result.device}; TensorFlow sees {devices}; one epoch of digits ran"


def _tracking(config: Config) -> str:
    if config.tracking.name == "none":
        return "none: nothing is logged"
    uri = resolved_uri(config.tracking)
    check_apart(config.study.storage, uri)
    check_reachable(uri)
    return redact(uri)


def _cache() -> str:
    folder = Path(platformdirs.user_cache_dir("mnistexp"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return f"{folder} (downloads, compiled epochs)"
    except OSError as error:
        raise WorkerError(f"{folder}: can't be written to ({error.strerror}); give XDG_CACHE_HOME=FOLDER") from None
