"""User-defined networks in training: layers that the built-in perceptron lacks, and networks that are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import runs
import tensorflow as tf
from pydantic import TypeAdapter

from mnistexp.config import user_code
from mnistexp.config.schema import DataConfig, RunConfig, UserCode, UserModel
from mnistexp.data import dataset
from mnistexp.errors import ConfigError
from mnistexp.training import model as models
from mnistexp.training.trainer import Fit, Trainer, all_weights, weights_hash

CODE = '''
import keras
import numpy
from keras import layers


def plain(features, classes, *, units: int = 8, l2: float = 0.0):
    return keras.Sequential(
        [
            keras.Input((features,)),
            layers.Dense(units, activation="relu", kernel_regularizer=keras.regularizers.L2(l2)),
            layers.Dense(classes),
        ]
    )


def residual(features, classes):
    inputs = keras.Input((features,))
    inner = keras.Sequential([layers.Dense(features), layers.BatchNormalization(momentum=0.9), layers.Dropout(0.2)])
    signal = layers.add([inputs, inner(inputs)])
    return keras.Model(inputs, layers.Dense(classes)(layers.Dropout(0.1)(signal)))


def counted(features, classes):
    """Normalization counts what it has seen in a whole number, which no average is taken of."""
    normalise = layers.Normalization()
    normalise.adapt(numpy.linspace(0, 1, 2 * features).reshape(2, features))
    return keras.Sequential([keras.Input((features,)), normalise, layers.Dense(classes)])


def convolved(features, classes):
    return keras.Sequential(
        [
            keras.Input((features,)),
            layers.Reshape((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.GaussianNoise(0.1),
            layers.Flatten(),
            layers.Dense(classes),
        ]
    )


def shared_dropout(features, classes):
    inputs, drop = keras.Input((features,)), layers.Dropout(0.5)
    return keras.Model(inputs, layers.Dense(classes)(layers.subtract([drop(inputs), drop(inputs)])))


def softmax(features, classes):
    return keras.Sequential([keras.Input((features,)), layers.Dense(classes, activation="softmax")])


def softmax_layer(features, classes):
    return keras.Sequential([keras.Input((features,)), layers.Dense(classes), layers.Softmax()])


class Doubled(keras.Sequential):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


def subclassed(features, classes):
    return Doubled([keras.Input((features,)), layers.Dense(classes)])


def subclassed_within(features, classes):
    return keras.Sequential([keras.Input((features,)), Doubled([layers.Dense(classes)])])


def three_classes(features, classes):
    return keras.Sequential([keras.Input((features,)), layers.Dense(3)])


def unbuilt(features, classes):
    return keras.Sequential([layers.Dense(classes)])


def nothing(features, classes):
    pass


calls = []


def moody(features, classes):
    calls.append(1)
    return plain(features, classes, units=len(calls))
'''


@pytest.fixture(autouse=True)
def code() -> Iterator[None]:
    """The file above, as given with --code."""
    user_code.use(UserCode(name="networks.py", text=CODE))
    yield
    user_code.use(None)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    """One for all tests, as in a worker."""
    return Trainer(dataset.load(TypeAdapter(DataConfig).validate_python(runs.DIGITS)))


def config(function: str, seed: int = 0, settings: dict[str, Any] | None = None, **trainer: Any) -> RunConfig:
    """A run of a function's network on the digits."""
    digest = hashlib.sha256(CODE.encode()).hexdigest()
    network = UserModel(name="custom", function=function, settings=settings or {}, code=digest)
    base = runs.run_config(runs.ADAM, seed=seed, data=runs.DIGITS, **trainer)
    return base.model_copy(update={"model": network})


def finished(trainer: Trainer, asked: RunConfig) -> Fit:
    """A training at its end."""
    fit = trainer.fit(asked)
    for _ in fit:
        pass
    return fit


@pytest.mark.parametrize("function", ["plain", "residual", "counted", "convolved"])
def test_a_run_is_fixed_by_its_seed_and_scored_as_by_keras(trainer: Trainer, function: str) -> None:
    """Seed 5, then 6, then 5 again: other weights, then the first ones to the last bit, averages included.

    Validation predictions and test accuracy are those of a new network with the kept weights.
    """
    *before, fit = [finished(trainer, config(function, seed, ema_momentum=0.9)) for seed in (5, 6, 5)]
    network = models.build_model(config(function).model, 64, 10)
    network.set_weights(fit.weights())
    digits = dataset.load(config(function).data)
    correct = {
        name: np.argmax(network(split.images.astype(np.float32) / 16, training=False), -1) == split.labels
        for name, split in (("validation", digits.validation), ("test", digits.test))
    }

    assert weights_hash(before[0].weights()) == weights_hash(fit.weights()) != weights_hash(before[1].weights())
    assert np.packbits(correct["validation"]).tobytes() == fit.result().validation_correct
    assert trainer.evaluate(fit)[1] == pytest.approx(correct["test"].mean())
    assert all(np.array_equal(a, b) for a, b in zip(all_weights(fit.load().network), fit.weights(), strict=True))


def test_its_regularisers_are_part_of_the_loss(trainer: Trainer) -> None:
    """An L2 penalty makes the kernel smaller and the loss larger."""
    free, penalised = (finished(trainer, config("plain", settings={"l2": l2})) for l2 in (0.0, 0.1))

    sizes = [float(np.linalg.norm(fit.weights()[0])) for fit in (free, penalised)]
    assert sizes[1] < 0.9 * sizes[0]
    assert penalised.result().epochs[0].loss > free.result().epochs[0].loss


def test_a_dropout_layer_that_is_called_twice_draws_twice() -> None:
    """The difference of two masked copies of x is not zero."""
    training_pass = models.TrainingPass(models.build_model(config("shared_dropout").model, 64, 10))

    def forward() -> tf.Tensor:
        return training_pass(tf.ones([4, 64]), tf.constant([1, 2]), lambda _: None)

    logits = tf.function(forward, jit_compile=True, autograph=False)().numpy()

    assert np.abs(logits).max() > 0.1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("softmax", "softmax: ends in a softmax, which the loss applies itself"),
        ("softmax_layer", "softmax_layer: ends in a softmax, which the loss applies itself"),
        ("subclassed", "subclassed: returned a Doubled; return a keras.Sequential or functional keras.Model"),
        ("subclassed_within", "subclassed_within: returned a Sequential; return .* without subclasses of keras.Model"),
        ("three_classes", r"three_classes: returned a network of the shapes .*\(None, 3\)\); return .* \[N, 10\]"),
        ("unbuilt", "unbuilt: returned a network of the shapes not built yet; return"),
        ("nothing", "nothing: returned a NoneType; return"),
    ],
)
def test_an_unusable_network_is_refused(function: str, message: str) -> None:
    """The message has what was returned and what is needed."""
    with pytest.raises(ConfigError, match=message):
        models.build_model(config(function).model, 64, 10)


def test_a_network_that_differs_each_time_is_refused(trainer: Trainer) -> None:
    """A network must depend on its settings alone, or no run could be repeated."""
    with pytest.raises(ConfigError, match="moody: builds another network each time; it must depend"):
        trainer.fit(config("moody"))
