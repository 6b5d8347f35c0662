from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from confirms import with_hits
from fakes import run_result
from pydantic import TypeAdapter
from runs import run_config
from scipy import stats

from mnistexp.analysis import confirmation
from mnistexp.analysis.confirmation import Confirmation
from mnistexp.analysis.history import History, Trial
from mnistexp.analysis.statistics import crossed
from mnistexp.config.schema import Name, RunConfig
from mnistexp.report import confirmation_text
from mnistexp.study.repeats import MAX_SEEDS, Candidate, RepeatSpace, fresh_seeds, prefix
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
        trials.append(Trial(len(trials), state, {"config_index": rival, "seed_index": repeat}, kept, ""))  # type: ignore[arg-type]
    return History("s.confirm.x", "id", tuple(trials), {}, None)


def candidates(*accuracies: float) -> list[Candidate]:
    """Trials of a study, numbered 10, 11 …, with these scores there."""
    return [Candidate(10 + i, accuracy, config(i), ()) for i, accuracy in enumerate(accuracies)]


def ranked(hits: Hits, *accuracies: float, **how: Sequence[tuple[int, int]]) -> Confirmation:
    """The ranking of rivals with these hits."""
    scores = accuracies or (0.99,) * len(hits)
    found = confirmation.rank("s.confirm.x", candidates(*scores), runs(hits, **how))
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


def test_only_seeds_that_all_configs_have_count() -> None:
    """Cut short after two of three rounds and a bit: two seeds are compared, for every config."""
    hits = drawn([0.9, 0.95], seeds=3)

    found = ranked(hits, left_out=[(1, 2)])

    assert found.seeds == 2
    assert all(len(rival.scores) == 2 for rival in found.configs)


def test_one_seed_ranks_nothing() -> None:
    """One run of each says no more than the sweep did."""
    assert confirmation.rank("s.confirm.x", candidates(0.9, 0.9), runs(drawn([0.9, 0.95], seeds=1))) is None


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

    assert ranked(hits).best_seed_index == 2


def test_images_are_counted_from_hits_and_misses() -> None:
    """Whatever number of images: packed bits alone are a multiple of eight."""
    for count in (1, 7, 8, 9, 300):
        right = np.arange(count) % 3 > 0
        assert confirmation.images(with_hits(run_result([0.5]).fit, right)) == count


def test_mlflows_page_stays_within_its_limit() -> None:
    """8,000 characters at most, however many configs."""
    found = ranked(drawn([0.9] * 100, seeds=2, images=50))

    assert len(confirmation_text.page(replace(found, decision="Version 1 is the champion."))) < 8000


def test_the_sentences_have_the_facts() -> None:
    """The chosen config, those that are as good, the selection bias, those left out."""
    text = " ".join(confirmation_text.sentences(ranked(drawn([0.95, 0.95, 0.8, 0.99]), failed=[(3, 1)])))
    winner = next(each for each in ranked(drawn([0.95, 0.95, 0.8, 0.99])).configs if each.number == 10)

    assert "to 1 of 2 other configs" in text
    assert f"{0.99 - winner.interval.mean:+.4f}" in text
    assert "#13" in text


# ------------------------------------------------------------------------------------------------ names and seeds


def test_fresh_seeds_are_stable_and_new() -> None:
    """The same study has the same seeds; they all differ, and none was used by a candidate."""
    seeds = fresh_seeds("0", [])
    used = [replace(candidates(0.9)[0], config=config(seeds[1]))]

    assert len(set(seeds)) == MAX_SEEDS
    assert fresh_seeds("0", used)[:3] == (seeds[0], *seeds[2:4])
    assert fresh_seeds("1", [])[:5] != seeds[:5]


@pytest.mark.parametrize("study", ["digits", "a b.c-d_e", "n" * 100])
def test_names_of_confirmations_are_names_of_studies(study: str) -> None:
    """They can be given on the command line, however long the study's name is."""
    space = RepeatSpace(study, "id", tuple(candidates(0.9, 0.8)), (1, 2), 2, None)  # type: ignore[arg-type]

    assert space.study_name.startswith(prefix(study))
    assert TypeAdapter(Name).validate_python(space.study_name)


def test_only_complete_trials_are_candidates() -> None:
    """The best comes first; a config with another seed counts once."""
    scored = [Trial(i, "COMPLETE", {}, record([accuracy], seed=i), "") for i, accuracy in enumerate([0.8, 0.9])]
    pruned = Trial(2, "PRUNED", {}, record([0.95]), "")
    failed = Trial(3, "FAILED", {}, None, "loss became nan")
    history = History("s", "id", (*scored, pruned, failed), {}, None)

    assert [each.number for each in confirmation.candidates(history, 5)] == [1]


def test_the_test_score_has_wilsons_interval() -> None:
    """Of the accuracy and the number of images, as SciPy computes it."""
    result = run_result([0.97], 9820 / 10000)
    tested = record([0.97]).model_copy(update={"result": result, "tags": {"test_images": "10000"}})

    score = confirmation._test_score(tested, record([0.97]))

    expected = stats.binomtest(9820, 10000).proportion_ci(0.95, "wilson")
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high))
    assert score.accuracy == 0.982
    assert score.same_weights
