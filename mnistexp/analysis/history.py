"""A study as it is told afterwards: its trials and their records, read from Optuna's database, nothing written."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from mnistexp.errors import StoreError
from mnistexp.study.progress import Best
from mnistexp.study.study import VERDICT
from mnistexp.study.trial_attrs import BASELINE, REASON, RECORD
from mnistexp.tracking import records
from mnistexp.tracking.records import RunRecord, State

STATES: Mapping[TrialState, State] = {
    TrialState.COMPLETE: "COMPLETE",
    TrialState.PRUNED: "PRUNED",
    TrialState.FAIL: "FAILED",
}

ENOUGH = 10  # complete trials from which importances are worth a look
TOP = 5  # trials that they are taken from, at least: Optuna's own advice


@dataclass(frozen=True)
class Trial:
    """A finished trial."""

    number: int
    state: State
    params: Mapping[str, Any]  # Optuna's, by the parameter's name; the baseline may lack some
    record: RunRecord | None  # None: it failed before it was trained
    reason: str  # of a failure
    baseline: bool = False  # it is the composed config itself, which every sweep tries first

    @property
    def val_accuracy(self) -> float | None:
        """Of the kept weights; None for a failed trial."""
        return self.record.result.fit.best.val_accuracy if self.record and self.record.result else None


@dataclass(frozen=True)
class History:
    """A study's finished trials, in the order of their numbers."""

    name: str
    id: str
    trials: tuple[Trial, ...]
    fingerprint: Mapping[str, str]  # "search.NAME" → distribution as JSON; "data" → the data's; the fixed settings
    config_dir: Path | None
    verdict: str = ""  # of a confirmation: what became of the champion

    @property
    def complete(self) -> tuple[Trial, ...]:
        """Those that ran to their end."""
        return tuple(trial for trial in self.trials if trial.state == "COMPLETE" and trial.record)

    @property
    def ranked(self) -> tuple[Trial, ...]:
        """Complete trials with a finite score, best first: by validation accuracy, then the lowest number."""
        scored = (trial for trial in self.complete if math.isfinite(trial.val_accuracy or 0.0))
        return tuple(sorted(scored, key=lambda trial: (-(trial.val_accuracy or 0.0), trial.number)))

    @property
    def test_evaluations(self) -> int:
        """How many of the trials looked at the test split in their end."""
        results = [trial.record.result for trial in self.trials if trial.record]
        return sum(result is not None and result.test_accuracy is not None for result in results)


def load(storage: BaseStorage, name: str) -> History:
    """A study's history. Raises: StoreError if there is no such study, or mnistexp didn't make it."""
    names = optuna.get_all_study_names(storage)
    if name not in names:
        own = [known for known in sorted(names) if ".confirm." not in known]  # those of a confirmation are its own
        there = f"there are {', '.join(own)}" if own else "there is none yet"
        raise StoreError(f"study.name={name}: no such study here; {there}; run `python -m mnistexp sweep` to make one")
    study = optuna.load_study(study_name=name, storage=storage)
    fingerprint, folder = study.user_attrs.get("fingerprint"), study.user_attrs.get("config_dir")
    if not isinstance(fingerprint, dict):
        raise StoreError(f"study.name={name}: was not made by mnistexp; give another study.name")
    trials = tuple(_trial(trial) for trial in study.get_trials(deepcopy=False, states=tuple(STATES)))
    its_id, verdict = (str(study.user_attrs.get(key, "")) for key in ("id", VERDICT))
    return History(name, its_id, trials, fingerprint, Path(folder) if folder else None, verdict)


def best(storage: BaseStorage, name: str) -> tuple[Best, Path | None]:
    """A study's best trial, and the user's config folder that it was composed with.

    Raises: StoreError if there is no such study, or none of its trials completed.
    """
    study = load(storage, name)
    for trial in study.ranked:
        if trial.record is not None and trial.val_accuracy is not None:
            return Best(trial.number, trial.val_accuracy, trial.record.overrides, trial.record.config), study.config_dir
    raise StoreError(f"study.name={name}: no trial of it completed; run `python -m mnistexp sweep study.name={name}`")


def study_names(storage: BaseStorage, prefix: str = "") -> list[str]:
    """The names of the studies that begin like this, in alphabetical order."""
    return sorted(name for name in optuna.get_all_study_names(storage) if name.startswith(prefix))


def _trial(trial: FrozenTrial) -> Trial:
    plain = trial.user_attrs.get(RECORD)
    record = records.from_json(plain) if plain else None
    reason, baseline = str(trial.user_attrs.get(REASON, "")), bool(trial.user_attrs.get(BASELINE))
    return Trial(trial.number, STATES[trial.state], dict(trial.params), record, reason, baseline)


# ------------------------------------------------------------------------------------------------ importances


@dataclass(frozen=True)
class Importances:
    """How much each parameter decides whether a trial gets among the best."""

    shares: Mapping[str, float]  # parameter → share, largest first; together 1. Empty if none can be given
    top: int  # how many trials count as the best
    why_not: str = ""  # none can be given


def importances(storage: BaseStorage, name: str) -> Importances:
    """Weigh a study's parameters by PED-ANOVA: how else are they spread among the best complete trials than among all?

    Not fANOVA, Optuna's older one: that leaves out what only some trials have, and so every optimizer's own learning
    rate. It has no randomness, so its numbers come again.
    """
    study = optuna.load_study(study_name=name, storage=storage)
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = sorted((trial.value for trial in trials if trial.value is not None), reverse=True)
    if len(values) < ENOUGH:
        return Importances({}, 0, f"it takes {ENOUGH} complete trials, and there are {len(values)}")
    quantile = max(0.1, TOP / len(values))
    top = sum(value >= values[math.ceil(quantile * len(values)) - 1] for value in values)  # equals count too
    if top == len(values):
        return Importances({}, 0, "all trials that matter score alike")
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances  # 2 s: scikit-learn and pandas

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that a trial or two have: their shares are small
        shares = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile))
    in_order = sorted(shares.items(), key=lambda item: (-item[1], item[0]))  # Optuna leaves equals in a set's order
    return Importances({key: float(share) for key, share in in_order}, top)
