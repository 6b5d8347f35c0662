"""`sweep --plan`: what a sweep would do, and how long that takes; it runs no trial and writes to no database."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing

from mnistexp.analysis.estimate import Estimate, Machine, estimate, time_epochs
from mnistexp.config.compose import ParsedOverrides
from mnistexp.config.schema import Config, StudyConfig
from mnistexp.search import samplers, warnings
from mnistexp.search import space as search_space
from mnistexp.search.distributions import Choice
from mnistexp.search.space import Node, SearchSpace
from mnistexp.study import database as storage
from mnistexp.study.study import ClaimedTrial, InvalidTrial, Progress, SharedStudy, standing
from mnistexp.terminal import console, formatting
from mnistexp.tracking import run_context
from mnistexp.tracking.run_context import PreparedRun, RunContext
from mnistexp.tracking.runs import address

SHOWN = 5
"""First trials that are printed."""

TABLE_WIDTH = 110  # a row of three columns reads badly when it is broken

DRAWN = 24
"""Trials that are drawn to see how much they differ in cost: a tenth of a second each would be felt."""


def plan(request: ParsedOverrides) -> int:
    """Print the space, the first trials, what makes no sense, and an estimate of the time.

    Raises: what a sweep would raise, so that it is known before.
    """
    request, space = checked(request)
    prepared = run_context.prepare(request)
    console.warn_fallback(prepared)
    if prepared.request != request:
        space = search_space.build(prepared.request)
    progress = _progress(prepared, space)
    drawn = draws(prepared, space, DRAWN)
    _say(text(prepared, space, drawn, progress))
    _say(warning_lines(prepared, space))
    _say(_time(prepared, drawn, prepared.config.study.trials - (progress.done if progress else 0)))
    return 0


def _time(prepared: PreparedRun, drawn: Sequence[ClaimedTrial | InvalidTrial], left: int) -> Iterator[str]:
    """Time some of the trials; what follows from that."""
    configs = [claim.config for claim in drawn if isinstance(claim, ClaimedTrial)]
    if left > 0 and configs:
        timings, machine = time_epochs(prepared, configs, console.note)
        yield ""
        yield from estimate_lines(estimate(prepared.config, timings, machine, left), prepared.config, machine, left)


def checked(request: ParsedOverrides) -> tuple[ParsedOverrides, SearchSpace]:
    """The space of a sweep, after all that can be checked without data and workers. Raises: ConfigError, StoreError."""
    request = run_context.with_local_data(request)
    space = search_space.build(request)
    config = space.root.template.config()
    samplers.check_study(config, space)
    storage.check_apart(config.study.storage, address(config.tracking))
    if warning := storage.network_warning(config.study.storage):
        console.note(f"warning: {warning}")
    return request, space


def warn(prepared: PreparedRun, space: SearchSpace) -> None:
    """Say what makes a sweep's space mislead, when it starts."""
    for sentence in warnings.misleading(space, prepared.config, len(prepared.dataset.train.labels)):
        console.note(f"warning: {sentence}")


def draws(prepared: PreparedRun, space: SearchSpace, at_most: int) -> list[ClaimedTrial | InvalidTrial]:
    """What a new study's first driver would claim before any trial has ended."""
    found: list[ClaimedTrial | InvalidTrial] = []
    with closing(storage.in_memory()) as database:
        study = SharedStudy(database, RunContext(prepared, {}, {}), space)
        while len(found) < at_most and (claim := study.claim()) is not None:
            found.append(claim)
    return found


def certain(config: Config) -> int:
    """How many first trials are the same whatever scores there are, and whichever ends first."""
    sampler = config.study.sampler
    if sampler.name in warnings.MODELLING:
        return sampler.startup_trials
    return 2 if sampler.name == "qmc" else config.study.trials  # Sobol's points are of what the first to end has


def _progress(prepared: PreparedRun, space: SearchSpace) -> Progress | None:
    """Where the study is, if there is one already."""
    address = prepared.config.study.storage
    if not storage.is_there(address):
        return None
    with storage.reading(address) as opened:
        return standing(opened, prepared, space)


# ------------------------------------------------------------------------------------------------ as text


def text(
    prepared: PreparedRun, space: SearchSpace, drawn: Sequence[ClaimedTrial | InvalidTrial], progress: Progress | None
) -> Iterator[str]:
    """The space, its size, and the first trials."""
    yield f"Study {prepared.study_name} on {prepared.dataset.name} searches:"
    yield from space_lines(space)
    yield ""
    yield from _wrapped(size_sentence(space, prepared.config.study))
    yield ""
    if progress is not None:
        yield from _wrapped(_goes_on(progress))
        return
    first = drawn[: min(SHOWN, certain(prepared.config))]
    yield "Its first trial:" if len(first) == 1 else f"Its first {len(first)} trials:"
    yield from (line for claim in first for line in _trial_lines(claim))
    sampler, after = prepared.config.study.sampler.name, certain(prepared.config)
    if after < prepared.config.study.trials:
        modelled = f"once {after} trials have ended, {sampler} goes by how they went"
        yield f"  ({'the further points of qmc hang on which trial ends first' if sampler == 'qmc' else modelled})"


def warning_lines(prepared: PreparedRun, space: SearchSpace) -> Iterator[str]:
    """What makes no sense, or has no effect."""
    config, images = prepared.config, len(prepared.dataset.train.labels)
    found = (*warnings.misleading(space, config, images), *warnings.idle(space, config))
    if found:
        yield ""
    for sentence in found:
        yield from _wrapped(sentence, "  ! ", "    ")


def space_lines(space: SearchSpace) -> Iterable[str]:
    """Each parameter, what it is drawn from, and for which options alone."""
    rows = [(p.key, str(p.distribution), condition(space, p.name)) for p in space.parameters()]
    keys = [key for key, *_ in rows]
    key_width = max(map(len, keys))
    where_column = max([len(distribution) for _, distribution, where in rows if where], default=0)
    for key, distribution, where in sorted(rows, key=lambda row: keys.index(row[0])):
        row = f"{distribution:<{where_column}}  if {where}" if where else distribution
        yield from _wrapped(row, f"  {key:<{key_width}}  ", " " * (key_width + 4), TABLE_WIDTH)


def condition(space: SearchSpace, name: str) -> str:
    """For which options a value is drawn ('optimizer=adam|nadam'); empty where it always is, and for groups."""
    leaves = list(space.root.leaves())
    having = [leaf for leaf in leaves if any(parameter.name == name for parameter in leaf.values)]
    if len(having) in (0, len(leaves)):
        return ""
    groups = dict.fromkeys(group for leaf in leaves for group, _ in leaf.choices)
    told = {group: _options(having, group) for group in groups}
    return ", ".join(f"{g}={'|'.join(found)}" for g, found in told.items() if found and found != _options(leaves, g))


def _options(leaves: Sequence[Node], group: str) -> list[str]:
    return list(dict.fromkeys(option for leaf in leaves for key, option in leaf.choices if key == group))


def size_sentence(space: SearchSpace, study: StudyConfig) -> str:
    """How many points there are, and how many of them the trials see: a grid each once, another sampler some twice."""
    size, points, trials = space.size(), warnings.grid_points(space), study.trials
    seen = f"{formatting.counted(trials, 'trial')} {'sees' if trials == 1 else 'see'}"
    may = f"{formatting.counted(trials, 'trial')} may see all of them"
    if size is not None and points is not None:
        every = f"{seen} all of them" if study.sampler.name == "grid" else may
        share = every if trials >= points else f"{seen} at most {100 * trials / points:.2g} %"
        own = "" if points == size else ", and the config as it stands"
        return f"{formatting.counted(size, 'point')}{own}; {share}."
    combinations = choices(space)
    endless = list(dict.fromkeys(p.key for p in space.parameters() if p.distribution.points() is None))
    told = f"Infinitely many points: {formatting.listed(endless)} can be any number in between."
    most = f"{seen} at most {trials:,}"
    if combinations == 1:
        return f"{told} {seen} {trials:,} of them."
    return f"{told} Its choices make {combinations:,} combinations; {may if trials >= combinations else most}."


def choices(space: SearchSpace) -> int:
    """How many combinations of options and choice() values there are, whatever else is drawn."""
    total = 0
    for leaf in space.root.leaves():
        count = 1
        for parameter in leaf.values:
            count *= len(parameter.distribution.values) if isinstance(parameter.distribution, Choice) else 1
        total += count
    return total


def _goes_on(progress: Progress) -> str:
    left = max(0, progress.total - progress.done)
    best = f", the best with {progress.best.val_accuracy:.4f} (trial {progress.best.number})" if progress.best else ""
    there = f"The study is there already: {progress.done} of {progress.total} trials are done{best}."
    onward = (
        f"A sweep goes on from there, with {left} more." if left else "A sweep would run none; give more study.trials."
    )
    return f"{there} {onward}"


def _trial_lines(claim: ClaimedTrial | InvalidTrial) -> Iterator[str]:
    if isinstance(claim, InvalidTrial):
        yield f"  {claim.number:03d} fails before it begins: {claim.reason}"
        return
    yield f"  {run_context.run_name(claim.config, claim.number)}{'   (the config as it stands)' * (claim.number == 0)}"
    if claim.draw.overrides:
        yield from _wrapped(" ".join(claim.draw.overrides), "      ")


def estimate_lines(found: Estimate, config: Config, machine: Machine, left: int) -> Iterator[str]:
    """How long it takes, and what that rests on."""
    crew = f"{formatting.counted(machine.workers, 'worker')}" if machine.workers else "one worker"
    low, high = found.epochs
    epochs = formatting.counted(high, "epoch") if low == high else f"{low} to {high} epochs"
    what = f"{formatting.counted(left, 'trial')} of {epochs} on {crew}"
    yield from _wrapped(f"{what}: about {formatting.duration(found.low)} to {formatting.duration(found.high)}.")
    speed = f"An epoch takes {_short(found.typical)} as a rule"
    speed += f", {_short(found.slowest)} at the slowest" if found.slowest > 1.2 * found.typical else ""
    speed += f"; a network that is new to a worker, {_short(found.compiling)} more to compile"
    yield from _wrapped(f"{speed}. Timed on {machine.device}, as busy as it is now.")
    if found.saved > found.high / 50:  # less is not worth a line
        yield from _wrapped(f"Stopping trials early may save up to {formatting.duration(found.saved)} of it.")
    if not machine.workers:
        yield from _wrapped("How many workers the cluster has room for is known when it is joined: divide by that.")
    if config.study.timeout is not None and config.study.timeout < found.high:
        yield from _wrapped(f"No trial starts after study.timeout={config.study.timeout:g} s, which may come first.")


def _short(seconds: float) -> str:
    return (
        f"{1000 * seconds:.0f} ms"
        if seconds < 0.1
        else f"{seconds:.2g} s"
        if seconds < 10
        else formatting.duration(seconds)
    )


def _wrapped(sentence: str, first: str = "", more: str | None = None, width: int = console.WIDTH) -> list[str]:
    return textwrap.wrap(
        sentence,
        width,
        initial_indent=first,
        subsequent_indent=first if more is None else more,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        console.say(line)
