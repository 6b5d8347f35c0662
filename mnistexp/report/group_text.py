"""The report's section on a study by one of its hyperparameters, and the sentences of it that belong in the answer."""

from __future__ import annotations

from collections.abc import Iterator

from mnistexp.analysis import by_value as groups
from mnistexp.analysis import comparison
from mnistexp.analysis.by_value import SEED, Group, Groups, Repeated, Score, keys
from mnistexp.analysis.comparison import shown
from mnistexp.report import figures
from mnistexp.report.document import Block, Code, Note, Paragraph, Section, Strong, Table, paragraph
from mnistexp.report.drawing import picture
from mnistexp.report.report_data import ReportData
from mnistexp.terminal.formatting import accuracy, counted, listed, p_number

ROWS = 30  # values in the table, at most
NAMED = 10  # of them in a sentence
UNEVEN = (
    5  # times another value's configs: of equal ones, simulated, the test then finds 7 % worse, not 5, and 16 % at 20
)


# -------------------------------------------------------------------------------------------------- the answer


def answer(material: ReportData) -> tuple[Paragraph, ...]:
    """Which value is best, if that was asked for; of one config with several seeds how good it is."""
    found, one = material.groups, groups.only(material.history)
    if one is not None:
        return (_average(one),)
    return (_verdict(found),) if found and found.groups else ()


def hint(material: ReportData) -> tuple[Paragraph, ...]:
    """How to ask, where seeds were searched and nobody asked."""
    history = material.history
    searched, numbers = keys(history), comparison.numeric(history)
    if material.groups or material.best is None or not searched or SEED not in comparison.keys(history):
        return ()
    key = next((each for each in searched if each not in numbers), searched[0])
    return (
        paragraph(
            "This study repeats its configs with several seeds, so its best single run is the luckiest seed as much as "
            "the best config; means over seeds, with intervals, come with ",
            Code(f"{material.command('report')} by={key}"),
            ".",
        ),
    )


def _average(one: Repeated) -> Paragraph:
    score, test = one.validation, one.test
    beside = f"; mean test accuracy of the same {_told(test)}, which nothing was chosen by" if test else ""
    return paragraph(
        f"One config with {len(score.values)} seeds: mean validation accuracy ",
        Strong(accuracy(score.mean)),
        f" ({_interval(score)}for new seeds on these images){beside}.",
    )


def _verdict(found: Groups) -> Paragraph:
    best, rivals = found.groups[0], found.groups[1:]
    score, test = best.best.validation, best.best.test
    of, settings = f" of those with {best.full} seeds" if found.short else "", _with(best, found)
    beside = f"; mean test accuracy of the same {_told(test)}, which nothing was chosen by" if test else ""
    return paragraph(
        f"By {found.key}: ",
        Strong(f"{shown(best.value)} is best"),
        f"{of}{',' if of and settings else ''}{settings}, mean validation accuracy ",
        Strong(accuracy(score.mean)),
        f" ({_interval(score)}{_over(score)}){beside}.{_standing(rivals)}",
    )


def _with(group: Group, found: Groups) -> str:
    """Its other hyperparameters."""
    values = [f"{key}={shown(group.best.settings[key])}" for key in found.others if key in group.best.settings]
    return f" with {listed(values)}" if values else ""


def _interval(score: Score) -> str:
    return f"95 % interval {accuracy(score.interval[0])} to {accuracy(score.interval[1])}, " if score.interval else ""


def _over(score: Score) -> str:
    return f"over {len(score.values)} seeds" if score.interval else "one run"


def _told(score: Score) -> str:
    interval = f" ({accuracy(score.interval[0])} to {accuracy(score.interval[1])})" if score.interval else ""
    return f"{accuracy(score.mean)}{interval}"


def _standing(rivals: tuple[Group, ...]) -> str:
    """Which of the other values can't be told apart from the best, and which are worse."""
    alike, worse, ahead = (
        [_named(group) for group in rivals if group.behind and group.behind.verdict == verdict]
        for verdict in ("can't tell", "worse", "ahead")
    )
    untested = [_named(group) for group in rivals if not group.behind]
    said = [f" {_some(alike)} can't be told apart from it."] if alike else []
    said += [f" {_some(worse)} {'is' if len(worse) == 1 else 'are'} worse by more than luck explains."] if worse else []
    shared = "by more than luck explains over the seeds that both have, which are not all"
    said += [f" {_some(ahead)} {'is' if len(ahead) == 1 else 'are'} ahead of it {shared}."] if ahead else []
    said += [f" {_some(untested)} can't be tested against it: that takes two seeds of each."] if untested else []
    return "".join(said)


def _named(group: Group) -> str:
    """A value, and how many of the seeds it has unless it has all."""
    return f"{shown(group.value)} ({_seeds(group)} seeds)" if group.short else shown(group.value)


def _seeds(group: Group) -> str:
    seeds = len(group.best.trials)
    return f"{seeds} of {group.full}" if group.short else str(seeds)


def _some(values: list[str]) -> str:
    rest = len(values) - NAMED
    return listed(values) if rest <= 0 else f"{', '.join(values[:NAMED])} and {rest} more"


# ------------------------------------------------------------------------------------------------- the section


def by_value(material: ReportData) -> Section:
    """What each value of the key that was asked for is good for."""
    found = material.groups
    assert found is not None
    return Section("by", f"By {found.key}", tuple(_by_value(found)))


def _by_value(found: Groups) -> Iterator[Block]:
    if not found.groups:
        yield Note(f"No trial completed, so no value of {found.key} can be compared.")
        return
    last = ", those with fewer seeds than others last" if found.short else ""
    yield paragraph(
        "For each value its best config, chosen by mean validation accuracy over its seeds (trials that are equal but "
        f"for the seed), and ordered by that mean{last}. The test accuracies of the same trainings stand beside; "
        "nothing was chosen or ordered by them."
    )
    if not found.repeated:
        yield Note(
            "No value's best config was trained with two seeds or more, so there are no intervals and no tests: each "
            "value's best is one run, and lucky in part. To repeat them, search seed too (seed='range(0,5)') with "
            "study/sampler=grid; or have confirm train the study's best configs with fresh seeds."
        )
    yield picture(
        "by",
        figures.by_value(found),
        f"Accuracy of the best config of each value of {found.key}, on validation and test, with intervals over seeds",
        "The mean over seeds with its 95 % interval (Student's t, for new seeds on these images), validation above and "
        "test below; small dots are single seeds."
        if found.repeated
        else "One run each: validation above, test below.",
    )
    yield _table(found)
    yield from _remarks(found)
    if found.number:
        yield picture(
            "by_number",
            figures.by_number(found),
            f"Mean validation accuracy over {found.number}, a panel for each value of {found.key}",
            f"Mean validation accuracy of every config over {found.number}; the star is the one that was chosen, and "
            "the grey line is that of the best value.",
        )


def _table(found: Groups) -> Table:
    short = [key.rpartition(".")[2] for key in found.others]
    names = [key if short.count(name) > 1 else name for key, name in zip(found.others, short, strict=True)]
    head = ("", *names, "seeds", "validation", "95 % interval", "test", "95 % interval", "behind", "p", "corrected", "")
    rows = tuple(_row(group, found.others, best=not place) for place, group in enumerate(found.groups[:ROWS]))
    more = f"; the first {ROWS} of {len(found.groups)} values" if len(found.groups) > ROWS else ""
    caption = (
        f"The best config of each value of {found.key}, by mean validation accuracy{more}; seconds of one training"
    )
    align = f"l{'l' * len(names)}rrrrrrrrlrr"
    return Table((*head, "parameters", "seconds"), rows, align, caption, marked=0)


def _row(group: Group, others: tuple[str, ...], *, best: bool) -> tuple[str, ...]:
    config, behind = group.best, group.behind
    drawn = [shown(config.settings[key]) if key in config.settings else "–" for key in others]
    versus = ("", "", "", "best" if best else "not tested")
    if behind:
        lead = accuracy(round(behind.difference, 4) + 0.0)  # no -0.0000
        lead += f" ({behind.paired} seeds)" if behind.partial else ""
        versus = (lead, p_number(behind.p_value), p_number(behind.adjusted), behind.verdict)
    size, seconds = config.mean_cost("parameters"), config.mean_cost("seconds")
    return (
        shown(group.value),
        *drawn,
        _seeds(group),
        *_cells(config.validation),
        *(_cells(config.test) if config.test else ("–", "–")),
        *versus,
        f"{size:,.0f}",
        f"{seconds:.1f}",
    )


def _cells(score: Score) -> tuple[str, str]:
    interval = f"{accuracy(score.interval[0])} to {accuracy(score.interval[1])}" if score.interval else "–"
    return accuracy(score.mean), interval


# ------------------------------------------------------------------------------------------------- its limits


def _remarks(found: Groups) -> Iterator[Block]:
    """How it was tested, and what a reader should know before believing it."""
    counts = [len(group.configs) for group in found.groups]
    fewest, most = min(counts), max(counts)
    if any(group.behind for group in found.groups):
        yield paragraph(_method(found))
        if most >= UNEVEN * fewest:
            yield Note(
                f"Values had from {fewest} to {most} configs to choose from. The more, the luckier the best, which the "
                "tests don't correct for; give each value as many."
            )
    if most > 1 and found.repeated:
        yield paragraph(
            f"Each value's config is the best of up to {most} by these same scores, which flatters its validation mean "
            "a little; its test mean was not chosen by. The intervals are of the seeds alone: other images would move "
            "all rows together, and each row a little."
        )
    ends = {key: [shown(group.value) for group in found.groups if group.at_end(key)] for key in found.others}
    for key, values in ends.items():
        if values:
            yield paragraph(
                f"The best {key} of {_some(values)} is the lowest or highest that was tried: if more is allowed there, "
                "try it."
            )
    yield from (Note(text) for text in _left_out(found))


def _method(found: Groups) -> str:
    tested = [group.behind for group in found.groups if group.behind]
    paired = sum(each.paired > 0 for each in tested)
    pairs = "the same seeds of both (paired t test)"
    welch = "all seeds of each (Welch's t test)"
    both = f"{pairs}, or where those are less than two, {welch}"
    part = (
        " Where a row says of how many seeds, the two have only these in common: behind and p are of these alone, so "
        "behind is not the difference of the means shown, and may even be negative."
        if any(each.partial for each in tested)
        else ""
    )
    how = pairs if paired == len(tested) else both if paired else welch
    return (
        f"Behind is the best one's mean less this one's, tested by {how}. Any two values could have come out on top, "
        "so the tests are corrected for all pairs of values (Holm). “Can't be told apart” doesn't mean “equal”: these "
        f"seeds are too few to say.{part}"
    )


def _left_out(found: Groups) -> Iterator[str]:
    fewer = [(group, len(group.fewer)) for group in found.groups if group.fewer]
    if fewer:
        told = listed([f"{count} of {shown(group.value)}" for group, count in fewer[:NAMED]])
        yield (
            f"Configs with fewer complete seeds than others of their value were not chosen from: {told}. The study is "
            "not at its end, or some of their seeds failed or were pruned."
        )
    if found.short:
        yield (
            f"{_some([_named(group) for group in found.short])}: no config of "
            f"{'it' if len(found.short) == 1 else 'these'} has as many complete seeds as others', so the mean may be "
            "that of lucky ones, and stands behind theirs however high. The study is not at its end, or some of the "
            "seeds failed or were pruned."
        )
    stopped = [group for group in found.groups if group.pruned or group.failed]
    if stopped:
        told = ", ".join(_stopped(shown(group.value), group.pruned, group.failed) for group in stopped[:NAMED])
        yield f"Trials that did not complete are in no mean: {told}."
    if found.empty:
        told = ", ".join(_stopped(value, *counts) for value, counts in list(found.empty.items())[:NAMED])
        yield f"No trial completed of {told}."
    if found.without:
        yield (
            f"{counted(found.without, 'trial')} without a value of {found.key}: not counted here. Not every config has "
            "one, and that which a sweep starts from may lie outside of the space."
        )


def _stopped(value: str, pruned: int, failed: int) -> str:
    counts = [f"{count} {state}" for count, state in ((pruned, "pruned"), (failed, "failed")) if count]
    return f"{value} ({' and '.join(counts)})" if counts else value
