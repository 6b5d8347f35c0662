"""A study after the fact: its finished trials and their records, read from Optuna's database. Nothing is written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mnistexp.errors import StoreError
from mnistexp.study.progress import Best
from mnistexp.study.trial_attrs import BASELINE, DECISION, REASON, RECORD, STATES
from mnistexp.tracking.records import RunRecord, State, parse_record
from mnistexp.training.results import FitResult, objective_value

Storage = BaseStorage  # Optuna's connection to a database
STATE_OF = {optunas: state for state, optunas in STATES.items()}
FEWEST_FOR_IMPORTANCES = 10  # complete trials
FEWEST_BEST = 5  # trials that importances compare with all trials: Optuna's own advice


@dataclass(frozen=True)
class Trial:
    """A finished trial."""

    number: int
    state: State
    params: Mapping[str, Any]  # by Optuna's parameter name; the first trial may lack some
    record: RunRecord | None  # None: it failed before its training started
    reason: str  # of a failure
    baseline: bool = False  # it is the composed config without changes, the first trial of every sweep

    @property
    def fit(self) -> FitResult | None:
        """Its training; None for a failed trial."""
        return self.record.result.fit if self.record and self.record.result else None

    @property
    def val_accuracy(self) -> float | None:
        """The validation accuracy of the kept weights; None for a failed trial."""
        return objective_value(self.fit) if self.fit else None

    @property
    def accuracy(self) -> float:
        """The same for a trial that has one, for example any of `History.ranked`."""
        assert self.val_accuracy is not None
        return self.val_accuracy

    @property
    def test_accuracy(self) -> float | None:
        """None if the trial failed or was not tested. Nothing is ever chosen or ordered by it."""
        return self.record.result.test_accuracy if self.record and self.record.result else None


@dataclass(frozen=True)
class History:
    """A study's finished trials, in the order of their numbers."""

    name: str
    id: str
    trials: tuple[Trial, ...]
    fingerprint: Mapping[str, str]  # "search.NAME": distribution as JSON; "data": the data's; the fixed settings
    config_dir: Path | None
    decision: str = ""  # of a confirmation: whether its network became the champion, and why

    @cached_property
    def complete(self) -> tuple[Trial, ...]:
        """The trials that ran all their epochs."""
        return tuple(trial for trial in self.trials if trial.state == "COMPLETE" and trial.record)

    @cached_property
    def ranked(self) -> tuple[Trial, ...]:
        """Complete trials with a finite score, best first: by validation accuracy, then the lowest number."""
        scored = [trial for trial in self.complete if math.isfinite(trial.accuracy)]
        return tuple(sorted(scored, key=lambda trial: (-trial.accuracy, trial.number)))

    @property
    def records(self) -> tuple[RunRecord, ...]:
        """The records of all trials whose training started."""
        return tuple(trial.record for trial in self.trials if trial.record)

    @property
    def test_evaluations(self) -> int:
        """How many of the trials were evaluated on the test split."""
        return sum(trial.test_accuracy is not None for trial in self.trials)


def load(storage: Storage, name: str) -> History:
    """Read a study.

    Raises: StoreError if the database has no such study, or if mnistexp did not make it.
    """
    names = optuna.get_all_study_names(storage)
    if name not in names:
        sweeps = [known for known in sorted(names) if ".confirm." not in known]
        known = f"there are {', '.join(sweeps)}" if sweeps else "there is none yet"
        raise StoreError(f"study.name={name}: no such study here; {known}; run `python -m mnistexp sweep` to make one")
    study = optuna.load_study(study_name=name, storage=storage)
    fingerprint, folder = study.user_attrs.get("fingerprint"), study.user_attrs.get("config_dir")
    if not isinstance(fingerprint, dict):
        raise StoreError(f"study.name={name}: was not made by mnistexp; give another study.name")
    trials = tuple(_trial(trial) for trial in study.get_trials(deepcopy=False, states=tuple(STATE_OF)))
    study_id = str(study.user_attrs.get("id", ""))
    decision = str(study.user_attrs.get(DECISION, ""))
    return History(name, study_id, trials, fingerprint, Path(folder) if folder else None, decision)


def best(storage: Storage, name: str) -> tuple[Best, Path | None]:
    """Read a study's best trial, and the user's config folder with which it was composed.

    Raises: StoreError if the database has no such study, or if none of its trials completed.
    """
    study = load(storage, name)
    for trial in study.ranked:
        if trial.record is not None:
            return Best(trial.number, trial.accuracy, trial.record.overrides, trial.record.config), study.config_dir
    raise StoreError(f"study.name={name}: no trial of it completed; run `python -m mnistexp sweep study.name={name}`")


def study_names(storage: Storage, prefix: str = "") -> list[str]:
    """List the names of the studies that begin with a prefix, in alphabetical order."""
    return sorted(name for name in optuna.get_all_study_names(storage) if name.startswith(prefix))


def _trial(trial: FrozenTrial) -> Trial:
    plain = trial.user_attrs.get(RECORD)
    record = parse_record(plain) if plain else None
    reason, baseline = str(trial.user_attrs.get(REASON, "")), bool(trial.user_attrs.get(BASELINE))
    return Trial(trial.number, STATE_OF[trial.state], dict(trial.params), record, reason, baseline)


@dataclass(frozen=True)
class Importances:
    """How much each parameter decides whether a trial is among the best."""

    shares: Mapping[str, float]  # parameter: share, largest first; the sum is 1. Empty if there are none
    top: int  # how many trials count as the best
    why_not: str = ""  # why there are none


def importances(storage: Storage, name: str) -> Importances:
    """Compute PED-ANOVA importances (Watanabe et al. 2023) of a study's parameters.

    Optuna's older fANOVA leaves out parameters that only some trials have, and so each optimizer's own learning rate.
    PED-ANOVA also has no randomness: the same study gives the same numbers.
    """
    study = optuna.load_study(study_name=name, storage=storage)
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = sorted((trial.value for trial in trials if trial.value is not None), reverse=True)
    if len(values) < FEWEST_FOR_IMPORTANCES:
        return Importances({}, 0, f"{FEWEST_FOR_IMPORTANCES} complete trials are needed, and there are {len(values)}")
    quantile = max(0.1, FEWEST_BEST / len(values))
    top = sum(value >= values[math.ceil(quantile * len(values)) - 1] for value in values)  # ties count too
    if top == len(values):
        return Importances({}, 0, "all compared trials have the same score")
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # 2 s: scikit-learn and pandas

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about options that one or two trials have: their shares are small
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile))
    in_order = sorted(shares.items(), key=lambda item: (-item[1], item[0]))  # Optuna's order of equals is random
    return Importances({key: float(share) for key, share in in_order}, top)
