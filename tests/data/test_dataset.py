from __future__ import annotations

import gzip
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from configs import config

from mnistexp.data.dataset import Dataset, Split, load, read, write
from mnistexp.errors import DataError

ARRAYS = {
    "x_train": np.zeros((20, 2, 2), np.uint8),
    "y_train": np.arange(20) % 2,
    "x_test": np.zeros((4, 2, 2), np.uint8),
    "y_test": np.arange(4) % 2,
}


@pytest.fixture(scope="module")
def mnist(mnist_folder: Path) -> Dataset:
    """The real MNIST, split as in the tutorial."""
    return load(config("mnist", root=str(mnist_folder)))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """scikit-learn's digits with the default split."""
    return load(config("digits"))


def npz(path: Path, *overrides: str, **arrays: np.ndarray) -> Dataset:
    """Save arrays and load them."""
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return load(config("npz", *overrides, root=str(path)))


# ------------------------------------------------------------------------------------------ sources


def test_mnist_is_the_published_bytes_split_as_in_the_tutorial(mnist: Dataset, mnist_folder: Path) -> None:
    """The first 5,000 training images are for validation and the rest for training, each with its own label."""
    images, labels = (
        np.frombuffer(gzip.decompress((mnist_folder / name).read_bytes()), np.uint8, offset=offset)
        for name, offset in (("train-images-idx3-ubyte.gz", 16), ("train-labels-idx1-ubyte.gz", 8))
    )
    images = images.reshape(60_000, 784)

    for split, part in ((mnist.validation, slice(5_000)), (mnist.train, slice(5_000, None))):
        np.testing.assert_array_equal(split.images, images[part], strict=True)
        np.testing.assert_array_equal(split.labels, labels[part].astype(np.int32), strict=True)
    assert mnist.test.images.shape == (10_000, 784)
    assert (mnist.name, mnist.classes, mnist.image_shape, mnist.scale) == ("mnist", 10, (28, 28), 1 / 255)
    assert mnist.source == str(mnist_folder)


def test_digits_are_split_without_loss(digits: Dataset) -> None:
    """The three splits hold each of the 1,797 images once, as bytes up to 16."""
    from sklearn.datasets import load_digits

    splits = (digits.train, digits.validation, digits.test)
    rows, everything = np.concatenate([split.images for split in splits]), load_digits().data.astype(np.uint8)

    assert [split.images.shape for split in splits] == [(1137, 64), (300, 64), (360, 64)]
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], everything[np.lexsort(everything.T)], strict=True)
    assert digits.train.images.max() * digits.scale == 1
    assert (digits.classes, digits.image_shape, digits.source) == (10, (8, 8), "scikit-learn")


@pytest.mark.parametrize(("dtype", "loaded", "scale"), [("uint8", "uint8", 1 / 255), ("float64", "float32", 1.0)])
def test_npz_images_are_flattened_and_kept_small(dtype: str, loaded: str, scale: float, tmp_path: Path) -> None:
    """Bytes stay bytes; floats become float32 and are used as they are."""
    images, labels = np.arange(40 * 6).reshape(40, 2, 3).astype(dtype), np.arange(40) % 4
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:8], "y_test": labels[:8]}

    mine = npz(tmp_path / "mine.npz", "data.validation_size=12", **arrays)

    assert [split.images.shape for split in (mine.train, mine.validation, mine.test)] == [(28, 6), (12, 6), (8, 6)]
    assert (mine.train.images.dtype, mine.scale) == (np.dtype(loaded), scale)
    assert (mine.classes, mine.image_shape) == (4, (2, 3))


def test_npz_may_have_its_own_validation_split(tmp_path: Path) -> None:
    """With x_validation in the file no image is taken from training."""
    arrays = {**ARRAYS, "x_validation": ARRAYS["x_test"], "y_validation": ARRAYS["y_test"]}

    mine = npz(tmp_path / "mine.npz", **arrays)

    assert [len(split.labels) for split in (mine.train, mine.validation, mine.test)] == [20, 4, 4]


@pytest.mark.parametrize(
    ("name", "root", "words"),
    [
        ("npz", None, "give data.root=FILE.npz"),
        ("npz", "no/such.npz", "data.root=no/such.npz is no file: give data.root=FILE.npz"),
        ("mnist", "no/such", "data.root=no/such lacks train-images"),
        ("digits", "folder", "leave data.root=folder out"),
    ],
)
def test_a_root_that_does_not_suit_the_data_set_is_refused(name: str, root: str | None, words: str) -> None:
    """npz needs a file, mnist a folder, digits neither."""
    with pytest.raises(DataError, match=words):
        load(config(name, root=root))


# ------------------------------------------------------------------------------------------ splits


def test_a_split_is_fixed_by_its_seed(digits: Dataset) -> None:
    """The same split_seed gives the same fingerprint, another one a different fingerprint."""
    same, other = (load(config("digits", f"data.split_seed={seed}")).fingerprint for seed in (0, 1))

    assert same == digits.fingerprint != other


@pytest.mark.parametrize(
    ("override", "allowed"),
    [
        ("data.test_size=1788", "1797 images"),
        ("data.validation_size=9", "1437 images"),
        ("data.validation_size=10", None),
        ("data.validation_size=1437 data.split=first", "1437 images: give 1 to 1436."),
        ("data.validation_size=1436 data.split=first", None),
    ],
)
def test_a_split_size_out_of_range_is_refused_with_the_range(override: str, allowed: str | None) -> None:
    """The ends of the range are allowed; beyond them the message names the key, the value and the range."""
    asked = config("digits", *override.split())

    if allowed is None:
        load(asked)
    else:
        with pytest.raises(DataError, match=re.escape(f"{override.split()[0]} can't be held out of {allowed}")):
            load(asked)


# ------------------------------------------------------------------------------------------ fingerprint


@pytest.mark.parametrize("change", ["nothing", *ARRAYS, "shape", "dtype", "size", "split"])
def test_the_fingerprint_depends_on_all_that_is_trained_on(change: str, tmp_path: Path) -> None:
    """One pixel, one label, the images' shape or dtype, or the split: each gives another fingerprint."""
    arrays, images = {name: array.copy() for name, array in ARRAYS.items()}, ("x_train", "x_test")
    if change in arrays:
        arrays[change].flat[-1] ^= 1
    elif change == "shape":
        arrays |= {name: arrays[name].reshape(-1, 4) for name in images}
    elif change == "dtype":
        arrays |= {name: arrays[name].astype(np.float32) for name in images}
    size = "data.validation_size=4"
    overrides = {"size": ["data.validation_size=6"], "split": [size, "data.split=first"]}.get(change, [size])

    before = npz(tmp_path / "before.npz", size, **ARRAYS).fingerprint
    after = npz(tmp_path / "after.npz", *overrides, **arrays).fingerprint

    assert (before == after) == (change == "nothing")
    assert re.fullmatch(r"[0-9a-f]{32}", before)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_data_set_survives_a_file(dtype: type[np.generic], digits: Dataset) -> None:
    """Every array, dtype and field is the same after `write` and `read`."""
    digits = replace(digits, train=Split(digits.train.images.astype(dtype), digits.train.labels))
    file = io.BytesIO()
    write(digits, file)
    file.seek(0)

    back = read(file)

    for name in ("train", "validation", "test"):
        before, after = getattr(digits, name), getattr(back, name)
        np.testing.assert_array_equal(before.images, after.images, strict=True)
        np.testing.assert_array_equal(before.labels, after.labels, strict=True)
    for name in ("name", "classes", "image_shape", "scale", "fingerprint", "source"):
        assert getattr(back, name) == getattr(digits, name)
