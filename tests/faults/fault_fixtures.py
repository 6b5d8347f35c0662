"""A study with one finished trial, for each test its own.

Test files name this as their plugin. As a conftest.py it would stand in the way of tests/e2e's, which is imported by
that name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from harness import Place, copied, new_place


@pytest.fixture(scope="session")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A place with a study of one finished trial, which no test changes."""
    place = new_place(tmp_path_factory.mktemp("begun"))
    try:
        place.finish(1)
    finally:
        place.clear()
    [trial] = place.trials()
    return replace(place, best=trial.value)


@pytest.fixture
def place(begun: Place, tmp_path: Path) -> Iterator[Place]:
    """A copy of it of the test's own; afterwards no process of the test's lives."""
    place = copied(begun, tmp_path)
    yield place
    place.clear()


@pytest.fixture
def empty(tmp_path: Path, terminal: None) -> Iterator[Place]:
    """A place where nothing was run yet."""
    place = new_place(tmp_path)
    yield place
    place.clear()
