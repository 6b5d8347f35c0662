"""Print results to stdout and notes to stderr."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Mapping

from mnistexp.training.results import EpochScores

WIDTH = 78  # columns of wrapped text


def say(text: str = "") -> None:
    """Print one line of a command's result to stdout."""
    print(text, flush=True)


def note(text: str) -> None:
    """Print one line about the progress of a command to stderr, so that a pipe gets only results."""
    print(text, file=sys.stderr, flush=True)


def say_lines(lines: Iterable[str]) -> None:
    """Print several lines of a command's result to stdout."""
    for line in lines:
        say(line)


def wrap(sentence: str, first: str = "", more: str | None = None, width: int = WIDTH) -> list[str]:
    """Break a sentence into lines of at most `width` columns; `first` and `more` are their indentations."""
    more = first if more is None else more
    return textwrap.wrap(
        sentence, width, initial_indent=first, subsequent_indent=more, break_on_hyphens=False, break_long_words=False
    )


def table(rows: Mapping[str, object]) -> list[str]:
    """Format a mapping as two aligned columns."""
    width = max(map(len, rows), default=0)
    return [f"  {key:<{width}}  {value}" for key, value in rows.items()]


def epoch_line(scores: EpochScores, epochs: int) -> str:
    """Format one epoch of a training."""
    return (
        f"epoch {scores.epoch:3d}/{epochs}  loss {scores.loss:.4f}  val_loss {scores.val_loss:.4f}  "
        f"val_accuracy {scores.val_accuracy:.4f}  {scores.seconds:.2f} s"
    )


def warn_not_mnist(reason: str) -> None:
    """Print a warning in a frame if `data=auto` has chosen the digits; `reason` is empty if it has not."""
    if reason:
        frame = "!" * WIDTH
        note(f"{frame}\nTHIS IS NOT MNIST. These runs use scikit-learn's 1,797 bundled 8x8 digits: their scores")
        note("can't be compared with MNIST's. Their study is called 'digits' unless you name it.")
        note(f"Why: {reason}\n{frame}")
