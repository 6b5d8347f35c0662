"""Prepare a run, name it, and record where it came from: what `train`, `sweep`, `confirm` and `rerun` share."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mnistexp import machine
from mnistexp.config import compose as configs
from mnistexp.config import user_code
from mnistexp.config.option_files import ROOT
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.config.schema import Config, IdxData, RunConfig, Sgd, UserData, UserModel, format_value
from mnistexp.data import dataset as data
from mnistexp.data import mnist
from mnistexp.data.dataset import Dataset
from mnistexp.errors import ConfigError
from mnistexp.tracking.records import Kind, RunRecord, State
from mnistexp.training.results import RunResult

DOWNLOAD_KEYS = ("data.mirrors", "data.timeout")
"""Keys of data=auto that data=digits does not have."""


@dataclass(frozen=True)
class PreparedRun:
    """A composed config with its data set: everything that only the data could show to be wrong has been checked."""

    request: ParsedOverrides
    config: Config
    dataset: Dataset
    fallback: str = ""  # why data=auto became digits; empty if it did not

    @property
    def study_name(self) -> str:
        """The study's name: study.name, else the data set's name."""
        return self.config.study.name or self.dataset.name

    @property
    def experiment(self) -> str:
        """The name of MLflow's experiment: tracking.experiment, else the study's name."""
        return self.config.tracking.experiment or self.study_name


def with_local_data(request: ParsedOverrides) -> ParsedOverrides:
    """The request with `data=auto` replaced by mnist if MNIST is on this machine. Downloads nothing."""
    try:
        composed = configs.compose(request)
    except ConfigError:  # the next compose reports it with all other errors
        return request
    found = isinstance(composed.data, IdxData) and composed.data.name == "auto" and data.find(composed.data)
    return request.with_overrides(["data=mnist"]) if found else request


def prepare(request: ParsedOverrides) -> PreparedRun:
    """Compose, resolve `data=auto` (which may download), load the data, and check what depends on the data.

    Raises: ConfigError, DataError.
    """
    composed = configs.compose(request)
    if composed.executor.name == "local":  # Ray checks its own nodes when they start
        machine.require_device(composed.trainer.device)
    if not isinstance(composed.data, IdxData) or composed.data.name != "auto":
        return _load(request, "")
    name, reason = mnist.resolve_auto(composed.data)
    if name != "digits":
        return _load(request.with_overrides([f"data={name}"]), "")
    try:
        return _load(request.without_overrides(DOWNLOAD_KEYS).with_overrides(["data=digits"]), reason)
    except ConfigError as error:
        raise ConfigError(*error.faults, f"data=auto became digits: {reason}") from None


def _load(request: ParsedOverrides, fallback: str) -> PreparedRun:
    composed = configs.compose(request)
    if "model" not in composed.search:  # else a model that the search draws may need the file
        user_code.refuse_unused(composed)
    dataset = data.load(composed.data)
    check_fit(composed, dataset)
    return PreparedRun(request, composed, dataset, fallback)


def prepare_recorded(request: ParsedOverrides, config: Config, recorded: RunConfig) -> PreparedRun:
    """Prepare a recorded training with the stores, the executor and the data location of a request.

    `data.root` is the request's if it is given, else the recorded one if it exists, else the usual places.
    `trainer.device` is the request's if it is given, because the recorded device may be missing here.

    Args:
        config: what the request composes.

    Raises: DataError if the data set is not here.
    """
    nodes = {node: getattr(recorded, node) for node in RunConfig.model_fields}
    nodes["data"] = data.relocate(recorded.data, config.data.root)
    if "trainer.device" in request.fixed_keys:
        nodes["trainer"] = recorded.trainer.model_copy(update={"device": config.trainer.device})
    if config.executor.name == "local":
        machine.require_device(nodes["trainer"].device)
    return PreparedRun(ParsedOverrides(), config.model_copy(update=nodes), data.load(nodes["data"]))


def study_name(config: Config) -> str:
    """The name of the study that a config means, without loading the data: study.name, else the data set's name."""
    if config.study.name:
        return config.study.name
    if isinstance(config.data, UserData):
        return config.data.function
    if config.data.name != "auto":
        return config.data.name
    return "mnist" if data.find(config.data) else "digits"


def check_fit(config: Config, dataset: Dataset) -> None:
    """Check that the augmentation fits the images, and the batch size their number. Raises: ConfigError."""
    config.augmentation.check(dataset.image_shape)
    config.trainer.steps_per_epoch(len(dataset.train.labels))


# ----------------------------------------------------------------------------------------- provenance


@dataclass(frozen=True)
class RunContext:
    """What all runs of one command have in common in their records: code, packages, machine and data."""

    prepared: PreparedRun
    source: Mapping[str, Any]  # git commit, dirty flag, patch
    provenance: Mapping[str, Any]
    session_id: str = field(default_factory=lambda: time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))

    def record(
        self, kind: Kind, config: RunConfig, overrides: tuple[str, ...], started: float, state: State, **more: Any
    ) -> RunRecord:
        """The record of a run that ends now; `more` are other fields of RunRecord."""
        result, dataset = more.get("result"), self.prepared.dataset
        worker = {"device": result.device, "flags": result.flags} if result else {}
        return RunRecord(
            name=more.pop("name", run_name(config)),
            tags={**self.tags(), **more.pop("tags", {})},
            kind=kind,
            config=config,
            overrides=overrides,
            data_name=dataset.name,
            data_fingerprint=dataset.fingerprint,
            data_source=dataset.source,
            provenance={**self.provenance, **worker},
            started=started,
            ended=time.time(),
            state=state,
            **more,
        )

    def trial(
        self,
        number: int,
        config: RunConfig,
        overrides: tuple[str, ...],
        started: float,
        state: State,
        tags: Mapping[str, str],
        **outcome: Any,
    ) -> RunRecord:
        """The record of a study's trial that ends now; `tags` are the study's."""
        name, more = self.label(number, config, outcome.get("result"))
        tags = {**tags, "kind": "trial", "trial": str(number), **more}
        return self.record("trial", config, overrides, started, state, name=name, tags=tags, **outcome)

    def label(self, number: int, config: RunConfig, result: RunResult | None) -> tuple[str, Mapping[str, str]]:
        """The name of a study's trial, and its own tags."""
        return run_name(config, number), {}

    def tags(self) -> dict[str, str]:
        """The tags of every run: MLflow's own for the source, and the session."""
        git = self.provenance.get("git", {})
        return {
            "mlflow.source.name": "mnistexp",
            "mlflow.source.type": "LOCAL",
            "mlflow.source.git.commit": git.get("commit", ""),
            "git_dirty": str(git.get("dirty", "")).lower(),
            "session": self.session_id,
            "image_shape": json.dumps(self.prepared.dataset.image_shape),  # `predict` reads these two
            "classes": str(self.prepared.dataset.classes),
        }

    def files(self, worker_info: Mapping[str, Any] | None = None) -> dict[str, str]:
        """The artifacts that describe the code: provenance, the difference from the git commit, the user's code."""
        files = {"provenance.json": json.dumps({**self.provenance, **(worker_info or {})}, indent=1)}
        if self.source.get("patch"):
            files["source.patch"] = str(self.source["patch"])
        return files | code_file()


def create_context(prepared: PreparedRun) -> RunContext:
    """Collect the provenance of this command: git, package versions, processor and host."""
    source = machine.source_state(ROOT)
    provenance = {
        "git": {key: value for key, value in source.items() if key != "patch"},
        "versions": machine.versions(),
        "machine": {"cpu": machine.cpu_model(), "platform": platform.platform(), "host": platform.node()},
        "config_dir": str(prepared.request.config_dir or ""),
    }
    return RunContext(prepared, source, provenance)


def code_file() -> dict[str, str]:
    """The artifact with the user's code (`--code FILE`), if there is any."""
    code = user_code.code()
    return {"code.py": code.text} if code else {}


# ----------------------------------------------------------------------------------------- names


def run_name(config: RunConfig, number: int | None = None) -> str:
    """A name for MLflow's run table, such as '007 adam lr=0.0031 relu 300 b=128'. Only what is switched on is in it."""
    model, trainer, optimizer = config.model, config.trainer, config.optimizer
    parts = ["" if number is None else f"{number:03d}", optimizer_name(config), f"lr={optimizer.learning_rate:.2g}"]
    parts.append(optimizer.schedule if optimizer.schedule != "constant" else "")
    numbers = {"smooth": trainer.label_smoothing, "ema": trainer.ema_momentum}
    if isinstance(model, UserModel):
        settings = (f"{key}={format_value(value, digits=2, max_length=20)}" for key, value in model.settings.items())
        parts += [model.function, *settings]
    else:
        parts += [model.activation, "-".join(map(str, model.hidden_units)) or "no hidden layer"]
        parts.append("norm" if model.batch_normalization else "")
        numbers = {"in-drop": model.input_dropout, "drop": model.dropout, **numbers}
    parts.append(f"b={trainer.batch_size}")
    parts += [f"{name}={value:.3g}" for name, value in numbers.items() if value]
    warped, elastic = config.augmentation.warps
    return " ".join(filter(None, [*parts, "elastic" if elastic else "affine" if warped else ""]))


def optimizer_name(config: RunConfig) -> str:
    """The name of the config option: momentum and nesterov are both `sgd` in Keras."""
    optimizer = config.optimizer
    if isinstance(optimizer, Sgd) and optimizer.momentum:
        return "nesterov" if optimizer.nesterov else "momentum"
    return optimizer.name
