"""Separate a command's own arguments from the config's overrides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mnistexp.errors import ConfigError


@dataclass(frozen=True)
class CommandArgs:
    """A command's own arguments."""

    keys: Mapping[str, str] = field(default_factory=dict)  # KEY=VALUE words, as typed
    names: tuple[str, ...] = ()  # words without `=`: studies, files
    flags: Mapping[str, object] = field(default_factory=dict)  # "--plan", "-q"

    def int_arg(self, key: str, default: int, least: int = 1) -> int:
        """Return a key's value as an integer. Raises: ConfigError if it is not one, or less than `least`."""
        text = self.keys.get(key)
        if text is None:
            return default
        if not (text.isascii() and text.isdecimal()) or int(text) < least:
            raise ConfigError(f"{key}={text}: must be a whole number from {least}, such as {key}={default}")
        return int(text)


def split_args(words: Iterable[str], keys: Sequence[str], names: bool) -> tuple[CommandArgs, list[str]]:
    """Split a command line. Returns: the command's own arguments, without flags, and the overrides.

    Args:
        keys: the keys of the command's own KEY=VALUE words.
        names: whether a word without `=` is an argument of the command.

    Raises: ConfigError for a key without a value.
    """
    given: dict[str, str] = {}
    named: list[str] = []
    overrides: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in keys:
            if not value:
                raise ConfigError(f"{word}: needs a value; omit it for the default")
            given[key] = value
        elif names and not equals and not word.startswith("~"):
            named.append(word)
        else:
            overrides.append(word)
    return CommandArgs(given, tuple(named)), overrides
