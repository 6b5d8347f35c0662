"""Download published files: several mirrors, checked before use, safe with several processes at once.

requests rather than urllib: it comes with MLflow, and it brings certificates along; Python from python.org
on a Mac has none for urllib until the user installs them. Passed over: pooch, which takes one address per
file; mirrors, limits and locks would all be ours again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import requests
from filelock import FileLock
from rich.console import Console
from rich.progress import DownloadColumn, Progress
from urllib3.exceptions import HTTPError, ReadTimeoutError

from mnistexp.config.schema import IdxFile
from mnistexp.data.idx import matches
from mnistexp.errors import DataError

_CHUNK = 1 << 16


def fetch(folder: Path, files: Sequence[IdxFile], mirrors: Sequence[str], timeout: float) -> None:
    """Make `folder` hold all `files`, downloading what it lacks.

    Of several processes one downloads; the others wait and then find the files. A file appears under its
    name only when whole and checked: a download killed at any moment leaves nothing that passes for one.

    Args:
        mirrors: base addresses, in the order to try; one that worked goes first for the next file
        timeout: seconds without a byte before the next mirror is tried

    Raises:
        DataError: no mirror gave a file (with each one's reason), it has no SHA-256 to be checked by, or the
            folder can't be written.
    """
    if unsafe := [file.name for file in files if file.sha256 is None]:
        raise DataError(f"{', '.join(unsafe)} can't be downloaded: data.files gives no sha256 to check it by.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not a soft lock: one that a killed download leaves behind would never end.
        with FileLock(folder / ".download.lock", fallback_to_soft=False), _progress() as progress:
            for file in files:
                if not _holds(folder / file.name, file):
                    content, mirrors = _from_mirrors(file, mirrors, timeout, progress)
                    _write(folder / file.name, content)
    except OSError as error:
        raise DataError(f"{error.filename or folder} can't be written: {error.strerror or error}.") from error


def _progress() -> Progress:
    """Give a progress bar on stderr, silent where that is no terminal, so that logs stay readable."""
    columns = (*Progress.get_default_columns(), DownloadColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _holds(path: Path, file: IdxFile) -> bool:
    return path.is_file() and path.stat().st_size == file.bytes and matches(path.read_bytes(), file)


def _from_mirrors(
    file: IdxFile, mirrors: Sequence[str], timeout: float, progress: Progress
) -> tuple[bytes, Sequence[str]]:
    """Return the file from the first mirror that gives it, and the mirrors with that one in front."""
    failures = []
    for mirror in mirrors:
        task = progress.add_task(file.name, total=file.bytes)
        url = f"{mirror.rstrip('/')}/{file.name}"
        try:
            content = _get(url, file, timeout, partial(progress.advance, task))
            return content, (mirror, *(other for other in mirrors if other != mirror))
        except DataError as error:
            failures.append(f"{urlsplit(mirror).netloc or mirror}: {error}")
            progress.remove_task(task)
    raise DataError(f"{file.name} can't be downloaded ({'; '.join(failures) or 'data.mirrors is empty'}).")


def _get(url: str, file: IdxFile, timeout: float, advance: Callable[[int], None]) -> bytes:
    """Download a file into memory (26 MB at most) and check it; raise DataError with a brief reason."""
    headers = {"Accept-Encoding": "identity"}
    try:
        with requests.get(url, stream=True, timeout=timeout, headers=headers) as response:
            if response.status_code != 200:
                raise DataError(f"HTTP {response.status_code} {response.reason}".rstrip())
            content = _body(response, file.bytes, advance)
    except (requests.RequestException, HTTPError) as error:
        raise DataError(_reason(error, timeout)) from error
    if not matches(content, file):
        raise DataError("sent other contents than the published ones")
    return content


def _body(response: requests.Response, size: int, advance: Callable[[int], None]) -> bytes:
    """Read a body that must have `size` bytes, and never more than one byte beyond."""
    announced = response.headers.get("Content-Length", str(size))
    if announced != str(size):
        raise DataError(f"announces {announced} bytes, the published file has {size}")
    body = bytearray()
    # The raw stream, not iter_content: a server that labels .gz files `Content-Encoding: gzip`, as some do,
    # would have them unpacked on the way, unchecked and unbounded.
    while chunk := response.raw.read(min(_CHUNK, size + 1 - len(body)), decode_content=False):
        body += chunk
        advance(len(chunk))
        if len(body) > size:
            raise DataError(f"sent more than the published {size} bytes")
    if len(body) < size:
        raise DataError(f"sent {len(body)} of {size} bytes")
    return bytes(body)


def _reason(error: Exception, timeout: float) -> str:
    """Put an exception of requests or urllib3 into a few words: their own go on for three lines."""
    if isinstance(error, requests.Timeout | ReadTimeoutError):
        return f"silent for {timeout:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not accepted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refuses"
    if isinstance(error, requests.ConnectionError):
        return "can't be reached"
    if isinstance(error, HTTPError):
        return "the connection broke off"
    return str(error)[:100]


def _write(path: Path, content: bytes) -> None:
    """Write so that the name appears with the whole content or not at all."""
    # One fixed name, not a random one: after a kill in mid-write the next download overwrites it.
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
