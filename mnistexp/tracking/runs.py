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
from typing import TYPE_CHECKING, Any, Literal, Protocol

import requests
import yaml

from mnistexp.config.compose import flatten, signature
from mnistexp.config.schema import RunConfig, TrackingConfig, recorded_config
from mnistexp.errors import StoreError
from mnistexp.storage import locks
from mnistexp.storage.foreign_errors import reason
from mnistexp.storage.locks import wait_for
from mnistexp.storage.urls import REACHABLE_SECONDS, check_file, check_port, create_atomically, redact, sqlite_path
from mnistexp.tracking import records, ui_pages
from mnistexp.tracking.records import LoggedRun, RunRecord

if TYPE_CHECKING:  # MLflow and all below it is 2 s, so it is imported where it is needed
    from sqlalchemy import Engine

# Read when mlflow is imported, so before it. A server that hangs must not hold up the trials for minutes.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # two lines a run, among our own
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

MLFLOW_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAILED": "FAILED", "INTERRUPTED": "KILLED"}
Ending = Literal["FINISHED", "KILLED", "FAILED"]
TAG_LIMIT = 8000  # characters in a tag's value; MLflow refuses longer ones
BATCH_LIMIT = 800  # metrics that surely go into one batch with all tags and params; MLflow's limit is 1000 in all


class Tracker(Protocol):
    """Where runs are kept. Each method raises StoreError where that can't be reached."""

    def start(self, name: str, tags: Mapping[str, str], description: str, files: Mapping[str, str]) -> str:
        """Open a sweep's parent run, or reopen the one with the same study and kind in its tags. Returns: its id."""

    def log(
        self, record: RunRecord, parent: str = "", files: Mapping[str, str] | None = None, *, again: bool = False
    ) -> str:
        """Keep one run, whole, with further files (name → text). Returns: its id.

        With `again`, whoever tried before may have kept it, or half of it: then there is still one in the end.
        """

    def finish(self, run_id: str, metrics: Mapping[str, float], description: str, ending: Ending | None) -> None:
        """Write a parent run's summary, and close it; None leaves it open, for the drivers that go on."""

    def find(self, tags: Mapping[str, str], run_id: str = "", *, deleted: bool = False) -> Iterator[LoggedRun]:
        """The runs with these tags (or this id) that are kept whole, oldest first; those that a user deleted too?"""

    def settle(self, tags: Mapping[str, str], ending: Ending | None, lives: Callable[[str], bool]) -> None:
        """Close what dead processes left open of the runs with these tags, and take away what is half written.

        Args:
            ending: of a parent run; None leaves those as they are, since somebody may be at work on them.
            lives: whether the driver of this number (the tag `driver`) may be at work on what it opened.
        """


class NullTracker:  # a null object, so that nobody asks whether there is a tracker
    """Keeps nothing."""

    def start(self, name: str, tags: Mapping[str, str], description: str, files: Mapping[str, str]) -> str:
        return ""

    def log(
        self, record: RunRecord, parent: str = "", files: Mapping[str, str] | None = None, *, again: bool = False
    ) -> str:
        return ""

    def finish(self, run_id: str, metrics: Mapping[str, float], description: str, ending: Ending | None) -> None:
        pass

    def find(self, tags: Mapping[str, str], run_id: str = "", *, deleted: bool = False) -> Iterator[LoggedRun]:
        return iter(())

    def settle(self, tags: Mapping[str, str], ending: Ending | None, lives: Callable[[str], bool]) -> None:
        pass


class MlflowTracker:
    """Keeps runs in MLflow, in one experiment. Raises StoreError where that can't be used.

    Args:
        experiment: its name.
        create: make the experiment if there is none.
        run_id: take this run's experiment instead.
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
        with self._faults_said():
            ready_database(uri)
            self._client: Any = MlflowClient(uri)
            own = str(self._get(run_id).info.experiment_id) if run_id else ""
            self._experiment_id = own or self._experiment(experiment, create)

    @contextmanager
    def _faults_said(self) -> Iterator[None]:
        """Raise MLflow's faults (a full disk, a server that went away) as StoreError."""
        try:
            yield
        except self._errors as error:
            why = reason(error, self._uri)
            raise StoreError(f"tracking.uri={redact(self._uri)}: MLflow can't use it: {why}") from None

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

    def start(self, name: str, tags: Mapping[str, str], description: str, files: Mapping[str, str]) -> str:
        from mlflow.entities import RunTag

        with self._faults_said():
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
        self, record: RunRecord, parent: str = "", files: Mapping[str, str] | None = None, *, again: bool = False
    ) -> str:
        with self._faults_said():
            if again and (kept := self._kept_before(record)):
                return kept
            whose = {"kind": record.kind, **record.tags, **({"mlflow.parentRunId": parent} if parent else {})}
            run = self._client.create_run(self._experiment_id, int(record.started * 1000), whose, record.name)
            run_id = str(run.info.run_id)
            # Files first: the batch below has the tags by which a run is found, and what is found is whole.
            self._client.log_inputs(run_id, [_dataset_input(record)])
            for path, text in (_files(record) | dict(files or {})).items():
                self._client.log_text(run_id, text, path)
            if record.weights_path is not None and record.weights_path.exists():
                self._client.log_artifact(run_id, str(record.weights_path))
            self._log_numbers(run_id, record)
            self._client.set_terminated(run_id, MLFLOW_STATUS[record.state], int(record.ended * 1000))
            return run_id

    def _log_numbers(self, run_id: str, record: RunRecord) -> None:
        """Metrics, params and tags; in MLflow's batch the tags are written last, so a run that has them is whole."""
        from mlflow.entities import Metric, Param, RunTag

        ended = int(record.ended * 1000)
        metrics = [Metric(key, value, ended, step) for key, value, step in _metrics(record)]
        if len(metrics) > BATCH_LIMIT:
            self._client.log_batch(run_id, metrics=metrics)
            metrics = []
        self._client.log_batch(
            run_id,
            metrics=metrics,
            params=[Param(key, value) for key, value in params(record.config).items()],
            tags=[RunTag(key, value) for key, value in _tags(record).items()],
        )

    def _kept_before(self, record: RunRecord) -> str:
        """The id of a trial's run that is whole, closed if it wasn't; what is half written of it is taken away."""
        kept = ""
        for run in list(self._search({key: record.tags[key] for key in ("study_id", "trial")} | {"kind": "trial"})):
            state = run.data.tags.get("state", "")
            if state == record.state and not kept:
                kept = str(run.info.run_id)
            if run.info.status == "RUNNING":
                self._close_or_delete(run)
        return kept

    def _close_or_delete(self, run: Any) -> None:
        """Close a trial's run that was left open: as it ended, if it is whole; else it never was one."""
        state = run.data.tags.get("state", "")  # written with the scores, or not at all
        self._client.set_terminated(run.info.run_id, MLFLOW_STATUS.get(state, "KILLED"))
        if not state:
            self._client.delete_run(run.info.run_id)

    def finish(self, run_id: str, metrics: Mapping[str, float], description: str, ending: Ending | None) -> None:
        from mlflow.entities import Metric, RunTag

        with self._faults_said():
            now = int(time.time() * 1000)
            self._client.log_batch(
                run_id,
                metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
                tags=[RunTag("mlflow.note.content", description)],
            )
            if ending is not None:
                self._client.set_terminated(run_id, ending)

    def find(self, tags: Mapping[str, str], run_id: str = "", *, deleted: bool = False) -> Iterator[LoggedRun]:
        with self._faults_said():
            if run_id:
                yield self._logged(self._get(run_id))
                return
            for run in self._search(tags, deleted=deleted):
                if "mnistexp.config" in run.data.tags:
                    yield self._logged(run)

    def settle(self, tags: Mapping[str, str], ending: Ending | None, lives: Callable[[str], bool]) -> None:
        with self._faults_said():
            for run in list(self._search(tags, "attributes.status = 'RUNNING'")):
                if run.data.tags.get("kind") == "sweep":
                    if ending is not None:
                        self._client.set_terminated(run.info.run_id, ending)
                elif not lives(run.data.tags.get("driver", "")):
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
        tags, run_id = run.data.tags, str(run.info.run_id)
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
            tags=dict(tags),
        )


def open_tracker(config: TrackingConfig, experiment: str, *, create: bool = True, run_id: str = "") -> Tracker:
    """The tracker that a config asks for; `create=False` where an empty store would be of no use.

    With a `run_id` it is that run's experiment, whatever its name.

    Raises: StoreError.
    """
    if config.name == "none":
        return NullTracker()
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
                f"tracking.uri={redact(uri)}: no MLflow server answers there ({type(error).__name__}); "
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
            create_atomically(path, lambda new: _make_store(MlflowClient(f"sqlite:///{new}")))
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
            f"tracking.uri={redact(uri)}: is another program's database (no table experiments); give an empty one"
        )
    with engine.connect() as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    alembic_config: Any = _get_alembic_config  # untyped
    script = ScriptDirectory.from_config(alembic_config(""))
    known, latest = {revision.revision for revision in script.walk_revisions()}, script.get_current_head()
    if found == latest:
        return
    older = found is None or found in known
    what_to_do = f"keep a copy and run `mlflow db upgrade '{redact(uri)}'`" if older else "pip install -U mlflow"
    raise StoreError(
        f"tracking.uri={redact(uri)}: was made by {'an older' if older else 'a newer'} MLflow, whose tables differ; "
        f"{what_to_do}, or give another tracking.uri"
    )


# ------------------------------------------------------------------------------------ a record as MLflow's parts


def params(config: RunConfig) -> dict[str, str]:
    """Every hyperparameter by its override key, as text; where the data came from is in the data set input."""
    plain = config.model_dump(mode="json")
    flat = {"seed": plain["seed"], "data": plain["data"]["name"]}
    for node in ("model", "optimizer", "augmentation", "trainer"):
        flat |= flatten(plain[node], f"{node}.")
    known = ("function", "settings", "code", "validation_size", "split", "split_seed")
    flat |= flatten({key: plain["data"][key] for key in known if key in plain["data"]}, "data.")
    return {key: json.dumps(value) if not isinstance(value, str) else value for key, value in flat.items()}


def _metrics(record: RunRecord) -> Iterator[tuple[str, float, int]]:
    """(name, value, step). MLflow's table shows a metric's *last* value, so curves have names of their own.

    A long run's are written before the batch with the tags by which it is found.
    """
    if record.result is not None:
        fit = record.result.fit
        yield "val_accuracy", fit.best.val_accuracy, 0
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
        for name in ("validation_correct", "wrong_predictions"):
            packed = base64.b64encode(getattr(record.result.fit, name)).decode()
            if len(packed) <= TAG_LIMIT:  # hits of 48,000 validation images at most; record.json has them all
                tags[f"mnistexp.{name}"] = packed
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
