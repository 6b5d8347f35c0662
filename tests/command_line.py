"""Run the command line in a folder, in a process of its own or in this one, and read its errors."""

from __future__ import annotations

import ctypes
import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import mnistexp
from mnistexp.cli import main

ENVIRONMENT = ("MNISTEXP_DATA", "MLFLOW_TRACKING_URI")
"""Variables that mnistexp reads."""


def run(folder: Path, *arguments: str, as_user: bool = False) -> subprocess.CompletedProcess[str]:
    """Run `python -m mnistexp` in a folder, without the variables that mnistexp reads.

    Args:
        as_user: obey file permissions even as root.
    """
    environment = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
    environment |= {"PYTHONPATH": str(Path(mnistexp.__file__).parent.parent), "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.run(
        [sys.executable, "-m", "mnistexp", *arguments],
        cwd=folder,
        env=environment,
        preexec_fn=drop_root_capabilities if as_user else None,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def drop_root_capabilities() -> None:
    """Make the next program obey file permissions, even as root (Linux)."""
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability)


def mistake(folder: Path, *arguments: str, as_user: bool = False) -> list[str]:
    """Run a wrong command line in a process of its own. Returns: its faults."""
    done = run(folder, *arguments, as_user=as_user)

    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    return sentences(done.stderr)


def mistake_here(folder: Path, *arguments: str) -> list[str]:
    """Run a wrong command line in this process, which is ten times faster. Returns: its faults."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        for name in ENVIRONMENT:
            patch.delenv(name, raising=False)
        code = main(arguments)

    assert (code, out.getvalue()) == (2, ""), err.getvalue()
    return sentences(err.getvalue())


def sentences(stderr: str) -> list[str]:
    """Return the faults in an error message: one line each, without a traceback."""
    assert "Traceback" not in stderr
    assert stderr.startswith("mnistexp: ")
    first, *others = stderr.removeprefix("mnistexp: ").splitlines()
    if not others:
        return [first]
    assert first == f"{len(others)} faults:"
    assert all(line.startswith("  ") and line[2] != " " for line in others)
    return [line.strip() for line in others]
