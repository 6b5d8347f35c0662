from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import yaml

import mnistexp
from mnistexp import cli
from mnistexp.commands.args import split_args
from mnistexp.config.compose import compose, parse_request
from mnistexp.config.option_files import config_groups
from mnistexp.config.schema import Config
from mnistexp.errors import ConfigError, TrainingError

HEAVY = ("tensorflow", "keras", "mlflow", "optuna", "sqlalchemy", "sklearn", "pandas", "matplotlib", "torch")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mnistexp.__file__).parent.parent)}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that runs some code."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=180, check=False)


# -------------------------------------------------------------------------------------------------- help


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    """Every command is there with its summary."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])

    text = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    assert all(f"{name} {about.summary}" in text for name, about in cli.COMMANDS.items())


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_a_commands_help_has_groups_and_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each group is a line with all of its options."""
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {f"{group} {', '.join(options)}" for group, options in config_groups().items()} <= set(lines)
    assert cli.example(command) in lines


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_an_example_is_a_command_that_composes(command: str) -> None:
    """What help tells to type passes every check of the config."""
    about = cli.COMMANDS[command]
    words = [word for word in shlex.split(about.example) if not word.startswith("-")]
    _, words = split_args(words, about.keys, bool(about.names))

    assert isinstance(compose(parse_request(words)), Config)


# ------------------------------------------------------------------------------------------------ --cfg job


def test_cfg_job_prints_the_composed_config(capsys: pytest.CaptureFixture[str]) -> None:
    """It is YAML, and what the same words compose; the option may be anywhere among them."""
    words = ["optimizer=adam", "data=digits", "seed=7", "model.hidden_units=[64,32]"]

    code = cli.main(["train", *words[:2], "--cfg", "job", *words[2:]])

    printed = yaml.safe_load(capsys.readouterr().out)
    assert code == 0
    assert Config.model_validate(printed) == compose(parse_request(words))


def test_cfg_job_composes_back_as_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Saved as an experiment of one's own, the printed config composes to the same config, floats to the last bit."""
    words = [
        "data=digits",
        "seed=7",
        "model.dropout=0.012345678901234567",
        "search=none",
        "study/pruner=none",
    ]
    cli.main(["sweep", *words, "--cfg", "job"])
    saved = tmp_path / "experiments/mine/saved.yaml"
    saved.parent.mkdir(parents=True)
    saved.write_text(
        "# @package _global_\ndefaults:\n  - override /data: digits\n  - override /search: none\n"
        + capsys.readouterr().out
    )

    again = compose(parse_request(["experiments=mine/saved"], tmp_path))

    assert again == compose(parse_request(words))


# --------------------------------------------------------------------------------------------- what is imported

WATCHED = f"""
import json, sys
from mnistexp.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as ended:
    code = ended.code
found = sorted({{name.partition('.')[0] for name in sys.modules}} & set({HEAVY!r}))
print(json.dumps([code, found]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train", "--help"], 0),
        (["sweep", "--cfg", "job", "optimizer=adam"], 0),
        (["rerun", "model.activation=rleu"], 2),
    ],
)
def test_a_quick_answer_imports_no_heavy_library(arguments: list[str], code: int) -> None:
    """Help, --cfg job and config errors come without TensorFlow, MLflow and Optuna: seconds each."""
    done = python(WATCHED, *arguments)

    assert json.loads(done.stderr.splitlines()[-1]) == [code, []]


def test_the_watch_can_fail() -> None:
    """A command that needs Optuna is seen to import it."""
    done = python(WATCHED, "best", "study.storage=sqlite:////nowhere/x.db", "data=digits")

    assert json.loads(done.stderr.splitlines()[-1])[1] != []


# ----------------------------------------------------------------------------------------------- exit codes


def test_the_console_script_is_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    """What pyproject.toml installs as `mnistexp` answers exactly as `python -m mnistexp` does."""
    script = EntryPoint("mnistexp", "mnistexp.__main__:main", "console_scripts")
    words = ["train", "trainer.epochs=0", "seed=x"]

    code = script.load()(words)

    module = subprocess.run(
        [sys.executable, "-m", "mnistexp", *words], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (code, *capsys.readouterr()) == (module.returncode, module.stdout, module.stderr)
    pyproject = Path(mnistexp.__file__).parent.parent / "pyproject.toml"
    if pyproject.exists():  # not beside an installed wheel
        assert f'mnistexp = "{script.value}"' in pyproject.read_text()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ConfigError("a: b"), 2, "mnistexp: a: b\n"),
        (ConfigError("a: b", "c: d"), 2, "mnistexp: 2 faults:\n  a: b\n  c: d\n"),
        (TrainingError("loss is NaN"), 1, "mnistexp: loss is NaN\n"),
        (KeyboardInterrupt(), 130, "mnistexp: interrupted; the running training is not logged\n"),
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "xx"),
            2,
            "mnistexp: xx: File name too long; give another path, or permission to use this one\n",
        ),
    ],
)
def test_each_error_is_one_message_and_one_code(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the user can mend ends with 2, a failed training with 1, Ctrl-C with 130; none with a traceback."""

    def fail(arguments: object) -> int:
        raise error

    monkeypatch.setattr(cli, "_run", fail)

    assert cli.main(["train"]) == code
    assert capsys.readouterr().err == words


def test_a_bug_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no MnistexpError comes with its traceback: a bug report needs it."""
    monkeypatch.setattr(cli, "_run", lambda _: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


def test_a_closed_pipe_ends_quietly() -> None:
    """`mnistexp train --cfg job | head -1` prints one line and no complaint."""
    command = f"{sys.executable} -m mnistexp train --cfg job | head -n 1"

    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, check=False)

    assert done.stdout == "seed: 0\n"
    assert done.stderr == ""


# -------------------------------------------------------------------------------------------- tab completion


def completions(line: str, tmp_path: Path) -> list[str]:
    """What argcomplete, asked as bash asks it, offers at the end of a line."""
    answer = tmp_path / "answer"
    environment = {
        **ENVIRONMENT,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:",  # bash's own: `=` and `:` break words
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    subprocess.run([sys.executable, "-m", "mnistexp"], env=environment, cwd=tmp_path, capture_output=True, check=False)
    return [word.strip() for word in answer.read_text().split("\n") if word.strip()]


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mnistexp ", list(cli.COMMANDS)),
        ("mnistexp sw", ["sweep"]),
        ("mnistexp train optimizer=ad", ["adam", "adamw"]),
        ("mnistexp train study/sampler=", ["cmaes", "gp", "grid", "qmc", "random", "tpe"]),
        ("mnistexp train experiments=blog_2017/b", ["blog_2017/baseline"]),
        ("mnistexp train seed=1 trainer.ep", ["trainer.epochs="]),
        ("mnistexp sweep study/", ["study/pruner=", "study/sampler="]),
        ("mnistexp sweep --config-dir {own} model=", ["mlp", "tiny"]),
        ("mnistexp train qqq", []),
    ],
)
def test_tab_completes(line: str, offered: list[str], tmp_path: Path) -> None:
    """Commands, groups, options (one's own included) and keys are offered, and nothing that doesn't fit."""
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/tiny.yaml").touch()

    found = completions(line.replace("{own}", str(tmp_path / "own")), tmp_path)

    assert sorted(found) == sorted(offered)
