"""A study that several sweep processes may share: how its trials are claimed, reported, finished and recovered.

A trial's state changes under the database's lock, in an order that a kill after any write leaves recoverable:

    claim    a new or waiting trial → RUNNING; then its process, its parameters, its overrides and config
    finish   its whole record; then its value and state. A trial with a record is finished, even if it is RUNNING
    requeue  back to WAITING with the same number, parameters and seed, and so with the same bits

`recover_stale_trials` finishes the RUNNING trials of dead processes that have a record, and requeues the others. A
RUNNING trial without a process was being claimed or requeued when its process was killed.
"""

from __future__ import annotations

import functools
import hashlib
import time
import uuid
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from mnistexp.config.compose import run_config
from mnistexp.config.schema import Config, RunConfig, recorded_config
from mnistexp.errors import ConfigError, StoreError
from mnistexp.search.samplers import build_pruner, build_sampler
from mnistexp.search.space import Space, Suggestion
from mnistexp.study.database import AWAY, Database
from mnistexp.study.lease import Lease
from mnistexp.study.progress import Progress, check_fingerprint, fingerprint, progress_of
from mnistexp.study.trial_attrs import (
    BASELINE,
    CLAIM,
    DEATHS,
    PROCESS,
    REASON,
    RECORD,
    STATES,
    Claim,
    StudyAttrs,
    attrs_of,
    parse_attr,
)
from mnistexp.tracking.records import RunRecord, State, parse_record
from mnistexp.tracking.run_context import RunContext, check_fit
from mnistexp.training.results import EpochScores, objective_value

Method = TypeVar("Method", bound=Callable[..., Any])


@dataclass
class ClaimedTrial:
    """A trial that this process is to run."""

    number: int
    config: RunConfig
    overrides: tuple[str, ...]
    started: float  # seconds since 1970
    evaluate_test: bool = True
    save_weights: bool = False
    reported: frozenset[int] = frozenset()  # epochs that an earlier attempt has reported
    epochs: list[EpochScores] = field(default_factory=list)
    interrupted: bool = False  # it ended its epoch after Ctrl-C, and its worker waits


@dataclass(frozen=True)
class InvalidTrial:
    """A trial whose values can't be combined: it has failed without training."""

    number: int
    reason: str


def trial_seed(study_seed: int, number: int) -> int:
    """Derive a trial's seed, the same for each attempt; trial 0 has the study's."""
    if number == 0:
        return study_seed
    return int.from_bytes(hashlib.sha256(f"{study_seed} {number}".encode()).digest()[:4], "big")


def _within(guard: str) -> Callable[[Method], Method]:
    """Decorate a method of SharedStudy so that it runs within a method of its database."""

    def decorate(method: Method) -> Method:
        @functools.wraps(method)
        def guarded(self: SharedStudy, *args: Any, **kwargs: Any) -> Any:
            return getattr(self.database, guard)(lambda: method(self, *args, **kwargs))

        return cast(Method, guarded)

    return decorate


_retried = _within("retry")  # repeats the method while the database is away
_locked = _within("locked")  # also runs it while no other process runs such a method


class SharedStudy:
    """A study as one of its sweep processes uses it.

    Args:
        database: where it is stored.
        context: the data and config that it is about.
        space: what is searched.
    """

    def __init__(self, database: Database, context: RunContext, space: Space) -> None:
        self.database, self.context, self.space = database, context, space
        self._config: Config = context.prepared.config
        self._claimed: dict[int, optuna.Trial] = {}  # trials that this process is running
        self._worker_deaths = 0
        self._open()

    @property
    def name(self) -> str:
        return self._study.study_name

    @property
    def tags(self) -> dict[str, str]:
        """Return the tags of this study's runs. A name may be used again after a deletion; the id is unique."""
        return {"study": self.name, "study_id": self.id}

    @_locked
    def _open(self) -> None:
        prepared, name = self.context.prepared, self.context.prepared.study_name
        self._study = study = optuna.create_study(
            study_name=name, storage=self.database.storage, direction="maximize", load_if_exists=True
        )
        if study.direction is not optuna.study.StudyDirection.MAXIMIZE:  # load_if_exists doesn't check it
            raise StoreError(f"study.name={name}: minimises, so it isn't mnistexp's; give another study.name")
        attrs = parse_attr(StudyAttrs, study.user_attrs, f"study.name={name}")
        self.lease = Lease(study, self._config.study.lease)
        wanted = fingerprint(self.space, self._config, prepared.dataset.fingerprint)
        if study.get_trials(deepcopy=False) or self.lease.alive():
            check_fingerprint(name, attrs, wanted)
        else:
            study.set_user_attr("fingerprint", wanted)
        self.id = attrs.id or uuid.uuid4().hex
        study.set_user_attr("id", self.id)
        study.set_user_attr("config_dir", str(prepared.request.config_dir or ""))
        self.lease.register()
        # Processes have different numbers, so neither two of them nor two sessions draw the same points.
        seed = self._config.seed
        study.sampler = build_sampler(self._config.study.sampler, trial_seed(seed, self.lease.number), seed)
        study.pruner = build_pruner(self._config.study.pruner, self._config.trainer.epochs)

    @_retried
    def progress(self) -> Progress:
        return progress_of(self._trials(), self._config.study.trials)

    # ------------------------------------------------------------------------------- one trial

    @_locked
    def claim(self) -> ClaimedTrial | InvalidTrial | None:
        """Claim the next trial; None if all that remain are finished or run by other processes."""
        self.lease.heartbeat()  # a slow sampler that fills many workers may take longer than the lease
        self._recover()
        trials = self._trials()
        taken = sum(trial.state.is_finished() or trial.state is TrialState.RUNNING for trial in trials)
        if taken >= self._config.study.trials:
            return None
        self._enqueue(trials)
        self.database.check_lock()  # or two processes could exceed the budget
        trial = self._study.ask()
        self._set(trial._trial_id, PROCESS, self.lease.number)
        try:
            suggestion = self._suggest(trial)
            check_fit(suggestion.config, self.context.prepared.dataset)
        except ConfigError as error:
            self._set(trial._trial_id, REASON, str(error))
            self._study.tell(trial.number, state=TrialState.FAIL)
            return InvalidTrial(trial.number, str(error))
        config = run_config(suggestion.config)
        claim = Claim(overrides=suggestion.overrides, config=config.model_dump_json())
        self._set(trial._trial_id, CLAIM, claim.model_dump(mode="json"))
        self._claimed[trial.number] = trial
        return ClaimedTrial(
            number=trial.number,
            config=config,
            overrides=suggestion.overrides,
            started=time.time(),
            evaluate_test=suggestion.evaluate_test,
            save_weights=suggestion.config.tracking.save_weights,
            reported=frozenset(trial._cached_frozen_trial.intermediate_values),
        )

    def _enqueue(self, trials: Sequence[FrozenTrial]) -> None:
        """Enqueue what precedes the sampler: the composed config as trial 0, then a grid's points."""
        if not trials:
            self._study.enqueue_trial(dict(self.space.baseline()[1]), user_attrs={BASELINE: True})
        elif self._config.study.sampler.name == "grid" and all(t.state is not TrialState.WAITING for t in trials):
            taken = {frozenset(t.params.items()) for t in trials}
            point = next((point for point in self.space.points() if frozenset(point.items()) not in taken), None)
            if point is not None:
                self._study.enqueue_trial(dict(point))

    def _suggest(self, trial: optuna.Trial) -> Suggestion:
        """Draw a trial's point; for a requeued trial Optuna returns the values that it had."""
        if trial.user_attrs.get(BASELINE):
            return self.space.suggest_baseline(trial)
        return self.space.suggest(trial, trial_seed(self._config.seed, trial.number))

    @_retried
    def report(self, claimed: ClaimedTrial, scores: EpochScores) -> bool:
        """Report an epoch's score. Returns: whether the trial goes on."""
        if scores.epoch in claimed.reported:  # an earlier attempt had the same bits and was continued here
            return True  # if that was its last epoch, the next one decides
        with suppress(UpdateFinishedTrialError):  # another process has taken the trial over and finished it
            trial = self._claimed[claimed.number]
            trial.report(scores.val_accuracy, scores.epoch)
            return scores.epoch == claimed.config.trainer.epochs or not trial.should_prune()
        return False

    @_locked
    def finish(self, number: int, record: RunRecord) -> bool:
        """Store a trial's record and its value. Returns: False if another process has the trial or finished it."""
        trial = self._trials()[number]
        self._claimed.pop(number, None)
        attrs = attrs_of(trial)
        if trial.state.is_finished():  # by this process, if the database's answer to an earlier try was lost
            return attrs.record == record.model_dump(mode="json")
        if trial.state is not TrialState.RUNNING or attrs.process != self.lease.number:
            return False
        with suppress(UpdateFinishedTrialError):  # this process was suspended until the server released its lock
            self._tell(trial, record)
            return True
        return False

    @_locked
    def requeue(self, number: int) -> None:
        """Put a trial back so that it is run again."""
        trial = self._trials()[number]
        self._claimed.pop(number, None)
        if trial.state is TrialState.RUNNING and attrs_of(trial).process == self.lease.number:
            self._requeue(trial)

    def _requeue(self, trial: FrozenTrial) -> None:
        # In this order: a RUNNING trial without a process is recovered, a WAITING one of a dead process is not.
        self._set(trial._trial_id, PROCESS, None)
        self.database.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def _tell(self, trial: FrozenTrial, record: RunRecord) -> None:
        """Store a record, and its reason, value and state, which finishes the trial."""
        self._set(trial._trial_id, RECORD, record.model_dump(mode="json"))
        if record.reason:
            self._set(trial._trial_id, REASON, record.reason)
        value = objective_value(record.result.fit) if record.result and record.state == "COMPLETE" else None
        self._study.tell(trial.number, value, state=STATES[record.state])

    def count_death(self, number: int) -> int:
        """Record that a worker died with this trial. Returns: how many workers and processes have."""
        self._worker_deaths += 1
        worker = f" worker {self._worker_deaths}"  # the same for each try, so that a death counts once
        with suppress(UpdateFinishedTrialError):  # another process has taken the trial over and finished it
            return self.database.retry(lambda: self._count_death(self._trials()[number], worker))
        return 0

    def _count_death(self, trial: FrozenTrial, worker: str = "") -> int:
        attrs = attrs_of(trial)
        deaths = sorted({*attrs.deaths, f"process {attrs.process}{worker}"})
        self._set(trial._trial_id, DEATHS, deaths)
        return len(deaths)

    # ------------------------------------------------------------------------------- all processes

    @_locked
    def recover_stale_trials(self) -> set[int]:
        """Finish or requeue the trials of dead processes. Returns: the other living processes."""
        return self._recover()

    def _recover(self) -> set[int]:
        alive = self.lease.alive(mark_dead=True)
        for trial in self._trials(TrialState.RUNNING):
            process = attrs_of(trial).process
            if process not in alive:
                self._resolve(trial)
            elif process == self.lease.number and trial.number not in self._claimed:
                self._requeue(trial)  # this process's own claim, which the database cut off
        return alive - {self.lease.number}

    def _resolve(self, trial: FrozenTrial) -> None:
        """Finish a dead process's trial if it has a record or died too often; else requeue it."""
        attrs, retries = attrs_of(trial), self._config.executor.retries
        if attrs.record is not None:
            self._tell(trial, parse_record(attrs.record))
            return
        deaths = self._count_death(trial) if attrs.claim is not None and attrs.process is not None else 0
        if attrs.claim is None or deaths <= retries:
            self._requeue(trial)
            return
        assert trial.datetime_start is not None
        config, started = recorded_config(attrs.claim.config), trial.datetime_start.timestamp()
        dead = ClaimedTrial(trial.number, config, attrs.claim.overrides, started)
        reason = f"its worker or sweep process died {deaths} times (executor.retries={retries})"
        self._tell(trial, self.record(dead, "FAILED", reason=reason))

    @_retried
    def finished_records(self, known: Container[int]) -> list[RunRecord]:
        """Return the records of finished trials that are not `known` and that no living process is about to log."""
        alive, records = self.lease.alive(), []
        for trial in self._trials(*STATES.values()):
            attrs = attrs_of(trial)
            if attrs.record is not None and trial.number not in known and attrs.process not in alive:
                records.append(parse_record(attrs.record))
        return records

    @_retried
    def stored_record(self, number: int) -> RunRecord:
        """Return the record of a finished trial."""
        return parse_record(attrs_of(self._trials()[number]).record)

    def record(self, trial: ClaimedTrial, state: State, **outcome: Any) -> RunRecord:
        """Return the record of a trial that ends now."""
        tags = {**self.tags, "process": str(self.lease.number)}
        return self.context.trial(trial.number, trial.config, trial.overrides, trial.started, state, tags, **outcome)

    @_retried
    def is_alive(self, process: str) -> bool:
        """Return whether a process, by the number in a run's tag, may still work on its trials."""
        return process.isdecimal() and int(process) in self.lease.alive()

    def heartbeat(self) -> None:
        """Renew the lease; if the database is away, the next call tries again."""
        with suppress(*AWAY):
            self.lease.heartbeat()

    @_locked
    def release(self) -> bool:
        """Record that this process has no trials any more. Returns: whether no other process is left."""
        self.lease.release()
        return not self.lease.alive()

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The study's trials, in the order of their numbers."""
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _set(self, trial_id: int, key: str, value: object) -> None:
        self.database.storage.set_trial_user_attr(trial_id, key, value)
