from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import FakeExecutor
from sweeps import SMALL, by_rate

from mnistexp import cli


def test_a_finished_study_starts_no_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are started for the trials that are left, and none at all when the study is done."""
    started: list[int] = []

    def start(config: Any, *, at_most: int, **more: Any) -> FakeExecutor:
        started.append(at_most)
        return FakeExecutor(by_rate)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mnistexp.commands.sweep.start_workers", start)
    codes = [cli.main(["sweep", *SMALL, "tracking=none", f"study.trials={total}", "-q"]) for total in (2, 3, 3)]

    assert codes == [0, 0, 0]
    assert started == [2, 1]
