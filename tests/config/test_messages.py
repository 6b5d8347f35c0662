"""One test per mistake of a user: the command line, in an empty folder, and its error message."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from command_line import mistake, mistake_here, run

SPARSE = "search=none optimizer.learning_rate=0.1"
INFINITE = f"sweep {SPARSE} model.dropout=interval(0,0.5)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty working folder."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.parametrize(
    ("arguments", "start", "words"),
    [
        ("train optimizer=adamm", "optimizer=adamm: must be one of adam, adamw, lion", "did you mean adam?"),
        ("train optimizer.learnig_rate=1", "optimizer.learnig_rate=1: ", "did you mean optimizer.learning_rate?"),
        ("train model.activation=choice(relu,tanh)", "model.activation: train takes one value", "the command sweep"),
        ("rerun model.dropout=0.1", "model.dropout: rerun takes a recorded config as it is", "the command train"),
        ("best optimizer=sgd,adam", "optimizer: best takes one value", "the command sweep"),
        ("best run=3", "run=3: ", "the config has no run"),
        ("train --config-dir nowhere", "--config-dir {folder}/nowhere: no such folder", "such as optimizer/"),
        ("train data=npz data.root=mine.npz", "data.root=mine.npz", "give data.root=FILE.npz"),
        ("train data=digits data.root=x", "data=digits", "leave data.root=x out"),
        ("train data=digits trainer.batch_size=2000", "trainer.batch_size=2000: must be at most 1137", "=100"),
        ("train trainer.device=gpu data=digits", "trainer.device=gpu: ", "give trainer.device=cpu or auto"),
        ("rerun data=mnist tracking.uri=http://127.0.0.1:9", "tracking.uri=http://127.0.0.1:9: ", "`mlflow server`"),
        ("rerun data=mnist tracking.uri=mlruns", "tracking.uri=mlruns: ", "give sqlite:///FILE.db"),
        ("rerun data=mnist run=abc", "{folder}/mlflow.db: ", "run `python -m mnistexp sweep` first"),
        ("best data=mnist", "{folder}/optuna.db: ", "run `python -m mnistexp sweep` here first"),
        ("best study.storage=optuna.db", "study.storage=optuna.db: must be like sqlite:///FILE.db", "postgresql://"),
        ("best study.storage=sqlite:///no/such/x.db", "{folder}/no/such: no such folder", "study.storage=sqlite:///"),
        (f"{INFINITE} study.storage=sqlite:///mlflow.db", "study.storage=sqlite:///mlflow.db: ", "sqlite:///optuna.db"),
        (f"sweep {SPARSE}", "there is nothing to search", "add a distribution"),
    ],
)
def test_a_mistake_is_one_sentence(folder: Path, arguments: str, start: str, words: str) -> None:
    """The sentence has what was given, what is allowed and what to type, and the folder stays empty."""
    (found,) = mistake_here(folder, *arguments.split())

    assert found.startswith(start.replace("{folder}", str(folder)))
    assert words in found
    assert list(folder.iterdir()) == []


def test_several_mistakes_are_one_message(folder: Path) -> None:
    """Each fault is one line on standard error, and the exit code is 2."""
    found = mistake(folder, "train", "trainer.epochs=-5", "model.activation=rleu", "seed=x", "+a=1")

    keys = [sentence.partition(":")[0] for sentence in found]
    assert keys == ["+a=1", "seed=x", "model.activation=rleu", "trainer.epochs=-5"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], "invalid choice: 'trian' (choose from 'train', 'sweep', 'best'"),
        ([], "the following arguments are required: COMMAND"),
        (["train", "--epochs", "5"], "unrecognized arguments: --epochs"),
    ],
)
def test_an_unknown_command_gets_the_usage(folder: Path, arguments: list[str], words: str) -> None:
    """Below the usage, an unknown word is named with the allowed ones."""
    done = run(folder, *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: mnistexp ")
    assert words in done.stderr


# ------------------------------------------------------------------------------------ damaged or foreign databases


@pytest.mark.parametrize("content", [b"hello\n", b"SQLite format 3\0" + b"garbage " * 100])
@pytest.mark.parametrize(
    ("command", "name", "setting"),
    [("best", "optuna.db", "study.storage"), ("rerun", "mlflow.db", "tracking.uri")],
)
def test_a_file_that_is_not_a_database(folder: Path, command: str, name: str, setting: str, content: bytes) -> None:
    """A text file or a damaged database is not changed, and the message says what to do."""
    (folder / name).write_bytes(content)

    (found,) = mistake_here(folder, command, "data=mnist")

    assert found.startswith(f"{folder / name}: is ")
    assert f"give {setting}=sqlite:///FILE.db" in found
    assert (folder / name).read_bytes() == content


@pytest.mark.parametrize(("name", "words"), [("narrow", "there are wide"), ("wide", "no trial of it completed")])
def test_a_study_without_a_best_trial(folder: Path, name: str, words: str) -> None:
    """For an unknown study the existing ones are listed; for an empty one the message says how to fill it."""
    study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db", study_name="wide")
    study.set_user_attr("fingerprint", {})

    (found,) = mistake_here(folder, "best", f"study.name={name}")

    assert found.startswith(f"study.name={name}: ")
    assert words in found


def test_a_run_that_is_not_logged(folder: Path) -> None:
    """A wrong run=ID says where the ids are."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{folder}/mlflow.db").create_experiment("mnist")

    (found,) = mistake_here(folder, "rerun", "data=mnist", "run=0123456789abcdef")

    assert found.startswith("run=0123456789abcdef: ")
    assert "`python -m mnistexp ui`" in found


# ---------------------------------------------------------------------------------------- folders and permissions

permissions = pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root may do everything")


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may read."""
    (tmp_path / "closed").mkdir(mode=0)
    yield tmp_path / "closed"
    (tmp_path / "closed").chmod(0o755)


@permissions
@pytest.mark.parametrize(
    ("command", "path"),
    [
        ("best study.storage=sqlite:///{}/optuna.db", "{}"),
        ("train --config-dir {}/mine", "{}/mine"),
        ("sweep data=mnist data.root={}/mnist", "{}/mnist/train-images-idx3-ubyte.gz"),
    ],
)
def test_a_folder_that_may_not_be_read(command: str, path: str, folder: Path, closed: Path) -> None:
    """Every command names the path without a traceback."""
    (found,) = mistake(folder, *command.format(closed).split(), as_user=os.geteuid() == 0)

    assert found.startswith(f"{path.format(closed)}: ")


@permissions
def test_a_folder_that_may_not_be_written(folder: Path) -> None:
    """A read-only working folder is refused before anything is trained."""
    folder.chmod(0o555)
    try:
        (found,) = mistake(folder, *INFINITE.split(), "data=digits", as_user=os.geteuid() == 0)
    finally:
        folder.chmod(0o755)

    assert found.startswith(f"{folder}: ")


@pytest.mark.parametrize(
    "command",
    ["train data=mnist data.root={}", "best study.storage=sqlite:///{}", "train --config-dir {}"],
)
def test_a_name_that_is_too_long_for_the_file_system(command: str, folder: Path) -> None:
    """A path of 300 letters is one fault of every command."""
    (found,) = mistake_here(folder, *command.format("x" * 300).split())

    assert "x" * 300 in found
