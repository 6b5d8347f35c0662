from __future__ import annotations

import dataclasses
import json

import pytest
from fakes import run_result

from mnistexp.training.results import FitResult, from_json, objective_value, to_json


def test_a_result_survives_json_exactly() -> None:
    """Every float, byte and tuple of a result comes back equal from its JSON text."""
    result = run_result([0.1, 1 / 3, 0.2], test_accuracy=1 / 7)

    back = from_json(json.loads(json.dumps(to_json(result))))

    assert back == result
    assert isinstance(back.fit.epochs, tuple)
    assert isinstance(back.fit.validation_hits, bytes)


def test_a_result_with_an_unknown_field_is_refused() -> None:
    """A record of another version doesn't pass for one of this."""
    plain = to_json(run_result([0.5]))

    with pytest.raises(TypeError, match="recall"):
        from_json({**plain, "recall": 0.5})


def test_the_objective_is_the_kept_epochs_validation_accuracy() -> None:
    """Not the last epoch's, and not the best of the curve where another epoch's weights were kept."""
    fit = run_result([0.5, 0.9, 0.7]).fit

    assert objective_value(fit) == 0.9
    assert objective_value(dataclasses.replace(fit, chosen_epoch=3)) == 0.7


def test_the_objective_has_no_way_to_the_test_split() -> None:
    """What a study maximises is computed from a type that has no field of the test split."""
    fields = {field.name for field in dataclasses.fields(FitResult)}

    assert not [name for name in fields if "test" in name]


def test_results_cannot_be_changed() -> None:
    """Nobody mends a score after the fact."""
    result = run_result([0.5])

    with pytest.raises(dataclasses.FrozenInstanceError):
        result.test_accuracy = 1.0  # type: ignore[misc]
