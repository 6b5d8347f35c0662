"""Data sets: load, split, fingerprint. Images keep the dtype in which they are stored.

>>> dataset = load(config)  # 0.25 s for MNIST
>>> dataset.train.images  # uint8 [55000, 784]; multiplied by dataset.scale they are in [0, 1]
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, assert_never

import numpy as np
import numpy.typing as npt

from mnistexp.config import user_code
from mnistexp.config.schema import DataConfig, DigitsData, IdxData, NpzData, UserData
from mnistexp.data import arrays, mnist
from mnistexp.data.arrays import Array
from mnistexp.errors import DataError
from mnistexp.paths import expanded


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels."""

    images: Array  # [N, features]; uint8, or float32 if the user's arrays are floats
    labels: npt.NDArray[np.int32]  # [N], from 0 to classes - 1


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set in three disjoint splits."""

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int
    image_shape: tuple[int, ...]  # of one image before it was flattened, e.g. (28, 28)
    scale: float  # images multiplied by this are in [0, 1]; 1.0 for the user's floats, which are used as they are
    fingerprint: str  # 32 hex digits; another array, shape, dtype, scale or split gives another fingerprint
    source: str  # the folder, the file or the function that it comes from, or "scikit-learn"


def load(config: DataConfig) -> Dataset:
    """Find a data set or download it; check, parse and split it.

    Raises: DataError if it is missing, damaged or can't be split as configured; ConfigError if the user's function
        that makes it fails; ValueError if the name is still `auto` (see `mnist.resolve_auto`).
    """
    match config:
        case IdxData():
            return _load_idx(config)
        case DigitsData():
            return _load_digits(config)
        case NpzData():
            path = find(config)
            if path is None:
                raise DataError(f"data.root={config.root} is no file: give data.root=FILE.npz.")
            return _from_arrays("npz", arrays.read_npz(path), config, str(path))
        case UserData():
            source = f"{config.function}() of {user_code.require(config).name}"
            returned = user_code.call(config.function, settings=config.keywords)
            return _from_arrays(config.function, arrays.check_returned(returned, source), config, source)
        case _:
            assert_never(config)


def find(config: DataConfig) -> Path | None:
    """Return the folder (npz: the file) with the local copy, or None. Raises: DataError if access to it is denied."""
    if isinstance(config, IdxData):
        return mnist.find(config)
    path = expanded(config.root or "")
    return path if isinstance(config, NpzData) and mnist.is_file(path) else None


def relocate(config: DataConfig, root: str | None) -> DataConfig:
    """Return a recorded config that reads from `root`, else from its recorded root if that exists here."""
    if root is None and config.root and expanded(config.root).exists():
        root = config.root
    return config.model_copy(update={"root": root})


# ------------------------------------------------------------------------------------------ sources


def _load_idx(config: IdxData) -> Dataset:
    if config.name == "auto":
        raise ValueError("data.name is still auto: call mnist.resolve_auto first")
    train_files, test_files, folder = mnist.load(config)
    train, validation = _hold_out_validation(_split(*train_files), config)
    return _dataset(config.name, (train, validation, _split(*test_files)), mnist.IMAGE_SHAPE, 1 / 255, folder)


def _load_digits(config: DigitsData) -> Dataset:
    from sklearn.datasets import load_digits

    if config.root is not None:
        raise DataError(f"data=digits reads no files: leave data.root={config.root} out.")
    bunch = load_digits()
    everything = _split(bunch.images.astype(np.uint8), bunch.target)  # integers from 0 to 16
    rest, test = _stratify(everything, config.test_size, config.split_seed, "data.test_size")
    train, validation = _hold_out_validation(rest, config)
    return _dataset("digits", (train, validation, test), (8, 8), 1 / 16, "scikit-learn")


def _from_arrays(name: str, named: dict[str, Array], config: NpzData | UserData, source: str) -> Dataset:
    def split(role: str) -> Split:
        images = named[f"x_{role}"]
        return _split(images if images.dtype == np.uint8 else images.astype(np.float32), named[f"y_{role}"])

    if "x_validation" in named:
        train, validation = split("train"), split("validation")
    else:
        train, validation = _hold_out_validation(split("train"), config)
    scale = 1 / 255 if train.images.dtype == np.uint8 else 1.0
    return _dataset(name, (train, validation, split("test")), named["x_train"].shape[1:], scale, source)


# ------------------------------------------------------------------------------------------ splits and fingerprint


def _split(images: Array, labels: Array) -> Split:
    """Flatten images [N, ...] to [N, features]; a view where NumPy can."""
    return Split(np.ascontiguousarray(images.reshape(len(images), -1)), labels.astype(np.int32))


def _hold_out_validation(whole: Split, config: DataConfig) -> tuple[Split, Split]:
    """Split training images into train and validation as configured by `data.split`."""
    size, images = config.validation_size, len(whole.labels)
    if config.split == "stratified":
        return _stratify(whole, size, config.split_seed, "data.validation_size")
    if size >= images:
        raise DataError(f"data.validation_size={size} can't be held out of {images} images: give 1 to {images - 1}.")
    return _part(whole, slice(size, None)), _part(whole, slice(None, size))


def _stratify(whole: Split, size: int, seed: int, key: str) -> tuple[Split, Split]:
    """Hold out `size` images, each class in proportion; both parts keep the order of the files.

    Another version of scikit-learn may draw other images; the fingerprint then differs.
    """
    from sklearn.model_selection import train_test_split

    images = np.arange(len(whole.labels))
    try:
        rest, held_out = train_test_split(images, test_size=size, stratify=whole.labels, random_state=seed)
    except ValueError as error:  # a class with one image, or fewer images than classes in one of the parts
        raise DataError(
            f"{key}={size} can't be held out of {len(images)} images with data.split=stratified: {error}"
        ) from None
    return _part(whole, np.sort(rest)), _part(whole, np.sort(held_out))


def _part(whole: Split, index: slice | Array) -> Split:
    return Split(whole.images[index], whole.labels[index])


def _dataset(
    name: str, splits: tuple[Split, Split, Split], image_shape: tuple[int, ...], scale: float, source: str
) -> Dataset:
    """Build a data set. Its fingerprint covers all that a training can see; MLflow's dataset digests have 36 digits."""
    classes = 1 + max(int(split.labels.max()) for split in splits)
    digest = hashlib.sha256(repr((classes, image_shape, scale)).encode())
    for split in splits:
        for array in (split.images, split.labels):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return Dataset(name, *splits, classes, image_shape, scale, digest.hexdigest()[:32], source)


# ------------------------------------------------------------------------------------------ one file for a worker

_ROLES = ("train", "validation", "test")


def write(dataset: Dataset, file: IO[bytes]) -> None:
    """Write a data set to an open file, uncompressed: MNIST's 55 MB take 0.1 s. A Ray actor passes it to its worker."""
    fields = dict(vars(dataset))
    splits = {role: vars(fields.pop(role)) for role in _ROLES}
    named = {f"{role}_{part}": array for role, split in splits.items() for part, array in split.items()}
    np.savez(file, fields=np.array(json.dumps(fields)), **named)


def read(file: IO[bytes]) -> Dataset:
    """Read a data set that `write` wrote."""
    with np.load(file, allow_pickle=False) as named:
        fields: dict[str, Any] = json.loads(str(named["fields"]))
        fields |= {role: Split(named[f"{role}_images"], named[f"{role}_labels"]) for role in _ROLES}
    return Dataset(**fields | {"image_shape": tuple(fields["image_shape"])})
