"""The command `predict`: classify pictures of digits with the champion, or with a run that kept its weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from mnistexp import pictures
from mnistexp.commands.args import CommandArgs
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.overrides import ParsedOverrides, refuse_hyperparameters, refuse_search
from mnistexp.config.schema import Config, UserData, format_value
from mnistexp.errors import ConfigError, DataError, StoreError
from mnistexp.pictures import Floats
from mnistexp.storage.urls import redact
from mnistexp.terminal import console
from mnistexp.tracking.records import LoggedRun
from mnistexp.tracking.registry import Network, Registry, Version, image_shape, model_name
from mnistexp.tracking.runs import open_tracker
from mnistexp.workers import process

SURE = 0.8
"""A lower probability is marked as unsure. Networks are overconfident, so a low probability is a real warning."""

NO_DIGITS = ("fashion_mnist",)
"""Data sets whose images are no handwritten digits."""


def predict(request: ParsedOverrides, args: CommandArgs) -> int:
    """Print which digit each picture shows. Raises: ConfigError at the end for pictures that cannot be read."""
    if not args.names:
        raise ConfigError("predict needs pictures, such as `python -m mnistexp predict three.png`")
    refuse_search(request, "predict")
    refuse_hyperparameters(request, "predict")
    config = configs.compose(request)
    strokes: dict[str, Floats] = {}
    faults = []
    for name in dict.fromkeys(args.names):
        try:
            strokes[name] = pictures.strokes(pictures.read(Path(name)))
        except DataError as error:
            faults.append(f"{format_value(name)}: {error}")
    if strokes:
        with TemporaryDirectory(prefix="mnistexp-") as folder:
            run, network = find_network(config, args.keys.get("run", ""), Path(folder))
            images = [to_image(run, ink).ravel().tolist() for ink in strokes.values()]
            answers = probabilities(network, images)
        console.say_lines(lines(list(strokes), answers))
    if faults:
        raise ConfigError(*faults)
    return 0


def find_network(config: Config, run_id: str, folder: Path) -> tuple[LoggedRun, Network]:
    """Return a run, by default the champion's, and its network, with the weights in a folder.

    Raises: ConfigError, StoreError.
    """
    if config.tracking.name == "none":
        raise ConfigError("tracking=none: networks are kept in MLflow; leave it out")
    registry = Registry(config.tracking)
    title = ""
    if not run_id:
        version = _champion(registry, config)
        run_id, title = version.run_id, f"the champion for {version.name}, version {version.number}, "
    run = next(open_tracker(config.tracking, "", create=False, run_id=run_id).find({}, run_id))
    if run.config.data.name in NO_DIGITS:
        raise ConfigError(f"run={run_id}: data={run.config.data.name} has no digits, which predict reads")
    network = registry.network(run, folder)
    user_code.refuse_unused(run.config)
    score = run.metrics.get("val_accuracy", math.nan)
    console.note(f"network: {title}run {run_id} ({run.name}, validation accuracy {score:.4f})")
    return run, network


def _champion(registry: Registry, config: Config) -> Version:
    """Return the champion for the data set; for `auto`, the one for MNIST, else the one for digits."""
    data = config.data
    data_name = data.function if isinstance(data, UserData) else data.name
    names = ("mnist", "digits") if data_name == "auto" else (model_name(data_name, data.root),)
    found = next(filter(None, map(registry.champion, names)), None)
    if found is None:
        raise StoreError(
            f"there is no champion for {names[0]} in {redact(registry.uri)} yet; run `python -m mnistexp sweep` and "
            f"then `python -m mnistexp confirm` first"
        )
    return found


def to_image(run: LoggedRun, strokes: Floats) -> Floats:
    """Turn strokes into an image like those that a run was trained on. Raises: DataError."""
    shape = image_shape(run)
    if shape[0] != shape[1] or shape[2:] not in ((), (1,)):
        text = " x ".join(map(str, shape))
        raise DataError(f"run={run.run_id}: was trained on images of {text}; pictures become square grey images only")
    return pictures.normalised(strokes, pictures.style(run.config.data.name, shape[0]))


def probabilities(network: Network, images: Sequence[Sequence[float]]) -> list[list[float]]:
    """Return a network's probabilities for images in [0, 1], [N, features] to [N, classes]. Raises: StoreError."""
    return list(process.ask("mnistexp.training.inference", {**network, "images": images})["probabilities"])


def lines(names: Sequence[str], probabilities: Sequence[Sequence[float]]) -> Iterable[str]:
    """Yield one line per picture: the most probable digit, its probability, and the next two."""
    width = max(len(format_value(name)) for name in names)
    for name, row in zip(names, probabilities, strict=True):
        first, *others = sorted(range(len(row)), key=lambda digit: -row[digit])[:3]
        rest = ", ".join(f"{digit} ({_percent(row[digit])})" for digit in others)
        unsure = "   unsure" if row[first] < SURE else ""
        yield f"{format_value(name):<{width}}  {first}  {_percent(row[first]):>7}   or {rest}{unsure}"


def _percent(probability: float) -> str:
    """Format a probability; it is never rounded to 100 %."""
    return f"{min(99.9, 100 * probability):.1f} %" if probability >= 0.001 else "< 0.1 %"
