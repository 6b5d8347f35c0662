"""Studies side by side: their courses, their winners tested against each other, their costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mnistexp.analysis import comparison
from mnistexp.analysis.comparison import By, Winner, accuracy_of
from mnistexp.analysis.history import History, Trial
from mnistexp.report import figures
from mnistexp.report.answers import config_name
from mnistexp.report.document import Block, Document, Note, Paragraph, Section, Strong, Table, paragraph
from mnistexp.report.drawing import picture
from mnistexp.report.report_data import ReportData
from mnistexp.terminal.formatting import accuracy, counted, duration, listed, p_number


def compare(materials: Sequence[ReportData], footer: str) -> Document:
    """Lay two studies, or more, side by side."""
    histories = tuple(material.history for material in materials)
    found = comparison.winners(histories)
    sections = (
        Section("winners", "The winners", tuple(_winners(materials, found))),
        Section("course", "How the searches went", tuple(_courses(histories))),
        Section("costs", "What they took", (_costs(histories),)),
    )
    names = listed([history.name for history in histories])
    return Document(f"{names}, side by side", _subtitle(histories), _answer(histories, found), sections, footer)


def _subtitle(histories: Sequence[History]) -> str:
    return f"{counted(len(histories), 'study').replace('studys', 'studies')}, by validation accuracy"


def _answer(histories: Sequence[History], found: Sequence[Winner] | None) -> tuple[Block, ...]:
    ranked = [(history, history.ranked[0]) for history in histories if history.ranked]
    if not ranked:
        return (paragraph("No trial of these studies completed, so there is nothing to compare."),)
    if found is None:
        return *(_winner(*entry) for entry in ranked), paragraph(_why_not(histories))
    first, best = max(ranked, key=lambda entry: accuracy_of(entry[1]))  # the first of equals
    said = paragraph("The best config of all is from ", Strong(first.name), f": {_score(best)}.")
    alike = [each.study for each in found if each.test and not each.test.distinguishable]
    worse = [each.study for each in found if each.test and each.test.distinguishable]
    sentences = [f"The winner{'s' * (len(alike) > 1)} of {listed(alike)} can't be told apart from it."] if alike else []
    sentences += (
        [f"It is better than the winner{'s' * (len(worse) > 1)} of {listed(worse)} by more than luck explains."]
        if worse
        else []
    )
    return said, paragraph(" ".join(sentences))


def _winner(history: History, best: Trial) -> Paragraph:
    return paragraph("The best config of ", Strong(history.name), f": {_score(best)}.")


def _score(best: Trial) -> str:
    return f"{config_name(best)}, validation accuracy {accuracy(accuracy_of(best))}"


def _why_not(histories: Sequence[History]) -> str:
    """Why no test was made."""
    empty = [history.name for history in histories if not history.ranked]
    if empty:
        return f"No trial of {listed(empty)} completed, so the winners were not tested against each other."
    seen = {trial.record.data_fingerprint for history in histories for trial in history.complete if trial.record}
    if len(seen) > 1:
        return (
            "The studies were not scored on the same images (another data set, or another split), so their accuracies "
            "can't be compared, and the winners were not tested against each other."
        )
    return "The records of which images each trial got right don't fit the scores, so the winners were not tested."


def _winners(materials: Sequence[ReportData], found: Sequence[Winner] | None) -> Iterator[Block]:
    tests = {each.study: each.test for each in found or ()}
    rows = []
    for material in materials:
        name, best, standing = material.history.name, material.best, material.standing
        if best is None:
            rows.append((name, "", "no trial completed", "", "", "", ""))
            continue
        interval = f"{accuracy(standing.low)} to {accuracy(standing.high)}" if standing else ""
        test = tests.get(name)
        versus = (f"{test.better} : {test.worse}", p_number(test.adjusted)) if test else ("", "")
        rows.append((name, f"#{best.number}", config_name(best), accuracy(accuracy_of(best)), interval, *versus))
    head = ("study", "trial", "config", "accuracy", "95 % interval", "images won : lost", "p, corrected")
    if found is None:
        yield Table(head[:-2], tuple(row[:-2] for row in rows), "llwrr", "Each study's best trial")
        return
    yield Table(head, tuple(rows), "llwrrrr", "Each study's best trial, and the best of all tested against it")
    yield paragraph(
        "All were scored on the same validation images, so each winner was set beside the best of all image by image "
        "(McNemar's exact test): won are the images that only the best of all got right, lost those that only this "
        "winner got right. As each winner was picked by these very images, the test is corrected for all pairs of all "
        "the studies' complete trials (Holm)."
    )


def _courses(histories: Sequence[History]) -> Iterator[Block]:
    trials = {history.name: history.trials for history in histories}
    if not any(history.complete for history in histories):
        yield Note("No trial completed, so there is no best so far.")
        return
    views: tuple[tuple[By, str, str], ...] = (
        ("trials", "best_by_trials", "trials that have ended"),
        ("seconds", "best_by_time", "time"),
    )
    for by, name, unit in views:
        yield picture(
            name,
            figures.best_so_far_compared(trials, by=by),
            f"Best validation accuracy so far of each study, over {unit}",
            f"The best complete trial so far of each study, over {unit}.",
        )


def _costs(histories: Sequence[History]) -> Table:
    rows = []
    for history in histories:
        spent = comparison.costs(history)
        states = (str(spent.trials), str(spent.complete), str(spent.pruned), str(spent.failed))
        times = (f"{spent.epochs:,}", duration(spent.training_seconds), duration(spent.busy_seconds))
        steps = comparison.best_so_far(history.trials, "seconds")
        rows.append((history.name, *states, *times, duration(steps[-1].at) if steps else "–"))
    head = (
        "study",
        "trials",
        "complete",
        "pruned",
        "failed",
        "epochs",
        "trials' time",
        "search's time",
        "best found after",
    )
    return Table(head, tuple(rows), "lrrrrrrrr")
