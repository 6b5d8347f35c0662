"""What a confirmation found, in words and rows: for the terminal, for MLflow's page, for the report."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from mnistexp.analysis.confirmation import Confirmation, ConfirmedConfig, TestScore
from mnistexp.study.progress import Progress
from mnistexp.terminal.formatting import listed
from mnistexp.tracking.records import RunRecord

WIDTH = 100
MOST_ROWS = 40  # on MLflow's page: it takes 8,000 characters for all

HEAD = ("trial", "mean", "95 % interval", "sd, seeds", "sd, images", "in the sweep", "behind")


def rows(confirmation: Confirmation) -> list[tuple[str, ...]]:
    """The ranking, best first, under HEAD."""
    return [_row(each) for each in confirmation.configs]


def _row(rival: ConfirmedConfig) -> tuple[str, ...]:
    interval, noise, behind = rival.interval, rival.noise, rival.difference
    lead = f"{behind.mean:.4f} ({behind.low:+.4f} to {behind.high:+.4f})" if behind else ""
    return (
        f"#{rival.number}",
        f"{interval.mean:.4f}",
        f"{max(0.0, interval.low):.4f} to {min(1.0, interval.high):.4f}",  # Student's t knows no ends
        f"{noise.seed_sd:.4f}",
        f"{noise.split_sd:.4f}",
        f"{rival.val_accuracy:.4f}",
        lead,
    )


def sentences(confirmation: Confirmation) -> list[str]:
    """What it means."""
    return [
        *_about_luck(confirmation),
        *_about_order(confirmation),
        _about_noise(confirmation),
        *_about_failures(confirmation),
    ]


def _about_luck(confirmation: Confirmation) -> Iterable[str]:
    """How far the sweep's own winner falls back."""
    winner = next((rival for rival in confirmation.configs if rival.number == confirmation.winner), None)
    if winner is None:  # told among the failures
        return
    mean, half = winner.interval.mean, winner.interval.high - winner.interval.mean
    luck = winner.val_accuracy - mean
    told = (
        f"about {luck:.4f} of it was luck" if luck >= 0.00005 else "there was no luck in it that new seeds could take"
    )
    yield (
        f"The sweep's own winner, #{winner.number}, scored {winner.val_accuracy:.4f} there, and "
        f"{mean:.4f} ± {half:.4f} over {confirmation.seeds} fresh seeds: {told}."
    )


def _about_order(confirmation: Confirmation) -> Iterable[str]:
    """Which is best, and which can't be told apart from it."""
    best, *others = confirmation.configs
    if not others:
        return
    alike = [f"#{rival.number}" for rival in others if not rival.significant]
    behind = [f"#{rival.number}" for rival in others if rival.significant]
    parts = []
    if alike:
        parts.append(f"{listed(alike)} can't be told apart from it")
    if behind:
        parts.append(f"{listed(behind)} {'is' if len(behind) == 1 else 'are'} behind by more than the noise")
    yield (
        f"#{best.number} is best by its mean; {', and '.join(parts)} (seeds and images both counted, corrected for "
        f"having picked it)."
    )


def _about_noise(confirmation: Confirmation) -> str:
    noise = confirmation.chosen.noise
    return (
        f"One run of #{confirmation.chosen.number} moves by {noise.seed_sd:.4f} (sd) from seed to seed, and by "
        f"{noise.split_sd:.4f} from one draw of such images to the next. The images here are those that the sweep "
        f"chose by, so luck with them is still in these numbers; it isn't in the test score."
    )


def _about_failures(confirmation: Confirmation) -> Iterable[str]:
    if confirmation.left_out:
        numbers = [f"#{number}" for number in confirmation.left_out]
        it = "it" if len(numbers) == 1 else "each"
        yield f"{listed(numbers)} {'is' if len(numbers) == 1 else 'are'} left out: a run of {it} failed."


def line(record: RunRecord, progress: Progress) -> str:
    """One run that ended."""
    done = f"{progress.done:>3}/{progress.total}"
    if record.result is None:
        return f"{done}  failed: {record.reason}  {record.name}"
    fit = record.result.fit
    return f"{done}  val {fit.best.val_accuracy:.4f}  {record.ended - record.started:5.1f} s  {record.name}"


def test_sentence(test: TestScore) -> str:
    """The one number that nothing was chosen by."""
    return (
        f"test accuracy {test.accuracy:.4f} (95 % interval {test.low:.4f} to {test.high:.4f}) "
        f"on {test.images:,} images, of the network with seed {test.seed}, "
        f"whose validation accuracy is {test.val_accuracy:.4f}"
    )


def lines(confirmation: Confirmation) -> Iterable[str]:
    """The ranking and what it means, for a terminal."""
    yield f"\n{_title(confirmation)}\n"
    yield from _aligned([_head(confirmation), *rows(confirmation)])
    yield ""
    for sentence in sentences(confirmation):
        yield from wrapped(sentence)


def wrapped(sentence: str) -> list[str]:
    """A sentence as a terminal's lines."""
    return textwrap.wrap(sentence, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)


def _title(confirmation: Confirmation) -> str:
    count = len(confirmation.configs)
    what = f"{count} best configs" if count > 1 else "best config"
    return f"The {what}, each with {confirmation.seeds} fresh seeds: validation accuracy"


def _head(confirmation: Confirmation) -> tuple[str, ...]:
    """HEAD, with the level at which the last column's intervals hold together."""
    return (*HEAD[:-1], f"behind ({100 * confirmation.level:.3g} %)" if len(confirmation.configs) > 1 else "")


def _aligned(table: Sequence[Sequence[str]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (f"{cell:>{width}}" for cell, width in zip(row[:-1], widths[:-1], strict=True))
        yield f"  {'  '.join(cells)}  {row[-1]}".rstrip()


def page(confirmation: Confirmation) -> str:
    """The description of its parent run in MLflow, as Markdown."""
    head = _head(confirmation)
    table = [head, ("---",) * len(head), *rows(confirmation)[:MOST_ROWS]]
    test = test_sentence(confirmation.test) if confirmation.test else "it was not tested yet"
    found = [
        f"**#{confirmation.chosen.number}** is the chosen one: {test}.",
        confirmation.decision,
        "\n".join(f"| {' | '.join(row)} |" for row in table),
        *sentences(confirmation),
    ]
    return "\n\n".join(filter(None, found))
