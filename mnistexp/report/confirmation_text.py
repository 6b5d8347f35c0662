"""A confirmation as a table and fixed sentences, for the terminal, the page in MLflow and the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from mnistexp.analysis.confirmation import Confirmation, ConfirmedConfig, TestScore
from mnistexp.study.progress import Progress
from mnistexp.study.repeats import RepeatSpace
from mnistexp.terminal.console import wrap
from mnistexp.terminal.formatting import counted, trials
from mnistexp.tracking.records import RunRecord

MOST_ROWS = 40  # on MLflow's page, which has at most 8,000 characters

HEAD = ("trial", "mean", "95 % interval", "sd, seeds", "sd, images", "in the study", "difference")


def rows(confirmation: Confirmation) -> list[tuple[str, ...]]:
    """Return the ranking, best first, in the columns of HEAD."""
    return [_row(each) for each in confirmation.configs]


def _row(each: ConfirmedConfig) -> tuple[str, ...]:
    interval, noise, difference = each.interval, each.noise, each.difference
    return (
        f"#{each.number}",
        f"{interval.mean:.4f}",
        f"{max(0.0, interval.low):.4f} to {min(1.0, interval.high):.4f}",  # Student's t has no bounds
        f"{noise.seed_sd:.4f}",
        f"{noise.split_sd:.4f}",
        f"{each.val_accuracy:.4f}",
        f"{difference.mean:.4f} ({difference.low:+.4f} to {difference.high:+.4f})" if difference else "",
    )


def sentences(confirmation: Confirmation) -> list[str]:
    """Return what the ranking shows."""
    found, others = [], confirmation.configs[1:]
    equal = sum(not each.significant for each in others)
    if others:
        found.append(
            f"#{confirmation.chosen.number} has the best mean. No significant difference to {equal} of "
            f"{counted(len(others), 'other config')} (differences paired by seed and image, with "
            f"{100 * confirmation.level:.3g} % intervals: Bonferroni over all pairs)."
        )
    winner = next((each for each in confirmation.configs if each.number == confirmation.winner), None)
    if winner is not None:
        found.append(
            f"Selection bias of the study's best trial, #{winner.number} (accuracy in the study minus the mean over "
            f"fresh seeds): {winner.val_accuracy - winner.interval.mean:+.4f}."
        )
    if confirmation.left_out:
        found.append(f"Left out, because a run failed: {trials(confirmation.left_out)}.")
    found.append(
        "The validation images are those of the study, so a selection bias from the images may remain; "
        "the test score has none."
    )
    return found


def test_sentence(test: TestScore) -> str:
    """Return the test score of the chosen network."""
    return (
        f"test accuracy {test.accuracy:.4f} (95 % interval {test.low:.4f} to {test.high:.4f}, {test.images:,} images); "
        f"the network of seed {test.seed}, validation accuracy {test.val_accuracy:.4f}"
    )


def lines(confirmation: Confirmation) -> Iterable[str]:
    """Yield the ranking and its sentences, for a terminal."""
    yield f"\nvalidation accuracy, {confirmation.seeds} fresh seeds each\n"
    yield from _aligned([HEAD, *rows(confirmation)])
    yield ""
    yield from chain.from_iterable(wrap(sentence, "  ", "    ") for sentence in sentences(confirmation))


def test_lines(confirmation: Confirmation) -> Iterable[str]:
    """Yield the test score of the chosen network, for a terminal."""
    assert confirmation.test is not None
    weights = "the same weights as" if confirmation.test.same_weights else "other weights than"
    yield f"\nchosen and tested once: #{confirmation.chosen.number}"
    for sentence in (
        f"{test_sentence(confirmation.test)}.",
        f"The tested network has {weights} the run above.",
        f"Networks tested by the confirmations of this study: {confirmation.test_evaluations}.",
    ):
        yield from wrap(sentence, "  ", "    ")


def line(record: RunRecord, progress: Progress) -> str:
    """Return the line of one run that ended."""
    done = f"{progress.done:>3}/{progress.total}"
    if record.result is None:
        return f"{done}  failed: {record.reason}  {record.name}"
    accuracy = record.result.fit.best.val_accuracy
    return f"{done}  val {accuracy:.4f}  {record.ended - record.started:5.1f} s  {record.name}"


def _aligned(table: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (f"{cell:>{width}}" for cell, width in zip(row[:-1], widths[:-1], strict=True))
        yield f"  {'  '.join(cells)}  {row[-1]}".rstrip()


def progress_page(space: RepeatSpace, progress: Progress) -> str:
    """Return the description of the parent run in MLflow while the repeats run."""
    numbers = trials([candidate.number for candidate in space.candidates])
    return (
        f"Trials {numbers} of study **{space.study}**, each with {space.count} fresh seeds: {progress.done} of "
        f"{progress.total} runs are done. None of them evaluates the test split."
    )


def page(confirmation: Confirmation) -> str:
    """Return the description of the parent run in MLflow, as Markdown."""
    table = [HEAD, ("---",) * len(HEAD), *rows(confirmation)[:MOST_ROWS]]
    test = test_sentence(confirmation.test) if confirmation.test else "not tested yet"
    blocks = [
        f"**#{confirmation.chosen.number}** is chosen: {test}.",
        confirmation.decision,
        "\n".join(f"| {' | '.join(row)} |" for row in table),
        *sentences(confirmation),
    ]
    return "\n\n".join(filter(None, blocks))
