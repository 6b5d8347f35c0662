"""The end of a sweep: counts, the best config, whether it is better than others, and what to type next."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from mnistexp.terminal.console import wrap
from mnistexp.terminal.formatting import accuracy

if TYPE_CHECKING:
    from mnistexp.analysis.history import History
    from mnistexp.study.sweep import Summary


def summary_lines(
    summary: Summary, name: str, history: History | None, where: Iterable[str], dashboard: str
) -> Iterator[str]:
    """Format the end of a sweep.

    Args:
        name: the study's name.
        history: the study's trials; None if they cannot be read.
        where: the user's words that name the databases and the file of --code.
        dashboard: the command or address that shows the runs; empty if none is logged.
    """
    progress, best = summary.progress, summary.progress.best
    yield (
        f"\n{summary.stopped}: {progress.complete} complete, {progress.pruned} pruned, {progress.failed} failed; "
        f"this session: {summary.trials} in {summary.seconds:.0f} s"
    )
    if summary.interrupted:
        yield "The running trials will be run again: type the same command to continue."
    if summary.unlogged:
        yield f"Runs that are not in MLflow yet: {summary.unlogged}. The next sweep of this study logs them."
    if best is None:
        yield "No trial is complete, so there is no best config."
        return
    yield f"\nBest of study {name}: trial {best.number}"
    yield f"  validation accuracy  {accuracy(best.val_accuracy)}"
    if history is not None and history.ranked:
        yield from comparison_lines(history)
    yield ""
    yield from (f"  {override}" for override in best.overrides)
    yield from _next_commands(shlex.join([f"study.name={name}", *where]), progress.complete, dashboard)


def comparison_lines(history: History) -> Iterator[str]:
    """The best trial's test accuracy, its lead over the first trial, and how many others are as good."""
    from mnistexp.analysis.comparison import compare_best
    from mnistexp.analysis.parameters import searches_only_seeds

    best, *others = history.ranked
    if best.test_accuracy is not None:
        yield f"  test accuracy        {accuracy(best.test_accuracy)}  (no choice depends on it)"
    if others and searches_only_seeds(history):
        mean = statistics.fmean(trial.accuracy for trial in history.ranked)
        yield f"  mean over {len(history.ranked)} seeds   {accuracy(mean)}  (validation; `report` has the interval)"
        return
    first = next((trial for trial in others if trial.baseline), None)
    for name, trial in {"against first trial": first, "against runner-up": next(iter(others), None)}.items():
        if trial is not None:
            yield f"  {name:<19}  {best.accuracy - trial.accuracy:+.4f}  (trial {trial.number})"
    if others and (comparison := compare_best(history)):
        yield ""
        yield from wrap(
            f"No significant difference to {len(comparison.tied)} of {len(others)} other configs (Holm-corrected "
            f"McNemar test, alpha = 0.05, {comparison.images:,} images); `confirm` trains the best with fresh seeds.",
            "  ",
        )


def _next_commands(study: str, complete: int, dashboard: str) -> Iterator[str]:
    yield f"\nas a train command     python -m mnistexp best {study}"
    if dashboard:
        yield f"train it again         python -m mnistexp rerun {study}"
    yield f"figures and tests      python -m mnistexp report {study}"
    if complete > 1:
        yield f"is it really better?   python -m mnistexp confirm {study}"
    if dashboard:
        yield f"look at every run      {dashboard}"
