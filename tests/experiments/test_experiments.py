"""Named experiments stay what their committed results were made with."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from mnistexp.config import compose, option_files
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.search import space as search_space

ROOT = option_files.ROOT
sys.path.insert(0, str(ROOT / "experiments"))

import collect  # noqa: E402 - a script's folder is on its path

OPTIONS = option_files.config_groups()["experiments"]
FOLDERS = sorted(path.parent for path in (ROOT / "experiments").glob("*/README.md"))
HEADINGS = ["Question", "Setup", "Result", "Conclusion", "Limits"]


def test_what_is_collected_has_a_row_a_trial() -> None:
    """An interrupted run counts only where its trial wasn't run again; an older study of the same name doesn't."""
    runs = pd.DataFrame(
        [
            ("older", "0", "COMPLETE", 1, 0.1),
            ("newer", "1", "INTERRUPTED", 2, 0.2),
            ("newer", "0", "COMPLETE", 3, 0.3),
            ("newer", "2", "INTERRUPTED", 4, 0.4),
            ("newer", "1", "COMPLETE", 5, 0.5),
            ("newer", "1", "INTERRUPTED", 4, 0.6),
        ],
        columns=["tags.study_id", "tags.trial", "tags.state", "start_time", "metrics.val_accuracy"],
    )

    found = collect.table(collect.one_each(runs))

    assert found.to_dict("list") == {
        "trial": [0, 1, 2],
        "state": ["COMPLETE", "COMPLETE", "INTERRUPTED"],
        "val_accuracy": [0.3, 0.5, 0.4],
    }


def resolved(option: str) -> str:
    """A named experiment's whole config as YAML, its stores and data addresses left out."""
    plain = compose.compose(ParsedOverrides(choices=(f"experiments={option}",))).model_dump(mode="json")
    plain["data"] = plain["data"]["name"]
    return yaml.safe_dump(plain, sort_keys=False)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_named_experiment_composes_to_its_golden_config(option: str) -> None:
    """A changed default or option shows in review as a changed file in tests/golden/."""
    golden = Path(__file__).parent / "golden" / f"{option.replace('/', '.')}.yaml"

    assert resolved(option) == golden.read_text(), f"if this is meant: python tests/{Path(__file__).name}"


@pytest.mark.parametrize("option", [option for option in OPTIONS if not option.endswith("/baseline")])
def test_a_named_sweep_has_a_sound_space(option: str) -> None:
    """Each sweep's whole space can be drawn from."""
    space = search_space.build(ParsedOverrides(choices=(f"experiments={option}",)))

    assert list(space.parameters())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_experiment_has_question_setup_result_conclusion_and_limits(folder: Path) -> None:
    """Each folder's README has the five parts in order, and stands in the index."""
    lines = (folder / "README.md").read_text().splitlines()
    index = (ROOT / "experiments" / "README.md").read_text()

    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == HEADINGS
    assert f"({folder.name}/README.md)" in index


if __name__ == "__main__":
    for name in OPTIONS:
        target = Path(__file__).parent / "golden" / f"{name.replace('/', '.')}.yaml"
        target.parent.mkdir(exist_ok=True)
        target.write_text(resolved(name))
