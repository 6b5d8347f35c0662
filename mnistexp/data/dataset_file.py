"""A whole data set as one file: how a Ray actor hands what came through the object store to its worker process."""

from __future__ import annotations

import json
from typing import IO

import numpy as np

from mnistexp.data.dataset import Dataset, Split

ROLES = ("train", "validation", "test")
FACTS = ("name", "classes", "image_shape", "scale", "fingerprint", "source")


def write(dataset: Dataset, file: IO[bytes]) -> None:
    """Write a data set to an open file, uncompressed: MNIST's 55 MB take 0.1 s."""
    arrays = {
        f"{role}_{part}": getattr(getattr(dataset, role), part) for role in ROLES for part in ("images", "labels")
    }
    facts = json.dumps({name: getattr(dataset, name) for name in FACTS})
    np.savez(file, facts=np.array(facts), **arrays)


def read(file: IO[bytes]) -> Dataset:
    """The inverse of `write`."""
    with np.load(file, allow_pickle=False) as arrays:
        facts = json.loads(str(arrays["facts"]))
        train, validation, test = (Split(arrays[f"{role}_images"], arrays[f"{role}_labels"]) for role in ROLES)
    facts["image_shape"] = tuple(facts["image_shape"])
    return Dataset(train=train, validation=validation, test=test, **facts)
