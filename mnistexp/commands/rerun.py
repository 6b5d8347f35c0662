"""The command `rerun`: train a logged run again and compare the two bit by bit."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mnistexp.commands.args import CommandArgs
from mnistexp.commands.train import epoch_callback
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.overrides import ParsedOverrides, refuse_hyperparameters, refuse_search
from mnistexp.config.schema import format_value
from mnistexp.errors import StoreError
from mnistexp.machine import BIT_CHANGING_FLAGS
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.records import LoggedRun, RunRecord
from mnistexp.tracking.runs import Tracker, open_tracker
from mnistexp.workers.start import run_training, start_workers


def rerun(request: ParsedOverrides, args: CommandArgs) -> int:
    """Train a logged run again (a study's best, or `run=ID`), log it, and compare. Returns: 0 if bit-identical."""
    refuse_search(request, "rerun")
    refuse_hyperparameters(request, "rerun")
    config, run_id = configs.compose(request), args.keys.get("run", "")
    study = run_context.study_name(config)
    tracker = open_tracker(config.tracking, config.tracking.experiment or study, create=False, run_id=run_id)
    before = find_logged(tracker, study, run_id)
    user_code.require_for(before.config)
    prepared = run_context.prepare_recorded(request, config, before.config)
    recorded = configs.run_config(prepared.config)
    console.note(f"run {before.run_id}: {before.name}")
    executor = start_workers(
        prepared.config,
        at_most=1,
        dataset=prepared.dataset,
        fingerprint=prepared.dataset.fingerprint,
        environment=recorded_environment(before),
    )
    started, epochs, test = time.time(), before.metrics["epochs"], "test_accuracy" in before.metrics
    try:
        result = run_training(executor, recorded, epoch_callback(recorded, []), stop_after=epochs, test=test)
    finally:
        executor.close()
    record = run_context.create_context(prepared).record(
        "rerun",
        recorded,
        before.overrides,
        started,
        before.state,
        name=f"rerun of {before.name}",
        result=result,
        tags={"rerun_of": before.run_id},
    )
    pairs = outcomes(before, record)
    console.say_lines(_comparison_lines(pairs, causes(before, record)))
    tracker.log(record, files=run_context.code_file())
    return 0 if all(then == now for _, then, now in pairs) else 1


def find_logged(tracker: Tracker, study: str, run_id: str) -> LoggedRun:
    """A run by its id, or else a study's best. Raises: StoreError if there is none, or it has no scores."""
    found = next(tracker.find({}, run_id), None) if run_id else best_logged(tracker, study)
    if found is None:
        raise StoreError(
            f"study.name={study}: MLflow has no complete trial of it here; run `python -m mnistexp sweep`, "
            f"or give run=ID (`python -m mnistexp ui` shows the ids)"
        )
    if "val_accuracy" not in found.metrics:
        how = "failed" if found.state == "FAILED" else "was interrupted"
        raise StoreError(f"run={found.run_id}: {how}, so there is nothing to compare with; give another run=ID")
    return found


def best_logged(tracker: Tracker, study: str) -> LoggedRun | None:
    """A study's best run: complete, with the highest validation accuracy, ties to the lowest trial number.

    If several studies have had this name (after a database was deleted), only the newest one counts.
    """
    logged = list(tracker.find({"study": study, "kind": "trial"}))
    runs = [run for run in logged if run.state == "COMPLETE" and run.tags["study_id"] == logged[-1].tags["study_id"]]
    return min(runs, key=lambda run: (-run.metrics["val_accuracy"], int(run.tags["trial"])), default=None)


def recorded_environment(run: LoggedRun) -> dict[str, str]:
    """The recorded variables that a rerun sets for its worker; any other one could run code.

    Raises: StoreError if one of them names a file.
    """
    flags = run.provenance.get("flags", {})
    found = {key: str(flags[key]) for key in BIT_CHANGING_FLAGS if key in flags}
    if re.search(r"[/\\]|dump|dir|path|file", found.get("XLA_FLAGS", "")):  # --xla_dump_to=… writes anywhere
        raise StoreError(
            f"run={run.run_id}: was recorded with XLA_FLAGS={found['XLA_FLAGS']}, which names a file; this is not "
            f"set from a record, which anyone may have written; use `python -m mnistexp train` with its config instead"
        )
    return found


# ------------------------------------------------------------------------------------------------- comparison

Difference = tuple[str, str, str]  # a name, its value before and now


def outcomes(before: LoggedRun, now: RunRecord) -> list[Difference]:
    """Every score, by its exact value, and the weights of two runs of one config; equal or not."""
    result = now.result
    assert result is not None
    scores = {
        "val_accuracy": result.fit.best.val_accuracy,
        "val_loss": result.fit.best.val_loss,
        "test_accuracy": result.test_accuracy,
        "test_loss": result.test_loss,
    }
    pairs = [(key, repr(before.metrics[key]), repr(value)) for key, value in scores.items() if key in before.metrics]
    return [*pairs, ("weights_hash", before.weights_hash, result.weights_hash)]


def causes(before: LoggedRun, now: RunRecord) -> list[Difference]:
    """What differs in data, versions, device, flags and code."""
    then, today = _bit_relevant(before.provenance), _bit_relevant(now.provenance)
    then["data"], today["data"] = before.data_fingerprint, now.data_fingerprint
    pairs = [(key, then.get(key, "not recorded"), today.get(key, "gone")) for key in sorted(then.keys() | today.keys())]
    return [pair for pair in pairs if pair[1] != pair[2]]


def _bit_relevant(provenance: Mapping[str, Any]) -> dict[str, str]:
    """The part of a provenance that can change bits, by dotted keys. Hosts and folders cannot."""
    parts = {key: provenance.get(key, {}) for key in ("git", "versions", "flags", "device")}
    found = {key: str(value) for key, value in configs.flatten(parts).items() if value != {}}
    # The flags name the worker's processor. Without them it is the parent's.
    found["cpu"] = found.pop("flags.cpu", str(provenance.get("machine", {}).get("cpu", "")))
    return found


def _comparison_lines(pairs: Sequence[Difference], differences: Sequence[Difference]) -> Iterator[str]:
    for name, before, now in pairs:
        shown = format_value(now, max_length=24)
        yield f"  {name:<14} " + (f"{shown}  identical" if before == now else f"{before}  now {shown}  DIFFERENT")
    if all(before == now for _, before, now in pairs):
        yield "\nbit-identical: the scores and every weight came out as before"
        return
    yield "\nnot bit-identical"
    if not differences:
        yield "The recorded data, versions, device, flags and code are the same: please report this."
    yield from (f"  differs: {name}: was {before}, is {now}" for name, before, now in differences)
