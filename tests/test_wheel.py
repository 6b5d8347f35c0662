"""The wheel holds all that a user needs: it is what gets installed, so it is what is tested here."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel, unpacked into a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    zipfile.ZipFile(wheel).extractall(site)
    return site


def run(site: Path, folder: Path, *arguments: str) -> str:
    """What a command of the unpacked wheel prints, run in another folder."""
    code = "import sys; from mnistexp import __file__ as f; from mnistexp.cli import main; print(f); sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(site), "HOME": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where, _, answer = done.stdout.partition("\n")
    assert where.startswith(str(site))
    return answer


def test_options_and_experiments_work_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """conf/ and experiments/ are in the package, and found from any folder."""
    composed = run(installed, tmp_path, "train", "experiments=blog_2017/baseline", "--cfg", "job")

    assert "learning_rate: 0.5" in composed
    assert "max_steps: 1000" in composed


def test_the_wheel_has_every_option_and_nothing_else(installed: Path) -> None:
    """All of conf/, the experiments' options and READMEs, no tests, no databases."""
    names = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    options = {f"mnistexp/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    experiments = {f"mnistexp/{path.relative_to(ROOT).as_posix()}" for path in ROOT.glob("experiments/*/*.yaml")}

    assert options | experiments <= names
    assert not [name for name in names if name.startswith("tests") or name.endswith(".db")]
    assert "mnistexp/py.typed" in names


def test_console_script_is_declared(installed: Path) -> None:
    """`mnistexp` on the command line is `python -m mnistexp`."""
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")

    assert "mnistexp = mnistexp." in entry_points.read_text()
