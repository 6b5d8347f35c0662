"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from services import skip_or_fail

from mnistexp.study.database import Database, open_for_sweep

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files with most slow tests first, so that no process is left with them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def terminal() -> Iterator[None]:
    """Have everything hear Ctrl-C: where the tests run in the background they would inherit that it is ignored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """A test that runs the command line in this process leaves its handlers to no other test."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def quick_folder() -> Iterator[Path]:
    """An empty folder in memory, where there is such a disk: hundreds of databases spend half their time in fsync."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of Optuna's: making one takes a third of a second, copying it nothing."""
    path = tmp_path_factory.mktemp("optuna") / "optuna.db"
    open_for_sweep(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def database(fresh: Path, quick_folder: Path) -> Iterator[Database]:
    """A database of the test's own."""
    with closing(open_for_sweep(f"sqlite:///{shutil.copy(fresh, quick_folder / 'optuna.db')}")) as opened:
        yield opened


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The four real MNIST files: in $MNISTEXP_DATA, or in shared/data/mnist beside the repository."""
    folder = Path(os.environ.get("MNISTEXP_DATA") or REPOSITORY.parent / "shared" / "data" / "mnist")
    if not (folder / "train-images-idx3-ubyte.gz").is_file():
        skip_or_fail(f"no MNIST files in {folder}: set MNISTEXP_DATA to the folder that has them")
    return folder
