"""`sweep --plan`: print the space, the first trials, warnings and an estimate of the time.

No trial runs and no database is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from mnistexp.analysis.estimate import EPOCHS, Timing, estimate, time_networks
from mnistexp.config.overrides import ParsedOverrides, parse_parameter_name
from mnistexp.config.schema import Config, RunConfig
from mnistexp.search import samplers
from mnistexp.search import space as search_space
from mnistexp.search.space import SearchSpace
from mnistexp.search.warnings import MODEL_BASED, likely_mistakes, no_effect
from mnistexp.study import database as storage
from mnistexp.study.progress import Progress, read_progress
from mnistexp.study.study import ClaimedTrial, InvalidTrial, SharedStudy
from mnistexp.terminal import console
from mnistexp.terminal.formatting import counted, duration
from mnistexp.tracking import run_context
from mnistexp.tracking.run_context import PreparedRun, RunContext
from mnistexp.tracking.store import resolved_uri

SHOWN = 5  # first trials that are printed
TIMED = 3  # networks of them that are timed
TABLE_WIDTH = 110  # columns of the table of parameters


def plan(request: ParsedOverrides) -> int:
    """Print what a sweep would do. Raises: what the sweep would raise."""
    request, space = check_space(request)
    prepared = run_context.prepare(request)
    console.warn_not_mnist(prepared.fallback)
    if prepared.request != request:
        space = search_space.build(prepared.request)
    progress = _existing_study(prepared, space)
    drawn = draw_trials(prepared, space, SHOWN)
    console.say_lines(_space_lines(prepared, space))
    console.say_lines(_progress_lines(progress) if progress else _trial_lines(prepared.config, drawn))
    images = len(prepared.dataset.train.labels)
    for sentence in (*likely_mistakes(space, prepared.config, images), *no_effect(space, prepared.config)):
        console.say_lines(console.wrap(sentence, "  ! ", "    "))
    configs = [trial.config for trial in drawn if isinstance(trial, ClaimedTrial)]
    left = prepared.config.study.trials - (progress.done if progress else 0)
    if left > 0 and configs:
        console.note(f"training up to {TIMED} of its networks for {EPOCHS} epochs, to measure the time …")
        timing = time_networks(prepared, configs[:TIMED])
        console.say_lines(_estimate_lines(prepared, configs, timing, left))
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
    if sampler.name in MODEL_BASED:
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
    """The searched parameters, with the options that they are only for, and the size of the space."""
    yield f"Study {prepared.study_name} on {prepared.dataset.name} searches:"
    rows = [(*parse_parameter_name(name), text) for name, text in space.descriptions().items()]
    keys = list(dict.fromkeys(key for key, *_ in rows))
    indent = max(map(len, keys)) + 4
    for key, options, text in sorted(rows, key=lambda row: keys.index(row[0])):
        row = f"{text}  for {', '.join(options)}" if options else text
        yield from console.wrap(row, f"  {key:<{indent - 2}}", " " * indent, TABLE_WIDTH)
    size, points, trials = space.size(), space.most_trials(), counted(prepared.config.study.trials, "trial")
    if size is None:
        yield f"\n{trials}; the space is infinite"
    else:
        first = "" if points == size else ", and the first trial, which is not one of them"
        yield f"\n{trials}; the space has {counted(size, 'point')}{first}"


def _progress_lines(progress: Progress) -> Iterator[str]:
    left = max(0, progress.total - progress.done)
    best = f"; best {progress.best.val_accuracy:.4f} (trial {progress.best.number})" if progress.best else ""
    yield f"\nThe study exists: {progress.done} of {progress.total} trials are done{best}."
    yield f"A sweep runs {left} more." if left else "A sweep runs no more; give a larger study.trials."


def _trial_lines(config: Config, drawn: Sequence[ClaimedTrial | InvalidTrial]) -> Iterator[str]:
    certain = trials_without_results(config)
    rest = "" if certain >= config.study.trials else f" (from trial {certain} on they depend on results)"
    yield f"\nFirst trials{rest}:"
    for trial in drawn[:certain]:
        if isinstance(trial, InvalidTrial):
            yield f"  {trial.number:03d} is invalid: {trial.reason}"
            continue
        yield f"  {run_context.run_name(trial.config, trial.number)}{'   (the config as it is)' * (trial.number == 0)}"
        yield from console.wrap(" ".join(trial.overrides), "      ")


def _estimate_lines(prepared: PreparedRun, configs: Sequence[RunConfig], timing: Timing, left: int) -> Iterator[str]:
    low, high = estimate(prepared, configs, timing, left)
    workers = counted(timing.workers, "worker") if timing.workers else "one worker (Ray decides how many there are)"
    yield f"\n{counted(left, 'trial')} on {workers}: {duration(low)} to {duration(high)}"
    epochs, compiling = (f"{duration(min(each))} to {duration(max(each))}" for each in (timing.epoch, timing.compile))
    yield f"  an epoch takes {epochs}, and compiling a network {compiling}"
    yield f"  measured on {timing.device} with its present load"
    timeout = prepared.config.study.timeout
    if timeout is not None and timeout < high:
        yield f"  no trial starts after study.timeout={timeout:g} s"
