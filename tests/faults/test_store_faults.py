"""A sweep whose databases, server or disk fail for a while, and two that start together."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Place, copied
from services import MlflowServer, Postgres, small_disk

pytest_plugins = ["fault_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="mounts file systems, and reads /proc"),
]


def test_servers_are_restarted(empty: Place, tmp_path: Path) -> None:
    """PostgreSQL, at once and after a while, and MLflow's server: the sweep goes on, and each run is logged once."""
    folder = tmp_path / "server"
    folder.mkdir()
    with Postgres() as postgres, MlflowServer(folder) as server:
        place = replace(empty, storage=postgres.create_database("studies"), tracking=server.url)
        running = place.sweep(4, **place.waiting(0, 1, 3))
        place.reached(0, running)
        postgres.restart()
        server.kill()
        place.let(0)
        running.says("Trials go on")
        place.reached(1, running)
        postgres.stop("immediate")
        place.let(1)
        running.says("trying again")
        postgres.start()
        place.reached(3, running)
        server.start()
        place.let(3)
        running.ends()

        assert "not in MLflow yet" not in running.out
        assert postgres.password not in running.out + running.err
        place.check(4)


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
    """All files of the user are on it: the sweep says so and waits; nothing is lost."""
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


# ------------------------------------------------------------------------------------------- two at once


def test_two_sweeps_on_fresh_databases(empty: Place) -> None:
    """Started in the same second they create the databases once, and run exactly the trials that were asked for."""
    for sweep in [empty.sweep(6), empty.sweep(6)]:
        sweep.ends()

    empty.check(6)
