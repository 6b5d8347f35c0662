from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import mistake_here
from PIL import Image
from runs import run_config

from mnistexp.commands import predict
from mnistexp.errors import DataError, StoreError
from mnistexp.tracking.records import LoggedRun

ANSWER = re.compile(r".+?  \d +[<\d.]+ %   or \d \([<\d. ]+%\), \d \([<\d. ]+%\)(   unsure)?")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3 on h5py
def test_weights_that_are_not_the_runs_are_not_used(tmp_path: Path) -> None:
    """Their hash is in the record; a file of another network's is not read into this one either."""
    from mnistexp.training.inference import TrainedNetwork, load_network
    from mnistexp.training.model import build_model
    from mnistexp.training.trainer import all_weights, weights_hash

    path, config = tmp_path / "1.weights.h5", run_config(model={"hidden_units": [8]})
    model = build_model(config.model, 64, 10)
    model.save_weights(path)
    network = TrainedNetwork(
        config=config, weights=str(path), weights_hash=weights_hash(all_weights(model)), features=64, classes=10
    )
    wider = config.model_copy(update={"model": config.model.model_copy(update={"hidden_units": (9,)})})

    assert weights_hash(all_weights(load_network(network))) == network.weights_hash
    with pytest.raises(StoreError, match="another hash"):
        load_network(network.model_copy(update={"weights_hash": "0" * 64}))
    with pytest.raises(StoreError, match=r"64, 9"):
        load_network(network.model_copy(update={"config": wider}))


def shaped(*shape: int) -> LoggedRun:
    """A run on images of this shape."""
    return LoggedRun.model_construct(run_id="7", config=run_config(), tags={"image_shape": json.dumps(shape)})


def test_pictures_become_square_grey_images() -> None:
    """Keras's usual shape, (28, 28, 1), is that of a square picture; other shapes are refused."""
    strokes = np.zeros((50, 50), np.float32)
    strokes[10:40, 20:30] = 1

    plain, channel = (predict.to_image(shaped(*shape), strokes) for shape in ((28, 28), (28, 28, 1)))

    assert plain.shape == (28, 28)
    assert np.array_equal(plain, channel)
    for shape in ((8, 98), (28, 28, 3)):
        with pytest.raises(DataError, match="run=7"):
            predict.to_image(shaped(*shape), strokes)


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ((), "predict needs pictures"),
        (("none.png",), "none.png: "),
        (("here.png", "optimizer.learning_rate=1"), "optimizer.learning_rate: predict"),
        (("here.png", "tracking=none"), "tracking=none: "),
    ],
)
def test_a_mistake_gets_its_sentence(words: tuple[str, ...], key: str, tmp_path: Path) -> None:
    """Said before anything starts, and nothing is made."""
    picture = Image.new("L", (90, 90), 255)
    picture.paste(0, (40, 20, 50, 70))
    picture.save(tmp_path / "here.png")

    (sentence,) = mistake_here(tmp_path, "predict", *words)

    assert sentence.startswith(key)
    assert [path.name for path in tmp_path.iterdir()] == ["here.png"]


def test_doubt_is_marked_and_no_probability_is_rounded_to_certainty() -> None:
    """99.999 % is printed as 99.9 %, and less than 80 % as unsure."""
    sure, unsure = predict.lines(["a.png", "long name.png"], [[0.00001, 0.99999, 0.0], [0.5, 0.2, 0.3]])

    assert ANSWER.fullmatch(sure)
    assert "99.9 %" in sure
    assert "unsure" not in sure
    assert unsure.endswith("unsure")
