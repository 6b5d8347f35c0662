"""What the tests of confirmations share: a study made in no time, and networks that are right about some images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from fakes import FakeExecutor, RecordingTracker, Script, Step
from sweeps import open_sweep

from mnistexp.analysis import confirmation, history
from mnistexp.analysis.confirmation import Confirmation
from mnistexp.commands import confirm
from mnistexp.commands.args import CommandArgs
from mnistexp.commands.confirm import Confirm
from mnistexp.config import compose as configs
from mnistexp.config.schema import RunConfig
from mnistexp.study.database import Database
from mnistexp.tracking.run_context import PreparedRun, RunContext
from mnistexp.training.results import FitResult
from mnistexp.workers.pool import Event, Finished, WorkerPool

IMAGES = 400
RATES = ("optimizer.learning_rate=interval(0.01, 0.4)",)


def with_hits(fit: FitResult, right: np.ndarray) -> FitResult:
    """A training whose kept weights are right about these images, bool [images]."""
    mistakes = np.full(np.count_nonzero(~right), 3, dtype="<u2")
    update = {"validation_correct": np.packbits(right).tobytes(), "wrong_predictions": mistakes.tobytes()}
    return fit.model_copy(update=update)


class Networks(FakeExecutor):
    """A fake executor whose networks are right about as many images as their accuracy says, the easy ones first."""

    def next_event(self, timeout: float) -> Event | None:
        event = super().next_event(timeout)
        if isinstance(event, Finished):
            right = np.arange(IMAGES) < round(IMAGES * event.result.fit.best.val_accuracy)
            fit = with_hits(event.result.fit, right)
            return Finished(event.job, event.result.model_copy(update={"fit": fit}))
        return event


def accuracy(config: RunConfig) -> float:
    """Smaller learning rates are better, and each seed is a little better or worse than the next."""
    return round(IMAGES * (0.95 - config.optimizer.learning_rate / 4) + config.seed % 9 - 4) / IMAGES


def by_accuracy(job: int, config: RunConfig) -> list[Step]:
    """A script in which every config scores its accuracy."""
    return [0.5, accuracy(config)]


def make_study(database: Database, trials: int = 8, *overrides: str, script: Script = by_accuracy) -> None:
    """Run a sweep over learning rates; `overrides` say what else it searches."""
    session = open_sweep(database, f"study.trials={trials}", *(overrides or RATES))
    session.run(Networks(script, workers=2))


@dataclass
class Person:
    """Somebody who types `confirm`, again and again."""

    database: Database
    tracker: RecordingTracker = field(default_factory=RecordingTracker)
    script: Script = by_accuracy
    workers: int = 2
    executors: list[Networks] = field(default_factory=list)
    name: str = "digits"  # of the study

    def confirm(self, top: int = 3, seeds: int = 2, *overrides: str) -> int:
        """Type it. Returns: the exit code."""
        request = configs.parse_request(["data=digits", *(overrides or ["tracking=none"])])
        config = configs.compose(request)
        study = self.study()
        space, prepared = confirm.prepare(request, config, study, top, seeds)
        context, args = RunContext(prepared, {}, {}), CommandArgs(flags={"-q": True})
        return Confirm(study, space, context, self.database, self.tracker, args, self._start).run()

    def _start(self, prepared: PreparedRun, at_most: int) -> WorkerPool:
        self.executors.append(Networks(self.script, self.workers))
        return self.executors[-1]

    def study(self) -> history.History:
        """The study's history."""
        return history.load(self.database.storage, self.name)

    def found(self) -> Confirmation:
        """What the newest confirmation found."""
        found = confirmation.load(self.database.storage, self.study())
        assert found is not None
        return found

    @property
    def jobs(self) -> list[RunConfig]:
        """Every config that was trained, in order."""
        return [config for executor in self.executors for config in executor.jobs.values()]

    @property
    def tested(self) -> list[RunConfig]:
        """Those that looked at the test split."""
        return [
            config for executor in self.executors for job, config in executor.jobs.items() if job not in executor.sealed
        ]


class Killed(BaseException):
    """Ends this process as far as the study can see."""
