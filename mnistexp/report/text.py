"""The values and figures of one study's report, section by section. The sentences are in templates/report.md.jinja."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from mnistexp.analysis import parameters, progress
from mnistexp.analysis.comparison import Rival, WrongPrediction, wrong_predictions
from mnistexp.analysis.history import Trial
from mnistexp.analysis.parameters import SearchedRange
from mnistexp.config.overrides import parse_parameter_name
from mnistexp.data.dataset import Dataset
from mnistexp.errors import ConfigError, without_passwords
from mnistexp.report import comparison_figures, confirmation_text, figures
from mnistexp.report.by_value_text import answer_rows, by_value_section, hint, short_value
from mnistexp.report.document import Report
from mnistexp.report.report_data import ReportData
from mnistexp.terminal.formatting import accuracy, duration, interval, p_number, trials
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.run_context import run_name

RIVALS = 10  # in the table
WRONG = 24  # images

Values = dict[str, Any]  # what the template uses; figures by the names of their files


def study_report(data: ReportData, footer: str, wanted: str = "") -> Report:
    """Put the report of one study together. A section for which there are no data is left out.

    Args:
        wanted: names of sections with commas between them, which alone are written; empty: all.

    Raises: ConfigError if there is no such section.
    """
    known = [name for name in SECTIONS if name != "by" or data.groups]
    names = [name.strip() for name in wanted.split(",")] if wanted else known
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"sections={wanted}: the report has no section {unknown[0]!r}; it has {', '.join(known)}")
    sections = {name: values for name in known if name in names and (values := SECTIONS[name](data))}
    history, spent = data.history, progress.costs(data.history)
    values = {
        "title": f"Study {history.name}",
        "data_name": history.records[0].data_name if history.records else "",
        "spent": spent,
        "answer": [*answer_rows(data), *_answer(data)],
        "by_command": hint(data),
        "sections": sections,
        "footer": footer,
    }
    drawn = {key: value for section in sections.values() for key, value in section.items() if isinstance(value, Figure)}
    return Report("report.md.jinja", values, drawn)


def config_name(trial: Trial) -> str:
    """Return a trial's config in a few words: 'nesterov lr=0.29 tanh 500-200 b=128'."""
    return run_name(trial.record.config) if trial.record else ""


def _named(trial: Trial) -> str:
    return f"trial {trial.number}, {config_name(trial)}"


def _answer(data: ReportData) -> Iterator[tuple[str, str]]:
    best, found, confirmed = data.best, data.comparison, data.confirmation
    if best is None:
        return
    if confirmed:
        chosen = confirmed.chosen
        trial = next((each for each in data.history.ranked if each.number == chosen.number), None)
        mean = f"{accuracy(chosen.interval.mean)} ({interval(chosen.interval.low, chosen.interval.high)} for new seeds)"
        yield "confirmed config", _named(trial) if trial else f"trial {chosen.number}"
        yield f"mean validation accuracy with {confirmed.seeds} new seeds", mean
        yield "test", confirmation_text.test_sentence(confirmed.test) if confirmed.test else "not evaluated"
    images = f" ({interval(*found.interval)}, {found.images:,} images)" if found else ""
    yield "best trial", _named(best)
    yield "validation accuracy", f"{accuracy(best.accuracy)}{images}"
    if best.test_accuracy is not None:
        yield "test accuracy", f"{accuracy(best.test_accuracy)} (not used for any choice)"
    if parameters.searches_only_seeds(data.history):
        return
    if found and found.rivals:
        yield "no significant difference to it", f"{len(found.tied)} of {len(found.rivals)} other complete trials"
    start = data.baseline
    if start and start.number != best.number:
        test = next((each.test for each in found.rivals if each.trial.number == start.number), None) if found else None
        p_value = f", corrected p {p_number(test.adjusted)}" if test else ""
        lead = f"the best trial is {accuracy(best.accuracy - start.accuracy)} higher{p_value}"
        yield "config at the start of the sweep", f"{_named(start)}, {accuracy(start.accuracy)}: {lead}"
    elif start:
        yield "config at the start of the sweep", "it is the best trial"


def _real(data: ReportData) -> Values:
    found = data.comparison
    if found is None or not found.rivals:
        return {}
    tied = (found.best, *found.tied)
    small = min(tied, key=lambda trial: (progress.cost_of(trial, "parameters"), -trial.accuracy, trial.number))
    fast = min(tied, key=lambda trial: (progress.cost_of(trial, "seconds"), -trial.accuracy, trial.number))
    return {
        "facts": [
            ("validation images", f"{found.images:,}"),
            ("selection bias of the best accuracy (bootstrap over images)", accuracy(found.selection_bias)),
            ("expected accuracy of its network on new images", accuracy(found.best.accuracy - found.selection_bias)),
            ("trials without a significant difference to the best", f"{len(found.tied)} of {len(found.rivals)}"),
            (
                "of these and the best: fewest parameters",
                f"{_named(small)}: {progress.cost_of(small, 'parameters'):,.0f}",
            ),
            (
                "of these and the best: shortest training",
                f"{_named(fast)}: {duration(progress.cost_of(fast, 'seconds'))}",
            ),
        ],
        "rows": [_rival_row(rival) for rival in found.rivals[:RIVALS]],
        "others": len(found.rivals),
        "confirm": "" if data.confirmation else data.command("confirm"),
        "rivals": comparison_figures.rivals(found.rivals),
    }


def _rival_row(rival: Rival) -> tuple[str, ...]:
    trial, test = rival.trial, rival.test
    counts, p_values = (str(test.only_best), str(test.only_this)), (p_number(test.p_value), p_number(test.adjusted))
    significant = "yes" if test.significant else "no"
    return (f"#{trial.number}", config_name(trial), accuracy(trial.accuracy), *counts, *p_values, significant)


def _confirmed(data: ReportData) -> Values:
    found = data.confirmation
    if found is None:
        return {}
    last = f"behind ({100 * found.level:.3g} %)" if len(found.configs) > 1 else ""
    test = confirmation_text.test_sentence(found.test) if found.test else "not evaluated"
    sentences = [*confirmation_text.sentences(found), f"Test of the selected config: {test}.", found.decision]
    return {
        "seeds": found.seeds,
        "head": (*confirmation_text.HEAD[:-1], last),
        "rows": confirmation_text.rows(found),
        "sentences": list(filter(None, sentences)),
        "confirmed": comparison_figures.confirmed(found),
    }


def _course(data: ReportData) -> Values:
    spent, improvements = progress.costs(data.history), progress.best_so_far(data.history.trials)
    share = 100 * spent.epochs_saved / max(1, spent.epochs + spent.epochs_saved)
    rows = [
        ("trials", f"{spent.trials:,}"),
        ("complete", f"{spent.complete:,}"),
        ("pruned", f"{spent.pruned:,}"),
        ("failed", f"{spent.failed:,}"),
        ("epochs", f"{spent.epochs:,}"),
        ("epochs saved by pruning", f"{spent.epochs_saved:,} ({share:.0f} %)"),
        ("time with a trial running", duration(spent.active_seconds)),
        ("time of all trials together", duration(spent.training_seconds)),
    ]
    if improvements:
        rows.append(("trials that had ended when the best score was found", f"{improvements[-1].at:.0f}"))
    failures = progress.failures(data.history).items()
    values = {"rows": rows, "failures": [(trials(numbers), without_passwords(reason)) for reason, numbers in failures]}
    return values | ({"best_so_far": figures.best_so_far([data.history])} if improvements else {})


def _parameters(data: ReportData) -> Values:
    if not data.keys or data.best is None:
        return {}
    shares, ranges, top = data.importances, parameters.searched(data.history), parameters.top_tenth(data.history)
    x, y = data.axes or (*(key for key in data.keys if key != parameters.SEED), "", "")[:2]
    rows = [
        (_long_name(name), _range(ranges[name]), _summary(top, name, ranges[name]))
        for name in sorted(ranges, key=lambda name: data.keys.index(parameters.key_of(name)))
    ]
    return {
        "top": shares.top,
        "why_not": shares.why_not,
        "rows": rows,
        "head": ("parameter", "searched", f"the best tenth ({len(top)} trials)"),
        "x": x,
        "y": y,
        "importances": figures.importances(shares.shares) if shares.shares else None,
        "slices": figures.slices(data.history, data.keys),
        "heatmap": figures.heatmap(data.history, x, y) if y else None,
    }


def _long_name(name: str) -> str:
    """An Optuna parameter for a reader: 'optimizer.learning_rate (adam, nadam)'."""
    key, options = parse_parameter_name(name)
    return f"{key} ({', '.join(options)})" if options else key


def _range(found: SearchedRange) -> str:
    if found.values:
        return ", ".join(map(short_value, found.values))
    return f"{short_value(found.low)} to {short_value(found.high)}{', logarithmic' if found.log else ''}"


def _summary(group: Sequence[Trial], name: str, searched: SearchedRange) -> str:
    counts = parameters.range_summary(group, name, searched)
    if not searched.values:
        return " to ".join(dict.fromkeys(map(short_value, counts))) or "–"
    return ", ".join(f"{short_value(value)} ×{count}" for value, count in counts.items()) or "–"


def _curves(data: ReportData) -> Values:
    trained = any(trial.state != "FAILED" for trial in data.history.trials)
    return {"curves": figures.curves(data.history)} if trained else {}


def _costs(data: ReportData) -> Values:
    found = data.history.ranked
    if not found:
        return {}
    return {
        "seconds": trials([trial.number for trial in progress.pareto_front(found, "seconds")]),
        "parameters": trials([trial.number for trial in progress.pareto_front(found, "parameters")]),
        "pareto_seconds": figures.pareto(data.history, "seconds"),
        "pareto_parameters": figures.pareto(data.history, "parameters"),
    }


def _digits(data: ReportData) -> Values:
    dataset, compared = data.dataset, data.comparison
    if compared is None:
        return {}
    if dataset is None:
        return {"why_not": without_passwords(data.missing).rstrip(".")}
    found = wrong_predictions(compared, dataset.validation.labels, dataset.classes)
    by_all = sum(image.missed_by == found.trials for image in found.images)
    return {
        "why_not": "",
        "facts": [
            ("validation images", f"{len(dataset.validation.labels):,}"),
            ("wrong predictions of the best trial", f"{len(found.images):,}"),
            (f"of these, wrong in all {found.trials:,} complete trials", f"{by_all:,}"),
        ],
        "confusion": figures.confusion(found.confusion),
        "mistakes": _mistakes(dataset, found.images[:WRONG]),
    }


def _mistakes(dataset: Dataset, images: Sequence[WrongPrediction]) -> Figure | None:
    """Draw some images; None if there are none, or if they are not of one colour."""
    shape = dataset.image_shape[:2] if dataset.image_shape[2:] in ((), (1,)) else ()
    if len(shape) != 2 or not images:
        return None
    pixels = dataset.validation.images[[image.index for image in images]].reshape(-1, *shape)
    return figures.digits(pixels, [f"{image.label} → {image.predicted}" for image in images])


def _top(data: ReportData) -> Values:
    names = parameters.short_names(data.keys).values()
    rows = []
    for trial in data.history.ranked[:10]:
        fit, values = trial.fit, parameters.values_of(trial, data.keys)
        assert fit is not None
        settings = [short_value(values[key]) if key in values else "–" for key in data.keys]
        cost = (f"{fit.best_epoch} of {len(fit.epochs)}", f"{fit.seconds:.1f}", f"{fit.parameters:,}")
        rows.append((f"#{trial.number}", accuracy(trial.accuracy), *settings, *cost))
    head = ("trial", "accuracy", *names, "epoch", "seconds", "parameters")
    return {"rows": rows, "head": head, "align": f"lr{'l' * len(names)}r"} if rows else {}


def _test(data: ReportData) -> Values:
    confirmed = data.confirmation.test_evaluations if data.confirmation else 0
    return {"rows": [("trials", f"{data.history.test_evaluations:,}"), ("networks of confirmations", f"{confirmed:,}")]}


def _provenance(data: ReportData) -> Values:
    return {"facts": [*_facts(data)], "commands": (data.command("best"), data.command("rerun"))}


def _facts(data: ReportData) -> Iterator[tuple[str, str]]:
    history, dataset, records = data.history, data.dataset, data.history.records
    yield "study", f"{history.name} ({history.id})"
    if not records:
        return
    yield "data", records[0].data_name
    if dataset:
        splits = {"training": dataset.train, "validation": dataset.validation, "test": dataset.test}
        yield "images", ", ".join(f"{len(split.labels):,} {name}" for name, split in splits.items())
    yield "data fingerprint", records[0].data_fingerprint
    seeds, seed = parameters.searched(history).get("seed"), history.fingerprint.get("seed", "?")
    yield "seeds", _range(seeds) if seeds else f"the study's is {seed}; each trial's is derived from it"
    begun, ended = min(record.started for record in records), max(record.ended for record in records)
    yield "run", " to ".join(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(each)) for each in (begun, ended))
    yield from _shared(records).items()


def _shared(records: Sequence[RunRecord]) -> dict[str, str]:
    """Return code, packages and machine of all trials; where they differ, each value."""
    found: dict[str, dict[str, None]] = {}
    for provenance in (record.provenance for record in records):
        git, machine = provenance.get("git", {}), provenance.get("machine", {})
        flags = {key: value for key, value in provenance.get("flags", {}).items() if value and key != "cpu"}
        facts = {
            "code": f"commit {git.get('commit') or 'unknown'}{' with uncommitted changes' * bool(git.get('dirty'))}",
            "versions": ", ".join(f"{name} {version}" for name, version in provenance.get("versions", {}).items()),
            "device": str(provenance.get("device", "")),
            "processor": str(machine.get("cpu", "")),
            "system": str(machine.get("platform", "")),
            "flags": ", ".join(f"{key}={value}" for key, value in flags.items()),
        }
        for name, value in facts.items():
            if value:
                found.setdefault(name, {})[value] = None
    return {name: "; or ".join(values) for name, values in found.items()}


SECTIONS: Mapping[str, Callable[[ReportData], Values]] = {  # by name, in the order of the report
    "by": by_value_section,
    "real": _real,
    "confirmed": _confirmed,
    "course": _course,
    "parameters": _parameters,
    "curves": _curves,
    "costs": _costs,
    "digits": _digits,
    "top": _top,
    "test": _test,
    "provenance": _provenance,
}
