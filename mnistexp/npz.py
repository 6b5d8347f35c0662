"""The user's own arrays: read an .npz file without unpickling, and check that it can be trained on."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnistexp.errors import DataError

Array = npt.NDArray[Any]

MAX_CLASSES = 65_536
"""As many as the schema allows units: a label of 10**9 must not become a network with as many outputs."""

_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("x_validation", "y_validation")


def read(path: Path) -> dict[str, Array]:
    """Read and check the arrays of a data set.

    Returns:
        x_train, x_test and perhaps x_validation: alike, uint8 or finite floats, [N, ...]; for each the
        labels y_*: whole numbers [N], from 0 up, none in validation or test that is not in training.

    Raises:
        DataError: the file or an array is anything else.
    """
    arrays = _read(path)
    wanted = _REQUIRED + _OPTIONAL if arrays.keys() & set(_OPTIONAL) else _REQUIRED
    if missing := [name for name in wanted if name not in arrays]:
        raise DataError(
            f"{path} lacks {', '.join(missing)}. It needs {', '.join(_REQUIRED)}; "
            f"{' and '.join(_OPTIONAL)} come together or not at all."
        )
    for name, array in arrays.items():
        if fault := _fault(name, array, arrays):
            raise DataError(f"{path}: {name} {fault}.")
    return arrays


def _read(path: Path) -> dict[str, Array]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no .npz file, or a truncated one. Write it with numpy.savez.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in _REQUIRED + _OPTIONAL if name in archive.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        why = str(error).rstrip(".") or type(error).__name__
        raise DataError(f"{path} can't be read ({why}). Write plain arrays with numpy.savez.") from error


def _fault(name: str, array: Array, arrays: dict[str, Array]) -> str | None:
    """Say what is wrong with an array, if anything, in words that go on after its name."""
    axis, role = name.split("_")
    if axis == "x":
        return _image_fault(array, arrays["x_train"])
    return _label_fault(array, arrays[f"x_{role}"].shape[:1]) or _stranger(array, arrays["y_train"])


def _image_fault(images: Array, train: Array) -> str | None:
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        return f"is {images.dtype}; allowed are uint8 (0 to 255) and floats"
    if images.ndim < 2 or images.size == 0:
        return f"has the shape {images.shape}; allowed is [N, ...], N images of at least one number each"
    if images.shape[1:] != train.shape[1:] or images.dtype != train.dtype:
        mine, other = (f"{array.dtype} images of shape {array.shape[1:]}" for array in (images, train))
        return f"has {mine}, but x_train {other}; they must be alike"
    with np.errstate(over="ignore"):
        if images.dtype.kind == "f" and not np.isfinite(images.astype(np.float32)).all():
            return "has NaN or infinite values, or some too large for float32; allowed are finite ones"
    return None


def _label_fault(labels: Array, count: tuple[int, ...]) -> str | None:
    if labels.dtype.kind not in "iu":
        return f"is {labels.dtype}; allowed are whole numbers: each image's class, from 0 up"
    if labels.shape != count:
        return f"has the shape {labels.shape}; allowed is {count}: one class per image"
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        return f"has labels from {labels.min()} to {labels.max()}; allowed are 0 to {MAX_CLASSES - 1}"
    return None


def _stranger(labels: Array, train: Array) -> str | None:
    strangers = np.setdiff1d(labels, train)
    return f"has the label {strangers[0]}, which y_train has not" if strangers.size else None
