"""The process that trains: `python -m mnistexp.training.worker FD`, where FD is an inherited socket to the parent.

messages.py describes the protocol. A worker uses no Hydra, no Optuna, no MLflow and no database, so a killed worker
costs one trial at most. Standard output carries no messages, because modules may print while they are imported.

On Linux the kernel kills a worker when the *thread* that started it ends (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import psutil

from mnistexp.config import user_code
from mnistexp.config.schema import UserData, UserModel
from mnistexp.data import dataset as data
from mnistexp.errors import ConfigError, MnistexpError, WorkerError
from mnistexp.machine import BIT_CHANGING_FLAGS, cpu_model, worker_versions
from mnistexp.training.messages import Answer, Broken, EpochEnd, Job, JobFailed, JobResult, Message, Ready, Setup
from mnistexp.training.results import RunResult

if TYPE_CHECKING:  # imports TensorFlow: 4-6 s, and the environment must be set before
    from mnistexp.training.trainer import Fit

UNUSED_IMPORTS = ("pandas", "pyarrow", "matplotlib", "sklearn", "scipy")
"""Optional imports of Keras. Without them it starts in 2.0 s instead of 3.7 and is 156 MB smaller."""


class Channel:
    """Sends and receives lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def send(self, message: Message) -> None:
        self._stream.write(message.model_dump_json() + "\n")
        self._stream.flush()

    def receive(self) -> str:
        """Wait for the next line. Raises: SystemExit at the end of input."""
        line = self._stream.readline()
        if not line:
            raise SystemExit(0)
        return line


def main() -> None:
    """Train what the parent asks for, until it closes the socket."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent handles it
    parent = socket.socket(fileno=int(sys.argv[1]))
    parent.set_inheritable(False)
    channel = Channel(parent.makefile("rw", encoding="utf-8"))
    try:
        runner = Runner(Setup.model_validate_json(channel.receive()))
    except MnistexpError as error:
        channel.send(Broken(error=type(error).__name__, message=str(error)))
        return
    channel.send(runner.ready)
    while True:
        channel.send(_run_job(runner, channel, channel.receive()))


def _run_job(runner: Runner, channel: Channel, line: str) -> JobResult | JobFailed:
    """Run one job. Any exception becomes a JobFailed, and the worker takes the next job."""
    try:
        result = runner.run(Job.model_validate_json(line), channel)
    except Exception as error:  # noqa: BLE001 - the next job may succeed
        reason = str(error)
        if not isinstance(error, MnistexpError):
            reason = f"{type(error).__name__}: {error}"
            _clear_compile_cache()
        reason = " ".join(reason.split())[:1000].rstrip(": ")  # a MemoryError has no text
        return JobFailed(reason=reason, memory=_memory())
    return JobResult(result=result, memory=_memory())


def _clear_compile_cache() -> None:
    """Delete TensorFlow's files of compiled programs: one damaged file fails every run of its shape."""
    folder = re.search(r"--tf_xla_persistent_cache_directory=(\S+)", os.environ.get("TF_XLA_FLAGS", ""))
    for path in Path(folder[1]).glob("xla_compile_cache__*.pb") if folder else ():
        path.unlink(missing_ok=True)


class Runner:
    """The state of a worker: TensorFlow is started once, and the data set stays in memory."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        user_code.use(setup.code)
        if isinstance(setup.data, UserData):  # a user's function may call TensorFlow, whose threads are set once
            device, dataset = _start_tensorflow(setup), _load(setup)
        else:  # a damaged file is found before TensorFlow's slow import
            dataset, device = _load(setup), _start_tensorflow(setup)
        import tensorflow as tf

        from mnistexp.training.trainer import Trainer

        self._trainer = Trainer(dataset)
        self.ready = Ready(
            device=device,
            devices=tuple(each.name for each in tf.config.list_physical_devices()),
            flags=_flags(setup),
            fingerprint=dataset.fingerprint,
            versions=worker_versions(),
        )

    def run(self, job: Job, channel: Channel) -> RunResult:
        """Train one config until its end or until the parent stops it, then evaluate the test split once."""
        from mnistexp.training.trainer import weights_hash

        config = job.config
        if (config.data, config.trainer.threads) != (self._setup.data, self._setup.threads):
            raise ConfigError("this worker was started for other data or with another trainer.threads than the run's")
        if isinstance(config.model, UserModel):
            user_code.require(config.model)
        fit = self._trainer.fit(config)
        result = fit.result(pruned=_stopped_by_parent(fit, channel))
        test_loss, test_accuracy = self._trainer.evaluate(fit) if job.test else (None, None)
        if job.weights_path is not None:
            fit.load().network.save_weights(job.weights_path)
        return RunResult(
            fit=result,
            test_accuracy=test_accuracy,
            test_loss=test_loss,
            weights_hash=weights_hash(fit.weights()),
            data_fingerprint=self.ready.fingerprint,
            device=self.ready.device,
            flags=self.ready.flags,
        )


def _stopped_by_parent(fit: Fit, channel: Channel) -> bool:
    """Train epoch by epoch. Returns: True if the parent's answer was stop although epochs were left."""
    for scores in fit:
        channel.send(EpochEnd(scores=scores))
        if not Answer.model_validate_json(channel.receive()).go:
            return not fit.ended
    return False


def _load(setup: Setup) -> data.Dataset:
    if setup.dataset is None:
        return data.load(setup.data)
    with os.fdopen(setup.dataset, "rb") as file:
        return data.read(file)


def _start_tensorflow(setup: Setup) -> str:
    """Import TensorFlow with all settings that change bits. Returns: the device, with the reason.

    Raises: WorkerError if a GPU is asked for and there is none.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    hidden = [name for name in UNUSED_IMPORTS if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes an import fail
    import keras  # noqa: F401 - imported here because of its own imports
    import tensorflow as tf

    for name in hidden:
        del sys.modules[name]
    tf.config.threading.set_intra_op_parallelism_threads(setup.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    if setup.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return "CPU (trainer.device=cpu)"
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "of unknown name")
        return f"GPU:0 ({name})"
    if setup.device == "gpu":
        raise WorkerError(
            "trainer.device=gpu, but no GPU is visible to TensorFlow; give trainer.device=cpu or auto, "
            "or install mnistexp's extra `cuda` and check CUDA_VISIBLE_DEVICES"
        )
    return "CPU (no GPU visible to TensorFlow)"


def _flags(setup: Setup) -> dict[str, str]:
    """Collect other settings that can change a run's last bits. A rerun sets them before it imports TensorFlow."""
    fixed = {"jit_compile": "true", "op_determinism": "true", "threads": str(setup.threads), "cpu": cpu_model()}
    return fixed | {name: os.environ.get(name, "") for name in BIT_CHANGING_FLAGS}


def _memory() -> int:
    """Return the bytes of memory in use, after the C allocator has returned free memory to the system."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # compiling leaves up to 90 MB there
    return int(psutil.Process().memory_info().rss)


def _die_with_parent() -> None:
    """On Linux, be killed when the parent dies. If it died just before, the end of input ends this process."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
