"""Samplers and pruners: build Optuna's from the config, and check them before the first trial."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

import optuna

from mnistexp.config.schema import Config, PrunerConfig, SamplerConfig
from mnistexp.errors import ConfigError
from mnistexp.search.space import SearchSpace

PACKAGES = {"gp": "torch", "cmaes": "cmaes"}
"""Sampler → the package that Optuna imports at its eleventh trial. mnistexp's extra has the sampler's name."""

MAX_GRID = 100_000
"""Most points of a grid: each of them is a trial that waits in the database."""


def check_study(config: Config, space: SearchSpace) -> None:
    """Check the sampler, the pruner and the budget before the first trial. Raises: ConfigError with every fault."""
    if faults := list(_study_faults(config, space)):
        raise ConfigError(*faults)


def _study_faults(config: Config, space: SearchSpace) -> Iterator[str]:
    sampler, pruner, trials, size = config.study.sampler, config.study.pruner, config.study.trials, space.size()
    name, package = sampler.name, PACKAGES.get(sampler.name)
    if package and importlib.util.find_spec(package) is None:
        yield f"study/sampler={name}: needs the package {package}; pip install 'mnistexp[{name}]', or take tpe"
    if name != "grid" and sampler.points is not None:
        yield f"study.sampler.points={sampler.points}: is for study/sampler=grid; leave it out"
    if name == "grid" and (size is None or size > MAX_GRID):
        yield (
            f"study/sampler=grid: the space has {size or 'infinitely many'} points; a grid has at most {MAX_GRID}, so "
            f"give choice() or range() in place of interval(), or study.sampler.points=5"
        )
    if pruner.name == "hyperband" and pruner.min_epochs >= config.trainer.epochs:
        yield (
            f"study.pruner.min_epochs={pruner.min_epochs}: must be below trainer.epochs={config.trainer.epochs}, "
            f"or nothing is ever pruned"
        )
    most = space.most_trials()
    if most is not None and trials > most:
        yield f"study.trials={trials}: the space has {most} points; give study.trials={most}, or widen it"


def build_sampler(config: SamplerConfig, seed: int, study_seed: int) -> optuna.samplers.BaseSampler:
    """Build the sampler.

    Args:
        seed: differs between sessions, so that no session repeats the start-up trials of another.
        study_seed: the same in all sessions, so that Sobol's sequence continues. The study counts its points.
    """
    startup = config.startup_trials
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match config.name:
            case "tpe":  # `group` models the parameters of each optimizer separately
                return optuna.samplers.TPESampler(n_startup_trials=startup, group=True, seed=seed)
            case "random" | "grid":  # the points of a grid are enqueued: Optuna's grid has no conditional spaces
                return optuna.samplers.RandomSampler(seed=seed)
            case "qmc":
                rest = optuna.samplers.RandomSampler(seed=seed)  # for parameters that the first trial lacks
                return optuna.samplers.QMCSampler(
                    scramble=True, seed=study_seed, independent_sampler=rest, warn_independent_sampling=False
                )
            case "gp":
                return optuna.samplers.GPSampler(n_startup_trials=startup, seed=seed)
            case "cmaes":
                return ReplayedCmaEs(n_startup_trials=startup, seed=seed, warn_independent_sampling=False)


class ReplayedCmaEs(optuna.samplers.CmaEsSampler):
    """Optuna's CMA-ES, which restores its optimizer by replaying the finished trials.

    Optuna pickles the optimizer into the database and unpickles it from there, so anybody who can write to a shared
    database could run code in every sweep on it. The replay is deterministic and takes 20 ms for a thousand trials.
    A generation consists of its first trials to end, so that a late trial does not change it.
    """

    _finished: list[optuna.trial.FrozenTrial]

    def _restore_optimizer(self, completed_trials: list[optuna.trial.FrozenTrial]) -> None:
        """Do not read the pickle; Optuna then calls `_init_optimizer`."""
        self._finished = sorted(completed_trials, key=lambda trial: str(trial.datetime_complete))

    def _init_optimizer(self, trans: Any, direction: optuna.study.StudyDirection) -> Any:
        optimizer: Any = super()._init_optimizer(trans, direction)
        sign = 1 if direction == optuna.study.StudyDirection.MINIMIZE else -1
        while True:
            solutions = self._get_solution_trials(self._finished, optimizer.generation)[: optimizer.population_size]
            if len(solutions) < optimizer.population_size:
                return optimizer
            optimizer.tell([(trans.transform(trial.params), sign * (trial.value or 0.0)) for trial in solutions])


def build_pruner(config: PrunerConfig, epochs: int) -> optuna.pruners.BasePruner:
    """Build the pruner. Its steps are epochs, counted from 1."""
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
