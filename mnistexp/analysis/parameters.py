"""The searched parameters of a study, and each trial's values of them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mnistexp.analysis.history import History, Trial
from mnistexp.config.compose import flatten
from mnistexp.config.overrides import parse_parameter_name
from mnistexp.config.schema import RunConfig, format_value
from mnistexp.tracking.run_context import optimizer_name

SEED = "seed"


@dataclass(frozen=True)
class SearchedRange:
    """The distribution of one parameter: a range of numbers, or some values."""

    values: tuple[Any, ...] = ()  # empty: a range
    low: float = 0.0
    high: float = 0.0
    log: bool = False


def searched(history: History) -> dict[str, SearchedRange]:
    """Return what was searched: Optuna's parameter name and its distribution."""
    prefix = "search."
    named = {name.removeprefix(prefix): text for name, text in history.fingerprint.items() if name.startswith(prefix)}
    return {name: found for name, text in named.items() if (found := _parse(text))}


def _parse(distribution: str) -> SearchedRange | None:
    """Read a distribution of a fingerprint; None if it is none, as in a confirmation's study."""
    try:
        plain = json.loads(distribution)
        if "values" in plain:
            return SearchedRange(tuple(plain["values"]))
        return SearchedRange(low=plain["low"], high=plain["high"], log=plain["log"])
    except (ValueError, KeyError, TypeError):
        return None


def keys(history: History) -> tuple[str, ...]:
    """Return the searched override keys: `optimizer.learning_rate` once, however many distributions it has."""
    return tuple(dict.fromkeys(map(key_of, searched(history))))


def key_of(name: str) -> str:
    """Return the override key of an Optuna parameter name, which may be `key@option|option`."""
    return parse_parameter_name(name)[0]


def searches_only_seeds(history: History) -> bool:
    """Return whether all trials are one config with different seeds, so that none of them is better than another."""
    return keys(history) == (SEED,)


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return short names of override keys or Optuna parameters that still tell them apart.

    >>> short_names(["model.dropout", "optimizer.learning_rate@adam|lion"])
    {'model.dropout': 'dropout', 'optimizer.learning_rate@adam|lion': 'learning_rate (adam, lion)'}
    """
    keys_of = {name: parse_parameter_name(name) for name in names}
    lasts = Counter(key.rpartition(".")[2] for key in {key for key, _ in keys_of.values()})
    short = {}
    for name, (key, options) in keys_of.items():
        last = key.rpartition(".")[2]
        short[name] = (last if lasts[last] == 1 else key) + (f" ({', '.join(options)})" if options else "")
    return short


def values_of(trial: Trial, wanted: Sequence[str]) -> dict[str, Any]:
    """Return a trial's values of the searched keys: from its parameters, else from its config. Lists are text.

    A key is missing if the trial has no such setting, as Adam has no momentum. The first trial is the composed config
    without changes, so its values may lie outside of the space.
    """
    values = {key_of(name): value for name, value in trial.params.items()}
    if trial.record and not values.keys() >= set(wanted):
        values = {**_config_values(trial.record.config), **values}
    found = {key: values[key] for key in wanted if key in values}
    return {key: format_value(value) if isinstance(value, list) else value for key, value in found.items()}


def _config_values(config: RunConfig) -> dict[str, Any]:
    return {**flatten(config.model_dump(mode="json")), "optimizer": optimizer_name(config)}


def by_key(shares: Mapping[str, float]) -> dict[str, float]:
    """Add the importances of Optuna's parameters that belong to one override key; the largest comes first."""
    total: dict[str, float] = {}
    for name, share in shares.items():
        total[key_of(name)] = total.get(key_of(name), 0.0) + share
    return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))


def is_number(value: object) -> bool:
    """Return whether a value is a number and not a bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


# ----------------------------------------------------------------------------------------- where good values are


def top_tenth(history: History) -> tuple[Trial, ...]:
    """Return the best tenth of the complete trials, but at least three."""
    return history.ranked[: max(3, math.ceil(len(history.ranked) / 10))]


def range_summary(trials: Sequence[Trial], name: str, searched_range: SearchedRange) -> dict[Any, int]:
    """Count the values of one parameter among some trials, the most frequent first; of a range the two ends only."""
    values = [trial.params[name] for trial in trials if name in trial.params]
    if searched_range.values or not values:
        return dict(Counter(values).most_common())
    return {end: values.count(end) for end in (min(values), max(values))}
