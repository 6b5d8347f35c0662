"""The optimizer and its learning-rate schedule: configs to Keras optimizers and to the rate of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from mnistexp.config.schema import OptimizerConfig

Floats = npt.NDArray[np.floating[Any]]

NOT_DECAYED = ("bias", "gamma", "beta", "scale")
"""The names of biases and of a normalisation's weights in Keras: decayed to 0 they would switch units off."""

_SCHEDULE_FIELDS = {"name", "learning_rate", "schedule", "warmup_epochs"}


def build_optimizer(config: OptimizerConfig, weights: Sequence[keras.Variable]) -> keras.optimizers.Optimizer:
    """Build the Keras optimizer of that name; every field of the config but the schedule's is an argument of its class.

    So a new optimizer needs a YAML and a schema class, and no code here. Weight decay is Keras's decoupled one
    (Loshchilov & Hutter 2019) per step, multiplied by the learning rate as in PyTorch, where the paper multiplies by
    the schedule's factor alone. Biases and a normalisation's scale and offset are exempt.
    """
    arguments = config.model_dump(exclude=_SCHEDULE_FIELDS) | {"learning_rate": config.learning_rate}
    optimizer = keras.optimizers.get({"class_name": config.name, "config": arguments})
    # By variable: Keras searches a pattern in paths that contain layer names too, such as the kernel of `debias`.
    optimizer.exclude_from_weight_decay(var_list=[weight for weight in weights if weight.name in NOT_DECAYED])
    # None skips the pass over the weights; AdamW's constructor refuses it, so it is set here.
    optimizer.weight_decay = config.weight_decay or None
    optimizer.build(weights)
    return optimizer


def runtime_hyperparameters(config: OptimizerConfig) -> dict[str, float]:
    """Return the hyperparameters that a compiled program takes as arguments, by Keras's attribute name.

    Zeros are compiled instead: Keras branches on them in Python (`if self.momentum != 0`).
    """
    fields = config.model_dump(exclude=_SCHEDULE_FIELDS)
    return {name: value for name, value in fields.items() if isinstance(value, float) and value != 0}


def compilation_key(config: OptimizerConfig) -> tuple[object, ...]:
    """Return what changes the compiled code: the optimizer's name, its switches, and which floats are zero."""
    fields = config.model_dump(exclude=_SCHEDULE_FIELDS)
    switches = tuple((name, value) for name, value in fields.items() if not isinstance(value, float))
    return config.name, switches, tuple(runtime_hyperparameters(config))


class RuntimeHyperparameter:
    """An argument of a compiled program in a place where Keras expects a nonzero Python float, such as `beta_1`.

    `1 - x` is rounded from the float64 difference, as in Keras: float32(1 - 0.999) and 1 - float32(0.999) differ in
    the fifth digit.
    """

    dtype = "float32"

    def __init__(self, value: tf.Tensor, complement: tf.Tensor) -> None:
        """Args: value, complement: float32 scalars x and 1 - x in the program that is traced."""
        self._value = value
        self._complement = complement

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        return self._value if dtype is None else tf.cast(self._value, dtype)

    def __rsub__(self, other: float) -> tf.Tensor:
        if other != 1:
            raise TypeError(f"Keras subtracts a hyperparameter from {other!r} here; only 1 - x is implemented")
        return self._complement

    def __ne__(self, other: object) -> bool:
        return True  # Keras compares with 0 alone, and zeros are compiled

    def __gt__(self, other: float) -> bool:
        return True

    __hash__ = object.__hash__


def learning_rates(config: OptimizerConfig, first: int, stop: int, total: int, epoch_steps: int) -> Floats:
    """Return the learning rate at each step of [first, stop), float64.

    `constant` and `cosine` start with a linear warm-up from 0 (Goyal et al. 2017), which the end of the run may cut
    short. `cosine` then falls towards 0, which it would reach at step `total` (SGDR without restarts, Loshchilov &
    Hutter 2017; equal to Keras's CosineDecay). `one_cycle` is PyTorch's OneCycleLR (Smith & Topin 2018).

    Args:
        config: an optimizer; its learning_rate is the peak.
        first: steps since the start of the run, from 0.
        stop: the step after the last one.
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
"""PyTorch's defaults: the share of the run in which the rate rises, and its first and last value per peak."""


def _one_cycle(steps: Floats, total: int) -> Floats:
    """Return the rate per peak: half a cosine up, then half a cosine down."""
    last = max(total - 1, 1)
    top = max(CYCLE_RISE * total - 1, 1e-9)
    up = _half_cosine(CYCLE_START, 1.0, np.clip(steps / top, 0, 1))
    down = _half_cosine(1.0, CYCLE_END, np.clip((steps - top) / max(last - top, 1e-9), 0, 1))
    return np.where(steps <= top, up, down)


def _half_cosine(start: float, end: float, progress: Floats) -> Floats:
    rate: Floats = end + (start - end) * 0.5 * (1.0 + np.cos(math.pi * progress))
    return rate
