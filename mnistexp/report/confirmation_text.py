"""A confirmation as a table and fixed sentences, for the terminal, the page in MLflow and the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mnistexp.analysis.confirmation import Confirmation, ConfirmedConfig, TestScore
from mnistexp.study.repeats import RepeatSpace
from mnistexp.terminal.console import wrap
from mnistexp.terminal.formatting import counted, trials

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
    weights = "the same weights as" if test.same_weights else "other weights than"
    return (
        f"test accuracy {test.accuracy:.4f} (95 % interval {test.low:.4f} to {test.high:.4f}, {test.images:,} images); "
        f"the network of seed {test.seed}, validation accuracy {test.val_accuracy:.4f}, {weights} in the ranking"
    )


def page(confirmation: Confirmation) -> str:
    """Return the ranking, the test score and the decision as Markdown, with aligned columns for the terminal."""
    table = [HEAD, *rows(confirmation)[:MOST_ROWS]]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    table.insert(1, tuple("-" * width for width in widths))
    test = test_sentence(confirmation.test) if confirmation.test else "not tested yet"
    blocks = [
        f"**#{confirmation.chosen.number}** has the best mean of {confirmation.seeds} fresh seeds: {test}.",
        confirmation.decision,
        "\n".join(f"| {' | '.join(map(str.ljust, row, widths))} |" for row in table),
        *sentences(confirmation),
        f"Networks tested by the confirmations of this study: {confirmation.test_evaluations}.",
    ]
    return "\n\n".join(filter(None, blocks))


def lines(confirmation: Confirmation) -> Iterator[str]:
    """Yield the ranking and the test score for a terminal; the decision follows when it is made."""
    for block in page(replace(confirmation, decision="")).replace("**", "").split("\n\n"):
        yield ""
        yield from [block] if block.startswith("|") else wrap(block)


def unranked_page(space: RepeatSpace) -> str:
    """Return the description of the parent run in MLflow before the configs can be ranked."""
    numbers = trials([candidate.number for candidate in space.candidates])
    return (
        f"Trials {numbers} of study **{space.study}**, each with several fresh seeds. The test split is not used yet."
    )
