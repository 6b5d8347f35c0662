from __future__ import annotations

import pytest

from mnistexp.config.compose import compose, parse_request
from mnistexp.search.space import build
from mnistexp.search.warnings import likely_mistakes, no_effect

SMALL = ("data=digits", "search=none", "optimizer=sgd", "optimizer.learning_rate=0.1", "trainer.epochs=10")
FINITE = ("model.activation=choice(relu,tanh)", "trainer.batch_size=choice(50,100,200)")
BY_SEED = ("data=mnist", "search=none", "study/sampler=grid", "study/pruner=none")


def warnings(*overrides: str, images: int = 55_000) -> list[str]:
    """All warnings about a command line."""
    request = parse_request(overrides)
    space, config = build(request), compose(request)
    return [*likely_mistakes(space, config, images), *no_effect(space, config)]


@pytest.mark.parametrize(
    "overrides",
    [
        ("data=mnist",),
        ("data=mnist", "study/pruner=hyperband", "study.trials=100"),
        ("data=mnist", "trainer.epochs=choice(5,10)", "study/pruner=none"),
        # a grid repeats each config with the same seeds
        (*BY_SEED, "optimizer.learning_rate=0.1", "seed=range(0,10)", "study.trials=10"),
        (*BY_SEED, "optimizer.learning_rate=choice(0.05,0.1)", "seed=range(0,3)", "study.trials=6"),
        # as many trials as the grid has points, with the composed config among them (4) or not (6 and one)
        ("data=mnist", *SMALL[1:], *FINITE, "study/sampler=grid", "study.trials=7", "study/pruner=none"),
    ],
)
def test_a_sensible_space_has_no_warning(overrides: tuple[str, ...]) -> None:
    """There is no warning about the default space, nor about spaces at the limits."""
    assert warnings(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.epochs=range(2,9)", "study/pruner=hyperband"], ["trainer.epochs is searched", "study/pruner=none"]),
        (["trainer.patience=choice(1,2)", "study/pruner=hyperband"], ["trainer.patience is searched", "one value"]),
        (["trainer.batch_size=choice(64,1000)"], ["1,000 of 1,137 training images", "one step", "at most 113"]),
        (["trainer.batch_size=choice(64,2000)"], ["2,000 of 1,137 training images", "fail", "at most 113"]),
        (["seed=range(0,4)", "model.dropout=choice(0,0.1)"], ["seed is searched", "`confirm`", "study/sampler=grid"]),
        (["model.dropout=choice(0.1)"], ["model.dropout has only one value; give model.dropout=0.1"]),
        (["optimizer=choice(adam)"], ["optimizer has only one value; give optimizer=adam"]),
        (
            [*FINITE, "study/sampler=grid", "study.trials=5"],
            ["study.trials=5", "last 2 of 7 points", "study.trials=7, or study/sampler=random"],
        ),
        (
            ["optimizer=choice(sgd,adam)", "~optimizer.learning_rate", "study/sampler=gp", "study.trials=30"],
            ["study/sampler=gp", "at random: optimizer.learning_rate; give study/sampler=tpe"],
        ),
        (
            ["model.dropout=interval(0.1,0.5)", "study/sampler=cmaes", "study.trials=30"],
            ["study/sampler=cmaes", "at random: model.dropout; give study/sampler=tpe"],
        ),
        ([*FINITE, "study/sampler=tpe", "study.trials=10"], ["study.trials=10: it never models"]),
        (
            [*FINITE, "study/pruner=median", "trainer.epochs=4"],
            ["study/pruner=median never prunes", "warmup_epochs=3"],
        ),
        (
            [*FINITE, "study/pruner=median", "trainer.epochs=9", "study.trials=5"],
            ["study/pruner=median never prunes", "study.trials=5"],
        ),
    ],
)
def test_each_mistake_has_one_warning(overrides: list[str], words: list[str]) -> None:
    """The only warning says what is wrong and what to type."""
    base = [text for text in SMALL if not ("~optimizer.learning_rate" in overrides and "learning_rate" in text)]
    given = [text for text in overrides if not text.startswith("~")]

    (found,) = warnings(*base, "study/pruner=none", "study/sampler=random", *given, images=1137)

    assert all(word in found for word in words), found
