from __future__ import annotations

import functools
import json
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
from mnistexp.study.progress import CONFIRMATION
from mnistexp.study.repeats import MAX_SEEDS, Repeat, RepeatSpace, fresh_seeds, prefix
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
        params = {"config_index": rival, "seed_index": repeat, "test": 0}
        trials.append(Trial(len(trials), state, params, kept, ""))  # type: ignore[arg-type]
    candidates = {"study": "id", "trials": [10 + i for i in range(len(hits))]}
    return History("s.confirm.x", "id2", tuple(trials), {CONFIRMATION: json.dumps(candidates)}, None)


def studied(*accuracies: float) -> History:
    """A study with trials that are numbered 10, 11 … and have these scores."""
    trials = [Trial(10 + i, "COMPLETE", {}, record([score], seed=i), "") for i, score in enumerate(accuracies)]
    return History("s", "id", tuple(trials), {}, None)


def ranked(hits: Hits, *accuracies: float, **how: Sequence[tuple[int, int]]) -> Confirmation:
    """The ranking of rivals with these hits."""
    found = confirmation.rank(studied(*(accuracies or (0.99,) * len(hits))), runs(hits, **how))
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


def test_a_rival_is_compared_image_by_image_and_seed_by_seed() -> None:
    """The difference has the crossed interval, at a level corrected for all pairs; 0.8 is significantly worse."""
    hits = drawn([0.95, 0.94, 0.8])

    found = ranked(hits)

    assert found.level == pytest.approx(1 - 0.05 / 3)
    assert found.chosen.difference is None
    assert [rival.significant for rival in found.configs] == [False, False, True]
    for rival in found.configs[1:]:
        best, other = hits[found.chosen.number - 10], hits[rival.number - 10]
        assert rival.difference == crossed(best.astype(float) - other.astype(float), 1 - 0.05 / 3)


def test_only_seeds_that_all_configs_have_count() -> None:
    """Cut short after two of three rounds and a bit: two seeds are compared, for every config."""
    hits = drawn([0.9, 0.95], seeds=3)

    found = ranked(hits, left_out=[(1, 2)])

    assert found.seeds == 2
    assert all(len(rival.scores) == 2 for rival in found.configs)
    assert confirmation.rank(studied(0.9, 0.9), runs(drawn([0.9, 0.95], seeds=1))) is None  # one seed ranks nothing


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

    assert ranked(hits).best == Repeat(0, 2)


def test_mlflows_page_stays_within_its_limit() -> None:
    """8,000 characters at most, however many configs."""
    found = ranked(drawn([0.9] * 100, seeds=2, images=50))

    assert len(confirmation_text.page(replace(found, decision="Version 1 is the champion."))) < 8000


# ------------------------------------------------------------------------------------------------ names and seeds


def test_fresh_seeds_are_stable_and_new() -> None:
    """The same study has the same seeds; they all differ, and none was used by a candidate."""
    seeds = fresh_seeds("0", [])
    used = [replace(confirmation.candidates(studied(0.9), 1)[0], config=config(seeds[1]))]

    assert len(set(seeds)) == MAX_SEEDS
    assert fresh_seeds("0", used)[:3] == (seeds[0], *seeds[2:4])
    assert fresh_seeds("1", [])[:5] != seeds[:5]


@pytest.mark.parametrize("study", ["digits", "a b.c-d_e", "n" * 100])
def test_names_of_confirmations_are_names_of_studies(study: str) -> None:
    """They can be given on the command line, however long the study's name is."""
    space = RepeatSpace(study, "id", confirmation.candidates(studied(0.9), 1), (1, 2), None)  # type: ignore[arg-type]

    assert space.study_name.startswith(prefix(study))
    assert TypeAdapter(Name).validate_python(space.study_name)


def test_only_complete_trials_are_candidates() -> None:
    """The best comes first; a config with another seed counts once."""
    scored = [Trial(i, "COMPLETE", {}, record([accuracy], seed=i), "") for i, accuracy in enumerate([0.8, 0.9])]
    pruned = Trial(2, "PRUNED", {}, record([0.95]), "")
    failed = Trial(3, "FAILED", {}, None, "loss became nan")
    history = History("s", "id", (*scored, pruned, failed), {}, None)

    assert [each.number for each in confirmation.candidates(history, 5)] == [1]


def test_the_tested_run_gives_the_score_and_ranks_nothing() -> None:
    """It is not counted as a seed; its score has Wilson's interval as SciPy computes it."""
    hits = drawn([0.9, 0.8])
    study, confirm = studied(0.9, 0.8), runs(hits)
    untested = confirmation.rank(study, confirm)
    assert untested is not None
    best = untested.best
    repeated = record([1.0], hits[best.config_index, best.seed_index])
    result = repeated.result.model_copy(update={"test_accuracy": 0.982})
    tested = repeated.model_copy(update={"result": result, "tags": {"test_images": "10000"}})
    trial = Trial(99, "COMPLETE", best._replace(test=1)._asdict(), tested, "")

    found = confirmation.rank(study, replace(confirm, trials=(*confirm.trials, trial)))

    assert found is not None
    assert found.test is not None
    assert replace(found, test=None) == untested
    expected = stats.binomtest(9820, 10000).proportion_ci(0.95, "wilson")
    assert (found.test.low, found.test.high) == pytest.approx((expected.low, expected.high))
    assert (found.test.accuracy, found.test.images, found.test.trial) == (0.982, 10000, 99)
    assert found.test.same_weights
