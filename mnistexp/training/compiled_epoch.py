"""One epoch as a single XLA program: shuffle, augment, and take all minibatch steps.

A program is shared by all runs with the same `compilation_key`; their other hyperparameters are its arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mnistexp.config.schema import Mlp, RunConfig
from mnistexp.data.dataset import Split
from mnistexp.training import augmentation, optimizer
from mnistexp.training import model as models


@dataclass(frozen=True)
class EpochOutput:
    """The result of one compiled epoch."""

    loss: float
    accuracy: float
    val_loss: float
    weights_finite: bool
    correct: npt.NDArray[np.bool_]  # [validation size]
    predicted: npt.NDArray[np.int32]  # [validation size], classes


class DeviceSplit:
    """A split on the device. The images keep their stored dtype: uint8 takes a quarter of the memory of float32."""

    def __init__(self, split: Split, scale: float, image_shape: tuple[int, ...] = ()) -> None:
        self.images = tf.constant(split.images)
        self.labels = tf.constant(split.labels, tf.int32)
        self.scale = scale
        self.image_shape = image_shape  # used by augmentation alone


def _as_input(images: tf.Tensor, scale: float) -> tf.Tensor:
    """Convert stored pixels to float32 in [0, 1]."""
    return tf.cast(images, tf.float32) * scale


def _predicted(logits: tf.Tensor) -> tf.Tensor:
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


NOT_COMPILED = {"input_dropout", "dropout", "initializer", "initializer_stddev", "bias_initializer_stddev"}
"""The settings of the mlp that are arguments of a program, or that only `start` reads."""


def compilation_key(config: RunConfig) -> tuple[object, ...]:
    """Return the settings that change the compiled code. All others are arguments of the program."""
    model, trainer = config.model, config.trainer
    network: tuple[object, ...] = (model.model_dump_json(),)
    if isinstance(model, Mlp):
        network = (model.model_dump_json(exclude=NOT_COMPILED), model.input_dropout > 0, model.dropout > 0)
    step = (optimizer.compilation_key(config.optimizer), trainer.ema_momentum > 0, config.augmentation.warps)
    return trainer.batch_size, network, step


def runtime_hyperparameters(config: RunConfig) -> list[float]:
    """Return the hyperparameters beside the optimizer's that are arguments, in the order of `_trace_epoch`."""
    model, trainer = config.model, config.trainer
    dropout = (model.input_dropout, model.dropout) if isinstance(model, Mlp) else (0.0, 0.0)
    warps = augmentation.runtime_hyperparameters(config.augmentation)
    return [*dropout, trainer.label_smoothing, trainer.ema_momentum, *warps]


class CompiledEpoch:
    """A compiled epoch with its network and optimizer; `start` resets it for a run.

    `network` is what is validated: the network that is trained, or a copy with the moving average of its weights.
    """

    def __init__(self, config: RunConfig, classes: int, train: DeviceSplit, validation: DeviceSplit) -> None:
        config.augmentation.check(train.image_shape)
        self._train, self._validation = train, validation
        self._batch_size = config.trainer.batch_size
        self._warps = config.augmentation.warps
        self.epoch_steps = config.trainer.steps_per_epoch(len(train.labels))
        self._trained = models.build_model(config.model, train.images.shape[1], classes)
        self.network, self._averages = self._trained, False
        if config.trainer.ema_momentum:
            self.network, self._averages = models.build_model(config.model, train.images.shape[1], classes), True
        self._training_pass = models.TrainingPass(self._trained)
        self._is_mlp = isinstance(config.model, Mlp)
        self._optimizer, self._optimizer_state = _build_with_state(config, self._trained)
        self._names = tuple(optimizer.runtime_hyperparameters(config.optimizer))
        self._owner: object = None
        self._arguments: tuple[Any, ...] = ()
        self._seed = 0
        # A concrete function is traced once and refuses arguments of another shape.
        traced = tf.function(self._trace_epoch, jit_compile=True, autograph=False)
        self._epoch = traced.get_concrete_function(
            order=tf.TensorSpec([len(train.labels)], tf.int32),
            seeds=tf.TensorSpec([2, 2], tf.int32),
            rates=tf.TensorSpec([self.epoch_steps], tf.float32),
            steps=tf.TensorSpec([], tf.int32),
            pairs=tf.TensorSpec([len(self._names), 2], tf.float32),
            values=tf.TensorSpec([len(runtime_hyperparameters(config))], tf.float32),
        )

    def start(self, config: RunConfig, owner: object) -> None:
        """Set initial weights, the state of layers and optimizer, and the arguments of `owner`'s run."""
        for variable, value in self._optimizer_state:
            variable.assign(value)
        models.initialise(self._trained, config.model, config.seed)
        if self._averages:
            _assign(self.network, self._trained.weights)
        values = optimizer.runtime_hyperparameters(config.optimizer).values()
        pairs = np.array([(value, 1 - value) for value in values], np.float32).reshape(-1, 2)
        self._arguments = (tf.constant(pairs), tf.constant(runtime_hyperparameters(config), tf.float32))
        self._seed, self._owner = config.seed, owner

    def run_epoch(self, owner: object, rates: optimizer.Floats, epoch: int) -> EpochOutput:
        """Train `len(rates)` steps of one epoch (from 0), then validate.

        The permutation and the validation are not compiled: that would add 0.15 s and 0.25 s to each compilation and
        save no time in an epoch.
        """
        if owner is not self._owner:
            raise RuntimeError("this training has ended: its program belongs to another run now")
        padded = np.zeros(self.epoch_steps, np.float32)
        padded[: len(rates)] = rates
        order = tf.constant(permutation(len(self._train.labels), self._seed, epoch))
        seeds = tf.constant([models.stateless_seeds(self._seed, name, epoch) for name in ("dropout", "augmentation")])
        scores = self._epoch(order, seeds, tf.constant(padded), tf.constant(len(rates)), *self._arguments)
        loss, accuracy, finite = (float(score) for score in scores.numpy())
        val_loss, predicted = self.score(self._validation)
        correct = tf.equal(predicted, self._validation.labels).numpy()
        return EpochOutput(loss, accuracy, float(val_loss), finite == 1, correct, predicted.numpy())

    def score(self, split: DeviceSplit) -> tuple[tf.Tensor, tf.Tensor]:
        """Return mean cross-entropy in nats (float32 scalar) and predictions (int32 [N]) of `network`."""
        images = len(split.labels)
        step = images if self._is_mlp else 1000  # a user's convolutions would need gigabytes for all images
        parts = [split.images[start : start + step] for start in range(0, images, step)]
        logits = tf.concat([self.network(_as_input(part, split.scale), training=False) for part in parts], axis=0)
        loss = tf.reduce_mean(models.training_losses(split.labels, logits, 0.0))
        return loss, _predicted(logits)

    @property
    def parameters(self) -> int:
        """The number of trainable scalars in the network."""
        return sum(math.prod(variable.shape) for variable in self.network.trainable_variables)

    def snapshot(self) -> list[tf.Tensor]:
        """Return a copy, on the device, of the weights that were validated."""
        return [tf.identity(variable) for variable in self.network.weights]

    def load(self, weights: Sequence[tf.Tensor]) -> None:
        """Set the weights of `network`. This ends its current run."""
        self._owner = None
        _assign(self.network, weights)

    def _trace_epoch(
        self,
        order: tf.Tensor,
        seeds: tf.Tensor,
        rates: tf.Tensor,
        steps: tf.Tensor,
        pairs: tf.Tensor,
        values: tf.Tensor,
    ) -> tf.Tensor:
        """Trace one epoch.

        Args:
            order: int32 [training size], the images' order in this epoch.
            seeds: int32 [2, 2], of the dropout masks and of the augmentation.
            rates: float32 [epoch_steps], learning rates.
            steps: int32 scalar, the number of steps to take.
            pairs: float32 [n, 2], the optimizer's hyperparameters x and 1 - x.
            values: float32 [m], see `runtime_hyperparameters`.

        Returns:
            float32 [3]: running mean loss and accuracy, and 1 if all weights are finite.
        """
        for row, name in enumerate(self._names):
            setattr(self._optimizer, name, optimizer.RuntimeHyperparameter(pairs[row, 0], pairs[row, 1]))
        # One gather per epoch: one per minibatch takes 5 % longer.
        images, labels = tf.gather(self._train.images, order), tf.gather(self._train.labels, order)

        def step(index: tf.Tensor, loss: tf.Tensor, correct: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            batch, classes = self._minibatch(images, index), self._minibatch(labels, index)
            new = self._trace_step(batch, classes, rates[index], values, seeds + tf.stack([index, 0]))
            return index + 1, loss + new[0], correct + new[1]

        _, loss, correct = tf.while_loop(lambda index, *_: index < steps, step, (0, 0.0, 0))
        taken = tf.cast(steps, tf.float32)
        accuracy = tf.cast(correct, tf.float32) / (taken * self._batch_size)
        return tf.stack([loss / taken, accuracy, self._trace_finite()])

    def _minibatch(self, tensor: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        start = [index * self._batch_size] + [0] * (len(tensor.shape) - 1)
        return tf.slice(tensor, start, [self._batch_size, *tensor.shape[1:]])

    def _trace_step(
        self, images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, values: tf.Tensor, seeds: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Trace one optimizer step. Returns: the minibatch's mean loss (float32) and correct predictions (int32)."""
        input_dropout, dropout, label_smoothing, ema_momentum = tf.unstack(values[:4])
        inputs = _as_input(images, self._train.scale)
        warped = augmentation.augment(inputs, self._train.image_shape, self._warps, values[4:], seeds[1])

        def rates(layer: str) -> tf.Tensor | None:
            if not self._is_mlp:  # the Dropout layers of a user's network keep their rates
                return None
            return input_dropout if layer == models.INPUT_DROPOUT else dropout

        with tf.GradientTape() as tape:
            logits = self._training_pass(warped, seeds[0], rates)
            loss = tf.reduce_mean(models.training_losses(labels, logits, label_smoothing))
            if penalties := self._training_pass.penalties():
                loss = tf.add_n([loss, *penalties])
        self._optimizer.learning_rate = lambda: rate
        self._optimizer.apply(tape.gradient(loss, self._trained.trainable_variables))
        if self._averages:
            self._trace_average(ema_momentum)
        return loss, tf.reduce_sum(tf.cast(tf.equal(_predicted(logits), labels), tf.int32))

    def _trace_average(self, momentum: tf.Tensor) -> None:
        """Update the moving averages of all weights; Keras's own average leaves a normalisation's statistics out.

        The momentum is min(momentum, (1 + steps) / (10 + steps)), as in tf.train.ExponentialMovingAverage, so that the
        initial weights are forgotten.
        """
        steps = tf.cast(self._optimizer.iterations.value, tf.float32)
        kept = tf.minimum(momentum, (1 + steps) / (10 + steps))
        for average, weight in zip(self.network.weights, self._trained.weights, strict=True):
            if _is_floating(weight):
                average.assign_add((1 - kept) * (weight.value - average.value))
            else:  # the counter of a layer
                average.assign(weight)

    def _trace_finite(self) -> tf.Tensor:
        weights = filter(_is_floating, self._trained.weights)
        finite = [tf.reduce_all(tf.math.is_finite(variable)) for variable in weights]
        return tf.cast(tf.reduce_all(finite), tf.float32)


def _is_floating(variable: keras.Variable) -> bool:
    return bool(tf.as_dtype(variable.dtype).is_floating)


def _assign(network: keras.Model, weights: Iterable[Any]) -> None:
    for variable, value in zip(network.weights, weights, strict=True):
        variable.assign(value)


def permutation(size: int, seed: int, epoch: int) -> npt.NDArray[np.int32]:
    """Return the order of the images in an epoch (from 0), int32 [size]; it depends on the run's seed alone."""
    philox = np.random.Philox(models.stateless_seeds(seed, "minibatches", epoch))
    return np.random.Generator(philox).permutation(size).astype(np.int32)


def _build_with_state(config: RunConfig, model: keras.Model) -> tuple[Any, list[tuple[Any, Any]]]:
    """Build the optimizer of a network. Returns: it, and (variable, initial value) of all its state.

    Variables are recorded when they are created: Keras's `optimizer.variables` lacks Nadam's running product.
    """
    created: list[Any] = []

    def record(create: Callable[..., Any], **arguments: Any) -> Any:
        created.append(create(**arguments))
        return created[-1]

    with tf.variable_creator_scope(record):
        built = optimizer.build_optimizer(config.optimizer, model.trainable_variables)
    return built, [(variable, variable.numpy()) for variable in created]
