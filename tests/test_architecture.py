"""The rules of the house: who may import whom, which library lives where, how large things get."""

from __future__ import annotations

import ast
import graphlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mnistexp

PACKAGE = Path(mnistexp.__file__).parent
FILES = sorted([*PACKAGE.glob("*.py"), *(path for path in PACKAGE.glob("*/*.py") if path.stem != "__init__")])
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in FILES}  # a module's name is its own, in any folder
FOLDERS = {"mnistexp", *(f"mnistexp.{path.parent.name}" for path in FILES if path.parent != PACKAGE)}

EDGES = {  # module: what of ours it may import, inside functions and for types alone included
    "__init__": "",
    "__main__": "cli stopping",
    "stopping": "",
    # what both sides share
    "errors": "",
    "paths": "",
    "words": "errors",
    "results": "",
    "schema": "errors",
    "machine": "",
    # the child's side
    "idx": "errors schema",
    "npz": "errors",
    "own": "errors schema",
    "download": "errors idx schema",
    "data": "download errors idx npz own paths schema",
    "data_file": "data",
    "augmentation": "schema",
    "model": "errors own schema",
    "program": "augmentation data errors model schema",
    "trainer": "data errors model program results schema",
    "worker": "data data_file errors machine own results schema trainer",
    # the parent's side: configs and spaces
    "overrides": "errors schema",
    "options": "errors",
    "checking": "errors own schema",
    "config": "checking errors options overrides own schema",
    "distributions": "errors overrides",
    "search_space": "config distributions errors overrides schema",
    "strategy": "errors schema search_space",
    "attributes": "errors schema",
    # … records and where they are kept
    "databases": "errors paths",
    "turns": "errors",
    "records": "errors results schema",
    "view": "",
    "tracking": "config databases errors records results schema turns view",
    "storage": "databases errors turns",
    "drivers": "attributes databases errors",
    # … workers
    "executor": "errors machine results schema",
    "worker_process": "executor machine",
    "local_executor": "executor machine own schema worker_process",
    "ray_executor": "data data_file errors executor machine own schema worker_process",
    # … what a command is made of
    "run": "config data errors executor local_executor machine own ray_executor records results schema tracking",
    "study": "attributes config drivers errors own records results run schema search_space storage strategy",
    "outbox": "errors records study tracking",
    "page": "overrides own records schema study",
    "sweep": "databases errors executor outbox page records results run schema search_space stopping storage "
    "study tracking view",
    "console": "analysis config history records results run significance study sweep",
    "show": "board console errors executor live records results run schema study sweep",
    "board": "records results run schema study",
    "live": "board console records study sweep",
    "history": "errors records study",
    "significance": "",
    "analysis": "config history records results run schema significance",
    "doctor": "config console data databases errors machine run schema storage tracking words",
    "plausibility": "config distributions errors overrides phrases schema search_space",
    "estimate": "data executor machine results run schema",
    "plan": "config console distributions estimate phrases plausibility run schema search_space storage strategy study "
    "tracking",
    "predict": "child config console data errors idx own pictures registry schema tracking words",
    "front": "",
    "mlflow_ui": "databases errors front stopping tracking view",
    "optuna_ui": "errors storage",
    "ui": "config console databases errors mlflow_ui optuna_ui run schema tracking words",
    # … what a confirmation is made of
    "contenders": "config distributions history run schema search_space",
    "confirmation": "contenders errors history results schema significance study",
    "confirm_text": "confirmation phrases records study",
    "child": "errors worker_process",
    "inference": "errors model own schema trainer",
    "pictures": "errors",
    "export": "inference",
    "registry": "databases errors records schema significance tracking",
    "confirm": "child config confirm_text confirmation console contenders data errors executor history own "
    "records registry run schema show significance storage study sweep tracking words",
    # … what a figure is made of
    "canvas": "",
    "points": "canvas history",
    "scales": "analysis canvas history",
    "space_figures": "analysis canvas history points scales",
    "data_figures": "canvas",
    "rival_figures": "analysis canvas confirmation",
    "groups": "analysis config errors history schema significance",
    "group_figures": "analysis canvas groups points scales",
    "figures": "analysis canvas data_figures group_figures history points rival_figures scales space_figures",
    # … what a report is made of
    "phrases": "",
    "document": "",
    "drawing": "document figures",
    "material": "analysis confirmation data errors groups history own schema",
    "answers": "analysis confirm_text confirmation document drawing figures history material phrases run",
    "group_text": "analysis document drawing figures groups material phrases",
    "sections": "analysis data document drawing errors figures material phrases records",
    "comparison": "analysis answers document drawing figures history material phrases",
    "artifacts": "databases errors schema tracking",
    "report": "answers artifacts comparison config console databases document errors group_text material overrides "
    "paths phrases run schema sections storage words",
    # … what is typed
    "commands": "analysis config console databases errors executor history own plan records results run schema "
    "search_space show storage sweep tracking words",
    "cli": "commands config confirm doctor errors own predict report ui words",
}

LIBRARIES = {  # foreign library: where it may be imported
    "PIL": "pictures",
    "alembic": "tracking",
    "argcomplete": "cli",
    "filelock": "download turns",
    "hydra": "config distributions overrides",
    "jinja2": "document",
    "joblib": "machine",
    "keras": "export inference model program trainer worker",
    "matplotlib": "canvas data_figures drawing figures group_figures points rival_figures space_figures",
    "mlflow": "artifacts export mlflow_ui registry tracking",
    "numpy": "analysis augmentation canvas data data_figures data_file export group_figures groups idx inference "
    "model npz pictures program sections significance space_figures trainer",
    "omegaconf": "config",
    "optuna": "confirmation history material storage strategy study",
    "optuna_dashboard": "optuna_ui",
    "platformdirs": "data doctor outbox worker_process",
    "psutil": "databases drivers worker",
    "pydantic": "attributes checking inference schema worker",
    "ray": "ray_executor",
    "requests": "download tracking",
    "rich": "download live",
    "scipy": "significance",
    "sklearn": "data",
    "sqlalchemy": "artifacts mlflow_ui registry storage tracking turns",
    "tensorflow": "augmentation model program trainer worker",
    "urllib3": "download",
    "uvicorn": "mlflow_ui",
    "yaml": "commands console options tracking",
}

PARENT = (
    "hydra",
    "omegaconf",
    "optuna",
    "mlflow",
    "sqlalchemy",
    "mnistexp.config",
    "mnistexp.tracking",
    "mnistexp.study",
)
CHILD = ("tensorflow", "keras", "mnistexp.augmentation", "mnistexp.model", "mnistexp.program", "mnistexp.trainer")

LONGEST_FUNCTION = 40  # lines, docstring included
LONGEST_FILE = 490


# ------------------------------------------------------------------------------------------------ the checker


def imported(source: str) -> Iterator[str]:
    """The dotted name of each import anywhere in a module, `from mnistexp.folder import x` as mnistexp.folder.x."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import"
        elif isinstance(node, ast.ImportFrom) and node.module in FOLDERS:
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name != "__version__")
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            yield "an import by name"


def own_imports(source: str) -> set[str]:
    """Which of our modules a module imports."""
    return {name.rpartition(".")[2] for name in imported(source) if name.startswith("mnistexp.")}


def violations(module: str, source: str) -> list[str]:
    """Every import of a module that the tables don't allow."""
    allowed = set(EDGES.get(module, "").split())
    libraries = {library for library, modules in LIBRARIES.items() if module in modules.split()}
    found = [f"{module} imports {name}" for name in sorted(own_imports(source) - allowed)]
    foreign = {name.split(".")[0] for name in imported(source)} - sys.stdlib_module_names - {"mnistexp"}
    return found + [f"{module} imports {name}" for name in sorted(foreign - libraries)]


def too_long(module: str, source: str) -> list[str]:
    """Every function, and the file itself, that is longer than one reads at a glance."""
    lines = len(source.splitlines())
    found = [f"{module} has {lines} lines"] if lines > LONGEST_FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            length = node.end_lineno - node.lineno + 1
            if length > LONGEST_FUNCTION:
                found.append(f"{module}.{node.name} has {length} lines")
    return found


# --------------------------------------------------------------------------------------------------- the rules


def test_every_module_stands_in_the_table() -> None:
    """A new file is a decision about who may import it."""
    assert set(EDGES) == set(SOURCES)
    assert len(FILES) == len(SOURCES)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_follow_the_table(module: str) -> None:
    """Imports go along the arrows, and a foreign library only where it lives."""
    assert violations(module, SOURCES[module]) == []


@pytest.mark.parametrize("module", SOURCES)
def test_the_table_allows_nothing_that_is_not_there(module: str) -> None:
    """An arrow that nobody uses any more is taken out, so that the table stays the picture."""
    used = {name.split(".")[0] for name in imported(SOURCES[module])}
    libraries = {library for library, modules in LIBRARIES.items() if module in modules.split()}

    assert set(EDGES[module].split()) == own_imports(SOURCES[module])
    assert libraries <= used


def test_no_import_goes_round_in_a_circle() -> None:
    """The modules can be put in an order in which each knows only those before it."""
    graph = {module: own_imports(source) for module, source in SOURCES.items()}

    order = list(graphlib.TopologicalSorter(graph).static_order())

    assert order.index("schema") < order.index("trainer") < order.index("worker")
    assert order.index("config") < order.index("search_space") < order.index("study") < order.index("cli")


@pytest.mark.parametrize("module", SOURCES)
def test_functions_and_files_stay_small(module: str) -> None:
    """No function outgrows a screen, and no file its one subject."""
    assert too_long(module, SOURCES[module]) == []


# --------------------------------------------------------------------------------- what an interpreter really loads


def loaded(statement: str, watched: tuple[str, ...]) -> list[str]:
    """Which of the watched modules a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys, json\nprint(json.dumps(sorted(set({watched!r}) & set(sys.modules))))"
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def test_the_childs_side_loads_no_store() -> None:
    """A worker before its set-up has loaded no Hydra, Optuna or MLflow, and no TensorFlow yet either."""
    assert loaded("import mnistexp.worker", PARENT + CHILD) == []


def test_the_parents_side_loads_no_tensorflow() -> None:
    """All commands with all that they import inside: the parent never pays for TensorFlow, nor for MLflow by import."""
    modules = (
        "commands",
        "search_space",
        "storage",
        "strategy",
        "study",
        "doctor",
        "champion.confirm",
        "champion.predict",
        "reports.report",
        "plan",
        "dashboards.ui",
    )

    assert loaded(f"import mnistexp.{', mnistexp.'.join(modules)}", (*CHILD, "mlflow")) == []


def test_what_both_sides_share_costs_neither() -> None:
    """schema, results, errors and machine load nothing of either side."""
    both = "import mnistexp.schema, mnistexp.results, mnistexp.errors, mnistexp.machine, mnistexp.executor"

    assert loaded(both, (*PARENT, *CHILD, "sklearn", "pandas")) == []


# ----------------------------------------------------------------------------------------- the checker can fail


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("trainer", "import optuna", "trainer imports optuna"),
        ("trainer", "from mnistexp.study import Sweep", "trainer imports study"),
        ("trainer", "from mnistexp import config", "trainer imports config"),
        ("schema", "import mnistexp.config as c", "schema imports config"),
        ("study", "def f():\n    import tensorflow.keras as k", "study imports tensorflow"),
        ("study", "def f():\n    def g():\n        from mlflow.entities import Run", "study imports mlflow"),
        ("worker", "if TYPE_CHECKING:\n    from mnistexp.tracking import Tracker", "worker imports tracking"),
        ("config", "from . import study", "config imports a relative import"),
        ("run", "import importlib\nimportlib.import_module('mlflow')", "run imports an import by name"),
        ("unheard_of", "import numpy", "unheard_of imports numpy"),
    ],
)
def test_the_checker_sees_a_planted_import(module: str, source: str, found: str) -> None:
    """Wherever a forbidden import hides, it is found, and it alone."""
    assert violations(module, source) == [found]


def test_the_checker_sees_what_is_too_long() -> None:
    """A function of 41 lines and a file of one line too many are found, those at the limit are not."""
    function = "def f():\n" + "    pass\n" * LONGEST_FUNCTION
    file = "x = 1\n" * (LONGEST_FILE + 1)

    assert too_long("m", function) == [f"m.f has {LONGEST_FUNCTION + 1} lines"]
    assert too_long("m", file) == [f"m has {LONGEST_FILE + 1} lines"]
    assert too_long("m", "def f():\n" + "    pass\n" * (LONGEST_FUNCTION - 1)) == []


def test_the_fresh_interpreter_sees_an_import() -> None:
    """The watch over an interpreter reports what is really loaded."""
    assert loaded("import mnistexp.study", ("optuna", "mnistexp.config", "tensorflow")) == ["mnistexp.config", "optuna"]
