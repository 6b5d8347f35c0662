"""Validation: check a plain config and report every fault at once, each with what was given and what is allowed."""

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
    DataConfig,
    Mlp,
    ModelConfig,
    Sgd,
    UserData,
    format_value,
    suggestion,
)
from mnistexp.errors import ConfigError


def check(plain: Mapping[str, Any]) -> Config:
    """Check a plain config. Raises: ConfigError with every fault."""
    config = validated(plain)
    if faults := [*_combination_faults(config), *_user_code_faults(config)]:
        raise ConfigError(*faults)
    return config


def validated(plain: Mapping[str, Any]) -> Config:
    """Check a plain config against the schema alone. Raises: ConfigError with every fault."""
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(*_sentences(error, plain)) from None


def _combination_faults(config: Config) -> Iterator[str]:
    """Find values that are allowed one by one but not together."""
    optimizer = config.optimizer
    warmup = f"optimizer.warmup_epochs={optimizer.warmup_epochs}"
    if optimizer.warmup_epochs > config.trainer.epochs:
        yield f"{warmup}: longer than the training; at most trainer.epochs={config.trainer.epochs}"
    if optimizer.schedule == "one_cycle" and optimizer.warmup_epochs > 0:
        yield f"{warmup}: optimizer.schedule=one_cycle has its own warm-up, 30 % of the run; give 0"
    if isinstance(optimizer, Sgd) and optimizer.nesterov and optimizer.momentum == 0:
        yield "optimizer.nesterov=true: has no effect with momentum=0; give e.g. optimizer.momentum=0.9"
    yield from _model_and_data_faults(config.model, config.data, config.study.storage)


def _model_and_data_faults(model: ModelConfig, data: DataConfig, storage: str) -> Iterator[str]:
    if isinstance(model, Mlp) and not model.hidden_units:
        if model.dropout > 0:
            yield f"model.dropout={model.dropout}: there is no hidden layer to drop from; give 0"
        if model.batch_normalization:
            yield "model.batch_normalization=true: there is no hidden layer to normalise; give false"
    for key, address in (("data.root", data.root), ("study.storage", storage)):
        if "\0" in (address or ""):
            yield f"{key}={format_value(address)}: has a character of code 0, which no path may have"
    if data.name == "npz" and data.root is None:
        yield "data=npz: needs a file; give data.root=FILE.npz with x_train, y_train, x_test, y_test"
    if isinstance(data, UserData) and "root" in data.settings:
        yield "data.settings.root: give it as data.root, which is not part of the identity of a run"


def _user_code_faults(config: Config) -> Iterator[str]:
    """Find functions of the user's file that do not exist or cannot be called with their settings."""
    for node in user_code.nodes(config):
        try:
            user_code.check(node.function, node.POSITIONAL, node.keywords)
        except ConfigError as error:
            yield from error.faults


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
"""Replacements of pydantic's messages, by the type of the fault or the pattern that did not match."""


def _sentences(error: ValidationError, plain: Mapping[str, Any]) -> list[str]:
    """Write one sentence for each key. The members of a union count as one key."""
    problems: dict[str, list[str]] = {}
    for fault in error.errors():
        subject, problem = _problem(dict(fault), ".".join(_without_tags(fault["loc"], plain)))
        problems.setdefault(subject, []).append(problem)
    return [f"{subject}: {', or '.join(found)}" if subject else found[0] for subject, found in problems.items()]


def _problem(fault: Mapping[str, Any], key: str) -> tuple[str, str]:
    """Return what was given ('key=value') and what is wrong with it."""
    given, kind, context = fault["input"], fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return key, "the config has no such key"
    if kind in ("missing", "union_tag_not_found"):
        return key if kind == "missing" else f"{key}.name", "needs a value, and no option file gives one"
    if kind == "value_error":
        reason = str(context["error"])
        return (f"{key}={format_value(given)}", reason) if reason.startswith("must ") else ("", reason)
    if kind == "union_tag_invalid":
        key, given = f"{key}.name", given["name"]
    allowed = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags") or ""))
    if allowed:
        message = f"must be {'one of ' * (len(allowed) > 1)}{', '.join(allowed)}{suggestion(given, allowed)}"
    else:
        message = PHRASES.get(context.get("pattern", kind)) or fault["msg"].removeprefix("Input ").replace(
            "should", "must"
        )
        message = message[0].lower() + message[1:]
    return f"{key}={format_value(given)}", message


def _without_tags(place: Sequence[str | int], plain: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a fault's place without the union members that pydantic adds ('optimizer.sgd.momentum')."""
    node: Any = plain
    for key in place:
        if isinstance(node, list) or (isinstance(node, Mapping) and key in node):
            yield str(key)
            node = node[key]  # type: ignore[index]  # a list has numbers, a mapping has names
        elif isinstance(node, Mapping) and key != node.get("name"):
            yield str(key)  # a key that is missing
            node = None
