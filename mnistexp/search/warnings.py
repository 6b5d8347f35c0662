"""Warnings about search spaces that make little sense although each value is allowed. Each says what to do."""

from __future__ import annotations

from collections.abc import Iterator

from mnistexp.config.overrides import override_text
from mnistexp.config.schema import Config
from mnistexp.search.distributions import Choice
from mnistexp.search.space import SearchSpace

MODEL_BASED = ("tpe", "gp", "cmaes")
"""Samplers that learn from scores, after study.sampler.startup_trials trials."""


def likely_mistakes(space: SearchSpace, config: Config, images: int) -> tuple[str, ...]:
    """Find what makes the result of a search misleading or wastes its trials.

    Args:
        images: number of training images.
    """
    return (
        *_searched_lengths(space, config),
        *_batch_sizes(space, images),
        *_few_values(space, config),
        *_not_modelled(space, config),
    )


def no_effect(space: SearchSpace, config: Config) -> Iterator[str]:
    """Find settings of the sampler and the pruner that never take effect. They do no harm."""
    sampler, pruner, trials = config.study.sampler, config.study.pruner, config.study.trials
    if sampler.name in MODEL_BASED and sampler.startup_trials >= trials:
        yield (
            f"study/sampler={sampler.name} is random for its first {sampler.startup_trials} trials, and "
            f"study.trials={trials}: it never models; give more trials, or fewer study.sampler.startup_trials"
        )
    # median's first decision is after the epoch that follows its warm-up, and the last epoch has nothing to save
    epochs = _highest(space, "trainer.epochs") or config.trainer.epochs
    if pruner.name == "median" and pruner.warmup_epochs + 1 >= epochs:
        yield (
            f"study/pruner=median never prunes: study.pruner.warmup_epochs={pruner.warmup_epochs}, and trials have at "
            f"most {epochs} epochs"
        )
    elif pruner.name == "median" and pruner.startup_trials >= trials:
        yield (
            f"study/pruner=median never prunes: it begins after study.pruner.startup_trials={pruner.startup_trials} "
            f"trials, and study.trials={trials}"
        )


def _highest(space: SearchSpace, key: str) -> int:
    """Return the highest value of a searched integer; 0 if it is not searched."""
    distributions = (p.distribution for p in space.parameters() if p.key == key)
    return max((int(value or 0) for d in distributions for value in d.boundary_values()), default=0)


def _searched_lengths(space: SearchSpace, config: Config) -> Iterator[str]:
    """The length of a training and a pruner both end trials early."""
    pruner, searched = config.study.pruner.name, {p.key for p in space.parameters()}
    for key in ("trainer.epochs", "trainer.max_steps", "trainer.patience"):
        if key in searched and pruner != "none":
            yield (
                f"{key} is searched while study/pruner={pruner} prunes: both end trials early, so short and long "
                f"trials are not compared fairly; give {key} one value, or study/pruner=none"
            )


def _batch_sizes(space: SearchSpace, images: int) -> Iterator[str]:
    """Batches with more than half of the training images."""
    largest = _highest(space, "trainer.batch_size")
    if 2 * largest > images:
        problem = "trials with more fail" if largest > images else "an epoch is one step, without the other images"
        yield (
            f"trainer.batch_size goes up to {largest:,} of {images:,} training images: {problem}; "
            f"give at most {max(1, images // 10):,}"
        )


def _few_values(space: SearchSpace, config: Config) -> Iterator[str]:
    """Searched seeds, parameters with one value, and grids that end early."""
    grid, trials, points = config.study.sampler.name == "grid", config.study.trials, space.most_trials()
    keys = {p.key for p in space.parameters()}
    if "seed" in keys and len(keys) > 1 and not grid:  # a grid repeats every config with the same seeds
        yield (
            "seed is searched together with hyperparameters: the best trial may only have the best seed; leave it out "
            "and use `confirm`, which repeats the best configs with new seeds, or give study/sampler=grid"
        )
    for parameter in space.parameters():
        values = parameter.distribution.points()
        if values is not None and len(values) == 1:
            yield f"{parameter.name} has only one value; give {override_text(parameter.key, values[0])} instead"
    if grid and points is not None and trials < points:
        yield (
            f"study/sampler=grid with study.trials={trials} leaves out the last {points - trials:,} of {points:,} "
            f"points, a corner of the space; give study.trials={points}, or study/sampler=random"
        )


def _not_modelled(space: SearchSpace, config: Config) -> Iterator[str]:
    """Parameters that gp and cmaes always draw at random, since these model only what all trials share."""
    name = config.study.sampler.name
    if name not in ("gp", "cmaes"):
        return
    leaves = [{*dict(leaf.choices), *(p.name for p in leaf.values)} for leaf in space.root.leaves()]
    shared = set.intersection(*leaves) & set(space.baseline()[1])
    # cmaes draws every choice at random, as its option file says
    parameters = [p for p in space.parameters() if name == "gp" or not isinstance(p.distribution, Choice)]
    if left_out := dict.fromkeys(p.key for p in parameters if p.name not in shared):
        yield (
            f"study/sampler={name} models only parameters that all trials have, the first one (the config itself) "
            f"included, and always draws these at random: {', '.join(left_out)}; give study/sampler=tpe"
        )
