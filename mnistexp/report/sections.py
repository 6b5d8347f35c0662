"""The report's figures and tables: a study's course, its space, its costs, its mistakes, where it comes from."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mnistexp.analysis import comparison
from mnistexp.analysis.comparison import By, Cost, accuracy_of
from mnistexp.data.dataset import Dataset, Split
from mnistexp.errors import without_passwords
from mnistexp.report import figures
from mnistexp.report.document import Block, Code, Commands, Note, Section, Table, paragraph
from mnistexp.report.drawing import picture
from mnistexp.report.report_data import ReportData
from mnistexp.terminal.formatting import accuracy, counted, duration, trials
from mnistexp.tracking.records import RunRecord

CURVES = 6  # of the best trials, that are drawn in colour
WRONG = 24  # digits that are shown
CLASSES = 20  # of which samples are shown


def course(material: ReportData) -> Section:
    """How the best score grew."""
    return Section("course", "How the search went", tuple(_course(material)))


def _course(material: ReportData) -> Iterator[Block]:
    found, spent = material.history.trials, comparison.costs(material.history)
    several = spent.training_seconds > 1.05 * spent.busy_seconds
    together = f" ({duration(spent.training_seconds)} of trials, several at once)" if several else ""
    yield paragraph(
        f"{counted(spent.trials, 'trial')}: {spent.complete} complete, {spent.pruned} pruned, {spent.failed} failed; "
        f"{counted(spent.epochs, 'epoch')} in {duration(spent.busy_seconds)} of searching{together}."
    )
    steps = comparison.best_so_far(found)
    if not steps:
        yield Note("No trial completed, so there is no best so far.")
        return
    last = steps[-1]
    yield paragraph(
        f"The best score was reached when {last.at:.0f} of {counted(len(comparison.ended(found)), 'trial')} had ended; "
        f"the lead changed {counted(len(steps) - 1, 'time')}."
    )
    views: tuple[tuple[By, str, str], ...] = (
        ("trials", "best_by_trials", "trial"),
        ("seconds", "best_by_time", "time"),
    )
    for by, name, unit in views:
        yield picture(
            name,
            figures.best_so_far(found, by=by),
            f"Best validation accuracy so far, by {unit}",
            "A dot for each trial, in the order in which they ended; the line is the best complete one so far."
            if by == "trials"
            else "The same over time. A line that has long been flat says that more trials would gain little.",
        )


# ---------------------------------------------------------------------------------------------- the parameters


def parameters(material: ReportData) -> Section:
    """Which hyperparameters matter, and where their good values are."""
    return Section("parameters", "Which hyperparameters matter", tuple(_parameters(material)))


def _parameters(material: ReportData) -> Iterator[Block]:
    if not material.keys:
        yield Note("No parameter was searched.")
        return
    yield from _importances(material)
    if not material.history.complete:
        yield Note("No trial completed, so no values can be compared.")
        return
    found, log = material.history.trials, comparison.logarithmic(material.history)
    yield picture(
        "slices",
        figures.slices(found, material.keys, log),
        "Validation accuracy against each searched parameter",
        "Each searched value against validation accuracy, the most important parameter first. A cloud that leans or "
        "bends says that the value matters; a flat one that it doesn't.",
    )
    yield picture(
        "parallel",
        figures.parallel(found, material.keys, log),
        "Each trial as a line across the axes of all searched parameters",
        "A line for each trial, through its value on each axis; the best ones lie on top. Where they run together, the "
        "value matters.",
    )
    if material.axes is None:
        yield Note("One parameter was searched, so there is no map of two.")
        return
    first, second = material.axes
    yield picture(
        "heatmap",
        figures.heatmap(found, first, second, log),
        f"Mean validation accuracy over {first} and {second}",
        f"Mean validation accuracy where there were trials, over {first} and {second}. Nothing is filled in between.",
    )


def _importances(material: ReportData) -> Iterator[Block]:
    found = material.importances
    if not found.shares:
        yield Note(f"Importances can't be given: {found.why_not}.")
        return
    ended = len(material.history.complete)
    caution = " From so few it is a hint: further trials can change the order." if ended < 50 else ""
    yield picture(
        "importances",
        figures.importances(found.shares),
        "How much each parameter decides whether a trial gets among the best",
        f"PED-ANOVA: how differently each parameter's values are spread among the best {found.top} of the {ended} "
        f"complete trials than among all of them. A name with options in brackets holds for those alone.{caution}",
    )


def cuts(material: ReportData) -> Section:
    """How the space was cut down."""
    best, found = material.best, material.standing
    if best is None or not comparison.searched(material.history):
        why = "No trial completed." if best is None else "No parameter was searched."
        return Section("space", "How the space was cut down", (Note(why),))
    alike = (best, *found.alike) if found else (best,)
    left = comparison.cuts(material.history, alike)
    in_order = sorted(left, key=lambda cut: material.keys.index(comparison.key_of(cut.name)))
    rows = tuple((_long_name(cut.name), cut.searched, cut.alike, cut.top) for cut in in_order)
    top = len(comparison.top_tenth(material.history))
    head = ("parameter", "searched", f"not told apart from the best ({len(alike)})", f"top tenth ({top})")
    text = paragraph(
        "What was searched, and the values that the good trials have. Where the top tenth sits at an edge of what was "
        "searched, search further there; where it is narrow, search there more finely. ×3 counts trials."
    )
    return Section("space", "How the space was cut down", (text, Table(head, rows)))


def _long_name(name: str) -> str:
    """An Optuna parameter for a reader: 'optimizer.learning_rate (adam, nadam)'."""
    key, _, options = name.partition("@")
    return f"{key} ({options.replace('|', ', ')})" if options else key


def curves(material: ReportData) -> Section:
    """How the networks learned."""
    if not comparison.ended(material.history.trials):
        return Section("curves", "Learning curves", (Note("No trial was trained."),))
    drawing = picture(
        "curves",
        figures.curves(material.history.trials, CURVES),
        "Validation accuracy by epoch, of the best trials and of those that were pruned",
        f"Validation accuracy after each epoch: the {min(CURVES, len(material.history.complete))} best trials in "
        f"colour, pruned ones in grey up to where they were stopped.",
    )
    return Section("curves", "Learning curves", (drawing,))


# --------------------------------------------------------------------------------------------------- the costs


def prices(material: ReportData) -> Section:
    """Accuracy against what it costs."""
    return Section("costs", "What accuracy costs", tuple(_prices(material)))


def _prices(material: ReportData) -> Iterator[Block]:
    complete = material.history.complete
    if not complete:
        yield Note("No trial completed.")
        return
    about: tuple[tuple[Cost, str, str], ...] = (
        (
            "seconds",
            "training seconds",
            "Seconds are of this machine, with as many trials at once as there were workers.",
        ),
        ("parameters", "trainable parameters", "Parameters are the network's trainable numbers."),
    )
    for cost, words, remark in about:
        front = trials([each.number for each in comparison.pareto(complete, cost)])
        yield picture(
            f"pareto_{cost}",
            figures.pareto(material.history.trials, cost=cost),
            f"Validation accuracy against {words}, with the Pareto front",
            f"Validation accuracy against {words}. The line joins the trials to which no other is better without "
            f"costing more (the Pareto front): {front}. {remark}",
        )


# ---------------------------------------------------------------------------------------------------- the data


def digits(material: ReportData) -> Section:
    """What the best trial gets wrong, as numbers and as pictures; what the data look like."""
    return Section("digits", "What it gets wrong", tuple(_digits(material)))


def _digits(material: ReportData) -> Iterator[Block]:
    dataset, found = material.dataset, material.mistakes
    if dataset is None:
        yield Note(f"No pictures here: {without_passwords(material.missing).rstrip('.')}.")
        return
    if found is None:
        yield Note("Which digits were taken for which isn't in the best trial's record.")
    else:
        everyone = sum(miss.missed_by == found.trials for miss in found.misses)
        made = f"; {everyone} of them {'is' if everyone == 1 else 'are'} made by all {found.trials} complete trials"
        yield paragraph(
            f"On the {len(dataset.validation.labels):,} validation images the best trial makes "
            f"{counted(len(found.misses), 'mistake')}{made if found.trials > 1 else ''}."
        )
        yield picture(
            "confusion",
            figures.confusion(found.confusion, dataset.classes),
            "Which digit was taken for which, in numbers of validation images",
            "Rows are the true labels, columns what the best trial took them for; off the diagonal are the mistakes.",
        )
        shown = found.misses[:WRONG]
        titles = [f"{miss.label} → {miss.taken_for}" for miss in shown]
        caption = "Label → what it was taken for; those that most trials get wrong come first."
        wrong = _pictures(dataset, dataset.validation, np.array([miss.index for miss in shown], dtype=np.int64))
        yield from _grid("mistakes", wrong, titles, "Digits that the best trial gets wrong", caption)
    samples = _samples(dataset)
    titles = [str(label) for label in dataset.train.labels[samples]]
    caption = f"The data: training images of {dataset.name}, one or two of each class, with their labels."
    yield from _grid("samples", _pictures(dataset, dataset.train, samples), titles, "Sample images", caption)


def _grid(
    name: str, images: npt.NDArray[np.uint8] | None, titles: list[str], alt: str, caption: str
) -> Iterator[Block]:
    if images is None:
        yield Note(f"{alt}: these aren't pictures of one colour, so none is drawn.")
    elif len(images):
        yield picture(name, figures.digits(images, titles), f"{alt}: {', '.join(titles)}", caption)


def _samples(dataset: Dataset) -> npt.NDArray[np.int64]:
    """The first two training images of each class."""
    labels = dataset.train.labels
    found = [np.flatnonzero(labels == label)[:2] for label in range(min(dataset.classes, CLASSES))]
    return np.concatenate(found).astype(np.int64)


def _pictures(dataset: Dataset, split: Split, index: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8] | None:
    """Some images as uint8 [n, height, width]; None if they are no such pictures."""
    shape = dataset.image_shape[:2] if dataset.image_shape[2:] in ((), (1,)) else ()
    if len(shape) != 2:
        return None
    values = split.images[index].astype(np.float32) * dataset.scale
    low, high = min(0.0, float(values.min(initial=0.0))), max(1.0, float(values.max(initial=1.0)))
    return np.round(255 * (values - low) / (high - low)).astype(np.uint8).reshape(-1, *shape)


# -------------------------------------------------------------------------------------------------- the tables


def top_ten(material: ReportData) -> Section:
    """The best ten trials."""
    ranked = material.history.ranked[:10]
    if not ranked:
        return Section("top", "The top ten", (Note("No trial completed."),))
    short = [key.rpartition(".")[2] for key in material.keys]
    names = [key if short.count(name) > 1 else name for key, name in zip(material.keys, short, strict=True)]
    head = ("", "trial", "accuracy", *names, "epoch", "seconds", "parameters")
    rows = []
    for place, trial in enumerate(ranked, start=1):
        fit, values = comparison.fit_of(trial), comparison.settings(trial, material.keys)
        assert fit is not None
        drawn = [comparison.shown(values[key]) if key in values else "–" for key in material.keys]
        chosen = f"{fit.best_epoch} of {len(fit.epochs)}"
        size = f"{fit.parameters:,}"
        rows.append(
            (
                str(place),
                f"#{trial.number}",
                accuracy(accuracy_of(trial)),
                *drawn,
                chosen,
                f"{fit.seconds:.1f}",
                size,
            )
        )
    title = "By validation accuracy, then the lower trial; the epoch is the one whose weights were kept"
    return Section("top", "The top ten", (Table(head, tuple(rows), f"rlr{'l' * len(names)}rrr", title, marked=0),))


def ended_early(material: ReportData) -> Section:
    """What was pruned, and what failed and why."""
    spent, reasons = comparison.costs(material.history), comparison.failures(material.history)
    pruned = (
        f"The pruner stopped {counted(spent.pruned, 'trial')} early and spared {counted(spent.spared, 'epoch')} of at "
        f"most {spent.epochs + spent.spared:,} ({100 * spent.spared_share:.0f} %)."
        if spent.pruned
        else "No trial was pruned."
    )
    if not reasons:
        return Section("ended", "Pruned and failed", (paragraph(pruned, " No trial failed."),))
    rows = tuple((trials(numbers), without_passwords(reason)) for reason, numbers in reasons.items())
    failed = f" {counted(spent.failed, 'trial')} failed:"
    return Section("ended", "Pruned and failed", (paragraph(pruned, failed), Table(("trials", "reason"), rows)))


# ------------------------------------------------------------------------------------------------- provenance


def provenance(material: ReportData) -> Section:
    """Where all this comes from, and how to have it again."""
    ran = [trial.record for trial in comparison.ended(material.history.trials) if trial.record]
    blocks: list[Block] = [Table(("", ""), tuple(_facts(material, ran)))]
    if material.best is not None:
        blocks += [
            paragraph("The best config, as YAML and as one command; the same training again, compared bit by bit:"),
            Commands((material.command("best"), material.command("rerun"))),
        ]
    return Section("provenance", "Where it comes from", tuple(blocks))


def _facts(material: ReportData, ran: list[RunRecord]) -> Iterator[tuple[str | Code, ...]]:
    found, dataset = material.history, material.dataset
    yield "study", Code(f"{found.name} ({found.id})")
    if not ran:
        return
    sizes = [len(split.labels) for split in (dataset.train, dataset.validation, dataset.test)] if dataset else []
    splits = f"; {sizes[0]:,} training, {sizes[1]:,} validation, {sizes[2]:,} test images" if sizes else ""
    yield "data", f"{ran[0].data_name}{splits}"
    yield "data fingerprint", Code(ran[0].data_fingerprint)
    derived = f"the study's {found.fingerprint.get('seed', '?')}; each trial has its own from it, in its record"
    yield "seeds", comparison.searched(found).get("seed", derived)
    begun, ended = min(record.started for record in ran), max(record.ended for record in ran)
    yield "run", f"{_day(begun)} to {_day(ended)}"
    yield from _shared([record.provenance for record in ran]).items()


def _shared(records: list[Mapping[str, Any]]) -> dict[str, str]:
    """What all trials' records say of code, packages and machine; where they differ, each value."""
    rows: dict[str, list[str]] = {}
    for record in records:
        git, flags = record.get("git", {}), record.get("flags", {})
        dirty = " with changes that were not committed" if git.get("dirty") else ""
        versions = ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
        machine = record.get("machine", {})
        facts = {
            "code": f"commit {git.get('commit') or 'unknown'}{dirty}",
            "versions": versions,
            "device": str(record.get("device", "")),
            "processor": str(machine.get("cpu", "")),
            "system": str(machine.get("platform", "")),
            "flags": ", ".join(f"{key}={value}" for key, value in flags.items() if value and key != "cpu"),
        }
        for name, value in facts.items():
            if value and value not in rows.setdefault(name, []):
                rows[name].append(value)
    return {name: "; or ".join(values) for name, values in rows.items() if values}


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
