"""One compiled epoch: gather in the drawn order, warp, and take all minibatch steps, as a single XLA program.

A program is shared by every run of its shape: what differs between them is an argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mnistexp.config.schema import Mlp, RunConfig
from mnistexp.data.dataset import Split
from mnistexp.training import augmentation
from mnistexp.training import model as models


@dataclass(frozen=True)
class EpochOutput:
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

    def __init__(self, split: Split, scale: float, image_shape: tuple[int, ...] = ()) -> None:
        self.images = tf.constant(split.images)
        self.labels = tf.constant(split.labels, tf.int32)
        self.scale = scale
        self.image_shape = image_shape  # needed for augmentation alone


def _as_input(images: tf.Tensor, scale: float) -> tf.Tensor:
    """Stored pixels to float32 in [0, 1]."""
    return tf.cast(images, tf.float32) * scale


def _predicted(logits: tf.Tensor) -> tf.Tensor:
    return tf.argmax(logits, axis=-1, output_type=tf.int32)


ARGUMENTS = {"input_dropout", "dropout", "initializer", "initializer_stddev", "bias_initializer_stddev"}
"""The mlp's settings that a program takes as arguments or that only `start` reads; any other is structure."""


def compilation_key(config: RunConfig) -> tuple[object, ...]:
    """What of a config changes the compiled code. Everything else is an argument of the program."""
    model, trainer = config.model, config.trainer
    exclude, drops = (ARGUMENTS, (model.input_dropout > 0, model.dropout > 0)) if isinstance(model, Mlp) else (None, ())
    layers = (model.model_dump_json(exclude=exclude), drops)
    optimizer, warps = models.optimizer_structure(config.optimizer), config.augmentation.warps
    return trainer.batch_size, layers, optimizer, trainer.ema_momentum > 0, warps


def runtime_hyperparameters(config: RunConfig) -> list[float]:
    """The numbers beside the optimizer's that a program takes as arguments; `Numbers` has their names."""
    model, trainer = config.model, config.trainer
    drops = (model.input_dropout, model.dropout) if isinstance(model, Mlp) else (0.0, 0.0)
    return [*drops, trainer.label_smoothing, trainer.ema_momentum, *augmentation.knobs(config.augmentation)]


class Numbers:
    """What `numbers_of` says, inside a program: float32 scalars, and for the warps a vector."""

    def __init__(self, values: tf.Tensor) -> None:
        self.input_dropout, self.dropout, self.label_smoothing, self.ema_momentum = tf.unstack(values[:4])
        self.warps = values[4:]


class CompiledEpoch:
    """One compiled epoch with the network and the optimizer in it; `start` makes it fresh for a run."""

    def __init__(self, config: RunConfig, classes: int, train: DeviceSplit, validation: DeviceSplit) -> None:
        config.augmentation.check(train.image_shape)
        self._train = train
        self._validation = validation
        self._batch_size = config.trainer.batch_size
        self._warps = config.augmentation.warps
        self.epoch_steps = config.trainer.steps_per_epoch(len(train.labels))
        self.model = models.build_model(config.model, train.images.shape[1], classes)
        self._training_pass = models.TrainingPass(self.model)
        # A user's convolutions would need gigabytes for all images at once.
        self._at_once = None if isinstance(config.model, Mlp) else 1000
        self._rates_open = isinstance(config.model, Mlp)  # a user's own Dropout layers keep their rates
        self._optimizer, self._state = _build_with_state(config, self.model)
        self._state += models.other_state(self.model, config.model)
        self._averages = [tf.Variable(weight) for weight in self.model.weights] if config.trainer.ema_momentum else []
        self._knob_names = tuple(models.optimizer_knobs(config.optimizer))
        self._owner: object = None
        self._arguments: tuple[Any, ...] = ()
        self._seed = 0
        # Traced here and never again: a concrete function refuses arguments of another shape.
        traced = tf.function(self._trace_epoch, jit_compile=True, autograph=False)
        self._epoch = traced.get_concrete_function(*self._argument_specs(len(runtime_hyperparameters(config))))

    def start(self, config: RunConfig, owner: object) -> None:
        """Fresh weights, state of layers and optimizer, and arguments for `owner`'s run."""
        for variable, value in self._state:
            variable.assign(value)
        models.initialise(self.model, config.model, config.seed)
        for average, weight in zip(self._averages, self.model.weights, strict=bool(self._averages)):
            average.assign(weight)
        knobs = models.optimizer_knobs(config.optimizer).values()
        pairs = np.array([(value, 1 - value) for value in knobs], np.float32).reshape(-1, 2)
        self._arguments = (tf.constant(pairs), tf.constant(runtime_hyperparameters(config), tf.float32))
        self._seed = config.seed
        self._owner = owner

    def run_epoch(self, owner: object, rates: models.Floats, epoch: int) -> EpochOutput:
        """Train `len(rates)` steps of one epoch (counted from 0), then validate.

        Neither the order is drawn nor the validation scored by compiled code: that would take the compiler
        0.15 s and 0.25 s more for each shape, and the epoch no less.
        """
        if owner is not self._owner:
            raise RuntimeError("this training was ended: its program has been given to another run")
        padded = np.zeros(self.epoch_steps, np.float32)
        padded[: len(rates)] = rates
        order = tf.constant(permutation(len(self._train.labels), self._seed, epoch))
        seeds = tf.constant([models.stateless_seeds(self._seed, name, epoch) for name in ("dropout", "augmentation")])
        scores = self._epoch(order, seeds, tf.constant(padded), tf.constant(len(rates)), *self._arguments)
        loss, accuracy, finite = (float(score) for score in scores.numpy())
        with self._averaged():
            val_loss, predicted = self.score(self._validation)
        hits = tf.equal(predicted, self._validation.labels)
        scores_and_hits = (loss, accuracy, float(val_loss), finite == 1, hits.numpy(), predicted.numpy())
        return EpochOutput(len(rates), float(rates[-1]), *scores_and_hits)

    def score(self, split: DeviceSplit) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean cross-entropy in nats (float32 scalar) and predicted classes (int32 [N]) of the network as it is now."""
        images = len(split.labels)
        step = self._at_once or images
        parts = [split.images[start : start + step] for start in range(0, images, step)]
        logits = tf.concat([self.model(_as_input(part, split.scale), training=False) for part in parts], axis=0)
        loss = tf.reduce_mean(models.training_losses(split.labels, logits, 0.0))
        return loss, _predicted(logits)

    def _argument_specs(self, numbers: int) -> list[tf.TensorSpec]:
        """Shapes and types of `_trace_epoch`'s arguments, in their order."""
        floats: list[list[int]] = [[self.epoch_steps], [len(self._knob_names), 2], [numbers]]
        rates, *others = (tf.TensorSpec(shape, tf.float32) for shape in floats)
        integers: tuple[list[int], ...] = ([len(self._train.labels)], [2, 2], [])
        order, seeds, steps = (tf.TensorSpec(shape, tf.int32) for shape in integers)
        return [order, seeds, rates, steps, *others]

    @property
    def parameters(self) -> int:
        """Trainable scalars in the network."""
        return sum(math.prod(variable.shape) for variable in self.model.trainable_variables)

    def snapshot(self) -> list[tf.Tensor]:
        """The weights that validation saw, on the device; later steps don't change them."""
        return [tf.identity(variable) for variable in self._averages or self.model.weights]

    def load(self, weights: Sequence[tf.Tensor]) -> None:
        """Put weights into the network, which ends the run that was training it."""
        self._owner = None
        self._assign(weights)

    def _assign(self, weights: Iterable[tf.Tensor]) -> None:
        for variable, value in zip(self.model.weights, weights, strict=True):
            variable.assign(value)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Have the network hold the average of its weights, where there is one."""
        if not self._averages:
            yield
            return
        trained = [tf.identity(weight) for weight in self.model.weights]
        self._assign(self._averages)
        try:
            yield
        finally:
            self._assign(trained)

    def _trace_epoch(
        self,
        order: tf.Tensor,
        seeds: tf.Tensor,
        rates: tf.Tensor,
        steps: tf.Tensor,
        knobs: tf.Tensor,
        values: tf.Tensor,
    ) -> tf.Tensor:
        """Describe one epoch to XLA.

        Args:
            order: int32 [training size], the images' order in this epoch.
            seeds: int32 [2, 2], of the dropout masks and of the warps.
            rates: float32 [epoch_steps], learning rates.
            steps: int32 scalar, how many of them to take.
            knobs: float32 [n, 2], the optimizer's numbers x and 1 - x.
            values: float32 [m], see `numbers_of`.

        Returns:
            float32 [3]: running mean loss and accuracy, and 1 if all weights are finite.
        """
        for row, name in enumerate(self._knob_names):
            setattr(self._optimizer, name, models.RuntimeHyperparameter(knobs[row, 0], knobs[row, 1]))
        numbers = Numbers(values)
        # Gathered once an epoch: by minibatch it takes 5 % longer.
        images, labels = tf.gather(self._train.images, order), tf.gather(self._train.labels, order)

        def step(index: tf.Tensor, loss: tf.Tensor, hits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            batch, answers = self._minibatch(images, index), self._minibatch(labels, index)
            new = self._trace_step(batch, answers, rates[index], numbers, seeds + tf.stack([index, 0]))
            return index + 1, loss + new[0], hits + new[1]

        _, loss, hits = tf.while_loop(lambda index, *_: index < steps, step, (0, 0.0, 0))
        taken = tf.cast(steps, tf.float32)
        accuracy = tf.cast(hits, tf.float32) / (taken * self._batch_size)
        return tf.stack([loss / taken, accuracy, self._trace_finite()])

    def _minibatch(self, tensor: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
        start = [index * self._batch_size] + [0] * (len(tensor.shape) - 1)
        return tf.slice(tensor, start, [self._batch_size, *tensor.shape[1:]])

    def _trace_step(
        self, images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, numbers: Numbers, seeds: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One optimizer step: the minibatch's mean loss (float32) and number of hits (int32)."""
        inputs = _as_input(images, self._train.scale)
        warped = augmentation.augmented(inputs, self._train.image_shape, self._warps, numbers.warps, seeds[1])

        def rates(layer: str) -> tf.Tensor | None:
            drop = numbers.input_dropout if layer == models.INPUT_DROPOUT else numbers.dropout
            return drop if self._rates_open else None

        with tf.GradientTape() as tape:
            logits = self._training_pass(warped, seeds[0], rates)
            loss = tf.reduce_mean(models.training_losses(labels, logits, numbers.label_smoothing))
            if penalties := self._training_pass.penalties():
                loss = tf.add_n([loss, *penalties])
        self._optimizer.learning_rate = lambda: rate
        self._optimizer.apply(tape.gradient(loss, self.model.trainable_variables))
        self._trace_average(numbers.ema_momentum)
        return loss, tf.reduce_sum(tf.cast(tf.equal(_predicted(logits), labels), tf.int32))

    def _trace_average(self, momentum: tf.Tensor) -> None:
        """Move the averages towards the weights, a normalisation's statistics too, which Keras's own lack.

        Early on by more, so that they forget the first weights: min(momentum, (1 + steps) / (10 + steps)), as
        tf.train.ExponentialMovingAverage has it.
        """
        if not self._averages:
            return
        steps = tf.cast(self._optimizer.iterations.value, tf.float32)
        kept = tf.minimum(momentum, (1 + steps) / (10 + steps))
        for average, weight in zip(self._averages, self.model.weights, strict=True):
            if average.dtype.is_floating:
                average.assign_add((1 - kept) * (weight - average))
            else:  # a layer's counter
                average.assign(weight)

    def _trace_finite(self) -> tf.Tensor:
        weights = [variable for variable in self.model.weights if tf.as_dtype(variable.dtype).is_floating]
        finite = [tf.reduce_all(tf.math.is_finite(variable)) for variable in weights]
        return tf.cast(tf.reduce_all(finite), tf.float32)


def permutation(size: int, seed: int, epoch: int) -> npt.NDArray[np.int32]:
    """The order of an epoch's images, int32 [size]: fixed by the run's seed and the epoch (from 0) alone."""
    philox = np.random.Philox(models.stateless_seeds(seed, "minibatches", epoch))
    return np.random.Generator(philox).permutation(size).astype(np.int32)


def _build_with_state(config: RunConfig, model: keras.Model) -> tuple[Any, list[tuple[Any, Any]]]:
    """An optimizer built for a network, and (variable, initial value) of all its state.

    The variables are recorded as they are created: `optimizer.variables` misses Nadam's running product.
    """
    created: list[Any] = []

    def record(create: Callable[..., Any], **arguments: Any) -> Any:
        created.append(create(**arguments))
        return created[-1]

    with tf.variable_creator_scope(record):
        optimizer = models.build_optimizer(config.optimizer, model.trainable_variables)
    return optimizer, [(variable, variable.numpy()) for variable in created]
