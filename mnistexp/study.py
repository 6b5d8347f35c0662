"""The sweep: ask, suggest, run, report or prune, log, tell.

Order of writes: a run goes to MLflow first, then Optuna is told its score. A crash in between leaves a
logged run and a RUNNING trial, and the next start tells it from what MLflow holds.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from mnistexp.config import run_config
from mnistexp.errors import ConfigError, StoreError
from mnistexp.executor import EpochEnded, Event, Executor, Failed, Finished
from mnistexp.results import EpochScores, objective_value
from mnistexp.run import POLL_SECONDS, Session, check_batch, run_name, wait_until_ready
from mnistexp.schema import Config, RunConfig, recorded_config
from mnistexp.search_space import Draw, SearchSpace
from mnistexp.strategy import build_pruner, build_sampler
from mnistexp.tracking import LoggedRun, RunRecord, State, Tracker

ATTRIBUTE = "mnistexp"
"""Each trial's one user attribute: overrides and seed, and of a handed-back one that it was interrupted."""

TELL = {"COMPLETE": TrialState.COMPLETE, "PRUNED": TrialState.PRUNED, "FAILED": TrialState.FAIL}


@dataclass(frozen=True)
class Best:
    """A study's best trial: complete, finite, highest validation accuracy, ties to the lowest number."""

    number: int
    val_accuracy: float
    overrides: tuple[str, ...]
    config: RunConfig


@dataclass(frozen=True)
class Progress:
    """Where a study stands. Interrupted trials, which run again, are in no count."""

    complete: int
    pruned: int
    failed: int
    total: int  # study.trials
    best: Best | None

    @property
    def done(self) -> int:
        """Trials that need no more work."""
        return self.complete + self.pruned + self.failed


@dataclass(frozen=True)
class Summary:
    """How a session of a sweep ended."""

    progress: Progress
    stopped: str  # why no further trial started
    trials: int  # that this session ran
    seconds: float  # from the first trial's start
    parent_cpu_seconds: float  # of this process in that time: composing, asking, logging, telling


# --------------------------------------------------------------------------------------------- identity


def fingerprint(space: SearchSpace, config: Config, data_fingerprint: str) -> dict[str, str]:
    """What makes trials of one study comparable: space, data, and the config that the space doesn't touch."""
    base = run_config(config).model_dump(mode="json")
    base["data"] = data_fingerprint
    return {
        **{f"search.{name}": text for name, text in space.describe().items()},
        **{key: json.dumps(base[key], sort_keys=True) for key in base},
    }


def _check_same(study: Study, facts: dict[str, str]) -> None:
    """Refuse to mix two questions in one study. Raises: ConfigError naming what differs."""
    before = study.user_attrs.get("fingerprint")
    if before is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("fingerprint", facts)
        return
    if before is None:
        raise StoreError(f"study.name={study.study_name}: was not made by mnistexp; give another study.name")
    changed = sorted(key for key in facts.keys() | before.keys() if facts.get(key) != before.get(key))
    if changed:
        raise ConfigError(
            f"study.name={study.study_name}: was started with another {', '.join(changed)}; its trials can't be "
            f"compared with new ones, so give another name, e.g. study.name={study.study_name}-2"
        )


def trial_seed(study_seed: int, number: int) -> int:
    """A trial's own seed: the same for its retry, another for another trial. Trial 0 keeps the study's."""
    if number == 0:
        return study_seed
    return int.from_bytes(hashlib.sha256(f"{study_seed} {number}".encode()).digest()[:4], "big")


def progress(trials: Sequence[FrozenTrial], total: int) -> Progress:
    """Count a study's trials and find the best."""
    counted = [trial for trial in trials if not trial.user_attrs.get(ATTRIBUTE, {}).get("interrupted")]
    states = [trial.state for trial in counted]
    return Progress(
        states.count(TrialState.COMPLETE),
        states.count(TrialState.PRUNED),
        states.count(TrialState.FAIL),
        total,
        _best(counted),
    )


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
    known = trial.user_attrs.get(ATTRIBUTE)
    if known is None:
        raise StoreError("this study was not made by mnistexp; give another study.name")
    return Best(number, -loss, tuple(known["overrides"]), recorded_config(known["config"]))


def load_best(storage: BaseStorage, name: str) -> tuple[Best, Path | None]:
    """A study's best trial, and the user's config folder that it was composed with.

    Raises: StoreError if there is no such study, or none of its trials completed.
    """
    names = optuna.get_all_study_names(storage)
    if name not in names:
        there = (
            f"there are {', '.join(sorted(names))}" if names else "there is none yet; run `python -m mnistexp sweep`"
        )
        raise StoreError(f"study.name={name}: no such study here; {there}")
    study = optuna.load_study(study_name=name, storage=storage)
    best = progress(study.get_trials(deepcopy=False), 0).best
    if best is None:
        raise StoreError(
            f"study.name={name}: no trial of it completed; run `python -m mnistexp sweep study.name={name}`"
        )
    folder = study.user_attrs.get("config_dir")
    return best, Path(folder) if folder else None


# ------------------------------------------------------------------------------------------------ sweep


@dataclass
class _Job:
    """A trial under way."""

    trial: optuna.Trial
    draw: Draw
    config: RunConfig
    started: float  # seconds since 1970
    weights_path: Path | None
    epochs: list[EpochScores] = field(default_factory=list)


class Sweep:
    """One session of a study: goes on from what is there, up to the total of `study.trials`.

    Args:
        on_trial: called after each trial with its record and where the study stands.
        on_refused: called with the reason, the number and the same after a draw that can't be trained.
    """

    def __init__(
        self,
        storage: BaseStorage,
        session: Session,
        space: SearchSpace,
        tracker: Tracker,
        on_trial: Callable[[RunRecord, Progress], None],
        on_refused: Callable[[str, int, Progress], None] = lambda *_: None,
    ) -> None:
        self._storage, self._session, self._space = storage, session, space
        self._tracker, self._on_trial, self._on_refused = tracker, on_trial, on_refused
        self._config: Config = session.prepared.config
        self._study = self._open()
        self._jobs: dict[int, _Job] = {}
        self._ran = 0
        self._mend()
        self.progress = self._look()

    @property
    def name(self) -> str:
        """The study's name."""
        return self._study.study_name

    def logged_best(self) -> LoggedRun | None:
        """The best trial's run, if there are both."""
        best = self.progress.best
        return self._logged(self._study.get_trials(deepcopy=False)[best.number]) if best else None

    def run(self, executor: Executor) -> Summary:
        """Run trials until the budget, the time or the target is reached; does not ask the executor if it is.

        Whatever ends it early, an interrupt or a fault, hands the trials under way back to the study.
        """
        if (stopped := self._why_stop(0)) is not None:
            return Summary(self.progress, stopped, 0, 0, 0)
        parent = self._start_parent(wait_until_ready(executor))
        started, cpu = time.monotonic(), time.process_time()

        def finish(stopped: str) -> Summary:
            seconds = time.monotonic() - started
            summary = Summary(self.progress, stopped, self._ran, seconds, time.process_time() - cpu)
            self._tracker.finish(parent, _parent_metrics(summary), self._description())
            return summary

        with TemporaryDirectory(prefix="mnistexp-") as scratch:
            try:
                stopped = self._loop(executor, parent, Path(scratch), started)
            except BaseException:
                for number in self._jobs:
                    self._hand_back(number)
                with suppress(Exception):  # the next start does the same; what ended this one is what is told
                    self._mend()
                    self.progress = self._look()
                    finish("interrupted")
                raise
        return finish(stopped)

    def _loop(self, executor: Executor, parent: str, scratch: Path, started: float) -> str:
        while True:
            stopped = self._why_stop(time.monotonic() - started)
            while stopped is None and executor.idle() and self._left() > 0:
                with _ctrl_c_held_back():
                    self._submit(executor, scratch)
            if stopped is not None and not self._jobs:
                return stopped
            self._handle(executor.next_event(POLL_SECONDS), executor, parent)

    def _why_stop(self, seconds: float) -> str | None:
        """Why no further trial starts, or None."""
        study, best = self._config.study, self.progress.best
        if self.progress.done >= study.trials:
            return f"all {study.trials} trials are done"
        if study.target is not None and best is not None and best.val_accuracy >= study.target:
            return f"trial {best.number} reached study.target={study.target:g}"
        if study.timeout is not None and seconds >= study.timeout:
            return f"study.timeout={study.timeout:g} is over"
        return None

    def _left(self) -> int:
        return self._config.study.trials - self.progress.done - len(self._jobs)

    # ------------------------------------------------------------------------------ one trial

    def _submit(self, executor: Executor, scratch: Path) -> None:
        """Ask for a trial, draw it and hand it to a worker; a draw that can't be trained is a failed trial."""
        self._enqueue()
        trial, started = self._study.ask(), time.time()
        try:
            draw = self._draw(trial)
            check_batch(draw.config, self._session.prepared.dataset)
        except ConfigError as error:
            self._mark(trial.number, {"reason": str(error)})
            self._tell(trial.number, TrialState.FAIL)
            self._on_refused(str(error), trial.number, self.progress)
            return
        config = run_config(draw.config)
        known = {"overrides": draw.overrides, "seed": config.seed, "config": config.model_dump_json()}
        self._mark(trial.number, known)
        weights = scratch / f"{trial.number}.weights.h5" if self._config.tracking.save_weights else None
        job = _Job(trial, draw, config, started, weights)
        self._jobs[trial.number] = job
        executor.submit(trial.number, job.config, weights)

    def _enqueue(self) -> None:
        """What comes before the sampler: the composed config itself, then a grid's points."""
        trials = self._study.get_trials(deepcopy=False)
        if not trials:
            self._study.enqueue_trial(self._space.baseline()[1], user_attrs={ATTRIBUTE: {"baseline": True}})
        elif self._config.study.sampler.name == "grid" and all(t.state is not TrialState.WAITING for t in trials):
            taken = [t.params for t in trials if not t.user_attrs.get(ATTRIBUTE, {}).get("interrupted")]
            point = next((point for point in self._space.points() if point not in taken), None)
            if point is not None:
                self._study.enqueue_trial(point)

    def _draw(self, trial: optuna.Trial) -> Draw:
        """A trial's point; a retry's is the one that it had before, seed included."""
        known = trial.user_attrs.get(ATTRIBUTE, {})
        if known.get("baseline"):
            return self._space.suggest_baseline(trial)
        return self._space.suggest(trial, known.get("seed", trial_seed(self._config.seed, trial.number)))

    def _handle(self, event: Event | None, executor: Executor, parent: str) -> None:
        match event:
            case EpochEnded(number, scores):
                with _ctrl_c_held_back():
                    go = self._goes_on(self._jobs[number], scores)
                executor.answer(number, go=go)
            case Finished(number, result):
                state: State = "PRUNED" if result.fit.stopped == "pruned" else "COMPLETE"
                self._end(self._jobs.pop(number), state, parent, result=result)
            case Failed(number, reason):
                job = self._jobs.pop(number)
                self._mark(number, {"reason": reason})
                self._end(job, "FAILED", parent, reason=reason, epochs=tuple(job.epochs))

    def _goes_on(self, job: _Job, scores: EpochScores) -> bool:
        """Report an epoch's score; False where the pruner stops the trial."""
        job.epochs.append(scores)
        job.trial.report(scores.val_accuracy, scores.epoch)
        return scores.epoch == job.config.trainer.epochs or not job.trial.should_prune()

    def _end(self, job: _Job, state: State, parent: str, **outcome: Any) -> None:
        """Log the run, then tell its score: in this order, see the top of this file."""
        number = job.trial.number
        record = self._session.record(
            "trial",
            job.config,
            job.draw.overrides,
            job.started,
            state,
            name=run_name(job.config, number),
            tags={**self._whose, "kind": "trial", "trial": str(number)},
            weights_path=job.weights_path,
            **outcome,
        )
        value = objective_value(record.result.fit) if record.result and state == "COMPLETE" else None
        with _ctrl_c_held_back():
            self._tracker.log(record, parent)
            self._tell(number, TELL[state], value)
        self._on_trial(record, self.progress)

    def _tell(self, number: int, state: TrialState, value: float | None = None) -> None:
        self._study.tell(number, value, state=state, skip_if_finished=True)
        self._ran += 1
        self.progress = self._look()

    # ------------------------------------------------------------------------------ the study

    def _open(self) -> Study:
        prepared = self._session.prepared
        name = prepared.study_name
        study = optuna.create_study(study_name=name, storage=self._storage, direction="maximize", load_if_exists=True)
        if study.direction is not optuna.study.StudyDirection.MAXIMIZE:  # load_if_exists doesn't look
            raise StoreError(f"study.name={name}: minimises, so it isn't mnistexp's; give another study.name")
        _check_same(study, fingerprint(self._space, self._config, prepared.dataset.fingerprint))
        known = len(study.get_trials(deepcopy=False))
        study.sampler = build_sampler(self._config.study.sampler, trial_seed(self._config.seed, known))
        study.pruner = build_pruner(self._config.study.pruner, self._config.trainer.epochs)
        study.set_user_attr("config_dir", str(prepared.request.config_dir or ""))
        if "id" not in study.user_attrs:
            study.set_user_attr("id", uuid.uuid4().hex)
        return study

    @property
    def _whose(self) -> dict[str, str]:
        """The tags of this study's runs. Names come again (a database is deleted, a store is shared); ids don't."""
        return {"study": self.name, "study_id": self._study.user_attrs["id"]}

    def _look(self) -> Progress:
        return progress(self._study.get_trials(deepcopy=False), self._config.study.trials)

    def _mend(self) -> None:
        """Settle what an earlier session left under way: tell what was logged, hand back the rest."""
        self._tracker.settle({**self._whose, "kind": "trial"})
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            run = self._logged(trial)
            if run is None:
                self._hand_back(trial.number)
            else:
                value = run.metrics["val_accuracy"] if run.state == "COMPLETE" else None
                self._study.tell(trial.number, value, state=TELL[run.state], skip_if_finished=True)

    def _logged(self, trial: FrozenTrial) -> LoggedRun | None:
        """A trial's run."""
        return next(self._tracker.find({**self._whose, "trial": str(trial.number), "kind": "trial"}), None)

    def _hand_back(self, number: int) -> None:
        """Close an interrupted trial, and queue its point, with its seed, to be run again."""
        trial = self._study.get_trials(deepcopy=False)[number]
        known = trial.user_attrs.get(ATTRIBUTE, {})
        self._mark(number, {"interrupted": True})
        self._study.tell(number, state=TrialState.FAIL, skip_if_finished=True)
        seed = known.get("seed", trial_seed(self._config.seed, number))
        retry = {"baseline": True} if known.get("baseline") else {"seed": seed}
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}  # queued ones may not be drawn yet
        if params or known.get("baseline"):
            self._study.enqueue_trial(params, user_attrs={ATTRIBUTE: {**retry, "retry_of": number}})

    def _mark(self, number: int, more: Mapping[str, Any]) -> None:
        """Add to what is known of a trial."""
        trial = self._study.get_trials(deepcopy=False)[number]
        self._storage.set_trial_user_attr(trial._trial_id, ATTRIBUTE, {**trial.user_attrs.get(ATTRIBUTE, {}), **more})

    # ------------------------------------------------------------------------------ the parent run

    def _start_parent(self, facts: Mapping[str, Any]) -> str:
        device = {"device": str(facts.get("device", ""))}
        tags = {**self._whose, "kind": "sweep", **device, **self._session.tags()}
        # A folder per session: the next one, of changed code perhaps, must not overwrite what this one ran.
        files = {f"sessions/{self._session.stamp}/{name}": text for name, text in self._session.files(facts).items()}
        return self._tracker.start(f"sweep {self.name}", tags, self._description(), files)

    def _description(self) -> str:
        """The parent run's page in MLflow, as Markdown."""
        study, best = self._config.study, self.progress.best
        lines = [
            f"Which hyperparameters are best on **{self._session.prepared.dataset.name}**, by validation accuracy?",
            "",
            f"{self.progress.done} of {study.trials} trials done: {self.progress.complete} complete, "
            f"{self.progress.pruned} pruned, {self.progress.failed} failed. "
            f"Sampler {study.sampler.name}, pruner {study.pruner.name}.",
            "",
        ]
        if best is not None:  # before the table: MLflow shows the first lines alone until one asks for more
            overrides = " ".join(best.overrides)
            score = f"validation accuracy {best.val_accuracy:.4f}"
            lines += [f"Best: trial {best.number}, {score}", "", f"    {overrides}", ""]
        rows = (f"| `{name}` | `{text}` |" for name, text in self._space.texts().items())
        return "\n".join([*lines, "| searched | distribution |", "| --- | --- |", *rows])


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Let a write end before Ctrl-C is obeyed (50 ms): none is left half done, and no database locked by ourselves.

    A second Ctrl-C is obeyed at once: the store may hang.
    """
    pressed = False

    def hold(_number: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt


def _parent_metrics(summary: Summary) -> dict[str, float]:
    found: dict[str, float] = {
        "sweep/trials": summary.progress.done,
        "sweep/pruned": summary.progress.pruned,
        "sweep/failed": summary.progress.failed,
        "sweep/session_seconds": summary.seconds,
        "sweep/session_parent_cpu_seconds": summary.parent_cpu_seconds,
    }
    if summary.progress.best is not None:
        found["best_val_accuracy"] = summary.progress.best.val_accuracy
    return found
