"""From a study to a served champion through the command line: digits, real workers, real MLflow."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from confirms import make_study
from conftest import Folder
from PIL import Image

from mnistexp.config.compose import compose, parse_request
from mnistexp.data import dataset as data
from mnistexp.data.dataset import Dataset
from mnistexp.study.database import open_for_sweep

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Confirmed:
    """A folder with a confirmed study, and what the command printed."""

    folder: Folder
    printed: str

    def client(self) -> Any:
        """MLflow, as another program sees it."""
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.folder.path / 'mlflow.db'}")

    def champion(self) -> Any:
        """The version that has the alias."""
        return self.client().get_model_version_by_alias("digits", "champion")


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Confirmed:
    """A study with scripted scores, and two of its configs confirmed by real trainings."""
    folder = Folder(tmp_path_factory.mktemp("champion"))
    database = open_for_sweep(f"sqlite:///{folder.path / 'optuna.db'}")
    make_study(database, 2, "optimizer.learning_rate=interval(0.2, 0.5)", "model.hidden_units=[32]")
    database.close()
    done = folder.run("confirm", "-q", "top=2", "seeds=2", "data=digits", "executor.workers=1")
    return Confirmed(folder, " ".join(done.stdout.split()))  # sentences are broken into lines


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """The data set of the study."""
    return data.load(compose(parse_request(["data=digits"])).data)


def test_a_confirmation_is_printed_and_logged(confirmed: Confirmed) -> None:
    """Four runs without and one with the test split, bit-identical, under one closed parent; it is the champion."""
    runs = confirmed.folder.runs("tags.confirms = 'digits'", "digits")
    (parent,) = [run for run in runs if run.data.tags["kind"] == "sweep"]
    tested = [run for run in runs if "test_accuracy" in run.data.metrics and run is not parent]

    assert len(runs) == 6
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs} == {parent.info.run_id, None}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [run.info.run_id for run in tested] == [confirmed.champion().run_id]
    assert f"test accuracy {tested[0].data.metrics['test_accuracy']:.4f}" in confirmed.printed
    assert "the same weights" in confirmed.printed
    assert "Version 1 of digits is the champion now" in parent.data.tags["mlflow.note.content"]


def test_the_model_holds_no_pickle(confirmed: Confirmed) -> None:
    """Its files are text, or Keras's archive of text and HDF5; what it needs is pinned."""
    found = confirmed.client().get_logged_model(confirmed.champion().source.removeprefix("models:/"))
    root = confirmed.folder.path / found.artifact_location.removeprefix("file://")

    files = {path.name: path for path in root.rglob("*") if path.is_file()}
    requirements = files["requirements.txt"].read_text()

    assert {path.suffix for path in files.values()} <= {"", ".json", ".yaml", ".txt", ".keras"}
    with zipfile.ZipFile(files["model.keras"]) as archive:
        assert {Path(name).suffix for name in archive.namelist()} == {".json", ".h5"}
    assert not any(path.read_bytes().startswith(b"\x80") for path in files.values())
    assert {line.partition("==")[0] for line in requirements.split()} == {"mlflow", "keras", "tensorflow", "numpy"}


@contextmanager
def served(folder: Folder, model: str) -> Iterator[str]:
    """`mlflow models serve`, as the README types it, in an activated environment. Gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["models", "serve", "-m", model, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    environment = {
        **folder.variables(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder.path / 'mlflow.db'}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    }
    log = (folder.path / "serve.log").open("w")
    command = [sys.executable, "-m", "mlflow", *words]
    with (
        log,
        subprocess.Popen(
            command, cwd=folder.path, env=environment, stdout=log, stderr=log, start_new_session=True
        ) as server,
    ):
        try:
            wait_for(f"http://127.0.0.1:{port}/ping", server)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers."""
    for _ in range(240):
        assert server.poll() is None, "the server ended; see serve.log"
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"no answer at {address}")


def post(address: str, images: list[list[float]]) -> npt.NDArray[np.float64]:
    """Post images to a served model. Returns: probabilities [N, classes]."""
    body = json.dumps({"inputs": images}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.array(json.loads(answer.read())["predictions"])


def test_the_served_champion_answers_as_its_worker_did(confirmed: Confirmed, dataset: Dataset) -> None:
    """Posted the validation images, it is right about just those that the tested run's worker was right about."""
    tested = confirmed.client().get_run(confirmed.champion().run_id)
    packed = np.frombuffer(base64.b64decode(tested.data.tags["mnistexp.validation_correct"]), np.uint8)
    hits = np.unpackbits(packed)[: len(dataset.validation.labels)].astype(bool)

    with served(confirmed.folder, "models:/digits@champion") as address:
        probabilities = post(address, (dataset.validation.images * dataset.scale).tolist())

    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(axis=1) == dataset.validation.labels, hits)


def test_predict_uses_the_champion(confirmed: Confirmed, dataset: Dataset) -> None:
    """Validation images, drawn large, are mostly read right; bad files are reported beside; the version is named."""
    images = (255 - dataset.validation.images[:20] * (255 * dataset.scale)).astype(np.uint8).reshape(-1, 8, 8)
    for number, image in enumerate(images):
        large = np.pad(np.kron(image, np.ones((20, 20), np.uint8)), 40, constant_values=255)
        Image.fromarray(large).save(confirmed.folder.path / f"{number}.png")
    Image.new("L", (90, 90), 255).save(confirmed.folder.path / "blank.png")

    files = [f"{number}.png" for number in range(20)]
    done = confirmed.folder.run("predict", *files, "blank.png", "none.png", expect=2)

    answers = [int(line.split()[1]) for line in done.stdout.splitlines()]
    assert done.stderr.startswith("network: the champion for digits, version 1, run ")
    assert [line.split(":")[0] for line in done.stderr.splitlines()[-2:]] == ["  blank.png", "  none.png"]
    assert np.mean(answers == dataset.validation.labels[:20]) >= 0.7


def test_a_training_keeps_its_weights_for_predict(confirmed: Confirmed) -> None:
    """`predict run=ID` takes the network of `train tracking.save_weights=true`."""
    Image.fromarray(np.pad(np.zeros((60, 8), np.uint8), 30, constant_values=255)).save(
        confirmed.folder.path / "one.png"
    )
    words = ("data=digits", "trainer.epochs=3", "model.hidden_units=[32]", "tracking.save_weights=true")
    run_id = confirmed.folder.run("train", *words).stderr.split()[-1]

    done = confirmed.folder.run("predict", f"run={run_id}", "one.png")

    assert done.stderr.startswith(f"network: run {run_id} ")
    assert done.stdout.startswith("one.png  ")
