"""The trainer on the digits: against plain Keras, its reproducibility, its end, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
import runs
import tensorflow as tf
from pydantic import TypeAdapter

from mnistexp.config.schema import DataConfig, RunConfig
from mnistexp.data import dataset
from mnistexp.data.dataset import Dataset, Split
from mnistexp.errors import ConfigError, TrainingError
from mnistexp.training import augmentation
from mnistexp.training import model as models
from mnistexp.training.compiled_epoch import permutation
from mnistexp.training.results import EpochScores
from mnistexp.training.trainer import Fit, Trainer, check_numbers, weights_hash

TRAIN = 1000


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """The digits, with 1,000 images to train on: 10 steps of 100 an epoch."""
    whole = dataset.load(TypeAdapter(DataConfig).validate_python(runs.DIGITS))
    return replace(whole, train=Split(whole.train.images[:TRAIN], whole.train.labels[:TRAIN]))


@pytest.fixture(scope="module")
def trainer(digits: Dataset) -> Trainer:
    """One trainer for the whole file, as a worker has one for life: what ran before must not matter."""
    return Trainer(digits)


def _pixels(images: Any) -> Any:
    return images.astype(np.float32) / 16


def _finished(trainer: Trainer, config: RunConfig) -> Fit:
    fit = trainer.fit(config)
    for _ in fit:
        pass
    return fit


def _trail(fit: Fit) -> tuple[Any, ...]:
    """Everything that a run computed, without its times."""
    epochs = [scores.model_copy(update={"seconds": 0.0}) for scores in fit.result().epochs]
    return epochs, weights_hash(fit.weights()), fit.result().validation_correct


# --------------------------------------------------------------------------- against a plain Keras loop

SCHEDULED = {"schedule": "cosine", "warmup_epochs": 0.5}
OPTIMIZERS = keras.optimizers
CASES = {
    "nesterov": (runs.NESTEROV, lambda rate: OPTIMIZERS.SGD(rate, momentum=0.9, nesterov=True)),
    "nadam": (runs.NADAM, lambda rate: OPTIMIZERS.Nadam(rate, 0.9, 0.99, 1e-6)),
    "adam-without-momentum": (runs.ADAM | {"beta_1": 0.0}, lambda rate: OPTIMIZERS.Adam(rate, 0.0, 0.99, 1e-6)),
    "rmsprop-momentum": (runs.RMSPROP_MOMENTUM, lambda rate: OPTIMIZERS.RMSprop(rate, 0.8, 0.5, 1e-6)),
    "adamw": (
        runs.ADAMW | SCHEDULED | {"weight_decay": 0.1},
        lambda rate: OPTIMIZERS.AdamW(rate, 0.1, 0.9, 0.99, 1e-6),
    ),
    "sgd-decay": (
        runs.MOMENTUM | SCHEDULED | {"weight_decay": 0.5},
        lambda rate: OPTIMIZERS.SGD(rate, 0.9, weight_decay=0.5),
    ),
    "lion-decay": (
        runs.LION | SCHEDULED | {"weight_decay": 0.5},
        lambda rate: OPTIMIZERS.Lion(rate, 0.9, 0.99, weight_decay=0.5),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_training_equals_a_plain_keras_loop(trainer: Trainer, digits: Dataset, name: str) -> None:
    """Two epochs give the losses, accuracies and weights of an eager GradientTape loop with keras.optimizers."""
    optimizer, build = CASES[name]
    config = runs.run_config(optimizer, {"bias_initializer_stddev": 0.1}, seed=3, label_smoothing=0.1)

    fit = _finished(trainer, config)

    network, expected = _plain_keras(config, build(_keras_rate(config)), digits)
    for scores, reference in zip(fit.result().epochs, expected, strict=True):
        np.testing.assert_allclose([scores.loss, scores.val_loss], reference[:2], rtol=2e-4)
        np.testing.assert_allclose([scores.accuracy, scores.val_accuracy], reference[2:], atol=0.0041)
    network.set_weights(fit.weights())
    assert _keras_scores(network, digits.validation)[0] == pytest.approx(fit.result().best.val_loss, rel=1e-5)


def _keras_rate(config: RunConfig) -> Any:
    rate = config.optimizer.learning_rate
    if config.optimizer.schedule == "constant":
        return rate
    return OPTIMIZERS.schedules.CosineDecay(0.0, decay_steps=15, warmup_target=rate, warmup_steps=5)


def _plain_keras(config: RunConfig, optimizer: Any, digits: Dataset) -> tuple[Any, list[tuple[float, ...]]]:
    """The same run in eager Keras, per epoch: loss, validation loss, accuracy, validation accuracy."""
    network = models.build_model(config.model, 64, 10)
    models.initialise(network, config.model, config.seed)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    criterion = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    scores = []
    for epoch in range(config.trainer.epochs):
        steps = []
        for rows in permutation(TRAIN, config.seed, epoch).reshape(-1, 100):
            labels = digits.train.labels[rows]
            with tf.GradientTape() as tape:
                logits = network(_pixels(digits.train.images[rows]), training=True)
                loss = criterion(keras.ops.one_hot(labels, 10), logits)
            optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)
            steps.append((float(loss), float(np.mean(np.argmax(logits, -1) == labels))))
        loss, accuracy = np.mean(steps, axis=0)
        val_loss, val_accuracy = _keras_scores(network, digits.validation)
        scores.append((loss, val_loss, accuracy, val_accuracy))
    return network, scores


def _keras_scores(network: Any, split: Split) -> tuple[float, float]:
    logits = network(_pixels(split.images), training=False)
    losses = keras.losses.sparse_categorical_crossentropy(split.labels, logits, from_logits=True)
    return float(np.mean(losses)), float(np.mean(np.argmax(logits, -1) == split.labels))


def test_averaged_weights_are_the_average_of_the_steps(trainer: Trainer, digits: Dataset) -> None:
    """The kept weights are the moving average of an eager loop's weights and batch statistics after each step.

    The training itself continues from the weights and not from their average.
    """
    config = runs.run_config(runs.SGD, {"batch_normalization": True}, epochs=2, ema_momentum=0.5)
    network = models.build_model(config.model, 64, 10)
    models.initialise(network, config.model, config.seed)
    optimizer, averages = OPTIMIZERS.SGD(0.1), network.get_weights()

    fit = _finished(trainer, config)

    orders = [permutation(TRAIN, 0, epoch).reshape(-1, 100) for epoch in (0, 1)]
    for step, rows in enumerate(np.concatenate(orders), start=1):
        with tf.GradientTape() as tape:
            logits = network(_pixels(digits.train.images[rows]), training=True)
            loss = tf.reduce_mean(models.training_losses(tf.constant(digits.train.labels[rows]), logits, 0.0))
        optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)
        kept = min(0.5, (1 + step) / (10 + step))  # from step 8 of 20 on 0.5
        averages = [kept * old + (1 - kept) * new for old, new in zip(averages, network.get_weights(), strict=True)]
    for ours, reference in zip(fit.weights(), averages, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=0.02, atol=2e-4)
    network.set_weights(fit.weights())
    assert _keras_scores(network, digits.validation)[0] == pytest.approx(fit.result().best.val_loss, rel=1e-5)


WARPS = {"shift": 2.0, "rotate": 10.0, "scale": 0.1, "shear": 5.0, "elastic_alpha": 20.0}
EVERYTHING = {"batch_normalization": True, "input_dropout": 0.1, "dropout": 0.2}


def test_every_step_draws_its_own_masks_and_warps(trainer: Trainer, digits: Dataset) -> None:
    """The training loss equals that of a loop with another seed in each step, and not one with equal seeds."""
    config = runs.run_config(runs.SGD, {"dropout": 0.3}, epochs=1, augmentation=WARPS, seed=3)
    reported = _finished(trainer, config).result().epochs[0].loss

    moving, resting = (_loop_loss(config, digits, moves) for moves in (1, 0))

    assert reported == pytest.approx(moving, rel=1e-4)
    assert abs(resting - moving) > 20 * abs(reported - moving)


def _loop_loss(config: RunConfig, digits: Dataset, moves: int) -> float:
    """Return the mean loss of one epoch of plain SGD; each step adds `moves` to the seeds."""
    network = models.build_model(config.model, 64, 10)
    models.initialise(network, config.model, config.seed)
    training_pass = models.TrainingPass(network)
    numbers = tf.constant(augmentation.runtime_hyperparameters(config.augmentation), tf.float32)
    base = tf.constant([models.stateless_seeds(config.seed, stream, 0) for stream in ("dropout", "augmentation")])

    @tf.function(jit_compile=True, autograph=False)
    def step(images: tf.Tensor, labels: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, Any]:
        warped = augmentation.augment(images, (8, 8), config.augmentation.warps, numbers, seeds[1])
        with tf.GradientTape() as tape:
            logits = training_pass(warped, seeds[0], lambda _: None)
            loss = tf.reduce_mean(models.training_losses(labels, logits, 0.0))
        return loss, tape.gradient(loss, network.trainable_variables)

    losses = []
    for index, rows in enumerate(permutation(TRAIN, config.seed, 0).reshape(-1, 100)):
        images = tf.constant(_pixels(digits.train.images[rows]))
        loss, gradients = step(images, tf.constant(digits.train.labels[rows]), base + tf.constant([moves * index, 0]))
        losses.append(float(loss))
        for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.1 * gradient)
    return float(np.mean(losses))


def test_a_permutation_has_each_image_once() -> None:
    """The shuffle is a permutation, fixed by its seed, and differs by epoch."""
    orders = [permutation(1000, 1, epoch) for epoch in (0, 1, 0)]

    assert all(np.array_equal(np.sort(order), np.arange(1000)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[0], orders[2])


# ------------------------------------------------------------------------------------- reproducibility


@pytest.mark.parametrize(
    "config",
    [
        runs.run_config(runs.NADAM, {"dropout": 0.3}, seed=5),
        runs.run_config(runs.ADAM, EVERYTHING, seed=5, augmentation=WARPS, ema_momentum=0.9),
    ],
    ids=["nadam", "everything"],
)
def test_same_config_same_bits_whatever_ran_before(trainer: Trainer, digits: Dataset, config: RunConfig) -> None:
    """Neither earlier runs of the same or another shape nor a new trainer change a bit of a run."""
    first = _trail(_finished(trainer, config))

    other = _trail(_finished(trainer, config.model_copy(update={"seed": 6})))
    _finished(trainer, runs.run_config(runs.ADAM, {"hidden_units": [8]}, epochs=1))
    keras.utils.set_random_seed(1)

    assert other != first
    assert _trail(_finished(trainer, config)) == first
    assert _trail(_finished(Trainer(digits), config)) == first


def test_a_second_run_of_a_shape_compiles_nothing(trainer: Trainer) -> None:
    """Seeds, rates, hyperparameters, schedule, smoothing, epochs and steps are arguments of a program."""
    model = {"dropout": 0.1, "hidden_units": [16]}
    _finished(trainer, runs.run_config(runs.ADAM | {"weight_decay": 0.1}, model))
    before = list(trainer._programs)

    other = {"beta_1": 0.5, "epsilon": 1e-3, "weight_decay": 0.2, "learning_rate": 0.01, **SCHEDULED}
    _finished(trainer, runs.run_config(runs.ADAM | other, model | {"dropout": 0.7}, seed=9, epochs=1))
    _finished(trainer, runs.run_config(runs.ADAM | other, model, max_steps=3, label_smoothing=0.2))

    assert list(trainer._programs) == before
    trainer.fit(runs.run_config(runs.ADAM | other, model, batch_size=50))
    assert list(trainer._programs) != before


def test_hyperparameters_are_arguments_of_a_program(trainer: Trainer) -> None:
    """Each of them, changed alone, changes the weights, and all share one program."""
    base = runs.RMSPROP_MOMENTUM | {"weight_decay": 0.01}
    changes: list[dict[str, dict[str, Any]]] = [{}]
    changes += [{"optimizer": {name: 0.5}} for name in ("rho", "epsilon", "weight_decay")]
    changes += [{"optimizer": {"momentum": 0.9}}]
    changes += [{"model": {name: 0.4}} for name in ("input_dropout", "dropout")]
    changes += [{"augmentation": {name: value / 2}} for name, value in (WARPS | {"elastic_sigma": 4.0}).items()]
    changes += [{"trainer": {"ema_momentum": 0.5}}, {"trainer": {"label_smoothing": 0.1}}]
    configs = [
        runs.run_config(
            base | change.get("optimizer", {}),
            EVERYTHING | change.get("model", {}),
            augmentation=WARPS | change.get("augmentation", {}),
            **({"epochs": 1, "ema_momentum": 0.9} | change.get("trainer", {})),
        )
        for change in changes
    ]

    fits = [_finished(trainer, config) for config in configs]

    assert len({id(fit._program) for fit in fits}) == 1
    assert len({weights_hash(fit.weights()) for fit in fits}) == len(changes)


def test_programs_are_bounded(digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used program is deleted, and compiled again when it is needed."""
    monkeypatch.setattr("mnistexp.training.trainer.PROGRAMS_KEPT", 1)
    trainer = Trainer(digits)

    programs = [trainer.fit(runs.run_config(model={"hidden_units": [units]}))._program for units in (2, 3, 2)]

    assert len(set(map(id, programs))) == 3
    assert len(trainer._programs) == 1


def test_nothing_is_selected_by_the_test_split(trainer: Trainer, digits: Dataset) -> None:
    """With shuffled test labels every validation score and the kept weights are bit-identical."""
    wrong = np.random.default_rng(0).permutation(digits.test.labels)
    cheated = Trainer(replace(digits, test=Split(digits.test.images, wrong)))

    fits = [_finished(each, runs.run_config(runs.ADAM, epochs=4)) for each in (trainer, cheated)]

    assert _trail(fits[0]) == _trail(fits[1])
    assert trainer.evaluate(fits[0])[1] > 0.3
    assert cheated.evaluate(fits[1])[1] < 0.2


# --------------------------------------------------------------------------------- lengths and stopping


def test_a_training_ends_after_its_epochs_or_when_it_is_pruned(trainer: Trainer) -> None:
    """After its last epoch no further one follows; a caller prunes by not asking for the next one."""
    pruned = trainer.fit(runs.run_config(epochs=5))
    next(pruned)
    result = pruned.result(pruned=True)
    complete = _finished(trainer, runs.run_config(epochs=2, max_steps=20))

    assert (len(result.epochs), result.stopped) == (1, "pruned")
    assert complete.result().stopped == "completed"
    assert complete.ended
    with pytest.raises(StopIteration):
        next(complete)


def test_max_steps_ends_inside_an_epoch(trainer: Trainer) -> None:
    """Of 10 steps an epoch, 15 are one epoch and a half, and exactly 15 are taken."""
    config = runs.run_config(runs.ADAM, epochs=5, max_steps=15)

    fit = _finished(trainer, config)

    assert [scores.steps for scores in fit.result().epochs] == [10, 15]
    assert fit.result().stopped == "max_steps"
    assert int(fit._program._optimizer.iterations.numpy()) == 15


def test_early_stopping_keeps_the_best_epoch(trainer: Trainer) -> None:
    """With a large learning rate, training stops `patience` epochs after the best one, and keeps its weights."""
    fit = _finished(trainer, runs.run_config(runs.ADAM | {"learning_rate": 0.05}, epochs=60, patience=2))
    result = fit.result()

    accuracies = [scores.val_accuracy for scores in result.epochs]
    assert result.stopped == "early_stopping"
    assert result.best_epoch == len(result.epochs) - 2
    assert result.best.val_accuracy == max(accuracies)


@pytest.mark.parametrize("best", [True, False], ids=["best", "last"])
def test_scores_are_those_of_the_kept_weights(trainer: Trainer, digits: Dataset, best: bool) -> None:
    """They classify each image as in their epoch, without dropout and whatever ran since: plain Keras agrees."""
    config = runs.run_config(
        runs.ADAM | {"learning_rate": 0.05}, {"dropout": 0.2}, epochs=6, restore_best_weights=best, seed=2
    )
    fit = _finished(trainer, config)
    _finished(trainer, config.model_copy(update={"seed": 8}))
    result, test = fit.result(), trainer.evaluate(fit)

    network = models.build_model(config.model, 64, 10)
    network.set_weights(fit.weights())
    correct = np.argmax(network(_pixels(digits.validation.images)), -1) == digits.validation.labels
    expected = max(result.epochs, key=lambda scores: (scores.val_accuracy, -scores.val_loss))

    assert result.best_epoch == (expected.epoch if best else 6)
    assert correct.mean() == result.best.val_accuracy
    assert np.packbits(correct).tobytes() == result.validation_correct
    assert test == pytest.approx(_keras_scores(network, digits.test), rel=1e-5)


def test_a_run_without_its_program_or_without_an_epoch_is_refused(trainer: Trainer) -> None:
    """A run raises an error if another run uses its program now; a result needs at least one epoch."""
    first = trainer.fit(runs.run_config())
    next(first)
    second = trainer.fit(runs.run_config(seed=1))

    with pytest.raises(RuntimeError, match="belongs to another run"):
        next(first)
    with pytest.raises(RuntimeError, match="no epoch was trained yet"):
        second.result()


# -------------------------------------------------------------------------------------------- refusals


def test_a_nan_loss_is_an_error_though_accuracy_is_finite(trainer: Trainer) -> None:
    """A learning rate that is too large ends with the epoch and what to lower; the next run is sound."""
    deep = {"hidden_units": [32, 32, 32], "activation": "linear"}

    with pytest.raises(TrainingError, match=r"became \S+ in epoch 1: lower optimizer.learning_rate"):
        _finished(trainer, runs.run_config(runs.SGD | {"learning_rate": 1000.0}, deep))

    assert _finished(trainer, runs.run_config(model=deep, epochs=5)).result().best.val_accuracy > 0.5


SCORES = EpochScores(
    epoch=2, steps=40, learning_rate=0.1, loss=0.5, accuracy=0.9, val_loss=0.5, val_accuracy=0.9, seconds=1.0
)


@pytest.mark.parametrize(
    ("change", "finite", "message"),
    [
        ({"loss": float("nan")}, True, "^loss became nan in epoch 2"),
        ({"val_loss": float("inf")}, True, "^val_loss became inf in epoch 2"),
        ({}, False, "^a weight became infinite or nan in epoch 2"),
        ({"val_accuracy": 1.5}, True, r"^val_accuracy became 1.5 in epoch 2"),
        ({"accuracy": float("nan")}, True, "^accuracy became nan"),
    ],
)
def test_impossible_scores_are_refused(change: dict[str, float], finite: bool, message: str) -> None:
    """Each kind of impossible score is refused by name; possible ones pass."""
    check_numbers(SCORES, weights_finite=True)

    with pytest.raises(TrainingError, match=message):
        check_numbers(SCORES.model_copy(update=change), finite)


@pytest.mark.parametrize("shape", [(64,), (2, 2, 4, 4)])
def test_augmentation_needs_images(digits: Dataset, shape: tuple[int, ...]) -> None:
    """A vector cannot be rotated."""
    table = Trainer(replace(digits, image_shape=shape))

    with pytest.raises(ConfigError, match=r"the examples have the shape \[.*\]; give augmentation=none"):
        table.fit(runs.run_config(augmentation=WARPS))


def test_a_minibatch_larger_than_the_split_is_refused(trainer: Trainer) -> None:
    """Keras would train on no image; the message has the allowed range."""
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=1001: must be at most 1000"):
        trainer.fit(runs.run_config(batch_size=1001))


def test_an_incomplete_last_batch_is_left_out(trainer: Trainer) -> None:
    """1,000 images in minibatches of 300 are 3 steps; the accuracy counts those 900."""
    scores = next(trainer.fit(runs.run_config(batch_size=300)))

    assert scores.steps == 3
    assert scores.accuracy * 900 == pytest.approx(round(scores.accuracy * 900), abs=1e-3)


def test_float_images_are_taken_with_their_scale(trainer: Trainer, digits: Dataset) -> None:
    """Float images, already in [0, 1] and with scale 1, train as the bytes do."""
    parts = {name: getattr(digits, name) for name in ("train", "validation", "test")}
    floats = {name: Split(_pixels(split.images), split.labels) for name, split in parts.items()}

    fits = [
        _finished(each, runs.run_config(epochs=1)) for each in (Trainer(replace(digits, scale=1.0, **floats)), trainer)
    ]

    losses = [fit.result().best.val_loss for fit in fits]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
