"""What MLflow's pages show: the description of a sweep and of an experiment, and the saved views of its run table.

MLflow stores no default columns on its server. It stores saved views: a name and the state of the page as JSON, in a
tag of the experiment. The menu `Views` lists them, and `…/runs?viewStateShareKey=KEY` opens one. The keys of a state
were read from the page of MLflow 3.17; another version ignores those that it does not know.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnistexp.config import user_code
from mnistexp.config.compose import flatten
from mnistexp.config.schema import RunConfig, StudyConfig, format_value

BEST_FIRST, SWEEPS = "mnistexp", "mnistexp-sweeps"
"""The keys of the saved views: all runs by score, and sweeps by time with their trials below them."""

NAMES = {BEST_FIRST: "Best first", SWEEPS: "Sweeps, each with its trials"}
ORDER = {BEST_FIRST: "metrics.`val_accuracy`", SWEEPS: "attributes.start_time"}  # MLflow groups only by time
SAVED = "mlflow.sharedViewState."  # the prefix of the tag that holds a view

SEARCHED = "searched"
"""The tag of a sweep's parent run with the searched override keys, separated by spaces."""

SCORES = {"val_accuracy": 115, "test_accuracy": 115, "epochs": 75, "seconds": 85}  # column: its width in pixels
STANDARD = (
    "optimizer",
    "optimizer.learning_rate",
    "model.hidden_units",
    "model.activation",
    "model.dropout",
    "trainer.batch_size",
)
LOGGED = {"seed": "seed", "data": "data", "model": "model.name", "optimizer": "optimizer.name"}
"""Override keys without a dot, and the param that a run logs for them."""

MOST_COLUMNS = 16  # of hyperparameters
MOST_LETTERS = 480  # of their names together: the view has each four times, and the tag has room for 5,000
TABLE_LIMIT = 5000  # characters of a sweep's table: a description has room for 8,000
KIND = "custom_model_development"  # else the page opens on traces of language models


def describe(client: Any, experiment_id: str, searched: Iterable[str] = ()) -> None:
    """Write an experiment's description if it has none, and the saved views if they differ.

    Args:
        client: an MlflowClient.
        searched: override keys; they become columns, after those of earlier studies in the experiment.
    """
    there = client.get_experiment(experiment_id).tags
    keys = fitting([*_searched_before(there.get(f"{SAVED}{BEST_FIRST}", "")), *searched])
    views = {f"{SAVED}{view}": saved(view, keys) for view in NAMES}
    once = {"mlflow.experimentKind": KIND, "mlflow.note.content": description(experiment_id)}
    for key, text in {**once, **views}.items():
        if key not in there or (key in views and there[key] != text):
            client.set_experiment_tag(experiment_id, key, text)


def _searched_before(text: str) -> list[str]:
    """The hyperparameters that a saved view of ours has as columns."""
    try:
        return [key for key in json.loads(text)["searched"] if isinstance(key, str)]
    except (ValueError, KeyError, TypeError):  # no view yet, or another program's
        return []


def address(experiment_id: str, view: str = BEST_FIRST, more: str = "") -> str:
    """The address of an experiment's run table in a saved view, from the `#` on."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={view}&workflowType=machine_learning{more}"


def description(experiment_id: str) -> str:
    """An experiment's description in Markdown. MLflow shows only its first line, the links, until it is expanded."""
    curves = address(experiment_id, more="&compareRunsMode=CHART")
    best, sweeps = (address(experiment_id, view) for view in NAMES)
    return f"""[{NAMES[BEST_FIRST]}]({best}) · [Curves]({curves}) · [{NAMES[SWEEPS]}]({sweeps})

One row is one training. What its columns mean:

- **val_accuracy** is what the search maximises: the kept epoch's accuracy on images that are not trained on.
- **test_accuracy** was computed once, after training. Nothing was selected by it, so do not select runs by it.
- **state**: COMPLETE, PRUNED (stopped early, because it was worse than others at that epoch), FAILED, INTERRUPTED.
- **epochs**, **seconds**: of the training. `curve/…` are the scores after each epoch.
- Parameters are named as on the command line: `python -m mnistexp train optimizer=adam model.dropout=0.2`.

A sweep's parent run has its search space, its best trial and the next commands.
"""


# ------------------------------------------------------------------------------------- the saved views of an experiment


def saved(view: str, keys: Sequence[str]) -> str:
    """A view as MLflow saves it, with a fixed date so that it does not change each time. `searched` is our own key.

    Args:
        view: a key of NAMES.
        keys: override keys for columns; the usual ones if there are none.
    """
    whole = {"name": NAMES[view], "createdAt": 0, "searched": list(keys), "state": _json(state(ORDER[view], keys))}
    return _json(whole)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def state(order: str, keys: Sequence[str]) -> dict[str, Any]:
    """The state of the page: columns with widths and order, sort order, charts."""
    names = [LOGGED.get(key, key) for key in keys or STANDARD]
    metrics, params = [f"metrics.`{name}`" for name in SCORES], [f"params.`{name}`" for name in names]
    widths = {"attributes.`Run Name`": 330, **dict(zip(metrics, SCORES.values())), "tags.`state`": 105}
    return {
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": [*metrics, "tags.`state`", *params],
        "columnOrder": [*widths, *params, "runDateAndNestInfo", "duration"],
        "columnWidths": widths,
        "isAccordionReordered": True,  # else the sections are sorted by name
        "compareRunSections": [
            _section("curves", "Learning curves", columns=2),
            _section("space", "What makes the difference", columns=1),
        ],
        "compareRunCharts": charts(names),
    }


def fitting(searched: Iterable[str]) -> list[str]:
    """The distinct keys, as many as a view has room for; `optimizer.learning_rate@adam` counts without its options.

    A group without a `name` key (augmentation) is left out, because runs log only the values that its option sets.
    """
    logged = (key for key in dict.fromkeys(key.partition("@")[0] for key in searched) if "." in key or key in LOGGED)
    keys = list(logged)[:MOST_COLUMNS]
    while sum(map(len, keys)) > MOST_LETTERS:
        keys.pop()
    return keys


def charts(params: Sequence[str]) -> list[dict[str, Any]]:
    """The first charts of the chart view; MLflow adds one for each other metric."""
    accuracy = {"key": "val_accuracy", "type": "METRIC"}
    return [
        _chart("curves", "LINE", "Validation accuracy", metricKey="curve/val_accuracy"),
        _chart("curves", "LINE", "Validation loss", metricKey="curve/val_loss"),
        _chart(
            "space",
            "PARALLEL",
            "Hyperparameters and accuracy",
            selectedParams=list(params),
            selectedMetrics=["val_accuracy"],
            showAllRuns=True,
        ),
        _chart("space", "SCATTER", "Accuracy and cost", xaxis={"key": "seconds", "type": "METRIC"}, yaxis=accuracy),
    ]


def _chart(section: str, kind: str, title: str, **more: Any) -> dict[str, Any]:
    common = {"uuid": f"mnistexp-{title}", "type": kind, "displayName": title, "metricSectionId": f"mnistexp-{section}"}
    return {**common, "runsCountToCompare": 100, "deleted": False, "isGenerated": False, **more}


def _section(name: str, title: str, columns: int) -> dict[str, Any]:
    flags = {"display": True, "isReordered": False, "deleted": False, "isGenerated": False}
    return {"uuid": f"mnistexp-{name}", "name": title, "columns": columns, **flags}


# ------------------------------------------------------------------------------------ the description of a sweep


@dataclass(frozen=True)
class BestTrial:
    """A study's best trial; `test_accuracy` is None if it is unknown or was not computed."""

    number: int
    val_accuracy: float
    test_accuracy: float | None
    config: RunConfig
    overrides: tuple[str, ...]


def sweep_description(
    name: str,
    dataset: str,
    study: StudyConfig,
    space: Mapping[str, str],
    counts: Mapping[str, int],
    best: BestTrial | None,
    storage_overrides: Sequence[str] = (),
) -> str:
    """Describe a sweep in Markdown, its best trial first: MLflow shows only the first lines until it is expanded.

    Args:
        space: override key, with the options that it is for after an `@` → its distribution as text.
        counts: how many trials are complete, pruned and failed.
        storage_overrides: the overrides by which the next commands find the study and its runs.
    """
    lines = []
    if best is not None:
        test = "" if best.test_accuracy is None else f"; test accuracy {best.test_accuracy:.4f}, not used to select it"
        lines += [f"**Best: trial {best.number}, validation accuracy {best.val_accuracy:.4f}**{test}\n"]
    limits = [f"{study.trials} trials"]
    limits += [f"{study.timeout:g} s per session"] if study.timeout is not None else []
    limits += [f"or until {study.target:g} is reached"] if study.target is not None else []
    ended = ", ".join(f"{count} {state}" for state, count in counts.items())
    lines += [
        f"Which hyperparameters are best on **{dataset}**, by validation accuracy?\n",
        f"**Budget:** {', '.join(limits)}; sampler {study.sampler.name}, pruner {study.pruner.name}.",
        f"**Done:** {sum(counts.values())} of {study.trials} trials: {ended}.\n",
        *_space_table(space, best),
        "\n---\n\nNext commands:\n",
    ]
    commands = {"report": name, "confirm": f"study.name={name}"}
    if best is not None:
        commands |= dict.fromkeys(("rerun", "best"), f"study.name={name}")
    more = [*storage_overrides, *user_code.cli_args()]
    lines += [f"    {shlex.join(['python', '-m', 'mnistexp', *each, *more])}" for each in commands.items()]
    return "\n".join(lines)


def _space_table(space: Mapping[str, str], best: BestTrial | None) -> Iterator[str]:
    """The search space as a table, with the best trial's values; cut before it fills the description's tag."""
    names, values = _values(best) if best else (set(), {})
    yield "| searched | distribution | best |"
    yield "| --- | --- | --- |"
    room = TABLE_LIMIT
    for parameter, text in space.items():
        key, _, options = parameter.partition("@")  # optimizer.learning_rate@adam|adamw: only for these options
        # adam/affine|nadam/none: the key depends on two groups, and is for these two pairs of options
        applies = not options or any(names.issuperset(each.split("/")) for each in options.split("|"))
        value = format_value(values.get(key, ""), digits=4, max_length=60) if applies else ""
        options = f" for {options.replace('|', ', ')}" if options else ""
        cells = _escape(options), _escape(format_value(text, max_length=300)), _escape(value)
        row = f"| `{key}`{cells[0]} | {cells[1]} | {cells[2]} |"
        room -= len(row)
        if room < 0:
            yield f"| … | {len(space)} in all | |"
            return
        yield row


def _values(best: BestTrial) -> tuple[set[str], dict[str, Any]]:
    """The option names of the best trial, and its values by override key."""
    typed = dict(text.split("=", 1) for text in best.overrides)
    options = {"model": best.config.model.name, "optimizer": best.config.optimizer.name, **typed}
    return set(options.values()), {**options, **flatten(best.config.model_dump(mode="json"))}


def _escape(text: str) -> str:
    """A text without meaning in Markdown. As code it would not wrap on a small screen."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)
