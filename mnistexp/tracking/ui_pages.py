"""How an experiment looks in MLflow's pages: its description, and the view of its runs that opens first.

MLflow keeps no default columns on its side. It does keep saved views: a name and the page's state as JSON, in a
tag of the experiment; the page's menu `Views` lists them, and `…/runs?viewStateShareKey=KEY` opens one. So we save
two. (What a state holds was read from MLflow 3.17's page; what a later one doesn't know, it leaves out.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

BEST_FIRST, SWEEPS = "mnistexp", "mnistexp-sweeps"
"""The keys of our views: all runs by score, and sweeps by time with their trials folded in."""

NAMES = {BEST_FIRST: "Best first", SWEEPS: "Sweeps, each with its trials"}
ORDER = {BEST_FIRST: "metrics.`val_accuracy`", SWEEPS: "attributes.start_time"}  # MLflow groups by time alone
SAVED = "mlflow.sharedViewState."  # and the view's key: the tag that holds it

SEARCHED = "searched"
"""The tag of a sweep's own run that names what is searched, with spaces between."""

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
"""Keys without a dot that runs log something of, and as what: a choice of an option is its name."""

MOST_COLUMNS = 16  # of hyperparameters
MOST_LETTERS = 480  # of their names, which the view holds four times: a tag's value has 5,000 characters at most
KIND = "custom_model_development"  # else the page opens on traces of language models


def describe(client: Any, experiment_id: str, searched: Iterable[str] = ()) -> None:
    """Write an experiment's tags where they are missing, and our views where they differ.

    A description that is there stays: a person may have written it. Each study's searched keys are added to those
    of the others.

    Args:
        client: MLflow's.
        searched: override keys.
    """
    there = client.get_experiment(experiment_id).tags
    keys = fitting([*_searched_before(there.get(f"{SAVED}{BEST_FIRST}", "")), *searched])
    views = {f"{SAVED}{view}": saved(view, keys) for view in NAMES}
    once = {"mlflow.experimentKind": KIND, "mlflow.note.content": description(experiment_id)}
    for key, text in {**once, **views}.items():
        if key not in there or (key in views and there[key] != text):
            client.set_experiment_tag(experiment_id, key, text)


def _searched_before(text: str) -> list[str]:
    """Which hyperparameters a view that we wrote has as columns."""
    try:
        return [key for key in json.loads(text)["searched"] if isinstance(key, str)]
    except (ValueError, KeyError, TypeError):  # none yet, or somebody else's
        return []


def address(experiment_id: str, view: str = BEST_FIRST, more: str = "") -> str:
    """Where the page shows an experiment's runs in one of our views, from the `#` on."""
    # With the kind of work too, or the menu beside it is about language models.
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={view}&workflowType=machine_learning{more}"


def description(experiment_id: str) -> str:
    """An experiment's page, as Markdown. Until one asks for more, MLflow shows the first line alone: the links."""
    curves = address(experiment_id, more="&compareRunsMode=CHART")
    best, sweeps = (address(experiment_id, view) for view in NAMES)
    return f"""[{NAMES[BEST_FIRST]}]({best}) · [Curves]({curves}) · [{NAMES[SWEEPS]}]({sweeps})

One row is one training. What its columns mean:

- **val_accuracy** is what the search goes by, on images that no network was trained on: the epoch that was kept.
- **test_accuracy** was looked at once, after training. Nothing was chosen or ordered by it: keep to that when you sort.
- **state**: COMPLETE, PRUNED (stopped early, as it was worse than the others at that epoch), FAILED, INTERRUPTED.
- **epochs**, **seconds**: how many were trained, and in what time. `curve/…` are the scores after each epoch.
- Parameters are named as on the command line: `python -m mnistexp train optimizer=adam model.dropout=0.2`.

A sweep's own run holds its question, its space and its best trial.
"""


# --------------------------------------------------------------------------------------------- the page's state


def saved(view: str, keys: Sequence[str]) -> str:
    """A view as MLflow saves it, but for its date, which would differ each time; `searched` is ours.

    Args:
        view: one of NAMES.
        keys: of hyperparameters, as columns; the usual ones if there are none.
    """
    whole = {"name": NAMES[view], "createdAt": 0, "searched": list(keys), "state": _json(state(ORDER[view], keys))}
    return _json(whole)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def state(order: str, keys: Sequence[str]) -> dict[str, Any]:
    """The page's state: which columns, how wide, in which order, which charts."""
    names = [LOGGED.get(key, key) for key in keys or STANDARD]
    metrics, params = [f"metrics.`{name}`" for name in SCORES], [f"params.`{name}`" for name in names]
    widths = {"attributes.`Run Name`": 330, **dict(zip(metrics, SCORES.values())), "tags.`state`": 105}
    return {
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": [*metrics, "tags.`state`", *params],
        "columnOrder": [*widths, *params, "runDateAndNestInfo", "duration"],
        "columnWidths": widths,
        "isAccordionReordered": True,  # else sections are sorted by name, and ours is not first
        "compareRunSections": [
            _section("curves", "Learning curves", columns=2),
            _section("space", "What makes the difference", columns=1),
        ],
        "compareRunCharts": charts(names),
    }


def fitting(searched: Iterable[str]) -> list[str]:
    """As many of the keys, each once, as a view has room for: `optimizer.learning_rate@adam` is one for all options.

    A group whose options have no names (augmentation) is left out: runs log what the option sets, and not its name.
    """
    logged = (key for key in dict.fromkeys(key.partition("@")[0] for key in searched) if "." in key or key in LOGGED)
    keys = list(logged)[:MOST_COLUMNS]
    while sum(map(len, keys)) > MOST_LETTERS:
        keys.pop()
    return keys


def charts(params: Sequence[str]) -> list[dict[str, Any]]:
    """The chart view's first cards; MLflow adds one for each other metric."""
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
