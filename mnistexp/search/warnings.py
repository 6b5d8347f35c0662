"""Spaces that make no sense, though each of their values is allowed: one sentence each, with what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mnistexp.config.compose import ParsedOverrides, template
from mnistexp.config.overrides import override_text
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.search.distributions import Choice, Distribution, parse_distribution
from mnistexp.search.space import SearchSpace
from mnistexp.terminal.formatting import listed

MODELLING = ("tpe", "gp", "cmaes")
"""Samplers that learn from scores, once they have study.sampler.startup_trials of them."""

RATE = "optimizer.learning_rate"


def misleading(space: SearchSpace, config: Config, images: int) -> tuple[str, ...]:
    """What makes a search's result say less than it seems to, or wastes its trials: certain, so `sweep` says it too.

    Args:
        config: the composed one.
        images: in the training split.
    """
    searched = _searched(space)
    return (
        *_lengths(searched, config),
        *_rates(space),
        *_batches(searched.get("trainer.batch_size", ()), images),
        *_seeds(searched, config),
        *_single(space),
        *_grid(space, config),
        *_never_learnt(space, config),
    )


def idle(space: SearchSpace, config: Config) -> tuple[str, ...]:
    """What is set and never comes to bear: worth knowing beforehand, and no harm."""
    return (*_never_models(config), *_never_prunes(_searched(space), config))


def grid_points(space: SearchSpace) -> int | None:
    """Trials that a finite space has: its points, and the composed config where that is none of them."""
    size = space.size()
    return None if size is None else size + int(not space.covers_baseline())


def _searched(space: SearchSpace) -> dict[str, list[Distribution]]:
    """Key → its distributions: one, or as many as the options differ in."""
    found: dict[str, list[Distribution]] = {}
    for parameter in space.parameters():
        found.setdefault(parameter.key, []).append(parameter.distribution)
    return found


# ----------------------------------------------------------------------------------------- what misleads


def _lengths(searched: Mapping[str, Sequence[Distribution]], config: Config) -> Iterator[str]:
    pruner = config.study.pruner.name
    if pruner == "none":
        return
    if "trainer.epochs" in searched:
        yield (
            f"trainer.epochs is searched while study/pruner={pruner} prunes: short trials and long ones are compared "
            f"at the same epoch, and longer is never worse; give trainer.epochs=N and let the pruner decide, "
            f"or study/pruner=none"
        )
    for key in ("trainer.max_steps", "trainer.patience"):
        if key in searched:
            yield (
                f"{key} is searched while study/pruner={pruner} prunes: both end the same trials, so neither's effect "
                f"can be seen; give {key} one value, or study/pruner=none"
            )


def _rates(space: SearchSpace) -> Iterator[str]:
    """Learning rates that an optimizer can't use, going by the range in its own file: one sentence a distribution."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    own: dict[str, tuple[float, float] | None] = {}
    for leaf in space.root.leaves():
        option = leaf.template.options.get("optimizer", "")
        given = next((p.distribution for p in leaf.values if p.key == RATE), None)
        if given is None or (reach := _reach(given)) is None:
            continue
        if option not in own:
            own[option] = _own_rates(space.request, option)
        if (usual := own[option]) and (how := _beyond(reach, usual)):
            found.setdefault((str(given), how), {})[f"{option} ({usual[0]:g} to {usual[1]:g})"] = None
    for (text, how), optimizers in found.items():
        yield (
            f"{RATE} ({text}) {how} what suits {', '.join(optimizers)}: trials there are wasted; "
            f"narrow it, or leave it out, and each optimizer brings its own range"
        )


def _own_rates(request: ParsedOverrides, option: str) -> tuple[float, float] | None:
    """The range in an optimizer's own file, if it has one."""
    try:
        alone = ParsedOverrides(config_dir=request.config_dir).plus([override_text("optimizer", option), "search=none"])
        text = template(alone).search.get(RATE)
    except ConfigError:  # it needs what this sweep gives it and the defaults don't, such as more epochs
        return None
    return _reach(parse_distribution(RATE, text)) if text else None


def _reach(distribution: Distribution) -> tuple[float, float] | None:
    """Its lowest and highest value, where all are numbers."""
    values = [value for value in distribution.probes() if isinstance(value, int | float)]
    return (min(values), max(values)) if len(values) == len(distribution.probes()) else None


def _beyond(reach: tuple[float, float], usual: tuple[float, float]) -> str:
    """How a range leaves an optimizer's own; empty where it keeps to within a decade of it."""
    (low, high), (bottom, top) = reach, usual
    if high < bottom or low > top:
        return "lies outside"
    rounding = 1 + 1e-9
    return "goes more than a decade beyond" if low * 10 * rounding < bottom or high > 10 * top * rounding else ""


def _batches(distributions: Sequence[Distribution], images: int) -> Iterator[str]:
    sizes = [reach[1] for each in distributions if (reach := _reach(each))]
    largest = int(max(sizes, default=0))
    advice = f"give at most {max(1, images // 10):,}"
    if largest > images:
        yield (
            f"trainer.batch_size goes up to {largest:,}, and there are {images:,} training images: trials with more "
            f"fail before they begin; {advice}"
        )
    elif largest > images // 2:
        yield (
            f"trainer.batch_size goes up to {largest:,} of {images:,} training images: one step an epoch, and the "
            f"other images are left out of it; {advice}"
        )


def _seeds(searched: Mapping[str, Sequence[Distribution]], config: Config) -> Iterator[str]:
    """A grid repeats every config with the same seeds, and `report by=KEY` compares the means: that is as it should."""
    if "seed" in searched and len(searched) > 1 and config.study.sampler.name != "grid":
        yield (
            "seed is searched together with hyperparameters: what wins is the luckiest seed as much as the best "
            "config; leave it out, and `confirm` repeats the best configs with fresh seeds, or give study/sampler=grid"
        )


def _single(space: SearchSpace) -> Iterator[str]:
    for parameter in space.parameters():
        points = parameter.distribution.points()
        if points is not None and len(points) == 1:
            text = override_text(parameter.key, points[0])
            yield f"{parameter.name} has one value to draw: nothing is searched there; give {text} outright"


def _grid(space: SearchSpace, config: Config) -> Iterator[str]:
    trials, points = config.study.trials, grid_points(space)
    if config.study.sampler.name == "grid" and points is not None and trials < points:
        yield (
            f"study/sampler=grid with study.trials={trials} leaves the last {points - trials:,} of {points:,} points "
            f"out: a corner of the space, never tried; give study.trials={points}, or study/sampler=random"
        )


def _never_learnt(space: SearchSpace, config: Config) -> Iterator[str]:
    """What gp and cmaes draw at random to the end, since they model the parameters that all trials share."""
    name = config.study.sampler.name
    if name not in ("gp", "cmaes"):
        return
    leaves = [{group for group, _ in leaf.choices} | {p.name for p in leaf.values} for leaf in space.root.leaves()]
    # cmaes draws every choice at random, as its option file says
    parameters = [p for p in space.parameters() if name == "gp" or not isinstance(p.distribution, Choice)]
    conditional = {p.name: p.key for p in parameters if not all(p.name in leaf for leaf in leaves)}
    _, first = space.baseline()
    outside = {p.name: p.key for p in parameters if p.name not in {*conditional, *first}}
    why = (
        (conditional, "which hangs on another choice", "give that one value"),
        (outside, "of which the first trial, the config as it stands, lies outside", "widen it"),
    )
    for found, cause, advice in why:
        if found:
            yield (
                f"study/sampler={name} models what all trials have; drawn at random to the end: "
                f"{listed(list(dict.fromkeys(found.values())))}, {cause}; {advice}, or give study/sampler=tpe"
            )


# ----------------------------------------------------------------------------------------- what is idle


def _never_models(config: Config) -> Iterator[str]:
    sampler, trials = config.study.sampler, config.study.trials
    if sampler.name in MODELLING and sampler.startup_trials >= trials:
        yield (
            f"study/sampler={sampler.name} draws at random until {sampler.startup_trials} trials have ended, which is "
            f"all of study.trials={trials}: it never models; give more trials, or fewer study.sampler.startup_trials"
        )


def _never_prunes(searched: Mapping[str, Sequence[Distribution]], config: Config) -> Iterator[str]:
    pruner, trials = config.study.pruner, config.study.trials
    if pruner.name != "median":
        return
    lengths = [reach[1] for each in searched.get("trainer.epochs", ()) if (reach := _reach(each))]
    epochs = int(max(lengths, default=config.trainer.epochs))
    if pruner.warmup_epochs + 1 >= epochs:  # it looks after that many epochs, and the last one has nothing to save
        yield (
            f"study/pruner=median spares every trial's first {pruner.warmup_epochs} epochs, and none has more than "
            f"{epochs}: it never prunes; give more trainer.epochs, or fewer study.pruner.warmup_epochs"
        )
    elif pruner.startup_trials >= trials:
        yield (
            f"study/pruner=median waits for {pruner.startup_trials} complete trials, which is all of "
            f"study.trials={trials}: it never prunes; give more trials, or fewer study.pruner.startup_trials"
        )
