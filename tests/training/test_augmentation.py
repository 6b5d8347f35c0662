"""Augmentation in compiled programs, against SciPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from scipy import ndimage

from mnistexp.config.schema import AugmentationConfig
from mnistexp.training import augmentation

Floats = npt.NDArray[np.float32]
NOTHING = {"shift": 0.0, "rotate": 0.0, "scale": 0.0, "shear": 0.0, "elastic_alpha": 0.0, "elastic_sigma": 4.0}


def compiled(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function gives as a compiled program: threefry exists there alone."""
    return tf.function(function, jit_compile=True, autograph=False)(*arguments)


def warp(images: Floats, seed: int = 0, **most: float) -> Floats:
    """Images [N, ...] warped as a training step warps them."""
    config = AugmentationConfig(**{**NOTHING, **most})
    kind, numbers = config.warps, tf.constant(augmentation.runtime_hyperparameters(config), tf.float32)

    def one_step(flat: tf.Tensor) -> tf.Tensor:
        return augmentation.augment(flat, images.shape[1:], kind, numbers, tf.constant([seed, 1]))

    flat = compiled(one_step, tf.constant(images.reshape(len(images), -1)))
    return flat.numpy().reshape(images.shape)  # type: ignore[no-any-return]


def blob(across: float = 2.0) -> Floats:
    """A smooth, lopsided patch, right of and below the middle."""
    y, x = np.mgrid[:28, :28].astype(np.float32)
    return np.exp(-(((x - 28 * 0.55) / across) ** 2 + ((y - 28 * 0.6) / (1.5 * across)) ** 2))


def test_without_a_warp_the_images_are_unchanged() -> None:
    """The images are bit-identical, and no code for a warp is compiled."""
    images = blob()[None]

    assert np.array_equal(warp(images), images)
    assert AugmentationConfig(**NOTHING).warps == (False, False)


@pytest.mark.parametrize("sizes", [(20, 31), (28, 28, 3)])
def test_resampling_at_rest_changes_nothing(sizes: tuple[int, ...]) -> None:
    """Read at its own pixels, an image of any height, width and number of channels comes out as it went in."""
    images = np.random.default_rng(0).random((3, *(*sizes, 1)[2:3], *sizes[:2]), np.float32)
    rows, columns = np.mgrid[: sizes[0], : sizes[1]].astype(np.float32)

    same = compiled(augmentation.resample, tf.constant(images), columns[None, None], rows[None, None])

    np.testing.assert_allclose(same, images, atol=1e-6)


def test_an_affine_warp_is_scipys() -> None:
    """A rotated, scaled and sheared image is what SciPy's affine_transform gives for the same map, by two passes."""
    image = blob(across=3.0)
    a, b, d, e = 0.9, 0.25, -0.2, 1.1  # x' = a x + b y, y' = d x + e y, from the middle
    y, x = np.mgrid[:28, :28].astype(np.float32) - 13.5
    columns = (a - b * d / e) * x + b / e * y + 13.5  # y stands for the source row here

    ours = compiled(
        augmentation.resample,
        tf.constant(image[None, None]),
        tf.constant(columns[None, None]),
        tf.constant((d * x + e * y + 13.5)[None, None]),
    )

    matrix = np.array([[e, d], [b, a]])
    offset = 13.5 - matrix @ [13.5, 13.5]
    scipys = ndimage.affine_transform(image, matrix, offset, order=1)
    np.testing.assert_allclose(ours[0, 0], scipys, atol=0.015)


def test_a_drawn_warp_is_the_inverse_of_scaling_shearing_turning_and_shifting() -> None:
    """Each output pixel is read from the position that the inverse of the four steps gives."""
    shift, rotate, shear, scale = most = [3.0, 0.4, 0.3, 0.2]
    seed = tf.constant([5, 1])

    def both() -> Any:
        drawn = tf.random.stateless_uniform([6, 20, 1, 1], seed, -1.0, 1.0, alg="threefry")
        return augmentation._affine(20, 28, 28, tuple(map(tf.constant, most)), seed), drawn

    (columns, rows), drawn = tf.nest.map_structure(np.array, compiled(both))

    for image, (right, down, turn, lean, wider, taller) in enumerate(drawn.reshape(6, 20).T):
        cosine, sine = math.cos(rotate * turn), math.sin(rotate * turn)
        turned = np.array([[cosine, -sine], [sine, cosine]])
        forward = turned @ [[1, shear * lean], [0, 1]] @ np.diag([1 + scale * wider, 1 + scale * taller])
        for x, y in [(3, 4), (20, 7), (13, 13), (25, 26)]:
            source = np.linalg.inv(forward) @ (np.array([x, y]) - 13.5 - shift * np.array([right, down])) + 13.5
            assert rows[image, y, x] == pytest.approx(source[1], abs=1e-3)
            # The first pass fills whole source rows; between two of them its columns lie on a line.
            slope = columns[image, 1, x] - columns[image, 0, x]
            assert columns[image, 0, x] + slope * source[1] == pytest.approx(source[0], abs=1e-3)


def test_angles_are_degrees_in_the_config() -> None:
    """A program gets radians, and the tangent of the shear."""
    config = AugmentationConfig(**{**NOTHING, "rotate": 45.0, "shear": 30.0})

    assert augmentation.runtime_hyperparameters(config)[1:3] == pytest.approx([math.pi / 4, math.tan(math.pi / 6)])


def test_elastic_fields_are_simards() -> None:
    """Uniform noise smoothed by a Gaussian: SciPy's filter of as much noise has the same spread and smoothness."""
    sigma = 4.0
    fields = compiled(lambda: augmentation.elastic_field(500, 28, 28, tf.constant(sigma), tf.constant([0, 0])))
    right, down = (field.numpy()[:, 10:18, 10:18] for field in fields)
    noise = np.random.default_rng(0).uniform(-1, 1, (500, 60, 60))
    reference = ndimage.gaussian_filter(noise, (0, sigma, sigma), mode="constant", truncate=6)[:, 26:34, 26:34]

    expected = 1 / (2 * sigma * math.sqrt(3 * math.pi))
    assert [right.std(), down.std(), reference.std()] == pytest.approx([expected] * 3, rel=0.1)
    steps = [np.diff(field, axis=2).std() / field.std() for field in (right, down, reference)]
    assert steps[:2] == pytest.approx([steps[2]] * 2, rel=0.1)
    assert abs(np.corrcoef(right.ravel(), down.ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("axes", [(0, 1, 2), (0, 2, 1)], ids=["sideways", "upright"])
def test_an_elastic_warp_moves_pixels_as_its_field_says(axes: tuple[int, int, int]) -> None:
    """A brightness ramp shows the position that each pixel was read from: its own plus alpha times the field."""
    ramp = np.tile(np.arange(28, dtype=np.float32), (200, 1))[:, None].repeat(28, axis=1)
    ramp = np.ascontiguousarray(ramp.transpose(axes))

    moved = warp(ramp, elastic_alpha=20.0)

    displaced = (moved - ramp)[:, 8:20, 8:20]
    assert displaced.std() == pytest.approx(20 / (8 * math.sqrt(3 * math.pi)), rel=0.15)
    assert abs(displaced.mean()) < 0.1


def test_draws_differ_by_image_and_by_step_alone() -> None:
    """Two images of a minibatch, and two steps, are warped differently; the same step is repeated exactly."""
    images = np.repeat(blob()[None], 2, axis=0)
    most = {"shift": 2.0, "rotate": 10.0, "elastic_alpha": 20.0}

    first, again, later = (warp(images, seed, **most) for seed in (1, 1, 2))

    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1])
    assert not np.array_equal(first, later)


def test_channels_move_together() -> None:
    """A colour image is warped as each of its channels would be."""
    grey = blob()[None]
    colour = np.stack([grey, 0.5 * grey], axis=-1)

    moved = warp(colour, rotate=20.0, elastic_alpha=20.0)

    np.testing.assert_allclose(moved[..., 1], 0.5 * moved[..., 0], atol=1e-6)
    np.testing.assert_allclose(moved[..., 0], warp(grey, rotate=20.0, elastic_alpha=20.0), atol=1e-6)
