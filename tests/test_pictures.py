from __future__ import annotations

import gzip
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

from mnistexp import pictures
from mnistexp.errors import DataError

Floats = npt.NDArray[np.float32]
Random = np.random.Generator

MNIST = pictures.style("mnist", 28)
DIGITS = pictures.style("digits", 8)


def load(path: Path, wanted: pictures.Style) -> Floats:
    """A file's digit as a network is shown it, as predict makes it."""
    return pictures.normalised(pictures.strokes(pictures.read(path)), wanted)


@pytest.fixture(scope="session")
def written(mnist_folder: Path) -> Floats:
    """Ten of MNIST's test digits, [N, 28, 28] in [0, 1]."""
    pixels = gzip.decompress((mnist_folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    return np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)[:10].astype(np.float32) / 255


def enlarged(digit: Floats, times: int) -> Floats:
    """A digit as a photo has it: many pixels to one."""
    image = Image.fromarray(digit).resize((digit.shape[1] * times, digit.shape[0] * times), Image.Resampling.BICUBIC)
    return np.asarray(image, np.float32).clip(0, 1)


def lamp(side: int, draw: Random) -> Floats:
    """Paper under a lamp from some side, darker towards the corners."""
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    angle = draw.uniform(0, 2 * np.pi)
    return np.asarray(0.8 + 0.15 * (np.cos(angle) * x + np.sin(angle) * y) - 0.05 * (x * x + y * y), np.float32)


def eight_bit(values: Floats) -> Image.Image:
    """What most files hold."""
    return Image.fromarray((255 * values.clip(0, 1)).round().astype(np.uint8))


def photo(digit: Floats, draw: Random, chalk: bool = False) -> Image.Image:
    """A pen on paper, or chalk on a blackboard, under a lamp."""
    ink = enlarged(digit, 15)
    light = lamp(len(ink), draw)
    grey = 1 - light + 0.5 * ink if chalk else light - 0.5 * ink
    return eight_bit(grey + draw.normal(0, 0.02, ink.shape).astype(np.float32))


def off_centre(digit: Floats, draw: Random) -> Image.Image:
    """Anywhere on a large sheet."""
    top, bottom, left, right = draw.integers(0, 300, 4)
    return eight_bit(1 - np.pad(enlarged(digit, int(draw.integers(3, 8))), ((top, bottom), (left, right))))


def grainy_and_pale(digit: Floats, draw: Random) -> Image.Image:
    """A pencil in poor light."""
    ink = enlarged(digit, 12)
    return eight_bit(0.8 - 0.4 * ink + draw.normal(0, 0.03, ink.shape).astype(np.float32))


def sticker(digit: Floats, draw: Random) -> Image.Image:
    """Transparent except for the digit, which is black or white."""
    opacity = eight_bit(enlarged(digit, 6))
    image = Image.new("RGBA", opacity.size, (int(255 * draw.integers(2)),) * 3)
    image.putalpha(opacity)
    return image


def card(digit: Floats, draw: Random) -> Image.Image:
    """A card whose round corners are transparent."""
    image = eight_bit(1 - enlarged(digit, 6)).convert("RGBA")
    corners = Image.new("L", image.size, 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, image.width - 1, image.height - 1), 40, fill=255)
    image.putalpha(corners)
    return image


def sheet_on_a_table(digit: Floats, draw: Random) -> Image.Image:
    """A tilted sheet on dark wood."""
    sheet = eight_bit(0.9 - 0.7 * np.pad(enlarged(digit, 8), 60)).rotate(4, expand=True, fillcolor=70)
    table = Image.new("L", (sheet.width + 140, sheet.height + 90), 70)
    table.paste(sheet, (60, 50))
    return table


def pen(digit: Floats, draw: Random) -> Image.Image:
    """Dark on light, of any size."""
    return eight_bit(1 - enlarged(digit, int(draw.integers(3, 21))))


KINDS: dict[str, tuple[str, Callable[[Floats, Random], Image.Image]]] = {
    "dark on light": ("bmp", pen),
    "off centre": ("gif", off_centre),
    "grainy and pale": ("webp", grainy_and_pale),
    "photo": ("jpg", photo),
    "chalk": ("jpg", lambda digit, draw: photo(digit, draw, chalk=True)),
    "sticker": ("png", sticker),
    "card": ("png", card),
    "16 bit": ("png", lambda digit, _: Image.fromarray((20_000 + 9_000 * enlarged(digit, 5)).astype(np.uint16))),
    "yellow": ("png", lambda digit, _: eight_bit(1 - enlarged(digit, 5)[..., None] * np.float32([0, 0.1, 0.9]))),
    "CMYK": ("jpg", lambda digit, draw: pen(digit, draw).convert("CMYK")),
    "sheet on a table": ("png", sheet_on_a_table),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_becomes_the_image_of_its_digit(kind: str, written: Floats, tmp_path: Path) -> None:
    """What comes out is several times nearer to its own digit than to another one."""
    extension, make = KINDS[kind]
    draw, file = np.random.default_rng(1), tmp_path / f"digit.{extension}"
    own, other = [], []
    for number, digit in enumerate(written):
        make(digit, draw).save(file)
        found = load(file, MNIST)
        own.append(np.abs(found - digit).mean())
        other.append(np.abs(written[number - 1] - digit).mean())

    assert np.mean(own) < np.mean(other) / 3
    assert np.mean(np.array(own) < np.array(other)) > 0.95


def test_mnists_own_digits_stay_as_they_are(written: Floats) -> None:
    """The steps by which MNIST was made, taken on its images, change next to nothing."""
    found = np.array([pictures.normalised(pictures.strokes(digit[..., None]), MNIST) for digit in written])

    assert np.abs(found - written).mean() < 0.01


def test_scikit_learns_own_digits_stay_as_they_are(tmp_path: Path) -> None:
    """Blown up to photos, they come out nearer to themselves than to others: eight rows, six columns."""
    digits = load_digits().images[:20].astype(np.float32) / 16
    file = tmp_path / "digit.png"
    own, other = [], []
    for number, digit in enumerate(digits):
        eight_bit(1 - np.pad(np.kron(digit, np.ones((20, 20), np.float32)), 30)).save(file)
        found = load(file, DIGITS)
        own.append(np.abs(found - digit).mean())
        other.append(np.abs(digits[number - 1] - digit).mean())

    assert np.mean(own) < np.mean(other) / 2.5


def line(width: int, size: int = 800) -> Image.Image:
    """A seven."""
    image = Image.new("L", (size, size), 255)
    corners = [(0.3 * size, 0.2 * size), (0.7 * size, 0.2 * size), (0.45 * size, 0.8 * size)]
    ImageDraw.Draw(image).line(corners, fill=0, width=width, joint="curve")
    return image


@pytest.mark.parametrize("width", [3, 10, 40, 80])
def test_a_digit_fills_mnists_box_with_strokes_that_can_be_seen(width: int, tmp_path: Path) -> None:
    """A pen's line or a brush's: 20 pixels high, its centre of mass in the middle, white in the middle of strokes."""
    line(width).save(tmp_path / "seven.png")

    found = load(tmp_path / "seven.png", MNIST)

    rows, columns = np.flatnonzero((found > 0.05).any(axis=1)), np.flatnonzero((found > 0.05).any(axis=0))
    y, x = np.mgrid[:28, :28]
    assert found.shape == (28, 28)
    assert found.dtype == np.float32
    assert rows[-1] - rows[0] + 1 == 20
    assert columns[-1] - columns[0] + 1 < 20
    assert abs((found * y).sum() / found.sum() - 14) <= 0.5
    assert abs((found * x).sum() / found.sum() - 14) <= 0.5
    assert found.min() == 0
    assert np.median(found[rows].max(axis=1)) > 0.8


def test_a_phones_rotation_is_undone(written: Floats, tmp_path: Path) -> None:
    """EXIF says which way is up."""
    upright = pen(written[0], np.random.default_rng(0))
    upright.save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    upright.rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)

    turned = load(tmp_path / "turned.png", MNIST)

    assert turned == pytest.approx(load(tmp_path / "upright.png", MNIST), abs=0.02)


def test_specks_and_a_line_from_the_edge_are_left_out(tmp_path: Path) -> None:
    """What was beside the digit doesn't move or shrink it."""
    line(40).save(tmp_path / "clean.png")
    image = line(40)
    draw = ImageDraw.Draw(image)
    draw.line([(0, 750), (799, 760)], fill=0, width=12)
    for place in ((60, 60), (700, 500), (90, 640)):
        draw.ellipse((*place, place[0] + 12, place[1] + 12), fill=0)
    image.save(tmp_path / "dirty.png")

    dirty = load(tmp_path / "dirty.png", MNIST)

    assert dirty == pytest.approx(load(tmp_path / "clean.png", MNIST), abs=0.05)


# --------------------------------------------------------------------------------------------- no digit in it


def png(width: int, height: int) -> bytes:
    """A valid black PNG of that size in a few kilobytes: one bit per pixel when it is unpacked."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(b"\0" * ((width + 7) // 8 + 1) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


BLANK = {
    "white": Image.new("RGB", (64, 64), "white"),
    "transparent": Image.new("RGBA", (64, 64)),
    "16 bit": Image.new("I;16", (64, 64), 9),
    "a shadow": eight_bit(lamp(300, np.random.default_rng(0))),
    "noise": Image.effect_noise((300, 300), 40),
}


@pytest.mark.parametrize("name", BLANK)
def test_a_blank_picture_has_no_digit(name: str, tmp_path: Path) -> None:
    """No strokes are found if nothing is written."""
    BLANK[name].save(tmp_path / "blank.png")

    with pytest.raises(DataError, match=r"^is blank: "):
        load(tmp_path / "blank.png", MNIST)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (".", b"", "cannot be read"),
        ("none.png", b"", "cannot be read"),
        ("text.png", b"no picture", "is not a picture in a format"),
        ("program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "is not a picture"),
        ("half.png", png(900, 900)[:100], "cannot be read"),
        ("tiny.png", png(3, 90), "is too small, with 3 x 90 pixels"),
        ("bomb.png", png(7_100, 7_100), "is too large, .* at most 50 million"),
        ("bomb.png", png(20_000, 20_000), "cannot be read .DecompressionBomb"),
    ],
)
def test_what_is_no_picture_is_refused(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    """One line each, without a warning of Pillow's; a bomb is refused by its first bytes, before it is unpacked."""
    if content:
        (tmp_path / name).write_bytes(content)

    with warnings.catch_warnings(action="error"), pytest.raises(DataError, match=sentence) as caught:
        pictures.read(tmp_path / name)

    assert "\n" not in str(caught.value)


def test_a_large_photo_is_read_small(tmp_path: Path) -> None:
    """The longer side has a limit, whatever the shape."""
    (tmp_path / "wide.png").write_bytes(png(40_000, 40))

    assert max(pictures.read(tmp_path / "wide.png").shape) == pictures.LONGEST
