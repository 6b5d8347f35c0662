"""`sweep --plan`: print the space, the first trials, warnings and an estimate of the time.

No trial runs and no database is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from mnistexp.analysis.estimate import EPOCHS, estimate, time_networks
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.config.schema import Config, RunConfig
from mnistexp.search import samplers, warnings
from mnistexp.search import space as search_space
from mnistexp.search.distributions import Choice
from mnistexp.search.space import SearchSpace
from mnistexp.study import database as storage
from mnistexp.study.progress import Progress, read_progress
from mnistexp.study.study import ClaimedTrial, InvalidTrial, SharedStudy
from mnistexp.terminal import console
from mnistexp.terminal.formatting import counted, duration
from mnistexp.tracking import run_context
from mnistexp.tracking.run_context import PreparedRun, RunContext
from mnistexp.tracking.store import resolved_uri

SHOWN = 5  # first trials that are printed
DRAWN = 24  # trials that are drawn to see how much their costs differ
TABLE_WIDTH = 110  # columns of the table of parameters


def plan(request: ParsedOverrides) -> int:
    """Print what a sweep would do. Raises: what the sweep would raise."""
    request, space = check_space(request)
    prepared = run_context.prepare(request)
    console.warn_not_mnist(prepared.fallback)
    if prepared.request != request:
        space = search_space.build(prepared.request)
    progress = _existing_study(prepared, space)
    drawn = draw_trials(prepared, space, DRAWN)
    console.say_lines(_space_lines(prepared, space))
    console.say_lines(_progress_lines(progress) if progress else _trial_lines(prepared.config, drawn))
    console.say_lines(_warning_lines(prepared, space))
    configs = [trial.config for trial in drawn if isinstance(trial, ClaimedTrial)]
    left = prepared.config.study.trials - (progress.done if progress else 0)
    if left > 0 and configs:
        console.note(f"training up to three of its networks for {EPOCHS} epochs, to measure the time …")
        console.say_lines(_estimate_lines(prepared, configs, left))
    return 0


def check_space(request: ParsedOverrides) -> tuple[ParsedOverrides, SearchSpace]:
    """Build the space and check all that needs neither data nor workers. Raises: ConfigError, StoreError."""
    request = run_context.with_local_data(request)
    space = search_space.build(request)
    config = space.root.template.config()
    samplers.check_study(config, space)
    storage.check_apart(config.study.storage, resolved_uri(config.tracking))
    if warning := storage.network_warning(config.study.storage):
        console.note(f"warning: {warning}")
    return request, space


def draw_trials(prepared: PreparedRun, space: SearchSpace, at_most: int) -> list[ClaimedTrial | InvalidTrial]:
    """Draw the trials that a new study would start before any trial has ended."""
    drawn: list[ClaimedTrial | InvalidTrial] = []
    with closing(storage.in_memory()) as database:
        study = SharedStudy(database, RunContext(prepared, {}, {}), space)
        while len(drawn) < at_most and (trial := study.claim()) is not None:
            drawn.append(trial)
    return drawn


def trials_without_results(config: Config) -> int:
    """How many first trials depend neither on results nor on the order in which trials end."""
    sampler = config.study.sampler
    if sampler.name in warnings.MODEL_BASED:
        return sampler.startup_trials
    return 2 if sampler.name == "qmc" else config.study.trials  # Sobol's points follow the first finished trial


def _existing_study(prepared: PreparedRun, space: SearchSpace) -> Progress | None:
    address = prepared.config.study.storage
    if not storage.is_there(address):
        return None
    with storage.reading(address) as opened:
        return read_progress(opened, prepared, space)


# ------------------------------------------------------------------------------------------------ as text


def _space_lines(prepared: PreparedRun, space: SearchSpace) -> Iterator[str]:
    """The searched parameters and the size of the space."""
    yield f"Study {prepared.study_name} on {prepared.dataset.name} searches:"
    rows = [(p.key, str(p.distribution), condition(space, p.name)) for p in space.parameters()]
    keys = list(dict.fromkeys(key for key, *_ in rows))
    key_width = max(map(len, keys))
    column = max([len(distribution) for _, distribution, where in rows if where], default=0)
    for key, distribution, where in sorted(rows, key=lambda row: keys.index(row[0])):
        row = f"{distribution:<{column}}  if {where}" if where else distribution
        yield from console.wrap(row, f"  {key:<{key_width}}  ", " " * (key_width + 4), TABLE_WIDTH)
    size, points = space.size(), space.most_trials()
    trials = counted(prepared.config.study.trials, "trial")
    if size is None:
        yield f"\n{trials}; the space is infinite, with {counted(combinations(space), 'combination')} of choices"
    else:
        first = "" if points == size else ", and the first trial, which is not one of them"
        yield f"\n{trials}; the space has {counted(size, 'point')}{first}"


def condition(space: SearchSpace, name: str) -> str:
    """For which options a parameter is drawn ('optimizer=adam|nadam'); empty if it always is."""
    leaves = list(space.root.leaves())
    having = [leaf for leaf in leaves if any(parameter.name == name for parameter in leaf.values)]
    if len(having) in (0, len(leaves)):
        return ""
    found = []
    for group in dict.fromkeys(group for leaf in leaves for group, _ in leaf.choices):
        options, every = ([dict(leaf.choices).get(group) for leaf in nodes] for nodes in (having, leaves))
        if set(options) != set(every):
            found.append(f"{group}={'|'.join(dict.fromkeys(filter(None, options)))}")
    return ", ".join(found)


def combinations(space: SearchSpace) -> int:
    """The number of combinations of options and choice() values."""
    total = 0
    for leaf in space.root.leaves():
        count = 1
        for parameter in leaf.values:
            count *= len(parameter.distribution.values) if isinstance(parameter.distribution, Choice) else 1
        total += count
    return total


def _progress_lines(progress: Progress) -> Iterator[str]:
    left = max(0, progress.total - progress.done)
    best = f"; best {progress.best.val_accuracy:.4f} (trial {progress.best.number})" if progress.best else ""
    yield f"\nThe study exists: {progress.done} of {progress.total} trials are done{best}."
    yield f"A sweep runs {left} more." if left else "A sweep runs no more; give a larger study.trials."


def _trial_lines(config: Config, drawn: Sequence[ClaimedTrial | InvalidTrial]) -> Iterator[str]:
    certain = trials_without_results(config)
    rest = "" if certain >= config.study.trials else f" (from trial {certain} on they depend on results)"
    yield f"\nFirst trials{rest}:"
    for trial in drawn[: min(SHOWN, certain)]:
        if isinstance(trial, InvalidTrial):
            yield f"  {trial.number:03d} is invalid: {trial.reason}"
            continue
        yield f"  {run_context.run_name(trial.config, trial.number)}{'   (the config as it is)' * (trial.number == 0)}"
        yield from console.wrap(" ".join(trial.overrides), "      ")


def _warning_lines(prepared: PreparedRun, space: SearchSpace) -> Iterator[str]:
    images = len(prepared.dataset.train.labels)
    found = (*warnings.likely_mistakes(space, prepared.config, images), *warnings.no_effect(space, prepared.config))
    for sentence in found:
        yield from console.wrap(sentence, "  ! ", "    ")


def _estimate_lines(prepared: PreparedRun, configs: Sequence[RunConfig], left: int) -> Iterator[str]:
    """Measure, and print the estimate with what it is based on."""
    timing = time_networks(prepared, configs)
    found = estimate(prepared.config, prepared.dataset, configs, timing, left)
    workers = counted(timing.workers, "worker") if timing.workers else "one worker (Ray decides how many there are)"
    yield f"\n{counted(left, 'trial')} on {workers}: {duration(found.low)} to {duration(found.high)}"
    yield (
        f"  at most {counted(found.epochs, 'epoch')} of about {duration(found.epoch_seconds)}; "
        f"compiling a network takes {duration(found.compile_seconds)}"
    )
    yield f"  measured on {timing.device} with its present load"
    timeout = prepared.config.study.timeout
    if timeout is not None and timeout < found.high:
        yield f"  no trial starts after study.timeout={timeout:g} s"
