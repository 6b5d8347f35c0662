"""The command `predict`: classify pictures of digits with the champion, or with a run that kept its weights."""

from __future__ import annotations

import json
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
from mnistexp.config.schema import Config, RunConfig, UserData, UserModel, format_value
from mnistexp.errors import ConfigError, DataError, StoreError
from mnistexp.pictures import Floats
from mnistexp.terminal import console
from mnistexp.tracking import registry
from mnistexp.tracking.runs import open_tracker
from mnistexp.tracking.store import resolved_uri
from mnistexp.workers import process

SURE = 0.8
"""A lower probability is marked as unsure. Networks are overconfident, so a low probability is a real warning."""

NO_DIGITS = {"fashion_mnist": "clothes"}
"""Data sets whose images are no handwritten digits."""


@dataclass(frozen=True)
class Network:
    """A trained network."""

    title: str
    config: RunConfig
    weights: Path  # a .weights.h5 file
    weights_hash: str
    image_shape: tuple[int, ...]
    classes: int


def predict(request: ParsedOverrides, args: CommandArgs) -> int:
    """Print which digit each picture shows. Raises: ConfigError at the end for pictures that cannot be read."""
    if not args.names:
        raise ConfigError("predict needs pictures, such as `python -m mnistexp predict three.png`")
    refuse_search(request, "predict")
    refuse_hyperparameters(request, "predict")
    config = configs.compose(request)
    strokes, faults = _read_strokes(args.names)
    if strokes:
        with TemporaryDirectory(prefix="mnistexp-") as folder:
            network = _network(config, args.keys.get("run", ""), Path(folder))
            user_code.refuse_unused(network.config)
            console.note(f"network: {network.title}")
            answers = classify(network, list(strokes.values()))
        console.say_lines(lines(list(strokes), answers))
    if faults:
        raise ConfigError(*faults)
    return 0


def _read_strokes(names: Iterable[str]) -> tuple[dict[str, Floats], list[str]]:
    """Return the strokes in each picture, and the faults of the other pictures."""
    strokes, faults = {}, []
    for name in dict.fromkeys(names):
        try:
            strokes[name] = pictures.strokes(pictures.read(Path(name)))
        except DataError as error:
            faults.append(f"{format_value(name)}: {error}")
    return strokes, faults


def _network(config: Config, run_id: str, folder: Path) -> Network:
    """Return a run's network, by default the champion's. Its weights are downloaded into `folder`.

    No data set is loaded: the run's tags have the shape of the images and the number of classes.

    Raises: ConfigError, StoreError.
    """
    if config.tracking.name == "none":
        raise ConfigError("tracking=none: networks are kept in MLflow; leave it out")
    _refuse_other_than_digits("data", config.data.name)
    version = None if run_id else _champion(config)
    run_id = version.run_id if version else run_id
    run = next(open_tracker(config.tracking, "", create=False, run_id=run_id).find({}, run_id))
    _refuse_other_than_digits(f"run={run_id}: data", run.config.data.name)
    try:
        image_shape, classes = tuple(json.loads(run.tags["image_shape"])), int(run.tags["classes"])
    except (KeyError, ValueError, TypeError):
        raise StoreError(f"run={run_id}: was not logged by this version of mnistexp; give another run=ID") from None
    title = f"run {run_id} ({run.name}, validation accuracy {run.metrics.get('val_accuracy', math.nan):.4f})"
    if version:
        title = f"the champion for {version.name}, version {version.number}, {title}"
    weights = registry.Registry(resolved_uri(config.tracking)).download_weights(run_id, folder)
    return Network(title, run.config, weights, run.weights_hash, image_shape, classes)


def _champion(config: Config) -> registry.Version:
    """Return the champion for the data set; for `auto`, the one for MNIST, else the one for digits."""
    uri = resolved_uri(config.tracking)
    if config.data.name == "auto":
        known = registry.Registry(uri)
        return known.champion("mnist") or known.champion("digits") or registry.champion(uri, "mnist")
    data_name = config.data.function if isinstance(config.data, UserData) else config.data.name
    return registry.champion(uri, registry.model_name(data_name, config.data.root))


def _refuse_other_than_digits(key: str, data_name: str) -> None:
    if data_name in NO_DIGITS:
        raise ConfigError(f"{key}={data_name}: has images of {NO_DIGITS[data_name]}, and predict reads digits")


def classify(network: Network, strokes: Sequence[Floats]) -> list[list[float]]:
    """Return the network's probabilities for strokes, [pictures, classes]. Raises: DataError, StoreError."""
    shape = network.image_shape[:-1] if network.image_shape[2:] == (1,) else network.image_shape  # one channel: grey
    if len(shape) != 2 or shape[0] != shape[1]:
        text = " x ".join(map(str, shape))
        raise DataError(f"{network.title}: was trained on images of {text}; pictures become square images only")
    style = pictures.style(network.config.data.name, shape[0])
    return probabilities(network, [pictures.normalised(ink, style).ravel().tolist() for ink in strokes])


def probabilities(network: Network, images: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return a network's probabilities for images in [0, 1], [N, features] to [N, classes]. Raises: StoreError."""
    if isinstance(network.config.model, UserModel):
        user_code.require(network.config.model)
    request = {
        "code": user_code.plain(),
        "config": network.config.model_dump(mode="json"),
        "weights": str(network.weights),
        "weights_hash": network.weights_hash,
        "features": math.prod(network.image_shape),
        "classes": network.classes,
        "images": images,
    }
    return list(process.ask("mnistexp.training.inference", request)["probabilities"])


def lines(names: Sequence[str], probabilities: Sequence[Sequence[float]]) -> Iterable[str]:
    """Yield one line per picture: the most probable digit, its probability, and the next two."""
    width = max(len(format_value(name)) for name in names)
    for name, row in zip(names, probabilities, strict=True):
        ranked = sorted(range(len(row)), key=lambda digit: -row[digit])
        others = ", ".join(f"{digit} ({_percent(row[digit])})" for digit in ranked[1:3])
        unsure = "   unsure" if row[ranked[0]] < SURE else ""
        yield f"{format_value(name):<{width}}  {ranked[0]}  {_percent(row[ranked[0]]):>7}   or {others}{unsure}"


def _percent(probability: float) -> str:
    """Format a probability; it is never rounded to 100 %."""
    return f"{min(99.9, 100 * probability):.1f} %" if probability >= 0.001 else "< 0.1 %"
