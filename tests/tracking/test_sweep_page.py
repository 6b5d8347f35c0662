"""A sweep's own page in MLflow: what it says; how it looks there is for the browser's tests."""

from __future__ import annotations

import shlex
from pathlib import Path

from runs import run_config
from sweeps import parts

from mnistexp.study.progress import Best, Progress
from mnistexp.tracking.records import LoggedRun
from mnistexp.tracking.sweep_page import sweep_page

STUDY = parts("study.trials=40", "study.timeout=60", "study.target=0.99")[0].prepared.config.study
OVERRIDES = ("optimizer=adam", "optimizer.learning_rate=0.0012345678", "model.hidden_units=[300,100]")
SPACE = {
    "optimizer": "sgd, adam",
    "optimizer.learning_rate@sgd": "0.01 to 1",
    "optimizer.learning_rate@adam|adamw": "0.001 to 0.01",
    "model.hidden_units": "[300], [300,100]",
}


def progress(*, best: bool = True) -> Progress:
    """40 trials, with a best one or without."""
    return Progress(30, 8, 2, 40, Best(7, 0.9812, OVERRIDES, run_config()) if best else None)


def logged(**metrics: float) -> LoggedRun:
    """The best trial's run, with these metrics."""
    return LoggedRun("id", "007", run_config(), OVERRIDES, "COMPLETE", metrics, "", "", {}, {})


def test_the_first_line_is_the_best_trial_with_both_scores() -> None:
    """MLflow shows the first lines alone: they hold what one came for."""
    page = sweep_page("mnist", "mnist", STUDY, SPACE, progress(), logged(val_accuracy=0.9812, test_accuracy=0.9765))

    first = page.splitlines()[0]
    assert first == ("**Best: trial 7, validation accuracy 0.9812**; test accuracy 0.9765, by which nothing was chosen")


def test_a_sealed_test_split_is_not_mentioned() -> None:
    """A best trial that never looked at the test split, or isn't logged yet, has its validation accuracy alone."""
    for run in (logged(val_accuracy=0.9812), None):
        page = sweep_page("mnist", "mnist", STUDY, SPACE, progress(), run)

        assert page.splitlines()[0] == "**Best: trial 7, validation accuracy 0.9812**"
        assert "test" not in page


def test_it_tells_the_question_the_budget_and_what_was_done() -> None:
    """All limits that end a sweep are there, before its first trial too."""
    page = sweep_page("mnist", "mnist", STUDY, SPACE, progress(best=False), None)

    assert page.startswith("Which hyperparameters are best on **mnist**")
    assert "40 trials, 60 s a session, or until 0.99 is reached" in page
    assert "40 of 40 trials: 30 complete, 8 pruned, 2 failed" in page


def test_the_table_has_the_best_value_where_it_belongs() -> None:
    """A learning rate of other options than the best trial's stays empty; numbers are short, brackets no links."""
    rows = [line for line in sweep_page("m", "m", STUDY, SPACE, progress(), None).splitlines() if line[:3] == "| `"]

    assert rows == [
        "| `optimizer` | sgd, adam | adam |",
        "| `optimizer.learning_rate` for sgd | 0.01 to 1 |  |",
        "| `optimizer.learning_rate` for adam, adamw | 0.001 to 0.01 | 0.001235 |",
        "| `model.hidden_units` | \\[300\\], \\[300,100\\] | \\[300,100\\] |",
    ]


def test_the_config_as_it_stands_has_its_values_too() -> None:
    """Trial 0 was drawn from nothing: its values are its config's."""
    best = Progress(1, 0, 0, 1, Best(0, 0.9, (), run_config()))

    rows = [line for line in sweep_page("m", "m", STUDY, SPACE, best, None).splitlines() if line[:3] == "| `"]

    assert rows[0] == "| `optimizer` | sgd, adam | sgd |"
    assert rows[-1] == "| `model.hidden_units` | \\[300\\], \\[300,100\\] | \\[32\\] |"


def test_the_train_command_names_the_folder_of_ones_own_options() -> None:
    """A drawn `optimizer=mine` is known in that folder alone."""
    page = sweep_page("m", "m", STUDY, SPACE, progress(), None, config_dir=Path("mine"))

    assert "python -m mnistexp train --config-dir mine" in " ".join(page.replace("\\\n", "").split())


def test_a_row_of_two_groups_is_the_bests_where_both_are() -> None:
    """A learning rate that hangs on optimizer and augmentation has its value in the row of the best trial's pair."""
    space = {f"optimizer.learning_rate@adam/{way}|sgd/{way}": "0 to 1" for way in ("affine", "none")}
    overrides = ("optimizer=adam", "augmentation=none", "optimizer.learning_rate=0.5")
    best = Progress(1, 0, 0, 1, Best(0, 0.9, overrides, run_config()))

    rows = [line for line in sweep_page("m", "m", STUDY, space, best, None).splitlines() if line[:3] == "| `"]

    assert [row.rpartition(" | ")[2] for row in rows] == [" |", "0.5 |"]


def test_its_commands_find_the_stores_again() -> None:
    """Where the study and its runs aren't in this folder, each command says where; a training alone has no study."""
    stores = ("study.storage=sqlite:///big.db", "tracking.uri=http://there")
    page = sweep_page("m", "m", STUDY, SPACE, progress(), None, stores)
    block = page[page.index("    python -m mnistexp report") :].replace("\\\n", "")
    typed = [shlex.split(line)[3:] for line in block.splitlines()]

    assert typed == [
        ["report", "m", *stores],
        ["confirm", "study.name=m", *stores],
        ["rerun", "study.name=m", *stores],
        ["train", stores[1], *OVERRIDES],
    ]


def test_its_commands_can_be_pasted() -> None:
    """The train command, folded as it is, is one that a shell takes, with every digit."""
    page = sweep_page("my study", "m", STUDY, SPACE, progress(), None)
    block = page[page.index("    python -m mnistexp train") :]
    words = shlex.split(block.replace("\\\n", ""))

    assert words == ["python", "-m", "mnistexp", "train", *OVERRIDES]
    assert "python -m mnistexp report 'my study'" in page
    assert max(map(len, page[page.index("What to type") :].splitlines())) < 80


def test_a_huge_space_fits_into_a_description() -> None:
    """MLflow refuses one of more than 8,000 characters, and would so never get the runs."""
    space = {f"model.key_{number}": "a, b, c" for number in range(1000)}

    page = sweep_page("m", "m", STUDY, space, progress(), None)

    assert len(page) < 8000
    assert "1000 in all" in page
