from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from mnistexp.data import arrays
from mnistexp.data.arrays import read_npz
from mnistexp.errors import DataError

GOOD = {
    "x_train": np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2),
    "y_train": np.array([0, 1, 2, 0, 1, 2]),
    "x_test": np.ones((2, 2, 2), np.uint8),
    "y_test": np.array([2, 0]),
}


def saved(path: Path, **changes: np.ndarray | None) -> Path:
    """GOOD with changes, as a file; None leaves an array out."""
    changed = {name: array for name, array in {**GOOD, **changes}.items() if array is not None}
    np.savez(path, **changed)  # type: ignore[arg-type]
    return path


def test_read_returns_what_was_saved(tmp_path: Path) -> None:
    """Good arrays are read bit for bit; arrays of other names are ignored."""
    found = read_npz(saved(tmp_path / "mine.npz", another=np.array(["text"])))

    assert found.keys() == GOOD.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, GOOD[name], strict=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y_test": None}, "lacks y_test. It needs x_train, y_train, x_test, y_test"),
        ({"x_validation": GOOD["x_test"]}, "lacks y_validation"),
        ({"x_train": GOOD["x_train"].astype(np.int64)}, "x_train is int64; allowed are uint8"),
        ({"x_train": np.zeros(6, np.uint8)}, r"x_train has the shape \(6,\); allowed is \[N, ...\]"),
        ({"x_train": np.zeros((0, 2, 2), np.uint8)}, r"x_train has the shape \(0, 2, 2\)"),
        ({"x_test": np.ones((2, 2, 3), np.uint8)}, r"x_test has uint8 images of shape \(2, 3\), but x_train"),
        ({"x_test": np.ones((2, 2, 2))}, "x_test has float64 images .*, but x_train uint8 images"),
        ({"x_train": np.full((6, 2, 2), 1e300)}, "x_train has NaN .* too large for float32"),
        ({"y_train": GOOD["y_train"].astype(float)}, r"y_train is float64 of shape \(6,\); allowed are integers"),
        ({"y_train": np.eye(6, dtype=int)}, r"y_train is int64 of shape \(6, 6\)"),
        ({"y_train": np.full(6, 3)}, "y_train has the label 3 alone; at least two"),
        ({"y_test": np.array([0])}, r"y_test is int64 of shape \(1,\); allowed are integers of shape \(2,\)"),
        (
            {"y_train": np.array([0, 1, 2, 0, 1, -1])},
            "y_train has labels from -1 to 2; allowed are 0 to 65535",
        ),
        ({"y_test": np.array([0, 7])}, "y_test has the label 7, which y_train lacks"),
        ({"y_test": np.array([0, None])}, "can't be read .*allow_pickle=False.* Write plain arrays"),
    ],
)
def test_unusable_arrays_are_refused(changes: dict[str, np.ndarray], words: str, tmp_path: Path) -> None:
    """The message has the file, the array, its value and what is allowed."""
    path = saved(tmp_path / "mine.npz", **changes)

    with pytest.raises(DataError, match=words) as caught:
        read_npz(path)

    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("content", [b"", b"no zip", b"\x93NUMPY\x01\x00"])
def test_another_file_is_refused(content: bytes, tmp_path: Path) -> None:
    """A file that is no zip archive has its own message."""
    (tmp_path / "mine.npz").write_bytes(content)

    with pytest.raises(DataError, match=r"can't be read \(File is not a zip file\)"):
        read_npz(tmp_path / "mine.npz")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    """A changed byte inside the archive is detected by its checksum."""
    path = saved(tmp_path / "mine.npz")
    content = path.read_bytes()
    path.write_bytes(content.replace(GOOD["x_train"].tobytes(), bytes(24)))

    with pytest.raises(DataError, match=r"can't be read .*Bad CRC-32"):
        read_npz(path)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The declared size has a limit, and so have the methods of compression: zipfile does not bound all of them."""
    large, bzip2 = saved(tmp_path / "large.npz"), tmp_path / "bzip2.npz"
    with zipfile.ZipFile(bzip2, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("x_train.npy", bytes(1000))
    monkeypatch.setattr(arrays, "MAX_BYTES", 500)

    with pytest.raises(DataError, match=r"large\.npz can't be read .*unpack to \d+ bytes; at most 500"):
        read_npz(large)
    with pytest.raises(DataError, match=r"bzip2\.npz can't be read .*compressed in another way"):
        read_npz(bzip2)
