from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from mnistexp.config.compose import compose, parse_request
from mnistexp.config.option_files import config_groups
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.search.space import SearchSpace, Suggestion, build

ALONE = ("search=none", "data=digits", "optimizer.learning_rate=0.1")
"""A base that searches nothing."""


@functools.cache
def space(*overrides: str, config_dir: Path | None = None) -> SearchSpace:
    """The space of a command line. It has no state, so tests share it."""
    return build(parse_request(overrides, config_dir))


def faults(*overrides: str) -> list[str]:
    """Every fault of a space."""
    with pytest.raises(ConfigError) as caught:
        space(*overrides)
    return list(caught.value.faults)


def composed(*overrides: str, config_dir: Path | None = None) -> Config:
    """The config of a command line."""
    return compose(parse_request(overrides, config_dir))


def without_search(config: Config) -> dict[str, Any]:
    """A config without its settings of the search."""
    return config.model_dump(exclude={"search", "study"})


def draws(of: SearchSpace, count: int) -> list[tuple[Suggestion, dict[str, Any]]]:
    """Random draws, each with the parameters that Optuna stored."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    found = []
    for number in range(count):
        trial = study.ask()
        found.append((of.suggest(trial, seed=number), dict(trial.params)))
        study.tell(trial, float(number))
    return found


# ----------------------------------------------------------------------------------------------- what is searched


@pytest.mark.parametrize(
    ("overrides", "descriptions"),
    [
        (  # each optimizer has the range of its own file, and equal ranges share a parameter
            ("optimizer=choice(sgd,momentum,nesterov,adam,adamw)",),
            {
                "optimizer": "sgd, momentum, nesterov, adam, adamw",
                "optimizer.learning_rate@sgd": "0.01 to 1, logarithmic",
                "optimizer.learning_rate@momentum|nesterov": "0.003 to 0.3, logarithmic",
                "optimizer.learning_rate@adam|adamw": "0.0001 to 0.01, logarithmic",
            },
        ),
        (  # where all options agree, the name is the key
            ("optimizer=choice(adam,adamw)",),
            {"optimizer": "adam, adamw", "optimizer.learning_rate": "0.0001 to 0.01, logarithmic"},
        ),
        (  # the user's range replaces those of all optimizers
            ("optimizer=choice(sgd,adam)", "optimizer.learning_rate=interval(0.1,0.2)"),
            {"optimizer": "sgd, adam", "optimizer.learning_rate": "0.1 to 0.2"},
        ),
        # a fixed group keeps its own range
        (("optimizer=lion",), {"optimizer.learning_rate": "3e-05 to 0.003, logarithmic"}),
        (("optimizer=choice(sgd,adam)", "search.optimizer.learning_rate=null"), {"optimizer": "sgd, adam"}),
        (("optimizer=choice(sgd,adam)", "~search.optimizer.learning_rate"), {"optimizer": "sgd, adam"}),
        (("optimizer=sgd,adam", "optimizer.learning_rate=0.1"), {"optimizer": "sgd, adam"}),
    ],
)
def test_parameters_and_their_names(overrides: tuple[str, ...], descriptions: dict[str, str]) -> None:
    """A parameter has its key as its name, and the options too where these differ in its distribution."""
    assert space("search=none", *overrides).descriptions() == descriptions


def test_a_fingerprint_distinguishes_spaces() -> None:
    """It differs with every end, step and scale, and is the same for the same space."""
    written = "interval(0.1,0.5) interval(0.1,0.4) tag(log,interval(0.1,0.5)) range(0.1,0.5,0.1) choice(0.1,0.5)"
    texts = written.split()

    found = [json.dumps(space(*ALONE, f"model.dropout={text}").fingerprint()) for text in texts]

    assert len(set(found)) == len(texts)
    assert found[0] == json.dumps(build(parse_request([*ALONE, f"model.dropout={texts[0]}"])).fingerprint())


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """A folder with an optimizer `deep` that searches trainers, and a trainer `long` that searches its patience."""
    for name, text in {
        "optimizer/deep": "defaults:\n  - adam\n  - _self_\nsearch:\n  trainer: choice(default, long)\n",
        "trainer/long": "defaults:\n  - default@trainer\n  - _self_\ntrainer:\n  epochs: 50\n"
        "search:\n  trainer.patience: range(3, 5)\n",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return tmp_path


def test_a_drawn_option_may_add_a_group(nested: Path) -> None:
    """Spaces are conditional to any depth, and the overrides of each draw compose to its config."""
    overrides = ("search=none", "data=digits", "optimizer=choice(sgd,deep)", "optimizer.learning_rate=0.1")
    found = space(*overrides, config_dir=nested)

    drawn = draws(found, 10)

    assert list(found.points()) == [
        {"optimizer": "sgd"},
        {"optimizer": "deep", "trainer": "default"},
        {"optimizer": "deep", "trainer": "long", "trainer.patience": 3},
        {"optimizer": "deep", "trainer": "long", "trainer.patience": 4},
    ]
    assert found.size() == 4
    assert {draw.config.trainer.epochs for draw, _ in drawn} == {10, 50}
    for draw, _ in drawn:
        assert without_search(composed(*draw.overrides, config_dir=nested)) == without_search(draw.config)


# ---------------------------------------------------------------------------------------- finite and infinite


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ((*ALONE, "model.activation=relu,tanh", "trainer.batch_size=range(32,129,32)"), 8),
        ((*ALONE, "optimizer=glob(*)"), len(config_groups()["optimizer"])),
        ((*ALONE, "model.dropout=range(0,0.5,0.1)"), 5),
        ((*ALONE, "trainer.epochs=tag(log,int(interval(1,10)))"), 10),
        (("experiments=blog_2017/ten_seeds",), 10),
        ((*ALONE, "model.dropout=interval(0,0.5)"), None),
        (("search=none", "optimizer=choice(sgd,adam)"), None),
    ],
)
def test_the_size_is_the_number_of_points(overrides: tuple[str, ...], size: int | None) -> None:
    """A finite space is enumerated without repetition; one interval makes a space infinite."""
    found = space(*overrides)

    assert found.size() == size
    if size is not None:
        points = [json.dumps(point) for point in found.points()]
        assert len(points) == len(set(points)) == size


def test_a_grid_replaces_intervals_by_points() -> None:
    """The points are evenly spaced in each optimizer's own range and scale, with both ends."""
    grid = ("study/sampler=grid", "study.sampler.points=3")
    found = space("search=none", "optimizer=choice(sgd,lion)", "model.dropout=interval(0,0.5)", *grid)
    rates = {"sgd": [0.01, 0.1, 1.0], "lion": [3e-5, 3e-4, 3e-3]}

    assert [tuple(point.values()) for point in found.points()] == [
        (name, *drawn) for name in rates for drawn in itertools.product(rates[name], [0.0, 0.25, 0.5])
    ]
    assert found.size() == 18
    assert "count" not in "".join(found.fingerprint().values())  # a study may change the number of points


def test_every_point_can_be_drawn() -> None:
    """An enqueued point is drawn and stored unchanged, lists and float steps included."""
    found = space(
        *ALONE,
        "optimizer=choice(sgd,adam)",
        "model.hidden_units=choice([20],[])",
        "optimizer.weight_decay=range(0.1,0.5,0.1)",
        "trainer.label_smoothing=interval(0,0.3)",
        "study/sampler=grid",
        "study.sampler.points=4",
    )
    study, drawn = optuna.create_study(), set()

    for point in found.points():
        study.enqueue_trial(point)
        trial = study.ask()
        c = found.suggest(trial, seed=0).config
        drawn.add((c.optimizer.name, c.model.hidden_units, c.optimizer.weight_decay, c.trainer.label_smoothing))  # type: ignore[union-attr]
        assert trial.params == point

    assert drawn == set(itertools.product(["sgd", "adam"], [(20,), ()], [0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.2, 0.3]))


# ------------------------------------------------------------------------------------------------ every fault


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.activatoin=relu,tanh", "did you mean model.activation?"),
        ("search.qqq=choice(1,2)", "search.qqq: can't be searched"),
        ("search.optimzer=choice(sgd,adam)", "did you mean optimizer?"),
        ("model.hidden_units=choice(1,[2])", "model.hidden_units=1: must be a list, such as [300, 100]"),
        ("model.dropout=interval(0,1)", "search.model.dropout=interval(0,1): model.dropout=1.0: must be less than 1"),
        ("trainer.epochs=interval(1,5)", "a whole number; for whole numbers write int(interval(…)) or range(…)"),
        ("trainer.device=cpu,gpu", "search.trainer.device: can't be searched: all trials"),
        ("trainer.threads=1,2", "search.trainer.threads: can't be searched: a worker's threads"),
        ("data=mnist,digits", "search.data: can't be searched; a study searches seed, model, optimizer"),
        ("study/sampler=tpe,random", "search.study/sampler: can't be searched"),
        ("search.optimizer.name=choice(sgd,adam)", "search.optimizer.name: can't be searched"),
        ("search.optimizer=range(1,3)", "optimizer is a config group; write choice(OPTION, OPTION)"),
        ("optimizer=sgd,adamm", "with optimizer=adamm, optimizer=adamm: must be one of adam"),
        ("optimizer=glob(x*)", "no value is left to choose from"),
        ("seed=range(-1,3)", "seed=-1: must be greater than or equal to 0"),
        ("~search.optimizer.learning_rate", "there is nothing to search; add a distribution"),
    ],
)
def test_a_fault_of_the_space_is_found_before_anything_runs(override: str, words: str) -> None:
    """A key or a value that cannot be searched is one sentence with its name."""
    (found,) = faults("search=none", override)

    assert words in found


def test_faults_of_config_and_space_come_at_once() -> None:
    """A refused value does not hide wrong distributions."""
    found = faults("trainer.epochs=-5", "model.dropout=interval(2,1)", "search.model.activation=choice()")

    assert [fault.partition(":")[0] for fault in found] == [
        "trainer.epochs=-5",
        "search.model.dropout=interval(2,1)",
        "search.model.activation=choice()",
    ]


def test_a_fault_of_one_branch_is_found() -> None:
    """sgd accepts no nesterov without momentum, and momentum does."""
    (found,) = faults("search=none", "optimizer=choice(momentum,sgd)", "search.optimizer.nesterov=choice(true,false)")

    assert "nesterov=true: has no effect with momentum=0" in found


def test_values_that_are_wrong_only_together_are_a_fault_of_the_draw() -> None:
    """Each value is allowed with the defaults, so the space is; the draw that joins two of them is refused."""
    found = space(*ALONE, "optimizer.warmup_epochs=choice(1,8)", "trainer.epochs=choice(4,10)")
    study = optuna.create_study()
    study.enqueue_trial({"optimizer.warmup_epochs": 8, "trainer.epochs": 4})

    with pytest.raises(ConfigError, match=r"optimizer\.warmup_epochs=8\.0: longer than the training"):
        found.suggest(study.ask(), seed=0)


# -------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize(
    ("count", "overrides"),
    [
        pytest.param(10, (), id="default"),
        pytest.param(
            4,
            ("experiments=blog_2017/baseline", "optimizer=sgd,lion", "search.trainer.max_steps=range(100,500,100)"),
            id="experiment",
        ),
        pytest.param(
            4,
            (
                "data=digits",
                "optimizer=choice(rmsprop,lion,nadam)",
                "optimizer.weight_decay=range(0,0.5,0.1)",
                "model.hidden_units=choice([],[7],[64,32])",
                "~search.model.dropout",
                "optimizer.schedule=constant,cosine",
                "trainer.restore_best_weights=true,false",
                "trainer.patience=range(9,1,-2)",
                "trainer.label_smoothing=choice(0,0.1)",
                "model.bias_initializer_stddev=tag(log,interval(1e-9,1e-3))",
            ),
            id="everything",
        ),
        pytest.param(
            4, ("trainer.epochs=int(interval(2,9))", "optimizer.warmup_epochs='${trainer.epochs}'"), id="reference"
        ),
    ],
)
def test_the_config_of_a_trial_is_what_its_overrides_compose(count: int, overrides: tuple[str, ...]) -> None:
    """`train` with the overrides of a draw trains exactly the drawn config."""
    for draw, _ in draws(space(*overrides), count):
        assert without_search(composed(*draw.overrides)) == without_search(draw.config)


@pytest.mark.parametrize(("overrides", "seeds"), [((), [0, 1, 2]), (("seed=choice(41,42)",), [41, 42])])
def test_a_trial_has_its_own_seed_unless_seeds_are_searched(overrides: tuple[str, ...], seeds: list[int]) -> None:
    """The seed of the trial is part of the draw and of its overrides."""
    drawn = draws(space(*ALONE, "model.activation=relu,tanh", *overrides), 3)

    assert {draw.config.seed for draw, _ in drawn} <= set(seeds)
    assert all(f"seed={draw.config.seed}" in draw.overrides for draw, _ in drawn)


# ------------------------------------------------------------------------------------------------ the baseline


@pytest.mark.parametrize(
    ("overrides", "params"),
    [
        (
            ("search=default", "optimizer=choice(sgd,momentum)", "model.dropout=choice(0,0.25)"),
            {
                "optimizer": "momentum",
                "optimizer.learning_rate@momentum": 0.05,
                "trainer.batch_size": 128,
                "model.hidden_units": "[300]",
                "model.activation": "relu",
                "model.dropout": 0.0,
            },
        ),
        # what the space does not contain is not a parameter of the first trial
        (("search=none", "optimizer=choice(sgd,adam)"), {}),
        (("optimizer=momentum", "search=none", "trainer.batch_size=choice(16,32)"), {"optimizer.learning_rate": 0.05}),
        ((*ALONE, "model.dropout=interval(0.1,0.2)"), {}),
        ((*ALONE, "model.hidden_units=choice([1],[2])"), {}),
        # 0.3 is a point of the range, although 0.1 + 2 * 0.1 is not 0.3 in binary
        (
            (*ALONE, "optimizer.weight_decay=0.3", "search.optimizer.weight_decay=range(0.1,0.5,0.1)"),
            {"optimizer.weight_decay": 0.3},
        ),
    ],
)
def test_the_baseline_is_the_composed_config(overrides: tuple[str, ...], params: dict[str, Any]) -> None:
    """The first trial trains and stores the composed config with its own seed, in the space or not."""
    found = space("seed=5", *overrides)
    study = optuna.create_study()

    draw, enqueued = found.baseline()
    study.enqueue_trial(enqueued)
    trial = study.ask()

    assert enqueued == params
    assert draw.config == composed("seed=5", *overrides)
    assert without_search(composed(*draw.overrides)) == without_search(draw.config)
    assert found.suggest_baseline(trial) == draw
    assert trial.params == params
