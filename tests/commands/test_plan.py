"""`sweep --plan`: the space, the first trials and the estimate."""

from __future__ import annotations

import hashlib
import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import FakeExecutor
from sweeps import SMALL, by_rate, open_sweep, parts

from mnistexp import cli
from mnistexp.analysis.estimate import Timing, estimate
from mnistexp.commands.plan import check_space, draw_trials, trials_without_results
from mnistexp.config.compose import compose, parse_request, run_config
from mnistexp.errors import ConfigError
from mnistexp.study.database import open_for_sweep
from mnistexp.study.study import ClaimedTrial, InvalidTrial

FINITE = ("model.activation=choice(relu,tanh)", "trainer.batch_size=choice(50,100,200)", "optimizer.learning_rate=0.1")


# ----------------------------------------------------------------------------------------------- the first trials


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid", "cmaes", "qmc"])
def test_the_planned_trials_are_those_that_a_sweep_then_runs(sampler: str, quick_folder: Path) -> None:
    """Same parameters and seeds, the first trial first, whatever the scores and the number of workers."""
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    space = FINITE if sampler == "grid" else ("model.dropout=interval(0.1,0.5)", "optimizer=choice(adam,sgd)")
    overrides = (*space, f"study/sampler={sampler}", "study.trials=6")
    session, searched = parts(*overrides)
    executor = FakeExecutor(by_rate, workers=2)

    drawn = draw_trials(session.prepared, searched, min(5, trials_without_results(session.prepared.config)))
    with closing(open_for_sweep(f"sqlite:///{quick_folder}/optuna.db")) as database:
        open_sweep(database, *overrides).run(executor)

    planned = [trial.config for trial in drawn if isinstance(trial, ClaimedTrial)]
    assert planned == [executor.jobs[number] for number in range(len(drawn))]
    assert len({config.model_dump_json() for config in planned}) == (2 if sampler == "qmc" else 5)


def test_trials_that_depend_on_results_are_not_planned() -> None:
    """Samplers that model are planned up to their start-up trials, qmc up to its second."""
    words = ["data=digits", "study.sampler.startup_trials=4"]
    names = ("random", "tpe", "qmc", "gp", "cmaes")

    known = [trials_without_results(compose(parse_request([*words, f"study/sampler={name}"]))) for name in names]

    assert known == [30, 4, 2, 4, 4]


def test_an_invalid_trial_is_planned_as_such() -> None:
    """A trial that fails before it starts is shown with its reason."""
    session, space = parts("trainer.batch_size=choice(5000,6000)")

    drawn = draw_trials(session.prepared, space, 2)

    assert any(isinstance(trial, InvalidTrial) and "trainer.batch_size" in trial.reason for trial in drawn)


# -------------------------------------------------------------------------------------------------- the estimate

PREPARED = parts("trainer.epochs=10", "study.trials=20")[0].prepared
CONFIG = run_config(PREPARED.config)
TIMING = Timing(5.0, (2.0, 4.0), (1.0, 3.0), 1, "CPU")


def test_the_estimate_is_trials_times_epochs() -> None:
    """From the fastest network, compiled once, to the slowest, compiled each time and with some overhead."""
    low, high = estimate(PREPARED, [CONFIG], TIMING, 20)

    assert low == 5 + 2 + 20 * 10 * 1
    assert 5 + 20 * (10 * 3 + 4) < high < 1.3 * (5 + 20 * (10 * 3 + 4))


def test_more_workers_shorten_the_estimate() -> None:
    """Two workers need at least half of the time."""
    one, two = (estimate(PREPARED, [CONFIG], replace(TIMING, workers=n, start=0.0), 20) for n in (1, 2))

    assert one[0] / 2 <= two[0] < two[1] < one[1]


@pytest.mark.parametrize(("pruner", "epochs"), [("median", 4), ("hyperband", 2), ("none", 10)])
def test_pruning_lowers_the_estimate(pruner: str, epochs: int) -> None:
    """The lower end assumes that each trial ends as early as the pruner allows."""
    pruned = replace(PREPARED, config=compose(parse_request(["data=digits", f"study/pruner={pruner}"])))

    low, _ = estimate(pruned, [CONFIG], TIMING, 20)

    assert low == 5 + 2 + 20 * epochs


# --------------------------------------------------------------------------------------------------- the command


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder with the hash of its bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_plan_of_an_existing_study_shows_its_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It plans no first trials and writes nothing; another question under the same name is refused."""
    monkeypatch.chdir(tmp_path)
    with closing(open_for_sweep(f"sqlite:///{tmp_path}/optuna.db")) as database:
        open_sweep(database, "study.trials=2").run(FakeExecutor(by_rate))
    before = contents(tmp_path)
    words = ["sweep", *SMALL, "study.trials=2", "--plan"]

    code, printed = cli.main(words), capsys.readouterr().out
    other = cli.main([*words, "model.dropout=0.3"])

    assert code == 0
    assert "2 of 2 trials" in printed
    assert "000 " not in printed
    assert contents(tmp_path) == before
    assert other == 2
    assert "model" in capsys.readouterr().err


def test_the_plan_refuses_what_the_sweep_refuses() -> None:
    """A grid with fewer points than trials, for example."""
    with pytest.raises(ConfigError, match="7 points"):
        check_space(parse_request([*SMALL, *FINITE, "study/sampler=grid", "study.trials=50"]))


def test_the_plan_prints_space_trials_and_time_and_writes_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints the space, the first trials, warnings and a time that was measured with a worker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mnistexp.analysis.estimate.start_workers", lambda *_, **__: FakeExecutor(by_rate))

    code = cli.main(["sweep", *SMALL, "study.trials=4", "executor.workers=2", "--plan"])

    printed = capsys.readouterr().out
    assert code == 0
    assert re.search(r"model\.activation +relu, tanh", printed)
    assert "000 sgd lr=0.1" in printed
    assert "  ! " in printed
    assert re.search(r"4 trials on 2 workers: \d.* to \d", printed)
    assert list(tmp_path.iterdir()) == []
