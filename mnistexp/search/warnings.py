"""Warnings about search spaces that make little sense although each value is allowed. Each says what to do."""

from __future__ import annotations

from collections.abc import Iterator

from mnistexp.config.compose import template
from mnistexp.config.overrides import ParsedOverrides, override_text
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.search.distributions import Choice, Distribution, parse_distribution
from mnistexp.search.space import SearchSpace

MODEL_BASED = ("tpe", "gp", "cmaes")
"""Samplers that learn from scores, after study.sampler.startup_trials trials."""

RATE = "optimizer.learning_rate"


def likely_mistakes(space: SearchSpace, config: Config, images: int) -> tuple[str, ...]:
    """Find what makes the result of a search misleading or wastes its trials.

    Args:
        images: number of training images.
    """
    return (
        *_searched_lengths(space, config),
        *_learning_rates(space),
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
    if pruner.name != "median":
        return
    epochs = int(max(_highest(space, "trainer.epochs"), default=config.trainer.epochs))
    if pruner.warmup_epochs + 1 >= epochs:  # the first decision is after that epoch, and the last has nothing to save
        yield (
            f"study/pruner=median does not prune in the first {pruner.warmup_epochs} epochs, and no trial has more "
            f"than {epochs}: it never prunes; give more trainer.epochs, or fewer study.pruner.warmup_epochs"
        )
    elif pruner.startup_trials >= trials:
        yield (
            f"study/pruner=median does not prune before {pruner.startup_trials} trials are complete, and "
            f"study.trials={trials}: it never prunes; give more trials, or fewer study.pruner.startup_trials"
        )


def _bounds(distribution: Distribution) -> tuple[float, float] | None:
    """Return the lowest and the highest value; None if not all are numbers."""
    values = distribution.boundary_values()
    numbers = [value for value in values if isinstance(value, int | float)]
    return (min(numbers), max(numbers)) if len(numbers) == len(values) else None


def _highest(space: SearchSpace, key: str) -> list[float]:
    """Return the highest value of each distribution of a key."""
    found = (_bounds(p.distribution) for p in space.parameters() if p.key == key)
    return [bounds[1] for bounds in found if bounds]


def _searched_lengths(space: SearchSpace, config: Config) -> Iterator[str]:
    """The length of a training and a pruner both end trials early."""
    pruner, keys = config.study.pruner.name, {p.key for p in space.parameters()}
    if pruner == "none":
        return
    if "trainer.epochs" in keys:
        yield (
            f"trainer.epochs is searched while study/pruner={pruner} prunes: short and long trials are compared "
            f"at the same epoch; give trainer.epochs=N, or study/pruner=none"
        )
    for key in ("trainer.max_steps", "trainer.patience"):
        if key in keys:
            yield (
                f"{key} is searched while study/pruner={pruner} prunes: both end the same trials, so the effect of "
                f"neither can be measured; give {key} one value, or study/pruner=none"
            )


def _learning_rates(space: SearchSpace) -> Iterator[str]:
    """Learning rates far from the range in the optimizer's own option file. Each distribution is reported once."""
    optimizers: dict[tuple[str, str], list[str]] = {}  # (distribution, problem) → optimizers with their ranges
    for leaf in space.root.leaves():
        option = leaf.template.options.get("optimizer", "")
        searched = next((_bounds(p.distribution) for p in leaf.values if p.key == RATE), None)
        usual = _usual_rates(space.request, option) if searched else None
        if searched is None or usual is None:
            continue
        factor = 10 * (1 + 1e-9)  # a decade, and rounding
        if searched[1] < usual[0] or searched[0] > usual[1]:
            problem = "is outside of"
        elif searched[0] * factor < usual[0] or searched[1] > usual[1] * factor:
            problem = "is more than a decade wider than"
        else:
            continue
        text = next(str(p.distribution) for p in leaf.values if p.key == RATE)
        names = optimizers.setdefault((text, problem), [])
        if (name := f"{option} ({usual[0]:g} to {usual[1]:g})") not in names:
            names.append(name)
    for (text, problem), names in optimizers.items():
        yield (
            f"{RATE} ({text}) {problem} the usual range of {', '.join(names)}: trials there are wasted; narrow it, "
            f"or leave it out to use the range of each optimizer"
        )


def _usual_rates(request: ParsedOverrides, option: str) -> tuple[float, float] | None:
    """Return the range in an optimizer's option file; None if it has none."""
    alone = ParsedOverrides(config_dir=request.config_dir)
    try:
        found = template(alone.with_overrides([override_text("optimizer", option), "search=none"])).search.get(RATE)
    except ConfigError:  # the option needs other settings of this sweep, such as more epochs
        return None
    return _bounds(parse_distribution(RATE, found)) if found else None


def _batch_sizes(space: SearchSpace, images: int) -> Iterator[str]:
    """Batches with more than half of the training images."""
    largest = int(max(_highest(space, "trainer.batch_size"), default=0))
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
    # cmaes draws every choice at random, as its option file says
    parameters = [p for p in space.parameters() if name == "gp" or not isinstance(p.distribution, Choice)]
    conditional = [p for p in parameters if not all(p.name in leaf for leaf in leaves)]
    _, baseline = space.baseline()
    outside = [p for p in parameters if p not in conditional and p.name not in baseline]
    for found, reason, advice in (
        (conditional, "only some trials have", "give that choice one value"),
        (outside, "the first trial (the config itself) lies outside of", "widen it"),
    ):
        if found:
            keys = ", ".join(dict.fromkeys(p.key for p in found))
            yield (
                f"study/sampler={name} models only what all trials have, and always draws at random what {reason}: "
                f"{keys}; {advice}, or give study/sampler=tpe"
            )
