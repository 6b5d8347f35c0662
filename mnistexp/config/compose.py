"""Compose the config from conf/ and the user's overrides, with Hydra's compose API.

mnistexp has its own command line instead of `@hydra.main`, which runs `_target_`s of `hydra.callbacks`, writes
`.hydra/` (with database passwords) and configures logging.
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
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnistexp.config import option_files, user_code
from mnistexp.config.option_files import config_groups
from mnistexp.config.overrides import ParsedOverrides, key_of, override_text, sort_overrides, value_text
from mnistexp.config.schema import Config, Mlp, RunConfig, format_value, suggestion
from mnistexp.config.validation import check
from mnistexp.errors import ConfigError

SECRET_KEYS = ("study.storage", "tracking.uri", "data.root")
"""The only settings that may read the environment. Of these, addresses with a password are never logged."""

NO_EFFECT = ("data.root", "data.mirrors", "data.timeout", "trainer.timeout")
"""Settings of a run that do not change its result: where the data come from, and when a training counts as hung."""


@dataclass(frozen=True)
class Template:
    """A composed config with open interpolations. Given values, it returns a checked Config.

    A sweep composes once per combination of options (60 to 90 ms) and then fills in the values of each trial (1 ms).
    """

    plain: dict[str, Any]
    options: dict[str, str]  # group → the option that Hydra composed, defaults included

    @property
    def search(self) -> dict[str, str]:
        """The search space: override key → distribution."""
        return dict(self.plain["search"])

    def get(self, key: str) -> Any:
        """Return the value of an override key. Raises: KeyError."""
        return flatten(self.plain)[key]

    def config(self, values: Mapping[str, Any] | None = None) -> Config:
        """Return the config with these values (override key → plain value). Raises: ConfigError with every fault."""
        plain = copy.deepcopy(self.plain)
        for key, value in (values or {}).items():
            *nodes, leaf = key.split(".")
            functools.reduce(operator.getitem, nodes, plain)[leaf] = value
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
    request, faults = sort_overrides(overrides, config_dir)
    if not faults:
        return request
    found = [fault for each in faults.values() for fault in each]
    wrong_nodes = {re.split("[./=@]", text.lstrip("+~"))[0] for text in faults}
    if "experiments" not in wrong_nodes:  # an experiment could set anything, so it hides all other faults
        choices, values = (
            tuple(text for text in texts if re.split("[./=]", text)[0] not in wrong_nodes)
            for texts in (request.choices, request.values)
        )
        found += faults_of(lambda: compose(replace(request, choices=choices, values=values)))
    raise ConfigError(*found)


def compose(request: ParsedOverrides) -> Config:
    """Compose, resolve and check one config. Raises: ConfigError with every fault."""
    return template(request).config()


def template(request: ParsedOverrides) -> Template:
    """Compose and check a config, with its interpolations left open. Raises: ConfigError with every fault."""
    faults: list[str] = []
    try:
        plain, options = _hydra(request.overrides, request.config_dir)
    except ConfigError:  # Hydra stops at the first unknown key: find all of them, and check the rest without them
        known = flatten(_hydra(request.choices, request.config_dir)[0])
        usable = [text for text in request.values if key_of(text) in known]
        groups = config_groups(request.config_dir)
        faults = [_unknown_key(text, known, groups) for text in request.values if text not in usable]
        plain, options = _hydra((*request.choices, *usable), request.config_dir)
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
    """Return '; did you mean …?' for an unknown key: a sibling, else the same last part elsewhere, else any key."""
    node, _, leaf = key.rpartition(".")
    last_part = {other: other.rpartition(".")[2] for other in known if other != key}
    siblings = {last: other for other, last in last_part.items() if node and other == f"{node}.{last}"}
    if siblings:
        close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
        return f"; did you mean {siblings[close[0]]}?" if close else ""
    same = [other for other, last in last_part.items() if last == leaf]
    return f"; did you mean {same[0]}?" if same else suggestion(key, last_part)


def _unknown_key(text: str, known: Mapping[str, Any], groups: Iterable[str]) -> str:
    key = key_of(text)
    if any(other.startswith(f"{key}.") for other in known):
        return f"{text}: {key} has settings of its own; give them one by one{_children(key, known)}"
    return (
        f"{text}: the config has no {key}{_children(key.rpartition('.')[0], known)}"
        f"{key_suggestion(key, [*groups, *known])}"
    )


def _children(node: str, known: Iterable[str]) -> str:
    inside = sorted(key.removeprefix(f"{node}.") for key in known if node and key.startswith(f"{node}."))
    return f"; {node} has {', '.join(inside)}" if inside else ""


def _hydra(overrides: Sequence[str], config_dir: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Compose with Hydra. Returns: plain values with open interpolations, and the option of each group."""
    return copy.deepcopy(_hydra_cached(tuple(overrides), config_dir, option_files.ROOT))


@functools.lru_cache(maxsize=64)  # a command composes the same base up to four times, 60 to 90 ms each
def _hydra_cached(
    overrides: tuple[str, ...], config_dir: Path | None, root: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    # compose() accepts search paths only as an override
    paths = value_text([f"file://{path.resolve()}" for path in (root, config_dir) if path])
    try:
        with initialize_config_dir(str(root / "conf"), version_base="1.3"):
            node = hydra_compose("config", [f"hydra.searchpath={paths}", *overrides], return_hydra_config=True)
        options = dict(node.hydra.runtime.choices)
        plain = OmegaConf.to_container(node, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_with_causes(error)) from None
    except Exception as error:  # noqa: BLE001 - Hydra does not expect every content of an option file
        source = f"--config-dir {config_dir}" if config_dir else "the overrides"
        raise ConfigError(f"{source}: Hydra can't compose that ({type(error).__name__}: {error})") from None
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items() if k not in ("hydra", "experiments")}, options


def _resolved(plain: dict[str, Any]) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
    except RecursionError:
        raise ConfigError("an interpolation ${…} is nested too deeply") from None
    except OmegaConfBaseException as error:
        reason = _with_causes(error).removeprefix("KeyError raised while resolving interpolation: ").strip('"')
        raise ConfigError(f"{error.full_key}={flatten(plain).get(str(error.full_key))}: {reason}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _with_causes(error: BaseException) -> str:
    """Return the first line of an error and of its causes: Hydra's own is only 'Error merging override …'."""
    parts = []
    cause: BaseException | None = error
    while cause is not None:
        first, *more = str(cause).strip().splitlines() or [type(cause).__name__]
        parts.append(f"{first} {more[0].strip()}" if first.endswith(":") and more else first)
        cause = cause.__cause__
    return "; ".join(dict.fromkeys(parts))


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
    plain = config.model_dump(mode="json")
    for key in NO_EFFECT:
        node, _, leaf = key.partition(".")
        plain[node].pop(leaf, None)  # only some data sets have mirrors
    return plain


def signature(config: RunConfig, *, seed: bool = True) -> str:
    """Return the SHA-256 of the identity, with or without its seed."""
    plain = identity(config) | ({} if seed else {"seed": None})
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def rebuild(config: RunConfig, overrides: Sequence[str], config_dir: Path | None = None) -> tuple[str, ...]:
    """Return overrides that compose exactly this config: the recorded ones, completed where conf/ has changed since.

    Raises: ConfigError if conf/ has lost a key or an option of the config, or has a new key that no override removes.
    """
    request = ParsedOverrides(config_dir=config_dir).with_overrides(overrides)
    if compose(request).optimizer.name != config.optimizer.name:  # the default of conf/ has changed
        request = request.with_overrides([override_text("optimizer", config.optimizer.name)])
    recorded = flatten(config.model_dump(mode="json"))
    changed = [key for key in _differences(request, config) if recorded.get(key, {}) != {}]  # {}: not an override
    request = request.with_overrides([override_text(key, recorded[key]) for key in changed])
    if left := _differences(request, config):
        raise ConfigError(
            f"{', '.join(left)}: changed in conf/ or --config-dir since this run, so no command composes its config; "
            f"`rerun` trains what was recorded"
        )
    return request.overrides


def _differences(request: ParsedOverrides, config: RunConfig) -> list[str]:
    """Return the keys that a request composes differently from a config, except those without effect."""
    now, then = (flatten(each.model_dump(mode="json")) for each in (run_config(compose(request)), config))
    keys = [key for key in {**then, **now} if not key.startswith((*NO_EFFECT, "data.files"))]
    return [key for key in keys if (key in now) != (key in then) or now.get(key) != then.get(key)]
