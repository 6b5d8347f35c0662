from __future__ import annotations

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import DataError, OperationalError

from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import StoreRefusal, store_errors

ADDRESS = "postgresql://me:secret@host/db"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MlflowException("too long", INVALID_PARAMETER_VALUE), StoreRefusal),
        (DataError("insert", {}, Exception("too long")), StoreRefusal),
        (MlflowException("the server is down"), StoreError),
        (OperationalError("select", {}, Exception("too long: secret")), StoreError),
        (StorageInternalError("locked"), StoreError),
        (OSError(28, "No space left on device"), StoreError),
    ],
)
def test_errors_of_libraries_become_a_store_error(error: Exception, kind: type[StoreError]) -> None:
    """Each is one line with the setting and the reason, without the password; a refusal has a class of its own."""
    with pytest.raises(StoreError, match="used: ") as caught, store_errors("study.storage: can't be used", ADDRESS):
        raise error

    assert type(caught.value) is kind
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyError("x"), StoreError("already a sentence")])
def test_other_errors_pass(error: Exception) -> None:
    """A fault of the program, and an error that is a sentence already, stay what they are."""
    with pytest.raises(type(error)) as caught, store_errors("study.storage: can't be used"):
        raise error

    assert caught.value is error
