"""The file through which a Ray actor gives its worker the data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs

from mnistexp.data import dataset as data
from mnistexp.data.dataset import read, write


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_data_set_survives_its_file(tmp_path: Path, dtype: type[Any]) -> None:
    """Every array, with its type, and every fact come out of the file as they went in."""
    loaded = data.load(runs.setup().data)
    train = replace(loaded.train, images=loaded.train.images.astype(dtype))
    dataset = replace(loaded, train=train)
    with (tmp_path / "file").open("w+b") as file:
        write(dataset, file)
        file.seek(0)
        back = read(file)

    for role in ("train", "validation", "test"):
        for part in ("images", "labels"):
            before, after = (getattr(getattr(each, role), part) for each in (dataset, back))
            assert before.dtype == after.dtype
            assert np.array_equal(before, after)
    facts = ("name", "classes", "image_shape", "scale", "fingerprint", "source")
    assert [getattr(back, name) for name in facts] == [getattr(dataset, name) for name in facts]
