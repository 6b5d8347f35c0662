"""What becomes of trials when something is interrupted, dies or goes away: with scripted workers, a real database."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import pytest
from fakes import FakeExecutor, RecordingTracker, Step
from sweeps import (
    by_rate,
    check_invariants,
    finish,
    open_sweep,
    parts,
    states_of,
    trials_of,
)

from mnistexp.config.compose import run_config
from mnistexp.config.schema import RunConfig
from mnistexp.errors import ConfigError, StoreError
from mnistexp.study import study as studies
from mnistexp.study.database import Database, open_for_sweep
from mnistexp.study.lease import PREFIX
from mnistexp.study.progress import trials_left
from mnistexp.study.study import ClaimedTrial


class Killed(BaseException):
    """Ends this process as far as the study can see: nothing that is ours runs after it."""


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights wait in the test's folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


# ------------------------------------------------------------------------------------------- orderly stops


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_sweep_in_order(database: Database, number: signal.Signals) -> None:
    """Running trials end their epoch and go back, without using up retries; the next session runs them again.

    Their runs are logged as interrupted, and the signal's handler is restored.
    """
    words, tracker, before = ("study.trials=4", "executor.retries=0"), RecordingTracker(), signal.getsignal(number)
    first = FakeExecutor(lambda job, _: [0.6, number, 0.7, 0.8] if job == 2 else [0.5] * 3, workers=2)

    summary = open_sweep(database, *words, tracker=tracker).run(first)
    between = states_of(database)
    second = finish(database, tracker, 4, "executor.retries=0")

    interrupted = [record for record in tracker.records if record.state == "INTERRUPTED"]
    assert (summary.interrupted, summary.progress.done) == (True, 2)
    assert between == ["COMPLETE", "COMPLETE", "WAITING", "WAITING"]
    assert [len(record.epochs) for record in interrupted] == [2, 2]
    assert second.jobs == {job: first.jobs[job] for job in (2, 3)}
    assert tracker.sweeps[0][3] == "KILLED"
    assert signal.getsignal(number) == before
    check_invariants(database, tracker, 4)


def test_a_trial_in_its_last_epoch_is_finished(database: Database) -> None:
    """A stop that comes while the last epoch runs costs nothing: the trial is stored and logged."""
    tracker = RecordingTracker()

    open_sweep(database, "study.trials=3", tracker=tracker).run(FakeExecutor(lambda *_: [0.5, 0.6, signal.SIGINT, 0.7]))

    assert states_of(database) == ["COMPLETE"]
    assert tracker.records[0].state == "COMPLETE"


def test_a_trial_that_no_worker_has_yet_goes_back_without_a_run(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that comes while the next trial is claimed: it waits for the next session, and there is nothing to log."""
    tracker, claim = RecordingTracker(), studies.SharedStudy.claim

    def interrupted(study: studies.SharedStudy) -> Any:
        claimed = claim(study)
        if isinstance(claimed, ClaimedTrial) and claimed.number == 1:
            signal.raise_signal(signal.SIGINT)
        return claimed

    with monkeypatch.context() as patched:
        patched.setattr(studies.SharedStudy, "claim", interrupted)
        open_sweep(database, "study.trials=3", tracker=tracker).run(FakeExecutor(by_rate))

    assert states_of(database) == ["COMPLETE", "WAITING"]
    assert [record.state for record in tracker.records] == ["COMPLETE"]
    finish(database, tracker, 3)
    check_invariants(database, tracker, 3)


def test_a_second_signal_is_obeyed_at_once(database: Database) -> None:
    """Pressing twice writes nothing more; the next session finds what was under way and runs it again."""
    tracker, executor = RecordingTracker(), FakeExecutor(lambda *_: [0.5, signal.SIGINT, signal.SIGINT])

    with pytest.raises(KeyboardInterrupt):
        open_sweep(database, "study.trials=3", tracker=tracker).run(executor)
    assert tracker.records == []
    assert states_of(database) == ["RUNNING"]
    finish(database, tracker, 3)

    check_invariants(database, tracker, 3)


# ------------------------------------------------------------------------------------------- dead workers


def test_a_lost_worker_costs_no_trial(database: Database) -> None:
    """A trial whose worker was killed is run again, with the same parameters and seed, and counted once."""
    executor = FakeExecutor(by_rate, workers=2)
    configs: list[RunConfig] = []

    def script(job: int, config: RunConfig) -> list[Step]:
        configs.extend([config] * (job == 1))
        return [0.5, None] if job == 1 and len(configs) < 3 else by_rate(job, config)

    executor._script, tracker, notes = script, RecordingTracker(), []
    summary = open_sweep(database, "study.trials=4", tracker=tracker, notes=notes).run(executor)

    assert configs == [configs[0]] * 3
    assert summary.trials == summary.progress.complete == 4
    assert notes[0] == "trial 1: its worker was killed; it will be run again (1 of 2)"
    check_invariants(database, tracker, 4)


def test_a_trial_that_kills_each_worker_fails(database: Database) -> None:
    """After executor.retries further attempts it has failed, with the reason in both stores; the sweep goes on."""
    tracker = RecordingTracker()
    executor = FakeExecutor(lambda job, config: [0.5, None] if job == 1 else by_rate(job, config))

    summary = open_sweep(database, "study.trials=3", "executor.retries=1", tracker=tracker).run(executor)

    reason = "its worker was killed; it was run 2 times (executor.retries=1)"
    assert (summary.progress.complete, summary.progress.failed) == (2, 1)
    assert trials_of(database)[1].user_attrs["reason"] == reason
    assert [record.reason for record in tracker.records if record.state == "FAILED"] == [reason]


@pytest.mark.parametrize(
    ("reasons", "states", "gave_up"),
    [
        (["loss 1", "", "loss 2", "loss 1.5", "loss nan"], ["FAIL", "COMPLETE", "FAIL", "FAIL", "FAIL"], True),
        (["loss 1", "memory", "loss 1", "memory", "loss 1"], ["FAIL"] * 5, False),
    ],
)
def test_a_sweep_stops_when_all_fail_alike(
    database: Database, reasons: list[str], states: list[str], gave_up: bool
) -> None:
    """study.max_failures trials in a row with one cause, apart from its numbers, end the session."""
    words = (f"study.trials={9 if gave_up else 5}", "study.max_failures=3")

    summary = open_sweep(database, *words).run(
        FakeExecutor(lambda job, _: [reasons[job]] if reasons[job] else [0.5] * 3)
    )

    assert summary.gave_up is gave_up  # the command's exit code is 1, though there may be a best trial
    assert ("study.max_failures" in summary.stopped) is gave_up
    assert states_of(database) == states


# ------------------------------------------------------------------------------- killed, at every single write


class Tapped:
    """An object whose method calls are counted; call number `fatal` and all later ones end the process instead."""

    def __init__(self, inner: Any, counter: list[int], fatal: int) -> None:
        self._inner, self._counter, self._fatal = inner, counter, fatal

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found) or name.startswith(("_", "get_", "check_", "find")):
            return found

        def call(*args: Any, **more: Any) -> Any:
            self._counter[0] += 1
            if self._counter[0] >= self._fatal:
                raise Killed
            return found(*args, **more)

        return call


WRITES = 34  # of a session of two trials, from the creation of the study to the end of its parent run


@pytest.mark.parametrize("fatal", range(1, WRITES + 2))
def test_a_kill_at_any_write_is_recovered(database: Database, fatal: int) -> None:
    """Killed before write n, for every n: the next session has all trials once, and runs no finished one again."""
    tracker, real, counter = RecordingTracker(), database.storage, [0]
    database.storage = Tapped(real, counter, fatal)  # type: ignore[assignment]
    tapped: Any = Tapped(tracker, counter, fatal)

    with pytest.raises(Killed) if fatal <= WRITES else nullcontext():
        session = open_sweep(database, "study.trials=2", "executor.retries=9", tracker=tapped)
        session.run(FakeExecutor(by_rate, workers=2))
    finished = [record.tags["trial"] for record in tracker.records]
    database.storage = real
    executor = finish(database, tracker, 2, "executor.retries=9")

    check_invariants(database, tracker, 2)
    assert not set(finished) & {str(number) for number in executor.jobs}
    for number, config in executor.jobs.items():
        assert config.seed == studies.trial_seed(0, number)


def test_a_trial_that_kills_each_sweep_process_fails(database: Database) -> None:
    """After executor.retries it has failed, with the reason in both stores; until then it is the same config.

    This holds for the first trial too, of which parts lie outside the space.
    """
    words = ("study.trials=2", "trainer.batch_size=choice(32, 64)")
    tracker, tried = RecordingTracker(), []

    for _ in range(3):
        executor = FakeExecutor(lambda *_: [0.5, Killed()])
        with pytest.raises(Killed):
            open_sweep(database, *words, tracker=tracker).run(executor)
        tried.append(executor.jobs[0])
    open_sweep(database, *words, tracker=tracker).run(FakeExecutor(by_rate))

    assert tried == [run_config(parts(*words)[0].prepared.config)] * 3
    check_invariants(database, tracker, 2)
    assert states_of(database) == ["FAIL", "COMPLETE"]
    assert trials_of(database)[0].user_attrs["reason"].startswith("its worker or sweep process died 3 times")
    assert [record.state for record in tracker.records] == ["FAILED", "COMPLETE"]


def test_a_trial_is_not_pruned_where_an_earlier_attempt_was_not(database: Database) -> None:
    """A trial that is run again isn't pruned at an epoch that it had passed."""
    pruning = ("study/pruner=median", "study.pruner.startup_trials=1", "study.pruner.warmup_epochs=0")
    tracker = RecordingTracker()
    scores = {0: [0.9] * 3, 1: [0.95, 0.3, Killed()]}
    with pytest.raises(Killed):
        open_sweep(database, "study.trials=2", tracker=tracker).run(FakeExecutor(lambda job, _: scores[job]))
    seen: list[int] = []
    executor = FakeExecutor(lambda job, _: [0.95, 0.3, 0.96])
    answer = executor.answer

    def noting(job: int, *, go: bool) -> None:
        seen.append(go)
        answer(job, go=go)

    executor.answer = noting  # type: ignore[method-assign]
    open_sweep(database, "study.trials=2", *pruning, tracker=tracker).run(executor)

    assert seen == [True, True, True]
    assert states_of(database) == ["COMPLETE", "COMPLETE"]


# ------------------------------------------------------------------------------------------- several sweep processes


def foreign(database: Database, number: int, **changes: object) -> None:
    """Make a sweep process's entry that of another machine."""
    storage = database.storage
    study_id = storage.get_study_id_from_name("digits")
    entry = storage.get_study_user_attrs(study_id)[f"{PREFIX}{number}"]
    storage.set_study_user_attr(study_id, f"{PREFIX}{number}", {**entry, "machine": "elsewhere", **changes})


def test_another_machines_trial_is_left_alone_while_it_lives(database: Database) -> None:
    """A trial of a sweep process elsewhere is not run here, nor more than the budget; the points differ."""
    theirs = open_sweep(database, "study.trials=4")
    foreign(database, 0)
    mine = open_sweep(database, "study.trials=4")
    foreign(database, 1)

    claims = [sweep._study.claim() for sweep in (theirs, mine, theirs, mine, mine)]

    taken = [claim for claim in claims[:4] if isinstance(claim, ClaimedTrial)]
    assert [claim.number for claim in taken] == [0, 1, 2, 3]
    assert claims[4] is None
    assert len({claim.config.optimizer.learning_rate for claim in taken}) == 4
    assert states_of(database) == ["RUNNING"] * 4


def test_another_machines_config_counts_before_its_first_trial(database: Database) -> None:
    """While a sweep process elsewhere still starts its workers, the study can't get another config."""
    open_sweep(database, "study.trials=3")
    foreign(database, 0)

    with pytest.raises(ConfigError, match="another trainer"):
        open_sweep(database, "study.trials=3", "trainer.epochs=4")


def test_another_machines_trial_is_taken_over_when_it_is_silent(database: Database) -> None:
    """After the lease's time without a beat, by the taker's clock, its trial is run again; it can't be told then."""
    theirs = open_sweep(database, "study.trials=1")
    claim = theirs._study.claim()
    assert isinstance(claim, ClaimedTrial)
    foreign(database, 0)
    mine = open_sweep(database, "study.trials=1", "study.lease=30")
    now = [0.0]
    mine._study.lease._clock = lambda: now[0]
    mine._study.lease._observations.clear()

    for now[0] in (0, 10, 20, 29):
        assert mine._study.claim() is None
    now[0] = 31
    taken = mine._study.claim()

    assert isinstance(taken, ClaimedTrial)
    assert taken.config == claim.config
    record = theirs._study.record(claim, "FAILED", reason="late")
    assert theirs._study.finish(0, record) is False
    assert states_of(database) == ["RUNNING"]


def test_a_dead_machines_trial_is_logged_by_the_survivor(database: Database) -> None:
    """A process elsewhere died between a trial's value and its run: the process that ends the study logs it."""
    tracker = RecordingTracker(faults={0: Killed()})
    with pytest.raises(Killed):
        open_sweep(database, "study.trials=3", tracker=tracker).run(FakeExecutor(by_rate))
    tracker.records.clear()  # it died a moment before
    foreign(database, 0)
    notes: list[str] = []

    sweep = open_sweep(database, "study.trials=3", tracker=tracker, notes=notes)
    sweep._study.lease._seconds = 6.0  # it is checked once a second
    sweep.run(FakeExecutor(by_rate))

    assert sorted(record.tags["trial"] for record in tracker.records) == ["0", "1", "2"]
    check_invariants(database, tracker, 3)
    assert notes[-1].endswith("(1)")  # it waits for one other process


def test_a_trial_that_comes_back_is_not_started_twice(database: Database) -> None:
    """A suspended process lost both its trials and claims one that it still trains: each is finished once."""
    tracker = RecordingTracker()
    theirs = open_sweep(database, "study.trials=3", tracker=tracker)
    slept: list[bool] = []

    class Slept(FakeExecutor):
        """While it sleeps in its first epochs, another machine's process requeues its trials."""

        def next_event(self, timeout: float) -> Any:
            if len(self.jobs) == 2 and not slept:
                slept.append(True)
                for number in (0, 1):
                    theirs._study._requeue(theirs._study._trials()[number])
            return super().next_event(timeout)

    executor = Slept(lambda job, _: [0.5] * 3 if job == 0 else [0.6], workers=2)
    summary = theirs.run(executor)

    assert summary.progress.done == 3
    check_invariants(database, tracker, 3)


def test_one_ctrl_c_is_orderly_while_another_process_has_the_lock(database: Database) -> None:
    """A stop waits for the lock that requeueing needs; it is no second Ctrl-C."""
    other = open_for_sweep(f"sqlite:///{database.storage.engine.url.database}")
    tracker = RecordingTracker()
    holding = threading.Event()

    def hold() -> None:
        holding.set()
        time.sleep(2.5)

    def script(job: int, config: RunConfig) -> list[Step]:
        thread.start()
        holding.wait()
        return [0.5, signal.SIGINT, 0.5, 0.5]

    thread = threading.Thread(target=lambda: other.locked(hold))
    summary = open_sweep(database, "study.trials=2", tracker=tracker).run(FakeExecutor(script))
    thread.join()
    other.close()

    assert summary.interrupted
    assert states_of(database) == ["WAITING"]


@pytest.mark.parametrize("end", [0.9, "its loss is nan", None], ids=["complete", "failed", "its worker is lost"])
def test_a_result_that_came_too_late_is_left_out(database: Database, end: Step) -> None:
    """A process that slept while its trial was taken over and finished neither stores nor logs a second result."""
    tracker = RecordingTracker()
    theirs = open_sweep(database, "study.trials=1", tracker=tracker)

    class Slept(FakeExecutor):
        """While it sleeps in its first epoch, another sweep process takes the trial over."""

        def next_event(self, timeout: float) -> Any:
            if self.jobs and not tracker.records:
                foreign(database, 0, ended=True)
                finish(database, tracker, 1)
            return super().next_event(timeout)

    summary = theirs.run(Slept(lambda *_: [end]))

    assert summary.trials == 0
    check_invariants(database, tracker, 1)


# ------------------------------------------------------------------------------------------- MLflow goes away


def test_trials_go_on_while_mlflow_is_away(database: Database) -> None:
    """From before the sweep's own run to trial 3; its answer to a later run is lost. Each run is logged once."""
    tracker, notes = RecordingTracker(faults={4: StoreError("the answer was lost")}), []

    def script(job: int, config: RunConfig) -> list[float]:
        tracker.away = job <= 3
        return by_rate(job, config)

    sweep = open_sweep(database, "study.trials=6", tracker=tracker, notes=notes)
    tracker.away = True
    now = [0.0]
    sweep._uploads._clock = lambda: now[0]
    executor = FakeExecutor(script)
    original = executor.next_event

    def ticking(timeout: float) -> Any:
        now[0] += 10
        return original(timeout)

    executor.next_event = ticking  # type: ignore[method-assign]
    summary = sweep.run(executor)

    assert summary.unlogged == 0
    assert len([note for note in notes if "MLflow can't use it" in note]) == 1
    assert tracker.parents == ["parent of digits"] * 6
    check_invariants(database, tracker, 6)


def test_the_next_session_logs_what_mlflow_missed(database: Database) -> None:
    """A session that ends while MLflow is away counts its missing runs; the next uploads them, and trains none."""
    tracker = RecordingTracker()

    def script(job: int, config: RunConfig) -> list[float]:
        tracker.away = job >= 1
        return by_rate(job, config)

    summary = open_sweep(database, "study.trials=3", tracker=tracker).run(FakeExecutor(script))
    logged = len(tracker.records)
    tracker.away = False
    again = finish(database, tracker, 3)

    assert (logged, summary.unlogged) == (1, 2)
    assert again.jobs == {}
    check_invariants(database, tracker, 3)


def test_a_store_that_was_emptied_is_filled_again(database: Database) -> None:
    """A study has what MLflow lost: a store without this study's runs gets every one back, with its curves."""
    tracker, empty = RecordingTracker(), RecordingTracker()
    finish(database, tracker, 3)
    older = [record.model_copy(update={"tags": {**record.tags, "study_id": "older"}}) for record in tracker.records]
    empty.records += older  # another study of the same name

    finish(database, empty, 3)

    del empty.records[:3]
    assert [record.tags["trial"] for record in empty.records] == ["0", "1", "2"]
    assert [record.result for record in empty.records] == [record.result for record in tracker.records]
    assert [record.config for record in empty.records] == [record.config for record in tracker.records]


def test_a_run_that_mlflow_refuses_blocks_no_other(database: Database) -> None:
    """It is reported once and counted as not logged, the others are logged at once; the next sweep logs it."""
    tracker, notes = RecordingTracker(), []
    tracker.refused = {"1"}

    summary = open_sweep(database, "study.trials=3", tracker=tracker, notes=notes).run(FakeExecutor(by_rate))
    logged = [record.tags["trial"] for record in tracker.records]
    tracker.refused = set()
    executor = finish(database, tracker, 3)

    assert logged == ["0", "2"]
    assert summary.unlogged == 1
    assert [note.partition(":")[0] for note in notes] == ["trial 1"]
    assert executor.jobs == {}
    check_invariants(database, tracker, 3)


def test_weights_wait_with_their_run(database: Database, tmp_path: Path) -> None:
    """Weights are kept until their run can be logged with them; then they and the study's folder are deleted."""
    tracker, found = RecordingTracker(), []
    words = ("study.trials=1", "tracking.save_weights=true")

    def script(job: int, config: RunConfig) -> list[float]:
        tracker.away = True
        return by_rate(job, config)

    def reading(record: Any, *args: Any, **more: Any) -> str:
        found.append(record.weights_path.read_bytes())
        return RecordingTracker.log(tracker, record, *args, **more)

    open_sweep(database, *words, tracker=tracker).run(FakeExecutor(script))
    kept = list((tmp_path / "state").rglob("*.h5"))
    tracker.away, tracker.log = False, reading  # type: ignore[method-assign]
    open_sweep(database, *words, tracker=tracker).run(FakeExecutor(by_rate))

    assert [path.name for path in kept] == ["0.weights.h5"]
    assert found == [b"weights"]
    assert list((tmp_path / "state/mnistexp/weights").iterdir()) == []


def test_a_weights_folder_that_fails_ends_no_sweep(database: Database, tmp_path: Path) -> None:
    """If the folder can't be used any more, trials go on without weights, and the user gets one note."""
    notes: list[str] = []

    def script(job: int, config: RunConfig) -> list[float]:
        [folder] = (tmp_path / "state/mnistexp/weights").iterdir()
        if folder.is_dir():
            shutil.rmtree(folder)
            folder.touch()
        return by_rate(job, config)

    sweep = open_sweep(database, "study.trials=3", "tracking.save_weights=true", notes=notes)
    summary = sweep.run(FakeExecutor(script))

    assert (summary.progress.complete, summary.unlogged) == (3, 0)
    assert [note for note in notes if "their weights are not kept" in note] == notes[:1]


def test_recovery_computes_the_objective_as_the_sweep_does(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that was killed between its record and its value gets the same objective as every other."""
    monkeypatch.setattr(studies, "objective_value", lambda fit: 0.125)
    with monkeypatch.context() as patched:
        patched.setattr(optuna.Study, "tell", killed)
        sweep = open_sweep(database, "study.trials=2")
        with pytest.raises(Killed):
            sweep.run(FakeExecutor(by_rate))

    executor = finish(database, RecordingTracker(), 2)

    assert list(executor.jobs) == [1]
    assert [trial.value for trial in trials_of(database)] == [0.125, 0.125]


def killed(*_: object, **more: object) -> None:
    """Take the place of a write."""
    raise Killed


# ------------------------------------------------------------------------------------------- nothing to do


def test_trials_left(database: Database) -> None:
    """Workers are started for as many trials as are left: none for a study that is done or reached its target."""

    def left(*overrides: str) -> int:
        context, searched = parts(*overrides)
        return trials_left(database, context.prepared, searched)

    assert left("study.trials=5") == 5
    finish(database, RecordingTracker(), 3)
    assert [left("study.trials=5"), left("study.trials=3"), left("study.trials=5", "study.target=0.1")] == [2, 0, 0]
    with pytest.raises(ConfigError, match="another trainer"):
        left("study.trials=5", "trainer.epochs=4")


def test_ctrl_c_ends_the_wait_for_others(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finished study waits for its other processes; a first Ctrl-C ends that in order, without any worker."""
    tracker = RecordingTracker()
    finish(database, tracker, 2)
    open_sweep(database, "study.trials=2", tracker=tracker)
    foreign(database, 1)
    waits: list[float] = []
    sweep = open_sweep(database, "study.trials=2", tracker=tracker)
    monkeypatch.setattr(time, "sleep", lambda seconds: (waits.append(seconds), signal.raise_signal(signal.SIGINT)))

    summary = sweep.run(None)

    assert len(waits) == 1
    assert summary.progress.done == 2


# ------------------------------------------------------------------------------------------- the parent run


@pytest.mark.parametrize(("how", "ending"), [("finished", "FINISHED"), ("interrupted", "KILLED")])
def test_the_parent_run_is_closed(database: Database, how: str, ending: str) -> None:
    """However a session ends, its parent run is closed with the counts, the best score and the space."""
    tracker = RecordingTracker()

    def script(job: int, config: RunConfig) -> list[Step]:
        return [signal.SIGINT, 0.8] if job == 2 and how == "interrupted" else [0.8] * 3

    open_sweep(database, "study.trials=3", tracker=tracker).run(FakeExecutor(script))

    [(parent, description, metrics, ended)] = tracker.sweeps
    assert (parent, ended) == ("parent of digits", ending)
    assert metrics["sweep/trials"] == (3 if how == "finished" else 2)
    assert metrics["best_val_accuracy"] == 0.8
    assert "trial 0" in description


def test_the_parent_run_stays_open_while_others_use_it(database: Database) -> None:
    """A sweep process that ends first leaves the parent run open; the last one closes it."""
    tracker = RecordingTracker()
    open_sweep(database, "study.trials=2", tracker=tracker)
    foreign(database, 0)

    finish(database, tracker, 9, "study.target=0.5")  # which the first trials reach
    between = set(tracker.open)
    foreign(database, 0, ended=True)
    finish(database, tracker, 9, "study.target=0.5")

    assert between == {"parent of digits"}
    assert not tracker.open
