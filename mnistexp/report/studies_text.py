"""The values and figures of a report on several studies. The sentences are in templates/studies.md.jinja."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from mnistexp.analysis import progress
from mnistexp.analysis.comparison import Winner, compare_winners
from mnistexp.analysis.history import History
from mnistexp.report import figures
from mnistexp.report.document import Report
from mnistexp.report.report_data import ReportData
from mnistexp.report.text import config_name
from mnistexp.terminal.formatting import accuracy, duration, p_number

HEAD = ("study", "trial", "config", "accuracy", "95 % interval", "only best", "only this", "corrected p", "result")


def studies_report(studies: Sequence[ReportData], footer: str) -> Report:
    """Put a report on two or more studies side by side together."""
    histories = [data.history for data in studies]
    found = compare_winners(histories)
    tests = {each.study: each for each in found or ()}
    drawn: dict[str, Figure] = {}
    if any(history.complete for history in histories):
        drawn["best_by_trials"] = figures.best_so_far(histories, "trials")
        drawn["best_by_time"] = figures.best_so_far(histories, "seconds")
    values = {
        "title": f"Studies {', '.join(history.name for history in histories)}",
        "tested": found is not None,
        "winners": [_winner(data, tests.get(data.history.name)) for data in studies],
        "head": HEAD,
        "align": "lllrrrrrl",
        "costs": [_costs(history) for history in histories],
        "footer": footer,
    }
    return Report("studies.md.jinja", values, drawn)


def _winner(data: ReportData, winner: Winner | None) -> tuple[str, ...]:
    best, found = data.best, data.comparison
    if best is None:
        return (data.history.name, "–", "no trial completed", *["–"] * 6)
    interval = " to ".join(map(accuracy, found.interval)) if found else "–"
    test = winner.test if winner else None
    result = ("–", "–", "–", "best of all" if winner else "not tested")
    if test:
        verdict = "significantly worse" if test.significant else "not significant"
        result = (str(test.only_best), str(test.only_this), p_number(test.adjusted), verdict)
    return (data.history.name, f"#{best.number}", config_name(best), accuracy(best.accuracy), interval, *result)


def _costs(history: History) -> tuple[str, ...]:
    spent, improvements = progress.costs(history), progress.best_so_far(history.trials, "seconds")
    counts = (str(spent.trials), str(spent.complete), str(spent.pruned), str(spent.failed), f"{spent.epochs:,}")
    times = (duration(spent.training_seconds), duration(spent.active_seconds))
    return (history.name, *counts, *times, duration(improvements[-1].at) if improvements else "–")
