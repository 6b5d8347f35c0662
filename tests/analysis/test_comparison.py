from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from histories import ACTIVATION, RATE, base, study, trial
from sklearn.metrics import confusion_matrix
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mnistexp.analysis import comparison
from mnistexp.analysis.history import Trial


def rows(*counts: int, images: int = 400, seed: int = 0) -> list[np.ndarray]:
    """Hits of configs that got so many images right, each others."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(images) < count for count in counts]


# ---------------------------------------------------------------------------------------------- its parameters


def test_a_key_stands_for_all_its_distributions() -> None:
    """Optimizers' own learning rates are one parameter to a reader, in the space, in values and in importances."""
    searched = {
        "search.optimizer": json.dumps({"values": ["sgd", "adam"]}),
        "search.optimizer.learning_rate@sgd": RATE["search.optimizer.learning_rate"],
        "search.optimizer.learning_rate@adam": RATE["search.optimizer.learning_rate"],
        "data": "not searched",
    }
    drawn = trial(1, params={"optimizer": "adam", "optimizer.learning_rate@adam": 0.007})
    keys = comparison.keys(study(drawn, searched=searched))

    assert keys == ("optimizer", "optimizer.learning_rate")
    assert comparison.settings(drawn, keys) == {"optimizer": "adam", "optimizer.learning_rate": 0.007}
    assert comparison.by_key({"a@x": 0.3, "b": 0.4, "a@y": 0.3}) == pytest.approx({"a": 0.6, "b": 0.4})


def test_what_was_not_drawn_is_as_it_was_configured() -> None:
    """The first trial may lie outside of the space: its values are those of its config, lists as their text."""
    settings = comparison.settings(trial(0), ["model.hidden_units", "optimizer.learning_rate", "optimizer.beta_1"])

    assert settings == {
        "model.hidden_units": json.dumps(list(base().model.hidden_units)),
        "optimizer.learning_rate": base().optimizer.learning_rate,
    }


def test_the_first_trials_optimizer_has_its_options_name() -> None:
    """Momentum is Keras's SGD, and an option of its own here."""
    found = [trial(0, config=base(f"optimizer={name}")) for name in ("sgd", "momentum", "adam")]

    assert [comparison.settings(each, ["optimizer"])["optimizer"] for each in found] == ["sgd", "momentum", "adam"]


def test_an_axis_needs_two_different_numbers() -> None:
    """Words are no axis, and neither is a number that never changes."""
    first = trial(0, params={"optimizer.learning_rate": 0.1, "model.activation": "relu"})
    other = trial(1, params={"optimizer.learning_rate": 0.2, "model.activation": "tanh"})

    assert comparison.numeric(study(first, other)) == ("optimizer.learning_rate",)
    assert comparison.numeric(study(first, first)) == ()


# -------------------------------------------------------------------------------------------------- its course


def test_best_so_far_goes_by_the_trials_ends() -> None:
    """With several workers a later trial may end first; a pruned one counts as a trial and never leads."""
    trials = (
        trial(0, 80, at=(0, 30)),
        trial(1, 70, at=(0, 10)),
        trial(2, 99, "PRUNED", at=(10, 20)),
        trial(3, 75, at=(20, 40)),
        trial(4, 90, at=(30, 50)),
        Trial(5, "FAILED", {}, None, "refused"),
    )

    steps = comparison.best_so_far(trials)

    assert [(step.at, step.number, step.val_accuracy) for step in steps] == [(1, 1, 0.7), (3, 0, 0.8), (5, 4, 0.9)]


def test_best_so_far_is_the_running_maximum() -> None:
    """It is what a loop over the scores finds, whatever the scores."""
    rng = np.random.default_rng(1)
    trials = [trial(n, int(rng.integers(1, 100)), at=(n, n + 0.5)) for n in range(50)]
    scores = [each.val_accuracy for each in trials]
    changes = [n for n in range(50) if n == 0 or scores[n] > max(scores[:n])]  # type: ignore[type-var]

    steps = comparison.best_so_far(trials)

    assert [step.number for step in steps] == changes
    assert [step.at for step in steps] == [n + 1 for n in changes]


def test_seconds_leave_out_the_night_between_two_sessions() -> None:
    """Time runs while a trial is at work: at once counts once, and a pause not at all."""
    trials = (trial(0, 10, at=(0, 10)), trial(1, 20, at=(5, 12)), trial(2, 30, at=(1000, 1010)))

    assert [step.at for step in comparison.best_so_far(trials, "seconds")] == [10, 12, 22]
    assert comparison.costs(study(*trials)).busy_seconds == 22
    assert comparison.costs(study(*trials)).training_seconds == 27


def test_seconds_at_work_are_those_of_counting_each() -> None:
    """However trials overlap: the seconds before its end in which any trial was at work; a clock set back adds none."""
    rng = np.random.default_rng(4)
    spans = [(start, start + int(rng.integers(0, 9))) for start in map(int, rng.integers(0, 300, 60))]
    trials = comparison.ended(trial(n, at=span) for n, span in enumerate(spans))
    back = comparison.ended([trial(0, at=(0, 10)), trial(1, at=(20, 5)), trial(2, at=(20, 21))])

    counted = [
        sum(any(start <= second < end for start, end in spans) for second in range(int(each.record.ended)))
        for each in trials
        if each.record
    ]

    assert list(comparison.busy_seconds(trials)) == counted
    assert comparison.busy_seconds(back) == (5, 10, 11)
    assert comparison.busy_seconds([]) == ()


def test_pruning_spares_the_epochs_that_were_not_run() -> None:
    """Of trials of three epochs, one stopped after the first spares two; a failed one spares none."""
    trials = (
        trial(0, before=(0.1, 0.2)),
        trial(1, state="PRUNED"),
        trial(2, state="FAILED", reason="NaN"),
        Trial(3, "FAILED", {}, None, "NaN"),
    )

    spent = comparison.costs(study(*trials))

    assert (spent.trials, spent.complete, spent.pruned, spent.failed) == (4, 1, 1, 2)
    assert (spent.epochs, spent.spared) == (5, 2)
    assert comparison.failures(study(*trials)) == {"NaN": (2, 3)}


def test_what_max_steps_ends_anyway_is_not_spared() -> None:
    """Ten steps an epoch and 25 in all are three epochs, whatever trainer.epochs says: the third is a short one."""
    pruned = trial(1, state="PRUNED")
    assert pruned.record is not None
    trainer = pruned.record.config.trainer.model_copy(update={"epochs": 100, "max_steps": 25})
    config = pruned.record.config.model_copy(update={"trainer": trainer})

    spent = comparison.costs(study(replace(pruned, record=replace(pruned.record, config=config))))

    assert (spent.epochs, spent.spared) == (1, 2)


# -------------------------------------------------------------------------------------------- is the best real?


def test_rivals_are_tested_as_statsmodels_does() -> None:
    """Each rival by McNemar's exact test on the same images, corrected by Holm over all pairs; Wilson's interval."""
    hits = rows(380, 376, 340, 372)
    found = comparison.standing(study(*(trial(n, row) for n, row in enumerate(hits))))
    pairs = list(itertools.combinations(range(4), 2))
    p_values = [
        mcnemar([[0, np.sum(hits[a] & ~hits[b])], [np.sum(~hits[a] & hits[b]), 0]], exact=True).pvalue for a, b in pairs
    ]
    adjusted = dict(zip(pairs, multipletests(p_values, method="holm")[1]))

    assert found is not None
    assert found.best.number == 0
    assert [versus.trial.number for versus in found.rivals] == [1, 3, 2]
    assert [versus.test.adjusted for versus in found.rivals] == pytest.approx([adjusted[0, n] for n in (1, 3, 2)])
    assert [each.number for each in found.alike] == [1, 3]
    assert (found.low, found.high) == pytest.approx(proportion_confint(380, 400, method="wilson"))


def test_the_same_study_has_the_same_luck() -> None:
    """What is drawn by chance comes again; of one trial nothing is luck by choice."""
    hits = rows(370, 371, 369)
    several = study(*(trial(n, row) for n, row in enumerate(hits)))

    first, again = comparison.standing(several), comparison.standing(several)
    alone = comparison.standing(study(trial(0, hits[0])))

    assert first is not None
    assert again is not None
    assert first.optimism == again.optimism > 0
    assert alone is not None
    assert (alone.optimism, alone.rivals) == (0, ())


def test_hits_that_do_not_fit_the_score_are_not_believed() -> None:
    """A record of another split, or none at all, gives no test rather than a wrong one."""
    good, other = trial(0, rows(380)[0]), trial(1, rows(90, images=100)[0])

    assert comparison.standing(study(good, other)) is None
    assert comparison.standing(study(trial(0, 0))) is None
    assert comparison.standing(study()) is None


def test_winners_are_compared_on_the_same_images_alone() -> None:
    """Studies' winners are tested with a correction for all their trials; on other data they are not."""
    hits = rows(390, 350, 388, 300)
    first = study(trial(0, hits[1]), trial(1, hits[0]), name="first")
    second = study(trial(0, hits[2]), trial(1, hits[3]), name="second")
    elsewhere = study(trial(0, hits[2], data="0" * 32), name="elsewhere")

    found = comparison.winners([second, first])

    assert found is not None
    assert [(each.study, each.trial.number) for each in found] == [("second", 0), ("first", 1)]
    assert found[1].test is None
    assert found[0].test is not None
    assert (found[0].test.better, found[0].test.worse) == (
        np.sum(hits[0] & ~hits[2]),
        np.sum(hits[2] & ~hits[0]),
    )
    assert comparison.winners([first, elsewhere]) is None
    assert comparison.winners([first, study(name="empty")]) is None


# ------------------------------------------------------------------------------------- how the space was cut down


def test_a_cut_shows_what_is_left_of_a_range() -> None:
    """Ranges shrink to the good trials' smallest and largest; choices are counted; what none has is a dash."""
    good = [
        trial(n, 90 + n, params={"optimizer.learning_rate": rate, "model.activation": "tanh"})
        for n, rate in enumerate((0.01, 0.0345678, 0.02))
    ]
    history = study(*good, trial(3, 10, params={"optimizer.learning_rate": 0.09, "model.activation": "relu"}))

    rate, activation = comparison.cuts(history, history.ranked)

    assert (rate.name, rate.searched) == ("optimizer.learning_rate", "0.001 … 0.1, logarithmic")
    assert (rate.alike, rate.top) == ("0.01 … 0.09", "0.01 … 0.0346")
    assert (activation.searched, activation.alike, activation.top) == ("relu, tanh", "tanh ×3, relu ×1", "tanh")
    assert comparison.cuts(study(trial(0), searched=RATE), [trial(0)])[0].alike == "–"


@pytest.mark.parametrize("text", ["", "[]", "7", '{"low": 1}', '{"study": "x", "trials": [1]}', "null"])
def test_what_is_no_distribution_was_not_searched(text: str) -> None:
    """Anything may stand in another tool's fingerprint."""
    assert comparison.described(text) == ""
    assert comparison.keys(study(searched={"search.x": text, **ACTIVATION})) == ("model.activation",)


# ------------------------------------------------------------------------------------------- accuracy and cost


@pytest.mark.parametrize("cost", ["seconds", "parameters"])
def test_nothing_beats_a_trial_on_the_front_for_less(cost: comparison.Cost) -> None:
    """The front is what comparing every trial with every other leaves."""
    rng = np.random.default_rng(2)
    trials = [
        trial(n, int(rng.integers(50, 60)), seconds=float(rng.integers(1, 9)), parameters=int(rng.integers(1, 9)))
        for n in range(40)
    ]

    def place(each: Trial) -> tuple[float, float]:
        return comparison.cost_of(each, cost), -comparison.accuracy_of(each)

    best = [
        each
        for each in trials
        if not any(
            place(other)[0] <= place(each)[0] and place(other)[1] <= place(each)[1] and place(other) != place(each)
            for other in trials
        )
    ]

    front = comparison.pareto(trials, cost)

    assert [place(each) for each in front] == sorted({place(each) for each in best})
    assert all(each.number == min(t.number for t in best if place(t) == place(each)) for each in front)


# ------------------------------------------------------------------------------------------------- its mistakes


def test_confusion_is_scikit_learns() -> None:
    """Labels and what was kept of the misses make the confusion matrix; what most trials miss comes first."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 10, 100).astype(np.int32)
    predicted = np.where(rng.random(100) < 0.8, labels, (labels + rng.integers(1, 10, 100)) % 10)
    hits = predicted == labels
    missed = np.flatnonzero(~hits)
    worse = hits.copy()
    worse[missed[1:]] = True
    worse[: int(missed[0]) + 1] = False
    worse[np.flatnonzero(worse)[-25:]] = False
    found = comparison.standing(study(trial(0, hits, mistakes=predicted[~hits]), trial(1, worse)))
    assert found is not None

    mistakes = comparison.mistakes(found, labels, 10)

    assert mistakes is not None
    assert found.best.number == 0
    assert mistakes.confusion.tolist() == confusion_matrix(labels, predicted, labels=range(10)).tolist()
    assert {miss.index: (miss.label, miss.taken_for) for miss in mistakes.misses} == {
        int(i): (labels[i], predicted[i]) for i in missed
    }
    assert [miss.missed_by for miss in mistakes.misses] == sorted((1 + int(not worse[i]) for i in missed), reverse=True)


def test_no_confusion_where_the_mistakes_were_not_kept() -> None:
    """Records of before, other splits and labels that aren't there give None, not a wrong matrix."""
    hits = rows(90, images=100)[0]
    labels = np.zeros(100, dtype=np.int32)
    before = comparison.standing(study(trial(0, hits, mistakes=[])))
    now = comparison.standing(study(trial(0, hits, mistakes=[7] * 10)))
    assert before is not None
    assert now is not None

    assert comparison.mistakes(before, labels, 10) is None
    assert comparison.mistakes(now, labels[:50], 10) is None
    assert comparison.mistakes(now, labels, 5) is None
    assert comparison.mistakes(now, labels, 8) is not None
