"""What a person reads in the terminal: plain lines, which also read well in a pipe or a log."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mnistexp.config import identity
from mnistexp.results import EpochScores, RunResult

if TYPE_CHECKING:  # Optuna's import, 0.5 s, is not for `train` and `--cfg job`
    from mnistexp.records import LoggedRun, RunRecord
    from mnistexp.run import Comparison, Prepared
    from mnistexp.study import Best, Progress
    from mnistexp.sweep import Summary

WIDTH = 78


def say(text: str = "") -> None:
    """Write one line of a command's answer."""
    print(text, flush=True)


def note(text: str) -> None:
    """Write one line about what goes on; to stderr, so that a pipe gets answers alone."""
    print(text, file=sys.stderr, flush=True)


def warn_fallback(prepared: Prepared) -> None:
    """Say that `auto` became digits, so that it can't be missed; nothing where it didn't."""
    if prepared.fallback:
        frame = "!" * WIDTH
        note(f"{frame}\nTHIS IS NOT MNIST. These runs use scikit-learn's 1,797 bundled 8x8 digits: their scores")
        note("can't be compared with MNIST's. Their study is called 'digits' unless you name it.")
        note(f"Why: {prepared.fallback}\n{frame}")


def epoch_line(scores: EpochScores, epochs: int) -> str:
    """One epoch of a `train`."""
    return (
        f"epoch {scores.epoch:3d}/{epochs}  loss {scores.loss:.4f}  val_loss {scores.val_loss:.4f}  "
        f"val_accuracy {scores.val_accuracy:.4f}  {scores.seconds:.2f} s"
    )


def result_lines(result: RunResult) -> Iterable[str]:
    """How a run ended."""
    fit = result.fit
    where = f"epoch {fit.chosen_epoch} of {len(fit.epochs)}, {fit.stopped}"
    yield f"validation accuracy  {fit.chosen.val_accuracy:.4f}  ({where})"
    yield f"test accuracy        {result.test_accuracy:.4f}"


def trial_line(record: RunRecord, progress: Progress) -> str:
    """One trial of a sweep, with the best so far."""
    if record.result is None:
        outcome = f"failed: {record.reason}"
    else:
        fit = record.result.fit
        state = "pruned" if record.state == "PRUNED" else "      "
        outcome = (
            f"{state} val {fit.chosen.val_accuracy:.4f}  {len(fit.epochs):3d} ep {record.ended - record.started:5.1f} s"
        )
    best = f"best {progress.best.val_accuracy:.4f} (#{progress.best.number})" if progress.best else "no best yet"
    return f"{progress.done:>3}/{progress.total}  {outcome}  {best}  {record.name}"


def start_line(name: str, progress: Progress, workers: int, device: str) -> str:
    """Where a study stands, and what will go on with it."""
    left = max(0, progress.total - progress.done)
    crew = f"{workers} worker{'s' * (workers > 1)}"
    return f"study {name}: {progress.done} of {progress.total} done, {left} to go; {crew} on {device}"


def summary_lines(
    summary: Summary, name: str, logged: LoggedRun | None, stores: Iterable[str], dashboard: str
) -> Iterable[str]:
    """How a sweep ended, and what to type next.

    Args:
        logged: the best trial's run.
        stores: the overrides that say where this study and its runs are, if the user gave any.
        dashboard: what to type to see the runs; empty if none is logged.
    """
    progress = summary.progress
    rate = f", {60 * summary.trials / summary.seconds:.0f} a minute" if summary.trials else ""
    yield (
        f"\n{summary.stopped}: {progress.complete} complete, {progress.pruned} pruned, {progress.failed} failed; "
        f"{summary.trials} of them now, in {summary.seconds:.0f} s{rate}"
    )
    if summary.interrupted:
        yield "Running trials went back to the study: the same command goes on from here."
    if summary.unlogged:
        yield f"{summary.unlogged} runs are not in MLflow yet: the next sweep of this study logs them."
    if progress.best is None:
        yield "No trial completed, so there is no best config."
        return
    yield f"\nBest of study {name}: trial {progress.best.number}"
    yield f"  validation accuracy  {progress.best.val_accuracy:.4f}"
    if logged is not None:
        yield f"  test accuracy        {logged.metrics['test_accuracy']:.4f}  (nothing was chosen by it)"
    yield ""
    yield from (f"  {override}" for override in progress.best.overrides)
    study = shlex.join([f"study.name={name}", *stores])
    yield f"\nas a command line      python -m mnistexp best {study}"
    if dashboard:
        yield f"again, bit by bit      python -m mnistexp rerun {study}"
        yield f"every run, to look at  {dashboard}"


def train_command(overrides: Iterable[str], config_dir: Path | None) -> str:
    """The shell command that trains with these overrides."""
    words = ["--config-dir", str(config_dir)] if config_dir else []
    return shlex.join(["python", "-m", "mnistexp", "train", *words, *overrides])


def comparison_lines(comparison: Comparison) -> Iterable[str]:
    """What came out alike in a rerun, and what may explain the rest."""
    for outcome in comparison.outcomes:
        if outcome.before == outcome.now:
            yield f"  {outcome.what:<20} {_short(outcome.now)}  identical"
        else:
            yield f"  {outcome.what:<20} {_short(outcome.before)}  now {_short(outcome.now)}  DIFFERENT"
    if comparison.identical:
        yield "\nbit-identical: the scores and every weight came out as before"
        return
    yield "\nnot bit-identical"
    if not comparison.causes:
        yield "Nothing that is recorded differs (data, versions, device, flags, code): please report this."
    for cause in comparison.causes:
        yield f"  differs: {cause.what}: was {cause.before}, is {cause.now}"


def _short(text: str) -> str:
    return f"{text[:16]}…" if len(text) > 24 else text


def best_lines(best: Best, command: str) -> Iterable[str]:
    """A study's best config, to keep and to run."""
    yield f"# trial {best.number}: validation accuracy {best.val_accuracy:.4f}"
    plain = identity(best.config)
    plain["data"].pop("files", None)
    yield yaml.safe_dump(plain, sort_keys=False).rstrip()
    yield "# The same as one command line:"
    yield command


def table(rows: Mapping[str, Any]) -> Iterable[str]:
    """Two aligned columns."""
    width = max(map(len, rows), default=0)
    for key, value in rows.items():
        yield f"  {key:<{width}}  {value}"
