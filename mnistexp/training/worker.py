"""The child process that trains: JSON lines in, JSON lines out. `python -m mnistexp.training.worker`.

It knows no Hydra, no Optuna, no MLflow and no database, so killing one loses one trial at most.

    parent  {"data": DataConfig, "threads": int, "device": "auto" | "cpu" | "gpu", "dataset": int | null,
             "code": {"name", "text"} | null}
    worker  {"event": "ready", "device", "devices", "flags", "fingerprint", "versions"}
            or {"event": "broken", "error", "message"} and the end
    parent  {"config": RunConfig, "weights_path": str | null, "test": bool}
    worker  {"event": "epoch", "scores"}        after each epoch, also the last,
    parent  {"go": bool}                        and waits for this one word
    worker  {"event": "result", "result", "memory"}
            or {"event": "failed", "error", "reason", "traceback", "memory"}

`dataset` is an open file that this process inherited, with the data set in it (see data/dataset.py): a Ray node need
not have the files that `data` names.

`code` is the user's file of functions (see own.py), where the command line named one.

`memory` is what the process holds, in bytes: XLA keeps about 8 MB of each compiled shape for life, so a
parent that searches over shapes replaces a worker now and then.

End of input ends the worker. On Linux it also dies with the *thread* that started it (PR_SET_PDEATHSIG):
start workers from a thread that lives as long as they do.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

import psutil
from pydantic import TypeAdapter

from mnistexp.config import user_code
from mnistexp.config.schema import DataConfig, RunConfig, Settings, UserCode, UserData, UserModel
from mnistexp.data import dataset as data
from mnistexp.errors import ConfigError, MnistexpError, WorkerError
from mnistexp.machine import cpu_model, worker_versions
from mnistexp.training.results import FitResult, RunResult

if TYPE_CHECKING:  # importing it costs TensorFlow: 4-6 s, and only after the environment is set
    from mnistexp.training.trainer import Fit, Trainer

UNUSED_BY_US = ("pandas", "pyarrow", "matplotlib", "sklearn", "scipy")
"""What Keras imports where it finds it. Without them it starts in 2.0 s instead of 3.7 and is 156 MB smaller."""


class Setup(Settings):
    """The first line: what this worker trains on, for life."""

    data: DataConfig
    threads: int
    device: Literal["auto", "cpu", "gpu"]
    dataset: int | None = None  # the number of an open file; null: load what `data` says
    code: UserCode | None = None  # the user's file of functions


class Job(Settings):
    """A line that asks for one run."""

    config: RunConfig
    weights_path: str | None
    test: bool = True  # look at the test split after training


class Channel:
    """JSON lines from and to the parent."""

    def __init__(self, source: TextIO, sink: TextIO) -> None:
        self._source = source
        self._sink = sink

    def send(self, event: str, **fields: Any) -> None:
        """Write one event."""
        self._sink.write(json.dumps({"event": event, **fields}) + "\n")
        self._sink.flush()

    def lines(self) -> Iterator[str]:
        """Lines until the parent closes its end."""
        yield from iter(self._source.readline, "")

    def word(self) -> bool:
        """Wait for go (true) or stop (false); a parent that is gone ends this process."""
        line = self._source.readline()
        if not line:
            raise SystemExit(0)
        return bool(json.loads(line)["go"])


def main() -> None:
    """Serve one parent until it closes our stdin."""
    _die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    with _private_stdout() as sink:
        channel = Channel(sys.stdin, sink)
        lines = channel.lines()
        if first := next(lines, None):
            serve(channel, lines, TypeAdapter(Setup).validate_json(first))


def serve(channel: Channel, lines: Iterator[str], setup: Setup) -> None:
    """Get ready, then train what is asked for."""
    try:
        runner = Runner(setup)
    except MnistexpError as error:
        channel.send("broken", error=type(error).__name__, message=str(error))
        return
    channel.send("ready", **runner.description())
    for line in lines:
        _answer(channel, runner, line)


def _answer(channel: Channel, runner: Runner, line: str) -> None:
    """Run one job; whatever goes wrong is reported, and the worker lives on."""
    try:
        result = runner.run(Job.model_validate_json(line), channel)
    except Exception as error:  # noqa: BLE001 - it is the parent's to judge, and the next job may be sound
        if isinstance(error, MnistexpError):
            reason = str(error)
        else:
            reason = f"{type(error).__name__}: {error}"
            _empty_compile_cache()
        one_line = " ".join(reason.split())[:1000]
        details = {"error": type(error).__name__, "reason": one_line, "traceback": traceback.format_exc()}
        channel.send("failed", **details, memory=_memory())
    else:
        channel.send("result", result=result.model_dump(mode="json"), memory=_memory())


def _empty_compile_cache() -> None:
    """Delete what TensorFlow compiled for other processes: one damaged file there fails every run of its shape."""
    folder = re.search(r"--tf_xla_persistent_cache_directory=(\S+)", os.environ.get("TF_XLA_FLAGS", ""))
    for path in Path(folder[1]).glob("xla_compile_cache__*.pb") if folder else ():
        path.unlink(missing_ok=True)


class Runner:
    """TensorFlow, set up for life, and the data set in its memory."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        user_code.use(setup.code)
        if isinstance(setup.data, UserData):  # a user's function may call TensorFlow, whose threads are set once
            self._device = _start_tensorflow(setup)
            dataset = _dataset(setup)
        else:  # a damaged file shows in no time
            dataset = _dataset(setup)
            self._device = _start_tensorflow(setup)
        self._fingerprint = dataset.fingerprint
        self._flags = _flags(setup)
        self._trainer = _trainer(dataset)

    def description(self) -> dict[str, Any]:
        """The fields of the ready event."""
        import tensorflow as tf

        return {
            "device": self._device,
            "devices": [device.name for device in tf.config.list_physical_devices()],
            "flags": self._flags,
            "fingerprint": self._fingerprint,
            "versions": worker_versions(),
        }

    def run(self, job: Job, channel: Channel) -> RunResult:
        """Train one config to its end or to the parent's stop, then look at the test split once, if asked to."""
        self._check(job.config)
        fit = self._trainer.fit(job.config)
        result = fit.result(pruned=_stopped_by_parent(fit, channel))
        return self._finish(fit, result, job)

    def _check(self, config: RunConfig) -> None:
        """A run is what its config says: refuse one that was meant for a worker set up otherwise."""
        asked = {"data": config.data, "threads": config.trainer.threads, "device": config.trainer.device}
        for name, value in asked.items():
            if value != getattr(self._setup, name):
                raise ConfigError(
                    f"this worker was started with {name}={getattr(self._setup, name)!r}, the run asks for {value!r}"
                )
        if isinstance(config.model, UserModel):
            user_code.require(config.model)

    def _finish(self, fit: Fit, result: FitResult, job: Job) -> RunResult:
        from mnistexp.training.trainer import weights_hash

        test_loss, test_accuracy = self._trainer.evaluate(fit) if job.test else (None, None)
        if job.weights_path is not None:
            fit.model().save_weights(job.weights_path)
        return RunResult(
            fit=result,
            test_accuracy=test_accuracy,
            test_loss=test_loss,
            weights_hash=weights_hash(fit.weights()),
            data_fingerprint=self._fingerprint,
            device=self._device,
            flags=self._flags,
        )


def _stopped_by_parent(fit: Fit, channel: Channel) -> bool:
    """Train epoch by epoch; True if the parent said stop although more epochs were to come."""
    for scores in fit:
        channel.send("epoch", scores=scores.model_dump())
        if not channel.word():
            return not fit.ended
    return False


def _dataset(setup: Setup) -> data.Dataset:
    if setup.dataset is None:
        return data.load(setup.data)
    with os.fdopen(setup.dataset, "rb") as file:
        return data.read(file)


def _trainer(dataset: data.Dataset) -> Trainer:
    from mnistexp.training.trainer import Trainer

    return Trainer(dataset)


def _start_tensorflow(setup: Setup) -> str:
    """Import TensorFlow with everything set that changes its bits; the device in words, with the reason.

    Raises:
        WorkerError: a GPU is asked for and there is none.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    with _not_importable(UNUSED_BY_US):
        import keras  # noqa: F401 - here for its own imports
        import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(setup.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    if setup.device == "cpu":
        tf.config.set_visible_devices([], "GPU")
        return "CPU (trainer.device=cpu)"
    gpus = tf.config.list_physical_devices("GPU")
    if setup.device == "gpu" and not gpus:
        raise WorkerError(
            "trainer.device=gpu, but no GPU is visible to TensorFlow; give trainer.device=cpu or auto, "
            "or install mnistexp's extra `cuda` and check CUDA_VISIBLE_DEVICES"
        )
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return _device_in_words(tf, gpus)


def _device_in_words(tf: Any, gpus: list[Any]) -> str:
    if not gpus:
        return "CPU (no GPU visible to TensorFlow)"
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "of unknown name")
    return f"GPU:0 ({name})"


def _flags(setup: Setup) -> dict[str, str]:
    """What else can change a run's last bits; a rerun sets them alike before it imports TensorFlow."""
    from_environment = {name: os.environ.get(name, "") for name in ("TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS")}
    return {
        "jit_compile": "true",
        "op_determinism": "true",
        "threads": str(setup.threads),
        "cpu": cpu_model(),
        **from_environment,
    }


@contextmanager
def _not_importable(names: Iterable[str]) -> Iterator[None]:
    """Have `import name` fail for optional packages, unless they are here already; undone at the end."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None makes an import fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _memory() -> int:
    """Bytes of memory in use, after what C's allocator holds back has gone to the system."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # compiling leaves up to 90 MB there
    return int(psutil.Process().memory_info().rss)


@contextmanager
def _private_stdout() -> Iterator[TextIO]:
    """The real stdout, kept for events; whatever a library prints from now on goes to stderr."""
    sys.stdout.flush()
    private = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(private, "w", encoding="utf-8") as sink:
        yield sink


def _die_with_parent() -> None:
    """On Linux, be killed when the parent dies. If it died just before, end of input ends us as well."""
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main()
