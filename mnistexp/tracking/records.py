"""What is kept of a run, as one value: what MLflow gets, and what a study's database holds until it has got it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from mnistexp.config.schema import RunConfig, recorded_config
from mnistexp.errors import StoreError
from mnistexp.training.results import EpochScores, RunResult

State = Literal["COMPLETE", "PRUNED", "FAILED", "INTERRUPTED"]
"""How a run ended. An interrupted one will be run again; it is logged for its curves, and counts nowhere."""

Kind = Literal["train", "trial", "rerun"]


@dataclass(frozen=True)
class RunRecord:
    """All that is kept of one run."""

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
    epochs: tuple[EpochScores, ...] = ()  # of a failed run too
    tags: Mapping[str, str] = field(default_factory=dict)  # study, trial, rerun_of …
    weights_path: Path | None = None


@dataclass(frozen=True)
class LoggedRun:
    """A run as its store gives it back: what a rerun needs, from tags and metrics alone.

    No artifact is read: their places are stored as absolute paths, which a moved folder breaks.
    """

    run_id: str
    name: str
    config: RunConfig
    overrides: tuple[str, ...]
    state: State
    metrics: Mapping[str, float]  # floats survive the databases exactly
    weights_hash: str
    data_fingerprint: str
    provenance: Mapping[str, Any]
    tags: Mapping[str, str]


def to_json(record: RunRecord) -> dict[str, Any]:
    """A record as JSON types, but for where its weights are: a path in a shared database would be anybody's."""
    plain = {name: value for name, value in vars(record).items() if name != "weights_path"}
    return {
        **plain,
        "config": record.config.model_dump(mode="json"),
        "overrides": list(record.overrides),
        "provenance": dict(record.provenance),
        "result": record.result.model_dump(mode="json") if record.result else None,
        "epochs": [scores.model_dump() for scores in record.epochs]
        if record.result is None
        else [],  # else in the result
        "tags": dict(record.tags),
    }


def from_json(plain: Mapping[str, Any]) -> RunRecord:
    """The inverse of `to_json`. Raises: StoreError if something else, or another version of mnistexp, wrote it."""
    try:
        if plain["state"] not in get_args(State) or not isinstance(plain["reason"], str):
            raise ValueError("no state of a run")
        if not all(isinstance(value, str) for value in plain["tags"].values()):
            raise ValueError("tags are texts")
        if not plain["tags"].get("trial", "0").isdecimal():  # it becomes part of a path
            raise ValueError("a trial's number is a whole number")
        result = RunResult.model_validate(plain["result"]) if plain["result"] else None
        more = {
            "config": recorded_config(json.dumps(plain["config"])),
            "overrides": tuple(plain["overrides"]),
            "result": result,
            "epochs": result.fit.epochs if result else tuple(EpochScores(**scores) for scores in plain["epochs"]),
        }
        return RunRecord(**{**plain, **more})
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(
            f"a run's record in the study's database was not written by this version of mnistexp "
            f"({type(error).__name__}: {error}); give another study.name"
        ) from None
