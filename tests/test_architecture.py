"""The import rules, package by package, and the limits on the length of files and functions."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mnistexp

PACKAGE = Path(mnistexp.__file__).parent
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text(encoding="utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
}

MAY_IMPORT = {  # package or top-level module: the packages and modules of ours that it may import, besides itself
    "errors": "",
    "paths": "",
    "machine": "errors",
    "pictures": "errors",
    "config": "errors",
    "data": "config errors paths",
    "search": "config errors",
    "training": "config data errors machine",
    "workers": "config data errors machine training.messages training.results",
    "storage": "errors paths",
    "tracking": "config data errors machine storage training.results",
    "study": "config data errors search storage tracking training.results workers",
    "analysis": "config data errors machine search study tracking training.results workers",
    "terminal": "analysis config errors study tracking training.results workers",
    "report": "analysis config data errors storage study terminal tracking training.results",
    "commands": "analysis config data errors machine paths pictures report search storage study terminal tracking"
    " training.results workers",
    "cli": "commands config errors",
    "__main__": "cli study.signals",
    "__init__": "",
}
EXACT = {  # modules with a stricter rule than their package
    "config.schema": "errors",
    "training.results": "",
}
HOMES = {  # library: the packages and modules that may import it
    "tensorflow": "training",
    "keras": "training",
    "mlflow": "tracking training.inference",
    "hydra": "config.compose config.overrides search.distributions",
    "optuna": "study search.samplers analysis.history",
    "ray": "workers.ray",
    "matplotlib": "report",
    "rich": "terminal",
    "sqlalchemy": "study.database storage tracking.runs tracking.store",
}
LONGEST_FUNCTION = 40  # lines, docstring included
LONGEST_FILE = 400


def imported(source: str) -> Iterator[str]:
    """Every dotted name that a module imports anywhere; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, allowed: str) -> bool:
    """Whether a dotted name is one of the allowed packages or modules, or lies in one."""
    return any(name == each or name.startswith(f"{each}.") for each in allowed.split())


def violations(module: str, source: str) -> list[str]:
    """The imports of a module that the tables do not allow."""
    package = module.split(".")[0]
    ours = EXACT.get(module, f"{package} {MAY_IMPORT.get(package, '')} __version__")
    names = sorted(set(imported(source)))
    wrong = [
        name for name in names if name.startswith("mnistexp.") and not within(name.removeprefix("mnistexp."), ours)
    ]
    wrong += [name for name in names if (home := HOMES.get(name.split(".")[0])) and not within(module, home)]
    return wrong


def too_long(source: str) -> list[str]:
    """The functions of a module, and the module itself, that exceed the limits."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    found = [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > LONGEST_FUNCTION]
    return found + ["the file"] * (len(source.splitlines()) > LONGEST_FILE)


def loaded(module: str) -> set[str]:
    """Import a module in a fresh interpreter. Returns: the top-level libraries of HOMES that this loaded."""
    code = f"import mnistexp.{module}, sys, json; print(json.dumps(list(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(done.stdout)} & set(HOMES)


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_follows_the_import_rules(module: str) -> None:
    """A package imports only what MAY_IMPORT lists, and each library is imported only in its home."""
    assert violations(module, SOURCES[module]) == []


@pytest.mark.parametrize("module", SOURCES)
def test_files_and_functions_stay_small(module: str) -> None:
    """No function and no file exceeds the limits."""
    assert too_long(SOURCES[module]) == []


def test_core_imports_no_feature() -> None:
    """The table itself keeps the direction: the core never imports a feature."""
    core = ("config", "search", "data", "training", "workers", "storage", "tracking", "study")
    features = {"analysis", "report", "terminal", "pictures", "commands", "cli"}

    assert not any(features & set(MAY_IMPORT[package].split()) for package in core)


def test_commands_load_neither_tensorflow_nor_mlflow() -> None:
    """No command pays for TensorFlow or MLflow on import; a worker loads no database or search library."""
    commands = sorted(name for name in SOURCES if name.startswith("commands.") and not name.endswith("__init__"))

    assert not {"tensorflow", "keras", "mlflow"} & loaded(", mnistexp.".join(commands))
    assert loaded("training.worker") == set()


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("training.trainer", "import optuna", "optuna"),
        ("training.trainer", "from mnistexp.study import sweep", "mnistexp.study.sweep"),
        ("config.schema", "from mnistexp.config import compose", "mnistexp.config.compose"),
        ("study.study", "def f():\n    import tensorflow.keras as k", "tensorflow.keras"),
        ("workers.pool", "from mnistexp.training.trainer import Trainer", "mnistexp.training.trainer.Trainer"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str, wrong: str) -> None:
    """The checker itself can fail."""
    assert violations(module, source) == [wrong]


def test_what_is_too_long_is_found() -> None:
    """A function of 41 lines and a file of one line too many are found; those at the limit are not."""
    function = "def f():\n" + "    pass\n" * LONGEST_FUNCTION

    assert too_long(function) == ["f"]
    assert too_long("x = 1\n" * (LONGEST_FILE + 1)) == ["the file"]
    assert too_long("def f():\n" + "    pass\n" * (LONGEST_FUNCTION - 1)) == []
