"""What the tests of studies and sweeps share: a small space, scripted scores, a database of their own."""

from __future__ import annotations

import functools

import optuna
from fakes import FakeExecutor, RecordingTracker, Script
from optuna.storages._rdb.storage import _VersionManager
from optuna.trial import FrozenTrial

from mnistexp.config.compose import parse_request
from mnistexp.config.schema import RunConfig
from mnistexp.search import space as search_space
from mnistexp.search.space import SearchSpace
from mnistexp.study.database import Database
from mnistexp.study.sweep import Sweep, SweepCallbacks
from mnistexp.tracking import run_context
from mnistexp.tracking.run_context import RunContext

# Each opening of a database has Alembic run all of Optuna's migration scripts to learn which is the newest: 60 ms,
# a fifth of what the property tests take. It is the same one all the time.
_HEADS: list[str] = []
_get_head_version = _VersionManager.get_head_version


def _head_version(manager: _VersionManager) -> str:
    if not _HEADS:
        _HEADS.append(_get_head_version(manager))
    return _HEADS[0]


_VersionManager.get_head_version = _head_version  # type: ignore[method-assign]

SMALL = ("data=digits", "search=none", "optimizer=sgd", "model.activation=choice(relu, tanh)", "trainer.epochs=3")
PLAIN = ("study/sampler=random", "study/pruner=none")


@functools.cache
def parts(*overrides: str) -> tuple[RunContext, SearchSpace]:
    """What a sweep with these overrides searches; nothing of it has a state, so tests share it."""
    searched = [word for word in overrides if not word.startswith(("study", "executor"))]
    return RunContext(run_context.prepare(parse_request([*SMALL, *PLAIN, *overrides])), {}, {}), space(*searched)


@functools.cache
def space(*overrides: str) -> SearchSpace:
    """A search space: building it composes every option, so it is built once."""
    return search_space.build(parse_request([*SMALL, *overrides]))


def open_sweep(
    database: Database,
    *overrides: str,
    tracker: RecordingTracker | None = None,
    notes: list[str] | None = None,
) -> Sweep:
    """A session of the study, not yet run; what it notes goes to `notes`."""
    session, searched = parts(*overrides)
    listener = SweepCallbacks(lambda record, progress: None, on_note=(notes if notes is not None else []).append)
    return Sweep(database, session, searched, tracker or RecordingTracker(), listener)


def by_rate(job: int, config: RunConfig) -> list[float]:
    """A score that the config decides: smaller learning rates are better, epoch by epoch."""
    return [0.9 - config.optimizer.learning_rate / 2 + epoch / 100 for epoch in range(config.trainer.epochs)]


def constantly(*scores: float) -> Script:
    """Job n scores `scores[n]` in all of its epochs."""
    return lambda job, config: [scores[job]] * config.trainer.epochs


def trials_of(database: Database, name: str = "digits") -> list[FrozenTrial]:
    """The study's trials, as Optuna has them."""
    return optuna.load_study(study_name=name, storage=database.storage).get_trials()


def states_of(database: Database) -> list[str]:
    """The trials' states in the order of their numbers."""
    return [trial.state.name for trial in trials_of(database)]


def check_invariants(database: Database, tracker: RecordingTracker, total: int) -> None:
    """Finished trials: all of them, once, in both stores, with equal values. Under way: none. Parents: closed."""
    trials = {str(trial.number): trial for trial in trials_of(database)}
    kept = [record for record in tracker.records if record.state != "INTERRUPTED"]
    values = {
        record.tags["trial"]: record.result.fit.best.val_accuracy
        for record in kept
        if record.result and record.state == "COMPLETE"
    }

    assert not {"RUNNING", "WAITING"} & {trial.state.name for trial in trials.values()}
    assert len(trials) == total
    assert sorted(record.tags["trial"] for record in kept) == sorted(trials)
    assert values == {number: trial.value for number, trial in trials.items() if trial.state.name == "COMPLETE"}
    assert not tracker.open


def finish(database: Database, tracker: RecordingTracker, total: int, *overrides: str) -> FakeExecutor:
    """Type `sweep` again, with nothing in its way."""
    executor = FakeExecutor(by_rate, workers=2)
    open_sweep(database, f"study.trials={total}", *overrides, tracker=tracker).run(executor)
    return executor
