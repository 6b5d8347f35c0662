"""Time only the matrix products of one epoch of 784-300-10 at batch 100, in NumPy: the lower limit of an epoch.

python experiments/speed/matrix_products.py --threads 1

Five products per step (two forward, three backward, as the input needs no gradient) for 55,000 images, and two for
each of 50 validation minibatches. No activation, no loss, no update, no shuffling, so this is less than a training.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
from threadpoolctl import threadpool_limits

BATCH, INPUTS, HIDDEN, CLASSES = 100, 784, 300, 10


def epoch(train: np.ndarray, validation: np.ndarray, rng: np.random.Generator) -> float:
    """Return the seconds of one epoch. train: float32 [55000, 784], validation: float32 [5000, 784]."""
    first = rng.standard_normal((INPUTS, HIDDEN), np.float32)
    second = rng.standard_normal((HIDDEN, CLASSES), np.float32)
    output_gradient = rng.standard_normal((BATCH, CLASSES), np.float32)
    hidden, hidden_gradient = np.empty((2, BATCH, HIDDEN), np.float32)
    output = np.empty((BATCH, CLASSES), np.float32)
    first_gradient, second_gradient = np.empty_like(first), np.empty_like(second)

    started = time.perf_counter()
    for start in range(0, len(train), BATCH):
        images = train[start : start + BATCH]
        np.matmul(images, first, out=hidden)
        np.matmul(hidden, second, out=output)
        np.matmul(hidden.T, output_gradient, out=second_gradient)
        np.matmul(output_gradient, second.T, out=hidden_gradient)
        np.matmul(images.T, hidden_gradient, out=first_gradient)
    for start in range(0, len(validation), BATCH):
        np.matmul(validation[start : start + BATCH], first, out=hidden)
        np.matmul(hidden, second, out=output)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--epochs", type=int, default=7, help="the fastest of these is printed: a floor is what can be reached"
    )
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    images = rng.random((60_000, INPUTS), np.float32)
    with threadpool_limits(options.threads):
        seconds = [epoch(images[5000:], images[:5000], rng) for _ in range(options.epochs)]
    print(json.dumps({"epoch_seconds": min(seconds)}))


if __name__ == "__main__":
    main()
