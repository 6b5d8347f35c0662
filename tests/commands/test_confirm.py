from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from confirms import IMAGES, RATES, Killed, Person, accuracy, make_study
from fakes import RecordingTracker, Step
from runs import run_config
from sweeps import trials_of

from mnistexp import cli
from mnistexp.analysis import history
from mnistexp.analysis.confirmation import Confirmation, ConfirmedConfig
from mnistexp.analysis.statistics import crossed, mean_interval
from mnistexp.commands.confirm import compare_with_champion
from mnistexp.config.compose import identity
from mnistexp.config.schema import RunConfig
from mnistexp.errors import DataError, StoreError
from mnistexp.study.database import Database, open_for_sweep
from mnistexp.tracking.registry import Version


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
    """A user who confirms the study, with one worker."""
    return Person(database, workers=1)


def confirmations(database: Database) -> list[str]:
    """The names of the studies of confirmations."""
    return history.study_names(database.storage, "digits.confirm.")


# ------------------------------------------------------------------------------------------------- what is run


def test_the_best_configs_are_trained_with_the_same_fresh_seeds(person: Person) -> None:
    """Three configs with four seeds: the same new seeds for all, in rounds, and no other difference."""
    best = [trial.record.config for trial in person.study().ranked[:3] if trial.record]

    assert person.confirm(top=3, seeds=4) == 0

    repeats = list(person.executors[0].jobs.values())
    rounds = [repeats[start : start + 3] for start in range(0, 12, 3)]
    assert len(repeats) == 12
    assert all(len({config.seed for config in each}) == 1 for each in rounds)
    assert len({each[0].seed for each in rounds} - {config.seed for config in best}) == 4
    for each in rounds:
        assert [identity(config) | {"seed": 0} for config in each] == [identity(c) | {"seed": 0} for c in best]


def test_one_network_is_tested_once(person: Person) -> None:
    """Only the best network of the chosen config uses the test split; again or with fewer seeds, nothing is run."""
    assert [person.confirm(top=3, seeds=seeds) for seeds in (3, 3, 2)] == [0, 0, 0]

    found = person.found()
    assert len(person.jobs) == 10
    assert len(person.tested) == found.test_evaluations == 1
    assert identity(person.tested[0]) | {"seed": 0} == identity(found.chosen.config) | {"seed": 0}
    assert accuracy(person.tested[0]) == max(found.chosen.scores)
    assert found.test is not None
    assert found.test.same_weights


def test_runs_are_grouped_and_tagged(person: Person) -> None:
    """In MLflow all runs, with the tested one, have one closed parent and the trial that they repeat."""
    person.confirm(top=2, seeds=2)

    numbers = {str(each.number) for each in person.found().configs}
    records = person.tracker.records
    assert set(person.tracker.parents) == {f"parent of {confirmations(person.database)[0]}"}
    assert {record.tags["confirms_trial"] for record in records} == numbers
    assert {record.tags["confirms"] for record in records} == {"digits"}
    assert [record.tags.get("final", "") for record in records] == ["", "", "", "", "true"]
    assert not person.tracker.open
    assert "tracking=none" in person.found().decision


# ------------------------------------------------------------------------------------------------- resuming


def test_more_seeds_continue_a_confirmation(person: Person) -> None:
    """seeds=2, then seeds=4: only the two further seeds are run, in the same study."""
    person.confirm(top=3, seeds=2)
    before = list(person.executors[0].jobs.values())

    person.confirm(top=3, seeds=4)

    added = person.executors[2].jobs.values()
    assert len(added) == 6
    assert not {config.seed for config in before} & {config.seed for config in added}
    assert person.found().seeds == 4
    assert person.found().test_evaluations == len(person.tested)
    assert len(confirmations(person.database)) == 1


def test_other_candidates_are_another_confirmation(person: Person) -> None:
    """top=2, then top=3 of few: two studies; the newest is the result, and both test evaluations count."""
    person.confirm(top=2, seeds=2)
    person.confirm(top=50, seeds=2)

    assert len(confirmations(person.database)) == 2
    assert len(person.found().configs) == 8
    assert person.found().test_evaluations == len(person.tested) == 2
    assert person.tracker.sweeps[-1][1].endswith(": 2.")  # the page in MLflow


def check_complete(person: Person, runs: int) -> None:
    """Every repeat and one test are complete once, in both stores."""
    records = [record for record in person.tracker.records if record.state != "INTERRUPTED"]
    scores = {record.tags["trial"]: record.result.fit.best.val_accuracy for record in records if record.result}
    trials = {str(trial.number): trial.value for trial in trials_of(person.database, confirmations(person.database)[0])}
    tested = [record.result.test_accuracy is not None for record in records if record.result]
    assert len(records) == len(trials) == runs + 1
    assert scores == trials
    assert tested.count(True) == 1
    assert person.found().test is not None
    assert not person.tracker.open


@pytest.mark.parametrize("run", [0, 4])
def test_killed_after_a_run_was_logged_it_continues(database: Database, run: int) -> None:
    """Also after the tested run was logged: the same command completes the confirmation."""
    person = Person(database, RecordingTracker({run: Killed()}))

    with pytest.raises(Killed):
        person.confirm(top=2, seeds=2)
    code = person.confirm(top=2, seeds=2)

    assert code == 0
    assert len(person.tested) == 1
    check_complete(person, 4)


def stop_at(person: Person, moment: int, how: Step) -> list[int]:
    """Let the n-th training be stopped. Returns: the trainings that begin from now on."""
    begun: list[int] = []

    def script(job: int, config: RunConfig) -> list[Step]:
        begun.append(job)
        return [0.5, *([how] if len(begun) == moment + 1 else []), 0.5, accuracy(config)]

    person.script = script
    return begun


@pytest.mark.parametrize(("moment", "how"), [(3, Killed()), (4, Killed()), (1, signal.SIGINT), (4, signal.SIGINT)])
def test_stopped_in_a_training_it_continues(person: Person, moment: int, how: Step) -> None:
    """Killed or interrupted in the n-th training, also the tested one: only that training is run again."""
    begun = stop_at(person, moment, how)

    if isinstance(how, BaseException):
        with pytest.raises(Killed):
            person.confirm(top=2, seeds=2)
    else:
        assert person.confirm(top=2, seeds=2) == 130
    code = person.confirm(top=2, seeds=2)

    assert code == 0
    assert len(begun) == 6
    check_complete(person, 4)


def test_seeds_are_added_after_a_test_was_killed(person: Person) -> None:
    """The killed test runs first, still with the test split, and every repeat runs."""
    stop_at(person, 4, Killed())
    with pytest.raises(Killed):
        person.confirm(top=2, seeds=2)

    code = person.confirm(top=2, seeds=3)

    assert code == 0
    assert person.found().seeds == 3
    assert person.found().test is not None
    assert person.found().test_evaluations == len(person.tested) - 1  # the killed one has no score


def test_an_unreachable_mlflow_stops_nothing(person: Person) -> None:
    """All is trained and tested; the next command logs it, and neither trains nor tests."""
    person.tracker.away = True
    first = person.confirm(top=2, seeds=2)
    trained = len(person.jobs)
    person.tracker.away = False

    second = person.confirm(top=2, seeds=2)

    assert (first, second) == (2, 0)
    assert len(person.jobs) == trained == 5
    check_complete(person, 4)


# ------------------------------------------------------------------------------------------------- what goes wrong


def test_nothing_is_chosen_if_every_config_failed(person: Person) -> None:
    """All runs are done and none can be ranked: exit code 1, and nothing is tested."""
    person.script = lambda job, config: ["loss became nan"]

    assert person.confirm(top=1, seeds=2) == 1
    assert len(person.jobs) == 2


def test_a_failed_test_is_tried_again(person: Person, capsys: pytest.CaptureFixture[str]) -> None:
    """The reason is printed, and the same command trains the tested run once more."""
    runs: list[int] = []

    def script(job: int, config: RunConfig) -> list[Step]:
        runs.append(job)
        return ["OSError: no space left on device"] if len(runs) == 5 else [0.5, accuracy(config)]

    person.script = script
    first, printed = person.confirm(top=2, seeds=2), capsys.readouterr().out
    second = person.confirm(top=2, seeds=2)

    assert (first, second) == (1, 0)
    assert "no space left on device" in printed
    assert len(runs) == 6
    assert person.found().test is not None


def test_a_confirmation_is_not_confirmed(person: Person) -> None:
    """The message has the name of the study."""
    person.confirm(top=2, seeds=2)
    person.name = confirmations(person.database)[0]

    with pytest.raises(StoreError, match=person.name):
        person.confirm(top=2, seeds=2)


def test_other_data_are_refused(person: Person) -> None:
    """Scores on other images cannot be compared with those of the study."""
    found = person.study()
    other = {"data_fingerprint": "0"}
    trials = [replace(each, record=each.record and each.record.model_copy(update=other)) for each in found.trials]
    person.study = lambda: replace(found, trials=tuple(trials))  # type: ignore[method-assign]

    with pytest.raises(DataError, match=r"data\.root"):
        person.confirm(top=2, seeds=2)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["seeds=1"], "seeds=1"),
        (["seeds=1001"], "seeds=1001"),
        (["top=0"], "top=0"),
        (["model.dropout=0.5"], "model.dropout"),
        (["optimizer.learning_rate=choice(1, 2)"], "optimizer.learning_rate"),
        ([], "there is no such database"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and no file is made."""
    monkeypatch.chdir(tmp_path)

    code = cli.main(["confirm", "data=digits", *words])

    assert code == 2
    assert key in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_study_without_a_complete_trial_is_refused(quick_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All trials failed: there is nothing to confirm."""
    address = f"sqlite:///{quick_folder / 'optuna.db'}"
    opened = open_for_sweep(address)
    make_study(opened, 2, *RATES, script=lambda *_: ["loss became nan"])
    opened.close()

    code = cli.main(["confirm", "data=digits", f"study.storage={address}", "tracking=none"])

    assert code == 2
    assert "study.name=digits" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- the champion

HARDNESS = np.random.default_rng(0).random(IMAGES)  # of each image, for all networks


def packed(accuracy: float, seeds: int = 3) -> list[bytes]:
    """Which images the networks of a config with this accuracy classify correctly."""
    return [np.packbits(accuracy + (seed - 1) / IMAGES > HARDNESS).tobytes() for seed in range(seeds)]


@pytest.mark.parametrize(
    ("new", "champion", "count", "promoted"),
    [
        (0.9, None, 1, True),
        (0.95, packed(0.85), 1, True),
        (0.902, packed(0.9), 1, False),
        (0.95, packed(0.85, seeds=1), 1, False),  # one run shows no noise between seeds
        (0.95, [], 1, False),  # predictions are not in MLflow
        (0.95, [b"\xff"] * 3, 1, False),  # of another number of images
        (0.935, packed(0.9), 1, True),
        (0.935, packed(0.9), 10**6, False),  # the best of many needs a larger difference
    ],
)
def test_only_a_significantly_better_network_is_promoted(
    new: float, champion: list[bytes] | None, count: int, promoted: bool
) -> None:
    """The difference is paired by seed and image; the level is corrected for the number of configs."""
    tested = Confirmation("c", 3, (confirmed(new),) * count, None, "")
    versions = [version(number) for number in "12"]

    better, text = compare_with_champion(
        tested, versions[1], versions[0] if champion is not None else None, lambda _: champion or []
    )

    assert better is promoted
    assert "ersion 2" in text


def test_scores_on_other_data_are_not_compared() -> None:
    """Another split has another scale, however good the score; a version that already has the alias keeps it."""
    tested = Confirmation("c", 3, (confirmed(0.99),), None, "")

    assert not compare_with_champion(tested, version("2", "other"), version("1"), lambda _: packed(0.5))[0]
    assert compare_with_champion(tested, version("2"), version("2"), lambda _: [])[0]


def version(number: str, fingerprint: str = "d") -> Version:
    """A version that was trained on this data."""
    return Version("digits", number, "", {"data_fingerprint": fingerprint})


def confirmed(accuracy: float) -> ConfirmedConfig:
    """A config with this accuracy and three seeds."""
    correct = packed(accuracy)
    hits = np.stack([np.unpackbits(np.frombuffer(each, np.uint8))[:IMAGES] for each in correct])
    scores = tuple(hits.mean(axis=1))
    noise = crossed(hits, 0.95)
    return ConfirmedConfig(
        7, accuracy, run_config(), (), scores, mean_interval(scores, 0.95), noise, None, tuple(correct), IMAGES
    )
