"""Distributions: parse them with Hydra's parser for sweeps, check them, draw from them and enumerate them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, ValueType

from mnistexp.config.overrides import parse_override, value_text
from mnistexp.errors import ConfigError

Scalar = str | int | float | bool | None
Value = Any  # a scalar or a list of scalars: the value of one config key

MAX_INTEGER = 2**53
"""Above it floats, and so samplers, do not distinguish integers."""

MAX_POINTS = 100_000


class Suggester(Protocol):
    """The methods of an Optuna trial that draw a value."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None, log: bool) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int: ...
    def suggest_categorical(self, name: str, choices: tuple[Scalar, ...]) -> Scalar: ...


@dataclass(frozen=True)
class Float:
    """Real numbers in [low, high], with a step or without, uniform or uniform in their logarithms."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    count: int | None = None  # >= 2: number of points in a grid; None: infinitely many

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
        """Return all values in order, or the points of a grid; None: infinitely many."""
        if self.step is not None:
            return tuple(map(self._point, range(round((self.high - self.low) / self.step) + 1)))
        if self.count is None:
            return None
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        between = (low + (high - low) * i / (self.count - 1) for i in range(1, self.count - 1))
        rounded = (float(f"{math.exp(value) if self.log else value:.12g}") for value in between)  # 0.1 of 0.01 to 1
        return (self.low, *rounded, self.high)

    def _point(self, i: int) -> float:
        """Return the i-th value, computed in decimals: 0.3, where 0.1 + 2 * 0.1 is 0.30000000000000004."""
        return float(Decimal(repr(self.low)) + i * Decimal(repr(self.step)))

    def boundary_values(self) -> tuple[float, ...]:
        """Return the values to check against the schema: if they are allowed, all values are."""
        return (self.low, self.high)


@dataclass(frozen=True)
class Integer:
    """Integers from low to high, both included, with a step, uniform or uniform in their logarithms."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low} to {self.high}{', logarithmic' * self.log}{f', every {self.step}' * (self.step > 1)}"

    def suggest(self, trial: Suggester, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)

    def contains(self, value: Value) -> bool:
        return _is_number(value) and self.low <= value <= self.high and (value - self.low) % self.step == 0

    def points(self) -> Sequence[int]:
        return range(self.low, self.high + 1, self.step)

    def boundary_values(self) -> tuple[int, ...]:
        return (self.low, self.high)


@dataclass(frozen=True)
class Choice:
    """One of some values. Optuna stores only scalars, so it gets a list as its text."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.optuna_values))

    @property
    def optuna_values(self) -> tuple[Scalar, ...]:
        """The values as Optuna's categories."""
        return tuple(map(optuna_value, self.values))

    def suggest(self, trial: Suggester, name: str) -> Value:
        return self.values[self.optuna_values.index(trial.suggest_categorical(name, self.optuna_values))]

    def contains(self, value: Value) -> bool:
        return value in self.values

    def points(self) -> tuple[Value, ...]:
        return self.values

    def boundary_values(self) -> tuple[Value, ...]:
        return self.values


Distribution = Float | Integer | Choice


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def optuna_value(value: Value) -> Scalar:
    """Return a value as Optuna stores it: a list as its text, `[300,100]`."""
    return value_text(value) if isinstance(value, list) else value


def parse_distribution(key: str, text: str, options: list[str] | None = None) -> Distribution:
    """Parse one distribution in Hydra's grammar for sweeps.

    >>> parse_distribution("optimizer.learning_rate", "tag(log, interval(1e-4, 1))")
    Float(low=0.0001, high=1.0, step=None, log=True, count=None)

    Args:
        options: the options of the group if `key` is a config group (for `glob(*)`), else None.
    Raises: ConfigError that says what is wrong and what to write.
    """
    try:
        return _convert(parse_override(f"key={text}"), options)
    except (ConfigError, ValueError) as error:
        reason = str(error).partition("; write KEY=VALUE")[0].replace("'key=", "'")
        raise ConfigError(
            f"search.{key}={text}: {reason}; write choice(a, b), interval(low, high), int(interval(low, high)), "
            f"range(start, stop, step) or tag(log, interval(low, high))"
        ) from None


def _convert(override: Override, options: list[str] | None) -> Distribution:
    if not override.is_sweep_override():
        raise ValueError("is a value, not a distribution")
    sweep: Any = override._value  # value() raises an error for a glob
    if override.value_type is ValueType.GLOB_CHOICE_SWEEP:
        if options is None:
            raise ValueError("glob() is for config groups")
        return _choice(sweep.filter(options))
    if unknown := sweep.tags - {"log"}:
        raise ValueError(f"the tag {', '.join(sorted(unknown))} is not known; allowed: log")
    log = "log" in sweep.tags
    if isinstance(sweep, IntervalSweep):
        return _interval(sweep.start, sweep.end, log=log)
    if log:
        raise ValueError("the tag log is for interval()")
    if isinstance(sweep, RangeSweep):
        return _range(sweep)
    return _choice([Override._convert_value(value) for value in sweep.list])


def _choice(values: list[Any]) -> Choice:
    if not values:
        raise ValueError("no value is left to choose from")
    chosen = Choice(tuple(values))
    if any(a == b for a, b in itertools.combinations(chosen.optuna_values, 2)):
        raise ValueError("it has a value twice")
    return chosen


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
        raise ValueError(f"integers are searched up to {MAX_INTEGER}")
    return Integer(low, high, log=log)


def _range(sweep: RangeSweep) -> Distribution:
    start, stop, step = sweep.start or 0, sweep.stop or 0, sweep.step
    if not all(math.isfinite(number) and abs(number) <= MAX_INTEGER for number in (start, stop, step)):
        raise ValueError(f"start, stop and step must be finite, at most {MAX_INTEGER}")
    if step == 0:
        raise ValueError("a step of 0 never ends")
    values = sorted(itertools.islice(sweep.range(), MAX_POINTS + 1))
    if not values:
        raise ValueError("the range is empty")
    if len(values) > MAX_POINTS:
        raise ValueError(f"the range has more than {MAX_POINTS:,} values")
    if all(isinstance(value, int) for value in values):
        return Integer(values[0], values[-1], step=int(abs(step)))
    first, stride = (Decimal(repr(float(number))) for number in (start, step))
    low, high = sorted((first, first + (len(values) - 1) * stride))
    return Float(float(low), float(high), step=float(abs(step)))
