from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from mnistexp.config.compose import compose, config_groups, parse_request
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.search.space import SearchSpace, Suggestion, build

ALONE = ("search=none", "data=digits", "optimizer.learning_rate=0.1")
"""A base that searches nothing by itself."""


@functools.cache
def space(*overrides: str, config_dir: Path | None = None) -> SearchSpace:
    """The space of a command line. It has no state, so tests share it."""
    return build(parse_request(overrides, config_dir))


def faults(*overrides: str, config_dir: Path | None = None) -> list[str]:
    """Every fault of a space."""
    with pytest.raises(ConfigError) as caught:
        space(*overrides, config_dir=config_dir)
    return list(caught.value.faults)


def composed(*overrides: str, config_dir: Path | None = None) -> Config:
    """What a command line composes."""
    return compose(parse_request(overrides, config_dir))


def without_search(config: Config) -> dict[str, Any]:
    """All of a config that isn't about searching."""
    return config.model_dump(exclude={"search", "study"})


def draws(of: SearchSpace, count: int, seed: int = 0) -> list[tuple[Suggestion, dict[str, Any]]]:
    """Random draws through a real study in memory, each with the parameters that Optuna stored."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    found = []
    for number in range(count):
        trial = study.ask()
        found.append((of.suggest(trial, seed=number), dict(trial.params)))
        study.tell(trial, float(number))
    return found


# ------------------------------------------------------------------------------------------ what is searched


def test_equal_ranges_share_a_name_and_others_carry_their_options() -> None:
    """Each optimizer draws from its own file's range, and those with one range learn from each other."""
    found = space("search=none", "optimizer=choice(sgd,momentum,nesterov,adam,adamw)").describe()

    assert set(found) == {
        "optimizer",
        "optimizer.learning_rate@sgd",
        "optimizer.learning_rate@momentum|nesterov",
        "optimizer.learning_rate@adam|adamw",
    }
    assert json.loads(found["optimizer.learning_rate@sgd"]) == {"low": 0.01, "high": 1.0, "step": None, "log": True}


def test_one_range_for_all_needs_no_options_in_its_name() -> None:
    """Where all options agree, the parameter is called by its key alone."""
    assert set(space("search=none", "optimizer=choice(adam,adamw)").describe()) == {
        "optimizer",
        "optimizer.learning_rate",
    }


def test_the_users_range_replaces_every_optimizers() -> None:
    """A distribution on the command line is the one that all options get."""
    found = space("search=none", "optimizer=choice(sgd,adam)", "optimizer.learning_rate=interval(0.1,0.2)").texts()

    assert found == {"optimizer": "sgd, adam", "optimizer.learning_rate": "0.1 to 0.2"}


def test_a_fixed_group_leaves_its_own_range() -> None:
    """optimizer=lion is no longer searched, but its learning rate is, in Lion's range."""
    found = space("optimizer=lion", "search=none")

    assert found.texts() == {"optimizer.learning_rate": "3e-05 to 0.003, logarithmic"}
    assert all(draw.config.optimizer.name == "lion" for draw, _ in draws(found, 5))


def test_a_fixed_value_holds_in_every_draw() -> None:
    """A value on the command line is every trial's, whatever optimizer is drawn."""
    found = space("optimizer.weight_decay=0.01", "trainer.epochs=3", "optimizer.learning_rate=0.05")

    drawn = draws(found, 20)

    assert not any("learning_rate" in name for name in found.texts())
    assert {
        (d.config.optimizer.weight_decay, d.config.trainer.epochs, d.config.optimizer.learning_rate) for d, _ in drawn
    } == {(0.01, 3, 0.05)}


@pytest.mark.parametrize("override", ["search.optimizer.learning_rate=null", "~search.optimizer.learning_rate"])
def test_a_key_of_every_option_can_be_left_out(override: str) -> None:
    """Taking a conditional key out takes it out of all branches: each optimizer keeps its own default."""
    found = space("search=none", "optimizer=choice(sgd,adam)", override)

    assert found.texts() == {"optimizer": "sgd, adam"}
    assert {d.config.optimizer.learning_rate for d, _ in draws(found, 10)} == {0.1, 0.001}


def test_leaving_the_last_key_out_leaves_nothing() -> None:
    """A sweep over nothing is refused with an example of something."""
    (found,) = faults("search=none", "~search.optimizer.learning_rate")

    assert found == "there is nothing to search; add a distribution, e.g. model.activation='choice(relu, tanh)'"


def test_an_experiment_searches_seeds_alone() -> None:
    """blog_2017/ten_seeds is the ten seeds, each of them once."""
    found = space("experiments=blog_2017/ten_seeds")

    assert (found.size(), list(found.points())) == (10, [{"seed": number} for number in range(10)])


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    """A folder in which the optimizer `deep` brings a search over trainers, and one trainer a search of its own."""
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer/deep.yaml").write_text(
        "# @package _global_\ndefaults:\n  - adam\n  - _self_\nsearch:\n  trainer: choice(default, long)\n"
    )
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer/long.yaml").write_text(
        "# @package _global_\ndefaults:\n  - default@trainer\n  - _self_\ntrainer:\n  epochs: 50\n"
        "search:\n  trainer.patience: range(3, 5)\n"
    )
    return tmp_path


NESTED = ("search=none", "data=digits", "optimizer=choice(sgd,deep)", "optimizer.learning_rate=0.1")


def test_a_drawn_option_may_bring_a_further_group(nested: Path) -> None:
    """Composition is what makes a space conditional, to any depth: sgd is one point here, deep three."""
    found = space(*NESTED, config_dir=nested)

    assert list(found.points()) == [
        {"optimizer": "sgd"},
        {"optimizer": "deep", "trainer": "default"},
        {"optimizer": "deep", "trainer": "long", "trainer.patience": 3},
        {"optimizer": "deep", "trainer": "long", "trainer.patience": 4},
    ]
    assert found.size() == 4


def test_nested_draws_compose_anew(nested: Path) -> None:
    """What a nested draw records as overrides composes to the drawn config."""
    drawn = draws(space(*NESTED, config_dir=nested), 10)

    assert {draw.config.trainer.epochs for draw, _ in drawn} == {10, 50}
    for draw, _ in drawn:
        assert without_search(composed(*draw.overrides, config_dir=nested)) == without_search(draw.config)


# ---------------------------------------------------------------------------------------- finite and infinite


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ((*ALONE, "model.activation=relu,tanh"), 2),
        ((*ALONE, "model.activation=relu,tanh", "trainer.batch_size=range(32,129,32)"), 8),
        ((*ALONE, "optimizer=glob(*)"), len(config_groups()["optimizer"])),
        ((*ALONE, "model.dropout=range(0,0.5,0.1)"), 5),
        ((*ALONE, "trainer.epochs=int(interval(1,10))"), 10),
        ((*ALONE, "trainer.epochs=tag(log,int(interval(1,10)))"), 10),
        ((*ALONE, "model.dropout=interval(0,0.5)"), None),
        (("search=none", "optimizer=choice(sgd,adam)"), None),
        ((), None),
    ],
)
def test_the_size_is_the_number_of_points(overrides: tuple[str, ...], size: int | None) -> None:
    """Finite spaces are counted, and enumerated to that count without a repeat; one interval makes it infinite."""
    found = space(*overrides)

    assert found.size() == size
    if size is not None:
        points = [json.dumps(point) for point in found.points()]
        assert len(points) == len(set(points)) == size


def test_in_a_grid_so_many_points_stand_for_an_interval() -> None:
    """Evenly spread over each optimizer's own range, over its logarithms where it has them, both ends included."""
    grid = ("study/sampler=grid", "study.sampler.points=3")
    found = space("search=none", "optimizer=choice(sgd,lion)", "model.dropout=interval(0,0.5)", *grid)
    rates = {"sgd": [0.01, 0.1, 1.0], "lion": [3e-5, 3e-4, 3e-3]}

    assert [tuple(point.values()) for point in found.points()] == [
        (name, *drawn) for name in rates for drawn in itertools.product(rates[name], [0.0, 0.25, 0.5])
    ]
    assert found.size() == 18
    assert "count" not in "".join(found.describe().values())  # the fingerprint is that of the intervals
    assert space("optimizer=sgd", "search=none", "optimizer.learning_rate=0.1", "model.dropout=interval(0,0.5)",
                 *grid).covers_baseline()  # fmt: skip


def test_every_point_can_be_drawn() -> None:
    """An enqueued point is drawn as it stands, lists and float steps included, and stored unchanged."""
    found = space(
        *ALONE,
        "optimizer=choice(sgd,adam)",
        "model.hidden_units=choice([20],[])",
        "optimizer.weight_decay=range(0.1,0.5,0.1)",
        "trainer.label_smoothing=interval(0,0.3)",
        "study/sampler=grid",
        "study.sampler.points=4",
    )
    study, drawn = optuna.create_study(), []

    for point in found.points():
        study.enqueue_trial(point)
        trial = study.ask()
        drawn.append(found.suggest(trial, seed=0).config)
        assert trial.params == point

    values = {
        (c.optimizer.name, c.model.hidden_units, c.optimizer.weight_decay, c.trainer.label_smoothing) for c in drawn
    }
    assert values == set(itertools.product(["sgd", "adam"], [(20,), ()], [0.1, 0.2, 0.3, 0.4], [0.0, 0.1, 0.2, 0.3]))


def test_a_float_range_is_drawn_in_decimals() -> None:
    """Optuna's sampler computes 0.30000000000000004; the trial is 0.3, as Hydra's range has it."""
    found = space(*ALONE, "optimizer.weight_decay=range(0.1,0.5,0.1)")

    assert {draw.config.optimizer.weight_decay for draw, _ in draws(found, 40)} == {0.1, 0.2, 0.3, 0.4}


# ------------------------------------------------------------------------------------------------ every fault


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.activatoin=relu,tanh", "the config has no model.activatoin; did you mean model.activation?"),
        ("optimizer.beta_1=0.5,0.9", "the config has no optimizer.beta_1"),
        ("search.qqq=choice(1,2)", "search.qqq: the config has no qqq"),
        ("search.search=choice(1,2)", "search.search: the config has no search"),
        ("search.optimzer=choice(sgd,adam)", "did you mean optimizer?"),
        ("search.trainer.patiense=choice(1,2)", "did you mean trainer.patience?"),
        ("model.hidden_units=choice(1,[2])", "model.hidden_units=1: must be a list, such as [300, 100]"),
        ("model.activation=relu,rleu", "tanh, sigmoid, linear; did you mean relu?"),
        ("model.dropout=interval(0,1)", "search.model.dropout=interval(0,1): model.dropout=1.0: must be less than 1"),
        ("optimizer.learning_rate=interval(0,1)", "optimizer.learning_rate=0.0: must be greater than 0"),
        ("trainer.epochs=range(0,5)", "trainer.epochs=0: must be greater than or equal to 1"),
        ("trainer.epochs=interval(1,5)", "a whole number; for whole numbers write int(interval(…)) or range(…)"),
        ("trainer.batch_size=tag(log,interval(16,256))", "for whole numbers write int(interval(…)) or range(…)"),
        ("trainer.device=cpu,gpu", "can't be searched: all of a study's trials run on the same kind of device"),
        ("trainer.threads=1,2", "can't be searched: a worker's threads are fixed when it starts"),
        ("data=mnist,digits", "search.data: can't be searched; a study searches model, optimizer, augmentation"),
        ("data.validation_size=1,2", "search.data.validation_size: can't be searched"),
        ("study.trials=1,2", "search.study.trials: can't be searched"),
        ("study/sampler=tpe,random", "search.study/sampler: can't be searched"),
        ("executor.workers=1,2", "search.executor.workers: can't be searched"),
        ("tracking=mlflow,none", "search.tracking: can't be searched"),
        ("search.experiments=choice(a,b)", "search.experiments: can't be searched"),
        ("search.optimizer.name=choice(sgd,adam)", "can't be searched by itself; search the config group: optimizer=…"),
        ("optimizer=sgd,adamm", "with optimizer=adamm, optimizer=adamm: must be one of adam"),
        ("optimizer=glob(x*)", "no value is left to choose from"),
        ("model.activation=choice(relu,relu)", "a value stands there twice"),
        ("search.model.activation=relu", "is a value, not a distribution"),
        ("seed=interval(0,5)", "seed=0.0: must be a whole number"),
        ("seed=range(-1,3)", "seed=-1: must be greater than or equal to 0"),
    ],
)  # fmt: skip
def test_a_fault_in_the_space_is_found_before_anything_runs(override: str, words: str) -> None:
    """What can't be searched or drawn is one sentence that names it, without a trial."""
    found = faults("search=none", override)

    assert len(found) == 1
    assert words in found[0]


def test_all_faults_of_a_space_come_at_once() -> None:
    """A foreign key, a bad grammar, a refused value and a bad option are four sentences of one message."""
    found = faults(
        "study.trials=1,2", "model.dropout=interval(2,1)", "model.activation=relu,rleu", "optimizer=choice(sgd,adamm)"
    )

    starts = {fault.partition(":")[0] for fault in found}
    assert starts == {
        "search.study.trials",
        "search.model.dropout=interval(2,1)",
        "search.model.activation=relu,rleu",
        "search.optimizer=choice(sgd,adamm)",
    }
    assert len(found) == 4


def test_faults_of_config_and_space_come_at_once() -> None:
    """A value that the schema refuses doesn't hide what is wrong with the user's own distributions."""
    found = faults("trainer.epochs=-5", "model.dropout=interval(2,1)", "search.model.activation=choice()")

    assert [fault.partition(":")[0] for fault in found] == [
        "trainer.epochs=-5",
        "search.model.dropout=interval(2,1)",
        "search.model.activation=choice()",
    ]


def test_a_fault_of_one_branch_is_found_in_it() -> None:
    """sgd takes no nesterov without momentum: the options that are fine don't hide the one that isn't."""
    (found,) = faults("search=none", "optimizer=choice(momentum,sgd)", "search.optimizer.nesterov=choice(true,false)")

    assert "nesterov=true does nothing with momentum=0" in found


def test_values_that_clash_only_together_are_no_fault_of_the_space() -> None:
    """Each value is fine with the defaults, so the space is; the draw that joins two of them says what is wrong."""
    found = space(*ALONE, "optimizer.warmup_epochs=choice(1,8)", "trainer.epochs=choice(4,10)")
    study = optuna.create_study()
    study.enqueue_trial({"optimizer.warmup_epochs": 8, "trainer.epochs": 4})

    with pytest.raises(ConfigError, match=r"optimizer\.warmup_epochs=8\.0: longer than the training"):
        found.suggest(study.ask(), seed=0)


# -------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param((), id="default"),
        pytest.param(
            ("experiments=blog_2017/baseline", "optimizer=sgd,lion", "search.trainer.max_steps=range(100,500,100)"),
            id="experiment",
        ),
        pytest.param(
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
            ("trainer.epochs=int(interval(2,9))", "optimizer.warmup_epochs='${trainer.epochs}'"), id="reference"
        ),
    ],
)  # fmt: skip
def test_a_trials_config_is_what_its_overrides_compose(overrides: tuple[str, ...]) -> None:
    """The rule of the house: draw after draw is bit for bit what `train` with its overrides trains."""
    for draw, _ in draws(space(*overrides), 8 if overrides else 50):
        assert without_search(composed(*draw.overrides)) == without_search(draw.config)


def test_draws_cover_the_space_and_stay_in_it() -> None:
    """Among 60 draws stands every choice, and every number lies in its own optimizer's range."""
    drawn = draws(space("optimizer=choice(sgd,adam)"), 60)

    rates = {"sgd": (0.01, 1.0), "adam": (1e-4, 1e-2)}
    assert {draw.config.optimizer.name for draw, _ in drawn} == set(rates)
    assert {draw.config.model.hidden_units for draw, _ in drawn} == {(300,), (500,), (300, 100), (500, 200)}
    assert len({draw.config.optimizer.learning_rate for draw, _ in drawn}) == 60
    for draw, params in drawn:
        low, high = rates[draw.config.optimizer.name]
        assert low <= draw.config.optimizer.learning_rate <= high
        assert f"optimizer.learning_rate@{draw.config.optimizer.name}" in params


def test_optuna_stores_lists_as_their_texts() -> None:
    """Optuna's databases take scalars alone, so a list is stored as it would be typed."""
    _, params = draws(space(*ALONE, "model.hidden_units=choice([300,100],[64])"), 1)[0]

    assert params["model.hidden_units"] in ("[300,100]", "[64]")


@pytest.mark.parametrize(("overrides", "seeds"), [((), [0, 1, 2]), (("seed=choice(41,42)",), [41, 42])])
def test_a_trials_seed_is_its_own_unless_seeds_are_searched(overrides: tuple[str, ...], seeds: list[int]) -> None:
    """The caller's seed goes into the draw and its overrides; a space over seeds draws them itself."""
    drawn = draws(space(*ALONE, "model.activation=relu,tanh", *overrides), 3)

    assert {draw.config.seed for draw, _ in drawn} <= set(seeds)
    assert all(f"seed={draw.config.seed}" in draw.overrides for draw, _ in drawn)


def test_no_draw_names_an_address() -> None:
    """Recorded overrides hold nothing of study, tracking or executor: that is where passwords are."""
    found = space("study.storage=postgresql://u:hunter2@h/db", "tracking.uri=http://u:hunter2@h/", "executor.workers=2")

    assert "hunter2" not in repr([draw.overrides for draw, _ in draws(found, 3)] + [found.baseline()[0].overrides])


# ------------------------------------------------------------------------------------------------ the baseline


def test_the_baseline_is_the_composed_config() -> None:
    """The first trial is what the words compose, own seed included, with its point in Optuna's terms."""
    words = ("data=digits", "seed=5", "optimizer=choice(sgd,momentum)", "model.dropout=choice(0,0.25)")

    draw, params = space(*words).baseline()

    assert draw.config == composed(*words)
    assert draw.config.seed == 5
    assert params == {
        "optimizer": "momentum",
        "optimizer.learning_rate@momentum": 0.05,
        "trainer.batch_size": 128,
        "model.hidden_units": "[300]",
        "model.activation": "relu",
        "model.dropout": 0.0,
    }
    assert without_search(composed(*draw.overrides)) == without_search(draw.config)


@pytest.mark.parametrize(
    ("override", "outside"),
    [
        ("optimizer=choice(sgd,adam)", {"optimizer", "optimizer.learning_rate@sgd", "optimizer.learning_rate@adam"}),
        ("trainer.batch_size=choice(16,32)", {"trainer.batch_size"}),
        ("model.dropout=interval(0.1,0.2)", {"model.dropout"}),
        ("model.hidden_units=choice([1],[2])", {"model.hidden_units"}),
    ],
)
def test_a_baseline_outside_the_space_says_what_of_it_is_inside(override: str, outside: set[str]) -> None:
    """What the space doesn't hold is no parameter of the first trial; it is trained all the same."""
    found = (
        space("optimizer=momentum", override)
        if not override.startswith("optimizer")
        else space("search=none", override)
    )

    draw, params = found.baseline()

    assert not outside & params.keys()
    assert draw.config.optimizer.name == "sgd"
    assert draw.config.trainer.batch_size == 128


def test_a_step_that_only_looks_missed_is_inside() -> None:
    """0.3 is a point of range(0.1, 0.5, 0.1), whatever 0.1 + 2 * 0.1 is in binary."""
    _, params = space(
        *ALONE, "optimizer.weight_decay=0.3", "search.optimizer.weight_decay=range(0.1,0.5,0.1)"
    ).baseline()

    assert params == {"optimizer.weight_decay": 0.3}


@pytest.mark.parametrize("overrides", [("optimizer=choice(sgd,adam)",), ("optimizer=choice(momentum,adam)",)])
def test_the_enqueued_baseline_is_drawn_as_it_is(overrides: tuple[str, ...]) -> None:
    """Enqueued with its parameters, the first trial stores exactly these, inside the space or not."""
    found = space(*overrides)
    draw, params = found.baseline()
    study = optuna.create_study()
    study.enqueue_trial(params)
    trial = study.ask()

    assert found.suggest_baseline(trial) == draw
    assert trial.params == params


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.RandomSampler])
def test_later_trials_learn_from_a_baseline(sampler: Callable[..., optuna.samplers.BaseSampler]) -> None:
    """A trial that lies partly outside the space does not break the sampler that comes after it."""
    found = space("search=none", "optimizer=choice(sgd,adam)", "trainer.batch_size=choice(16,32)")
    study = optuna.create_study(sampler=sampler(seed=0))
    study.enqueue_trial(found.baseline()[1])
    study.tell(first := study.ask(), 0.0)

    for value in range(15):
        trial = study.ask()
        found.suggest(trial, seed=value)
        study.tell(trial, float(value))

    assert first.number == 0
    assert len(study.trials) == 16


def test_the_description_tells_spaces_apart() -> None:
    """What a study's fingerprint records differs with every end, step and scale, and is the same for the same."""
    variants = [
        "interval(0.1,0.5)",
        "interval(0.1,0.4)",
        "tag(log,interval(0.1,0.5))",
        "range(0.1,0.5,0.1)",
        "choice(0.1,0.5)",
    ]

    found = [json.dumps(space(*ALONE, f"model.dropout={text}").describe()) for text in variants]

    assert len(set(found)) == len(variants)
    assert json.dumps(space(*ALONE, f"model.dropout={variants[0]}").describe()) == found[0]
