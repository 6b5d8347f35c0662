"""Paths as users type them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(text: str) -> Path:
    """Expand ~ and ~NAME in a path; the ~NAME of an unknown user stays as it is, as in a shell."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - pathlib's raises RuntimeError
