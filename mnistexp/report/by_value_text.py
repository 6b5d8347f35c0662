"""The values and figures of a report's section on one hyperparameter, and its rows in the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from mnistexp.analysis import parameters
from mnistexp.analysis.by_value import Group, Groups, Score, keys, single_config
from mnistexp.config.schema import format_value
from mnistexp.report import comparison_figures
from mnistexp.report.report_data import ReportData
from mnistexp.terminal.formatting import accuracy, interval, p_number

ROWS = 30  # values in the table
NAMED = 10  # values in a note
UNEVEN = (
    5  # times as many configs: for equal configs the test then finds 7 % instead of 5 % worse, and 16 % for 20 times
)


def answer_rows(data: ReportData) -> Iterator[tuple[str, str]]:
    """Return the rows on the best value, or on the only config of a study that searched nothing but seeds."""
    one, found = single_config(data.history), data.groups
    if one is not None:
        yield f"mean validation accuracy of the config over {len(one.trials)} seeds", _score(one.validation)
        if one.test:
            yield "mean test accuracy of the same networks", _score(one.test)
    elif found and found.groups:
        best = found.groups[0]
        settings = [f"{key}={_value(value)}" for key, value in best.best.settings.items()]
        yield f"best {found.key}", ", ".join([_value(best.value), *settings, f"{_seeds(best)} seeds"])
        yield "its mean validation accuracy", _score(best.best.validation)
        if best.best.test:
            yield "its mean test accuracy", f"{_score(best.best.test)} (not used for any choice)"
        for verdict in ("not significant", "worse", "better", "not tested"):
            named = [_named(group) for group in found.groups[1:] if _verdict(group) == verdict]
            if named:
                yield f"other values: {verdict}", _some(named)


def hint(data: ReportData) -> str:
    """Return the command that compares means over seeds, if seeds were searched and the user did not ask for it."""
    searched, numeric = keys(data.history), parameters.numeric(data.history)
    if data.groups or data.best is None or not searched or parameters.SEED not in parameters.keys(data.history):
        return ""
    return data.command("report", f"by={next((key for key in searched if key not in numeric), searched[0])}")


def by_value_section(data: ReportData) -> dict[str, Any]:
    """Return the values and figures of the section."""
    found = data.groups
    assert found is not None
    names = short_names(found.others)
    scores = ("seeds", "validation", "95 % interval", "test", "95 % interval")
    tests = [group.against_best for group in found.groups if group.against_best]
    drawn = {"by": comparison_figures.by_value(found)} if found.groups else {}
    drawn |= {"by_number": comparison_figures.by_number(found)} if found.number else {}
    return {
        "key": found.key,
        "number": found.number,
        "repeated": found.repeated,
        "tests": sorted({"paired t test" if test.paired else "Welch's t test" for test in tests}),
        "count": len(found.groups),
        "shown": ROWS,
        "head": (found.key, *names, *scores, "difference", "p", "corrected p", "result", "parameters", "seconds"),
        "align": f"l{'l' * len(names)}rrrrrrrrlr",
        "rows": [_row(group, found, best=not place) for place, group in enumerate(found.groups[:ROWS])],
        "notes": [*_notes(found)],
        **drawn,
    }


def short_names(keys: Sequence[str]) -> list[str]:
    """Return the last parts of override keys, for table heads; the whole key if two have the same last part."""
    short = [key.rpartition(".")[2] for key in keys]
    return [key if short.count(name) > 1 else name for key, name in zip(keys, short, strict=True)]


def _row(group: Group, found: Groups, *, best: bool) -> tuple[str, ...]:
    config, test = group.best, group.against_best
    settings = [_value(config.settings[key]) if key in config.settings else "–" for key in found.others]
    result = ("", "", "", "best" if best else "not tested")
    if test:
        difference = accuracy(round(test.difference, 4) + 0.0)  # no -0.0000
        difference += f" ({test.paired} seeds)" if test.partial else ""
        result = (difference, p_number(test.p_value), p_number(test.adjusted), test.verdict)
    costs = (f"{config.mean_cost('parameters'):,.0f}", f"{config.mean_cost('seconds'):.1f}")
    scores = (*_cells(config.validation), *_cells(config.test))
    return (_value(group.value), *settings, _seeds(group), *scores, *result, *costs)


def _notes(found: Groups) -> Iterator[tuple[str, str]]:
    """Return what a reader must know before believing the table, each with its values."""
    counts = [len(group.configs) for group in found.groups]
    if any(group.against_best for group in found.groups) and max(counts) >= UNEVEN * min(counts):
        yield (
            "The values have very different numbers of configs, and more configs have a luckier best",
            (f"{min(counts)} to {max(counts)}"),
        )
    if found.repeated and max(counts) > 1:
        yield (
            "Each best is the best of several configs by these scores, so its validation mean is a little too high",
            (f"up to {max(counts)} configs"),
        )
    for key in found.others:
        if ends := [_value(group.value) for group in found.groups if group.at_end(key)]:
            yield f"The best {key} is the lowest or highest of those that were tried; try values beyond it", _some(ends)
    fewer = [f"{_value(group.value)}: {len(group.fewer)} configs" for group in found.groups if group.fewer]
    if fewer:
        yield "Configs with fewer complete seeds than others of their value were not selected", _some(fewer)
    if found.short:
        named = _some([_named(group) for group in found.short])
        yield "Values with fewer complete seeds than others: the mean may be that of lucky seeds", named
    stopped = [(group.value, group.pruned, group.failed) for group in found.groups if group.pruned or group.failed]
    if stopped:
        yield "Trials that did not complete are in no mean", _counts(stopped)
    if found.empty:
        yield "Values without a complete trial", _counts(found.empty)
    if found.without:
        yield f"Trials without a value of {found.key} (not every config has one) are not counted", str(found.without)


def _counts(stopped: Sequence[tuple[Any, int, int]]) -> str:
    return _some([f"{_value(value)} ({pruned} pruned, {failed} failed)" for value, pruned, failed in stopped])


def _verdict(group: Group) -> str:
    return group.against_best.verdict if group.against_best else "not tested"


def _value(value: object) -> str:
    return format_value(value, digits=3)


def _named(group: Group) -> str:
    """A value, with the number of its seeds if others have more."""
    return f"{_value(group.value)} ({_seeds(group)} seeds)" if group.short else _value(group.value)


def _seeds(group: Group) -> str:
    seeds = len(group.best.trials)
    return f"{seeds} of {group.full}" if group.short else str(seeds)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"


def _score(score: Score) -> str:
    return f"{accuracy(score.mean)} ({interval(*score.interval)})" if score.interval else accuracy(score.mean)


def _cells(score: Score | None) -> tuple[str, str]:
    if score is None:
        return "–", "–"
    return accuracy(score.mean), " to ".join(map(accuracy, score.interval)) if score.interval else "–"
