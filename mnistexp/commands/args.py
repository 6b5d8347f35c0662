"""A command's own words and flags, told apart from the config's overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mnistexp.errors import ConfigError


@dataclass(frozen=True)
class CommandArgs:
    """What a command was given beside overrides."""

    keys: Mapping[str, str] = field(default_factory=dict)  # its KEY=VALUE words, as typed
    names: tuple[str, ...] = ()  # its words without `=`: studies, files
    flags: Mapping[str, object] = field(default_factory=dict)  # by their names: "--plan", "-q"

    def whole(self, key: str, default: int, least: int = 1) -> int:
        """A key's value as a whole number. Raises: ConfigError if it is none, or less than `least`."""
        text = self.keys.get(key)
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal()) or int(text) < least:
            raise ConfigError(f"{key}={text}: must be a whole number from {least}, such as {key}={default}")
        return int(text)


def split_args(words: Iterable[str], keys: Sequence[str], names: bool) -> tuple[CommandArgs, list[str]]:
    """Sort a command line. Returns: the command's own words, without flags, and the overrides.

    Args:
        keys: the command's own keys.
        names: whether a word without `=` is its own.

    Raises: ConfigError for a key without a value.
    """
    given: dict[str, str] = {}
    named: list[str] = []
    overrides: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in keys:
            if not value:
                raise ConfigError(f"{word}: needs a value; leave it out for the usual one")
            given[key] = value
        elif names and not equals and not word.startswith("~"):
            named.append(word)
        else:
            overrides.append(word)
    return CommandArgs(given, tuple(named)), overrides
