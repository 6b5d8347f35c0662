from __future__ import annotations

import hashlib
import itertools
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
import numpy.typing as npt
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from runs import run_config
from trials import trial

from mnistexp.analysis import confirmation
from mnistexp.analysis.comparison import Rival
from mnistexp.analysis.confirmation import Confirmation, ConfirmedConfig
from mnistexp.analysis.history import Trial
from mnistexp.analysis.statistics import compare_with_best, crossed, mean_interval, proportion_interval
from mnistexp.report import canvas, figures, scales
from mnistexp.tracking.records import State

ROOT = Path(__file__).resolve().parents[2]
RATE = "optimizer.learning_rate@adam|nadam"
UNITS = "model.hidden_units"
DROPOUT = "model.dropout"
NAN = float("nan")


def sweep(count: int, seed: int = 0) -> list[Trial]:
    """Trials that end in another order than that of their numbers, a third of them pruned, two of them failed."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        state: State = "FAILED" if number in (3, 5) else "PRUNED" if number % 3 == 1 else "COMPLETE"
        params = {DROPOUT: rng.random() / 2, UNITS: rng.choice(["[300]", "[500]", "[300,100]", "[]"])}
        if number % 2:
            params[RATE] = 10 ** rng.uniform(-4, -1)
        start = rng.uniform(0, 500)
        cost = {"seconds": rng.uniform(2, 90), "parameters": rng.choice([7850, 50890, 238510])}
        scores = [rng.uniform(0.5, 0.9), rng.uniform(0.9, 0.98)]
        made.append(trial(number, scores, state, params, span=(start, start + rng.uniform(1, 90)), **cost))
    return made


def axes_of(figure: Figure) -> Axes:
    """A figure's first panel, after all has found its place."""
    figure.draw_without_rendering()
    return figure.axes[0]


def line(axes: Axes, label: str) -> Line2D:
    """The one line with this label."""
    (found,) = [each for each in axes.lines if each.get_label() == label]
    return found


def points(axes: Axes, label: str) -> list[tuple[float, float]]:
    """The points that are drawn under this label."""
    found = [each for each in axes.collections if isinstance(each, PathCollection) and each.get_label() == label]
    return [(float(x), float(y)) for each in found for x, y in each.get_offsets()]


def words(figure: Figure) -> list[str]:
    """All texts of a figure, those of its legend too."""
    figure.draw_without_rendering()
    found = [text for axes in figure.axes for text in axes.findobj(matplotlib.text.Text)]
    found += [text for legend in figure.legends for text in legend.get_texts()] + list(figure.texts)
    return [text.get_text() for text in found if text.get_visible() and text.get_text()]


def x_labels(axes: Axes) -> list[str]:
    """The texts under an axis."""
    return [text.get_text() for text in axes.get_xticklabels()]


# ------------------------------------------------------------------------------------------------- its course


@pytest.mark.parametrize("by", ["trials", "seconds"])
def test_best_so_far_is_the_running_maximum_in_the_order_of_the_ends(by: figures.By) -> None:
    """At every trial's end the steps stand at the best complete score until then, however trials overlapped."""
    trials = sweep(40)
    ended = sorted(trials, key=lambda each: each.record.ended if each.record else 0)
    scores = [each.val_accuracy if each.state == "COMPLETE" else -1 for each in ended]
    running = np.maximum.accumulate(np.array(scores, dtype=float))

    axes = axes_of(figures.best_so_far(trials, by))

    steps = line(axes, "best so far")
    x, y = (np.asarray(data, dtype=float) for data in steps.get_data())
    drawn = sorted(points(axes, "complete") + points(axes, "pruned") + points(axes, "failed below"))
    places = [place for place, _ in drawn]
    shown = [y[np.searchsorted(x, place, side="right") - 1] for place in places]
    assert steps.get_drawstyle() == "steps-post"
    assert len(places) == 40
    np.testing.assert_allclose([each for each, best in zip(shown, running) if best >= 0], running[running >= 0])


def test_each_state_has_its_own_points_and_its_count_in_the_legend() -> None:
    """Complete, pruned and failed trials are told apart by their shapes, and counted."""
    figure = figures.best_so_far(sweep(12))

    axes = axes_of(figure)
    assert len(points(axes, "complete")) == 6
    assert len(points(axes, "pruned")) == 4
    assert len(points(axes, "failed below")) == 2  # on the axis: they have no score
    assert {y for _, y in points(axes, "failed below")} == {axes.get_ylim()[0]}
    assert {"6 complete", "4 pruned", "2 failed"} <= set(words(figure))


def test_the_best_trial_is_named() -> None:
    """The star stands where the best complete trial does, not where a pruned one was better."""
    trials = [trial(0, (0.9,)), trial(1, (0.95,), "PRUNED"), trial(2, (0.92,)), trial(3, (0.92,))]

    figure = figures.best_so_far(trials)

    star = line(axes_of(figure), "best")
    assert star.get_xydata().tolist() == [[3.0, 0.92]]
    assert "best: #2, 92.00 %" in words(figure)


@pytest.mark.parametrize(("seconds", "label"), [(5, "(s)"), (300, "(min)"), (9000, "(h)")])
def test_time_has_a_unit_that_suits_it(seconds: float, label: str) -> None:
    """Ten trials of five seconds are told in seconds, ten of hours in hours."""
    trials = [trial(number, seconds=seconds) for number in range(10)]

    axes = axes_of(figures.best_so_far(trials, "seconds"))

    assert axes.get_xlabel() == f"time with a trial at work {label}"
    assert 3 < axes.get_xlim()[1] < 60


def test_what_fails_utterly_does_not_squeeze_the_rest() -> None:
    """One trial at 10 % among trials at 97 to 98 % is a triangle on the axis, and the legend says so."""
    trials = [trial(number, (0.97 + number / 1000,)) for number in range(10)] + [trial(10, (0.1,))]

    figure = figures.best_so_far(trials)

    axes = axes_of(figure)
    low = axes.get_ylim()[0]
    assert 0.96 < low < 0.97
    assert points(axes, "complete below") == [(11.0, low)]
    assert any(text.startswith("1 below 9") for text in words(figure))


def test_studies_are_laid_over_each_other() -> None:
    """Each study has its line, its name and its best; one without a complete trial is named all the same."""
    studies = {"wide": sweep(10, 1), "narrow": sweep(20, 2), "empty": [trial(0, (0.9,), "PRUNED")]}

    figure = figures.best_so_far_compared(studies)

    texts = words(figure)
    best = {name: max(t.val_accuracy or 0 for t in trials if t.state == "COMPLETE") for name, trials in studies.items()
            if name != "empty"}  # fmt: skip
    ends = [each.get_ydata()[-1] for each in axes_of(figure).lines if each.get_label() != "_end"]
    assert ends == pytest.approx(list(best.values()))
    assert {f"{name}: {100 * value:.2f} %" for name, value in best.items()} <= set(texts)
    assert "empty: no complete trial" in texts
    looks = {(each.get_color(), each.get_linestyle()) for each in axes_of(figure).lines if each.get_label() != "_end"}
    assert len(looks) == 2


def test_curves_name_the_best_and_cross_out_the_pruned() -> None:
    """The top runs have labels that don't overlap, in the order of their ends; pruned ones end in a cross."""
    trials = [trial(number, (0.8, 0.9, 0.951 + number / 10_000)) for number in range(6)]
    trials += [trial(6, (0.8, 0.85), "PRUNED"), trial(7, (0.82,), "PRUNED")]

    figure = figures.curves(trials, top=4)

    axes = axes_of(figure)
    labels = {text.get_text().strip(): text for text in axes.texts}
    heights = [text.get_window_extent().y0 for text in labels.values()]
    (background,) = [each for each in axes.collections if isinstance(each, LineCollection)]
    assert list(labels) == ["#5: 95.15 %", "#4: 95.14 %", "#3: 95.13 %", "#2: 95.12 %"]
    assert heights == sorted(heights, reverse=True)
    assert all(upper - lower > 8 for upper, lower in itertools.pairwise(heights))
    assert len(background.get_segments()) == 4
    assert points(axes, "pruned") == [(2.0, 0.85), (1.0, 0.82)]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "validation accuracy (%)")


# ------------------------------------------------------------------------------------------------- parameters


def test_names_are_as_short_as_they_can_be_told_apart() -> None:
    """The last part of a key will do, unless another key ends alike; an option's own range says whose it is."""
    names = ["model.name", "optimizer.name", DROPOUT, RATE, "optimizer.learning_rate@sgd"]

    assert list(scales.labels(names).values()) == [
        "model.name",
        "optimizer.name",
        "dropout",
        "learning_rate (adam, nadam)",
        "learning_rate (sgd)",
    ]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        (["[500,200]", "[300]", "[]", "[300, 100]", "[500]"], ["none", "300", "500", "300-100", "500-200"]),
        ([256, 64, 128, 64, 256, 128], ["64", "128", "256"]),
        ([True, False], ["false", "true"]),
        (["tanh", "relu", None], ["relu", "tanh"]),
        ([0.1], ["0.1"]),
    ],
)
def test_categories_stand_in_a_sensible_order(values: list[object], shown: list[str]) -> None:
    """Layers by their number and size, numbers by size, words by alphabet; each in the middle of its place."""
    scale = scales.scale(values)

    assert [text for _, text in scale.ticks()] == shown
    assert [place for place, _ in scale.ticks()] == pytest.approx([(i + 0.5) / len(shown) for i in range(len(shown))])


def test_a_logarithmic_axis_has_equal_steps_between_powers_of_ten() -> None:
    """Values over four decades are spread by their logarithms, and none of them lies on the axis's end."""
    scale = scales.scale([0.0001, 0.0007, 0.002, 0.03, 1.0])

    marks = {text: place for place, text in scale.ticks()}
    assert scale.kind == "log"
    assert marks["0.01"] - marks["0.001"] == pytest.approx(marks["0.1"] - marks["0.01"])
    assert 0 < scale.at(0.0001) < scale.at(1.0) < 1


@pytest.mark.parametrize("log", [None, False])
def test_an_even_spread_is_linear_however_small_its_least_value(log: bool | None) -> None:
    """A dropout from 0.001 to 0.5 isn't logarithmic for having a small value."""
    assert scales.scale([0.001, 0.1, 0.2, 0.3, 0.4, 0.5], log).kind == "linear"


def test_what_was_searched_logarithmically_is_drawn_so_wherever_its_values_gathered() -> None:
    """What the study knows beats what the values look like."""
    gathered = [0.007, 0.008, 0.009, 0.0001]

    assert scales.scale(gathered, None).kind == "linear"
    assert scales.scale(gathered, scales.logarithmic("optimizer.learning_rate", [RATE])).kind == "log"
    assert scales.scale([0.0, *gathered], log=True).kind == "linear"  # 0 has no logarithm


def test_slices_have_a_panel_for_each_parameter_with_the_trials_that_have_it() -> None:
    """A conditional parameter's panel shows the trials that drew it, and none else."""
    trials = sweep(30)

    figure = figures.slices(trials, [RATE, DROPOUT, UNITS])

    panels = {axes.get_xlabel(): axes for axes in figure.axes}
    assert list(panels) == ["learning_rate\n(adam, nadam)", "dropout", "hidden_units"]
    drawn = {
        name: sum(len(points(axes, label)) for label in ("complete", "complete below", "pruned", "pruned below"))
        for name, axes in panels.items()
    }
    assert drawn == {"learning_rate\n(adam, nadam)": 13, "dropout": 28, "hidden_units": 28}
    assert x_labels(panels["hidden_units"]) == ["none", "300", "500", "300-100"]
    assert "validation accuracy (%)" in words(figure)


def test_slices_give_a_categorys_median() -> None:
    """The dash stands at the median of the complete trials alone."""
    scores = {"relu": [0.9, 0.92, 0.97], "tanh": [0.91]}
    trials = [trial(10 * len(name) + i, (score,), params={"model.activation": name})
              for name, values in scores.items() for i, score in enumerate(values)]  # fmt: skip
    trials = [trial(i, (each.val_accuracy or 0,), params=each.params) for i, each in enumerate(trials)]
    trials.append(trial(9, (0.5,), "PRUNED", {"model.activation": "tanh"}))

    axes = axes_of(figures.slices(trials, ["model.activation"]))

    dashes = [each.get_ydata()[0] for each in axes.lines if each.get_label() == "median"]
    assert dashes == [0.92, 0.91]


def test_null_is_a_choice_among_choices_and_no_place_among_numbers() -> None:
    """Trials without early stopping stand beside those with some patience; on an axis of numbers they can't."""
    choices = [trial(i, (0.9 + i / 100,), params={"trainer.patience": (None, 2, 4)[i % 3]}) for i in range(9)]
    numbers = [trial(i, (0.9,), params={"trainer.patience": float(i) / 7 or None}) for i in range(9)]

    slices = axes_of(figures.slices(choices, ["trainer.patience"]))
    cells = axes_of(figures.heatmap([trial(i, (0.9,), params={**each.params, "a.x": "p"})
                                     for i, each in enumerate(choices)], "trainer.patience", "a.x"))  # fmt: skip

    assert x_labels(slices) == ["2", "4", "null"]
    assert len(points(slices, "complete")) == 9
    assert [text.get_text() for text in cells.texts] == ["90.0\n×3"] * 3
    assert len(points(axes_of(figures.slices(numbers, ["trainer.patience"])), "complete")) == 8


def test_parallel_lines_end_at_their_accuracy_and_break_where_a_parameter_is_missing() -> None:
    """Of two trials the better ends further right; one that was refused a parameter has a gap there."""
    trials = [
        trial(0, (0.9,), params={"a.x": 1.5, "a.y": "p"}),
        trial(1, (0.95,), params={"a.y": "q"}),
        trial(2, (0.92,), params={"a.x": 2.5, "a.y": "p"}),
        trial(3, (0.8,), "PRUNED", {"a.x": 1.0, "a.y": "p"}),
    ]

    axes = axes_of(figures.parallel(trials, ["a.x", "a.y"]))

    layers = {each.get_label(): each.get_segments() for each in axes.collections if isinstance(each, LineCollection)}
    assert {label: len(lines) for label, lines in layers.items()} == {"pruned": 1, "complete": 2, "best": 1}
    worse, good, best = *layers["complete"], *layers["best"]
    assert worse[-1][0] < good[-1][0] < best[-1][0]
    assert len(best) == 2  # it begins at the second axis: it has no a.x
    assert len(worse) == 3
    assert [text.get_text() for text in axes.get_yticklabels()] == ["x", "y", "validation\naccuracy (%)"]


def test_conditional_learning_rates_share_an_axis_in_parallel() -> None:
    """All optimizers' learning rates lie on one axis, so that no line breaks."""
    trials = [
        trial(0, params={RATE: 0.001}),
        trial(1, params={"optimizer.learning_rate@sgd": 0.1}),
        trial(2, params={RATE: 0.01}),
    ]

    axes = axes_of(figures.parallel(trials, [RATE, "optimizer.learning_rate@sgd"]))

    assert [text.get_text() for text in axes.get_yticklabels()] == ["learning_rate", "validation\naccuracy (%)"]
    assert all(len(path) == 2 for each in axes.collections for path in each.get_segments())


def test_a_heat_maps_cells_are_the_means_of_their_complete_trials() -> None:
    """Each cell of two choices says its mean and its number of trials; a cell without one stays white."""
    rng = random.Random(1)
    made = [(rng.choice(["relu", "tanh", "gelu"]), rng.choice(["[300]", "[500]"]), rng.uniform(0.9, 0.98))
            for _ in range(20)]  # fmt: skip
    made = [(act, units, score) for act, units, score in made if (act, units) != ("gelu", "[500]")]
    trials = [trial(i, (s,), params={"model.activation": a, UNITS: u}) for i, (a, u, s) in enumerate(made)]
    trials.append(trial(99, (0.1,), "PRUNED", {"model.activation": "relu", UNITS: "[300]"}))
    wanted = {
        f"{100 * np.mean(scores):.1f}\n×{len(scores)}"
        for cell in itertools.product(["relu", "tanh", "gelu"], ["[300]", "[500]"])
        if (scores := [s for a, u, s in made if (a, u) == cell])
    }

    axes = axes_of(figures.heatmap(trials, UNITS, "model.activation"))

    assert {text.get_text() for text in axes.texts} == wanted
    assert len(wanted) == 5
    assert x_labels(axes) == ["300", "500"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["gelu", "relu", "tanh"]
    assert axes.get_ylim() == (1.0, 0.0)  # read from above


def test_a_heat_map_of_numbers_has_a_dot_for_each_trial() -> None:
    """Bins are coloured where a complete trial is; the trials lie over them, and one outside has no colour."""
    trials = [each for each in sweep(40) if RATE in each.params]

    axes = axes_of(figures.heatmap(trials, RATE, DROPOUT))

    mesh = axes.collections[0]
    filled = np.ma.masked_invalid(mesh.get_array())
    assert {label: len(points(axes, label)) for label in ("complete", "pruned", "failed")} == {
        state.lower(): sum(each.state == state for each in trials) for state in ("COMPLETE", "PRUNED", "FAILED")
    }
    assert 0 < filled.count() < filled.size


def test_importances_are_bars_with_their_shares_largest_first() -> None:
    """Shares stand beside their bars in percent; what is less than half a percent isn't called nothing."""
    figure = figures.importances({DROPOUT: 0.248, RATE: 0.75, UNITS: 0.002})

    axes = axes_of(figure)
    bars = [bar.get_width() for bar in axes.patches]
    assert bars == [0.75, 0.248, 0.002]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "learning_rate\n(adam, nadam)",
        "dropout",
        "hidden_units",
    ]
    assert [text.get_text().strip() for text in axes.texts] == ["75 %", "25 %", "< 1 %"]


@pytest.mark.parametrize("cost", ["seconds", "parameters"])
def test_the_front_holds_what_nothing_beats_at_its_price(cost: figures.Cost) -> None:
    """The step line passes through exactly those trials that no other is as cheap and better than."""
    trials = [each for each in sweep(40) if each.state == "COMPLETE"]
    spots = {
        (fit.seconds if cost == "seconds" else float(fit.parameters), fit.best.val_accuracy)
        for each in trials
        if each.record and each.record.result and (fit := each.record.result.fit)
    }
    front = sorted(a for a in spots if not any(b != a and b[0] <= a[0] and b[1] >= a[1] for b in spots))

    axes = axes_of(figures.pareto(trials, cost))

    drawn = line(axes, "front").get_xydata()
    assert axes.get_xscale() == "log"
    assert [tuple(spot) for spot in drawn][:-1] == front
    assert axes.get_xlabel() == ("training time (s)" if cost == "seconds" else "trainable parameters")
    assert any(re.fullmatch(r"[\d.]+k?", text) for text in x_labels(axes))


# --------------------------------------------------------------------------------------------------- the data


def test_confusions_are_coloured_by_their_share_of_the_row() -> None:
    """2 of 10 are darker than 3 of 100; the diagonal is grey, and what never happened is left white."""
    matrix = [[97, 3, 0], [2, 8, 0], [0, 0, 50]]

    axes = axes_of(figures.confusion(matrix, 3))

    wrong, diagonal = (np.asarray(image.get_array()) for image in axes.images)
    texts = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    np.testing.assert_allclose(wrong, [[0, 0.03, 0], [0.2, 0, 0], [0, 0, 0]])
    assert texts == {(0, 0): "97", (0, 1): "3", (1, 0): "2", (1, 1): "8", (2, 2): "50"}
    assert np.ma.count(axes.images[1].get_array()) == 3
    assert diagonal.shape == (3, 3)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("taken for", "true class")


def test_many_classes_have_colours_without_numbers() -> None:
    """Letters have 26 classes: no room for 676 numbers, so there is a colour bar."""
    figure = figures.confusion(np.eye(26, dtype=int) * 5 + 1, 26)

    assert not axes_of(figure).texts
    assert "share of the class's images (%)" in words(figure)


def test_digits_are_drawn_as_they_are_ink_on_paper_under_their_titles() -> None:
    """Flat images and square ones give the same pictures, of just their pixels."""
    flat = np.arange(3 * 16, dtype=np.uint8).reshape(3, 16)

    one, other = (figures.digits(images, ["4 → 9", "1", ""]) for images in (flat, flat.reshape(3, 4, 4)))

    shown = [axes for axes in one.axes if axes.images]
    assert [axes.get_title() for axes in shown] == ["4 → 9", "1", ""]
    np.testing.assert_array_equal(shown[1].images[0].get_array(), flat[1].reshape(4, 4))
    assert canvas.to_png(one) == canvas.to_png(other)
    image = shown[0].images[0]
    assert to_rgb(image.cmap(image.norm(0))) == (1.0, 1.0, 1.0)


# ------------------------------------------------------------------------------------------------ is it real?


def hits(*accuracies: float, images: int = 400, seeds: int = 3) -> list[npt.NDArray[np.bool_]]:
    """For each config which images its seeds got right."""
    rng = np.random.default_rng(0)
    hardness = rng.random(images)
    return [hardness + 0.05 * rng.standard_normal((seeds, images)) < accuracy for accuracy in accuracies]


def confirm(*accuracies: float, test: confirmation.TestScore | None = None) -> Confirmation:
    """A confirmation of configs with these true accuracies, best first."""
    matrices = hits(*accuracies)
    rivals = []
    for number, mine in enumerate(matrices):
        scores = tuple(float(score) for score in mine.mean(axis=1))
        behind = None if not number else crossed(matrices[0].astype("int8") - mine.astype("int8"), 0.95)
        interval, noise = mean_interval(scores, 0.95), crossed(mine, 0.95)
        rivals.append(
            ConfirmedConfig(10 + number, max(scores) + 0.01, run_config(), (), scores, interval, noise, behind)
        )
    return Confirmation("confirm", 3, tuple(rivals), test, "")


def test_rivals_are_weighed_by_the_images_that_tell_them_apart() -> None:
    """To the right what only the best got right, to the left what only the rival did; the rest can't be told apart."""
    matrix = np.concatenate([each[:1] for each in hits(0.95, 0.94, 0.6)])
    tests = compare_with_best(matrix)
    versus = [Rival(trial(test.index), test) for test in tests]

    figure = figures.rivals(versus, 7)

    axes = axes_of(figure)
    bars = [bar.get_width() for bar in axes.patches]
    assert bars == [value for test in tests for value in (test.only_best, -test.only_this)]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["#1", "#2"]
    assert {"1 really worse", "1 can't be told apart", "only #7 →"} <= set(words(figure))


def test_confirmed_configs_show_their_seeds_their_intervals_and_their_luck() -> None:
    """A row for each config: its seeds' scores, its mean, both intervals, and the score it had in the sweep."""
    test = confirmation.TestScore(0.94, *proportion_interval(940, 1000, 0.95), 1000, 1, 0.95)
    found = confirm(0.95, 0.94, 0.7, test=test)

    figure = figures.confirmed(found)

    axes = axes_of(figure)
    seeds = [tuple(each.get_xdata()) for each in axes.lines if each.get_label() == "seeds"]
    sweeps = [each.get_xdata()[0] for each in axes.lines if each.get_label() == "sweep"]
    means = [each.get_xdata()[0] for each in axes.lines if each.get_label() == "mean"]
    assert seeds == [each.scores for each in found.configs]
    assert sweeps == [each.val_accuracy for each in found.configs]
    assert means == [each.interval.mean for each in found.configs]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["#10", "#11", "#12", "#10 on test"]
    assert list(line(axes, "test interval").get_xdata()) == [test.low, test.high]


def test_noise_shows_who_is_really_behind() -> None:
    """Differences in percentage points with their intervals: hollow where those reach zero, else filled."""
    found = confirm(0.95, 0.949, 0.7)

    figure = figures.noise(found.configs)

    axes = axes_of(figure)
    means = [each for each in axes.lines if each.get_label() == "mean"]
    assert [each.get_xdata()[0] for each in means] == [
        each.difference.mean for each in found.configs if each.difference
    ]
    assert [each.get_markerfacecolor() == "white" for each in means] == [True, False]
    assert {"1 really behind", "1 can't be told apart"} <= set(words(figure))
    assert axes.get_xlabel() == "behind #10 (percentage points)"


# --------------------------------------------------------------------------------------- thin and odd data

HOSTILE = ("$\\frac{", "<b>" * 30, "\ud800\n")

STUDIES: dict[str, list[Trial]] = {
    "none": [],
    "one": [trial(0, params={RATE: 0.001, DROPOUT: 0.1})],
    "two": [trial(0, params={RATE: 0.001}), trial(1, (0.3, 0.8), params={DROPOUT: 0.3})],
    "failed": [trial(0, (), "FAILED", {RATE: 0.1}), trial(1, (NAN,), "FAILED", {RATE: 0.2})],
    "pruned": [trial(i, (i / 10,), "PRUNED", {RATE: 0.1 * i + 0.1, DROPOUT: 0.2}) for i in range(4)],
    "constant": [trial(i, (0.9,), params={RATE: 0.01, DROPOUT: 0.2}) for i in range(6)],
    "nan": [trial(i, (0.9, NAN), params={RATE: NAN if i else 0.1, DROPOUT: NAN}) for i in range(3)],
    "unscored": [trial(0, (NAN,), params={RATE: 0.1}), trial(1, (0.9,), params={RATE: 0.2})],
    "perfect": [trial(i, (0.99, 1.0), params={RATE: 0.1 * i + 0.1}) for i in range(3)],
    "hostile": [
        trial(i, (0.9 + i / 100,), params={RATE: w}) for i, w in enumerate(["$\\frac{", "<b>" * 30, "\ud800\n"])
    ],
    "free": [trial(0, seconds=0.0), trial(1, seconds=0.0)],
    "many": sweep(450),
}

DRAWN: dict[str, Callable[[Sequence[Trial]], Figure]] = {
    "best_so_far": figures.best_so_far,
    "over time": lambda trials: figures.best_so_far(trials, "seconds"),
    "compared": lambda trials: figures.best_so_far_compared({"a": trials, "b" * 100: trials}),
    "curves": figures.curves,
    "slices": lambda trials: figures.slices(trials, [RATE, DROPOUT, "model.activation", "no.such"]),
    "parallel": lambda trials: figures.parallel(trials, [RATE, DROPOUT, "no.such"]),
    "heatmap": lambda trials: figures.heatmap(trials, RATE, DROPOUT),
    "pareto": figures.pareto,
    "parameters": lambda trials: figures.pareto(trials, "parameters"),
}


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("name", DRAWN)
def test_thin_and_odd_studies_give_a_figure_all_the_same(name: str, study: str) -> None:
    """Nothing crashes, nor warns: where there is nothing to draw, a sentence says why."""
    figure = DRAWN[name](STUDIES[study])

    assert canvas.to_svg(figure).startswith("<svg")
    assert figure.axes or figure.texts


@pytest.mark.parametrize(
    "figure",
    [
        figures.importances({}),
        figures.importances({"a.b": 0.0, "c.d": NAN}),
        figures.importances({f"model.p{i}": 0.05 for i in range(20)}),
        figures.confusion(np.zeros((0, 0)), 0),
        figures.confusion(np.eye(2), ["cat", "an animal with a long name"]),
        figures.digits(np.zeros((0, 4)), []),
        figures.digits(np.zeros((1, 7)), ["a strip"]),
        figures.digits(np.random.default_rng(0).random((9, 4, 5, 3)), list("abcdefghi")),
        figures.rivals([]),
        figures.confirmed(confirm(0.9)),
        figures.noise(confirm(0.9).configs),
    ],
)
def test_other_thin_data_gives_a_figure_too(figure: Figure) -> None:
    """No importances, no images, no rivals: each has its sentence or its small figure."""
    assert canvas.to_png(figure, 50).startswith(b"\x89PNG")


def test_a_sentence_says_what_is_missing() -> None:
    """Nobody is left with an empty frame."""
    assert words(figures.pareto([])) == ["No trial is complete yet."]
    assert words(figures.heatmap(STUDIES["one"], RATE, "model.x")) == [
        "No complete trial has both learning_rate (adam, nadam) and x."
    ]


# ------------------------------------------------------------------------------------------- on page and paper


def test_labels_are_moved_apart_as_little_as_it_takes() -> None:
    """Their order stays, neighbours keep the gap, none leaves the axis, and who has room stays where it is."""
    assert canvas.spread([0.2, 0.5], 0.1, 0, 1) == [0.2, 0.5]
    assert canvas.spread([0.5, 0.5, 0.5], 0.1, 0, 1) == pytest.approx([0.4, 0.5, 0.6])
    assert canvas.spread([1.0, 1.0, 0.0], 0.2, 0, 1) == pytest.approx([0.8, 1.0, 0.0])
    assert canvas.spread([0.5] * 5, 9.0, 0, 1) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert canvas.spread([], 0.1, 0, 1) == []


def test_a_drawing_is_the_same_to_the_byte_whatever_the_users_settings() -> None:
    """A matplotlibrc of the user's changes nothing, nor is anything of it changed."""
    trials = sweep(12)
    plain = figures.best_so_far(trials)
    svg, png = canvas.to_svg(plain), canvas.to_png(plain)

    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "black", "svg.hashsalt": None}):
        before = dict(matplotlib.rcParams)
        other = figures.best_so_far(trials)
        assert canvas.to_svg(other) == svg
        assert canvas.to_png(other) == png
        assert dict(matplotlib.rcParams) == before


def test_a_fresh_interpreter_draws_the_same_and_loads_no_pyplot() -> None:
    """Another process, with other hashes, gives the same bytes; and no figure is left in pyplot's global list."""
    code = (
        "import sys, hashlib; sys.path[:0] = ['tests', 'tests/report']; from test_figures import *\n"
        "drawn = [canvas.to_svg(draw(sweep(12))) for draw in DRAWN.values()]\n"
        "print(hashlib.sha256(''.join(drawn).encode()).hexdigest(), 'matplotlib.pyplot' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT)}
    here = "".join(canvas.to_svg(draw(sweep(12))) for draw in DRAWN.values())

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == [hashlib.sha256(here.encode()).hexdigest(), "False"]


def test_svgs_can_stand_in_one_page() -> None:
    """No id of one is another's, each reference finds its id, and nothing is fetched from elsewhere."""
    trials = sweep(12)
    pages = [canvas.to_svg(figures.best_so_far(trials)), canvas.to_svg(figures.curves(trials))]

    ids = [
        {each.get("id") for each in ElementTree.fromstring(page).iter() if each.get("id")} for page in pages
    ]  # that it parses is part of the test
    for page, own in zip(pages, ids):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', page)) <= own
        assert not re.search(r'(?:href|src)="(?!#)', page)
        assert "<metadata" not in page
    assert not ids[0] & ids[1]
    assert max(map(len, pages)) < 100_000


def test_many_points_make_no_large_file() -> None:
    """Of thousands of points the drawing holds an image, not a path for each."""
    assert len(canvas.to_svg(figures.best_so_far(STUDIES["many"] + sweep(2000)))) < 500_000
