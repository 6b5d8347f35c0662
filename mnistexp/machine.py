"""Find out cores, GPUs, versions and the git commit. Imports no heavy library."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import joblib

from mnistexp import __version__
from mnistexp.errors import WorkerError

PACKAGES = ("tensorflow", "keras", "numpy", "optuna", "mlflow", "hydra-core")
"""Packages whose versions a run records."""

BIT_CHANGING_FLAGS = ("TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS")
"""The user's variables that change bits. Workers record them, and a rerun sets them from the record: any other variable
could run code."""


def visible_gpus() -> list[str]:
    """Return the CUDA devices that this process may use, as entries of CUDA_VISIBLE_DEVICES.

    Asks the driver, as TensorFlow does, in a thousandth of the time that importing TensorFlow takes.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    entries = listed.split(",") if listed else [str(index) for index in range(count.value)]
    return entries[: count.value]


def require_device(device: Literal["auto", "cpu", "gpu"]) -> None:
    """Raises: WorkerError if a GPU is asked for and the driver has none."""
    if device == "gpu" and not visible_gpus():
        raise WorkerError(
            "trainer.device=gpu: no NVIDIA GPU is visible here; "
            "give trainer.device=cpu or auto, or see `mnistexp doctor`"
        )


def cpu_model() -> str:
    """Return the processor's name and a hash of its instruction sets: compiled code, and so the last bits, differ."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = {line.split(":")[0].strip(): line.partition(":")[2].strip() for line in reversed(text.splitlines())}
    name = lines.get("model name") or lines.get("CPU part") or "unknown"
    flags = hashlib.sha256("".join(lines.get(key, "") for key in wanted).encode()).hexdigest()[:8]
    return f"{name} ({flags})"


def cores() -> int:
    """Return the number of CPU cores that this process may use, by its affinity and its container's quota."""
    return int(joblib.cpu_count())


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages; "missing" if one is not installed."""
    found = {"python": platform.python_version()}
    for package in ("mnistexp", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a bare checkout has no metadata of its own
            found[package] = "missing"
    return found


WORKER_SOURCES = ("training", "data", "config/schema.py", "config/user_code.py", "errors.py", "machine.py", "paths.py")
"""Files and folders of this package that a worker runs."""


@functools.cache
def worker_versions() -> dict[str, str]:
    """Return the versions that decide a training's bits. They must be the same on all machines of one study.

    mnistexp's own includes a hash of the files that a worker runs, because a checkout's version seldom changes.
    """
    libraries = {name: version(name) for name in ("numpy", "tensorflow", "keras")}
    own = f"{__version__} (source {source_hash(Path(__file__).parent)})"
    return {"python": platform.python_version(), **libraries, "mnistexp": own}


def source_hash(package: Path) -> str:
    """Hash names and contents of WORKER_SOURCES, independent of the folder and of line ends."""
    digest = hashlib.sha256()
    for name in WORKER_SOURCES:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(package).as_posix()}\n".encode())
            digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()[:8]


def source_state(folder: Path) -> dict[str, Any]:
    """Read the git commit of the code in `folder` and the difference from it.

    Returns: {"commit", "dirty", "patch"}, or {} if the folder is no git checkout (an installed wheel).
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit or not _git(folder, "ls-files", "--", "mnistexp"):
        return {}
    patch = _git(folder, "diff", "HEAD", "--", "mnistexp", "conf", "experiments")
    options = ("mnistexp", "conf", ":(glob)experiments/*/*.yaml")  # an experiment's results are no code
    untracked = _git(folder, "ls-files", "--others", "--exclude-standard", "--", *options)
    return {"commit": commit.strip(), "dirty": bool(patch or untracked), "patch": patch}


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
