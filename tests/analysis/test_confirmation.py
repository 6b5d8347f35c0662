from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from confirms import with_hits
from fakes import run_result
from runs import run_config
from scipy import stats

from mnistexp.analysis import confirmation
from mnistexp.analysis.confirmation import Confirmation
from mnistexp.analysis.history import History, Trial
from mnistexp.analysis.statistics import crossed
from mnistexp.config.schema import NAME_PATTERN, RunConfig
from mnistexp.report import confirmation_text
from mnistexp.study.repeats import Contender, Point, final_name, fresh_seeds, of_study, prefix, study_name
from mnistexp.tracking.records import RunRecord

Hits = npt.NDArray[np.bool_]  # [rivals, seeds, images]


@functools.cache
def config(seed: int) -> RunConfig:
    """A run's config; making one takes longer than all else here."""
    return run_config(seed=seed)


def record(accuracies: Sequence[float], right: Hits | None = None, seed: int = 0) -> RunRecord:
    """A run with these validation accuracies, right about these images."""
    result = run_result(accuracies, None)
    if right is not None:
        result = result.model_copy(update={"fit": with_hits(result.fit, right)})
    return RunRecord(
        name="a run",
        kind="trial",
        config=config(seed),
        overrides=(),
        data_name="digits",
        data_fingerprint="f" * 32,
        data_source="",
        provenance={},
        started=0.0,
        ended=1.0,
        state="COMPLETE",
        result=result,
    )


def runs(hits: Hits, left_out: Sequence[tuple[int, int]] = (), failed: Sequence[tuple[int, int]] = ()) -> History:
    """A confirmation's study: which images each seed's network of each rival got right."""
    trials = []
    for repeat, rival in np.ndindex(hits.shape[1], hits.shape[0]):
        if (rival, repeat) in left_out:
            continue
        right, state = hits[rival, repeat], "FAILED" if (rival, repeat) in failed else "COMPLETE"
        kept = None if state == "FAILED" else record([float(right.mean())], right)
        trials.append(Trial(len(trials), state, {"rival": rival, "repeat": repeat}, kept, ""))  # type: ignore[arg-type]
    return History("s.confirm.x", "id", tuple(trials), {}, None)


def contenders(*accuracies: float) -> list[Contender]:
    """Trials of a study, numbered 10, 11 …, with these scores there."""
    return [Contender(10 + i, accuracy, config(i), ()) for i, accuracy in enumerate(accuracies)]


def ranked(hits: Hits, *accuracies: float, **how: Sequence[tuple[int, int]]) -> Confirmation:
    """The ranking of rivals with these hits."""
    scores = accuracies or (0.99,) * len(hits)
    found = confirmation.rank("s.confirm.x", contenders(*scores), runs(hits, **how))
    assert found is not None
    return found


def drawn(chances: Sequence[float], seeds: int = 4, images: int = 500, seed: int = 0) -> Hits:
    """Hits drawn with these chances for each rival."""
    rng = np.random.default_rng(seed)
    return rng.random((len(chances), seeds, images)) < np.array(chances)[:, None, None]


# ------------------------------------------------------------------------------------------------ the ranking


def test_configs_are_ranked_by_their_mean_over_seeds() -> None:
    """Not by their best run, nor by their score in the sweep."""
    hits = drawn([0.9, 0.95, 0.92])
    hits[0, 0] = True  # one lucky run

    found = ranked(hits, 0.99, 0.91, 0.90)

    means = hits.mean(axis=(1, 2))
    assert [rival.number for rival in found.configs] == [10 + i for i in np.argsort(-means)]
    assert found.chosen.number == 11
    assert [rival.interval.mean for rival in found.configs] == pytest.approx(sorted(means, reverse=True))


def test_equal_means_go_to_the_lower_number() -> None:
    """As everywhere: of equals the first."""
    hits = np.repeat(drawn([0.9]), 3, axis=0)

    found = ranked(hits)

    assert [rival.number for rival in found.configs] == [10, 11, 12]


def test_equal_scores_leave_the_interval_of_rounding() -> None:
    """Five seeds with as many right images are not certain of it: less than an image can't be seen."""
    best = ranked(drawn([0.9], seeds=1).repeat(5, axis=1)).chosen

    assert len(set(best.scores)) == 1
    assert best.interval.low < best.interval.mean < best.interval.high


def test_the_interval_of_a_mean_is_students() -> None:
    """Over seeds, on these images: SciPy's t interval of the accuracies."""
    hits = drawn([0.9, 0.93], seeds=5)

    best = ranked(hits).chosen

    low, high = stats.t.interval(0.95, 4, np.mean(best.scores), stats.sem(best.scores))
    assert (best.interval.low, best.interval.high) == pytest.approx((low, high))


def test_a_rival_is_compared_image_by_image_and_seed_by_seed() -> None:
    """`behind` is the crossed interval of the paired differences, at a level corrected for all pairs."""
    hits = drawn([0.95, 0.94, 0.8])

    found = ranked(hits)

    assert found.level == pytest.approx(1 - 0.05 / 3)
    assert found.chosen.difference is None
    for rival in found.configs[1:]:
        best, other = hits[found.chosen.number - 10], hits[rival.number - 10]
        assert rival.difference == crossed(best.astype(float) - other.astype(float), 1 - 0.05 / 3)


def test_a_clear_loser_is_told_apart_and_an_equal_is_not() -> None:
    """0.95 against 0.80 on 500 images is no luck; 0.95 against 0.95 may be."""
    found = ranked(drawn([0.95, 0.95, 0.8]))

    assert [rival.significant for rival in found.configs] == [False, False, True]
    assert found.configs[2].number == 12


def test_equal_configs_are_seldom_called_different() -> None:
    """Of 200 confirmations of five equal configs, one in twenty at most calls any of them behind the best."""
    wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        easy = rng.random(200) * 0.2 + 0.85  # images differ in how hard they are, and all configs see the same ones
        found = ranked(rng.random((5, 3, 200)) < easy)
        wrong += any(rival.significant for rival in found.configs)

    assert wrong <= stats.binom.ppf(0.999, 200, 0.05)


def test_only_seeds_that_all_configs_have_count() -> None:
    """Cut short after two of three rounds and a bit: two seeds are compared, for every config."""
    hits = drawn([0.9, 0.95], seeds=3)

    found = ranked(hits, left_out=[(1, 2)])

    assert found.seeds == 2
    assert all(len(rival.scores) == 2 for rival in found.configs)


def test_one_seed_ranks_nothing() -> None:
    """One run of each says no more than the sweep did."""
    assert confirmation.rank("s.confirm.x", contenders(0.9, 0.9), runs(drawn([0.9, 0.95], seeds=1))) is None


def test_a_failed_run_takes_its_config_out() -> None:
    """A config that fails with one seed has no mean; the others keep theirs."""
    found = ranked(drawn([0.97, 0.95, 0.9]), failed=[(0, 1)])

    assert found.left_out == (10,)
    assert [rival.number for rival in found.configs] == [11, 12]


def test_the_network_that_is_tested_is_the_best_by_validation() -> None:
    """Of the chosen config's seeds the best, the first of equals."""
    hits = drawn([0.95, 0.9])
    hits[0, 2, :490], hits[0, 2, 490:] = True, False
    hits[0, 3] = hits[0, 2]

    assert ranked(hits).best_repeat == 2


def test_images_are_counted_from_hits_and_misses() -> None:
    """Whatever number of images: packed bits alone are a multiple of eight."""
    for count in (1, 7, 8, 9, 300):
        right = np.arange(count) % 3 > 0
        assert confirmation.images(with_hits(run_result([0.5]).fit, right)) == count


# ------------------------------------------------------------------------------------------------ in words


def told(found: Confirmation) -> str:
    """Its sentences in one line."""
    return " ".join(confirmation_text.sentences(found))


def test_the_winners_luck_is_told() -> None:
    """Score in the sweep less the mean over fresh seeds."""
    hits = drawn([0.95, 0.94])
    mean = hits[0].mean()

    assert f"#10, scored 0.9900 there, and {mean:.4f}" in told(ranked(hits, 0.99, 0.9))
    assert f"about {0.99 - mean:.4f} of it was luck" in told(ranked(hits, 0.99, 0.9))
    assert "there was no luck in it" in told(ranked(hits, 0.5, 0.4))


def test_who_cannot_be_told_apart_is_told() -> None:
    """Those that may be as good, and those that aren't."""
    text = told(ranked(drawn([0.95, 0.95, 0.8, 0.79]), 0.99, 0.98, 0.97, 0.96))

    assert re.search("#1[01] is best by its mean; #1[01] can't be told apart from it, and", text)
    assert re.search("and #1[23] and #1[23] are behind by more than the noise", text)


def test_a_winner_that_fails_is_told_as_such() -> None:
    """No other config is called the sweep's winner instead."""
    text = told(ranked(drawn([0.97, 0.95, 0.9]), failed=[(0, 1)]))

    assert "own winner" not in text
    assert "#10 is left out: a run of it failed." in text


def test_a_single_config_is_told_without_rivals() -> None:
    """top=1: luck and noise, and nobody to be compared with."""
    text = told(ranked(drawn([0.9])))

    assert "best by its mean" not in text
    assert "The sweep's own winner, #10" in text


def test_mlflows_page_stays_within_what_mlflow_takes() -> None:
    """8,000 characters at most, however many configs."""
    found = ranked(drawn([0.9] * 100, seeds=2, images=50))

    assert len(confirmation_text.page(replace(found, decision="Version 1 is the champion."))) < 8000


# ------------------------------------------------------------------------------------------------ names and seeds


def test_fresh_seeds_begin_alike_and_avoid_those_that_are_taken() -> None:
    """More seeds begin with the fewer, all differ, and none was in the sweep."""
    five = fresh_seeds("0", 5, [])
    other = fresh_seeds("0", 5, [five[1]])

    assert fresh_seeds("0", 3, []) == five[:3]
    assert len(set(fresh_seeds("0", 500, []))) == 500
    assert five[1] not in other
    assert other[:4] == (five[0], *five[2:])
    assert fresh_seeds("1", 5, []) != five


@pytest.mark.parametrize("study", ["digits", "a b.c-d_e", "n" * 100])
def test_names_of_confirmations_are_names_of_studies(study: str) -> None:
    """However long the study's own is, they can be given on the command line."""
    history = History(study, "id", (), {}, None)
    name = study_name(history, contenders(0.9, 0.8))

    assert name.startswith(prefix(study))
    assert re.match(NAME_PATTERN, final_name(name, Point(49, 9999)))


def test_a_failed_or_pruned_trial_is_no_contender() -> None:
    """Only complete ones, best first."""
    scored = [Trial(i, "COMPLETE", {}, record([accuracy], seed=i), "") for i, accuracy in enumerate([0.8, 0.9])]
    pruned = Trial(2, "PRUNED", {}, record([0.95]), "")
    failed = Trial(3, "FAILED", {}, None, "loss became nan")
    history = History("s", "id", (*scored, pruned, failed), {}, None)

    found = of_study(history, 5)

    assert [contender.number for contender in found] == [1]  # trial 0 is the same config with another seed


def test_a_look_at_the_test_split_has_wilsons_interval() -> None:
    """From the accuracy and the number of images, as SciPy has it."""
    result = run_result([0.97], 9820 / 10000)
    kept = record([0.97]).model_copy(update={"result": result, "tags": {"test_images": "10000"}})
    final = History("s.confirm.x.final.0.1", "id", (Trial(0, "COMPLETE", {}, kept, ""),), {}, None)

    look = confirmation.test_look(final)

    expected = stats.binomtest(9820, 10000).proportion_ci(0.95, "wilson")
    assert look is not None
    assert (look.low, look.high) == pytest.approx((expected.low, expected.high))
    assert math.isclose(look.accuracy, 0.982)
