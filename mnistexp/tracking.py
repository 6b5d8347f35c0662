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
import socket
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import filelock
import requests
import yaml

from mnistexp import results
from mnistexp.config import signature
from mnistexp.errors import StoreError
from mnistexp.results import EpochScores, RunResult
from mnistexp.schema import RunConfig, TrackingConfig, recorded_config

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported, so before it

State = Literal["COMPLETE", "PRUNED", "FAILED"]
Kind = Literal["train", "trial", "rerun"]

MLFLOW_STATUS = {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAILED": "FAILED"}
REACHABLE_SECONDS = 3  # MLflow itself would try for 101 s
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
TAG_LIMIT = 8000  # characters in a tag's value; MLflow refuses longer ones


@dataclass(frozen=True)
class RunRecord:
    """All that is kept of one run."""

    name: str
    kind: Kind
    config: RunConfig
    overrides: tuple[str, ...]
    data_name: str
    data_fingerprint: str
    data_source: str
    provenance: Mapping[str, Any]
    started: float  # seconds since 1970
    ended: float
    state: State
    result: RunResult | None = None  # None for a failed run
    reason: str = ""  # of a failure
    epochs: tuple[EpochScores, ...] = ()  # of a failed run too
    tags: Mapping[str, str] = field(default_factory=dict)  # study, trial, rerun_of …
    weights_path: Path | None = None


@dataclass(frozen=True)
class LoggedRun:
    """A run as its store gives it back: what a rerun needs, from tags and metrics alone.

    No artifact is read: their places are stored as absolute paths, which a moved folder breaks.
    """

    run_id: str
    name: str
    config: RunConfig
    overrides: tuple[str, ...]
    state: State
    metrics: Mapping[str, float]  # floats survive the databases exactly
    weights_hash: str
    data_fingerprint: str
    provenance: Mapping[str, Any]
    tags: Mapping[str, str]


class Tracker(Protocol):
    """Where runs are kept."""

    def start(self, name: str, tags: Mapping[str, str], description: str, files: Mapping[str, str]) -> str:
        """Open a sweep's parent run, or reopen the one with the same study and kind in its tags. Returns: its id."""

    def log(self, record: RunRecord, parent: str = "", files: Mapping[str, str] | None = None) -> str:
        """Keep one run, whole, with further files (name → text). Returns: its id."""

    def finish(self, run_id: str, metrics: Mapping[str, float], description: str) -> None:
        """Close a parent run with its summary."""

    def find(self, tags: Mapping[str, str], run_id: str = "") -> Iterator[LoggedRun]:
        """The runs with these tags (or this id), with their results, oldest first."""

    def settle(self, tags: Mapping[str, str]) -> None:
        """Close the runs with these tags that a killed process left open."""


class NullTracker:  # a null object, so that nobody asks whether there is a tracker
    """Keeps nothing."""

    def start(self, name: str, tags: Mapping[str, str], description: str, files: Mapping[str, str]) -> str:
        return ""

    def log(self, record: RunRecord, parent: str = "", files: Mapping[str, str] | None = None) -> str:
        return ""

    def finish(self, run_id: str, metrics: Mapping[str, float], description: str) -> None:
        pass

    def find(self, tags: Mapping[str, str], run_id: str = "") -> Iterator[LoggedRun]:
        return iter(())

    def settle(self, tags: Mapping[str, str]) -> None:
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
        if not create and uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
            raise StoreError(f"{uri.removeprefix('sqlite:///')}: no runs are logged here; run `mnistexp sweep` first")
        from alembic.util import CommandError
        from mlflow import MlflowClient  # 2 s, so not before it is needed
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        # A fresh database's migrations are 60 lines. After the import, which resets the levels.
        for name in ("alembic", "mlflow"):
            logging.getLogger(name).setLevel(logging.WARNING)

        self._uri = uri
        self._errors: tuple[type[Exception], ...] = (
            MlflowException,
            SQLAlchemyError,
            CommandError,
            OSError,
            ImportError,
        )
        with self._faults_said(), _creation_lock(uri):
            self._client: Any = MlflowClient(uri)
            self._experiment_id = self._of_run(run_id) if run_id else self._experiment(experiment, create)

    @contextmanager
    def _faults_said(self) -> Iterator[None]:
        """Raise MLflow's faults (a full disk, a server that went away) as StoreError."""
        try:
            yield
        except self._errors as error:
            raise StoreError(f"tracking.uri={shown(self._uri)}: MLflow can't use it: {_first_line(error)}") from None

    def _of_run(self, run_id: str) -> str:
        return str(self._get(run_id).info.experiment_id)

    def _experiment(self, name: str, create: bool) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None and not create:
            raise StoreError(f"tracking.experiment={name}: MLflow has no such experiment here; `mlflow ui` shows them")
        if found is None:
            return str(self._client.create_experiment(name))
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
            run_id = str(run.info.run_id)
            self._client.update_run(run_id, status="RUNNING")
            texts = {**tags, "mlflow.note.content": description}
            self._client.log_batch(run_id, tags=[RunTag(key, value) for key, value in texts.items()])
            for path, text in files.items():
                self._client.log_text(run_id, text, path)
            return run_id

    def log(self, record: RunRecord, parent: str = "", files: Mapping[str, str] | None = None) -> str:
        from mlflow.entities import Metric, Param, RunTag

        with self._faults_said():
            whose = {"kind": record.kind, **record.tags} | ({"mlflow.parentRunId": parent} if parent else {})
            started, ended = int(record.started * 1000), int(record.ended * 1000)
            run = self._client.create_run(self._experiment_id, started, whose, record.name)
            run_id = str(run.info.run_id)
            # Files first: the batch below has the tags by which a run is found, and what is found is whole.
            self._client.log_inputs(run_id, [_dataset_input(record)])
            for path, text in (_files(record) | dict(files or {})).items():
                self._client.log_text(run_id, text, path)
            if record.weights_path is not None and record.weights_path.exists():
                self._client.log_artifact(run_id, str(record.weights_path))
            self._client.log_batch(
                run_id,
                metrics=[Metric(key, value, ended, step) for key, value, step in _metrics(record)],
                params=[Param(key, value) for key, value in params(record.config).items()],
                tags=[RunTag(key, value) for key, value in _tags(record).items()],
            )
            self._client.set_terminated(run_id, MLFLOW_STATUS[record.state], ended)
            return run_id

    def finish(self, run_id: str, metrics: Mapping[str, float], description: str) -> None:
        from mlflow.entities import Metric, RunTag

        with self._faults_said():
            now = int(time.time() * 1000)
            self._client.log_batch(
                run_id,
                metrics=[Metric(key, value, now, 0) for key, value in metrics.items()],
                tags=[RunTag("mlflow.note.content", description)],
            )
            self._client.set_terminated(run_id)

    def find(self, tags: Mapping[str, str], run_id: str = "") -> Iterator[LoggedRun]:
        with self._faults_said():
            if run_id:
                yield self._logged(self._get(run_id))
                return
            for run in self._search(tags):
                if "mnistexp.config" in run.data.tags:
                    yield self._logged(run)

    def settle(self, tags: Mapping[str, str]) -> None:
        with self._faults_said():
            for run in list(self._search(tags, "attributes.status = 'RUNNING'")):
                state = run.data.tags.get("state", "")  # written with the scores, or not at all
                self._client.set_terminated(run.info.run_id, MLFLOW_STATUS.get(state, "KILLED"))

    def _get(self, run_id: str) -> Any:
        try:
            return self._client.get_run(run_id)
        except self._errors:
            raise StoreError(f"run={run_id}: MLflow has no such run; `mlflow ui` shows the ids") from None

    def _search(self, tags: Mapping[str, str], *more: str) -> Iterator[Any]:
        """Runs by tags and further clauses, oldest first, page by page."""
        clauses = " and ".join([*(f"tags.`{key}` = '{value}'" for key, value in tags.items()), *more])
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], clauses, max_results=1000, order_by=["attributes.start_time"], page_token=token
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
    if uri.startswith("sqlite:///"):
        return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).absolute()}"
    if "://" not in uri:
        raise StoreError(
            f"tracking.uri={uri}: MLflow's file store is closed; give sqlite:///FILE.db, postgresql://… or http://…"
        )
    return uri


def check_reachable(uri: str) -> None:
    """Look whether a store answers before MLflow does, which retries for minutes. Raises: StoreError."""
    if uri.startswith("sqlite:///"):
        path = uri.removeprefix("sqlite:///")
        if re.search(r"%[0-9A-Fa-f]{2}|\?", path):
            raise StoreError(
                f"tracking.uri={uri}: MLflow misreads paths with `?` or `%20` in them, and would log to another "
                f"folder; work in a folder with a plainer name"
            )
        check_writable(Path(path), "tracking.uri=sqlite:///FILE.db", "experiments")
    elif uri.startswith("http"):
        try:
            requests.get(f"{uri.rstrip('/')}/health", timeout=REACHABLE_SECONDS).raise_for_status()
        except requests.RequestException as error:
            raise StoreError(
                f"tracking.uri={shown(uri)}: no MLflow server answers there ({type(error).__name__}); "
                f"start one with `mlflow server`, or leave tracking.uri out to log to mlflow.db here"
            ) from None
    else:
        _check_port(uri)


def _check_port(uri: str) -> None:
    """Look whether a database server listens. Raises: StoreError."""
    place = urlsplit(uri)
    try:
        port = place.port or DATABASE_PORTS.get(place.scheme.partition("+")[0])
    except ValueError:
        raise StoreError(
            f"tracking.uri={shown(uri)}: its port is no number; write a / in the password as %2F, and an @ as %40"
        ) from None
    if not place.hostname or not port:
        return  # a socket file, or a scheme that is MLflow's to refuse
    try:
        socket.create_connection((place.hostname, port), REACHABLE_SECONDS).close()
    except OSError as error:
        raise StoreError(
            f"tracking.uri={shown(uri)}: no database answers there ({error.strerror or error}); "
            f"start it, or leave tracking.uri out to log to mlflow.db here"
        ) from None


def check_writable(path: Path, setting: str, table: str) -> None:
    """Raises: StoreError if a database file can't be made or written there, or has other tables than `table`."""
    folder = path.parent
    if path.is_dir():
        raise StoreError(f"{path}: is a folder, not a database file; give {setting}")
    if not folder.is_dir():
        raise StoreError(f"{folder}: no such folder, so {path.name} can't be made; make it, or give {setting}")
    target = path if path.exists() else folder
    if not os.access(target, os.W_OK) or not os.access(folder, os.W_OK):
        raise StoreError(f"{target}: can't be written to; work in a folder of your own, or give {setting}")
    if path.exists() and path.stat().st_size and _first_bytes(path) != b"SQLite format 3\0":
        raise StoreError(f"{path}: is not an SQLite database; move it away, or give {setting}")
    if path.exists() and (tables := _tables(path)) and table not in tables:
        raise StoreError(f"{path}: is somebody else's database (it has no table {table}); give another {setting}")


def _tables(path: Path) -> set[str]:
    """A database's tables, looked at without writing; none where it is damaged: its owner says that better."""
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
            return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        return set()


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def shown(uri: str) -> str:
    """An address without its password."""
    if uri.startswith("sqlite:"):
        return uri
    uri = re.sub(r"(?i)([?&][^=&]*(?:password|token|secret)[^=&]*=)[^&]*", r"\1***", uri)
    scheme, separator, rest = uri.partition("://")
    credentials, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{credentials.partition(':')[0]}:***@{host}" if at and ":" in credentials else uri


def _creation_lock(uri: str) -> AbstractContextManager[object]:
    """Two processes that create one SQLite database at once both fail, so one waits; a server makes its own."""
    if uri.startswith("sqlite:///"):
        return filelock.FileLock(f"{uri.removeprefix('sqlite:///')}.lock")
    return nullcontext()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# ------------------------------------------------------------------------------------ a record as MLflow's parts


def params(config: RunConfig) -> dict[str, str]:
    """Every hyperparameter by its override key, as text; where the data came from is in the data set input."""
    plain = config.model_dump(mode="json")
    flat = {"seed": plain["seed"], "data": plain["data"]["name"]}
    for node in ("model", "optimizer", "trainer"):
        flat |= {f"{node}.{key}": value for key, value in plain[node].items()}
    flat |= {f"data.{key}": plain["data"][key] for key in ("validation_size", "split", "split_seed")}
    return {key: json.dumps(value) if not isinstance(value, str) else value for key, value in flat.items()}


def _metrics(record: RunRecord) -> Iterator[tuple[str, float, int]]:
    """(name, value, step). MLflow's table shows a metric's *last* value, so curves have names of their own.

    The final scores come first: a long run is written in several batches, and the first has the tags by which
    it is found.
    """
    if record.result is not None:
        fit = record.result.fit
        yield "val_accuracy", fit.chosen.val_accuracy, 0
        yield "val_loss", fit.chosen.val_loss, 0
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
        hits = base64.b64encode(record.result.fit.validation_hits).decode()
        if len(hits) <= TAG_LIMIT:  # of 48,000 validation images at most; record.json has them all
            tags["mnistexp.validation_hits"] = hits
    return tags


def _files(record: RunRecord) -> dict[str, str]:
    """What a person may want to download: the config to read, the record to compute with."""
    whole = {
        "config": record.config.model_dump(mode="json"),
        "overrides": record.overrides,
        "state": record.state,
        "reason": record.reason,
        "result": results.to_json(record.result) if record.result else None,
        "epochs": [asdict(scores) for scores in record.epochs],
        "provenance": record.provenance,
    }
    plain = record.config.model_dump(mode="json")
    return {"config.yaml": yaml.safe_dump(plain, sort_keys=False), "record.json": json.dumps(whole, indent=1)}


def _dataset_input(record: RunRecord) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=record.data_name,
        digest=record.data_fingerprint[:36],  # MLflow's limit
        source_type="local",
        source=json.dumps({"uri": record.data_source}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
