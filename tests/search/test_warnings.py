"""Warnings about search spaces."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sweeps import SMALL

from mnistexp.config.compose import ROOT, compose, parse_request
from mnistexp.search import space as search_space
from mnistexp.search import warnings as plausibility

FINITE = ("model.activation=choice(relu,tanh)", "trainer.batch_size=choice(50,100,200)", "optimizer.learning_rate=0.1")


def warnings(*overrides: str, images: int = 55_000) -> list[str]:
    """All that is said against a command line."""
    request = parse_request(overrides)
    space, config = search_space.build(request), compose(request)
    return [*plausibility.misleading(space, config, images), *plausibility.idle(space, config)]


def small(*overrides: str) -> list[str]:
    """All that is said against a small search on digits."""
    return warnings(*SMALL, "study/pruner=none", "study/sampler=random", *overrides, images=1137)


@pytest.mark.parametrize(
    "overrides",
    [
        ("data=mnist",),
        ("data=mnist", "optimizer=glob(*)"),
        ("data=mnist", "study/pruner=hyperband", "study.trials=100"),
        ("data=mnist", "optimizer=adam", "optimizer.learning_rate=tag(log,interval(1e-5,1e-1))"),  # a decade, no more
        ("data=mnist", "optimizer.learning_rate=choice(0.01,0.02)"),
        ("data=mnist", "search=none", "optimizer.learning_rate=0.1", "seed=range(0,10)", "study.trials=10",
         "study/sampler=grid", "study/pruner=none"),
        ("data=mnist", "search=none", "optimizer.learning_rate=choice(0.05,0.1)", "seed=range(0,3)", "study.trials=6",
         "study/sampler=grid", "study/pruner=none"),  # a grid repeats each config, and `report by=` compares means
        ("data=mnist", "trainer.epochs=choice(5,10)", "study/pruner=none"),
    ],
)  # fmt: skip
def test_a_sensible_space_is_not_warned_of(overrides: tuple[str, ...]) -> None:
    """Nothing is said against the default space, nor against what stays just within reason."""
    assert warnings(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["trainer.epochs=range(2,9)", "study/pruner=hyperband"], "trainer.epochs is searched .*or study/pruner=none"),
        (["trainer.patience=choice(1,2)", "study/pruner=hyperband"], "trainer.patience is searched .*one value, or"),
        (["trainer.max_steps=choice(9,20)", "study/pruner=hyperband"], "trainer.max_steps is searched"),
        (["optimizer.learning_rate=tag(log,interval(0.01,20))"], r"goes more than a decade .* sgd \(0.01 to 1\).*narr"),
        (["optimizer.learning_rate=interval(5,10)"], r"\(5 to 10\) lies outside what suits sgd \(0.01 to 1\)"),
        (["optimizer=choice(sgd,adam)", "optimizer.learning_rate=tag(log,interval(0.01,1))"],
         r"beyond what suits adam \(0.0001 to 0.01\): trials there.*each optimizer brings its own range"),
        (["trainer.batch_size=choice(64,1000)"], r"up to 1,000 of 1,137 training images: one step.*at most 113"),
        (["trainer.batch_size=choice(64,2000)"], "up to 2,000, and there are 1,137 .*fail before they begin; give"),
        (["seed=range(0,4)"], "seed is searched together with hyperparameters.*`confirm` repeats .*study/sampler=grid"),
        (["model.dropout=choice(0.1)"], "model.dropout has one value to draw.*give model.dropout=0.1 outright"),
        (["optimizer=choice(adam)"], "optimizer has one value to draw.*give optimizer=adam outright"),
        ([*FINITE, "study/sampler=grid", "study.trials=5"],
         r"study.trials=5 leaves the last 2 of 7 points out.*give study.trials=7, or study/sampler=random"),
        (["optimizer=choice(sgd,adam)", "study/sampler=gp", "study.trials=30"],
         "models what all trials have; drawn at random to the end: optimizer.learning_rate, which hangs on another"),
        (["model.dropout=interval(0.1,0.5)", "study/sampler=cmaes", "study.trials=30"],
         "at random to the end: model.dropout, of which the first trial.*widen it, or give study/sampler=tpe"),
        (["study/sampler=tpe", "study.trials=10"], "all of study.trials=10: it never models; give more trials"),
        (["study/pruner=median", "trainer.epochs=4"], "first 3 epochs, and none has more than 4: it never prunes"),
        (["study/pruner=median", "trainer.epochs=9", "study.trials=5"], "all of study.trials=5: it never prunes"),
    ],
)  # fmt: skip
def test_each_senseless_space_gets_its_sentence(overrides: list[str], found: str) -> None:
    """One sentence, and no other, for each; it says what is wrong and what to type."""
    said = small(*overrides)

    assert len(said) == 1, said
    assert re.search(found, said[0]), said[0]


def test_an_optimizer_of_the_users_may_need_what_the_sweep_gives_it(tmp_path: Path) -> None:
    """Its own range is looked up with the defaults, where its warm-up would be too long: no fault of this sweep."""
    text = (ROOT / "conf/optimizer/adam.yaml").read_text()
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer/slow.yaml").write_text(text.replace("warmup_epochs: 0.0", "warmup_epochs: 12"))
    request = parse_request(["optimizer=slow", "trainer.epochs=30"], tmp_path)

    assert list(plausibility.misleading(search_space.build(request), compose(request), 55_000)) == []


def test_a_grid_that_reaches_its_end_is_not_warned_of() -> None:
    """As many trials as the space has points, the composed config among them or besides."""
    assert small(*FINITE, "study/sampler=grid", "study.trials=7") == []  # 6, and batch_size=128
    assert small(*FINITE, "trainer.batch_size=choice(64,128)", "study/sampler=grid", "study.trials=4") == []
