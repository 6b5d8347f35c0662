"""What the figures show: points, order and limits. Their look was compared by eye."""

from __future__ import annotations

import json
import re

import matplotlib
import numpy as np
import pytest
from histories import ACTIVATION, RATE, base, seeded, study, three_values, trial
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mnistexp.analysis import confirmation, progress
from mnistexp.analysis.by_value import by_value
from mnistexp.analysis.comparison import Rival
from mnistexp.analysis.confirmation import Confirmation, ConfirmedConfig
from mnistexp.analysis.history import Trial
from mnistexp.analysis.statistics import PairedTest, crossed, mean_interval
from mnistexp.report import axes, comparison_figures, figures, plot_style

LR, UNITS, KIND = "optimizer.learning_rate", "model.hidden_units", "model.activation"
SPACE = {**RATE, **ACTIVATION, "search.model.hidden_units": json.dumps({"values": [[], [300], [500]]})}
BETA = {"search.optimizer.beta_1": json.dumps({"low": 0.5, "high": 0.9, "log": False})}


def panel(figure: Figure, index: int = 0) -> Axes:
    """A panel of a figure, after its layout."""
    figure.draw_without_rendering()
    return figure.axes[index]


def lines(ax: Axes, label: str) -> list[list[list[float]]]:
    """The points of each line with a label that begins like this."""
    return [line.get_xydata().tolist() for line in ax.lines if str(line.get_label()).startswith(label)]


def points(ax: Axes, label: str) -> list[list[float]]:
    """The points of the scatters whose label matches."""
    found = [each for each in ax.collections if re.fullmatch(label, str(each.get_label()))]
    return [spot for each in found for spot in each.get_offsets().tolist()]


def labels(axis: matplotlib.axis.Axis) -> list[str]:
    """The labels of the ticks."""
    return [text.get_text() for text in axis.get_ticklabels()]


def mixed() -> tuple[Trial, ...]:
    """Good trials, one far below them, a pruned and a failed one; each ends after the one before."""
    trials = [trial(n, 80 + n, at=(n, n + 1)) for n in range(10)]
    trials += [trial(10, 10, at=(10, 11)), trial(11, 99, "PRUNED", at=(11, 12)), trial(12, 0, "FAILED", at=(12, 13))]
    return tuple(trials)


# ------------------------------------------------------------------------------------------------- its course


def test_states_outliers_and_the_best_trial_have_their_places() -> None:
    """Failed trials and low outliers are on the lower end, which the outliers do not move; a pruned one never leads."""
    ax = panel(figures.best_so_far([study(*mixed())]))

    low = ax.get_ylim()[0]
    assert 0.75 < low < 0.8
    assert points(ax, "11 complete") == [*([n + 1.0, (80 + n) / 100] for n in range(10)), [11.0, low]]
    assert points(ax, "1 pruned") == [[12.0, 0.99]]
    assert points(ax, "1 failed") == [[13.0, low]]
    assert points(ax, "best: #9.*") == [[10.0, 0.89]]
    assert lines(ax, "best so far") == [[*([n + 1.0, (80 + n) / 100] for n in range(10)), [13.0, 0.89]]]


def test_studies_are_drawn_over_each_other() -> None:
    """Each line ends at its study's best; a study without a complete trial is named in the legend."""
    wide, narrow = study(trial(0, 50), trial(1, 60), name="wide"), study(trial(0, 70, at=(0, 120)), name="narrow")

    ax = panel(figures.best_so_far([wide, narrow, study(trial(0, 90, "PRUNED"), name="empty")], "seconds"))

    assert [lines(ax, name)[0][-1:] for name in ("wide", "narrow", "empty")] == [[[1 / 60, 0.6]], [[2.0, 0.7]], []]


def test_learning_curves_show_the_best_by_name_and_where_others_were_pruned() -> None:
    """The top trials have lines of their own, best first; the others share one with gaps, and pruned ones end early."""
    trials = [trial(n, 90 + n, before=(0.8,)) for n in range(figures.CURVES + 2)]
    trials += [trial(20, 85, "PRUNED", before=(0.8,)), trial(21, 82, "PRUNED")]

    ax = panel(figures.curves(study(*trials)))

    assert [str(line.get_label())[:2] for line in ax.lines[: figures.CURVES]] == ["#7", "#6", "#5", "#4", "#3", "#2"]
    assert lines(ax, "#7") == [[[1.0, 0.8], [2.0, 0.97]]]
    (background,), (pruned,) = lines(ax, "2 other complete"), lines(ax, "2 pruned")
    np.testing.assert_array_equal(np.array(background)[:, 1], [0.8, 0.9, np.nan, 0.8, 0.91, np.nan])
    np.testing.assert_array_equal(np.array(pruned)[:, 1], [0.8, 0.85, np.nan, 0.82, np.nan])


@pytest.mark.parametrize("cost", ["seconds", "parameters"])
def test_the_pareto_line_goes_through_the_front(cost: progress.Cost) -> None:
    """And on to the right, over the trials that cost more and are not better."""
    made = [(80, 3, 10), (90, 2, 30), (85, 9, 20), (95, 5, 25)]
    found = study(*(trial(n, right, seconds=s, parameters=p) for n, (right, s, p) in enumerate(made)))

    ((*drawn, last),) = lines(panel(figures.pareto(found, cost)), "Pareto front")

    front = progress.pareto_front(found.ranked, cost)
    assert drawn == [[progress.cost_of(each, cost), each.accuracy] for each in front]
    assert last[1] == 0.95


# --------------------------------------------------------------------------------------------- hyperparameters


@pytest.mark.parametrize(
    ("space", "drawn", "categories"),
    [
        ({"values": [[], [300], [500, 200]]}, ["[300]", "[]", "[64]"], ("[]", "[300]", "[500,200]", "[64]")),
        ({"values": [256, 64]}, [64, 128, 256], ("256", "64", "128")),
        ({"values": [True, None, 0.5]}, [None, 0.5, True], ("true", "null", "0.5")),
        ({"low": 0, "high": 4, "log": False}, [3, 0, 1, 3], ("0", "1", "3")),
        ({"low": 0.0, "high": 1.0, "log": False}, [0.1, 0.1], ("0.1",)),
        ({"low": 0.0, "high": 1.0, "log": False}, [0.1, 0.2, 0.4], ()),
        ({"low": 0, "high": 90, "log": False}, list(range(9)), ()),
    ],
)
def test_choices_and_a_few_whole_numbers_are_categories(
    space: dict[str, object], drawn: list[object], categories: tuple[str, ...]
) -> None:
    """Choices in the order of the space, then what else the first trial has."""
    trials = [trial(number, params={"a.b": value}) for number, value in enumerate(drawn)]
    found = study(*trials, trial(99), searched={"search.a.b": json.dumps(space)})

    parameter = axes.Parameter.read(found, "a.b")

    assert parameter.categories == categories
    assert np.isfinite(parameter.values).tolist() == [True] * len(drawn) + [False]


@pytest.mark.parametrize(
    ("least", "log", "scale"), [(1e-4, True, "log"), (0.0, True, "linear"), (1e-4, False, "linear")]
)
def test_what_was_searched_logarithmically_has_a_logarithmic_axis(least: float, log: bool, scale: str) -> None:
    """The study's space decides, not the values; 0 has no logarithm."""
    space = {f"search.{LR}@adam": json.dumps({"low": least, "high": 1.0, "log": log})}
    trials = [trial(number, params={f"{LR}@adam": value}) for number, value in enumerate((least, 0.007, 0.009))]

    assert panel(figures.slices(study(*trials, searched=space), [LR])).get_xscale() == scale


def test_slices_have_a_panel_for_each_parameter_with_the_trials_that_have_it() -> None:
    """Ranges of one key share a panel, also where a trial has the config's value; one without the key is not in it."""
    space = {f"search.{LR}@{name}": RATE[f"search.{LR}"] for name in ("sgd", "adam")} | BETA
    drawn = (
        {f"{LR}@sgd": 0.1},
        {f"{LR}@adam": 0.002, "optimizer.beta_1": 0.6},
        {f"{LR}@adam": 0.003, "optimizer.beta_1": 0.7},
    )
    found = study(*(trial(n, 80 + n, params=params) for n, params in enumerate(drawn)), trial(3), searched=space)

    figure = figures.slices(found, [LR, "optimizer.beta_1"])

    assert [ax.get_xlabel() for ax in figure.axes] == ["learning_rate", "beta_1"]
    x = [[x for x, _ in points(ax, r"\d+ complete") if x is not None] for ax in figure.axes]
    assert x == [[0.1, 0.002, 0.003, base().optimizer.learning_rate], [0.6, 0.7]]


def test_the_heat_map_has_the_means_of_the_complete_trials() -> None:
    """Each cell has its mean and number of trials; one without a complete trial is empty."""
    made = [("relu", "[300]", 90), ("relu", "[300]", 92), ("tanh", "[500]", 95)]
    trials = [trial(n, right, params={KIND: kind, UNITS: units}) for n, (kind, units, right) in enumerate(made)]
    pruned = trial(9, 10, "PRUNED", params={KIND: "tanh", UNITS: "[300]"})
    found = study(*trials, pruned, searched={**SPACE, **BETA})

    figure = figures.heatmap(found, UNITS, KIND)

    assert figure
    ax = panel(figure)
    assert {text.get_position(): text.get_text() for text in ax.texts} == {(1, 0): "91.0\n×2", (2, 1): "95.0\n×1"}
    assert (labels(ax.xaxis), labels(ax.yaxis)) == (["[]", "[300]", "[500]"], ["relu", "tanh"])
    assert figures.heatmap(found, UNITS, "optimizer.beta_1") is None


def test_the_heat_map_of_numbers_counts_every_complete_trial() -> None:
    """Also those at the ends of the range."""
    trials = [trial(n, 80 + n, params={LR: 0.001 * 1.5**n, KIND: "relu"}) for n in range(10)]

    figure = figures.heatmap(study(*trials), LR, KIND)

    assert figure
    assert sum(int(text.get_text().partition("×")[2]) for text in panel(figure).texts) == 10


# --------------------------------------------------------------------------------------------------- the data


def test_digits_are_drawn_pixel_by_pixel_under_their_titles() -> None:
    """Zero is white."""
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)

    shown = [ax for ax in figures.digits(images, ["4 → 9", "1", ""]).axes if ax.images]

    assert [ax.get_title() for ax in shown] == ["4 → 9", "1", ""]
    np.testing.assert_array_equal(shown[1].images[0].get_array(), images[1])
    assert shown[0].images[0].to_rgba(np.zeros((1, 1)))[0, 0].tolist() == [1, 1, 1, 1]


# ------------------------------------------------------------------------------------------------- comparisons


def test_rivals_have_bars_of_the_images_that_only_one_of_two_classified_correctly() -> None:
    """To the right the images of the best trial alone, to the left those of the other."""
    counts = [(5, 3), (40, 2)]
    found = [Rival(trial(n), PairedTest(n, *pair, 0.1, 0.1, n == 1)) for n, pair in enumerate(counts)]

    ax = panel(comparison_figures.rivals(found))

    bars = {(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in ax.patches}
    assert bars == {(0, 5), (0, -3), (1, 40), (1, -2)}
    assert labels(ax.yaxis) == ["#0", "#1"]


def test_confirmed_configs_show_their_seeds_their_mean_and_their_score_in_the_sweep() -> None:
    """A row for each config, and one for the test score."""
    configs = []
    for number in (10, 11):
        correct = (np.random.default_rng(number).random((3, 400)) < 0.9).astype("int8")
        scores = tuple(correct.mean(axis=1).tolist())
        parts = (mean_interval(scores), crossed(correct), None)
        configs.append(ConfirmedConfig(number, max(scores) + 0.01, base(), (), scores, *parts))
    test = confirmation.TestScore(0.94, 0.92, 0.95, 1000, 1, 0.95)

    ax = panel(comparison_figures.confirmed(Confirmation("confirm", 3, tuple(configs), test, "")))

    assert [[x for x, _ in line] for line in lines(ax, "one fresh seed")] == [list(each.scores) for each in configs]
    assert [line[0][0] for line in lines(ax, "mean")] == [each.interval.mean for each in configs]
    assert [line[0][0] for line in lines(ax, "score")] == [each.val_accuracy for each in configs]
    assert lines(ax, "test") == [[[0.94, 2.0]]]
    assert labels(ax.yaxis) == ["#10", "#11", "#10 on test"]


def test_values_are_rows_with_their_mean_and_their_seeds() -> None:
    """A value far below the others does not move the axis."""
    made = {"relu": 950, "tanh": 940, "gelu": 945, "selu": 943, "elu": 941, "linear": 300}
    trials = [
        each
        for n, name in enumerate(made)
        for each in seeded(10 * n, name, 0.1, (made[name], made[name] + 2), tests=(0.94, 0.94))
    ]

    ax = panel(comparison_figures.by_value(by_value(study(*trials), KIND)))

    assert lines(ax, "validation: best") == [[[pytest.approx(0.951), -0.17]]]
    assert [x for x, _ in lines(ax, "one seed")[0]] == [0.95, 0.952]
    assert ax.get_xlim()[0] > 0.9
    assert [name.partition(":")[0] for name in labels(ax.yaxis)] == sorted(made, key=lambda name: -made[name])


def test_means_are_drawn_over_the_other_number_in_a_line_for_each_value() -> None:
    """Each config at its number."""
    ax = panel(comparison_figures.by_number(by_value(three_values(), KIND)))

    assert lines(ax, "relu") == [[[0.01, pytest.approx(0.912)], [0.1, pytest.approx(0.951)]]]
    assert lines(ax, "gelu") == [[[0.1, pytest.approx(0.9508)]]]


# ------------------------------------------------------------------------------------------------------- files


def test_the_users_matplotlib_settings_change_nothing_and_are_kept() -> None:
    """The same bytes under another matplotlibrc."""
    png = plot_style.to_png(figures.best_so_far([study(*mixed())]))

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black"}):
        before = dict(matplotlib.rcParams)
        assert plot_style.to_png(figures.best_so_far([study(*mixed())])) == png
        assert dict(matplotlib.rcParams) == before
