"""The end of a sweep: the comparison of the best trial, and what to type next."""

from __future__ import annotations

import re
from typing import Any

from histories import base, study, trial

from mnistexp.analysis.history import History
from mnistexp.study.progress import Best, Progress
from mnistexp.study.sweep import Summary
from mnistexp.terminal.summary import summary_lines


def ended(study: History | None, **more: Any) -> str:
    """The end of a sweep of two complete trials and a failed one."""
    progress = Progress(2, 0, 1, 3, Best(1, 0.95, ("optimizer=adam",), base()))
    summary = Summary(progress=progress, trials=3, seconds=6.0, stopped="done", **more)
    return "\n".join(summary_lines(summary, "my study", study, ["tracking.uri=a b"], "mnistexp ui"))


def test_the_summary_has_scores_and_commands_for_this_study() -> None:
    """Scores, counts, the best config as overrides, then commands that name the study, quoted for a shell."""
    text = ended(study(trial(0, 90, baseline=True), trial(1, 93, test=0.93)))

    assert "2 complete, 0 pruned, 1 failed" in text
    assert "0.9500" in text
    assert "0.9300" in text
    assert "  optimizer=adam" in text
    assert re.search(r"\+0\.0300 .*trial 0", text)
    for command in ("best", "rerun", "report", "confirm"):
        assert f"python -m mnistexp {command} 'study.name=my study' 'tracking.uri=a b'" in text


def test_configs_without_significant_difference_are_counted() -> None:
    """By the Holm-corrected tests of the best against all others; the first trial is not compared with itself."""
    text = ended(study(trial(0, 95, baseline=True), trial(1, 94), trial(2, 93), trial(3, 20)))

    assert "2 of 3 other" in " ".join(text.split())
    assert "trial 0," not in text


def test_a_study_that_cannot_be_read_still_has_its_best() -> None:
    """Without history there is no test accuracy and no comparison; runs that are not logged are counted."""
    text = ended(None, unlogged=2)

    assert "0.9500" in text
    assert "test accuracy" not in text
    assert "not in MLflow yet: 2" in text


def test_a_study_of_seeds_has_a_mean() -> None:
    """If only the seed was searched, the trials are one config, and none of them is better."""
    seeds = {"search.seed": '{"low": 0, "high": 4, "log": false, "step": 1}'}

    text = ended(study(trial(0, 90, baseline=True), trial(1, 95), searched=seeds))

    assert re.search(r"mean over 2 seeds +0\.9250", text)
    assert "other configs" not in text
