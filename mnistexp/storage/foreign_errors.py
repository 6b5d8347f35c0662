"""Turn the errors of SQLAlchemy, Optuna, MLflow and the operating system into StoreError: one line for the user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from mnistexp.errors import StoreError

FOREIGN = {
    ("alembic", "CommandError"),
    ("mlflow", "MlflowException"),
    ("optuna", "StorageInternalError"),
    ("sqlalchemy", "SQLAlchemyError"),
}
"""Package and base class of each library's error; by name, since importing MLflow alone takes 2 s."""

REFUSALS = {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "RESOURCE_ALREADY_EXISTS"}
"""MLflow's codes for a request that it will refuse again. An unreachable or full store has other codes."""


class StoreRefusal(StoreError):
    """The store works and refuses this one request; the same request would fail again."""


@contextmanager
def store_errors(problem: str, address: str = "", *also: type[Exception]) -> Iterator[None]:
    """Raise the errors of a store's libraries as StoreError(f"{problem}: {reason}").

    Args:
        problem: the setting and what failed, e.g. "tracking.uri=sqlite:///mlflow.db: MLflow can't use it".
        address: the store's address; its password is removed from the reason.
        also: further error classes of the block.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if not is_store_error(error) and not isinstance(error, also):
            raise
        kind = StoreRefusal if _is_refusal(error) else StoreError
        raise kind(f"{problem}: {reason(error, address)}") from None


def is_store_error(error: BaseException) -> bool:
    """Whether a library of a store, the file system or the network raised this."""
    bases = {(base.__module__.partition(".")[0], base.__name__) for base in type(error).__mro__}
    return isinstance(error, OSError | ImportError) or not FOREIGN.isdisjoint(bases)


def _is_refusal(error: BaseException) -> bool:
    """Whether MLflow, or the database below it, refused the values themselves (a name that is too long, say)."""
    if getattr(error, "error_code", "") in REFUSALS:
        return True
    wrapped = error.__context__ if type(error).__name__ == "MlflowException" else error  # as an INTERNAL_ERROR
    return type(wrapped).__name__ in ("DataError", "IntegrityError") or isinstance(wrapped, UnicodeError)


def reason(error: BaseException, address: str = "") -> str:
    """An error of a store in one line, without the password and without SQLAlchemy's headings."""
    inner = error
    while inner.__cause__ is not None:
        inner = inner.__cause__
    lines = str(getattr(inner, "orig", None) or inner).strip().splitlines()
    line = re.sub(r"^\(\S+\) ", "", lines[0]) if lines else type(inner).__name__
    if "Max retries exceeded" in line:  # the other 300 characters of requests' message say no more
        line = "the server doesn't answer"
    with suppress(ValueError):  # an address that can't be parsed
        if password := urlsplit(address).password:
            line = line.replace(password, "***")
    return line
