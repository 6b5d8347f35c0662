"""One test per user mistake: the real command line, in a folder of its own, and what it says."""

from __future__ import annotations

import ctypes
import gzip
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import optuna
import pytest

import mnistexp
from mnistexp.cli import main
from mnistexp.config.option_files import config_groups

TRAIN_IMAGES, TRAIN_LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
EXPERIMENTS = ", ".join(config_groups()["experiments"])
READ = ("MNISTEXP_DATA", "MLFLOW_TRACKING_URI")


def run(folder: Path, *arguments: str, powerless: bool = False) -> subprocess.CompletedProcess[str]:
    """`python -m mnistexp` in a folder, with nothing of the caller's environment that it would read."""
    environment = {key: value for key, value in os.environ.items() if key not in READ}
    environment |= {"PYTHONPATH": str(Path(mnistexp.__file__).parent.parent), "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.run(
        [sys.executable, "-m", "mnistexp", *arguments],
        cwd=folder,
        env=environment,
        preexec_fn=give_up_roots_power if powerless else None,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def give_up_roots_power() -> None:
    """Have the program that is started next obey file permissions, even as root (Linux)."""
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
    for power in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, power)


def mistake(folder: Path, *arguments: str, powerless: bool = False) -> list[str]:
    """The faults that a command line is answered with, by a process of its own."""
    done = run(folder, *arguments, powerless=powerless)

    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    return sentences(done.stderr)


def mistake_here(folder: Path, *arguments: str) -> list[str]:
    """The same, by the same `main` in this process: ten times quicker where no process is under test."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        for name in READ:
            patch.delenv(name, raising=False)
        code = main(arguments)

    assert (code, out.getvalue()) == (2, ""), err.getvalue()
    return sentences(err.getvalue())


def sentences(stderr: str) -> list[str]:
    """The faults in what was written to stderr: one message of clear sentences, and no more."""
    assert "Traceback" not in stderr
    assert stderr.startswith("mnistexp: ")
    first, *others = stderr.removeprefix("mnistexp: ").splitlines()
    if not others:
        return [first]
    assert first == f"{len(others)} faults:"
    assert all(line.startswith("  ") and line[2] != " " for line in others)
    return [line.strip() for line in others]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty working folder."""
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def own(tmp_path: Path, mnist_folder: Path) -> Path:
    """A copy of the real MNIST files, to be damaged."""
    return Path(shutil.copytree(mnist_folder, tmp_path / "own", copy_function=shutil.copyfile))


# --------------------------------------------------------------------------------- words on the command line

SPARSE = ("search=none", "optimizer.learning_rate=0.1")
ACTIVATIONS = "relu, leaky_relu, elu, selu, gelu, silu, softplus, tanh, sigmoid, linear"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train trainer.epochs=-5", "trainer.epochs=-5: must be greater than or equal to 1"),
        ("train model.activation=rleu", f"model.activation=rleu: must be one of {ACTIVATIONS}; did you mean relu?"),
        (
            "train optimizer=adamm",
            "optimizer=adamm: must be one of adam, adamw, lion, momentum, nadam, nesterov, rmsprop, sgd; "
            "did you mean adam?",
        ),
        (
            "train optimizer.learnig_rate=1",
            "optimizer.learnig_rate=1: the config has no optimizer.learnig_rate; optimizer has learning_rate, "
            "momentum, name, nesterov, schedule, warmup_epochs, weight_decay; did you mean optimizer.learning_rate?",
        ),
        (
            "sweep search.model.activation=choice()",
            "search.model.activation=choice(): 'choice()' is not an override (ValueError while evaluating 'choice()': "
            "empty choice is not legal); write choice(a, b), interval(low, high), int(interval(low, high)), "
            "range(start, stop, step) or tag(log, interval(low, high))",
        ),
        (
            "train model.activation=choice(relu,tanh)",
            "model.activation: train takes one value, not a distribution; give a value, or use the command sweep",
        ),
        (
            "train trainer.device=gpu data=mnist data.root={mnist}",
            "trainer.device=gpu: no NVIDIA GPU is visible here; give trainer.device=cpu or auto, "
            "or see `mnistexp doctor`",
        ),
        (
            "rerun data=mnist tracking.uri=http://127.0.0.1:9",
            "tracking.uri=http://127.0.0.1:9: no MLflow server answers there (ConnectionError); start one with "
            "`mlflow server`, or leave tracking.uri out to log to mlflow.db here",
        ),
        ("train data=npz data.root=mine.npz", "data.root=mine.npz is no file: give data.root=FILE.npz."),
        ("best data=mnist", "{folder}/optuna.db: there is no such database; run `python -m mnistexp sweep` here first"),
        ("rerun data=mnist", "{folder}/mlflow.db: no runs are logged here; run `python -m mnistexp sweep` first"),
    ],
)
def test_a_mistake_gets_one_sentence(folder: Path, mnist_folder: Path, arguments: str, sentence: str) -> None:
    """What was given, what is allowed, what to type; and the folder stays as it was."""
    found = mistake(folder, *arguments.replace("{mnist}", str(mnist_folder)).split())

    assert found == [sentence.replace("{folder}", str(folder))]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "train optimizer.name=adam",
            "optimizer.name=adam: write optimizer=adam, which sets the other settings of that option too",
        ),
        ("train experiments=null", f"experiments=null: must be one of {EXPERIMENTS}"),
        (
            "train +model.depth=3",
            "+model.depth=3: the config takes no new, removed or moved keys; write KEY=VALUE with a key it has",
        ),
        ("train hydra.run.dir=x", "hydra.run.dir=x: Hydra's own settings can't be overridden here; leave it out"),
        (
            "train study.name=${oc.env:HOME}",
            "study.name=${oc.env:HOME}: only study.storage, tracking.uri, data.root may use ${resolver:…}; "
            "write the value itself",
        ),
        (
            "train tracking.uri=${oc.env:NOT_SET}",
            "tracking.uri=${oc.env:NOT_SET}: Environment variable 'NOT_SET' not found",
        ),
        (
            "best optimizer=sgd,adam",
            "optimizer: best takes one value, not a distribution; give a value, or use the command sweep",
        ),
        ("best run=3", "run=3: the config has no run"),
        (
            "train --config-dir nowhere",
            "--config-dir {folder}/nowhere: no such folder; give one that holds groups, such as optimizer/",
        ),
        ("train data=npz", "data=npz: needs a file; give data.root=FILE.npz with x_train, y_train, x_test, y_test"),
        (
            "train data.root=nowhere",
            "data.root=nowhere is no folder. Give one with the four files, or leave data.root out.",
        ),
        ("train data=digits data.root=x", "data=digits reads no files: leave data.root=x out."),
        (
            "train data=digits trainer.batch_size=2000",
            "trainer.batch_size=2000: must be at most 1137, the number of training images; "
            "give e.g. trainer.batch_size=100",
        ),
        (
            "rerun data=mnist tracking.uri=mlruns",
            "tracking.uri=mlruns: MLflow's file store is closed; give sqlite:///FILE.db, postgresql://… or http://…",
        ),
        (
            "best study.storage=optuna.db",
            "study.storage=optuna.db: must be like sqlite:///FILE.db, a file on this machine, or "
            "postgresql://USER:PASSWORD@HOST/DATABASE, which several machines can share",
        ),
        (
            "best study.storage=sqlite:///no/such/x.db",
            "{folder}/no/such: no such folder, so x.db can't be made; make it, or give study.storage=sqlite:///FILE.db",
        ),
        (
            "rerun data=mnist run=abc",
            "{folder}/mlflow.db: no runs are logged here; run `python -m mnistexp sweep` first",
        ),
        (
            "sweep {sparse} study/sampler=grid model.dropout=interval(0,0.5)",
            "study/sampler=grid: the space is infinite; give model.dropout as choice() or range(), or one value, or "
            "study.sampler.points=5",
        ),
        (
            "sweep {sparse} model.activation=relu,tanh",
            "study.trials=30: the space has 2 points; give study.trials=2, or widen it",
        ),
        (
            "sweep {sparse} model.dropout=interval(0,0.5) study.storage=sqlite:///mlflow.db",
            "study.storage=sqlite:///mlflow.db: is MLflow's database as well, and the two can't share one; "
            "give another, e.g. study.storage=sqlite:///optuna.db",
        ),
        (
            "sweep {sparse} model.dropout=interval(0,0.5) study/pruner=hyperband trainer.epochs=2",
            "study.pruner.min_epochs=2: must be below trainer.epochs=2, or nothing is ever pruned",
        ),
        (
            "sweep trainer.threads=1,2",
            "search.trainer.threads: can't be searched: a worker's threads are fixed when it starts",
        ),
        (
            "sweep {sparse} trainer.epochs=interval(1,5)",
            "search.trainer.epochs=interval(1,5): trainer.epochs=1.0: must be a whole number; for whole numbers write "
            "int(interval(…)) or range(…)",
        ),
        (
            "sweep {sparse} model.activation=relu",
            "there is nothing to search; add a distribution, e.g. model.activation='choice(relu, tanh)'",
        ),
        pytest.param(
            "sweep {sparse} model.dropout=interval(0,0.5) study/sampler=gp",
            "study/sampler=gp: needs the package torch; pip install 'mnistexp[gp]', or take tpe",
            marks=pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed here"),
        ),
    ],
)
def test_a_further_mistake_gets_one_sentence(folder: Path, arguments: str, sentence: str) -> None:
    """The same of mistakes that a reader may not think of at once."""
    found = mistake_here(folder, *arguments.replace("{sparse}", " ".join(SPARSE)).split())

    assert found == [sentence.replace("{folder}", str(folder))]
    assert list(folder.iterdir()) == []


def test_several_mistakes_are_one_message(folder: Path) -> None:
    """Each is a line of its own, so that they are mended in one go."""
    found = mistake(folder, "train", "trainer.epochs=-5", "model.activation=rleu", "seed=x", "+a=1")

    assert [sentence.partition(":")[0] for sentence in found] == [
        "+a=1",
        "seed=x",
        "model.activation=rleu",
        "trainer.epochs=-5",
    ]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["trian"], ["invalid choice: 'trian' (choose from 'train', 'sweep', 'best'"]),
        ([], ["the following arguments are required: COMMAND"]),
        (["train", "--epochs", "5"], ["unrecognized arguments: --epochs"]),
        (["train", "--cfg", "all"], ["invalid choice: 'all' (choose from 'job')"]),
    ],
)
def test_an_unknown_command_gets_the_usage(folder: Path, arguments: list[str], lines: list[str]) -> None:
    """A word that isn't there is named, with those that are, below one line of usage."""
    done = run(folder, *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: mnistexp ")
    assert all(line in done.stderr for line in lines)


# ---------------------------------------------------------------------------------------------- damaged data


def test_a_truncated_file(folder: Path, own: Path) -> None:
    """A download that broke off is named, with both sizes, and what to do."""
    path = own / TRAIN_IMAGES
    path.write_bytes(path.read_bytes()[:-1000])

    (found,) = mistake_here(folder, "train", "data=mnist", f"data.root={own}")

    assert str(path) in found
    assert "9911422 bytes" in found
    assert "9912422" in found
    assert "give another data.root=FOLDER, or use data=digits" in found


def test_images_and_labels_swapped(folder: Path, own: Path) -> None:
    """Two files under each other's names are not trained on."""
    images, labels = (own / name for name in (TRAIN_IMAGES, TRAIN_LABELS))
    content = images.read_bytes()
    shutil.copyfile(labels, images)
    labels.write_bytes(content)

    (found,) = mistake_here(folder, "train", "data=mnist", f"data.root={own}")

    assert str(images) in found
    assert TRAIN_LABELS in found
    assert "give another data.root=FOLDER, or use data=digits" in found


def test_a_wrong_magic_number(folder: Path, own: Path) -> None:
    """A file of the right name that is something else inside is refused before it is read as images."""
    path = own / TRAIN_IMAGES
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[3] = 9
    path.write_bytes(gzip.compress(bytes(content), compresslevel=1))

    (found,) = mistake_here(folder, "train", "data=mnist", f"data.root={own}")

    assert str(path) in found
    assert "give another data.root=FOLDER, or use data=digits" in found


def test_a_folder_that_lacks_a_file(folder: Path, own: Path) -> None:
    """The missing file is named, and nothing is downloaded into a folder of the user's."""
    (own / TRAIN_LABELS).unlink()

    found = mistake_here(folder, "train", f"data.root={own}")

    assert found == [
        f"data.root={own} lacks {TRAIN_LABELS}. Put them there, or leave data.root out to have them downloaded."
    ]


def test_arrays_of_different_lengths(folder: Path) -> None:
    """An .npz with fewer labels than images is no data set."""
    images, labels = np.zeros((8, 2, 2), np.uint8), np.array([0, 1] * 4)
    np.savez(folder / "mine.npz", x_train=images, y_train=labels[:7], x_test=images, y_test=labels)

    found = mistake_here(folder, "train", "data=npz", "data.root=mine.npz")

    assert found == ["mine.npz: y_train has the shape (7,); allowed is (8,): one class per image."]


# -------------------------------------------------------------------------------------- damaged or foreign stores


@pytest.mark.parametrize(
    ("command", "name", "setting"),
    [("best", "optuna.db", "study.storage"), ("rerun", "mlflow.db", "tracking.uri")],
)
def test_a_text_file_for_a_database(folder: Path, command: str, name: str, setting: str) -> None:
    """Something else under a database's name is left alone, and said so."""
    (folder / name).write_text("hello\n")

    found = mistake_here(folder, command, "data=mnist")

    assert found == [f"{folder / name}: is not an SQLite database; move it away, or give {setting}=sqlite:///FILE.db"]
    assert (folder / name).read_text() == "hello\n"


def test_a_damaged_database(folder: Path) -> None:
    """A file that only begins like a database is told in one sentence too."""
    (folder / "optuna.db").write_bytes(b"SQLite format 3\0" + b"garbage " * 100)

    (found,) = mistake_here(folder, "best")

    assert found.startswith(f"{folder}/optuna.db: is damaged (")
    assert found.endswith("restore it from a copy, or move it away, or give study.storage=sqlite:///FILE.db")


@pytest.fixture
def studied(folder: Path) -> Path:
    """A folder with a study `wide` that has no trial yet."""
    study = optuna.create_study(storage=f"sqlite:///{folder}/optuna.db", study_name="wide")
    study.set_user_attr("fingerprint", {})
    return folder


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "narrow",
            "study.name=narrow: no such study here; there are wide; run `python -m mnistexp sweep` to make one",
        ),
        ("wide", "study.name=wide: no trial of it completed; run `python -m mnistexp sweep study.name=wide`"),
    ],
)
def test_a_study_that_has_no_best(studied: Path, name: str, sentence: str) -> None:
    """A misspelt study is answered with those that are there, an empty one with how to fill it."""
    assert mistake_here(studied, "best", f"study.name={name}") == [sentence]


def test_a_run_that_is_not_logged(folder: Path) -> None:
    """A wrong run=ID says where the ids are."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{folder}/mlflow.db").create_experiment("mnist")

    found = mistake_here(folder, "rerun", "data=mnist", "run=0123456789abcdef")

    assert found == ["run=0123456789abcdef: MLflow has no such run; `python -m mnistexp ui` shows the ids"]


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that may not be looked into, by root without its power neither."""
    (tmp_path / "closed").mkdir(mode=0)
    yield tmp_path / "closed"
    (tmp_path / "closed").chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root may look everywhere")
@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (
            "best study.storage=sqlite:///{}/optuna.db",
            "{}/optuna.db: may not be read; work in a folder of your own, or ",
        ),
        ("predict {}/three.png", "{}/three.png: may not be read"),
        ("train --config-dir {}/mine", "{}/mine: Permission denied; give another path, or permission to use this one"),
        ("sweep data=mnist data.root={}/mnist", "{}/mnist/train-images-idx3-ubyte.gz: may not be read; give another "),
    ],
)
def test_a_folder_that_cannot_be_looked_into(command: str, sentence: str, folder: Path, closed: Path) -> None:
    """Somebody else's folder is told in a sentence, whatever it was named for."""
    [found] = mistake(folder, *command.format(closed).split(), powerless=os.geteuid() == 0)

    assert found.startswith(sentence.format(closed))


@pytest.mark.parametrize(
    "command",
    ["train data=mnist data.root={}", "best study.storage=sqlite:///{}", "train --config-dir {}", "predict {}.png"],
)
def test_a_name_that_no_file_system_takes(command: str, folder: Path) -> None:
    """A path of 300 letters is told in a sentence, whatever it was given for."""
    [found] = mistake(folder, *command.format("x" * 300).split())

    assert "x" * 300 in found


@pytest.fixture
def read_only(folder: Path) -> Iterator[Path]:
    """A working folder that may be read and not written to, also by root without its power."""
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to(read_only: Path) -> None:
    """A read-only working folder is told before anything is trained, with what to give instead."""
    found = mistake(
        read_only, "sweep", "data=mnist", *SPARSE, "model.dropout=interval(0,0.5)", powerless=os.geteuid() == 0
    )

    assert found == [
        f"{read_only}: can't be written to; work in a folder of your own, or give study.storage=sqlite:///FILE.db"
    ]
