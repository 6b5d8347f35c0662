"""executor=ray: each worker is a Ray actor, on this machine or on any node of a cluster.

An actor runs one worker process and streams its messages to the same pool that local workers have. The data set is
put into Ray's object store once, from where it is copied to each node once. Actors that wait for room, or for a node
to start, are workers that are not ready yet.

`import ray` takes half a second, so it is inside a function.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnistexp.config.schema import RayExecutorConfig
from mnistexp.data.dataset import Dataset, write
from mnistexp.errors import WorkerError
from mnistexp.machine import BIT_CHANGING_FLAGS, cores, worker_versions
from mnistexp.training.messages import Broken, Job, JobResult, Message, Ready, Setup
from mnistexp.workers.pool import Connection, Received, WorkerExit, WorkerPool
from mnistexp.workers.process import WorkerProcess, worker_environment

LOOPBACK = "127.0.0.1"
"""The address of a Ray that we start: its API runs any code that it receives."""

ADDRESS_AS_GIVEN = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0, on every system, Ray uses 127.0.0.1 as it is. Otherwise it replaces it by an address of the network and
listens on every one (2.60). Read when `ray` is imported."""

CONNECT_SECONDS = 3.0

# ----------------------------------------------------------------------------------------- on the node


class NodeWorker:
    """The actor: one worker process on its node. Each method runs in a thread of its own.

    The process ends with the actor: on Linux at once, because the thread that started it ends; else at its next read.
    """

    def __init__(self) -> None:
        self._weights = Path(tempfile.gettempdir(), f"mnistexp-{secrets.token_hex(8)}.weights.h5")

    def run(
        self, setup: Setup, dataset: Dataset, gpu: bool, flags: Mapping[str, str], replacing: Mapping[str, str]
    ) -> Iterator[tuple[Received, bytes | None]]:
        """Start the process and yield its messages, with a result also the saved weights."""
        os.environ.update(flags)
        gpus = [os.environ.get("CUDA_VISIBLE_DEVICES", "")] if gpu else []  # Ray's choice for this actor
        environment = worker_environment(setup.threads, gpus, 0, replacing)
        if not gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        with tempfile.TemporaryFile() as file:  # without a name, so it cannot be left on the node
            write(dataset, file)
            file.seek(0)
            setup = setup.model_copy(update={"dataset": file.fileno()})
            self._process = WorkerProcess(environment, setup, [file.fileno()])
        for message in self._process.messages():
            weights = None
            if isinstance(message, JobResult) and self._weights.exists():
                weights = self._weights.read_bytes()
                self._weights.unlink()
            yield message, weights

    def send(self, message: Message) -> None:
        """Send the worker a message. Weights are saved on this node first."""
        if isinstance(message, Job) and message.weights_path:
            message = message.model_copy(update={"weights_path": str(self._weights)})
        self._process.send(message)


# --------------------------------------------------------------------------------------- on this machine


class RayConnection:
    """The connection to one actor. `stream` is what its `run` yields."""

    def __init__(self, ray: Any, actor: Any, stream: Any) -> None:
        self._ray, self._actor, self._stream = ray, actor, stream
        self._weights_path = ""

    def send(self, message: Message) -> None:
        if isinstance(message, Job):
            self._weights_path = message.weights_path or ""
        self._actor.send.remote(message)

    def kill(self) -> None:
        with suppress(Exception):  # the actor or the cluster may be gone already
            self._ray.kill(self._actor)

    def messages(self) -> Iterator[Received]:
        try:
            for reference in self._stream:
                message, weights = self._ray.get(reference)
                if weights is not None:
                    Path(self._weights_path).write_bytes(weights)
                yield message
        except self._ray.exceptions.RayTaskError as error:  # what `run` raised on the node, such as a full disk
            raise error.cause from None
        except Exception as error:  # noqa: BLE001 - Ray raises many classes
            yield lost_actor(error)


def lost_actor(error: Exception) -> Broken | WorkerExit:
    """Interpret the exception of an actor that does not answer."""
    text = str(error)
    last_line = text.strip().splitlines()[-1].strip() if text.strip() else type(error).__name__
    if "failed to import" in text or "No module named" in text:
        return Broken(
            error="WorkerError",
            message=f"a Ray node cannot import mnistexp ({last_line}); install this version of it on every node: "
            "see CLUSTER.md",
        )
    return WorkerExit(f"its Ray actor or its node was lost: {type(error).__name__}", True, last_line)


class RayPool(WorkerPool):
    """executor=ray: workers as Ray actors.

    Args:
        setup, options: see WorkerPool.
        settings: the address, the number of workers, and the CPUs and GPUs of each.
        dataset: what `setup.data` loads.

    Raises: WorkerError if there is no Ray, or none at the address, or no room on this machine.
    """

    def __init__(self, setup: Setup, settings: RayExecutorConfig, dataset: Dataset, **options: Any) -> None:
        super().__init__(setup, **options)
        if setup.device == "gpu" and not settings.gpus_per_trial:
            raise WorkerError("trainer.device=gpu: give executor.gpus_per_trial=1, or the share of one for each worker")
        self._settings = settings
        self._cluster = Cluster(settings.address)
        self._ray = self._cluster.ray
        try:
            self._cluster.check_room(settings.cpus_per_trial, settings.gpus_per_trial)
            self._dataset = self._ray.put(dataset)
            self._actors = self._ray.remote(NodeWorker).options(
                num_cpus=settings.cpus_per_trial, num_gpus=settings.gpus_per_trial, max_restarts=0, max_concurrency=2
            )
            self._fill()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        super().close()
        self._cluster.leave()

    def _count(self) -> int:
        if self._settings.workers != "auto":
            return self._settings.workers
        return self._cluster.room(self._settings.cpus_per_trial, self._settings.gpus_per_trial)

    def _open(self, slot: int) -> Connection:
        gpu = self._settings.gpus_per_trial > 0
        flags = {name: os.environ[name] for name in BIT_CHANGING_FLAGS if name in os.environ}
        actor = self._actors.remote()
        run = actor.run.options(num_returns="streaming")
        return RayConnection(self._ray, actor, run.remote(self._setup, self._dataset, gpu, flags, self._environment))

    def _check(self, info: Ready) -> None:
        super()._check(info)
        here, there = worker_versions(), info.versions
        other = [f"{name} {there.get(name)} (here {here[name]})" for name in here if here[name] != there.get(name)]
        if other:
            raise WorkerError(
                f"a Ray node has {', '.join(other)}: one study needs the same on every node; install it there"
            )


# ------------------------------------------------------------------------------------------------- Ray


class Cluster:
    """A connection to Ray, or a Ray on this machine that is started here and ends with this object.

    Raises: WorkerError with what to type.
    """

    def __init__(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Any call after ray.shutdown, such as closing twice, would start another Ray, which listens on the network
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        if address in (None, "auto"):  # with auto Ray also reads the token of the Ray that runs here
            address = os.environ.get("RAY_ADDRESS") or address or ("auto" if _running_here() else "local")
        if address == "local" or (_running_here() if address == "auto" else address).startswith(f"{LOOPBACK}:"):
            os.environ[ADDRESS_AS_GIVEN] = "0"
        if address not in ("local", "auto") and not _answers(address.removeprefix("ray://")):
            raise WorkerError(  # Ray itself would wait for minutes
                f"executor.address={address}: nothing answers there; give HOST:PORT as `ray start --head` printed it, "
                "ray://HOST:10001 for a client's connection, or executor.address=local"
            )
        if address == "local":  # these too are read when `ray` is imported
            os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - with Ray's 15, a training stops beside others
            if "RAY_AUTH_MODE" not in os.environ:  # else Ray writes a token that all users can read to the home folder
                os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        try:
            import ray
        except ImportError as error:
            raise WorkerError(
                f"executor=ray: {error}; type pip install 'mnistexp[ray]', or give executor=local"
            ) from None
        self.ray: Any = ray
        self._folder: Path | None = None  # of a Ray that is started here
        self._joined = not self.ray.is_initialized()
        if self._joined:
            self._init(address)

    def _init(self, address: str) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        options: dict[str, Any] = {}
        if address == "local":
            # Ray gives every user access to its folder, so it is inside one of our own. In /tmp, where Ray's usual
            # folder is, because the path of a socket has at most 107 characters.
            self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp" if Path("/tmp").is_dir() else None))
            options = {"_node_ip_address": LOOPBACK, "_temp_dir": str(self._folder / "r"), "num_cpus": cores()}
            options["include_dashboard"] = False
        try:
            context = self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
            if self._folder and context.address_info["node_ip_address"] != LOOPBACK:
                raise RuntimeError("this version of Ray would listen on the network")
        except Exception as error:  # ConnectionError, RuntimeError, ValueError and errors of its own
            self.leave()
            raise WorkerError(
                f"executor.address={address}: Ray cannot be used there ({' '.join(str(error).split())[:500]}); give "
                "the address that `ray start --head` printed, with RAY_AUTH_MODE=token in the environment if that Ray "
                "needs a token, or executor=local"
            ) from error
        signal.signal(signal.SIGTERM, handler)  # ray.init replaced it by one that only exits

    def room(self, cpus: float, gpus: float) -> int:
        """Return how many workers the cluster has room for now; at least 1."""
        total = self.ray.cluster_resources()
        counts = [total.get("CPU", 0.0) / cpus, *([total.get("GPU", 0.0) / gpus] if gpus else [])]
        return max(1, int(min(counts) + 1e-9))

    def check_room(self, cpus: float, gpus: float) -> None:
        """Raises: WorkerError if no worker fits on this machine. A cluster may get another node, so only warn there."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            return
        wanted = f"executor.cpus_per_trial={cpus:g} executor.gpus_per_trial={gpus:g}: no node of this Ray has that"
        if self._folder is not None:
            raise WorkerError(f"{wanted}; give less, or executor.address=HOST:PORT")
        logging.getLogger(__name__).warning("%s; waiting for one that has", wanted)

    def leave(self) -> None:
        """Disconnect. A Ray that was started here ends, and its files are deleted."""
        if self._joined:
            self._joined = False
            self.ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _running_here() -> str:
    """Return the address of the Ray that `ray start` last started on this machine, if it answers; else ''."""
    try:
        address = (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""
    return address if address and _answers(address) else ""


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return True
    except (OSError, ValueError, OverflowError):
        return False
