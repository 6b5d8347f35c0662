"""Results as JSON, and the objective."""

from __future__ import annotations

import json
import math
import struct

import pytest
from fakes import run_result
from pydantic import ValidationError

from mnistexp.training.results import FitResult, RunResult, objective_value


def _bits(value: float) -> bytes:
    return struct.pack("<d", value)


@pytest.mark.parametrize("test_loss", [1 / 7, math.inf, math.nan])
def test_a_result_survives_json_exactly(test_loss: float) -> None:
    """Every float, byte and tuple is equal after a round trip through text, in both ways that are in use."""
    result = run_result([0.1, 1 / 3, 0.2]).model_copy(update={"test_loss": test_loss})

    by_dict = RunResult.model_validate(json.loads(json.dumps(result.model_dump(mode="json"))))
    by_text = RunResult.model_validate_json(result.model_dump_json())

    for read in (by_dict, by_text):
        assert read.test_loss is not None
        assert _bits(read.test_loss) == _bits(test_loss)
        assert read.fit == result.fit


@pytest.mark.parametrize("change", [{"recall": 0.5}, {"fit": {}}, {"fit": None}, {"test_accuracy": "high"}])
def test_another_versions_record_is_refused(change: dict[str, object]) -> None:
    """A record with an unknown, a missing or a wrong field raises an error."""
    plain = run_result([0.5]).model_dump(mode="json")

    with pytest.raises(ValidationError, match=next(iter(change))):
        RunResult.model_validate({**plain, **change})


def test_the_objective_is_the_validation_accuracy_of_the_kept_weights() -> None:
    """It is that of the best epoch, or of the last one if the best weights are not restored."""
    fit = run_result([0.5, 0.9, 0.7]).fit

    assert objective_value(fit) == 0.9
    assert objective_value(fit.model_copy(update={"best_epoch": 3})) == 0.7


def test_the_objective_cannot_use_the_test_split() -> None:
    """The type from which the objective is computed has no field of the test split."""
    assert not [name for name in FitResult.model_fields if "test" in name]
