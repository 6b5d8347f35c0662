"""The command `ui`: what it serves, how it ends, what it refuses. Its pages are for the tests in a browser."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from e2e.conftest import Folder
from services import HOST, Postgres, kill_tree, wait_until

from mnistexp import cli
from mnistexp.commands import ui
from mnistexp.commands.args import CommandArgs
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


def listening(process: subprocess.Popen[str]) -> set[str]:
    """The addresses at which a process and its children listen."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    found = (connection for each in family for connection in each.net_connections("tcp"))
    return {connection.laddr.ip for connection in found if connection.status == psutil.CONN_LISTEN}


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


# ------------------------------------------------------------------------------------------------ it runs and ends


@pytest.mark.slow
def test_mlflows_dashboard_is_one_process_that_opens_a_browser_and_ends_with_0(
    stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It opens the run table in our view, refuses other Host headers, and a SIGHUP ends it.

    With tracking.uri=http://… a second `ui` starts nothing: the address is the same page on that server.
    """
    opened, browser = tmp_path / "opened", tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)

    with serving(stores, "data=digits", "--port", "0", BROWSER=str(browser)) as (process, line):
        url = line.split()[0]
        answers = status(url, "/health"), status(url), status(url, Host="evil.example")
        assistant, addresses = status(url, "/ajax-api/3.0/mlflow/assistant/config"), listening(process)
        wait_until(lambda: opened.exists() and bool(opened.read_text()), SECONDS, "the browser")
        children = psutil.Process(process.pid).children(recursive=True)
        code = cli.main(["ui", "data=digits", f"tracking.uri={url.partition('/#')[0]}", "--no-browser"])
        others = [child.cmdline() for child in children if str(browser) not in child.cmdline()]
        process.send_signal(signal.SIGHUP)
        _, err = process.communicate(timeout=SECONDS)

    assert url.startswith(f"http://{HOST}:")
    assert "/#/experiments/1/runs?viewStateShareKey=mnistexp" in url
    assert opened.read_text().strip() == url
    assert answers == (200, 200, 403)
    assert (assistant, addresses) == (404, {HOST})
    assert (code, capsys.readouterr().out.split()[0]) == (0, url)
    assert others == []
    assert process.returncode == 0
    assert "Traceback" not in err


@pytest.mark.slow
def test_optunas_dashboard_answers_only_its_own_hosts_and_pages(stores: Path) -> None:
    """Another web page can neither read nor change studies; a taken port gives the next one; SIGTERM ends it."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving(stores, "data=digits", "--optuna", "--port", str(port)) as (process, line):
            url, addresses = line.split()[0], listening(process)
            answers = [
                status(url, "/api/studies", **headers)
                for headers in (
                    {},
                    {"Origin": f"http://{urlsplit(url).netloc}"},
                    {"Host": "evil.example"},
                    {"Origin": "http://evil.example"},
                )
            ]
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=SECONDS)

    assert urlsplit(url).port != port
    assert answers == [200, 200, 403, 403]
    assert addresses == {HOST}
    assert process.returncode == 0
    assert "Traceback" not in err


def test_another_address_works_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """The dashboard has no password, so `--host 0.0.0.0` warns; a browser may use the machine's name."""
    args = CommandArgs(flags={"--host": "0.0.0.0", "--port": 0})

    with ui._listen(args) as listener:
        hosts = ui._allowed_hosts(listener, args)

    assert f"{socket.gethostname()}:{hosts[0].split(':')[1]}" in hosts
    assert "0.0.0.0" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("key", "flag"), [("tracking.uri", "--no-browser"), ("study.storage", "--optuna")])
def test_a_password_is_neither_printed_nor_in_the_process_list(tmp_path: Path, key: str, flag: str) -> None:
    """Both dashboards on PostgreSQL, with the address from an environment variable."""
    with Postgres() as postgres:
        url = postgres.create_database("runs")
        if flag == "--optuna":
            open_for_sweep(url).close()
        else:
            MlflowTracker(url, "digits")
        words = [f"{key}=${{oc.env:MY_DB}}", "data=digits", flag, "--port", "0"]
        with serving(tmp_path, *words, MY_DB=url) as (process, line):
            answered = status(line.split()[0])
            command = " ".join(psutil.Process(process.pid).cmdline())
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=SECONDS)

    assert answered in (200, 302)
    assert children == []  # no second process has the address in its environment
    assert postgres.password not in line + err + command
    assert ":***@" in line


# ------------------------------------------------------------------------------------------------ it cannot start


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "0"], "no runs are logged here; run `python -m mnistexp sweep` first"),
        (["--optuna", "--port", "0"], "there is no such database; run `python -m mnistexp sweep`"),
        ([f"tracking.uri=http://{HOST}:1"], "no MLflow server answers there"),
        (["tracking=none"], "tracking=none: no run is logged"),
    ],
)
def test_without_a_store_it_makes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    """One sentence with what to type, exit code 2, and no empty database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    assert cli.main(["ui", "data=digits", *words]) == 2

    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--port", "70000"], "--port 70000"),
        (["--host", "no such host"], "--host no such host"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1"),
    ],
)
def test_a_wrong_address_is_one_sentence(
    stores: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    """Exit code 2, and the message names the option."""
    monkeypatch.chdir(stores)

    assert cli.main(["ui", "data=digits", "--optuna", *words]) == 2

    assert sentence in capsys.readouterr().err


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the extra, --optuna names what to install."""
    monkeypatch.setitem(sys.modules, "optuna_dashboard", None)

    assert cli.main(["ui", "data=digits", "--optuna"]) == 2

    assert "pip install 'mnistexp[dashboard]'" in capsys.readouterr().err
