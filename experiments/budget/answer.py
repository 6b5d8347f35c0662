"""Write tables and a figure from results/: the score of the best config over the minutes, for each arm.

python experiments/budget/answer.py [--results experiments/budget/results]

Reads trials.csv and sweeps.csv, writes answer.md and answer.png. The best is the complete trial with the highest
validation accuracy, the first of equal ones, as in `mnistexp best`. Its test accuracy is shown, but no choice depends
on it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from arms import ARMS, DEFAULT, EXTRA, MAIN
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from mnistexp.analysis.statistics import Interval, holm, mean_interval, paired_t, rounding_variance
from mnistexp.report.axes import accuracy_axis, accuracy_limits
from mnistexp.report.plot_style import new_figure, styled, to_png, with_legend

Floats = NDArray[np.float64]
KEY = ["arm", "seed"]
HERE = Path(__file__).resolve().parent
MINUTES = (1.0, 2.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class SweepState:
    """State of one sweep after some minutes."""

    trials: int  # that have ended by then
    pruned: int
    val_accuracy: float  # of the best config so far; NaN while no trial is complete
    test_accuracy: float  # of the same run


@dataclass(frozen=True)
class Difference:
    """Difference of an arm to the default, paired by seed."""

    values: tuple[float, ...]
    interval: Interval | None  # 95 %, of the mean; None with one seed
    p_value: float  # two-sided paired t-test; 1 with one seed


def state_after(trials: pd.DataFrame, minutes: float) -> SweepState:
    """Return the state of a sweep from its trials. A trial counts from the time at which its result exists."""
    ended = trials[trials["ended"] <= 60 * minutes]
    complete = ended[(ended["state"] == "COMPLETE") & np.isfinite(ended["val_accuracy"].astype(float))]
    ranked = complete.sort_values(["val_accuracy", "trial"], ascending=[False, True])
    best = ranked.iloc[0] if len(ranked) else {"val_accuracy": math.nan, "test_accuracy": math.nan}
    pruned = int((ended["state"] == "PRUNED").sum())
    return SweepState(len(ended), pruned, float(best["val_accuracy"]), float(best["test_accuracy"]))


@dataclass(frozen=True)
class Sweeps:
    """All arms over the seeds that each arm has. An incomplete block is left out."""

    trials: dict[tuple[str, int], pd.DataFrame]  # by arm and seed
    machine: dict[tuple[str, int], str]  # CPU, by arm and seed
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    minutes: float  # of each sweep
    step: dict[str, float]  # smallest difference (one image), by column of trials.csv

    def times(self) -> list[float]:
        """Return the minutes of the tables, up to the length of the sweeps."""
        return [minutes for minutes in MINUTES if minutes <= self.minutes] or [MINUTES[0]]

    def states(self, arm: str, minutes: float) -> list[SweepState]:
        """Return the states of an arm's sweeps, in the order of the seeds."""
        return [state_after(self.trials[arm, seed], minutes) for seed in self.seeds]

    def scores(self, arm: str, minutes: float) -> list[float]:
        """Return the validation accuracy of the best so far, by seed."""
        return [each.val_accuracy for each in self.states(arm, minutes)]

    def overall(self, arm: str) -> list[float]:
        """Return one number per seed: the mean of its scores at all times. The default is decided by it."""
        return [float(value) for value in np.mean([self.scores(arm, minutes) for minutes in self.times()], axis=0)]

    def unpaired(self, arm: str) -> list[int]:
        """Return the seeds for which arm and default ran on different machines: a faster one runs more trials."""
        return [seed for seed in self.seeds if self.machine[arm, seed] != self.machine[DEFAULT, seed]]

    def difference(self, arm: str, minutes: float | None) -> Difference | None:
        """Return the difference to the default; None if either lacks a score. Without `minutes`: of `overall`."""
        if DEFAULT not in self.arms:
            return None
        ours, default = (
            np.array(self.overall(each) if minutes is None else self.scores(each, minutes)) for each in (arm, DEFAULT)
        )
        leads = (ours - default)[np.isin(self.seeds, self.unpaired(arm), invert=True)]
        return paired(leads, self.step["val_accuracy"]) if len(leads) and np.all(np.isfinite(leads)) else None


def paired(values: Sequence[float] | Floats, step: float) -> Difference:
    """Return the mean of differences with its interval and test; `step`: smallest accuracy difference."""
    found = np.round(np.asarray(values, dtype=float), 12)  # equal accuracies may differ in the last bits
    if len(found) < 2:
        return Difference(tuple(found.tolist()), None, 1.0)
    floor = 2 * rounding_variance(step)  # for single accuracies; rounding affects a mean of several less
    return Difference(tuple(found.tolist()), mean_interval(found, floor=floor), paired_t(found, floor))


def smallest_step(accuracies: Sequence[float] | Floats) -> float:
    """Return the smallest difference of two accuracies: one image or more; 1 if all are equal."""
    return float(np.diff(np.unique(np.round(accuracies, 9))).min(initial=1.0))


def load(results: Path) -> Sweeps:
    """Read the sweeps in results/. Raises: SystemExit if there is none."""
    if not (results / "sweeps.csv").exists():
        raise SystemExit(f"{results} has no sweeps.csv; run experiments/budget/run.py first")
    listed = pd.read_csv(results / "sweeps.csv")
    trials = pd.read_csv(results / "trials.csv")
    by_sweep = {(str(arm), int(seed)): rows for (arm, seed), rows in trials.groupby(KEY)}
    machine = {(str(row.arm), int(row.seed)): str(row.cpu) for row in listed.itertuples()}
    keys = machine.keys()
    main = [arm for arm in MAIN if arm in {arm for arm, _ in keys}]
    seeds = tuple(seed for seed in sorted({seed for _, seed in keys}) if all((arm, seed) in keys for arm in main))
    extra = [arm for arm in EXTRA if all((arm, seed) in keys for seed in seeds)]  # an incomplete arm would drop blocks
    step = {name: smallest_step(trials[name].dropna().to_numpy(float)) for name in ("val_accuracy", "test_accuracy")}
    minutes = float(listed["minutes"].iloc[0])
    return Sweeps({key: by_sweep[key] for key in keys}, machine, (*main, *extra), seeds, minutes, step)


# ------------------------------------------------------------------------------------------------- the tables


def _mean(values: Sequence[float], step: float) -> str:
    """Format mean ± half of the 95 % interval in %; "–" if a seed has no value."""
    if not values or not np.all(np.isfinite(values)):
        return "–"
    if len(values) < 2:
        return f"{100 * values[0]:.2f}"
    found = mean_interval(values, floor=rounding_variance(step))
    return f"{100 * found.mean:.2f} ± {100 * (found.high - found.mean):.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = "| --- |" + " ---: |" * (len(head) - 1)
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows), ""]


def _clock(sweeps: Sweeps) -> list[str]:
    return [f"{minutes:g} min" for minutes in sweeps.times()]


def score_tables(sweeps: Sweeps) -> list[str]:
    """Return the tables of validation, test and counts: a row per arm, a column per time."""
    lines = []
    titles = {"val_accuracy": "validation accuracy of the best so far (%)", "test_accuracy": "its test accuracy (%)"}
    for name, title in titles.items():
        more = ["mean of these"] if name == "val_accuracy" else []
        rows, step = [], sweeps.step[name]
        for arm in sweeps.arms:
            cells = [_mean([getattr(s, name) for s in sweeps.states(arm, t)], step) for t in sweeps.times()]
            rows.append([ARMS[arm].title, *cells, *([_mean(sweeps.overall(arm), step)] if more else [])])
        lines += _table([title, *_clock(sweeps), *more], rows)
    counts = []
    for arm in sweeps.arms:
        means = [
            np.mean([(each.trials, each.pruned) for each in sweeps.states(arm, minutes)], axis=0)
            for minutes in sweeps.times()
        ]
        counts.append([ARMS[arm].title, *(f"{trials:.0f} ({pruned:.0f})" for trials, pruned in means)])
    return lines + _table(["trials ended by then (pruned), mean", *_clock(sweeps)], counts)


def difference_table(sweeps: Sweeps) -> list[str]:
    """Return the differences to the default: percentage points, 95 % interval, Holm-corrected p-value."""
    others = [arm for arm in sweeps.arms if arm != DEFAULT]
    times: list[float | None] = [*sweeps.times(), None]  # None: the mean over all times
    found = {(arm, t): sweeps.difference(arm, t) for arm in others for t in times}
    adjusted: dict[tuple[str, float | None], float] = {}
    for family in (times[:-1], times[-1:]):
        p_values = {key: each.p_value for key, each in found.items() if key[1] in family and each and each.interval}
        adjusted |= dict(zip(p_values, holm(np.array([*p_values.values()], dtype=float)).tolist(), strict=True))
    rows = [[ARMS[arm].title, *(_difference(found[arm, t], adjusted.get((arm, t))) for t in times)] for arm in others]
    return _table([f"less {ARMS[DEFAULT].title} (points)", *_clock(sweeps), "mean of these"], rows) + _unpaired(sweeps)


def _unpaired(sweeps: Sweeps) -> list[str]:
    """Return a note about the differences that have fewer seeds."""
    found = [
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} of {ARMS[arm].title}"
        for arm in sweeps.arms
        if (seeds := sweeps.unpaired(arm))
    ]
    note = f"Differences leave out what ran on another machine than its pair: {'; '.join(found)}."
    return [note, ""] if found else []


def _difference(found: Difference | None, p_value: float | None) -> str:
    if found is None:
        return "–"
    mean = 100 * float(np.mean(found.values))
    if found.interval is None or p_value is None:
        return f"{mean:+.2f}"
    return f"{mean:+.2f} [{100 * found.interval.low:+.2f}, {100 * found.interval.high:+.2f}], p = {p_value:.2g}"


def twins(sweeps: Sweeps) -> str:
    """Compare pruned trials of random search with the same trials run to their end.

    With the same seed both arms draw the same configs and seeds. So each pruned trial has a complete twin, if the other
    arm reached it. A trial that is complete in both must have the same score.
    """
    pairs = []
    for seed in sweeps.seeds:
        if {"random.median", "random.none"} <= set(sweeps.arms):
            cut, whole = sweeps.trials["random.median", seed], sweeps.trials["random.none", seed]
            best = cut.loc[cut["state"] == "COMPLETE", "val_accuracy"].max()
            pairs.append(cut.merge(whole, on="trial", suffixes=("", "_whole")).assign(best=best))
    if not pairs:
        return ""
    both = pd.concat(pairs)
    both = both[both["state_whole"] == "COMPLETE"]
    pruned, complete = both[both["state"] == "PRUNED"], both[both["state"] == "COMPLETE"]
    above = int((pruned["val_accuracy_whole"] > pruned["best"]).sum())
    differ = int((complete["val_accuracy"] != complete["val_accuracy_whole"]).sum())
    return (
        f"Random search draws the same trials with and without pruning. Of {len(pruned)} that the pruner stopped and "
        f"that ran to their end without it, {above} ended above the best of their pruned sweep. Of {len(complete)} "
        f"that are complete in both, {differ} have another score."
    )


def provenance(results: Path, sweeps: Sweeps) -> list[str]:
    """Return the date, machine, commit and load of each block. A block on two machines or commits lists both."""
    table = pd.read_csv(results / "sweeps.csv")
    table = table[table["seed"].isin(sweeps.seeds)]
    columns = {"machine": "cpu", "cores": "cores", "commit": "commit"}
    rows = []
    for seed, block in table.groupby("seed"):
        cells = [" / ".join(sorted({str(value) for value in block[column]})) for column in columns.values()]
        dates = " / ".join(sorted(set(block["date"])))
        load = f"{block['other_cores'].max():.2f}"
        rows.append([str(seed), dates, *cells, f"{block['first_started'].mean():.1f}", load])
    head = ["seed", "date", *columns, "s to the first trial, mean", "cores busy with something else, at most"]
    versions = dict.fromkeys(each for text in table["versions"] for each in text.split(", "))  # of all sweeps
    return [*_table(head, rows), ", ".join(versions), ""]


def document(results: Path, sweeps: Sweeps) -> str:
    """Return all tables as Markdown."""
    arms = f"{len(sweeps.arms)} arm{'s' * (len(sweeps.arms) != 1)}"
    seeds = f"seed{'s' * (len(sweeps.seeds) != 1)} {', '.join(map(str, sweeps.seeds))}"
    lines = [
        f"{arms}, {seeds}, {sweeps.minutes:g} minutes a sweep. ± and [ ] are 95 % t intervals over "
        "seeds; p-values are of paired t-tests, after Holm's correction over the arms (last column) or over all arms "
        "and times (the other columns). The validation accuracy of the best so far "
        "is biased upwards, more so with more trials; its test accuracy is not. No interval is shorter than the "
        "rounding of scores to one image makes it. Trials that failed count as trials.",
        "",
        *score_tables(sweeps),
    ]
    if DEFAULT in sweeps.arms and len(sweeps.arms) > 1:
        lines += difference_table(sweeps)
    lines += [text, ""] if (text := twins(sweeps)) else []
    return "\n".join(lines + provenance(results, sweeps)).rstrip() + "\n"


# ------------------------------------------------------------------------------------------------- the figure


@styled
def figure(sweeps: Sweeps) -> Figure:
    """Draw the best so far over the minutes: means as lines, 95 % intervals at the times of the table.

    Intervals of two seeds are only in the table: they extend 13 standard errors to each side and would hide the lines.
    """
    start = max(_first(sweeps.trials[arm, seed]) for arm in sweeps.arms for seed in sweeps.seeds) / 60
    grid = np.geomspace(min(start, 0.5), sweeps.times()[-1], 200)
    curves = {
        arm: np.mean([running_best(sweeps.trials[arm, seed], 60 * grid) for seed in sweeps.seeds], axis=0)
        for arm in sweeps.arms
    }
    drawn = new_figure(3.6)
    axes = drawn.subplots()
    ends = [value for curve in curves.values() for value in curve if math.isfinite(value)]
    for place, (arm, curve) in enumerate(curves.items()):
        look = ARMS[arm]
        line = {"color": look.color, "linestyle": look.line, "label": look.title}
        axes.plot(grid, curve, drawstyle="steps-post", linewidth=1.5, **line)
        ends += _whiskers(axes, sweeps, arm, 1.025 ** (place - (len(curves) - 1) / 2))
    accuracy_axis(axes, "y", accuracy_limits(ends), "best validation accuracy so far (%)")
    axes.set(xscale="log", xlim=(grid[0], grid[-1] * 1.12), xlabel="minutes since the command was typed")
    marks = sorted({t for t in (0.25, 0.5, *sweeps.times()) if t >= grid[0]})
    axes.xaxis.set_major_locator(FixedLocator(marks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return with_legend(drawn)


def running_best(trials: pd.DataFrame, seconds: Floats) -> Floats:
    """Return the best so far at each of these times; NaN before the first complete trial."""
    complete = trials[trials["state"] == "COMPLETE"].sort_values("ended")
    best = np.concatenate([[math.nan], np.maximum.accumulate(complete["val_accuracy"].to_numpy(dtype=float))])
    return best[np.searchsorted(complete["ended"].to_numpy(), seconds, side="right")]


def _first(trials: pd.DataFrame) -> float:
    """Return the seconds until the first complete trial."""
    return float(trials.loc[trials["state"] == "COMPLETE", "ended"].min())


def _whiskers(axes: Axes, sweeps: Sweeps, arm: str, aside: float) -> list[float]:
    """Draw an arm's intervals with a small offset, so that they do not overlap. Returns: their ends."""
    found: list[float] = []
    color = ARMS[arm].color
    for minutes in sweeps.times():
        scores = sweeps.scores(arm, minutes)
        if len(scores) > 2 and np.all(np.isfinite(scores)):
            interval = mean_interval(scores, floor=rounding_variance(sweeps.step["val_accuracy"]))
            axes.plot([minutes * aside] * 2, [interval.low, interval.high], color=color, linewidth=1.0)
            axes.plot([minutes * aside], [interval.mean], marker="o", markersize=3, color=color)
            found += [interval.low, interval.high]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    results = parser.parse_args().results
    sweeps = load(results)
    if not sweeps.seeds:
        raise SystemExit(f"{results} has no seed yet that all arms have; go on with experiments/budget/run.py")
    text = document(results, sweeps)
    (results / "answer.md").write_text(text)
    (results / "answer.png").write_bytes(to_png(figure(sweeps)))
    print(text)


if __name__ == "__main__":
    main()
