"""The arms of this experiment: the overrides of each sweep and its style in the figure.

The six arms of MAIN answer the question. Those of EXTRA run only on request (run.py --arms).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#AA4499"  # as in mnistexp/report/plot_style.py


@dataclass(frozen=True)
class Arm:
    """One way to search."""

    title: str
    overrides: tuple[str, ...]
    color: str
    line: Any  # Matplotlib line style


def _arm(sampler: str, pruner: str, title: str, color: str, line: str, *more: str) -> Arm:
    return Arm(title, (f"study/sampler={sampler}", f"study/pruner={pruner}", *more), color, line)


MAIN = {
    "tpe.median": _arm("tpe", "median", "TPE, median pruner", BLUE, "-"),
    "tpe.none": _arm("tpe", "none", "TPE, no pruning", BLUE, "--"),
    "random.median": _arm("random", "median", "random, median pruner", ORANGE, "-"),
    "random.none": _arm("random", "none", "random, no pruning", ORANGE, "--"),
    "gp.median": _arm("gp", "median", "GP, median pruner", GREEN, "-"),
    "gp.none": _arm("gp", "none", "GP, no pruning", GREEN, "--"),
}
EARLY = ("study.sampler.startup_trials=5", "study.pruner.warmup_epochs=1")
EXTRA = {
    "tpe.hyperband": _arm("tpe", "hyperband", "TPE, hyperband", PURPLE, "-"),
    "tpe.median.early": _arm("tpe", "median", "TPE and median pruner, early", PURPLE, "--", *EARLY),
}
ARMS = MAIN | EXTRA
DEFAULT = "tpe.median"  # the defaults of `sweep`
