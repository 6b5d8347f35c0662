"""executor=ray: each worker is a Ray actor, on this machine or on any node of a cluster.

An actor runs one worker process and forwards its messages, and a thread per actor delivers them to the same pool that
local workers have. The data set is put into Ray's object store once, from where it is copied to each node once. Actors
that wait for room, or for a node to start, are workers that are not ready yet.

`import ray` takes half a second, so it is inside a function.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mnistexp.config.schema import RayExecutorConfig
from mnistexp.data.dataset import Dataset, write
from mnistexp.errors import WorkerError
from mnistexp.machine import cores, worker_versions
from mnistexp.training.messages import Broken, Job, JobFailed, JobResult, Message, Ready, Setup
from mnistexp.workers.pool import Connection, Deliver, Received, WorkerExit, WorkerPool
from mnistexp.workers.process import WorkerProcess, worker_environment

LOOPBACK = "127.0.0.1"
"""The address of a Ray that we start: its API runs any code that it receives."""

ADDRESS_AS_GIVEN = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0, on every system, Ray uses 127.0.0.1 as it is. Otherwise it replaces it by an address of the network and
listens on every one (2.60). Read when `ray` is imported."""

BIT_CHANGING_FLAGS = ("TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS")
"""The user's variables that change bits; every node gets them."""

CONNECT_SECONDS = 3.0
LEAVE_SECONDS = 10.0


# ----------------------------------------------------------------------------------------- on the node


class NodeWorker:
    """The actor: one worker process on its node. Its methods run in threads of their own.

    The process ends with the actor: on Linux at once, because the thread that started it ends; else at its next read.
    """

    def __init__(
        self, setup: Setup, dataset: Dataset, gpu: bool, flags: Mapping[str, str], replacing: Mapping[str, str]
    ) -> None:
        os.environ.update(flags)
        gpus = [os.environ.get("CUDA_VISIBLE_DEVICES", "")] if gpu else []  # Ray's choice for this actor
        environment = worker_environment(setup.threads, gpus, 0, replacing)
        if not gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._received: queue.SimpleQueue[tuple[Received, bytes | None]] = queue.SimpleQueue()
        self._weights = Path(tempfile.gettempdir(), f"mnistexp-{secrets.token_hex(8)}.weights.h5")
        self._process: WorkerProcess | None = None
        threading.Thread(target=self._run, args=(environment, setup, dataset), daemon=True).start()

    def send(self, message: Message) -> None:
        """Send the worker a message. Weights are saved on this node first."""
        if isinstance(message, Job) and message.weights_path:
            message = message.model_copy(update={"weights_path": str(self._weights)})
        if self._process is not None:
            self._process.send(message)

    def receive(self) -> tuple[Received, bytes | None]:
        """Wait for the next message. Returns: the message, and with a result the saved weights."""
        return self._received.get()

    def close_stdin(self) -> None:
        """Close the worker's input."""
        if self._process is not None:
            self._process.close_stdin()

    def _run(self, environment: Mapping[str, str], setup: Setup, dataset: Dataset) -> None:
        try:
            with tempfile.TemporaryFile() as file:  # without a name, so it cannot be left on the node
                write(dataset, file)
                file.seek(0)
                setup = setup.model_copy(update={"dataset": file.fileno()})
                self._process = WorkerProcess(environment, setup, [file.fileno()])
            self._process.listen(self._forward)
        except Exception as error:  # noqa: BLE001 - a full disk, no more processes: reported as the worker's end
            self._forward(WorkerExit(f"{type(error).__name__} on its node", True, " ".join(str(error).split())))

    def _forward(self, message: Received) -> None:
        weights = None
        if isinstance(message, JobResult) and self._weights.exists():
            weights = self._weights.read_bytes()
            self._weights.unlink()
        self._received.put((message, weights))


# --------------------------------------------------------------------------------------- on this machine


class RayConnection:
    """The connection to one actor."""

    def __init__(self, ray: Any, actor: Any, deliver: Deliver) -> None:
        self._ray, self._actor, self._deliver = ray, actor, deliver
        self._weights_path = ""
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        if isinstance(message, Job):
            self._weights_path = message.weights_path or ""
        self._actor.send.remote(message)

    def close_stdin(self) -> None:
        self._actor.close_stdin.remote()

    def kill(self) -> None:
        with suppress(Exception):  # the actor or the cluster may be gone already
            self._ray.kill(self._actor)

    def wait(self) -> None:
        self.kill()
        if self._thread is not threading.current_thread():
            self._thread.join(LEAVE_SECONDS)

    def _listen(self) -> None:
        message: Received | None = None
        while not isinstance(message, WorkerExit | Broken):
            try:
                message, weights = self._ray.get(self._actor.receive.remote())
            except Exception as error:  # noqa: BLE001 - without a WorkerExit the caller would wait without end
                message, weights = lost_actor(error), None
            if isinstance(message, JobResult) and weights is not None:
                message = self._save(message, weights)
            self._deliver(message)

    def _save(self, message: JobResult, weights: bytes) -> JobResult | JobFailed:
        """Write the weights where they were asked for."""
        try:
            Path(self._weights_path).write_bytes(weights)
        except OSError as error:
            return JobFailed(reason=f"{type(error).__name__}: {error}", traceback="", memory=message.memory)
        return message


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
    if getattr(error, "actor_init_failed", False) or type(error).__name__ == "RuntimeEnvSetupError":
        return WorkerExit("its Ray actor cannot be started", False, last_line)
    why = "its node was preempted" if getattr(error, "preempted", False) else "its Ray actor or its node was lost"
    return WorkerExit(f"{why}: {type(error).__name__}", True, last_line)


class RayPool(WorkerPool):
    """executor=ray: workers as Ray actors.

    Args:
        setup: what every worker loads. Its data set is resolved: never `auto`.
        settings: the address, the number of workers, and the CPUs and GPUs of each.
        dataset: what `setup.data` loads.
        at_most, fingerprint, max_memory: see WorkerPool. With at_most=0 Ray is not started.
        environment: variables that replace the nodes' (recorded flags of a rerun).

    Raises: WorkerError if there is no Ray, or none at the address, or no room on this machine.
    """

    def __init__(
        self,
        setup: Setup,
        settings: RayExecutorConfig,
        dataset: Dataset,
        *,
        at_most: int,
        fingerprint: str = "",
        max_memory: float = math.inf,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(at_most=at_most, fingerprint=fingerprint, max_memory=max_memory)
        if setup.device == "gpu" and not settings.gpus_per_trial:
            raise WorkerError("trainer.device=gpu: give executor.gpus_per_trial=1, or the share of one for each worker")
        self._setup, self._settings, self._environment = setup, settings, dict(environment or {})
        self._flags = {name: os.environ[name] for name in BIT_CHANGING_FLAGS if name in os.environ}
        self._cluster: Cluster | None = None
        if at_most == 0:
            return
        splits = (dataset.train, dataset.validation, dataset.test)
        data_bytes = sum(split.images.nbytes + split.labels.nbytes for split in splits)
        self._cluster = Cluster(settings.address, data_bytes)
        self._ray = self._cluster.ray
        try:
            self._cluster.check_room(settings.cpus_per_trial, settings.gpus_per_trial)
            self._dataset = self._ray.put(dataset)
            self._actors = self._ray.remote(NodeWorker).options(
                num_cpus=settings.cpus_per_trial, num_gpus=settings.gpus_per_trial, max_restarts=0, max_concurrency=4
            )
            self._fill()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._cluster is not None:
            super().close()
            self._cluster.leave()
            self._cluster = None

    def _count(self) -> int:
        assert self._cluster is not None
        if self._settings.workers != "auto":
            return self._settings.workers
        return self._cluster.room(self._settings.cpus_per_trial, self._settings.gpus_per_trial)

    def _open(self, slot: int, deliver: Deliver) -> Connection:
        gpu = self._settings.gpus_per_trial > 0
        actor = self._actors.remote(self._setup, self._dataset, gpu, self._flags, self._environment)
        return RayConnection(self._ray, actor, deliver)

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

    Args:
        address: see RayExecutorConfig.
        data_bytes: size of the data set, which decides the size of the object store.

    Raises: WorkerError with what to type.
    """

    def __init__(self, address: str | None, data_bytes: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # Any call after ray.shutdown, such as closing twice, would start another Ray, which listens on the network
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
        running = ""
        if address in (None, "auto"):
            address = os.environ.get("RAY_ADDRESS") or address
            running = _running_here()
            address = address or ("auto" if running else "local")  # with auto Ray also reads that cluster's token
        self._folder: Path | None = None
        if address == "local" or (running if address == "auto" else address).startswith(f"{LOOPBACK}:"):
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
        self.ray = _import_ray()
        self._joined = not self.ray.is_initialized()
        if self._joined:
            handler = signal.getsignal(signal.SIGTERM)
            self._start(data_bytes) if address == "local" else self._join(address)
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
        wanted = f"executor.cpus_per_trial={cpus:g} executor.gpus_per_trial={gpus:g}"
        if self._folder is not None:
            has = f"{nodes[0].get('CPU', 0):g} CPUs and {nodes[0].get('GPU', 0):g} GPUs"
            raise WorkerError(f"{wanted}: this machine has {has}; give less, or executor.address=HOST:PORT")
        logging.getLogger(__name__).warning("%s: no node of the cluster has that; waiting for one that has", wanted)

    def leave(self) -> None:
        """Disconnect. A Ray that was started here ends, and its files are deleted."""
        if self._joined:
            self._joined = False
            self.ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _join(self, address: str) -> None:
        try:
            self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # ConnectionError, RuntimeError, ValueError and errors of its own
            raise WorkerError(
                f"executor.address={address}: Ray cannot be joined there ({' '.join(str(error).split())[:500]}); "
                "give the address that `ray start --head` printed, with RAY_AUTH_MODE=token in the environment if that "
                "Ray needs a token, or executor.address=local"
            ) from error

    def _start(self, data_bytes: int) -> None:
        # Ray gives every user access to its folder, so it is inside one of our own. In /tmp, where Ray's usual folder
        # is, because the path of a socket has at most 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp" if Path("/tmp").is_dir() else None))
        try:
            context = self.ray.init(
                address="local",
                num_cpus=cores(),
                object_store_memory=2 * data_bytes + 100_000_000,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address=LOOPBACK,
                _temp_dir=str(self._folder / "r"),
            )
            if context.address_info["node_ip_address"] != LOOPBACK:
                raise RuntimeError("this version of Ray would listen on the network")
        except Exception as error:
            self.leave()
            why = " ".join(str(error).split())[:500]
            raise WorkerError(
                f"executor=ray: Ray does not start here ({why}); give executor=local, or run `ray start --head` behind "
                "a firewall and give executor.address=auto"
            ) from error


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise WorkerError(
            f"executor=ray: Ray cannot be imported here ({error}); type pip install 'mnistexp[ray]', "
            "or give executor=local"
        ) from None
    return ray


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
