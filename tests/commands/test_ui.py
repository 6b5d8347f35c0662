"""The command `ui`: what it starts, what it says, how it ends. What its pages show is for the browser's tests."""

from __future__ import annotations

import http.client
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from e2e.conftest import Folder
from services import HOST, MlflowServer, Postgres, free_port, kill_tree, wait_until

from mnistexp import cli
from mnistexp.study.database import open_for_sweep
from mnistexp.tracking.runs import MlflowTracker

SECONDS = 60


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both databases, as a sweep makes them, and odd letters in its name."""
    folder = tmp_path_factory.mktemp("st ores{}")
    MlflowTracker(f"sqlite:///{folder / 'mlflow.db'}", "digits")
    open_for_sweep(f"sqlite:///{folder / 'optuna.db'}").close()
    return folder


@contextmanager
def serving(folder: Path, *words: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Have `ui` run, with no display. Yields: the process, and the line that it says once it answers."""
    unseen = {"DISPLAY": "", "WAYLAND_DISPLAY": "", "BROWSER": "", "SSH_CONNECTION": ""}
    process = Folder(folder, {**unseen, **environment}).start("ui", *words)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        kill_tree(process.pid)
        process.communicate()


def status(url: str, path: str = "/", **headers: str) -> int:
    """What a server says to a request."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        with connection.getresponse() as response:
            response.read()
            return response.status
    finally:
        connection.close()


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `ui` says that can't start."""
    assert cli.main(["ui", *words]) == 2
    return capsys.readouterr().err


# ------------------------------------------------------------------------------------------ it runs, and it ends


@pytest.mark.slow
def test_the_dashboard_is_one_process_that_ends_with_exit_code_0(stores: Path, tmp_path: Path) -> None:
    """It answers when it says so, opens the browser there, starts nothing else, and leaves nothing behind."""
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)

    with serving(stores, "data=digits", "--port", "0", BROWSER=str(browser)) as (process, line):
        url = line.split()[0]
        answered = status(url)
        wait_until(opened.exists, SECONDS, "the browser")
        wait_until(lambda: bool(opened.read_text()), SECONDS, "its address")
        server = psutil.Process(process.pid)
        others = [child.cmdline() for child in server.children(recursive=True) if str(browser) not in child.cmdline()]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)

    assert url.startswith(f"http://{HOST}:")
    assert answered == 200
    assert opened.read_text().strip() == url
    assert others == []
    assert (process.returncode, out) == (0, "")
    assert err == "starting MLflow's dashboard; it takes a few seconds\n"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "flag"), [(signal.SIGTERM, "--optuna"), (signal.SIGHUP, "--no-browser")])
def test_any_signal_that_asks_ends_it(stores: Path, number: signal.Signals, flag: str) -> None:
    """What a supervisor sends, and a terminal that is closed, end both dashboards as Ctrl-C does."""
    with serving(stores, "data=digits", "--port", "0", flag) as (process, line):
        answered = status(line.split()[0])
        process.send_signal(number)
        _, err = process.communicate(timeout=SECONDS)

    assert answered in (200, 302)
    assert process.returncode == 0
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_taken_port_is_said_and_the_next_one_used(stores: Path) -> None:
    """Two dashboards at once don't stand in each other's way."""
    port = free_port()
    with (
        serving(stores, "data=digits", "--optuna", "--port", str(port)) as (_, first),
        serving(stores, "data=digits", "--optuna", "--port", str(port)) as (second_process, second),
    ):
        answered = status(second.split()[0])
        second_process.send_signal(signal.SIGINT)
        _, err = second_process.communicate(timeout=SECONDS)

    assert f"{HOST}:{port}/" in first
    assert f"{HOST}:{port}/" not in second
    assert answered in (200, 302)
    assert f"port {port} is taken; taking " in err


@pytest.mark.slow
def test_optunas_dashboard_answers_to_its_own_name_and_pages_alone(stores: Path) -> None:
    """A page elsewhere that one has open can neither read studies nor rename them."""
    with serving(stores, "data=digits", "--optuna", "--port", "0") as (_, line):
        url = line.split()[0]
        own = status(url, "/api/studies")
        renamed = status(url, "/api/studies", Host="evil.example")
        crossed = status(url, "/api/studies", Origin="http://evil.example")
        same = status(url, "/api/studies", Origin=f"http://{urlsplit(url).netloc}")

    assert (own, renamed, crossed, same) == (200, 403, 403, 200)


@pytest.mark.slow
def test_another_address_works_and_is_warned_of(stores: Path) -> None:
    """There is no password: whoever opens it to others is told."""
    with serving(stores, "data=digits", "--optuna", "--host", "0.0.0.0", "--port", "0") as (process, line):
        answered = status(line.split()[0])
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SECONDS)

    assert answered in (200, 302)
    assert "warning: it has no password, and listens on 0.0.0.0" in err


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads another process's environment in /proc")
def test_a_password_is_nowhere_to_be_seen(tmp_path: Path) -> None:
    """Neither on the screen nor in the process list nor in an environment, for both dashboards on PostgreSQL."""
    with Postgres() as postgres:
        urls = {"tracking.uri": postgres.create_database("runs"), "study.storage": postgres.create_database("studies")}
        MlflowTracker(urls["tracking.uri"], "digits")
        open_for_sweep(urls["study.storage"]).close()
        for key, flag in (("tracking.uri", "--no-browser"), ("study.storage", "--optuna")):
            words = [f"{key}=${{oc.env:MY_DB}}", "data=digits", flag, "--port", "0"]
            with serving(tmp_path, *words, MY_DB=urls[key]) as (process, line):
                answered = status(line.split()[0])
                typed = Path(f"/proc/{process.pid}/cmdline").read_text()
                family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
                process.send_signal(signal.SIGTERM)
                _, err = process.communicate(timeout=SECONDS)

            assert answered in (200, 302)
            assert len(family) == 1  # the one whose environment the user set
            assert postgres.password not in line + err + typed
            assert ":***@" in line


@pytest.mark.slow
def test_a_server_that_runs_is_opened_as_it_is(tmp_path: Path) -> None:
    """With tracking.uri=http://… there is nothing to start: the address leads to the study there, in our view."""
    with MlflowServer(tmp_path) as server:
        MlflowTracker(server.url, "digits")
        folder = Folder(tmp_path)
        done = folder.run("ui", "data=digits", f"tracking.uri={server.url}", "--no-browser")

    assert f"{server.url}/#/experiments/1/runs?viewStateShareKey=mnistexp" in done.stdout
    assert "nothing was started here" in done.stdout


# ------------------------------------------------------------------------------------------------ it can't start


def test_where_nothing_was_run_it_says_so_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sentence with what to type, for both dashboards; no empty database is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    assert "no runs are logged here; run `python -m mnistexp sweep` first" in said(capsys, "data=digits")
    assert "there is no such database; run `python -m mnistexp sweep`" in said(
        capsys, "data=digits", "--optuna", "--port", "0"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["tracking=none"], "tracking=none: no run is logged, so there is none to show"),
        (["--optuna", "--port", "70000"], "--port 70000: must be from 0 (any) to 65535"),
        (["--optuna", "--host", "no such host"], "--host no such host: no such address"),
        (["--optuna", "--host", "192.0.2.1"], "--host 192.0.2.1: is no address of this machine"),
    ],
)
def test_what_can_not_be_is_said(
    stores: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    """Each mistake gets one sentence, and exit code 2."""
    monkeypatch.chdir(stores)

    assert sentence in said(capsys, "data=digits", *words)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the extra, --optuna says what to install."""
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)

    assert "pip install 'mnistexp[dashboard]'" in said(capsys, "data=digits", "--optuna")


def test_a_server_that_is_away_is_said(tmp_path: Path) -> None:
    """An MLflow server that isn't there is one sentence after three seconds, not minutes of tries."""
    done = Folder(tmp_path).run("ui", "data=digits", f"tracking.uri=http://{HOST}:{free_port()}", expect=2)

    assert "no MLflow server answers there" in done.stderr
    assert "Traceback" not in done.stderr
