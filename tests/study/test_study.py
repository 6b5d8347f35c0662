from __future__ import annotations

import math
import shutil
import signal
import time
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
from mnistexp.tracking.run_context import PreparedRun

FIXED_RATE = "optimizer.learning_rate=0.1"
PRUNING = ("study/pruner=median", "study.pruner.startup_trials=1", "study.pruner.warmup_epochs=0")


# ------------------------------------------------------------------------------------------ which trials


def test_the_budget_is_a_total_over_sessions(database: Database) -> None:
    """Three trials, then study.trials=5: two more; the same again: none, and the summary says why."""
    first = open_sweep(database, "study.trials=3").run(FakeExecutor(by_rate))
    second = open_sweep(database, "study.trials=5").run(FakeExecutor(by_rate))
    third = open_sweep(database, "study.trials=5").run(FakeExecutor(by_rate))

    assert [summary.trials for summary in (first, second, third)] == [3, 2, 0]
    assert (third.progress.done, third.progress.total) == (5, 5)
    assert third.stopped == "all 5 trials are done"
    assert states_of(database) == ["COMPLETE"] * 5


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


def test_each_trial_has_its_own_seed(database: Database) -> None:
    """Seeds differ between trials and come from the study's seed and the trial's number alone."""
    executor = FakeExecutor(by_rate)

    open_sweep(database, "study.trials=4", "seed=7").run(executor)

    assert [config.seed for config in executor.jobs.values()] == [trial_seed(7, number) for number in range(4)]
    assert trial_seed(7, 0) == 7
    assert len({trial_seed(seed, number) for seed in (0, 1) for number in range(1000)}) == 2000


@pytest.mark.parametrize("sampler", ["random", "tpe", "qmc", "cmaes"])
def test_one_worker_repeats_a_study(database: Database, fresh: Path, tmp_path: Path, sampler: str) -> None:
    """The same study seed gives the same trials in another database; another seed gives others."""
    words = ("study.trials=6", f"study/sampler={sampler}", "study.sampler.startup_trials=3")
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        executor = FakeExecutor(by_rate)
        other = open_for_sweep(f"sqlite:///{shutil.copy(fresh, tmp_path / f'{name}.db')}")
        open_sweep(other, *words, f"seed={seed}").run(executor)
        runs.append(list(executor.jobs.values()))

    assert runs[0] == runs[1]
    rates = [{config.optimizer.learning_rate for config in configs[1:]} for configs in runs]
    assert len(rates[0]) == 5
    assert not rates[0] & rates[2]


def test_a_resumed_study_draws_new_points(database: Database) -> None:
    """The second session's sampler doesn't repeat the first's start-up draws."""
    executors = [FakeExecutor(by_rate), FakeExecutor(by_rate)]

    open_sweep(database, "study.trials=4").run(executors[0])
    open_sweep(database, "study.trials=8").run(executors[1])

    rates = [config.optimizer.learning_rate for each in executors for config in each.jobs.values()]
    assert len(set(rates)) == 8


def test_workers_play_at_once(database: Database) -> None:
    """With three workers three trials are under way, and the total is exact all the same."""
    executor = FakeExecutor(by_rate, workers=3)
    busiest = 0

    def script(job: int, config: RunConfig) -> list[float]:
        nonlocal busiest
        busiest = max(busiest, 3 - executor.idle() + 1)
        return by_rate(job, config)

    executor._script = script
    summary = open_sweep(database, "study.trials=7").run(executor)

    assert busiest == 3
    assert summary.trials == len(executor.jobs) == 7


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


def test_a_study_is_blind_to_test_scores(fresh: Path, tmp_path: Path) -> None:
    """With other test scores every trial, its value and the best stay the same to the bit."""
    outcomes = []
    for name, test in (("a", 0.1), ("b", 0.9)):
        tracker = RecordingTracker()
        database = open_for_sweep(f"sqlite:///{shutil.copy(fresh, tmp_path / f'{name}.db')}")
        sweep = open_sweep(database, "study.trials=12", "study/sampler=tpe", *PRUNING, tracker=tracker)
        best = sweep.run(FakeExecutor(by_rate, test_accuracy=lambda job, test=test: test + job / 1000)).progress.best
        outcomes.append((best, [(trial.params, trial.value, trial.state) for trial in trials_of(database)]))
        assert tracker.records[3].result is not None
        assert tracker.records[3].result.test_accuracy == test + 0.003

    assert outcomes[0] == outcomes[1]
    assert {state for *_, state in outcomes[0][1]} == {TrialState.COMPLETE, TrialState.PRUNED}


def test_a_study_without_a_complete_trial_has_no_best(database: Database) -> None:
    """A sweep in which everything fails ends, and asking for its best says what to type."""
    summary = open_sweep(database, "study.trials=2").run(FakeExecutor(lambda *_: ["loss became nan"]))

    assert summary.progress == Progress(complete=0, pruned=0, failed=2, total=2, best=None)
    with pytest.raises(
        StoreError, match=r"digits: no trial of it completed; run `python -m mnistexp sweep study\.name"
    ):
        history.best(database.storage, "digits")


def test_a_study_that_is_not_there_names_those_that_are(database: Database) -> None:
    """The best of a misspelt study is refused with the names there are."""
    with pytest.raises(StoreError, match="there is none yet"):
        history.best(database.storage, "digit")

    open_sweep(database, "study.trials=1").run(FakeExecutor(by_rate))

    with pytest.raises(StoreError, match=r"no such study here; there are digits;"):
        history.best(database.storage, "digit")


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


def test_pruned_trials_are_told_and_logged(database: Database) -> None:
    """A trial below the median stops where it is, is PRUNED in Optuna, and is logged with its test score."""
    tracker = RecordingTracker()
    scores = [0.9, 0.8, 0.1, 0.95]

    summary = open_sweep(database, "study.trials=4", *PRUNING, tracker=tracker).run(FakeExecutor(constantly(*scores)))

    assert states_of(database) == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE"]
    assert [record.state for record in tracker.records] == states_of(database)
    assert [len(record.epochs) for record in tracker.records] == [3, 1, 1, 3]
    assert tracker.records[2].result is not None
    assert tracker.records[2].result.test_accuracy == 2 / 3
    assert (summary.progress.complete, summary.progress.pruned, summary.progress.done) == (2, 2, 4)


def test_no_trial_is_pruned_at_its_last_epoch(database: Database) -> None:
    """A trial that has trained to its end is complete, however bad: there is nothing to save any more."""
    late = ("study.pruner.warmup_epochs=2",)

    open_sweep(database, "study.trials=2", *PRUNING, *late).run(FakeExecutor(constantly(0.9, 0.1)))

    assert states_of(database) == ["COMPLETE", "COMPLETE"]


# ----------------------------------------------------------------------------------------- what goes wrong


def test_a_failed_trial_is_one_failed_trial(database: Database) -> None:
    """It is told FAIL and logged with its reason and its epochs so far; the sweep goes on."""
    tracker = RecordingTracker()

    def script(job: int, config: RunConfig) -> list[float | str]:
        return [0.5, 0.6, "loss became nan in epoch 3"] if job == 1 else [0.5] * 3

    summary = open_sweep(database, "study.trials=3", tracker=tracker).run(FakeExecutor(script))

    failed = tracker.records[1]
    assert states_of(database) == ["COMPLETE", "FAIL", "COMPLETE"]
    assert (failed.state, failed.reason, failed.result) == ("FAILED", "loss became nan in epoch 3", None)
    assert [scores.val_accuracy for scores in failed.epochs] == [0.5, 0.6]
    assert (summary.progress.failed, summary.progress.done) == (1, 3)


def test_a_draw_that_cannot_be_trained_counts_as_failed(database: Database) -> None:
    """Minibatches larger than the data are no job and no crash: trials that failed, with the reason."""
    executor = FakeExecutor(by_rate)

    summary = open_sweep(database, "study.trials=3", "trainer.batch_size=choice(5000, 6000)").run(executor)

    assert list(executor.jobs) == [0]
    assert states_of(database) == ["COMPLETE", "FAIL", "FAIL"]
    assert "must be at most 1137" in trials_of(database)[1].user_attrs["reason"]
    assert summary.progress.failed == 2


def test_values_that_cannot_stand_together_count_as_failed(database: Database) -> None:
    """Each value is allowed, their combination isn't: one failed trial of a grid, and the rest is trained."""
    words = ("optimizer.momentum=choice(0.0, 0.9)", "optimizer.nesterov=choice(true, false)", "optimizer=momentum")
    grid = ("study/sampler=grid", "model.activation=relu", "optimizer.learning_rate=0.05", "study.trials=4")

    open_sweep(database, *words, *grid).run(FakeExecutor(by_rate))

    reasons = [trial.user_attrs.get("reason", "") for trial in trials_of(database)]
    assert sorted(states_of(database)) == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    assert ["nesterov" in reason for reason in reasons].count(True) == 1


# ------------------------------------------------------------------------------------ one study, one question


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ("model.activation=choice(relu, gelu)", "another search.model.activation; "),
        ("trainer.epochs=4", "another trainer; "),
        ("seed=1", "another seed; "),
        ("data.split_seed=1", "another data; "),
        ("model.hidden_units=[20]", "another model; "),
        ("trainer.batch_size=choice(32, 64)", "another search.trainer.batch_size; "),
    ],
)
def test_another_question_is_refused(database: Database, other: str, differs: str) -> None:
    """What makes trials incomparable is named, and a new study name offered; no trial is added."""
    open_sweep(database, "study.trials=1").run(FakeExecutor(by_rate))

    with pytest.raises(ConfigError, match=f"study.name=digits: was started with {differs}.*study.name=digits-2"):
        open_sweep(database, "study.trials=2", other)

    assert len(trials_of(database)) == 1


def test_a_study_without_a_trial_takes_another_question(database: Database) -> None:
    """What was stopped before its first trial has none that others couldn't be compared with; from then on it has."""
    open_sweep(database, "study.trials=1")

    summary = open_sweep(database, "study.trials=1", "trainer.epochs=4").run(FakeExecutor(by_rate))

    assert summary.trials == 1
    with pytest.raises(ConfigError, match="was started with another trainer; "):
        open_sweep(database, "study.trials=2")


def test_the_same_question_goes_on_otherwise(database: Database) -> None:
    """Budget, sampler, pruner, executor and tracking may change between sessions."""
    open_sweep(database, "study.trials=1").run(FakeExecutor(by_rate))
    words = ("study.trials=4", "study/sampler=tpe", "study/pruner=hyperband", "study.timeout=100")
    more = ("executor.workers=2", "tracking.experiment=other", "tracking.save_weights=true")

    summary = open_sweep(database, *words, *more).run(FakeExecutor(by_rate, workers=2))

    assert summary.trials == 3


def test_names_keep_studies_apart(database: Database) -> None:
    """Two studies in one database count their own trials."""
    open_sweep(database, "study.trials=2", "study.name=a").run(FakeExecutor(by_rate))
    summary = open_sweep(database, "study.trials=3", "study.name=b", "trainer.epochs=2").run(FakeExecutor(by_rate))

    assert summary.trials == 3
    assert [len(trials_of(database, name)) for name in "ab"] == [2, 3]


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


def test_a_prepared_request_names_study_and_experiment() -> None:
    """Study and MLflow experiment are named after the data set unless the user names them."""
    request = parse_request(SMALL)
    named = parse_request([*SMALL, "study.name=wide", "tracking.experiment=all"])

    plain = PreparedRun(request, compose(request), parts()[0].prepared.dataset)
    given = PreparedRun(named, compose(named), parts()[0].prepared.dataset)

    assert (plain.study_name, plain.experiment) == ("digits", "digits")
    assert (given.study_name, given.experiment) == ("wide", "all")
