"""Shared by the tests of faults: a user's folder, commands that run in it, and the invariants after any fault.

A fault happens in a study that has one finished trial, so that there is a best trial that it could damage. Trainings
wait at gates, so that the moment of a fault does not depend on the machine's speed. Workers train without TensorFlow
(see plant/scripted_trainer.py), unless a test sets MNISTEXP_SCRIPTED="".
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

import optuna
import psutil
from e2e.conftest import Folder
from optuna.trial import FrozenTrial
from runs import SCRIPTED
from services import wait_until

from mnistexp.errors import StoreError
from mnistexp.storage.urls import sqlite_path
from mnistexp.study.database import reading
from mnistexp.study.lease import PREFIX
from mnistexp.study.study import trial_seed
from mnistexp.study.trial_attrs import PROCESS

HERE = Path(__file__).resolve().parent
PATIENCE = 240.0  # seconds for anything to happen: a start takes 10 on an idle machine, and this one may be busy
MARK = "FAULTS_MARK"  # names in its environment the test that a process belongs to

SPACE = ("search=none", "optimizer=sgd", "optimizer.learning_rate=interval(0.05, 0.3)", "model.hidden_units=[16]")
SMALL = ("trainer.epochs=3", "trainer.batch_size=32", "study/pruner=none", "study/sampler=random", "executor.workers=1")


class Running:
    """A command under way. Its lines are read as they come, so that it never waits for a reader."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process, self.out, self.err = process, "", ""
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [self._read(process.stdout, "out"), self._read(process.stderr, "err")]

    def _read(self, stream: IO[str], name: str) -> threading.Thread:
        def read() -> None:
            with stream:
                for line in stream:
                    setattr(self, name, getattr(self, name) + line)

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

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
        self.join()
        assert self.process.returncode == expect, f"exit code {self.process.returncode}, not {expect}:\n{self}"
        assert "Traceback" not in self.err, str(self)
        return self

    def join(self) -> None:
        """Wait for the last of what an ended process wrote."""
        for reader in self._readers:
            reader.join(10)

    def __str__(self) -> str:
        return f"{self.out}\n--- stderr\n{self.err}"


@dataclass(frozen=True)
class Place(Folder):
    """A user's folder, where the stores are, and what was there before the fault."""

    storage: str = ""
    tracking: str = ""
    study: str = "digits"
    best: float = 0.0  # validation accuracy
    started: list[Running] = field(default_factory=list)  # every command, ended or not

    def on(self, study: str) -> Place:
        """The same place with another study."""
        return replace(self, study=study, best=0.0)

    # ------------------------------------------------------------------------------------- what is typed

    def sweep(self, total: int, *words: str, data: str = "digits", strike: str = "", **environment: str) -> Running:
        """Start a sweep up to this many trials.

        Args:
            strike: where its process is struck: see planted.py.
            environment: of its workers: see plant/sitecustomize.py. Their trainer is scripted, unless
                MNISTEXP_SCRIPTED is empty.
        """
        stores = [f"study.storage={self.storage}"] if self.storage else []
        stores += [f"tracking.uri={self.tracking}"] if self.tracking else []
        names = [f"data={data}", f"study.name={self.study}", f"study.trials={total}"]
        start = [str(HERE / "planted.py"), strike] if strike else ["-m", "mnistexp"]
        process = subprocess.Popen(
            [sys.executable, *start, "sweep", *names, *SPACE, *SMALL, *stores, *words],
            cwd=self.path,
            env=self.variables() | SCRIPTED | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a process group of its own, as a terminal's
        )
        self.started.append(Running(process))
        return self.started[-1]

    def finish(self, total: int, *words: str) -> Running:
        """Run the same command again, without a fault, and check the invariants."""
        resumed = self.sweep(total, *words).ends()
        assert f"all {total} trials are done" in resumed.out
        self.check(total)
        return resumed

    # ------------------------------------------------------------------------------------- gates

    def waiting(self, *trials: int, epoch: int = 2) -> dict[str, str]:
        """The environment in which these trials wait, before this epoch ends, until `let` is called."""
        faults = ",".join(f"wait@epoch{epoch}#{trial_seed(0, number)}" for number in trials)
        return {"MNISTEXP_PLANT": faults, "MNISTEXP_PLANT_GATES": str(self.gates)}

    @property
    def gates(self) -> Path:
        return Path(self.environment["HOME"])

    def let(self, *trials: int) -> None:
        """Let waiting trials go on."""
        for number in trials:
            (self.gates / str(trial_seed(0, number))).touch()

    def reached(self, number: int, running: Running, epoch: int = 1) -> None:
        """Wait until a trial has reported this epoch, so that it waits in the next."""

        def reported() -> bool:
            assert running.process.poll() is None, f"ended before epoch {epoch} of trial {number}:\n{running}"
            found: list[FrozenTrial] = []
            with suppress(KeyError, StoreError):  # there may be no study yet, nor a database
                found = [trial for trial in self.trials(self.study) if trial.number == number]
            return bool(found) and epoch in found[0].intermediate_values and found[0].state.name == "RUNNING"

        wait_until(reported, PATIENCE, f"epoch {epoch} of trial {number} from\n{running}")

    # ------------------------------------------------------------------------------------- what there is

    def trials(self, study: str) -> list[FrozenTrial]:
        """The study's trials, as Optuna has them."""
        return self._looked(study, lambda found: found.get_trials())

    def states(self) -> list[str]:
        """The trials' states, by their numbers."""
        return [trial.state.name for trial in self.trials(self.study)]

    def heartbeats(self) -> dict[int, float]:
        """When each of the study's processes has last renewed its lease."""
        entries = self._looked(self.study, lambda found: found.user_attrs)
        names = [name for name in entries if name.startswith(PREFIX)]
        return {int(name.removeprefix(PREFIX)): entries[name]["heartbeat"] for name in names}

    def _looked(self, study: str, look: Callable[[optuna.Study], Any]) -> Any:
        # Closed, or a small disk can't be unmounted, nor a server stopped.
        with reading(self.storage or f"sqlite:///{self.path / 'optuna.db'}") as storage:
            return look(optuna.load_study(study_name=study, storage=storage))

    def all_runs(self) -> list[Any]:
        """Every run of the study in MLflow, those that were deleted too."""
        from mlflow import MlflowClient
        from mlflow.entities import ViewType

        store = MlflowClient(self.tracking or f"sqlite:///{self.path / 'mlflow.db'}")
        experiment = store.get_experiment_by_name(self.study)
        assert experiment is not None, f"MLflow has no experiment {self.study}"
        return list(store.search_runs([experiment.experiment_id], "", ViewType.ALL, 1000))

    def owner(self, number: int) -> int:
        """The number of the process that a trial belongs to."""
        return int(self.trials(self.study)[number].user_attrs[PROCESS])

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
        trials, runs = self.trials(self.study), self.all_runs()
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
            running.join()


def _is_half_made(path: Path) -> bool:
    return path.suffix in (".new", ".part") or path.name.endswith(("-journal", ".weights.h5"))


def _check_one(trial: FrozenTrial, run: Any) -> None:
    """A trial and its run are the same, and the seed is the trial's own."""
    known, tags = trial.user_attrs["mnistexp"], run.data.tags
    assert {"COMPLETE": "FINISHED", "PRUNED": "FINISHED", "FAIL": "FAILED"}[trial.state.name] == run.info.status
    assert known["seed"] == trial_seed(0, trial.number)
    assert known["config"] == tags["mnistexp.config"]
    assert run.data.params["seed"] == str(known["seed"])
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
