from __future__ import annotations

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
from services import Postgres

from mnistexp.errors import StoreError
from mnistexp.storage.urls import same_database
from mnistexp.study import database as databases
from mnistexp.study.database import Database, check_usable, network_warning, open_for_sweep, reading

Opener = Callable[[str], Database]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """open_for_sweep, closed with the test."""
    with ExitStack() as stack:
        yield lambda address: stack.enter_context(closing(open_for_sweep(address)))


@pytest.fixture
def path(tmp_path: Path, fresh: Path) -> Path:
    """An empty database of Optuna's."""
    return Path(shutil.copy(fresh, tmp_path / "optuna.db"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite waits for a lock for a tenth of a second, and a sweep for one."""
    monkeypatch.setitem(databases.FILE, "connect_args", {"timeout": 0.1})
    monkeypatch.setattr(databases, "PATIENCE", 1.0)


def names(address: str) -> list[str]:
    """The studies of a database."""
    with reading(address) as storage:
        return optuna.get_all_study_names(storage)


@pytest.mark.parametrize("name", ["my study.db", "a{b}c{}.db", "50%20off%.db", "größe#what?.db"])
def test_a_file_is_named_as_it_is_written(tmp_path: Path, fresh: Path, opened: Opener, name: str) -> None:
    """Spaces, braces, percent signs and the like are part of the file's name, for writers and readers."""
    address = f"sqlite:///{shutil.copy(fresh, tmp_path / name)}"
    optuna.create_study(study_name="here", storage=opened(address).storage)

    assert names(address) == ["here"]
    assert {path.name for path in tmp_path.iterdir()} - {f"{name}.lock"} == {name}


def test_locked_work_excludes_other_processes_work(path: Path, opened: Opener) -> None:
    """While one process has the lock, another waits, and goes on when the first is done."""
    one, two = opened(f"sqlite:///{path}"), opened(f"sqlite:///{path}")
    order: list[str] = []

    def slowly() -> None:
        order.append("one begins")
        thread.start()
        time.sleep(1.5)  # longer than one try to get the lock waits
        order.append("one ends")

    thread = threading.Thread(target=lambda: two.locked(lambda: order.append("two")))
    one.locked(slowly)
    thread.join()

    assert order == ["one begins", "one ends", "two"]


def test_a_wait_for_the_lock_can_be_stopped(path: Path, opened: Opener) -> None:
    """Ctrl-C ends the wait for a lock that another process keeps."""
    one, two = opened(f"sqlite:///{path}"), opened(f"sqlite:///{path}")
    two.should_abort = lambda: True

    with pytest.raises(KeyboardInterrupt):
        one.locked(lambda: two.locked(lambda: None))


@pytest.mark.usefixtures("impatient")
def test_a_locked_database_is_waited_for(path: Path, opened: Opener) -> None:
    """Another program's transaction holds the file: the work is tried again, and noted once."""
    database, notes = opened(f"sqlite:///{path}"), []
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")

    def note(text: str) -> None:
        notes.append(text)
        holder.execute("ROLLBACK")

    database.on_retry = note
    database.retry(lambda: optuna.create_study(study_name="here", storage=database.storage))
    holder.close()

    assert [str(path) in note and "database is locked" in note for note in notes] == [True]
    assert names(f"sqlite:///{path}") == ["here"]


@pytest.mark.usefixtures("impatient")
def test_patience_ends(path: Path, opened: Opener) -> None:
    """A database that stays locked is an error in one sentence; a reader does not wait for it."""
    database = opened(f"sqlite:///{path}")
    locked = pytest.raises(StoreError, match=r"optuna\.db: .*database is locked")
    with closing(sqlite3.connect(path, isolation_level=None)) as holder:
        with locked, reading(f"sqlite:///{path}") as storage:
            holder.execute("BEGIN EXCLUSIVE")
            optuna.get_all_study_names(storage)

        with locked:
            names(f"sqlite:///{path}")
        with locked:
            database.retry(lambda: optuna.create_study(storage=database.storage))


def test_a_process_killed_while_making_the_database_leaves_none(tmp_path: Path, opened: Opener) -> None:
    """What an earlier process left half made is made again."""
    (tmp_path / "optuna.db.new").write_bytes(b"SQLite format 3\0 and no more")
    (tmp_path / "optuna.db.new-journal").write_bytes(b"half")
    (tmp_path / "optuna.db").touch()

    opened(f"sqlite:///{tmp_path / 'optuna.db'}")

    assert names(f"sqlite:///{tmp_path / 'optuna.db'}") == []
    assert {path.name for path in tmp_path.iterdir()} == {"optuna.db", "optuna.db.lock"}


def damage(path: Path) -> None:
    """Replace what follows the header."""
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 8000)


def execute(*statements: str) -> Callable[[Path], None]:
    """Change a database."""

    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(damage, "damaged", id="damaged"),
        pytest.param(lambda path: path.write_text("milk\n"), "not an SQLite database", id="a text"),
        pytest.param(execute("drop table studies"), "no table studies", id="another program's"),
        pytest.param(
            execute("update alembic_version set version_num = 'v3.0.0.a'"), "optuna storage upgrade", id="older"
        ),
        pytest.param(execute("update alembic_version set version_num = 'v9'"), "pip install -U optuna", id="newer"),
    ],
)
def test_another_file_is_left_alone(path: Path, change: Callable[[Path], None], message: str) -> None:
    """A file that is not a database of this Optuna is refused, with what to do, and stays as it is."""
    change(path)
    before = path.read_bytes()

    for use in (open_for_sweep, names):
        with pytest.raises(StoreError, match=rf"optuna\.db: .*{message}"):
            use(f"sqlite:///{path}")

    assert path.read_bytes() == before


def test_a_network_file_system_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A study's file on NFS is named with its kind and what to do; one on a disk of this machine isn't."""
    mounts = [psutil._ntuples.sdiskpart("disk", "/", "ext4", ""), psutil._ntuples.sdiskpart("x", "/home", "nfs4", "")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)

    warning = network_warning("sqlite:////home/me/optuna.db")

    assert "(nfs4)" in warning
    assert "study.storage=postgresql://" in warning
    assert network_warning("sqlite:////var/optuna.db") == network_warning("postgresql://host/db") == ""


def test_looking_makes_nothing(tmp_path: Path, path: Path) -> None:
    """`doctor` prints what the file holds, or that it will be made; `best` needs one that is there."""
    new = f"sqlite:///{tmp_path / 'new.db'}"

    assert check_usable(f"sqlite:///{path}") == f"{path} (no study in it yet)"
    assert check_usable(new) == f"{tmp_path / 'new.db'} (will be made)"
    with pytest.raises(StoreError, match=r"new\.db: .*python -m mnistexp sweep"):
        names(new)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("optuna.db", r"study\.storage=optuna\.db: .*sqlite:///FILE"),
        ("sqlite//optuna.db", r"study\.storage=.*sqlite:///FILE"),
        ("mysql://me:secret@host/db", r"mysql://me:\*\*\*@host/db: .*postgresql://"),
        ("postgresql://me:secret@127.0.0.1:1/db", r"//me:\*\*\*@127\.0\.0\.1:1/db: "),
        ("postgresql://me:se[cret@db/x", r"//me:\*\*\*@db/x: .*%5B"),  # which Python itself can't parse
    ],
)
def test_an_unusable_address_is_refused(address: str, message: str) -> None:
    """The message has the address without its password, and what to do."""
    for use in (check_usable, names, open_for_sweep):
        with pytest.raises(StoreError, match=message) as caught:
            use(address)
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("sqlite:///a.db", "sqlite:///{here}/a.db", True),
        ("sqlite:///sub/../a.db", "sqlite:///./a.db", True),
        ("sqlite:///linked/a.db", "sqlite:///sub/a.db", True),
        ("sqlite:///a.db", "sqlite:///b.db", False),
        ("sqlite:///a.db", "http://127.0.0.1:5000", False),
        ("postgresql://a:b@localhost/x", "postgresql+psycopg://c@127.0.0.1:5432/x", True),
        ("postgresql://a:b@localhost/x", "postgresql://a:b@localhost/y", False),
        ("postgresql://a:b[@localhost/x", "postgresql://a:b[@localhost/x", False),
    ],
)
def test_one_database_under_two_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one: str, other: str, same: bool
) -> None:
    """Relative, absolute and roundabout addresses of one file are one database; others are not."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "sub")

    assert same_database(one, other.replace("{here}", str(tmp_path))) is same


# ------------------------------------------------------------------------------------------ a real PostgreSQL


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of the tests' own."""
    with Postgres() as server:
        yield server


def test_a_server_keeps_studies(postgres: Postgres, opened: Opener) -> None:
    """The first process makes its tables; locks exclude each other there too."""
    address = postgres.create_database("studies")

    assert check_usable(address).endswith("(will be made)")
    with pytest.raises(StoreError, match="python -m mnistexp sweep"):
        names(address)
    one, two = opened(address), opened(address)
    two.should_abort = lambda: True
    optuna.create_study(study_name="here", storage=one.storage)

    found = check_usable(address)
    assert found.endswith("(here)")
    assert "***" in found
    with pytest.raises(KeyboardInterrupt):
        one.locked(lambda: two.locked(lambda: None))
    assert two.locked(lambda: "then two") == "then two"


def test_a_server_that_restarts_is_waited_for(postgres: Postgres, opened: Opener) -> None:
    """Connections that a restart cut off are made anew; work that it interrupted is done again."""
    address = postgres.create_database("restarted")
    database, done = opened(address), []

    def work() -> None:
        if not done:
            done.append("restarted")
            postgres.restart("immediate")
        optuna.create_study(study_name="after", storage=database.storage, load_if_exists=True)

    database.locked(work)

    assert names(address) == ["after"]


def test_another_programs_server_is_left_alone(postgres: Postgres) -> None:
    """A database that has tables, but none of Optuna's, and a wrong password, are refused in a sentence."""
    address = postgres.create_database("others")
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("create table experiments (name text)")

        with pytest.raises(StoreError, match="no table studies"):
            open_for_sweep(address)

        assert len(connection.execute("select 1 from pg_tables where schemaname = 'public'").fetchall()) == 1
    with pytest.raises(StoreError, match="authentication failed") as caught:
        open_for_sweep(address.replace(urlsplit(address).password or "", "wr0ng"))
    assert "wr0ng" not in str(caught.value)


def test_eight_processes_make_one_database(postgres: Postgres, opened: Opener) -> None:
    """Eight at once on an empty database: one makes the tables, and all can use them."""
    address = postgres.create_database("eight")

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(opened, [address] * 8))

    assert [optuna.get_all_study_names(database.storage) for database in made] == [[]] * 8


def test_a_database_that_a_sweep_is_making_is_not_there_yet(postgres: Postgres, opened: Opener) -> None:
    """A reader takes a server's database for none until the last of its tables is there, and makes no table."""
    address = postgres.create_database("half")
    opened(address)
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("drop table alembic_version")  # which Optuna makes last

        with pytest.raises(StoreError, match="python -m mnistexp sweep"):
            names(address)

        assert connection.execute("select to_regclass('alembic_version')").fetchall() == [(None,)]
