from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import runs

from mnistexp.config.schema import RunConfig
from mnistexp.data.dataset import load, write
from mnistexp.training.results import RunResult

SMALL = {"epochs": 2, "max_steps": 30, "batch_size": 1000}  # an MNIST epoch has 55 of these steps


class Worker:
    """A worker process, spoken to as its parent does."""

    def __init__(
        self, data: dict[str, Any], device: str = "auto", dataset: IO[bytes] | None = None, **environment: str
    ) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mnistexp.training.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | environment,
            pass_fds=[dataset.fileno()] if dataset else [],
        )
        self.tell({"data": data, "threads": 1, "device": device, "dataset": dataset.fileno() if dataset else None})
        self.first = self.hear()

    def tell(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def run(self, config: RunConfig, stop_after: int = 1000, weights: Path | None = None) -> list[dict[str, Any]]:
        """All events of one job; the word after epoch `stop_after` is stop."""
        self.tell({"config": config.model_dump(mode="json"), "weights_path": weights and str(weights)})
        events = [self.hear()]
        while events[-1]["event"] == "epoch":
            self.tell({"go": len(events) < stop_after})
            events.append(self.hear())
        return events

    def end(self) -> int:
        """Close its input, and wait for the exit status."""
        self.process.communicate(timeout=120)
        return self.process.returncode


@pytest.fixture(scope="module")
def data(mnist_folder: Path) -> dict[str, Any]:
    """The data config of the real MNIST files."""
    return runs.mnist_data(mnist_folder)


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where XLA writes down each program that the worker compiles."""
    return tmp_path_factory.mktemp("xla")


@pytest.fixture(scope="module")
def worker(data: dict[str, Any], dumps: Path) -> Iterator[Worker]:
    """One worker for the whole file; each test leaves it waiting for the next job."""
    started = Worker(data, XLA_FLAGS=f"--xla_dump_to={dumps} --xla_dump_hlo_as_text")
    yield started
    started.process.kill()
    started.end()


def test_ready_says_what_fixes_the_bits(worker: Worker) -> None:
    """The ready event names the device with its reason, the data, the versions and each flag as text."""
    ready = worker.first

    assert ready["event"] == "ready"
    assert ready["device"].startswith(("CPU (no GPU visible", "GPU:0 ("))
    assert len(ready["fingerprint"]) == 32
    assert set(ready["versions"]) == {"python", "numpy", "tensorflow", "keras", "mnistexp"}
    assert ready["flags"]["threads"] == "1"
    assert "--xla_dump_to" in ready["flags"]["XLA_FLAGS"]
    assert all(isinstance(value, str) for value in ready["flags"].values())


def test_a_job_gives_epochs_and_a_result(worker: Worker, data: dict[str, Any], tmp_path: Path) -> None:
    """Each epoch's scores come as they are made; the result repeats them and adds the test scores."""
    config = runs.run_config(data=data, epochs=3, batch_size=1000)

    *epochs, last = worker.run(config, weights=tmp_path / "model.weights.h5")

    result = RunResult.model_validate(last["result"])
    assert [event["scores"]["epoch"] for event in epochs] == [1, 2, 3]
    assert [event["scores"]["val_loss"] for event in epochs] == [scores.val_loss for scores in result.fit.epochs]
    assert 0.8 < result.test_accuracy < 1
    assert result.data_fingerprint == worker.first["fingerprint"]
    assert (tmp_path / "model.weights.h5").stat().st_size > 4 * result.fit.parameters


def test_stop_ends_a_run_as_pruned(worker: Worker, data: dict[str, Any]) -> None:
    """After the word stop no epoch follows, and the result is scored all the same."""
    *epochs, last = worker.run(runs.run_config(data=data, epochs=5, batch_size=1000), stop_after=2)

    assert len(epochs) == 2
    assert last["result"]["fit"]["stopped"] == "pruned"
    assert last["result"]["test_accuracy"] > 0.5


def test_stop_after_the_last_epoch_prunes_nothing(worker: Worker, data: dict[str, Any]) -> None:
    """A run that had ended by itself stays completed, whatever the word was."""
    *_, last = worker.run(runs.run_config(data=data, epochs=1, batch_size=1000), stop_after=1)

    assert last["result"]["fit"]["stopped"] == "completed"


def test_a_failed_job_leaves_the_worker_alive(worker: Worker, data: dict[str, Any]) -> None:
    """A training that blows up, and a minibatch that can't be, are told in a line; the next job runs."""
    linear = {"hidden_units": [32, 32, 32], "activation": "linear"}
    wild = runs.run_config(runs.SGD | {"learning_rate": 1000.0}, linear, data=data, **SMALL)

    [blown] = worker.run(wild)
    [oversized] = worker.run(runs.run_config(data=data, batch_size=60_000))
    *_, sound = worker.run(runs.run_config(data=data, **SMALL))

    assert (blown["event"], blown["error"]) == ("failed", "TrainingError")
    assert "in epoch 1: lower optimizer.learning_rate" in blown["reason"]
    assert "Traceback" in blown["traceback"]
    assert oversized["error"] == "ConfigError"
    assert sound["event"] == "result"


def test_a_job_meant_for_another_worker_is_refused(worker: Worker, data: dict[str, Any]) -> None:
    """Threads change the bits: a run that asks for others than this worker's fails with both numbers."""
    [failed] = worker.run(runs.run_config(data=data, threads=2))

    assert failed["reason"] == "this worker was started with threads=1, the run asks for 2"


def test_nonsense_for_a_job_is_told(worker: Worker) -> None:
    """A line that is no job fails as a job, with a reason on one line."""
    worker.tell({"config": {"seed": -1}})

    failed = worker.hear()

    assert (failed["event"], failed["error"]) == ("failed", "ValidationError")
    assert "\n" not in failed["reason"]


def test_one_shape_is_one_compilation(worker: Worker, data: dict[str, Any], dumps: Path) -> None:
    """XLA itself compiles one epoch program for runs that differ in numbers only, max_steps among them."""

    def programs() -> int:
        return len(list(dumps.glob("*trace_epoch*before_optimizations.txt")))

    model = {"hidden_units": [5], "dropout": 0.5}
    worker.run(runs.run_config(runs.ADAM, model, data=data, **SMALL))
    before = programs()

    other = runs.ADAM | {"beta_1": 0.5, "learning_rate": 0.1, "schedule": "cosine", "warmup_epochs": 1.0}
    worker.run(runs.run_config(other, model | {"dropout": 0.2}, 9, data, **SMALL | {"max_steps": 7}))

    assert before > 0
    assert programs() == before


def test_ctrl_c_is_the_parents_business(worker: Worker, data: dict[str, Any]) -> None:
    """SIGINT, which a terminal sends to the whole group, ends no worker."""
    worker.process.send_signal(signal.SIGINT)

    *_, last = worker.run(runs.run_config(data=data, **SMALL))

    assert last["event"] == "result"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_thread_is_one_core(worker: Worker, data: dict[str, Any]) -> None:
    """With threads=1 the worker's processor time doesn't exceed the time that its epochs took."""
    config = runs.run_config(data=data, model={"hidden_units": [300]}, epochs=3, batch_size=1000)
    worker.run(config)  # compiles

    before = _cpu_seconds(worker.process.pid)
    *epochs, _ = worker.run(config)
    used = _cpu_seconds(worker.process.pid) - before

    assert used < 1.3 * sum(event["scores"]["seconds"] for event in epochs) + 0.3


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_two_processes_give_the_same_bits(worker: Worker, data: dict[str, Any]) -> None:
    """A fresh worker repeats to the bit what a worn one did, and leaves with its input."""
    config = runs.run_config(runs.NADAM, {"dropout": 0.3}, seed=11, data=data, **SMALL)
    other = Worker(data)

    results = [RunResult.model_validate(each.run(config)[-1]["result"]) for each in (worker, other)]

    assert results[0].weights_hash == results[1].weights_hash
    assert results[0].fit.validation_correct == results[1].fit.validation_correct
    assert results[0].test_loss == results[1].test_loss
    assert other.end() == 0


def test_a_data_set_can_come_through_an_open_file() -> None:
    """A node without the data's files trains on those that its parent opened for it, to the same fingerprint."""
    config = runs.run_config(data=runs.DIGITS, epochs=1)
    loaded = load(config.data)
    with tempfile.TemporaryFile() as file:
        write(loaded, file)
        file.seek(0)
        worker = Worker(runs.DIGITS, dataset=file)

    *_, last = worker.run(config)

    assert worker.first["fingerprint"] == loaded.fingerprint
    assert last["result"]["data_fingerprint"] == loaded.fingerprint
    assert worker.end() == 0


def test_damaged_data_breaks_before_tensorflow(tmp_path: Path) -> None:
    """A worker without its data says so in one event, with the kind of error, and ends."""
    worker = Worker(runs.mnist_data(tmp_path))

    assert (worker.first["event"], worker.first["error"]) == ("broken", "DataError")
    assert str(tmp_path) in worker.first["message"]
    assert worker.end() == 0


def test_a_gpu_that_is_not_there_is_refused(data: dict[str, Any]) -> None:
    """device=gpu doesn't fall back to the CPU in silence."""
    worker = Worker(data, device="gpu", CUDA_VISIBLE_DEVICES="")

    assert (worker.first["event"], worker.first["error"]) == ("broken", "WorkerError")
    assert "trainer.device=gpu, but no GPU is visible to TensorFlow" in worker.first["message"]
    assert worker.end() == 0


def test_prints_of_libraries_stay_out_of_the_stream() -> None:
    """What Python or C code prints to stdout ends in stderr; events alone reach the parent."""
    code = """
import os
from mnistexp import worker
with worker._private_stdout() as sink:
    print("garbage from Python", flush=True)
    os.system("echo garbage from C")
    worker.Channel(None, sink).send("ready")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == '{"event": "ready"}\n'
    assert done.stderr == "garbage from Python\ngarbage from C\n"


def test_a_worker_is_pure() -> None:
    """The child's side imports no Hydra, Optuna or MLflow, and no TensorFlow before it is set up."""
    code = """
import sys
import mnistexp.training.worker
print({"tensorflow", "keras"} & set(sys.modules))
import mnistexp.trainer
print({"hydra", "omegaconf", "optuna", "mlflow", "mnistexp.config"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\nset()\n"
