"""Copy a study from MLflow to an experiment's results folder, and print means and standard deviations.

python experiments/collect.py STUDY experiments/NAME/results [--tracking-uri sqlite:///mlflow.db]

Writes trials.csv (a row per trial, a column per setting that differs between trials) and best.yaml (the config of the
best trial without the location of its data; its head has the commit, the machine and the versions).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mlflow
import pandas as pd
import yaml

SCORES = ["val_accuracy", "val_loss", "test_accuracy", "test_loss", "chosen_epoch", "epochs", "seconds", "parameters"]
SETTINGS = ("model.", "optimizer.", "augmentation.", "trainer.", "seed")
PLACES = ("root", "mirrors", "files", "timeout")  # keys of `data` that give its location and not the data set


def read_trials(study: str) -> pd.DataFrame:
    """Return a study's runs from all experiments of the store, one per trial, ordered by trial."""
    runs = mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.study = '{study}' and tags.kind = 'trial'", max_results=50_000
    )
    if runs.empty:
        raise SystemExit(f"no trial of a study {study!r} in {mlflow.get_tracking_uri()}; see --tracking-uri")
    return one_each(runs)


def one_each(runs: pd.DataFrame) -> pd.DataFrame:
    """Return one run per trial of the newest study of this name; an interrupted run only if there is no other."""
    newest = runs.loc[runs["start_time"].idxmax(), "tags.study_id"]
    runs = runs[runs["tags.study_id"] == newest].assign(trial=lambda found: found["tags.trial"].astype(int))
    runs = runs.assign(ended=runs["tags.state"] != "INTERRUPTED").sort_values(["trial", "ended", "start_time"])
    return runs.drop_duplicates("trial", keep="last").drop(columns="ended").reset_index(drop=True)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return trial, state, the settings that differ between trials, and scores; a missing setting is empty."""
    settings = {name: f"params.{name}" for name in sorted(c.removeprefix("params.") for c in runs.columns)}
    differing = {
        name: runs[column]
        for name, column in settings.items()
        if name.startswith(SETTINGS) and column in runs and runs[column].nunique(dropna=False) > 1
    }
    scores = {name: runs[f"metrics.{name}"] for name in SCORES if f"metrics.{name}" in runs}
    found = pd.DataFrame({"trial": runs["trial"], "state": runs["tags.state"], **differing, **scores})
    whole = [name for name in ("chosen_epoch", "epochs", "parameters") if name in found]
    return found.astype(dict.fromkeys(whole, "Int64"))


def head(best: pd.Series) -> str:
    """Return the provenance of the numbers, as YAML comments."""
    provenance = json.loads(best["tags.mnistexp.provenance"])
    git, versions = provenance["git"], provenance["versions"]
    changed = " with changes" if git.get("dirty") else ""
    test = best.get("metrics.test_accuracy")  # missing in runs of a confirmation: their test split is not evaluated
    tested = f", test accuracy {test:.4f}" if pd.notna(test) else ""
    lines = [
        f"trial {best['trial']} of study {best['tags.study']}: validation accuracy {best['metrics.val_accuracy']:.4f}"
        f"{tested}",
        f"{best['start_time']:%Y-%m-%d}, commit {git.get('commit', 'unknown')[:12]}{changed}",
        f"{provenance['machine']['cpu']}, {provenance['device']}",
        ", ".join(f"{name} {number}" for name, number in versions.items() if number != "missing"),
    ]
    return "".join(f"# {line}\n" for line in lines)


def spread(trials: pd.DataFrame, score: str) -> str:
    """Format mean, sample standard deviation and range of one score over the complete trials."""
    values = trials.loc[trials["state"] == "COMPLETE", score]
    low, high = values.min(), values.max()
    if len(values) == 1:
        return f"{score}: {low:.4f} (n = 1)"
    return f"{score}: {values.mean():.4f} ± {values.std():.4f} ({low:.4f} to {high:.4f}, n = {len(values)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("study")
    parser.add_argument("results", type=Path)
    parser.add_argument("--tracking-uri", default="sqlite:///mlflow.db")
    options = parser.parse_args()

    mlflow.set_tracking_uri(options.tracking_uri)
    runs = read_trials(options.study)
    trials = table(runs)
    complete = runs[runs["tags.state"] == "COMPLETE"]
    if complete.empty:
        raise SystemExit(f"no trial of {options.study!r} is complete")
    best = complete.loc[complete["metrics.val_accuracy"].idxmax()]  # the first of equal ones, as in `mnistexp best`
    config = json.loads(best["tags.mnistexp.config"])
    config["data"] = {key: value for key, value in config["data"].items() if key not in PLACES}

    options.results.mkdir(parents=True, exist_ok=True)
    trials.to_csv(options.results / "trials.csv", index=False)
    (options.results / "best.yaml").write_text(head(best) + yaml.safe_dump(config, sort_keys=False))
    for score in ("val_accuracy", "test_accuracy"):
        if score in trials:
            print(spread(trials, score))


if __name__ == "__main__":
    main()
