"""Property tests of studies that are resumed: any history of faults ends well, any damaged study ends in a sentence."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeExecutor, RecordingTracker, Step
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sweeps import check_invariants, finish, open_sweep, trials_of

from mnistexp.analysis import history
from mnistexp.config.schema import RunConfig
from mnistexp.errors import MnistexpError
from mnistexp.study.database import Database, open_for_sweep
from mnistexp.study.lease import COUNT, PREFIX
from mnistexp.study.trial_attrs import BASELINE, CLAIM, DEATHS, PROCESS, RECORD

TRIALS = 5
COMMON: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "print_blob": False,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


class Killed(BaseException):
    """Ends this process as far as the study can see."""


@pytest.fixture(scope="module")
def interrupted(fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with finished trials, a failed one, and one that was under way when its process died."""
    path = Path(shutil.copy(fresh, tmp_path_factory.mktemp("study") / "optuna.db"))
    database, scripts = open_for_sweep(f"sqlite:///{path}"), {0: [0.5] * 3, 1: ["loss became nan"], 2: [0.5]}

    def script(job: int, config: RunConfig) -> list[Step]:
        return [*scripts.get(job, [0.5]), *([signal.SIGINT, 0.5] if job == 3 else [])]

    open_sweep(database, f"study.trials={TRIALS}").run(FakeExecutor(script, workers=2))
    with pytest.raises(Killed):
        open_sweep(database, f"study.trials={TRIALS}").run(FakeExecutor(lambda *_: [0.5, Killed()]))
    assert {trial.state.name for trial in trials_of(database)} == {"COMPLETE", "FAIL", "RUNNING"}
    database.close()
    return path


def copied(path: Path, folder: Path) -> Database:
    """A database of one example's own."""
    return open_for_sweep(f"sqlite:///{shutil.copy(path, folder / 'optuna.db')}")


# ------------------------------------------------------------------------------------------ any history

EPOCH = st.sampled_from([0.25, 0.5, 0.75])
STEP = st.one_of(
    *[EPOCH] * 4,
    st.sampled_from([None, "loss became nan", "out of memory", signal.SIGINT, signal.SIGTERM]),
    st.builds(Killed),
)
SESSION = st.fixed_dictionaries(
    {
        "steps": st.lists(st.lists(STEP, min_size=3, max_size=5), min_size=TRIALS, max_size=TRIALS),
        "workers": st.integers(1, 3),
        "away": st.sets(st.integers(0, TRIALS)),  # trials during which MLflow is away
        "trials": st.integers(1, TRIALS),
    }
)


@settings(max_examples=8, **COMMON)
@given(sessions=st.lists(SESSION, min_size=1, max_size=4))
def test_any_history_of_faults_ends_well(fresh: Path, quick_folder: Path, sessions: list[dict[str, Any]]) -> None:
    """After sessions of lost workers, NaNs, signals, kills and an MLflow that comes and goes: all, once, in both."""
    tracker, database = RecordingTracker(), copied(fresh, quick_folder)

    for session in sessions:

        def script(job: int, config: RunConfig, session: dict[str, Any] = session) -> list[Step]:
            tracker.away = job in session["away"]
            return list(session["steps"][job])

        executor = FakeExecutor(script, session["workers"])
        with contextlib.suppress(Killed, KeyboardInterrupt):
            open_sweep(database, f"study.trials={session['trials']}", tracker=tracker).run(executor)
        tracker.away = False
    finish(database, tracker, TRIALS)
    database.close()

    check_invariants(database, tracker, TRIALS)


# ------------------------------------------------------------------------------------------ any damage

JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-2, 2**70), st.floats(allow_nan=False), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
TRIAL_KEYS = [CLAIM, BASELINE, PROCESS, DEATHS, RECORD]
STUDY_KEYS = ["fingerprint", "id", COUNT, *(f"{PREFIX}{number}" for number in range(3))]


def changed(found: Any, path: list[int], junk: Any) -> Any:
    """A value with one of its parts, found by going down `path`, replaced."""
    if not path or not isinstance(found, dict | list) or not found:
        return junk
    keys = list(found) if isinstance(found, dict) else range(len(found))
    key = keys[path[0] % len(keys)]
    copy = dict(found) if isinstance(found, dict) else list(found)
    copy[key] = changed(found[key], path[1:], junk)
    return copy


def resume(database: Database) -> str:
    """Type `sweep`, then `best`. Returns: "", or the message of a MnistexpError; any other error goes on."""
    try:
        finish(database, RecordingTracker(), TRIALS)
        history.best(database.storage, "digits")
    except MnistexpError as error:
        return str(error)
    finally:
        database.close()
    return ""


@settings(max_examples=40, **COMMON)
@given(
    number=st.integers(0, 3),
    key=st.sampled_from(TRIAL_KEYS + STUDY_KEYS),
    path=st.lists(st.integers(0, 9), max_size=4),
    junk=JUNK,
)
def test_a_study_that_another_program_changed_gives_a_sentence(
    interrupted: Path, quick_folder: Path, number: int, key: str, path: list[int], junk: Any
) -> None:
    """Whatever is in the attributes of a study or a trial, a resumed sweep ends well or in one line that helps."""
    database = copied(interrupted, quick_folder)
    storage, trial = database.storage, trials_of(database)[number]
    study_id = storage.get_study_id_from_name("digits")
    if key in STUDY_KEYS:
        storage.set_study_user_attr(study_id, key, changed(storage.get_study_user_attrs(study_id).get(key), path, junk))
    else:  # Optuna itself changes no finished trial
        value = json.dumps(changed(trial.user_attrs.get(key), path, junk))
        row = {"trial": trial._trial_id, "key": key, "value": value}
        with storage.engine.begin() as connection:
            connection.exec_driver_sql("delete from trial_user_attributes where trial_id = :trial and key = :key", row)
            connection.exec_driver_sql(
                "insert into trial_user_attributes (trial_id, key, value_json) values (:trial, :key, :value)", row
            )

    message = resume(database)

    assert "\n" not in message
    assert message == "" or "study.name" in message
