"""What the figures show: points, order and limits. Their look was compared by eye."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from runs import run_config
from trials import trial

from mnistexp.analysis import confirmation, progress
from mnistexp.analysis.by_value import Group, Groups, SeededConfig, SeedTest
from mnistexp.analysis.comparison import Rival
from mnistexp.analysis.confirmation import Confirmation, ConfirmedConfig
from mnistexp.analysis.history import Trial
from mnistexp.analysis.statistics import PairedTest, crossed, mean_interval
from mnistexp.report import axes, comparison_figures, figures, plot_style, space_figures
from mnistexp.tracking.records import State

ROOT = Path(__file__).resolve().parents[2]
RATE, UNITS, DROPOUT, ACTIVATION = (
    "optimizer.learning_rate",
    "model.hidden_units",
    "model.dropout",
    "model.activation",
)
ADAM = f"{RATE}@adam|nadam"
NAN = float("nan")


def sweep(count: int, seed: int = 0) -> list[Trial]:
    """Trials that end in another order than that of their numbers: a third pruned, two failed."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        state: State = "FAILED" if number in (3, 5) else "PRUNED" if number % 3 == 1 else "COMPLETE"
        params = {DROPOUT: rng.random() / 2, UNITS: rng.choice(["[300]", "[500]", "[300,100]", "[]"])}
        params |= {ADAM: 10 ** rng.uniform(-4, -1)} if number % 2 else {f"{RATE}@sgd": rng.uniform(0.01, 1)}
        start = rng.uniform(0, 500)
        scores = [rng.uniform(0.5, 0.9), rng.uniform(0.9, 0.98)]
        cost = {"seconds": rng.uniform(2, 90), "parameters": rng.choice([7850, 50890, 238510])}
        made.append(trial(number, scores, state, params, span=(start, start + rng.uniform(1, 90)), **cost))
    return made


def panel(figure: Figure, index: int = 0) -> Axes:
    """A panel of a figure, after its layout."""
    figure.draw_without_rendering()
    return figure.axes[index]


def lines(ax: Axes, label: str) -> list[list[list[float]]]:
    """The points of each line and error bar whose label begins like this."""
    found = [line for line in ax.lines if str(line.get_label()).startswith(label)]
    found += [bars.lines[0] for bars in ax.containers if str(bars.get_label()).startswith(label)]
    return [line.get_xydata().tolist() for line in found]


def points(ax: Axes, label: str) -> list[list[float]]:
    """The points of the scatters whose label matches."""
    found = [each for each in ax.collections if isinstance(each, PathCollection)]
    return [
        spot for each in found if re.fullmatch(label, str(each.get_label())) for spot in each.get_offsets().tolist()
    ]


def labels(axis: matplotlib.axis.Axis) -> list[str]:
    """The labels of the ticks."""
    return [text.get_text() for text in axis.get_ticklabels()]


# ------------------------------------------------------------------------------------------------- its course


@pytest.mark.parametrize("by", ["trials", "seconds"])
def test_the_best_so_far_is_the_running_maximum_in_the_order_of_the_ends(by: progress.By) -> None:
    """At each trial's end the steps have the best complete score until then; a pruned one never leads."""
    trials = [*sweep(40), trial(40, (0.999,), "PRUNED")]
    ended = progress.ended(trials)
    complete = [each.accuracy if each.state == "COMPLETE" else 0.0 for each in ended]

    ax = panel(figures.best_so_far(trials, by))

    ((*steps,),) = lines(ax, "best so far")
    running = np.maximum.accumulate(complete)
    assert [y for _, y in steps if np.isfinite(y)] == running[running > 0].tolist()
    every = points(ax, r"\d+ (complete|pruned|failed)(, below.*)?")
    assert sorted(x for x, _ in every) == [x for x, _ in steps]


def test_states_outliers_and_the_best_trial_have_their_places() -> None:
    """Failed trials and low outliers are on the lower end, which the outliers do not move; the best one is a star."""
    trials = [trial(number, (0.97 + number / 1000,)) for number in range(10)]
    trials += [trial(10, (0.1,)), trial(11, (0.99,), "PRUNED"), trial(12, (), "FAILED")]

    ax = panel(figures.best_so_far(trials))

    low = ax.get_ylim()[0]
    assert 0.96 < low < 0.97
    assert points(ax, "11 complete") == [[n + 1.0, 0.97 + n / 1000] for n in range(10)]
    assert points(ax, "1 complete, below.*") == [[11.0, low]]
    assert points(ax, "1 pruned") == [[12.0, 0.99]]
    assert points(ax, "1 failed") == [[13.0, low]]
    assert lines(ax, "best: #9") == [[[10.0, 0.979]]]


def test_studies_are_drawn_over_each_other() -> None:
    """Each line ends at its study's best; a study without a complete trial is named in the legend."""
    studies = {"wide": sweep(10, 1), "narrow": sweep(20, 2), "empty": [trial(0, (0.9,), "PRUNED")]}

    ax = panel(figures.best_so_far_compared(studies))

    ends = {name: lines(ax, name)[0][-1:] for name in studies}
    best = {name: axes.ranked(studies[name])[0].accuracy for name in ("wide", "narrow")}
    assert ends == {"wide": [[10.0, best["wide"]]], "narrow": [[20.0, best["narrow"]]], "empty": []}


def test_learning_curves_show_the_best_by_name_and_where_others_were_pruned() -> None:
    """The top trials have lines of their own, best first; pruned ones end in a cross."""
    trials = [trial(number, (0.8, 0.9, 0.951 + number / 10_000)) for number in range(6)]
    trials += [trial(6, (0.8, 0.85), "PRUNED"), trial(7, (0.82,), "PRUNED")]

    ax = panel(figures.curves(trials, top=4))

    assert [str(line.get_label())[:2] for line in ax.lines] == ["#5", "#4", "#3", "#2"]
    assert lines(ax, "#5") == [[[1.0, 0.8], [2.0, 0.9], [3.0, pytest.approx(0.9515)]]]
    background = [each for each in ax.collections if isinstance(each, LineCollection)]
    assert [len(each.get_segments()) for each in background] == [2, 2]
    assert points(ax, "2 pruned") == [[2.0, 0.85], [1.0, 0.82]]


@pytest.mark.parametrize("cost", ["seconds", "parameters"])
def test_the_pareto_front_holds_what_nothing_beats_at_its_cost(cost: progress.Cost) -> None:
    """The step line goes through exactly those trials than which no other is as cheap and better."""
    trials = axes.ranked(sweep(40))
    spots = {(progress.cost_of(each, cost), each.accuracy) for each in trials}
    front = sorted(a for a in spots if not any(b != a and b[0] <= a[0] and b[1] >= a[1] for b in spots))

    ax = panel(figures.pareto(trials, cost))

    ((*drawn, _),) = lines(ax, "Pareto front")
    assert drawn == [list(each) for each in front]
    assert ax.get_xscale() == "log"


# --------------------------------------------------------------------------------------------- hyperparameters


def test_names_are_as_short_as_they_can_be_told_apart() -> None:
    """The last part of a key, unless another key ends alike; a range of some options names these."""
    names = ["model.name", "optimizer.name", DROPOUT, ADAM, f"{RATE}@sgd"]

    short = ["model.name", "optimizer.name", "dropout", "learning_rate\n(adam, nadam)", "learning_rate\n(sgd)"]
    assert list(axes.short_names(names).values()) == short


@pytest.mark.parametrize(
    ("values", "categories"),
    [
        (["[500,200]", "[300]", "[]", "[300,100]", "[500]"], ("[]", "[300]", "[500]", "[300,100]", "[500,200]")),
        ([256, 64, 128, 64, 256, 128], ("64", "128", "256")),
        ([True, False], ("false", "true")),
        (["tanh", "relu", None], ("null", "relu", "tanh")),
        ([None, 2, 4, None, 2, 4], ("2", "4", "null")),
        ([0.1], ("0.1",)),
        ([0.1, 0.2, 0.4, None], ()),
        ([0.1, 0.2, 0.4, NAN], ()),
    ],
)
def test_few_values_are_categories_in_a_sensible_order(values: list[object], categories: tuple[str, ...]) -> None:
    """Numbers by size, lists by length and size, words by alphabet; null is a category, but no number."""
    trials = [trial(number, params={"a.b": value}) for number, value in enumerate(values)]

    parameter = axes.Parameter.read(trials, "a.b", "b")

    assert parameter.categories == categories
    assert np.count_nonzero(np.isfinite(parameter.values)) == (len(values) if categories else 3)


@pytest.mark.parametrize(("least", "log", "kind"), [(1e-4, [ADAM], True), (0.0, [ADAM], False), (1e-4, [], False)])
def test_what_was_searched_logarithmically_has_a_logarithmic_axis(least: float, log: list[str], kind: bool) -> None:
    """The study's space decides, not the values; 0 has no logarithm."""
    trials = [trial(number, params={ADAM: value}) for number, value in enumerate((least, 0.007, 0.008, 0.009))]

    ax = panel(space_figures.slices(trials, [RATE], log))

    assert (ax.get_xscale() == "log") == kind
    assert ax.get_xlim()[0] < min(x for x, _ in points(ax, "4 complete")) or kind


def test_slices_have_a_panel_for_each_parameter_with_the_trials_that_have_it() -> None:
    """Ranges of one key share a panel; a trial without the key is not in it; a dash is the median of the complete."""
    scores = (0.9, 0.97, 0.92)
    trials = [*sweep(30), *(trial(30 + n, (score,), params={"a.b": "on"}) for n, score in enumerate(scores))]
    trials.append(trial(33, (0.5,), "PRUNED", {"a.b": "on"}))

    figure = space_figures.slices(trials, [RATE, UNITS, "a.b", "no.such"], [ADAM])

    assert [ax.get_xlabel() for ax in figure.axes] == ["learning_rate", "hidden_units", "b"]
    assert [len(points(ax, r"\d+ (complete|pruned|failed)(, below.*)?")) for ax in figure.axes] == [34, 34, 4]
    assert labels(panel(figure, 1).xaxis) == ["[]", "[32]", "[300]", "[500]", "[300,100]"]  # [32]: of the config
    assert [y for _, y in lines(panel(figure, 2), "median")[0]] == [0.92, 0.92]


def test_parallel_lines_end_at_their_accuracy_and_break_where_a_parameter_is_missing() -> None:
    """The better of two ends further right; a line has no point at an axis whose parameter its trial lacks."""
    trials = [
        trial(0, (0.9,), params={"a.x": 1.5, "a.y": "p"}),
        trial(1, (0.95,), params={"a.y": "q"}),
        trial(2, (0.92,), params={"a.x": 2.5, "a.y": "p"}),
        trial(3, (0.8,), "PRUNED", {"a.x": 1.0, "a.y": "p"}),
    ]

    ax = panel(space_figures.parallel(trials, ["a.x", "a.y"]))

    (pruned,), (worse, good, top) = (each.get_segments() for each in ax.collections if isinstance(each, LineCollection))
    (best,) = lines(ax, "best: #1")
    assert pruned[-1][0] == 0  # below the limits
    assert 0 < worse[-1][0] < good[-1][0] < best[-1][0] == top[-1][0]
    assert np.isnan(best[0][0])
    assert len(worse) == 3
    assert worse[0][0] < good[0][0]


def test_a_heat_map_of_categories_has_the_means_of_the_complete_trials() -> None:
    """Each cell has its mean and number of trials; one without a complete trial is empty."""
    made = [("relu", "[300]", 0.9), ("relu", "[300]", 0.92), ("tanh", "[500]", 0.95), ("gelu", "[300]", 0.97)]
    trials = [trial(n, (s,), params={ACTIVATION: a, UNITS: u}) for n, (a, u, s) in enumerate(made)]
    trials.append(trial(9, (0.1,), "PRUNED", {ACTIVATION: "tanh", UNITS: "[300]"}))

    ax = panel(space_figures.heatmap(trials, UNITS, ACTIVATION))

    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells == {(0, 0): "97.0\n×1", (0, 1): "91.0\n×2", (1, 2): "95.0\n×1"}
    assert labels(ax.xaxis) == ["[300]", "[500]"]
    assert labels(ax.yaxis) == ["gelu", "relu", "tanh"]


def test_a_heat_map_of_numbers_has_a_point_for_each_trial() -> None:
    """All trials are drawn at their values; every complete one lies in a coloured cell."""
    trials = sweep(40)

    ax = panel(space_figures.heatmap(trials, RATE, DROPOUT, [ADAM]))

    assert len(points(ax, r"\d+ (complete|pruned|failed)")) == 40
    mesh = ax.collections[0]
    filled = ~np.ma.getmaskarray(np.ma.masked_invalid(mesh.get_array()))
    corners = mesh.get_coordinates()
    for x, y in points(ax, r"\d+ complete"):
        column, row = np.searchsorted(corners[0, :, 0], x) - 1, np.searchsorted(corners[:, 0, 1], y) - 1
        assert filled[row, column]
    assert not filled.all()


def test_importances_are_bars_largest_first() -> None:
    """The longest bar is on top, and its name beside it."""
    ax = panel(figures.importances({DROPOUT: 0.248, ADAM: 0.75, UNITS: 0.002, "a.b": NAN}))

    assert [bar.get_width() for bar in ax.patches] == [0.75, 0.248, 0.002]
    assert labels(ax.yaxis) == ["learning_rate\n(adam, nadam)", "dropout", "hidden_units"]


# --------------------------------------------------------------------------------------------------- the data


def test_errors_are_coloured_by_their_share_of_the_true_class() -> None:
    """2 of 10 are darker than 3 of 100; the diagonal has counts, but no colour."""
    ax = panel(figures.confusion([[97, 3, 0], [2, 8, 0], [0, 0, 50]], 3))

    np.testing.assert_allclose(ax.collections[0].get_array(), [[0, 0.03, 0], [0.2, 0, 0], [0, 0, 0]])
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    assert texts == {(0.5, 0.5): "97", (1.5, 0.5): "3", (0.5, 1.5): "2", (1.5, 1.5): "8", (2.5, 2.5): "50"}


def test_digits_are_drawn_pixel_by_pixel_under_their_titles() -> None:
    """Zero is white."""
    images = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)

    shown = [ax for ax in figures.digits(images, ["4 → 9", "1", ""]).axes if ax.images]

    assert [ax.get_title() for ax in shown] == ["4 → 9", "1", ""]
    np.testing.assert_array_equal(shown[1].images[0].get_array(), images[1])
    assert shown[0].images[0].to_rgba(np.zeros((1, 1)))[0, 0].tolist() == [1, 1, 1, 1]


# ------------------------------------------------------------------------------------------------- comparisons


def confirmed(*accuracies: float, test: confirmation.TestScore | None = None) -> Confirmation:
    """A confirmation of configs with about these accuracies, best first."""
    rng = np.random.default_rng(0)
    hardness = rng.random(400)
    correct = [(hardness + 0.05 * rng.standard_normal((3, 400)) < accuracy).astype("int8") for accuracy in accuracies]
    configs = []
    for number, mine in enumerate(correct):
        scores = tuple(mine.mean(axis=1).tolist())
        difference = crossed(correct[0] - mine, 0.95) if number else None
        noise, interval = crossed(mine, 0.95), mean_interval(scores, 0.95)
        configs.append(
            ConfirmedConfig(10 + number, max(scores) + 0.01, run_config(), (), scores, interval, noise, difference)
        )
    return Confirmation("confirm", 3, tuple(configs), test, "")


def _run(seed: int, score: float) -> Trial:
    return trial(seed, (score,), test_accuracy=score)


def groups(scores: dict[str, tuple[float, ...]], rates: Sequence[float] = (0.1,)) -> Groups:
    """Values with a config for each rate, of several seeds each; the scores are the first rate's."""
    made = []
    for value, seeds in scores.items():
        configs = tuple(
            SeededConfig({n: _run(n, score * (1 - 0.1 * place)) for n, score in enumerate(seeds)}, {RATE: rate})
            for place, rate in enumerate(rates)
        )
        behind = SeedTest(0.1, 2, False, 0.001, 0.001, True) if made and len(seeds) > 1 else None
        made.append(Group(value, configs, (), 0, 0, len(seeds), behind))
    return Groups(ACTIVATION, (RATE,), tuple(made), (), 0)


def test_rivals_have_bars_of_the_images_that_only_one_of_two_classified_correctly() -> None:
    """To the right the images of the best trial alone, to the left those of the other."""
    counts = [(5, 3), (40, 2)]
    versus = [Rival(trial(n), PairedTest(n, *pair, 0.1, 0.1, n == 1)) for n, pair in enumerate(counts)]

    ax = panel(comparison_figures.rivals(versus, 7))

    bars = {(round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in ax.patches}
    assert bars == {(0, 5), (0, -3), (1, 40), (1, -2)}
    assert labels(ax.yaxis) == ["#0", "#1"]


def test_confirmed_configs_show_their_seeds_their_mean_and_their_score_in_the_sweep() -> None:
    """A row for each config, and one for the test score."""
    found = confirmed(0.95, 0.94, 0.7, test=confirmation.TestScore(0.94, 0.92, 0.95, 1000, 1, 0.95))

    ax = panel(comparison_figures.confirmed(found))

    seeds = [[x for x, _ in line] for line in lines(ax, "one fresh seed")]
    assert seeds == [list(each.scores) for each in found.configs]
    assert [line[0][0] for line in lines(ax, "mean")] == [each.interval.mean for each in found.configs]
    assert [line[0][0] for line in lines(ax, "score")] == [each.val_accuracy for each in found.configs]
    assert lines(ax, "test") == [[[0.94, 3.0]]]
    assert labels(ax.yaxis) == ["#10", "#11", "#12", "#10 on test"]


def test_differences_to_the_chosen_config_are_drawn_by_their_significance() -> None:
    """A row for each other config."""
    found = confirmed(0.95, 0.949, 0.7)

    ax = panel(comparison_figures.noise(found.configs))

    near, far = (each.difference for each in found.configs[1:])
    assert near
    assert far
    assert lines(ax, "no significant") == [[[near.mean, 0.0]]]
    assert lines(ax, "significantly worse") == [[[far.mean, 1.0]]]


def test_values_are_rows_with_their_mean_and_their_seeds() -> None:
    """A value far below the others does not move the axis; its number is written there."""
    scores = {name: (0.95 + n / 1000, 0.96) for n, name in enumerate("abcdef")} | {"linear": (0.3, 0.32)}
    found = groups(scores)

    ax = panel(comparison_figures.by_value(found))

    means = [
        x for label in ("validation: best", "validation: significantly") for line in lines(ax, label) for x, _ in line
    ]
    assert means == pytest.approx([np.mean(scores[name]) for name in "abcdef"])
    assert [x for x, _ in lines(ax, "one seed")[2]] == pytest.approx(scores["b"])  # after the validation and test of a
    assert ax.get_xlim()[0] > 0.9
    assert {text.get_text().strip() for text in ax.texts} == {"31.00 %"}
    assert labels(ax.yaxis) == list(scores)


def test_means_are_drawn_over_the_other_number_in_a_panel_for_each_value() -> None:
    """Each config at its number, and a star at the value's best."""
    figure = comparison_figures.by_number(groups({"relu": (0.95, 0.96), "tanh": (0.9, 0.92)}, rates=(0.1, 0.001)))

    assert [ax.get_title(loc="left") for ax in figure.axes] == ["relu", "tanh"]
    ((low, high),) = lines(panel(figure, 1), "mean")
    assert (low[0], high) == (0.001, pytest.approx([0.1, 0.91]))
    assert lines(panel(figure, 1), "the value's best") == [[pytest.approx([0.1, 0.91])]]


# --------------------------------------------------------------------------------------- thin and odd data

HOSTILE = ("$\\frac{", "<b>" * 30, "\ud800\n漢")
STUDIES: dict[str, list[Trial]] = {
    "none": [],
    "one": [trial(0, params={ADAM: 0.001, DROPOUT: 0.1})],
    "two": [trial(0, params={ADAM: 0.001}), trial(1, (0.3, 0.8), params={DROPOUT: 0.3})],
    "failed": [trial(0, (), "FAILED", {ADAM: 0.1}), trial(1, (NAN,), "FAILED", {ADAM: 0.2})],
    "pruned": [trial(i, (i / 10,), "PRUNED", {ADAM: 0.1 * i + 0.1, DROPOUT: 0.2}) for i in range(4)],
    "constant": [trial(i, (0.9,), params={ADAM: 0.01, DROPOUT: 0.2}) for i in range(6)],
    "nan": [trial(i, (0.9, NAN), params={ADAM: NAN if i else 0.1, DROPOUT: NAN}) for i in range(3)],
    "unscored": [trial(0, (NAN,), params={ADAM: 0.1}), trial(1, (0.9,), params={ADAM: 0.2})],
    "perfect": [trial(i, (0.99, 1.0), params={ADAM: 0.1 * i + 0.1}) for i in range(3)],
    "zero": [trial(i, (0.0,), params={ADAM: 0.1 * i + 0.1, DROPOUT: 0.1 * i}) for i in range(3)],
    "hostile": [trial(i, (0.9 + i / 100,), params={ADAM: word, DROPOUT: word}) for i, word in enumerate(HOSTILE)],
    "free": [trial(0, seconds=0.0), trial(1, seconds=0.0)],
    "many": sweep(450),
}
DRAWN: dict[str, Callable[[Sequence[Trial]], Figure]] = {
    "best_so_far": figures.best_so_far,
    "over time": lambda trials: figures.best_so_far(trials, "seconds"),
    "compared": lambda trials: figures.best_so_far_compared({"a": trials, "b" * 100: trials, HOSTILE[2]: []}),
    "curves": figures.curves,
    "slices": lambda trials: space_figures.slices(trials, [RATE, DROPOUT, "no.such"], [ADAM]),
    "parallel": lambda trials: space_figures.parallel(trials, [RATE, DROPOUT, "no.such"], [ADAM]),
    "heatmap": lambda trials: space_figures.heatmap(trials, RATE, DROPOUT, [ADAM]),
    "pareto": figures.pareto,
    "parameters": lambda trials: figures.pareto(trials, "parameters"),
}
OTHERS: dict[str, Callable[[], Figure]] = {
    "no importances": lambda: figures.importances({"c.d": NAN}),
    "importances of 0": lambda: figures.importances({"a.b": 0.0}),
    "many importances": lambda: figures.importances({f"model.p{i}": 0.05 for i in range(20)}),
    "no classes": lambda: figures.confusion(np.zeros((0, 0)), 0),
    "perfect, with names": lambda: figures.confusion(np.eye(2), ["cat", "an animal with a long name"]),
    "many classes": lambda: figures.confusion(np.eye(26) * 5 + 1, 26),
    "no digits": lambda: figures.digits(np.zeros((0, 4, 4)), []),
    "black digits": lambda: figures.digits(np.zeros((9, 4, 5)), list("abcdefghi")),
    "no rivals": lambda: comparison_figures.rivals([]),
    "many rivals": lambda: comparison_figures.rivals(
        [Rival(trial(n), PairedTest(n, 0, 0, 1.0, 1.0, False)) for n in range(20)]
    ),
    "one confirmed": lambda: comparison_figures.confirmed(confirmed(0.9)),
    "perfect confirmed": lambda: comparison_figures.confirmed(confirmed(2.0, 2.0)),
    "no difference": lambda: comparison_figures.noise(confirmed(0.9).configs),
    "no values": lambda: comparison_figures.by_value(groups({})),
    "no values over a number": lambda: comparison_figures.by_number(groups({})),
    "one seed": lambda: comparison_figures.by_value(groups({"a": (0.9,)})),
    "equal seeds": lambda: comparison_figures.by_value(groups({"a": (1.0, 1.0), HOSTILE[2]: (1.0, 1.0)})),
    "one number": lambda: comparison_figures.by_number(groups({"a": (0.9, 0.9)})),
    "equal numbers": lambda: comparison_figures.by_number(groups({"a": (0.9, 0.9)}, rates=(0.2, 0.1, 0.1))),
    "many values": lambda: comparison_figures.by_value(groups({str(n): (0.9, 0.91) for n in range(25)})),
    "many panels": lambda: comparison_figures.by_number(
        groups({str(n): (0.9, 0.91) for n in range(13)}, rates=(0.1, 0.2))
    ),
}


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("name", DRAWN)
def test_thin_and_odd_studies_give_a_figure_or_a_sentence(name: str, study: str) -> None:
    """Nothing raises or warns, and thousands of points make no large file."""
    figure = DRAWN[name](STUDIES[study])

    assert plot_style.to_svg(figure).startswith("<svg")
    assert figure.axes or figure.texts


@pytest.mark.parametrize("name", OTHERS)
def test_other_thin_data_gives_a_figure_or_a_sentence(name: str) -> None:
    """Nothing raises or warns."""
    figure = OTHERS[name]()

    assert plot_style.to_png(figure, 50).startswith(b"\x89PNG")
    assert figure.axes or figure.texts


# ------------------------------------------------------------------------------------------------------- files


def test_the_users_matplotlib_settings_change_nothing_and_are_kept() -> None:
    """The same bytes under another matplotlibrc."""
    plain = figures.best_so_far(sweep(12))
    svg, png = plot_style.to_svg(plain), plot_style.to_png(plain)

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": None}):
        before = dict(matplotlib.rcParams)
        other = figures.best_so_far(sweep(12))
        assert plot_style.to_svg(other) == svg
        assert plot_style.to_png(other) == png
        assert dict(matplotlib.rcParams) == before


def test_a_fresh_interpreter_draws_the_same_bytes_without_pyplot() -> None:
    """Another process with other hashes; pyplot would keep every figure in its global list."""
    code = (
        "import sys, hashlib; sys.path[:0] = ['tests', 'tests/report']; from test_figures import *\n"
        "drawn = [plot_style.to_svg(draw(sweep(12))) for draw in DRAWN.values()]\n"
        "print(hashlib.sha256(''.join(drawn).encode()).hexdigest(), 'matplotlib.pyplot' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    here = "".join(plot_style.to_svg(draw(sweep(12))) for draw in DRAWN.values())

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == [hashlib.sha256(here.encode()).hexdigest(), "False"]


def test_svgs_share_no_id_and_refer_to_nothing_outside() -> None:
    """Several can be in one HTML page; each reference finds its id; many points are drawn as pixels."""
    pages = [plot_style.to_svg(figures.best_so_far(sweep(12))), plot_style.to_svg(figures.curves(sweep(2000)))]

    ids = [{each.get("id") for each in ElementTree.fromstring(page).iter() if each.get("id")} for page in pages]
    for page, own in zip(pages, ids):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) == own
        assert not re.search(r'(?:href|src)="(?!#|data:)|://', page)
        assert len(page) < 500_000
    assert not ids[0] & ids[1]
