from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

BUDGET = Path(__file__).parents[2] / "experiments" / "budget"
sys.path.insert(0, str(BUDGET))

import answer  # noqa: E402 - a script's folder is on its path
import run as runner  # noqa: E402

Row = tuple[int, str, float, float | None, float | None]  # trial, state, ended, validation, test


def table(*rows: Row) -> pd.DataFrame:
    """A sweep's trials."""
    return pd.DataFrame(rows, columns=["trial", "state", "ended", "val_accuracy", "test_accuracy"])


def write(results: Path, sweeps: dict[tuple[str, int], list[Row]]) -> Path:
    """A results folder with these sweeps, by arm and seed."""
    frames = [table(*rows).assign(arm=arm, seed=seed, started=0.0, epochs=10) for (arm, seed), rows in sweeps.items()]
    facts: dict[str, Any] = {"minutes": 20.0, "data": "mnist", "date": "2030-01-01", "cpu": "a CPU", "cores": 2}
    facts |= {"commit": "abc", "first_started": 8.0, "other_cores": 0.1, "versions": "python 3"}
    results.mkdir(exist_ok=True)
    pd.concat(frames).to_csv(results / "trials.csv", index=False)
    listed = pd.DataFrame([{"arm": arm, "seed": seed, **facts} for arm, seed in sweeps])
    listed.to_csv(results / "sweeps.csv", index=False)
    return results


def course(*scores: float) -> list[Row]:
    """A sweep whose best so far has these values at 1, 2, 5, 10 and 20 minutes; test is a point below."""
    return [
        (number, "COMPLETE", 60 * minutes, score, score - 0.01)
        for number, (minutes, score) in enumerate(zip(answer.MINUTES, scores, strict=True))
    ]


def test_the_best_so_far_is_of_complete_trials_that_have_ended() -> None:
    """A pruned or failed trial's score does not count; of equal scores the lower trial number is the best."""
    trials = table(
        (0, "COMPLETE", 20.0, 0.95, 0.90),
        (1, "PRUNED", 30.0, 0.99, 0.99),
        (2, "FAILED", 40.0, None, None),
        (4, "COMPLETE", 120.0, 0.97, 0.91),
        (3, "COMPLETE", 120.1, 0.97, 0.92),
    )

    assert answer.state_after(trials, 1) == answer.SweepState(3, 1, 0.95, 0.90)
    assert answer.state_after(trials, 2) == answer.SweepState(4, 1, 0.97, 0.91)
    assert answer.state_after(trials, 5) == answer.SweepState(5, 1, 0.97, 0.92)
    assert answer.running_best(trials, np.array([0.0, 60, 120, 300])).tolist() == pytest.approx(
        [np.nan, 0.95, 0.97, 0.97], nan_ok=True
    )


def test_arms_are_compared_within_seeds(tmp_path: Path) -> None:
    """Differences, interval and p-value are those of the pairs, as SciPy computes them."""
    rng = np.random.default_rng(1)
    scores = {arm: np.sort(0.97 + 0.01 * rng.random((4, 5)).round(4), axis=1) for arm in ("tpe.median", "gp.none")}
    sweeps = {(arm, seed): course(*rows[seed]) for arm, rows in scores.items() for seed in range(4)}
    loaded = answer.load(write(tmp_path / "r", sweeps))

    found, overall = loaded.difference("gp.none", 5), loaded.difference("gp.none", None)

    reference = stats.ttest_rel(scores["gp.none"][:, 2], scores["tpe.median"][:, 2])
    interval = reference.confidence_interval()
    assert found is not None
    assert found.interval is not None
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))
    assert overall is not None
    assert overall.values == pytest.approx(scores["gp.none"].mean(axis=1) - scores["tpe.median"].mean(axis=1))


def test_a_pair_on_two_machines_is_left_out_of_the_differences(tmp_path: Path) -> None:
    """A slower machine does not count against a sampler; the means have all sweeps."""
    leads = {"tpe.median": 0.0, "gp.none": 0.01}
    scores = {(arm, seed): 0.9 + seed / 100 + lead for arm, lead in leads.items() for seed in range(3)}
    folder = write(tmp_path / "r", {sweep: course(*[score] * 5) for sweep, score in scores.items()})
    listed = pd.read_csv(folder / "sweeps.csv")
    listed.loc[(listed["arm"] == "gp.none") & (listed["seed"] == 1), "cpu"] = "a slower CPU"
    listed.to_csv(folder / "sweeps.csv", index=False)

    sweeps = answer.load(folder)

    difference = sweeps.difference("gp.none", None)
    assert difference is not None
    assert difference.values == (0.01, 0.01)
    assert len(sweeps.overall("gp.none")) == 3


def test_an_incomplete_block_is_left_out(tmp_path: Path) -> None:
    """Means are over the seeds that every arm has; an extra arm that lacks one of them is left out itself."""
    whole = {(arm, seed): course(*[0.9] * 5) for arm in ("tpe.median", "gp.none") for seed in (0, 1)}
    more = {("tpe.median", 2): course(*[0.5] * 5), ("tpe.hyperband", 1): course(*[0.9] * 5)}

    sweeps = answer.load(write(tmp_path / "r", whole | more))

    assert sweeps.seeds == (0, 1)
    assert sweeps.arms == ("tpe.median", "gp.none")


def test_the_answer_shows_every_arm(tmp_path: Path) -> None:
    """Tables and figure are made of six arms and three seeds."""
    rng = np.random.default_rng(2)
    scores = {(arm, seed): course(*np.sort(0.9 + 0.1 * rng.random(5))) for arm in answer.MAIN for seed in range(3)}
    sweeps = answer.load(write(tmp_path / "r", scores))

    text = answer.document(tmp_path / "r", sweeps)
    drawn = answer.figure(sweeps)

    for name, arm in answer.MAIN.items():
        assert text.count(f"| {arm.title} |") == (3 if name == answer.DEFAULT else 4)
    assert len(drawn.axes[0].lines) == 6 * (1 + 2 * 5)


def test_every_block_has_every_arm_in_an_order_of_its_own() -> None:
    """All arms of a seed come before the next seed. The order depends on the seed alone."""
    sweeps = list(runner.order([*answer.MAIN], [0, 1, 2, 3]))
    blocks = [sweeps[start : start + 6] for start in range(0, 24, 6)]

    assert [{sweep.seed for sweep in block} for block in blocks] == [{0}, {1}, {2}, {3}]
    assert all({sweep.arm for sweep in block} == set(answer.MAIN) for block in blocks)
    few = [sweep for sweep in sweeps if sweep.arm in ("gp.none", "tpe.none")]
    assert list(runner.order(["tpe.none", "gp.none"], [0, 1, 2, 3])) == few


def test_a_sweep_is_kept_once_after_a_crash(tmp_path: Path) -> None:
    """Trials that were written before a crash, without their sweep, are replaced; other lengths are refused."""
    trials = table(*course(*[0.9] * 5)).assign(arm="gp.none", seed=0, epochs=10)
    row = {"arm": "gp.none", "seed": 0, "minutes": 20.0, "data": "digits"}
    runner.keep(tmp_path, trials, row)
    (tmp_path / "sweeps.csv").unlink()

    runner.keep(tmp_path, trials, row)

    assert len(pd.read_csv(tmp_path / "trials.csv")) == 5
    assert runner.done(tmp_path, 20.0, "digits") == [runner.Sweep("gp.none", 0)]
    with pytest.raises(SystemExit):
        runner.done(tmp_path, 5.0, "digits")
