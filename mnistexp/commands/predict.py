"""The command `predict`: which digits are in pictures, says the champion (or any logged run that kept its weights)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from mnistexp import pictures
from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.overrides import ParsedOverrides, refuse_hyperparameters, refuse_search
from mnistexp.config.schema import Config, DataConfig, DigitsData, IdxData, RunConfig, UserData, UserModel, format_value
from mnistexp.data import dataset as data
from mnistexp.data import mnist
from mnistexp.errors import ConfigError, DataError, StoreError
from mnistexp.pictures import Floats
from mnistexp.terminal import console
from mnistexp.tracking import registry
from mnistexp.tracking.runs import open_tracker
from mnistexp.tracking.store import resolved_uri
from mnistexp.workers import process

SURE = 0.8
"""A lower top probability is marked. Networks are too sure of themselves, so what they doubt is doubtful."""

NO_DIGITS = {"fashion_mnist": "clothes"}
"""Data sets whose images aren't made as a written digit's is."""


@dataclass(frozen=True)
class Network:
    """Who is asked."""

    title: str
    config: RunConfig
    weights: Path
    weights_hash: str
    image_shape: tuple[int, ...]
    classes: int


def predict(request: ParsedOverrides, words: CommandArgs) -> int:
    """Say which digit is in each picture. Raises: ConfigError in the end for those that can't be read."""
    if not words.names:
        raise ConfigError("predict needs pictures, such as `python -m mnistexp predict three.png`")
    refuse_search(request, "predict")
    refuse_hyperparameters(request, "predict")
    config = configs.compose(request)
    found, faults = _strokes(words.names)
    if found:
        with TemporaryDirectory(prefix="mnistexp-") as folder:
            network = _network(config, words.keys.get("run", ""), Path(folder))
            user_code.refuse_unused(network.config)
            console.note(f"asked: {network.title}")
            answers = ask(network, list(found.values()))
        for line in lines(list(found), answers):
            console.say(line)
    if faults:
        raise ConfigError(*faults)
    return 0


def _strokes(names: Iterable[str]) -> tuple[dict[str, Floats], list[str]]:
    """What is written in each picture, and what is wrong with the others."""
    found, faults = {}, []
    for name in dict.fromkeys(names):
        try:
            found[name] = pictures.strokes(pictures.read(Path(name)))
        except DataError as error:
            faults.append(f"{format_value(name)}: {error}")
    return found, faults


def ask(network: Network, strokes: Sequence[Floats]) -> list[list[float]]:
    """The network's probabilities for what is written, [pictures, classes]. Raises: DataError, StoreError."""
    shape = network.image_shape[:-1] if network.image_shape[2:] == (1,) else network.image_shape  # one channel: grey
    if len(shape) != 2 or shape[0] != shape[1]:
        text = " x ".join(map(str, shape))
        raise DataError(f"{network.title} was trained on images of {text}; pictures can be made square ones alone")
    style = pictures.style(network.config.data.name, shape[0])
    return probabilities(network, [pictures.normalised(ink, style).ravel().tolist() for ink in strokes])


def probabilities(network: Network, images: Sequence[Sequence[float]]) -> list[list[float]]:
    """A network's probabilities for images in [0, 1], [N, features] to [N, classes]. Raises: StoreError."""
    if isinstance(network.config.model, UserModel):
        user_code.require(network.config.model)
    question = {
        "code": user_code.plain(),
        "config": network.config.model_dump(mode="json"),
        "weights": str(network.weights),
        "weights_hash": network.weights_hash,
        "features": math.prod(network.image_shape),
        "classes": network.classes,
        "images": images,
    }
    answer = process.ask("mnistexp.training.inference", question)
    if "error" in answer:
        raise StoreError(f"{network.title}: {answer['error']}")
    return list(answer["probabilities"])


def lines(names: Sequence[str], probabilities: Sequence[Sequence[float]]) -> Iterable[str]:
    """One line a picture: what it is, how probable that is, and what else it could be."""
    width = max(len(format_value(name)) for name in names)
    for name, row in zip(names, probabilities, strict=True):
        ranked = sorted(range(len(row)), key=lambda digit: -row[digit])
        others = ", ".join(f"{digit} ({_percent(row[digit])})" for digit in ranked[1:3])
        unsure = "   unsure" if row[ranked[0]] < SURE else ""
        yield f"{format_value(name):<{width}}  {ranked[0]}  {_percent(row[ranked[0]]):>7}   or {others}{unsure}"


def _percent(probability: float) -> str:
    """A probability that is never rounded to certainty."""
    return f"{min(99.9, 100 * probability):.1f} %" if probability >= 0.001 else "< 0.1 %"


# ------------------------------------------------------------------------------------------------ who is asked


def _network(config: Config, run_id: str, folder: Path) -> Network:
    """The champion, or a run by its id; its weights go into `folder`. Raises: ConfigError, DataError, StoreError."""
    if config.tracking.name == "none":
        raise ConfigError("tracking=none: networks are kept in MLflow; leave it out")
    if config.data.name in NO_DIGITS:
        raise ConfigError(f"data={config.data.name}: has {NO_DIGITS[config.data.name]}, and predict reads digits")
    return _of_run(config, run_id, folder) if run_id else _champion(config, folder)


def _champion(config: Config, folder: Path) -> Network:
    """The champion for the data set; for `auto`, MNIST's if there is one."""
    uri, name = resolved_uri(config.tracking), registry.model_name(_data_name(config.data), config.data.root)
    if name == "auto":
        known = registry.Registry(uri)
        name = next((each for each in ("mnist", "digits") if known.champion(each)), "mnist")
    found = registry.champion(uri, name, folder)
    score = found.metrics.get("val_accuracy")
    title = f"the champion for {name}, version {found.version}"
    title += f" (run {found.run_id}{f', validation accuracy {score:.4f}' if score is not None else ''})"
    return Network(title, found.config, found.weights, found.weights_hash, found.image_shape, found.classes)


def _data_name(config: DataConfig) -> str:
    """What a data set's champions are registered under: that of a user's own, by the name of its function."""
    return config.function if isinstance(config, UserData) else config.name


def _of_run(config: Config, run_id: str, folder: Path) -> Network:
    """A logged run's network."""
    tracker = open_tracker(config.tracking, "", create=False, run_id=run_id)
    found = next(tracker.find({}, run_id))
    if found.config.data.name in NO_DIGITS:
        raise ConfigError(
            f"run={run_id}: was trained on {found.config.data.name}, {NO_DIGITS[found.config.data.name]}; "
            f"predict reads digits"
        )
    weights = registry.Registry(resolved_uri(config.tracking)).weights(run_id, folder)
    shape, classes = _shape(found.config.data)
    return Network(f"run {run_id} ({found.name})", found.config, weights, found.weights_hash, shape, classes)


def _shape(config: DataConfig) -> tuple[tuple[int, ...], int]:
    """The shape of a data set's images, and its number of classes."""
    match config:
        case IdxData():
            return mnist.IMAGE_SHAPE, mnist.CLASSES
        case DigitsData():
            return (8, 8), 10
        case _:  # the user's own: only the file, or the function, knows
            dataset = data.load(config)
            return dataset.image_shape, dataset.classes
