"""The error classes of mnistexp. Each has an exit code, and a message of one sentence."""

from __future__ import annotations

import re

_SPACED = re.compile(r"(://[^:/@\s]*):[^/\n@]* [^/\n@]*@(?=[\w\[])")
_QUERY = re.compile(r"(?i)([?&][^=&?\s]{0,40}(?:passw|pwd|token|secret|key)[^=&?\s]{0,40}=)[^&\s]*")

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C or SIGTERM ended: 128 + SIGINT, as in shells."""

MAX_FAULT = 1000
"""Characters of one fault that are printed: a command line may have 128,000."""


def without_passwords(text: str) -> str:
    """Replace the passwords in the addresses of a text (database URLs, for example) by ***.

    >>> without_passwords("study.storage=postgresql://me:secret@db/studies: must be …")
    'study.storage=postgresql://me:***@db/studies: must be …'
    """
    text = _QUERY.sub(r"\1***", _SPACED.sub(r"\1:***@", text))
    return re.sub(r"\S+", lambda found: _word_without_password(found[0]), text)


def _word_without_password(word: str) -> str:
    """Replace what is between the first colon without `//` after it and the last @: a password may contain both."""
    head, at, host = word.rpartition("@")
    place = next((found.start() for found in re.finditer(r":(?!//)", head)), None)
    if not at or place is None or head[place:] == ":PASSWORD":  # our own messages write addresses like this
        return word
    return f"{head[:place]}:***@{host}"


def _line(fault: str) -> str:
    """Return a fault as one printable line: control characters, which a terminal would execute, are escaped."""
    text = without_passwords(fault)
    if len(text) > MAX_FAULT:
        text = f"{text[: MAX_FAULT // 2]} … {text[-MAX_FAULT // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class MnistexpError(Exception):
    """An error that the user can correct. `str(error)` contains what was wrong, what is allowed and what to type."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(without_passwords(message))


class ConfigError(MnistexpError):
    """The config or the search space is invalid. It contains every fault that was found."""

    def __init__(self, *faults: str) -> None:
        self.faults = tuple(map(_line, faults))
        super().__init__("\n  ".join(self.faults if len(faults) == 1 else (f"{len(faults)} faults:", *self.faults)))


class DataError(MnistexpError):
    """A data set is missing, damaged or another one than expected."""


class StoreError(MnistexpError):
    """A database, an MLflow server or a folder can't be used, or holds something else."""


class WorkerError(MnistexpError):
    """Workers cannot start: the device is missing, or the installation does not work."""


class TrainingError(MnistexpError):
    """One training failed: its loss or a weight is not finite, or its worker died."""

    exit_code = 1
