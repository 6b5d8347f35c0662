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
    """Sixteen of MNIST's test digits, [N, 28, 28] in [0, 1]."""
    pixels = gzip.decompress((mnist_folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    return np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)[:16].astype(np.float32) / 255


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


def bright_on_dark(digit: Floats, draw: Random) -> Image.Image:
    """As MNIST itself, but larger."""
    return eight_bit(enlarged(digit, int(draw.integers(3, 21))))


def dark_on_light(digit: Floats, draw: Random) -> Image.Image:
    """A pen on paper."""
    return eight_bit(1 - enlarged(digit, int(draw.integers(3, 21))))


def off_centre(digit: Floats, draw: Random) -> Image.Image:
    """Anywhere on a large sheet."""
    ink = enlarged(digit, int(draw.integers(3, 8)))
    top, bottom, left, right = draw.integers(0, 300, 4)
    return eight_bit(1 - np.pad(ink, ((top, bottom), (left, right))))


def grainy_and_pale(digit: Floats, draw: Random) -> Image.Image:
    """A pencil in poor light."""
    ink = enlarged(digit, 12)
    return eight_bit(0.8 - 0.4 * ink + draw.normal(0, 0.03, ink.shape).astype(np.float32))


def under_a_lamp(digit: Floats, draw: Random) -> Image.Image:
    """A photo."""
    ink = enlarged(digit, 15)
    return eight_bit(lamp(len(ink), draw) - 0.5 * ink + draw.normal(0, 0.02, ink.shape).astype(np.float32))


def chalk_under_a_lamp(digit: Floats, draw: Random) -> Image.Image:
    """A photo of a blackboard."""
    ink = enlarged(digit, 15)
    return eight_bit(1 - lamp(len(ink), draw) + 0.5 * ink + draw.normal(0, 0.02, ink.shape).astype(np.float32))


def sticker(digit: Floats, draw: Random) -> Image.Image:
    """Transparent but for the digit, which is black or white."""
    opacity = eight_bit(enlarged(digit, 6))
    image = Image.new("RGBA", opacity.size, (int(255 * draw.integers(2)),) * 3)
    image.putalpha(opacity)
    return image


def card_with_round_corners(digit: Floats, draw: Random) -> Image.Image:
    """Transparent beyond its corners."""
    image = eight_bit(1 - enlarged(digit, 6)).convert("RGBA")
    corners = Image.new("L", image.size, 0)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, image.width - 1, image.height - 1), 40, fill=255)
    image.putalpha(corners)
    return image


def sixteen_bit(digit: Floats, draw: Random) -> Image.Image:
    """A scan in 65,536 greys, of which it uses a seventh."""
    return Image.fromarray((20_000 + 9_000 * enlarged(digit, 5)).astype(np.uint16))


def few_colours(digit: Floats, draw: Random) -> Image.Image:
    """A palette."""
    return dark_on_light(digit, draw).convert("RGB").quantize(12)


def yellow_on_white(digit: Floats, draw: Random) -> Image.Image:
    """Next to nothing can be seen of it in lightness."""
    ink = enlarged(digit, 5)[..., None]
    return eight_bit(1 - ink * np.array([0, 0.1, 0.9], np.float32))


def for_a_printer(digit: Floats, draw: Random) -> Image.Image:
    """CMYK."""
    return dark_on_light(digit, draw).convert("CMYK")


def sheet_on_a_table(digit: Floats, draw: Random) -> Image.Image:
    """A sheet that lies a little askew on dark wood."""
    sheet = eight_bit(0.9 - 0.7 * np.pad(enlarged(digit, 8), 60)).rotate(4, expand=True, fillcolor=70)
    table = Image.new("L", (sheet.width + 140, sheet.height + 90), 70)
    table.paste(sheet, (60, 50))
    return table


KINDS: dict[Callable[[Floats, Random], Image.Image], str] = {
    bright_on_dark: "png",
    dark_on_light: "bmp",
    off_centre: "gif",
    grainy_and_pale: "webp",
    under_a_lamp: "jpg",
    chalk_under_a_lamp: "jpg",
    sticker: "png",
    card_with_round_corners: "png",
    sixteen_bit: "png",
    few_colours: "png",
    yellow_on_white: "png",
    for_a_printer: "jpg",
    sheet_on_a_table: "png",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_of_a_digit_comes_out_as_the_digit(
    kind: Callable[[Floats, Random], Image.Image], written: Floats, tmp_path: Path
) -> None:
    """However it was taken, what comes out lies several times nearer to its own digit than to another one."""
    draw, file = np.random.default_rng(1), tmp_path / f"digit.{KINDS[kind]}"
    own, other = [], []
    for number, digit in enumerate(written):
        kind(digit, draw).save(file)
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
    upright = dark_on_light(written[0], np.random.default_rng(0))
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
    """A sound PNG of that size, black and a few kilobytes large: unpacked it is a bit for each pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(b"\0" * ((width + 7) // 8 + 1) * height, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def noise() -> Image.Image:
    """A sensor's grain, and nothing before it."""
    return Image.effect_noise((300, 300), 40)


def shadow() -> Image.Image:
    """Paper under a lamp, and nothing on it."""
    return eight_bit(lamp(300, np.random.default_rng(0)))


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (64, 64), "white"),
        Image.new("1", (64, 64)),
        Image.new("RGBA", (64, 64)),
        Image.new("I;16", (64, 64), 9),
        shadow(),
        noise(),
    ],
    ids=["white", "black", "transparent", "16 bit", "a shadow", "noise"],
)
def test_a_blank_picture_has_no_digit(image: Image.Image, tmp_path: Path) -> None:
    """Nothing is made up where nothing is written."""
    image.save(tmp_path / "blank.png")

    with pytest.raises(DataError, match=r"^is blank: "):
        load(tmp_path / "blank.png", MNIST)


def test_what_is_no_picture_is_told(tmp_path: Path) -> None:
    """A folder, nothing, a text, a picture cut off, one of a kind that would start another program: a sentence each."""
    whole = tmp_path / "whole.png"
    noise().save(whole)
    (tmp_path / "half.png").write_bytes(whole.read_bytes()[:20_000])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    told = {
        ".": "is a folder; name the pictures in it",
        "none.png": "there is no such file",
        "text.png": "is no picture of a kind that is read here: PNG, JPEG",
        "half.png": "is a damaged picture",
        "program.eps": "is no picture of a kind that is read here",
    }

    for name, sentence in told.items():
        with pytest.raises(DataError, match=sentence) as caught:
            pictures.read(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [7_100, 12_000, 20_000])
def test_a_bomb_stays_closed(side: int, tmp_path: Path) -> None:
    """A picture that would be huge is refused by what its first bytes say, without a warning of Pillow's."""
    (tmp_path / "bomb.png").write_bytes(png(side, side))

    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(DataError, match=r"is too large, .* at most 50 million"),
    ):
        pictures.read(tmp_path / "bomb.png")

    assert (tmp_path / "bomb.png").stat().st_size < 60_000


def test_a_large_photo_is_read_small(tmp_path: Path) -> None:
    """A long side is brought to a bounded one, whatever the shape."""
    (tmp_path / "wide.png").write_bytes(png(40_000, 40))

    assert max(pictures.read(tmp_path / "wide.png").shape) == pictures.LONGEST


def test_a_tiny_picture_is_told(tmp_path: Path) -> None:
    """Of three pixels no digit can be read."""
    Image.new("L", (3, 90)).save(tmp_path / "tiny.png")

    with pytest.raises(DataError, match="is too small, with 3 x 90 pixels"):
        pictures.read(tmp_path / "tiny.png")
