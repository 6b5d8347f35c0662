"""What this machine and this installation are: devices, versions, source code. Imports no heavy library."""

from __future__ import annotations

import ctypes
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
"""Whose versions a run records: what computes, and what decides what is computed."""


def visible_gpus() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES entries.

    Asks the driver itself, as TensorFlow will, at a thousandth of the time that importing TensorFlow takes.
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
    """The processor's name with its instruction sets: what compiled code, and so the last bits, depend on."""
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
    """CPU cores that this process may use. joblib counts them, since it knows of affinity and containers' quotas."""
    return int(joblib.cpu_count())


def versions() -> dict[str, str]:
    """Python's and the packages' versions; "missing" where one isn't installed."""
    found = {"python": platform.python_version()}
    for package in ("mnistexp", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a bare checkout has no metadata of its own
            found[package] = "missing"
    return found


def worker_versions() -> dict[str, str]:
    """What decides a training's bits beside its config and its processor: alike on every machine of one study.

    mnistexp's own has a hash of its source files, since a checkout's version says little.
    """
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        source.update(path.read_bytes().replace(b"\r\n", b"\n"))
    libraries = {name: version(name) for name in ("numpy", "tensorflow", "keras")}
    own = f"{__version__} (source {source.hexdigest()[:8]})"
    return {"python": platform.python_version(), **libraries, "mnistexp": own}


def source_state(folder: Path) -> dict[str, Any]:
    """The git commit of the code in `folder`, and what differs from it.

    Returns: {"commit", "dirty", "patch"}, or {} where that is no git checkout (an installed wheel).
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
