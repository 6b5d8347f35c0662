"""What the tests of analyses and reports share: trials out of thin air, and sweeps whose hits fit their scores."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from fakes import FakeExecutor, epoch_scores
from sweeps import SMALL

from mnistexp.analysis.history import History, Trial
from mnistexp.config.compose import compose, parse_request, run_config
from mnistexp.config.schema import RunConfig
from mnistexp.tracking.records import RunRecord, State
from mnistexp.training.results import FitResult, RunResult
from mnistexp.workers.pool import Event, Finished

VALIDATION = 300  # images of data=digits

RATE = {"search.optimizer.learning_rate": json.dumps({"low": 0.001, "high": 0.1, "log": True, "step": None})}
ACTIVATION = {"search.model.activation": json.dumps({"values": ["relu", "tanh"]})}


@functools.cache
def base(*words: str) -> RunConfig:
    """The config of tests/sweeps.py, with further overrides."""
    return run_config(compose(parse_request([*(word for word in SMALL if "choice" not in word), *words])))


def fit_result(
    hits: npt.NDArray[np.bool_],
    before: Sequence[float] = (),
    *,
    mistakes: Sequence[int] | None = None,
    seconds: float = 1.0,
    parameters: int = 100,
) -> FitResult:
    """A training that got these images right at its last epoch, which is the one that was kept."""
    wrong = np.full(int(np.sum(~hits)), 3) if mistakes is None else np.array(mistakes)
    epochs = tuple(epoch_scores(n, score) for n, score in enumerate((*before, float(hits.mean())), start=1))
    packed = np.packbits(hits).tobytes()
    return FitResult(
        epochs=epochs,
        best_epoch=len(epochs),
        stopped="completed",
        parameters=parameters,
        seconds=seconds,
        validation_correct=packed,
        wrong_predictions=wrong.astype("<u2").tobytes(),
    )


def trial(
    number: int,
    right: int | npt.NDArray[np.bool_] = 90,
    state: State = "COMPLETE",
    *,
    params: Mapping[str, Any] | None = None,
    at: tuple[float, float] = (0.0, 1.0),
    config: RunConfig | None = None,
    reason: str = "",
    baseline: bool = False,
    test: float | None = 0.5,
    data: str = "f" * 32,
    **fit: Any,
) -> Trial:
    """A trial with so many of 100 images right, the first ones; or with just these right."""
    hits = np.arange(100) < right if isinstance(right, int) else right
    result = RunResult(
        fit=fit_result(hits, **fit),
        test_accuracy=test,
        test_loss=test,
        weights_hash="hash",
        data_fingerprint=data,
        device="CPU (fake)",
        flags={},
    )
    record = RunRecord(
        name=f"{number:03d}",
        kind="trial",
        config=config or base(),
        overrides=(),
        data_name="digits",
        data_fingerprint=data,
        data_source="",
        provenance={},
        started=at[0],
        ended=at[1],
        state=state,
        result=None if state == "FAILED" else result,
        reason=reason,
        epochs=result.fit.epochs,
    )
    return Trial(number, state, params or {}, record, reason, baseline)


def study(*trials: Trial, searched: Mapping[str, str] | None = None, name: str = "study") -> History:
    """A study of these trials."""
    return History(name, "0" * 32, trials, {**RATE, **ACTIVATION} if searched is None else searched, None)


class HitsExecutor(FakeExecutor):
    """Plays scripts whose results say which of the digits' validation images were right: so many as the score says.

    Which ones depends on the job's seed, so that two trials of one score differ.
    """

    def next_event(self, timeout: float) -> Event | None:
        event = super().next_event(timeout)
        if not isinstance(event, Finished):
            return event
        right = round(event.result.fit.best.val_accuracy * VALIDATION)
        hits = np.zeros(VALIDATION, dtype=bool)
        hits[np.random.default_rng(self.jobs[event.job].seed).permutation(VALIDATION)[:right]] = True
        chosen = event.result.fit.best_epoch - 1
        told = event.result.fit.best.model_copy(update={"val_accuracy": right / VALIDATION})
        epochs = (*event.result.fit.epochs[:chosen], told, *event.result.fit.epochs[chosen + 1 :])
        mistakes = np.full(VALIDATION - right, 3, dtype="<u2").tobytes()
        update = {
            "epochs": epochs,
            "validation_correct": np.packbits(hits).tobytes(),
            "wrong_predictions": mistakes,
        }
        fit = event.result.fit.model_copy(update=update)
        return Finished(event.job, event.result.model_copy(update={"fit": fit}))


# -------------------------------------------------------------------- configs with several seeds, for by=KEY

IMAGES = 1000  # of each trial of `seeded`
SEEDED = {
    "search.model.activation": json.dumps({"values": ["relu", "tanh", "gelu"]}),
    "search.optimizer.learning_rate": json.dumps({"values": [0.01, 0.1, 1.0]}),
    "search.seed": json.dumps({"low": 0, "high": 4, "log": False, "step": 1}),
}
RELU, TANH, GELU = (950, 952, 949, 951, 953), (930, 934, 929, 933, 931), (951, 950, 952, 949, 952)


def seeded(
    first: int,
    activation: str,
    rate: float,
    counts: Sequence[int],
    *,
    tests: Sequence[float | None] = (),
    states: Sequence[State] = (),
    seeds: Sequence[int] = (),
) -> list[Trial]:
    """One config with a trial for each of these counts of correct predictions; their numbers begin at `first`."""
    made = []
    for place, count in enumerate(counts):
        seed, plain = seeds[place] if seeds else place, base()
        model = plain.model.model_copy(update={"activation": activation})
        optimizer = plain.optimizer.model_copy(update={"learning_rate": rate})
        made.append(
            trial(
                first + place,
                np.arange(IMAGES) < count,
                states[place] if states else "COMPLETE",
                params={"model.activation": activation, "optimizer.learning_rate": rate, "seed": seed},
                config=plain.model_copy(update={"seed": seed, "model": model, "optimizer": optimizer}),
                test=tests[place] if tests else 0.5,
                seconds=1.0 + place,
                parameters=100 + len(activation),
            )
        )
    return made


def three_values() -> History:
    """relu and tanh with two learning rates each, gelu with one; five seeds; tanh has the highest test accuracy."""
    return study(
        *seeded(0, "relu", 0.01, (960, 900, 900, 900, 900)),  # the best single trial, with a low mean
        *seeded(5, "relu", 0.1, RELU, tests=(0.94, 0.95, 0.93, 0.94, 0.94)),
        *seeded(10, "tanh", 0.1, TANH, tests=(0.99,) * 5),
        *seeded(15, "tanh", 1.0, (500,) * 5, tests=(1.0,) * 5),
        *seeded(20, "gelu", 0.1, GELU),
        searched=SEEDED,
    )
