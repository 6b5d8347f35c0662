from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confirms import RATES, Killed, Person, accuracy, make_study
from fakes import RecordingTracker, Step
from sweeps import trials_of

from mnistexp import cli
from mnistexp.analysis import confirmation, history
from mnistexp.config.compose import identity
from mnistexp.config.schema import RunConfig
from mnistexp.errors import DataError, StoreError
from mnistexp.study.database import Database, open_for_sweep


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of eight learning rates, made once."""
    path = tmp_path_factory.mktemp("study") / "optuna.db"
    opened = open_for_sweep(f"sqlite:///{path}")
    make_study(opened)
    opened.close()
    return path


@pytest.fixture
def database(made: Path, quick_folder: Path) -> Iterator[Database]:
    """A copy of it."""
    opened = open_for_sweep(f"sqlite:///{shutil.copy(made, quick_folder / 'optuna.db')}")
    yield opened
    opened.close()


@pytest.fixture
def person(database: Database) -> Person:
    """Somebody who confirms it."""
    return Person(database)


def confirm_names(database: Database) -> list[str]:
    """The studies that confirmations made, without those of their last runs."""
    return [name for name in history.study_names(database.storage, "digits.confirm.") if ".final." not in name]


# ------------------------------------------------------------------------------------------------- what is run


def test_the_top_configs_are_run_with_the_same_fresh_seeds(person: Person) -> None:
    """Three configs, four seeds: every config has the same four, none of which any of them had in the sweep."""
    best = [trial.record.config for trial in person.study().ranked[:3] if trial.record]

    assert person.confirm(top=3, seeds=4) == 0

    sealed = person.executors[0].jobs.values()
    seeds = {config.optimizer.learning_rate: set() for config in best}
    for config in sealed:
        seeds[config.optimizer.learning_rate].add(config.seed)
    assert len(list(sealed)) == 12
    assert len(set(map(frozenset, seeds.values()))) == 1
    assert {len(each) for each in seeds.values()} == {4}
    assert not set.union(*seeds.values()) & {config.seed for config in best}


def test_a_rerun_differs_by_its_seed_alone(person: Person) -> None:
    """What is trained again is the trial's own config."""
    before = [identity(trial.record.config) | {"seed": 0} for trial in person.study().ranked[:3] if trial.record]

    person.confirm(top=3, seeds=2)

    after = [identity(config) | {"seed": 0} for config in person.jobs]
    assert all(config in before for config in after)


def test_all_configs_have_a_first_seed_before_one_has_a_second(database: Database) -> None:
    """A confirmation that is cut short has compared like with like."""
    person = Person(database, workers=1)

    person.confirm(top=3, seeds=3)

    seeds = [config.seed for config in person.executors[0].jobs.values()]
    assert [len(set(seeds[start : start + 3])) for start in (0, 3, 6)] == [1, 1, 1]
    assert len(set(seeds)) == 3


def test_only_one_network_ever_looks_at_the_test_split(person: Person) -> None:
    """Of all that is run, only the chosen config's best network is tested, and typing it again tests nothing."""
    person.confirm(top=3, seeds=3)
    person.confirm(top=3, seeds=3)

    chosen = person.found().chosen
    assert len(person.tested) == 1
    assert identity(person.tested[0]) | {"seed": 0} == identity(chosen.config) | {"seed": 0}
    assert accuracy(person.tested[0]) == max(chosen.scores)
    assert person.found().test_evaluations == 1
    assert [record.tags.get("final") for record in person.tracker.records].count("true") == 1


def test_one_config_with_many_seeds_counts_once(quick_folder: Path) -> None:
    """Trials that differ by their seed alone are one config: a space of two has two, however many trials there are."""
    opened = open_for_sweep(f"sqlite:///{quick_folder / 'optuna.db'}")
    make_study(opened, 6, "model.activation=choice(relu, tanh)", "optimizer.learning_rate=0.1")
    person = Person(opened)

    person.confirm(top=5, seeds=2)

    assert {rival.config.model.activation for rival in person.found().configs} == {"relu", "tanh"}
    assert len(person.executors[0].jobs) == 4


def test_runs_are_grouped_and_named(person: Person) -> None:
    """In MLflow all runs of a confirmation, the tested one too, lie under one parent and say whose they are."""
    person.confirm(top=2, seeds=2)

    assert set(person.tracker.parents) == {f"parent of {confirm_names(person.database)[0]}"}
    numbers = {str(rival.number) for rival in person.found().configs}
    assert {record.tags["rival"] for record in person.tracker.records} == numbers
    assert {record.tags["confirms"] for record in person.tracker.records} == {"digits"}
    assert all(record.name.startswith(f"#{record.tags['rival']} ") for record in person.tracker.records)
    assert not person.tracker.open


# --------------------------------------------------------------------------------------------- going on with it


def test_more_seeds_go_on_from_those_there_are(person: Person) -> None:
    """seeds=2, then seeds=4: only the two further ones are run."""
    person.confirm(top=3, seeds=2)
    before = list(person.executors[0].jobs.values())

    person.confirm(top=3, seeds=4)

    added = person.executors[2].jobs
    assert len(added) == 6
    assert not {config.seed for config in before} & {config.seed for config in added.values()}
    assert person.found().seeds == 4
    assert person.found().test_evaluations == len(person.tested)
    assert len(confirm_names(person.database)) == 1


def test_fewer_seeds_than_there_are_change_nothing(database: Database) -> None:
    """seeds=5, then seeds=2: all five count, and the network that was tested may have the fifth seed."""
    last: list[int] = []

    def script(job: int, config: RunConfig) -> list[Step]:
        seeds = [*dict.fromkeys([*last, config.seed])]
        last[:] = seeds
        return [0.5, 0.5 + 0.01 * seeds.index(config.seed)]

    person = Person(database, script=script, workers=1)
    person.confirm(top=2, seeds=5)
    trained, before = len(person.jobs), person.found()

    code = person.confirm(top=2, seeds=2)

    assert before.best_repeat == 4
    assert code == 0
    assert len(person.jobs) == trained
    assert person.found() == before


def test_another_top_list_is_another_confirmation(person: Person) -> None:
    """Other configs are another question; the newest answer is the one that is told."""
    person.confirm(top=2, seeds=2)
    person.confirm(top=3, seeds=2)

    assert len(confirm_names(person.database)) == 2
    assert len(person.found().configs) == 3
    assert person.found().test_evaluations == len(person.tested) == 2


def check_all(person: Person, top: int, seeds: int) -> None:
    """Every run of a confirmation is there once, in both stores; nothing is under way; one was tested."""
    name = confirm_names(person.database)[0]
    runs = [record for record in person.tracker.records if record.state != "INTERRUPTED"]
    sealed = [record for record in runs if "final" not in record.tags]
    tracker = RecordingTracker()
    tracker.records = sealed
    check_invariants_of(person.database, tracker, top * seeds, name)
    final = [record for record in runs if "final" in record.tags]
    assert len(final) == 1
    assert final[0].result is not None
    assert final[0].result.test_accuracy is not None
    assert all(record.result and record.result.test_accuracy is None for record in sealed)
    assert person.found().test is not None
    assert not person.tracker.open


def check_invariants_of(database: Database, tracker: RecordingTracker, total: int, name: str) -> None:
    """sweeps.check_invariants for a study of another name."""
    trials = {str(trial.number): trial.value for trial in trials_of(database, name)}
    values = {record.tags["trial"]: record.result.fit.best.val_accuracy for record in tracker.records if record.result}
    assert len(trials) == total
    assert sorted(record.tags["trial"] for record in tracker.records) == sorted(trials)
    assert values == trials


@pytest.mark.parametrize("run", range(5))
def test_killed_after_any_write_it_goes_on(database: Database, run: int) -> None:
    """Killed right after the n-th run was logged, the tested one's included: the same command ends it."""
    person = Person(database, RecordingTracker({run: Killed()}))

    with pytest.raises(Killed):
        person.confirm(top=2, seeds=2)
    code = person.confirm(top=2, seeds=2)

    assert code == 0
    check_all(person, 2, 2)


@pytest.mark.parametrize("moment", range(5))
def test_killed_in_any_training_it_goes_on(database: Database, moment: int) -> None:
    """Killed in the n-th training, the tested one's included: that one is run again, and the rest once."""
    begun: list[int] = []

    def script(job: int, config: RunConfig) -> list[Step]:
        begun.append(job)
        return [0.5, Killed()] if len(begun) == moment + 1 else [0.5, accuracy(config)]

    person = Person(database, script=script, workers=1)

    with pytest.raises(Killed):
        person.confirm(top=2, seeds=2)
    code = person.confirm(top=2, seeds=2)

    assert code == 0
    assert len(begun) == 6  # five runs, one of them twice
    check_all(person, 2, 2)


@pytest.mark.parametrize("moment", [1, 4])
def test_ctrl_c_ends_it_in_order(database: Database, moment: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Among the runs, or in the tested one: exit code 130, and the same command goes on from there."""
    begun: list[int] = []

    def script(job: int, config: RunConfig) -> list[Step]:
        begun.append(job)
        return [0.5, *([signal.SIGINT] if len(begun) == moment + 1 else []), 0.5, accuracy(config)]

    person = Person(database, script=script, workers=1)
    first, said = person.confirm(top=2, seeds=2), capsys.readouterr().out
    second = person.confirm(top=2, seeds=2)

    assert (first, second) == (130, 0)
    assert "the same command goes on from here" in said
    check_all(person, 2, 2)


def test_an_mlflow_that_is_away_stops_nothing(person: Person) -> None:
    """All is run and tested while MLflow is away; typed again, everything is delivered, nothing run or tested again."""
    person.tracker.away = True
    person.confirm(top=2, seeds=2)
    trained = len(person.jobs)
    person.tracker.away = False

    person.confirm(top=2, seeds=2)

    assert len(person.jobs) == trained == 5
    check_all(person, 2, 2)


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_a_config_of_which_a_run_fails_is_left_out(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """A config that diverges with one of the seeds has no mean to be ranked by; the others are, and it is said."""
    best = history.load(database.storage, "digits").ranked[0]
    assert best.record is not None
    rate, failed = best.record.config.optimizer.learning_rate, []

    def script(job: int, config: RunConfig) -> list[Step]:
        if config.optimizer.learning_rate == rate and not failed:
            failed.append(job)
            return ["loss became nan"]
        return [0.5, accuracy(config)]

    person = Person(database, script=script)
    code = person.confirm(top=3, seeds=2)

    assert code == 0
    assert person.found().left_out == (best.number,)
    assert best.number not in [rival.number for rival in person.found().configs]
    assert f"#{best.number} is left out: a run of it failed" in capsys.readouterr().out


def test_nothing_is_chosen_where_every_config_failed(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    """All runs are done and none can be ranked: it is said why, and nothing is tested."""
    person = Person(database, script=lambda job, config: ["loss became nan"])

    code = person.confirm(top=1, seeds=2)

    assert code == 1
    assert "every config has a failed run or too few seeds: none is chosen" in capsys.readouterr().out
    assert len(person.jobs) == 2


def test_a_tested_run_that_fails_is_tried_again(person: Person, capsys: pytest.CaptureFixture[str]) -> None:
    """A full disk, say, in the last run: the reason is told, and the same command runs it once more."""
    runs: list[int] = []

    def script(job: int, config: RunConfig) -> list[Step]:
        runs.append(job)
        return ["OSError: no space left on device"] if len(runs) == 5 else [0.5, accuracy(config)]

    person.script = script
    first, said = person.confirm(top=2, seeds=2), capsys.readouterr().out
    second = person.confirm(top=2, seeds=2)

    assert (first, second) == (1, 0)
    assert "was not tested: OSError: no space left on device; the same command tries again" in said
    assert len(runs) == 6
    assert person.found().test is not None


def test_a_confirmation_is_not_confirmed_itself(person: Person) -> None:
    """Its name leads to the study's."""
    person.confirm(top=2, seeds=2)
    name = confirm_names(person.database)[0]
    person.study = lambda: history.load(person.database.storage, name)  # type: ignore[method-assign]

    with pytest.raises(StoreError, match="is a confirmation itself; give the name of its study"):
        person.confirm(top=2, seeds=2)


def test_other_data_than_the_studys_are_refused(person: Person) -> None:
    """Scores on other images are no answer to this study's question."""
    found = person.study()
    changed: list[Any] = [vars(trial) for trial in found.trials]
    other = history.History(
        **{**vars(found), "trials": tuple(history.Trial(**{**each, "record": _elsewhere(each)}) for each in changed)}
    )
    person.study = lambda: other  # type: ignore[method-assign]

    with pytest.raises(DataError, match="run on other data than what is in"):
        person.confirm(top=2, seeds=2)


def _elsewhere(trial: dict[str, Any]) -> Any:
    return trial["record"].model_copy(update={"data_fingerprint": "0" * 32})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seeds=1"], "seeds=1: must be a whole number from 2, such as seeds=5"),
        (["top=0"], "top=0: must be a whole number from 1, such as top=5"),
        (["model.dropout=0.5"], "model.dropout: confirm takes a recorded config as it is"),
        (["optimizer.learning_rate=choice(1, 2)"], "optimizer.learning_rate: confirm takes one value"),
        ([], "there is no such database; run `python -m mnistexp sweep` here first"),
    ],
)
def test_what_cannot_be_confirmed_is_said_in_a_sentence(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, exit code 2, and nothing was made."""
    monkeypatch.chdir(tmp_path)

    code = cli.main(["confirm", "data=digits", *words])

    assert code == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_a_complete_trial_is_told(quick_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All trials failed: there is nothing to confirm."""
    address = f"sqlite:///{quick_folder / 'optuna.db'}"
    opened = open_for_sweep(address)
    make_study(opened, 2, *RATES, script=lambda *_: ["loss became nan"])
    opened.close()

    code = cli.main(["confirm", "data=digits", f"study.storage={address}", "tracking=none"])

    assert code == 2
    assert "no trial of it completed" in capsys.readouterr().err


def test_fewer_configs_than_asked_for_are_all_run(person: Person) -> None:
    """top=50 of eight is eight."""
    person.confirm(top=50, seeds=2)

    assert len(person.found().configs) == 8
    assert confirmation.load(person.database.storage, person.study()) == person.found()
