"""A sweep of 2,000 short trials with a fault every few seconds: what is lost, duplicated or stuck at the end?

    python experiments/soak/soak.py

Two sweep processes share one study on PostgreSQL and log to an MLflow server on the same PostgreSQL. At random
(seeded) times one of the faults below is injected. A dead sweep process is started again with the same command. The
sweep processes print one line per finished trial. Each printed trial must be in both stores exactly once.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # the PostgreSQL and MLflow servers of the tests

import psutil  # noqa: E402 - after the path above
from services import MlflowServer, Postgres  # noqa: E402

RESULTS = Path(__file__).parent / "results"
PROCESSES = 2
LEASE = 20  # seconds; short, so that a stop can last longer than the lease
WORDS = (
    *("data=digits", "study.name=soak", f"study.lease={LEASE}", "study/sampler=random", "study/pruner=none"),
    *(
        "search=none",
        "optimizer=sgd",
        "model.hidden_units=[16]",
        "model.activation=linear",
        "trainer.epochs=2",
        "executor.workers=1",
    ),
    "model.dropout=interval(0.01,0.5)",
    "optimizer.learning_rate=choice(0.05,0.1,0.2,1000)",  # 1000 gives a NaN loss: one of four trials fails
)


class Soak:
    """The sweep processes, the servers and the faults so far."""

    def __init__(self, folder: Path, trials: int, seed: int, postgres: Postgres) -> None:
        self._folder, self._trials, self._postgres = folder, trials, postgres
        self.study = postgres.create_database("study")
        self._server = MlflowServer(folder, postgres.create_database("mlflow"))
        self._random = random.Random(seed)
        self._sweeps: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []
        self._streams: dict[int, IO[bytes]] = {}  # stderr, by sweep process
        self.faults: Counter[str] = Counter()
        self.starts = 0

    @property
    def uri(self) -> str:
        """MLflow's address."""
        return self._server.url

    def run(self) -> None:
        """Inject faults and restart until a sweep process ends with exit code 0; then wait for the others."""
        self._server.start()
        self._sweeps = [self._start(index) for index in range(PROCESSES)]
        faults = self._faults()
        while self._mend():
            time.sleep(self._random.uniform(2, 10))
            [name] = self._random.choices(list(faults), [weight for weight, _ in faults.values()])
            with contextlib.suppress(psutil.NoSuchProcess):  # the process had already ended
                faults[name][1]()
                self.faults[name] += 1
        for sweep in self._sweeps:
            sweep.wait()
        self._start(0).wait()  # the command once more, as a user would run it

    def end(self) -> None:
        """Stop all remaining processes."""
        for sweep in self._sweeps:
            if sweep.poll() is None:
                os.killpg(sweep.pid, signal.SIGKILL)
                sweep.wait()
        self._server.stop()
        for log in self._logs:
            log.close()

    def printed(self) -> list[int]:
        """Return the numbers of the trials that were printed as finished, in no order."""
        lines = [line for path in self._folder.glob("sweep-*.out") for line in path.read_text().splitlines()]
        found = (re.match(r" *\d+/\d+  .*  (\d{3,}) sgd lr=", line) for line in lines)
        return [int(match[1]) for match in found if match]

    def tracebacks(self) -> list[str]:
        """Return the output files that contain a traceback."""
        return [path.name for path in self._folder.glob("sweep-*") if "Traceback" in path.read_text()]

    def _start(self, index: int) -> subprocess.Popen[bytes]:
        """Start a sweep process in its own process group, as a terminal does."""
        command = [sys.executable, "-m", "mnistexp", "sweep", *WORDS, f"study.trials={self._trials}"]
        stores = [f"study.storage={self.study}", f"tracking.uri={self.uri}"]
        streams = [(self._folder / f"sweep-{self.starts}.{kind}").open("wb") for kind in ("out", "err")]
        self._logs += streams
        self._streams[index] = streams[1]
        self.starts += 1
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            [*command, *stores],
            cwd=self._folder,
            env=environment,
            stdout=streams[0],
            stderr=streams[1],
            start_new_session=True,
        )

    def _mend(self) -> bool:
        """Restart dead sweep processes and servers. Returns: False if a sweep process has finished."""
        if self._server.process is None:
            self._server.start()
        codes = [sweep.poll() for sweep in self._sweeps]
        if 0 in codes:
            return False
        for index, code in enumerate(codes):
            message = self._stderr(index) if code == 2 else ""
            server_was_down = "tracking.uri" in message or "study.storage" in message
            if message and not server_was_down:
                raise RuntimeError(message)
            if code not in (None, 0):
                self._sweeps[index] = self._start(index)
        return True

    def _stderr(self, index: int) -> str:
        """Return the stderr of a sweep process."""
        return Path(str(self._streams[index].name)).read_text()

    def _random_sweep(self) -> psutil.Process:
        return psutil.Process(self._random.choice(self._sweeps).pid)

    def _faults(self) -> dict[str, tuple[int, Callable[[], None]]]:
        """Return the faults: name → (relative frequency, function). Faults that restart TensorFlow are rarer."""
        return {
            "kill -9 of a worker": (2, self._kill_worker),
            "kill -9 of a sweep process": (1, lambda: self._random_sweep().kill()),
            "kill -9 of a sweep's process group": (1, self._kill_group),
            "SIGTERM to a sweep process": (1, lambda: self._random_sweep().terminate()),
            "SIGINT twice to a sweep process": (1, self._interrupt_twice),
            "SIGSTOP of a sweep process for longer than its lease": (1, lambda: self._stop(LEASE + 5)),
            "SIGSTOP of a sweep process for 4 s": (3, lambda: self._stop(4)),
            "PostgreSQL restarted (immediate)": (2, lambda: self._postgres.restart("immediate")),
            "PostgreSQL killed, back after 2 s": (1, self._kill_postgres),
            "MLflow server killed, back at the next fault": (3, self._server.kill),
        }

    def _kill_group(self) -> None:
        os.killpg(os.getpgid(self._random_sweep().pid), signal.SIGKILL)

    def _kill_worker(self) -> None:
        workers = [child for child in self._random_sweep().children() if "mnistexp.training.worker" in child.cmdline()]
        if not workers:
            raise psutil.NoSuchProcess(0)
        self._random.choice(workers).kill()

    def _interrupt_twice(self) -> None:
        sweep = self._random_sweep()
        sweep.send_signal(signal.SIGINT)
        time.sleep(0.5)
        sweep.send_signal(signal.SIGINT)

    def _stop(self, seconds: float) -> None:
        """Suspend a sweep process, like a laptop with a closed lid. Everything else continues, further faults too."""
        sweep = self._random_sweep()
        sweep.suspend()
        threading.Timer(seconds, _wake, [sweep]).start()

    def _kill_postgres(self) -> None:
        self._postgres.kill()
        time.sleep(2)
        self._postgres.start()


def _wake(sweep: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        sweep.resume()


def counts(soak: Soak, trials: int) -> dict[str, Any]:
    """Return the counts from both stores and the printed lines."""
    import optuna
    from mlflow import MlflowClient

    from mnistexp.study.database import reading

    with reading(soak.study) as storage:
        study = optuna.load_study(study_name="soak", storage=storage)
        known = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    client, runs, token = MlflowClient(soak.uri), [], None
    while token != "":
        experiment = client.get_experiment_by_name("soak").experiment_id
        page = client.search_runs([experiment], run_view_type=3, max_results=1000, page_token=token)
        runs += page
        token = page.token or ""
    finished = [run for run in runs if run.data.tags.get("state") in ("COMPLETE", "PRUNED", "FAILED")]
    logged = Counter(int(run.data.tags["trial"]) for run in finished)
    printed = Counter(soak.printed())
    ended = {number for number, trial in known.items() if trial.state.is_finished()}
    values = {int(run.data.tags["trial"]): run.data.metrics.get("val_accuracy") for run in finished}
    return {
        "trials asked for": trials,
        "finished in Optuna": len(ended),
        "finished in MLflow": len(logged),
        "shown to a user as finished": len(printed),
        "failed by NaN": sum("loss became" in trial.user_attrs.get("reason", "") for trial in known.values()),
        "failed since workers or sweep processes died with them more than executor.retries times": sum(
            "died" in trial.user_attrs.get("reason", "") or "was run" in trial.user_attrs.get("reason", "")
            for trial in known.values()
        ),
        "lost": len((ended ^ set(logged)) | (set(printed) - ended)),
        "duplicated": sum(count > 1 for count in (logged + Counter()).values())
        + sum(count > 1 for count in printed.values())
        + max(0, len(ended) - trials),
        "stuck": sum(not trial.state.is_finished() for trial in known.values())
        + sum(run.info.status == "RUNNING" for run in runs),
        "values that differ": sum(
            trial.value != values.get(number) for number, trial in known.items() if trial.state.name == "COMPLETE"
        ),
        "sweep processes started": soak.starts,
        "tracebacks": len(soak.tracebacks()),
        "faults": dict(sorted(soak.faults.items())),
    }


def main() -> None:
    """Run the soak, print and store its counts. Exit code 1 after a lost, duplicated or stuck trial or a traceback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for the processes' output; default: a temporary one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers end with this process
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, Postgres() as postgres:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        soak = Soak(folder, arguments.trials, arguments.seed, postgres)
        try:
            soak.run()
            found = counts(soak, arguments.trials)
        finally:
            soak.end()
    found |= {"faults in all": sum(soak.faults.values()), "minutes": round((time.monotonic() - started) / 60, 1)}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "soak.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    sys.exit(any(found[name] for name in ("lost", "duplicated", "stuck", "values that differ", "tracebacks")))


if __name__ == "__main__":
    main()
