"""Overrides: parse the user's with Hydra's parser, sort them by what they do, and write overrides as text."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from mnistexp.config.option_files import config_groups
from mnistexp.config.schema import RunConfig, format_value, suggestion
from mnistexp.errors import ConfigError

MAX_TEXT = 4096
"""Most characters of one override: Hydra's parser takes 0.3 ms for each, and no path is longer."""

RESERVED_WORDS = ("true", "false", "null", "nan", "inf")


@dataclass(frozen=True)
class ParsedOverrides:
    """The user's overrides, sorted by what they do. Texts are as typed."""

    choices: tuple[str, ...] = ()  # group=option
    values: tuple[str, ...] = ()  # key=value
    search: tuple[tuple[str, str | None], ...] = ()  # (override key, distribution; None: not searched)
    config_dir: Path | None = None

    @property
    def overrides(self) -> tuple[str, ...]:
        """The overrides that compose the base config."""
        return self.choices + self.values

    @property
    def fixed_keys(self) -> frozenset[str]:
        """The keys and groups with a plain value, which are not searched."""
        return frozenset(map(key_of, self.overrides))

    @property
    def run_overrides(self) -> tuple[str, ...]:
        """The overrides that decide the result of one training: what a run records. They hold no passwords."""
        nodes = (*RunConfig.model_fields, "experiments")
        return tuple(text for text in self.overrides if re.split("[./=]", text)[0] in nodes)

    def without_overrides(self, keys: Iterable[str]) -> ParsedOverrides:
        """Return these overrides without the values of some keys."""
        dropped = set(keys)
        return replace(self, values=tuple(text for text in self.values if key_of(text) not in dropped))

    def with_overrides(self, overrides: Iterable[str]) -> ParsedOverrides:
        """Return these overrides with others, which replace those of the same key. Raises: ConfigError."""
        more, faults = sort_overrides(overrides, self.config_dir)
        if faults:
            raise ConfigError(*(fault for found in faults.values() for fault in found))
        return self.then(more)

    def then(self, later: ParsedOverrides) -> ParsedOverrides:
        """Return these overrides with later ones. Of one key the last override counts, as in Hydra."""
        keys = later.fixed_keys
        return ParsedOverrides(
            tuple(text for text in self.choices if key_of(text) not in keys) + later.choices,
            tuple(text for text in self.values if key_of(text) not in keys) + later.values,
            tuple(entry for entry in self.search if entry[0] not in keys) + later.search,
            self.config_dir,
        )


def sort_overrides(
    overrides: Iterable[str], config_dir: Path | None = None
) -> tuple[ParsedOverrides, dict[str, tuple[str, ...]]]:
    """Parse and sort overrides.

    Returns: the sorted overrides, and of each wrong one (as typed) what is wrong with it.
    """
    groups = config_groups(config_dir)
    request = ParsedOverrides(config_dir=config_dir)
    faults: dict[str, tuple[str, ...]] = {}
    for text in overrides:
        try:
            request = request.then(_sort_one(text, groups))
        except ConfigError as error:
            faults[text] = error.faults
    return request, faults


def _sort_one(text: str, groups: Mapping[str, list[str]]) -> ParsedOverrides:
    """Parse one override. Raises: ConfigError."""
    if text.startswith(("search.", "~search.")):
        return ParsedOverrides(search=(_search_entry(text),))
    override = parse_override(text)
    key, group = override.key_or_group, override.key_or_group.replace(".", "/")
    _refuse_unsafe(text, override)
    if override.is_sweep_override():
        return ParsedOverrides(search=((key, text.partition("=")[2]),))
    value = override.value()
    if key in groups:
        if value not in groups[key]:
            allowed = f"{', '.join(groups[key])}{suggestion(value, groups[key])}"
            raise ConfigError(f"{key}={format_value(value)}: must be one of {allowed}")
        return ParsedOverrides(choices=(f"{key}={value}",))
    if group in groups:
        raise ConfigError(f"{text}: {key} is a config group; write {group}=OPTION")
    parent = group.removesuffix("/name")
    if parent != group and key != "study.name" and value in groups.get(parent, ()):
        raise ConfigError(f"{text}: write {parent}={value}, which sets the other settings of that option too")
    return ParsedOverrides(values=(text,))


def _refuse_unsafe(text: str, override: Override) -> None:
    """Refuse overrides that add or remove keys, or that make Hydra or OmegaConf run something."""
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise ConfigError(f"{text}: Hydra's own settings can't be overridden here; leave it out")
    if "_target_" in text or any(re.fullmatch(r"_\w+_", part) for part in re.split(r"[./@]", key)):
        raise ConfigError(f"{text}: _target_ and the like are refused, since mnistexp runs no code that a config names")
    if override.is_add() or override.is_delete() or override.is_force_add() or override.package is not None:
        raise ConfigError(f"{text}: the config takes no new, removed or moved keys; write KEY=VALUE with a key it has")


def _search_entry(text: str) -> tuple[str, str | None]:
    """Parse search.KEY=DISTRIBUTION, or ~search.KEY, which takes a key out of the search."""
    key, given, distribution = text.removeprefix("~").removeprefix("search.").partition("=")
    removed = text.startswith("~")
    if not key or not (given or removed):
        raise ConfigError(f"{text}: write search.KEY=DISTRIBUTION, or ~search.KEY to leave a key out")
    return key, None if removed or distribution in ("null", "") else distribution


def refuse_search(request: ParsedOverrides, command: str) -> None:
    """Raises: ConfigError if there is a distribution, for commands with one value for each key."""
    searched = [key for key, distribution in request.search if distribution]
    if searched:
        raise ConfigError(
            f"{searched[0]}: {command} takes one value, not a distribution; give a value, or use the command sweep"
        )


def refuse_hyperparameters(request: ParsedOverrides, command: str) -> None:
    """Raises: ConfigError if there is a setting of a training, for commands that use a recorded config."""
    given = [key for key in request.fixed_keys if key.partition(".")[0] in RunConfig.model_fields.keys() - {"data"}]
    if command in ("rerun", "confirm"):
        given = [key for key in given if key != "trainer.device"]  # this machine may lack the recorded one
    if given:
        raise ConfigError(
            f"{min(given)}: {command} takes a recorded config as it is; leave it out, or use the command train"
        )


@functools.lru_cache(maxsize=1024)  # each trial of a study repeats the command line
def parse_override(text: str) -> Override:
    """Parse one override with Hydra's parser. Raises: ConfigError that says what to write."""
    shown = repr(text) if len(text) <= MAX_TEXT else f"{text[:40]!r}…"
    try:
        if len(text) > MAX_TEXT:
            raise ValueError(f"it has {len(text)} characters; at most {MAX_TEXT} are allowed")
        override = OverridesParser.create().parse_override(text)
        if not override.key_or_group:
            raise ValueError("it has no key")
    except (HydraException, ValueError, RecursionError) as error:  # ValueError: also a number of over 4,300 digits
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"{shown} is not an override ({reason}); write KEY=VALUE, quoted for your shell") from None
    return override


def key_of(text: str) -> str:
    """Return the key of an override."""
    return text.partition("=")[0]


def override_text(key: str, value: object) -> str:
    """Write one override that Hydra's grammar reads back as exactly this value.

    >>> override_text("optimizer.learning_rate", 1e-05), override_text("study.name", "1e5")
    ('optimizer.learning_rate=1e-05', "study.name='1e5'")
    """
    return f"{key}={value_text(value)}"


def value_text(value: object) -> str:
    """Write a plain value in Hydra's grammar, with quotes only if it needs them."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(value_text, value))}]"
    if value is None or isinstance(value, bool):
        return format_value(value)
    if isinstance(value, int | float):
        return repr(value)  # the shortest text that reads back as the same float
    text = str(value)
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) and text.lower() not in RESERVED_WORDS:
        return text
    doubled = re.sub(r"\\+(?='|\Z)", r"\g<0>\g<0>", text)  # a backslash is special only before a quote
    return "'" + doubled.replace("'", "\\'") + "'"


def parse_parameter_name(name: str) -> tuple[str, tuple[str, ...]]:
    """Split the name of an Optuna parameter into its override key and the options that it belongs to.

    `search.space` appends the options to a key where they differ in its distribution. No options: it belongs to all.
    An option is `adam/affine` where two config groups are searched.

    >>> parse_parameter_name("optimizer.learning_rate@adam|nadam"), parse_parameter_name("model.dropout")
    (('optimizer.learning_rate', ('adam', 'nadam')), ('model.dropout', ()))
    """
    key, _, options = name.partition("@")
    return key, tuple(filter(None, options.split("|")))


def parameter_name(key: str, options: Sequence[str]) -> str:
    """Return the name of an Optuna parameter: the inverse of `parse_parameter_name`."""
    return f"{key}@{'|'.join(options)}" if options else key
