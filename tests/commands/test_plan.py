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
from mnistexp.analysis.estimate import TimedNetwork, Timing, epoch_cost, estimate
from mnistexp.commands.plan import check_space, combinations, condition, draw_trials, trials_without_results
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


# ---------------------------------------------------------------------------------------------------- the space


def test_a_parameter_names_the_options_it_is_drawn_for() -> None:
    """The range of an optimizer names the optimizers that have it; what is always drawn names none."""
    _, space = parts("optimizer=choice(adam,adamw,sgd)", "model.dropout=interval(0,0.5)")

    conditions = {parameter.name: condition(space, parameter.name) for parameter in space.parameters()}

    assert set(conditions.values()) == {"", "optimizer=adam|adamw", "optimizer=sgd"}
    assert conditions["optimizer"] == conditions["model.dropout"] == ""


def test_combinations_are_counted() -> None:
    """A finite space has as many as points; an infinite one those of its options and choices."""
    _, finite = parts(*FINITE)
    _, infinite = parts("optimizer=choice(adam,sgd)", "model.activation=choice(relu,tanh,gelu)")

    assert combinations(finite) == len(list(finite.points())) == 6
    assert combinations(infinite) == 6


# -------------------------------------------------------------------------------------------------- the estimate

PREPARED = parts()[0].prepared
CONFIG = run_config(PREPARED.config)
COST = epoch_cost(CONFIG, PREPARED.dataset)
TIMING = Timing((TimedNetwork(COST, 2.0, 1.0),), 5.0, 1, "CPU")


def test_the_estimate_contains_trials_times_epochs() -> None:
    """20 trials of 3 epochs of 1 s on one worker."""
    found = estimate(PREPARED.config, PREPARED.dataset, [CONFIG] * 4, TIMING, 20)

    assert found.low <= 5 + 20 * 3 + 2 <= found.high
    assert (found.epochs, found.epoch_seconds, found.compile_seconds) == (3, 1.0, 2.0)


def test_more_workers_shorten_the_estimate() -> None:
    """Two workers need at least half of the time."""
    one, two = (
        estimate(PREPARED.config, PREPARED.dataset, [CONFIG], replace(TIMING, workers=n, start_seconds=0.0), 20)
        for n in (1, 2)
    )

    assert one.low / 2 <= two.low < two.high < one.high


@pytest.mark.parametrize(("pruner", "epochs"), [("median", 4), ("hyperband", 2), ("none", 10)])
def test_pruning_lowers_the_estimate(pruner: str, epochs: int) -> None:
    """The lower end assumes that each trial ends as early as the pruner allows."""
    config = compose(parse_request(["data=digits", f"study/pruner={pruner}"]))

    found = estimate(config, PREPARED.dataset, [run_config(config)], replace(TIMING, start_seconds=0.0), 20)

    assert found.low == pytest.approx(20 * epochs + 2)


def test_an_epoch_is_interpolated_between_the_timed_networks() -> None:
    """A network of the mean cost takes the mean time; one outside of the range takes that of the nearest."""
    networks = (TimedNetwork(0.0, 1.0, 0.0), TimedNetwork(2 * COST, 1.0, 4.0))

    found = estimate(PREPARED.config, PREPARED.dataset, [CONFIG], replace(TIMING, networks=networks), 1)

    assert found.epoch_seconds == pytest.approx(2.0)


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


def test_the_plan_of_a_real_sweep_writes_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It prints the space, the first trials, warnings and a time that was measured in a real worker."""
    monkeypatch.chdir(tmp_path)

    code = cli.main(["sweep", *SMALL, "study.trials=4", "trainer.device=cpu", "executor.workers=2", "--plan"])

    printed = capsys.readouterr().out
    assert code == 0
    assert "000 sgd lr=0.1" in printed
    assert "  ! " in printed
    assert re.search(r"4 trials on 2 workers: \d.* to \d", printed)
    assert list(tmp_path.iterdir()) == []
