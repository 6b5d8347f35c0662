"""Format numbers and lists for the terminal and the report."""

from __future__ import annotations

from collections.abc import Sequence


def accuracy(value: float) -> str:
    """Format an accuracy with four decimals, as MLflow's pages do."""
    return f"{value:.4f}"


def counted(count: int, noun: str) -> str:
    """Format a count: '1 trial', '12 trials', '12,000 trials'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Format a duration: '80 ms', '9.5 s', '95 s', '4.2 min', '75 min', '3 h 5 min'."""
    if seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 600:
        return f"{seconds / 60:.1f} min"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def p_number(value: float) -> str:
    """Format a p-value: '0.03', '< 0.0001'."""
    return "< 0.0001" if value < 0.0001 else f"{value:.2g}" if value < 0.995 else "1"


def trials(numbers: Sequence[int], at_most: int = 12) -> str:
    """Format the numbers of trials: '#1', '#1 and #2', '#1, #2 and 3 more'."""
    names = [f"#{number}" for number in numbers[:at_most]]
    more = len(numbers) - len(names)
    last = f"{more} more" if more else names.pop()
    return f"{', '.join(names)} and {last}" if names else last


def interval(low: float, high: float) -> str:
    """Format a 95 % interval of accuracies: '95 % interval 0.9192 to 0.9695'."""
    return f"95 % interval {accuracy(low)} to {accuracy(high)}"
