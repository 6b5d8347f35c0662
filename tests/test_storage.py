from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import optuna
import pytest

from mnistexp.errors import StoreError
from mnistexp.storage import check_usable, open_for_sweep, open_to_read, same_database


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of Optuna's."""
    path = tmp_path_factory.mktemp("optuna") / "optuna.db"
    with open_for_sweep(f"sqlite:///{path}"):
        return path


@pytest.mark.parametrize(
    "name", ["optuna.db", "my study.db", "a{b}c{}.db", "50%20off%.db", "größe ☃.db", "a#b.db", "what?.db"]
)
def test_a_file_is_named_as_it_is_written(tmp_path: Path, fresh: Path, name: str) -> None:
    """Spaces, braces, percent signs and the like are part of the file's name, in each command alike."""
    address = f"sqlite:///{tmp_path / name}"
    shutil.copy(fresh, tmp_path / name)
    with open_for_sweep(address) as database:
        optuna.create_study(study_name="here", storage=database)

    names = optuna.get_all_study_names(open_to_read(address))

    assert names == ["here"]
    assert {path.name for path in tmp_path.iterdir()} - {f"{name}.lock"} == {name}
    with sqlite3.connect(tmp_path / name) as connection:
        assert connection.execute("select study_name from studies").fetchall() == [("here",)]
    connection.close()


def test_a_relative_address_means_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that isn't there is made, in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)

    with open_for_sweep("sqlite:///sub.db"):
        pass

    assert (tmp_path / "sub.db").stat().st_size > 0


def test_two_sweeps_on_one_file_are_refused(tmp_path: Path, fresh: Path) -> None:
    """The second is told what to do; once the first has ended, the file can be used again."""
    address = f"sqlite:///{shutil.copy(fresh, tmp_path / 'optuna.db')}"

    with (
        open_for_sweep(address),
        pytest.raises(StoreError, match=r"optuna\.db: another sweep is running on it; wait for it, or give study\.st"),
        open_for_sweep(address),
    ):
        pass

    with open_for_sweep(address):
        pass


def test_the_lock_goes_with_a_fault(tmp_path: Path, fresh: Path) -> None:
    """A sweep that ends in an exception leaves its database free, and the exception as it is."""
    address = f"sqlite:///{shutil.copy(fresh, tmp_path / 'optuna.db')}"
    with pytest.raises(KeyboardInterrupt), open_for_sweep(address):
        raise KeyboardInterrupt

    with open_for_sweep(address):
        pass


def test_reading_makes_nothing(tmp_path: Path) -> None:
    """`best` in an empty folder says what to run, and leaves the folder empty."""
    with pytest.raises(StoreError, match=r"optuna\.db: there is no such database; run `python -m mnistexp sweep`"):
        open_to_read(f"sqlite:///{tmp_path / 'optuna.db'}")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing folder is the user's to make."""
    with pytest.raises(StoreError, match=r"nowhere: no such folder, so optuna\.db can't be made"):
        check_usable(f"sqlite:///{tmp_path / 'nowhere' / 'optuna.db'}")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    """A read-only folder is said before anything is trained."""
    tmp_path.chmod(0o500)

    with pytest.raises(StoreError, match="can't be written to"):
        check_usable(f"sqlite:///{tmp_path / 'optuna.db'}")


def test_something_else_is_left_alone(tmp_path: Path) -> None:
    """A file that is no database, and a database that isn't Optuna's, are refused unchanged."""
    (tmp_path / "notes.txt").write_text("remember the milk\n")
    with sqlite3.connect(tmp_path / "mine.db") as connection:
        connection.execute("create table alembic_version (version_num varchar(32))")
        connection.execute("insert into alembic_version values ('c48cb72f7b49')")  # MLflow's are of this kind
    connection.close()

    with pytest.raises(StoreError, match=r"notes\.txt: is not an SQLite database"):
        open_to_read(f"sqlite:///{tmp_path / 'notes.txt'}")
    before = (tmp_path / "mine.db").read_bytes()
    with pytest.raises(StoreError, match=r"mine\.db: is somebody else's database \(it has no table studies\)"):
        open_to_read(f"sqlite:///{tmp_path / 'mine.db'}")
    assert (tmp_path / "mine.db").read_bytes() == before

    assert (tmp_path / "notes.txt").read_text() == "remember the milk\n"


@pytest.mark.parametrize("address", ["optuna.db", "sqlite//optuna.db", "nosuchdb://host/x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """The message shows what an address looks like, or what is missing."""
    with pytest.raises(StoreError, match=r"study\.storage="):
        check_usable(address)


def test_a_server_is_refused_without_its_password() -> None:
    """Until several drivers can share a study, only a file is taken; the message hides the password."""
    for use in (check_usable, open_to_read):
        with pytest.raises(
            StoreError, match=r"study\.storage=postgresql://me:\*\*\*@host/db: must be like sqlite"
        ) as caught:
            use("postgresql://me:secret@host/db")
        assert "secret" not in str(caught.value)


def test_what_a_database_address_says_before_it_is_used(tmp_path: Path, fresh: Path) -> None:
    """`doctor` hears what the file holds, or that it will be made; looking makes nothing."""
    (tmp_path / "here.db").write_bytes(fresh.read_bytes())

    assert check_usable(f"sqlite:///{tmp_path / 'here.db'}") == f"{tmp_path / 'here.db'} (no study in it yet)"
    assert check_usable(f"sqlite:///{tmp_path / 'new.db'}") == f"{tmp_path / 'new.db'} (will be made)"
    assert not (tmp_path / "new.db").exists()


def test_one_database_under_two_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative, absolute and roundabout addresses of one file are one database; others are not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "sub")

    assert same_database("sqlite:///a.db", f"sqlite:///{tmp_path / 'a.db'}")
    assert same_database("sqlite:///sub/../a.db", "sqlite:///./a.db")
    assert same_database("sqlite:///linked/a.db", "sqlite:///sub/a.db")
    assert not same_database("sqlite:///a.db", "sqlite:///b.db")
    assert not same_database("sqlite:///a.db", "http://127.0.0.1:5000")
