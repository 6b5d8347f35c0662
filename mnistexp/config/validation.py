"""What is wrong with a plain config, in plain words: every fault at once, each with what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mnistexp.config import user_code
from mnistexp.config.schema import (
    FILE_PATTERN,
    MIRROR_PATTERN,
    NAME_PATTERN,
    SETTING_PATTERN,
    Config,
    Mlp,
    UserData,
    UserModel,
    format_value,
    suggestion,
)
from mnistexp.errors import ConfigError


def check(plain: Mapping[str, Any]) -> Config:
    """Check a plain config against the schema. Raises: ConfigError with every fault."""
    config = validated(plain)
    if faults := [*_combination_faults(config), *_own_faults(config)]:
        raise ConfigError(*faults)
    return config


def _combination_faults(config: Config) -> list[str]:
    """What no single setting shows."""
    faults = []
    if config.optimizer.warmup_epochs > config.trainer.epochs:
        faults.append(
            f"optimizer.warmup_epochs={config.optimizer.warmup_epochs}: longer than the training; "
            f"at most trainer.epochs={config.trainer.epochs}"
        )
    if config.optimizer.schedule == "one_cycle" and config.optimizer.warmup_epochs > 0:
        faults.append(
            f"optimizer.warmup_epochs={config.optimizer.warmup_epochs}: optimizer.schedule=one_cycle has a warm-up of "
            f"its own, 30 % of the run; give 0"
        )
    if isinstance(config.model, Mlp) and config.model.dropout > 0 and not config.model.hidden_units:
        faults.append(f"model.dropout={config.model.dropout}: there is no hidden layer to drop from; give 0")
    if isinstance(config.model, Mlp) and config.model.batch_normalization and not config.model.hidden_units:
        faults.append("model.batch_normalization=true: there is no hidden layer to normalise; give false")
    for key, address in (("data.root", config.data.root), ("study.storage", config.study.storage)):
        if "\0" in (address or ""):
            faults.append(f"{key}={format_value(address)}: has a character of code 0, which no path has")
    if config.data.name == "npz" and config.data.root is None:
        faults.append("data=npz: needs your file; give data.root=FILE.npz with x_train, y_train, x_test, y_test")
    return faults


def _own_faults(config: Config) -> list[str]:
    """What is wrong with the user's own functions, as far as that is seen without running them."""
    faults = []
    for key, node in (("data", config.data), ("model", config.model)):
        if not isinstance(node, UserData | UserModel):
            continue
        if node.code is None:
            faults.append(f"{key}.function={node.function}: is a function of a file of your own; give --code FILE.py")
            continue
        try:
            user_code.check(node.function, node.ARGUMENTS, node.keywords)
        except ConfigError as error:
            faults += error.faults
    return faults


# ---------------------------------------------------------------------------------------------- the schema's part


def validated(plain: Mapping[str, Any]) -> Config:
    """A plain config as a Config. Raises: ConfigError with every fault."""
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(*_sentences(error, plain)) from None


PHRASES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "model_attributes_type": "must be a node with settings of its own",
    "model_type": "must be a node with settings of its own",
    "tuple_type": "must be a list, such as [300, 100]",
    "finite_number": "must be finite",
    NAME_PATTERN: "must be 1 to 100 letters, digits, dots, hyphens, underscores or spaces",
    FILE_PATTERN: "must be a file's name without folders: letters, digits, dots, hyphens and underscores",
    SETTING_PATTERN: "must be a name in Python: a letter, then letters, digits and underscores",
    MIRROR_PATTERN: "must be like https://HOST/FOLDER/, without user and password",
}
"""pydantic's messages in plainer words, by its type of fault (or the pattern that wasn't matched)."""


def _sentences(error: ValidationError, plain: Mapping[str, Any]) -> list[str]:
    """One sentence a key: what was given and what is allowed. A union's members count as one key."""
    problems: dict[str, list[str]] = {}
    for fault in error.errors():
        subject, problem = _problem(dict(fault), ".".join(_without_tags(fault["loc"], plain)))
        problems.setdefault(subject, []).append(problem)
    return [f"{subject}: {', or '.join(found)}" if subject else found[0] for subject, found in problems.items()]


def _problem(fault: Mapping[str, Any], key: str) -> tuple[str, str]:
    """What was given ('key=value') and what is wrong with it."""
    given, kind, context = fault["input"], fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return key, "the config has no such key"
    if kind == "union_tag_not_found":
        key, kind = f"{key}.name", "missing"
    if kind == "missing":
        return key, "needs a value, and no option file gives one"
    if kind == "value_error":
        why = str(context["error"])
        return (f"{key}={format_value(given)}", why) if why.startswith("must ") else ("", why)
    if kind == "union_tag_invalid":
        key, given = f"{key}.name", given["name"]
    words = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags") or ""))
    if words:
        one_of = "one of " * (len(words) > 1)
        return f"{key}={format_value(given)}", f"must be {one_of}{', '.join(words)}{suggestion(given, words)}"
    message = PHRASES.get(context.get("pattern", kind)) or fault["msg"].removeprefix("Input ").replace("should", "must")
    return f"{key}={format_value(given)}", message[0].lower() + message[1:]


def _without_tags(place: Sequence[str | int], plain: Mapping[str, Any]) -> Iterator[str]:
    """pydantic puts the chosen member of a union into the place of a fault ('optimizer.sgd.momentum'); drop it."""
    node: Any = plain
    for key in place:
        if isinstance(node, list | Mapping) and (isinstance(node, list) or key in node):
            yield str(key)
            node = node[key]  # type: ignore[index]  # pydantic gives numbers for lists, names for nodes
        elif isinstance(node, Mapping) and key != node.get("name"):
            yield str(key)  # a key that is missing
            node = None
