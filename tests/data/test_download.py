from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from mnistexp.config.schema import IdxData, IdxFile
from mnistexp.data.download import fetch
from mnistexp.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = IdxData.model_validate(yaml.safe_load((REPOSITORY / "conf/data/mnist.yaml").read_text()))
FILES = tuple(getattr(CONFIG.files, role) for role in type(CONFIG.files).model_fields)
TEST_LABELS = CONFIG.files.test_labels
TIMEOUT = 0.3
PATIENT = 60.0

FETCH = """
import sys
from pathlib import Path
from mnistexp.download import fetch
from mnistexp.schema import IdxFile
folder, mirror, *files = sys.argv[1:]
fetch(Path(folder), [IdxFile.model_validate_json(file) for file in files], [mirror], 60.0)
"""


class Mirror(ThreadingHTTPServer):
    """Serves a folder on the loopback, in the way that `answer` does; remembers what it was asked for."""

    daemon_threads = True

    def __init__(self, folder: Path, answer: Callable[[ParsedOverrides, bytes], None]) -> None:
        super().__init__(("127.0.0.1", 0), ParsedOverrides)
        self.folder = folder
        self.answer = answer
        self.asked: list[str] = []
        self.half_sent = threading.Event()
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"


class ParsedOverrides(BaseHTTPRequestHandler):
    """One request to a Mirror."""

    server: Mirror

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self.server.asked.append(name)
        self.server.answer(self, (self.server.folder / name).read_bytes())

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def send(self, content: bytes, **headers: str) -> None:
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def whole(request: ParsedOverrides, content: bytes) -> None:
    """As it should be."""
    request.send(content, Content_Length=str(len(content)))


def labelled_as_encoded(request: ParsedOverrides, content: bytes) -> None:
    """The whole file, but labelled as if gzip were the transport's."""
    request.send(content, Content_Encoding="gzip")


def not_found(request: ParsedOverrides, content: bytes) -> None:
    """Have no such file."""
    request.send_error(404)


def silent(request: ParsedOverrides, content: bytes) -> None:
    """Accept the connection and say nothing."""
    request.server.closing.wait(PATIENT)


def half_then_silent(request: ParsedOverrides, content: bytes) -> None:
    """Send half of the file, then nothing more."""
    request.send(content[: len(content) // 2], Content_Length=str(len(content)))
    request.server.half_sent.set()
    request.server.closing.wait(PATIENT)


def broken_off(request: ParsedOverrides, content: bytes) -> None:
    """Close the connection before the announced end."""
    request.send(content[:1000], Content_Length=str(len(content)))


def truncated(request: ParsedOverrides, content: bytes) -> None:
    """Send too little, with no length announced."""
    request.send(content[:1000])


def announced_short(request: ParsedOverrides, content: bytes) -> None:
    """Send too little, and announce as much."""
    request.send(content[:1000], Content_Length="1000")


def altered(request: ParsedOverrides, content: bytes) -> None:
    """Send the right number of bytes, the last one changed."""
    request.send(content[:-1] + b"!")


def endless(request: ParsedOverrides, content: bytes) -> None:
    """Never stop sending."""
    request.send(content)
    while not request.server.closing.is_set():
        request.wfile.write(bytes(1 << 16))


@pytest.fixture
def start(mnist_folder: Path) -> Iterator[Callable[..., Mirror]]:
    """Start mirrors of the real MNIST files; all are stopped after the test."""
    mirrors: list[Mirror] = []

    def start_one(answer: Callable[[ParsedOverrides, bytes], None] = whole) -> Mirror:
        mirror = Mirror(mnist_folder, answer)
        threading.Thread(target=mirror.serve_forever, args=(0.01,), daemon=True).start()
        mirrors.append(mirror)
        return mirror

    yield start_one
    for mirror in mirrors:
        mirror.closing.set()
        mirror.shutdown()
        mirror.server_close()


@contextmanager
def child(folder: Path, mirror: Mirror, *files: IdxFile) -> Iterator[subprocess.Popen[bytes]]:
    """Another process that fetches the same files."""
    arguments = [str(folder), mirror.url, *(file.model_dump_json() for file in files)]
    with subprocess.Popen([sys.executable, "-c", FETCH, *arguments], cwd=REPOSITORY) as process:
        yield process


def visible(folder: Path) -> set[str]:
    """The names in a folder, but for the lock file."""
    return {path.name for path in folder.iterdir()} - {".download.lock"}


def test_fetch_makes_the_folder_and_its_files(start: Callable[..., Mirror], tmp_path: Path, mnist_folder: Path) -> None:
    """All four published files lie in the new folder afterwards, byte for byte, and nothing else."""
    fetch(tmp_path / "a" / "b", FILES, [start().url], TIMEOUT)

    assert visible(tmp_path / "a" / "b") == {file.name for file in FILES}
    for file in FILES:
        assert (tmp_path / "a" / "b" / file.name).read_bytes() == (mnist_folder / file.name).read_bytes()


def test_fetch_downloads_only_what_is_missing_or_damaged(start: Callable[..., Mirror], tmp_path: Path) -> None:
    """Files that are there and whole are not asked for again."""
    mirror = start()
    fetch(tmp_path, FILES, [mirror.url], TIMEOUT)
    (tmp_path / TEST_LABELS.name).write_bytes(b"damaged")
    mirror.asked.clear()

    fetch(tmp_path, FILES, [mirror.url], TIMEOUT)

    assert mirror.asked == [TEST_LABELS.name]


def test_fetch_takes_a_file_as_it_is_from_a_server_that_calls_it_encoded(
    start: Callable[..., Mirror], tmp_path: Path
) -> None:
    """`Content-Encoding: gzip` on a .gz file does not get it unpacked."""
    fetch(tmp_path, [TEST_LABELS], [start(labelled_as_encoded).url], TIMEOUT)

    assert visible(tmp_path) == {TEST_LABELS.name}


FAULTS = [
    (not_found, "HTTP 404 Not Found"),
    (silent, "silent for 0.3 s"),
    (half_then_silent, "silent for 0.3 s"),
    (broken_off, "the connection broke off"),
    (truncated, "sent 1000 of 4542 bytes"),
    (announced_short, "announces 1000 bytes, the published file has 4542"),
    (altered, "sent other contents than the published ones"),
    (endless, "sent more than the published 4542 bytes"),
]


@pytest.mark.parametrize(("answer", "reason"), FAULTS)
def test_fetch_goes_on_to_the_next_mirror(
    answer: Callable[[ParsedOverrides, bytes], None], reason: str, start: Callable[..., Mirror], tmp_path: Path
) -> None:
    """A mirror with any fault is passed over, and from then on the one that worked is asked first."""
    bad, good = start(answer), start()

    fetch(tmp_path, [TEST_LABELS, CONFIG.files.train_labels], [bad.url, good.url], TIMEOUT)

    assert visible(tmp_path) == {TEST_LABELS.name, CONFIG.files.train_labels.name}
    assert bad.asked == [TEST_LABELS.name]


@pytest.mark.parametrize(("answer", "reason"), FAULTS)
def test_fetch_says_why_each_mirror_failed(
    answer: Callable[[ParsedOverrides, bytes], None], reason: str, start: Callable[..., Mirror], tmp_path: Path
) -> None:
    """With no mirror left the message names each with its reason, and no part of a file stays behind."""
    bad = start(answer)

    with pytest.raises(DataError, match=reason) as caught:
        fetch(tmp_path, [TEST_LABELS], [bad.url, "http://127.0.0.1:1/"], TIMEOUT)

    assert f"127.0.0.1:{bad.server_port}: {reason}; 127.0.0.1:1: can't be reached" in str(caught.value)
    assert visible(tmp_path) == set()


@pytest.mark.parametrize(
    ("mirrors", "reason"), [([], "data.mirrors is empty"), (["nonsense"], "nonsense: Invalid URL")]
)
def test_fetch_without_a_usable_mirror_says_so(mirrors: list[str], reason: str, tmp_path: Path) -> None:
    """A list of mirrors that can't work is named in the message."""
    with pytest.raises(DataError, match=reason):
        fetch(tmp_path, [TEST_LABELS], mirrors, TIMEOUT)


def test_fetch_into_what_is_no_folder_says_so(start: Callable[..., Mirror], tmp_path: Path) -> None:
    """A cache folder that can't be made is a DataError with its path."""
    (tmp_path / "file").touch()

    with pytest.raises(DataError, match=r"file/mnist can't be written"):
        fetch(tmp_path / "file" / "mnist", [TEST_LABELS], [start().url], TIMEOUT)


def test_fetch_by_several_processes_downloads_once(start: Callable[..., Mirror], tmp_path: Path) -> None:
    """Processes that start together on an empty folder all succeed, on one download of each file."""
    mirror = start()
    with (
        child(tmp_path, mirror, *FILES) as first,
        child(tmp_path, mirror, *FILES) as second,
        child(tmp_path, mirror, *FILES) as third,
    ):
        codes = [process.wait(PATIENT) for process in (first, second, third)]

    assert codes == [0, 0, 0]
    assert sorted(mirror.asked) == sorted(file.name for file in FILES)
    assert visible(tmp_path) == {file.name for file in FILES}


def test_a_killed_download_leaves_no_half_file(start: Callable[..., Mirror], tmp_path: Path) -> None:
    """After a kill in mid-download there is neither a part of the file nor a lock that blocks the next."""
    stalling = start(half_then_silent)
    with child(tmp_path, stalling, TEST_LABELS) as process:
        assert stalling.half_sent.wait(PATIENT)
        process.kill()
    after_the_kill = visible(tmp_path)

    fetch(tmp_path, [TEST_LABELS], [start().url], TIMEOUT)

    assert after_the_kill == set()
    assert visible(tmp_path) == {TEST_LABELS.name}
