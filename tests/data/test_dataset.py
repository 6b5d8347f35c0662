from __future__ import annotations

import gzip
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from mnistexp.config.schema import DataConfig
from mnistexp.data.dataset import Choice, Dataset, Split, find, load, resolve_auto
from mnistexp.errors import DataError

CONF = Path(__file__).resolve().parents[2] / "conf"
NOWHERE = 'data.mirrors=["http://127.0.0.1:1/"]'
TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"


def config(name: str, *overrides: str, **values: Any) -> Any:
    """Compose conf/data/NAME.yaml; `values` set keys of data to what no override can spell."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(None, [f"+data={name}", *overrides])
    plain = OmegaConf.to_container(composed.data, resolve=True)
    return TypeAdapter(DataConfig).validate_python({**plain, **values})  # type: ignore[dict-item]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own, and no MNISTEXP_DATA."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MNISTEXP_DATA", raising=False)
    return tmp_path / "cache" / "mnistexp" / "mnist"


@pytest.fixture
def own(tmp_path: Path, mnist_folder: Path) -> Path:
    """A copy of MNIST that a test may damage."""
    return Path(shutil.copytree(mnist_folder, tmp_path / "own", copy_function=shutil.copyfile))


@pytest.fixture(scope="module")
def mnist(mnist_folder: Path) -> Dataset:
    """The real MNIST, split as in the tutorial."""
    return load(config("mnist", root=str(mnist_folder)))


# ---------------------------------------------------------------------------------------- what is loaded


@pytest.mark.parametrize("name", ["auto", "mnist", "fashion_mnist", "kmnist", "digits", "npz"])
def test_every_option_composes_to_a_valid_config_of_its_name(name: str) -> None:
    """Each YAML in conf/data has all keys of the schema and no others."""
    assert config(name).name == name


def test_mnist_is_split_as_in_the_tutorial(mnist: Dataset) -> None:
    """55,000 images for training, 5,000 for validation, 10,000 for test, all still bytes."""
    splits = (mnist.train, mnist.validation, mnist.test)

    assert [split.images.shape for split in splits] == [(55_000, 784), (5_000, 784), (10_000, 784)]
    assert {split.images.dtype for split in splits} == {np.dtype(np.uint8)}
    assert {split.labels.dtype for split in splits} == {np.dtype(np.int32)}
    assert (mnist.name, mnist.classes, mnist.image_shape, mnist.scale) == ("mnist", 10, (28, 28), 1 / 255)


def test_mnist_is_the_published_bytes_in_their_order(mnist: Dataset, mnist_folder: Path) -> None:
    """Validation is the first 5,000 training images and train the rest, each with its own label."""
    pixels = np.frombuffer(gzip.decompress((mnist_folder / TRAIN_IMAGES).read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((mnist_folder / TRAIN_LABELS).read_bytes()), np.uint8, offset=8)
    pixels = pixels.reshape(60_000, 784)

    assert np.array_equal(mnist.validation.images, pixels[:5_000])
    assert np.array_equal(mnist.validation.labels, labels[:5_000])
    assert np.array_equal(mnist.train.images, pixels[5_000:])
    assert np.array_equal(mnist.train.labels, labels[5_000:])


def test_digits_need_no_file() -> None:
    """scikit-learn's digits come as bytes up to 16, in three splits that make up the whole."""
    digits = load(config("digits"))

    sizes = [split.images.shape for split in (digits.train, digits.validation, digits.test)]
    assert sizes == [(1137, 64), (300, 64), (360, 64)]
    assert digits.train.images.dtype == np.uint8
    assert digits.train.images.max() * digits.scale == 1
    assert (digits.classes, digits.image_shape, digits.source) == (10, (8, 8), "scikit-learn")


@pytest.mark.parametrize(("dtype", "loaded", "scale"), [("uint8", "uint8", 1 / 255), ("float64", "float32", 1.0)])
def test_npz_images_are_flattened_and_kept_small(dtype: str, loaded: str, scale: float, tmp_path: Path) -> None:
    """One's own bytes stay bytes, one's own floats become float32, taken as they are."""
    images, labels = np.arange(40 * 6).reshape(40, 2, 3).astype(dtype), np.arange(40) % 4
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images[:8], y_test=labels[:8])

    mine = load(config("npz", "data.validation_size=12", root=str(tmp_path / "mine.npz")))

    sizes = [split.images.shape for split in (mine.train, mine.validation, mine.test)]
    assert sizes == [(28, 6), (12, 6), (8, 6)]
    assert (mine.train.images.dtype, mine.scale) == (np.dtype(loaded), scale)
    assert (mine.classes, mine.image_shape) == (4, (2, 3))


def test_npz_may_bring_its_own_validation_split(tmp_path: Path) -> None:
    """With x_validation in the file nothing is taken from training."""
    images, labels = np.ones((9, 4), np.float32), np.arange(9) % 3
    arrays = {f"{axis}_{role}": array for role in ("train", "validation", "test")
              for axis, array in (("x", images), ("y", labels))}  # fmt: skip
    np.savez(tmp_path / "mine.npz", **arrays)  # type: ignore[arg-type]

    mine = load(config("npz", root=str(tmp_path / "mine.npz")))

    assert [len(split.labels) for split in (mine.train, mine.validation, mine.test)] == [9, 9, 9]


# ------------------------------------------------------------------------------- splits and fingerprints


def test_a_stratified_split_has_each_class_in_proportion(mnist: Dataset, mnist_folder: Path) -> None:
    """Validation and train have each digit's share of the whole, within one image."""
    stratified = load(config("mnist", "data.split=stratified", root=str(mnist_folder)))

    whole = np.bincount(np.concatenate([mnist.train.labels, mnist.validation.labels]))
    np.testing.assert_allclose(np.bincount(stratified.validation.labels), whole / 12, atol=1)
    np.testing.assert_allclose(np.bincount(stratified.train.labels), whole * 11 / 12, atol=1)


def test_splits_are_disjoint_and_complete() -> None:
    """The three splits of digits hold each of the 1,797 images once."""
    from sklearn.datasets import load_digits

    digits = load(config("digits"))

    rows = np.concatenate([digits.train.images, digits.validation.images, digits.test.images])
    everything = load_digits().data.astype(np.uint8)
    assert np.array_equal(rows[np.lexsort(rows.T)], everything[np.lexsort(everything.T)])


def test_a_split_is_fixed_by_its_seed() -> None:
    """The same split_seed gives the same fingerprint, another one another."""
    first, again, other = (load(config("digits", f"data.split_seed={seed}")) for seed in (1, 1, 2))

    assert first.fingerprint == again.fingerprint
    assert first.fingerprint != other.fingerprint


def test_the_test_split_of_digits_does_not_depend_on_the_validation_split() -> None:
    """Another validation_size or kind of split leaves the test images as they were."""
    first, other = (
        load(config("digits")),
        load(config("digits", "data.validation_size=100", "data.split=first")),
    )

    assert np.array_equal(first.test.images, other.test.images)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("mnist", "data.validation_size=60000", "60000 images of mnist: give 1 to 59999."),
        ("mnist", "data.validation_size=59999", None),
        ("digits", "data.test_size=1788", "1797 images of digits: give 10 to 1787."),
        ("digits", "data.validation_size=9", "1437 images of digits: give 10 to 1427."),
        ("digits", "data.validation_size=10", None),
    ],
)  # fmt: skip
def test_a_split_that_is_too_large_or_small_says_what_is_allowed(
    name: str, override: str, message: str | None, mnist_folder: Path
) -> None:
    """A size outside the range is refused with the range, and its ends are allowed."""
    asked = config(name, override, root=str(mnist_folder) if name == "mnist" else None)

    if message is None:
        load(asked)
    else:
        with pytest.raises(DataError, match=re.escape(f"{override} can't be held out of the {message}")):
            load(asked)


def test_a_class_with_one_image_can_not_be_stratified(tmp_path: Path) -> None:
    """The message names the class, and the split that would do."""
    images, labels = np.ones((5, 4), np.float32), np.array([0, 0, 0, 0, 1])
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)

    with pytest.raises(DataError, match=r"only one image of class 1: .* or data.split=first"):
        load(config("npz", "data.validation_size=2", root=str(tmp_path / "mine.npz")))


ARRAYS = {
    "x_train": np.zeros((20, 2, 2), np.uint8),
    "y_train": np.arange(20) % 2,
    "x_test": np.zeros((4, 2, 2), np.uint8),
    "y_test": np.arange(4) % 2,
}


@pytest.mark.parametrize("change", ["nothing", *ARRAYS, "shape", "dtype", "size", "split"])
def test_the_fingerprint_sees_every_change(change: str, tmp_path: Path) -> None:
    """One pixel, one label, the images' shape, their type, or the split: each gives another fingerprint."""
    arrays = {name: array.copy() for name, array in ARRAYS.items()}
    if change in arrays:
        arrays[change].flat[-1] ^= 1
    elif change == "shape":
        arrays = {name: a.reshape(-1, 4) if name[0] == "x" else a for name, a in arrays.items()}
    elif change == "dtype":
        arrays = {name: a.astype(np.float32) if name[0] == "x" else a for name, a in arrays.items()}
    np.savez(tmp_path / "before.npz", **ARRAYS)  # type: ignore[arg-type]
    np.savez(tmp_path / "after.npz", **arrays)  # type: ignore[arg-type]
    size = "data.validation_size=4"
    overrides = {"size": ["data.validation_size=6"], "split": [size, "data.split=first"]}.get(change, [size])

    before = load(config("npz", size, root=str(tmp_path / "before.npz"))).fingerprint
    after = load(config("npz", *overrides, root=str(tmp_path / "after.npz"))).fingerprint

    assert (before == after) == (change == "nothing")
    assert re.fullmatch(r"[0-9a-f]{32}", before)


# ------------------------------------------------------------------------------------- where it is found


def test_find_looks_in_the_environment_then_in_the_cache(
    own: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNISTEXP_DATA is the folder itself or one above; without it the cache folder is used."""
    asked = config("mnist")
    assert find(asked) is None

    shutil.copytree(own, cache)
    assert find(asked) == cache

    monkeypatch.setenv("MNISTEXP_DATA", str(own))
    assert find(asked) == own

    shutil.copytree(own, tmp_path / "all" / "mnist")
    monkeypatch.setenv("MNISTEXP_DATA", str(tmp_path / "all"))
    assert find(asked) == tmp_path / "all" / "mnist"


def test_find_looks_in_an_explicit_root_alone(own: Path, cache: Path, tmp_path: Path) -> None:
    """With data.root given, a copy in the cache does not count."""
    shutil.copytree(own, cache)

    assert find(config("mnist", root=str(own))) == own
    assert find(config("mnist", root=str(tmp_path))) is None


def test_find_does_not_take_one_data_set_for_another(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fashion-MNIST's files have MNIST's names; a folder with MNIST in it is not taken for it."""
    monkeypatch.setenv("MNISTEXP_DATA", str(own))

    assert find(config("fashion_mnist")) is None


def test_auto_is_mnist_where_it_is_found(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy on this machine makes auto mnist, with the folder as its reason."""
    monkeypatch.setenv("MNISTEXP_DATA", str(own))

    assert resolve_auto(config("auto")) == Choice("mnist", f"found in {own}")


def test_auto_is_digits_where_mnist_can_not_be_had() -> None:
    """Without files and network auto is digits, and the reason names each mirror's failure."""
    choice = resolve_auto(config("auto", NOWHERE))

    assert choice.name == "digits"
    assert "127.0.0.1:1: can't be reached" in choice.reason


def test_auto_does_not_fall_back_from_a_root_that_lacks_files(tmp_path: Path) -> None:
    """A user who names a folder is told that the files are not in it."""
    with pytest.raises(DataError, match=f"lacks {TRAIN_IMAGES}"):
        resolve_auto(config("auto", root=str(tmp_path)))


def test_auto_does_not_fall_back_from_damaged_files(own: Path) -> None:
    """Damage in an explicit root leaves auto at mnist, whose loading then reports it."""
    (own / TRAIN_IMAGES).write_bytes(b"damaged")

    assert resolve_auto(config("auto", root=str(own))).name == "mnist"
    with pytest.raises(DataError, match="not gzip"):
        load(config("mnist", root=str(own)))


def test_auto_can_not_be_loaded_unresolved() -> None:
    """Loading `auto` is a fault of the program, not of the user."""
    with pytest.raises(ValueError, match="call resolve_auto first"):
        load(config("auto"))


# --------------------------------------------------------------------------------------------- messages


def damage(folder: Path, how: str) -> None:
    """Do to a copy of MNIST what happens to copies."""
    images, labels = folder / TRAIN_IMAGES, folder / TRAIN_LABELS
    content = images.read_bytes()
    match how:
        case "truncated":
            images.write_bytes(content[:12345])
        case "swapped":
            images.rename(folder / "x")
            labels.rename(images)
            (folder / "x").rename(labels)
        case "magic":
            labels.write_bytes(gzip.compress(b"\0\0\x08\x07" + gzip.decompress(labels.read_bytes())[4:]))
        case "pixel":
            images.write_bytes(gzip.compress(gzip.decompress(content)[:-1] + b"!", 1))
        case "bit":
            images.write_bytes(content[:5000000] + bytes([content[5000000] ^ 1]) + content[5000001:])
        case "empty":
            labels.write_bytes(b"")


@pytest.mark.parametrize(
    ("how", "file", "words"),
    [
        ("truncated", TRAIN_IMAGES, "data break off; it has 12345 bytes, the published file 9912422."),
        ("swapped", TRAIN_IMAGES, f"holds what belongs in {TRAIN_LABELS} (were files swapped or misnamed?)."),
        ("magic", TRAIN_LABELS, "its magic number is 2055, not 2049 (labels);"),
        ("pixel", TRAIN_IMAGES, "it's a whole IDX file, but of another data set, or changed; it has"),
        ("bit", TRAIN_IMAGES, "its SHA-256 is not the published one."),
        ("empty", TRAIN_LABELS, "its gzip data break off; it has 0 bytes, the published file 28881."),
    ],
)  # fmt: skip
def test_a_damaged_file_is_told_with_its_damage_and_the_ways_out(how: str, file: str, words: str, own: Path) -> None:
    """The message says which file, what is wrong with it, and what to do."""
    damage(own, how)

    with pytest.raises(DataError) as caught:
        load(config("mnist", root=str(own)))

    assert str(caught.value).startswith(f"{own / file}: ")
    assert words in str(caught.value)
    assert str(caught.value).endswith(
        " Put the published mnist file there, give another data.root=FOLDER, or use data=digits."
    )


def test_a_damaged_file_in_the_cache_is_to_be_deleted(own: Path, cache: Path) -> None:
    """In our own folder the way out is to delete the file."""
    damage(own, "truncated")
    shutil.copytree(own, cache)

    with pytest.raises(DataError, match=r"Delete that file and run again: it will be downloaded anew\.$"):
        load(config("mnist"))


def test_files_missing_from_an_explicit_root_are_named(own: Path) -> None:
    """Nothing is downloaded into a user's folder; the message lists what it lacks."""
    (own / TRAIN_LABELS).unlink()
    (own / TEST_LABELS).unlink()

    with pytest.raises(DataError) as caught:
        load(config("mnist", root=str(own)))

    assert str(caught.value) == (
        f"data.root={own} lacks {TRAIN_LABELS}, {TEST_LABELS}. "
        "Put them there, or leave data.root out to have them downloaded."
    )


def test_mnist_outright_never_falls_back(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without files and network the message says where it looked, why no mirror helped, and the ways out."""
    monkeypatch.setenv("MNISTEXP_DATA", str(tmp_path))

    with pytest.raises(DataError) as caught:
        load(config("mnist", NOWHERE))

    assert str(caught.value) == (
        f"mnist is not in {tmp_path / 'mnist'}, {tmp_path}, {cache}, and {TRAIN_IMAGES} can't be downloaded "
        "(127.0.0.1:1: can't be reached). Give the folder that has them with data.root=FOLDER or "
        "MNISTEXP_DATA=FOLDER, or use data=digits, which needs no download."
    )


@pytest.mark.parametrize(
    ("name", "root", "words"),
    [
        ("npz", None, "from a file: give data.root=FILE.npz"),
        ("npz", "no/such.npz", "data.root=no/such.npz is no file: give data.root=FILE.npz"),
        ("mnist", "no/such", "data.root=no/such is no folder. Give one with the four files, or leave"),
        ("digits", "folder", "data=digits reads no files: leave data.root=folder out"),
    ],
)
def test_a_root_that_does_not_suit_the_data_set_is_told(name: str, root: str | None, words: str) -> None:
    """npz needs a file, mnist a folder, digits neither."""
    with pytest.raises(DataError, match=words):
        load(config(name, root=root))


def test_values_are_frozen(mnist: Dataset) -> None:
    """A data set can be replaced but not changed, so its fingerprint stays true."""
    other = replace(mnist, validation=Split(mnist.test.images, mnist.test.labels))

    assert other.validation is not mnist.validation
    with pytest.raises(AttributeError):
        mnist.name = "another"  # type: ignore[misc]
