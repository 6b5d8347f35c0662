"""Paths as users type them, where pathlib would raise."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(text: str) -> Path:
    """A path with ~ spelled out; the ~NAME of nobody stays as it is, as in a shell."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib's raises RuntimeError


def exists(text: str) -> bool:
    """Whether something is there that can be seen from here: nothing can in a closed folder."""
    return os.path.exists(expanded(text))  # noqa: PTH110 - pathlib's raises PermissionError
