"""Validation: check a plain config and report every fault at once, each with what was given and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from mnistexp.config import user_code
from mnistexp.config.schema import (
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
    "extra_forbidden": "the config has no such key",
    "missing": "needs a value, and no option file gives one",
    "union_tag_not_found": "needs a name, and no option file gives one",
}
"""Replacements of pydantic's messages."""


def _sentences(error: ValidationError, plain: Mapping[str, Any]) -> list[str]:
    """Write one sentence for each key. The members of a union count as one key."""
    problems: dict[str, list[str]] = {}
    for fault in error.errors():
        kind, given, context = fault["type"], fault["input"], fault.get("ctx", {})
        key = ".".join(_without_tags(fault["loc"], plain))
        if kind == "union_tag_invalid":
            key, given = f"{key}.name", given["name"]
        if kind not in ("extra_forbidden", "missing", "union_tag_not_found"):
            key = f"{key}={format_value(given)}"
        allowed = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags") or ""))
        if allowed:
            message = f"must be {'one of ' * (len(allowed) > 1)}{', '.join(allowed)}{suggestion(given, allowed)}"
        else:
            message = PHRASES.get(kind) or fault["msg"].replace("Input should", "must").replace("String should", "must")
        problems.setdefault(key, []).append(message)
    return [f"{key}: {', or '.join(dict.fromkeys(found))}" for key, found in problems.items()]


def _without_tags(place: Sequence[str | int], plain: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a fault's place without the union members that pydantic adds ('optimizer.sgd.momentum')."""
    node: Any = plain
    for key in place:
        if (isinstance(node, list) and isinstance(key, int)) or (isinstance(node, Mapping) and key in node):
            yield str(key)
            node = node[key]  # type: ignore[index]  # a list has numbers, a mapping has names
        elif isinstance(node, Mapping) and key != node.get("name"):
            yield str(key)  # a key that is missing
            node = None
