"""Trials for the tests of figures and reports: made by hand, with scripted scores and no database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fakes import epoch_scores, run_result
from runs import run_config

from mnistexp.analysis.history import Trial
from mnistexp.config.schema import RunConfig
from mnistexp.tracking.records import RunRecord, State
from mnistexp.training.results import RunResult

CONFIG = run_config()


def trial(
    number: int,
    accuracies: Sequence[float] = (0.5, 0.9),
    state: State = "COMPLETE",
    params: Mapping[str, Any] | None = None,
    seconds: float = 10.0,
    parameters: int = 1234,
    span: tuple[float, float] | None = None,
    config: RunConfig = CONFIG,
    test_accuracy: float | None = 2 / 3,
) -> Trial:
    """A trial with these validation accuracies, epoch by epoch; a failed one has its epochs, and no result.

    Args:
        seconds: of its training.
        span: when it started and ended; None: one after the other, by their numbers.
    """
    result: RunResult | None = None
    if state != "FAILED":
        whole = run_result(accuracies, test_accuracy, "pruned" if state == "PRUNED" else "completed")
        fit = whole.fit.model_copy(update={"seconds": seconds, "parameters": parameters})
        result = whole.model_copy(update={"fit": fit})
    started, ended = span or (number * seconds, (number + 1) * seconds)
    reason = "loss is nan" if state == "FAILED" else ""
    record = RunRecord(
        name=f"{number:03}",
        kind="trial",
        config=config,
        overrides=(),
        data_name="digits",
        data_fingerprint="f" * 32,
        data_source="scikit-learn",
        provenance={},
        started=started,
        ended=ended,
        state=state,
        result=result,
        reason=reason,
        epochs=tuple(epoch_scores(epoch, accuracy) for epoch, accuracy in enumerate(accuracies, start=1)),
    )
    return Trial(number, state, dict(params or {}), record, reason)
