"""A sweep whose databases, server or disk fail for a while, and two that start together."""

from __future__ import annotations

import errno
import functools
import http.server
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Place, copied
from services import HOST, MlflowServer, Postgres, small_disk

pytest_plugins = ["fault_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="mounts file systems, and reads /proc"),
]

AWAY = 8.0  # seconds: longer than SQLite waits for a lock, and than the first pause of the upload queue


# ------------------------------------------------------------------------------------------- databases and servers


def test_optunas_database_is_locked(place: Place) -> None:
    """The sweep says so and waits; nothing is lost, and the user need not do anything."""
    running = place.sweep(3, **place.waiting(1))
    place.reached(1, running)

    with closing(sqlite3.connect(place.path / "optuna.db", timeout=60)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        place.let(1)
        running.says("database is locked; trying again")
        time.sleep(AWAY)
        connection.rollback()
    running.ends()

    assert running.err.count("trying again") == 1
    place.check(3)


def test_the_mlflow_server_is_restarted(place: Place, tmp_path: Path) -> None:
    """Trials go on meanwhile; when it is back it gets what it missed, in the same session."""
    folder = tmp_path / "server"
    folder.mkdir()
    with MlflowServer(folder) as server:
        place = replace(place.on("served"), tracking=server.url)
        running = place.sweep(4, **place.waiting(1, 3))
        place.reached(1, running)

        server.kill()
        place.let(1)
        running.says("Trials go on")
        place.reached(3, running)
        server.start()
        place.let(3)
        running.ends()

        assert "not in MLflow yet" not in running.out
        place.check(4)


def test_postgresql_is_restarted(empty: Place, tmp_path: Path) -> None:
    """With the study and MLflow's server on it: restarted at once, then away for a while; the sweep goes on."""
    folder = tmp_path / "server"
    folder.mkdir()
    with Postgres() as postgres, MlflowServer(folder, postgres.create_database("mlflow")) as server:
        place = replace(empty, storage=postgres.create_database("studies"), tracking=server.url)
        running = place.sweep(3, **place.waiting(0, 1))
        place.reached(0, running)
        postgres.restart()
        place.let(0)
        place.reached(1, running)
        postgres.stop("immediate")
        place.let(1)
        running.says("trying again")
        postgres.start()
        running.ends()

        assert postgres.password not in running.out + running.err
        place.check(3)


# ------------------------------------------------------------------------------------------- full disks


def _written(file: int) -> bool:
    """Write one block more; False where there is no room."""
    try:
        return os.write(file, bytes(4096)) > 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return False


@contextmanager
def filled(disk: Path) -> Iterator[None]:
    """Have no byte left on a disk while the block runs."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while _written(file.fileno()):
            pass
    try:
        yield
    finally:
        filler.unlink()


def test_disk_full_while_logging(place: Place) -> None:
    """MLflow's database can't grow: trials go on, and their runs are logged when there is room, in the same session."""
    with small_disk(16) as disk:
        shutil.move(place.path / "mlflow.db", disk)
        place = replace(place, tracking=f"sqlite:///{disk / 'mlflow.db'}")
        running = place.sweep(4, **place.waiting(1, 3))
        place.reached(1, running)

        with filled(disk):
            place.let(1)
            running.says("Trials go on")
            place.reached(3, running)
        place.let(3)
        running.ends()

        assert "not in MLflow yet" not in running.out
        place.check(4)


def test_the_studys_disk_is_full_for_a_while(begun: Place, tmp_path: Path) -> None:
    """Everything of the user's lies on it: the driver says so and waits; nothing is lost."""
    with small_disk(24) as disk:
        place = copied(begun, disk)
        place = replace(place, environment={**place.environment, "HOME": str(tmp_path)})  # gates take room too
        try:
            running = place.sweep(3, **place.waiting(1))
            place.reached(1, running)

            with filled(disk):
                place.let(1)
                running.says("trying again")
            running.ends()

            place.check(3)
        finally:
            place.clear()


@contextmanager
def mirror(folder: Path) -> Iterator[str]:
    """A web server with a folder's files: its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((HOST, 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_disk_full_while_downloading(place: Place, mnist_folder: Path) -> None:
    """It says what has no room, and leaves no half of a file; with room the same command does it all."""
    conf = place.gates / "conf"
    (conf / "data").mkdir(parents=True)
    place = place.on("mirrored")
    words = ("--config-dir", str(conf), "trainer.max_steps=20")
    with small_disk(4) as disk, mirror(mnist_folder) as address:
        (conf / "data" / "mirrored.yaml").write_text(f"defaults: [mnist, _self_]\nmirrors: ['{address}']\n")

        refused = place.sweep(1, *words, data="mirrored", XDG_CACHE_HOME=str(disk)).ends(2)
        left = [path.name for path in disk.rglob("*.gz*")]
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        place.sweep(1, *words, data="mirrored", XDG_CACHE_HOME=str(disk)).ends()

        assert refused.err.startswith("mnistexp: ")
        assert "/mnist can't be written: No space left on device" in refused.err
        assert left == []
        assert len([path for path in disk.rglob("*") if path.suffix == ".gz"]) == 4
        assert not list(disk.rglob("*.part"))
    place.check(1)


# ------------------------------------------------------------------------------------------- two at once


@pytest.mark.parametrize("server", [False, True], ids=["SQLite", "PostgreSQL"])
def test_two_sweeps_on_fresh_databases(empty: Place, server: bool) -> None:
    """Started in the same second they create the databases once, and run exactly the trials that were asked for."""
    with ExitStack() as stack:
        place = empty
        if server:
            postgres = stack.enter_context(Postgres())
            studies, runs = (postgres.create_database(name) for name in ("studies", "mlflow"))
            place = replace(empty, storage=studies, tracking=runs)
        for sweep in [place.sweep(6), place.sweep(6)]:
            sweep.ends()

        assert sorted(place.heartbeats()) == [0, 1]
        place.check(6)
