"""The search space: the distributions of a config, checked against the schema, drawn and enumerated.

A key may be a config group. Each of its options is composed, and what the drawn option adds to `search` is drawn too:
composition makes the space conditional, without a syntax of its own.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Protocol

from mnistexp.config.compose import Template, faults_of, flatten, key_suggestion, template
from mnistexp.config.option_files import config_groups
from mnistexp.config.overrides import ParsedOverrides, override_text, parameter_name
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError
from mnistexp.search.distributions import (
    Choice,
    Distribution,
    Float,
    Scalar,
    Suggester,
    optuna_value,
    parse_distribution,
)

SEARCHABLE = ("model", "optimizer", "augmentation", "trainer")
"""Nodes that a study may search. Another data set, store or executor would make its scores incomparable."""

NOT_SEARCHABLE = {
    "trainer.device": "all trials of a study run on the same kind of device",
    "trainer.threads": "a worker's threads are fixed when it starts",
}


@dataclass(frozen=True)
class Parameter:
    """A parameter of the search. `name` is Optuna's: see `config.overrides.parse_parameter_name`."""

    key: str
    name: str
    distribution: Distribution


@dataclass(frozen=True)
class Node:
    """A composed config and what is drawn next: a config group with a child for each option, or else values."""

    template: Template
    choices: tuple[tuple[str, str], ...]  # (group, option), as drawn so far
    group: Parameter | None = None
    children: Mapping[str, Node] = field(default_factory=dict)
    values: tuple[Parameter, ...] = ()

    def nodes(self) -> Iterator[Node]:
        """This node and all nodes below it."""
        yield self
        for child in self.children.values():
            yield from child.nodes()

    def leaves(self) -> Iterator[Node]:
        """The nodes without a group to draw."""
        return (node for node in self.nodes() if node.group is None)


@dataclass(frozen=True)
class Suggestion:
    """One point of the space: the overrides that compose it, and the config that they compose to."""

    overrides: tuple[str, ...]
    config: Config
    evaluate_test: bool = True  # whether the trial evaluates the test split


class Space(Protocol):
    """What a study draws its trials from: a search space, or a list of configs to repeat."""

    def fingerprint(self) -> Mapping[str, str]:
        """What is searched, as JSON texts: a study with another fingerprint is another study."""

    def descriptions(self) -> Mapping[str, str]:
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
    """A checked search space over a base config."""

    request: ParsedOverrides
    root: Node

    def suggest(self, trial: Suggester, seed: int | None = None) -> Suggestion:
        """Draw one point, groups first. `seed` is the seed of the trial, unless the space searches seeds.

        Raises: ConfigError if values that are allowed one by one are not allowed together.
        """
        node = self.root
        while node.group is not None:
            node = node.children[str(node.group.distribution.suggest(trial, node.group.name))]
        values = {p.key: p.distribution.suggest(trial, p.name) for p in node.values}
        if seed is not None:
            values.setdefault("seed", seed)
        config = node.template.config(values)
        overrides = [override_text(key, value) for key, value in (*node.choices, *values.items())]
        return Suggestion(self.request.with_overrides(overrides).run_overrides, config)

    def baseline(self) -> tuple[Suggestion, dict[str, Scalar]]:
        """Return the composed config itself, and its values that lie in the space, as Optuna's parameters."""
        base, node = self.root.template, self._baseline_node()
        plain = flatten(base.plain)
        params: dict[str, Scalar] = dict(node.choices)
        for parameter in node.values:
            value = plain[parameter.key]
            if parameter.distribution.contains(value):
                params[parameter.name] = optuna_value(value)
        return Suggestion(self.request.run_overrides, base.config()), params

    def _baseline_node(self) -> Node:
        """Follow the options of the composed config as far as the space has them."""
        node = self.root
        while node.group is not None:
            child = node.children.get(self.root.template.options.get(node.group.key, ""))
            if child is None:
                break
            node = child
        return node

    def suggest_baseline(self, trial: Suggester) -> Suggestion:
        """Draw the composed config itself, from a trial that was enqueued with its parameters."""
        suggestion, params = self.baseline()
        for parameter in self.parameters():
            if parameter.name in params:
                parameter.distribution.suggest(trial, parameter.name)
        return suggestion

    def points(self) -> Iterator[dict[str, Scalar]]:
        """Every point of a finite space, as Optuna's parameters, in a fixed order."""
        for leaf in self.root.leaves():
            for values in itertools.product(*(p.distribution.points() or () for p in leaf.values)):
                drawn: dict[str, Scalar] = {p.name: optuna_value(v) for p, v in zip(leaf.values, values, strict=True)}
                yield {**dict(leaf.choices), **drawn}

    def size(self) -> int | None:
        """Count the points; None: infinitely many."""
        total = 0
        for leaf in self.root.leaves():
            counts = [p.distribution.points() for p in leaf.values]
            if any(points is None for points in counts):
                return None
            total += math.prod(len(points or ()) for points in counts)
        return total

    def most_trials(self) -> int | None:
        """Count the different trials: the points, and the composed config if it is not one; None: infinitely many."""
        size, node, (_, params) = self.size(), self._baseline_node(), self.baseline()
        inside = node.group is None and all(parameter.name in params for parameter in node.values)
        return None if size is None else size + (not inside)

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, groups first, each name once."""
        found: dict[str, Parameter] = {}
        for node in self.root.nodes():
            for parameter in filter(None, (node.group, *node.values)):
                found.setdefault(parameter.name, parameter)
        yield from found.values()

    def fingerprint(self) -> dict[str, str]:
        """Parameter name → its distribution as JSON, without the number of grid points."""
        plain = {p.name: asdict(p.distribution) for p in self.parameters()}
        return {n: json.dumps({k: v for k, v in d.items() if k != "count"}, sort_keys=True) for n, d in plain.items()}

    def descriptions(self) -> dict[str, str]:
        """Parameter name → its distribution for a reader."""
        return {p.name: str(p.distribution) for p in self.parameters()}


def build(request: ParsedOverrides) -> SearchSpace:
    """Compose every combination of searched options, and check everything that could be drawn.

    Raises: ConfigError with every fault: an unknown key, an empty interval, a value that the schema refuses.
    """
    groups = config_groups(request.config_dir)
    try:
        base = template(request)
    except ConfigError as error:  # check the grammar of the user's distributions too: all faults in one message
        given = [(key, text, groups.get(key)) for key, text in request.search if text is not None]
        grammar = [fault for each in given for fault in faults_of(partial(parse_distribution, *each))]
        raise ConfigError(*error.faults, *grammar) from None
    refused = {key: fault for key in base.search if (fault := _key_fault(key, groups, base))}
    faults = list(refused.values())
    without = replace(request, search=(*request.search, *((key, None) for key in refused)))
    root = _build_node(without, template(without), (), groups, faults)
    if faults:
        raise ConfigError(*dict.fromkeys(faults))
    if root.group is None and not root.values:
        raise ConfigError("there is nothing to search; add a distribution, e.g. model.activation='choice(relu, tanh)'")
    return SearchSpace(request, _with_names(root, list(root.leaves())))


def _build_node(
    request: ParsedOverrides,
    base: Template,
    choices: tuple[tuple[str, str], ...],
    groups: dict[str, list[str]],
    faults: list[str],
) -> Node:
    """Build one node and all nodes below it, and append what is wrong there to `faults`."""
    group = next((key for key in base.search if key in groups), None)
    if group is None:
        return Node(base, choices, values=tuple(_values(base, faults)))
    given = f"search.{group}={base.search[group]}"
    try:
        distribution = parse_distribution(group, base.search[group], groups[group])
        if not isinstance(distribution, Choice):
            raise ConfigError(f"{given}: {group} is a config group; write choice(OPTION, OPTION)")
    except ConfigError as error:
        faults += error.faults
        return Node(base, choices)
    children = {}
    for option in map(str, distribution.points()):
        try:
            narrowed = request.with_overrides([override_text(group, option)])
            drawn = (*choices, (group, option))
            children[option] = _build_node(narrowed, template(narrowed), drawn, groups, faults)
        except ConfigError as error:
            faults += [f"{given}: with {group}={option}, {fault}" for fault in error.faults]
    return Node(base, choices, Parameter(group, group, distribution), children)


def _values(base: Template, faults: list[str]) -> Iterator[Parameter]:
    """Parse and check the distributions of values, and append what is wrong with them to `faults`."""
    known, sampler = flatten(base.plain), base.plain["study"]["sampler"]
    for key, text in base.search.items():
        try:
            distribution = parse_distribution(key, text)
            if key not in known:
                raise ConfigError(f"search.{key}={text}: the config has no {key}{key_suggestion(key, known)}")
            for value in distribution.boundary_values():
                if found := faults_of(partial(base.config, {key: value})):
                    integers = "; for whole numbers write int(interval(…)) or range(…)"
                    raise ConfigError(f"search.{key}={text}: {found[0]}{integers * ('whole number' in found[0])}")
        except ConfigError as error:
            faults += error.faults
            continue
        if isinstance(distribution, Float) and sampler["name"] == "grid":
            distribution = replace(distribution, count=sampler["points"])
        yield Parameter(key, key, distribution)


def _key_fault(key: str, groups: Mapping[str, list[str]], base: Template) -> str | None:
    """Return why this key cannot be searched; None: it can."""
    node = key.partition(".")[0].partition("/")[0]
    if key in NOT_SEARCHABLE:
        return f"search.{key}: can't be searched: {NOT_SEARCHABLE[key]}"
    if key == "seed" or (node in SEARCHABLE and (key in groups or "." in key) and not key.endswith(".name")):
        return None
    known = [other for other in (*flatten(base.plain), *groups) if other.startswith(SEARCHABLE)]
    hint = "" if node in {*base.plain, *groups} - {"search"} else key_suggestion(key, known)
    return f"search.{key}: can't be searched; a study searches seed, {', '.join(SEARCHABLE)} and their settings{hint}"


def _with_names(node: Node, leaves: list[Node]) -> Node:
    """Name the parameters: by key, and by the options with one distribution where leaves differ in it.

    Optuna requires one distribution for each name, and optimizers with the same range learn from each other.
    """

    def name(parameter: Parameter) -> str:
        found = [(leaf, p.distribution) for leaf in leaves for p in leaf.values if p.key == parameter.key]
        same = [leaf for leaf, distribution in found if distribution == parameter.distribution]
        options = ["/".join(option for _, option in leaf.choices) for leaf in same]
        return parameter_name(parameter.key, options if len(same) < len(found) else ())

    values = tuple(replace(p, name=name(p)) for p in node.values)
    return replace(node, values=values, children={key: _with_names(c, leaves) for key, c in node.children.items()})
