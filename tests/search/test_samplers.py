from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from mnistexp.config.compose import compose, parse_request
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.search import samplers
from mnistexp.search.samplers import MAX_GRID, ReplayedCmaEs, build_pruner, build_sampler, check_study
from mnistexp.search.space import SearchSpace, build

SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.RandomSampler,  # the points of a grid are enqueued
    "qmc": optuna.samplers.QMCSampler,
    "gp": optuna.samplers.GPSampler,
    "cmaes": ReplayedCmaEs,
}
FINITE = ("search=none", "optimizer.learning_rate=0.1", "model.activation=choice(relu,tanh)")
INFINITE = ("search=none", "optimizer=choice(sgd,adam)", "model.dropout=interval(0,0.5)")

HUGE = (*FINITE[:2], "study/sampler=grid", "trainer.max_steps=int(interval(1,1000000000))")


def parts(*overrides: str) -> tuple[Config, SearchSpace]:
    """A checked config and its space."""
    space = build(parse_request(["data=digits", *overrides]))
    return space.root.template.config(), space


def sampler_of(name: str, seed: int, study_seed: int = 0, startup: int = 10) -> optuna.samplers.BaseSampler:
    """The sampler of study/sampler=NAME. Skips the test if its package is not installed."""
    pytest.importorskip(samplers.PACKAGES.get(name, "optuna"))
    overrides = ["data=digits", f"study/sampler={name}", f"study.sampler.startup_trials={startup}"]
    return build_sampler(compose(parse_request(overrides)).study.sampler, seed, study_seed)


def faults(*overrides: str) -> tuple[str, ...]:
    """The faults of a study; none if it is fine."""
    try:
        check_study(*parts(*overrides))
    except ConfigError as error:
        return error.faults
    return ()


@pytest.mark.parametrize("name", SAMPLERS)
def test_each_sampler_draws_after_its_startup_trials(name: str) -> None:
    """Each option builds its sampler without a warning and draws 15 trials of a conditional space."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler = sampler_of(name, seed=1)
    _, space = parts(*INFINITE)
    study = optuna.create_study(sampler=sampler, direction="maximize")

    for number in range(15):
        trial = study.ask()
        study.tell(trial, 1 - space.suggest(trial, seed=number).config.model.dropout)  # type: ignore[union-attr]

    assert type(sampler) is SAMPLERS[name]
    assert len({trial.params["model.dropout"] for trial in study.trials}) == 15


@pytest.mark.parametrize("name", ["tpe", "random", "qmc"])
def test_the_seed_decides_the_draws(name: str) -> None:
    """The same seed repeats the draws, and another seed does not."""

    def sequence(seed: int) -> list[float]:
        study = optuna.create_study(sampler=sampler_of(name, seed, seed))
        return [study.ask().suggest_float("x", 0, 1) for _ in range(3)]

    assert sequence(1) == sequence(1)
    assert not set(sequence(1)) & set(sequence(2))


def test_sobols_sequence_continues_in_another_session() -> None:
    """Eight points of three sessions fall into eight different eighths of each axis."""
    study = optuna.create_study()

    for session in range(3):
        study.sampler = sampler_of("qmc", seed=session, study_seed=4)
        for _ in range(3):
            trial = study.ask()
            trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
            study.tell(trial, 0.5)

    _, *points = study.trials  # the first is not a point of Sobol's sequence
    for axis in ("x", "y"):
        assert sorted(int(8 * trial.params[axis]) for trial in points) == list(range(8))


# ---------------------------------------------------------------------------------- checks before the first trial


@pytest.mark.parametrize("name", samplers.PACKAGES)
def test_a_sampler_without_its_package_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that Optuna imports at the eleventh trial is checked before the first."""
    monkeypatch.setitem(samplers.PACKAGES, name, "no_such_package")

    (found,) = faults(*INFINITE, f"study/sampler={name}")

    assert f"study/sampler={name}: needs the package no_such_package; pip install 'mnistexp[{name}]'" in found


@pytest.mark.parametrize(
    ("overrides", "wrong"),
    [
        ((*FINITE, "study.trials=2"), None),
        ((*FINITE, "study.trials=3"), "study.trials=3: the space has 2 points; give study.trials=2"),
        # the composed config is outside of the space, so it is one more point
        ((*FINITE, "search.model.dropout=choice(0.1,0.2)", "study.trials=5"), None),
        ((*FINITE, "search.model.dropout=choice(0.1,0.2)", "study.trials=6"), "the space has 5 points"),
        ((*FINITE[:2], "optimizer=choice(sgd,adam)", "study.trials=4"), "the space has 3 points"),
        ((*INFINITE, "study.trials=100000"), None),
        ((*INFINITE, "study/sampler=grid"), "study/sampler=grid: the space has infinitely many points"),
        ((*HUGE, "study.trials=3"), f"has 1000000000 points; a grid has at most {MAX_GRID}"),
        ((*FINITE, "study/sampler=grid", "study.trials=2"), None),
        ((*INFINITE, "study/sampler=grid", "study.sampler.points=3", "study.trials=2"), None),
        ((*INFINITE, "study.sampler.points=3"), "study.sampler.points=3: is for study/sampler=grid"),
        ((*INFINITE, "study/pruner=hyperband", "trainer.epochs=3", "study.pruner.min_epochs=2"), None),
        (
            (*INFINITE, "study/pruner=hyperband", "trainer.epochs=2", "study.pruner.min_epochs=2"),
            "study.pruner.min_epochs=2: must be below trainer.epochs=2",
        ),
    ],
)
def test_a_study_is_checked_before_its_first_trial(overrides: tuple[str, ...], wrong: str | None) -> None:
    """A budget above the number of points, an infinite grid and a pruner that never prunes are refused."""
    found = faults(*overrides)

    assert len(found) == (wrong is not None)
    assert wrong is None or wrong in found[0]


# ------------------------------------------------------------------------------------------------------- pruners

GOOD, BAD = [0.9] * 10, [0.1] * 10


def pruned_after(pruner: optuna.pruners.BasePruner, *trials: list[float]) -> list[int | None]:
    """Report the scores of trials one after another. Returns: the epoch after which each was pruned, or None."""
    study, found = optuna.create_study(direction="maximize", pruner=pruner), []
    for scores in trials:
        trial, pruned = study.ask(), None
        for epoch, score in enumerate(scores, start=1):
            trial.report(score, epoch)
            if trial.should_prune():
                pruned = epoch
                break
        state = optuna.trial.TrialState.COMPLETE if pruned is None else optuna.trial.TrialState.PRUNED
        study.tell(trial, max(scores) if pruned is None else None, state=state)
        found.append(pruned)
    return found


def pruner_of(name: str, *overrides: str) -> optuna.pruners.BasePruner:
    """The pruner of study/pruner=NAME."""
    config = compose(parse_request(["data=digits", f"study/pruner={name}", *overrides]))
    return build_pruner(config.study.pruner, config.trainer.epochs)


@pytest.mark.parametrize("warmup", [0, 3])
def test_median_does_not_prune_in_its_warmup(warmup: int) -> None:
    """A bad trial has its warm-up epochs and one more, by which it is compared."""
    pruner = pruner_of("median", f"study.pruner.warmup_epochs={warmup}", "study.pruner.startup_trials=2")

    assert pruned_after(pruner, GOOD, GOOD, BAD, GOOD) == [None, None, warmup + 1, None]


def test_hyperbands_resource_is_the_epoch() -> None:
    """The first rung is study.pruner.min_epochs and the last trainer.epochs."""
    found: Any = pruner_of("hyperband", "trainer.epochs=10", "study.pruner.min_epochs=3")

    assert (found._min_resource, found._max_resource) == (3, 10)


# ------------------------------------------------------------------------------------------- CMA-ES without pickle


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.proof,)


def played(storage: Any, sampler: optuna.samplers.BaseSampler, trials: int) -> optuna.Study:
    """A study of a small function after some trials."""
    study = optuna.create_study(storage=storage, sampler=sampler, study_name="s", load_if_exists=True)
    for _ in range(trials):
        trial = study.ask()
        study.tell(trial, trial.suggest_float("x", -1, 1) ** 2 + trial.suggest_int("y", -9, 9) ** 2)
    return study


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "optunas"])
def test_a_database_is_not_unpickled(ours: bool, tmp_path: Path) -> None:
    """A pickle where Optuna's CMA-ES keeps its optimizer is run by Optuna's own sampler and not by ours."""
    pytest.importorskip("cmaes")
    proof = tmp_path / "proof"
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'optuna.db'}")
    study = played(storage, sampler_of("cmaes", 1, startup=1), 3)
    planted = {"cma:optimizer:0": pickle.dumps(Evil(proof)).hex(), "cma:generation": 0}
    last = study.trials[-1]
    study._storage.create_new_trial(
        study._study_id,
        optuna.trial.create_trial(
            params=last.params, distributions=last.distributions, value=1.0, system_attrs=planted
        ),
    )

    if ours:
        played(storage, sampler_of("cmaes", 2, startup=1), 12)
    else:
        played(storage, optuna.samplers.CmaEsSampler(n_startup_trials=1), 1)

    assert proof.exists() is not ours


def test_replayed_cmaes_equals_optunas() -> None:
    """After the same trials, the replayed optimizer equals Optuna's own."""
    pytest.importorskip("cmaes")
    optunas = optuna.samplers.CmaEsSampler(n_startup_trials=1, seed=3)
    study = played(None, optunas, 60)
    trials = study.get_trials()
    expected: Any = optunas._restore_optimizer(trials)
    space = optunas.infer_relative_search_space(study, trials[-1])
    last = next(i for i, t in reversed(list(enumerate(trials))) if "cma:optimizer:0" in t.system_attrs)
    ours = ReplayedCmaEs(n_startup_trials=1, seed=4)

    assert ours._restore_optimizer(trials[:last]) is None
    found = ours._init_optimizer(optuna._transform._SearchSpaceTransform(space, True, True, True), study.direction)

    assert found.generation == expected.generation >= 5
    assert found.mean.tolist() == pytest.approx(expected.mean.tolist(), rel=1e-12)
    assert found._sigma == pytest.approx(expected._sigma, rel=1e-12)
    np.testing.assert_allclose(found._C, expected._C, rtol=1e-12)


def test_no_pickle_is_written_to_a_database() -> None:
    """The only attribute of a trial is the number of its generation."""
    trials = played(None, sampler_of("cmaes", 1, startup=1), 30).trials

    assert max(trial.system_attrs.get("cma:generation", 0) for trial in trials) >= 3
    assert {key for trial in trials for key in trial.system_attrs} == {"cma:generation"}
