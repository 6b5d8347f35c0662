"""Shared by the tests of faults: a user's folder, commands that run in it, and the invariants after any fault.

A fault happens in a study that has one finished trial, so that there is a best trial that it could damage. Trainings
wait at gates, so that the moment of a fault does not depend on the machine's speed. Workers train without TensorFlow
(see plant/scripted_trainer.py).
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import chdir, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import optuna
import psutil
from e2e.conftest import Folder
from optuna.trial import FrozenTrial
from runs import SCRIPTED
from services import wait_until

from mnistexp.cli import main
from mnistexp.storage.urls import sqlite_path
from mnistexp.study.database import reading
from mnistexp.study.study import trial_seed

HERE = Path(__file__).resolve().parent
PATIENCE = 240.0  # seconds for anything to happen: a start takes 10 on an idle machine, and this one may be busy
STUDY = "digits"
MARK = "FAULTS_MARK"  # names in its environment the test that a process belongs to

SPACE = ("search=none", "optimizer=sgd", "optimizer.learning_rate=interval(0.05, 0.3)", "model.hidden_units=[16]")
SMALL = ("trainer.epochs=3", "trainer.batch_size=32", "study/pruner=none", "study/sampler=random", "executor.workers=1")


@dataclass(frozen=True)
class Running:
    """A command under way, which writes to files."""

    process: subprocess.Popen[bytes]
    files: tuple[Path, Path]  # stdout and stderr

    @property
    def out(self) -> str:
        return self.files[0].read_text()

    @property
    def err(self) -> str:
        return self.files[1].read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    def says(self, text: str) -> Self:
        """Wait until it has written this."""

        def said() -> bool:
            assert text in self.out + self.err or self.process.poll() is None, f"ended without {text!r}:\n{self}"
            return text in self.out + self.err

        wait_until(said, PATIENCE, f"{text!r} from\n{self}")
        return self

    def send(self, number: signal.Signals) -> Self:
        """Send the process itself a signal, as `kill` does."""
        os.kill(self.pid, number)
        return self

    def press(self, number: signal.Signals) -> Self:
        """Send its whole group a signal, as a terminal or a batch system does."""
        os.killpg(self.pid, number)
        return self

    def ends(self, expect: int = 0) -> Self:
        """Wait for its end, which must be this exit code and without a traceback."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(PATIENCE)
        assert self.process.returncode == expect, f"exit code {self.process.returncode}, not {expect}:\n{self}"
        assert "Traceback" not in self.err, str(self)
        return self

    def __str__(self) -> str:
        return f"{self.out}\n--- stderr\n{self.err}"


@dataclass(frozen=True)
class Place(Folder):
    """A user's folder, where the stores are, and what was there before the fault."""

    storage: str = ""
    tracking: str = ""
    best: float = 0.0  # validation accuracy
    started: list[Running] = field(default_factory=list)  # every command, ended or not

    # ------------------------------------------------------------------------------------- what is typed

    def sweep(self, total: int, *words: str, strike: str = "", **environment: str) -> Running:
        """Start a sweep up to this many trials.

        Args:
            strike: where its process is struck: see planted.py.
            environment: of its workers: see plant/sitecustomize.py.
        """
        start = [str(HERE / "planted.py"), strike] if strike else ["-m", "mnistexp"]
        files = (self.gates / f"out{len(self.started)}", self.gates / f"err{len(self.started)}")
        with files[0].open("wb") as out, files[1].open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, *start, *self._command(total, *words)],
                cwd=self.path,
                env=self.variables() | SCRIPTED | environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # a process group of its own, as a terminal's
            )
        self.started.append(Running(process, files))
        return self.started[-1]

    def finish(self, total: int, *words: str) -> None:
        """Run the same command again without a fault, in this process, and check the invariants."""
        with patch.dict(os.environ, self.variables() | SCRIPTED), chdir(self.path):
            assert main(self._command(total, *words)) == 0
        self.check(total)

    def _command(self, total: int, *words: str) -> list[str]:
        stores = [f"study.storage={self.storage}"] if self.storage else []
        stores += [f"tracking.uri={self.tracking}"] if self.tracking else []
        return ["sweep", "data=digits", f"study.trials={total}", *SPACE, *SMALL, *stores, *words]

    # ------------------------------------------------------------------------------------- gates

    def waiting(self, *trials: int) -> dict[str, str]:
        """The environment in which these trials wait, before epoch 2 ends, until `let` is called."""
        faults = ",".join(f"wait@epoch2#{trial_seed(0, number)}" for number in trials)
        return {"MNISTEXP_PLANT": faults, "MNISTEXP_PLANT_GATES": str(self.gates)}

    @property
    def gates(self) -> Path:
        return Path(self.environment["HOME"])

    def let(self, *trials: int) -> None:
        """Let waiting trials go on."""
        for number in trials:
            (self.gates / str(trial_seed(0, number))).touch()

    def reached(self, number: int, running: Running) -> None:
        """Wait until a trial waits in epoch 2: epoch 1 was reported."""
        gate = self.gates / f"{trial_seed(0, number)}.waiting"

        def is_waiting() -> bool:
            assert running.process.poll() is None, f"ended before trial {number} waited:\n{running}"
            return gate.exists()

        wait_until(is_waiting, PATIENCE, f"trial {number} from\n{running}")

    # ------------------------------------------------------------------------------------- what there is

    def trials(self, study: str = STUDY) -> list[FrozenTrial]:
        """The study's trials, as Optuna has them."""
        # Closed, or a small disk can't be unmounted, nor a server stopped.
        with reading(self.storage or f"sqlite:///{self.path / 'optuna.db'}") as storage:
            return optuna.load_study(study_name=study, storage=storage).get_trials()

    def all_runs(self) -> list[Any]:
        """Every run of the study in MLflow, those that were deleted too."""
        from mlflow import MlflowClient
        from mlflow.entities import ViewType

        store = MlflowClient(self.tracking or f"sqlite:///{self.path / 'mlflow.db'}")
        experiment = store.get_experiment_by_name(STUDY)
        assert experiment is not None, f"MLflow has no experiment {STUDY}"
        return list(store.search_runs([experiment.experiment_id], "", ViewType.ALL, 1000))

    def processes(self) -> list[psutil.Process]:
        """Living processes that this test's commands started, and their descendants, wherever they went."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.environment[MARK] and process.status() != "zombie":
                    found.append(process)
        return found

    def workers(self) -> list[psutil.Process]:
        """Those of them that train."""
        with suppress(psutil.Error):
            return [process for process in self.processes() if "mnistexp.training.worker" in process.cmdline()]
        return []

    def nobody_is_left(self) -> None:
        """Wait until no process of this test's is left, whoever its parent was."""
        wait_until(lambda: not self.processes(), PATIENCE, f"the end of {self.processes()}")

    # ------------------------------------------------------------------------------------- what must hold

    def check(self, total: int) -> None:
        """Finished trials: all, once, in both stores, equal. RUNNING: none. Best: no worse. Leftovers: none."""
        trials, runs = self.trials(), self.all_runs()
        kept = [run for run in runs if run.info.lifecycle_stage == "active" and run.data.tags["kind"] == "trial"]
        finished = {int(run.data.tags["trial"]): run for run in kept if run.info.status != "KILLED"}

        assert [trial.number for trial in trials] == list(range(total))
        assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
        assert [run for run in runs if run.info.status == "RUNNING"] == []
        assert sorted(finished) == list(range(total))
        assert len([run for run in kept if run.info.status != "KILLED"]) == total
        for trial in trials:
            _check_one(trial, finished[trial.number])
        for run in kept:
            assert (run.data.tags["state"] == "INTERRUPTED") == (run.info.status == "KILLED")
        parents = [run.info.status for run in runs if run.data.tags.get("kind") == "sweep"]
        assert parents == ["FINISHED"]
        assert max(trial.value for trial in trials if trial.state.name == "COMPLETE") >= self.best
        self.check_files()
        self.nobody_is_left()

    def check_files(self) -> None:
        """SQLite finds its databases whole; nothing half made lies about, and no weights wait for anybody."""
        for address in (self.storage, self.tracking, f"sqlite:///{self.path / 'optuna.db'}"):
            path = sqlite_path(address) if address else self.path / "mlflow.db"
            if path is not None and path.exists():
                with closing(sqlite3.connect(path)) as connection:
                    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)], path
        left = [path for folder in (self.path, self.gates) for path in folder.rglob("*") if _is_half_made(path)]
        assert left == []

    def clear(self) -> None:
        """Kill what is left of a test that failed."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        for running in self.started:  # or Python complains of them in a later test
            running.process.wait(PATIENCE)


def _is_half_made(path: Path) -> bool:
    return path.suffix in (".new", ".part") or path.name.endswith(("-journal", ".weights.h5"))


def _check_one(trial: FrozenTrial, run: Any) -> None:
    """A trial and its run are the same, and the seed is the trial's own."""
    known, tags = trial.user_attrs["mnistexp"], run.data.tags
    assert {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}[trial.state.name] == run.info.status
    assert known["config"] == tags["mnistexp.config"]
    assert run.data.params["seed"] == str(trial_seed(0, trial.number))
    assert tags.get("reason", "") == trial.user_attrs.get("reason", "")[:500]
    for key, value in trial.params.items():
        assert run.data.params.get(key, str(value)) == str(value)
    if trial.state.name == "COMPLETE":
        assert run.data.metrics["val_accuracy"] == trial.value
        assert run.data.metrics["epochs"] == len(trial.intermediate_values)


def new_place(folder: Path, **more: Any) -> Place:
    """An empty place: a working folder, and a home with a state folder of its own."""
    work, home = folder / "work", folder / "home"
    for path in (work, home):
        path.mkdir(parents=True)
    environment = {"XDG_STATE_HOME": str(home / "state"), MARK: str(folder)}
    return Place(work, environment | {"HOME": str(home), "XDG_CACHE_HOME": cache()}, **more)


def cache() -> str:
    """The folder of compiled epochs, which all tests may share: each start is a second faster with it."""
    import platformdirs

    return str(Path(platformdirs.user_cache_dir("mnistexp")).parent)


def copied(place: Place, folder: Path) -> Place:
    """A copy of a place in another folder, with MLflow's absolute paths changed to it."""
    copy = new_place(folder)
    shutil.copytree(place.path, copy.path, dirs_exist_ok=True)
    moved = (str(place.path), str(copy.path))
    with closing(sqlite3.connect(copy.path / "mlflow.db")) as connection, connection:
        connection.execute("UPDATE experiments SET artifact_location = replace(artifact_location, ?, ?)", moved)
        connection.execute("UPDATE runs SET artifact_uri = replace(artifact_uri, ?, ?)", moved)
    return replace(copy, best=place.best)
