"""MNIST, Fashion-MNIST and KMNIST: find or download their four gzipped IDX files, compare and parse them.

An IDX file is a big-endian magic number (0x08 for unsigned bytes, then the number of dimensions), one 4-byte size
per dimension, and the bytes.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import platformdirs

from mnistexp.config.schema import IdxData, IdxFile
from mnistexp.errors import DataError
from mnistexp.paths import expanded

Bytes = npt.NDArray[np.uint8]

CLASSES = 10
IMAGE_SHAPE = (28, 28)
MAX_BYTES = 1 << 26
"""The largest file, packed or unpacked: 64 MiB. MNIST's largest has 47 MB; 306 KB of gzip can hold 300 MB of zeros."""

_CHUNK = 1 << 16


def load(config: IdxData) -> tuple[tuple[Bytes, Bytes], tuple[Bytes, Bytes], str]:
    """Read the published files, after a download if they are not on this machine.

    Returns: the training and the test files, each as images uint8 [N, 28, 28] and labels uint8 [N] in 0..9; the folder.
    Raises: DataError if a file is missing and cannot be downloaded, or is not the published one.
    """
    folder, files = obtain(config), config.files
    try:
        train = _read_pair(folder, files.train_images, files.train_labels)
        test = _read_pair(folder, files.test_images, files.test_labels)
    except DataError as error:
        remedy = f"Put the published {config.name} file there, give another data.root=FOLDER, or use data=digits."
        if folder == _cache_folder(config):
            remedy = "Delete that file and run again: it will be downloaded."
        raise DataError(f"{error} {remedy}") from error
    return train, test, str(folder)


def resolve_auto(config: IdxData) -> tuple[Literal["mnist", "digits"], str]:
    """Resolve `data=auto`: mnist if it is on this machine or can be downloaded (which is done), else digits.

    Returns: the name, and the reason: where MNIST was found, or why it could not be downloaded.
    Raises: DataError if an explicit `data.root` lacks files. Damaged files lead to mnist, and `load` then reports them.
    """
    try:
        return "mnist", f"found in {obtain(config)}"
    except DataError as error:
        if config.root is not None:
            raise
        return "digits", f"no MNIST here: {error}"


# ------------------------------------------------------------------------------------------ find


def find(config: IdxData) -> Path | None:
    """Return the folder that holds the files: `data.root` if it is given, else one of the usual places."""
    if config.root is not None:
        root = expanded(config.root)
        return None if _missing(root, config) else root
    # All IDX data sets use the same file names, so $MNISTEXP_DATA may hold another one. One file of the published
    # size is enough: a single damaged file must be reported, not skipped.
    for place in _places(config):
        if not _missing(place, config) and any((place / f.name).stat().st_size == f.bytes for f in _files(config)):
            return place
    return None


def _places(config: IdxData) -> list[Path]:
    """List the folders to search if `data.root` is not given: $MNISTEXP_DATA/NAME, $MNISTEXP_DATA, the user's cache."""
    cache = _cache_folder(config)
    if not (shared := os.environ.get("MNISTEXP_DATA")):
        return [cache]
    return [expanded(shared) / cache.name, expanded(shared), cache]


def _cache_folder(config: IdxData) -> Path:
    return Path(platformdirs.user_cache_dir("mnistexp")) / ("mnist" if config.name == "auto" else config.name)


def _files(config: IdxData) -> list[IdxFile]:
    return list(dict(config.files).values())


def is_file(path: Path) -> bool:
    """Return whether a file exists. Raises: DataError if the file system denies access to its folder."""
    try:
        return path.is_file()
    except PermissionError:
        raise DataError(f"{path}: may not be read; give another data.root.") from None


def _missing(folder: Path, config: IdxData) -> list[str]:
    return [file.name for file in _files(config) if not is_file(folder / file.name)]


def obtain(config: IdxData) -> Path:
    """Return the folder that holds the files. Download them if necessary, but never into `data.root`."""
    if folder := find(config):
        return folder
    if config.root is not None:
        names = ", ".join(_missing(expanded(config.root), config))
        raise DataError(f"data.root={config.root} lacks {names}. Put them there, or leave data.root out.")
    cache = _cache_folder(config)
    try:
        fetch(cache, _files(config), config.mirrors, config.timeout)
    except DataError as error:
        places = ", ".join(str(place) for place in _places(config))
        raise DataError(
            f"{cache.name} is not in {places}, and {error} Give the folder that has it with data.root=FOLDER or "
            f"MNISTEXP_DATA=FOLDER, or use data=digits, which needs no download."
        ) from error
    return cache


# ------------------------------------------------------------------------------------------ read


def _read_pair(folder: Path, images: IdxFile, labels: IdxFile) -> tuple[Bytes, Bytes]:
    pixels = _read(folder / images.name, images, IMAGE_SHAPE)
    digits = _read(folder / labels.name, labels, ())
    if len(pixels) != len(digits) or digits.max() >= CLASSES:
        raise DataError(
            f"{folder / labels.name}: it has {len(digits)} labels up to {digits.max()} for {len(pixels)} images; "
            f"needed is one label from 0 to {CLASSES - 1} for each image."
        )
    return pixels, digits


def _read(path: Path, file: IdxFile, item_shape: tuple[int, ...]) -> Bytes:
    """Read, compare and parse one file. The comparison comes first, so hostile contents are not unpacked."""
    try:
        with path.open("rb") as stream:
            packed = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from error
    if not matches(packed, file):
        what = f"{len(packed)} bytes, the published file has {file.bytes}"
        if len(packed) == file.bytes:
            what = "its digest is not the published one"
        raise DataError(f"{path}: is damaged or another file ({what}).")
    try:
        return parse(packed, item_shape)
    except DataError as error:
        raise DataError(f"{path}: {error}.") from None


def matches(packed: bytes, file: IdxFile) -> bool:
    """Compare a file's bytes with the published ones, by size and digest."""
    if len(packed) != file.bytes:
        return False
    if file.sha256 is not None:
        return hashlib.sha256(packed).hexdigest() == file.sha256
    # MD5 can be forged, so such files are not downloaded; for a local copy it detects every accident.
    return hashlib.md5(packed, usedforsecurity=False).hexdigest() == file.md5


def parse(packed: bytes, item_shape: tuple[int, ...]) -> Bytes:
    """Unpack and parse a gzipped IDX file of unsigned bytes. Raises: DataError.

    Args:
        item_shape: (28, 28) for images, () for labels.

    Returns: a read-only array [N, *item_shape], N >= 1.
    """
    # Not gzip.GzipFile: it accepts joined members, and misses a wrong CRC if exactly N bytes are read.
    stream = zlib.decompressobj(wbits=31)
    try:
        raw = stream.decompress(packed, MAX_BYTES + 1)
    except zlib.error as error:
        raise DataError(f"it is not gzip, or damaged ({str(error).rpartition(': ')[2]})") from None
    if len(raw) > MAX_BYTES or not stream.eof or stream.unused_data:
        raise DataError(f"it is not one whole gzip file of at most {MAX_BYTES} bytes; {len(raw)} were unpacked")
    dimensions = 1 + len(item_shape)
    start, item_bytes = 4 * (1 + dimensions), math.prod(item_shape)
    count = (len(raw) - start) // item_bytes
    header = struct.pack(f">{1 + dimensions}I", 0x0800 + dimensions, max(0, count), *item_shape)
    if count < 1 or raw[:start] != header or len(raw) != start + count * item_bytes:
        raise DataError(
            f"it is no IDX file of bytes with items of shape {item_shape}: it unpacks to {len(raw)} bytes, which "
            f"begin with {raw[:start].hex(' ', 4)}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(count, *item_shape)


# ------------------------------------------------------------------------------------------ download


def fetch(folder: Path, files: Sequence[IdxFile], mirrors: Sequence[str], timeout: float) -> None:
    """Download the files that a folder lacks. Several processes may do this at once: one of them downloads.

    A file gets its name only when it is complete and checked, so a killed download leaves no damaged file. pooch was
    not used: it takes one address per file, so mirrors, size limits and locks would still be our own code.

    Args:
        mirrors: base addresses, in the order to try; one that worked goes first for the next file.
        timeout: seconds without a byte before the next mirror is tried.

    Raises: DataError if no mirror sent a file, a file has no SHA-256, or the folder can't be written.
    """
    from filelock import FileLock

    if unsafe := [file.name for file in files if file.sha256 is None]:
        raise DataError(f"{', '.join(unsafe)} can't be downloaded: data.files gives no sha256 to check it by.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not a soft lock: it would stay locked after a kill.
        with FileLock(folder / ".download.lock", fallback_to_soft=False):
            for file in files:
                path = folder / file.name
                if not (path.is_file() and matches(path.read_bytes(), file)):
                    mirrors = _fetch_one(path, file, mirrors, timeout)
    except OSError as error:
        raise DataError(f"{error.filename or folder} can't be written: {error.strerror or error}.") from error


def _fetch_one(path: Path, file: IdxFile, mirrors: Sequence[str], timeout: float) -> Sequence[str]:
    """Download a file from the first mirror that sends it. Returns: the mirrors, with that one first."""
    failures = []
    for mirror in mirrors:
        try:
            content = _get(f"{mirror.rstrip('/')}/{file.name}", file, timeout)
        except DataError as error:
            failures.append(f"{urlsplit(mirror).netloc or mirror}: {error}")
            continue
        part = path.with_name(f"{path.name}.part")
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)  # a full disk must not keep half a file
        return mirror, *(other for other in mirrors if other != mirror)
    raise DataError(f"{file.name} can't be downloaded ({'; '.join(failures) or 'data.mirrors is empty'}).")


def _get(url: str, file: IdxFile, timeout: float) -> bytes:
    """Download a file into memory and check it. Raises: DataError with a short reason."""
    import requests  # 0.2 s to import. Not urllib: python.org's Python on a Mac has no certificates for it
    from tqdm import tqdm
    from urllib3.exceptions import HTTPError

    content = bytearray()
    try:
        with (
            requests.get(url, stream=True, timeout=timeout, headers={"Accept-Encoding": "identity"}) as response,
            tqdm(desc=file.name, total=file.bytes, unit="B", unit_scale=True, leave=False, disable=None) as bar,
        ):
            if response.status_code != 200:
                raise DataError(f"HTTP status {response.status_code}")
            # The raw stream, not iter_content: some servers label .gz files `Content-Encoding: gzip`, and requests
            # would unpack them, unchecked and without a limit.
            while len(content) <= file.bytes and (chunk := response.raw.read(_CHUNK, decode_content=False)):
                content += chunk
                bar.update(len(chunk))
    except (requests.RequestException, HTTPError) as error:
        raise DataError(f"the download failed ({type(error).__name__})") from None
    if not matches(bytes(content), file):
        raise DataError(f"sent {len(content)} bytes that are not the published file of {file.bytes}")
    return bytes(content)
