"""The search space: which distributions a config has, checked against the schema, drawn, enumerated.

A key may be a config group. Its options are composed, and what the chosen one adds to `search` is drawn
too: composition is what makes the space conditional, with no syntax of its own.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Protocol

from mnistexp.config.compose import (
    ParsedOverrides,
    Template,
    config_groups,
    faults_of,
    flatten,
    key_suggestion,
    raise_all,
    template,
)
from mnistexp.config.overrides import override_text, parameter_name
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.search.distributions import (
    Choice,
    Distribution,
    Float,
    Scalar,
    Suggester,
    Value,
    label,
    parse_distribution,
)

SEARCHABLE = ("model", "optimizer", "augmentation", "trainer")
"""Nodes that a study may search: another data set, store or executor would make its scores incomparable."""

NOT_SEARCHABLE = {
    "trainer.device": "all of a study's trials run on the same kind of device",
    "trainer.threads": "a worker's threads are fixed when it starts",
}


@dataclass(frozen=True)
class Parameter:
    """One thing to draw. `name` is Optuna's: the key, and where options differ in its range, those options."""

    key: str
    name: str
    distribution: Distribution


@dataclass(frozen=True)
class Node:
    """A composed config with what is left to draw: first one group (then its children say more), else values."""

    template: Template
    choices: tuple[tuple[str, str], ...]  # (group, option), as drawn so far
    group: Parameter | None
    children: Mapping[str, Node] = field(default_factory=dict)
    values: tuple[Parameter, ...] = ()

    def leaves(self) -> Iterator[Node]:
        """The nodes at which no group is left to draw."""
        if self.group is None:
            yield self
        for child in self.children.values():
            yield from child.leaves()


@dataclass(frozen=True)
class Suggestion:
    """One point of the space: the overrides that compose it, and the config that they compose to."""

    overrides: tuple[str, ...]
    config: Config


class Space(Protocol):
    """What a study draws its trials from: a search space, or a list of configs that are to be run again."""

    def describe(self) -> Mapping[str, str]:
        """What is searched, as a study's fingerprint records it."""

    def texts(self) -> Mapping[str, str]:
        """What is searched, for a reader."""

    def baseline(self) -> tuple[Suggestion, Mapping[str, Scalar]]:
        """The first point, and its values as Optuna's parameters."""

    def points(self) -> Iterator[Mapping[str, Scalar]]:
        """Every point of a finite space, in the order in which a grid runs them."""

    def suggest(self, trial: Suggester, seed: int | None = None) -> Suggestion:
        """Draw a point."""

    def suggest_baseline(self, trial: Suggester) -> Suggestion:
        """Draw the first point."""


@dataclass(frozen=True)
class SearchSpace:
    """A checked space over a base request."""

    request: ParsedOverrides
    root: Node

    def suggest(self, trial: Suggester, seed: int | None = None) -> Suggestion:
        """Draw one point, groups first. `seed` is the trial's own, unless the space searches seeds.

        Raises: ConfigError if values that are each allowed can't stand together.
        """
        node = self.root
        while node.group is not None:
            node = node.children[str(node.group.distribution.suggest(trial, node.group.name))]
        values = {p.key: p.distribution.suggest(trial, p.name) for p in node.values}
        return self._draw(node, values, seed)

    def baseline(self) -> tuple[Suggestion, dict[str, Scalar]]:
        """The composed config itself, and those of its values that lie in the space, as Optuna's parameters."""
        base, node = self.root.template, self.root
        params: dict[str, Scalar] = {}
        while node.group is not None:
            option = base.options.get(node.group.key, "")
            if option not in node.children:
                break
            params[node.group.name] = option
            node = node.children[option]
        for parameter in node.values:
            value = base.get(parameter.key)
            if parameter.distribution.contains(value):
                params[parameter.name] = label(value)
        return Suggestion(self.request.run_overrides, base.config()), params

    def suggest_baseline(self, trial: Suggester) -> Suggestion:
        """Draw the composed config itself, from a trial that was enqueued with its parameters."""
        draw, params = self.baseline()
        for parameter in self.parameters():
            if parameter.name in params:
                parameter.distribution.suggest(trial, parameter.name)
        return draw

    def covers_baseline(self) -> bool:
        """Whether the composed config itself is one of the space's points."""
        base, node = self.root.template, self.root
        while node.group is not None:
            option = base.options.get(node.group.key, "")
            if option not in node.children:
                return False
            node = node.children[option]
        return all(parameter.distribution.contains(base.get(parameter.key)) for parameter in node.values)

    def points(self) -> Iterator[dict[str, Scalar]]:
        """Every point of a finite space, as Optuna's parameters, in a fixed order."""
        for leaf in self.root.leaves():
            path = self._path(leaf)
            for values in itertools.product(*(p.distribution.points() or () for p in leaf.values)):
                yield path | {p.name: label(v) for p, v in zip(leaf.values, values, strict=True)}

    def size(self) -> int | None:
        """How many points there are; None for infinitely many."""
        total = 0
        for leaf in self.root.leaves():
            counts = [p.distribution.points() for p in leaf.values]
            if any(points is None for points in counts):
                return None
            total += math.prod(len(points or ()) for points in counts)
        return total

    def parameters(self) -> Iterator[Parameter]:
        """All that can be drawn, groups first, each name once."""
        seen = set()
        for node in self._nodes(self.root):
            for parameter in filter(None, (node.group, *node.values)):
                if parameter.name not in seen:
                    seen.add(parameter.name)
                    yield parameter

    def describe(self) -> dict[str, str]:
        """Parameter name → its distribution as JSON: what a study's fingerprint records; not how a grid covers it."""
        plain = {p.name: asdict(p.distribution) for p in self.parameters()}
        return {n: json.dumps({k: v for k, v in d.items() if k != "count"}, sort_keys=True) for n, d in plain.items()}

    def texts(self) -> dict[str, str]:
        """Parameter name → its distribution for a reader."""
        return {p.name: str(p.distribution) for p in self.parameters()}

    def _draw(self, node: Node, values: Mapping[str, Value], seed: int | None) -> Suggestion:
        if seed is not None and "seed" not in values:
            values = {**values, "seed": seed}
        config = node.template.config(values)
        chosen = [override_text(group, option) for group, option in node.choices]
        texts = [override_text(key, value) for key, value in values.items()]
        return Suggestion(self.request.plus([*chosen, *texts]).run_overrides, config)

    def _path(self, leaf: Node) -> dict[str, Scalar]:
        params: dict[str, Scalar] = {}
        node = self.root
        for _, option in leaf.choices:
            assert node.group is not None
            params[node.group.name] = option
            node = node.children[option]
        return params

    def _nodes(self, node: Node) -> Iterator[Node]:
        yield node
        for child in node.children.values():
            yield from self._nodes(child)


def build(request: ParsedOverrides) -> SearchSpace:
    """Compose every combination of searched options, and check all that could be drawn from each.

    Raises: ConfigError with every fault: an unknown key, an empty interval, a value that the schema refuses.
    """
    groups = config_groups(request.config_dir)
    try:
        base = template(request)
    except ConfigError as error:  # the user's own distributions can still be read: all faults in one message
        raise ConfigError(*error.faults, *_grammar_faults(request, groups)) from None
    refused = {key: fault for key in base.search if (fault := _key_fault(key, groups, base))}
    faults = list(refused.values())
    sound = replace(request, search=(*request.search, *((key, None) for key in refused)))
    root = _node(sound, template(sound) if refused else base, (), groups, faults)
    raise_all(list(dict.fromkeys(faults)))
    if all(leaf.values == () for leaf in root.leaves()) and root.group is None:
        raise ConfigError("there is nothing to search; add a distribution, e.g. model.activation='choice(relu, tanh)'")
    return SearchSpace(request, _named(root, _names(list(root.leaves()))))


def _grammar_faults(request: ParsedOverrides, groups: Mapping[str, list[str]]) -> list[str]:
    """What is wrong with the distributions that the user gave, as far as no config is needed to say so."""
    given = [(key, text, groups.get(key)) for key, text in request.search if text is not None]
    return [fault for each in given for fault in faults_of(partial(parse_distribution, *each))]


def _node(
    request: ParsedOverrides,
    base: Template,
    choices: tuple[tuple[str, str], ...],
    groups: dict[str, list[str]],
    faults: list[str],
) -> Node:
    """One node and all below it; what is wrong there goes to `faults`."""
    group = next((key for key in base.search if key in groups), None)
    if group is None:
        return Node(base, choices, None, values=_values(base, faults))
    try:
        distribution = parse_distribution(group, base.search[group], groups[group])
    except ConfigError as error:
        faults += error.faults
        return Node(base, choices, None)
    if not isinstance(distribution, Choice):
        faults.append(f"search.{group}={base.search[group]}: {group} is a config group; write choice(OPTION, OPTION)")
        return Node(base, choices, None)
    children = {}
    for option in map(str, distribution.points() or ()):
        try:
            narrowed = request.plus([override_text(group, option)])
            children[option] = _node(narrowed, template(narrowed), (*choices, (group, option)), groups, faults)
        except ConfigError as error:
            faults += [f"search.{group}={base.search[group]}: with {group}={option}, {fault}" for fault in error.faults]
    return Node(base, choices, Parameter(group, group, distribution), children)


def _values(base: Template, faults: list[str]) -> tuple[Parameter, ...]:
    found, sampler = [], base.plain["study"]["sampler"]
    for key, text in base.search.items():
        try:
            distribution = parse_distribution(key, text)
        except ConfigError as error:
            faults += error.faults
            continue
        problems = _probe(base, key, text, distribution)
        faults += problems
        if isinstance(distribution, Float) and sampler["name"] == "grid":
            distribution = replace(distribution, count=sampler["points"])
        found.append(Parameter(key, key, distribution))
    return tuple(found)


def _probe(base: Template, key: str, text: str, distribution: Distribution) -> list[str]:
    """What the schema says of the distribution's values; one fault is enough for each distribution."""
    known = flatten(base.plain)
    if key not in known:
        return [f"search.{key}={text}: the config has no {key}{key_suggestion(key, known)}"]
    for value in distribution.probes():
        try:
            base.config({key: value})
        except ConfigError as error:
            hint = "; for whole numbers write int(interval(…)) or range(…)" if "whole number" in str(error) else ""
            return [f"search.{key}={text}: {error.faults[0]}{hint}"]
    return []


def _key_fault(key: str, groups: Mapping[str, list[str]], base: Template) -> str | None:
    """Why this key can't be searched, if it can't."""
    node = key.partition(".")[0].partition("/")[0]
    if key in NOT_SEARCHABLE:
        return f"search.{key}: can't be searched: {NOT_SEARCHABLE[key]}"
    if key.endswith(".name"):
        return f"search.{key}: can't be searched by itself; search the config group: {key.removesuffix('.name')}=…"
    if key == "seed" or (node in SEARCHABLE and (key in groups or "." in key)):
        return None
    if node in {*base.plain, *groups} - {"search"}:
        return f"search.{key}: can't be searched; a study searches {', '.join(SEARCHABLE)} and seed"
    known = [other for other in (*flatten(base.plain), *groups) if other.startswith(SEARCHABLE)]
    return f"search.{key}: the config has no {key}{key_suggestion(key, known)}"


# ----------------------------------------------------------------------------------------- Optuna names


def _names(leaves: list[Node]) -> Callable[[Parameter], str]:
    """How to name a parameter: by its key alone where all leaves agree on its distribution.

    Elsewhere the options that share a distribution are appended ('optimizer.learning_rate@adam|nadam'):
    Optuna wants one name to have one distribution, and alike optimizers learn from each other.
    """
    seen: dict[str, set[str]] = {}
    for leaf in leaves:
        for parameter in leaf.values:
            seen.setdefault(parameter.key, set()).add(repr(parameter.distribution))

    def name(parameter: Parameter) -> str:
        if len(seen[parameter.key]) == 1:
            return parameter.key
        alike = [
            "/".join(option for _, option in other.choices)
            for other in leaves
            if any(p.key == parameter.key and p.distribution == parameter.distribution for p in other.values)
        ]
        return parameter_name(parameter.key, alike)

    return name


def _named(node: Node, name: Callable[[Parameter], str]) -> Node:
    values = tuple(replace(p, name=name(p)) for p in node.values)
    return replace(node, values=values, children={k: _named(child, name) for k, child in node.children.items()})
