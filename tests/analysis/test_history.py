from __future__ import annotations

import optuna
import pytest
from fakes import FakeExecutor, Step
from sweeps import by_rate, open_sweep, trials_of

from mnistexp.analysis import history
from mnistexp.config.schema import RunConfig
from mnistexp.errors import StoreError
from mnistexp.study.database import Database

RATES = "optimizer.learning_rate=tag(log, interval(1e-3, 1e-1))"


def test_a_history_is_what_the_sweep_did(database: Database) -> None:
    """Each finished trial has its state, its record and its reason; the first one is the composed config."""

    def script(job: int, config: RunConfig) -> list[Step]:
        return ["its loss is NaN"] if job == 2 else list(by_rate(job, config))

    sweep = open_sweep(database, RATES, "study.trials=5")
    sweep.run(FakeExecutor(script))

    found = history.load(database.storage, "digits")

    assert [trial.state for trial in found.trials] == ["COMPLETE", "COMPLETE", "FAILED", "COMPLETE", "COMPLETE"]
    assert [trial.baseline for trial in found.trials] == [True, False, False, False, False]
    assert found.trials[2].reason == "its loss is NaN"
    assert found.trials[2].val_accuracy is None
    assert [trial.val_accuracy for trial in found.complete] == [
        each.value for each in trials_of(database) if each.value is not None
    ]
    assert found.test_evaluations == 4
    assert found.fingerprint["search.model.activation"]
    assert len(found.id) == 32


def test_the_best_is_the_first_of_equals(database: Database) -> None:
    """Complete trials are ranked by validation accuracy, then by number; pruned ones are not among them."""
    scores = [[0.5, 0.5, 0.5], [0.7, 0.7, 0.7], [0.7, 0.7, 0.7], [0.55, 0.55, 0.55], [0.8, 0.8, 0.8]]
    pruned = ("study/pruner=median", "study.pruner.startup_trials=1", "study.pruner.warmup_epochs=1")
    sweep = open_sweep(database, RATES, "study.trials=5", *pruned)
    sweep.run(FakeExecutor(lambda job, _: scores[job]))

    found = history.load(database.storage, "digits")

    assert found.trials[3].state == "PRUNED"
    assert found.trials[3].val_accuracy == 0.55  # more than trial 0
    assert [trial.number for trial in found.ranked] == [4, 1, 2, 0]


def test_only_a_study_of_ours_is_read(database: Database) -> None:
    """A missing study, and one that something else made, give a message; confirmations are not listed in it."""
    optuna.create_study(study_name="theirs", storage=database.storage)
    optuna.create_study(study_name="theirs.confirm.1234", storage=database.storage)

    with pytest.raises(StoreError, match=r"study\.name=mine: no such study here; there are theirs; run"):
        history.load(database.storage, "mine")
    with pytest.raises(StoreError, match="was not made by mnistexp"):
        history.load(database.storage, "theirs")
    assert history.study_names(database.storage, "theirs.") == ["theirs.confirm.1234"]


# ------------------------------------------------------------------------------------------------ importances


def studied(count: int, *values: float) -> optuna.Study:
    """A study in which `much` decides the score and `little` hardly does; half of the trials have a value of `rare`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=1))
    for n in range(count):
        trial = study.ask()
        much, little = trial.suggest_float("much", 0, 1), trial.suggest_float("little", 0, 1)
        if n % 2:
            trial.suggest_categorical("rare", ("a", "b"))
        study.tell(trial, values[n] if values else -((much - 0.3) ** 2) + little / 1000)
    return study


def test_a_parameter_that_decides_the_score_is_important() -> None:
    """Shares add up to 1 with the largest first, include conditional parameters, and are reproducible."""
    study = studied(100)

    first, again = (history.importances(study._storage, study.study_name) for _ in range(2))

    assert next(iter(first.shares)) == "much"
    assert first.shares["much"] > 0.5
    assert set(first.shares) == {"much", "little", "rare"}
    assert sum(first.shares.values()) == pytest.approx(1)
    assert list(first.shares.items()) == list(again.shares.items())
    assert first.top == 10


@pytest.mark.parametrize(("count", "reason"), [(9, "10 complete trials are needed"), (20, "the same score")])
def test_too_few_or_equal_trials_have_no_importances(count: int, reason: str) -> None:
    """The result has the reason."""
    study = studied(count, *[0.5] * count)

    found = history.importances(study._storage, study.study_name)

    assert found.shares == {}
    assert reason in found.why_not
