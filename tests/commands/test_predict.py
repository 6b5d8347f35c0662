from __future__ import annotations

import gzip
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from command_line import mistake_here, run
from PIL import Image

from mnistexp.commands import predict
from mnistexp.commands.predict import Network
from mnistexp.config import compose as configs
from mnistexp.errors import DataError, StoreError

Floats = npt.NDArray[np.float32]

ANSWER = re.compile(r"(?P<file>.+?)  (?P<digit>\d) +[<\d.]+ %   or \d \([<\d. ]+%\), \d \([<\d. ]+%\)(   unsure)?")


@dataclass(frozen=True)
class Kept:
    """A folder with a network that learnt MNIST for two epochs, and the test digits."""

    path: Path
    run_id: str
    images: Floats  # [10000, 28, 28] in [0, 1]
    labels: npt.NDArray[np.uint8]

    def ask(self, *words: str, expect: int = 0) -> tuple[dict[str, str], str]:
        """Type `predict`. Returns: file → digit, and what was said beside."""
        done = run(self.path, "predict", *words)
        assert done.returncode == expect, done.stderr
        answers = [ANSWER.fullmatch(line) for line in done.stdout.splitlines()]
        return {found["file"].strip(): found["digit"] for found in answers if found}, done.stderr

    def client(self) -> Any:
        """MLflow."""
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.path / 'mlflow.db'}")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, mnist_folder: Path) -> Kept:
    """Train it, with its weights logged; its pictures lie in the folder too."""
    folder = tmp_path_factory.mktemp("kept")
    short = ("data=mnist", f"data.root={mnist_folder}", "trainer.epochs=2", "tracking.save_weights=true")
    trained = run(folder, "train", *short, "model.hidden_units=[64]")
    assert trained.returncode == 0, trained.stderr
    pixels = gzip.decompress((mnist_folder / "t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((mnist_folder / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28).astype(np.float32) / 255
    run_id = trained.stderr.split()[-1]
    return Kept(folder, run_id, images, np.frombuffer(labels, np.uint8))


def photo(digit: Floats, draw: np.random.Generator) -> Image.Image:
    """A digit on paper under a lamp, somewhere on the sheet."""
    times = int(draw.integers(4, 15))
    large = Image.fromarray(digit).resize((28 * times, 28 * times), Image.Resampling.BICUBIC)
    margins = draw.integers(0, 150, 4)
    ink = np.pad(np.asarray(large).clip(0, 1), (margins[:2], margins[2:]))
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    grey = 0.8 + 0.1 * x - 0.08 * y - 0.55 * ink + draw.normal(0, 0.02, ink.shape)
    return Image.fromarray((255 * grey.clip(0, 1)).astype(np.uint8))


def network(kept: Kept, folder: Path, **other: Any) -> Network:
    """The kept network as `predict` finds it."""
    config = configs.compose(configs.parse_request([f"tracking.uri=sqlite:///{kept.path / 'mlflow.db'}"]))
    return replace(predict._network(config, kept.run_id, folder), **{"title": "it", **other})


def test_photos_are_read_as_well_as_the_digits_themselves(kept: Kept) -> None:
    """A hundred test digits as photos: next to all are taken for what the originals are taken for."""
    draw, files = np.random.default_rng(0), {}
    for number in range(100):
        Image.fromarray((255 * kept.images[number]).astype(np.uint8)).save(kept.path / f"{number}.png")
        photo(kept.images[number], draw).save(kept.path / f"{number}.jpg", quality=90)
        files[number] = (f"{number}.png", f"{number}.jpg")

    answers, said = kept.ask(f"run={kept.run_id}", *(file for pair in files.values() for file in pair))

    agree = [answers[original] == answers[taken] for original, taken in files.values()]
    right = [answers[f"{number}.png"] == str(kept.labels[number]) for number in files]
    assert said.startswith(f"network: run {kept.run_id} (momentum lr=0.05 relu 64 b=128, ")
    assert np.mean(agree) >= 0.93
    assert np.mean(right) >= 0.93


def test_it_is_the_network_that_was_trained(kept: Kept, tmp_path: Path) -> None:
    """Asked about MNIST's own test images, it is right about the share that its run's test accuracy says."""
    images = kept.images[:2000]

    found = np.array(predict.probabilities(network(kept, tmp_path), images.reshape(2000, -1).tolist()))
    accuracy = kept.client().get_run(kept.run_id).data.metrics["test_accuracy"]

    standard_error = np.sqrt(accuracy * (1 - accuracy) / 2000)
    assert found.shape == (2000, 10)
    assert found.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert abs((found.argmax(axis=1) == kept.labels[:2000]).mean() - accuracy) < 4 * standard_error


def test_good_pictures_are_answered_beside_bad_ones(kept: Kept) -> None:
    """The answers on stdout, each bad file on stderr, exit code 2."""
    Image.fromarray((255 * kept.images[1]).astype(np.uint8)).save(kept.path / "two.png")
    Image.new("L", (90, 90), 255).save(kept.path / "blank.png")

    answers, said = kept.ask(f"run={kept.run_id}", "two.png", "blank.png", "none.png", expect=2)

    assert answers == {"two.png": "2"}
    assert said.splitlines()[-3:] == [
        "mnistexp: 2 faults:",
        "  blank.png: is blank: nothing in it stands out from its background",
        "  none.png: there is no such file",
    ]


def test_weights_that_are_not_the_runs_are_not_asked(kept: Kept, tmp_path: Path) -> None:
    """Their hash is in the record; a file of another network's isn't read into this one either."""
    image = [kept.images[0]]
    changed, wider = network(kept, tmp_path, weights_hash="0" * 64), network(kept, tmp_path)
    model = wider.config.model.model_copy(update={"hidden_units": (65,)})
    wider = network(kept, tmp_path, config=wider.config.model_copy(update={"model": model}))

    with pytest.raises(StoreError, match="another hash"):
        predict.classify(changed, image)
    with pytest.raises(StoreError, match=r"does not have the weights .*784, 65"):
        predict.classify(wider, image)


def test_grey_images_may_have_a_channel(kept: Kept, tmp_path: Path) -> None:
    """Keras's usual shape, (28, 28, 1), is that of a square picture."""
    plain, channel = (network(kept, tmp_path, image_shape=shape) for shape in ((28, 28), (28, 28, 1)))

    assert predict.classify(channel, [kept.images[0]]) == predict.classify(plain, [kept.images[0]])


def test_images_that_are_not_square_are_told(kept: Kept, tmp_path: Path) -> None:
    """A network on the user's own data may want any shape; a picture has but one meaning as a square."""
    with pytest.raises(DataError, match="images of 8 x 98"):
        predict.classify(network(kept, tmp_path, image_shape=(8, 98)), [kept.images[0]])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "predict needs pictures, such as `python -m mnistexp predict three.png`"),
        (("none.png",), "none.png: there is no such file"),
        (
            ("here.png", "optimizer.learning_rate=1"),
            "optimizer.learning_rate: predict takes a recorded config as it is; leave it out, or use the command train",
        ),
        (("here.png", "tracking=none"), "tracking=none: networks are kept in MLflow; leave it out"),
        (("here.png", "data=fashion_mnist"), "data=fashion_mnist: has images of clothes, and predict reads digits"),
    ],
)
def test_a_mistake_gets_its_sentence(words: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    """Said before anything starts, and nothing is made."""
    picture = Image.new("L", (90, 90), 255)
    picture.paste(0, (40, 20, 50, 70))
    picture.save(tmp_path / "here.png")

    assert mistake_here(tmp_path, "predict", *words) == [sentence]
    assert [path.name for path in tmp_path.iterdir()] == ["here.png"]


def test_doubt_is_marked_and_no_probability_is_rounded_to_certainty() -> None:
    """99.999 % is printed as 99.9 %, and less than 80 % as unsure."""
    sure, unsure = predict.lines(["a.png", "long name.png"], [[0.00001, 0.99999, 0.0], [0.5, 0.2, 0.3]])

    assert ANSWER.fullmatch(sure)
    assert "99.9 %" in sure
    assert "unsure" not in sure
    assert unsure.endswith("unsure")
