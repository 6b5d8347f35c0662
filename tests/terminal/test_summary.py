"""The end of a sweep: the comparison of the best trial, and what to type next."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from fakes import run_result
from statsmodels.stats.contingency_tables import mcnemar
from sweeps import parts

from mnistexp.analysis import comparison
from mnistexp.analysis.history import History, Trial
from mnistexp.config.compose import run_config
from mnistexp.study.progress import Best, Progress
from mnistexp.study.sweep import Summary
from mnistexp.terminal.summary import comparison_lines, summary_lines

IMAGES = 5000


def history(correct: Sequence[npt.NDArray[np.bool_]], test_accuracy: float | None = 0.9) -> History:
    """A study of trials that classify these images correctly."""
    session = parts()[0]
    config = run_config(session.prepared.config)
    trials = []
    for number, row in enumerate(correct):
        result = run_result([float(row.mean())], test_accuracy)
        fit = result.fit.model_copy(update={"validation_correct": np.packbits(row).tobytes()})
        result = result.model_copy(update={"fit": fit})
        record = session.trial(number, config, (), 0.0, "COMPLETE", {}, result=result)
        trials.append(Trial(number, "COMPLETE", {}, record, ""))
    return History("digits", "id", tuple(trials), {}, None)


def wrong(*which: int | range) -> npt.NDArray[np.bool_]:
    """All images are correct except these."""
    row = np.ones(IMAGES, dtype=np.bool_)
    for each in which:
        row[each if isinstance(each, int) else slice(each.start, each.stop)] = False
    return row


def rows(*correct: npt.NDArray[np.bool_]) -> list[str]:
    """The lines of the comparison, as one text per line."""
    study = history(correct)
    return list(comparison_lines(study, comparison.compare_best(study)))


def test_the_difference_is_shown_with_images_and_p() -> None:
    """The net images and the p-value of McNemar's exact test, as statsmodels computes it."""
    first, best = wrong(range(60)), wrong(range(20, 50), 100, 101)
    table = [[0, int((best & ~first).sum())], [int((first & ~best).sum()), 0]]

    text = "\n".join(rows(first, best))

    assert mcnemar(table, exact=True).pvalue < 0.0001
    assert re.search(r"trial 0 .*\+0\.0056 +28 +< 0\.0001", text)
    assert "No significant difference to 0 of 1 other" in " ".join(text.split())


def test_configs_without_significant_difference_are_counted() -> None:
    """The first trial and the runner-up have a row each, and all other configs are counted."""
    text = "\n".join(rows(wrong(range(5)), wrong(1, 2, 3), wrong(4, 5), wrong(range(500))))

    assert re.search(r"trial 0 .*\+0\.0006", text)
    assert re.search(r"trial 1 .*\+0\.0002", text)
    assert "No significant difference to 2 of 3 other" in " ".join(text.split())


def test_the_first_trial_can_be_the_best() -> None:
    """It is not compared with itself, and an equal runner-up has no difference."""
    text = "\n".join(rows(wrong(1), wrong(2)))

    assert re.search(r"trial 1 .*\+0\.0000", text)
    assert not re.search(r"^  trial 0", text, re.MULTILINE)
    assert "the first trial" in text.lower()


def ended(study: History | None, **more: object) -> str:
    """The end of a sweep of two complete trials and a failed one."""
    config = run_config(parts()[0].prepared.config)
    progress = Progress(2, 0, 1, 3, Best(1, 0.95, ("optimizer=adam",), config))
    summary = Summary(progress=progress, trials=3, seconds=6.0, stopped="done", **more)  # type: ignore[arg-type]
    compared = comparison.compare_best(study) if study else None
    return "\n".join(summary_lines(summary, "my study", study, compared, ["tracking.uri=a b"], "mnistexp ui"))


def test_the_summary_ends_with_commands_for_this_study() -> None:
    """Scores, counts, the best config as overrides, then commands that name the study, quoted for a shell."""
    text = ended(history([wrong(range(60)), wrong(1)], 0.93))

    assert "2 complete, 0 pruned, 1 failed" in text
    assert "0.9500" in text
    assert "0.9300" in text
    assert "  optimizer=adam" in text
    for command in ("best", "rerun", "report", "confirm"):
        assert f"python -m mnistexp {command} 'study.name=my study' 'tracking.uri=a b'" in text


def test_a_study_that_cannot_be_read_still_has_its_best() -> None:
    """Without history there is no test accuracy and no comparison; runs that are not logged are counted."""
    text = ended(None, unlogged=2)

    assert "0.9500" in text
    assert "test accuracy" not in text
    assert "not in MLflow yet: 2" in text


def test_a_study_of_seeds_has_a_mean() -> None:
    """If only the seed was searched, the trials are one config, and none of them is better."""
    study = replace(
        history([wrong(1), wrong(2, 3)], 0.9),
        fingerprint={"search.seed": '{"low": 0, "high": 4, "log": false, "step": 1}'},
    )

    text = ended(study)

    assert re.search(r"mean over 2 seeds.*0\.9997.*0\.9000", text)
    assert "runner-up" not in text
