from __future__ import annotations

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from mnistexp.errors import ConfigError
from mnistexp.search.distributions import Choice, Float, Integer, parse_distribution


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("interval(0.1,0.5)", Float(0.1, 0.5)),
        ("interval(0,1)", Float(0.0, 1.0)),
        ("interval(-1e-3, 1e-3)", Float(-0.001, 0.001)),
        ("interval(start=1,end=3)", Float(1.0, 3.0)),
        ("int(interval(1,9))", Integer(1, 9)),
        ("int(interval(1.5,9.7))", Integer(1, 9)),
        ("tag(log,interval(1e-4,1))", Float(1e-4, 1.0, log=True)),
        ("tag(log,int(interval(1,8)))", Integer(1, 8, log=True)),
        ("int(tag(log,interval(1,8)))", Integer(1, 8, log=True)),
        ("range(5)", Integer(0, 4)),
        ("range(1,10,3)", Integer(1, 7, step=3)),
        ("range(10,0,-3)", Integer(1, 10, step=3)),
        ("range(-4,5,4)", Integer(-4, 4, step=4)),
        ("range(0,1,0.25)", Float(0.0, 0.75, step=0.25)),
        ("range(1,0,-0.25)", Float(0.25, 1.0, step=0.25)),
        ("float(range(1,4))", Float(1.0, 3.0, step=1.0)),
        ("tag(log,range(1,8))", Integer(1, 7, log=True)),
        ("shuffle(range(1,4))", Integer(1, 3)),
        ("choice(relu)", Choice(("relu",))),
        ("choice(relu, tanh)", Choice(("relu", "tanh"))),
        ("relu,tanh", Choice(("relu", "tanh"))),
        ("1,2.5", Choice((1, 2.5))),
        ("choice(true,false)", Choice((True, False))),
        ("choice([300],[300,100],[])", Choice(([300], [300, 100], []))),
        ("choice('a,b',\"c d\",'1e5')", Choice(("a,b", "c d", "1e5"))),
        ("choice(${seed},3)", Choice(("${seed}", 3))),
        ("sort(3,1,2)", Choice((1, 2, 3))),
        ("int(choice(1.5,2.5))", Choice((1, 2))),
    ],
)
def test_the_grammar_is_hydras(text: str, distribution: object) -> None:
    """Every form of Hydra's sweep grammar is the distribution that it looks like, exact in its types."""
    assert repr(parse_distribution("key", text)) == repr(distribution)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("glob(*)", ("adam", "adamw", "sgd")),
        ("glob(ad*)", ("adam", "adamw")),
        ("glob([ad*,sgd],exclude=adam)", ("adamw", "sgd")),
        ("adam,sgd", ("adam", "sgd")),
    ],
)
def test_a_group_takes_globs_as_well(text: str, chosen: tuple[str, ...]) -> None:
    """glob() chooses among a group's options by their names."""
    assert parse_distribution("optimizer", text, ["adam", "adamw", "sgd"]) == Choice(chosen)


steps = st.sampled_from([1, 2, 3, -1, -2, 0.5, 0.1, 0.25, -0.1, 0.3])


@settings(deadline=None)
@given(st.integers(-5, 5), st.integers(-5, 5), steps)
def test_a_range_has_exactly_hydras_values(start: int, stop: int, step: float) -> None:
    """Range after range, the points are what Hydra's own multirun would run, less its rounding errors, in order."""
    text = f"range({start},{stop},{step})"
    values = sorted(OverridesParser.create().parse_override(f"key={text}").sweep_iterator())

    if not values:
        with pytest.raises(ConfigError, match="the range is empty"):
            parse_distribution("key", text)
    else:
        assert parse_distribution("key", text).points() == pytest.approx(tuple(values), abs=1e-12)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("interval(1,1)", "the interval is empty, since 1.0 is not below 1.0"),
        ("interval(2,1)", "the interval is empty"),
        ("interval(0,inf)", "both ends must be finite"),
        ("interval(1e400,2)", "both ends must be finite"),
        ("interval(nan,2)", "both ends must be finite"),
        ("tag(log,interval(0,1))", "a logarithmic interval must start above 0, not at 0.0"),
        ("tag(log,interval(-1,1))", "must start above 0"),
        ("int(interval(1.2,1.9))", "the interval is empty"),
        ("interval(1)", "missing a required argument: 'end'"),
        ("interval(a,b)", "is not an override"),
        ("range(0)", "the range is empty"),
        ("range(10,0)", "the range is empty"),
        ("range(0,1,0)", "a step of 0 never ends"),
        ("range(0,1000000)", "more than 100,000 values"),
        ("tag(log,range(0,9))", "whole numbers from 1 up, and steps of 1"),
        ("tag(log,range(1,9,2))", "whole numbers from 1 up, and steps of 1"),
        ("tag(log,choice(1,2))", "the tag log is for interval() and range()"),
        ("tag(q,interval(1,2))", "the tag q is not known; allowed: log"),
        ("choice()", "empty choice is not legal"),
        ("choice(1,1)", "a value stands there twice"),
        ("choice([1],[1])", "a value stands there twice"),
        ("choice(1,true)", "a value stands there twice"),
        ("choice(a", "is not an override"),
        ("foo(1)", "Unknown function 'foo'"),
        ("glob(*)", "glob() is for config groups"),
        ("relu", "is a value, not a distribution"),
        ("[1,2]", "is a value, not a distribution"),
    ],
)
def test_a_bad_distribution_says_why_and_what_to_write(text: str, why: str) -> None:
    """A fault names the key, what was given, what is wrong with it, and the forms that are right."""
    with pytest.raises(ConfigError) as caught:
        parse_distribution("model.dropout", text)

    message = str(caught.value)
    assert message.startswith(f"search.model.dropout={text}: ")
    assert why in message
    assert "; write choice(a, b), interval(low, high), int(interval(low, high)), range(start, stop, step)" in message


def test_a_glob_that_fits_nothing_is_refused() -> None:
    """A group searched over no option is a typo."""
    with pytest.raises(ConfigError, match="no value is left to choose from"):
        parse_distribution("optimizer", "glob(x*)", ["adam", "sgd"])


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("choice([300],[300,100])", "[300], [300,100]"),
        ("choice(relu,tanh)", "relu, tanh"),
        ("tag(log,interval(1e-4,1))", "0.0001 to 1, logarithmic"),
        ("range(0,1,0.25)", "0 to 0.75, every 0.25"),
        ("range(1,10,3)", "1 to 7, every 3"),
        ("range(1,4)", "1 to 3"),
    ],
)
def test_a_distribution_reads_well(text: str, label: str) -> None:
    """What MLflow's page of a sweep shows is words."""
    assert str(parse_distribution("key", text)) == label


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("interval(0,1)", [0, 0.0, 0.5, 1], [-0.1, 1.1, True, "0.5", None]),
        ("range(0.1,0.5,0.1)", [0.1, 0.3, 0.4], [0.15, 0.5, 0.30000000000000004]),
        ("range(1,10,3)", [1, 4, 7], [2, 10, True, "1"]),
        ("choice(relu,tanh)", ["relu"], ["gelu", None]),
        ("choice([300],[])", [[300], []], [[301], 300]),
    ],
)
def test_a_distribution_knows_its_values(text: str, inside: list[Any], outside: list[Any]) -> None:
    """Ends and grid points are inside, what lies beside them is not."""
    distribution = parse_distribution("key", text)

    assert all(distribution.contains(value) for value in inside)
    assert not any(distribution.contains(value) for value in outside)
