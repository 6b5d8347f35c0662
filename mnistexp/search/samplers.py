"""How a study searches: its sampler and its pruner, checked before the first trial."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import optuna

from mnistexp.config.schema import Config, PrunerConfig, SamplerConfig
from mnistexp.errors import ConfigError
from mnistexp.search.space import SearchSpace

PACKAGES = {"gp": ("torch", "gp"), "cmaes": ("cmaes", "cmaes")}
"""What a sampler imports at its eleventh trial only: (module, extra of ours that brings it)."""

MAX_GRID = 100_000
"""Points of a grid, each of which is a trial that waits in the database."""


def check_study(config: Config, space: SearchSpace) -> None:
    """What can't go well, said before the first trial. Raises: ConfigError with every fault."""
    faults = [*_sampler_faults(config, space), *_pruner_faults(config)]
    size, trials = space.size(), config.study.trials
    if size is not None:
        extra = int(not space.covers_baseline())  # the composed config itself comes first
        if trials > size + extra:
            faults.append(
                f"study.trials={trials}: the space has {size + extra} points; "
                f"give study.trials={size + extra}, or widen it"
            )
    if faults:
        raise ConfigError(*faults)


def _sampler_faults(config: Config, space: SearchSpace) -> Iterator[str]:
    name = config.study.sampler.name
    module, extra = PACKAGES.get(name, ("", ""))
    if module and importlib.util.find_spec(module) is None:
        yield (
            f"study/sampler={name}: needs the package {module}; pip install 'mnistexp[{extra}]', "
            f"or take study/sampler=tpe"
        )
    if name != "grid" and config.study.sampler.points is not None:
        yield f"study.sampler.points={config.study.sampler.points}: is for study/sampler=grid; leave it out"
    if name == "grid" and space.size() is None:
        endless = ", ".join(dict.fromkeys(p.key for p in space.parameters() if p.distribution.points() is None))
        yield (
            f"study/sampler=grid: the space has no end; give {endless} as choice() or range(), or one value, "
            f"or study.sampler.points=5"
        )
    if name == "grid" and (space.size() or 0) > MAX_GRID:
        yield f"study/sampler=grid: the space has {space.size()} points; a grid has at most {MAX_GRID}, so narrow it"


def _pruner_faults(config: Config) -> Iterator[str]:
    pruner = config.study.pruner
    if pruner.name == "hyperband" and pruner.min_epochs >= config.trainer.epochs:
        yield (
            f"study.pruner.min_epochs={pruner.min_epochs}: must be below trainer.epochs={config.trainer.epochs}, "
            f"or nothing is ever pruned"
        )


def build_sampler(config: SamplerConfig, seed: int, study_seed: int) -> optuna.samplers.BaseSampler:
    """The sampler. `seed` differs between sessions, or the start-up draws of the first would come again.

    `study_seed` does not: with another one Sobol's sequence would begin anew, where a study counts its points.
    """
    startup = config.startup_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match config.name:
            case "tpe":  # `group` models each optimizer's own parameters by themselves
                return optuna.samplers.TPESampler(n_startup_trials=startup, group=True, seed=seed)
            case "random" | "grid":  # the grid's points are enqueued one by one: Optuna's knows no conditions
                return optuna.samplers.RandomSampler(seed=seed)
            case "qmc":
                rest = optuna.samplers.RandomSampler(seed=seed)  # what the first trial lacks
                return optuna.samplers.QMCSampler(
                    scramble=True, seed=study_seed, independent_sampler=rest, warn_independent_sampling=False
                )
            case "gp":
                return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed)
            case "cmaes":
                return ReplayedCmaEs(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)


class ReplayedCmaEs(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES, which finds its optimizer again by telling it the finished trials anew.

    Optuna pickles the optimizer into the database and unpickles what it finds there: whoever can write to a
    shared database could run code in every sweep on it. Telling is deterministic, and a thousand trials take
    20 ms; told are a generation's first trials to end, so that a late one doesn't change what came of it.
    """

    _finished: list[optuna.trial.FrozenTrial]

    def _restore_optimizer(self, completed_trials: list[optuna.trial.FrozenTrial]) -> None:
        """Read nothing from the database's bytes; Optuna then calls `_init_optimizer`."""
        self._finished = sorted(completed_trials, key=lambda trial: str(trial.datetime_complete))

    def _init_optimizer(self, trans: Any, direction: optuna.study.StudyDirection) -> Any:
        optimizer: Any = super()._init_optimizer(trans, direction)
        sign = 1 if direction == optuna.study.StudyDirection.MINIMIZE else -1
        while True:
            told = self._get_solution_trials(self._finished, optimizer.generation)[: optimizer.population_size]
            if len(told) < optimizer.population_size:
                return optimizer
            optimizer.tell([(trans.transform(trial.params), sign * (trial.value or 0.0)) for trial in told])


def build_pruner(config: PrunerConfig, epochs: int) -> optuna.pruners.BasePruner:
    """The pruner; Optuna's steps are our epochs, from 1."""
    match config.name:
        case "none":
            return optuna.pruners.NopPruner()
        case "median":
            return optuna.pruners.MedianPruner(
                n_startup_trials=config.startup_trials, n_warmup_steps=config.warmup_epochs + 1
            )
        case "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=config.min_epochs, max_resource=epochs, reduction_factor=config.reduction_factor
            )
