"""Real services for tests, on loopback alone: PostgreSQL, MLflow's tracking server, and a disk that can be full.

    with Postgres() as postgres, MlflowServer(tmp_path, postgres.create_database("mlflow")) as server:
        ...

Each starts on entering and leaves neither process nor mount behind on leaving. Nothing here knows of mnistexp.
"""

from __future__ import annotations

import grp
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NoReturn, Self
from urllib.error import URLError
from urllib.request import urlopen

import psutil
import psycopg
import pytest

HOST = "127.0.0.1"
START_SECONDS = 90  # a server's start on a busy machine; MLflow's alone imports for six
STOP_SECONDS = 20
NO_POSTGRES = (
    "no PostgreSQL server programs in PATH's pg_config or /usr/lib/postgresql: "
    "install them (Debian: apt-get install -y --no-install-recommends postgresql)"
)


# ------------------------------------------------------------------------------------------ small helpers


def free_port() -> int:
    """A port that nothing listens on. Another process may take it before its user does, which fails loudly."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return once the condition holds. Raises: TimeoutError that says what never came."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.05)


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all that descends from it, and wait until they are gone."""
    with suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        tree = [root, *root.children(recursive=True)]
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(tree, timeout=STOP_SECONDS)


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test, with the reason; under CI fail it: there the service is installed, and a skip would hide it."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


class Service:
    """A server process that can be started, stopped, killed, and started again on its port with its data.

    Subclasses say how to start it and when it answers. `with` starts it, and ends it in whatever state it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "log.txt"

    def _command(self) -> list[str]:
        raise NotImplementedError

    def _options(self) -> dict[str, Any]:
        """What Popen takes beside the command."""
        return {}

    def answers(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Start it and return once it answers. Raises: RuntimeError with the log's end where it ends instead."""
        assert self.process is None, "already started"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # one group to kill, and a terminal's Ctrl-C stays with the tests
                **self._options(),
            )
        try:
            wait_until(self._settled, START_SECONDS, f"start of {self._command()[0]}")
        except TimeoutError:
            self.kill()
            raise
        if self.process.poll() is not None:
            self.process = None
            raise RuntimeError(f"{' '.join(self._command())} ended:\n{self.log.read_text()[-3000:]}")

    def _settled(self) -> bool:
        assert self.process is not None
        return self.process.poll() is not None or self.answers()

    def _end(self, send: Callable[[int], None]) -> None:
        """Send a signal to the process and see it and all its descendants gone, by force after a while."""
        if self.process is None:
            return
        with suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            send(self.process.pid)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
            kill_tree(self.process.pid)
            _, left = psutil.wait_procs(children, timeout=STOP_SECONDS)
            for process in left:
                kill_tree(process.pid)
        self.process.wait()
        self.process = None

    def kill(self) -> None:
        """SIGKILL the whole process group, as the out-of-memory killer or a power cut does."""
        self._end(lambda pid: os.killpg(pid, signal.SIGKILL))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


# ------------------------------------------------------------------------------------------ PostgreSQL


def find_postgres() -> Path | None:
    """The folder of PostgreSQL's server programs: pg_config's, else Debian's newest. None where there is none."""
    folders: list[Path] = []
    if config := shutil.which("pg_config"):
        asked = subprocess.run([config, "--bindir"], capture_output=True, text=True, check=False)
        folders.append(Path(asked.stdout.strip() or "."))
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    folders += sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    # pg_config is also in packages that have no server.
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


class Postgres(Service):
    """A PostgreSQL cluster of its own, in a folder of its own, with a password and with fsync on.

    As root it runs as the user postgres, or nobody, since PostgreSQL refuses root.

    Args:
        folder: for the cluster; every folder above it must be open to that user, as pytest's tmp_path isn't.
            Without one, a temporary folder that is removed in the end.

    Skips the test where PostgreSQL isn't installed, see `skip_or_fail`.
    """

    user = "sweeper"

    def __init__(self, folder: Path | None = None) -> None:
        self.temporary = folder is None
        super().__init__(folder or Path(tempfile.mkdtemp(prefix="postgres-")))
        found = find_postgres()
        if found is None:
            self._remove()
            skip_or_fail(NO_POSTGRES)
        self.programs = found
        self.password = secrets.token_hex(8)
        self.data = self.folder / "data"
        self.log = self.folder / "postgres.log"
        self.account = _account() if os.geteuid() == 0 else None

    def _options(self) -> dict[str, Any]:
        if self.account is None:
            return {}
        return {"user": self.account.pw_uid, "group": self.account.pw_gid, "extra_groups": []}

    def _command(self) -> list[str]:
        # No Unix socket: its folder is the system's, and its path is limited to 107 characters.
        settings = [f"listen_addresses={HOST}", f"port={self.port}", "unix_socket_directories=", "fsync=on"]
        flags = [word for setting in settings for word in ("-c", setting)]
        return [str(self.programs / "postgres"), "-D", str(self.data), *flags]

    def start(self) -> None:
        """Start it, creating the cluster first where there is none."""
        if not self.data.exists():
            self._initialize()
        super().start()

    def _initialize(self) -> None:
        if self.account is not None:
            os.chown(self.folder, self.account.pw_uid, self.account.pw_gid)
        secret = self.folder / "password"
        secret.write_text(self.password)
        secret.chmod(0o644)  # of a throw-away cluster, in a folder that is closed to others
        flags = ["--encoding=UTF8", "--no-locale", "--auth=scram-sha-256", "--no-sync", f"--pwfile={secret}"]
        made = subprocess.run(
            [str(self.programs / "initdb"), "-D", str(self.data), "-U", self.user, *flags],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            **self._options(),
        )
        if made.returncode != 0:
            raise RuntimeError(f"initdb failed in {self.folder}:\n{made.stdout}\n{made.stderr}")

    def url(self, database: str) -> str:
        return f"postgresql://{self.user}:{self.password}@{HOST}:{self.port}/{database}"

    def answers(self) -> bool:
        try:
            psycopg.connect(self.url("postgres"), connect_timeout=3).close()
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self, name: str) -> str:
        """Create an empty database. Returns: its URL, password included."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(name)))
        return self.url(name)

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Shut it down. fast: clients are cut off, data is written; immediate: as a crash, the log is replayed next."""
        number = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode]
        self._end(lambda pid: os.kill(pid, number))

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop it, and start it again on the same port, with the same data."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """SIGKILL the postmaster; its children end by themselves when they notice, and are waited for."""
        self._end(lambda pid: os.kill(pid, signal.SIGKILL))

    def __exit__(self, *details: Any) -> None:
        self.stop("immediate")
        self._remove()

    def _remove(self) -> None:
        if self.temporary:
            shutil.rmtree(self.folder, ignore_errors=True)


def _account() -> pwd.struct_passwd:
    """The user that PostgreSQL runs as where we are root."""
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            grp.getgrgid(account.pw_gid)
            return account
    raise RuntimeError("PostgreSQL refuses to run as root, and there is no user postgres or nobody")


# ------------------------------------------------------------------------------------------ MLflow


class MlflowServer(Service):
    """MLflow's tracking server, with one worker and without its job runner; it serves artifacts too.

    Args:
        folder: for its database, artifacts and log.
        backend_uri: where it keeps runs; without one, mlflow.db in the folder.
    """

    def __init__(self, folder: Path, backend_uri: str | None = None) -> None:
        super().__init__(folder)
        self.backend_uri = backend_uri or f"sqlite:///{folder / 'mlflow.db'}"
        self.log = folder / "mlflow.log"

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
            *("--host", HOST, "--port", str(self.port)),
            *("--allowed-hosts", f"{HOST}:{self.port},localhost:{self.port}"),
            *("--backend-store-uri", self.backend_uri),
            *("--serve-artifacts", "--artifacts-destination", str(self.folder / "artifacts")),
        ]

    def _options(self) -> dict[str, Any]:
        # Whatever MLflow the tests' user has must not leak into the server.
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        ours = {
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its queue is a process and 200 MB more
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        }
        return {"env": kept | ours}

    def answers(self) -> bool:
        try:
            with urlopen(f"{self.url}/health", timeout=3) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def stop(self) -> None:
        """SIGTERM, as a supervisor sends it."""
        self._end(lambda pid: os.killpg(pid, signal.SIGTERM))

    def restart(self) -> None:
        """Stop it, and start it again on the same port, with the same data."""
        self.stop()
        self.start()


# ------------------------------------------------------------------------------------------ a small disk


@contextmanager
def small_disk(size_mb: int) -> Iterator[Path]:
    """A folder on a file system of so many MiB, of which every byte can be used up: a tmpfs, unmounted in the end.

    Skips the test where mounting isn't allowed (it takes root, and a container that lets it).
    """
    folder = Path(tempfile.mkdtemp(prefix="small-disk-"))
    try:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m,mode=0777", "tmpfs", str(folder)]
        try:
            mounted = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            pytest.skip("no small disk to fill: there is no mount command here")
        if mounted.returncode != 0:
            pytest.skip(f"no small disk to fill: {mounted.stderr.strip()} (it takes root)")
        try:
            yield folder
        finally:
            # Lazily where a process still holds a file open: the test's own failure shall show, not this.
            if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode != 0:
                subprocess.run(["umount", "--lazy", str(folder)], check=True)
    finally:
        folder.rmdir()
