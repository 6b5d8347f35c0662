"""The values and figures of a report's section on one hyperparameter, and its rows in the result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mnistexp.analysis import parameters
from mnistexp.analysis.by_value import Group, Groups, Score, keys, single_config
from mnistexp.config.schema import format_value
from mnistexp.report import comparison_figures
from mnistexp.report.report_data import ReportData
from mnistexp.terminal.formatting import accuracy, interval, p_number

ROWS = 30  # values in the table
NAMED = 10  # values in the result
HEAD = ("seeds", "validation", "95 % interval", "difference", "corrected p", "result")
MORE = ("test", "95 % interval", "configs", "pruned", "failed", "parameters", "seconds")


def answer_rows(data: ReportData) -> Iterator[tuple[str, str]]:
    """Return the rows on the best value, or on the only config of a study that searched nothing but seeds."""
    one, found = single_config(data.history), data.groups
    if one is not None:
        yield f"mean validation accuracy of the config over {len(one.trials)} seeds", _score(one.validation)
        if one.test:
            yield "mean test accuracy of the same networks", _score(one.test)
    elif found and found.groups:
        best = found.groups[0]
        settings = [f"{key}={short_value(value)}" for key, value in best.best.settings.items()]
        yield f"best {found.key}", ", ".join([short_value(best.value), *settings, f"{len(best.best.trials)} seeds"])
        yield "its mean validation accuracy", _score(best.best.validation)
        if best.best.test:
            yield "its mean test accuracy", f"{_score(best.best.test)} (not used for any choice)"
        for verdict in ("not significant", "worse", "better", "not tested"):
            named = [short_value(group.value) for group in found.groups[1:] if group.verdict == verdict]
            more = f" and {len(named) - NAMED} more" if len(named) > NAMED else ""
            if named:
                yield f"other values: {verdict}", f"{', '.join(named[:NAMED])}{more}"


def hint(data: ReportData) -> str:
    """Return the command that compares means over seeds, if seeds were searched and the user did not ask for it."""
    searched = keys(data.history)
    if data.groups or data.best is None or not searched or parameters.SEED not in parameters.keys(data.history):
        return ""
    return data.command("report", f"by={searched[0]}")


def by_value_section(data: ReportData) -> dict[str, Any]:
    """Return the values and figures of the section."""
    found = data.groups
    if found is None or not found.groups:
        return {}
    names = parameters.short_names(found.others).values()
    rows = [_row(group, found, group.verdict if place else "best") for place, group in enumerate(found.groups)]
    empty = ["–"] * (len(names) + len(HEAD) - 1)
    rows += [
        (short_value(group.value), *empty, "no trial completed", "–", "–", "0", *_stopped(group), "–", "–")
        for group in found.empty
    ]
    drawn = {"by": comparison_figures.by_value(found)}
    drawn |= {"by_number": comparison_figures.by_number(found)} if found.number else {}
    return {
        "key": found.key,
        "number": found.number,
        "repeated": any(len(group.best.trials) > 1 for group in found.groups),
        "count": len(rows),
        "head": (found.key, *names, *HEAD, *MORE),
        "align": f"l{'l' * len(names)}{'r' * (len(HEAD) - 1)}lr",
        "rows": rows[:ROWS],
        "without": found.without,
        **drawn,
    }


def _row(group: Group, found: Groups, result: str) -> tuple[str, ...]:
    config, test = group.best, group.against_best
    settings = [short_value(config.settings[key]) if key in config.settings else "–" for key in found.others]
    difference, corrected = "–", "–"
    if test:
        difference = accuracy(round(test.difference, 4) + 0.0)  # no -0.0000
        difference += f" ({test.seeds} seeds)" if test.partial else ""
        corrected = p_number(test.adjusted)
    chosen = (short_value(group.value), *settings, str(len(config.trials)), *_cells(config.validation))
    costs = (f"{config.mean_cost('parameters'):,.0f}", f"{config.mean_cost('seconds'):.1f}")
    more = (*_cells(config.test), str(len(group.configs)), *_stopped(group), *costs)
    return (*chosen, difference, corrected, result, *more)


def _stopped(group: Group) -> tuple[str, str]:
    return str(group.pruned), str(group.failed)


def short_value(value: object) -> str:
    """Format a value as on the command line, with three digits."""
    return format_value(value, digits=3)


def _score(score: Score) -> str:
    return f"{accuracy(score.mean)} ({interval(*score.interval)})" if score.interval else accuracy(score.mean)


def _cells(score: Score | None) -> tuple[str, str]:
    if score is None:
        return "–", "–"
    return accuracy(score.mean), " to ".join(map(accuracy, score.interval)) if score.interval else "–"
