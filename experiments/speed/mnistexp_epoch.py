"""Time mnistexp's epochs of 784-300-10 at batch 100, for comparison with matrix_products.py.

python experiments/speed/mnistexp_epoch.py --data FOLDER --threads 1

Uses one worker, started as in a sweep. The worker reports the seconds of each epoch: shuffling, 550 steps with
momentum, and validation on 5,000 images. The first epoch compiles and is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from mnistexp.config.compose import compose, parse_request
from mnistexp.config.schema import RunConfig
from mnistexp.training.messages import Setup
from mnistexp.workers.pool import EpochEnded, Failed, Finished, Lost
from mnistexp.workers.process import LocalPool


def run_config(folder: Path, threads: int, epochs: int) -> RunConfig:
    overrides = [
        "data=mnist",
        f"data.root='{folder.resolve()}'",
        "model.hidden_units=[300]",
        "optimizer=momentum",
        "trainer.batch_size=100",
        "trainer.device=cpu",
        f"trainer.threads={threads}",
        f"trainer.epochs={epochs}",
    ]
    config = compose(parse_request(overrides))
    return RunConfig(**{name: getattr(config, name) for name in RunConfig.model_fields})


def epoch_seconds(config: RunConfig) -> list[float]:
    """Return the seconds of each epoch of one training."""
    threads = config.trainer.threads
    executor = LocalPool(Setup(data=config.data, threads=threads, device="cpu"), workers=1, at_most=1)
    try:
        while not executor.idle():
            executor.next_event(timeout=60)
        executor.submit(0, config)
        seconds = []
        while True:
            match executor.next_event(timeout=60):
                case EpochEnded(job, scores):
                    seconds.append(scores.seconds)
                    executor.answer(job, go=True)
                case Finished():
                    return seconds
                case Failed(_, reason) | Lost(_, reason):
                    raise SystemExit(reason)
    finally:
        executor.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's four .gz files")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8, help="the median of all but the first is printed")
    options = parser.parse_args()
    seconds = epoch_seconds(run_config(options.data, options.threads, options.epochs))
    print(json.dumps({"epoch_seconds": statistics.median(seconds[1:]), "first_epoch_seconds": seconds[0]}))


if __name__ == "__main__":
    main()
