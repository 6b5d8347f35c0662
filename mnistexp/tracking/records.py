"""The record of a run: what MLflow logs, and what a study's database holds until MLflow has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_serializer, field_validator, model_validator

from mnistexp.config.schema import RunConfig
from mnistexp.errors import StoreError
from mnistexp.training.results import EpochScores, RunResult

State = Literal["COMPLETE", "PRUNED", "FAILED", "INTERRUPTED"]
"""How a run ended. An interrupted trial runs again: its run is logged for the curves and is not counted."""

Kind = Literal["train", "trial", "rerun"]


class RunRecord(BaseModel):
    """Everything that is stored of one run. `model_dump(mode="json")` gives JSON types, `parse_record` reads them."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")

    name: str
    kind: Kind
    config: RunConfig
    overrides: tuple[str, ...]
    data_name: str
    data_fingerprint: str
    data_source: str
    provenance: Mapping[str, Any]
    started: float  # seconds since 1970
    ended: float
    state: State
    result: RunResult | None = None  # None for a failed run
    reason: str = ""  # of a failure
    epochs: tuple[EpochScores, ...] = ()  # a failed run has them too
    tags: Mapping[str, str] = Field(default_factory=dict)  # study, trial, rerun_of …
    weights_path: Path | None = Field(default=None, exclude=True)  # not stored: other machines read the database too

    @model_validator(mode="after")
    def _take_epochs_from_result(self) -> RunRecord:
        if self.result is not None:
            object.__setattr__(self, "epochs", self.result.fit.epochs)
        return self

    @field_serializer("epochs")
    def _store_epochs_once(self, epochs: tuple[EpochScores, ...]) -> list[dict[str, Any]]:
        return [] if self.result is not None else [scores.model_dump() for scores in epochs]

    @field_validator("tags")
    @classmethod
    def _trial_is_a_number(cls, tags: Mapping[str, str]) -> Mapping[str, str]:
        if not tags.get("trial", "0").isdecimal():  # it becomes part of a path
            raise ValueError("a trial's number must be a whole number")
        return tags


class LoggedRun(BaseModel):
    """A run from MLflow's tags and metrics; artifacts have absolute paths, which are wrong after a folder was moved."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    name: str
    config: RunConfig
    overrides: tuple[str, ...]
    state: State
    metrics: Mapping[str, float]  # exact: floats survive the databases
    weights_hash: str = ""
    data_fingerprint: str
    provenance: Mapping[str, Any]
    tags: Mapping[str, str]


def parse_record(stored: object) -> RunRecord:
    """Read a record from a study's database. Raises: StoreError if this version of mnistexp did not write it."""
    try:
        return RunRecord.model_validate_json(json.dumps(stored))
    except (TypeError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        key = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"a run's record in the study's database was not written by this version of mnistexp "
            f"({key}: {first['msg']}); give another study.name"
        ) from None
