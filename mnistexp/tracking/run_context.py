"""One config from start to logged record: what `train`, `sweep` and `rerun` have in common."""

from __future__ import annotations

import json
import platform
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mnistexp import machine
from mnistexp.config import compose as config_module
from mnistexp.config import user_code
from mnistexp.config.option_files import ROOT
from mnistexp.config.overrides import ParsedOverrides
from mnistexp.config.schema import Config, IdxData, RunConfig, Sgd, UserData, UserModel, format_value
from mnistexp.data import dataset as data
from mnistexp.data import mnist
from mnistexp.data.dataset import Dataset
from mnistexp.errors import ConfigError, StoreError
from mnistexp.tracking.records import Kind, LoggedRun, RunRecord, State
from mnistexp.tracking.runs import Tracker
from mnistexp.training.results import RunResult

ENVIRONMENT = ("TF_ENABLE_ONEDNN_OPTS", "XLA_FLAGS")
"""What a rerun takes over from a record into its workers' environment; anything else there could run code."""

DOWNLOAD_KEYS = ("data.mirrors", "data.timeout")
"""What data=auto has, and digits, which it may become, has not."""


@dataclass(frozen=True)
class PreparedRun:
    """A request whose data set is here: nothing is left that only the data could refuse."""

    request: ParsedOverrides
    config: Config
    dataset: Dataset
    fallback: str = ""  # why `auto` became digits; empty where it didn't

    @property
    def study_name(self) -> str:
        """The study's name: given, or else the data set's."""
        return self.config.study.name or self.dataset.name

    @property
    def experiment(self) -> str:
        """MLflow's experiment: given, or else named after the study."""
        return self.config.tracking.experiment or self.study_name


def with_local_data(request: ParsedOverrides) -> ParsedOverrides:
    """The request with `data=auto` resolved, if MNIST is on this machine; unchanged otherwise. Never downloads."""
    try:
        composed = config_module.compose(request)
    except ConfigError:  # whoever composes it next tells that fault with all others
        return request
    here = isinstance(composed.data, IdxData) and composed.data.name == "auto" and data.find(composed.data)
    return request.with_overrides(["data=mnist"]) if here else request


def prepare(request: ParsedOverrides) -> PreparedRun:
    """Compose, resolve `data=auto` (which may download), load the data, and check what depends on it.

    Raises: ConfigError, DataError.
    """
    composed = config_module.compose(request)
    if composed.executor.name == "local":  # a Ray node is asked when it is joined
        machine.require_device(composed.trainer.device)
    if not isinstance(composed.data, IdxData) or composed.data.name != "auto":
        return _loaded(request, "")
    name, reason = mnist.resolve_auto(composed.data)
    if name != "digits":
        return _loaded(request.with_overrides([f"data={name}"]), "")
    try:
        return _loaded(request.without_overrides(DOWNLOAD_KEYS).with_overrides(["data=digits"]), reason)
    except ConfigError as error:  # of digits, which nobody asked for
        raise ConfigError(*error.faults, f"data=auto became digits: {reason}") from None


def _loaded(request: ParsedOverrides, fallback: str) -> PreparedRun:
    composed = config_module.compose(request)
    if "model" not in composed.search:  # else one of those that are drawn may need it
        user_code.refuse_unused(composed)
    dataset = data.load(composed.data)
    check_fit(composed, dataset)
    return PreparedRun(request, composed, dataset, fallback)


def prepare_recorded(config: Config, recorded: RunConfig) -> PreparedRun:
    """A recorded training as it would run here: its own settings, today's stores and executor.

    Raises: DataError if its data set is not here.
    """
    if config.executor.name == "local":
        machine.require_device(recorded.trainer.device)
    nodes = {node: getattr(recorded, node) for node in RunConfig.model_fields}
    return PreparedRun(ParsedOverrides(), config.model_copy(update=nodes), data.load(recorded.data))


def study_name(config: Config) -> str:
    """The name of the study that this config means: given, or else the data set's."""
    if config.study.name:
        return config.study.name
    if isinstance(config.data, UserData):
        return config.data.function
    if config.data.name != "auto":
        return config.data.name
    return "mnist" if data.find(config.data) else "digits"


def check_fit(config: Config, dataset: Dataset) -> None:
    """Raises: ConfigError if a minibatch needs more images than there are, or what are no images are to be warped."""
    config.augmentation.check(dataset.image_shape)
    config.trainer.steps_per_epoch(len(dataset.train.labels))


# -------------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class RunContext:
    """What all runs of one command share in their records."""

    prepared: PreparedRun
    source: Mapping[str, Any]  # git commit, dirty flag, patch
    provenance: Mapping[str, Any]
    stamp: str = field(default_factory=lambda: time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()))

    def record(
        self,
        kind: Kind,
        config: RunConfig,
        overrides: tuple[str, ...],
        started: float,
        state: State,
        **more: Any,
    ) -> RunRecord:
        """The record of a run that ends now."""
        result: RunResult | None = more.get("result")
        device = {"device": result.device, "flags": result.flags} if result else {}
        if result is not None and "epochs" not in more:
            more["epochs"] = result.fit.epochs
        return RunRecord(
            name=more.pop("name", run_name(config)),
            tags={**self.tags(), **more.pop("tags", {})},
            kind=kind,
            config=config,
            overrides=overrides,
            data_name=self.prepared.dataset.name,
            data_fingerprint=self.prepared.dataset.fingerprint,
            data_source=self.prepared.dataset.source,
            provenance={**self.provenance, **device},
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
        """The record of a study's trial that ends now; `tags` say which study's."""
        whose = {**tags, "kind": "trial", "trial": str(number), **self.trial_tags(config)}
        name = self.trial_name(number, config)
        return self.record("trial", config, overrides, started, state, name=name, tags=whose, **outcome)

    def trial_name(self, number: int, config: RunConfig) -> str:
        """What a trial's run is called."""
        return run_name(config, number)

    def trial_tags(self, config: RunConfig) -> Mapping[str, str]:
        """What else a trial's run says of itself."""
        return {}

    def tags(self) -> dict[str, str]:
        """The provenance that a person looks for first."""
        git = self.provenance.get("git", {})
        found = {"mlflow.source.git.commit": git.get("commit", ""), "git_dirty": str(git.get("dirty", "")).lower()}
        return {"mlflow.source.name": "mnistexp", "mlflow.source.type": "LOCAL", "session": self.stamp, **found}

    def files(self, facts: Mapping[str, Any] | None = None) -> dict[str, str]:
        """What a rerun in years may need: the code's difference from its commit, and the whole provenance.

        Args:
            facts: what a worker said of its device and flags.
        """
        files = {"provenance.json": json.dumps({**self.provenance, **(facts or {})}, indent=1)}
        if self.source.get("patch"):
            files["source.patch"] = str(self.source["patch"])
        return files | code_file()


def code_file() -> dict[str, str]:
    """The user's file of functions, as a record keeps it: for a person to read, and to give with --code again."""
    code = user_code.code()
    return {"code.py": code.text} if code else {}


def session(prepared: PreparedRun) -> RunContext:
    """Look at code, packages and machine, once a command."""
    source = machine.source_state(ROOT)
    provenance = {
        "git": {key: value for key, value in source.items() if key != "patch"},
        "versions": machine.versions(),
        "machine": {"cpu": machine.cpu_model(), "platform": platform.platform(), "host": platform.node()},
        "config_dir": str(prepared.request.config_dir or ""),
    }
    return RunContext(prepared, source, provenance)


def run_name(config: RunConfig, number: int | None = None) -> str:
    """A name that reads well in a table: '007 adam lr=0.0031 relu 300 b=128'."""
    model = config.model
    parts = ["" if number is None else f"{number:03d}", optimizer_name(config)]
    parts += [f"lr={config.optimizer.learning_rate:.2g}"]
    if config.optimizer.schedule != "constant":
        parts += [config.optimizer.schedule]
    if isinstance(model, UserModel):
        parts += [model.function, *(f"{key}={_brief(value)}" for key, value in model.settings.items())]
    else:
        parts += [model.activation, "-".join(map(str, model.hidden_units)) or "no hidden layer"]
        parts += ["norm"] if model.batch_normalization else []
    parts += [f"b={config.trainer.batch_size}"]
    return " ".join(filter(None, [*parts, *_regularisers(config)]))


def _regularisers(config: RunConfig) -> Iterator[str]:
    """What keeps a training from learning its images by heart, where there is any."""
    model = config.model
    drops = () if isinstance(model, UserModel) else (("in-drop", model.input_dropout), ("drop", model.dropout))
    for name, value in (*drops, ("smooth", config.trainer.label_smoothing), ("ema", config.trainer.ema_momentum)):
        if value:
            yield f"{name}={value:.3g}" if name == "ema" else f"{name}={value:.2g}"
    warped, bent = config.augmentation.warps
    if warped:
        yield "elastic" if bent else "affine"


def _brief(value: object) -> str:
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    return f"{value:.2g}" if isinstance(value, float) else format_value(value, max_length=20)


def optimizer_name(config: RunConfig) -> str:
    """The option's name where it says more than Keras's: momentum and nesterov are both `sgd` there."""
    optimizer = config.optimizer
    if isinstance(optimizer, Sgd) and optimizer.momentum:
        return "nesterov" if optimizer.nesterov else "momentum"
    return optimizer.name


# --------------------------------------------------------------------------------------------- rerun


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was."""

    what: str
    before: str
    now: str


@dataclass(frozen=True)
class Comparison:
    """A rerun beside the run that it repeats."""

    outcomes: tuple[Difference, ...]  # scores and weights, alike or not
    causes: tuple[Difference, ...]  # what differs of data, versions, device, flags, code

    @property
    def identical(self) -> bool:
        """Whether scores and weights came out bit-identical."""
        return all(outcome.before == outcome.now for outcome in self.outcomes)


def best_logged(tracker: Tracker, study: str) -> LoggedRun | None:
    """A study's best run by our definition: complete, highest validation accuracy, then the lowest trial.

    Of several studies with this name (a database that was deleted), the newest that has a run.
    """
    logged = list(tracker.find({"study": study, "kind": "trial"}))
    runs = [run for run in logged if run.state == "COMPLETE" and run.tags["study_id"] == logged[-1].tags["study_id"]]
    return min(runs, key=lambda run: (-run.metrics["val_accuracy"], int(run.tags["trial"])), default=None)


def find_logged(tracker: Tracker, study: str, run_id: str) -> LoggedRun:
    """A run by its id, or else a study's best. Raises: StoreError if there is none, or it has no scores."""
    found = next(tracker.find({}, run_id), None) if run_id else best_logged(tracker, study)
    if found is None:
        raise StoreError(
            f"study.name={study}: MLflow has no complete trial of it here; run `python -m mnistexp sweep`, "
            f"or give run=ID (`python -m mnistexp ui` shows the ids)"
        )
    if "val_accuracy" not in found.metrics:
        how = "failed" if found.state == "FAILED" else "was interrupted"
        raise StoreError(f"run={found.run_id}: {how}, so there is nothing to compare with; give another run=ID")
    return found


def compare(before: LoggedRun, now: RunRecord) -> Comparison:
    """Compare two runs of one config, field by field; floats by their exact value."""
    result = now.result
    assert result is not None
    outcomes = (
        Difference("validation accuracy", repr(before.metrics["val_accuracy"]), repr(result.fit.best.val_accuracy)),
        Difference("validation loss", repr(before.metrics["val_loss"]), repr(result.fit.best.val_loss)),
        *_test_outcomes(before, result),
        Difference("weight hash", before.weights_hash, result.weights_hash),
    )
    then, today = _facts(before.provenance), _facts(now.provenance)
    then["data"], today["data"] = before.data_fingerprint, now.data_fingerprint
    keys = sorted(then.keys() | today.keys())
    causes = [Difference(key, then.get(key, "not recorded"), today.get(key, "gone")) for key in keys]
    return Comparison(outcomes, tuple(cause for cause in causes if cause.before != cause.now))


def _test_outcomes(before: LoggedRun, result: RunResult) -> Iterator[Difference]:
    """The test scores, if the run had looked at them."""
    if "test_accuracy" in before.metrics:
        yield Difference("test accuracy", repr(before.metrics["test_accuracy"]), repr(result.test_accuracy))
        yield Difference("test loss", repr(before.metrics["test_loss"]), repr(result.test_loss))


def _facts(provenance: Mapping[str, Any]) -> dict[str, str]:
    """What of a provenance can change bits, flat. Names of hosts and folders can't."""
    relevant = {key: provenance.get(key, {}) for key in ("git", "versions", "flags", "device")}
    facts = {key: str(value) for key, value in config_module.flatten(relevant).items() if value != {}}
    # The worker's processor is among its flags; the driver's stands for it where no worker said so.
    facts["cpu"] = facts.pop("flags.cpu", str(provenance.get("machine", {}).get("cpu", "")))
    return facts


def recorded_environment(run: LoggedRun) -> dict[str, str]:
    """The environment variables that a run's bits depend on: to be set before TensorFlow is imported.

    Raises: StoreError if they would have a library read or write a file.
    """
    flags = run.provenance.get("flags", {})
    found = {key: str(flags[key]) for key in ENVIRONMENT if key in flags}
    if re.search(r"[/\\]|dump|dir|path|file", found.get("XLA_FLAGS", "")):  # --xla_dump_to=… writes anywhere
        raise StoreError(
            f"run={run.run_id}: was recorded with XLA_FLAGS={found['XLA_FLAGS']}, which names a file; a record may be "
            f"anybody's, so that isn't taken over; use `python -m mnistexp train` with its config instead"
        )
    return found


def here(config: RunConfig, root: str | None, device: Literal["auto", "cpu", "gpu"] | None) -> RunConfig:
    """A recorded config, reading its data from where they are today.

    Args:
        root: the user's data.root, if given. Else the recorded one if it still exists; else the usual places.
        device: the user's trainer.device, if given: the recorded one may be missing here.
    """
    trainer = config.trainer.model_copy(update={"device": device} if device else {})
    return config.model_copy(update={"data": data.relocate(config.data, root), "trainer": trainer})
