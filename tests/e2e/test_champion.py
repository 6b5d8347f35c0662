"""From a sweep to a served champion through the command line, nothing faked: digits, real workers, real MLflow."""

from __future__ import annotations

import base64
import json
import os
import re
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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Folder
from PIL import Image

from mnistexp.config.compose import compose, parse_request
from mnistexp.data import dataset as data
from mnistexp.data.dataset import Dataset

pytestmark = pytest.mark.slow

DIGITS = ("data=digits", "search=none", "optimizer=sgd", "model.hidden_units=[32]", "study/pruner=none")
SHORT = ("trainer.epochs=3", "executor.workers=1")


def sweep(folder: Folder, study: str, rates: str) -> None:
    """A study of four learning rates."""
    words = (*DIGITS, *SHORT, f"study.name={study}", "study.trials=4", f"optimizer.learning_rate={rates}")
    folder.run("sweep", "-q", *words)


def confirm(folder: Folder, study: str) -> str:
    """Confirm its two best. Returns: what was said."""
    said = folder.run("confirm", "-q", "top=2", "seeds=5", f"study.name={study}", "executor.workers=1").stdout
    return " ".join(said.split())  # sentences are broken into lines


@pytest.fixture(scope="module")
def champions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Folder, list[str]]:
    """A poor study that is confirmed, a good one, and the poor one once more; and what each said."""
    folder = Folder(tmp_path_factory.mktemp("champion"))
    sweep(folder, "poor", "interval(0.0001, 0.0002)")
    sweep(folder, "good", "interval(0.2, 0.5)")
    return folder, [confirm(folder, study) for study in ("poor", "good", "poor")]


def client(folder: Folder) -> Any:
    """MLflow, as somebody else sees it."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder.path / 'mlflow.db'}")


def the_champion(folder: Folder) -> Any:
    """The version that has the alias."""
    return client(folder).get_model_version_by_alias("digits", "champion")


def test_the_better_study_takes_the_alias(champions: tuple[Folder, list[str]]) -> None:
    """The first is champion, the better one takes the alias, and the first, typed again, doesn't take it back."""
    folder, (first, second, third) = champions

    assert "Version 1 of digits is the champion now; there was none." in first
    assert re.search(r"Version 2 of digits is the champion now; it is better than version 1 by \+0\.\d+ \(", second)
    assert third == f"{first} Since then, version 2 has become the champion."
    assert the_champion(folder).tags["study"] == "good"


def test_a_confirmation_is_told_and_kept(champions: tuple[Folder, list[str]]) -> None:
    """Ten sealed runs and a tested one under one closed parent, bit-identical, with the interval of the one look."""
    folder, said = champions

    runs = folder.runs("tags.confirms = 'good'", "good")
    parents = [run for run in runs if run.data.tags["kind"] == "sweep"]
    tested = [run for run in runs if run.data.tags.get("final") == "true"]
    sealed = [run for run in runs if run not in [*parents, *tested]]
    assert (len(parents), len(tested), len(sealed)) == (1, 1, 10)
    assert {run.data.tags["mlflow.parentRunId"] for run in [*tested, *sealed]} == {parents[0].info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert not any("test_accuracy" in run.data.metrics for run in sealed)
    assert f"test accuracy {tested[0].data.metrics['test_accuracy']:.4f}" in said[1]
    assert "the same weights as the run above" in said[1]
    assert parents[0].info.run_name == "confirm good"
    assert "is the champion now" in parents[0].data.tags["mlflow.note.content"]


def test_the_model_holds_no_pickle(champions: tuple[Folder, list[str]]) -> None:
    """Its files are text, or Keras's archive of text and HDF5; what it needs is pinned, and what goes in is said."""
    folder, _ = champions
    found = client(folder).get_logged_model(the_champion(folder).source.removeprefix("models:/"))

    root = Path(found.artifact_location.removeprefix("file://"))
    root = root if root.is_absolute() else folder.path / root
    files = {path.name: path for path in root.rglob("*") if path.is_file()}
    requirements = files["requirements.txt"].read_text()

    assert {path.suffix for path in files.values()} <= {"", ".json", ".yaml", ".txt", ".keras"}
    with zipfile.ZipFile(files["model.keras"]) as archive:
        assert {Path(name).suffix for name in archive.namelist()} == {".json", ".h5"}
    assert not any(path.read_bytes().startswith(b"\x80") for path in files.values())
    assert {line.partition("==")[0] for line in requirements.split()} == {"mlflow", "keras", "tensorflow", "numpy"}
    assert "float32 [N, 64]: images [8, 8], flattened row by row, in [0, 1]" in files["MLmodel"].read_text()


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


def post(address: str, images: list[list[float]]) -> np.ndarray:
    """Post images to a served model. Returns: probabilities [N, classes]."""
    body = json.dumps({"inputs": images}).encode()
    request = urllib.request.Request(f"{address}/invocations", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.array(json.loads(answer.read())["predictions"])


def digits() -> Dataset:
    """The data set that the studies are on."""
    return data.load(compose(parse_request(["data=digits"])).data)


def test_the_served_champion_answers_as_its_worker_did(champions: tuple[Folder, list[str]]) -> None:
    """Posted the validation images, it is right about just those that the tested run's worker was right about."""
    folder, _ = champions
    dataset = digits()
    tested = client(folder).get_run(the_champion(folder).run_id)
    packed = np.frombuffer(base64.b64decode(tested.data.tags["mnistexp.validation_correct"]), np.uint8)
    hits = np.unpackbits(packed)[: len(dataset.validation.labels)].astype(bool)

    with served(folder, "models:/digits@champion") as address:
        probabilities = post(address, (dataset.validation.images * dataset.scale).tolist())

    assert probabilities.shape == (len(dataset.validation.labels), 10)
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert np.array_equal(probabilities.argmax(axis=1) == dataset.validation.labels, hits)


def test_predict_asks_the_champion(champions: tuple[Folder, list[str]]) -> None:
    """Validation images, drawn large and dark on light, are mostly read right; the champion's version is named."""
    folder, _ = champions
    dataset = digits()
    images = (255 - dataset.validation.images[:20] * (255 * dataset.scale)).astype(np.uint8).reshape(-1, 8, 8)
    for number, image in enumerate(images):
        large = np.pad(np.kron(image, np.ones((20, 20), np.uint8)), 40, constant_values=255)
        Image.fromarray(large).save(folder.path / f"{number}.png")

    said = folder.run("predict", *(f"{number}.png" for number in range(20)))

    answers = [int(line.split()[1]) for line in said.stdout.splitlines()]
    assert said.stderr.startswith("network: the champion for digits, version 2, run ")
    assert np.mean(answers == dataset.validation.labels[:20]) >= 0.7
