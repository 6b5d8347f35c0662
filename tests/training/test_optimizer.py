"""Optimizers and learning-rate schedules, against Keras."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import runs
import tensorflow as tf
from pydantic import ValidationError

from mnistexp.training import model as models
from mnistexp.training import optimizer


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5])
def test_cosine_is_keras_own(warmup_epochs: float) -> None:
    """Warm-up and cosine give the learning rates of keras.optimizers.schedules.CosineDecay."""
    schedule = {"schedule": "cosine", "warmup_epochs": warmup_epochs, "learning_rate": 0.3}
    config = runs.run_config(runs.SGD | schedule).optimizer
    warmup = int(warmup_epochs * 10)
    start = {"initial_learning_rate": 0.0, "warmup_target": 0.3} if warmup else {"initial_learning_rate": 0.3}
    reference = keras.optimizers.schedules.CosineDecay(decay_steps=50 - warmup, warmup_steps=warmup, **start)

    rates = optimizer.learning_rates(config, 0, 50, 50, 10)

    np.testing.assert_allclose(rates, [float(reference(step)) for step in range(50)], atol=1e-6)


@pytest.mark.parametrize(("total", "top"), [(10, 2), (1000, 299)])
def test_one_cycle_rises_to_its_peak_and_falls_to_almost_nothing(total: int, top: int) -> None:
    """It starts at peak / 25, is at its peak after 30 % of the run, ends at peak / 250,000, and turns once."""
    config = runs.run_config(runs.SGD | {"schedule": "one_cycle", "learning_rate": 0.5}).optimizer

    rates = optimizer.learning_rates(config, 0, total, total, 10)

    assert rates[[0, top, -1]] == pytest.approx([0.5 / 25, 0.5, 0.5 / 250_000])
    assert (np.diff(rates[: top + 1]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    # PyTorch's OneCycleLR(max_lr=0.5, total_steps=10): start + (end - start) (1 - cos(pi s)) / 2, s = 1/2 at step 1.
    if total == 10:
        assert rates[1] == pytest.approx((0.02 + 0.5) / 2)


def test_a_constant_rate_is_exact_and_pieces_join() -> None:
    """Without a schedule every step has the config's very number; epochs are slices of one curve."""
    constant = runs.run_config(runs.SGD).optimizer
    cosine = runs.run_config(runs.SGD | {"schedule": "cosine", "warmup_epochs": 1.5}).optimizer

    assert set(optimizer.learning_rates(constant, 0, 20, 20, 10)) == {0.1}
    whole = optimizer.learning_rates(cosine, 0, 30, 30, 10)
    pieces = [optimizer.learning_rates(cosine, first, first + 10, 30, 10) for first in (0, 10, 20)]
    assert np.array_equal(whole, np.concatenate(pieces))


def test_warmup_longer_than_the_run_only_rises() -> None:
    """A run that ends within its warm-up rises linearly to its end."""
    config = runs.run_config(runs.SGD | {"schedule": "cosine", "warmup_epochs": 100.0}).optimizer

    rates = optimizer.learning_rates(config, 0, 20, 20, 10)

    np.testing.assert_allclose(rates, 0.1 * np.arange(20) / 20)


def test_the_compilation_key_ignores_values_but_not_zeros() -> None:
    """Two momenta share a program. Keras branches on momentum 0 in Python, so it has another program."""
    configs = [runs.run_config(runs.SGD | {"momentum": momentum}).optimizer for momentum in (0.5, 0.9, 0.0)]

    keys = [optimizer.compilation_key(config) for config in configs]

    assert keys[0] == keys[1] != keys[2]


def test_lion_without_momentum_is_refused() -> None:
    """Keras's Lion refuses beta_1=0 when it is built, so the config does before a worker starts."""
    with pytest.raises(ValidationError, match=r"beta_1\n.* greater than 0"):
        runs.run_config(runs.LION | {"beta_1": 0.0})


def test_a_runtime_hyperparameter_replaces_a_float_in_keras() -> None:
    """It converts to its value, 1 - x is its complement, and any other subtraction is refused."""
    hyperparameter = optimizer.RuntimeHyperparameter(tf.constant(0.25), tf.constant(0.75))

    assert float(tf.convert_to_tensor(hyperparameter)) == 0.25
    assert float(1 - hyperparameter) == 0.75
    with pytest.raises(TypeError, match="only 1 - x is implemented"):
        2 - hyperparameter


def test_weight_decay_spares_a_normalisations_scale_and_offset() -> None:
    """Only kernels decay, whatever their layers are called: a normalisation's numbers at 0 would switch units off."""
    network = models.build_model(runs.run_config(runs.ADAMW, {"batch_normalization": True}).model, 20, 10)
    more = (keras.layers.RMSNormalization(), keras.layers.Dense(3, name="debias"))
    whole = keras.Sequential([network, *more])
    whole.build((None, 20))
    weights = whole.trainable_variables
    built = optimizer.build_optimizer(runs.run_config(runs.ADAMW | {"weight_decay": 0.1}).optimizer, weights)
    for weight in weights:
        weight.assign(tf.ones(weight.shape))

    built.apply([tf.zeros(weight.shape) for weight in weights])  # gradients of zero: what moves has decayed

    decayed = [(w.path.split("/")[-2], w.name) for w in weights if float(tf.reduce_max(w.value)) < 1]
    assert {name for _, name in decayed} == {"kernel"}
    assert ("debias", "kernel") in decayed
    assert len(decayed) == sum(weight.name == "kernel" for weight in weights)
