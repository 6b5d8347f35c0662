"""Data augmentation in the compiled step: random shifts, rotations, scales, shears and elastic distortions.

An output pixel is interpolated at a position between source pixels. A gather there takes XLA 60 s per 55,000 images on
a CPU. So an image is resampled in two passes, first along its rows and then along its columns (Catmull & Smith 1980),
each a sum over source pixels weighted by hat functions (linear interpolation). Written out column by column that takes
0.45 s on one core, and 1.5 s as one sum over a fourth axis.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from mnistexp.config.schema import AugmentationConfig

Shape = tuple[int, ...]
Coordinates = tuple[tf.Tensor, tf.Tensor]


def runtime_hyperparameters(config: AugmentationConfig) -> list[float]:
    """Return the numbers that a compiled program takes as arguments, in the order in which `augment` reads them."""
    angles = [math.radians(config.rotate), math.tan(math.radians(config.shear))]
    return [config.shift, *angles, config.scale, config.elastic_alpha, config.elastic_sigma]


def augment(
    images: tf.Tensor, image_shape: Shape, kind: tuple[bool, bool], numbers: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    """Warp each image of a minibatch at random; pixels from outside an image are 0. Returns: as `images`.

    Args:
        images: float32 [batch, features], row by row.
        image_shape: height, width and optionally channels, which are warped alike.
        kind: `AugmentationConfig.warps`; for (False, False) the images are returned unchanged.
        numbers: float32 [6], see `runtime_hyperparameters`.
        seed: int32 [2], of this run and step.
    """
    warps, bends = kind
    if not warps:
        return images
    batch, (height, width, channels) = images.shape[0], (*image_shape, 1)[:3]
    shift, rotate, shear, scale, alpha, sigma = tf.unstack(numbers)
    columns, rows = _affine(batch, height, width, (shift, rotate, shear, scale), seed)
    if bends:
        right, down = elastic_field(batch, height, width, sigma, seed + tf.constant([0, 1]))
        columns, rows = columns + alpha * right, rows + alpha * down
    planes = tf.transpose(tf.reshape(images, [batch, height, width, channels]), [0, 3, 1, 2])
    moved = resample(planes, columns[:, None], rows[:, None])
    return tf.reshape(tf.transpose(moved, [0, 2, 3, 1]), images.shape)


def resample(images: tf.Tensor, columns: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Resample images in two passes of linear interpolation; pixels from outside are 0. Returns: as `images`.

    Args:
        images: float32 [batch, channels, height, width].
        columns: float32 [batch, 1, height, width], the x in *source row* i of output column c, for the first pass.
        rows: float32 [batch, 1, height, width], the y of output pixel (r, c) in the first pass's result.
    """
    height, width = images.shape[2], images.shape[3]
    across = tf.add_n([images[..., j : j + 1] * _hat(j - columns) for j in range(width)])
    return tf.add_n([across[..., i : i + 1, :] * _hat(i - rows) for i in range(height)])


def _hat(distance: tf.Tensor) -> tf.Tensor:
    """Return the weight of a pixel at that distance in linear interpolation."""
    return tf.nn.relu(1 - tf.abs(distance))


def _affine(
    batch: int, height: int, width: int, most: tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], seed: tf.Tensor
) -> Coordinates:
    """Return the positions that the two passes of a random affine map read, float32 [batch, height, width] each.

    Args:
        most: the largest shift (pixels), rotation (radians), shear (a tangent) and relative change of scale.
    """
    shift, rotate, shear, scale = most
    drawn = tf.random.stateless_uniform([6, batch, 1, 1], seed, -1.0, 1.0, alg="threefry")
    angle, lean = rotate * drawn[2], shear * drawn[3]
    wider, taller = 1 + scale * drawn[4], 1 + scale * drawn[5]
    # The inverse of rotate(shear(scale(image))): x' = a x + b y, y' = d x + e y, relative to the image's centre.
    cosine, sine = tf.cos(angle), tf.sin(angle)
    a, b = (cosine + lean * sine) / wider, (sine - lean * cosine) / wider
    d, e = -sine / taller, cosine / taller
    middle_x, middle_y = (width - 1) / 2, (height - 1) / 2
    x = tf.range(width, dtype=tf.float32) - middle_x - shift * drawn[0]  # [batch, 1, width]
    y = tf.range(height, dtype=tf.float32)[:, None] - middle_y - shift * drawn[1]  # [batch, height, 1]
    source_y = tf.range(height, dtype=tf.float32)[:, None] - middle_y
    # The first pass fills column c of *source* row i: solve y' = i for y, and put that into x'.
    columns = (a - b * d / e) * x + b / e * source_y + middle_x
    return columns, d * x + e * y + middle_y


def elastic_field(batch: int, height: int, width: int, sigma: tf.Tensor, seed: tf.Tensor) -> Coordinates:
    """Return smooth random displacements to the right and down, float32 [batch, height, width] each.

    Uniform noise in [-1, 1] is smoothed by a Gaussian of standard deviation sigma (Simard, Steinkraus & Platt 2003).
    For sigma >= 1 the standard deviation away from the edges is 1 / (2 sigma sqrt(3 pi)), 0.041 for sigma = 4.
    """
    noise = tf.random.stateless_uniform([2 * batch * height, width], seed, -1.0, 1.0, alg="threefry")
    across = tf.reshape(noise @ _gaussian(width, sigma), [2 * batch, height, width])
    upright = tf.reshape(tf.transpose(across, [0, 2, 1]), [-1, height]) @ _gaussian(height, sigma)
    smooth = tf.transpose(tf.reshape(upright, [2, batch, width, height]), [0, 1, 3, 2])
    return smooth[0], smooth[1]


def _gaussian(size: int, sigma: tf.Tensor) -> tf.Tensor:
    """Return the matrix that smoothes a line of pixels, float32 [size, size]; the Gaussian ends at the line's ends."""
    place = np.arange(size, dtype=np.float32)
    distance = tf.constant(place[:, None] - place)
    return tf.exp(-0.5 * tf.square(distance / sigma)) / (sigma * math.sqrt(2 * math.pi))
