"""Configs to Keras networks, optimizers and losses: the only file that names layers.

What leaves this file is plain Keras (layers, weights, optimizers); what is ours is that everything
random is drawn statelessly from the run's seed, so that nothing which ran before in the process matters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mnistexp.config import user_code
from mnistexp.config.schema import Mlp, ModelConfig, OptimizerConfig
from mnistexp.errors import ConfigError

Floats = npt.NDArray[np.floating[Any]]

NOT_DECAYED = ("bias", "gamma", "beta", "scale")
"""What Keras's layers call their offsets and a normalisation's numbers: at 0 they would switch units off."""

_SCHEDULE_FIELDS = {"name", "learning_rate", "schedule", "warmup_epochs"}


# ------------------------------------------------------------------------------------------ network


def build_model(config: ModelConfig, features: int, classes: int) -> keras.Model:
    """A network of standard Keras layers: [N, features] to logits [N, classes].

    Its weights are Keras's own draws; `initialise` replaces them by the run's.

    Raises: ConfigError if the user's own function gives no such network.
    """
    if isinstance(config, Mlp):
        return _mlp(config, features, classes)
    made = user_code.call(config.function, features, classes, settings=config.settings)
    _check(made, config.function, features, classes)
    return made


def _mlp(config: Mlp, features: int, classes: int) -> keras.Sequential:
    """A multilayer perceptron: Dense, BatchNormalization, activation, Dropout."""
    layers: list[Any] = [keras.Input((features,))]
    if config.input_dropout > 0:
        layers.append(keras.layers.Dropout(config.input_dropout, name=INPUT_DROPOUT))
    for units in config.hidden_units:
        layers.append(_dense(config, units, use_bias=not config.batch_normalization))
        if config.batch_normalization:
            layers.append(keras.layers.BatchNormalization(momentum=NORMALIZATION_MOMENTUM))
        layers.append(keras.layers.Activation(config.activation))
        if config.dropout > 0:
            layers.append(keras.layers.Dropout(config.dropout))
    return keras.Sequential([*layers, _dense(config, classes)])


INPUT_DROPOUT = "input_dropout"

NORMALIZATION_MOMENTUM = 0.9
"""Of the moving statistics that validation uses. Keras's 0.99 needs some 500 steps before they are those of the
layer, which is more than small data sets have in ten epochs; PyTorch has 0.9 too."""


def _check(made: Any, function: str, features: int, classes: int) -> None:
    """Raises: ConfigError unless a user's function gave a network of plain parts, from features to logits."""
    wanted = f"a keras.Sequential or functional keras.Model from [N, {features}] to logits [N, {classes}]"
    if not _is_plain(made):
        raise ConfigError(
            f"{function}: gave a {type(made).__name__}; give back {wanted}, and none of a class of its own"
        )
    shapes = (made.input_shape, made.output_shape) if made.built else "nothing yet"
    if shapes != ((None, features), (None, classes)):
        raise ConfigError(f"{function}: gave a network whose shapes are {shapes}; give back {wanted}")
    last = _last_layer(made)
    activation = getattr(getattr(last, "activation", None), "__name__", "")
    if isinstance(last, keras.layers.Softmax) or activation in ("softmax", "sigmoid"):
        raise ConfigError(
            f"{function}: ends in a {activation or 'softmax'}, and the loss applies one itself; leave it out"
        )


def _last_layer(model: Any) -> Any:
    """What a network's outputs come from, inside nested networks and before a dropout; None if it has no layer."""
    layers = [layer for layer in model.layers if not isinstance(layer, keras.layers.Dropout)]
    if not layers:
        return None
    return _last_layer(layers[-1]) if isinstance(layers[-1], keras.Model) else layers[-1]


def _is_plain(model: Any) -> bool:
    """Whether a network does what its layers do: a subclass may do something else in its own `call`."""
    if type(model) is not keras.Sequential and type(model).__name__ != "Functional":
        return False
    return all(_is_plain(layer) for layer in model.layers if isinstance(layer, keras.Model))


def _dense(config: Mlp, units: int, *, use_bias: bool = True) -> Any:
    """A fully connected layer that carries the config's initializers, so that an export retrains alike."""
    kernel, bias = _initializer(config), _bias_initializer(config)
    return keras.layers.Dense(units, use_bias=use_bias, kernel_initializer=kernel, bias_initializer=bias)


def _initializer(config: Mlp, seed: int | None = None) -> Any:
    stddev = {"stddev": config.initializer_stddev} if config.initializer == "random_normal" else {}
    return keras.initializers.get({"class_name": config.initializer, "config": {"seed": seed, **stddev}})


def _bias_initializer(config: Mlp, seed: int | None = None) -> Any:
    if config.bias_initializer_stddev == 0:
        return keras.initializers.Zeros()
    return keras.initializers.RandomNormal(stddev=config.bias_initializer_stddev, seed=seed)


def initialise(model: keras.Model, config: ModelConfig, seed: int) -> None:
    """Give a built network the fresh weights of a seed: the same ones whatever it held or ran before.

    So a network is used again without building it anew, which would cost a compilation.
    """
    if isinstance(config, Mlp):
        _initialise_mlp(model, config, seed)
        return
    # A user's layers draw as they like: the function is called once more, with every generator seeded.
    keras.utils.set_random_seed(stateless_seeds(seed, "weights", 0)[0])
    fresh = build_model(config, model.input_shape[1], model.output_shape[1])
    if [each.shape for each in fresh.variables] != [each.shape for each in model.variables]:
        raise ConfigError(f"{config.function}: builds another network each time; let its settings alone decide")
    for variable, value in zip(model.variables, fresh.variables, strict=True):
        variable.assign(value)


def _initialise_mlp(model: keras.Model, config: Mlp, seed: int) -> None:
    """An initializer with an integer seed is stateless in Keras 3."""
    dense = [layer for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    for depth, layer in enumerate(dense):
        kernel_seed, bias_seed = stateless_seeds(seed, "weights", depth)
        layer.kernel.assign(_initializer(config, kernel_seed)(layer.kernel.shape))
        if layer.use_bias:
            layer.bias.assign(_bias_initializer(config, bias_seed)(layer.bias.shape))


def other_state(model: keras.Model, config: ModelConfig) -> list[tuple[Any, Any]]:
    """(variable, value) of a new network's layers that `initialise` doesn't draw: a normalisation's scale, say.

    Taken once, when the network is built, and given back to it before each run. Of a user's network all is drawn anew.
    """
    if not isinstance(config, Mlp):
        return []
    others = [layer for layer in model.layers if not isinstance(layer, keras.layers.Dense | keras.layers.Dropout)]
    return [(variable, variable.numpy()) for layer in others for variable in layer.variables]


_STREAMS = {"weights": 0, "minibatches": 1, "dropout": 2, "augmentation": 3}


def stateless_seeds(seed: int, stream: str, index: int) -> tuple[int, int]:
    """Two int32 >= 0 that belong to (run seed, stream, index) alone: 62 bits, so streams don't meet."""
    words = np.random.SeedSequence((seed, _STREAMS[stream], index)).generate_state(2)
    return int(words[0] >> 1), int(words[1] >> 1)


# ------------------------------------------------------------------------------------------ dropout


class TrainingPass:
    """A network's training pass, with our masks where it has Keras's Dropout layers. It shares the network's weights.

    Keras's own Dropout, drawn inside a compiled loop by XLA's default algorithm on a CPU, costs ten times
    the whole step (144 against 14.7 ms at 784-1000-1000-10, batch 256). What else draws in a user's network
    (SpatialDropout, GaussianNoise, a Dropout inside a layer of a class of the user's) keeps Keras's generators:
    fixed by the seed as well, but slow.
    """

    def __init__(self, model: keras.Model) -> None:
        places = itertools.count()
        self._masks: list[_Mask] = []

        def masked(layer: Any) -> Any:
            place = next(places)
            if type(layer) is not keras.layers.Dropout or layer.noise_shape is not None:
                return layer
            self._masks.append(_Mask(layer, place))
            return self._masks[-1]

        self._model = keras.models.clone_model(model, clone_function=masked, recursive=True)

    def __call__(self, images: tf.Tensor, seed: tf.Tensor, rates: Callable[[str], tf.Tensor | None]) -> tf.Tensor:
        """Logits, float32 [batch, classes], inside the program being traced.

        Args:
            images: float32 [batch, features].
            seed: int32 [2], of this run and step; each layer adds its place.
            rates: a Dropout layer's name → the share that it drops; None: the layer's own.
        """
        for mask in self._masks:
            mask.expect(seed, rates(mask.name))
        return self._model(images, training=True)

    def penalties(self) -> list[tf.Tensor]:
        """What the network's own regularisers add to the loss in the pass that was just traced: float32 scalars."""
        return list(self._model.losses)


class _Mask(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Stands where the network has a Dropout layer."""

    def __init__(self, layer: Any, place: int) -> None:
        super().__init__(name=layer.name)
        self.supports_masking = True
        self.rate = layer.rate
        self._place = place
        self._calls = 0  # in this step: each draws a mask of its own
        self._draws: tuple[tf.Tensor, tf.Tensor | None] | None = None

    def expect(self, seed: tf.Tensor, rate: tf.Tensor | None) -> None:
        """Begin a step. `rate`: None for the layer's own."""
        self._draws, self._calls = (seed, rate), 0

    def compute_output_spec(self, signal: Any, training: bool = False) -> Any:
        return keras.KerasTensor(signal.shape, signal.dtype)

    def call(self, signal: tf.Tensor, training: bool = False) -> tf.Tensor:
        assert self._draws is not None
        (seed, rate), again = self._draws, self._calls * MOST_LAYERS
        self._calls += 1
        return drop(signal, self.rate if rate is None else rate, seed + tf.constant([0, self._place + again]))


MOST_LAYERS = 100_000  # of a network, so that a layer's second mask is no other layer's first


def drop(signal: tf.Tensor, rate: tf.Tensor | float, seed: tf.Tensor) -> tf.Tensor:
    """Set a share `rate` of the elements to zero and scale the others by 1 / (1 - rate).

    Threefry by name: 22 ms an epoch for 550 masks of 100 x 300 on one core; philox takes 190. TensorFlow has
    threefry in compiled programs alone.
    """
    kept = tf.random.stateless_uniform(signal.shape, seed, alg="threefry") >= rate
    return tf.where(kept, signal / (1 - rate), tf.zeros_like(signal))


# --------------------------------------------------------------------------------------------- loss


def training_losses(labels: tf.Tensor, logits: tf.Tensor, smoothing: tf.Tensor | float) -> tf.Tensor:
    """Each example's cross-entropy in nats, against smoothed labels (Szegedy et al. 2016, section 7).

    Args:
        labels: int32 [N].
        logits: float32 [N, classes].
        smoothing: share of the target spread evenly over all classes, in [0, 1); 0 is plain cross-entropy.
    """
    classes = logits.shape[-1]
    targets = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits)


# ---------------------------------------------------------------------------------------- optimizer


def build_optimizer(config: OptimizerConfig, weights: Sequence[keras.Variable]) -> keras.optimizers.Optimizer:
    """Keras's optimizer of that name, built for these weights; each field but the schedule's is one of its arguments.

    So a new optimizer needs a YAML and a schema class, and nothing here. Weight decay is Keras's
    decoupled one (Loshchilov & Hutter 2019), per step and, as in PyTorch, times the whole learning rate, where
    the paper has the schedule's factor alone. Biases are exempt, and so are a normalisation's scale and offset.
    """
    arguments = config.model_dump(exclude=_SCHEDULE_FIELDS)
    rate = {"learning_rate": config.learning_rate}
    optimizer = keras.optimizers.get({"class_name": config.name, "config": arguments | rate})
    # By variable, since patterns are sought in names that hold the layers' names too: a kernel of `debias`.
    optimizer.exclude_from_weight_decay(var_list=[weight for weight in weights if weight.name in NOT_DECAYED])
    # None skips the pass over the weights; AdamW's constructor refuses it, so it is set here.
    optimizer.weight_decay = config.weight_decay or None
    optimizer.build(weights)
    return optimizer


def optimizer_knobs(config: OptimizerConfig) -> dict[str, float]:
    """The optimizer's numbers that a compiled program takes as arguments, by Keras's attribute name.

    Zeros are left out: Keras branches on them in Python (`if self.momentum != 0`), so they are structure.
    """
    fields = config.model_dump(exclude=_SCHEDULE_FIELDS)
    return {name: value for name, value in fields.items() if isinstance(value, float) and value != 0}


def optimizer_structure(config: OptimizerConfig) -> tuple[object, ...]:
    """What of an optimizer changes the compiled code: its name, its switches, and which knobs are zero."""
    fields = config.model_dump(exclude=_SCHEDULE_FIELDS)
    switches = tuple((name, value) for name, value in fields.items() if not isinstance(value, float))
    return config.name, switches, tuple(optimizer_knobs(config))


class RuntimeHyperparameter:
    """A number of an optimizer that stays open in a compiled program: beta_1, momentum, weight_decay …

    It stands where Keras expects a Python float that isn't zero. `1 - knob` is rounded from the float64
    difference, as it is in Keras: float32(1 - 0.999) and 1 - float32(0.999) differ in the fifth digit.
    """

    dtype = "float32"

    def __init__(self, value: tf.Tensor, complement: tf.Tensor) -> None:
        """Args: value and complement: float32 scalars x and 1 - x, inside the program being traced."""
        self._value = value
        self._complement = complement

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        return self._value if dtype is None else tf.cast(self._value, dtype)

    def __rsub__(self, other: float) -> tf.Tensor:
        if other != 1:
            raise TypeError(f"Keras subtracts an optimizer's number from {other!r} here; only 1 - x is known")
        return self._complement

    def __ne__(self, other: object) -> bool:
        return True  # Keras compares with 0 alone, and a zero never becomes a Knob

    def __gt__(self, other: float) -> bool:
        return True

    __hash__ = object.__hash__


# ----------------------------------------------------------------------------------------- schedule


def learning_rates(config: OptimizerConfig, first: int, stop: int, total: int, epoch_steps: int) -> Floats:
    """The learning rate at each step of [first, stop), float64.

    `constant` and `cosine`: linear warm-up from 0 (Goyal et al. 2017), cut short by the run's end, then constant, or
    half a cosine towards 0, which the step after the last would have (SGDR without restarts, Loshchilov & Hutter
    2017; the same numbers as Keras's CosineDecay). `one_cycle`: see `_one_cycle`.

    Args:
        first, stop: steps since the start of the run, from 0.
        total: steps of the whole run.
        epoch_steps: steps of one epoch, the unit of `warmup_epochs`.
    """
    steps = np.arange(first, stop, dtype=np.float64)
    if config.schedule == "one_cycle":
        return config.learning_rate * _one_cycle(steps, total)
    warmup = min(config.warmup_epochs * epoch_steps, float(total))
    rising = np.minimum(steps / warmup, 1.0) if warmup > 0 else np.ones_like(steps)
    if config.schedule == "constant":
        return config.learning_rate * rising
    progress = np.clip((steps - warmup) / max(total - warmup, 1.0), 0.0, 1.0)
    return config.learning_rate * rising * 0.5 * (1.0 + np.cos(math.pi * progress))


CYCLE_RISE, CYCLE_START, CYCLE_END = 0.3, 1 / 25, 1 / 250_000
"""The share of the run in which the rate rises, and its first and last value as shares of the peak: PyTorch's."""


def _one_cycle(steps: Floats, total: int) -> Floats:
    """Shares of the peak: half a cosine up, half a cosine down (Smith & Topin 2018, as PyTorch's OneCycleLR has it)."""
    last = max(total - 1, 1)
    top = max(CYCLE_RISE * total - 1, 1e-9)
    up = _half_cosine(CYCLE_START, 1.0, np.clip(steps / top, 0, 1))
    down = _half_cosine(1.0, CYCLE_END, np.clip((steps - top) / max(last - top, 1e-9), 0, 1))
    return np.where(steps <= top, up, down)


def _half_cosine(start: float, end: float, progress: Floats) -> Floats:
    way: Floats = end + (start - end) * 0.5 * (1.0 + np.cos(math.pi * progress))
    return way
