"""Turn a picture of a digit (a scan, photo or drawing) into an image like those that a network was trained on.

Three steps on plain arrays: `read` a file, find the `strokes`, bring them to the size and place of the data set with
`normalised`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from mnistexp.errors import DataError

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""The formats that are opened. Pillow knows more, among them some that start programs (EPS)."""

MAX_PIXELS = 50_000_000
"""The largest photos of phones. A picture names its size before it is unpacked, so a bomb is not unpacked."""

LONGEST = 640  # pixels of the longer side that is processed: a digit of a tenth of that is still sharp
COARSE = 112  # … for what needs no detail: which strokes are connected
PAPER = 64  # … and the shading of the paper
MIN_SIDE = 4


@dataclass(frozen=True)
class Style:
    """How the images of a data set were made from written digits; all lengths in pixels."""

    side: int  # of the whole image
    height: int  # of the box that contains the digit
    width: int
    squeezed: bool  # whether the height always fills the box; else the aspect ratio is kept
    middle: float  # row and column, from 0, of the centre of mass, within half a pixel
    thinnest: float  # thinner strokes are thickened to the usual thickness of the data set


def style(name: str, side: int) -> Style:
    """Return the style of a data set. All but `digits` are treated like MNIST, at their own size.

    MNIST (LeCun et al. 1998): a box of 20x20 with the aspect ratio kept, the centre of mass at the centre of 28x28.
    scikit-learn's digits fill 8 rows and mostly 6 columns; their centre of mass was measured.
    """
    if name == "digits":
        unit = side / 8
        return Style(side, side, max(1, round(6 * unit)), squeezed=True, middle=3.57 * unit, thinnest=1.3 * unit)
    box = max(1, round(side * 20 / 28))
    return Style(side, box, box, squeezed=False, middle=side / 2, thinnest=1.8 * side / 28)


# ------------------------------------------------------------------------------------------------- reading


def read(path: Path) -> Floats:
    """Read a picture: [H, W, 1 or 3] in [0, 1], upright, without transparency, at most LONGEST pixels per side.

    Raises: DataError if the file is missing, not a picture, damaged or too large.
    """
    try:
        # Pillow's own warnings are ignored: its limit of 89 million pixels is higher than ours.
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(f"is too large, with {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million")
            if min(width, height) < MIN_SIDE:
                raise DataError(f"is too small, with {width} x {height} pixels; at least {MIN_SIDE} x {MIN_SIDE}")
            return _colours(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError("is not a picture in a format that is read: PNG, JPEG, GIF, BMP, WebP, TIFF, PPM") from None
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise anything on damaged files
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise DataError(f"cannot be read ({why})") from None


def _colours(image: Image.Image) -> Floats:
    image.draft("RGB", (LONGEST, LONGEST))  # JPEG: unpack it at a fraction of its size
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith(("I", "F")):  # 16 bits per pixel, or floats of any scale
        values = np.nan_to_num(np.asarray(upright, np.float32))
        return _shrunk((values - values.min()) / (np.ptp(values) or 1.0), LONGEST)[..., None]
    transparent = upright.has_transparency_data
    upright = upright.convert("RGBA" if transparent else "RGB")
    upright.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX, reducing_gap=None)
    values = np.asarray(upright, np.float32) / np.float32(255)
    return _on_paper(values) if transparent else values


def _shrunk(values: npt.NDArray[np.generic], longest: int) -> Floats:
    """Average an image to at most `longest` pixels per side."""
    image = Image.fromarray(values.astype(np.float32))
    image.thumbnail((longest, longest), Image.Resampling.BOX, reducing_gap=None)
    return np.asarray(image, np.float32)


def _enlarged(values: npt.NDArray[np.generic], shape: tuple[int, ...]) -> Floats:
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BILINEAR), np.float32)


def _on_paper(rgba: Floats) -> Floats:
    """Put a background behind a transparent picture, [H, W, 4] to [H, W, 3].

    If the opaque pixels have one colour, they are the digit; else they include its paper, which is continued.
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
    """Return the strokes: 1 in the ink, 0 on the paper, [H, W]. Raises: DataError if the picture is blank.

    Args:
        colours: [H, W, channels] in [0, 1]. The channel with the largest contrast is used: yellow on white is blue's.
    """
    contrasts = np.ptp(np.percentile(colours, (0.1, 99.9), axis=(0, 1)), axis=0)
    grey = colours[..., int(np.argmax(contrasts))]
    # The model of the paper by which the picture separates best into ink and paper.
    threshold, ink = max((_otsu(ink) for ink in _reliefs(grey)), key=lambda found: found[0])[1:]
    inside = ink > threshold
    noise = 1.4826 * float(np.median(np.abs(ink[~inside]))) if not inside.all() else 0.0
    level = float(np.median(ink[inside])) if inside.any() else 0.0
    small = _shrunk(ink, PAPER)
    edge = max(float(np.abs(np.diff(small, axis=axis)).max()) for axis in (0, 1))
    if level < max(0.04, 5 * noise) or edge < level / 5:  # a shadow has no edge
        raise DataError("is blank: nothing in it stands out from its background")
    kept = _digit(inside)
    if sheet := _sheet(inside & kept):
        return strokes(colours[sheet])
    floor = min(2.5 * noise, 0.4 * level)
    return np.asarray(np.clip((ink - floor) / (0.97 * level - floor), 0, 1) * kept, np.float32)


def _reliefs(grey: Floats) -> Iterator[Floats]:
    """Yield how far each pixel is from the paper, in the direction of the ink, for three models of the paper.

    First the brightness of the rim: right for drawings, even if little paper is left. Then, for dark and for light
    ink, the surface that is left without strokes thinner than a third of the picture: right for photos.
    """
    from scipy import ndimage

    flat = grey - np.median(
        np.concatenate([grey[:2].ravel(), grey[-2:].ravel(), grey[:, :2].ravel(), grey[:, -2:].ravel()])
    )
    # The ink is the smaller part, so the pixels that are far from the paper show the sign.
    yield flat * np.float32(np.sign(np.mean(flat.astype(np.float64) ** 3)))
    small = _shrunk(grey, PAPER)
    size = 1 + 2 * (max(small.shape) // 6)
    for sign, fill in ((-1, ndimage.grey_closing), (1, ndimage.grey_opening)):
        paper = ndimage.gaussian_filter(fill(small, size=(size, size), mode="nearest"), size / 6, mode="nearest")
        yield np.float32(sign) * (grey - _enlarged(paper, grey.shape))


def _otsu(ink: Floats) -> tuple[float, float, Floats]:
    """Separate values into two classes (Otsu 1979).

    Returns: the share of the variance that is between the classes, the threshold, the values.
    """
    values = ink.clip(0)
    counts, edges = np.histogram(values, bins=256)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    mass = np.cumsum(counts * middles)
    between = below * above * (mass[:-1] / np.maximum(below, 1) - (mass[-1] - mass[:-1]) / np.maximum(above, 1)) ** 2
    best = int(np.argmax(between))
    return float(between[best] / values.size**2 / (ink.var() or 1.0)), float(edges[1 + best]), ink


def _digit(inside: Bools) -> Bools:
    """Return where the digit is, with its soft edges: without specks, and without what touches the picture's edge."""
    from scipy import ndimage

    soft = _shrunk(inside, COARSE)
    labels, _ = ndimage.label(soft > min(0.3, soft.max() / 2), structure=np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    free = sizes.copy()
    free[np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))] = 0
    if free.max() >= sizes.max() / 4:  # else the digit itself touches the edge
        sizes = free
    kept = np.isin(labels, np.flatnonzero(sizes >= max(1, sizes.max() * 0.06)))
    return _enlarged(ndimage.binary_dilation(kept, np.ones((5, 5))), inside.shape) > 0.5


def _sheet(inside: Bools) -> tuple[slice, slice] | None:
    """Return where to look again if the found shape is not a digit but the sheet of paper: large and filled."""
    rows, columns = _extent(inside)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if min(height, width) < 40 or not width < 2 * height < 4 * width:  # a bar is a one
        return None
    top, left = int(0.12 * height), int(0.12 * width)  # the sheet may be tilted
    within = slice(rows.start + top, rows.stop - top), slice(columns.start + left, columns.stop - left)
    seen = inside[within]
    frame = np.concatenate([seen[0], seen[-1], seen[:, 0], seen[:, -1]])
    return within if seen.mean() > 0.6 and frame.mean() > 0.97 else None


def _extent(inside: Bools) -> tuple[slice, slice]:
    """Return the bounding box."""
    from scipy import ndimage

    rows, columns = ndimage.find_objects(inside.astype(np.int8))[0]
    return rows, columns


# ------------------------------------------------------------------------------------------- size and place


def normalised(ink: Floats, wanted: Style) -> Floats:
    """Bring strokes to the size and place of a data set, [H, W] to [side, side], both in [0, 1]."""
    from scipy import ndimage

    cropped = ink[_extent(ink > 0.25)]
    scale = wanted.height / cropped.shape[0]
    if not wanted.squeezed:
        scale = min(scale, wanted.width / cropped.shape[1])
    height, width = (max(1, min(wanted.side, round(scale * length))) for length in cropped.shape)
    width = min(width, wanted.width)
    thick = Image.fromarray(_thickened(cropped, height, wanted.thinnest))
    digit = np.asarray(thick.resize((width, height), Image.Resampling.HAMMING), np.float32).clip(0, 1)
    image = np.zeros((wanted.side, wanted.side), np.float32)
    offsets = wanted.middle - 0.5 - np.array(ndimage.center_of_mass(digit))
    top, left = (int(np.ceil(offset)) for offset in offsets)
    top, left = max(0, min(top, wanted.side - height)), max(0, min(left, wanted.side - width))
    image[top : top + height, left : left + width] = digit
    return image


def _thickened(ink: Floats, height: int, thinnest: float) -> Floats:
    """Thicken strokes that would be thinner than `thinnest` in a digit of `height` pixels.

    A pen's line in a photo is a hundredth of the digit: in 20 pixels it would be a shade of grey.
    """
    from scipy import ndimage

    inside = np.pad(ink > 0.5, 1)
    scale = height / ink.shape[0]
    # A line's pixels are a quarter of its thickness from its edge, on average.
    thickness = 4 * float(ndimage.distance_transform_edt(inside)[inside].mean()) - 1 if inside.any() else 0
    missing = thinnest - scale * thickness
    if missing <= 0:
        return ink
    finer = max(1, -(-4 * height // ink.shape[0]))  # else one pixel of growth is too much
    fine = Image.fromarray(ink).resize((finer * ink.shape[1], finer * ink.shape[0]), Image.Resampling.BICUBIC)
    radius = round(missing * finer / scale / 2)
    grown = ndimage.maximum_filter(np.pad(np.asarray(fine, np.float32).clip(0, 1), radius), 2 * radius + 1)
    return np.asarray(grown, np.float32)
