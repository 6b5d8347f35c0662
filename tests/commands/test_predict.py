from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from command_line import mistake_here, run
from PIL import Image
from runs import run_config

from mnistexp.commands import predict
from mnistexp.errors import DataError, StoreError
from mnistexp.tracking.records import LoggedRun

Floats = npt.NDArray[np.float32]

ANSWER = re.compile(r"(?P<file>.+?)  (?P<digit>\d) +[<\d.]+ %   or \d \([<\d. ]+%\), \d \([<\d. ]+%\)(   unsure)?")


def photo(digit: Floats, draw: np.random.Generator) -> Image.Image:
    """A digit on paper under a lamp, somewhere on the sheet."""
    times = int(draw.integers(4, 15))
    large = Image.fromarray(digit).resize((28 * times, 28 * times), Image.Resampling.BICUBIC)
    margins = draw.integers(0, 150, 4)
    ink = np.pad(np.asarray(large).clip(0, 1), (margins[:2], margins[2:]))
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    grey = 0.8 + 0.1 * x - 0.08 * y - 0.55 * ink + draw.normal(0, 0.02, ink.shape)
    return Image.fromarray((255 * grey.clip(0, 1)).astype(np.uint8))


def test_photos_are_read_as_well_as_the_digits_themselves(tmp_path: Path, mnist_folder: Path) -> None:
    """A hundred test digits as photos: nearly all get the answer of the originals; bad files are reported beside."""
    short = ("data=mnist", f"data.root={mnist_folder}", "trainer.epochs=2", "tracking.save_weights=true")
    trained = run(tmp_path, "train", *short, "model.hidden_units=[64]")
    assert trained.returncode == 0, trained.stderr
    run_id = trained.stderr.split()[-1]
    pixels = gzip.decompress((mnist_folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((mnist_folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    draw = np.random.default_rng(0)
    for number, digit in enumerate(np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28)[:100]):
        Image.fromarray(digit).save(tmp_path / f"{number}.png")
        photo(digit.astype(np.float32) / 255, draw).save(tmp_path / f"{number}.jpg", quality=90)
    Image.new("L", (90, 90), 255).save(tmp_path / "blank.png")

    files = [f"{number}.{kind}" for number in range(100) for kind in ("png", "jpg")]
    done = run(tmp_path, "predict", f"run={run_id}", *files, "blank.png", "none.png")

    answers = [ANSWER.fullmatch(line) for line in done.stdout.splitlines()]
    digits = {found["file"].strip(): found["digit"] for found in answers if found}
    assert done.returncode == 2
    assert run_id in done.stderr.splitlines()[0]
    assert [line.split(":")[0] for line in done.stderr.splitlines()[-2:]] == ["  blank.png", "  none.png"]
    assert np.mean([digits[f"{number}.png"] == digits[f"{number}.jpg"] for number in range(100)]) >= 0.93
    assert np.mean([digits[f"{number}.png"] == str(labels[number]) for number in range(100)]) >= 0.93


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
