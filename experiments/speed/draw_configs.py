"""Draw the benchmark's eight configs around the tutorial's network, and write configs.json.

python experiments/speed/draw_configs.py

The draw is seeded, so it always writes the same file. Dropout is left out: Keras and mnistexp draw its masks by
different algorithms. Their difference in cost (tenfold) would hide all other differences.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HIDDEN_UNITS = ([300],)  # from the tutorial; the parameters below are those that it suggests to vary
ACTIVATIONS = ("relu", "gelu", "tanh")
BATCH_SIZES = (32, 64, 128)  # 32 is Keras's default
LEARNING_RATES = {  # as in conf/optimizer/
    "sgd": (0.01, 1.0),
    "momentum": (0.003, 0.3),
    "nesterov": (0.003, 0.3),
    "adam": (1e-4, 1e-2),
    "adamw": (1e-4, 1e-2),
    "rmsprop": (1e-4, 1e-2),
}


def draw_configs(seed: int, count: int) -> list[dict[str, object]]:
    """Return `count` configs. Each option is equally frequent, the learning rate is log-uniform."""
    rng = random.Random(seed)
    columns = [deal(rng, values, count) for values in (HIDDEN_UNITS, ACTIVATIONS, LEARNING_RATES, BATCH_SIZES)]
    configs = []
    for number, (hidden_units, activation, optimizer, batch_size) in enumerate(zip(*columns, strict=True)):
        low, high = map(math.log, LEARNING_RATES[optimizer])
        configs.append(
            {
                "seed": number,
                "hidden_units": hidden_units,
                "activation": activation,
                "optimizer": optimizer,
                "learning_rate": float(f"{math.exp(rng.uniform(low, high)):.2e}"),
                "batch_size": batch_size,
            }
        )
    return configs


def deal(rng: random.Random, values: Iterable[Any], count: int) -> list[Any]:
    """Return `count` values in random order. Their frequencies differ by at most one."""
    shuffled = rng.sample(list(values), k=len(list(values)))
    dealt = [shuffled[i % len(shuffled)] for i in range(count)]
    return rng.sample(dealt, k=count)


if __name__ == "__main__":
    drawn = ",\n".join(f"  {json.dumps(config)}" for config in draw_configs(seed=2026, count=8))
    Path(__file__).with_name("configs.json").write_text(f"[\n{drawn}\n]\n")
