"""Numbers as a reader wants them: accuracies, counts, times."""

from __future__ import annotations

from collections.abc import Sequence


def accuracy(value: float) -> str:
    """Four decimals, as in the terminal and in MLflow."""
    return f"{value:.4f}"


def counted(count: int, noun: str) -> str:
    """'1 trial', '12 trials', '12,000 trials'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time in its two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{seconds / 60:.1f} min"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def p_value(value: float) -> str:
    """As one writes it."""
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}" if value < 0.995 else "p = 1"


def p_number(value: float) -> str:
    """The same for a column whose head says that it is p."""
    return p_value(value).removeprefix("p ").removeprefix("= ")


def listed(words: Sequence[str]) -> str:
    """'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def trials(numbers: Sequence[int], at_most: int = 12) -> str:
    """Trials by their numbers, the first ones if there are many."""
    shown = [f"#{number}" for number in numbers[:at_most]]
    more = len(numbers) - len(shown)
    return f"{', '.join(shown)} and {more} more" if more else listed(shown)
