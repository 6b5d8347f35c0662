"""The user's own arrays: read an .npz file without unpickling, and check that a network can be trained on them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mnistexp.errors import DataError

Array = npt.NDArray[Any]

MAX_BYTES = 4 * 1024**3
"""The most that a file may unpack to: five million images of MNIST's."""

MAX_CLASSES = 65_536
"""The schema's limit on units: a label of 10**9 must not become a network with as many outputs."""

REQUIRED = ("x_train", "y_train", "x_test", "y_test")
OPTIONAL = ("x_validation", "y_validation")


def read_npz(path: Path) -> dict[str, Array]:
    """Read and check the arrays of an .npz file; see `check`. Raises: DataError."""
    try:
        with zipfile.ZipFile(path) as archive:
            _check_size(archive.infolist())
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in REQUIRED + OPTIONAL if name in arrays.files}
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen classes for damaged files
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{path} can't be read ({reason}). Write plain arrays with numpy.savez.") from error
    return check(found, str(path))


def _check_size(members: list[zipfile.ZipInfo]) -> None:
    """Raise DataError for a decompression bomb. zipfile never unpacks more than the size that a member declares."""
    if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
        raise DataError("it is compressed in another way than by numpy.savez_compressed")  # zipfile has no limit there
    if (total := sum(member.file_size for member in members)) > MAX_BYTES:
        raise DataError(f"its arrays unpack to {total} bytes; at most {MAX_BYTES} are allowed")


def check_returned(found: object, function: str) -> dict[str, Array]:
    """Check the data set that a user's function returned; see `check`. Raises: DataError."""
    wanted = f"a dict of NumPy arrays named {', '.join(REQUIRED)}, and optionally {', '.join(OPTIONAL)}"
    if not isinstance(found, dict) or found.keys() - {*REQUIRED, *OPTIONAL}:
        given = sorted(map(str, found)) if isinstance(found, dict) else f"a {type(found).__name__}"
        raise DataError(f"{function} returned {given}; it must return {wanted}.")
    for name, array in found.items():
        if type(array) is not np.ndarray:  # a masked array would lose its mask, a data frame its index
            raise DataError(f"{function}: {name} is a {type(array).__name__}; use a NumPy array: numpy.asarray(…).")
    return check(found, function)


def check(arrays: Mapping[str, Array], source: str) -> dict[str, Array]:
    """Check the arrays of a data set.

    Args:
        arrays: x_train, x_test and optionally x_validation, [N, ...], uint8 or finite floats, of one shape and dtype;
            for each the labels y_*, integers [N] from 0, and each label of a later split must occur in y_train.
        source: the file or the function that they come from, for the message.

    Raises: DataError if an array is missing or is anything else.
    """
    names = REQUIRED + OPTIONAL if arrays.keys() & set(OPTIONAL) else REQUIRED
    if missing := [name for name in names if name not in arrays]:
        raise DataError(
            f"{source} lacks {', '.join(missing)}. It needs {', '.join(REQUIRED)}; "
            f"{' and '.join(OPTIONAL)} come together or not at all."
        )
    for name in names:  # in this order: each is compared with those before it
        if name.startswith("x"):
            fault = _image_fault(arrays[name], arrays["x_train"])
        else:
            fault = _label_fault(arrays[name], len(arrays[f"x_{name[2:]}"]), arrays["y_train"])
        if fault:
            raise DataError(f"{source}: {name} {fault}.")
    return dict(arrays)


def _image_fault(images: Array, train: Array) -> str | None:
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        return f"is {images.dtype}; allowed are uint8 (0 to 255) and floats"
    if images.ndim < 2 or images.size == 0:
        return f"has the shape {images.shape}; allowed is [N, ...], N images of at least one number each"
    if images.shape[1:] != train.shape[1:] or images.dtype != train.dtype:
        mine, other = (f"{array.dtype} images of shape {array.shape[1:]}" for array in (images, train))
        return f"has {mine}, but x_train {other}; they must be the same"
    with np.errstate(over="ignore"):  # minimum and maximum show NaN and infinity without a second array
        ends = np.array([images.min(), images.max()]).astype(np.float32)
    if not np.isfinite(ends).all():
        return "has NaN or infinite values, or some too large for float32; allowed are finite ones"
    return None


def _label_fault(labels: Array, images: int, train: Array) -> str | None:
    if labels.dtype.kind not in "iu" or labels.shape != (images,):
        return f"is {labels.dtype} of shape {labels.shape}; allowed are integers of shape ({images},): classes from 0"
    if labels.min() < 0 or labels.max() >= MAX_CLASSES:
        return f"has labels from {labels.min()} to {labels.max()}; allowed are 0 to {MAX_CLASSES - 1}"
    if train.min() == train.max():
        return f"has the label {train[0]} alone; at least two classes are needed"
    unknown = np.setdiff1d(labels, train)
    return f"has the label {unknown[0]}, which y_train lacks" if unknown.size else None
