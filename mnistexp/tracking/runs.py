"""Runs as MLflow keeps them: the only file that knows MLflow.

MlflowClient and one `log_batch` a run, not the fluent API (35 ms a run against 120) and not autolog (fails
on TensorFlow 2.21, or makes a run seven times slower and marks pruned runs as failed).
"""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import requests
import yaml

from mnistexp.config.compose import flatten, signature
from mnistexp.config.schema import RunConfig, TrackingConfig, recorded_config
from mnistexp.errors import RejectedRun, StoreError
from mnistexp.storage import locks
from mnistexp.storage.locks import wait_for
from mnistexp.storage.urls import REACHABLE_SECONDS, check_file, check_port, made_whole, reason, shown, sqlite_path
from mnistexp.tracking import records, ui_pages
from mnistexp.tracking.records import LoggedRun, RunRecord
from mnistexp.training.results import PACKED

if TYPE_CHECKING:  # MLflow and all below it is 2 s, so it is imported where it is needed
    from sqlalchemy import Engine

# Read when mlflow is imported, so before it. A server that hangs must not hold up the trials for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run, among our own
os.environ.setdefault("MLFLOW_TRUNCATE_LONG_VALUES", "false")  # a value over a limit is an error, not cut
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

MLFLOW_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAILED": "FAILED", "INTERRUPTED": "KILLED"}
Ending = Literal["FINISHED", "KILLED", "FAILED"]
NAME_LIMIT = 250  # characters of a run's name: MLflow's column
TAG_LIMIT = 8000  # characters of a tag's value
PARAM_LIMIT = 6000  # characters of a param's value
BATCH_LIMITS = {"metrics": 800, "params": 90, "tags": 16}
"""How many fit in the last batch. MLflow's limits: 1,000 in all, 100 params, 100 tags, a request of 1 MB."""


class Tracker:
    """Where runs are logged; this base class logs nothing (`tracking=none`).

    Each method raises StoreError if the store cannot be used.
    """

    def start_parent(self, name: str, tags: Mapping[str, str], description: str, files: Mapping[str, str]) -> str:
        """Open a sweep's parent run, or reopen the one that has the same `study_id` and `kind` tags.

        Returns: its id.
        """
        return ""

    def log(
        self,
        record: RunRecord,
        parent: str = "",
        files: Mapping[str, str] | None = None,
        *,
        may_exist: bool = False,
    ) -> str:
        """Log one complete run.

        Args:
            parent: the id of its parent run; empty for none.
            files: more artifacts, file name → text.
            may_exist: an earlier attempt may have logged this trial, completely or in part; look for it first.

        Returns: its id.

        Raises: RejectedRun if the store works and does not accept this run.
        """
        return ""

    def finish_parent(self, run_id: str, metrics: Mapping[str, float], description: str, ending: Ending | None) -> None:
        """Write a parent run's summary and close it; with `ending=None` it stays open for other sweep processes."""

    def find(self, tags: Mapping[str, str], run_id: str = "", *, deleted: bool = False) -> Iterator[LoggedRun]:
        """The complete runs that have these tags (or this id), oldest first; with `deleted`, deleted ones too."""
        return iter(())

    def close_stale_runs(self, tags: Mapping[str, str], ending: Ending | None, is_alive: Callable[[str], bool]) -> None:
        """Close the runs with these tags that dead processes left open; delete those without scores.

        Args:
            ending: the status for parent runs; None leaves them open, because another process may use them.
            is_alive: whether the sweep process with this number (the tag `driver`) may still be working.
        """


class MlflowTracker(Tracker):
    """Log runs to one MLflow experiment. Raises StoreError if the store cannot be used.

    Args:
        experiment: its name.
        create: create the experiment if it does not exist.
        run_id: use the experiment of this run instead.
    """

    def __init__(self, uri: str, experiment: str, *, create: bool = True, run_id: str = "") -> None:
        check_reachable(uri)
        path = sqlite_path(uri)
        if not create and path is not None and not path.exists():
            raise StoreError(f"{path}: no runs are logged here; run `python -m mnistexp sweep` first")
        from alembic.util import CommandError
        from mlflow import MlflowClient  # 2 s, so not before it is needed
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        # A fresh database's migrations are 60 lines, each fault a traceback; what they say is in the exception.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)

        self._uri = uri
        errors = (MlflowException, SQLAlchemyError, CommandError, OSError, ImportError)
        self._errors: tuple[type[Exception], ...] = errors
        with self._store_errors():
            ready_database(uri)
            self._client: Any = MlflowClient(uri)
            own = str(self._get(run_id).info.experiment_id) if run_id else ""
            self._experiment_id = own or self._experiment(experiment, create)

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        """Raise MLflow's faults (a full disk, a server that went away) as StoreError."""
        try:
            yield
        except self._errors as error:
            why = reason(error, self._uri)
            raise StoreError(f"tracking.uri={shown(self._uri)}: MLflow can't use it: {why}") from None

    def _experiment(self, name: str, create: bool) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None and not create:
            raise StoreError(f"tracking.experiment={name}: not in MLflow; `python -m mnistexp ui` shows those that are")
        if found is None:
            try:
                made = str(self._client.create_experiment(name))
                ui_pages.describe(self._client, made)
                return made
            except self._errors:  # another driver made it just now, or the store can't be written to
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise StoreError(
                f"tracking.experiment={name}: was deleted in MLflow; restore it there, or give another name"
            )
        return str(found.experiment_id)

    def start_parent(self, name: str, tags: Mapping[str, str], description: str, files: Mapping[str, str]) -> str:
        from mlflow.entities import RunTag

        with self._store_errors():
            run = next(self._search({key: tags[key] for key in ("study_id", "kind")}), None)
            if run is None:
                run = self._client.create_run(self._experiment_id, run_name=name)
                ui_pages.describe(self._client, self._experiment_id, tags.get(ui_pages.SEARCHED, "").split())
            run_id = str(run.info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            texts = {**tags, "mlflow.note.content": description}
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in texts.items()])
            for path, text in files.items():
                self._client.log_text(run_id, text, path)
            return run_id

    def log(
        self,
        record: RunRecord,
        parent: str = "",
        files: Mapping[str, str] | None = None,
        *,
        may_exist: bool = False,
    ) -> str:
        with self._store_errors():
            if may_exist and (existing := self._existing(record)):
                return existing
            tags = {"kind": record.kind, **record.tags, **({"mlflow.parentRunId": parent} if parent else {})}
            run_id = ""
            try:
                run = self._client.create_run(
                    self._experiment_id, int(record.started * 1000), tags, shorten(record.name, NAME_LIMIT)
                )
                run_id = str(run.info.run_id)
                self._log_content(run_id, record, files or {})
            except self._errors as error:
                if not _is_rejection(error):
                    raise
                if run_id:
                    self._client.set_terminated(run_id, "FAILED")
                    self._client.delete_run(run_id)
                raise RejectedRun(
                    f"tracking.uri={shown(self._uri)}: MLflow does not accept the run `{record.name[:NAME_LIMIT]}`: "
                    f"{reason(error, self._uri)}"
                ) from None
            return run_id

    def _log_content(self, run_id: str, record: RunRecord, files: Mapping[str, str]) -> None:
        """Log the files first, and the tags by which `find` selects runs last: a run that is found is complete."""
        self._client.log_inputs(run_id, [_dataset_input(record)])
        for path, text in {**_files(record), **files}.items():
            self._client.log_text(run_id, text, path)
        if record.weights_path is not None and record.weights_path.exists():
            self._client.log_artifact(run_id, str(record.weights_path))
        self._log_numbers(run_id, record)
        self._client.set_terminated(run_id, MLFLOW_STATUS[record.state], int(record.ended * 1000))

    def _log_numbers(self, run_id: str, record: RunRecord) -> None:
        """Log metrics, params and tags: one batch for most runs; what exceeds a batch goes into batches before it."""
        from mlflow.entities import Metric, Param, RunTag

        ended = int(record.ended * 1000)
        tags, more_tags = split_tags(_tags(record))
        batch: dict[str, list[Any]] = {
            "metrics": [Metric(key, value, ended, step) for key, value, step in _metrics(record)],
            "params": [Param(key, value) for key, value in params(record.config).items()],
            "tags": [RunTag(key, value) for key, value in more_tags.items()],
        }
        for kind, entities in batch.items():
            limit = BATCH_LIMITS[kind]
            if len(entities) > limit:
                for start in range(0, len(entities), limit):
                    self._client.log_batch(run_id, **{kind: entities[start : start + limit]})
                batch[kind] = []
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
        state = run.data.tags.get("state", "")  # written with the scores, or not at all
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
                tags=[RunTag("mlflow.note.content", description)],
            )
            if ending is not None:
                self._client.set_terminated(run_id, ending)

    def find(self, tags: Mapping[str, str], run_id: str = "", *, deleted: bool = False) -> Iterator[LoggedRun]:
        with self._store_errors():
            if run_id:
                yield self._logged(self._get(run_id))
                return
            for run in self._search(tags, deleted=deleted):
                if "mnistexp.config" in run.data.tags:
                    yield self._logged(run)

    def close_stale_runs(self, tags: Mapping[str, str], ending: Ending | None, is_alive: Callable[[str], bool]) -> None:
        with self._store_errors():
            for run in list(self._search(tags, "attributes.status = 'RUNNING'")):
                if run.data.tags.get("kind") == "sweep":
                    if ending is not None:
                        self._client.set_terminated(run.info.run_id, ending)
                elif not is_alive(run.data.tags.get("driver", "")):
                    self._close_or_delete(run)

    def _get(self, run_id: str) -> Any:
        try:
            return self._client.get_run(run_id)
        except self._errors:
            raise StoreError(f"run={run_id}: MLflow has no such run; `python -m mnistexp ui` shows the ids") from None

    def _search(self, tags: Mapping[str, str], *more: str, deleted: bool = False) -> Iterator[Any]:
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
            raise StoreError(f"run={run_id}: is no training of mnistexp's (a sweep's parent, perhaps); give a trial's")
        return LoggedRun(
            run_id=run_id,
            name=run.info.run_name,
            config=recorded_config(tags["mnistexp.config"]),
            overrides=tuple(json.loads(tags["mnistexp.overrides"])),
            state=tags["state"],
            metrics=dict(run.data.metrics),
            weights_hash=tags.get("weights_hash", ""),
            data_fingerprint=tags["data_fingerprint"],
            provenance=json.loads(tags["mnistexp.provenance"]),
            tags=tags,
        )


def open_tracker(config: TrackingConfig, experiment: str, *, create: bool = True, run_id: str = "") -> Tracker:
    """The tracker that a config asks for; `create=False` where an empty store would be of no use.

    With a `run_id` it is that run's experiment, whatever its name.

    Raises: StoreError.
    """
    if config.name == "none":
        return Tracker()
    return MlflowTracker(resolved_uri(config), experiment, create=create, run_id=run_id)


# --------------------------------------------------------------------------------------- where runs are kept


def resolved_uri(config: TrackingConfig) -> str:
    """The absolute address of the store: tracking.uri, else MLFLOW_TRACKING_URI, else ./mlflow.db.

    Always explicit and absolute: an old ./mlruns folder changes MLflow's own default.
    """
    uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    path = sqlite_path(uri)
    if path is not None:
        return f"sqlite:///{path}"
    if "://" not in uri:
        raise StoreError(
            f"tracking.uri={uri}: MLflow's file store is closed; give sqlite:///FILE.db, postgresql://… or http://…"
        )
    return uri


def address(config: TrackingConfig) -> str:
    """Where runs are logged; empty where none is."""
    return "" if config.name == "none" else resolved_uri(config)


def check_reachable(uri: str) -> None:
    """Look whether a store answers before MLflow does, which retries for minutes. Raises: StoreError."""
    path = sqlite_path(uri)
    if path is not None:
        if re.search(r"%[0-9A-Fa-f]{2}|\?", str(path)):
            raise StoreError(
                f"tracking.uri={uri}: MLflow misreads paths with `?` or `%20` in them, and would log to another "
                f"folder; work in a folder with a plainer name"
            )
        check_file(path, "tracking.uri=sqlite:///FILE.db", "experiments")
    elif uri.startswith("http"):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=REACHABLE_SECONDS).raise_for_status()
        except requests.RequestException as error:
            raise StoreError(
                f"tracking.uri={shown(uri)}: no MLflow server answers there ({type(error).__name__}); "
                f"start one with `mlflow server`, or leave tracking.uri out to log to mlflow.db here"
            ) from None
    else:
        check_port("tracking.uri", uri)


def ready_database(uri: str) -> None:
    """Make MLflow's tables where there are none, one process at a time; leave other versions' alone.

    MLflow would upgrade an older database unasked, and eight processes on an empty one mostly fail.

    Raises: StoreError, or what MLflow raises.
    """
    from mlflow import MlflowClient
    from sqlalchemy import NullPool, create_engine

    path = sqlite_path(uri)
    if path is not None:
        with wait_for(locks.file_lock(path)):
            made_whole(path, lambda new: _make_store(MlflowClient(f"sqlite:///{new}")))
        _check_schema(create_engine(f"sqlite:///{path}", poolclass=NullPool), uri)
    elif uri.startswith("postgresql"):
        engine = create_engine(uri, poolclass=NullPool)
        with wait_for(locks.server_lock(engine)):
            _check_schema(engine, uri)
            _make_store(MlflowClient(uri))


def _make_store(client: Any) -> None:
    """Have MLflow make its tables (it does at the first question), and let go of the file."""
    client.search_experiments(max_results=1)
    client._tracking_client.store.engine.dispose()


def _check_schema(engine: Engine, uri: str) -> None:
    """Raises: StoreError if the tables are another version's, or not MLflow's."""
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config
    from sqlalchemy import inspect

    tables = set(inspect(engine).get_table_names())
    if not tables:
        return
    if "experiments" not in tables:
        raise StoreError(
            f"tracking.uri={shown(uri)}: is somebody else's database (it has no table experiments); give an empty one"
        )
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    alembic_config: Any = _get_alembic_config  # untyped
    script = ScriptDirectory.from_config(alembic_config(""))
    known, latest = {revision.revision for revision in script.walk_revisions()}, script.get_current_head()
    if found == latest:
        return
    older = found is None or found in known
    what_to_do = f"keep a copy and run `mlflow db upgrade '{shown(uri)}'`" if older else "pip install -U mlflow"
    raise StoreError(
        f"tracking.uri={shown(uri)}: was made by {'an older' if older else 'a newer'} MLflow, whose tables differ; "
        f"{what_to_do}, or give another tracking.uri"
    )


# ------------------------------------------------------------------------------------ a record as MLflow's parts


DATA_LOCATION = {"root", "mirrors", "timeout", "files"}
"""Keys of `data` that say where the files are, not what is in them; the data set input of a run has the source."""


def params(config: RunConfig) -> dict[str, str]:
    """Every hyperparameter by its override key, as text of at most PARAM_LIMIT characters.

    They are for the table and the charts. The exact config is in the tag `mnistexp.config`.
    """
    plain = config.model_dump(mode="json")
    plain["data"] = {key: value for key, value in plain["data"].items() if key not in DATA_LOCATION}
    flat = flatten(plain)
    flat["data"] = flat.pop("data.name")
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}
    return {key: shorten(text, PARAM_LIMIT) for key, text in texts.items()}


def shorten(text: str, limit: int) -> str:
    """A text of at most `limit` characters; an ellipsis replaces the rest."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def split_tags(tags: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Split tag values at MLflow's limit: KEY keeps the first part, KEY.2, KEY.3 … the others.

    Returns: the first parts, the other parts.
    """
    more = {
        f"{key}.{number}": text[start : start + TAG_LIMIT]
        for key, text in tags.items()
        for number, start in enumerate(range(TAG_LIMIT, len(text), TAG_LIMIT), start=2)
    }
    return {key: text[:TAG_LIMIT] for key, text in tags.items()}, more


def whole_tag(tags: Mapping[str, str], key: str) -> str:
    """The value of a tag, joined from the parts that `split_tags` made."""
    parts = [tags[key]]
    while (part := tags.get(f"{key}.{len(parts) + 1}")) is not None:
        parts.append(part)
    return "".join(parts)


def _is_rejection(error: BaseException) -> bool:
    """Whether MLflow or its database does not accept a value, as opposed to not working at all."""
    from sqlalchemy.exc import DataError, IntegrityError

    if getattr(error, "error_code", "") in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
        return True
    cause = error.__cause__ or error.__context__  # MLflow wraps some database errors as INTERNAL_ERROR
    return isinstance(cause, DataError | IntegrityError | ValueError)


def _metrics(record: RunRecord) -> Iterator[tuple[str, float, int]]:
    """(name, value, step). MLflow's table shows a metric's *last* value, so curves have names of their own.

    A long run's are written before the batch with the tags by which it is found.
    """
    if record.result is not None:
        fit = record.result.fit
        yield "val_accuracy", fit.chosen.val_accuracy, 0
        yield "val_loss", fit.chosen.val_loss, 0
        if record.result.test_accuracy is not None and record.result.test_loss is not None:
            yield "test_accuracy", record.result.test_accuracy, 0
            yield "test_loss", record.result.test_loss, 0
        yield "chosen_epoch", fit.chosen_epoch, 0
        yield "parameters", fit.parameters, 0
    yield "epochs", len(record.epochs), 0
    yield "seconds", record.ended - record.started, 0
    for scores in record.epochs:
        for key in ("loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "seconds"):
            value = getattr(scores, key)
            if math.isfinite(value):
                yield f"curve/{key}", value, scores.epoch


def _tags(record: RunRecord) -> dict[str, str]:
    """What makes a run one that is found, beside whose it is."""
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
        for name in PACKED:
            tags[f"mnistexp.{name}"] = base64.b64encode(getattr(record.result.fit, name)).decode()
    return tags


def _files(record: RunRecord) -> dict[str, str]:
    """What a person may want to download: the config to read, the record to compute with."""
    whole = records.to_json(record)
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
