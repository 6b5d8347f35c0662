"""The command `rerun`: train a logged run again and compare."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mnistexp.commands.args import CommandArgs
from mnistexp.commands.train import epoch_callback
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.overrides import ParsedOverrides, refuse_hyperparameters, refuse_search
from mnistexp.terminal import console
from mnistexp.tracking import run_context
from mnistexp.tracking.runs import open_tracker
from mnistexp.workers.start import run_training, start_workers

if TYPE_CHECKING:
    pass


def rerun(request: ParsedOverrides, asked: CommandArgs) -> int:
    """Train a logged run again (a study's best, or `run=ID`), log it, and compare."""
    refuse_search(request, "rerun")
    refuse_hyperparameters(request, "rerun")
    config, run_id = configs.compose(request), asked.keys.get("run", "")
    name = run_context.study_name(config)
    tracker = open_tracker(config.tracking, config.tracking.experiment or name, create=False, run_id=run_id)
    before = run_context.find_logged(tracker, name, run_id)
    user_code.require_for(before.config)
    device = config.trainer.device if "trainer.device" in request.fixed_keys else None
    recorded = run_context.here(before.config, config.data.root, device)
    prepared = run_context.prepare_recorded(config, recorded)
    console.note(f"run {before.run_id}: {before.name}")
    executor = start_workers(
        prepared.config,
        at_most=1,
        dataset=prepared.dataset,
        fingerprint=prepared.dataset.fingerprint,
        environment=run_context.recorded_environment(before),
    )
    try:
        started, last, sealed = time.time(), before.metrics["epochs"], "test_accuracy" not in before.metrics
        result = run_training(executor, recorded, epoch_callback(recorded, []), stop_after=last, test=not sealed)
    finally:
        executor.close()
    record = run_context.session(prepared).record(
        "rerun",
        recorded,
        before.overrides,
        started,
        before.state,
        name=f"rerun of {before.name}",
        result=result,
        tags={"rerun_of": before.run_id},
    )
    comparison = run_context.compare(before, record)
    for line in console.comparison_lines(comparison):
        console.say(line)
    tracker.log(record, files=run_context.code_file())
    return 0 if comparison.identical else 1
