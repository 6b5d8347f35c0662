"""Data sets: find or download, check, parse, split, fingerprint. Images stay as small as they came.

>>> dataset = load(config)  # 0.25 s for MNIST
>>> dataset.train.images  # uint8 [55000, 784]; times dataset.scale they lie in [0, 1]
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, assert_never

import numpy as np
import numpy.typing as npt
import platformdirs

from mnistexp.config import user_code
from mnistexp.config.schema import DataConfig, DigitsData, IdxData, IdxFile, NpzData, UserData
from mnistexp.data import arrays as npz
from mnistexp.data import idx
from mnistexp.errors import DataError
from mnistexp.paths import exists, expanded

Array = npt.NDArray[Any]

_WAYS_OUT = (
    "Give the folder that has them with data.root=FOLDER or MNISTEXP_DATA=FOLDER, "
    "or use data=digits, which needs no download."
)


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels."""

    images: Array  # uint8, or float32 where the user's own are floats; [N, features]
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
    scale: float  # images times this lie in [0, 1]; the user's own floats are taken as they are: 1.0
    fingerprint: str  # 32 hex digits; another array, shape, dtype, scale or split is another fingerprint
    source: str  # the folder or file that it was read from, the function that made it, or "scikit-learn"


@dataclass(frozen=True)
class Choice:
    """What `data=auto` became, and why."""

    name: Literal["mnist", "digits"]
    reason: str  # "found in FOLDER", or why MNIST can't be had


def load(config: DataConfig) -> Dataset:
    """Find a data set, or else download it; check, parse and split it.

    Raises:
        DataError: it is missing and can't be downloaded, is damaged, or can't be split as asked.
        ConfigError: it is made by a function of the user's, which isn't there or fails.
        ValueError: the name is still `auto`; see `resolve_auto`.
    """
    match config:
        case IdxData():
            return _load_idx(config)
        case DigitsData():
            return _load_digits(config)
        case NpzData():
            return _load_npz(config)
        case UserData():
            return _load_own(config)
        case _:
            assert_never(config)


def resolve_auto(config: IdxData) -> Choice:
    """Decide what `auto` is: mnist if it is here or can be downloaded (which is done), else digits.

    Damaged files are no reason to fall back: `load` raises on them, and so does this if an explicit
    `data.root` lacks files. The caller shows the reason, and composes `data=mnist` or `data=digits`.
    """
    folder = find(config)
    if folder is not None:
        return Choice("mnist", f"found in {folder}")
    if config.root is not None:
        raise DataError(_missing(config, config.root))
    try:
        return Choice("mnist", f"downloaded to {_download(config)}")
    except DataError as error:
        return Choice("digits", f"no MNIST here: {error}")


def find(config: DataConfig) -> Path | None:
    """Return the folder (npz: the file) with the local copy, or None. Raises: DataError where it may not be read.

    Looks in `data.root` and nowhere else if that is given; else in $MNISTEXP_DATA, first its subfolder
    named after the data set; else in the user's cache folder.
    """
    try:
        return _find(config)
    except PermissionError as error:
        raise DataError(f"{error.filename}: may not be read; give another data.root") from None


def rooted(config: DataConfig, root: str | None) -> DataConfig:
    """A recorded data set, read from `root` if the user gave one, else from where it was or the usual places are."""
    recorded = config.root if config.root and exists(config.root) else None
    return config.model_copy(update={"root": root or recorded})


def _find(config: DataConfig) -> Path | None:
    if isinstance(config, DigitsData | UserData):
        return None
    if isinstance(config, NpzData):
        path = expanded(config.root or "")
        return path if path.is_file() else None
    if config.root is not None:
        root = expanded(config.root)
        return root if _has_all(root, config) else None
    # All IDX data sets name their files alike, so $MNISTEXP_DATA may hold another one than is asked for. One
    # right size is enough: a single damaged file is to be reported, not passed over.
    usable = (place for place in _places(config) if _has_all(place, config) and _has_a_size(place, config))
    return next(usable, None)


# ------------------------------------------------------------------- MNIST, Fashion-MNIST and KMNIST


def _load_idx(config: IdxData) -> Dataset:
    if config.name == "auto":
        raise ValueError("data.name is still auto: call resolve_auto first")
    folder = _obtain(config)
    files = config.files
    try:
        images, labels = idx.read_pair(folder, files.train_images, files.train_labels, files)
        test_images, test_labels = idx.read_pair(folder, files.test_images, files.test_labels, files)
    except DataError as error:
        raise DataError(f"{error} {_remedy(config, folder)}") from error
    train, validation = _divide(_split(images, labels), config, config.name)
    splits = (train, validation, _split(test_images, test_labels))
    return _dataset(config.name, splits, idx.CLASSES, idx.IMAGE_SHAPE, 1 / 255, str(folder))


def _obtain(config: IdxData) -> Path:
    """Return the folder that holds the files, after a download if need be; never into a user's own folder."""
    folder = find(config)
    if folder is not None:
        return folder
    if config.root is not None:
        raise DataError(_missing(config, config.root))
    try:
        return _download(config)
    except DataError as error:
        places = ", ".join(str(place) for place in _places(config))
        raise DataError(f"{config.name} is not in {places}, and {error} {_WAYS_OUT}") from error


def _download(config: IdxData) -> Path:
    from mnistexp.data.download import fetch  # requests and rich take 0.2 s to import, for once in a lifetime

    folder = _cache_folder(config)
    fetch(folder, _files(config), config.mirrors, config.timeout)
    return folder


def _files(config: IdxData) -> tuple[IdxFile, ...]:
    files = config.files
    return files.train_images, files.train_labels, files.test_images, files.test_labels


def _folder_name(config: IdxData) -> str:
    return "mnist" if config.name == "auto" else config.name


def _cache_folder(config: IdxData) -> Path:
    return Path(platformdirs.user_cache_dir("mnistexp")) / _folder_name(config)


def _places(config: IdxData) -> list[Path]:
    """List the folders to look in where no root is given, in order."""
    shared = os.environ.get("MNISTEXP_DATA")
    if not shared:
        return [_cache_folder(config)]
    base = expanded(shared)
    return [base / _folder_name(config), base, _cache_folder(config)]


def _has_all(folder: Path, config: IdxData) -> bool:
    return all((folder / file.name).is_file() for file in _files(config))


def _has_a_size(folder: Path, config: IdxData) -> bool:
    return any((folder / file.name).stat().st_size == file.bytes for file in _files(config))


def _missing(config: IdxData, root: str) -> str:
    folder = expanded(root)
    if not folder.is_dir():
        return f"data.root={root} is no folder. Give one with the four files, or leave data.root out."
    names = ", ".join(file.name for file in _files(config) if not (folder / file.name).is_file())
    return f"data.root={root} lacks {names}. Put them there, or leave data.root out to have them downloaded."


def _remedy(config: IdxData, folder: Path) -> str:
    if folder == _cache_folder(config):
        return "Delete that file and run again: it will be downloaded anew."
    return f"Put the published {config.name} file there, give another data.root=FOLDER, or use data=digits."


# ---------------------------------------------------------------------------------- scikit-learn's digits


def _load_digits(config: DigitsData) -> Dataset:
    from sklearn.datasets import load_digits

    if config.root is not None:
        raise DataError(f"data=digits reads no files: leave data.root={config.root} out.")
    bunch = load_digits()
    everything = _split(bunch.images.astype(np.uint8), bunch.target)  # whole numbers from 0 to 16
    rest, test = _stratify(everything, config.test_size, config.split_seed, "data.test_size", "digits")
    train, validation = _divide(rest, config, "digits")
    return _dataset("digits", (train, validation, test), 10, (8, 8), 1 / 16, "scikit-learn")


# ------------------------------------------------------------------------------------ the user's own arrays


def _load_npz(config: NpzData) -> Dataset:
    if config.root is None:
        raise DataError("data=npz reads x_train, y_train, x_test and y_test from a file: give data.root=FILE.npz.")
    path = find(config)
    if path is None:
        raise DataError(f"data.root={config.root} is no file: give data.root=FILE.npz.")
    return _of_arrays("npz", npz.read(path), config, str(path))


def _load_own(config: UserData) -> Dataset:
    where = f"{config.function}() of {user_code.require(config).name}"
    found = user_code.call(config.function, settings=config.keywords)
    return _of_arrays(config.function, npz.made(found, where), config, where)


def _of_arrays(name: str, arrays: dict[str, Array], config: NpzData | UserData, source: str) -> Dataset:
    train, test = _npz_split(arrays, "train"), _npz_split(arrays, "test")
    if "x_validation" in arrays:
        validation = _npz_split(arrays, "validation")
    else:
        train, validation = _divide(train, config, source)
    classes = 1 + int(max(split.labels.max() for split in (train, validation, test)))
    scale = 1 / 255 if train.images.dtype == np.uint8 else 1.0
    return _dataset(name, (train, validation, test), classes, arrays["x_train"].shape[1:], scale, source)


def _npz_split(arrays: dict[str, Array], role: str) -> Split:
    images = arrays[f"x_{role}"]
    return _split(images if images.dtype == np.uint8 else images.astype(np.float32), arrays[f"y_{role}"])


# ------------------------------------------------------------------------------- splits and fingerprints


def _split(images: Array, labels: Array) -> Split:
    """Flatten images [N, ...] to [N, features]; a view where NumPy can."""
    return Split(np.ascontiguousarray(images.reshape(len(images), -1)), labels.astype(np.int32))


def _divide(whole: Split, config: DataConfig, where: str) -> tuple[Split, Split]:
    """Divide training images into train and validation as `data.split` says."""
    if config.split == "stratified":
        return _stratify(whole, config.validation_size, config.split_seed, "data.validation_size", where)
    size, images = config.validation_size, len(whole.labels)
    _check_size(size, 1, images - 1, f"data.validation_size={size}", f"{images} images of {where}")
    return _part(whole, slice(size, None)), _part(whole, slice(None, size))


def _stratify(whole: Split, size: int, seed: int, key: str, where: str) -> tuple[Split, Split]:
    """Hold out `size` images, each class in proportion; both parts keep the order of the files.

    scikit-learn's draw may change with its version; the fingerprint would then say so.
    """
    from sklearn.model_selection import train_test_split

    present, counts = np.unique(whole.labels, return_counts=True)
    if counts.min() < 2:
        raise DataError(
            f"{where} has only one image of class {present[counts.argmin()]}: a stratified split needs two. "
            "Give more of it, or data.split=first."
        )
    images, classes = len(whole.labels), len(present)
    _check_size(size, classes, images - classes, f"{key}={size}", f"{images} images of {where}")
    rest, held_out = train_test_split(np.arange(images), test_size=size, stratify=whole.labels, random_state=seed)
    return _part(whole, np.sort(rest)), _part(whole, np.sort(held_out))


def _check_size(size: int, low: int, high: int, given: str, images: str) -> None:
    if not low <= size <= high:
        raise DataError(f"{given} can't be held out of the {images}: give {low} to {high}.")


def _part(whole: Split, index: slice | Array) -> Split:
    return Split(whole.images[index], whole.labels[index])


def _dataset(
    name: str,
    splits: tuple[Split, Split, Split],
    classes: int,
    image_shape: tuple[int, ...],
    scale: float,
    source: str,
) -> Dataset:
    """Put a data set together with its fingerprint."""
    fingerprint = _fingerprint(splits, classes, image_shape, scale)
    return Dataset(name, *splits, classes, image_shape, scale, fingerprint, source)


def _fingerprint(splits: tuple[Split, ...], *facts: object) -> str:
    """Hash all that a training can see, to 32 hex digits: MLflow's dataset digests end at 36."""
    digest = hashlib.sha256(repr(facts).encode())
    for split in splits:
        for array in (split.images, split.labels):
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]
