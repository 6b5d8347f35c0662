"""The network and its loss: configs to Keras models, initial weights, dropout masks.

All random numbers are drawn statelessly from the run's seed, so earlier runs in the same process do not change them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mnistexp.config import user_code
from mnistexp.config.schema import Mlp, ModelConfig
from mnistexp.errors import ConfigError

INPUT_DROPOUT = "input_dropout"  # the name of that layer

NORMALIZATION_MOMENTUM = 0.9
"""Of the moving statistics that validation uses, as in PyTorch. Keras's 0.99 needs some 500 steps to approach them,
more than small data sets have in ten epochs."""

MOST_LAYERS = 100_000
"""Of a network. A layer's second mask in a step gets a seed beyond all layers' first ones."""

# ------------------------------------------------------------------------------------------ network


def build_model(config: ModelConfig, features: int, classes: int) -> keras.Model:
    """Build a network of standard Keras layers, from [N, features] to logits [N, classes].

    Its weights are Keras's own draws; `initialise` replaces them by the run's.

    Raises:
        ConfigError: the user's function returned something else.
    """
    if isinstance(config, Mlp):
        return _mlp(config, features, classes)
    model = user_code.call(config.function, features, classes, settings=config.settings)
    _check(model, config.function, features, classes)
    return model


def _mlp(config: Mlp, features: int, classes: int) -> keras.Sequential:
    """Build a multilayer perceptron: Dense, BatchNormalization, activation, Dropout."""
    layers: list[Any] = [keras.Input((features,))]
    if config.input_dropout > 0:
        layers.append(keras.layers.Dropout(config.input_dropout, name=INPUT_DROPOUT))
    for units in config.hidden_units:
        layers.append(keras.layers.Dense(units, use_bias=not config.batch_normalization))
        if config.batch_normalization:
            layers.append(keras.layers.BatchNormalization(momentum=NORMALIZATION_MOMENTUM))
        layers.append(keras.layers.Activation(config.activation))
        if config.dropout > 0:
            layers.append(keras.layers.Dropout(config.dropout))
    return keras.Sequential([*layers, keras.layers.Dense(classes)])


def _check(model: Any, function: str, features: int, classes: int) -> None:
    """Raise ConfigError unless a user's function returned a plain Keras network from features to logits."""
    wanted = f"a keras.Sequential or functional keras.Model from [N, {features}] to logits [N, {classes}]"
    if not _is_plain(model):
        raise ConfigError(
            f"{function}: returned a {type(model).__name__}; return {wanted}, without subclasses of keras.Model"
        )
    shapes = (model.input_shape, model.output_shape) if model.built else "not built yet"
    if shapes != ((None, features), (None, classes)):
        raise ConfigError(f"{function}: returned a network of the shapes {shapes}; return {wanted}")
    last = model.layers[-1]
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    if isinstance(last, keras.layers.Softmax) or activation in ("softmax", "sigmoid"):
        raise ConfigError(f"{function}: ends in a {activation or 'softmax'}, which the loss applies itself; remove it")


def _is_plain(model: Any) -> bool:
    """Return whether a network computes what its layers compute: a subclass may do something else in its `call`."""
    if type(model) is not keras.Sequential and type(model).__name__ != "Functional":
        return False
    return all(_is_plain(layer) for layer in model.layers if isinstance(layer, keras.Model))


def initialise(model: keras.Model, config: ModelConfig, seed: int) -> None:
    """Set the initial weights of a seed in a built network, independent of what it held before.

    So a compiled network is used again for another run. Building another one would cost a compilation.
    """
    if isinstance(config, Mlp):
        _initialise_mlp(model, config, seed)
        return
    # A user's layers may use any generator, so the function is called once more with all of them seeded.
    keras.utils.set_random_seed(stateless_seeds(seed, "weights", 0)[0])
    fresh = build_model(config, model.input_shape[1], model.output_shape[1])
    if [each.shape for each in fresh.variables] != [each.shape for each in model.variables]:
        raise ConfigError(f"{config.function}: builds another network each time; it must depend on its settings alone")
    for variable, value in zip(model.variables, fresh.variables, strict=True):
        variable.assign(value)


def _initialise_mlp(model: keras.Model, config: Mlp, seed: int) -> None:
    stddev = {"stddev": config.initializer_stddev} if config.initializer == "random_normal" else {}
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    for depth, layer in enumerate(dense):
        # An initializer with an integer seed is stateless in Keras 3.
        kernel_seed, bias_seed = stateless_seeds(seed, "weights", depth)
        arguments = {"class_name": config.initializer, "config": {"seed": kernel_seed, **stddev}}
        layer.kernel.assign(keras.initializers.get(arguments)(layer.kernel.shape))
        if layer.use_bias:
            draw = keras.initializers.RandomNormal(stddev=config.bias_initializer_stddev, seed=bias_seed)
            layer.bias.assign(draw(layer.bias.shape))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable in layer.weights:
                variable.assign(tf.fill(variable.shape, float(variable.name in ("gamma", "moving_variance"))))


_STREAMS = {"weights": 0, "minibatches": 1, "dropout": 2, "augmentation": 3}


def stateless_seeds(seed: int, stream: str, index: int) -> tuple[int, int]:
    """Return two int32 >= 0 that depend on (run seed, stream, index) alone: 62 bits, so streams do not collide."""
    words = np.random.SeedSequence((seed, _STREAMS[stream], index)).generate_state(2)
    return int(words[0] >> 1), int(words[1] >> 1)


# ------------------------------------------------------------------------------------------ dropout


class TrainingPass:
    """The training pass of a network, with our own masks instead of Keras's Dropout layers, and the same weights.

    On a CPU Keras's Dropout costs ten times the whole step inside a compiled loop, because of XLA's default random
    algorithm (144 against 14.7 ms at 784-1000-1000-10, batch 256). Other random layers of a user's network
    (SpatialDropout, GaussianNoise, a Dropout inside a layer of the user's class) keep Keras's generators, which are
    slow and fixed by the seed as well.
    """

    def __init__(self, model: keras.Model) -> None:
        indices = itertools.count()
        self._masks: list[_Mask] = []

        def masked(layer: Any) -> Any:
            index = next(indices)
            if type(layer) is not keras.layers.Dropout or layer.noise_shape is not None:
                return layer
            self._masks.append(_Mask(layer, index))
            return self._masks[-1]

        self._model = keras.models.clone_model(model, clone_function=masked, recursive=True)

    def __call__(self, images: tf.Tensor, seed: tf.Tensor, rates: Callable[[str], tf.Tensor | None]) -> tf.Tensor:
        """Return logits, float32 [batch, classes], in the program that is traced.

        Args:
            images: float32 [batch, features].
            seed: int32 [2], of this run and step; each layer adds its index.
            rates: maps the name of a Dropout layer to its rate; None means the layer's own.
        """
        for mask in self._masks:
            mask.start_step(seed, rates(mask.name))
        return self._model(images, training=True)

    def penalties(self) -> list[tf.Tensor]:
        """Return what the network's regularisers add to the loss of the pass that was just traced: float32 scalars."""
        return list(self._model.losses)


class _Mask(keras.layers.Dropout):  # type: ignore[misc]  # Keras has no types
    """Replaces a Dropout layer."""

    def __init__(self, layer: Any, index: int) -> None:
        super().__init__(layer.rate, name=layer.name)
        self._index = index
        self._calls = 0  # in this step: each one draws another mask
        self._draws: tuple[tf.Tensor, tf.Tensor | None] | None = None

    def start_step(self, seed: tf.Tensor, rate: tf.Tensor | None) -> None:
        """Start a step. `rate` None means the layer's own."""
        self._draws, self._calls = (seed, rate), 0

    def call(self, signal: tf.Tensor, training: bool = False) -> tf.Tensor:
        assert self._draws is not None
        (seed, rate), repeated = self._draws, self._calls * MOST_LAYERS
        self._calls += 1
        return drop(signal, self.rate if rate is None else rate, seed + tf.constant([0, self._index + repeated]))


def drop(signal: tf.Tensor, rate: tf.Tensor | float, seed: tf.Tensor) -> tf.Tensor:
    """Set a share `rate` of the elements to zero and scale the others by 1 / (1 - rate).

    Threefry takes 22 ms an epoch for 550 masks of 100 x 300 on one core, philox 190 ms. TensorFlow has threefry in
    compiled programs alone.
    """
    kept = tf.random.stateless_uniform(signal.shape, seed, alg="threefry") >= rate
    return tf.where(kept, signal / (1 - rate), tf.zeros_like(signal))


# ------------------------------------------------------------------------------------------ loss


def training_losses(labels: tf.Tensor, logits: tf.Tensor, smoothing: tf.Tensor | float) -> tf.Tensor:
    """Return each example's cross-entropy in nats with label smoothing (Szegedy et al. 2016, section 7), float32 [N].

    Args:
        labels: int32 [N].
        logits: float32 [N, classes].
        smoothing: share of the target spread evenly over all classes, in [0, 1); 0 is plain cross-entropy.
    """
    classes = logits.shape[-1]
    targets = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)
