"""The IDX files of MNIST and its replacements: compare with the published ones, unpack with a bound, parse.

An IDX file is a big-endian magic number (0x08 for unsigned bytes, then the number of dimensions), one
4-byte size per dimension, and the bytes. Files are compared before they are unpacked: 306 KB of hostile
gzip can grow to 300 MB. The parser trusts nothing all the same, since a config can name other digests.
"""

from __future__ import annotations

import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mnistexp.config.schema import IdxFile, IdxFiles
from mnistexp.errors import DataError

Bytes = npt.NDArray[np.uint8]

CLASSES = 10
IMAGE_SHAPE = (28, 28)
MAX_BYTES = 1 << 27
"""Unpacked size that no file may pass: 128 MiB, almost three times MNIST's. zlib takes twice that for a moment."""

_MAX_PACKED = 1 << 26  # 64 MiB; read even where a file must be smaller, to say what it is instead
_KINDS = {2049: "labels", 2051: "images"}


def read_pair(folder: Path, images: IdxFile, labels: IdxFile, files: IdxFiles) -> tuple[Bytes, Bytes]:
    """Read one split's two files: images uint8 [N, 28, 28], labels uint8 [N] below 10.

    Raises:
        DataError: a file can't be read, is not the published one, or the two don't belong together.
    """
    pixels = _read(folder / images.name, images, files, IMAGE_SHAPE)
    digits = _read(folder / labels.name, labels, files, ())
    try:
        check_pair(pixels, digits)
    except DataError as error:
        raise DataError(f"{folder / labels.name}: {error}.") from None
    return pixels, digits


def matches(packed: bytes, file: IdxFile) -> bool:
    """Whether these are the published bytes, by size and the best digest that the publisher gives."""
    if len(packed) != file.bytes:
        return False
    if file.sha256 is not None:
        return hashlib.sha256(packed).hexdigest() == file.sha256
    # MD5 can be forged, so nothing is downloaded by it; in a folder of the user's own it finds every accident.
    return hashlib.md5(packed, usedforsecurity=False).hexdigest() == file.md5


def check_pair(images: Bytes, labels: Bytes) -> None:
    """Raise DataError unless there is one label from 0 to 9 for each image."""
    if len(images) != len(labels):
        raise DataError(f"it has {len(labels)} labels for {len(images)} images")
    if labels.max(initial=0) >= CLASSES:
        raise DataError(f"it has the label {labels.max()}; allowed are 0 to {CLASSES - 1}")


def parse(packed: bytes, item_shape: tuple[int, ...]) -> Bytes:
    """Unpack and parse a gzipped IDX file of unsigned bytes.

    Args:
        packed: the file's bytes
        item_shape: (28, 28) for images, () for labels

    Returns:
        A read-only array [N, *item_shape], N >= 1.

    Raises:
        DataError: anything is not as the format has it, in words that go on after "FILE: ".
    """
    # Not gzip.GzipFile: it passes over joined members and misses a wrong CRC if exactly N bytes are read.
    stream = zlib.decompressobj(wbits=31)
    header = _inflate(stream, packed, 8 + 4 * len(item_shape))
    count = _check_header(stream, header, item_shape)
    expected = count * math.prod(item_shape)
    body = _inflate(stream, stream.unconsumed_tail, expected + 1)
    _check_end(stream, len(body), expected)
    return np.frombuffer(body, np.uint8).reshape(count, *item_shape)


def _read(path: Path, file: IdxFile, files: IdxFiles, item_shape: tuple[int, ...]) -> Bytes:
    """Read, compare and parse one file; errors carry its path."""
    try:
        with path.open("rb") as stream:
            packed = stream.read(_MAX_PACKED + 1)
            size = path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from error
    if not matches(packed, file):
        raise DataError(f"{path}: {_diagnose(packed, size, file, files, item_shape)}.")
    try:
        return parse(packed, item_shape)
    except DataError as error:
        raise DataError(f"{path}: {error}.") from None


def _four(files: IdxFiles) -> tuple[IdxFile, ...]:
    return files.train_images, files.train_labels, files.test_images, files.test_labels


def _diagnose(packed: bytes, size: int, file: IdxFile, files: IdxFiles, item_shape: tuple[int, ...]) -> str:
    """Say in what way a file is not the published one: swapped, truncated, damaged or simply another."""
    for other in _four(files):
        if matches(packed, other):
            return f"it holds what belongs in {other.name} (were files swapped or misnamed?)"
    sizes = f"it has {size} bytes, the published file {file.bytes}"
    if size > _MAX_PACKED:
        return sizes
    try:
        parse(packed, item_shape)
    except DataError as error:
        fault = str(error)
    else:
        fault = "it's a whole IDX file, but of another data set, or changed"
    if size != file.bytes:
        return f"{fault}; {sizes}"
    return f"{fault}; its {'SHA-256' if file.sha256 else 'MD5'} is not the published one"


def _inflate(stream: zlib._Decompress, packed: bytes, limit: int) -> bytes:
    """Unpack at most `limit` (>= 1) bytes."""
    try:
        return stream.decompress(packed, limit)
    except zlib.error as error:
        raise DataError(f"it's not gzip, or damaged ({str(error).rpartition(': ')[2]})") from None


def _check_header(stream: zlib._Decompress, header: bytes, item_shape: tuple[int, ...]) -> int:
    """Return the number of items that a well-formed header announces."""
    size = 8 + 4 * len(item_shape)
    magic, wanted = int.from_bytes(header[:4], "big"), 0x0801 + len(item_shape)
    if len(header) >= 4 and magic != wanted:  # first: a short file of labels is no truncated file of images
        found = f"{magic} ({_KINDS[magic]})" if magic in _KINDS else f"{magic}"
        raise DataError(f"its magic number is {found}, not {wanted} ({_KINDS[wanted]})")
    if len(header) < size:
        raise DataError(_too_short(stream, len(header), size))
    count, *shape = struct.unpack(f">{size // 4 - 1}I", header[4:])
    if tuple(shape) != item_shape:
        raise DataError(f"its images are {'x'.join(map(str, shape))}, not {'x'.join(map(str, item_shape))}")
    most = MAX_BYTES // math.prod(item_shape)
    if not 1 <= count <= most:
        raise DataError(f"its header announces {count} items; allowed are 1 to {most}")
    return int(count)


def _check_end(stream: zlib._Decompress, size: int, expected: int) -> None:
    """Refuse a body that is not exactly as long as announced, and anything behind it."""
    if size > expected:
        raise DataError(f"it unpacks to more than the {expected} bytes that its header announces")
    if size < expected or not stream.eof:
        raise DataError(_too_short(stream, size, expected))
    if stream.unused_data:
        raise DataError(f"{len(stream.unused_data)} bytes follow the end of its gzip data")


def _too_short(stream: zlib._Decompress, size: int, expected: int) -> str:
    if not stream.eof:
        return "it's truncated: its gzip data break off"
    return f"it unpacks to {size} bytes where {expected} belong"
