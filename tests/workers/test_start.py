"""Workers of a config, and one training on a fake executor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import runs
from fakes import FakeExecutor

from mnistexp.config.compose import compose, parse_request
from mnistexp.errors import TrainingError
from mnistexp.training.results import EpochScores
from mnistexp.workers.start import run_training, start_workers


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_a_finished_study_starts_nothing(executor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no training left the pool is empty, and Ray is not even imported."""
    monkeypatch.setitem(sys.modules, "ray", None)

    pool = start_workers(compose(parse_request(["data=digits", f"executor={executor}"])), at_most=0)
    pool.close()

    assert pool.size == 0


def test_train_shows_each_epoch_and_returns_the_result(tmp_path: Path) -> None:
    """Every epoch is shown as it ends; weights are written where they are asked for."""
    seen: list[EpochScores] = []
    executor = FakeExecutor(lambda *_: [0.5, 0.75, 0.25])

    result = run_training(executor, runs.run_config(seed=4), seen.append, tmp_path / "w.h5")

    assert [scores.val_accuracy for scores in seen] == [0.5, 0.75, 0.25]
    assert result.fit.epochs == tuple(seen)
    assert (result.fit.stopped, result.fit.best_epoch) == ("completed", 2)
    assert (tmp_path / "w.h5").exists()
    assert executor.jobs[0].seed == 4


def test_a_failed_training_raises_its_reason() -> None:
    """The reason is the error's text, and the exit code says that the training failed, not the user."""
    executor = FakeExecutor(lambda *_: [0.5, "loss became nan in epoch 2"])

    with pytest.raises(TrainingError, match=r"^the training failed: loss became nan in epoch 2$") as caught:
        run_training(executor, runs.run_config(), lambda scores: None)

    assert caught.value.exit_code == 1
