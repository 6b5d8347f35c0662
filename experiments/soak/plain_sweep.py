"""A sweep in plain Optuna: `study.optimize` in several processes, MLflow's client in the objective.

python experiments/soak/plain_sweep.py --storage sqlite:///optuna.db --tracking http://127.0.0.1:5000 \
    --trials 40 --processes 4 --journal trainings.jsonl [--remedies]

Start it once per process. With --remedies it uses all that Optuna has against faults: heartbeats, retries of stale
trials, a limit on the study's total, `catch`. It also turns SIGTERM into KeyboardInterrupt, which Optuna handles.
The journal is for the experiment only: both stores are compared with it, and neither uses it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import time
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
import optuna
from mlflow import MlflowClient
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState

EPOCHS = 5
EPOCH_SECONDS = 0.1
HEARTBEAT_SECONDS, GRACE_SECONDS = 1, 2  # as long as four trainings; long trainings would need minutes
DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class Journal:
    """A record of the trainings: one JSON line per event, appended in one write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **event: Any) -> None:
        file = os.open(self.path, os.O_APPEND | os.O_CREAT | os.O_WRONLY)
        try:
            # The leading newline separates it from a partial line: a SIGKILL can interrupt a write at each page.
            os.write(file, f"\n{json.dumps(event)}\n".encode())
        finally:
            os.close(file)

    def read(self) -> list[dict[str, Any]]:
        """Return the events without partial lines: a training that was killed while it wrote its end has not ended."""
        events = []
        for line in self.path.read_text().splitlines() if self.path.exists() else ():
            with suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return events


# ------------------------------------------------------------------------------------------ the objective


def accuracies(rate: float, dropout: float) -> list[float]:
    """Return a simulated learning curve in [0, 1], one value per epoch."""
    best = 0.98 - 0.02 * (math.log10(rate) + 2.5) ** 2 - 0.1 * (dropout - 0.3) ** 2
    return [best * (1 - 0.5**epoch) for epoch in range(1, EPOCHS + 1)]


def train(trial: optuna.Trial, client: MlflowClient, run: str, fault: str) -> float:
    """Report and log every epoch. Returns: the last accuracy. Raises: TrialPruned."""
    rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    dropout = trial.suggest_float("dropout", 0.0, 1.0)
    client.log_param(run, "learning_rate", rate)
    client.log_param(run, "dropout", dropout)
    unlucky = trial.number % 10 == 3  # by number, because the sampler could avoid a region of the parameters
    for epoch, accuracy in enumerate(accuracies(rate, dropout)):
        time.sleep(EPOCH_SECONDS)
        if unlucky and fault == "exception":
            raise RuntimeError("out of memory")
        value = math.nan if unlucky and fault == "nan" else accuracy
        client.log_metric(run, "accuracy", value, step=epoch)
        trial.report(value, epoch)
        if trial.should_prune():
            raise optuna.TrialPruned
    return value


def objective_of(client: MlflowClient, experiment: str, journal: Journal, fault: str) -> Callable[..., float]:
    """Return the objective: a training in an MLflow run. The run is ended however the training ends."""

    def objective(trial: optuna.Trial) -> float:
        training = uuid.uuid4().hex
        journal.add(event="begun", training=training, trial=trial.number, process=os.getpid())
        run = client.create_run(experiment, tags={"training": training, "trial": str(trial.number)}).info.run_id
        try:
            value = train(trial, client, run, fault)
        except optuna.TrialPruned:
            journal.add(event="ended", training=training, trial=trial.number, params=trial.params, value=None)
            client.set_terminated(run, "KILLED")
            raise
        except BaseException:
            client.set_terminated(run, "FAILED")
            raise
        journal.add(event="ended", training=training, trial=trial.number, params=trial.params, value=value)
        client.set_terminated(run, "FINISHED")
        return value

    return objective


# ------------------------------------------------------------------------------------------ the study


def open_storage(url: str, remedies: bool) -> RDBStorage:
    """Open the database, with the recommended timeout (SQLite) or ping (PostgreSQL)."""
    sqlite = url.startswith("sqlite")
    engine = {"connect_args": {"timeout": 60}} if sqlite else {"pool_pre_ping": True}
    if not remedies:
        return RDBStorage(url, engine_kwargs=engine)
    return RDBStorage(
        url,
        engine_kwargs=engine,
        heartbeat_interval=HEARTBEAT_SECONDS,
        grace_period=GRACE_SECONDS,
        heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=2),
    )


def open_study(storage: RDBStorage, name: str) -> optuna.Study:
    pruner = optuna.pruners.MedianPruner(n_startup_trials=5)
    return optuna.create_study(
        storage=storage, study_name=name, direction="maximize", load_if_exists=True, pruner=pruner
    )


def optimize(study: optuna.Study, objective: Callable[..., float], options: argparse.Namespace) -> None:
    """Train what is left of the total: the share of this process, or with the remedies until the total is reached."""
    if options.remedies:
        fail_stale_trials(study)
    left = options.trials - len(study.get_trials(deepcopy=False, states=DONE))
    if left <= 0:
        return
    if options.remedies:
        limit = MaxTrialsCallback(options.trials, states=DONE)
        study.optimize(objective, callbacks=[limit], catch=(Exception,))
    else:
        study.optimize(objective, n_trials=math.ceil(left / options.processes))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--storage", required=True, help="Optuna's database, as a URL")
    parser.add_argument("--tracking", required=True, help="MLflow's server or database, as a URL")
    parser.add_argument("--name", default="sweep", help="of the study and of MLflow's experiment")
    parser.add_argument("--trials", type=int, required=True, help="in total, finished ones included")
    parser.add_argument("--processes", type=int, required=True, help="how many of this script share the total")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--remedies", action="store_true", help="all that Optuna offers against faults")
    parser.add_argument("--fault", default="", help="nan or exception: what an unlucky training does")
    return parser.parse_args()


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if options.remedies:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    mlflow.set_tracking_uri(options.tracking)
    experiment = mlflow.set_experiment(options.name).experiment_id
    study = open_study(open_storage(options.storage, options.remedies), options.name)
    client = MlflowClient(options.tracking)
    optimize(study, objective_of(client, experiment, Journal(options.journal), options.fault), options)


if __name__ == "__main__":
    main()
