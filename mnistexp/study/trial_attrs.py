"""What a study keeps in its attributes beside Optuna's own, as types: a database may be anybody's."""

from __future__ import annotations

from typing import TypeVar

from pydantic import Field, ValidationError

from mnistexp.config.schema import Settings
from mnistexp.errors import StoreError


class TrialRecord(Settings):
    """What a study keeps of a trial from its claim on."""

    overrides: tuple[str, ...] = Field(strict=False)
    seed: int
    config: str  # a RunConfig as JSON


class LeaseEntry(Settings):
    """What a study keeps of each of its drivers: see drivers.py."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: float  # in the system's own units, to be compared alone
    ended: bool
    heartbeat: float  # seconds since 1970


Kept = TypeVar("Kept", bound=Settings)


def kept(model: type[Kept], value: object, what: str) -> Kept:
    """A study's attribute as its type. Raises: StoreError if something else wrote it."""
    try:
        return model.model_validate(value)
    except ValidationError:
        raise StoreError(f"{what} was not written by this version of mnistexp; give another study.name") from None
