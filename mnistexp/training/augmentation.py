"""Random warps of training images, part of the compiled step: shift, rotate, scale, shear, and elastic distortion.

A warp reads each output pixel from a place between the source's pixels. Gathering from there takes XLA 60 s per
55,000 images on a CPU. Here an image is resampled in two passes, first along its rows and then along its columns
(Catmull & Smith 1980), each a sum over source pixels weighted by hat functions (linear interpolation). Written out
column by column that takes 0.45 s on one core, and 1.5 s as one sum over a fourth axis.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf

from mnistexp.config.schema import AugmentationConfig

Shape = tuple[int, ...]
Coordinates = tuple[tf.Tensor, tf.Tensor]


def knobs(config: AugmentationConfig) -> list[float]:
    """The numbers that a compiled program takes as arguments, in the order of `augmented`."""
    angles = [math.radians(config.rotate), math.tan(math.radians(config.shear))]
    return [config.shift, *angles, config.scale, config.elastic_alpha, config.elastic_sigma]


def augmented(
    images: tf.Tensor, image_shape: Shape, kind: tuple[bool, bool], numbers: tf.Tensor, seed: tf.Tensor
) -> tf.Tensor:
    """Warp each image of a minibatch at random; what comes from outside an image is 0.

    Args:
        images: float32 [batch, features], row by row.
        image_shape: height, width and, if there are any, channels (warped alike).
        kind: what `AugmentationConfig.warps` says; False, False gives the images back.
        numbers: float32 [6], what `knobs` says.
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
    """Resample images in two passes of linear interpolation; outside of them all is 0.

    Args:
        images: float32 [batch, channels, height, width].
        columns: float32 [batch, 1, height, width], where in *source row* i output column c is read from.
        rows: float32 [batch, 1, height, width], where in what that gave output pixel (r, c) is read from.
    """
    height, width = images.shape[2], images.shape[3]
    across = tf.add_n([images[..., j : j + 1] * _hat(j - columns) for j in range(width)])
    return tf.add_n([across[..., i : i + 1, :] * _hat(i - rows) for i in range(height)])


def _hat(distance: tf.Tensor) -> tf.Tensor:
    """The weight of a pixel at that distance in linear interpolation."""
    return tf.nn.relu(1 - tf.abs(distance))


def _affine(
    batch: int, height: int, width: int, most: tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor], seed: tf.Tensor
) -> Coordinates:
    """Where the two passes of a random affine map read: columns and rows, float32 [batch, height, width].

    Args:
        most: the largest shift (pixels), rotation (radians), shear (as a tangent) and change of scale (a share).
    """
    shift, rotate, shear, scale = most
    drawn = tf.random.stateless_uniform([6, batch, 1, 1], seed, -1.0, 1.0, alg="threefry")
    angle, lean = rotate * drawn[2], shear * drawn[3]
    wider, taller = 1 + scale * drawn[4], 1 + scale * drawn[5]
    # The inverse of rotate(shear(scale(image))): x' = a x + b y, y' = d x + e y, both from the image's centre.
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
    """Smooth random displacements to the right and down, float32 [batch, height, width].

    Uniform noise in [-1, 1], smoothed by a Gaussian of standard deviation sigma (Simard, Steinkraus & Platt 2003):
    away from the edges its standard deviation is 1 / (2 sigma sqrt(3 pi)) if sigma is 1 or more, 0.041 for sigma = 4.
    """
    noise = tf.random.stateless_uniform([2 * batch * height, width], seed, -1.0, 1.0, alg="threefry")
    across = tf.reshape(noise @ _gaussian(width, sigma), [2 * batch, height, width])
    upright = tf.reshape(tf.transpose(across, [0, 2, 1]), [-1, height]) @ _gaussian(height, sigma)
    smooth = tf.transpose(tf.reshape(upright, [2, batch, width, height]), [0, 1, 3, 2])
    return smooth[0], smooth[1]


def _gaussian(size: int, sigma: tf.Tensor) -> tf.Tensor:
    """The matrix that smoothes a line of pixels, float32 [size, size]; the Gaussian is cut off at the line's ends."""
    place = np.arange(size, dtype=np.float32)
    distance = tf.constant(place[:, None] - place)
    return tf.exp(-0.5 * tf.square(distance / sigma)) / (sigma * math.sqrt(2 * math.pi))
