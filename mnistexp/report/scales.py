"""Where hyperparameters stand on an axis: names, scales, ticks and categories. Positions are in 0 … 1."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mnistexp.analysis import parameters
from mnistexp.analysis.history import Trial
from mnistexp.report.canvas import shortened, ticks

Kind = Literal["linear", "log", "category"]

FEW = 6  # different numbers, each drawn twice on average: these are choices, and each gets a place
MARGIN = 0.04  # of the axis on each side, so that no point lies on its end


def labels(names: Iterable[str]) -> dict[str, str]:
    """Names of parameters, short, but for what tells two of them apart.

    >>> labels(["model.dropout", "optimizer.learning_rate@adam|lion"])
    {'model.dropout': 'dropout', 'optimizer.learning_rate@adam|lion': 'learning_rate (adam, lion)'}
    """
    every = list(dict.fromkeys(names))
    keys = {name: name.partition("@")[0].split(".") for name in every}
    return {name: _ending(name, keys) + _condition(name) for name in every}


def _ending(name: str, keys: Mapping[str, list[str]]) -> str:
    """The last parts of a key that no other key ends with."""
    mine = keys[name]
    others = {tuple(key) for key in keys.values()} - {tuple(mine)}
    for count in range(1, len(mine)):
        if all(list(other[-count:]) != mine[-count:] for other in others):
            return shortened(".".join(mine[-count:]))
    return shortened(".".join(mine))


def _condition(name: str) -> str:
    options = name.partition("@")[2]
    return f" ({shortened(options.replace('|', ', '))})" if options else ""


def shown(value: object) -> str:
    """A value in a few characters: 300-100 for [300, 100].

    >>> shown("[300, 100]"), shown(0.00123456), shown(True)
    ('300-100', '0.00123', 'true')
    """
    plain = _plain(value)
    if isinstance(plain, list):
        return shortened("-".join(map(shown, plain)), 20) if plain else "none"
    if isinstance(plain, float):
        return f"{plain:.3g}".replace("e-0", "e-").replace("e+0", "e")
    return shortened(plain if isinstance(plain, str) else json.dumps(plain), 20)


def _plain(value: object) -> Any:
    """A value as JSON has it; lists come as their text, since a study's database keeps no others."""
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return list(value) if isinstance(value, tuple) else value


def values(trials: Sequence[Trial], name: str) -> list[Any]:
    """Each trial's value of a parameter, None if it has none.

    null is a choice among choices, and comes as that word; on an axis of numbers it has no place, and comes as None.

    Args:
        name: Optuna's, `optimizer.learning_rate@adam|nadam`, for the trials that drew just that; or an override key,
            `optimizer.learning_rate`, for all that have one.
    """
    settings = [trial.params if "@" in name else parameters.values_of(trial, [name]) for trial in trials]
    found = [values.get(name) for values in settings]
    found = [None if isinstance(value, float) and not math.isfinite(value) else value for value in found]
    if scale(found).kind != "category":
        return found
    return ["null" if name in values and values[name] is None else value for values, value in zip(settings, found)]


@dataclass(frozen=True)
class Scale:
    """An axis for one parameter."""

    kind: Kind
    low: float = 0.0  # of numbers; of a logarithmic scale, their logarithms to base 10
    high: float = 1.0
    categories: tuple[str, ...] = ()  # as they are shown, in order
    whole: bool = False  # numbers without a fraction

    def at(self, value: object) -> float:
        """Where a value stands, in 0 … 1."""
        if self.kind == "category":
            return (self.categories.index(shown(value)) + 0.5) / len(self.categories)
        return self._place(math.log10(float(value)) if self.kind == "log" else float(value))  # type: ignore[arg-type]

    def _place(self, number: float) -> float:
        return MARGIN + (1 - 2 * MARGIN) * (number - self.low) / (self.high - self.low)

    def ticks(self, count: int = 4) -> list[tuple[float, str]]:
        """Places and texts of the marks on the axis."""
        if self.kind == "category":
            return [((place + 0.5) / len(self.categories), text) for place, text in enumerate(self.categories)]
        marks = _log_ticks(self.low, self.high, count) if self.kind == "log" else ticks(self.low, self.high, count)
        if self.whole and self.kind == "linear":
            marks = ticks(self.low, self.high, count, whole=True)
        return [(self.at(mark), shown(float(mark))) for mark in marks]

    def edges(self, bins: int) -> list[float]:
        """The ends of `bins` equal parts; of a category's each, whatever `bins`."""
        count = len(self.categories) if self.kind == "category" else bins
        return [place / count for place in range(count + 1)]


def scale(found: Iterable[Any], log: bool | None = None) -> Scale:
    """Choose the axis that suits a parameter's values.

    Args:
        found: values; None where there is none.
        log: whether it was searched on a logarithmic scale; None: if that spreads the values more evenly.
    """
    there = [value for value in found if value is not None]
    different = {shown(value): _plain(value) for value in there}
    if len(different) < 2 or not all(map(parameters.is_number, there)) or len(different) <= min(FEW, len(there) // 2):
        ordered = sorted(different, key=lambda text: _order(different[text], text))
        return Scale("category", categories=tuple(ordered))
    whole = all(float(value).is_integer() for value in there)
    if min(there) > 0 and (_spreads_evenly(there) if log is None else log):
        return Scale("log", math.log10(min(there)), math.log10(max(there)), whole=whole)
    return Scale("linear", float(min(there)), float(max(there)), whole=whole)


def logarithmic(name: str, log: Collection[str] | None) -> bool | None:
    """Whether a parameter, or one of those that share a key, is among the logarithmic ones; None: nobody said."""
    return None if log is None else any(name in (each, parameters.key_of(each)) for each in log)


def _order(value: Any, text: str) -> tuple[int, list[float], str]:
    """Numbers by size, then lists by length and sizes, then words by alphabet."""
    if parameters.is_number(value):
        return 0, [float(value)], text
    if isinstance(value, list) and all(map(parameters.is_number, value)):
        return 1, [float(len(value)), *map(float, value)], text
    return 2, [], text


def _spreads_evenly(there: Sequence[float]) -> bool:
    """Whether the middle of the values is nearer to that of the axis if the axis is logarithmic."""
    low, middle, high = min(there), sorted(there)[len(there) // 2], max(there)
    if high / low < 20:
        return False
    linear = (middle - low) / (high - low)
    return abs(math.log(middle / low) / math.log(high / low) - 0.5) < abs(linear - 0.5)


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    """Powers of ten; or 1, 2, 5 times them if those are too few; or round numbers on a short axis."""
    for steps in ((1,), (1, 3), (1, 2, 5)):
        every = [step * 10.0**power for power in range(math.floor(low), math.ceil(high) + 1) for step in steps]
        marks = [mark for mark in every if low - 1e-9 <= math.log10(mark) <= high + 1e-9]
        if len(marks) >= 3:
            return marks[:: math.ceil(len(marks) / (count + 1))]
    return ticks(10**low, 10**high, count)
