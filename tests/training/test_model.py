"""The network, its initial weights, its dropout masks and its loss, against Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import runs
import tensorflow as tf

from mnistexp.training import model as models

# Threefry exists in compiled programs alone, which is where the trainer draws its masks.
drop = tf.function(models.drop, jit_compile=True, autograph=False)

IMAGES = np.random.default_rng(0).random((64, 20), np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 64).astype(np.int32)


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({"hidden_units": []}, ["Dense"]),
        ({"dropout": 0.5}, ["Dense", "Activation", "Dropout"] * 2 + ["Dense"]),
        ({"batch_normalization": True}, ["Dense", "BatchNormalization", "Activation"] * 2 + ["Dense"]),
    ],
    ids=["softmax-regression", "dropout", "batch-normalization"],
)
def test_the_mlp_has_plain_keras_layers_and_ends_in_logits(settings: dict[str, Any], layers: list[str]) -> None:
    """The last Dense layer has no activation; one before a BatchNormalization has no bias."""
    network = models.build_model(runs.run_config(model={"hidden_units": [8, 4], **settings}).model, 20, 10)

    assert [type(layer).__name__ for layer in network.layers] == layers
    assert all(type(layer).__module__.startswith("keras.") for layer in network.layers)
    assert network.layers[-1].activation is keras.activations.linear
    assert network.output_shape == (None, 10)
    biases = [layer.use_bias for layer in network.layers[:-1] if isinstance(layer, keras.layers.Dense)]
    assert all(bias == ("batch_normalization" not in settings) for bias in biases)


def test_activations_are_keras_own() -> None:
    """A hidden layer applies the Keras activation of the config's name."""
    network = models.build_model(runs.run_config(model={"activation": "gelu"}).model, 20, 10)

    first, second = network.layers[0], network.layers[-1]
    expected = second(keras.activations.gelu(first(IMAGES)))
    np.testing.assert_allclose(network(IMAGES), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("initializer", ["glorot_uniform", "random_normal"])
def test_fresh_weights_are_fixed_by_the_seed(initializer: str) -> None:
    """The same seed gives the same weights whatever the network held before; another seed gives others."""
    config = runs.run_config(model={"initializer": initializer, "bias_initializer_stddev": 0.1}).model
    network, other = (models.build_model(config, 20, 10) for _ in range(2))

    models.initialise(network, config, 7)
    first = network.get_weights()
    models.initialise(network, config, 2**32 - 1)
    second = network.get_weights()
    keras.utils.set_random_seed(3)
    models.initialise(other, config, 7)

    assert all(np.array_equal(a, b) for a, b in zip(first, other.get_weights(), strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_initial_spread_is_the_configs() -> None:
    """Kernels follow their initializer's standard deviation, biases theirs, and zero means zeros."""
    drawn = {"initializer": "random_normal", "initializer_stddev": 0.3, "bias_initializer_stddev": 0.2}
    config = runs.run_config(model={"hidden_units": [500], **drawn}).model
    network = models.build_model(config, 400, 10)
    models.initialise(network, config, 0)

    kernel, bias = network.layers[0].get_weights()

    assert kernel.std() == pytest.approx(0.3, rel=0.02)
    assert bias.std() == pytest.approx(0.2, rel=0.15)
    plain = runs.run_config().model
    network = models.build_model(plain, 20, 10)
    models.initialise(network, plain, 0)
    assert not network.layers[0].bias.numpy().any()


def test_streams_of_one_seed_are_independent() -> None:
    """Weights, minibatches and dropout, and their indices, never share a seed."""
    streams = ("weights", "minibatches", "dropout", "augmentation")

    seeds = {models.stateless_seeds(1, stream, index) for stream in streams for index in range(1000)}

    assert len(seeds) == 4000


def test_dropout_drops_its_share_and_scales_the_rest() -> None:
    """A share `rate` becomes zero, the rest is divided by 1 - rate."""
    dropped = drop(tf.ones([500, 400]), tf.constant(0.1), tf.constant([1, 2])).numpy()

    assert (dropped == 0).mean() == pytest.approx(0.1, abs=0.005)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / 0.9, rtol=1e-6)


def test_dropout_masks_differ_by_seed_and_layer() -> None:
    """Two layers of one step, and two steps, get masks that agree only by chance."""
    config = runs.run_config(model={"hidden_units": [400, 400], "dropout": 0.5, "activation": "linear"}).model
    network = models.build_model(config, 400, 10)
    for layer in network.layers:
        if isinstance(layer, keras.layers.Dense) and layer.units == 400:
            layer.set_weights([np.eye(400, dtype=np.float32), np.zeros(400, np.float32)])
    signal = tf.ones([100, 400])
    half = tf.constant(0.5)

    one = drop(signal, half, tf.constant([1, 2])).numpy() > 0
    two = drop(signal, half, tf.constant([2, 2])).numpy() > 0
    both = _training(keras.Sequential(network.layers[:-1]), signal, half, tf.constant([1, 0]))

    assert (one == two).mean() == pytest.approx(0.5, abs=0.02)
    assert (both > 0).mean() == pytest.approx(0.25, abs=0.02)  # one mask twice would leave a half


def _training(network: keras.Sequential, signal: tf.Tensor, rate: tf.Tensor, seed: tf.Tensor) -> np.ndarray:
    training_pass = models.TrainingPass(network)

    def forward() -> tf.Tensor:
        return training_pass(tf.constant(signal), seed, lambda _: rate)

    return tf.function(forward, jit_compile=True, autograph=False)().numpy()


def test_each_dropout_layer_drops_its_own_share() -> None:
    """Inputs and hidden outputs have separate rates; None means the rate of the layer."""
    config = runs.run_config(model={"hidden_units": [400], "input_dropout": 0.5, "dropout": 0.1}).model
    network = keras.Sequential(models.build_model(config, 400, 10).layers[:1])
    masks = models.TrainingPass(models.build_model(config, 400, 10))._masks

    kept = _training(network, tf.ones([100, 400]), None, tf.constant([1, 0])) > 0

    assert [(mask.name, mask.rate) for mask in masks] == [(models.INPUT_DROPOUT, 0.5), (masks[1].name, 0.1)]
    assert kept.mean() == pytest.approx(0.5, abs=0.02)


def test_dropout_inside_a_users_network_is_masked_too() -> None:
    """In a functional network, and in one within it, no Keras Dropout is left that would draw by itself."""
    inner = keras.Sequential([keras.Input((20,)), keras.layers.Dense(20), keras.layers.Dropout(0.5)])
    inputs = keras.Input((20,))
    network = keras.Model(inputs, keras.layers.Dropout(0.3)(keras.layers.add([inputs, inner(inputs)])))

    first, again, other = (_training(network, IMAGES, None, tf.constant([seed, 0])) for seed in (1, 1, 2))

    assert len(models.TrainingPass(network)._masks) == 2
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothed_loss_is_keras_own(smoothing: float) -> None:
    """The loss from logits equals keras.losses.CategoricalCrossentropy with label smoothing."""
    logits = np.random.default_rng(2).normal(0, 3, (64, 10)).astype(np.float32)

    losses = models.training_losses(tf.constant(LABELS), tf.constant(logits), smoothing)

    reference = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
    np.testing.assert_allclose(losses, reference(keras.ops.one_hot(LABELS, 10), logits), rtol=1e-5)
