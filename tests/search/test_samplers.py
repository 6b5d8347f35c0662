from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import optuna
import pytest

from mnistexp.config.compose import compose, config_groups, parse_request
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.search import samplers
from mnistexp.search.samplers import build_pruner, build_sampler, check_study
from mnistexp.search.space import SearchSpace, build

SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.RandomSampler,  # the grid's points are enqueued
    "qmc": optuna.samplers.QMCSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": samplers.ReplayedCmaEs,
}
PRUNERS = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}
FINITE = ("search=none", "optimizer.learning_rate=0.1", "model.activation=choice(relu,tanh)")
INFINITE = ("search=none", "optimizer=choice(sgd,adam)", "model.dropout=interval(0,0.5)")


def parts(*overrides: str) -> tuple[Config, SearchSpace]:
    """A checked config and its space."""
    request = parse_request(["data=digits", *overrides])
    space = build(request)
    return space.root.template.config(), space


def needs(sampler: str) -> pytest.MarkDecorator:
    """Skip where a sampler's own package isn't installed."""
    module, _ = samplers.PACKAGES.get(sampler, ("optuna", ""))
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs the package {module}")


# ---------------------------------------------------------------------------------------------- samplers


def test_every_option_is_known() -> None:
    """The options of study/sampler and study/pruner are those that these tests build."""
    groups = config_groups()

    assert set(groups["study/sampler"]) == set(SAMPLERS)
    assert set(groups["study/pruner"]) == set(PRUNERS)


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in SAMPLERS])
def test_each_sampler_draws_past_its_start_up(name: str) -> None:
    """Fifteen trials of a conditional space, ten of them start-up: the model's first draws work too."""
    config, space = parts(*INFINITE, f"study/sampler={name}")
    sampler = build_sampler(config.study.sampler, seed=1, study_seed=1)
    study = optuna.create_study(sampler=sampler, direction="maximize")

    for number in range(15):
        trial = study.ask()
        draw = space.suggest(trial, seed=number)
        study.tell(trial, 1 - draw.config.model.dropout)

    assert type(sampler) is SAMPLERS[name]
    assert len({trial.params["model.dropout"] for trial in study.trials}) == 15


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", pytest.param("cmaes", marks=needs("cmaes"))])
def test_a_seed_repeats_a_sampler_and_another_does_not(name: str) -> None:
    """One seed gives one sequence of draws, another seed another: sessions must not repeat each other."""
    config, _ = parts(*INFINITE, f"study/sampler={name}")

    def sequence(seed: int) -> list[float]:
        study = optuna.create_study(sampler=build_sampler(config.study.sampler, seed, seed))
        return [study.ask().suggest_float("x", 0, 1) for _ in range(3)]

    assert sequence(1) == sequence(1)
    assert not set(sequence(1)) & set(sequence(2))


def test_sobols_points_go_on_in_another_session() -> None:
    """Eight points of three sessions fall into eight different eighths of each axis: what one chooses Sobol for."""
    config, _ = parts(*INFINITE, "study/sampler=qmc")
    study = optuna.create_study()

    for session in range(3):
        study.sampler = build_sampler(config.study.sampler, seed=session, study_seed=4)
        for _ in range(3):
            trial = study.ask()
            trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
            study.tell(trial, 0.5)

    _, *points = study.trials  # the first is no point of Sobol's
    for axis in ("x", "y"):
        assert sorted(int(8 * trial.params[axis]) for trial in points) == list(range(8))


@pytest.mark.parametrize("name", ["tpe", pytest.param("cmaes", marks=needs("cmaes"))])
def test_start_up_trials_are_the_configs(name: str) -> None:
    """study.sampler.startup_trials decides how long a sampler draws at random: here it is as good as random."""
    config, _ = parts(*INFINITE, f"study/sampler={name}", "study.sampler.startup_trials=3")
    independent = optuna.samplers.RandomSampler(seed=5)

    def values(sampler: optuna.samplers.BaseSampler) -> list[float]:
        study, found = optuna.create_study(sampler=sampler), []
        for _ in range(6):
            trial = study.ask()
            found.append(trial.suggest_float("x", 0, 1) + trial.suggest_float("y", 0, 1))
            study.tell(trial, found[-1])
        return found

    reference, drawn = values(independent), values(build_sampler(config.study.sampler, seed=5, study_seed=0))

    assert drawn[:3] == reference[:3]
    assert drawn != reference


@pytest.mark.parametrize("name", sorted(samplers.PACKAGES))
def test_a_sampler_without_its_package_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What would fail at the eleventh trial is told at the start, with the words to install it."""
    config, space = parts(*INFINITE, f"study/sampler={name}")
    module, extra = samplers.PACKAGES[name]
    monkeypatch.setitem(samplers.PACKAGES, name, ("no_such_package", extra))

    with pytest.raises(ConfigError) as caught:
        check_study(config, space)

    assert str(caught.value) == (
        f"study/sampler={name}: needs the package no_such_package; pip install 'mnistexp[{extra}]', "
        f"or take study/sampler=tpe"
    )
    assert module != "no_such_package"


def test_a_grid_needs_an_end() -> None:
    """An interval among the keys makes a grid impossible; choices and ranges make one."""
    with pytest.raises(ConfigError, match=r"study/sampler=grid: the space has no end; give .*model.dropout as choice"):
        check_study(*parts(*INFINITE, "study/sampler=grid"))

    check_study(*parts(*FINITE, "study/sampler=grid", "study.trials=2"))
    check_study(*parts(*INFINITE, "study/sampler=grid", "study.sampler.points=3", "study.trials=2"))


# ------------------------------------------------------------------------------------------------ budget


@pytest.mark.parametrize(
    ("overrides", "points"),
    [
        pytest.param(FINITE, 2, id="the-first-trial-is-inside"),
        pytest.param((*FINITE, "model.dropout=0.1", "search.model.dropout=choice(0,0.2)"), 5, id="it-is-one-more"),
        pytest.param((*FINITE[:2], "optimizer=choice(sgd,adam)"), 3, id="its-group-is-outside"),
    ],
)
def test_no_more_trials_than_points(overrides: tuple[str, ...], points: int) -> None:
    """A finite space has room for its points, and for the composed config where that lies outside."""
    check_study(*parts(*overrides, f"study.trials={points}"))

    with pytest.raises(
        ConfigError, match=f"study.trials={points + 1}: the space has {points} points; give study.trials="
    ):
        check_study(*parts(*overrides, f"study.trials={points + 1}"))


def test_an_infinite_space_takes_any_number() -> None:
    """There is no limit where there is an interval."""
    check_study(*parts(*INFINITE, "study.trials=100000"))


def test_all_faults_of_a_study_come_at_once() -> None:
    """Sampler, pruner and budget are told together."""
    with pytest.raises(ConfigError) as caught:
        check_study(
            *parts(*INFINITE, "study/sampler=grid", "study/pruner=hyperband", "trainer.epochs=2"),
        )

    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "study/sampler=grid",
        "study.pruner.min_epochs=2",
    ]


# ----------------------------------------------------------------------------------------------- pruners


def pruned_after(pruner: optuna.pruners.BasePruner, *trials: list[float]) -> list[int | None]:
    """Play trials' scores, epoch by epoch: for each the epoch after which it was pruned, or None."""
    study, found = optuna.create_study(direction="maximize", pruner=pruner), []
    for scores in trials:
        trial = study.ask()
        found.append(next(_stops(trial, scores), None))
        state = optuna.trial.TrialState.COMPLETE if found[-1] is None else optuna.trial.TrialState.PRUNED
        study.tell(trial, max(scores) if found[-1] is None else None, state=state)
    return found


def _stops(trial: optuna.Trial, scores: list[float]) -> Iterator[int]:
    for epoch, score in enumerate(scores, start=1):
        trial.report(score, epoch)
        if trial.should_prune():
            yield epoch


def pruner_of(*overrides: str) -> optuna.pruners.BasePruner:
    """The pruner of a command line."""
    config = compose(parse_request(["data=digits", *overrides]))
    return build_pruner(config.study.pruner, config.trainer.epochs)


@pytest.mark.parametrize("name", PRUNERS)
def test_each_pruner_builds(name: str) -> None:
    """Every option of study/pruner is Optuna's pruner of that name."""
    assert type(pruner_of(f"study/pruner={name}")) is PRUNERS[name]


GOOD, BAD = [0.9] * 10, [0.1] * 10


@pytest.mark.parametrize("warmup", [0, 1, 3, 9])
def test_median_prunes_none_in_its_warm_up(warmup: int) -> None:
    """A hopeless trial gets its warm-up epochs and one more to be judged by: the conf file's 'before its fourth'."""
    pruner = pruner_of("study/pruner=median", f"study.pruner.warmup_epochs={warmup}", "study.pruner.startup_trials=2")

    assert pruned_after(pruner, GOOD, GOOD, BAD, GOOD) == [None, None, warmup + 1, None]


@pytest.mark.parametrize("startup", [1, 2, 4])
def test_median_prunes_none_of_its_first_trials(startup: int) -> None:
    """The first trials run to their end, however bad they are; the one after them doesn't."""
    pruner = pruner_of("study/pruner=median", "study.pruner.warmup_epochs=0", f"study.pruner.startup_trials={startup}")
    trials = [*[GOOD] * max(1, startup - 1), BAD, BAD]  # the first BAD is still one of the first, if there are two

    found = pruned_after(pruner, *trials)

    assert found[:startup] == [None] * startup
    assert found[startup] == 1


def test_median_judges_by_the_best_epoch_so_far() -> None:
    """One bad epoch after a good one prunes nothing: the weights of the good one would be kept."""
    pruner = pruner_of("study/pruner=median", "study.pruner.warmup_epochs=0", "study.pruner.startup_trials=2")

    assert pruned_after(pruner, [0.5] * 4, [0.5] * 4, [0.6, 0.1, 0.1, 0.1]) == [None] * 3


def test_none_prunes_none() -> None:
    """study/pruner=none lets the worst of trials run to its end."""
    assert pruned_after(pruner_of("study/pruner=none"), *[GOOD] * 6, BAD) == [None] * 7


def test_hyperband_gives_every_trial_its_least() -> None:
    """Of many bad trials after good ones hyperband prunes some, and none before study.pruner.min_epochs."""
    pruner = pruner_of("study/pruner=hyperband", "trainer.epochs=10", "study.pruner.min_epochs=3")

    found = pruned_after(pruner, *[GOOD] * 12, *[BAD] * 12)

    assert found[:12] == [None] * 12
    assert any(found[12:])
    assert all(epoch is None or epoch >= 3 for epoch in found)


@pytest.mark.parametrize(("epochs", "least", "refused"), [(2, 2, True), (1, 2, True), (3, 2, False), (10, 10, True)])
def test_hyperband_needs_epochs_to_prune_in(epochs: int, least: int, refused: bool) -> None:
    """Where every trial's least is all there is, hyperband would never prune: that is refused."""
    overrides: tuple[Any, ...] = (
        "study/pruner=hyperband",
        f"trainer.epochs={epochs}",
        f"study.pruner.min_epochs={least}",
    )

    if not refused:
        check_study(*parts(*INFINITE, *overrides))
        return
    with pytest.raises(ConfigError, match=f"study.pruner.min_epochs={least}: must be below trainer.epochs={epochs}"):
        check_study(*parts(*INFINITE, *overrides))


def test_building_is_silent() -> None:
    """Experimental samplers of Optuna's are our choice: the user is not warned of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        for name in ("tpe", "random", "grid", "qmc", "cmaes"):
            config, _ = parts(*INFINITE, f"study/sampler={name}")
            if not importlib.util.find_spec(samplers.PACKAGES.get(name, ("optuna", ""))[0]):
                continue
            build_sampler(config.study.sampler, seed=0, study_seed=0)
