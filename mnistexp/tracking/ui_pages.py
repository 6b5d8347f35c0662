"""MLflow's pages: the description of an experiment, the saved views of its run table, and the web application.

MLflow stores no default columns on its server. It stores saved views: a name and the state of the page as JSON, in a
tag of the experiment. The menu `Views` lists them, and `…/runs?viewStateShareKey=KEY` opens one. The keys of a state
were read from the page of MLflow 3.17; another version ignores those that it does not know.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnistexp.config import user_code
from mnistexp.config.overrides import parse_parameter_name
from mnistexp.config.schema import StudyConfig, format_value
from mnistexp.storage.foreign_errors import store_errors
from mnistexp.storage.urls import redact
from mnistexp.tracking.store import open_client

VIEWS = {  # key: name, order; MLflow groups trials below their sweep only if the order is by time
    "mnistexp": ("Best first", "metrics.`val_accuracy`"),
    "mnistexp-sweeps": ("Sweeps, each with its trials", "attributes.start_time"),
}
SAVED = "mlflow.sharedViewState."  # the prefix of the tag that holds a view

SEARCHED = "searched"
"""The tag of a sweep's parent run, and of an experiment, with the searched override keys, separated by spaces."""

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

MOST_COLUMNS, LONGEST_COLUMN = 12, 40
"""Hyperparameters, and characters of their names: a view has each name four times, and room for 5,000 characters."""

TABLE_LIMIT = 5000  # characters of a sweep's table: a description has room for 8,000


def describe(client: Any, experiment_id: str, searched: Iterable[str] = ()) -> None:
    """Write an experiment's description if it has none, and the saved views if they differ.

    Args:
        client: an MlflowClient.
        searched: override keys; they become columns, after those of earlier studies in the experiment.
    """
    there = client.get_experiment(experiment_id).tags
    keys = column_keys([*there.get(SEARCHED, "").split(), *searched])
    kept = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": _description(experiment_id)}
    ours = {SEARCHED: " ".join(keys), **{f"{SAVED}{view}": _saved_view(view, keys) for view in VIEWS}}
    for key, text in {**ours, **kept, **{key: there[key] for key in kept if key in there}}.items():
        if there.get(key) != text:
            client.set_experiment_tag(experiment_id, key, text)


def column_keys(parameters: Iterable[str]) -> list[str]:
    """The override keys of parameters, as many as a view has room for.

    A group without a `name` key (augmentation) is left out, because runs log only the values that its option sets.
    """
    keys = dict.fromkeys(parse_parameter_name(name)[0] for name in parameters)
    return [key for key in keys if ("." in key or key in LOGGED) and len(key) <= LONGEST_COLUMN][:MOST_COLUMNS]


def address(experiment_id: str, view: str = "mnistexp", more: str = "") -> str:
    """The address of an experiment's run table in a saved view, from the `#` on."""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={view}&workflowType=machine_learning{more}"


def _description(experiment_id: str) -> str:
    """An experiment's description in Markdown. MLflow shows only its first line, the links, until it is expanded."""
    best, sweeps = (f"[{name}]({address(experiment_id, view)})" for view, (name, _) in VIEWS.items())
    return f"""{best} · [Curves]({address(experiment_id, more="&compareRunsMode=CHART")}) · {sweeps}

One row is one training. What its columns mean:

- **val_accuracy** is what the search maximises: the kept epoch's accuracy on images that are not trained on.
- **test_accuracy** was computed once, after training. Nothing was selected by it, so do not select runs by it.
- **state**: COMPLETE, PRUNED (stopped early, because it was worse than others at that epoch), FAILED, INTERRUPTED.
- **epochs**, **seconds**: of the training. `curve/…` are the scores after each epoch.
- Parameters are named as on the command line: `python -m mnistexp train optimizer=adam model.dropout=0.2`.

A sweep's parent run has its search space, its best trial and the next commands.
"""


def _saved_view(view: str, keys: Sequence[str]) -> str:
    """A view as MLflow saves it: columns with widths and order, sort order, charts; its date is fixed."""
    name, order = VIEWS[view]
    names = [LOGGED.get(key, key) for key in keys or STANDARD]
    metrics, params = [f"metrics.`{score}`" for score in SCORES], [f"params.`{name}`" for name in names]
    widths = {"attributes.`Run Name`": 330, **dict(zip(metrics, SCORES.values())), "tags.`state`": 105}
    state = {
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": [*metrics, "tags.`state`", *params],
        "columnOrder": [*widths, *params, "runDateAndNestInfo", "duration"],
        "columnWidths": widths,
        "isAccordionReordered": True,  # else the sections are sorted by name
        **_charts(names),
    }
    return json.dumps({"name": name, "createdAt": 0, "state": json.dumps(state)})


def _charts(params: Sequence[str]) -> dict[str, Any]:
    """The first charts of the chart view, in two sections; MLflow adds one for each other metric."""
    curves: list[dict[str, Any]] = [
        {"type": "LINE", "metricKey": f"curve/{key}"} for key in ("val_accuracy", "val_loss")
    ]
    parallel: dict[str, Any] = {
        "type": "PARALLEL",
        "selectedParams": params,
        "selectedMetrics": ["val_accuracy"],
        "showAllRuns": True,
    }
    common = {"deleted": False, "isGenerated": False}
    found: dict[str, Any] = {"compareRunSections": [], "compareRunCharts": []}
    for section, charts in (("Learning curves", curves), ("What makes the difference", [parallel])):
        more = {"display": True, "isReordered": False, "columns": len(charts), **common}
        found["compareRunSections"].append({"uuid": section, "name": section, **more})
        for number, chart in enumerate(charts):
            place = {"uuid": f"{section} {number}", "metricSectionId": section, "runsCountToCompare": 100}
            found["compareRunCharts"].append({**chart, **place, **common})
    return found


# ------------------------------------------------------------------------------------ the description of a sweep


@dataclass(frozen=True)
class BestTrial:
    """A study's best trial; `test_accuracy` is None if it is unknown or was not computed."""

    number: int
    val_accuracy: float
    test_accuracy: float | None
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
        space: Optuna's parameter name → its distribution as text.
        counts: how many trials are complete, pruned and failed.
        storage_overrides: the overrides by which the next commands find the study and its runs.
    """
    lines = []
    if best is not None:
        test = "" if best.test_accuracy is None else f"; test accuracy {best.test_accuracy:.4f}, not used to select it"
        lines += [f"**Best: trial {best.number}, validation accuracy {best.val_accuracy:.4f}**{test}\n"]
        lines += [f"{_escape(' '.join(best.overrides))}\n"]
    limits = [f"{study.trials} trials"]
    limits += [] if study.timeout is None else [f"{study.timeout:g} s per session"]
    limits += [] if study.target is None else [f"or until {study.target:g} is reached"]
    ended = ", ".join(f"{count} {state}" for state, count in counts.items())
    lines += [
        f"Which hyperparameters are best on **{dataset}**, by validation accuracy?\n",
        f"**Budget:** {', '.join(limits)}; sampler {study.sampler.name}, pruner {study.pruner.name}.",
        f"**Done:** {sum(counts.values())} of {study.trials} trials: {ended}.\n",
        *_space_table(space),
        "\nNext commands:\n",
    ]
    more = [*storage_overrides, *user_code.cli_args()]
    for command in ("report", "confirm", "rerun", "best"):
        lines.append(f"    {shlex.join(['python', '-m', 'mnistexp', command, f'study.name={name}', *more])}")
    return "\n".join(lines)


def _space_table(space: Mapping[str, str]) -> Iterator[str]:
    """The search space as a table; cut before it fills the description's tag."""
    yield "| searched | distribution | only for |"
    yield "| --- | --- | --- |"
    room = TABLE_LIMIT
    for parameter, text in space.items():
        key, options = parse_parameter_name(parameter)
        cells = (format_value(text, max_length=300), ", ".join(options))
        row = " | ".join([f"| `{key}`", *map(_escape, cells)]) + " |"
        room -= len(row)
        if room < 0:
            yield f"| … | {len(space)} in all | |"
            return
        yield row


def _escape(text: str) -> str:
    """A text without meaning in Markdown. As code it would not wrap on a small screen."""
    return re.sub(r"([\\`*_|<\[\]])", r"\\\1", text)


# ------------------------------------------------------------------------------------------ the web application


def first_page(uri: str, experiment: str) -> str:
    """The address of the experiment's run table, from the `#` on: of the newest one if it does not exist.

    Raises: StoreError if there is no database of runs.
    """
    with store_errors(f"tracking.uri={redact(uri)}: MLflow can't show it", uri):
        client = open_client(uri, create=False)
        found = client.search_experiments(order_by=["last_update_time DESC"])
    chosen = next((each for each in found if each.name == experiment), found[0] if found else None)
    if chosen is None:
        return ""
    with suppress(Exception):  # without permission to write, the table has MLflow's own columns
        describe(client, chosen.experiment_id)
    return address(chosen.experiment_id)


def web_app(uri: str, allowed_hosts: Sequence[str]) -> Any:
    """MLflow's ASGI application on a store, without MLflow's assistant.

    The command `mlflow server` runs the same application in a second process, which takes twice the memory (516 MB,
    not 260) and twice the CPU time to start. It also cannot leave the assistant out.

    Args:
        allowed_hosts: HOST:PORT values that a request's Host header may have; others are refused (DNS rebinding).
    """
    with store_errors(f"tracking.uri={redact(uri)}: MLflow can't show it", uri):
        from mlflow.server import constants

        os.environ |= {  # MLflow reads them when the application is imported
            "MLFLOW_SERVER_ALLOWED_HOSTS": os.environ.get("MLFLOW_SERVER_ALLOWED_HOSTS") or ",".join(allowed_hosts),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # another process of 200 MB
            constants.BACKEND_STORE_URI_ENV_VAR: uri,
            constants.REGISTRY_STORE_URI_ENV_VAR: uri,
            constants.ARTIFACT_ROOT_ENV_VAR: "mlflow-artifacts:/",
            constants.SERVE_ARTIFACTS_ENV_VAR: "true",
            constants.ARTIFACTS_DESTINATION_ENV_VAR: str(Path("mlartifacts").absolute()),
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated calls inside MLflow
            from mlflow.server.assistant.api import assistant_router

            assistant_router.routes.clear()  # it can run shell commands for anybody on this machine, and has no switch
            from mlflow.server.fastapi_app import app
        from mlflow.server.handlers import initialize_backend_stores

        initialize_backend_stores(uri, uri, os.environ[constants.ARTIFACT_ROOT_ENV_VAR])
    return app
