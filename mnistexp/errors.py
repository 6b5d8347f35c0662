"""Everything that mnistexp raises on purpose: one tree, one sentence each, one exit code each."""

from __future__ import annotations

import re

_SPACED = re.compile(r"(://[^:/@\s]*):[^/\n@]* [^/\n@]*@(?=[\w\[])")
_QUERY = re.compile(r"(?i)([?&][^=&?\s]{0,40}(?:passw|pwd|token|secret|key)[^=&?\s]{0,40}=)[^&\s]*")

INTERRUPTED = 130
"""The exit code of a command that Ctrl-C or SIGTERM ended: 128 + SIGINT, as shells have it."""

MAX_FAULT = 1000
"""Characters of one fault that are shown: a command line may hold 128,000."""


def without_passwords(text: str) -> str:
    """A text with the passwords of its addresses (database URLs above all) as ***.

    >>> without_passwords("study.storage=postgresql://me:secret@db/studies: must be …")
    'study.storage=postgresql://me:***@db/studies: must be …'
    """
    text = _QUERY.sub(r"\1***", _SPACED.sub(r"\1:***@", text))
    return re.sub(r"\S+", lambda found: _word_without_password(found[0]), text)


def _word_without_password(word: str) -> str:
    """Hide what lies between the first colon that no `//` follows and the last @: a password may have both."""
    head, at, host = word.rpartition("@")
    place = next((found.start() for found in re.finditer(r":(?!//)", head)), None)
    if not at or place is None or head[place:] == ":PASSWORD":  # as our own messages spell an address
        return word
    return f"{head[:place]}:***@{host}"


def _line(fault: str) -> str:
    """One fault as one line that no terminal acts upon: line feeds, escape codes and half characters in writing."""
    text = without_passwords(fault)
    if len(text) > MAX_FAULT:
        text = f"{text[: MAX_FAULT // 2]} … {text[-MAX_FAULT // 2 :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


class MnistexpError(Exception):
    """A fault that the user can act on: `str(error)` says what was wrong, what is allowed, what to type."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(without_passwords(message))


class ConfigError(MnistexpError):
    """The config or the search space holds something that can't be; raised before anything starts.

    Holds every fault that was found, so that the user mends them in one go.
    """

    def __init__(self, *faults: str) -> None:
        self.faults = tuple(map(_line, faults))
        super().__init__("\n  ".join(self.faults if len(faults) == 1 else (f"{len(faults)} faults:", *self.faults)))


class DataError(MnistexpError):
    """A data set is missing, damaged or not what it says it is."""


class StoreError(MnistexpError):
    """A database, an MLflow server or a folder can't be used, or holds something else."""


class WorkerError(MnistexpError):
    """Workers can't start: no such device, or an installation that doesn't work."""


class TrainingError(MnistexpError):
    """One training failed: its loss or a weight is not finite, or its worker died."""

    exit_code = 1
