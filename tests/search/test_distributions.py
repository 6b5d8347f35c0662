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
        ("interval(0,1)", Float(0.0, 1.0)),
        ("int(interval(1.5,9.7))", Integer(1, 9)),
        ("tag(log,interval(1e-4,1))", Float(1e-4, 1.0, log=True)),
        ("tag(log,int(interval(1,8)))", Integer(1, 8, log=True)),
        ("range(5)", Integer(0, 4)),
        ("range(10,0,-3)", Integer(1, 10, step=3)),
        ("range(1,0,-0.25)", Float(0.25, 1.0, step=0.25)),
        ("relu,tanh", Choice(("relu", "tanh"))),
        ("choice(true,false)", Choice((True, False))),
        ("choice([300],[300,100],[])", Choice(([300], [300, 100], []))),
        ("choice('a,b',\"c d\",'1e5')", Choice(("a,b", "c d", "1e5"))),
        ("choice(${seed},3)", Choice(("${seed}", 3))),
        ("sort(3,1,2)", Choice((1, 2, 3))),
    ],
)
def test_the_grammar_is_hydras(text: str, distribution: object) -> None:
    """Every form of Hydra's grammar for sweeps is parsed to a distribution with exact types."""
    assert repr(parse_distribution("key", text)) == repr(distribution)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("glob(*)", ("adam", "adamw", "sgd")),
        ("glob([ad*,sgd],exclude=adam)", ("adamw", "sgd")),
        ("adam,sgd", ("adam", "sgd")),
    ],
)
def test_a_config_group_takes_globs(text: str, chosen: tuple[str, ...]) -> None:
    """glob() chooses among the options of a group by name."""
    assert parse_distribution("optimizer", text, ["adam", "adamw", "sgd"]) == Choice(chosen)


@settings(deadline=None)
@given(st.integers(-5, 5), st.integers(-5, 5), st.sampled_from([1, 2, 3, -1, -2, 0.5, 0.1, 0.25, -0.1, 0.3]))
def test_a_range_has_the_values_of_hydras_multirun(start: int, stop: int, step: float) -> None:
    """The points are what Hydra's multirun would run, without rounding errors, in order."""
    text = f"range({start},{stop},{step})"
    values = sorted(OverridesParser.create().parse_override(f"key={text}").sweep_iterator())

    if not values:
        with pytest.raises(ConfigError, match="the range is empty"):
            parse_distribution("key", text)
    else:
        assert parse_distribution("key", text).points() == pytest.approx(tuple(values), abs=1e-12)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("interval(1,1)", "the interval is empty, since 1.0 is not below 1.0"),
        ("interval(0,inf)", "both ends must be finite"),
        ("int(interval(0,1e17))", "up to 9007199254740992"),
        ("tag(log,interval(0,1))", "must start above 0"),
        ("int(interval(1.2,1.9))", "the interval is empty"),
        ("interval(a,b)", "is not an override"),
        ("range(10,0)", "the range is empty"),
        ("range(0,1e17)", "at most 9007199254740992"),
        ("range(0,1,0)", "a step of 0 never ends"),
        ("range(0,1000000)", "more than 100,000 values"),
        ("tag(log,choice(1,2))", "the tag log is for interval()"),
        ("tag(q,interval(1,2))", "the tag q is not known; allowed: log"),
        ("choice([1],[1])", "has a value twice"),
        ("choice(1,true)", "has a value twice"),
        ("foo(1)", "Unknown function 'foo'"),
        ("glob(*)", "glob() is for config groups"),
        ("relu", "is a value, not a distribution"),
    ],
)
def test_a_wrong_distribution_is_refused(text: str, reason: str) -> None:
    """The message has the key, what was given, the reason and the allowed forms."""
    with pytest.raises(ConfigError) as caught:
        parse_distribution("model.dropout", text)

    message = str(caught.value)
    assert message.startswith(f"search.model.dropout={text}: ")
    assert reason in message
    assert "; write choice(a, b), interval(low, high), int(interval(low, high)), range(start, stop, step)" in message


@pytest.mark.parametrize(
    ("text", "description"),
    [
        ("choice([300],[300,100])", "[300], [300,100]"),
        ("tag(log,interval(1e-4,1))", "0.0001 to 1, logarithmic"),
        ("range(0,1,0.25)", "0 to 0.75, every 0.25"),
        ("range(1,10,3)", "1 to 7, every 3"),
        ("range(1,4)", "1 to 3"),
    ],
)
def test_a_distribution_has_a_description(text: str, description: str) -> None:
    """`plan` and MLflow show the range, the scale and the step."""
    assert str(parse_distribution("key", text)) == description


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("interval(0,1)", [0, 0.0, 0.5, 1], [-0.1, 1.1, True, "0.5", None]),
        ("range(0.1,0.5,0.1)", [0.1, 0.3, 0.4], [0.15, 0.5, 0.30000000000000004]),
        ("range(1,10,3)", [1, 4, 7], [2, 10, True, "1"]),
        ("choice(relu,tanh)", ["relu"], ["gelu", None]),
        ("int(interval(1,1e15))", [1, 2.0, 10**15], [0.0, 1.5, 10**15 + 1]),
        ("choice([300],[])", [[300], []], [[301], 300]),
    ],
)
def test_a_distribution_contains_its_values(text: str, inside: list[Any], outside: list[Any]) -> None:
    """Ends and grid points are inside, and values between grid points are not."""
    distribution = parse_distribution("key", text)

    assert all(distribution.contains(value) for value in inside)
    assert not any(distribution.contains(value) for value in outside)
