"""Compose the config from conf/ and the user's overrides, with Hydra's compose API.

mnistexp has its own command line instead of `@hydra.main`, which runs `_target_`s of `hydra.callbacks`, writes
`.hydra/` (with database passwords) and configures logging. Hydra composes the options; values are set here, because
Hydra stops at the first unknown key and takes 60 to 90 ms for each composition.
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnistexp.config import option_files, user_code
from mnistexp.config.option_files import config_groups
from mnistexp.config.overrides import (
    ParsedOverrides,
    key_of,
    parse_override,
    sort_overrides,
    value_text,
)
from mnistexp.config.schema import Config, Mlp, RunConfig, format_value
from mnistexp.config.validation import check
from mnistexp.errors import ConfigError

SECRET_KEYS = ("study.storage", "tracking.uri", "data.root")
"""The only settings that may read the environment. Of these, addresses with a password are never logged."""

NO_EFFECT = {"data": {"root", "mirrors", "timeout"}, "trainer": {"timeout"}}
"""Settings of a run that do not change its result: where the data come from, and when a training counts as hung."""


@dataclass(frozen=True)
class Template:
    """A composed config with open interpolations. Given values, it returns a checked Config (1 ms)."""

    plain: dict[str, Any]
    options: dict[str, str]  # group → the option that Hydra composed, defaults included

    @property
    def search(self) -> dict[str, str]:
        """The search space: override key → distribution."""
        return dict(self.plain["search"])

    def config(self, values: Mapping[str, Any] | None = None) -> Config:
        """Return the config with these values (override key → plain value). Raises: ConfigError with every fault."""
        plain = copy.deepcopy(self.plain)
        for key, value in (values or {}).items():
            _assign(plain, key, value)
        flat = flatten(plain) | {f"search.{key}": text for key, text in plain["search"].items()}
        forbidden = [
            f"{key}={value}: only {', '.join(SECRET_KEYS)} may use ${{resolver:…}}; write the value itself"
            for key, value in flat.items()
            if key not in (*SECRET_KEYS, "search") and re.search(r"\$\{[^}]*:", str(value))
        ]
        if forbidden:  # the environment variable would be resolved into the logged config
            raise ConfigError(*forbidden)
        if any("${" in str(value) for key, value in flat.items() if not key.startswith("search")):
            plain = _resolved(plain)
        return check(_with_code_hash(plain))


def parse_request(overrides: Iterable[str], config_dir: Path | None = None) -> ParsedOverrides:
    """Parse the overrides of a command line. Raises: ConfigError with every fault."""
    if config_dir:
        option_files.check_folder(config_dir)
    request, faults = sort_overrides(overrides, config_dir)
    if not faults:
        return request
    found = [fault for each in faults.values() for fault in each]
    wrong_nodes = {_node_of(text.lstrip("+~")) for text in faults}
    if "experiments" not in wrong_nodes:  # an experiment could set anything, so it hides all other faults
        values = tuple(text for text in request.values if _node_of(text) not in wrong_nodes)
        found += faults_of(lambda: compose(replace(request, values=values)))
    raise ConfigError(*found)


def _node_of(text: str) -> str:
    return re.split("[./=@]", text)[0]


def compose(request: ParsedOverrides) -> Config:
    """Compose, resolve and check one config. Raises: ConfigError with every fault."""
    return template(request).config()


def template(request: ParsedOverrides) -> Template:
    """Compose and check a config, with its interpolations left open. Raises: ConfigError with every fault."""
    plain, options = copy.deepcopy(_hydra(request.choices, request.config_dir, option_files.ROOT))
    known, faults = flatten(plain), []
    for text in request.values:
        key = key_of(text)
        try:
            known[key]  # not in it: a node, or an unknown key
            _assign(plain, key, parse_override(text).value())
        except KeyError:
            faults.append(_unknown_key(text, known, request.config_dir))
    plain["search"] = _merged_search(plain, request)
    composed = Template(plain, options)
    if faults := [*faults, *faults_of(composed.config)]:
        raise ConfigError(*faults)
    return composed


def faults_of(call: Callable[[], object]) -> tuple[str, ...]:
    """Return the faults that a call raises; none if it succeeds."""
    try:
        call()
    except ConfigError as error:
        return error.faults
    return ()


def key_suggestion(key: str, known: Iterable[str]) -> str:
    """Return '; did you mean …?' for an unknown key: one with a similar last part, preferably in the same node."""
    node, _, last = key.rpartition(".")
    by_last_part = {other.rpartition(".")[2]: other for other in known}
    by_last_part |= {other.rpartition(".")[2]: other for other in known if other.rpartition(".")[0] == node}
    close = difflib.get_close_matches(last, by_last_part, n=1, cutoff=0.6)
    return f"; did you mean {by_last_part[close[0]]}?" if close else ""


def _unknown_key(text: str, known: Mapping[str, Any], config_dir: Path | None) -> str:
    key = key_of(text)
    is_node = any(other.startswith(f"{key}.") for other in known)
    node = f"{key if is_node else key.rpartition('.')[0]}."
    inside = sorted(other.removeprefix(node) for other in known if other.startswith(node))
    listed = f"; {node[:-1]} has {', '.join(inside)}" if inside else ""
    if is_node:
        return f"{text}: {key} has settings of its own; give them one by one{listed}"
    return f"{text}: the config has no {key}{listed}{key_suggestion(key, [*config_groups(config_dir), *known])}"


def _assign(plain: dict[str, Any], key: str, value: Any) -> None:
    *nodes, last = key.split(".")
    functools.reduce(operator.getitem, nodes, plain)[last] = value


@functools.lru_cache(maxsize=64)
def _hydra(choices: tuple[str, ...], config_dir: Path | None, root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Compose options with Hydra. Returns: plain values with open interpolations, and the option of each group."""
    # compose() accepts search paths only as an override
    paths = value_text([f"file://{path.resolve()}" for path in (root, config_dir) if path])
    try:
        with initialize_config_dir(str(root / "conf"), version_base="1.3"):
            node = hydra_compose("config", [f"hydra.searchpath={paths}", *choices], return_hydra_config=True)
        options = dict(node.hydra.runtime.choices)
        plain = OmegaConf.to_container(node, resolve=False)
    except Exception as error:  # noqa: BLE001 - Hydra does not expect every content of an option file
        source = f"--config-dir {config_dir}" if config_dir else "conf/"
        reason = " ".join(f"{error} {error.__cause__ or ''}".split())  # not all causes: their chain may be a ring
        raise ConfigError(f"{source}: {type(error).__name__}: {reason}") from None
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items() if k not in ("hydra", "experiments")}, options


def _resolved(plain: dict[str, Any]) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
    except RecursionError:
        raise ConfigError("an interpolation ${…} is nested too deeply") from None
    except OmegaConfBaseException as error:
        reason = str(error).partition("\n")[0].removeprefix("KeyError raised while resolving interpolation: ")
        given = flatten(plain).get(str(error.full_key))
        raise ConfigError(f"{error.full_key}={given}: {reason.strip(chr(34))}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _with_code_hash(plain: dict[str, Any]) -> dict[str, Any]:
    """Add the hash of the user's file to the nodes that its functions make, since it is part of their identity."""
    for node in ("data", "model"):
        if isinstance(plain[node], dict) and plain[node].get("name") == "custom":
            if (given := plain[node].get("code")) is not None:
                raise ConfigError(f"{node}.code={format_value(given)}: is filled in from --code FILE; leave it out")
            plain = {**plain, node: {**plain[node], "code": user_code.sha256()}}
    return plain


def _merged_search(plain: Mapping[str, Any], request: ParsedOverrides) -> dict[str, Any]:
    """Return the search of the options, without the user's fixed keys and with the user's distributions."""
    composed, model = plain["search"], plain["model"]
    if not isinstance(composed, Mapping | None):
        raise ConfigError(f"search={format_value(composed)}: an option file must have KEY: DISTRIBUTION there")
    dropped = set(request.fixed_keys)
    if isinstance(model, dict) and model.get("name") == "custom":  # search=default searches settings of the MLP
        dropped |= {f"model.{key}" for key in Mlp.model_fields}
    space = {str(key): value for key, value in (composed or {}).items() if key not in dropped} | dict(request.search)
    return {key: distribution for key, distribution in space.items() if distribution is not None}


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten {'a': {'b': 1}} to {'a.b': 1}. `search` stays a dict, since its keys have dots of their own."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping) and value and f"{prefix}{key}" != "search":
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def run_config(config: Config) -> RunConfig:
    """Return the part of a config that decides the result of one training."""
    return RunConfig.model_validate({node: getattr(config, node) for node in RunConfig.model_fields})


def identity(config: RunConfig) -> dict[str, Any]:
    """Return the plain config without NO_EFFECT. Two runs with equal identities have equal bits."""
    return config.model_dump(mode="json", exclude=NO_EFFECT)


def signature(config: RunConfig, *, seed: bool = True) -> str:
    """Return the SHA-256 of the identity, with or without its seed."""
    plain = identity(config) | ({} if seed else {"seed": None})
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def rebuild(config: RunConfig, overrides: Sequence[str], config_dir: Path | None = None) -> tuple[str, ...]:
    """Return the overrides of a recorded config. Raises: ConfigError if they do not compose exactly this config now."""
    request = ParsedOverrides(config_dir=config_dir).with_overrides(overrides)
    now, then = (flatten(identity(each)) for each in (run_config(compose(request)), config))
    keys = [key for key in {**then, **now} if not key.startswith("data.files")]
    if changed := [key for key in keys if (key in now) != (key in then) or now.get(key) != then.get(key)]:
        raise ConfigError(
            f"{', '.join(changed)}: changed in conf/ or --config-dir since this run, so its overrides compose another "
            f"config; `rerun` trains what was recorded"
        )
    return request.overrides
