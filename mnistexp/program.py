"""One compiled epoch: gather in the drawn order and all minibatch steps, as a single XLA program.

A program is shared by every run of its shape: what differs between them is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mnistexp import model as models
from mnistexp.data import Split
from mnistexp.errors import ConfigError
from mnistexp.schema import RunConfig


def steps_per_epoch(images: int, batch_size: int) -> int:
    """Whole minibatches in the training split; raises ConfigError if there is none."""
    if batch_size > images:
        raise ConfigError(
            f"trainer.batch_size={batch_size} is more than the {images} images of the training split; "
            f"give a number from 1 to {images}, such as trainer.batch_size={min(100, images)}"
        )
    return images // batch_size


@dataclass(frozen=True)
class Outcome:
    """What one compiled epoch gave back."""

    steps: int
    learning_rate: float
    loss: float
    accuracy: float
    val_loss: float
    weights_finite: bool
    hits: npt.NDArray[np.bool_]  # [validation size]
    predicted: npt.NDArray[np.int32]  # [validation size], classes


class DeviceSplit:
    """A split on the device, its images in the type that they were stored in (uint8: a quarter of the memory)."""

    def __init__(self, split: Split, scale: float) -> None:
        self.images = tf.constant(split.images)
        self.labels = tf.constant(split.labels, tf.int32)
        self.scale = scale


def _as_input(images: tf.Tensor, scale: float) -> tf.Tensor:
    """Stored pixels to float32 in [0, 1]."""
    return tf.cast(images, tf.float32) * scale


def score(model: keras.Sequential, split: DeviceSplit) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean cross-entropy in nats (float32 scalar) and predicted classes (int32 [N]) of a network on a split."""
    logits = model(_as_input(split.images, split.scale), training=False)
    loss = tf.reduce_mean(models.training_losses(split.labels, logits, 0.0))
    return loss, _predicted(logits)


def _predicted(logits: tf.Tensor) -> tf.Tensor:
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


ARGUMENTS = {"dropout", "initializer", "initializer_stddev", "bias_initializer_stddev"}
"""The model's settings that a program takes as arguments or that only `start` reads; any other is structure."""


def shape_of(config: RunConfig) -> tuple[object, ...]:
    """What of a config changes the compiled code. Everything else is an argument of the program."""
    layers = (config.model.model_dump_json(exclude=ARGUMENTS), config.model.dropout > 0)
    return config.trainer.batch_size, layers, models.optimizer_structure(config.optimizer)


class Program:
    """One compiled epoch with the network and the optimizer in it; `start` makes it fresh for a run."""

    def __init__(self, config: RunConfig, classes: int, train: DeviceSplit, validation: DeviceSplit) -> None:
        self._train = train
        self._validation = validation
        self._batch_size = config.trainer.batch_size
        self.epoch_steps = steps_per_epoch(len(train.labels), self._batch_size)
        self.model = models.build_model(config.model, train.images.shape[1], classes)
        self._optimizer, self._state = _build_with_state(config, self.model)
        self._state += models.other_state(self.model)
        self._knob_names = tuple(models.optimizer_knobs(config.optimizer))
        self._owner: object = None
        self._arguments: tuple[Any, ...] = ()
        self._seed = 0
        # Traced here and never again: a concrete function refuses arguments of another shape.
        traced = tf.function(self._trace_epoch, jit_compile=True, autograph=False)
        self._epoch = traced.get_concrete_function(*self._argument_specs())

    def start(self, config: RunConfig, owner: object) -> None:
        """Fresh weights, state of layers and optimizer, and arguments for `owner`'s run."""
        models.initialise(self.model, config.model, config.seed)
        for variable, value in self._state:
            variable.assign(value)
        knobs = models.optimizer_knobs(config.optimizer).values()
        pairs = np.array([(value, 1 - value) for value in knobs], np.float32).reshape(-1, 2)
        scalars = (config.model.dropout, config.trainer.label_smoothing)
        self._arguments = (tf.constant(pairs), *(tf.constant(value, tf.float32) for value in scalars))
        self._seed = config.seed
        self._owner = owner

    def run_epoch(self, owner: object, rates: models.Floats, epoch: int) -> Outcome:
        """Train `len(rates)` steps of one epoch (counted from 0), then validate.

        Neither the order is drawn nor the validation scored by compiled code: that would take the compiler
        0.15 s and 0.25 s more for each shape, and the epoch no less.
        """
        if owner is not self._owner:
            raise RuntimeError("this training was ended: its program has been given to another run")
        padded = np.zeros(self.epoch_steps, np.float32)
        padded[: len(rates)] = rates
        order = tf.constant(permutation(len(self._train.labels), self._seed, epoch))
        dropout_seed = tf.constant(models.stateless_seeds(self._seed, "dropout", epoch))
        scores = self._epoch(order, dropout_seed, tf.constant(padded), tf.constant(len(rates)), *self._arguments)
        loss, accuracy, finite = (float(score) for score in scores.numpy())
        val_loss, predicted = score(self.model, self._validation)
        hits = tf.equal(predicted, self._validation.labels)
        scores_and_hits = (loss, accuracy, float(val_loss), finite == 1, hits.numpy(), predicted.numpy())
        return Outcome(len(rates), float(rates[-1]), *scores_and_hits)

    def _argument_specs(self) -> list[tf.TensorSpec]:
        """Shapes and types of `_trace_epoch`'s arguments, in their order."""
        floats: list[list[int]] = [[self.epoch_steps], [len(self._knob_names), 2], [], []]
        rates, *others = (tf.TensorSpec(shape, tf.float32) for shape in floats)
        integers: tuple[list[int], ...] = ([len(self._train.labels)], [2], [])
        order, seed, steps = (tf.TensorSpec(shape, tf.int32) for shape in integers)
        return [order, seed, rates, steps, *others]

    def snapshot(self) -> list[tf.Tensor]:
        """The weights as they are now, on the device; later steps don't change them."""
        return [tf.identity(variable.value) for variable in self.model.trainable_variables]

    def load(self, weights: Sequence[tf.Tensor]) -> None:
        """Put weights into the network, which ends the run that was training it."""
        self._owner = None
        for variable, value in zip(self.model.trainable_variables, weights, strict=True):
            variable.assign(value)

    def _trace_epoch(
        self,
        order: tf.Tensor,
        dropout_seed: tf.Tensor,
        rates: tf.Tensor,
        steps: tf.Tensor,
        knobs: tf.Tensor,
        dropout: tf.Tensor,
        smoothing: tf.Tensor,
    ) -> tf.Tensor:
        """Describe one epoch to XLA.

        Args:
            order: int32 [training size], the images' order in this epoch.
            dropout_seed: int32 [2].
            rates: float32 [epoch_steps], learning rates.
            steps: int32 scalar, how many of them to take.
            knobs: float32 [n, 2], the optimizer's numbers x and 1 - x.
            dropout, smoothing: float32 scalars.

        Returns:
            float32 [3]: running mean loss and accuracy, and 1 if all weights are finite.
        """
        for row, name in enumerate(self._knob_names):
            setattr(self._optimizer, name, models.Knob(knobs[row, 0], knobs[row, 1]))
        # Gathered once an epoch: by minibatch it takes 5 % longer.
        images, labels = tf.gather(self._train.images, order), tf.gather(self._train.labels, order)

        def step(index: tf.Tensor, loss: tf.Tensor, hits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            batch, answers = self._minibatch(images, index), self._minibatch(labels, index)
            seed = dropout_seed + tf.stack([index, 0])
            new_loss, new_hits = self._trace_step(batch, answers, rates[index], dropout, smoothing, seed)
            return index + 1, loss + new_loss, hits + new_hits

        _, loss, hits = tf.while_loop(lambda index, *_: index < steps, step, (0, 0.0, 0))
        taken = tf.cast(steps, tf.float32)
        accuracy = tf.cast(hits, tf.float32) / (taken * self._batch_size)
        return tf.stack([loss / taken, accuracy, self._trace_finite()])

    def _minibatch(self, tensor: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        start = [index * self._batch_size] + [0] * (len(tensor.shape) - 1)
        return tf.slice(tensor, start, [self._batch_size, *tensor.shape[1:]])

    def _trace_step(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        rate: tf.Tensor,
        dropout: tf.Tensor,
        smoothing: tf.Tensor,
        seed: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One optimizer step: the minibatch's mean loss (float32) and number of hits (int32)."""
        with tf.GradientTape() as tape:
            inputs = _as_input(images, self._train.scale)
            logits = models.forward_training(self.model, inputs, dropout, seed)
            loss = tf.reduce_mean(models.training_losses(labels, logits, smoothing))
        self._optimizer.learning_rate = lambda: rate
        self._optimizer.apply(tape.gradient(loss, self.model.trainable_variables))
        return loss, tf.reduce_sum(tf.cast(tf.equal(_predicted(logits), labels), tf.int32))

    def _trace_finite(self) -> tf.Tensor:
        finite = [tf.reduce_all(tf.math.is_finite(variable)) for variable in self.model.trainable_variables]
        return tf.cast(tf.reduce_all(finite), tf.float32)


def permutation(size: int, seed: int, epoch: int) -> npt.NDArray[np.int32]:
    """The order of an epoch's images, int32 [size]: fixed by the run's seed and the epoch (from 0) alone."""
    philox = np.random.Philox(models.stateless_seeds(seed, "minibatches", epoch))
    return np.random.Generator(philox).permutation(size).astype(np.int32)


def _build_with_state(config: RunConfig, model: keras.Sequential) -> tuple[Any, list[tuple[Any, Any]]]:
    """An optimizer built for a network, and (variable, initial value) of all its state.

    The variables are recorded as they are created: `optimizer.variables` misses Nadam's running product.
    """
    created: list[Any] = []

    def record(create: Callable[..., Any], **arguments: Any) -> Any:
        created.append(create(**arguments))
        return created[-1]

    with tf.variable_creator_scope(record):
        optimizer = models.build_optimizer(config.optimizer)
        optimizer.build(model.trainable_variables)
    return optimizer, [(variable, variable.numpy()) for variable in created]
