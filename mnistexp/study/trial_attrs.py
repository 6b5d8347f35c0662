"""What a study keeps in its own attributes and its trials', as pydantic models: another program may have written it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from optuna.trial import FrozenTrial, TrialState
from pydantic import ConfigDict, Field, ValidationError

from mnistexp.config.schema import Settings
from mnistexp.errors import StoreError
from mnistexp.tracking.records import State

STATES: Mapping[State, TrialState] = {
    "COMPLETE": TrialState.COMPLETE,
    "PRUNED": TrialState.PRUNED,
    "FAILED": TrialState.FAIL,
}
"""The states of a finished trial, as a record and as Optuna name them."""

CLAIM = "mnistexp"
BASELINE = "mnistexp.baseline"  # true for the composed config itself
PROCESS = "mnistexp.process"
DEATHS = "mnistexp.deaths"
RECORD = "mnistexp.record"
REASON = "reason"  # of a failure
DECISION = "mnistexp.decision"  # of a confirmation's study: see analysis.history.History


class Claim(Settings):
    """What a trial is claimed with."""

    overrides: tuple[str, ...] = Field(strict=False)
    config: str  # a RunConfig as JSON


class TrialAttrs(Settings):
    """A trial's attributes. Each is written alone, so a killed process may leave only the first of them."""

    model_config = ConfigDict(extra="ignore")

    claim: Claim | None = Field(default=None, alias=CLAIM)
    process: int | None = Field(default=None, alias=PROCESS)  # number of the sweep process that runs it
    deaths: tuple[str, ...] = Field(default=(), alias=DEATHS, strict=False)  # workers and processes that died with it
    record: dict[str, Any] | None = Field(default=None, alias=RECORD)  # the finished run, which the upload queue needs


class StudyAttrs(Settings):
    """A study's attributes, without the leases."""

    model_config = ConfigDict(extra="ignore")

    fingerprint: dict[str, str] | None = None  # see progress.py
    id: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")  # unlike a name it is never used again
    processes: int = Field(default=0, ge=0)  # how many sweep processes have registered: the next one's number


class LeaseEntry(Settings):
    """One sweep process in its study's attributes; see lease.py."""

    machine: str
    pid: int
    started: float  # in the system's own unit, only for comparison
    ended: bool
    heartbeat: float  # seconds since 1970


Attr = TypeVar("Attr", bound=Settings)


def parse_attr(model: type[Attr], value: object, what: str) -> Attr:
    """Validate an attribute. Raises: StoreError if another program or version wrote it."""
    try:
        return model.model_validate(value)
    except ValidationError:
        raise StoreError(f"{what} was not written by this version of mnistexp; give another study.name") from None


def attrs_of(trial: FrozenTrial) -> TrialAttrs:
    """Return a trial's attributes. Raises: StoreError as `parse_attr`."""
    return parse_attr(TrialAttrs, trial.user_attrs, f"trial {trial.number} of this study")
