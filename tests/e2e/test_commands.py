from __future__ import annotations

import csv
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from conftest import ROOT, Folder, accuracies
from services import wait_until

from mnistexp.study.study import trial_seed

SPACE = ("search=none", "optimizer=choice(sgd, adam)", "model.activation=choice(relu, tanh)")


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, str]:
    """A folder with a study of four trials, and what its sweep printed."""
    folder = Folder(tmp_path_factory.mktemp("studied"))
    small = ("data=digits", "trainer.epochs=2", "executor.workers=1", "study.trials=4")
    return folder, folder.run("sweep", *small, *SPACE).stdout


def test_a_sweep_prints_and_stores_each_trial(studied: tuple[Folder, str]) -> None:
    """A line for each trial, then the best; Optuna and MLflow have the trials one to one, with equal scores."""
    folder, printed = studied

    trials = folder.trials("digits")
    runs = folder.runs("tags.kind = 'trial'", "digits")
    assert [line.split()[0] for line in printed.splitlines()[:4]] == ["1/4", "2/4", "3/4", "4/4"]
    assert "4 complete, 0 pruned, 0 failed" in printed
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 4
    values = {int(run.data.tags["trial"]): run.data.metrics["val_accuracy"] for run in runs}
    assert values == {trial.number: trial.value for trial in trials}
    assert accuracies(printed)["validation"] == f"{max(values.values()):.4f}"
    assert {run.info.status for run in folder.runs("", "digits")} == {"FINISHED"}  # the parent too
    assert all(
        f"python -m mnistexp {name} study.name=digits" in printed for name in ("best", "rerun", "report", "confirm")
    )


def test_a_study_becomes_an_experiments_results(studied: tuple[Folder, str], tmp_path: Path) -> None:
    """experiments/collect.py writes every trial's row and the best config, and says where they come from."""
    folder, printed = studied
    collect = [sys.executable, str(ROOT / "experiments" / "collect.py"), "digits", str(tmp_path / "results")]

    done = subprocess.run(collect, cwd=folder.path, env=folder.variables(), capture_output=True, text=True, check=True)

    with (tmp_path / "results" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = (tmp_path / "results" / "best.yaml").read_text()
    assert [float(row["val_accuracy"]) for row in rows] == [trial.value for trial in folder.trials("digits")]
    assert len({row["seed"] for row in rows}) == 4
    assert "trainer.epochs" not in rows[0]  # all trials share it
    assert f"validation accuracy {accuracies(printed)['validation']}" in best.splitlines()[0]
    assert yaml.safe_load(best)["data"]["name"] == "digits"
    assert "val_accuracy: 0." in done.stdout


def test_the_command_that_best_prints_reproduces_it(studied: tuple[Folder, str], folder: Folder) -> None:
    """The command line that `best` prints gives, in another folder, the same scores and the same weights."""
    where, printed = studied
    words = shlex.split(where.run("best", "data=digits").stdout.splitlines()[-1])

    again = folder.run(*words[3:])

    [run] = folder.runs("tags.kind = 'train'", "digits")
    trials = where.runs("tags.kind = 'trial'", "digits")
    best = min(trials, key=lambda run: (-run.data.metrics["val_accuracy"], int(run.data.tags["trial"])))
    assert words[:4] == ["python", "-m", "mnistexp", "train"]
    assert accuracies(again.stdout) == accuracies(printed)
    assert run.data.metrics["val_accuracy"] == best.data.metrics["val_accuracy"]
    assert run.data.metrics["test_accuracy"] == best.data.metrics["test_accuracy"]
    assert run.data.tags["weights_hash"] == best.data.tags["weights_hash"]
    assert run.data.tags["signature"] == best.data.tags["signature"]


def npz(path: Path, seed: int) -> None:
    """A user's own data: two classes of bright and dark 6x5 images, plus noise."""
    draw = np.random.default_rng(seed)
    arrays = {}
    for role, size in (("train", 300), ("test", 100)):
        labels = draw.integers(0, 2, size)
        arrays[f"y_{role}"] = labels
        arrays[f"x_{role}"] = (90 * labels[:, None, None] + draw.integers(0, 150, (size, 6, 5))).astype(np.uint8)
    np.savez(path, **arrays)


def test_a_rerun_on_changed_data_names_the_data(folder: Folder) -> None:
    """data=npz trains on the user's arrays and logs them; a rerun on other arrays names the data as what differs."""
    npz(folder.path / "mine.npz", seed=1)
    own = ("data=npz", "data.root=mine.npz", "data.validation_size=50", "trainer.epochs=3", "trainer.batch_size=25")

    trained = folder.run("train", *own)
    npz(folder.path / "mine.npz", seed=2)
    [run] = folder.runs("", "npz")
    differs = folder.run("rerun", f"run={run.info.run_id}", "study.name=npz", expect=1)

    assert float(accuracies(trained.stdout)["test"]) > 0.9
    assert run.info.run_id in trained.stderr
    assert run.data.params["data"] == "npz"
    [given] = run.inputs.dataset_inputs
    assert given.dataset.digest == run.data.tags["data_fingerprint"]
    assert "not bit-identical" in differs.stdout
    assert f"differs: data: was {run.data.tags['data_fingerprint']}, is " in differs.stdout
    assert differs.stdout.count("differs: ") == 1
    [again] = folder.runs("tags.kind = 'rerun'", "npz")
    assert again.data.tags["rerun_of"] == run.info.run_id


def test_doctor_passes_in_an_empty_folder(folder: Folder) -> None:
    """In an empty folder every check passes, and none leaves a database behind."""
    done = folder.run("doctor", "data=digits")

    assert "FAIL" not in done.stdout
    assert done.stdout.count("  ok  ") == 5
    assert "CPU" in done.stdout or "GPU:0" in done.stdout
    assert list(folder.path.iterdir()) == []


def test_doctor_names_what_is_wrong(folder: Folder) -> None:
    """A damaged file, a file that is no database and servers that do not answer are each named; the rest is checked."""
    (folder.path / "optuna.db").write_text("not a database")
    (folder.path / "mine.npz").write_bytes(b"PK and no more")
    wrong = ("tracking.uri=http://127.0.0.1:1", "data=npz", "data.root=mine.npz")
    no_ray = ("executor=ray", "executor.address=127.0.0.1:1")

    done = folder.run("doctor", *wrong, *no_ray, expect=1)

    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("  FAIL")]
    assert {"data", "study.storage", "tracking.uri"} <= set(failed)
    assert "executor.address=127.0.0.1:1" in done.stdout
    assert done.stdout.count("  ok  ") + len(failed) == 5
    assert "Traceback" not in done.stderr


# --------------------------------------------------------------- no network, no MNIST, and Ctrl-C in mid-sweep


PLANT = ROOT / "tests" / "faults" / "plant"  # has workers wait at a gate: see its sitecustomize.py


@pytest.fixture
def offline(tmp_path: Path) -> Folder:
    """A machine with no MNIST, whose mirrors (through a --config-dir of the user's) don't answer.

    Trial 1 waits in its second epoch until there is a file of its seed's name in the home folder.
    """
    for name in ("work", "home", "conf/data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "conf" / "data" / "offline.yaml").write_text(
        "defaults: [auto, _self_]\nmirrors: ['http://127.0.0.1:1/mnist/']\ntimeout: 1.0\n"
    )
    home = str(tmp_path / "home")
    gate = {"MNISTEXP_PLANT": f"wait@epoch2#{trial_seed(0, 1)}", "MNISTEXP_PLANT_GATES": home}
    workers = {"PYTHONPATH": f"{PLANT}:{ROOT}", "MNISTEXP_SCRIPTED": "1", **gate}
    return Folder(tmp_path / "work", {"HOME": home, "XDG_CACHE_HOME": home, **workers})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="interrupts a process group")
def test_no_mnist_and_then_ctrl_c(offline: Folder) -> None:
    """Without MNIST the sweep is one of digits and says so; Ctrl-C ends it cleanly; it goes on up to a new total."""
    words = ("--config-dir", "../conf", "data=offline", *SPACE, "study/pruner=none", "trainer.epochs=20")
    sweep = ("sweep", *words, "executor.workers=2", "model.hidden_units=[200]")

    first, out, err, workers = _interrupted_in_trial_1(offline, offline.start(*sweep, "study.trials=4"))

    interrupted = {trial.number: trial for trial in offline.trials("digits")}
    done = [number for number, trial in interrupted.items() if trial.state.name == "COMPLETE"]
    killed = offline.runs("attributes.status = 'KILLED' and tags.kind = 'trial'", "digits")
    curves = {int(run.data.tags["trial"]): run.data.metrics.get("epochs", 0) for run in killed}
    assert "Traceback" not in err
    assert "THIS IS NOT MNIST" in err
    assert "Why: no MNIST here: " in err
    assert "study digits: 0 of 4" in err
    assert first.startswith("  1/4  ")
    assert len(workers) == 2
    assert not any(worker.is_running() for worker in workers)
    assert {trial.state.name for trial in interrupted.values()} == {"COMPLETE", "WAITING"}
    assert interrupted[1].state.name == "WAITING"
    assert 1 <= curves[1] < 20
    assert len(curves) == len(killed)
    assert not set(curves) & set(done)  # and one that no worker had begun yet has no run: there is nothing to see
    assert not offline.runs("attributes.status = 'RUNNING'", "digits")

    out = offline.run(*sweep, "study.trials=5").stdout

    trials = offline.trials("digits")
    runs = offline.runs("tags.kind = 'trial' and attributes.status = 'FINISHED'", "digits")
    assert "5 complete, 0 pruned, 0 failed" in out
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5
    for number, before in interrupted.items():
        assert trials[number].params == before.params
        assert trials[number].user_attrs["mnistexp"] == before.user_attrs["mnistexp"]
    values = {int(run.data.tags["trial"]): run.data.metrics["val_accuracy"] for run in runs}
    assert len(runs) == 5
    assert values == {trial.number: trial.value for trial in trials}
    assert {run.data.params["data"] for run in runs} == {"digits"}
    assert all("data=digits" in run.data.tags["mnistexp.overrides"] for run in runs)


def _interrupted_in_trial_1(
    offline: Folder, process: subprocess.Popen[str]
) -> tuple[str, str, str, list[psutil.Process]]:
    """Press Ctrl-C in mid-trial: the first line, the rest, what went to stderr, and the workers there were."""

    def begun() -> bool:
        return 1 in offline.trials("digits")[1].intermediate_values

    assert process.stdout is not None
    first = process.stdout.readline()
    wait_until(begun, 240, "trial 1's first epoch")
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if "mnistexp.training.worker" in child.cmdline()]
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it as well
    (Path(offline.environment["HOME"]) / str(trial_seed(0, 1))).touch()
    out, err = process.communicate(timeout=180)
    assert process.returncode == 130, out + err
    return first, out, err, workers
