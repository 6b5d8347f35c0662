"""What does a sweep in plain Optuna lose or leave behind under faults? All faults, both databases, both scripts.

python experiments/soak/plain_optuna.py                  # 20 to 25 minutes on two cores
python experiments/soak/plain_optuna.py --only kill_one  # one kind of fault again: replaces its rows of the results

Runs plain_sweep.py in four processes, with and without Optuna's remedies, and injects faults at random (seeded) times.
Dead processes are started again until the total is reached. Both stores are compared with the journal of the trainings.
Prints a table, and writes results/plain_optuna.json and .md. README.md explains the counts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import platform
import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import optuna
import plain_sweep
from mlflow import MlflowClient
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import create_engine, text
from sqlalchemy.exc import SQLAlchemyError

# The PostgreSQL and MLflow servers of the tests. tests/ is not a package, because pytest adds it to the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from services import MlflowServer, Postgres, find_postgres

HERE = Path(__file__).parent
PROCESSES = 4
CELL_SECONDS = 180  # timeout of a cell
MOST_STARTS = 40
STOP_SECONDS, LOCK_SECONDS, DOWN_SECONDS = 8, 30, 10


@dataclass
class Cell:
    """One storage, one script, one kind of fault: its services, its processes and how they ended."""

    fault: str
    storage: str
    remedies: bool
    trials: int
    folder: Path
    url: str
    tracking: str
    server: MlflowServer
    postgres: Postgres | None
    rng: random.Random
    running: dict[subprocess.Popen[bytes], Path] = field(default_factory=dict)  # process: file of its stderr
    endings: list[tuple[int, str]] = field(default_factory=list)  # exit code, stderr
    starts: int = 0
    idle_deaths: int = 0  # failed processes in a row that trained nothing
    lines_seen: int = 0

    @property
    def name(self) -> str:
        return f"{self.fault}_{self.storage}_{'remedies' if self.remedies else 'plain'}"

    @property
    def journal(self) -> list[dict[str, Any]]:
        return plain_sweep.Journal(self.folder / "trainings.jsonl").read()

    def start(self) -> None:
        """Start one more process of the script."""
        self.starts += 1
        command = [sys.executable, str(HERE / "plain_sweep.py"), "--storage", self.url, "--tracking", self.tracking]
        command += ["--name", self.name, "--trials", str(self.trials), "--processes", str(PROCESSES)]
        command += ["--journal", str(self.folder / "trainings.jsonl"), "--fault", self.fault]
        command += ["--remedies"] if self.remedies else []
        errors = self.folder / f"stderr-{self.starts}"
        with errors.open("wb") as err:
            process = subprocess.Popen(
                command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err
            )
        self.running[process] = errors

    def reap(self) -> int:
        """Remove ended processes from the list. Returns: how many of them failed or were killed."""
        ended = [process for process in self.running if process.poll() is not None]
        lines = len(self.journal)
        for process in ended:
            self.endings.append((process.returncode, self.running.pop(process).read_text()))
        failed = len([process for process in ended if process.returncode > 0])
        self.idle_deaths = 0 if lines > self.lines_seen else self.idle_deaths + failed
        self.lines_seen = lines
        return len([process for process in ended if process.returncode != 0])

    def at_work(self) -> bool:
        """Whether each process has begun a training, so that a fault does not occur during its imports."""
        trained = {line["process"] for line in self.journal if line["event"] == "begun"}
        return bool(self.running) and all(process.pid in trained for process in self.running)

    def victim(self) -> subprocess.Popen[bytes]:
        """Return a random process that has begun a training, not one that is still importing."""
        trained = {line["process"] for line in self.journal if line["event"] == "begun"}
        living = list(self.running)
        return self.rng.choice([process for process in living if process.pid in trained] or living)


# ------------------------------------------------------------------------------------------ the faults


def kill_one(cell: Cell) -> None:
    cell.victim().send_signal(signal.SIGKILL)


def kill_all(cell: Cell) -> None:
    for process in cell.running:
        process.send_signal(signal.SIGKILL)


def sigterm(cell: Cell) -> None:
    cell.victim().send_signal(signal.SIGTERM)


def sigstop(cell: Cell) -> None:
    """Suspend one process for longer than the grace period, like a laptop with a closed lid."""
    process = cell.victim()
    process.send_signal(signal.SIGSTOP)
    time.sleep(STOP_SECONDS)
    process.send_signal(signal.SIGCONT)


def sqlite_lock(cell: Cell) -> None:
    """Lock the database for half a minute, like a backup or a file browser."""
    connection = sqlite3.connect(cell.folder / "optuna.db", timeout=30, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    time.sleep(LOCK_SECONDS)
    connection.execute("ROLLBACK")
    connection.close()


def postgres_restart(cell: Cell) -> None:
    assert cell.postgres is not None
    cell.postgres.stop("fast")
    time.sleep(2)
    cell.postgres.start()


def mlflow_down(cell: Cell) -> None:
    cell.server.kill()
    time.sleep(DOWN_SECONDS)
    cell.server.start()


@dataclass(frozen=True)
class Fault:
    """A kind of fault: its title, how it is injected and how often. Without `inject`, the script itself causes it."""

    title: str
    inject: Callable[[Cell], None] | None = None
    times: int = 0
    storages: tuple[str, ...] = ("sqlite", "postgresql")


FAULTS = {
    "none": Fault("no fault"),
    "kill_one": Fault("kill -9 one process, twice", kill_one, 2),
    "kill_all": Fault("kill -9 all four, twice", kill_all, 2),
    "sigterm": Fault("SIGTERM to one process, twice", sigterm, 2),
    "sigstop": Fault(f"one process stopped for {STOP_SECONDS} s, twice", sigstop, 2),
    "sqlite_lock": Fault(f"database locked for {LOCK_SECONDS} s", sqlite_lock, 1, ("sqlite",)),
    "postgres_restart": Fault("database server restarted, twice", postgres_restart, 2, ("postgresql",)),
    "mlflow_down": Fault(f"MLflow's server killed, back after {DOWN_SECONDS} s and its start", mlflow_down, 1),
    "fresh": Fault("four started at once on empty databases"),
    "nan": Fault("NaN in every tenth training"),
    "exception": Fault("an exception in every tenth training"),
}


# ------------------------------------------------------------------------------------------ one sweep


def trials_of(cell: Cell) -> list[FrozenTrial]:
    """Return the study's trials; an empty list if the fault left no study."""
    try:
        storage = plain_sweep.open_storage(cell.url, remedies=False)
        found = optuna.load_study(study_name=cell.name, storage=storage).trials
        storage.engine.dispose()
    except (KeyError, SQLAlchemyError, optuna.exceptions.StorageInternalError):
        return []
    return found


def reached(cell: Cell) -> bool:
    """Whether the total is reached. Uses SQL, because Optuna's storage would write to a database being created."""
    engine = create_engine(cell.url)
    query = (
        "SELECT count(*) FROM trials JOIN studies USING (study_id) "
        "WHERE study_name = :name AND state IN ('COMPLETE', 'PRUNED')"
    )
    try:
        with engine.connect() as connection:
            return int(connection.execute(text(query), {"name": cell.name}).scalar_one()) >= cell.trials
    except SQLAlchemyError:
        return False  # the tables are missing or incomplete
    finally:
        engine.dispose()


def tend(cell: Cell, deadline: float) -> bool:
    """Restart dead processes, or all if all ended too early. Returns: whether the sweep continues."""
    ended = len(cell.running)
    bad = cell.reap()
    ended -= len(cell.running)
    if ended and not reached(cell) and cell.idle_deaths < 2 * PROCESSES and cell.starts < MOST_STARTS:
        # A process that finished its share is only replaced if it was the last one and trials are missing.
        for _ in range(bad if cell.running else PROCESSES):
            cell.start()
    if time.monotonic() > deadline:
        for process in cell.running:
            process.kill()
            process.wait()
        cell.reap()
    return bool(cell.running)


def sweep(cell: Cell) -> None:
    """Run one sweep to its end, with its faults at random times in the first half."""
    fault = FAULTS[cell.fault]
    deadline = time.monotonic() + CELL_SECONDS
    due = sorted(cell.rng.uniform(0.1, 0.5) * cell.trials for _ in range(fault.times))
    for _ in range(PROCESSES):
        cell.start()
    while tend(cell, deadline):
        begun = sum(line["event"] == "begun" for line in cell.journal)
        if due and fault.inject is not None and begun >= due[0] and cell.at_work():
            due.pop(0)
            time.sleep(cell.rng.uniform(0, 0.6))  # at any point of a training, not only at its start
            cell.reap()
            if cell.running:
                fault.inject(cell)
        time.sleep(0.1)
    if cell.remedies and any(trial.state == TrialState.RUNNING for trial in trials_of(cell)):
        time.sleep(plain_sweep.GRACE_SECONDS + 1)  # one more start fails stale trials: the best case of the remedies
        cell.start()
        while cell.running and time.monotonic() < deadline + 30:
            cell.reap()
            time.sleep(0.1)


# ------------------------------------------------------------------------------------------ what is left


def runs_of(cell: Cell) -> list[Any]:
    """Return MLflow's runs of this sweep; an empty list if the fault left no experiment."""
    try:
        client = MlflowClient(cell.tracking)
        experiment = client.get_experiment_by_name(cell.name)
    except (mlflow.MlflowException, SQLAlchemyError):
        return []
    return list(client.search_runs([experiment.experiment_id], max_results=5000)) if experiment else []


def lost(ended: list[dict[str, Any]], trials: list[FrozenTrial], runs: list[Any]) -> dict[str, int]:
    """Count trainings with a valid end by the stores that have them in this state."""
    status = {run.data.tags.get("training"): run.info.status for run in runs}
    names = {
        (True, True): "both",
        (True, False): "only_optuna",
        (False, True): "only_mlflow",
        (False, False): "neither",
    }
    found = Counter(dict.fromkeys(names.values(), 0))
    claimed: set[int] = set()  # Optuna has a trial number only once, so it does not have a second training
    for line in ended:
        value = line["value"]  # None: pruned
        if value is not None and not math.isfinite(value):
            continue
        number = line["trial"]
        trial = trials[number] if number < len(trials) and number not in claimed else None
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        in_optuna = trial is not None and trial.state == state and (value is None or trial.value == value)
        if in_optuna:
            claimed.add(number)
        in_mlflow = status.get(line["training"]) == ("KILLED" if value is None else "FINISHED")
        found[names[in_optuna, in_mlflow]] += 1
    return dict(found)


def disagree(trials: list[FrozenTrial], runs: list[Any]) -> int:
    """Count COMPLETE trials without exactly one FINISHED run, and FINISHED runs of a trial that is not COMPLETE."""
    finished = Counter(int(run.data.tags["trial"]) for run in runs if run.info.status == "FINISHED")
    complete = {trial.number for trial in trials if trial.state == TrialState.COMPLETE}
    return sum(finished[number] != 1 for number in complete) + sum(
        count for number, count in finished.items() if number not in complete
    )


def count(cell: Cell) -> dict[str, Any]:
    """Return the counts of one sweep, from both stores, the journal and the exit codes."""
    trials, runs = trials_of(cell), runs_of(cell)
    ended = [line for line in cell.journal if line["event"] == "ended"]
    states = Counter(trial.state.name for trial in trials)
    statuses = Counter(run.info.status for run in runs)
    done = states["COMPLETE"] + states["PRUNED"]
    where = lost(ended, trials, runs)
    tracebacks = [errors for code, errors in cell.endings if code > 0 and "Traceback" in errors]
    return {
        "asked": cell.trials,
        "optuna": dict(states),
        "mlflow": dict(statuses),
        "over": max(0, done - cell.trials),
        "short": max(0, cell.trials - done),
        "lost": sum(where.values()) - where["both"],
        "where": where,
        "trained_twice": len(ended) - len({json.dumps(line["params"], sort_keys=True) for line in ended}),
        "disagree": disagree(trials, runs),
        "starts": cell.starts,
        "died_with_traceback": len(tracebacks),
        "errors": dict(Counter(error_of(errors) for errors in tracebacks)),
        "heartbeat_threads_died": sum(errors.count("Exception in thread") for _, errors in cell.endings),
    }


def error_of(errors: str) -> str:
    """Return the exception class at the end of a traceback, without its message, which contains paths."""
    names = re.findall(r"^([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Pruned|Exit|Timeout))\b", errors, re.MULTILINE)
    return names[-1].rpartition(".")[2] if names else "unknown"


# ------------------------------------------------------------------------------------------ all together


def prepare(cell: Cell) -> None:
    """Create both stores, as a careful user does. The fault `fresh` tests their creation, so it skips this."""
    if cell.fault == "fresh":
        return
    storage = plain_sweep.open_storage(cell.url, remedies=False)
    plain_sweep.open_study(storage, cell.name)
    storage.engine.dispose()
    MlflowClient(cell.tracking).create_experiment(cell.name)


def measure(
    fault: str, storage: str, remedies: bool, options: argparse.Namespace, services: Services
) -> dict[str, Any]:
    """Measure one cell of the table, on its own database."""
    with TemporaryDirectory(prefix="plain-optuna-") as folder:
        url, tracking = f"sqlite:///{folder}/optuna.db", services.server.url
        if fault == "fresh":  # the tables of the server already exist
            tracking = f"sqlite:///{folder}/mlflow.db"
        name = f"{fault}_{'remedies' if remedies else 'plain'}"
        if storage == "postgresql":
            assert services.postgres is not None
            url = services.postgres.create_database(f"{name}_optuna")
            tracking = services.postgres.create_database(f"{name}_mlflow") if fault == "fresh" else tracking
        rng = random.Random(f"{options.seed} {storage} {name}")
        places = (options.trials, Path(folder), url, tracking, services.server, services.postgres)
        cell = Cell(fault, storage, remedies, *places, rng)
        started = time.monotonic()
        try:
            prepare(cell)
            sweep(cell)
            facts = count(cell)
        finally:
            for process in cell.running:
                process.kill()
                process.wait()
        seconds = round(time.monotonic() - started, 1)
        return {"fault": fault, "storage": storage, "remedies": remedies, **facts, "seconds": seconds}


@dataclass(frozen=True)
class Services:
    """Servers that all cells share: MLflow's, and PostgreSQL if it is installed."""

    server: MlflowServer
    postgres: Postgres | None


def measure_all(options: argparse.Namespace) -> list[dict[str, Any]]:
    measured = []
    with TemporaryDirectory(prefix="plain-optuna-mlflow-") as folder, MlflowServer(Path(folder)) as server:
        postgres = Postgres() if find_postgres() else None
        try:
            if postgres is not None:
                postgres.start()
            for fault in options.only or FAULTS:
                for storage in FAULTS[fault].storages:
                    for remedies in (False, True) if storage == "sqlite" or postgres else ():
                        row = measure(fault, storage, remedies, options, Services(server, postgres))
                        print(json.dumps(row), file=sys.stderr, flush=True)
                        measured.append(row)
        finally:
            if postgres is not None:
                postgres.__exit__(None, None, None)
    return measured


def summary(measured: list[dict[str, Any]]) -> str:
    """Return the table of errors after each fault, by database and script; a dash if there are none."""
    columns = [(storage, remedies) for storage in ("sqlite", "postgresql") for remedies in (False, True)]
    titles = [f"{storage}, {'remedies' if remedies else 'plain'}" for storage, remedies in columns]
    lines = ["| fault | " + " | ".join(titles) + " |", "| --- " * 5 + "|"]
    rows = {(row["fault"], row["storage"], row["remedies"]): wrong(row) for row in measured}
    for fault in {row["fault"]: None for row in measured}:
        cells = [rows.get((fault, *column), "") for column in columns]
        lines.append(f"| {FAULTS[fault].title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def wrong(row: dict[str, Any]) -> str:
    counts = {
        "too many": row["over"],
        "missing": row["short"],
        "lost": row["lost"],
        "trained twice": row["trained_twice"],
        "disagree": row["disagree"],
        "RUNNING in Optuna": row["optuna"].get("RUNNING", 0),
        "WAITING in Optuna": row["optuna"].get("WAITING", 0),
        "RUNNING in MLflow": row["mlflow"].get("RUNNING", 0),
        "tracebacks": row["died_with_traceback"],
        "more starts": max(0, row["starts"] - PROCESSES),
    }
    return ", ".join(f"{number} {what}" for what, number in counts.items() if number) or "–"


HEAD = (
    "| fault | database | script | COMPLETE + PRUNED of {asked} | MLflow FINISHED + KILLED | lost | trained twice "
    "| stores disagree | left RUNNING (WAITING) | MLflow left RUNNING | starts, with traceback |"
)


def table(measured: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """Return both tables as Markdown, below a line about machine and versions."""
    lines = [", ".join(f"{key} {value}" for key, value in about.items()), "", summary(measured)]
    lines += [HEAD.format(asked=about["trials"]), "| --- | --- | --- " + "| ---: " * 8 + "|"]
    for row in measured:
        optuna_has, mlflow_has = Counter(row["optuna"]), Counter(row["mlflow"])
        done = optuna_has["COMPLETE"] + optuna_has["PRUNED"]
        waiting = f" ({optuna_has['WAITING']})" if optuna_has["WAITING"] else ""
        cells = [
            *(FAULTS[row["fault"]].title, row["storage"], "remedies" if row["remedies"] else "plain"),
            f"{optuna_has['COMPLETE']} + {optuna_has['PRUNED']} = {done}",
            f"{mlflow_has['FINISHED']} + {mlflow_has['KILLED']}",
            *(row["lost"], row["trained_twice"], row["disagree"]),
            *(f"{optuna_has['RUNNING']}{waiting}", mlflow_has["RUNNING"]),
            f"{row['starts']}, {row['died_with_traceback']}",
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def merged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the earlier rows, replaced by those that were measured again."""
    rows = {(row["fault"], row["storage"], row["remedies"]): row for row in [*before, *now]}
    return sorted(rows.values(), key=lambda row: list(FAULTS).index(row["fault"]))


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers depend on, without the machine's name and paths."""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "load before": round(os.getloadavg()[0], 2),
        "trials": options.trials,
        "processes": PROCESSES,
        "seed": options.seed,
        "python": platform.python_version(),
        **{name: version(name) for name in ("optuna", "mlflow", "sqlalchemy")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=40, help="of one sweep, in total")
    parser.add_argument("--seed", type=int, default=2026, help="of the moments at which faults happen")
    parser.add_argument("--only", nargs="+", choices=FAULTS, help="some faults again; the other rows stay")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that the services end with this process
    if find_postgres() is None:
        print("no PostgreSQL here (Debian: apt-get install postgresql): its cells are left out", file=sys.stderr)
    about = machine(options)
    measured = measure_all(options)
    print(table(measured, about))
    results = HERE / "results" / "plain_optuna.json"
    if options.only and results.exists():
        measured = merged(json.loads(results.read_text())["cells"], measured)
    results.parent.mkdir(exist_ok=True)
    results.write_text(json.dumps({"about": about, "cells": measured}, indent=1) + "\n")
    results.with_suffix(".md").write_text(table(measured, about))


if __name__ == "__main__":
    main()
