"""What a person reads in the terminal: plain lines, which also read well in a pipe or a log."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mnistexp.config.compose import identity
from mnistexp.training.results import EpochScores, RunResult

if TYPE_CHECKING:  # Optuna's import, 0.5 s, is not for `train` and `--cfg job`
    from mnistexp.analysis.comparison import BestComparison
    from mnistexp.analysis.history import History, Trial
    from mnistexp.analysis.statistics import Rival
    from mnistexp.study.study import Best, Progress
    from mnistexp.study.sweep import Summary
    from mnistexp.tracking.records import RunRecord
    from mnistexp.tracking.run_context import Comparison, PreparedRun

WIDTH = 78


def say(text: str = "") -> None:
    """Write one line of a command's answer."""
    print(text, flush=True)


def note(text: str) -> None:
    """Write one line about what goes on; to stderr, so that a pipe gets answers alone."""
    print(text, file=sys.stderr, flush=True)


def warn_fallback(prepared: PreparedRun) -> None:
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
    where = f"epoch {fit.best_epoch} of {len(fit.epochs)}, {fit.stopped}"
    yield f"validation accuracy  {fit.best.val_accuracy:.4f}  ({where})"
    if result.test_accuracy is not None:
        yield f"test accuracy        {result.test_accuracy:.4f}"


def trial_line(record: RunRecord, progress: Progress) -> str:
    """One trial of a sweep, with the best so far."""
    if record.result is None:
        outcome = f"failed: {record.reason}"
    else:
        fit = record.result.fit
        state = "pruned" if record.state == "PRUNED" else "      "
        outcome = (
            f"{state} val {fit.best.val_accuracy:.4f}  {len(fit.epochs):3d} ep {record.ended - record.started:5.1f} s"
        )
    best = f"best {progress.best.val_accuracy:.4f} (#{progress.best.number})" if progress.best else "no best yet"
    return f"{progress.done:>3}/{progress.total}  {outcome}  {best}  {record.name}"


def start_line(name: str, progress: Progress, workers: int, device: str) -> str:
    """Where a study stands, and what will go on with it."""
    left = max(0, progress.total - progress.done)
    crew = f"{workers} worker{'s' * (workers != 1)}"
    return f"study {name}: {progress.done} of {progress.total} done, {left} to go; {crew} on {device}"


def summary_lines(
    summary: Summary,
    name: str,
    history: History | None,
    standing: BestComparison | None,
    where: Iterable[str],
    dashboard: str,
) -> Iterable[str]:
    """How a sweep ended, and what to type next.

    Args:
        history: the study's; None where it can't be told.
        standing: of its best; None where nothing can be tested.
        where: the words that say where this study, its runs and its code are, if the user gave any.
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
        which, them = ("1 run is", "it") if summary.unlogged == 1 else (f"{summary.unlogged} runs are", "them")
        yield f"{which} not in MLflow yet: the next sweep of this study logs {them}."
    if progress.best is None:
        yield "No trial completed, so there is no best config."
        return
    yield f"\nBest of study {name}: trial {progress.best.number}"
    yield f"  validation accuracy  {progress.best.val_accuracy:.4f}"
    yield from _of_history(history, standing) if history is not None and history.ranked else ()
    yield ""
    yield from (f"  {override}" for override in progress.best.overrides)
    yield from _what_next([f"study.name={name}", *where], progress.complete, dashboard)


def _of_history(history: History, standing: BestComparison | None) -> Iterable[str]:
    """The best one's test score, and what it beats by how much."""
    best = history.ranked[0]
    if best.record and best.record.result and best.record.result.test_accuracy is not None:
        yield f"  test accuracy        {best.record.result.test_accuracy:.4f}  (nothing was chosen by it)"
    sentences = versus_sentences(history, standing)
    if sentences:
        yield ""
        yield from (line for sentence in sentences for line in _wrapped(sentence))


def _wrapped(sentence: str) -> Iterable[str]:
    width = min(WIDTH, max(40, shutil.get_terminal_size((WIDTH, 24)).columns - 1))
    return textwrap.wrap(sentence, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def versus_sentences(history: History, standing: BestComparison | None) -> list[str]:
    """What a study's best trial beats, by how much, and whether that may be luck."""
    from mnistexp.analysis import comparison as analysis

    best, *others = history.ranked
    if not others:
        return []
    if analysis.repeats_one_config(history):
        return [_average(history.ranked)]
    tests = {versus.trial.number: versus.test for versus in standing.rivals} if standing else {}
    told = ["It is the config as it stands: no other trial beats that."] if best.number == 0 else []
    baseline = [trial for trial in others[1:] if trial.number == 0]
    for trial in [*baseline, others[0]]:
        names = ["the config as it stands"] * (trial.number == 0) + ["the runner-up"] * (trial is others[0])
        what = f"{' and '.join(names)} (trial {trial.number})"
        lead = (best.val_accuracy or 0.0) - (trial.val_accuracy or 0.0)
        told.append(_versus_one(what, lead, tests.get(trial.number), standing.images if standing else 0))
    return [*told, *_versus_all(len(others), len(standing.alike))] if standing else told


def _average(trials: Sequence[Trial]) -> str:
    """How good the one config of these trials is."""
    found = [trial.val_accuracy or 0.0 for trial in trials]
    tested = [trial.record.result.test_accuracy for trial in trials if trial.record and trial.record.result]
    scores = [each for each in tested if each is not None]
    beside = f", test {math.fsum(scores) / len(scores):.4f}" if len(scores) == len(found) else ""
    return (
        f"The {len(found)} complete trials are one config with a seed each: on average validation accuracy "
        f"{math.fsum(found) / len(found):.4f}{beside}; `report` has the intervals."
    )


def _versus_one(what: str, lead: float, test: Rival | None, images: int) -> str:
    if not lead:
        return f"It is level with {what}."
    if test is None:  # a study from before the hits were kept
        return f"It is {lead:.4f} above {what}."
    net = f"{test.better - test.worse} of {images:,} images net"
    chance = "p<0.001" if test.adjusted < 0.001 else f"p={test.adjusted:.2g}"
    if test.distinguishable:
        return f"It beats {what} by {lead:.4f}: {net}, {chance}."
    return f"It is {lead:.4f} above {what}: {net}, which may be luck, {chance}."


def _versus_all(rivals: int, alike: int) -> Iterable[str]:
    """The same count as the report's."""
    if alike:
        none = "None of the {rivals} others can" if rivals > 1 else "The other one can't"
        who = none.format(rivals=rivals) if alike == rivals else f"{alike} of the {rivals} others can't"
        yield f"{who} be told apart from it: `report` says more, `confirm` settles it."
    else:
        who = f"All {rivals} others are" if rivals > 1 else "The other one is"
        yield f"{who} worse by more than luck in the images explains."
    yield f"(p: McNemar's exact test, corrected for picking the best of {rivals + 1} by the same images.)"


def _what_next(words: Iterable[str], complete: int, dashboard: str) -> Iterable[str]:
    """Commands to type."""
    study = shlex.join(words)
    yield f"\nas a command line      python -m mnistexp best {study}"
    if dashboard:
        yield f"again, bit by bit      python -m mnistexp rerun {study}"
    yield f"figures and tests      python -m mnistexp report {study}"
    if complete > 1:
        yield f"better, or lucky?      python -m mnistexp confirm {study}"
    if dashboard:
        yield f"every run, to look at  {dashboard}"


def train_command(overrides: Iterable[str], config_dir: Path | None, code: Iterable[str] = ()) -> str:
    """The shell command that trains with these overrides; `code`: the words that name the user's own file."""
    words = [*(["--config-dir", str(config_dir)] if config_dir else []), *code]
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
