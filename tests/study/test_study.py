from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest
from fakes import FakeExecutor, RecordingTracker, Step
from optuna.trial import TrialState
from sweeps import SMALL, by_rate, constantly, open_sweep, parts, states_of, trials_of

from mnistexp.analysis import history
from mnistexp.config.compose import compose, parse_request, run_config
from mnistexp.config.schema import RunConfig
from mnistexp.errors import ConfigError, StoreError
from mnistexp.study.database import Database, open_for_sweep
from mnistexp.study.progress import Progress
from mnistexp.study.study import trial_seed
from mnistexp.study.sweep import Summary, Sweep, SweepCallbacks
from mnistexp.tracking.records import RunRecord

FIXED_RATE = "optimizer.learning_rate=0.1"
PRUNING = ("study/pruner=median", "study.pruner.startup_trials=1", "study.pruner.warmup_epochs=0")


@contextmanager
def copied(fresh: Path, path: Path) -> Iterator[Database]:
    """A further database."""
    with closing(open_for_sweep(f"sqlite:///{shutil.copy(fresh, path)}")) as database:
        yield database


# ------------------------------------------------------------------------------------------ which trials


def test_the_budget_is_a_total_over_sessions(database: Database) -> None:
    """study.trials=3, then 5 with two workers: two more, at new points; the same again: none, and it says why."""
    executors = [FakeExecutor(by_rate), FakeExecutor(by_rate, workers=2), FakeExecutor(by_rate)]
    budgets = ("study.trials=3", "study.trials=5", "study.trials=5")
    summaries = [open_sweep(database, words).run(each) for words, each in zip(budgets, executors, strict=True)]

    configs = [config for executor in executors for config in executor.jobs.values()]
    assert [summary.trials for summary in summaries] == [3, 2, 0]
    assert summaries[2].progress.done == summaries[2].progress.total == 5
    assert summaries[2].stopped == "all 5 trials are done"
    assert len({config.optimizer.learning_rate for config in configs}) == 5
    assert [config.seed for config in configs] == [trial_seed(0, number) for number in range(5)]
    assert len({trial_seed(seed, number) for seed in (0, 1) for number in range(1000)}) == 2000


def test_the_first_trial_is_the_composed_config(database: Database) -> None:
    """Trial 0 is what `train` with the same words trains, seed included, even where it lies outside the space."""
    words = ("study.trials=1", "seed=7", "trainer.batch_size=choice(32, 64)", "model.hidden_units=[40]")
    executor = FakeExecutor(by_rate)

    open_sweep(database, *words).run(executor)

    composed = compose(parse_request([word for word in (*SMALL, *words) if "choice" not in word]))
    assert executor.jobs[0] == run_config(composed)
    assert executor.jobs[0].trainer.batch_size == 128


def test_recorded_overrides_compose_the_trial(database: Database) -> None:
    """What a trial records as its overrides composes, through Hydra, to exactly what was trained."""
    tracker, executor = RecordingTracker(), FakeExecutor(by_rate)

    open_sweep(database, "study.trials=4", "optimizer=choice(sgd, adam)", tracker=tracker).run(executor)

    assert {record.config.optimizer.name for record in tracker.records} == {"sgd", "adam"}
    for record in tracker.records:
        assert run_config(compose(parse_request(record.overrides))) == record.config
        assert executor.jobs[int(record.tags["trial"])] == record.config


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_one_worker_repeats_a_study(fresh: Path, quick_folder: Path, sampler: str) -> None:
    """The same study seed gives the same trials in another database; another seed gives others."""
    words = ("study.trials=5", f"study/sampler={sampler}", "study.sampler.startup_trials=3")
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        executor = FakeExecutor(by_rate)
        with copied(fresh, quick_folder / name) as other:
            open_sweep(other, *words, f"seed={seed}").run(executor)
        runs.append(list(executor.jobs.values()))

    assert runs[0] == runs[1]
    rates = [{config.optimizer.learning_rate for config in configs[1:]} for configs in runs]
    assert len(rates[0]) == 4
    assert not rates[0] & rates[2]


def test_a_grid_visits_each_point_once(database: Database) -> None:
    """Six points, in two sessions with an interrupt between: each is trained to its end exactly once."""
    grid = ("study/sampler=grid", "trainer.batch_size=choice(32, 64, 128)", FIXED_RATE)

    def interrupted(job: int, config: RunConfig) -> list[Step]:
        return [0.5, signal.SIGINT, 0.5, 0.5] if job == 3 else [0.5] * 3

    tracker = RecordingTracker()
    open_sweep(database, *grid, "study.trials=6", tracker=tracker).run(FakeExecutor(interrupted))
    open_sweep(database, *grid, "study.trials=6", tracker=tracker).run(FakeExecutor(by_rate))

    records = [record for record in tracker.records if record.state == "COMPLETE"]
    points = [(record.config.model.activation, record.config.trainer.batch_size) for record in records]
    assert sorted(points) == [(name, size) for name in ("relu", "tanh") for size in (32, 64, 128)]


# ---------------------------------------------------------------------------------------- what is the best


def test_the_best_is_complete_and_highest_and_first(database: Database) -> None:
    """Ties go to the lowest number; an infinite score and a failed or pruned trial's don't count."""
    scores: dict[int, list[float | str]] = {
        0: [0.5] * 3,
        1: [math.inf] * 3,
        2: [0.99, "its worker died"],
        3: [0.8] * 3,
        4: [0.8] * 3,
    }

    found = open_sweep(database, "study.trials=5").run(FakeExecutor(lambda job, _: scores[job])).progress.best

    assert found is not None
    assert (found.number, found.val_accuracy) == (3, 0.8)
    assert found == history.best(database.storage, "digits")[0]
    assert run_config(compose(parse_request(found.overrides))) == found.config


def test_a_study_is_blind_to_test_scores(fresh: Path, quick_folder: Path) -> None:
    """With other test scores every trial, its value and the best stay the same to the bit."""
    outcomes = []
    for name, test in (("a", 0.1), ("b", 0.9)):
        tracker = RecordingTracker()
        with copied(fresh, quick_folder / name) as database:
            sweep = open_sweep(database, "study.trials=8", "study/sampler=tpe", *PRUNING, tracker=tracker)
            executor = FakeExecutor(by_rate, test_accuracy=lambda job, test=test: test + job / 1000)
            best = sweep.run(executor).progress.best
            outcomes.append((best, [(trial.params, trial.value, trial.state) for trial in trials_of(database)]))
        assert tracker.records[3].result is not None
        assert tracker.records[3].result.test_accuracy == test + 0.003

    assert outcomes[0] == outcomes[1]
    assert {state for *_, state in outcomes[0][1]} == {TrialState.COMPLETE, TrialState.PRUNED}


# ------------------------------------------------------------------------------------------- when it stops


def test_reaching_the_target_stops(database: Database) -> None:
    """No trial starts after one scored study.target; those under way come to their end."""
    executor = FakeExecutor(constantly(0.5, 0.8, 0.6, 0.9, 0.9, 0.9), workers=2)

    summary = open_sweep(database, "study.trials=6", "study.target=0.8").run(executor)

    assert summary.stopped == "trial 1 reached study.target=0.8"
    assert states_of(database) == ["COMPLETE"] * 3
    assert len(executor.jobs) == 3


def test_the_timeout_stops(database: Database) -> None:
    """The trial under way when study.timeout passes comes to its end, and no other starts."""

    def slow(job: int, config: RunConfig) -> list[float]:
        time.sleep(1.1)
        return [0.5] * 3

    summary = open_sweep(database, "study.trials=5", "study.timeout=1").run(FakeExecutor(slow))

    assert summary.stopped == "study.timeout=1 is over"
    assert states_of(database) == ["COMPLETE"]


def test_pruned_trials_are_stored_and_logged(database: Database) -> None:
    """A trial below the median stops where it is, is PRUNED in Optuna, and is logged with its test score.

    A trial that has trained to its end is complete, however bad.
    """
    tracker = RecordingTracker()
    scores = [[0.9] * 3, [0.8] * 3, [0.1] * 3, [0.95, 0.95, 0.2]]

    sweep = open_sweep(database, "study.trials=4", *PRUNING, tracker=tracker)
    summary = sweep.run(FakeExecutor(lambda job, _: scores[job]))

    assert states_of(database) == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]
    assert [record.state for record in tracker.records] == states_of(database)
    assert [len(record.epochs) for record in tracker.records] == [3, 1, 1, 3]
    assert tracker.records[2].result is not None
    assert tracker.records[2].result.test_accuracy == 2 / 3
    assert (summary.progress.complete, summary.progress.pruned, summary.progress.done) == (2, 2, 4)


# ----------------------------------------------------------------------------------------- what goes wrong


def test_a_failed_trial_is_one_failed_trial(database: Database) -> None:
    """Its state is FAIL, and it is logged with its reason and its epochs so far; the sweep goes on, without a best."""
    tracker = RecordingTracker()
    sweep = open_sweep(database, "study.trials=2", tracker=tracker)

    summary = sweep.run(FakeExecutor(lambda *_: [0.5, 0.6, "loss became nan in epoch 3"]))

    assert states_of(database) == ["FAIL", "FAIL"]
    for failed in tracker.records:
        assert (failed.state, failed.reason, failed.result) == ("FAILED", "loss became nan in epoch 3", None)
        assert [scores.val_accuracy for scores in failed.epochs] == [0.5, 0.6]
    assert summary.progress == Progress(complete=0, pruned=0, failed=2, total=2, best=None)


@pytest.mark.parametrize(
    ("overrides", "failed", "reason"),
    [
        (("study.trials=3", "trainer.batch_size=choice(5000, 6000)"), 2, "at most 1137"),
        (
            (
                "optimizer=momentum",
                "optimizer.momentum=choice(0.0, 0.9)",
                "optimizer.nesterov=choice(true, false)",
                *("study/sampler=grid", "model.activation=relu", "optimizer.learning_rate=0.05", "study.trials=4"),
            ),
            1,
            "nesterov",
        ),
    ],
    ids=["a minibatch larger than the data", "values that can't be combined"],
)
def test_invalid_values_fail_without_training(
    database: Database, overrides: tuple[str, ...], failed: int, reason: str
) -> None:
    """They are no job and no crash: trials that failed, with the reason; the rest is trained."""
    executor = FakeExecutor(by_rate)

    summary = open_sweep(database, *overrides).run(executor)

    reasons = [trial.user_attrs["reason"] for trial in trials_of(database) if trial.state is TrialState.FAIL]
    assert [reason in text for text in reasons] == [True] * failed
    assert summary.progress.failed == failed
    assert len(executor.jobs) == summary.progress.complete == summary.progress.total - failed


# ------------------------------------------------------------------------------------ one study, one question


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ("model.activation=choice(relu, gelu)", "search.model.activation"),
        ("trainer.batch_size=choice(32, 64)", "search.trainer.batch_size"),
        ("trainer.epochs=4", "trainer"),
        ("seed=1", "seed"),
        ("data.split_seed=1", "data"),
    ],
)
def test_another_question_is_refused(database: Database, other: str, differs: str) -> None:
    """What makes trials incomparable is named, and a new study name offered; no trial is added."""
    open_sweep(database, "study.trials=1").run(FakeExecutor(by_rate))

    with pytest.raises(ConfigError, match=f"study.name=digits: .* another {differs}; .*study.name=digits-2"):
        open_sweep(database, "study.trials=2", other)

    assert len(trials_of(database)) == 1


def test_a_study_without_a_trial_takes_another_question(database: Database) -> None:
    """What was stopped before its first trial has none that others couldn't be compared with; from then on it has."""
    open_sweep(database, "study.trials=1")

    summary = open_sweep(database, "study.trials=1", "trainer.epochs=4").run(FakeExecutor(by_rate))

    assert summary.trials == 1
    with pytest.raises(ConfigError, match="another trainer; "):
        open_sweep(database, "study.trials=2")


def test_the_same_question_goes_on_otherwise(database: Database) -> None:
    """Budget, sampler, pruner, executor and tracking may change between sessions."""
    open_sweep(database, "study.trials=1").run(FakeExecutor(by_rate))
    words = ("study.trials=4", "study/sampler=tpe", "study/pruner=hyperband", "study.timeout=100")
    more = ("executor.workers=2", "tracking.experiment=other", "tracking.save_weights=true")

    summary = open_sweep(database, *words, *more).run(FakeExecutor(by_rate, workers=2))

    assert summary.trials == 3


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_foreign_study_is_left_alone(database: Database, direction: str) -> None:
    """A study that something else made is refused, whichever its direction, and stays as it was."""
    study = optuna.create_study(storage=database.storage, study_name="digits", direction=direction)
    study.add_trial(optuna.trial.create_trial(value=0.5))

    with pytest.raises(StoreError, match=r"give another study\.name"):
        open_sweep(database, "study.trials=2")

    assert len(study.get_trials()) == 1


# ------------------------------------------------------------------------------------------ what is reported


def test_each_trial_is_reported_and_logged_under_its_study(database: Database) -> None:
    """The caller hears of each trial with the count so far; each run carries study, number and parent."""
    session, space = parts("study.trials=3")
    heard: list[tuple[RunRecord, Progress]] = []
    tracker = RecordingTracker()

    sweep = Sweep(database, session, space, tracker, SweepCallbacks(lambda *told: heard.append(told)))
    summary = sweep.run(FakeExecutor(by_rate))

    assert [record for record, _ in heard] == tracker.records
    assert [progress.done for _, progress in heard] == [1, 2, 3]
    assert [(r.tags["study"], r.tags["trial"]) for r in tracker.records] == [("digits", str(n)) for n in range(3)]
    assert set(tracker.parents) == {"parent of digits"}
    assert tracker.records[1].name.startswith("001 sgd lr=")
    assert isinstance(summary, Summary)
