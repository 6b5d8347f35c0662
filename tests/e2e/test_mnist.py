from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Folder, accuracies


@pytest.fixture
def mnist(tmp_path: Path, mnist_folder: Path) -> Folder:
    """An empty working folder on a machine that has MNIST."""
    return Folder(tmp_path, {"MNISTEXP_DATA": str(mnist_folder.resolve())})


@pytest.mark.slow
def test_a_sweep_of_mnist_and_its_rerun(mnist: Folder) -> None:
    """A sweep finds and learns MNIST, MLflow has every run; the best is reproduced bit by bit."""
    swept = mnist.run("sweep", "study.trials=2", "trainer.epochs=1", "search.trainer.batch_size=null")
    again = mnist.run("rerun")

    runs = mnist.runs("tags.kind = 'trial'", "mnist")
    assert len(runs) == 2
    for run in runs:
        assert run.info.status == "FINISHED"
        assert {"optimizer.learning_rate", "model.hidden_units", "trainer.batch_size", "seed"} <= run.data.params.keys()
        assert {"val_accuracy", "test_accuracy", "curve/val_accuracy", "curve/loss"} <= run.data.metrics.keys()
        assert run.data.params["data"] == "mnist"
    best = max(runs, key=lambda run: run.data.metrics["val_accuracy"])
    assert best.data.metrics["test_accuracy"] > 0.9
    assert f"{best.data.metrics['val_accuracy']:.4f}" == accuracies(swept.stdout)["validation"]
    assert f"{best.data.metrics['test_accuracy']:.4f}" == accuracies(swept.stdout)["test"]
    assert "THIS IS NOT MNIST" not in swept.stderr
    assert "bit-identical" in again.stdout
    [repeated] = mnist.runs("tags.kind = 'rerun'", "mnist")
    assert repeated.data.tags["rerun_of"] == best.info.run_id
    assert repeated.data.tags["weights_hash"] == best.data.tags["weights_hash"]
