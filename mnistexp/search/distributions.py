"""Distributions: read from Hydra's sweep grammar with Hydra's own parser, checked, drawn, enumerated."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType

from mnistexp.config.overrides import parse_value, value_text
from mnistexp.errors import ConfigError

Scalar = str | int | float | bool | None
Value = Any  # a scalar or a list of scalars: what one config key can hold


class Suggester(Protocol):
    """What an Optuna trial offers, and a fake in the tests."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...
    def suggest_categorical(self, name: str, choices: tuple[Scalar, ...]) -> Scalar: ...


@dataclass(frozen=True)
class Float:
    """Real numbers in [low, high], every `step` if given, or evenly over their logarithms."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    count: int | None = None  # >= 2: how many points stand for all of them in a grid; None: there is no end of them

    def __str__(self) -> str:
        points = f", {self.count} points" if self.count and self.step is None else ""
        every = f", every {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{', logarithmic' * self.log}{every}{points}"

    def suggest(self, trial: Suggester, name: str) -> float:
        value = trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)
        return value if self.step is None else self._point(round((value - self.low) / self.step))

    def contains(self, value: Value) -> bool:
        return _is_number(value) and self.low <= value <= self.high and value in (self.points() or (value,))

    def points(self) -> tuple[float, ...] | None:
        """All values in order, or those that stand for them; None where there are infinitely many."""
        if self.step is None:
            return None if self.count is None else (self.low, *self._between(self.count), self.high)
        return tuple(map(self._point, range(round((self.high - self.low) / self.step) + 1)))

    def _point(self, i: int) -> float:
        """The i-th value, counted in decimals: 0.3, where 0.1 + 2 * 0.1 would be 0.30000000000000004."""
        return float(Decimal(repr(self.low)) + i * Decimal(repr(self.step)))

    def _between(self, count: int) -> tuple[float, ...]:
        """The points but for the ends; to twelve digits, so that 0.1 between 0.01 and 1 is 0.1."""
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        found = (low + (high - low) * i / (count - 1) for i in range(1, count - 1))
        return tuple(float(f"{math.exp(value) if self.log else value:.12g}") for value in found)

    def probes(self) -> tuple[float, ...]:
        """The values that show whether the schema takes them all."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Integer:
    """Whole numbers from low to high, both included, every `step`, or evenly over their logarithms."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low} to {self.high}{', logarithmic' * self.log}{f', every {self.step}' * (self.step > 1)}"

    def suggest(self, trial: Suggester, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Value) -> bool:
        return _is_number(value) and value in self.points()

    def points(self) -> Sequence[int]:
        return range(self.low, self.high + 1, self.step)

    def probes(self) -> tuple[int, ...]:
        return (self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of some values. Optuna stores scalars alone, so lists go to it as their texts."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ", ".join(str(label) for label in self.labels)

    @property
    def labels(self) -> tuple[Scalar, ...]:
        """The values as Optuna's categories."""
        return tuple(label(value) for value in self.values)

    def suggest(self, trial: Suggester, name: str) -> Value:
        return self.values[self.labels.index(trial.suggest_categorical(name, self.labels))]

    def contains(self, value: Value) -> bool:
        return value in self.values

    def points(self) -> tuple[Value, ...]:
        return self.values

    def probes(self) -> tuple[Value, ...]:
        return self.values


Distribution = Float | Integer | Choice


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def label(value: Value) -> Scalar:
    """A value as Optuna stores it: a scalar as it is, a list as its text, `[300,100]`."""
    return value_text(value) if isinstance(value, list) else value


def parse_distribution(key: str, text: str, options: list[str] | None = None) -> Distribution:
    """Read one distribution in Hydra's sweep grammar.

    >>> parse_distribution("optimizer.learning_rate", "tag(log, interval(1e-4, 1))")
    Float(low=0.0001, high=1.0, step=None, log=True)

    Args:
        options: the group's options where `key` is a config group (for `glob(*)`), else None.
    Raises: ConfigError saying what is wrong and what would be right.
    """
    try:
        override = parse_value(text)
        return _read(override, options)
    except (ConfigError, ValueError) as error:
        why = str(error).partition("; write KEY=VALUE")[0].replace("'key=", "'")
        raise ConfigError(
            f"search.{key}={text}: {why}; write choice(a, b), interval(low, high), int(interval(low, high)), "
            f"range(start, stop, step) or tag(log, interval(low, high))"
        ) from None


def _read(override: Override, options: list[str] | None) -> Distribution:
    if not override.is_sweep_override():
        raise ValueError("is a value, not a distribution")
    sweep: Any = override._value  # value() would refuse a Glob
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        if options is None:
            raise ValueError("glob() is for config groups")
        return _choice(sweep.filter(options))
    unknown = set(sweep.tags) - {"log"}
    if unknown:
        raise ValueError(f"the tag {', '.join(sorted(unknown))} is not known; allowed: log")
    if isinstance(sweep, IntervalSweep):
        return _interval(sweep.start, sweep.end, log="log" in sweep.tags)
    if isinstance(sweep, RangeSweep):
        return _range(sweep)
    if sweep.tags:
        raise ValueError("the tag log is for interval() and range()")
    return _choice([Override._convert_value(value) for value in sweep.list])


def _choice(values: list[Any]) -> Choice:
    if not values:
        raise ValueError("no value is left to choose from")
    chosen = Choice(tuple(values))
    if any(a == b for a, b in itertools.combinations(chosen.labels, 2)):
        raise ValueError("a value stands there twice")
    return chosen


MAX_INTEGER = 2**53
"""Beyond it floats, and so samplers, can't tell whole numbers apart."""


def _interval(low: Any, high: Any, *, log: bool) -> Distribution:
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("both ends must be finite")
    if low >= high:
        raise ValueError(f"the interval is empty, since {low} is not below {high}")
    if log and low <= 0:
        raise ValueError(f"a logarithmic interval must start above 0, not at {low}")
    if not (isinstance(low, int) and isinstance(high, int)):
        return Float(low, high, log=log)
    if max(-low, high) > MAX_INTEGER:
        raise ValueError(f"whole numbers are searched up to {MAX_INTEGER}")
    return Integer(low, high, log=log)


def _range(sweep: RangeSweep) -> Distribution:
    if not all(math.isfinite(number) for number in (sweep.start or 0, sweep.stop or 0, sweep.step)):
        raise ValueError("start, stop and step must be finite")
    if max(abs(number) for number in (sweep.start or 0, sweep.stop or 0, sweep.step)) > MAX_INTEGER:
        raise ValueError(f"numbers are counted up to {MAX_INTEGER}")
    if sweep.step == 0:
        raise ValueError("a step of 0 never ends")
    values = sorted(itertools.islice(sweep.range(), 100_001))
    if not values:
        raise ValueError("the range is empty")
    if len(values) > 100_000:
        raise ValueError("the range has more than 100,000 values")
    log = "log" in sweep.tags
    step = abs(sweep.step)
    if log and (step != 1 or not isinstance(values[0], int) or values[0] < 1):
        raise ValueError("a logarithmic range has whole numbers from 1 up, and steps of 1")
    if all(isinstance(value, int) for value in values):
        return Integer(values[0], values[-1], step=int(step), log=log)
    first, stride = (Decimal(repr(float(number))) for number in (sweep.start or 0, sweep.step))
    low, high = sorted((first, first + (len(values) - 1) * stride))
    return Float(float(low), float(high), step=float(step))
