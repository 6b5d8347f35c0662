from __future__ import annotations

import hashlib
import re
from contextlib import closing
from pathlib import Path

import pytest
from fakes import FakeExecutor
from sweeps import SMALL, by_rate, open_sweep, parts

from mnistexp import cli
from mnistexp.analysis.estimate import Machine, Shape, Timed, Timings, estimate, pick, shape
from mnistexp.commands.plan import (
    certain,
    checked,
    choices,
    condition,
    draws,
    estimate_lines,
    size_sentence,
    space_lines,
    text,
    warn,
)
from mnistexp.config.compose import ROOT, compose, parse_request, run_config
from mnistexp.errors import ConfigError
from mnistexp.search import space as search_space
from mnistexp.search import warnings as plausibility
from mnistexp.search.space import SearchSpace
from mnistexp.study.database import open_for_sweep, reading
from mnistexp.study.study import ClaimedTrial, standing

FINITE = ("model.activation=choice(relu,tanh)", "trainer.batch_size=choice(50,100,200)", "optimizer.learning_rate=0.1")


def warnings(*overrides: str, images: int = 55_000) -> list[str]:
    """All that is said against a command line."""
    request = parse_request(overrides)
    space, config = search_space.build(request), compose(request)
    return [*plausibility.misleading(space, config, images), *plausibility.idle(space, config)]


def small(*overrides: str) -> list[str]:
    """All that is said against a small search on digits."""
    return warnings(*SMALL, "study/pruner=none", "study/sampler=random", *overrides, images=1137)


# --------------------------------------------------------------------------------------- what makes no sense


@pytest.mark.parametrize(
    "overrides",
    [
        ("data=mnist",),
        ("data=mnist", "optimizer=glob(*)"),
        ("data=mnist", "study/pruner=hyperband", "study.trials=100"),
        ("data=mnist", "optimizer=adam", "optimizer.learning_rate=tag(log,interval(1e-5,1e-1))"),  # a decade, no more
        ("data=mnist", "optimizer.learning_rate=choice(0.01,0.02)"),
        ("data=mnist", "search=none", "optimizer.learning_rate=0.1", "seed=range(0,10)", "study.trials=10",
         "study/sampler=grid", "study/pruner=none"),
        ("data=mnist", "search=none", "optimizer.learning_rate=choice(0.05,0.1)", "seed=range(0,3)", "study.trials=6",
         "study/sampler=grid", "study/pruner=none"),  # a grid repeats each config, and `report by=` compares means
        ("data=mnist", "trainer.epochs=choice(5,10)", "study/pruner=none"),
    ],
)  # fmt: skip
def test_a_sensible_space_is_not_warned_of(overrides: tuple[str, ...]) -> None:
    """Nothing is said against the default space, nor against what stays just within reason."""
    assert warnings(*overrides) == []


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        (["trainer.epochs=range(2,9)", "study/pruner=hyperband"], "trainer.epochs is searched .*or study/pruner=none"),
        (["trainer.patience=choice(1,2)", "study/pruner=hyperband"], "trainer.patience is searched .*one value, or"),
        (["trainer.max_steps=choice(9,20)", "study/pruner=hyperband"], "trainer.max_steps is searched"),
        (["optimizer.learning_rate=tag(log,interval(0.01,20))"], r"goes more than a decade .* sgd \(0.01 to 1\).*narr"),
        (["optimizer.learning_rate=interval(5,10)"], r"\(5 to 10\) lies outside what suits sgd \(0.01 to 1\)"),
        (["optimizer=choice(sgd,adam)", "optimizer.learning_rate=tag(log,interval(0.01,1))"],
         r"beyond what suits adam \(0.0001 to 0.01\): trials there.*each optimizer brings its own range"),
        (["trainer.batch_size=choice(64,1000)"], r"up to 1,000 of 1,137 training images: one step.*at most 113"),
        (["trainer.batch_size=choice(64,2000)"], "up to 2,000, and there are 1,137 .*fail before they begin; give"),
        (["seed=range(0,4)"], "seed is searched together with hyperparameters.*`confirm` repeats .*study/sampler=grid"),
        (["model.dropout=choice(0.1)"], "model.dropout has one value to draw.*give model.dropout=0.1 outright"),
        (["optimizer=choice(adam)"], "optimizer has one value to draw.*give optimizer=adam outright"),
        ([*FINITE, "study/sampler=grid", "study.trials=5"],
         r"study.trials=5 leaves the last 2 of 7 points out.*give study.trials=7, or study/sampler=random"),
        (["optimizer=choice(sgd,adam)", "study/sampler=gp", "study.trials=30"],
         "models what all trials have; drawn at random to the end: optimizer.learning_rate, which hangs on another"),
        (["model.dropout=interval(0.1,0.5)", "study/sampler=cmaes", "study.trials=30"],
         "at random to the end: model.dropout, of which the first trial.*widen it, or give study/sampler=tpe"),
        (["study/sampler=tpe", "study.trials=10"], "all of study.trials=10: it never models; give more trials"),
        (["study/pruner=median", "trainer.epochs=4"], "first 3 epochs, and none has more than 4: it never prunes"),
        (["study/pruner=median", "trainer.epochs=9", "study.trials=5"], "all of study.trials=5: it never prunes"),
    ],
)  # fmt: skip
def test_each_senseless_space_gets_its_sentence(overrides: list[str], found: str) -> None:
    """One sentence, and no other, for each; it says what is wrong and what to type."""
    said = small(*overrides)

    assert len(said) == 1, said
    assert re.search(found, said[0]), said[0]


def test_an_optimizer_of_the_users_may_need_what_the_sweep_gives_it(tmp_path: Path) -> None:
    """Its own range is looked up with the defaults, where its warm-up would be too long: no fault of this sweep."""
    text = (ROOT / "conf/optimizer/adam.yaml").read_text()
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer/slow.yaml").write_text(text.replace("warmup_epochs: 0.0", "warmup_epochs: 12"))
    request = parse_request(["optimizer=slow", "trainer.epochs=30"], tmp_path)

    assert list(plausibility.misleading(search_space.build(request), compose(request), 55_000)) == []


def test_a_grid_that_reaches_its_end_is_not_warned_of() -> None:
    """As many trials as the space has points, the composed config among them or besides."""
    assert small(*FINITE, "study/sampler=grid", "study.trials=7") == []  # 6, and batch_size=128
    assert small(*FINITE, "trainer.batch_size=choice(64,128)", "study/sampler=grid", "study.trials=4") == []


def test_a_sweep_says_what_misleads_but_not_what_is_idle(capsys: pytest.CaptureFixture[str]) -> None:
    """A search of three trials with the defaults needn't hear that three are few."""
    session, space = parts("study/sampler=tpe", "study.trials=3", "seed=range(0,4)")

    warn(session.prepared, space)

    assert re.fullmatch("warning: seed is searched [^\n]*\n", capsys.readouterr().err)


# ----------------------------------------------------------------------------------------------- the first trials


@pytest.mark.parametrize("sampler", ["random", "tpe", "grid", "cmaes", "qmc"])
def test_the_first_trials_are_those_that_a_sweep_then_runs(sampler: str, quick_folder: Path) -> None:
    """Same parameters, same seeds, baseline first, whatever they score and however many run at once."""
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    space = FINITE if sampler == "grid" else ("model.dropout=interval(0.1,0.5)", "optimizer=choice(adam,sgd)")
    overrides = (*space, f"study/sampler={sampler}", "study.trials=6")
    session, searched = parts(*overrides)
    executor = FakeExecutor(by_rate, workers=2)

    drawn = draws(session.prepared, searched, min(5, certain(session.prepared.config)))
    with closing(open_for_sweep(f"sqlite:///{quick_folder}/optuna.db")) as database:
        open_sweep(database, *overrides).run(executor)

    planned = [claim.config for claim in drawn if isinstance(claim, ClaimedTrial)]
    assert planned == [executor.jobs[number] for number in range(len(drawn))]
    assert len({config.model_dump_json() for config in planned}) == (2 if sampler == "qmc" else 5)


def test_no_trial_is_foretold_that_hangs_on_scores() -> None:
    """Samplers that model are foretold as far as they draw at random; Sobol's until it counts which trial ended."""
    known = {
        name: certain(
            compose(parse_request(["data=digits", f"study/sampler={name}", "study.sampler.startup_trials=4"]))
        )
        for name in ("random", "tpe", "qmc", "gp", "cmaes")
    }

    session, space = parts("study/sampler=qmc", "study.trials=3")
    (*_, last) = text(session.prepared, space, draws(session.prepared, space, 1), None)

    assert last == "  (the further points of qmc hang on which trial ends first)"
    assert known == {"random": 30, "tpe": 4, "qmc": 2, "gp": 4, "cmaes": 4}


def test_a_draw_that_cannot_stand_is_shown_as_refused() -> None:
    """A trial that would fail before it begins is foretold as well."""
    session, space = parts("trainer.batch_size=choice(5000,6000)")

    shown = list(text(session.prepared, space, draws(session.prepared, space, 2), None))

    assert any(re.search("001 fails before it begins: trainer.batch_size=[56]000: at most", line) for line in shown)


# ---------------------------------------------------------------------------------------------------- the space


def test_a_parameter_says_for_which_options_it_is_drawn() -> None:
    """A range of an optimizer's own names the optimizer; what is always drawn names none."""
    _, space = parts("optimizer=choice(adam,adamw,sgd)", "model.dropout=interval(0,0.5)")
    conditions = {parameter.name: condition(space, parameter.name) for parameter in space.parameters()}

    assert set(conditions.values()) == {"", "optimizer=adam|adamw", "optimizer=sgd"}
    assert conditions["optimizer"] == conditions["model.dropout"] == ""
    assert sum("if optimizer=adam|adamw" in line for line in space_lines(space)) == 1


def test_the_size_is_that_of_counting_every_point() -> None:
    """Of a finite space, conditional as it may be, all points; of an infinite one, its choices' combinations."""
    _, finite = parts(*FINITE)
    _, endless = parts("optimizer=choice(adam,sgd)", "model.activation=choice(relu,tanh,gelu)")
    points = list(finite.points())

    def told(space: SearchSpace, trials: int, sampler: str = "tpe") -> str:
        words = ["data=digits", f"study.trials={trials}", f"study/sampler={sampler}"]
        return size_sentence(space, compose(parse_request(words)).study)

    assert choices(finite) == len(points) == 6
    assert told(finite, 3) == "6 points, and the config as it stands; 3 trials see at most 43 %."
    assert "7 trials may see all of them." in told(finite, 7)
    assert "7 trials see all of them." in told(finite, 7, "grid")
    assert "optimizer.learning_rate can be any number" in told(endless, 4)
    assert "Its choices make 6 combinations; 4 trials see at most 4." in told(endless, 4)
    assert "6 trials may see all of them." in told(endless, 6)


# -------------------------------------------------------------------------------------------------- the estimate

CONFIG = compose(parse_request(["data=digits", "study/pruner=none"]))
ALIKE = Timings((Shape(100.0, 10, 10, "a"),) * 4, (Timed(100.0, 2.0, 1.0),))


def test_the_estimate_brackets_the_sum() -> None:
    """One network on one worker: trials times epochs, one compilation, the worker's start."""
    found = estimate(CONFIG, ALIKE, Machine(1, "CPU", 5.0), 20)

    assert found.low <= 5 + 2 + 20 * 10 + 20 * 0.2 <= found.high < 1.3 * found.low
    assert (found.typical, found.slowest, found.saved, found.epochs) == (1.0, 1.0, 0.0, (10, 10))


def test_more_workers_take_less_but_never_less_than_a_share() -> None:
    """Two workers: at least half the time of one."""
    one, two = (estimate(CONFIG, ALIKE, Machine(workers, "CPU", 0.0), 20) for workers in (1, 2))

    assert one.low / 2 <= two.low < two.high < one.high


def test_each_network_is_compiled() -> None:
    """Where every draw is another network, so is every trial."""
    shapes = tuple(Shape(100.0, 10, 10, program) for program in "abcd")
    machine = Machine(1, "CPU", 0.0)

    new = estimate(CONFIG, Timings(shapes, ALIKE.timed), machine, 20)

    assert new.low - estimate(CONFIG, ALIKE, machine, 20).low == pytest.approx(19 * 2.0)


@pytest.mark.parametrize(("pruner", "epochs"), [("median", (5 * 10 + 15 * 4) / 20), ("hyperband", 2.0), ("none", 10.0)])
def test_pruning_spares_what_comes_after_its_earliest_epoch(pruner: str, epochs: float) -> None:
    """The median's first five trials run to their end, the others to the fourth epoch at least; hyperband's two."""
    config = compose(parse_request(["data=digits", f"study/pruner={pruner}"]))

    assert estimate(config, ALIKE, Machine(1, "CPU", 0.0), 20).saved == pytest.approx(20 * (10 - epochs))


def test_an_epoch_between_two_that_were_timed_lies_between_them() -> None:
    """In proportion to its cost; beyond them it is theirs."""
    timings = Timings((), (Timed(100.0, 1.0, 0.2), Timed(200.0, 1.0, 0.6)))

    assert [timings.epoch(cost) for cost in (50, 100, 150, 200, 900)] == pytest.approx([0.2, 0.2, 0.4, 0.6, 0.6])


def test_the_cheapest_the_median_and_the_dearest_are_timed() -> None:
    """Each once, cheapest first."""
    assert [[5.0, 1.0, 9.0, 3.0, 7.0][i] for i in pick([5.0, 1.0, 9.0, 3.0, 7.0])] == [1.0, 5.0, 9.0]
    assert len(pick([4.0, 4.0])) == 1
    assert len(pick([1.0, 2.0])) == 2


def test_max_steps_and_patience_shorten_a_training() -> None:
    """As many epochs as the steps fill, and no fewer than patience allows."""
    session, _ = parts()
    limits = {"epochs": 50, "batch_size": 100, "max_steps": 100, "patience": 3}  # 11 steps an epoch
    config = run_config(session.prepared.config)

    limited = config.model_copy(update={"trainer": config.trainer.model_copy(update=limits)})

    assert (shape(limited, session.prepared).epochs, shape(limited, session.prepared).fewest) == (10, 4)


def test_a_cluster_of_unknown_size_is_said_to_be_one() -> None:
    """The time is that of one worker, and says so."""
    machine = Machine(0, "CPU", 0.0)

    said = " ".join(estimate_lines(estimate(CONFIG, ALIKE, machine, 20), CONFIG, machine, 20))

    assert "20 trials of 10 epochs on one worker: about" in said
    assert "divide by that" in said


# --------------------------------------------------------------------------------------------------- the command


def contents(folder: Path) -> dict[str, str]:
    """Every file with its bytes' hash."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_study_that_is_there_is_gone_on_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how many are done and foretells none; nothing is written, and another question is refused as ever."""
    monkeypatch.chdir(tmp_path)
    address = f"sqlite:///{tmp_path}/optuna.db"
    with closing(open_for_sweep(address)) as database:
        open_sweep(database, "study.trials=2").run(FakeExecutor(by_rate))
    before = contents(tmp_path)
    words = ["sweep", *SMALL, "study.trials=2", "--plan"]

    code, said = cli.main(words), capsys.readouterr().out
    other = cli.main([*words[:-1], "model.dropout=0.3", "--plan"])

    assert code == 0
    assert "2 of 2 trials are done" in " ".join(said.split())
    assert "Its first" not in said
    assert contents(tmp_path) == before
    assert other == 2
    assert "was started with another model" in capsys.readouterr().err
    with reading(address) as storage:
        assert standing(storage, parts("study.name=new")[0].prepared, parts()[1]) is None


def test_what_a_sweep_refuses_the_plan_refuses() -> None:
    """Said now, not when it is meant."""
    with pytest.raises(ConfigError, match="the space has 7 points"):
        checked(parse_request([*SMALL, *FINITE, "study.trials=50"]))


def test_the_plan_of_a_real_sweep_leaves_no_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Space, first trials, warnings and a time from epochs that were really trained; the folder stays empty."""
    monkeypatch.chdir(tmp_path)

    code = cli.main(["sweep", *SMALL, "study.trials=4", "trainer.device=cpu", "executor.workers=2", "--plan"])

    said = capsys.readouterr().out
    assert code == 0
    assert "000 sgd lr=0.1" in said
    assert "never models" in " ".join(said.split())
    assert re.search(r"4 trials of 3 epochs on 2 workers: about \d.* to \d", said)
    assert "Timed on CPU" in said
    assert list(tmp_path.iterdir()) == []
