"""Compose and check the config: the only file that knows Hydra's compose API and the conf/ folder.

`initialize_config_dir` + `compose` behind our own command line, not `@hydra.main`: that one runs `_target_`s
of `hydra.callbacks`, writes `.hydra/` (database passwords included) and takes over logging.
"""

from __future__ import annotations

import copy
import difflib
import functools
import hashlib
import itertools
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mnistexp.config import option_files, user_code
from mnistexp.config.overrides import override_text, parse_override, value_text
from mnistexp.config.schema import Config, Mlp, RunConfig, format_value, suggestion
from mnistexp.config.validation import check
from mnistexp.errors import ConfigError

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE if (PACKAGE / "conf").is_dir() else PACKAGE.parent
"""Holds conf/ and experiments/: the package itself in a wheel, the folder around it in a clone."""

SECRET_NODES = ("study.storage", "tracking.uri", "data.root")
"""The only settings that may read the environment: addresses, of which none with a password is ever logged."""

RUN_NODES = tuple(RunConfig.model_fields)
NO_EFFECT = ("data.root", "data.mirrors", "data.timeout", "trainer.timeout")
"""Settings of a run that can't change its bits: where the data come from (the fingerprint says which they are), and
when a training counts as hung."""


@dataclass(frozen=True)
class ParsedOverrides:
    """The user's overrides, sorted by what they do. Texts are as typed."""

    choices: tuple[str, ...] = ()  # group=option
    values: tuple[str, ...] = ()  # key=value
    search: tuple[tuple[str, str | None], ...] = ()  # (override key, distribution or None for "not searched")
    fixed: frozenset[str] = frozenset()  # keys and groups given a plain value, so not searched any more
    swept: tuple[str, ...] = ()  # keys given a distribution outright, as in model.activation='choice(relu, tanh)'
    config_dir: Path | None = None

    @property
    def overrides(self) -> tuple[str, ...]:
        """What composes the base config, without what only a search reads."""
        return self.choices + self.values

    @property
    def run_overrides(self) -> tuple[str, ...]:
        """Those that decide what one training does: what a run records. Addresses with passwords are not among them."""
        return tuple(text for text in self.overrides if re.split("[./=]", text)[0] in (*RUN_NODES, "experiments"))

    def without(self, keys: Iterable[str]) -> ParsedOverrides:
        """This request without values for these keys."""
        left = self.fixed - set(keys)
        return replace(self, values=tuple(text for text in self.values if _key(text) in left), fixed=left)

    def plus(self, overrides: Iterable[str]) -> ParsedOverrides:
        """This request with further overrides of its own kind, which win."""
        more = parse_request(overrides, self.config_dir)
        return ParsedOverrides(
            tuple(text for text in self.choices if _key(text) not in more.fixed) + more.choices,
            tuple(text for text in self.values if _key(text) not in more.fixed) + more.values,
            tuple(entry for entry in self.search if entry[0] not in more.fixed) + more.search,
            self.fixed | more.fixed,
            self.swept + more.swept,
            self.config_dir,
        )


# ---------------------------------------------------------------------------------- groups and options


def config_groups(config_dir: Path | None = None) -> dict[str, list[str]]:
    """Every config group with its options, from the folders alone (no Hydra: `--help` must be quick)."""
    groups: dict[str, set[str]] = {}
    for base in filter(None, (ROOT / "conf", config_dir)):
        for path in base.rglob("*.yaml"):
            if path.parent != base:
                groups.setdefault(path.parent.relative_to(base).as_posix(), set()).add(path.stem)
    for base in filter(None, (ROOT, config_dir)):
        for path in (base / "experiments").glob("*/*.yaml"):
            groups.setdefault("experiments", set()).add(f"{path.parent.name}/{path.stem}")
    return {group: sorted(options) for group, options in sorted(groups.items())}


# ------------------------------------------------------------------------------------ reading overrides


def parse_request(overrides: Iterable[str], config_dir: Path | None = None) -> ParsedOverrides:
    """Sort the command line's overrides; all of its faults go into one ConfigError."""
    groups = config_groups(_checked_dir(config_dir))
    faults: dict[str, tuple[str, ...]] = {}  # override → what is wrong with it
    parts = []
    for text in overrides:
        try:
            parts.append(_classify(text, groups))
        except ConfigError as error:
            faults[text] = error.faults
    parts = [part for i, part in enumerate(parts) if not _overtaken(part, parts[i + 1 :])]
    request = ParsedOverrides(
        tuple(entry for part in parts for entry in part.choices),
        tuple(entry for part in parts for entry in part.values),
        tuple(entry for part in parts for entry in part.search),
        frozenset(key for part in parts for key in part.fixed),
        tuple(key for part in parts for key in part.swept),
        config_dir,
    )
    raise_all([*itertools.chain(*faults.values()), *(_further_faults(request, list(faults)) if faults else ())])
    return request


def _further_faults(request: ParsedOverrides, wrong: Sequence[str]) -> tuple[str, ...]:
    """The faults of the overrides that can be judged without the wrong ones, so that all are mended in one go."""
    nodes = {re.split("[./=@]", text.lstrip("+~"))[0] for text in wrong}
    if "experiments" in nodes:  # it could have set anything
        return ()
    choices, values = (
        tuple(text for text in texts if re.split("[./=]", text)[0] not in nodes)
        for texts in (request.choices, request.values)
    )
    return faults_of(lambda: compose(replace(request, choices=choices, values=values)))


def _overtaken(part: ParsedOverrides, later: Sequence[ParsedOverrides]) -> bool:
    """Whether a distribution's key gets a plain value further on: the last word wins, as in Hydra."""
    return any(key in other.fixed for key in part.swept for other in later)


def _classify(text: str, groups: Mapping[str, list[str]]) -> ParsedOverrides:
    """Say what one override does. Raises: ConfigError."""
    if text.startswith(("search.", "~search.")):
        return ParsedOverrides(search=(_search_entry(text),))
    override = parse_override(text)
    key = override.key_or_group
    _refuse_unsafe(text, override)
    if override.is_sweep_override():
        return ParsedOverrides(search=((key, text.partition("=")[2]),), swept=(key,))
    if key in groups:
        return ParsedOverrides(choices=(_choice(key, override.value(), groups[key]),), fixed=frozenset([key]))
    if key.replace(".", "/") in groups:
        raise ConfigError(f"{text}: {key} is a config group; write {key.replace('.', '/')}=OPTION")
    if (option := named_option(key, override.value(), groups)) is not None:
        raise ConfigError(f"{text}: write {option}, which brings its other settings too")
    return ParsedOverrides(values=(text,), fixed=frozenset([key]))


def named_option(key: str, value: object, groups: Mapping[str, list[str]]) -> str | None:
    """'optimizer=adam' for the key optimizer.name and the value adam: half of an option can't stand alone."""
    group = key.removesuffix(".name").replace(".", "/")
    if key == "study.name" or group == key.replace(".", "/") or value not in groups.get(group, ()):
        return None
    return f"{group}={value}"


def _refuse_unsafe(text: str, override: Override) -> None:
    """Refuse what would add to or take from our config, or make Hydra or OmegaConf run something."""
    key = override.key_or_group
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        raise ConfigError(f"{text}: Hydra's own settings can't be overridden here; leave it out")
    if any(re.fullmatch(r"_\w+_", part) for part in re.split(r"[./@]", key)):
        raise ConfigError(f"{text}: keys like _target_ are refused, since nothing here runs code named in a config")
    if override.is_add() or override.is_delete() or override.is_force_add() or override.package is not None:
        raise ConfigError(f"{text}: the config takes no new, removed or moved keys; write KEY=VALUE with a key it has")
    if "_target_" in text:
        raise ConfigError(f"{text}: values with _target_ are refused, since nothing here runs code named in a config")


def _search_entry(text: str) -> tuple[str, str | None]:
    key, given, distribution = text.removeprefix("~").removeprefix("search.").partition("=")
    if not key:
        raise ConfigError(f"{text}: has no key; write search.KEY=DISTRIBUTION")
    if not given and not text.startswith("~"):
        raise ConfigError(f"{text}: write {text}=DISTRIBUTION, or ~{text} to leave it out")
    if text.startswith("~") or distribution in ("null", ""):
        return key, None
    return key, distribution


def _choice(group: str, value: Any, options: list[str]) -> str:
    if value not in options:
        raise ConfigError(
            f"{group}={format_value(value)}: must be one of {', '.join(options)}{suggestion(value, options)}"
        )
    return f"{group}={value}"


def key_suggestion(key: str, known: Iterable[str]) -> str:
    """'; did you mean …?' for a key: by its siblings, else by its last part, else as a whole."""
    node, _, leaf = key.rpartition(".")
    others = [other for other in known if other != key]
    siblings = {other.rpartition(".")[2]: other for other in others if node and other.rpartition(".")[0] == node}
    if siblings:
        close = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
        return f"; did you mean {siblings[close[0]]}?" if close else ""
    namesake = next((other for other in others if other.rpartition(".")[2] == leaf), None)
    return f"; did you mean {namesake}?" if namesake else suggestion(key, others)


def _checked_dir(config_dir: Path | None) -> Path | None:
    for path in option_files.files(config_dir) if config_dir else ():
        place = path.relative_to(config_dir or path)
        if (ROOT / "conf" / place).exists() or (place.parts[0] == "experiments" and (ROOT / place).exists()):
            raise ConfigError(f"{path}: mnistexp's own {place} would win over it; give yours another name")
    return config_dir


# ---------------------------------------------------------------------------- what a command doesn't take


def refuse_search(request: ParsedOverrides, command: str) -> None:
    """One training has one value for each key."""
    swept = [*request.swept, *(f"search.{key}" for key, text in request.search if text and key not in request.swept)]
    if swept:
        raise ConfigError(
            f"{swept[0]}: {command} takes one value, not a distribution; give a value, or use the command sweep"
        )


def refuse_hyperparameters(request: ParsedOverrides, command: str) -> None:
    """What is recorded is run or shown as it was; another value would be passed over in silence."""
    trained = ("model", "optimizer", "augmentation", "trainer", "seed")
    given = [key for key in request.fixed if key.partition(".")[0] in trained]
    if command in ("rerun", "confirm"):
        given = [key for key in given if key != "trainer.device"]  # the recorded one may be missing here
    if given:
        raise ConfigError(
            f"{min(given)}: {command} takes a recorded config as it is; leave it out, or use the command train"
        )


# -------------------------------------------------------------------------------------------- composing


@dataclass(frozen=True)
class Template:
    """A composed config whose interpolations are still open: give values, get a checked Config.

    A sweep composes once per combination of options (60 to 90 ms) and then fills in each trial's
    values (about 1 ms); a test holds that this is what composing anew would give.
    """

    plain: dict[str, Any]
    options: dict[str, str]  # group → the option that Hydra composed, defaults included

    @property
    def search(self) -> dict[str, str]:
        """What is left to be searched: override key → distribution."""
        return dict(self.plain["search"])

    def get(self, key: str) -> Any:
        """The value at an override key. Raises: KeyError."""
        return flatten(self.plain)[key]

    def config(self, values: Mapping[str, Any] | None = None) -> Config:
        """The config with these values (override key → plain value). Raises: ConfigError with every fault."""
        plain = copy.deepcopy(self.plain)
        for key, value in (values or {}).items():
            *nodes, leaf = key.split(".")
            functools.reduce(operator.getitem, nodes, plain)[leaf] = value
        raise_all(_forbidden_interpolations(plain))
        if any("${" in str(value) for key, value in flatten(plain).items() if key != "search"):
            plain = _resolved(plain)
        return check(_with_code(plain))


def compose(request: ParsedOverrides) -> Config:
    """Compose, resolve and check one config. Raises: ConfigError with every fault."""
    return template(request).config()


def template(request: ParsedOverrides) -> Template:
    """Compose a config and check it, leaving its interpolations open.

    Its `search` is what the options and the user's overrides leave to be searched.
    Raises: ConfigError with every fault, each with what is allowed.
    """
    try:
        plain, options = _hydra(request.overrides, request.config_dir)
        faults: list[str] = []
    except ConfigError:  # Hydra stops at the first unknown key: find them all, and go on with the others
        plain, options, faults = _without_unknown_keys(request)
    plain["search"] = _merged_search(plain, request)
    composed = Template(plain, options)
    raise_all([*faults, *faults_of(composed.config)])
    return composed


def _without_unknown_keys(request: ParsedOverrides) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Compose what can be composed: (config, options, a fault for each key that the config doesn't have)."""
    known = flatten(_hydra(request.choices, request.config_dir)[0])
    usable = [text for text in request.values if _key(text) in known]
    groups = config_groups(request.config_dir)
    faults = [_unknown_key(text, known, groups) for text in request.values if text not in usable]
    return *_hydra((*request.choices, *usable), request.config_dir), faults


def faults_of(call: Callable[[], object]) -> tuple[str, ...]:
    """The faults that a call finds; none if it goes well."""
    try:
        call()
    except ConfigError as error:
        return error.faults
    return ()


def raise_all(faults: Sequence[str]) -> None:
    """Raise one ConfigError with all of these faults, if there are any."""
    if faults:
        raise ConfigError(*faults)


def _key(text: str) -> str:
    return text.partition("=")[0]


def _unknown_key(text: str, known: Mapping[str, Any], groups: Iterable[str]) -> str:
    key = _key(text)
    if any(other.startswith(f"{key}.") for other in known):
        return f"{text}: {key} has settings of its own; give them one by one{_children(key, known)}"
    inside = _children(key.rpartition(".")[0], known)
    return f"{text}: the config has no {key}{inside}{key_suggestion(key, [*groups, *known])}"


def _children(node: str, known: Iterable[str]) -> str:
    """The keys of a node, where it exists."""
    inside = sorted(key.removeprefix(f"{node}.") for key in known if node and key.startswith(f"{node}."))
    return f"; {node} has {', '.join(inside)}" if inside else ""


def _hydra(overrides: Sequence[str], config_dir: Path | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Hydra's composition as plain types, interpolations left open, and the option taken of each group."""
    return copy.deepcopy(_hydra_once(tuple(overrides), config_dir, ROOT))


@functools.lru_cache(maxsize=64)  # a command composes the same base up to four times, 60 to 90 ms each
def _hydra_once(
    overrides: tuple[str, ...], config_dir: Path | None, root: Path
) -> tuple[dict[str, Any], dict[str, str]]:
    # compose() takes search paths nowhere but as an override
    paths = value_text([f"file://{path.resolve()}" for path in (root, config_dir) if path])
    try:
        with initialize_config_dir(str(root / "conf"), version_base="1.3"):
            node = hydra_compose("config", [f"hydra.searchpath={paths}", *overrides], return_hydra_config=True)
        options = dict(node.hydra.runtime.choices)
        plain = OmegaConf.to_container(node, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_innermost(error)) from None
    except Exception as error:  # noqa: BLE001 - an option file may be anything, and Hydra doesn't expect it
        raise ConfigError(
            f"{_culprit(config_dir)}: Hydra can't compose that ({type(error).__name__}: {error})"
        ) from None
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items() if k not in ("hydra", "experiments")}, options


def _culprit(config_dir: Path | None) -> str:
    return f"--config-dir {config_dir}" if config_dir else "the overrides"


def _resolved(plain: dict[str, Any]) -> dict[str, Any]:
    try:
        container = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
    except RecursionError:
        raise ConfigError("an interpolation ${…} is nested too deeply") from None
    except OmegaConfBaseException as error:
        why = _innermost(error).removeprefix("KeyError raised while resolving interpolation: ").strip('"')
        raise ConfigError(f"{error.full_key}={flatten(plain).get(str(error.full_key))}: {why}") from None
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _innermost(error: BaseException) -> str:
    """Hydra says only 'Error merging override …'; its cause knows what was expected."""
    parts = []
    cause: BaseException | None = error
    while cause is not None:
        first, *more = str(cause).strip().splitlines() or [type(cause).__name__]
        parts.append(f"{first} {more[0].strip()}" if first.endswith(":") and more else first)
        cause = cause.__cause__
    return "; ".join(dict.fromkeys(parts))


def _forbidden_interpolations(plain: Mapping[str, Any]) -> list[str]:
    """An environment variable resolves into the logged config, so only settings that are not logged may read one."""
    return [
        f"{key}={value}: only {', '.join(SECRET_NODES)} may use ${{resolver:…}}; write the value itself"
        for key, value in flatten({**plain, **{f"search.{key}": text for key, text in plain["search"].items()}}).items()
        if key not in (*SECRET_NODES, "search") and re.search(r"\$\{[^}]*:", str(value))
    ]


def _with_code(plain: dict[str, Any]) -> dict[str, Any]:
    """The config with the hash of the user's file in the nodes that its functions make: part of what they are."""
    for node in ("data", "model"):
        if isinstance(plain[node], dict) and plain[node].get("name") == "custom":
            if (given := plain[node].get("code")) is not None:
                raise ConfigError(
                    f"{node}.code={format_value(given)}: is the hash of --code FILE and filled in; leave it out"
                )
            plain = {**plain, node: {**plain[node], "code": user_code.sha256()}}
    return plain


def _merged_search(plain: Mapping[str, Any], request: ParsedOverrides) -> dict[str, Any]:
    """The options' space, less what the user gave a plain value, plus what the user distributes."""
    composed, model = plain["search"], plain["model"]
    if not isinstance(composed, Mapping | None):
        raise ConfigError(f"search={format_value(composed)}: an option file must have KEY: DISTRIBUTION there")
    space = {str(key): value for key, value in (composed or {}).items() if key not in request.fixed}
    if (
        isinstance(model, dict) and model.get("name") == "custom"
    ):  # search=default has the perceptron's, which aren't its
        others = {f"model.{key}" for key in Mlp.model_fields}
        space = {key: value for key, value in space.items() if key not in others}
    space.update(request.search)
    return {key: distribution for key, distribution in space.items() if distribution is not None}


# ------------------------------------------------------------------------------ plain values, identity


def flatten(plain: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'a': {'b': 1}} → {'a.b': 1}; `search` stays whole, since its keys have dots of their own."""
    flat: dict[str, Any] = {}
    for key, value in plain.items():
        if isinstance(value, Mapping) and value and f"{prefix}{key}" != "search":
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def run_config(config: Config) -> RunConfig:
    """The part of a config that decides what one training does."""
    return RunConfig.model_validate({node: getattr(config, node) for node in RUN_NODES})


def identity(config: RunConfig) -> dict[str, Any]:
    """The plain config less what can't change the result (NO_EFFECT). Two runs with equal ones have equal bits."""
    plain = config.model_dump(mode="json")
    for key in NO_EFFECT:
        node, _, leaf = key.partition(".")
        plain[node].pop(leaf, None)  # not every data set has mirrors
    return plain


def signature(config: RunConfig, *, seed: bool = True) -> str:
    """SHA-256 over the resolved config, less what can't change the result, or its seed. Never a delta to defaults."""
    plain = identity(config) | ({} if seed else {"seed": None})
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def rebuild(config: RunConfig, overrides: Sequence[str], config_dir: Path | None = None) -> tuple[str, ...]:
    """Overrides that compose exactly this config today: the given ones, mended where conf/ has changed since.

    Raises: ConfigError if conf/ has lost a key or an option that it needs, or has another that no override takes away.
    """
    request = ParsedOverrides(config_dir=config_dir).plus(overrides)
    if compose(request).optimizer.name != config.optimizer.name:  # conf/ has another default today
        request = request.plus([override_text("optimizer", config.optimizer.name)])
    then = flatten(config.model_dump(mode="json"))
    moved = [key for key in _moved(request, config) if then.get(key, {}) != {}]  # {}: nothing to be typed
    request = request.plus([override_text(key, then[key]) for key in moved])
    if left := _moved(request, config):
        raise ConfigError(
            f"{', '.join(left)}: changed in conf/ or --config-dir since this run, so no command composes its config; "
            f"`rerun` trains what was recorded"
        )
    return request.overrides


def _moved(request: ParsedOverrides, config: RunConfig) -> list[str]:
    """The keys that a request composes otherwise than they are in a config, but for those without effect."""
    now, then = (flatten(each.model_dump(mode="json")) for each in (run_config(compose(request)), config))
    keys = [key for key in {**then, **now} if not key.startswith((*NO_EFFECT, "data.files"))]
    return [key for key in keys if (key in now) != (key in then) or now.get(key) != then.get(key)]
