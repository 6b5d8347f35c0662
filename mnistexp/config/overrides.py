"""One override as a text: read with Hydra's own parser, and written so that it reads back the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from mnistexp.config.schema import format_value
from mnistexp.errors import ConfigError

MAX_TEXT = 4096
"""Characters of one override: Hydra's parser takes 0.3 ms for each, and a path of the system has no more."""


def parse_override(text: str) -> Override:
    """One override, by Hydra's own parser. Raises: ConfigError saying what to write."""
    if len(text) > MAX_TEXT:
        raise ConfigError(f"{text[:40]!r}…: has {len(text)} characters; an override has at most {MAX_TEXT}")
    try:
        override = OverridesParser.create().parse_override(text)
    except RecursionError:
        raise ConfigError(f"{text[:40]!r}… is not an override: its brackets are nested too deeply") from None
    except (HydraException, ValueError) as error:  # ValueError: a number of more than 4,300 digits
        why = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"{text!r} is not an override ({why}); write KEY=VALUE, quoted for your shell") from None
    if not override.key_or_group:
        raise ConfigError(f"{text!r} is not an override (it has no key); write KEY=VALUE, quoted for your shell")
    return override


def parse_value(text: str) -> Override:
    """A value text as Hydra's grammar reads it, distributions included. Raises: ConfigError."""
    return parse_override(f"key={text}")


def override_text(key: str, value: object) -> str:
    """One override that Hydra's grammar reads back as exactly this value.

    >>> override_text("optimizer.learning_rate", 1e-05), override_text("study.name", "1e5")
    ('optimizer.learning_rate=1e-05', "study.name='1e5'")
    """
    return f"{key}={value_text(value)}"


def value_text(value: object) -> str:
    """A plain value in Hydra's grammar, quoted where it must be."""
    if isinstance(value, list | tuple):
        return f"[{','.join(value_text(item) for item in value)}]"
    if value is None or isinstance(value, bool):
        return format_value(value)
    if isinstance(value, int | float):
        return repr(value)  # repr is the shortest text that reads back as the same float
    text = str(value)
    bare = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", text) and text.lower() not in (
        "true",
        "false",
        "null",
        "nan",
        "inf",
    )
    if bare:
        return text
    doubled = re.sub(r"\\+(?='|\Z)", r"\g<0>\g<0>", text)  # a backslash is special before a quote alone
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
