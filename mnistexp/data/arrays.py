"""The user's own arrays: read an .npz file without unpickling, and check that they can be trained on."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from mnistexp.errors import DataError

Array = npt.NDArray[Any]

MAX_CLASSES = 65_536
"""As many as the schema allows units: a label of 10**9 must not become a network with as many outputs."""

MAX_FILE_BYTES = (1 << 31) - 1
"""What a zip archive holds without its 64-bit extension: 2 GiB."""

SAFE_BYTES = 150_000_000
"""What a file of any size may unpack to: 250,000 images of MNIST's size."""

MAX_RATIO = 50
"""How far a larger one may have been packed. Images give 2 to 25, a bomb 1000."""

_MAX_DIRECTORY = 1 << 16  # bytes; NumPy's own is 60 for each array, and zipfile makes 700 of each 46
_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("x_validation", "y_validation")


def read(path: Path) -> dict[str, Array]:
    """Read and check the arrays of a data set.

    Returns:
        x_train, x_test and perhaps x_validation: alike, uint8 or finite floats, [N, ...]; for each the
        labels y_*: whole numbers [N], from 0 up, none in validation or test that is not in training.

    Raises:
        DataError: the file or an array is anything else, or the file could be a bomb.
    """
    return checked(_read(path), str(path))


def checked(arrays: Mapping[str, Array], where: str) -> dict[str, Array]:
    """Check the arrays of a data set; see `read`.

    Args:
        where: they come from, for a message.
    """
    wanted = _REQUIRED + _OPTIONAL if arrays.keys() & set(_OPTIONAL) else _REQUIRED
    if missing := [name for name in wanted if name not in arrays]:
        raise DataError(
            f"{where} lacks {', '.join(missing)}. It needs {', '.join(_REQUIRED)}; "
            f"{' and '.join(_OPTIONAL)} come together or not at all."
        )
    for name in wanted:  # in this order: each is compared with those before it
        if fault := _fault(name, arrays[name], arrays):
            raise DataError(f"{where}: {name} {fault}.")
    return dict(arrays)


def made(found: object, where: str) -> dict[str, Array]:
    """Check what a function of the user's made as a data set; see `read`."""
    named = f"a dict of arrays named {', '.join(_REQUIRED)}"
    if not isinstance(found, dict):
        raise DataError(f"{where} gave a {type(found).__name__}; wanted is {named}.")
    if strangers := [name for name in found if name not in _REQUIRED + _OPTIONAL]:
        raise DataError(f"{where} gave {strangers[0]!r}; wanted is {named}, and perhaps {', '.join(_OPTIONAL)}.")
    for name, array in found.items():
        if type(array) is not np.ndarray:  # a masked array's mask, a frame's index would be lost in silence
            raise DataError(f"{where}: {name} is a {type(array).__name__}; wanted is a NumPy array, numpy.asarray(…).")
    return checked(found, where)


def _read(path: Path) -> dict[str, Array]:
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is no .npz file, or a truncated one. Write it with numpy.savez.")
    try:
        _check_directory(path)
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, path.stat().st_size)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in _REQUIRED + _OPTIONAL if name in arrays.files}
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise DataError(f"{path} can't be read ({why}). Write plain arrays with numpy.savez.") from error


def _check_directory(path: Path) -> None:
    """Refuse a list of contents that is itself a bomb, before zipfile reads all of it."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise DataError(f"it has {size} bytes; allowed are {MAX_FILE_BYTES}")
    with path.open("rb") as stream:
        stream.seek(max(0, size - 42))
        end = stream.read()
    if end[-22:-18] != b"PK\5\6" or b"PK\6\7" in end[:-22]:
        raise DataError("its list of contents is not as numpy.savez writes it")
    listed = int.from_bytes(end[-10:-6], "little")
    if listed > _MAX_DIRECTORY:
        raise DataError(f"its list of contents has {listed} bytes; allowed are {_MAX_DIRECTORY}")


def _check_members(archive: zipfile.ZipFile, packed: int) -> None:
    """Refuse a bomb before anything is unpacked: zipfile itself never unpacks more than a member declares."""
    wanted = {f"{name}.npy" for name in _REQUIRED + _OPTIONAL} | {*_REQUIRED, *_OPTIONAL}
    members = [member for member in archive.infolist() if member.filename in wanted]
    if len({member.filename.removesuffix(".npy") for member in members}) < len(members):
        raise DataError("it has two arrays of one name")
    total, most = sum(member.file_size for member in members), max(SAFE_BYTES, MAX_RATIO * packed)
    if total > most:
        raise DataError(f"its arrays unpack to {total} bytes; of a file of {packed} bytes allowed are {most}")
    for member in members:
        _check_member(archive, member)


def _check_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """Refuse a member that is not one array of exactly the size that its header announces."""
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # zipfile unpacks others unbounded
        raise DataError(f"{member.filename} is packed in another way than numpy.savez_compressed has it")
    with archive.open(member) as stream:
        version = npy.read_magic(stream)
        if version != (1, 0):
            raise DataError(f"{member.filename} is of NumPy's format {version[0]}.{version[1]}, not 1.0")
        shape, _, dtype = npy.read_array_header_1_0(stream)
        announced, held = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if announced != held and not dtype.hasobject:
        raise DataError(f"{member.filename} announces {announced} bytes and holds {held}")


def _fault(name: str, array: Array, arrays: Mapping[str, Array]) -> str | None:
    """Say what is wrong with an array, if anything, in words that go on after its name."""
    axis, role = name.split("_")
    if axis == "x":
        return _image_fault(array, arrays["x_train"])
    if fault := _label_fault(array, arrays[f"x_{role}"].shape[:1]):
        return fault
    if role == "train" and array.min() == array.max():
        return f"has the label {array[0]} alone; a network has something to learn from two classes on"
    return _stranger(array, arrays["y_train"])


def _image_fault(images: Array, train: Array) -> str | None:
    if images.dtype != np.uint8 and images.dtype.kind != "f":
        return f"is {images.dtype}; allowed are uint8 (0 to 255) and floats"
    if images.ndim < 2 or images.size == 0:
        return f"has the shape {images.shape}; allowed is [N, ...], N images of at least one number each"
    if images.shape[1:] != train.shape[1:] or images.dtype != train.dtype:
        mine, other = (f"{array.dtype} images of shape {array.shape[1:]}" for array in (images, train))
        return f"has {mine}, but x_train {other}; they must be alike"
    with np.errstate(over="ignore"):  # the two ends show NaN and infinity too, and need no second array
        if (
            images.dtype.kind == "f"
            and not np.isfinite(np.array([images.min(), images.max()]).astype(np.float32)).all()
        ):
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
    known = np.zeros(MAX_CLASSES, bool)
    known[train] = True
    strangers = labels[~known[labels]]
    return f"has the label {strangers.min()}, which y_train has not" if strangers.size else None
