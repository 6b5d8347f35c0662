"""executor=ray: each worker is a Ray actor, on this machine or on any node of a cluster.

An actor holds one worker process and passes on what it says; a thread per actor brings that to the supervision
which local workers have too, so both behave alike. The data set goes into Ray's object store once, from where it
reaches each node once. Actors that wait for room, or for a node to be started, are workers that aren't ready yet.

`import ray` takes half a second and stands inside functions: nobody else pays for it.
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
from typing import Any, Literal

from mnistexp.config import user_code
from mnistexp.config.schema import DataConfig, RayExecutorConfig
from mnistexp.data.dataset import Dataset, write
from mnistexp.errors import WorkerError
from mnistexp.machine import cores, worker_versions
from mnistexp.workers.pool import Connection, Deliver, Message, WorkerExit, WorkerPool
from mnistexp.workers.process import WorkerProcess, worker_environment

LOOPBACK = "127.0.0.1"
"""Where a Ray that we start listens, all of its processes: its API runs any code that it is sent."""

ADDRESS_AS_GIVEN = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""With 0, and not only on those systems, Ray takes 127.0.0.1 as it is. Otherwise it looks up an address of the network,
and its processes listen on every one (2.60). Read when `ray` is imported."""

ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # unless the user wants them
    # Any call on a Ray that was left, such as closing twice, would start another one, which listens on the network
    "RAY_ENABLE_AUTO_CONNECT": "0",
}

OWN_RAY = {
    ADDRESS_AS_GIVEN: "0",
    "RAY_worker_niceness": "0",  # 15 by default: beside anything else a training would stand still
}

USERS_FLAGS = ("TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS")
"""Variables of this process that change bits, so that they count on every node as they do here."""

CONNECT_SECONDS = 3.0
LEAVE_SECONDS = 10.0

Said = tuple[Message, bytes | None]
"""What a worker said, and the weights that it saved on its node."""


# ----------------------------------------------------------------------------------------- on the node


class NodeWorker:
    """The actor: one worker process on its node. Its methods run in threads of their own."""

    def __init__(
        self,
        hello: Mapping[str, Any],
        dataset: Dataset,
        has_gpu: bool,
        users: Mapping[str, str],
        more: Mapping[str, str],
    ) -> None:
        os.environ.update(users)
        gpus = [os.environ.get("CUDA_VISIBLE_DEVICES", "")] if has_gpu else []  # Ray's choice for this actor
        environment = worker_environment(hello["threads"], gpus, 0, more)
        if not has_gpu:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._folder = tempfile.TemporaryDirectory(prefix="mnistexp-", ignore_cleanup_errors=True)
        self._weights = Path(self._folder.name) / "model.weights.h5"
        self._process: WorkerProcess | None = None
        # A thread that lives as long as the process: on Linux that dies with the thread which started it
        threading.Thread(target=self._tend, args=(environment, hello, dataset), daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Send the worker one line; weights are saved here, since the path that is given is another machine's."""
        if message.get("weights_path"):
            message = {**message, "weights_path": str(self._weights)}
        if self._process is not None:
            self._process.send(message)

    def receive(self) -> Said:
        """Wait for what it says next; its Death is the last."""
        return self._said.get()

    def close_stdin(self) -> None:
        """Let the worker leave when it is idle."""
        if self._process is not None:
            self._process.close_stdin()

    def stop(self) -> None:
        """Kill the worker and wait until it is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def _tend(self, environment: Mapping[str, str], hello: Mapping[str, Any], dataset: Dataset) -> None:
        try:
            with tempfile.TemporaryFile() as file:  # it has no name, so nothing of it can be left on the node
                write(dataset, file)
                file.seek(0)
                self._process = WorkerProcess(environment, {**hello, "dataset": file.fileno()}, [file.fileno()])
            self._process.listen(self._pass_on)
        except OSError as error:  # a full disk, no more processes
            self._pass_on(WorkerExit(f"{type(error).__name__} on its node", False, " ".join(str(error).split())))

    def _pass_on(self, message: Message) -> None:
        weights = None
        if self._weights.exists() and isinstance(message, dict) and message["event"] == "result":
            weights = self._weights.read_bytes()
            self._weights.unlink()
        self._said.put((message, weights))


# --------------------------------------------------------------------------------------- on this machine


class RayConnection:
    """The way to one actor. See executor.Link."""

    def __init__(self, ray: Any, actor: Any, deliver: Deliver) -> None:
        self._ray, self._actor, self._deliver = ray, actor, deliver
        self._weights_path: str | None = None
        self._reached = False  # it has said something, so it runs
        self._stopping: Any = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def send(self, message: Mapping[str, Any]) -> None:
        if "weights_path" in message:
            self._weights_path = message["weights_path"]
        self._actor.send.remote(message)

    def close_stdin(self) -> None:
        self._actor.close_stdin.remote()

    def kill(self) -> None:
        if self._reached and self._stopping is None:
            self._stopping = self._actor.stop.remote()
        elif not self._reached:
            self._ray.kill(self._actor)

    def wait(self) -> None:
        with suppress(Exception):  # an actor or a cluster that is gone already is what is wanted
            if self._stopping is not None:
                self._ray.get(self._stopping, timeout=LEAVE_SECONDS)
        with suppress(Exception):
            self._ray.kill(self._actor)
        if self._thread is not threading.current_thread():
            self._thread.join(LEAVE_SECONDS)

    def _listen(self) -> None:
        while True:
            try:
                message, weights = self._ray.get(self._actor.receive.remote())
            except Exception as error:  # noqa: BLE001 - without a Death everybody would wait for ever
                self._deliver(_lost(error))
                return
            self._reached = True
            if weights is not None:
                message = self._kept(message, weights)
            self._deliver(message)
            if isinstance(message, WorkerExit):
                return

    def _kept(self, message: dict[str, Any], weights: bytes) -> dict[str, Any]:
        """The result, once its weights lie where they were asked for."""
        try:
            Path(self._weights_path or "").write_bytes(weights)
        except OSError as error:
            return {"event": "failed", "reason": f"{type(error).__name__}: {error}", "memory": message["memory"]}
        return message


def _lost(error: Exception) -> Message:
    """What it means that an actor doesn't answer."""
    text = str(error)
    last_line = text.strip().splitlines()[-1].strip() if text.strip() else type(error).__name__
    if "failed to import" in text or "No module named" in text:
        advice = (
            f"a Ray node can't import mnistexp ({last_line}); install this version of it on every node: see CLUSTER.md"
        )
        return {"event": "broken", "error": "WorkerError", "message": advice}
    if getattr(error, "actor_init_failed", False) or type(error).__name__ == "RuntimeEnvSetupError":
        return WorkerExit("its Ray actor couldn't be made", False, last_line)
    why = "its node was preempted" if getattr(error, "preempted", False) else "its Ray actor or its node was lost"
    return WorkerExit(f"{why}: {type(error).__name__}", True, last_line)


class RayExecutor(WorkerPool):
    """Workers as Ray actors; see Executor for the contract.

    Args:
        settings: the address, how many workers, and what each gets.
        data: the data's config, which every run names. Resolved: never `auto`.
        dataset: what that loads.
        threads: CPU threads of each worker.
        device: auto, cpu or gpu.
        at_most, fingerprint, max_memory: see Supervisor.
        environment: variables that win over the nodes' (a rerun's recorded flags).

    Raises: WorkerError if there is no Ray, or none at the address, or no room on this machine.
    """

    def __init__(
        self,
        settings: RayExecutorConfig,
        data: DataConfig,
        dataset: Dataset,
        *,
        threads: int,
        device: Literal["auto", "cpu", "gpu"],
        at_most: int,
        fingerprint: str = "",
        max_memory: float = math.inf,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(at_most=at_most, fingerprint=fingerprint, max_memory=max_memory)
        if device == "gpu" and not settings.gpus_per_trial:
            raise WorkerError("trainer.device=gpu: give executor.gpus_per_trial=1, or the share of one for each worker")
        self._closed = False
        self._settings, self._environment = settings, dict(environment or {})
        hello = {"data": data.model_dump(mode="json"), "threads": threads, "device": device, "code": user_code.plain()}
        self._hello: Mapping[str, Any] = hello
        self._users = {name: os.environ[name] for name in USERS_FLAGS if name in os.environ}
        self._cluster = Cluster(settings.address, _bytes(dataset))
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
        if not self._closed:
            self._closed = True
            super().close()
            self._cluster.leave()

    def _count(self) -> int:
        if self._settings.workers != "auto":
            return self._settings.workers
        return self._cluster.room(self._settings.cpus_per_trial, self._settings.gpus_per_trial)

    def _open(self, place: int, deliver: Deliver) -> Connection:
        has_gpu = self._settings.gpus_per_trial > 0
        actor = self._actors.remote(self._hello, self._dataset, has_gpu, self._users, self._environment)
        return RayConnection(self._ray, actor, deliver)

    def _look_at(self, facts: Mapping[str, Any]) -> None:
        super()._look_at(facts)
        here, there = worker_versions(), facts["versions"]
        other = [f"{name} {there.get(name)} (here {here[name]})" for name in here if here[name] != there.get(name)]
        if other:
            raise WorkerError(
                f"a Ray node has {', '.join(other)}: one study needs the same on every node; install it there"
            )


def _bytes(dataset: Dataset) -> int:
    splits = (dataset.train, dataset.validation, dataset.test)
    return sum(split.images.nbytes + split.labels.nbytes for split in splits)


# ------------------------------------------------------------------------------------------------- Ray


class Cluster:
    """A connection to Ray, or a Ray of our own on this machine, which ends with it.

    Args:
        address: see RayExecutorConfig.
        data_bytes: size of the data set: an own object store is made for little else.

    Raises: WorkerError with what to type.
    """

    def __init__(self, address: str | None, data_bytes: int) -> None:
        for name, value in ALWAYS.items():
            os.environ.setdefault(name, value)
        found = ""
        if address in (None, "auto"):
            address = os.environ.get("RAY_ADDRESS") or address
            found = _running_here()
            address = address or ("auto" if found else "local")  # as auto Ray also takes the token that belongs to it
        self._folder: Path | None = None
        if address == "local":
            os.environ.update(OWN_RAY)
            if "RAY_AUTH_MODE" not in os.environ:  # else Ray leaves a token in the home folder that all may read
                os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        else:
            _require_answer(address)
            if (found if address == "auto" else address).startswith(f"{LOOPBACK}:"):  # a Ray that listens nowhere else
                os.environ[ADDRESS_AS_GIVEN] = "0"
        self.ray = _import()
        self._joined = not self.ray.is_initialized()
        if self._joined:
            with _SigTerm():
                self._start(data_bytes) if address == "local" else self._join(address)

    def room(self, cpus: float, gpus: float) -> int:
        """How many workers the cluster has room for as it is now; at least 1."""
        there = self.ray.cluster_resources()
        counts = [there.get("CPU", 0.0) / cpus, *([there.get("GPU", 0.0) / gpus] if gpus else [])]
        return max(1, int(min(counts) + 1e-9))

    def check_room(self, cpus: float, gpus: float) -> None:
        """Raises: WorkerError if no worker ever fits on this machine. On a cluster, a node may come: say it."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            return
        wanted = f"executor.cpus_per_trial={cpus:g} executor.gpus_per_trial={gpus:g}"
        if self._folder is not None:
            there = f"{nodes[0].get('CPU', 0):g} CPUs and {nodes[0].get('GPU', 0):g} GPUs"
            raise WorkerError(f"{wanted}: this machine has {there}; give less, or executor.address=HOST:PORT")
        logging.getLogger(__name__).warning("%s: no node of the cluster has that; waiting for one that has", wanted)

    def leave(self) -> None:
        """Disconnect; a Ray of our own ends, and its files go."""
        if self._joined:
            self._joined = False
            self.ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _join(self, address: str) -> None:
        try:
            self.ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises what it likes: ConnectionError, RuntimeError, ValueError, its own
            raise WorkerError(
                f"executor.address={address}: Ray can't be joined there ({' '.join(str(error).split())[:500]}); "
                "give the address that `ray start --head` named, with RAY_AUTH_MODE=token in the environment if that "
                "Ray wants a token, or executor.address=local"
            ) from error

    def _start(self, data_bytes: int) -> None:
        # Ray opens its folder to everybody, and paths of sockets may have 107 characters: so one that is ours
        # alone around it, in /tmp as Ray itself would.
        base = "/tmp" if Path("/tmp").is_dir() else None
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir=base))
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
        except Exception as error:
            self.leave()
            why = " ".join(str(error).split())[:500]
            raise WorkerError(f"executor=ray: Ray doesn't start here ({why}); give executor=local") from error
        if context.address_info["node_ip_address"] != LOOPBACK:
            self.leave()
            raise WorkerError(
                "executor=ray: this version of Ray would listen on the network; start one yourself, with "
                "`ray start --head` behind a firewall, and give executor.address=auto"
            )


class _SigTerm:
    """Keeps the handler of SIGTERM, which ray.init replaces by one that only exits."""

    def __enter__(self) -> None:
        self._before = signal.getsignal(signal.SIGTERM)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        raise WorkerError(
            f"executor=ray: Ray can't be imported here ({error}); type pip install 'mnistexp[ray]', "
            "or give executor=local"
        ) from None
    return ray


def _running_here() -> str:
    """The address of the Ray that `ray start` started on this machine last, if it still answers; else ''."""
    try:
        address = (Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster").read_text().strip()
    except OSError:
        return ""
    return address if address and _answers(address) else ""


def _require_answer(address: str) -> None:
    """Look before Ray does, which waits for minutes. `auto` is Ray's to find."""
    if address != "auto" and not _answers(address.removeprefix("ray://")):
        raise WorkerError(
            f"executor.address={address}: nothing answers there; give HOST:PORT as `ray start --head` named it, "
            "ray://HOST:10001 for a client's connection, or executor.address=local"
        )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS):
            return True
    except (OSError, ValueError, OverflowError):
        return False
