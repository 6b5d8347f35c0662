"""How far a study is, whether it needs further trials, and whether they would be comparable with those that it has."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mnistexp.config import user_code
from mnistexp.config.compose import identity, run_config
from mnistexp.config.schema import Config, RunConfig, StudyConfig, recorded_config
from mnistexp.errors import ConfigError, StoreError
from mnistexp.search.space import Space
from mnistexp.study.database import Database
from mnistexp.study.trial_attrs import CLAIM, Claim, StudyAttrs, parse_attr
from mnistexp.tracking.run_context import PreparedRun

CONFIRMATION = "search.candidates"  # a key of the fingerprint of a study that repeats another study's best configs


@dataclass(frozen=True)
class Best:
    """A study's best trial: complete, finite, highest validation accuracy, lowest number among equals."""

    number: int
    val_accuracy: float
    overrides: tuple[str, ...]
    config: RunConfig


@dataclass(frozen=True)
class Progress:
    """How many trials of a study are finished, by all processes together."""

    complete: int
    pruned: int
    failed: int
    total: int  # study.trials
    best: Best | None

    @property
    def done(self) -> int:
        """Return the number of finished trials."""
        return self.complete + self.pruned + self.failed


def progress_of(trials: Sequence[FrozenTrial], total: int) -> Progress:
    """Count a study's finished trials and find the best."""
    states = [trial.state for trial in trials]
    complete, pruned, failed = map(states.count, (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))
    return Progress(complete, pruned, failed, total, _best(trials))


def _best(trials: Sequence[FrozenTrial]) -> Best | None:
    """The best trial; Optuna's best_trial would accept an infinite value."""
    complete = [trial for trial in trials if trial.state is TrialState.COMPLETE and math.isfinite(trial.values[0])]
    if not complete:
        return None
    best = min(complete, key=lambda trial: (-trial.values[0], trial.number))
    claim = parse_attr(Claim, best.user_attrs.get(CLAIM), f"trial {best.number} of this study")
    return Best(best.number, best.values[0], claim.overrides, recorded_config(claim.config))


def read_progress(storage: BaseStorage, prepared: PreparedRun, space: Space) -> Progress | None:
    """Return the progress of the study that a sweep would continue; None if it has no trials.

    Raises: ConfigError if its trials can't be compared with new ones.
    """
    name = prepared.study_name
    if name not in optuna.get_all_study_names(storage):
        return None
    study = optuna.load_study(study_name=name, storage=storage)
    trials = study.get_trials(deepcopy=False)
    if not trials:  # its space may still change
        return None
    attrs = parse_attr(StudyAttrs, study.user_attrs, f"study.name={name}")
    check_fingerprint(name, attrs, fingerprint(space, prepared.config, prepared.dataset.fingerprint))
    return progress_of(trials, prepared.config.study.trials)


def stop_reason(study: StudyConfig, progress: Progress) -> str | None:
    """Return why a study needs no further trials, or None."""
    best = progress.best
    if progress.done >= study.trials:
        return f"all {study.trials} trials are done"
    if study.target is not None and best is not None and best.val_accuracy >= study.target:
        return f"trial {best.number} reached study.target={study.target:g}"
    return None


def trials_left(database: Database, prepared: PreparedRun, space: Space) -> int:
    """Return how many trials a sweep has still to run: with 0 it needs no workers. Raises: as `read_progress`."""
    study = prepared.config.study
    progress = database.retry(lambda: read_progress(database.storage, prepared, space))
    if progress is None:
        return study.trials
    return 0 if stop_reason(study, progress) else study.trials - progress.done


# ------------------------------------------------------------------------------------------- comparable trials


def fingerprint(space: Space, config: Config, data_fingerprint: str) -> dict[str, str]:
    """Return what makes trials comparable: the space, the data, and the config outside the space."""
    base = {**identity(run_config(config)), "data": data_fingerprint}
    return {
        **{f"search.{name}": text for name, text in space.fingerprint().items()},
        **{key: json.dumps(base[key], sort_keys=True) for key in base},
        **({"--code": digest} if (digest := user_code.sha256()) else {}),  # any trial may use one of its functions
    }


def check_fingerprint(name: str, attrs: StudyAttrs, wanted: dict[str, str]) -> None:
    """Check that new trials would be comparable with the study's. Raises: ConfigError naming what differs."""
    before = attrs.fingerprint
    if before is None:
        raise StoreError(f"study.name={name}: was not made by mnistexp; give another study.name")
    changed = sorted(key for key in wanted.keys() | before.keys() if wanted.get(key) != before.get(key))
    if changed:
        code = " (MLflow has that file as the artifact code.py)" if "--code" in changed and "--code" in before else ""
        other = "" if CONFIRMATION in wanted else f", or another name, e.g. study.name={name}-2"
        raise ConfigError(
            f"study.name={name}: was started with another {', '.join(changed)}; its trials can't be compared with "
            f"new ones, so give what it had{code}{other}"
        )
