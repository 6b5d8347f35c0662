from __future__ import annotations

import errno
from pathlib import Path

import psycopg
import pytest
from mlflow import MlflowClient
from services import MlflowServer, Postgres, find_postgres, processes_of, small_disk


def rows(url: str) -> list[tuple[int]]:
    """What the test wrote into its table."""
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT n FROM numbers").fetchall()


def test_postgres_keeps_what_was_committed_through_every_kind_of_end() -> None:
    """PostgreSQL, restarted, stopped at once and killed, answers on the same port with the data, and then is gone."""
    with Postgres() as postgres:
        url = postgres.create_database("kept")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE numbers (n int)")
            connection.execute("INSERT INTO numbers VALUES (7)")
        postgres.restart()
        after_restart = rows(url)
        postgres.restart("immediate")
        after_crash = rows(url)
        postgres.kill()
        silent = not postgres.answers()
        postgres.start()

        assert silent
        assert after_restart == after_crash == rows(url) == [(7,)]
    assert processes_of(postgres.folder) == []
    assert not postgres.folder.exists()


def test_postgres_asks_for_the_password() -> None:
    """PostgreSQL lets nobody in with another password."""
    with Postgres() as postgres:
        wrong = postgres.url("postgres").replace(postgres.password, "guess")

        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(wrong)


def test_missing_postgres_is_a_failure_in_ci_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PostgreSQL a test skips with what to install, and fails where CI is set."""
    monkeypatch.setattr("services.find_postgres", lambda: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="apt-get install"):
        Postgres()

    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="apt-get install"):
        Postgres()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "postgresql"])
def test_mlflow_server_keeps_its_runs_when_killed(backend: str, tmp_path: Path) -> None:
    """MLflow's server, restarted and killed, answers on the same port with its runs and artifacts, and then is gone."""
    if backend == "sqlite":
        round_trip(MlflowServer(tmp_path), tmp_path)
    else:
        with Postgres() as postgres:
            round_trip(MlflowServer(tmp_path, postgres.create_database("mlflow")), tmp_path)


def round_trip(server: MlflowServer, folder: Path) -> None:
    """Write a run and an artifact, and look whether both outlive a restart and a SIGKILL."""
    with server:
        client = MlflowClient(server.url)
        run = client.create_run("0").info.run_id
        client.log_metric(run, "accuracy", 0.5)
        client.log_text(run, "hello", "note.txt")
        server.restart()
        metrics = client.get_run(run).data.metrics
        server.kill()
        silent = not server.answers()
        server.start()

        assert silent
        assert metrics == client.get_run(run).data.metrics == {"accuracy": 0.5}
        assert [file.path for file in client.list_artifacts(run)] == ["note.txt"]
    assert processes_of(folder) == []


def test_small_disk_is_full_after_its_size() -> None:
    """A small disk takes what fits, then refuses with "no space left", and leaves nothing mounted."""
    with small_disk(2) as disk:
        (disk / "fits").write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match="No space left") as refused:
            (disk / "too_much").write_bytes(bytes(2 << 20))

        assert refused.value.errno == errno.ENOSPC
        assert disk.is_mount()
    assert not disk.exists()


def test_find_postgres_gives_a_folder_with_the_server() -> None:
    """What find_postgres gives has the server itself, not only its client."""
    folder = find_postgres()

    assert folder is None or (folder / "postgres").exists()
