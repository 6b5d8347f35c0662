"""The end of a sweep, as it is told: what is best, what it beats, whether that is luck, what to type next."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from fakes import run_result
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from sweeps import parts

from mnistexp.analysis import comparison
from mnistexp.analysis.history import History, Trial
from mnistexp.config.compose import run_config
from mnistexp.study.study import Best, Progress
from mnistexp.study.sweep import Summary
from mnistexp.terminal import console

IMAGES = 5000


def history(hits: Sequence[npt.NDArray[np.bool_]], *, kept: bool = True, test_accuracy: float | None = 0.9) -> History:
    """A study whose trials got these images right; with `kept`, as records have it since hits are kept."""
    session = parts()[0]
    config = run_config(session.prepared.config)
    trials = []
    for number, row in enumerate(hits):
        result = run_result([float(row.mean())], test_accuracy)
        packed = np.packbits(row).tobytes() if kept else b""
        fit = result.fit.model_copy(update={"validation_correct": packed})
        result = result.model_copy(update={"fit": fit})
        record = session.trial(number, config, (), 0.0, "COMPLETE", {}, result=result)
        trials.append(Trial(number, "COMPLETE", {}, record, ""))
    return History("digits", "id", tuple(trials), {}, None)


def missing(*which: int | range) -> npt.NDArray[np.bool_]:
    """All images right, but for these."""
    row = np.ones(IMAGES, dtype=np.bool_)
    for each in which:
        row[each if isinstance(each, int) else slice(each.start, each.stop)] = False
    return row


def sentences(*hits: npt.NDArray[np.bool_], kept: bool = True) -> list[str]:
    """What is said of a study with these hits."""
    study = history(hits, kept=kept)
    return console.versus_sentences(study, comparison.standing(study, resamples=1))


def test_a_lead_that_is_no_luck_is_said_with_its_images_and_p() -> None:
    """The difference, the images net, and McNemar's p (here of one pair, so uncorrected) as statsmodels has it."""
    baseline, best = missing(range(60)), missing(range(20, 50), 100, 101)
    table = [[0, int((best & ~baseline).sum())], [int((baseline & ~best).sum()), 0]]

    told = sentences(baseline, best)

    p = mcnemar(table, exact=True).pvalue
    assert p < 0.001
    assert told[0] == (
        "It beats the config as it stands and the runner-up (trial 0) by 0.0056: 28 of 5,000 images net, p<0.001."
    )
    assert told[1] == "The other one is worse by more than luck in the images explains."


def test_a_lead_that_may_be_luck_is_said_to_be() -> None:
    """Of the config as it stands and of the runner-up, with statsmodels' p corrected for all pairs; and of how many."""
    hits = [missing(range(40)), missing(range(40, 60)), missing(range(60, 90))]
    pairs = list(itertools.combinations(hits, 2))
    tables = [[[0, int((one & ~other).sum())], [int((other & ~one).sum()), 0]] for one, other in pairs]
    adjusted = multipletests([mcnemar(table, exact=True).pvalue for table in tables], method="holm")[1]

    told = sentences(*hits)

    assert told == [
        f"It beats the config as it stands (trial 0) by 0.0040: 20 of 5,000 images net, p={adjusted[0]:.2g}.",
        f"It is 0.0020 above the runner-up (trial 2): 10 of 5,000 images net, which may be luck, p={adjusted[2]:.2g}.",
        "1 of the 2 others can't be told apart from it: `report` says more, `confirm` settles it.",
        "(p: McNemar's exact test, corrected for picking the best of 3 by the same images.)",
    ]
    assert adjusted[0] <= 0.05 < adjusted[2]


def test_a_level_runner_up_and_a_best_that_is_the_config_as_it_stands() -> None:
    """Nothing beats the defaults, and one equals them: no lead is made up."""
    told = sentences(missing(1), missing(2), missing(range(90)))

    assert told[:2] == [
        "It is the config as it stands: no other trial beats that.",
        "It is level with the runner-up (trial 1).",
    ]
    assert told[2] == "1 of the 2 others can't be told apart from it: `report` says more, `confirm` settles it."


def test_a_study_of_seeds_alone_has_an_average_and_no_winner() -> None:
    """No seed beats another's config: it is the same."""
    seeds = json.dumps({"low": 0, "high": 4, "log": False, "step": 1})
    study = replace(history([missing(range(40)), missing(1), missing(1)]), fingerprint={"search.seed": seeds})

    assert console.versus_sentences(study, comparison.standing(study, resamples=1)) == [
        "The 3 complete trials are one config with a seed each: on average validation accuracy 0.9972, test 0.9000; "
        "`report` has the intervals."
    ]


def test_a_study_from_before_hits_were_kept() -> None:
    """The lead is said, and nothing about luck that nobody knows."""
    assert sentences(missing(range(40)), missing(1), kept=False) == [
        "It is 0.0078 above the config as it stands and the runner-up (trial 0)."
    ]


def test_a_study_of_one_trial_beats_nothing() -> None:
    """There is nothing to compare it with."""
    assert sentences(missing(1)) == []


def summary_of(study: History | None, **more: int) -> list[str]:
    """The end of a sweep of two complete trials and a failed one."""
    best = Best(1, 0.9998, ("optimizer=adam",), run_config(parts()[0].prepared.config))
    ended = Summary(Progress(2, 0, 1, 3, best), "all 3 trials are done", 2, 10.0, 1.0, **more)
    standing = comparison.standing(study, resamples=1) if study else None
    stores = ["study.storage=sqlite:///my studies.db"]
    return list(console.summary_lines(ended, "mine", study, standing, stores, "python -m mnistexp ui"))


def test_the_summary_ends_with_what_to_type() -> None:
    """Scores, time and trials, the best config as overrides, then commands that find this study, quoted for a shell."""
    lines = summary_of(history([missing(range(40)), missing(1)]))

    where = "study.name=mine 'study.storage=sqlite:///my studies.db'"
    assert lines[0] == "\nall 3 trials are done: 2 complete, 0 pruned, 1 failed; 2 of them now, in 10 s, 12 a minute"
    assert "  validation accuracy  0.9998" in lines
    assert "  test accuracy        0.9000  (nothing was chosen by it)" in lines
    assert "  optimizer=adam" in lines
    assert [line.strip().partition("  ")[2].strip() for line in lines[-5:]] == [
        f"python -m mnistexp best {where}",
        f"python -m mnistexp rerun {where}",
        f"python -m mnistexp report {where}",
        f"python -m mnistexp confirm {where}",
        "python -m mnistexp ui",
    ]


def test_a_sealed_test_split_and_an_unreadable_study_leave_the_rest() -> None:
    """No test score is said where none was looked at; a study that can't be read still has its best."""
    sealed = summary_of(history([missing(range(40)), missing(1)], test_accuracy=None))
    unreadable = summary_of(None)

    assert not any("test accuracy" in line for line in sealed + unreadable)
    assert "  validation accuracy  0.9998" in unreadable
    assert any("beats" in line for line in sealed)


@pytest.mark.parametrize(
    ("unlogged", "said"),
    [(1, "1 run is not in MLflow yet: the next sweep of this study logs it."), (2, "2 runs are not in MLflow yet")],
)
def test_runs_that_mlflow_has_not_got_are_counted(unlogged: int, said: str) -> None:
    """One run is one, two are two."""
    assert summary_of(None, unlogged=unlogged)[1].startswith(said)


@pytest.mark.parametrize("columns", [50, 200])
def test_sentences_are_broken_at_words_for_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """No word is broken by the terminal's edge, nor a line longer than one reads well."""
    monkeypatch.setenv("COLUMNS", str(columns))

    lines = summary_of(history([missing(range(40)), missing(1)]))

    prose = [line for line in lines if line.startswith(("  It", "  That", "  (p", "    "))]
    assert len(prose) > 3
    assert max(map(len, prose)) <= min(columns, console.WIDTH)
