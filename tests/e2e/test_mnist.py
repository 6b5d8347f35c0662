from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Folder, accuracies


@pytest.fixture
def mnist(tmp_path: Path, mnist_folder: Path) -> Folder:
    """An empty working folder on a machine that has MNIST."""
    return Folder(tmp_path, {"MNISTEXP_DATA": str(mnist_folder.resolve())})


def test_train_learns_mnist(mnist: Folder) -> None:
    """The command as it stands finds MNIST; 300 steps are better than nine in ten, and no more steps are taken."""
    said = mnist.run("train", "trainer.max_steps=300")

    [run] = mnist.runs("", "mnist")
    scores = accuracies(said.stdout)
    assert "max_steps" in said.stdout
    assert "THIS IS NOT MNIST" not in said.stderr
    assert float(scores["validation"]) > 0.9
    assert float(scores["test"]) > 0.9
    assert f"{run.data.metrics['test_accuracy']:.4f}" == scores["test"]
    assert run.data.params["data"] == "mnist"


@pytest.mark.slow
def test_a_sweep_of_mnist_and_its_rerun(mnist: Folder) -> None:
    """Three trials leave everything that MLflow should have; the best comes out again, bit by bit."""
    said = mnist.run("sweep", "study.trials=3", "trainer.epochs=1", "search.trainer.batch_size=null")
    again = mnist.run("rerun")

    runs = mnist.runs("tags.kind = 'trial'", "mnist")
    assert len(runs) == 3
    for run in runs:
        assert run.info.status == "FINISHED"
        assert {"optimizer.learning_rate", "model.hidden_units", "trainer.batch_size", "seed"} <= run.data.params.keys()
        assert {"val_accuracy", "test_accuracy", "curve/val_accuracy", "curve/loss"} <= run.data.metrics.keys()
        assert 0.5 < run.data.metrics["test_accuracy"] < 1
        assert json.loads(run.data.tags["mnistexp.config"])["seed"] == int(run.data.params["seed"])
    best = max(runs, key=lambda run: run.data.metrics["val_accuracy"])
    assert f"{best.data.metrics['val_accuracy']:.4f}" == accuracies(said.stdout)["validation"]
    assert f"{best.data.metrics['test_accuracy']:.4f}" == accuracies(said.stdout)["test"]
    assert "bit-identical: the scores and every weight came out as before" in again.stdout
    assert again.stdout.count("  identical") == 5
    [repeated] = mnist.runs("tags.kind = 'rerun'", "mnist")
    assert repeated.data.tags["rerun_of"] == best.info.run_id
    assert repeated.data.tags["weights_hash"] == best.data.tags["weights_hash"]
