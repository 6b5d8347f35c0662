"""Opening an MLflow store: which one, what is refused, and several processes at once."""

from __future__ import annotations

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from sample_records import a_record, client, settings
from services import HOST, free_port

from mnistexp.errors import StoreError
from mnistexp.storage.urls import redact
from mnistexp.tracking.runs import MlflowTracker, open_tracker
from mnistexp.tracking.store import check_reachable, resolved_uri

TESTS = Path(__file__).resolve().parents[1]
CREATE_AND_LOG = """
import sys
from sample_records import a_record, settings
from mnistexp.tracking.runs import open_tracker

open_tracker(settings(None), "digits").log(a_record(tags={"study": "digits", "trial": sys.argv[1]}))
"""


def test_the_uri_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tracking.uri, else the environment's, else ./mlflow.db, also beside an old ./mlruns; a file store is refused."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlruns" / "0").mkdir(parents=True)  # changes MLflow's own default
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\nname: Default\n")

    assert resolved_uri(settings(None)) == f"sqlite:///{tmp_path}/mlflow.db"
    assert resolved_uri(settings("sqlite:///sub/my.db")) == f"sqlite:///{tmp_path}/sub/my.db"
    assert resolved_uri(settings(f"sqlite:///{tmp_path}/x.db")) == f"sqlite:///{tmp_path}/x.db"
    assert resolved_uri(settings("http://host:5000")) == "http://host:5000"
    assert resolved_uri(settings(None, name="none")) == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///env.db")
    assert resolved_uri(settings(None)) == f"sqlite:///{tmp_path}/env.db"
    with pytest.raises(StoreError, match=r"tracking\.uri=\./mlruns: .*give sqlite:///"):
        resolved_uri(settings("./mlruns"))


@pytest.mark.parametrize("folder", ["my runs", "50% off", "{x}#1"])
def test_any_folder_works(fresh_mlflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """Folders with spaces, percent signs and braces in their names hold runs and artifacts."""
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)
    shutil.copy(fresh_mlflow, "mlflow.db")

    run_id = open_tracker(settings(None), "digits").log(a_record())

    assert next(open_tracker(settings(None), "digits").find({}, run_id)).run_id == run_id
    assert [path.name for path in tmp_path.iterdir()] == [folder]
    assert len(list((tmp_path / folder).rglob("record.json"))) == 1


@pytest.mark.parametrize("folder", ["my%20runs", "what?"])
def test_a_folder_that_mlflow_misreads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """MLflow reads %20 as a space and a question mark as the end, and would make another folder."""
    (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / folder)

    with pytest.raises(StoreError, match="MLflow misreads paths with"):
        open_tracker(settings(None), "digits")

    assert [path.name for path in tmp_path.rglob("*")] == [folder]


@pytest.mark.parametrize("revision", ["90e64c465722", "ffffffffffff"])
def test_another_versions_database_is_not_changed(uri: str, tmp_path: Path, revision: str) -> None:
    """MLflow would upgrade an older database unasked; the message has the version and the command."""
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("update alembic_version set version_num = ?", (revision,))
        connection.commit()
    before = path.read_bytes()

    with pytest.raises(StoreError, match=f"{revision}.*mlflow db upgrade"):
        MlflowTracker(uri, "digits")

    assert path.read_bytes() == before


def test_a_half_made_database_is_made_again(tmp_path: Path) -> None:
    """A process that was killed while it made the database leaves nothing that is taken for one."""
    (tmp_path / "mlflow.db.new").write_bytes(b"SQLite format 3\0 and no more")
    (tmp_path / "mlflow.db").touch()

    MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "digits").log(a_record())

    assert {path.name for path in tmp_path.glob("mlflow.db*")} == {"mlflow.db", "mlflow.db.lock"}


def test_reading_makes_nothing(tmp_path: Path) -> None:
    """Without `create` a missing database stays missing."""
    with pytest.raises(StoreError, match=r"mlflow\.db: no runs are logged here; run `python -m mnistexp sweep` first"):
        MlflowTracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "digits", create=False)

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_not_changed(tmp_path: Path) -> None:
    """Another file, a missing folder and an unknown scheme are named."""
    (tmp_path / "mlflow.db").write_text("remember the milk\n")

    for uri, words in (
        (f"sqlite:///{tmp_path / 'mlflow.db'}", "is not an SQLite database"),
        (f"sqlite:///{tmp_path / 'nowhere' / 'mlflow.db'}", "nowhere: no such folder"),
        ("nosuch://host/db", r"tracking\.uri=nosuch://"),
    ):
        with pytest.raises(StoreError, match=words):
            MlflowTracker(uri, "digits")

    assert (tmp_path / "mlflow.db").read_text() == "remember the milk\n"


@pytest.mark.parametrize("scheme", ["http", "postgresql", "mysql+pymysql"])
def test_a_server_that_is_away_is_reported_at_once(scheme: str) -> None:
    """A closed port is one message without the password; MLflow would retry for minutes."""
    with pytest.raises(StoreError, match=rf"tracking\.uri={scheme.replace('+', '.')}://me:\*\*\*@127\.0") as caught:
        MlflowTracker(f"{scheme}://me:secret@{HOST}:{free_port()}/db", "digits")

    assert "answers there" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that accepts and sends nothing counts as away after the limit."""
    monkeypatch.setattr("mnistexp.tracking.store.REACHABLE_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind((HOST, 0))
        silent.listen()

        with pytest.raises(StoreError, match="no MLflow server answers there"):
            check_reachable(f"http://{HOST}:{silent.getsockname()[1]}")


def test_a_deleted_experiment_is_named(tracker: MlflowTracker, uri: str) -> None:
    """MLflow reserves the names of deleted experiments."""
    client(uri).delete_experiment(tracker._experiment_id)

    with pytest.raises(StoreError, match=r"tracking\.experiment=digits: was deleted in MLflow"):
        MlflowTracker(uri, "digits")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:s3c/r@t@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("https://me:secret@host", "https://me:***@host"),
        ("postgresql://host/db?user=me&password=s3cret&ssl=off", "postgresql://host/db?user=me&password=***&ssl=off"),
        ("https://me@host", "https://me@host"),
        ("sqlite:////data/my:db@home.db", "sqlite:////data/my:db@home.db"),
    ],
)
def test_passwords_are_redacted(url: str, expected: str) -> None:
    """The rest of an address stays as it is."""
    assert redact(url) == expected


def test_two_processes_may_create_one_database(tmp_path: Path) -> None:
    """Started at once in an empty folder both log their run."""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    paths = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "tracking")))
    both = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE_AND_LOG, trial],
            cwd=tmp_path,
            env={**quiet, "PYTHONPATH": paths},
            stderr=subprocess.PIPE,
        )
        for trial in "12"
    ]
    errors = [process.communicate()[1].decode() for process in both]

    assert [process.returncode for process in both] == [0, 0], errors
    store = client(f"sqlite:///{tmp_path / 'mlflow.db'}")
    found = store.search_runs([store.get_experiment_by_name("digits").experiment_id], "metrics.test_accuracy > 0.1")
    assert sorted(run.data.tags["trial"] for run in found) == ["1", "2"]
