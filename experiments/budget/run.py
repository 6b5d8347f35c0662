"""Run sweeps to compare samplers with and without pruning: the best config after 1, 2, 5, 10 and 20 minutes.

python experiments/budget/run.py --data FOLDER [--sitting 120]

Runs one sweep after another and appends each to results/ when it has ended. After an interruption the same command
continues with the first missing sweep. At the end answer.py writes the tables. README.md explains the measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import joblib
import pandas as pd
import psutil
from arms import ARMS, MAIN

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KEY = ["arm", "seed"]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ENDING = 60.0  # seconds that a sweep may need after its timeout, for the last trainings and the summary


@dataclass(frozen=True)
class Sweep:
    """One sweep: an arm and a seed."""

    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its study and its folder."""
        return f"{self.arm}.{self.seed}"


def order(arms: Sequence[str], seeds: Sequence[int]) -> Iterator[Sweep]:
    """Yield one block per seed: each arm once, in an order drawn by the seed.

    A slow change (another machine, another commit, other load) then affects all arms of a block equally. A change
    within a block does not always affect the same arm. The arms are compared within blocks.
    """
    for seed in seeds:
        shuffled = list(ARMS)
        random.Random(f"block {seed}").shuffle(shuffled)
        yield from (Sweep(arm, seed) for arm in shuffled if arm in arms)


# ------------------------------------------------------------------------------------------------ one sweep


def command(sweep: Sweep, data: str, minutes: float) -> list[str]:
    """Return the arguments of the sweep command."""
    where = ["data=digits"] if data == "digits" else [f"data.root='{data}'"]
    study = [f"study.name={sweep.name}", *ARMS[sweep.arm].overrides]
    study += [f"study.timeout={60 * minutes:g}", f"seed={sweep.seed}"]
    return ["sweep", "experiments=budget/sweep", *where, *study]


def run(sweep: Sweep, data: str, minutes: float, work: Path) -> dict[str, Any]:
    """Run a sweep from start to end in its own folder. Returns: its start time, its duration, commit and load.

    The folder is empty, because growing databases would slow down later sweeps and compiled code in the cache would
    speed them up. A folder of this name belongs to an interrupted sweep, and is moved aside.
    """
    folder = work / sweep.name
    if folder.exists():
        cuts = len(list(work.glob(f"{sweep.name}.cut-*")))
        folder.rename(work / f"{sweep.name}.cut-{cuts + 1}")
    folder.mkdir(parents=True)
    about: dict[str, Any] = {"minutes": minutes, "data": "digits" if data == "digits" else "mnist"}
    about |= {"commit": _commit(), "load_before": os.getloadavg()[0]}
    busy, own, typed = _busy_seconds(), _children_seconds(), time.time()
    code = _watched([sys.executable, "-m", "mnistexp", *command(sweep, data, minutes)], folder)
    seconds = time.time() - typed
    if code != 0:
        log = "".join((folder / name).read_text()[-2000:] for name in ("stdout", "stderr"))
        raise SystemExit(f"{sweep.name} ended with exit code {code}; it will be run again:\n{log}")
    others = max(0.0, _busy_seconds() - busy - (_children_seconds() - own)) / seconds
    about |= {"typed": typed, "seconds": seconds, "other_cores": others, "cores": int(joblib.cpu_count())}
    (folder / "ended.json").write_text(json.dumps(about))  # the sweep is complete from here on
    return about


def _watched(arguments: list[str], folder: Path) -> int:
    """Run a process in a folder and forward signals to it. Returns: its exit code."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "MNISTEXP_"))}
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])  # measure this checkout
    environment = kept | {"PYTHONPATH": paths, "XDG_CACHE_HOME": str(folder / "cache")}
    running: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if not running:
            raise SystemExit("interrupted")
        running[0].send_signal(number)  # the first ends it in order within ten seconds, a second one at once

    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
    before = {number: signal.signal(number, pass_on) for number in handled}
    try:
        with (folder / "stdout").open("w") as out, (folder / "stderr").open("w") as err:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            running += [subprocess.Popen(arguments, cwd=folder, env=environment, start_new_session=True, **streams)]
            return running[0].wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _commit() -> str:
    """Return the commit of the code, and whether it has changes (without results/, which changes during a run)."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True).stdout.strip()

    commit, changed = git("rev-parse", "--short=12", "HEAD"), git("status", "--porcelain", "--", "mnistexp", "conf")
    return (commit or "unknown") + (" with changes" if changed else "")


def _busy_seconds() -> float:
    """Return the CPU seconds of all processes since the machine started."""
    times = psutil.cpu_times()
    return sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# ------------------------------------------------------------------------------------------------ its rows


def read(sweep: Sweep, folder: Path, about: dict[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a finished sweep's trials, and its row of sweeps.csv. Times are seconds since the start of the command.

    They come from MLflow's runs. The end of a run is the time at which the sweep process receives the worker's result,
    before it is written.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # MLflow reads it during its import
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    runs = mlflow.search_runs(
        search_all_experiments=True, filter_string="tags.kind = 'trial'", max_results=50_000, output_format="list"
    )
    rows = sorted((_row(run, about["typed"]) for run in runs), key=lambda row: row["trial"])
    trials = pd.DataFrame([asdict(sweep) | row for row in rows]).astype({"epochs": "Int64"})
    first = min(runs, key=lambda run: run.info.start_time)
    found = json.loads(first.data.tags["mnistexp.provenance"])
    versions = found["versions"]
    if sweep.arm.startswith("gp."):
        versions |= {"torch": _version("torch")}
    best = trials[trials["state"] == "COMPLETE"].sort_values(["val_accuracy", "trial"], ascending=[False, True])
    names = {int(run.data.tags["trial"]): run.info.run_name for run in runs}
    return trials, {
        **asdict(sweep),
        **{name: about[name] for name in ("minutes", "data")},
        "date": datetime.fromtimestamp(about["typed"], UTC).date().isoformat(),
        "trials": len(trials),
        "first_started": round(first.info.start_time / 1000 - about["typed"], 2),
        "ended": round(about["seconds"], 2),
        "best": names[int(best["trial"].iloc[0])] if len(best) else "",
        "load_before": round(about["load_before"], 2),
        "other_cores": round(about["other_cores"], 2),
        "cpu": found["machine"]["cpu"],
        "cores": about["cores"],
        "commit": about["commit"],
        "versions": ", ".join(f"{name} {number}" for name, number in versions.items() if number != "missing"),
    }


def _row(run: Any, typed: float) -> dict[str, Any]:
    """Return the row of one trial. A failed trial has no scores."""
    metrics = run.data.metrics
    return {
        "trial": int(run.data.tags["trial"]),
        "state": run.data.tags["state"],
        "started": round(run.info.start_time / 1000 - typed, 3),
        "ended": round(run.info.end_time / 1000 - typed, 3),
        "epochs": int(metrics["epochs"]),
        "val_accuracy": metrics.get("val_accuracy"),
        "test_accuracy": metrics.get("test_accuracy"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


# ------------------------------------------------------------------------------------------------ all of them


def done(results: Path, minutes: float, data: str) -> list[Sweep]:
    """Return the sweeps in the results. Raises: SystemExit if their minutes or data differ."""
    path = results / "sweeps.csv"
    if not path.exists():
        return []
    table = pd.read_csv(path)
    kinds = {"minutes": minutes, "data": "digits" if data == "digits" else "mnist"}
    for name, wanted in kinds.items():
        if others := set(table[name]) - {wanted}:
            raise SystemExit(f"{path} has sweeps with {name} {others.pop()}, not {wanted}; give another --results")
    return [Sweep(str(row.arm), int(row.seed)) for row in table.itertuples()]


def keep(results: Path, trials: pd.DataFrame, row: dict[str, Any]) -> None:
    """Append a finished sweep. Its trials are written first, so a sweep in sweeps.csv always has its trials."""
    results.mkdir(parents=True, exist_ok=True)
    for name, new in (("trials.csv", trials), ("sweeps.csv", pd.DataFrame([row]))):
        path = results / name
        if path.exists():
            old = pd.read_csv(path, dtype={"epochs": "Int64"} if name == "trials.csv" else None)
            same = (old[KEY] == [row[key] for key in KEY]).all(axis=1)  # written before a crash between the two files
            new = pd.concat([old[~same], new])
        scratch = path.with_suffix(".new")
        new.to_csv(scratch, index=False)
        scratch.replace(path)


def refuse_other_sweeps(work: Path) -> None:
    """Raise SystemExit if a sweep of this folder still runs, because two sweeps would share the cores."""
    for process in psutil.process_iter():
        try:
            inside = process.pid != os.getpid() and Path(process.cwd()).is_relative_to(work)
            typed = " ".join(process.cmdline())
        except (psutil.Error, OSError):
            continue
        if inside and "experiments=budget/sweep" in typed:
            raise SystemExit(f"a sweep of this folder still runs (process {process.pid}); end it first, or wait for it")


def run_all(options: argparse.Namespace) -> None:
    """Run the missing sweeps, as many as fit into this sitting."""
    started, data = time.monotonic(), options.data
    finished = done(options.results, options.minutes, data)
    refuse_other_sweeps(options.work)
    wanted = list(order(options.arms, options.blocks or range(options.seeds)))
    for place, sweep in enumerate(wanted, 1):
        folder = options.work / sweep.name
        if sweep in finished:
            continue
        if not (folder / "ended.json").exists():
            if time.monotonic() - started + 60 * options.minutes + ENDING > 60 * options.sitting:
                print("this sitting's time is over; type the same command to go on", file=sys.stderr)
                return
            run(sweep, data, options.minutes, options.work)
        trials, row = read(sweep, folder, json.loads((folder / "ended.json").read_text()))
        keep(options.results, trials, row)
        print(f"{place} of {len(wanted)}, {sweep.name}: {row['trials']} trials, best {row['best']}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    """Parse and check the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data",
        default=os.environ.get("MNISTEXP_DATA"),
        help="folder with MNIST's four .gz files (default: $MNISTEXP_DATA); digits: scikit-learn's, to try this script",
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="of each sweep (default: 20)")
    parser.add_argument("--seeds", type=int, default=5, help="blocks: seeds 0, 1, … (default: 5)")
    parser.add_argument("--blocks", type=int, nargs="+", metavar="SEED", help="these seeds instead")
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=[*MAIN], metavar="ARM", help=f"of {', '.join(ARMS)} (default: six)"
    )
    parser.add_argument(
        "--sitting", type=float, default=float("inf"), metavar="MINUTES", help="start no sweep that would end later"
    )
    parser.add_argument("--work", type=Path, default=Path("budget"), help="folder for the databases (default: budget)")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    if options.data != "digits":
        if options.data is None or not Path(options.data).is_dir():
            parser.error("give --data FOLDER, or set MNISTEXP_DATA, to a folder with MNIST's four .gz files")
        options.data = str(Path(options.data).resolve())
    if not options.minutes > 0 or options.seeds < 1 or min(options.blocks or [0]) < 0:
        parser.error("--minutes must be above 0, --seeds at least 1, each of --blocks at least 0")
    if any(arm.startswith("gp.") for arm in options.arms) and _version("torch") == "missing":
        parser.error("gp needs PyTorch: pip install '.[gp]', or leave out its arms with --arms")
    options.work, options.results = options.work.resolve(), options.results.resolve()
    return options


def main() -> None:
    options = arguments()
    run_all(options)
    subprocess.run([sys.executable, str(HERE / "answer.py"), "--results", str(options.results)], check=True)


if __name__ == "__main__":
    main()
