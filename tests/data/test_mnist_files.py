from __future__ import annotations

import gzip
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from configs import CONF, config
from hypothesis import given, settings
from hypothesis import strategies as st

from mnistexp.config.schema import IdxFile
from mnistexp.data.dataset import find, load
from mnistexp.data.mnist import IMAGE_SHAPE, MAX_BYTES, fetch, parse, resolve_auto
from mnistexp.errors import DataError

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
TEST_LABELS = "t10k-labels-idx1-ubyte.gz"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for each test, and no MNISTEXP_DATA."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MNISTEXP_DATA", raising=False)
    return tmp_path / "cache" / "mnistexp" / "mnist"


@pytest.fixture
def own(tmp_path: Path, mnist_folder: Path) -> Path:
    """A copy of MNIST that a test may damage."""
    return Path(shutil.copytree(mnist_folder, tmp_path / "own", copy_function=shutil.copyfile))


# ------------------------------------------------------------------------------------------ find


def test_find_searches_the_environment_then_the_cache(
    own: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MNISTEXP_DATA is the folder itself or its parent; without it the cache folder is used."""
    asked = config("mnist")
    assert find(asked) is None

    shutil.copytree(own, cache)
    assert find(asked) == cache

    monkeypatch.setenv("MNISTEXP_DATA", str(own))
    assert find(asked) == own
    assert find(config("fashion_mnist")) is None  # its files have the same names

    shutil.copytree(own, tmp_path / "all" / "mnist")
    monkeypatch.setenv("MNISTEXP_DATA", str(tmp_path / "all"))
    assert find(asked) == tmp_path / "all" / "mnist"


def test_without_files_and_network_only_auto_falls_back(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """auto becomes digits; mnist is an error. Both name the searched folders and each mirror's failure."""
    monkeypatch.setenv("MNISTEXP_DATA", str(tmp_path))
    mirror = 'data.mirrors=["http://127.0.0.1:1/"]'

    name, reason = resolve_auto(config("auto", mirror))
    with pytest.raises(DataError, match="data=digits, which needs no download") as caught:
        load(config("mnist", mirror))

    assert name == "digits"
    for text in (reason, str(caught.value)):
        assert f"mnist is not in {tmp_path / 'mnist'}, {tmp_path}, {cache}" in text
        assert "127.0.0.1:1: the download failed (ConnectionError)" in text


def test_a_root_that_lacks_files_is_an_error_even_for_auto(own: Path) -> None:
    """Nothing is downloaded into a user's folder; the message lists the missing files."""
    (own / TRAIN_LABELS).unlink()
    (own / TEST_LABELS).unlink()

    for use in (resolve_auto, load):
        with pytest.raises(DataError, match=f"lacks {TRAIN_LABELS}, {TEST_LABELS}. "):
            use(config("auto" if use is resolve_auto else "mnist", root=str(own)))


def test_auto_does_not_fall_back_from_damaged_files(own: Path) -> None:
    """Damage in an explicit root leaves auto at mnist; loading then reports it."""
    (own / TRAIN_IMAGES).write_bytes(b"damaged")

    assert resolve_auto(config("auto", root=str(own)))[0] == "mnist"


# ------------------------------------------------------------------------------------------ read


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda content: content[:12345], "12345 bytes, the published file has 9912422"),
        (lambda content: content[:-1] + b"!", "its digest is not the published one"),
    ],
)
def test_a_damaged_file_is_reported_with_a_remedy(
    content: Callable[[bytes], bytes], words: str, own: Path, cache: Path
) -> None:
    """The message names the file and the damage; in our own cache the remedy is to delete the file."""
    path = own / TRAIN_IMAGES
    path.write_bytes(content(path.read_bytes()))
    shutil.copytree(own, cache)

    for folder, root, remedy in ((own, str(own), "data.root=FOLDER"), (cache, None, "Delete that file")):
        with pytest.raises(DataError) as caught:
            load(config("mnist", root=root))
        assert str(caught.value).startswith(f"{folder / TRAIN_IMAGES}: ")
        assert words in str(caught.value)
        assert remedy in str(caught.value)


# ------------------------------------------------------------------------------------------ parse

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
LABELS = np.array([3, 0, 9, 1, 4], np.uint8)


def raw(array: np.ndarray, *, magic: int | None = None, shape: tuple[int, ...] | None = None) -> bytes:
    """An IDX file's bytes before gzip; `magic` and `shape` make its header wrong."""
    numbers = (magic or 0x0800 + array.ndim, *(shape or array.shape))
    return struct.pack(f">{len(numbers)}I", *numbers) + array.tobytes()


def packed(array: np.ndarray, **lies: object) -> bytes:
    """A gzipped IDX file."""
    return gzip.compress(raw(array, **lies), mtime=0)  # type: ignore[arg-type]


def with_wrong_crc(content: bytes) -> bytes:
    """The file with one bit of its checksum changed."""
    return content[:-8] + bytes([content[-8] ^ 1]) + content[-7:]


@pytest.mark.parametrize("array", [IMAGES, LABELS, np.zeros((3000, 28, 28), np.uint8)])
def test_parse_returns_what_was_packed(array: np.ndarray) -> None:
    """A well-formed file is read bit for bit."""
    np.testing.assert_array_equal(parse(packed(array), array.shape[1:]), array, strict=True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "one whole gzip file", id="empty"),
        pytest.param(packed(IMAGES)[:-4], "one whole gzip file", id="cut-in-the-checksum"),
        pytest.param(with_wrong_crc(packed(IMAGES)), "incorrect data check", id="crc"),
        pytest.param(packed(LABELS), "unpacks to 13 bytes", id="labels"),
        pytest.param(packed(IMAGES, magic=7), "00000007", id="magic"),
        pytest.param(packed(IMAGES, shape=(5, 14, 56)), "0000000e 00000038", id="shape"),
        pytest.param(packed(IMAGES, shape=(6, 28, 28)), "00000006", id="too-few"),
        pytest.param(packed(IMAGES, shape=(2**32 - 1, 28, 28)), "ffffffff", id="huge"),
        pytest.param(packed(IMAGES[:0]), "unpacks to 16 bytes", id="no-images"),
        pytest.param(packed(IMAGES) + packed(IMAGES), "one whole gzip file", id="joined-members"),
        pytest.param(gzip.compress(bytes(MAX_BYTES + 1), 1), "of at most 67108864 bytes; 67108865", id="bomb"),
    ],
)
def test_parse_refuses_a_damaged_file(content: bytes, words: str) -> None:
    """Each fault of an image file has its own message."""
    with pytest.raises(DataError, match=words):
        parse(content, IMAGE_SHAPE)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_parse_of_a_damaged_file_never_returns_other_images(data: st.DataObject) -> None:
    """If any bytes of the gzip file are replaced, it is refused or the images are unchanged."""
    content = bytearray(packed(IMAGES))
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(start + 20, len(content))))
    content[start:end] = data.draw(st.binary(max_size=20))

    try:
        parsed = parse(bytes(content), IMAGE_SHAPE)
    except DataError:
        return

    np.testing.assert_array_equal(parsed, IMAGES)


# ------------------------------------------------------------------------------------------ download

PATIENT = 60.0
FILES = [IdxFile(**dict(file)) for file in dict(config("mnist").files).values()]
SMALL, OTHER = FILES[3], FILES[1]
FETCH = """
import sys
from pathlib import Path
from mnistexp.config.schema import IdxFile
from mnistexp.data.mnist import fetch
folder, mirror, *files = sys.argv[1:]
fetch(Path(folder), [IdxFile.model_validate_json(file) for file in files], [mirror], 60.0)
"""

Answer = Callable[["Request", bytes], object]


class Mirror(ThreadingHTTPServer):
    """Serves a folder on the loopback interface as `answer` does, and records the requested names."""

    daemon_threads = True

    def __init__(self, folder: Path, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.folder, self.answer = folder, answer
        self.requested: list[str] = []
        self.half_sent, self.closing = threading.Event(), threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/"


class Request(BaseHTTPRequestHandler):
    """One request to a Mirror."""

    server: Mirror

    def do_GET(self) -> None:
        name = self.path.removeprefix("/")
        self.server.requested.append(name)
        self.server.answer(self, (self.server.folder / name).read_bytes())

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test's output clean."""

    def send(self, content: bytes, **headers: object) -> None:
        self.send_response(200)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


def _complete(request: Request, content: bytes) -> None:
    request.send(content, Content_Length=len(content))


def _half_then_silent(request: Request, content: bytes) -> None:
    request.send(content[: len(content) // 2], Content_Length=len(content))
    request.server.half_sent.set()
    request.server.closing.wait(PATIENT)


def _endless(request: Request, content: bytes) -> None:
    request.send(content)
    while not request.server.closing.is_set():
        request.wfile.write(bytes(1 << 16))


FAULTS: dict[str, tuple[Answer, str]] = {
    "not found": (lambda request, content: request.send_error(404), "HTTP status 404"),
    "half, then silent": (_half_then_silent, "the download failed .ReadTimeoutError."),
    "broken off": (lambda request, content: request.send(content[:9], Content_Length=4542), "the download failed"),
    "altered": (lambda request, content: request.send(content[:-1] + b"!"), "sent 4542 bytes that are not"),
    "endless": (_endless, "bytes that are not the published file of 4542"),
}


@pytest.fixture
def start(mnist_folder: Path) -> Iterator[Callable[..., Mirror]]:
    """Start mirrors of the real MNIST files; all are stopped after the test."""
    mirrors: list[Mirror] = []

    def start_one(answer: Answer = _complete) -> Mirror:
        mirrors.append(Mirror(mnist_folder, answer))
        threading.Thread(target=mirrors[-1].serve_forever, args=(0.01,), daemon=True).start()
        return mirrors[-1]

    yield start_one
    for mirror in mirrors:
        mirror.closing.set()
        mirror.shutdown()
        mirror.server_close()


def start_child(folder: Path, mirror: Mirror, *files: IdxFile) -> subprocess.Popen[bytes]:
    """Another process that fetches the same files."""
    arguments = [str(folder), mirror.url, *(file.model_dump_json() for file in files)]
    return subprocess.Popen([sys.executable, "-c", FETCH, *arguments], cwd=CONF.parent)


def visible(folder: Path) -> set[str]:
    """The names in a folder, without the lock file."""
    return {path.name for path in folder.iterdir()} - {".download.lock"}


def test_fetch_downloads_what_is_missing_or_damaged(
    start: Callable[..., Mirror], tmp_path: Path, mnist_folder: Path
) -> None:
    """The new folder holds all four published files byte for byte; good ones are not requested again."""
    mirror, folder = start(), tmp_path / "a" / "b"
    fetch(folder, FILES, [mirror.url], PATIENT)

    assert visible(folder) == {file.name for file in FILES}
    assert all((folder / file.name).read_bytes() == (mnist_folder / file.name).read_bytes() for file in FILES)

    (folder / SMALL.name).write_bytes(b"damaged")
    mirror.requested.clear()
    fetch(folder, FILES, [mirror.url], PATIENT)

    assert mirror.requested == [SMALL.name]


def test_fetch_does_not_unpack_a_file_that_is_labelled_as_encoded(start: Callable[..., Mirror], tmp_path: Path) -> None:
    """`Content-Encoding: gzip` on a .gz file is ignored."""
    mirror = start(lambda request, content: request.send(content, Content_Encoding="gzip"))

    fetch(tmp_path, [SMALL], [mirror.url], PATIENT)

    assert visible(tmp_path) == {SMALL.name}


@pytest.mark.parametrize("fault", FAULTS)
def test_fetch_reports_why_each_mirror_failed(fault: str, start: Callable[..., Mirror], tmp_path: Path) -> None:
    """If no mirror is left the message names each with its reason, and no part of a file remains."""
    answer, reason = FAULTS[fault]
    timeout = 0.3 if "silent" in fault else PATIENT
    bad = start(answer)

    with pytest.raises(DataError, match=reason) as caught:
        fetch(tmp_path, [SMALL], [bad.url, "http://127.0.0.1:1/"], timeout)

    assert f"127.0.0.1:{bad.server_port}: " in str(caught.value)
    assert "127.0.0.1:1: the download failed (ConnectionError)" in str(caught.value)
    assert visible(tmp_path) == set()


def test_fetch_goes_on_with_the_mirror_that_worked(start: Callable[..., Mirror], tmp_path: Path) -> None:
    """After a mirror failed the next one is tried, and it goes first for the next file."""
    bad, good = start(FAULTS["altered"][0]), start()

    fetch(tmp_path, [SMALL, OTHER], [bad.url, good.url], PATIENT)

    assert visible(tmp_path) == {SMALL.name, OTHER.name}
    assert bad.requested == [SMALL.name]


def test_fetch_by_several_processes_downloads_once(start: Callable[..., Mirror], tmp_path: Path) -> None:
    """Processes that start together on an empty folder all succeed with one download of each file."""
    mirror = start()

    children = [start_child(tmp_path, mirror, *FILES) for _ in range(3)]

    assert [child.wait(PATIENT) for child in children] == [0, 0, 0]
    assert sorted(mirror.requested) == sorted(file.name for file in FILES)
    assert visible(tmp_path) == {file.name for file in FILES}


def test_a_killed_download_leaves_no_damaged_file(start: Callable[..., Mirror], tmp_path: Path) -> None:
    """After a kill there is neither a part of the file nor a lock that blocks the next download."""
    stalling = start(_half_then_silent)
    child = start_child(tmp_path, stalling, SMALL)
    assert stalling.half_sent.wait(PATIENT)
    child.kill()
    child.wait(PATIENT)
    after_the_kill = visible(tmp_path)

    fetch(tmp_path, [SMALL], [start().url], PATIENT)

    assert after_the_kill == set()
    assert visible(tmp_path) == {SMALL.name}
