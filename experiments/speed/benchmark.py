"""Compare the speed of mnistexp's sweep with a plain script. All variants, in rounds.

python experiments/speed/benchmark.py --data FOLDER --rounds 3

Prints a table, and writes it, its numbers and a figure to results/speed_avx512.md, .json and .png, or to speed_avx2.*,
depending on the CPU. A round takes four to seven minutes on two cores. README.md explains the measurement.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import joblib
from matplotlib.figure import Figure

from mnistexp.machine import cpu_model, source_state
from mnistexp.report.plot_style import BLUE, GREY, new_figure, styled, to_png

HERE = Path(__file__).parent
CONFIGS = json.loads((HERE / "configs.json").read_text())
EPOCHS = 10  # mnistexp's default
CORES = joblib.cpu_count()  # respects CPU affinity and container quotas
TUNED = ("--jit", "--steps-per-execution", "50")
STUDIES = {"plain": "Keras script", "tuned": "Keras script, tuned", "sweep": "mnistexp sweep"}
Figures = dict[str, float]


# ------------------------------------------------------------------------------------------ one process


def run(arguments: list[str], folder: Path) -> tuple[str, float, float]:
    """Run one Python process in an empty folder. Returns: stdout, wall seconds, CPU seconds (children included)."""
    # An empty cache folder: no variant may reuse code that an earlier round compiled.
    environment = os.environ | {
        "XDG_CACHE_HOME": str(folder / "cache"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    with (folder / "stdout").open("w+") as out, (folder / "stderr").open("w+") as err:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
        _, status, usage = os.wait4(process.pid, 0)  # wait() does not return the CPU time
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0), err.seek(0)
        if process.returncode != 0:
            raise SystemExit(f"{' '.join(arguments)} failed:\n{err.read()[-3000:]}")
        return out.read(), seconds, usage.ru_utime + usage.ru_stime


def figures(wall: float, import_seconds: float, cpu: float, accuracies: list[float]) -> Figures:
    """Return the numbers of one study. `seconds` excludes only the imports."""
    seconds = wall - import_seconds
    return {
        "seconds": seconds,
        "import_seconds": import_seconds,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "trials_per_minute": 60 * len(accuracies) / seconds,
        "mean_val_accuracy": statistics.fmean(accuracies),
    }


def script(data: Path, folder: Path, *flags: str) -> Figures:
    """Run plain_keras.py, which times its own imports."""
    arguments = [str(HERE / "plain_keras.py"), "--data", str(data), "--epochs", str(EPOCHS), *flags]
    out, wall, cpu = run(arguments, folder)
    said = json.loads(out.splitlines()[-1])
    return figures(wall, said["import_seconds"], cpu, said["val_accuracy"])


def epoch_seconds(name: str, folder: Path, *flags: str) -> Figures:
    """Run one of the two epoch scripts. Returns: its output."""
    return json.loads(run([str(HERE / name), *flags], folder)[0].splitlines()[-1])


# ------------------------------------------------------------------------------------------ the sweep


def sweep(data: Path, folder: Path) -> Figures:
    """Run `mnistexp sweep` over exactly the eight configs, without pruning, with as many workers as cores.

    Its imports overlap with other work in several processes. Only the time that a bare process needs to import
    TensorFlow and Keras is subtracted, because each sweep needs it. All other imports count.
    """
    write_options(folder / "options")
    _, import_seconds, _ = run(["-c", "import tensorflow, keras"], folder)
    _, wall, cpu = run(["-m", "mnistexp", "sweep", *sweep_arguments(data, folder)], folder)
    accuracies = check_study(folder / "optuna.db")
    return {
        **figures(wall, import_seconds, cpu, accuracies),
        "seconds_from_first_trial": session_seconds(folder / "mlflow.db"),
    }


def sweep_arguments(data: Path, folder: Path) -> list[str]:
    names = ", ".join(f"speed_{config['seed']}" for config in CONFIGS)
    return [
        *("--config-dir", str(folder / "options")),
        *("data=mnist", f"data.root='{data}'"),
        *("search=none", f"search.optimizer=choice({names})"),
        *("optimizer=speed_0", "trainer=speed"),  # the first trial is the composed config: one of the eight
        *("study.name=speed", f"study.trials={len(CONFIGS)}", "study/sampler=grid", "study/pruner=none"),
        *("study.storage=sqlite:///optuna.db", "tracking.uri=sqlite:///mlflow.db"),
        *("executor.workers=auto", "trainer.threads=1", "trainer.device=cpu"),
    ]


def write_options(folder: Path) -> None:
    """Write one optimizer option per config. Its search space is this config, so the grid is the eight configs."""
    for group in ("optimizer", "trainer"):
        (folder / group).mkdir(parents=True)
    first = CONFIGS[0]["batch_size"]
    (folder / "trainer" / "speed.yaml").write_text(f"defaults: [default]\nepochs: {EPOCHS}\nbatch_size: {first}\n")
    for config in CONFIGS:
        (folder / "optimizer" / f"speed_{config['seed']}.yaml").write_text(
            "# @package _global_\n"
            f"defaults: [{config['optimizer']}]\n"
            f"model: {{hidden_units: {config['hidden_units']}, activation: {config['activation']}}}\n"
            f"optimizer: {{learning_rate: {config['learning_rate']}}}\n"
            "search:\n"
            f"  optimizer.learning_rate: choice({config['learning_rate']})\n"
            f"  model.hidden_units: choice({config['hidden_units']})\n"
            f"  model.activation: choice({config['activation']})\n"
            f"  trainer.batch_size: choice({config['batch_size']})\n"
        )


def check_study(database: Path) -> list[float]:
    """Return the values of the eight trials. Raises: SystemExit unless exactly these ran, each to its end."""
    import optuna

    trials = optuna.load_study(study_name="speed", storage=f"sqlite:///{database}").trials
    ran = sorted(str(trial.params.get("optimizer")) for trial in trials if trial.state.name == "COMPLETE")
    wanted = sorted(f"speed_{config['seed']}" for config in CONFIGS)
    if ran != wanted or len(trials) != len(wanted):
        raise SystemExit(f"the sweep ran {ran}, not {wanted}: the figures would compare different things")
    return [trial.value for trial in trials]


def session_seconds(database: Path) -> float:
    """Return the sweep's own measurement: from the first ready worker to the last finished trial."""
    with sqlite3.connect(database) as connection:
        row = connection.execute("SELECT value FROM latest_metrics WHERE key = 'sweep/session_seconds'").fetchone()
    return float(row[0])


# ------------------------------------------------------------------------------------------ all together


def variants(data: Path) -> dict[str, Callable[[Path], Figures]]:
    """Return name → function that runs the variant in an empty folder."""
    found: dict[str, Callable[[Path], Figures]] = {
        "plain": lambda folder: script(data, folder),
        "tuned": lambda folder: script(data, folder, *TUNED),
        "sweep": lambda folder: sweep(data, folder),
    }
    for threads in sorted({1, CORES}):
        flags = ("--threads", str(threads))
        found[f"products_{threads}"] = lambda folder, flags=flags: epoch_seconds("matrix_products.py", folder, *flags)
        found[f"epoch_{threads}"] = lambda folder, flags=flags: epoch_seconds(
            "mnistexp_epoch.py", folder, *flags, "--data", str(data)
        )
    return found


def measure(chosen: dict[str, Callable[[Path], Figures]], rounds: int) -> dict[str, list[Figures]]:
    """Run each variant once per round, each round in another order, so that a slow minute affects different ones."""
    measured: dict[str, list[Figures]] = {name: [] for name in chosen}
    names = list(chosen)
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            with TemporaryDirectory(prefix="speed-") as folder:
                measured[name].append(chosen[name](Path(folder)))
            print(f"round {number + 1} of {rounds}, {name}: {brief(measured[name][-1])}", file=sys.stderr, flush=True)
    return measured


def brief(values: Figures) -> str:
    return ", ".join(f"{key} {value:.3f}" for key, value in values.items())


def ratios(measured: dict[str, list[Figures]]) -> dict[str, dict[str, float]]:
    """Return median, lowest and highest ratio over the rounds: sweep to scripts, epoch to matrix products."""
    pairs = {f"sweep / {other}": ("sweep", other, "trials_per_minute") for other in ("plain", "tuned")}
    pairs |= {f"sweep / {other}, imports included": (other, "sweep", "wall_seconds") for other in ("plain", "tuned")}
    for threads in sorted({1, CORES}):
        pairs[f"epoch / matrix products, {threads} thread(s)"] = (
            f"epoch_{threads}",
            f"products_{threads}",
            "epoch_seconds",
        )
    found = {}
    for title, (above, below, key) in pairs.items():
        if above in measured and below in measured:
            each = [a[key] / b[key] for a, b in zip(measured[above], measured[below], strict=True)]
            found[title] = {"median": statistics.median(each), "low": min(each), "high": max(each)}
    return found


def machine() -> dict[str, Any]:
    """Return what the numbers depend on, without the machine's name and paths."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    source = source_state(HERE.parent.parent)
    packages = ("tensorflow", "keras", "numpy", "optuna", "mlflow")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": source.get("commit", "unknown")[:12] + (" with changes" if source.get("dirty") else ""),
        "cpu": cpu_model(),
        "vectors": next((name for name in ("avx512", "avx2") if name in flags), platform.machine()),
        "cores": CORES,
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


@styled
def figure(measured: dict[str, list[Figures]]) -> Figure:
    """Draw trials per minute: a bar with its median for each way to run the study, a dot for each round."""
    drawn = new_figure(1.7)
    axes = drawn.add_subplot()
    names = [name for name in STUDIES if name in measured][::-1]
    for place, name in enumerate(names):
        rates = [figures["trials_per_minute"] for figures in measured[name]]
        middle = statistics.median(rates)
        axes.barh(place, middle, height=0.6, color=BLUE if name == "sweep" else GREY, alpha=0.6)
        axes.plot(rates, [place] * len(rates), "o", color="black", markersize=3)
        axes.annotate(f"{middle:.1f}", (max(rates), place), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(names)), [STUDIES[name] for name in names])
    axes.set_xlabel("trials of ten epochs a minute; a dot is a round")
    axes.margins(x=0.1)
    return drawn


def table(measured: dict[str, list[Figures]], compared: dict[str, dict[str, float]], about: dict[str, Any]) -> str:
    """Return the results as Markdown: medians over the rounds."""

    def median(name: str, key: str) -> float:
        return statistics.median(figures[key] for figures in measured[name])

    rounds = len(next(iter(measured.values())))
    lines = [
        f"{about['date']}, commit {about['commit']}, {about['cpu']} with {about['vectors']}, {about['cores']} cores, "
        f"Python {about['python']}, "
        f"TensorFlow {about['tensorflow']}; medians of {rounds} round(s), load before {about['load_before']}.",
        "",
        f"| {len(CONFIGS)} trials of {EPOCHS} epochs | trials/min | seconds | with imports | CPU seconds "
        "| mean val. accuracy |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in (name for name in STUDIES if name in measured):
        row = [median(name, key) for key in ("trials_per_minute", "seconds", "wall_seconds", "cpu_seconds")]
        cells = " | ".join(f"{value:.1f}" for value in row)
        lines.append(f"| {STUDIES[name]} | {cells} | {median(name, 'mean_val_accuracy'):.4f} |")
    lines += ["", "| seconds per epoch of 784-300-10, batch 100 | |", "| --- | ---: |"]
    for name in (name for name in measured if name not in STUDIES):
        kind, threads = name.split("_")
        title = "NumPy, matrix products alone" if kind == "products" else "mnistexp, all of it"
        lines.append(f"| {title}, {threads} thread(s) | {median(name, 'epoch_seconds'):.3f} |")
    lines += ["", "| ratio | median | lowest | highest |", "| --- | ---: | ---: | ---: |"]
    for title, each in compared.items():
        lines.append(f"| {title} | {each['median']:.2f} | {each['low']:.2f} | {each['high']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("MNISTEXP_DATA"),
        help="folder with MNIST's four .gz files (default: $MNISTEXP_DATA)",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="VARIANT", help="a few of the variants; then nothing is written")
    options = parser.parse_args()
    if options.data is None or not options.data.is_dir():
        parser.error("give --data FOLDER, or set MNISTEXP_DATA, to a folder with MNIST's four .gz files")
    known = variants(options.data.resolve())
    if unknown := set(options.only or ()) - set(known):
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(known)}")

    about = machine()
    measured = measure({name: known[name] for name in options.only or known}, options.rounds)
    compared = ratios(measured)
    text = table(measured, compared, about)
    print(text)
    if not options.only:
        record = {"machine": about, "epochs": EPOCHS, "rounds": measured, "ratios": compared}
        (HERE / "results").mkdir(exist_ok=True)
        written = HERE / "results" / f"speed_{about['vectors']}"
        written.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
        written.with_suffix(".md").write_text(text)
        written.with_suffix(".png").write_bytes(to_png(figure(measured)))


if __name__ == "__main__":
    main()
