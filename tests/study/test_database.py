from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from urllib.parse import urlsplit

import optuna
import psutil
import psycopg
import pytest
from services import Postgres, wait_until

from mnistexp.errors import StoreError
from mnistexp.storage.urls import same_database
from mnistexp.study import database as storage
from mnistexp.study.database import check_usable, network_warning, open_for_sweep, open_to_read, reading

Opener = Callable[[str], storage.Database]


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of Optuna's."""
    path = tmp_path_factory.mktemp("optuna") / "optuna.db"
    open_for_sweep(f"sqlite:///{path}")
    return path


@pytest.mark.parametrize(
    "name", ["optuna.db", "my study.db", "a{b}c{}.db", "50%20off%.db", "größe ☃.db", "a#b.db", "what?.db"]
)
def test_a_file_is_named_as_it_is_written(tmp_path: Path, fresh: Path, name: str) -> None:
    """Spaces, braces, percent signs and the like are part of the file's name, in each command alike."""
    address = f"sqlite:///{tmp_path / name}"
    shutil.copy(fresh, tmp_path / name)
    optuna.create_study(study_name="here", storage=open_for_sweep(address).storage)

    names = optuna.get_all_study_names(open_to_read(address))

    assert names == ["here"]
    assert {path.name for path in tmp_path.iterdir()} - {f"{name}.lock"} == {name}
    with sqlite3.connect(tmp_path / name) as connection:
        assert connection.execute("select study_name from studies").fetchall() == [("here",)]
    connection.close()


def test_a_relative_address_means_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that isn't there is made, in the folder that the command runs in."""
    monkeypatch.chdir(tmp_path)

    open_for_sweep("sqlite:///sub.db")

    assert (tmp_path / "sub.db").stat().st_size > 0


def test_turns_exclude_each_other(tmp_path: Path, fresh: Path) -> None:
    """While one driver has its turn, another waits, and goes on when the first is done, or gone."""
    path = shutil.copy(fresh, tmp_path / "optuna.db")
    one, two = open_for_sweep(f"sqlite:///{path}"), open_for_sweep(f"sqlite:///{path}")
    order: list[str] = []

    def slowly() -> None:
        order.append("one begins")
        thread.start()
        time.sleep(1.5)  # longer than one try to get the turn waits
        order.append("one ends")

    thread = threading.Thread(target=lambda: two.locked(lambda: order.append("two")))
    one.locked(slowly)
    thread.join()

    assert order == ["one begins", "one ends", "two"]


def test_a_waiting_driver_can_be_stopped(tmp_path: Path, fresh: Path) -> None:
    """Ctrl-C ends the wait for a turn that another keeps."""
    path = shutil.copy(fresh, tmp_path / "optuna.db")
    one, two = open_for_sweep(f"sqlite:///{path}"), open_for_sweep(f"sqlite:///{path}")
    two.should_abort = lambda: True

    with pytest.raises(KeyboardInterrupt):
        one.locked(lambda: two.locked(lambda: None))


def test_a_locked_database_is_waited_for(tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's transaction holds the file: it is tried again, said once, and then goes on as if nothing was."""
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.1)
    path = shutil.copy(fresh, tmp_path / "optuna.db")
    database, notes = open_for_sweep(f"sqlite:///{path}"), []
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")

    def note(text: str) -> None:
        notes.append(text)
        holder.execute("ROLLBACK")

    database.on_retry = note
    database.retry(lambda: optuna.create_study(study_name="here", storage=database.storage))
    holder.close()

    assert notes == [f"{path}: database is locked; trying again for up to 300 s"]
    assert optuna.get_all_study_names(database.storage) == ["here"]


def test_patience_ends(tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that stays locked is a fault in one sentence."""
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.1)
    monkeypatch.setattr(storage, "PATIENCE", 1.0)
    path = shutil.copy(fresh, tmp_path / "optuna.db")
    database = open_for_sweep(f"sqlite:///{path}")
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")

        with pytest.raises(StoreError, match=r"optuna\.db: Optuna can't use it any more: database is locked"):
            database.retry(lambda: optuna.create_study(storage=database.storage))


def test_a_reader_tells_of_a_locked_database(tmp_path: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`best` and `doctor` say in a sentence that it is locked, when they open it and when they read it."""
    monkeypatch.setattr(storage, "BUSY_SECONDS", 0.1)
    path = shutil.copy(fresh, tmp_path / "optuna.db")
    locked = pytest.raises(StoreError, match=r"optuna\.db: try again, Optuna can't use it now: database is locked")
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        with locked, reading(f"sqlite:///{path}") as database:
            holder.execute("BEGIN EXCLUSIVE")
            optuna.get_all_study_names(database)

        with locked:
            open_to_read(f"sqlite:///{path}")


def test_a_process_killed_while_making_the_database_leaves_none(tmp_path: Path) -> None:
    """What an earlier process left half made is made anew; nothing of it is taken for a database."""
    (tmp_path / "optuna.db.new").write_bytes(b"SQLite format 3\0 and no more")
    (tmp_path / "optuna.db.new-journal").write_bytes(b"half")
    (tmp_path / "optuna.db").touch()

    database = open_for_sweep(f"sqlite:///{tmp_path / 'optuna.db'}")

    assert optuna.get_all_study_names(database.storage) == []
    assert {path.name for path in tmp_path.iterdir()} == {"optuna.db", "optuna.db.lock"}


def test_a_damaged_database_is_left_alone(tmp_path: Path, fresh: Path) -> None:
    """A file that begins as a database and goes on as noise is named as damaged, and stays as it is."""
    path = tmp_path / "optuna.db"
    path.write_bytes(fresh.read_bytes()[:100] + b"\xff" * 8000)
    before = path.read_bytes()

    with pytest.raises(StoreError, match=r"optuna\.db: is damaged .*restore it from a copy"):
        open_for_sweep(f"sqlite:///{path}")

    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("revision", "words"),
    [("v3.0.0.a", "was made by an older Optuna.*optuna storage upgrade"), ("v9", "was made by a newer Optuna")],
)
def test_another_versions_database_is_left_alone(tmp_path: Path, fresh: Path, revision: str, words: str) -> None:
    """Tables of an older or a newer Optuna are refused with what to do, and stay as they are."""
    path = Path(shutil.copy(fresh, tmp_path / "optuna.db"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("update alembic_version set version_num = ?", (revision,))
        connection.commit()
    before = path.read_bytes()

    with pytest.raises(StoreError, match=words):
        open_for_sweep(f"sqlite:///{path}")

    assert path.read_bytes() == before


def test_a_network_file_system_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study's file on NFS is named with its kind and what to do; one on a disk of this machine isn't."""
    mounts = [psutil._ntuples.sdiskpart("disk", "/", "ext4", ""), psutil._ntuples.sdiskpart("x", "/home", "nfs4", "")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)

    warning = network_warning("sqlite:////home/me/optuna.db")

    assert "is on a network file system (nfs4)" in warning
    assert "study.storage=postgresql://" in warning
    assert network_warning("sqlite:////var/optuna.db") == ""
    assert network_warning("postgresql://host/db") == ""


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
    with pytest.raises(StoreError, match=r"mine\.db: is another program's database \(it has no table studies\)"):
        open_to_read(f"sqlite:///{tmp_path / 'mine.db'}")
    assert (tmp_path / "mine.db").read_bytes() == before

    assert (tmp_path / "notes.txt").read_text() == "remember the milk\n"


@pytest.mark.parametrize("address", ["optuna.db", "sqlite//optuna.db", "nosuchdb://host/x"])
def test_what_is_no_address_is_refused(address: str) -> None:
    """The message shows what an address looks like, or what is missing."""
    with pytest.raises(StoreError, match=r"study\.storage="):
        check_usable(address)


def test_a_bracket_in_a_password_is_told() -> None:
    """An address that Python itself can't take apart is a sentence too, and shows nothing of the password."""
    for address in ("postgresql://me:se[cret@db/x", "postgresql://me:se[cret]s@db/x"):
        with pytest.raises(
            StoreError, match=r"//me:\*\*\*@db/x: its host or port.* brackets as %5B and %5D$"
        ) as caught:
            check_usable(address)
        assert "cret" not in str(caught.value)
        assert not same_database(address, "sqlite:///optuna.db")


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    """An unreachable server, and a scheme that isn't known, are said at once; the message hides the password."""
    for use in (check_usable, open_to_read, open_for_sweep):
        with pytest.raises(StoreError, match=r"//me:\*\*\*@127\.0\.0\.1:1/db: no database answers") as caught:
            use("postgresql://me:secret@127.0.0.1:1/db")
        assert "secret" not in str(caught.value)
        with pytest.raises(StoreError, match=r"mysql://me:\*\*\*@host/db: must be like sqlite:///.* or postgresql://"):
            use("mysql://me:secret@host/db")


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
    assert same_database("postgresql://a:b@localhost/x", "postgresql+psycopg://c@127.0.0.1:5432/x")
    assert not same_database("postgresql://a:b@localhost/x", "postgresql://a:b@localhost/y")


# ------------------------------------------------------------------------------------------ a real PostgreSQL


@pytest.fixture
def opened() -> Iterator[Opener]:
    """open_for_sweep, closed with the test."""
    with ExitStack() as stack:
        yield lambda address: stack.enter_context(closing(open_for_sweep(address)))


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of the tests' own."""
    with Postgres() as server:
        yield server


def test_a_server_keeps_studies(postgres: Postgres, opened: Opener) -> None:
    """Its tables are made by the first who comes; what it holds is said; turns exclude each other there too."""
    address = postgres.create_database("studies")

    assert check_usable(address).endswith("(will be made)")
    with pytest.raises(StoreError, match="there is no such database; run `python -m mnistexp sweep`"):
        open_to_read(address)
    one, two = opened(address), opened(address)
    two.should_abort = lambda: True
    optuna.create_study(study_name="here", storage=one.storage)

    said = check_usable(address)
    assert said.endswith("(here)")
    assert "***" in said
    with pytest.raises(KeyboardInterrupt):
        one.locked(lambda: two.locked(lambda: None))
    assert two.locked(lambda: "then two") == "then two"


def test_a_server_that_restarts_is_waited_for(postgres: Postgres, opened: Opener) -> None:
    """Connections that a restart cut off are made anew; work that it interrupted is done again."""
    database = opened(postgres.create_database("restarted"))
    database.locked(lambda: optuna.create_study(study_name="before", storage=database.storage))
    done: list[str] = []

    def work() -> None:
        if not done:
            done.append("restarted")
            postgres.restart("immediate")
        optuna.create_study(study_name="after", storage=database.storage, load_if_exists=True)

    database.locked(work)

    assert sorted(optuna.get_all_study_names(database.storage)) == ["after", "before"]


def test_somebody_elses_tables_on_a_server_are_left_alone(postgres: Postgres) -> None:
    """A database that has tables, but none of Optuna's, and a wrong password, are refused in a sentence."""
    address = postgres.create_database("others")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("create table experiments (name text)")

        with pytest.raises(StoreError, match="is another program's database"):
            open_for_sweep(address)

        assert len(connection.execute("select 1 from pg_tables where schemaname = 'public'").fetchall()) == 1
    password = urlsplit(address).password or ""
    with pytest.raises(StoreError, match=r"Optuna can't use it: .*authentication failed") as caught:
        open_for_sweep(address.replace(password, "wr0ng"))
    assert "wr0ng" not in str(caught.value)


def test_eight_drivers_make_one_database(postgres: Postgres, opened: Opener) -> None:
    """Eight at once on an empty database: one makes the tables, and all can use them."""
    address = postgres.create_database("eight")

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(opened, [address] * 8))

    assert [optuna.get_all_study_names(database.storage) for database in made] == [[]] * 8


def test_tables_that_another_program_makes_meanwhile(postgres: Postgres, opened: Opener) -> None:
    """A dashboard that opens the same empty database takes no turns: who comes second to a table tries again."""
    address = postgres.create_database("raced")
    blocked = "select 1 from pg_stat_activity where datname = 'raced' and wait_event_type = 'Lock'"
    with ThreadPoolExecutor(1) as pool, psycopg.connect(address) as dashboard:
        dashboard.execute("create table alembic_version (version_num varchar(32) primary key)")
        sweep = pool.submit(opened, address)
        with psycopg.connect(address, autocommit=True) as looker:
            wait_until(lambda: bool(looker.execute(blocked).fetchall()), 60, "the sweep at the dashboard's table")
        dashboard.commit()

        database = sweep.result()

    optuna.create_study(study_name="here", storage=database.storage)
    with reading(address) as whole:
        assert optuna.get_all_study_names(whole) == ["here"]


def test_readers_do_not_make_what_a_sweep_is_making(postgres: Postgres, opened: Opener) -> None:
    """`best` and `doctor` take a server's database for none until the last of its tables is there."""
    address = postgres.create_database("half")
    opened(address)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("drop table alembic_version")  # which Optuna makes last

        with pytest.raises(StoreError, match="there is no such database"):
            open_to_read(address)

        assert check_usable(address).endswith("(will be made)")
        assert connection.execute("select to_regclass('alembic_version')").fetchall() == [(None,)]
