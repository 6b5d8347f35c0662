"""GPUs as the driver counts them, and the hash of a worker's source files."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mnistexp import machine
from mnistexp.errors import WorkerError

PACKAGE = Path(machine.__file__).parent


class FakeDriver:
    """libcuda with `devices` GPUs."""

    def __init__(self, devices: int, status: int = 0) -> None:
        self._devices, self._status = devices, status

    def cuInit(self, flags: int) -> int:
        return self._status

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self._devices
        return 0


def no_driver(name: str) -> object:
    """Fail as ctypes does without libcuda."""
    raise OSError(f"{name}: cannot open shared object file")


@pytest.mark.parametrize(
    ("driver", "listed", "expected"),
    [
        (no_driver, None, []),
        (lambda _: FakeDriver(2, status=100), None, []),
        (lambda _: FakeDriver(0), "", []),
        (lambda _: FakeDriver(2), None, ["0", "1"]),
        (lambda _: FakeDriver(2), "3,5", ["3", "5"]),
        (lambda _: FakeDriver(1), "3,99", ["3"]),
        (lambda _: FakeDriver(1), "GPU-abc", ["GPU-abc"]),
    ],
)
def test_visible_gpus(
    monkeypatch: pytest.MonkeyPatch, driver: Callable[[str], object], listed: str | None, expected: list[str]
) -> None:
    """As many as the driver counts, with their names in CUDA_VISIBLE_DEVICES; none without a working driver."""
    monkeypatch.setattr(ctypes, "CDLL", driver)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)

    assert machine.visible_gpus() == expected


def test_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """device=gpu without a GPU is an error; auto and cpu are not."""
    monkeypatch.setattr(machine, "visible_gpus", list)

    with pytest.raises(WorkerError, match=r"trainer\.device=gpu: no NVIDIA GPU is visible here; give"):
        machine.require_device("gpu")
    machine.require_device("auto")
    machine.require_device("cpu")


def change(file: Path) -> None:
    """Add a line."""
    file.write_text(file.read_text() + "# changed\n")


def rename(file: Path) -> None:
    """Give it another name."""
    file.rename(file.with_suffix(".old.py"))


@pytest.mark.parametrize(
    ("edit", "file", "noticed"),
    [
        (change, "training/trainer.py", True),
        (change, "config/schema.py", True),
        (rename, "data/dataset.py", True),
        (change, "study/study.py", False),
    ],
)
def test_the_source_hash_covers_what_a_worker_runs(
    tmp_path: Path, edit: Callable[[Path], None], file: str, noticed: bool
) -> None:
    """It changes with a file of training/ and not with one of study/, and does not depend on the folder."""
    copy = Path(shutil.copytree(PACKAGE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pycache__")))
    before = machine.source_hash(copy)
    edit(copy / file)

    assert before == machine.source_hash(PACKAGE)
    assert (machine.source_hash(copy) != before) is noticed


def test_a_worker_runs_no_other_source() -> None:
    """Every module of ours that a worker imports, with its trainer, is in WORKER_SOURCES."""
    code = """
import json, sys
import mnistexp.training.worker, mnistexp.training.trainer
print(json.dumps([m.__file__ for name, m in sys.modules.items() if name.startswith("mnistexp.")]))
print({"hydra", "omegaconf", "optuna", "mlflow", "mnistexp.config.compose"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    files, foreign = done.stdout.splitlines()
    names = [Path(file).relative_to(PACKAGE).as_posix() for file in json.loads(files)]

    assert [name for name in names if not name.startswith(machine.WORKER_SOURCES) and "__init__" not in name] == []
    assert foreign == "set()"
