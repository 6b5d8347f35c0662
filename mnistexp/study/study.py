"""A study that several drivers may share: its trials from the first draw to the last word, as Optuna keeps them.

What decides or changes a trial's state happens in turn (see storage.py), and is written so that a process
that is killed after any write leaves something that the next turn can mend:

    claim   a new trial, or one that waits → RUNNING; its driver; its parameters; its overrides and config
    finish  its whole record; then its state and value. A trial with a record is finished, whoever says so
    again   back to WAITING: same number, same parameters, same seed, so the same bits

A RUNNING trial whose driver is dead is told if it has a record, and run again if it hasn't. One without a
driver was being claimed or handed back when its process was killed: both are done in turn, so nobody is at it.
"""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mnistexp.config import user_code
from mnistexp.config.compose import identity, run_config
from mnistexp.config.schema import Config, RunConfig, recorded_config
from mnistexp.errors import ConfigError, StoreError
from mnistexp.search.samplers import build_pruner, build_sampler
from mnistexp.search.space import Space, Suggestion
from mnistexp.study.database import AWAY, Database
from mnistexp.study.lease import Lease
from mnistexp.study.trial_attrs import TrialRecord, kept
from mnistexp.tracking import records
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.run_context import PreparedRun, RunContext, check_fit
from mnistexp.training.results import EpochScores

ATTRIBUTE = "mnistexp"  # a trial's overrides, seed and config
BASELINE = "mnistexp.baseline"  # true for the composed config itself
DRIVER = "mnistexp.driver"  # the number of the driver that has the trial: see drivers.py
DEATHS = "mnistexp.deaths"  # the workers and drivers that died with it, each once, however often that is written
RECORD = "mnistexp.record"  # the finished run, until and after MLflow has it
REASON = "reason"  # of a failure
CONFIRMATION = "search.contenders"  # in a fingerprint: the study repeats the top configs of another
VERDICT = "mnistexp.verdict"  # a confirmation's: what became of the champion

TELL = {
    "COMPLETE": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "FAILED": TrialState.FAIL,
    "INTERRUPTED": TrialState.FAIL,  # never told by us: those go back to waiting
}


@dataclass(frozen=True)
class Best:
    """A study's best trial: complete, finite, highest validation accuracy, ties to the lowest number."""

    number: int
    val_accuracy: float
    overrides: tuple[str, ...]
    config: RunConfig


@dataclass(frozen=True)
class Progress:
    """Where a study stands, all drivers' trials together."""

    complete: int
    pruned: int
    failed: int
    total: int  # study.trials
    best: Best | None

    @property
    def done(self) -> int:
        """Trials that need no more work."""
        return self.complete + self.pruned + self.failed


@dataclass
class ClaimedTrial:
    """A trial that is this driver's to run."""

    number: int
    draw: Suggestion
    config: RunConfig
    trial: optuna.Trial
    reported: frozenset[int]  # epochs that an earlier attempt was judged by
    epochs: list[EpochScores] = field(default_factory=list)


@dataclass(frozen=True)
class InvalidTrial:
    """A trial whose values can't stand together: it has failed, and nothing was trained."""

    number: int
    reason: str


# --------------------------------------------------------------------------------------------- identity


def fingerprint(space: Space, config: Config, data_fingerprint: str) -> dict[str, str]:
    """What makes trials of one study comparable: space, data, and the config that the space doesn't touch."""
    base = {**identity(run_config(config)), "data": data_fingerprint}
    return {
        **{f"search.{name}": text for name, text in space.fingerprint().items()},
        **{key: json.dumps(base[key], sort_keys=True) for key in base},
        **({"--code": digest} if (digest := user_code.sha256()) else {}),  # any trial may have a function of it
    }


def _check_same(study: Study, facts: dict[str, str]) -> None:
    """Refuse to mix two questions in one study. Raises: ConfigError naming what differs."""
    before = study.user_attrs.get("fingerprint")
    if not isinstance(before, dict):
        raise StoreError(f"study.name={study.study_name}: was not made by mnistexp; give another study.name")
    changed = sorted(key for key in facts.keys() | before.keys() if facts.get(key) != before.get(key))
    if "--code" in changed:
        raise ConfigError(
            f"study.name={study.study_name}: was started with {'other' if '--code' in before else 'no'} code of the "
            f"user's own (--code); MLflow keeps what it had as the artifact code.py of its run; give that file, or "
            f"another study.name"
        )
    if changed:
        name = f"another name, e.g. study.name={study.study_name}-2"
        raise ConfigError(
            f"study.name={study.study_name}: was started with another {', '.join(changed)}; its trials can't be "
            f"compared with new ones, so give {'what it had' if CONFIRMATION in facts else name}"
        )


def trial_seed(study_seed: int, number: int) -> int:
    """A trial's own seed: the same for its retry, another for another trial. Trial 0 keeps the study's."""
    if number == 0:
        return study_seed
    return int.from_bytes(hashlib.sha256(f"{study_seed} {number}".encode()).digest()[:4], "big")


def progress(trials: Sequence[FrozenTrial], total: int) -> Progress:
    """Count a study's trials and find the best."""
    states = [trial.state for trial in trials]
    complete, pruned, failed = map(states.count, (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return Progress(complete, pruned, failed, total, _best(trials))


def _best(trials: Sequence[FrozenTrial]) -> Best | None:
    """Optuna's own best_trial would take an infinite value."""
    scored = [
        (-trial.value, trial.number, trial)
        for trial in trials
        if trial.state is TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value)
    ]
    if not scored:
        return None
    loss, number, trial = min(scored, key=lambda entry: entry[:2])
    known = _known(trial)
    return Best(number, -loss, known.overrides, recorded_config(known.config))


def _known(trial: FrozenTrial) -> TrialRecord:
    """What a claimed trial was claimed with. Raises: StoreError if something else wrote it."""
    return kept(TrialRecord, trial.user_attrs.get(ATTRIBUTE), f"trial {trial.number} of this study")


def _whole(trial: FrozenTrial, key: str) -> int | None:
    """A trial's attribute that is a whole number, if it has it. Raises: StoreError if it is anything else."""
    value = trial.user_attrs.get(key)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise StoreError(f"trial {trial.number} of this study was not written by mnistexp ({key}); give another study.name")


def standing(storage: BaseStorage, prepared: PreparedRun, space: Space) -> Progress | None:
    """Where the study is that a sweep would go on with, if any. Raises: ConfigError if it asks another question."""
    name, total = prepared.study_name, prepared.config.study.trials
    study = optuna.load_study(study_name=name, storage=storage) if name in optuna.get_all_study_names(storage) else None
    trials = study.get_trials(deepcopy=False) if study else []
    if study and trials:  # else any question may still become its own
        _check_same(study, fingerprint(space, prepared.config, prepared.dataset.fingerprint))
    return progress(trials, total) if trials else None


def keep_verdict(database: Database, name: str, text: str) -> None:
    """Keep what became of the champion, beside the confirmation that this study is."""
    study = database.retry(lambda: optuna.load_study(study_name=name, storage=database.storage))
    database.retry(lambda: study.set_user_attr(VERDICT, text))


# ------------------------------------------------------------------------------------------ shared study


class _StudyAttributes:
    """A study's user attributes as the drivers' entries are kept in them."""

    def __init__(self, study: Study) -> None:
        self._study = study

    def read(self) -> Mapping[str, Any]:
        return self._study.user_attrs

    def write(self, key: str, value: object) -> None:
        self._study.set_user_attr(key, value)


class SharedStudy:
    """A study, seen by one of its drivers. Methods wait for a database that is away; see Database.retry.

    Args:
        database: where it is kept.
        session: whose data and config it is about.
        space: what is searched.
    """

    def __init__(self, database: Database, session: RunContext, space: Space) -> None:
        self._database, self._session, self._space = database, session, space
        self._config: Config = session.prepared.config
        self._mine: set[int] = set()
        self._worker_deaths, self._found = 0, False
        self._study = database.locked(self._open)

    @property
    def name(self) -> str:
        """The study's name."""
        return self._study.study_name

    @property
    def tags(self) -> dict[str, str]:
        """The tags of this study's runs. Names come again (a database is deleted, a store is shared); ids don't."""
        return {"study": self.name, "study_id": self._id}

    @property
    def weights_folder(self) -> str:
        """A name for the folder of this study's weights. It is a study's attribute, so it is looked at first."""
        if len(self._id) != 32 or set(self._id) - set("0123456789abcdef"):
            raise StoreError(f"study.name={self.name}: was not made by mnistexp; give another study.name")
        return self._id

    def progress(self) -> Progress:
        """Where the study stands now."""
        return self._database.retry(lambda: progress(self._trials(), self._config.study.trials))

    def lives(self, driver: str) -> bool:
        """Whether a driver, by the number in a run's tag, may be at work on what it began."""
        return driver.isdecimal() and self._database.retry(lambda: self.drivers.alive(int(driver)))

    def claim(self) -> ClaimedTrial | InvalidTrial | None:
        """The next trial, this driver's now; None while no more are to be started: they are done, or others' now."""
        return self._database.locked(self._claim)

    def goes_on(self, claim: ClaimedTrial, scores: EpochScores) -> bool | None:
        """Report an epoch; False where the pruner stops the trial, None where it isn't this driver's any more."""
        try:
            return self._database.retry(partial(self._goes_on, claim, scores))
        except UpdateFinishedTrialError:
            return None

    def finish(self, number: int, record: RunRecord, value: float | None) -> bool:
        """Keep a trial's record and tell its score; False where another driver has it by now, or has told it."""
        plain = json.loads(json.dumps(records.to_json(record)))
        try:
            return self._database.locked(partial(self._finish, number, plain, TELL[record.state], value))
        except UpdateFinishedTrialError:  # this process slept in its turn until the server took that away
            return False

    def died(self, number: int) -> int:
        """Note that a worker died with this trial. Returns: how often workers or drivers have."""
        self._worker_deaths += 1
        return self._database.retry(partial(self._count_death, number, f"worker {self._worker_deaths}"))

    def requeue(self, number: int) -> None:
        """Leave a trial to whoever claims it next, as if it had never been started."""
        self._database.locked(partial(self._give_back, number))

    def finished_records(self, known: Container[int]) -> Iterator[RunRecord]:
        """The records of finished trials that are not `known` and that no living driver is about to log.

        Raises: StoreError if another version of mnistexp wrote one.
        """
        for trial in self._database.retry(self._trials):
            plain = trial.user_attrs.get(RECORD)
            owner = str(_whole(trial, DRIVER))
            if trial.state.is_finished() and plain and trial.number not in known and not self.lives(owner):
                yield records.from_json(plain)

    def heartbeat(self) -> None:
        """Keep this driver's lease; a database that is away is tried again at the next beat."""
        try:
            self.drivers.heartbeat()
        except AWAY:
            return

    def recover_stale_trials(self) -> bool:
        """Mend what dead drivers left under way. Returns: whether there was any since this was asked last."""
        self._database.locked(self._reap)
        found, self._found = self._found, False
        return found

    def try_upload_lock(self, work: Callable[[], object]) -> bool:
        """Look into MLflow and then write to it, unless another driver is at that just now."""
        return self._database.try_upload_lock(work)

    def others(self) -> int:
        """How many other drivers are at work on this study."""
        return self._database.retry(self.drivers.others)

    def leave(self) -> bool:
        """Say that this driver has no trial any more. Returns: whether no other driver is left."""
        return self._database.locked(self._leave)

    # ------------------------------------------------------------------------------ opening

    def _open(self) -> Study:
        prepared, storage = self._session.prepared, self._database.storage
        name = prepared.study_name
        study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
        if study.direction is not optuna.study.StudyDirection.MAXIMIZE:  # load_if_exists doesn't look
            raise StoreError(f"study.name={name}: minimises, so it isn't mnistexp's; give another study.name")
        self.drivers = Lease(_StudyAttributes(study), self._config.study.lease, local=self._database.local)
        facts = fingerprint(self._space, self._config, prepared.dataset.fingerprint)
        begun = study.get_trials(deepcopy=False) or self.drivers.others()
        if not begun and isinstance(study.user_attrs.get("fingerprint"), dict | None):
            study.set_user_attr("fingerprint", facts)  # as long as there is no trial, any question may become its own
        else:
            _check_same(study, facts)
        if "id" not in study.user_attrs:
            study.set_user_attr("id", uuid.uuid4().hex)
        self._id = str(study.user_attrs["id"])
        study.set_user_attr("config_dir", str(prepared.request.config_dir or ""))
        self.drivers.register()
        # Drivers' numbers differ, so no two draw the same points, nor does a session that goes on.
        seed = self._config.seed
        study.sampler = build_sampler(self._config.study.sampler, trial_seed(seed, self.drivers.number), seed)
        study.pruner = build_pruner(self._config.study.pruner, self._config.trainer.epochs)
        return study

    # ------------------------------------------------------------------------------ in turn

    def _claim(self) -> ClaimedTrial | InvalidTrial | None:
        self.drivers.heartbeat()  # many workers are filled one after the other, and a sampler may think for long
        self._reap()
        trials = self._trials()
        under_way = sum(trial.state is TrialState.RUNNING for trial in trials)
        if progress(trials, 0).done + under_way >= self._config.study.trials:
            return None
        self._enqueue(trials)
        self._database.check_lock()  # or two drivers would go over the budget
        trial = self._study.ask()
        self._set(trial._trial_id, DRIVER, self.drivers.number)
        try:
            draw = self._draw(trial)
            check_fit(draw.config, self._session.prepared.dataset)
        except ConfigError as error:
            self._set(trial._trial_id, REASON, str(error))
            self._study.tell(trial.number, state=TrialState.FAIL)
            return InvalidTrial(trial.number, str(error))
        config = run_config(draw.config)
        known = {"overrides": draw.overrides, "seed": config.seed, "config": config.model_dump_json()}
        self._set(trial._trial_id, ATTRIBUTE, known)
        self._mine.add(trial.number)
        reported = frozenset(trial._cached_frozen_trial.intermediate_values)
        return ClaimedTrial(trial.number, draw, config, trial, reported)

    def _enqueue(self, trials: Sequence[FrozenTrial]) -> None:
        """What comes before the sampler: the composed config itself, then a grid's points."""
        if not trials:
            self._study.enqueue_trial(dict(self._space.baseline()[1]), user_attrs={BASELINE: True})
        elif self._config.study.sampler.name == "grid" and all(t.state is not TrialState.WAITING for t in trials):
            taken = {frozenset(t.params.items()) for t in trials}
            point = next((point for point in self._space.points() if frozenset(point.items()) not in taken), None)
            if point is not None:
                self._study.enqueue_trial(dict(point))

    def _draw(self, trial: optuna.Trial) -> Suggestion:
        """A trial's point; for one that is run again Optuna gives the values that it had."""
        if trial.user_attrs.get(BASELINE):
            return self._space.suggest_baseline(trial)
        return self._space.suggest(trial, trial_seed(self._config.seed, trial.number))

    def _goes_on(self, claim: ClaimedTrial, scores: EpochScores) -> bool:
        if scores.epoch in claim.reported:  # the same bits as in the attempt that was cut off, and judged there
            return True  # if it was to stop at the last of them, the next epoch says so again
        claim.trial.report(scores.val_accuracy, scores.epoch)
        return scores.epoch == claim.config.trainer.epochs or not claim.trial.should_prune()

    def _finish(self, number: int, plain: Mapping[str, Any], state: TrialState, value: float | None) -> bool:
        trial = self._trials()[number]
        self._mine.discard(number)
        if trial.state.is_finished():  # by us, if the answer to an earlier try was lost
            return bool(trial.user_attrs.get(RECORD) == plain)
        if trial.state is not TrialState.RUNNING or _whole(trial, DRIVER) != self.drivers.number:
            return False
        self._set(trial._trial_id, RECORD, plain)
        self._tell(trial, plain, state, value)
        return True

    def _tell(self, trial: FrozenTrial, plain: Mapping[str, Any], state: TrialState, value: float | None) -> None:
        if plain["reason"]:
            self._set(trial._trial_id, REASON, plain["reason"])
        self._study.tell(trial.number, value, state=state)

    def _reap(self) -> None:
        for trial in self._trials(TrialState.RUNNING):
            owner = _whole(trial, DRIVER)
            if owner == self.drivers.number and trial.number not in self._mine:
                self._again(trial)  # a claim of ours that the database cut off
            elif owner is None or not self.drivers.alive(owner):
                self._found = True
                self._settle(trial)
        self.drivers.mark_dead()

    def _settle(self, trial: FrozenTrial) -> None:
        """A trial whose driver is dead: told if it was finished, else run again, but not for ever."""
        plain = trial.user_attrs.get(RECORD)
        known = _known(trial) if ATTRIBUTE in trial.user_attrs else None
        owner, retries = _whole(trial, DRIVER), self._config.executor.retries
        times = self._count_death(trial.number, "") if plain is None and known and owner is not None else 0
        if known and times > retries:
            plain = self._failed(trial, known, f"its worker or driver died {times} times (executor.retries={retries})")
            self._set(trial._trial_id, RECORD, plain)
        if plain is None:
            self._again(trial)
            return
        record = records.from_json(plain)
        value = record.result.fit.best.val_accuracy if record.result and record.state == "COMPLETE" else None
        self._tell(trial, plain, TELL[record.state], value)

    def _failed(self, trial: FrozenTrial, known: TrialRecord, reason: str) -> dict[str, Any]:
        """The record of a trial that failed for good although nobody is left who saw it."""
        assert trial.datetime_start is not None
        config, overrides = recorded_config(known.config), known.overrides
        tags = {**self.tags, "driver": str(self.drivers.number)}
        started = trial.datetime_start.timestamp()
        record = self._session.trial(trial.number, config, overrides, started, "FAILED", tags, reason=reason)
        return dict(json.loads(json.dumps(records.to_json(record))))

    def _again(self, trial: FrozenTrial) -> None:
        """First nobody's, then waiting: a process that is killed in between leaves one that nobody claims."""
        self._set(trial._trial_id, DRIVER, None)
        self._database.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def _give_back(self, number: int) -> None:
        trial = self._trials()[number]
        self._mine.discard(number)
        if trial.state is TrialState.RUNNING and _whole(trial, DRIVER) == self.drivers.number:
            self._again(trial)

    def _leave(self) -> bool:
        self.drivers.end()
        return self.drivers.others() == 0

    def _count_death(self, number: int, worker: str) -> int:
        trial = self._trials()[number]
        before = trial.user_attrs.get(DEATHS) or []
        if not isinstance(before, list) or not all(isinstance(each, str) for each in before):
            raise StoreError(
                f"trial {number} of this study was not written by mnistexp ({DEATHS}); give another study.name"
            )
        deaths = sorted({*before, f"driver {_whole(trial, DRIVER)} {worker}".strip()})
        self._set(trial._trial_id, DEATHS, deaths)
        return len(deaths)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The study's trials, in the order of their numbers."""
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _set(self, trial_id: int, key: str, value: object) -> None:
        self._database.storage.set_trial_user_attr(trial_id, key, value)
