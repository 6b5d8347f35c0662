from __future__ import annotations

import json

import pytest
from histories import ACTIVATION, RATE, base, study, trial

from mnistexp.analysis import parameters
from mnistexp.analysis.parameters import SearchedRange


def test_a_key_contains_all_its_distributions() -> None:
    """The learning rates of several optimizers are one parameter in the space, in values and in importances."""
    rate = RATE["search.optimizer.learning_rate"]
    searched = {
        "search.optimizer": json.dumps({"values": ["sgd", "adam"]}),
        "search.optimizer.learning_rate@sgd": rate,
        "search.optimizer.learning_rate@adam": rate,
        "data": "not searched",
    }
    drawn = trial(1, params={"optimizer": "adam", "optimizer.learning_rate@adam": 0.007})

    keys = parameters.keys(study(drawn, searched=searched))

    assert keys == ("optimizer", "optimizer.learning_rate")
    assert parameters.values_of(drawn, keys) == {"optimizer": "adam", "optimizer.learning_rate": 0.007}
    assert parameters.by_key({"a@x": 0.3, "b": 0.4, "a@y": 0.3}) == pytest.approx({"a": 0.6, "b": 0.4})


def test_values_that_were_not_drawn_come_from_the_config() -> None:
    """The first trial may be outside of the space; settings that it does not have are missing."""
    values = parameters.values_of(trial(0), ["model.hidden_units", "optimizer.learning_rate", "optimizer.beta_1"])

    units = json.dumps(list(base().model.hidden_units), separators=(",", ":"))
    assert values == {"model.hidden_units": units, "optimizer.learning_rate": base().optimizer.learning_rate}


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam"])
def test_the_first_trials_optimizer_is_the_name_of_the_option(name: str) -> None:
    """Keras has one SGD for sgd and momentum."""
    assert parameters.values_of(trial(0, config=base(f"optimizer={name}")), ["optimizer"]) == {"optimizer": name}


def test_names_are_as_short_as_they_can_be_told_apart() -> None:
    """The last part of a key, unless another key ends alike; a range of some options names these."""
    names = ["model.name", "optimizer.name", "a.rate@adam|nadam", "a.rate@sgd"]

    short = parameters.short_names(names)

    assert list(short.values()) == ["model.name", "optimizer.name", "rate (adam, nadam)", "rate (sgd)"]


def test_the_values_of_good_trials_are_summarised() -> None:
    """Of a range the two ends, of choices the counts, of a parameter that no trial has nothing."""
    good = [
        trial(n, 90 + n, params={"optimizer.learning_rate": rate, "model.activation": "tanh"})
        for n, rate in enumerate((0.01, 0.03, 0.02))
    ]
    history = study(*good, trial(3, 10, params={"optimizer.learning_rate": 0.09, "model.activation": "relu"}))
    searched = parameters.searched(history)

    assert searched["optimizer.learning_rate"] == SearchedRange(low=0.001, high=0.1, log=True)
    assert searched["model.activation"] == SearchedRange(("relu", "tanh"))
    for name, every, top in (
        ("optimizer.learning_rate", {0.01: 1, 0.09: 1}, {0.01: 1, 0.03: 1}),
        ("model.activation", {"tanh": 3, "relu": 1}, {"tanh": 3}),
    ):
        assert parameters.range_summary(history.ranked, name, searched[name]) == every
        assert parameters.range_summary(parameters.top_tenth(history), name, searched[name]) == top
    assert parameters.range_summary([trial(0)], "optimizer.learning_rate", searched["optimizer.learning_rate"]) == {}


@pytest.mark.parametrize("text", ["", "[]", "7", '{"low": 1}', '{"study": "x", "trials": [1]}', "null"])
def test_a_text_that_is_no_distribution_is_not_a_parameter(text: str) -> None:
    """A fingerprint may contain other entries with this prefix."""
    assert parameters.keys(study(searched={"search.x": text, **ACTIVATION})) == ("model.activation",)
