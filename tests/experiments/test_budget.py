from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from services import wait_until

ROOT = Path(__file__).parents[2]
BUDGET = ROOT / "experiments" / "budget"
sys.path.insert(0, str(BUDGET))

import answer  # noqa: E402 - a script's folder is on its path
import run as runner  # noqa: E402

Row = tuple[int, str, float, float | None, float | None]  # trial, state, ended, validation, test


def table(*rows: Row) -> pd.DataFrame:
    """A sweep's trials."""
    return pd.DataFrame(rows, columns=["trial", "state", "ended", "val_accuracy", "test_accuracy"])


def write(results: Path, sweeps: dict[tuple[str, int], list[Row]], **more: Any) -> Path:
    """A results folder with these sweeps, by arm and seed."""
    frames = [table(*rows).assign(arm=arm, seed=seed, started=0.0, epochs=10) for (arm, seed), rows in sweeps.items()]
    facts = {"minutes": 20.0, "data": "mnist", "date": "2030-01-01", "cpu": "a CPU", "cores": 2, "commit": "abc"}
    facts |= {"first_started": 8.0, "other_cores": 0.1, "versions": "python 3", **more}
    results.mkdir(exist_ok=True)
    pd.concat(frames).to_csv(results / "trials.csv", index=False)
    pd.DataFrame([{"arm": arm, "seed": seed, **facts} for arm, seed in sweeps]).to_csv(
        results / "sweeps.csv", index=False
    )
    return results


def course(*scores: float) -> list[Row]:
    """A sweep whose best so far has these values at 1, 2, 5, 10 and 20 minutes; test is a point below."""
    return [
        (number, "COMPLETE", 60 * minutes, score, score - 0.01)
        for number, (minutes, score) in enumerate(zip(answer.MINUTES, scores, strict=True))
    ]


def options(results: Path, **more: Any) -> argparse.Namespace:
    """What run.py is called with, where nothing is left to run."""
    plain = {"data": "digits", "minutes": 20.0, "arms": ["tpe.median"], "blocks": [0], "seeds": 5, "sitting": 0.0}
    return argparse.Namespace(**plain | {"results": results, "work": results / "work"} | more)


# ------------------------------------------------------------------------------------------- the best so far


def test_the_best_so_far_is_of_complete_trials_that_have_ended() -> None:
    """A pruned trial's score doesn't count however high, a trial counts from its end on, a failed one never."""
    trials = table(
        (0, "COMPLETE", 20.0, 0.95, 0.90),
        (1, "PRUNED", 30.0, 0.99, 0.99),
        (2, "FAILED", 40.0, None, None),
        (3, "COMPLETE", 120.0, 0.97, 0.91),
        (4, "COMPLETE", 120.1, 0.98, 0.92),
    )

    assert answer.standing(trials, 1) == answer.BestComparison(3, 1, 0.95, 0.90)
    assert answer.standing(trials, 2) == answer.BestComparison(4, 1, 0.97, 0.91)
    assert answer.standing(trials, 5) == answer.BestComparison(5, 1, 0.98, 0.92)


def test_of_equals_the_first_trial_is_the_best() -> None:
    """As `mnistexp best` has it: the lower number, whichever ended first and whatever its test score."""
    trials = table((5, "COMPLETE", 10.0, 0.97, 0.99), (4, "COMPLETE", 20.0, 0.97, 0.90))

    assert answer.standing(trials, 1).test_accuracy == 0.90


def test_before_its_first_complete_trial_a_sweep_has_no_score(tmp_path: Path) -> None:
    """An arm one of whose sweeps has none yet shows no mean, rather than that of the others."""
    late: list[Row] = [(0, "COMPLETE", 90.0, 0.97, 0.96)]
    sweeps = answer.load(write(tmp_path / "r", {("tpe.median", 0): course(*[0.9] * 5), ("tpe.median", 1): late}))

    row = next(line for line in answer.score_tables(sweeps) if line.startswith("| TPE, median pruner"))

    assert [cell.strip() for cell in row.split("|")][2:4] == ["–", "93.50 ± 44.47"]


def test_the_curve_of_the_figure_is_the_best_so_far() -> None:
    """At every time the running best is what the table would say."""
    rng = np.random.default_rng(0)
    states = rng.choice(["COMPLETE", "PRUNED"], 40)
    rows = [(n, str(s), float(e), float(v), 0.5) for n, (s, e, v) in enumerate(zip(states, *rng.random((2, 40)) * 60))]
    times = np.linspace(0, 60, 50)

    curve = answer.running_best(table(*rows), times)

    assert curve.tolist() == pytest.approx(
        [answer.standing(table(*rows), t / 60).val_accuracy for t in times], nan_ok=True
    )


# --------------------------------------------------------------------------------------------- the comparison


def test_arms_are_compared_within_seeds(tmp_path: Path) -> None:
    """Differences, interval and test are those of the pairs, as SciPy has them; the family's correction is Holm's."""
    rng = np.random.default_rng(1)
    scores = {arm: 0.97 + 0.01 * rng.random((4, 5)).round(4) for arm in ("tpe.median", "tpe.none", "gp.none")}
    sweeps = {(arm, seed): course(*np.sort(rows[seed])) for arm, rows in scores.items() for seed in range(4)}
    loaded = answer.load(write(tmp_path / "r", sweeps))
    by_arm = {arm: np.sort(rows, axis=1) for arm, rows in scores.items()}

    found = loaded.difference("gp.none", 5)
    overall = loaded.difference("gp.none", None)

    reference = stats.ttest_rel(by_arm["gp.none"][:, 2], by_arm["tpe.median"][:, 2])
    interval = reference.confidence_interval()
    assert found is not None
    assert found.interval is not None
    assert found.p_value == pytest.approx(reference.pvalue)
    assert (found.interval.low, found.interval.high) == pytest.approx((interval.low, interval.high))
    means = [by_arm[arm].mean(axis=1) for arm in ("gp.none", "tpe.median")]
    assert overall is not None
    assert overall.values == pytest.approx(means[0] - means[1])
    last = [stats.ttest_rel(by_arm[arm].mean(axis=1), means[1]).pvalue for arm in ("tpe.none", "gp.none")]
    corrected = min(1.0, 2 * min(last))
    row = answer.difference_table(loaded)[2 + int(np.argmin(last))]
    assert f"p = {corrected:.2g} |" in row[row.rindex("p =") :]


def test_a_pair_on_two_machines_is_none(tmp_path: Path) -> None:
    """What a slower machine costs is not put down to the sampler; the means have all sweeps, and the text says so."""
    leads = {"tpe.median": 0.0, "gp.none": 0.01}
    scores = {(arm, seed): 0.9 + seed / 100 + lead for arm, lead in leads.items() for seed in range(3)}
    folder = write(tmp_path / "r", {sweep: course(*[score] * 5) for sweep, score in scores.items()})
    listed = pd.read_csv(folder / "sweeps.csv")
    listed.loc[(listed["arm"] == "gp.none") & (listed["seed"] == 1), ["cpu", "versions"]] = (
        "a slower CPU",
        "python 3, b 2",
    )
    listed.to_csv(folder / "sweeps.csv", index=False)

    sweeps = answer.load(folder)

    difference = sweeps.difference("gp.none", None)
    assert difference is not None
    assert difference.values == (0.01, 0.01)
    assert len(sweeps.overall("gp.none")) == 3
    told = "Differences leave out what ran on another machine than its pair: seed 1 of GP, no pruning."
    assert told in answer.document(folder, sweeps)
    assert answer.document(folder, sweeps).endswith("python 3, b 2\n")


def test_a_lead_without_noise_is_tested_against_that_of_rounding() -> None:
    """The same lead with every seed may be chance where it is few images; interval and p say the same."""
    few, many = (answer.paired([images / 5000] * 3, 1 / 5000) for images in (1, 10))
    equal = answer.paired([0.1 + 0.2 - 0.3, 0.0, 0.0], 1 / 5000)

    assert few.interval is not None
    assert few.p_value > 0.05
    assert few.interval.low < 0
    assert many.interval is not None
    assert 0 < many.p_value < 0.05
    assert many.interval.low > 0
    assert equal.p_value == 1.0
    assert answer.paired([0.002], 1 / 5000).interval is None


def test_the_step_between_accuracies_is_found_in_the_trials(tmp_path: Path) -> None:
    """Some two of many trials differ by one image, or by few; where none differ, nothing does."""
    rng = np.random.default_rng(3)
    sweep = course(*np.sort(rng.integers(4800, 4900, 5) / 5000))
    more: list[Row] = [(9, "COMPLETE", 90.0, 4850 / 5000, 0.9), (10, "COMPLETE", 91.0, 4851 / 5000, 0.9)]

    step = answer.load(write(tmp_path / "r", {("tpe.median", 0): [*sweep, *more]})).step

    assert step["val_accuracy"] == pytest.approx(1 / 5000)
    assert answer.smallest_step([0.97, 0.97]) == 1.0


def test_sweeps_that_agree_to_the_image_are_not_certain(tmp_path: Path) -> None:
    """Two equal scores have an interval all the same: that of the image that they are rounded to."""
    same = [(0, "COMPLETE", 9.0, 0.97, 0.9), (1, "COMPLETE", 10.0, 0.9698, 0.9)]
    sweeps = answer.load(write(tmp_path / "r", {("tpe.median", seed): same for seed in (0, 1)}))

    row = next(line for line in answer.score_tables(sweeps) if line.startswith("| TPE, median pruner"))

    assert row.split("|")[2].strip() == "97.00 ± 0.05"


def test_a_block_that_is_not_whole_is_left_out(tmp_path: Path) -> None:
    """Means are over the seeds that every arm has; a further arm that lacks one of them is left out itself."""
    whole = {(arm, seed): course(*[0.9] * 5) for arm in ("tpe.median", "gp.none") for seed in (0, 1)}
    more = {("tpe.median", 2): course(*[0.5] * 5), ("tpe.hyperband", 1): course(*[0.9] * 5)}

    sweeps = answer.load(write(tmp_path / "r", whole | more))

    assert sweeps.seeds == (0, 1)
    assert sweeps.arms == ("tpe.median", "gp.none")
    assert (
        "tpe.hyperband"
        in answer.load(write(tmp_path / "r", whole | {("tpe.hyperband", s): course(*[0.9] * 5) for s in (0, 1)})).arms
    )


def test_random_searchs_twins_say_what_pruning_stopped(tmp_path: Path) -> None:
    """A pruned trial whose twin ended above its sweep's best was stopped wrongly; scores that differ are said."""
    cut: list[Row] = [(0, "COMPLETE", 9.0, 0.97, 0.9), (1, "PRUNED", 12.0, 0.9, 0.9), (2, "PRUNED", 15.0, 0.9, 0.9)]
    kept: list[Row] = [
        (0, "COMPLETE", 9.0, 0.96, 0.9),
        (1, "COMPLETE", 12.0, 0.98, 0.9),
        (2, "COMPLETE", 15.0, 0.95, 0.9),
    ]
    sweeps = answer.load(write(tmp_path / "r", {("random.median", 0): cut, ("random.none", 0): kept}))

    text = answer.twins(sweeps)

    assert "Of 2 that the pruner stopped" in text
    assert "1 ended above the best" in text
    assert "Of 1 that are complete in both, 1 have another score" in text


def test_the_answer_shows_every_arm(tmp_path: Path) -> None:
    """Table and figure are made of six arms and three seeds, and name commit and machine."""
    rng = np.random.default_rng(2)
    scores = {(arm, seed): course(*np.sort(0.9 + 0.1 * rng.random(5))) for arm in answer.MAIN for seed in range(3)}
    sweeps = answer.load(write(tmp_path / "r", scores))

    text = answer.document(tmp_path / "r", sweeps)
    drawn = answer.figure(sweeps)

    assert all(
        text.count(f"| {arm.title} |") == (3 if name == answer.DEFAULT else 4) for name, arm in answer.MAIN.items()
    )
    assert "| 0 | 2030-01-01 | a CPU | 2 | abc | 8.0 | 0.10 |" in text
    assert len(drawn.axes[0].lines) == 6 * (1 + 2 * 5)


# ------------------------------------------------------------------------------------------------- the sweeps


def test_every_block_has_every_arm_in_an_order_of_its_own() -> None:
    """All arms of a seed come before the next seed, shuffled by it, always alike, whichever of them are asked for."""
    sweeps = list(runner.order([*answer.MAIN], [0, 1, 2, 3]))
    blocks = [sweeps[start : start + 6] for start in range(0, 24, 6)]

    assert [{sweep.seed for sweep in block} for block in blocks] == [{0}, {1}, {2}, {3}]
    assert all({sweep.arm for sweep in block} == set(answer.MAIN) for block in blocks)
    assert len({tuple(sweep.arm for sweep in block) for block in blocks}) > 1
    few = [sweep for sweep in sweeps if sweep.arm in ("gp.none", "tpe.none")]
    assert list(runner.order(["tpe.none", "gp.none"], [0, 1, 2, 3])) == few


def test_what_is_in_the_results_is_not_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A sweep that stands in sweeps.csv is skipped; the next one isn't, and is left for another sitting."""
    write(tmp_path / "r", {("tpe.median", 0): course(*[0.9] * 5)}, data="digits")

    runner.run_all(options(tmp_path / "r"))
    assert capsys.readouterr().err == ""
    runner.run_all(options(tmp_path / "r", blocks=[0, 1]))
    assert "go on" in capsys.readouterr().err


def test_sweeps_of_another_length_are_not_mixed(tmp_path: Path) -> None:
    """Results of 20 minutes aren't gone on with by sweeps of 5."""
    write(tmp_path / "r", {("tpe.median", 0): course(*[0.9] * 5)}, data="digits")

    with pytest.raises(SystemExit, match=r"has sweeps with minutes 20\.0, not 5\.0; give another --results"):
        runner.run_all(options(tmp_path / "r", minutes=5.0))


def test_a_sweep_is_kept_once_whatever_crashed(tmp_path: Path) -> None:
    """Trials that were written before a crash, without their sweep, are replaced and not doubled."""
    trials = table(*course(*[0.9] * 5)).assign(arm="gp.none", seed=0, epochs=10)
    row = {"arm": "gp.none", "seed": 0, "minutes": 20.0, "data": "digits"}
    runner.keep(tmp_path, trials, row)
    (tmp_path / "sweeps.csv").unlink()

    runner.keep(tmp_path, trials, row)

    assert len(pd.read_csv(tmp_path / "trials.csv")) == 5
    assert runner.done(tmp_path, 20.0, "digits") == [runner.Sweep("gp.none", 0)]


@pytest.mark.slow
def test_an_experiment_that_is_cut_off_goes_on(tmp_path: Path) -> None:
    """Stopped in its second sweep and started again, run.py keeps the first, runs the second anew, and answers."""
    words = ["--data", "digits", "--minutes", "0.05", "--blocks", "0", "--arms", "random.median", "tpe.none"]
    command = [sys.executable, str(BUDGET / "run.py"), *words, "--results", "results"]
    first, second = (sweep.name for sweep in runner.order(["random.median", "tpe.none"], [0]))
    inside = tmp_path / "budget"
    start: Callable[[], subprocess.Popen[str]] = lambda: subprocess.Popen(  # noqa: E731 - typed where it stands
        command, cwd=tmp_path, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )

    process = start()
    wait_until(lambda: (inside / second / "optuna.db").exists() or process.poll() is not None, 200, "the second sweep")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 1, said
    assert f"{second} ended with exit code 130; it will be run anew" in said
    kept = pd.read_csv(tmp_path / "results" / "sweeps.csv")
    printed, said = start().communicate(timeout=200)

    sweeps, trials = (pd.read_csv(tmp_path / "results" / f"{name}.csv") for name in ("sweeps", "trials"))
    assert [f"{row.arm}.{row.seed}" for row in kept.itertuples()] == [first]
    assert [f"{row.arm}.{row.seed}" for row in sweeps.itertuples()] == [first, second], said
    assert sweeps.iloc[[0]].equals(kept)
    assert {path.name for path in inside.iterdir()} == {first, second, f"{second}.cut-1"}
    baseline = trials[trials["trial"] == 0]
    assert baseline["val_accuracy"].nunique() == 1  # one config and one seed, so one score
    assert (trials["ended"] > trials["started"]).all()
    assert (sweeps["first_started"] > 1).all()  # seconds of starting up count
    assert "TPE, no pruning" in printed
    assert (tmp_path / "results" / "answer.png").stat().st_size > 10_000
