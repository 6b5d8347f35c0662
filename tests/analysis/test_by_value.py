from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from histories import GELU, IMAGES, RELU, SEEDED, TANH, seeded, study, three_values
from scipy import stats
from statsmodels.stats.multitest import multipletests

from mnistexp.analysis.by_value import by_value, single_config
from mnistexp.analysis.history import Trial
from mnistexp.errors import ConfigError
from mnistexp.tracking.records import State

ACTIVATION, RATE = "model.activation", "optimizer.learning_rate"


def test_a_values_best_config_has_the_highest_mean_over_its_seeds() -> None:
    """The learning rate with the best single trial loses to the one with the best mean."""
    found = by_value(three_values(), ACTIVATION)
    relu = found.groups[0]

    assert [group.value for group in found.groups] == ["relu", "gelu", "tanh"]
    assert found.others == (RATE,)
    assert relu.best.settings == {RATE: 0.1}
    assert [each.settings[RATE] for each in relu.configs] == [0.1, 0.01]
    assert relu.best.validation.values == tuple(count / IMAGES for count in RELU)


def test_nothing_is_ordered_by_a_test_accuracy() -> None:
    """With other test accuracies the configs, the order and the tests are the same."""

    def tested(trial: Trial, accuracy: float) -> Trial:
        assert trial.record
        assert trial.record.result
        changed = trial.record.result.model_copy(update={"test_accuracy": accuracy})
        return replace(trial, record=trial.record.model_copy(update={"result": changed}))

    history = three_values()
    other = replace(history, trials=tuple(tested(each, n % 7 / 7) for n, each in enumerate(history.trials)))

    first, second = (by_value(each, ACTIVATION).groups for each in (history, other))

    assert [(group.value, group.best.settings, group.against_best) for group in first] == [
        (group.value, group.best.settings, group.against_best) for group in second
    ]


def test_intervals_are_students() -> None:
    """They equal SciPy's; equal scores still have the uncertainty of rounding; one seed has no interval."""
    best = by_value(three_values(), ACTIVATION).groups[0].best
    only_seeds = {"search.seed": SEEDED["search.seed"]}
    one = single_config(study(*seeded(0, "relu", 0.1, (950,) * 5), searched=only_seeds))
    (alone,) = by_value(study(*seeded(0, "relu", 0.1, (950,)), searched=SEEDED), ACTIVATION).groups

    assert best.test
    for score in (best.validation, best.test):
        mean, error = np.mean(score.values), stats.sem(score.values)
        assert score.interval == pytest.approx(stats.t.interval(0.95, len(score.values) - 1, mean, error))
    assert one
    assert one.validation.interval
    assert 0.949 < one.validation.interval[0] < 0.95 < one.validation.interval[1] < 0.951
    assert alone.best.validation.interval is None


def test_values_are_tested_seed_by_seed_and_corrected_for_all_pairs() -> None:
    """Paired t tests as in SciPy, with Holm's correction as in statsmodels over every pair of values."""
    found = by_value(three_values(), ACTIVATION).groups
    scores = [np.array(group.best.validation.values) for group in found]
    pairs = list(combinations(range(3), 2))
    raw = [float(stats.ttest_rel(scores[one], scores[other]).pvalue) for one, other in pairs]
    corrected = dict(zip(pairs, multipletests(raw, method="holm")[1], strict=True))

    assert found[0].against_best is None
    for place in (1, 2):
        test = found[place].against_best
        assert test is not None
        assert (test.seeds, test.partial) == (5, False)
        assert test.difference == pytest.approx(float(np.mean(scores[0] - scores[place])))
        assert test.p_value == pytest.approx(raw[pairs.index((0, place))])
        assert test.adjusted == pytest.approx(corrected[0, place])
    assert [group.against_best.verdict for group in found[1:] if group.against_best] == ["not significant", "worse"]


@pytest.mark.parametrize(
    ("relu", "tanh", "seeds", "shared", "p_value"),
    [
        (RELU, (930, 940, 935), (0, 1, 2), 3, stats.ttest_rel(RELU[:3], (930, 940, 935)).pvalue),
        ((950, 940), (947, 937), (0, 1), 2, 2 * stats.t.sf(3 / np.sqrt(1 / 6 / 2), 1)),
        ((950, 950), (950, 950), (0, 1), 2, 1.0),
    ],
    ids=["some common seeds", "equal differences", "no difference"],
)
def test_the_test_is_over_the_common_seeds(
    relu: tuple[int, ...], tanh: tuple[int, ...], seeds: tuple[int, ...], shared: int, p_value: float
) -> None:
    """Equal differences are tested with the variance of rounding."""
    trials = (*seeded(0, "relu", 0.1, relu), *seeded(5, "tanh", 0.1, tanh, seeds=seeds))

    test = by_value(study(*trials, searched=SEEDED), ACTIVATION).groups[1].against_best

    assert test is not None
    assert test.seeds == shared
    assert test.p_value == pytest.approx(float(p_value))


def test_without_common_seeds_nothing_is_tested() -> None:
    """One common seed is too few."""
    trials = (*seeded(0, "relu", 0.1, (950, 951)), *seeded(5, "tanh", 0.1, (930, 940), seeds=(1, 7)))

    assert by_value(study(*trials, searched=SEEDED), ACTIVATION).groups[1].against_best is None


def test_a_value_with_fewer_seeds_than_others_comes_last() -> None:
    """One lucky seed is not a mean over five: whatever it scored, it is not first and not tested."""
    trials = (*seeded(0, "relu", 0.1, RELU), *seeded(5, "tanh", 0.1, (954,)), *seeded(10, "gelu", 0.01, GELU[:3]))

    found = by_value(study(*trials, searched=SEEDED), ACTIVATION)

    assert [(group.value, group.short) for group in found.groups] == [("relu", False), ("tanh", True), ("gelu", True)]
    assert found.groups[1].against_best is None
    assert found.groups[2].against_best
    assert found.groups[2].against_best.partial


def test_a_value_can_be_better_by_the_common_seeds() -> None:
    """The best by five seeds may be worse by the three that both have."""
    rights = (950, 940, 930, 960, 970)
    trials = (*seeded(0, "relu", 0.1, rights), *seeded(5, "tanh", 0.1, [right + 8 for right in rights[:3]]))

    test = by_value(study(*trials, searched=SEEDED), ACTIVATION).groups[1].against_best

    assert test
    assert (test.seeds, test.partial, test.verdict) == (3, True, "better")
    assert test.difference == pytest.approx(-0.008)


def test_a_config_with_fewer_seeds_than_others_of_its_value_is_not_selected() -> None:
    """One lucky trial, or the seeds that did not fail, are not a mean over the seeds."""
    failed: tuple[State, ...] = ("COMPLETE", "FAILED", "COMPLETE", "FAILED", "PRUNED")
    trials = (
        *seeded(0, "relu", 0.1, RELU),
        *seeded(5, "relu", 1.0, (990, 0, 990, 0, 980), states=failed),
        *seeded(10, "relu", 0.01, (999,)),
        *seeded(20, "tanh", 1.0, (990, 0), states=("PRUNED", "FAILED")),
    )

    found = by_value(study(*trials, searched=SEEDED), ACTIVATION)

    (relu,) = found.groups
    assert relu.best.settings == {RATE: 0.1}
    assert [len(each.trials) for each in relu.configs] == [5, 1, 2]
    assert (relu.pruned, relu.failed) == (1, 2)
    assert [(group.value, group.pruned, group.failed) for group in found.empty] == [("tanh", 1, 1)]


def test_a_config_that_ran_twice_with_one_seed_counts_once() -> None:
    """Equal trials are not repetitions: their variance would be 0."""
    twice = [*seeded(0, "relu", 0.1, (950, 951)), *seeded(2, "relu", 0.1, (950,), seeds=(1,))]

    (relu,) = by_value(study(*twice, searched=SEEDED), ACTIVATION).groups

    assert {seed: trial.number for seed, trial in relu.best.trials.items()} == {0: 0, 1: 1}


def test_without_searched_seeds_nothing_is_tested() -> None:
    """Each value's best is one trial, without interval."""
    trials = [*seeded(0, "relu", 0.1, (950,), seeds=(7,)), *seeded(1, "tanh", 0.2, (930,), seeds=(8,))]
    space = {name: text for name, text in SEEDED.items() if name != "search.seed"}

    found = by_value(study(*trials, searched=space), ACTIVATION)

    assert [group.against_best for group in found.groups] == [None, None]


def test_null_and_numbers_are_values_but_a_missing_setting_is_not() -> None:
    """0 and 0.0 are one value, 0.10001 and 0.10002 are two; a trial without the setting is counted apart."""
    trials = [
        *seeded(0, "relu", 1.0, RELU[:2]),
        *seeded(2, "relu", 1, RELU[2:], seeds=(2, 3, 4)),
        *seeded(5, "relu", 0.10001, TANH),
        *seeded(10, "relu", 0.10002, TANH),
    ]
    beta = {"search.optimizer.beta_1": json.dumps({"values": [None, 0.9]}), "search.seed": SEEDED["search.seed"]}
    betas = [replace(each, params={"optimizer.beta_1": n} if n != 1 else {}) for n, each in zip((None, 1, 0.9), trials)]

    rates = by_value(study(*trials, searched=SEEDED), RATE)
    found = by_value(study(*betas, searched=beta), "optimizer.beta_1")

    assert [(group.value, len(group.best.trials)) for group in rates.groups] == [(1, 5), (0.10001, 5), (0.10002, 5)]
    assert {group.value for group in found.groups} == {None, 0.9}
    assert found.without == 1


def test_the_other_key_is_an_axis_only_if_it_is_the_only_one_and_has_numbers() -> None:
    """Over activations, or over two keys at once, there is no axis."""
    more = {**SEEDED, "search.model.dropout": json.dumps({"low": 0.0, "high": 0.5, "log": False, "step": None})}

    assert by_value(three_values(), ACTIVATION).number == RATE
    assert by_value(three_values(), RATE).number == ""
    assert by_value(replace(three_values(), fingerprint=more), ACTIVATION).number == ""


@pytest.mark.parametrize(
    ("key", "searched", "message"),
    [
        ("model.activaton", SEEDED, r"by=model\.activaton: .*mean model\.activation\?"),
        ("seed", SEEDED, r"by=seed: .*model\.activation, "),
        (ACTIVATION, {"search.seed": SEEDED["search.seed"]}, "seeds"),
    ],
)
def test_a_key_that_was_not_searched_is_rejected(key: str, searched: dict[str, str], message: str) -> None:
    """The message contains those that were."""
    with pytest.raises(ConfigError, match=message):
        by_value(study(*seeded(0, "relu", 0.1, RELU), searched=searched), key)
