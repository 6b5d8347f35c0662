from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import PLANT

from mnistexp.config.option_files import ROOT

GUIDE = (ROOT / "GUIDE.md").read_text(encoding="utf-8")
SECTION = GUIDE.partition("\n## Put your own in\n")[2].partition("\n## ")[0]
PARTS = {
    title: re.findall(r"(?:`([\w/.]+)`:\n\n)?```(\w+)\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"\n### (.+?)\n(.*?)(?=\n### |\Z)", SECTION, re.DOTALL)
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a reader of the guide has cloned; one for all parts, as for its reader."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("mnistexp", "conf"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def follow(folder: Path, name: str, kind: str, block: str, scripted: bool) -> str:
    """Do what one block of the guide says: keep a file, apply a change, type commands. Returns: what they print.

    Args:
        scripted: workers train without TensorFlow.
    """
    if kind == "diff":
        subprocess.run(["git", "apply", "-"], input=block, text=True, cwd=folder, check=True)
        return ""
    if name:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block, encoding="utf-8")
        return ""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"MNISTEXP_SCRIPTED": "1", "PYTHONPATH": str(PLANT)} if scripted else {}
    done = subprocess.run(
        ["bash", "-e", "-c", block], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("A data set", "Best of study wine: trial"),
        ("A search space", "Best of study wide: trial"),
        ("An optimizer", "optimizer=adamax"),
        ("A model", "bit-identical"),
    ],
)
def test_a_reader_who_follows_the_guide_literally_gets_there(clone: Path, part: str, said: str) -> None:
    """Each block, typed as it stands, does what the text promises: a sweep with the reader's own part in it."""
    scripted = part in ("A data set", "A search space")  # no part of TensorFlow's is new there

    printed = [follow(clone, *block, scripted) for block in PARTS[part]]

    assert said in "\n".join(printed)


def test_every_part_of_the_guide_is_followed() -> None:
    """A new part gets tried too."""
    assert list(PARTS) == ["A data set", "A search space", "An optimizer", "A model"]
