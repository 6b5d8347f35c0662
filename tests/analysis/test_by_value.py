from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from fakes import Step
from histories import VALIDATION, HitsExecutor, base, study, trial
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats
from statsmodels.stats.multitest import multipletests
from sweeps import open_sweep

from mnistexp.analysis import by_value
from mnistexp.analysis.by_value import Groups
from mnistexp.analysis.history import History, Trial
from mnistexp.commands.args import CommandArgs
from mnistexp.commands.report import report, study_report
from mnistexp.config.compose import parse_request
from mnistexp.config.schema import RunConfig
from mnistexp.errors import ConfigError
from mnistexp.report import answers, canvas, document, figures, group_text
from mnistexp.report.document import Document, Note, Table
from mnistexp.report.group_text import ROWS
from mnistexp.report.report_data import ReportData
from mnistexp.study.database import open_for_sweep
from mnistexp.tracking.records import State

ACTIVATION, RATE = "model.activation", "optimizer.learning_rate"
SPACE = {
    "search.model.activation": json.dumps({"values": ["relu", "tanh", "gelu"]}),
    "search.optimizer.learning_rate": json.dumps({"values": [0.01, 0.1, 1.0]}),
    "search.seed": json.dumps({"low": 0, "high": 4, "log": False, "step": 1}),
}
IMAGES = 1000


def config(activation: str, rate: float, seed: int) -> RunConfig:
    """The config that such a trial was trained with."""
    plain = base()
    return plain.model_copy(
        update={
            "seed": seed,
            "model": plain.model.model_copy(update={"activation": activation}),
            "optimizer": plain.optimizer.model_copy(update={"learning_rate": rate}),
        }
    )


def repeated(
    first: int,
    activation: str,
    rate: float,
    rights: Sequence[int],
    tests: Sequence[float | None] | None = None,
    states: Sequence[State] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Trial]:
    """One config with a seed for each of these numbers of right images; its trials' numbers begin at `first`."""
    made = []
    for place, right in enumerate(rights):
        seed = seeds[place] if seeds else place
        params = {ACTIVATION: activation, RATE: rate, "seed": seed}
        hits = np.arange(IMAGES) < right
        made.append(
            trial(
                first + place,
                hits,
                states[place] if states else "COMPLETE",
                params=params,
                config=config(activation, rate, seed),
                test=tests[place] if tests else 0.5,
                seconds=1.0 + place,
                parameters=100 + len(activation),
            )
        )
    return made


RELU = (950, 952, 949, 951, 953)
TANH = (930, 934, 929, 933, 931)
GELU = (951, 950, 952, 949, 952)


def three() -> History:
    """relu and tanh with two learning rates each, gelu with one; five seeds; the highest test score is tanh's."""
    return study(
        *repeated(0, "relu", 0.01, (960, 900, 900, 900, 900)),  # the best single run, and a bad mean
        *repeated(5, "relu", 0.1, RELU, tests=(0.94, 0.95, 0.93, 0.94, 0.94)),
        *repeated(10, "tanh", 0.1, TANH, tests=(0.99,) * 5),
        *repeated(15, "tanh", 1.0, (500,) * 5, tests=(1.0,) * 5),
        *repeated(20, "gelu", 0.1, GELU),
        searched=SPACE,
    )


def material(found: History, key: str = ACTIVATION) -> ReportData:
    """A study's material, told by a key; nothing else of it is looked at here."""
    from mnistexp.analysis.history import Importances

    told = by_value.by(found, key) if key else None
    return ReportData(found, Importances({}, 0, "too few"), None, None, None, "not here", None, (), told)


def section(found: History, key: str = ACTIVATION) -> tuple[document.Block, ...]:
    """What the section says."""
    return group_text.by_value(material(found, key)).blocks


def answer(found: History, key: str = ACTIVATION) -> str:
    """What is said of it at the report's head."""
    told = material(found, key)
    return text((*group_text.answer(told), *group_text.hint(told)))


def text(blocks: Sequence[document.Block]) -> str:
    """Blocks as Markdown without its escapes."""
    return document.to_markdown(Document("", "", tuple(blocks), (), ""), "x").replace("\\", "")


# -------------------------------------------------------------------------------------------------- the numbers


def test_equal_scores_leave_the_interval_of_rounding() -> None:
    """Five seeds with as many right images are no certainty: less than an image can't be seen."""
    seeds = study(*repeated(0, "relu", 0.1, (950,) * 5), searched={"search.seed": SPACE["search.seed"]})

    one = by_value.only(seeds)

    assert one is not None
    assert one.validation.interval is not None
    low, high = one.validation.interval
    assert 0.949 < low < 0.95 < high < 0.951


def test_one_config_with_several_seeds_is_told_by_its_mean() -> None:
    """The answer's figures are those of Student's interval; nothing "beats" the same config with another seed."""
    tests = (0.94, 0.95, 0.93, 0.94, 0.94)
    seeds = study(*repeated(0, "relu", 0.1, RELU, tests=tests), searched={"search.seed": SPACE["search.seed"]})
    half = stats.t.ppf(0.975, 4) * stats.sem(np.array(RELU) / IMAGES)
    other = stats.t.ppf(0.975, 4) * stats.sem(tests)

    told = text((*group_text.answer(material(seeds, "")), *answers.answer(material(seeds, ""))))

    assert (
        f"One config with 5 seeds: mean validation accuracy **0.9510** (95 % interval {0.951 - half:.4f} to "
        f"{0.951 + half:.4f}, for new seeds on these images); mean test accuracy of the same 0.9400 "
        f"({0.94 - other:.4f} to {0.94 + other:.4f}), which nothing was chosen by."
    ) in told
    assert "beats" not in told
    assert "told apart" not in told


def test_a_values_best_config_has_the_highest_mean_over_its_seeds() -> None:
    """Not the highest run: the learning rate with the best single seed loses to the one with the best mean."""
    found = by_value.by(three(), ACTIVATION)
    relu = next(group for group in found.groups if group.value == "relu")

    assert relu.best.settings == {RATE: 0.1}
    assert [each.settings[RATE] for each in relu.every] == [0.1, 0.01]
    assert relu.best.validation.values == tuple(right / IMAGES for right in RELU)
    assert [group.value for group in found.groups] == ["relu", "gelu", "tanh"]
    assert found.others == (RATE,)


def test_nothing_is_ordered_by_a_test_score() -> None:
    """Other test scores, the same choice and the same order."""
    worse = [
        replace(
            each,
            record=replace(
                each.record, result=each.record.result.model_copy(update={"test_accuracy": float(n % 7) / 7})
            ),
        )
        for n, each in enumerate(three().trials)
        if each.record and each.record.result
    ]

    first, second = (by_value.by(found, ACTIVATION) for found in (three(), replace(three(), trials=tuple(worse))))

    assert [(group.value, group.best.settings) for group in first.groups] == [
        (group.value, group.best.settings) for group in second.groups
    ]
    assert [group.behind for group in first.groups] == [group.behind for group in second.groups]


def test_intervals_are_students() -> None:
    """Of validation and of test, as SciPy has them."""
    best = by_value.by(three(), ACTIVATION).groups[0].best
    assert best.test is not None

    for score in (best.validation, best.test):
        mean, error = np.mean(score.values), stats.sem(score.values)
        assert score.mean == pytest.approx(mean)
        assert score.interval == pytest.approx(stats.t.interval(0.95, len(score.values) - 1, mean, error))


def test_differences_are_tested_seed_by_seed_and_corrected_for_all_pairs() -> None:
    """Paired t tests with Holm's correction over every pair of values, as SciPy and statsmodels have them."""
    found = by_value.by(three(), ACTIVATION)
    scores = [np.array(group.best.validation.values) for group in found.groups]
    pairs = list(combinations(range(3), 2))
    expected = [float(stats.ttest_rel(scores[one], scores[other]).pvalue) for one, other in pairs]
    corrected = dict(zip(pairs, multipletests(expected, method="holm")[1], strict=True))

    assert found.groups[0].behind is None
    for place in (1, 2):
        behind = found.groups[place].behind
        assert behind is not None
        assert behind.paired == 5
        assert behind.difference == pytest.approx(float(np.mean(scores[0] - scores[place])))
        assert behind.p_value == pytest.approx(expected[pairs.index((0, place))])
        assert behind.adjusted == pytest.approx(corrected[(0, place)])
        assert behind.distinguishable == (corrected[(0, place)] <= 0.05)
    assert [group.behind.distinguishable for group in found.groups[1:] if group.behind] == [False, True]


def test_configs_without_common_seeds_are_tested_by_welch() -> None:
    """Where two configs share less than two seeds, all seeds of each count."""
    found = by_value.by(
        study(
            *repeated(0, "relu", 0.1, RELU),
            *repeated(5, "tanh", 0.1, (930, 940, 950), seeds=(7, 8, 9)),
            searched=SPACE,
        ),
        ACTIVATION,
    )
    behind = found.groups[1].behind
    scores = [group.best.validation.values for group in found.groups]

    assert behind is not None
    assert behind.paired == 0
    assert behind.p_value == pytest.approx(float(stats.ttest_ind(*scores, equal_var=False).pvalue))


def test_only_the_seeds_that_both_have_are_compared() -> None:
    """An interrupted value is tested by the seeds that it got to."""
    found = by_value.by(
        study(*repeated(0, "relu", 0.1, RELU), *repeated(5, "tanh", 0.1, (930, 940, 935)), searched=SPACE), ACTIVATION
    )
    behind = found.groups[1].behind

    assert behind is not None
    assert behind.paired == 3
    assert behind.p_value == pytest.approx(float(stats.ttest_rel(RELU[:3], (930, 940, 935)).pvalue))


def test_a_value_with_fewer_seeds_than_others_is_behind_them() -> None:
    """One lucky seed is no mean over five: neither first, nor the best of the sentence, whatever it scored."""
    found = study(
        *repeated(0, "relu", 0.1, RELU), *repeated(5, "tanh", 0.1, (954,)), *repeated(10, "gelu", 0.01, GELU[:3]),
        searched=SPACE,
    )  # fmt: skip
    told = by_value.by(found, ACTIVATION)
    (table,) = [block for block in section(found) if isinstance(block, Table)]
    rows = {row[0]: dict(zip(table.head, row, strict=True)) for row in table.rows}
    head, said = answer(found), text(section(found))

    assert [group.value for group in told.groups] == ["relu", "tanh", "gelu"]
    assert [group.short for group in told.groups] == [False, True, True]
    assert [row["seeds"] for row in rows.values()] == ["5", "1 of 5", "3 of 5"]
    assert [row[""] for row in rows.values()] == ["best", "not tested", "can't tell"]  # the last head without a name
    assert "relu is best** of those with 5 seeds, with optimizer.learning_rate=0.1, mean" in head
    assert "gelu (3 of 5 seeds) can't be told apart from it. tanh (1 of 5 seeds) can't be tested against it" in head
    assert "ordered by that mean, those with fewer seeds than others last." in said
    assert "tanh (1 of 5 seeds) and gelu (3 of 5 seeds): no config of these has as many complete seeds" in said
    names = ["relu", "tanh (1 of 5 seeds)", "gelu (3 of 5 seeds)"]
    axes = axes_of(figures.by_value(told))
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    colors = [line.get_color() for line in axes.lines if line.get_label() == "validation"]
    assert colors == [canvas.ORANGE, canvas.BLUE, canvas.BLUE]
    assert "validation: can't be told apart or not tested" in words(figures.by_value(told))
    titles = [panel.get_title(loc="left") for panel in figures.by_number(told).axes]
    assert titles == names


def test_a_lead_by_some_of_the_seeds_says_so() -> None:
    """The same seed by seed though the means say otherwise: the row and the sentence name the seeds they rest on."""
    rights = (950, 940, 930, 960, 970)
    found = study(
        *repeated(0, "relu", 0.1, rights), *repeated(5, "tanh", 0.1, [right + 8 for right in rights[:3]]),
        searched=SPACE,
    )  # fmt: skip
    behind = by_value.by(found, ACTIVATION).groups[1].behind
    (table,) = [block for block in section(found) if isinstance(block, Table)]
    row = dict(zip(table.head, table.rows[1], strict=True))

    assert behind is not None
    assert (behind.paired, behind.partial, behind.verdict) == (3, True, "ahead")
    assert row["behind"] == "-0.0080 (3 seeds)"
    assert row[""] == "ahead"
    head = answer(found)
    assert "worse" not in head
    assert "tanh (3 of 5 seeds) is ahead of it by more than luck explains over the seeds that both have" in head
    assert "the two have only these in common" in text(section(found))
    assert "validation: ahead by shared seeds" in words(figures.by_value(by_value.by(found, ACTIVATION)))
    assert "only these in common" not in text(section(three()))


def test_values_with_as_many_but_other_seeds_are_ranked_by_all_and_tested_by_the_shared_ones() -> None:
    """Each lost another seed: the row says that its difference is of the three that are left."""
    found = study(
        *repeated(0, "relu", 0.1, (950, 950, 950, 990), seeds=(0, 1, 2, 3)),
        *repeated(5, "tanh", 0.1, (951, 953, 952, 940), seeds=(0, 1, 2, 4)),
        searched=SPACE,
    )
    (table,) = [block for block in section(found) if isinstance(block, Table)]
    row = dict(zip(table.head, table.rows[1], strict=True))

    assert [each[0] for each in table.rows] == ["relu", "tanh"]
    assert (row["seeds"], row["behind"], row[""]) == ("4", "-0.0020 (3 seeds)", "can't tell")


def test_the_same_lead_with_each_of_two_seeds_is_no_certainty() -> None:
    """Accuracies are whole images: two equal differences of a few are chance as likely as not."""
    found = study(*repeated(0, "relu", 0.1, (950, 940)), *repeated(5, "tanh", 0.1, (947, 937)), searched=SPACE)
    alone = study(
        *repeated(0, "relu", 0.1, (950, 950)), *repeated(5, "tanh", 0.1, (949, 949), seeds=(7, 8)), searched=SPACE
    )
    step = 1 / IMAGES

    paired, welch = (by_value.by(each, ACTIVATION).groups[1].behind for each in (found, alone))

    assert paired is not None
    assert paired.p_value == pytest.approx(2 * stats.t.sf(3 * step / np.sqrt(step**2 / 6 / 2), 1))
    assert welch is not None
    assert welch.p_value == pytest.approx(2 * stats.t.sf(step / np.sqrt(step**2 / 12), 2))
    assert not paired.distinguishable
    assert not welch.distinguishable
    assert "worse" not in answer(found)


def test_null_is_a_value() -> None:
    """No patience at all is one of those that were tried, and here it is the best of them."""
    patience = "trainer.patience"
    trials = [
        replace(each, params={patience: value, "seed": each.params["seed"]})
        for first, value, rights in ((0, None, (960, 961)), (5, 3, (900, 901)))
        for each in with_patience(repeated(first, "relu", 0.1, rights), value)
    ]
    configured = replace(with_patience(repeated(9, "relu", 0.1, (955,), seeds=(2,)), None)[0], params={})
    space = {f"search.{patience}": json.dumps({"values": [None, 3]}), "search.seed": SPACE["search.seed"]}
    found = study(*trials, configured, searched=space)

    told = by_value.by(found, patience)

    assert [group.value for group in told.groups] == [None, 3]
    assert told.without == 0
    assert len(told.groups[0].best.trials) == 3
    assert "null is best" in answer(found, patience)
    assert "without" not in text(section(found, patience))


def with_patience(trials: Sequence[Trial], patience: int | None) -> list[Trial]:
    """The same trials, trained with this patience."""
    return [
        replace(each, record=replace(each.record, config=each.record.config.model_copy(
            update={"trainer": each.record.config.trainer.model_copy(update={"patience": patience})}
        )))
        for each in trials if each.record
    ]  # fmt: skip


def test_a_config_that_has_no_such_key_is_not_counted() -> None:
    """Plain SGD has no beta_1; that is no value of it."""
    beta = "optimizer.beta_1"
    found = study(
        *(replace(each, params={beta: 0.9, "seed": 0}) for each in repeated(0, "relu", 0.1, (950,))),
        *(replace(each, params={"seed": 1}) for each in repeated(1, "relu", 0.1, (951,))),
        searched={f"search.{beta}": json.dumps({"values": [0.9, 0.99]}), "search.seed": SPACE["search.seed"]},
    )

    assert by_value.by(found, beta).without == 1
    assert f"1 trial without a value of {beta}: not counted here." in text(section(found, beta))


def test_a_config_with_fewer_seeds_than_others_of_its_value_is_not_chosen() -> None:
    """One lucky run, or those seeds that did not fail, are no mean over the seeds."""
    failed: tuple[State, ...] = ("COMPLETE", "FAILED", "COMPLETE", "FAILED", "PRUNED")
    found = study(
        *repeated(0, "relu", 0.1, RELU),
        *repeated(5, "relu", 1.0, (990, 0, 990, 0, 980), states=failed),
        *repeated(10, "relu", 0.01, (999,)),
        *repeated(20, "tanh", 1.0, (990, 0), states=("PRUNED", "FAILED")),
        searched=SPACE,
    )
    told = by_value.by(found, ACTIVATION)
    (relu,) = told.groups
    said = text(section(found))

    assert relu.best.settings == {RATE: 0.1}
    assert [len(each.trials) for each in relu.fewer] == [1, 2]
    assert (relu.pruned, relu.failed) == (1, 2)
    assert told.empty == {"tanh": (1, 1)}
    assert "Configs with fewer complete seeds than others of their value were not chosen from: 2 of relu." in said
    assert "Trials that did not complete are in no mean: relu (1 pruned and 2 failed)." in said
    assert "No trial completed of tanh (1 pruned and 1 failed)." in said


def test_a_config_that_ran_twice_with_one_seed_counts_once() -> None:
    """Equal trials are no repetitions: their spread would be 0."""
    twice = [*repeated(0, "relu", 0.1, (950, 951)), *repeated(2, "relu", 0.1, (950,), seeds=(1,))]

    (relu,) = by_value.by(study(*twice, searched=SPACE), ACTIVATION).groups

    assert list(relu.best.trials) == [0, 1]
    assert relu.best.trials[1].number == 1


def test_without_repeated_seeds_there_are_no_intervals_and_no_tests() -> None:
    """Each value's best is one run; the section says so, and how to repeat them."""
    found = study(
        *(each for n, (name, right) in enumerate((("relu", 950), ("relu", 940), ("tanh", 930)))
          for each in repeated(n, name, 0.1 * (n + 1), (right,), seeds=(100 + n,))),
        searched={name: text for name, text in SPACE.items() if name != "search.seed"},
    )  # fmt: skip
    told = by_value.by(found, ACTIVATION)
    said = text(section(found))
    head = answer(found)

    assert not told.repeated
    assert [group.best.validation.interval for group in told.groups] == [None, None]
    assert [group.behind for group in told.groups] == [None, None]
    assert "there are no intervals and no tests" in said
    assert "study/sampler=grid" in said
    assert "relu is best** with optimizer.learning_rate=0.1, mean validation accuracy **0.9500** (one run)" in head
    assert "tanh can't be tested against it: that takes two seeds of each" in head


def test_a_best_at_the_end_of_what_was_tried_is_pointed_out() -> None:
    """tanh's best learning rate is the lowest of three; relu's is between two others."""
    found = study(
        *(each for n, (rate, relu, tanh) in enumerate(((0.01, 940, 950), (0.1, 950, 940), (1.0, 930, 930)))
          for name, right, at in (("relu", relu, 2 * n), ("tanh", tanh, 2 * n + 1))
          for each in repeated(10 * at, name, rate, (right, right + 1))),
        searched=SPACE,
    )  # fmt: skip

    said = text(section(found))

    assert "The best optimizer.learning_rate of tanh is the lowest or highest that was tried" in said


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.activaton", r"by=model\.activaton: the study didn't search it; it searched model\.activation, "
         r"optimizer\.learning_rate; did you mean model\.activation\?"),
        ("seed", "seeds are what each value's mean is taken over; it searched model.activation, "),
    ],
)  # fmt: skip
def test_a_key_that_was_not_searched_is_refused(key: str, message: str) -> None:
    """With those that were."""
    with pytest.raises(ConfigError, match=message):
        by_value.by(three(), key)


def test_a_study_that_searched_seeds_alone_has_no_key() -> None:
    """There is nothing to tell it by, and it isn't told to."""
    found = study(*repeated(0, "relu", 0.1, RELU), searched={"search.seed": SPACE["search.seed"]})

    with pytest.raises(ConfigError, match="it searched no hyperparameter"):
        by_value.by(found, ACTIVATION)
    assert "by=" not in answer(found, "")


def test_numbers_that_look_alike_are_two_values() -> None:
    """A learning rate is known by all of its digits."""
    found = study(*repeated(0, "relu", 0.10001, (950, 951)), *repeated(2, "relu", 0.10002, (940, 941)), searched=SPACE)

    assert [group.value for group in by_value.by(found, RATE).groups] == [0.10001, 0.10002]


def test_a_whole_number_and_its_float_are_one_value() -> None:
    """0.0 as the config has it and 0 as `choice(0, 0.3)` draws it are the same dropout, and share their seeds."""
    space = {"search.optimizer.learning_rate": json.dumps({"values": [1, 0.1]}), "search.seed": SPACE["search.seed"]}
    trials = [*repeated(0, "relu", 1.0, RELU[:2]), *repeated(2, "relu", 1, RELU[2:], seeds=(2, 3, 4))]

    found = by_value.by(study(*trials, *repeated(5, "relu", 0.1, TANH), searched=space), RATE)

    assert [(group.value, len(group.best.trials)) for group in found.groups] == [(1, 5), (0.1, 5)]


# ---------------------------------------------------------------------------------------------------- the words


def test_a_value_with_many_more_configs_than_another_is_said_to_be_luckier() -> None:
    """The best of five configs against the only one of another value: the test doesn't know of the other four."""
    relu = [each for n in range(5) for each in repeated(5 * n, "relu", 0.01 * (n + 1), RELU)]
    uneven = study(*relu, *repeated(25, "tanh", 0.1, TANH), searched=SPACE)

    assert "Values had from 1 to 5 configs to choose from. The more, the luckier the best" in text(section(uneven))
    assert "to choose from" not in text(section(three()))


def test_the_answer_names_the_best_value_and_its_equals() -> None:
    """With mean, interval, number of seeds, what else it has, and the test score as what it is."""
    said = answer(three())

    assert "By model.activation: **relu is best** with optimizer.learning_rate=0.1" in said
    assert "mean validation accuracy **0.9510** (95 % interval 0.9490 to 0.9530, over 5 seeds)" in said
    assert "mean test accuracy of the same 0.9400 (0.9312 to 0.9488), which nothing was chosen by" in said
    assert "gelu can't be told apart from it. tanh is worse by more than luck explains." in said


def test_the_table_has_a_row_for_each_value() -> None:
    """Means with intervals, seeds, other settings, differences, size and time, best first."""
    (table,) = [block for block in section(three()) if isinstance(block, Table)]
    rows = [dict(zip(table.head, row, strict=True)) for row in table.rows]

    assert [row[""] for row in rows] == ["best", "can't tell", "worse"]  # the last of the two heads without a name
    assert [row[0] for row in table.rows] == ["relu", "gelu", "tanh"]
    assert rows[0]["learning_rate"] == "0.1"
    assert rows[0]["seeds"] == "5"
    assert rows[0]["validation"] == "0.9510"
    assert rows[0]["parameters"] == "104"
    assert rows[0]["seconds"] == "3.0"
    assert rows[2]["behind"] == "0.0196"
    assert len(table.align) == len(table.head)


def test_a_study_with_seeds_is_told_how_to_compare_means() -> None:
    """Unless that was asked for already, and not where no seeds were searched."""
    without = replace(three(), fingerprint={name: d for name, d in SPACE.items() if name != "search.seed"})

    assert "python -m mnistexp report study.name=study by=model.activation" in answer(three(), "")
    assert "by=" not in answer(three())
    assert "by=" not in answer(without, "")


def test_the_envelope_says_which_test_scores_stand_here() -> None:
    """The section's means are test scores as well."""
    whole = study_report(material(three()), "", "envelope,by")

    assert [each.id for each in whole.sections] == ["by", "envelope"]
    assert "beside each value of model.activation the mean one of its chosen config" in text(whole.sections[1].blocks)


def test_many_values_are_cut_off_and_counted() -> None:
    """The table and the figure hold the first ones, and say of how many."""
    every = [
        each
        for n in range(ROWS + 10)
        for each in repeated(10 * n, "relu", 0.01 * (n + 1), (950 - n, 951 - n), seeds=(0, 1))
    ]
    found = study(*every, searched=SPACE)
    blocks = section(found, RATE)
    (table,) = [block for block in blocks if isinstance(block, Table)]

    assert len(table.rows) == ROWS
    assert f"the first {ROWS} of {ROWS + 10} values" in table.caption
    assert len(answer(found, RATE)) < 2000
    assert any("20 more values, each less" in each for each in words(figures.by_value(by_value.by(found, RATE))))


def test_a_study_without_a_complete_trial_has_a_sentence() -> None:
    """No table, no figure."""
    for trials in ([], repeated(0, "relu", 0.1, (900,), states=("FAILED",))):
        (note,) = section(study(*trials, searched=SPACE))
        assert isinstance(note, Note)
        assert "No trial completed" in note.text


# -------------------------------------------------------------------------------------------------- the figures


def axes_of(figure: Figure) -> Axes:
    """A figure's first panel, after all has found its place."""
    figure.draw_without_rendering()
    return figure.axes[0]


def words(figure: Figure) -> list[str]:
    """The texts of its legend."""
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def xs(axes: Axes, label: str) -> list[list[float]]:
    """Where the lines with this label lie."""
    return [np.asarray(line.get_xdata(), dtype=float).tolist() for line in axes.lines if line.get_label() == label]


def test_the_figure_has_a_row_for_each_value_with_its_intervals() -> None:
    """Means, intervals and seeds of both splits, best first; the learning rate stands beside."""
    found = study(*three().trials[:15], *repeated(20, "gelu", 0.1, GELU, tests=(0.94, 0.95, 0.94, 0.95, 0.94)),
                  searched=SPACE)  # fmt: skip
    told = by_value.by(found, ACTIVATION)
    axes = axes_of(figures.by_value(told))

    bests = [group.best for group in told.groups]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["relu", "gelu", "tanh"]
    assert xs(axes, "validation") == [[best.validation.mean] for best in bests]
    assert xs(axes, "test") == [[best.test.mean] for best in bests if best.test]
    assert xs(axes, "validation interval") == [pytest.approx(best.validation.interval) for best in bests]
    assert sorted(xs(axes, "validation seeds")[0]) == sorted(bests[0].validation.values)
    assert [text.get_text() for text in axes.texts] == ["learning_rate", "0.1", "0.1", "0.1"]


def test_a_value_that_fails_utterly_is_written_at_the_end_of_the_axis() -> None:
    """It would squeeze the others' intervals to nothing."""
    names = ("relu", "tanh", "gelu", "elu", "selu")
    good = [each for n, name in enumerate(names) for each in repeated(10 * n, name, 0.1, RELU, tests=(0.95,) * 5)]
    found = study(*good, *repeated(90, "linear", 0.1, (300, 310, 320, 305, 315), tests=(0.31,) * 5), searched=SPACE)
    axes = axes_of(figures.by_value(by_value.by(found, ACTIVATION)))

    assert axes.get_xlim()[0] > 0.9
    assert {"  31.00 %"} == {text.get_text() for text in axes.texts if "%" in text.get_text()}
    assert len(xs(axes, "validation below")) == 1


def test_means_are_drawn_over_the_learning_rate_in_a_panel_for_each_value() -> None:
    """Each of its configs at its learning rate, with the interval; the chosen one is a star."""
    told = by_value.by(three(), ACTIVATION)
    figure = figures.by_number(told)
    axes = axes_of(figure)
    relu = told.groups[0]

    assert told.number == RATE
    assert xs(axes, "means") == [[0.01, 0.1]]
    assert [panel.get_title(loc="left") for panel in figure.axes if panel.get_visible()] == ["relu", "gelu", "tanh"]
    stars = [line for line in axes.lines if line.get_marker() == "*"]
    assert [line.get_xdata()[0] for line in stars] == [relu.best.settings[RATE]]


@pytest.mark.parametrize("key", [ACTIVATION, RATE])
def test_values_are_drawn_over_a_number_only_where_that_is_the_one_other_key(key: str) -> None:
    """Over activations, or over two keys at once, there is no line."""
    more = {**SPACE, "search.model.dropout": json.dumps({"low": 0.0, "high": 0.5, "log": False, "step": None})}

    assert by_value.by(three(), key).number == (RATE if key == ACTIVATION else "")
    assert by_value.by(replace(three(), fingerprint=more), key).number == ""


THIN: dict[str, History] = {
    "none": study(searched=SPACE),
    "one": study(*repeated(0, "relu", 0.1, (950,)), searched=SPACE),
    "alike": study(*repeated(0, "relu", 0.1, (950,) * 3), *repeated(5, "tanh", 0.1, (950,) * 3), searched=SPACE),
    "perfect": study(*repeated(0, "relu", 0.1, (1000, 1000, 999)), searched=SPACE),
    "untested": study(*repeated(0, "relu", 0.1, (950, 951), tests=(None, None)), searched=SPACE),
    "hostile": study(
        *(replace(each, params={**each.params, ACTIVATION: "$\\frac{<b>" * 9}) for each in three().trials),
        searched=SPACE,
    ),
    "three": three(),
}


@pytest.mark.parametrize("key", [ACTIVATION, RATE])
@pytest.mark.parametrize("name", THIN)
def test_thin_and_odd_studies_give_a_section_all_the_same(name: str, key: str) -> None:
    """Nothing crashes, nor warns."""
    told: Groups = by_value.by(THIN[name], key)

    assert canvas.to_svg(figures.by_value(told)).startswith("<svg")
    assert canvas.to_svg(figures.by_number(told)).startswith("<svg")
    assert document.to_html(Document("", "", section(THIN[name], key), (), ""))


def test_equal_values_can_not_be_told_apart() -> None:
    """Not by a test of differences that are all 0, either."""
    behind = by_value.by(THIN["alike"], ACTIVATION).groups[1].behind

    assert behind is not None
    assert (behind.p_value, behind.distinguishable) == (1.0, False)


# -------------------------------------------------------------------------------------------------- the command


def by_config(job: int, config: RunConfig) -> list[Step]:
    """tanh is better, more so with the lower rate; seed 1 of relu at the higher rate never gets anywhere."""
    if (config.model.activation, config.optimizer.learning_rate, config.seed) == ("relu", 0.1, 1):
        return ["its loss is NaN"]
    score = 0.8 + 0.1 * (config.model.activation == "tanh") - config.optimizer.learning_rate / 10 + config.seed / 100
    return [score] * config.trainer.epochs


def test_the_command_writes_the_section_with_its_figures(
    fresh: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid over seeds, interrupted and gone on with: what the section says is what the trials scored."""
    monkeypatch.chdir(tmp_path)
    grid = ("study/sampler=grid", "seed=range(0,3)", "optimizer.learning_rate=choice(0.01,0.1)")
    with closing(open_for_sweep(f"sqlite:///{shutil.copy(fresh, tmp_path / 'optuna.db')}")) as opened:
        for total in (7, 12):
            open_sweep(opened, *grid, f"study.trials={total}").run(HitsExecutor(by_config))
    asked = {"by": ACTIVATION, "sections": "provenance,by", "out": str(tmp_path / "out")}

    assert report(parse_request(["tracking=none"]), CommandArgs(asked, ("digits",))) == 0

    markdown = (tmp_path / "out" / "report-digits.md").read_text()
    assert re.findall("^## (.*)$", markdown, re.M) == [f"By {ACTIVATION}", "Where it comes from"]
    assert {path.name for path in (tmp_path / "out" / "report-digits").iterdir()} == {"by.png", "by_number.png"}
    rows = {row[1]: row for line in markdown.splitlines() if (row := [cell.strip() for cell in line.split("|")])[1:]}
    scores = [round((0.899 + seed / 100) * VALIDATION) / VALIDATION for seed in range(3)]
    assert rows["tanh"][2:5] == ["0.01", "3", f"{np.mean(scores):.4f}"]
    assert rows["relu"][2:4] == ["0.01", "3"]
    assert "Trials that did not complete are in no mean: relu (1 failed)" in markdown
    assert "not chosen from" in markdown
    assert (tmp_path / "out" / "report-digits.html").read_text().count("<svg") == 2
