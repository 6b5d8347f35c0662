"""Log runs to MLflow and find them.

`MlflowClient` and one `log_batch` per run, not the fluent API (35 ms per run, not 120) and not autolog (fails on
TensorFlow 2.21, or makes a run seven times slower and marks pruned runs as failed).
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import yaml

from mnistexp.config.compose import flatten, signature
from mnistexp.config.schema import RunConfig, TrackingConfig, format_value
from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import StoreRefusal, is_store_error, store_errors
from mnistexp.storage.urls import redact
from mnistexp.tracking import ui_pages
from mnistexp.tracking.records import LoggedRun, RunRecord
from mnistexp.tracking.store import open_client, resolved_uri
from mnistexp.training.results import objective_value

MLFLOW_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAILED": "FAILED", "INTERRUPTED": "KILLED"}
Ending = Literal["FINISHED", "KILLED", "FAILED"]
Texts = Mapping[str, str]
NAME_LIMIT = 250  # characters of a run's name: MLflow's column
TAG_LIMIT = 8000  # characters of a tag's value
PARAM_LIMIT = 6000  # characters of a param's value
BATCH_LIMITS = {"metrics": 800, "params": 90, "tags": 8}
"""How many fit in one batch. MLflow's limits: 1,000 in all, 100 params, 100 tags, a request of 1 MB."""


class Tracker:
    """Where runs are logged; this base class logs nothing (`tracking=none`).

    Each method raises StoreError if the store cannot be used.
    """

    def start_parent(self, name: str, tags: Texts, description: str, files: Texts) -> str:
        """Open a sweep's parent run, or reopen the one with the same `study_id` and `kind` tags. Returns: its id."""
        return ""

    def log(self, record: RunRecord, parent: str = "", files: Texts | None = None, *, may_exist: bool = False) -> str:
        """Log one complete run. Returns: its id.

        Args:
            parent: the id of its parent run; empty for none.
            files: more artifacts, file name → text.
            may_exist: an earlier attempt may have logged this trial, completely or in part; look for it first.

        Raises: StoreRefusal if the store works and does not accept this run.
        """
        return ""

    def finish_parent(self, run_id: str, metrics: Mapping[str, float], description: str, ending: Ending | None) -> None:
        """Write a parent run's summary and close it; with `ending=None` it stays open for other sweep processes."""

    def find(self, tags: Texts, run_id: str = "", *, deleted: bool = False) -> Iterator[LoggedRun]:
        """The complete runs that have these tags (or this id), oldest first; with `deleted`, deleted ones too."""
        return iter(())

    def close_stale_runs(self, tags: Texts, ending: Ending | None, is_alive: Callable[[str], bool]) -> None:
        """Close the runs with these tags that dead processes left open; delete those without scores.

        Args:
            ending: the status for parent runs; None leaves them open, because another process may use them.
            is_alive: whether the sweep process with this number (the tag `process`) may still be working.
        """

    def log_folder(self, study_id: str, folder: Path, artifact_path: str) -> str:
        """Log the files of a folder to a sweep's parent run. Returns: its id; empty if there is none."""
        return ""


class MlflowTracker(Tracker):
    """Log runs to one MLflow experiment. Raises StoreError if the store cannot be used.

    Args:
        experiment: its name.
        create: create the experiment if it does not exist.
        run_id: use the experiment of this run instead.
    """

    def __init__(self, uri: str, experiment: str, *, create: bool = True, run_id: str = "") -> None:
        self._uri = uri
        with self._store_errors():
            self._client = open_client(uri, create=create)
            given = str(self._get(run_id).info.experiment_id) if run_id else ""
            self._experiment_id = given or self._experiment(experiment, create)

    def _store_errors(self) -> AbstractContextManager[None]:
        return store_errors(f"tracking.uri={redact(self._uri)}: MLflow can't use it", self._uri)

    def _experiment(self, name: str, create: bool) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None and create:
            try:
                made = str(self._client.create_experiment(name))
                ui_pages.describe(self._client, made)
                return made
            except Exception as error:
                if getattr(error, "error_code", "") != "RESOURCE_ALREADY_EXISTS":  # by another process meanwhile
                    raise
                found = self._client.get_experiment_by_name(name)
        if found is None:
            raise StoreError(f"tracking.experiment={name}: not in MLflow; `python -m mnistexp ui` shows those that are")
        if found.lifecycle_stage != "active":
            raise StoreError(
                f"tracking.experiment={name}: was deleted in MLflow; restore it there, or give another name"
            )
        return str(found.experiment_id)

    def start_parent(self, name: str, tags: Texts, description: str, files: Texts) -> str:
        from mlflow.entities import RunTag

        with self._store_errors():
            run = next(self._search({key: tags[key] for key in ("study_id", "kind")}), None)
            if run is None:
                run = self._client.create_run(self._experiment_id, run_name=name)
                ui_pages.describe(self._client, self._experiment_id, tags.get(ui_pages.SEARCHED, "").split())
            run_id = str(run.info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            texts = {**tags, "mlflow.note.content": description[:TAG_LIMIT]}
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in texts.items()])
            for path, text in files.items():
                self._client.log_text(run_id, text, path)
            return run_id

    def log(self, record: RunRecord, parent: str = "", files: Texts | None = None, *, may_exist: bool = False) -> str:
        with self._store_errors():
            if may_exist and (existing := self._existing(record)):
                return existing
            tags = {"kind": record.kind, **record.tags, **({"mlflow.parentRunId": parent} if parent else {})}
            name = format_value(record.name, max_length=NAME_LIMIT)
            run = self._client.create_run(self._experiment_id, int(record.started * 1000), tags, name)
            run_id = str(run.info.run_id)
            try:
                with self._store_errors():
                    self._log_content(run_id, record, files or {})
            except StoreRefusal:
                self._client.set_terminated(run_id, "FAILED")
                self._client.delete_run(run_id)
                raise
            return run_id

    def _log_content(self, run_id: str, record: RunRecord, files: Texts) -> None:
        """Log the files first, and the tags by which `find` selects runs last: a run that is found is complete."""
        self._client.log_inputs(run_id, [_dataset_input(record)])
        for path, text in {**_files(record), **files}.items():
            self._client.log_text(run_id, text, path)
        if record.weights_path is not None and record.weights_path.exists():
            self._client.log_artifact(run_id, str(record.weights_path))
        self._log_numbers(run_id, record)
        self._client.set_terminated(run_id, MLFLOW_STATUS[record.state], int(record.ended * 1000))

    def _log_numbers(self, run_id: str, record: RunRecord) -> None:
        """Log metrics, params and tags in as few batches as MLflow's limits allow: one for most runs."""
        from mlflow.entities import Metric, Param, RunTag

        ended = int(record.ended * 1000)
        tags, more_tags = split_tags(_tags(record))
        entities: dict[str, list[Any]] = {
            "metrics": [Metric(key, value, ended, step) for key, value, step in _metrics(record)],
            "params": [Param(key, value) for key, value in params(record.config).items()],
            "tags": [RunTag(key, value) for key, value in more_tags.items()],
        }
        last = max((len(entities[kind]) - 1) // limit for kind, limit in BATCH_LIMITS.items())
        for number in range(last + 1):
            batch = {kind: entities[kind][number * n : (number + 1) * n] for kind, n in BATCH_LIMITS.items()}
            if number == last:
                batch["tags"] += [RunTag(key, value) for key, value in tags.items()]
            self._client.log_batch(run_id, **batch)

    def _existing(self, record: RunRecord) -> str:
        """The id of the complete run of this trial, closed if it was open; incomplete ones are deleted."""
        existing = ""
        for run in list(self._search({key: record.tags[key] for key in ("study_id", "trial")} | {"kind": "trial"})):
            state = run.data.tags.get("state", "")
            if state == record.state and not existing:
                existing = str(run.info.run_id)
            if run.info.status == "RUNNING":
                self._close_or_delete(run)
        return existing

    def _close_or_delete(self, run: Any) -> None:
        """Close a trial's run that was left open: with its state if it has one, else as killed and deleted."""
        state = run.data.tags.get("state", "")  # logged in one batch with the scores
        self._client.set_terminated(run.info.run_id, MLFLOW_STATUS.get(state, "KILLED"))
        if not state:
            self._client.delete_run(run.info.run_id)

    def finish_parent(self, run_id: str, metrics: Mapping[str, float], description: str, ending: Ending | None) -> None:
        from mlflow.entities import Metric, RunTag

        with self._store_errors():
            now = int(time.time() * 1000)
            self._client.log_batch(
                run_id,
                metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
                tags=[RunTag("mlflow.note.content", description[:TAG_LIMIT])],
            )
            if ending is not None:
                self._client.set_terminated(run_id, ending)

    def find(self, tags: Texts, run_id: str = "", *, deleted: bool = False) -> Iterator[LoggedRun]:
        with self._store_errors():
            if run_id:
                yield self._logged(self._get(run_id))
                return
            for run in self._search(tags, deleted=deleted):
                if "mnistexp.config" in run.data.tags:
                    yield self._logged(run)

    def close_stale_runs(self, tags: Texts, ending: Ending | None, is_alive: Callable[[str], bool]) -> None:
        with self._store_errors():
            for run in list(self._search(tags, "attributes.status = 'RUNNING'")):
                if run.data.tags.get("kind") == "sweep":
                    if ending is not None:
                        self._client.set_terminated(run.info.run_id, ending)
                elif not is_alive(run.data.tags.get("process", "")):
                    self._close_or_delete(run)

    def log_folder(self, study_id: str, folder: Path, artifact_path: str) -> str:
        with self._store_errors():
            run = next(self._search({"study_id": study_id, "kind": "sweep"}), None)
            if run is None:
                return ""
            self._client.log_artifacts(run.info.run_id, str(folder), artifact_path)
            return str(run.info.run_id)

    def _get(self, run_id: str) -> Any:
        try:
            return self._client.get_run(run_id)
        except Exception as error:
            if not is_store_error(error):
                raise
            raise StoreError(f"run={run_id}: MLflow has no such run; `python -m mnistexp ui` shows the ids") from None

    def _search(self, tags: Texts, *more: str, deleted: bool = False) -> Iterator[Any]:
        """Runs by tags and further clauses, oldest first, page by page."""
        from mlflow.entities import ViewType

        clauses = " and ".join([*(f"tags.`{key}` = '{value}'" for key, value in tags.items()), *more])
        view, token = ViewType.ALL if deleted else ViewType.ACTIVE_ONLY, None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], clauses, view, 1000, order_by=["attributes.start_time"], page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def _logged(self, run: Any) -> LoggedRun:
        run_id = str(run.info.run_id)
        tags: dict[str, Any] = {key: whole_tag(run.data.tags, key) for key in run.data.tags}
        if "mnistexp.config" not in tags:
            raise StoreError(
                f"run={run_id}: is no training by mnistexp (perhaps a sweep's parent run); give the id of a trial's run"
            )
        try:
            return LoggedRun(
                run_id=run_id,
                name=run.info.run_name,
                config=RunConfig.model_validate_json(tags["mnistexp.config"]),
                overrides=json.loads(tags["mnistexp.overrides"]),
                metrics=run.data.metrics,
                provenance=json.loads(tags["mnistexp.provenance"]),
                tags=tags,
                **{key: tags[key] for key in ("state", "weights_hash", "data_fingerprint") if key in tags},
            )
        except (KeyError, ValueError) as error:  # pydantic's ValidationError is a ValueError
            why = str(error).splitlines()[0]
            raise StoreError(f"run={run_id}: was not logged by this version of mnistexp ({why})") from None


def open_tracker(config: TrackingConfig, experiment: str, *, create: bool = True, run_id: str = "") -> Tracker:
    """Open the tracker of a config; see MlflowTracker for the arguments. Raises: StoreError."""
    if config.name == "none":
        return Tracker()
    return MlflowTracker(resolved_uri(config), experiment, create=create, run_id=run_id)


# ------------------------------------------------------------------------------------ a record as MLflow's parts


DATA_LOCATION = {"root", "mirrors", "timeout", "files"}
"""Keys of `data` for the location of the files, which does not change a training; a run's data set input has it."""


def params(config: RunConfig) -> dict[str, str]:
    """Every hyperparameter by its override key, for the table and the charts; long texts are shortened."""
    plain = config.model_dump(mode="json")
    plain["data"] = {key: value for key, value in plain["data"].items() if key not in DATA_LOCATION}
    flat = flatten(plain)
    flat["data"] = flat.pop("data.name")
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}
    return {key: format_value(text, max_length=PARAM_LIMIT) for key, text in texts.items()}


def split_tags(tags: Texts) -> tuple[dict[str, str], dict[str, str]]:
    """Split tag values at MLflow's limit: KEY keeps the first part, KEY.2, KEY.3 … the others.

    Returns: the first parts, the other parts.
    """
    more = {
        f"{key}.{number}": text[start : start + TAG_LIMIT]
        for key, text in tags.items()
        for number, start in enumerate(range(TAG_LIMIT, len(text), TAG_LIMIT), start=2)
    }
    return {key: text[:TAG_LIMIT] for key, text in tags.items()}, more


def whole_tag(tags: Texts, key: str) -> str:
    """The value of a tag, joined from the parts that `split_tags` made."""
    parts = [tags[key]]
    while (part := tags.get(f"{key}.{len(parts) + 1}")) is not None:
        parts.append(part)
    return "".join(parts)


def _metrics(record: RunRecord) -> Iterator[tuple[str, float, int]]:
    """Yield (name, value, step). MLflow's table shows a metric's last value, so curves have names of their own."""
    if record.result is not None:
        fit = record.result.fit
        yield "val_accuracy", objective_value(fit), 0
        yield "val_loss", fit.best.val_loss, 0
        if record.result.test_accuracy is not None and record.result.test_loss is not None:
            yield "test_accuracy", record.result.test_accuracy, 0
            yield "test_loss", record.result.test_loss, 0
        yield "chosen_epoch", fit.best_epoch, 0
        yield "parameters", fit.parameters, 0
    yield "epochs", len(record.epochs), 0
    yield "seconds", record.ended - record.started, 0
    for scores in record.epochs:
        for key in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"):
            value = getattr(scores, key)
            if math.isfinite(value):
                yield f"curve/{key}", value, scores.epoch


def _tags(record: RunRecord) -> dict[str, str]:
    """The tags with which a run is complete; `find` returns only runs that have them."""
    tags = {
        "state": record.state,
        "data": record.data_name,
        "data_fingerprint": record.data_fingerprint,
        "signature": signature(record.config),
        "mnistexp.config": record.config.model_dump_json(),
        "mnistexp.overrides": json.dumps(record.overrides),
        "mnistexp.provenance": json.dumps(record.provenance),
    }
    if record.reason:
        tags["reason"] = record.reason[:500]
    if record.result is not None:
        tags |= {"weights_hash": record.result.weights_hash, "device": record.result.device}
        for name in ("validation_correct", "wrong_predictions"):
            tags[f"mnistexp.{name}"] = base64.b64encode(getattr(record.result.fit, name)).decode()
    return tags


def _files(record: RunRecord) -> dict[str, str]:
    whole = record.model_dump(mode="json")
    return {
        "config.yaml": yaml.safe_dump(whole["config"], sort_keys=False),
        "record.json": json.dumps(whole, indent=1),
    }


def _dataset_input(record: RunRecord) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=record.data_name,
        digest=record.data_fingerprint[:36],  # MLflow's limit
        source_type="local",
        source=json.dumps({"uri": record.data_source}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
