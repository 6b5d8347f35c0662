from __future__ import annotations

import json
import math
from typing import Any

import pytest
import runs

from mnistexp.config.compose import compose, parse_request
from mnistexp.config.schema import Config, RunConfig, Settings, recorded_config
from mnistexp.config.validation import validated
from mnistexp.errors import ConfigError, StoreError


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The default config as plain values."""
    return compose(parse_request(["data=digits"])).model_dump()


def with_value(plain: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy with one key changed."""
    changed = json.loads(json.dumps(plain))
    *nodes, leaf = key.split(".")
    node = changed
    for name in nodes:
        node = node[name]
    node[leaf] = value
    return changed


def fault(plain: dict[str, Any], key: str, value: object) -> str:
    """What the schema says of one value; empty where it takes it."""
    try:
        validated(with_value(plain, key, value))
    except ConfigError as error:
        return str(error)
    return ""


EDGES = [  # key, lowest and highest that are taken, what lies just outside
    ("seed", [0, 2**32 - 1], [-1, 2**32]),
    ("data.validation_size", [1, 10**9], [0]),
    ("model.hidden_units", [[], [1], [65536], [1] * 64], [[0], [65537], [1] * 65]),
    ("model.dropout", [0.0, math.nextafter(1, 0)], [-1e-300, 1.0]),
    ("optimizer.learning_rate", [5e-324, 1000.0], [0.0, -0.1, 1000.1]),
    ("optimizer.warmup_epochs", [0.0, 10.0], [-0.1]),
    ("trainer.epochs", [1, 100_000], [0, -1, 100_001]),
    ("trainer.max_steps", [None, 1], [0]),
    ("trainer.batch_size", [1], [0, -32]),
    ("trainer.ema_momentum", [0.0, 0.9999], [1.0, -0.1]),
    ("augmentation.scale", [0.0, 0.9], [-0.1, 1.0]),
    ("trainer.threads", [1, 1024], [0, 1025]),
    ("study.trials", [1], [0]),
    ("study.target", [None, 1.0], [0.0, 1.1]),
    ("study.pruner.reduction_factor", [2], [1]),
    ("study.sampler.startup_trials", [1], [0]),
    ("executor.workers", ["auto", 1, 1024], [0, 1025, "many"]),
    ("executor.max_worker_memory", [0.1], [0.0]),
]


@pytest.mark.parametrize(("key", "inside", "outside"), EDGES, ids=[key for key, _, _ in EDGES])
def test_each_range_ends_where_it_says(plain: dict[str, Any], key: str, inside: list[Any], outside: list[Any]) -> None:
    """The lowest and highest values of a setting are taken, and what lies just beyond is refused under its key."""
    refused = [fault(plain, key, value) for value in outside]

    assert [fault(plain, key, value) for value in inside] == [""] * len(inside)
    assert all(message.startswith(key) for message in refused)


@pytest.mark.parametrize("key", ["optimizer.learning_rate", "study.timeout"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_no_setting_takes_inf_or_nan(plain: dict[str, Any], key: str, value: float) -> None:
    """Infinite and undefined numbers are refused, by name."""
    assert fault(plain, key, value) == f"{key}={value}: must be finite"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("trainer.epochs", 1.0, "must be a whole number"),
        ("trainer.epochs", True, "must be a whole number"),
        ("optimizer.nesterov", 1, "must be true or false"),
        ("study.name", 5, "must be a text"),
        ("model.hidden_units", 300, "must be a list, such as [300, 100]"),
        ("model.activation", "Relu", "did you mean relu?"),
        ("model", 3, "must be a node with settings of its own"),
    ],
)
def test_nothing_is_converted_in_silence(plain: dict[str, Any], key: str, value: object, words: str) -> None:
    """A value of another type is refused in plain words, also where Python could convert it."""
    assert words in fault(plain, key, value)


@pytest.mark.parametrize("key", ["study.name", "tracking.experiment"])
def test_names_are_not_paths(plain: dict[str, Any], key: str) -> None:
    """A name of a study or an experiment is no path and has no special characters, since it becomes a part of both."""
    allowed = ["mnist", "a.b", "..a", "My study-2_x", "x" * 100]
    refused = [
        *(
            "",
            "..",
            " ",
            ". .",
            "../x",
            "a/b",
            "a\\b",
            "/etc",
            "a\nb",
            "a\n",
            "a\0b",
            "a'b",
            "x" * 101,
            "é",
            "${seed}/x",
        ),
    ]

    assert [fault(plain, key, name) for name in allowed] == [""] * len(allowed)
    for name in refused:
        assert fault(plain, key, name)
        assert "\n" not in fault(plain, key, name)


@pytest.mark.parametrize("key", ["optimizer.beta_1", "study.sampler.y", "z"])
def test_no_node_takes_an_unknown_key(plain: dict[str, Any], key: str) -> None:
    """A key that the schema doesn't have is refused, another optimizer's included."""
    assert fault(plain, key, 1) == f"{key}: the config has no such key"


def test_a_missing_key_is_named(plain: dict[str, Any]) -> None:
    """No key has a default here: an option file that forgets one is told which."""
    lacking = {**plain, "trainer": {key: value for key, value in plain["trainer"].items() if key != "epochs"}}

    with pytest.raises(ConfigError) as caught:
        validated(lacking)

    assert caught.value.faults == ("trainer.epochs: needs a value, and no option file gives one",)


def test_all_faults_come_at_once_each_under_its_key(plain: dict[str, Any]) -> None:
    """Five faults in four nodes are five sentences, and a union's members count as one key."""
    faulty = plain
    for key, value in {
        "seed": -1,
        "model.activation": "rleu",
        "optimizer.momentum": 2.0,
        "trainer.epochs": 0,
        "executor.workers": "many",
    }.items():
        faulty = with_value(faulty, key, value)

    with pytest.raises(ConfigError) as caught:
        validated(faulty)

    keys = [sentence.partition("=")[0] for sentence in caught.value.faults]
    assert sorted(keys) == ["executor.workers", "model.activation", "optimizer.momentum", "seed", "trainer.epochs"]


def test_json_gives_back_the_same_config(plain: dict[str, Any]) -> None:
    """What MLflow and the workers get as JSON is read back exactly, floats to the last bit."""
    config = validated(with_value(plain, "optimizer.learning_rate", 0.1 + 0.2))

    assert Config.model_validate_json(config.model_dump_json()) == config
    run = runs.run_config(runs.ADAM)
    assert RunConfig.model_validate_json(run.model_dump_json()) == run


def test_no_setting_has_a_default() -> None:
    """Defaults live in conf/ alone: even a null is written there."""
    found = {
        f"{node.__name__}.{name}"
        for node in descendants(Settings)
        for name, field in node.model_fields.items()
        if not field.is_required()
    }

    assert found == set()


def descendants(node: type[Settings]) -> set[type[Settings]]:
    """All node types of the schema."""
    return {node}.union(
        *(descendants(child) for child in node.__subclasses__() if "mnistexp.config.schema" in child.__module__)
    )


def test_a_record_of_another_version_is_refused() -> None:
    """A recorded config is read back as it was; one without a setting, or of another form, is one StoreError."""
    config = runs.run_config(runs.ADAM)
    other = json.loads(config.model_dump_json())
    del other["trainer"]["threads"]

    assert recorded_config(config.model_dump_json()) == config
    for text in (json.dumps(other), "null", "[]", "{", '{"trainer": 1}'):
        with pytest.raises(StoreError, match="recorded by a version of mnistexp with other settings"):
            recorded_config(text)
