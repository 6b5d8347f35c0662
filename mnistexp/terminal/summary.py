"""The end of a sweep: counts, the best config, what it is compared with, and what to type next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mnistexp.terminal.console import wrap
from mnistexp.terminal.formatting import accuracy, p_number

if TYPE_CHECKING:
    from mnistexp.analysis.comparison import BestComparison
    from mnistexp.analysis.history import History, Trial
    from mnistexp.study.sweep import Summary


def summary_lines(
    summary: Summary,
    name: str,
    history: History | None,
    comparison: BestComparison | None,
    where: Iterable[str],
    dashboard: str,
) -> Iterator[str]:
    """Format the end of a sweep.

    Args:
        name: the study's name.
        history: the study's trials; None if they cannot be read.
        comparison: the best trial against the others; None if there is nothing to compare.
        where: the user's words that name the databases and the file of --code.
        dashboard: the command or address that shows the runs; empty if none is logged.
    """
    progress = summary.progress
    rate = f", {60 * summary.trials / summary.seconds:.0f} a minute" if summary.trials else ""
    yield (
        f"\n{summary.stopped}: {progress.complete} complete, {progress.pruned} pruned, {progress.failed} failed; "
        f"this session: {summary.trials} in {summary.seconds:.0f} s{rate}"
    )
    if summary.interrupted:
        yield "The running trials will be run again: type the same command to continue."
    if summary.unlogged:
        yield f"Runs that are not in MLflow yet: {summary.unlogged}. The next sweep of this study logs them."
    if progress.best is None:
        yield "No trial is complete, so there is no best config."
        return
    yield f"\nBest of study {name}: trial {progress.best.number}"
    yield f"  validation accuracy  {accuracy(progress.best.val_accuracy)}"
    if history is not None and history.ranked:
        yield from _scores_and_comparison(history, comparison)
    yield ""
    yield from (f"  {override}" for override in progress.best.overrides)
    yield from _next_commands([f"study.name={name}", *where], progress.complete, dashboard)


def _scores_and_comparison(history: History, comparison: BestComparison | None) -> Iterator[str]:
    from mnistexp.analysis.parameters import searches_only_seeds

    best, *others = history.ranked
    test = _test_accuracy(best)
    if test is not None:
        yield f"  test accuracy        {accuracy(test)}  (no choice depends on it)"
    if others and searches_only_seeds(history):
        yield from _mean_lines(history.ranked)
    elif others:
        yield ""
        yield from comparison_lines(history, comparison)


def _mean_lines(trials: Iterable[Trial]) -> Iterator[str]:
    """The mean over the seeds of a study of one config."""
    found = [(trial.val_accuracy or 0.0, _test_accuracy(trial)) for trial in trials]
    tests = [test for _, test in found if test is not None]
    validation = math.fsum(value for value, _ in found) / len(found)
    test = f", test {math.fsum(tests) / len(tests):.4f}" if len(tests) == len(found) else ""
    yield f"\n  mean over {len(found)} seeds: validation {validation:.4f}{test} (`report` has the intervals)"


def _test_accuracy(trial: Trial) -> float | None:
    return trial.record.result.test_accuracy if trial.record and trial.record.result else None


def comparison_lines(history: History, comparison: BestComparison | None) -> Iterator[str]:
    """The best trial against the first trial and the runner-up, and how many others are as good."""
    best, *others = history.ranked
    tests = {rival.trial.number: rival.test for rival in comparison.rivals} if comparison else {}
    names = {others[0].number: "runner-up"}
    if best.number:
        first = " = runner-up" if others[0].number == 0 else ""
        names = {
            **{trial.number: f"first trial, the config as it is{first}" for trial in others if trial.number == 0},
            **names,
        }
    yield f"  {'best against':<46}  difference  net images  p"
    for number, name in names.items():
        trial = next(trial for trial in others if trial.number == number)
        row = f"  trial {number:<4} {name:<35}  {(best.val_accuracy or 0) - (trial.val_accuracy or 0):+.4f}"
        if test := tests.get(number):
            row += f"     {test.only_best - test.only_this:>7}     {p_number(test.adjusted)}"
        yield row
    if best.number == 0:
        yield "  The first trial, the config as it is, is the best: no other trial exceeds it."
    if comparison:
        yield from wrap(
            f"No significant difference to {len(comparison.tied)} of {len(others)} other configs (Holm-corrected "
            f"McNemar test, alpha = 0.05, {comparison.images:,} images); `confirm` trains the best with fresh seeds.",
            "  ",
        )


def _next_commands(words: Iterable[str], complete: int, dashboard: str) -> Iterator[str]:
    study = shlex.join(words)
    yield f"\nas a train command     python -m mnistexp best {study}"
    if dashboard:
        yield f"train it again         python -m mnistexp rerun {study}"
    yield f"figures and tests      python -m mnistexp report {study}"
    if complete > 1:
        yield f"is it really better?   python -m mnistexp confirm {study}"
    if dashboard:
        yield f"look at every run      {dashboard}"


def train_command(overrides: Iterable[str], config_dir: Path | None, code: Iterable[str] = ()) -> str:
    """The shell command that trains with these overrides; `code`: the words that name the user's Python file."""
    words = [*(["--config-dir", str(config_dir)] if config_dir else []), *code]
    return shlex.join(["python", "-m", "mnistexp", "train", *words, *overrides])
