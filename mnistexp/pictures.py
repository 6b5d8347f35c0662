"""Pictures of a digit (scans, photos, drawings of any kind) as the images that a network was trained on.

Three steps, each on plain arrays: `read` a file into colours, find its `strokes` (what stands out from the paper,
whichever of the two is darker), and bring them to the data set's size and place: `normalised`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter, ImageOps, UnidentifiedImageError

from mnistexp.errors import DataError

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""What is opened; Pillow knows more, among them some that start programs (EPS)."""

MAX_PIXELS = 50_000_000
"""A phone's largest photos. A picture says how large it is before it is unpacked: a bomb stays closed."""

LONGEST = 640  # pixels of a side that are worked on: a digit may be a tenth of that, and is still sharp
COARSE = 112  # … for what needs no sharpness: the paper's shading, and which strokes hang together
MIN_SIDE = 4


@dataclass(frozen=True)
class Style:
    """How a data set's images were made from written digits."""

    side: int  # pixels of the whole image
    height: int  # of the box that a digit is fitted into
    width: int
    squeezed: bool  # a digit that is too wide for its box is made narrower; else its aspect ratio is kept
    middle: float  # where its centre of mass is put, within half a pixel: rows and columns from 0
    thinnest: float  # pixels: thinner strokes are made as thick as the data set's usual ones


def style(name: str, side: int) -> Style:
    """The style of a data set by its name; any but `digits` is taken to be made as MNIST was, at its own size.

    MNIST (LeCun et al. 1998): fitted into 20x20 with its aspect ratio kept, the centre of mass in the middle of 28x28.
    scikit-learn's digits fill their 8 rows and mostly 6 of their 8 columns; where they stand is measured.
    """
    if name == "digits":
        unit = side / 8
        return Style(side, side, max(1, round(6 * unit)), squeezed=True, middle=3.57 * unit, thinnest=1.3 * unit)
    box = max(1, round(side * 20 / 28))
    return Style(side, box, box, squeezed=False, middle=side / 2, thinnest=1.8 * side / 28)


# ------------------------------------------------------------------------------------------------- reading


def read(path: Path) -> Floats:
    """A picture's colours, [H, W, 1 or 3] in [0, 1], upright, without transparency, at most LONGEST pixels a side.

    Raises: DataError if the file isn't there, is no picture, is damaged or too large.
    """
    try:
        if path.is_dir():
            raise DataError("is a folder; name the pictures in it, such as FOLDER/*.png")
        if not path.is_file():
            raise DataError("there is no such file")
        # Ignored: what is odd about a file, and Pillow's own limit of 89 million pixels; ours is lower.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            _check_size(*image.size)
            return _colours(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("is no picture of a kind that is read here: PNG, JPEG, GIF, BMP, WebP, TIFF, PPM") from None
    except Image.DecompressionBombError:
        raise DataError(_too_large("more than 178 million")) from None
    except PermissionError:
        raise DataError("may not be read") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything on damaged files
        raise DataError(f"is a damaged picture ({type(error).__name__}: {error})") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DataError(_too_large(f"{width} x {height}"))
    if min(width, height) < MIN_SIDE:
        raise DataError(f"is too small, with {width} x {height} pixels; {MIN_SIDE} x {MIN_SIDE} are the least")


def _too_large(pixels: str) -> str:
    return f"is too large, with {pixels} pixels; at most {MAX_PIXELS // 10**6} million, so make it smaller"


def _colours(image: Image.Image) -> Floats:
    image.draft("RGB", (LONGEST, LONGEST))  # a JPEG is then unpacked at an eighth to the whole of its size
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16 bits a pixel, or floats of any scale
        values = np.nan_to_num(np.asarray(upright, np.float32))
        low, high = float(values.min()), float(values.max())
        small = _shrunk(Image.fromarray((values - low) / ((high - low) or 1.0)))
        return np.asarray(small, np.float32)[..., None]
    seen = upright.convert("RGBA" if upright.has_transparency_data else "RGB")
    values = np.asarray(_shrunk(seen), np.float32) / np.float32(255)
    return _on_paper(values) if seen.mode == "RGBA" else values


def _shrunk(image: Image.Image, longest: int = LONGEST) -> Image.Image:
    """At most `longest` pixels a side, averaged; smaller ones stay as they are."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BOX)


def _on_paper(rgba: Floats) -> Floats:
    """Put something behind what is transparent, [H, W, 4] → [H, W, 3]: what the digit stands out from.

    If all that is opaque has one colour, it is the digit; else it has its paper with it, whose colour goes on.
    """
    colours, opacity = rgba[..., :3], rgba[..., 3:]
    solid = colours[opacity[..., 0] > 0.5]
    if not len(solid):
        raise DataError("is blank: all of it is transparent")
    low, high = np.percentile(solid.mean(axis=1), (1, 99))
    paper = np.median(solid, axis=0) if high - low > 0.25 else np.float32(low < 0.5)
    return np.asarray(colours * opacity + paper * (1 - opacity), np.float32)


# ------------------------------------------------------------------------------------------------- strokes


def strokes(colours: Floats) -> Floats:
    """What was written: 1 in the strokes, 0 on the paper, [H, W]. Raises: DataError if nothing stands out.

    Args:
        colours: [H, W, channels] in [0, 1].
    """
    grey = _clearest(colours)
    ink, threshold = max((_relief(grey, paper) for paper in (_flat(grey), _shaded(grey))), key=_separation)
    inside = ink > threshold
    noise = 1.4826 * float(np.median(np.abs(ink[~inside]))) if not inside.all() else 0.0
    level = float(np.median(ink[inside])) if inside.any() else 0.0
    if level < max(0.04, 5 * noise):
        raise DataError("is blank: nothing in it stands out from its background")
    kept = _digit(inside)
    if sheet := _sheet(inside & kept):
        return strokes(colours[sheet])
    floor = min(2.5 * noise, 0.4 * level)
    clean = np.clip((ink - floor) / (0.97 * level - floor), 0, 1)
    return np.asarray(clean * kept, np.float32)


def _sheet(inside: Bools) -> tuple[slice, slice] | None:
    """Where to look again if what stands out is no digit but the sheet that it is on: large, and full to its edges."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    height, width = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
    if min(height, width) < 40 or not width < 2 * height < 4 * width:  # a bar is a one
        return None
    top, left = (int(0.12 * side) for side in (height, width))  # it may lie askew
    within = slice(rows[0] + top, rows[-1] - top), slice(columns[0] + left, columns[-1] - left)
    seen = inside[within]
    frame = np.concatenate([seen[0], seen[-1], seen[:, 0], seen[:, -1]])
    return within if seen.mean() > 0.6 and frame.mean() > 0.97 else None


def _clearest(colours: Floats) -> Floats:
    """Lightness, or the one colour channel in which far more can be seen: yellow on white, red on green."""
    if colours.shape[-1] == 1:
        return colours[..., 0]
    lightness = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    planes = [lightness, *np.moveaxis(colours, -1, 0)]
    contrasts = [float(np.ptp(np.percentile(plane, (0.1, 99.9)))) for plane in planes]
    best = int(np.argmax(contrasts))
    return planes[best] if contrasts[best] > 1.4 * contrasts[0] else lightness


def _relief(grey: Floats, paper: Floats) -> tuple[Floats, float]:
    """How far each pixel stands out from the paper as the strokes do, and the threshold between the two."""
    relief = grey - paper
    # Strokes are the smaller part, so whatever is far from the paper says whether they are darker or lighter.
    ink = np.asarray(relief * np.sign(np.mean(relief.astype(np.float64) ** 3)), np.float32)
    return ink, _otsu(np.clip(ink, 0, None))


def _separation(relief: tuple[Floats, float]) -> float:
    """The share of the variance that lies between strokes and paper: 1 where each of the two is flat."""
    ink, threshold = relief
    inside = ink > threshold
    share, total = float(inside.mean()), float(ink.var())
    if not (0 < share < 1 and total > 0):
        return 0.0
    return share * (1 - share) * float(ink[inside].mean() - ink[~inside].mean()) ** 2 / total


def _flat(grey: Floats) -> Floats:
    """The background as one brightness: the commonest at the rim. Right for drawings, however little paper is left."""
    rim = np.concatenate([grey[:2].ravel(), grey[-2:].ravel(), grey[:, :2].ravel(), grey[:, -2:].ravel()])
    return np.full_like(grey, _commonest(rim))


def _shaded(grey: Floats) -> Floats:
    """The background's brightness as if nothing were written: a smooth surface through all that fits one.

    A quadratic, fitted again and again with less weight for what lies far from it (Tukey's biweight); begun at
    the rim, where there is mostly paper. Lamps, shadows of hands and vignettes are that smooth; folds aren't.
    """
    small = np.asarray(_shrunk(Image.fromarray(grey), COARSE), np.float32)
    terms, values = _terms(*small.shape), small.ravel().astype(np.float64)
    rim = np.abs(terms[:, 1:3]).max(axis=1) > 0.85
    fit = np.array([_commonest(values[rim]), 0, 0, 0, 0, 0])
    for where, degree in (*[(rim, 3)] * 3, *[(rim, 6)] * 4, *[(rim | True, 6)] * 10):  # terms: a plane, then all
        here, seen = terms[where, :degree], values[where]
        away = np.abs(seen - here @ fit[:degree])
        # A third at least is paper, however thick the strokes: the median could be ink.
        reach = 4.685 * max(float(np.percentile(away, 33)) / 0.426, 0.01)
        root = np.clip(1 - (away / reach) ** 2, 0, None) + 1e-9
        solved = np.linalg.lstsq(here * root[:, None], seen * root, rcond=None)[0]
        fit = np.pad(solved, (0, 6 - degree))
    return np.asarray((_terms(*grey.shape) @ fit).reshape(grey.shape), np.float32)


def _commonest(values: npt.NDArray[Any]) -> float:
    """The middle of the tenth of the range that most values lie in."""
    ordered = np.sort(values)
    first = np.searchsorted(ordered, ordered, side="left")
    last = np.searchsorted(ordered, ordered + 0.1 * np.ptp(ordered), side="right")
    best = int(np.argmax(last - first))
    return float(np.median(ordered[first[best] : last[best]]))


def _terms(height: int, width: int) -> npt.NDArray[np.float64]:
    """1, x, y, x², xy, y² at every pixel, x and y in [-1, 1]: [pixels, 6]."""
    y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j])
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)


def _otsu(values: Floats) -> float:
    """The threshold that divides values best into two classes (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    mass = np.cumsum(counts * middles)
    between = below * above * (mass[:-1] / np.maximum(below, 1) - (mass[-1] - mass[:-1]) / np.maximum(above, 1)) ** 2
    return float(edges[1 + int(np.argmax(between))])


def _digit(inside: Bools) -> Bools:
    """Where the digit is, with its soft edges: without specks, and without what comes in from the picture's edge."""
    small = np.asarray(_shrunk(Image.fromarray(inside.astype(np.float32)), COARSE)) > 0.3
    if not small.any():
        small = np.asarray(_shrunk(Image.fromarray(inside.astype(np.float32)), COARSE)) > 0
    labels = _connected(small)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    free = sizes.copy()
    free[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = 0
    if free.max() >= sizes.max() / 4:  # a table's edge, a line of the paper
        sizes = free
    kept = np.isin(labels, np.flatnonzero(sizes >= max(1, sizes.max() * 0.06)))
    around = _grown(Image.fromarray(kept.astype(np.uint8) * 255), 2)
    height, width = inside.shape
    return np.asarray(around.resize((width, height), Image.Resampling.NEAREST)) > 0


def _connected(mask: Bools) -> npt.NDArray[np.int64]:
    """A number above 0 for each part of the mask that hangs together, corners included; 0 outside."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        height, width = mask.shape
        shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        spread = np.where(mask, np.maximum.reduce(shifted), 0)
        if np.array_equal(spread, labels):
            return (
                np.unique(labels, return_inverse=True)[1].reshape(mask.shape) if (labels == 0).any() else labels * 0 + 1
            )
        labels = spread


def _grown(image: Image.Image, radius: int) -> Image.Image:
    """Bright parts grown by so many pixels on each side."""
    return image.filter(ImageFilter.MaxFilter(2 * radius + 1)) if radius else image


# ------------------------------------------------------------------------------------------- size and place


def normalised(ink: Floats, wanted: Style) -> Floats:
    """Strokes at the data set's size and place, [H, W] → [side, side], both in [0, 1]."""
    rows, columns = (np.flatnonzero((ink > 0.25).any(axis=axis)) for axis in (1, 0))
    cropped = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = _fitted(cropped.shape[0], cropped.shape[1], wanted)
    thick = _thickened(cropped, height, wanted.thinnest)
    sized = np.asarray(Image.fromarray(thick).resize((width, height), Image.Resampling.HAMMING), np.float32)
    return _placed(np.clip(sized, 0, 1), wanted)


def _fitted(height: int, width: int, wanted: Style) -> tuple[int, int]:
    """The digit's own size in the box that it is fitted into."""
    if wanted.squeezed:
        return wanted.height, max(1, min(wanted.width, round(width * wanted.height / height)))
    scale = min(wanted.height / height, wanted.width / width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _thickened(ink: Floats, height: int, thinnest: float) -> Floats:
    """Strokes that would be thinner than `thinnest` when the digit is `height` pixels high, made as thick as that.

    A pen's line in a photo is a hundredth of the digit: fitted into 20 pixels it would be a shade of grey.
    """
    missing = thinnest - height / ink.shape[0] * _thickness(ink > 0.5)
    if missing <= 0:
        return ink
    finer = max(1, -(-4 * height // ink.shape[0]))  # a pixel of growth would else be too much at once
    rows, columns = (finer * side for side in ink.shape)
    fine = np.asarray(Image.fromarray(ink).resize((columns, rows), Image.Resampling.BICUBIC), np.float32)
    radius = round(missing * rows / height / 2)
    return np.asarray(_grown(Image.fromarray(np.pad(fine.clip(0, 1), radius)), radius), np.float32)


def _thickness(inside: Bools) -> float:
    """The mean thickness of lines, in pixels: twice their area by their outline, whose steps count π/4 on average."""
    padded = np.pad(inside, 1)
    outline = sum(int(np.count_nonzero(np.diff(padded, axis=axis))) for axis in (0, 1))
    return 2 * int(inside.sum()) / max(1.0, outline * np.pi / 4)


def _placed(digit: Floats, wanted: Style) -> Floats:
    """The digit in its image, where its centre of mass says."""
    image = np.zeros((wanted.side, wanted.side), np.float32)
    height, width = digit.shape
    top, left = (_offset(digit.sum(axis=axis), wanted) for axis in (1, 0))
    image[top : top + height, left : left + width] = digit
    return image


def _offset(mass: Floats, wanted: Style) -> int:
    """At which row or column a digit begins, whose rows or columns have this mass."""
    centre = float((mass * np.arange(len(mass))).sum() / mass.sum())
    return max(0, min(int(np.ceil(wanted.middle - 0.5 - centre)), wanted.side - len(mass)))
