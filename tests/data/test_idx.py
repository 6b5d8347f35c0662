from __future__ import annotations

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mnistexp.data.idx import IMAGE_SHAPE, MAX_BYTES, check_pair, parse
from mnistexp.errors import DataError

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 0, 9, 1, 4], np.uint8)


def raw(array: np.ndarray, *, magic: int | None = None, shape: tuple[int, ...] | None = None) -> bytes:
    """An IDX file's bytes before gzip; `magic` and `shape` let the header lie."""
    numbers = (magic or 0x0800 + array.ndim, *(shape or array.shape))
    return struct.pack(f">{len(numbers)}I", *numbers) + array.tobytes()


def packed(array: np.ndarray, **lies: object) -> bytes:
    """The file, with a header that may lie as `raw` has it."""
    return gzip.compress(raw(array, **lies), mtime=0)  # type: ignore[arg-type]


def with_wrong_crc(content: bytes) -> bytes:
    """The file with one bit of its checksum changed."""
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


@pytest.mark.parametrize(
    ("array", "item_shape"),
    [
        pytest.param(IMAGES, IMAGE_SHAPE, id="images"),
        pytest.param(LABELS, (), id="labels"),
        pytest.param(np.zeros((3000, 28, 28), np.uint8), IMAGE_SHAPE, id="zeros-that-pack-to-nothing"),
    ],
)
def test_parse_gives_back_what_was_packed(array: np.ndarray, item_shape: tuple[int, ...]) -> None:
    """A well-formed file is read bit for bit."""
    parsed = parse(packed(array), item_shape)

    np.testing.assert_array_equal(parsed, array, strict=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(b"<html>404</html>", "not gzip", id="html"),
        pytest.param(packed(IMAGES)[:20], "truncated", id="cut-in-the-header"),
        pytest.param(packed(IMAGES)[:-2000], "truncated", id="cut-in-the-body"),
        pytest.param(packed(IMAGES)[:-4], "truncated", id="cut-in-the-checksum"),
        pytest.param(with_wrong_crc(packed(IMAGES)), "incorrect data check", id="crc"),
        pytest.param(gzip.compress(b""), "unpacks to 0 bytes where 16 belong", id="nothing-inside"),
        pytest.param(gzip.compress(b"\0\0\x08\x03"), "unpacks to 4 bytes where 16 belong", id="half-a-header"),
        pytest.param(packed(LABELS), r"magic number is 2049 \(labels\), not 2051", id="labels"),
        pytest.param(packed(IMAGES, magic=7), r"magic number is 7, not 2051 \(images\)", id="magic"),
        pytest.param(packed(IMAGES, shape=(5, 14, 56)), "images are 14x56, not 28x28", id="shape"),
        pytest.param(packed(IMAGES, shape=(6, 28, 28)), "unpacks to 3920 bytes where 4704", id="too-few"),
        pytest.param(packed(IMAGES, shape=(4, 28, 28)), "more than the 3136 bytes", id="too-many"),
        pytest.param(packed(IMAGES, shape=(2**32 - 1, 28, 28)), "announces 4294967295 items", id="huge"),
        pytest.param(packed(IMAGES[:0]), "announces 0 items", id="no-images"),
        pytest.param(packed(IMAGES) + packed(IMAGES), "bytes follow the end", id="joined-members"),
        pytest.param(packed(IMAGES) + b"\0", "1 bytes follow the end", id="trailing-byte"),
    ],
)
def test_parse_says_what_is_wrong(content: bytes, words: str) -> None:
    """Each fault of an image file is refused in words of its own."""
    with pytest.raises(DataError, match=words):
        parse(content, IMAGE_SHAPE)


def test_parse_unpacks_no_more_than_announced() -> None:
    """A file that would grow far beyond what its header announces is refused without unpacking it."""
    bomb = gzip.compress(raw(IMAGES) + bytes(MAX_BYTES // 8))
    tracemalloc.start()

    with pytest.raises(DataError, match="more than the 3920 bytes"):
        parse(bomb, IMAGE_SHAPE)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < MAX_BYTES // 80


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_parse_of_any_bytes_raises_nothing_but_data_errors(content: bytes) -> None:
    """Bytes that are no IDX file give a DataError, never another exception."""
    with pytest.raises(DataError):
        parse(content, IMAGE_SHAPE)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_parse_of_a_damaged_file_never_gives_other_images(data: st.DataObject) -> None:
    """Replacing any bytes of the gzip file either is refused or leaves the images as they were."""
    content = bytearray(packed(IMAGES))
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(start + 20, len(content))))
    content[start:end] = data.draw(st.binary(max_size=20))

    try:
        parsed = parse(bytes(content), IMAGE_SHAPE)
    except DataError:
        return

    np.testing.assert_array_equal(parsed, IMAGES)


@given(st.integers(0, 15), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_parse_of_a_changed_header_is_refused(place: int, value: int) -> None:
    """No byte of the header can be changed without a DataError, even if the gzip around it is in order."""
    content = bytearray(raw(IMAGES))
    unchanged = content[place] == value
    content[place] = value

    if unchanged:
        assert len(parse(gzip.compress(content), IMAGE_SHAPE)) == 5
    else:
        with pytest.raises(DataError):
            parse(gzip.compress(content), IMAGE_SHAPE)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS[:4], "4 labels for 5 images"),
        (np.array([3, 0, 10, 1, 4], np.uint8), "label 10; allowed are 0 to 9"),
    ],
)
def test_check_pair_refuses_labels_that_do_not_fit(labels: np.ndarray, words: str) -> None:
    """There is exactly one label from 0 to 9 for each image."""
    check_pair(IMAGES, LABELS)

    with pytest.raises(DataError, match=words):
        check_pair(IMAGES, labels)
