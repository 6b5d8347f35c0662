from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from histories import study, trial

from mnistexp.analysis import progress
from mnistexp.analysis.history import Trial


def test_the_best_so_far_follows_the_ends_of_trials() -> None:
    """With several workers a later trial may end first; a pruned trial counts but is never the best."""
    trials = (
        trial(0, 80, at=(0, 30)),
        trial(1, 70, at=(0, 10)),
        trial(2, 99, "PRUNED", at=(10, 20)),
        trial(3, 75, at=(20, 40)),
        trial(4, 90, at=(30, 50)),
        Trial(5, "FAILED", {}, None, "invalid"),
    )

    found = progress.best_so_far(trials)

    assert [(each.at, each.number, each.val_accuracy) for each in found] == [(1, 1, 0.7), (3, 0, 0.8), (5, 4, 0.9)]


def test_pauses_and_overlaps_do_not_count_as_time() -> None:
    """Seconds with two trials running count once, and seconds without any not at all."""
    trials = (trial(0, 10, at=(0, 10)), trial(1, 20, at=(5, 12)), trial(2, 30, at=(1000, 1010)))

    spent = progress.costs(study(*trials))

    assert [each.at for each in progress.best_so_far(trials, "seconds")] == [10, 12, 22]
    assert (spent.active_seconds, spent.training_seconds) == (22, 27)


def test_active_seconds_equal_a_count_of_seconds() -> None:
    """For any overlap; a clock that was set back adds nothing."""
    rng = np.random.default_rng(4)
    spans = [(start, start + int(rng.integers(0, 9))) for start in map(int, rng.integers(0, 300, 60))]
    trials = progress.ended(trial(n, at=span) for n, span in enumerate(spans))
    ends = [int(each.record.ended) for each in trials if each.record]

    counted = [sum(any(start <= second < end for start, end in spans) for second in range(last)) for last in ends]

    assert list(progress.positions(trials, "seconds")) == counted
    back = progress.ended([trial(0, at=(0, 10)), trial(1, at=(20, 5)), trial(2, at=(20, 21))])
    assert progress.positions(back, "seconds") == (5, 10, 11)
    assert progress.positions([], "seconds") == ()


def test_pruning_saves_the_epochs_that_were_not_trained() -> None:
    """Of trials with three epochs, one that stopped after the first saves two; a failed one saves none."""
    trials = (
        trial(0, before=(0.1, 0.2)),
        trial(1, state="PRUNED"),
        trial(2, state="FAILED", reason="NaN"),
        Trial(3, "FAILED", {}, None, "NaN"),
    )

    spent = progress.costs(study(*trials))

    assert (spent.trials, spent.complete, spent.pruned, spent.failed) == (4, 1, 1, 2)
    assert (spent.epochs, spent.epochs_saved) == (5, 2)
    assert progress.failures(study(*trials)) == {"NaN": (2, 3)}


def test_epochs_after_max_steps_are_not_saved() -> None:
    """With ten steps an epoch, 25 steps are three epochs, whatever trainer.epochs is."""
    pruned = trial(1, state="PRUNED")
    assert pruned.record is not None
    trainer = pruned.record.config.trainer.model_copy(update={"epochs": 100, "max_steps": 25})
    config = pruned.record.config.model_copy(update={"trainer": trainer})

    spent = progress.costs(study(replace(pruned, record=pruned.record.model_copy(update={"config": config}))))

    assert (spent.epochs, spent.epochs_saved) == (1, 2)


@pytest.mark.parametrize("cost", ["seconds", "parameters"])
def test_no_trial_is_better_than_one_on_the_pareto_front_at_the_same_cost(cost: progress.Cost) -> None:
    """The front equals the result of comparing every trial with every other."""
    rng = np.random.default_rng(2)
    trials = [
        trial(n, int(rng.integers(50, 60)), seconds=float(rng.integers(1, 9)), parameters=int(rng.integers(1, 9)))
        for n in range(40)
    ]
    places = {each.number: (progress.cost_of(each, cost), -each.accuracy) for each in trials}

    def dominated(one: tuple[float, float]) -> bool:
        return any(a <= one[0] and b <= one[1] and (a, b) != one for a, b in places.values())

    front = progress.pareto_front(trials, cost)

    best = {place for place in places.values() if not dominated(place)}
    assert [places[each.number] for each in front] == sorted(best)
    assert all(each.number == min(n for n, place in places.items() if place == places[each.number]) for each in front)
