"""The config's types: every setting with its type, range, unit and meaning. Defaults live in conf/ alone.

pydantic checks them, because it reports *all* faults at once, with their places; OmegaConf's own
structured configs stop at the first and know no ranges.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from mnistexp.errors import ConfigError, StoreError

NAME_PATTERN = r"^[A-Za-z0-9._ -]{1,100}$"


def _no_folder(name: str) -> str:
    if not name.strip(". "):
        raise ValueError(f"the name {name!r} has dots and spaces alone; give one with a letter or a digit")
    return name


Name = Annotated[str, Field(pattern=NAME_PATTERN), AfterValidator(_no_folder)]
"""Names of studies and experiments: no slash, newline or `..` games, since they end up in paths and URLs."""

FILE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
MIRROR_PATTERN = r"^https?://[^/@\s]+(/\S*)?$"
Mirror = Annotated[str, Field(pattern=MIRROR_PATTERN)]
"""A base address without user and password: a run records its mirrors."""

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """The base of every node: frozen, no unknown keys, no silent conversions, no inf or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


# ---------------------------------------------------------------------------------------------- data


class _Data(Settings):
    name: str
    root: str | None = Field(description="folder (npz: file) with a local copy; null: search, then download")
    validation_size: int = Field(ge=1, description="images taken from the training files for validation")
    split: Literal["first", "stratified"] = Field(
        description="first: validation is the first images, as in the tutorial; stratified: each class in proportion"
    )
    split_seed: int = Field(ge=0, lt=2**32, description="seed of a stratified split; `first` ignores it")


class IdxFile(Settings):
    """One published file and the digests that its publisher gives."""

    name: str = Field(pattern=FILE_PATTERN)
    bytes: int = Field(gt=0)
    md5: str = Field(pattern=r"^[0-9a-f]{32}$")
    sha256: str | None = Field(
        pattern=r"^[0-9a-f]{64}$", description="null: a local copy is compared by its MD5, and nothing is downloaded"
    )


class IdxFiles(Settings):
    """The four files of a data set in the IDX format."""

    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile


class IdxData(_Data):
    """MNIST and its drop-in replacements: four gzipped IDX files. `auto` is mnist, or else digits."""

    name: Literal["auto", "mnist", "fashion_mnist", "kmnist"]
    mirrors: tuple[Mirror, ...] = Field(strict=False, description="base addresses, tried in this order")
    timeout: Positive = Field(description="seconds without a byte before the next mirror is tried")
    files: IdxFiles


class DigitsData(_Data):
    """scikit-learn's bundled 8x8 digits, 1,797 of them: needs no download."""

    name: Literal["digits"]
    test_size: int = Field(ge=1, description="images held out as the test split, stratified by split_seed")


class NpzData(_Data):
    """The user's own arrays: x_train, y_train, x_test, y_test in one .npz file at `data.root`."""

    name: Literal["npz"]


DataConfig = Annotated[IdxData | DigitsData | NpzData, Field(discriminator="name")]


# --------------------------------------------------------------------------------------------- model

Activation = Literal["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "tanh", "sigmoid", "linear"]
Initializer = Literal[
    "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal", "random_normal"
]


class ModelConfig(Settings):
    """A multilayer perceptron. Names are Keras's."""

    name: Literal["mlp"]
    hidden_units: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(
        strict=False, max_length=64, description="units of each hidden layer, in order; [] is softmax regression"
    )
    activation: Activation = Field(description="of every hidden layer")
    dropout: Fraction = Field(description="share of each hidden layer's outputs dropped in training")
    initializer: Initializer = Field(description="of the weight matrices")
    initializer_stddev: Positive = Field(description="standard deviation; used by random_normal alone")
    bias_initializer_stddev: float = Field(ge=0, description="biases start at normal(0, this); 0: at zero")


# ----------------------------------------------------------------------------------------- optimizer


class _Optimizer(Settings):
    name: str  # Keras's registry finds the class by it
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = Field(description="the peak, where there is a schedule")
    schedule: Literal["constant", "cosine"] = Field(description="after the warm-up; cosine ends at 0")
    warmup_epochs: float = Field(ge=0, description="the learning rate rises linearly from 0 for this long")
    weight_decay: Fraction = Field(description="decoupled, per step, times the learning rate; biases are exempt")


class Sgd(_Optimizer):
    """keras.optimizers.SGD: plain, with momentum, or Nesterov's."""

    name: Literal["sgd"]
    momentum: Fraction
    nesterov: bool

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov=true does nothing with momentum=0; give optimizer.momentum a value such as 0.9")
        return self


class Adam(_Optimizer):
    """keras.optimizers.Adam, AdamW or Nadam."""

    name: Literal["adam", "adamw", "nadam"]
    beta_1: Fraction
    beta_2: Fraction
    epsilon: Positive


class RmsProp(_Optimizer):
    """keras.optimizers.RMSprop."""

    name: Literal["rmsprop"]
    rho: Fraction
    momentum: Fraction
    epsilon: Positive


class Lion(_Optimizer):
    """keras.optimizers.Lion."""

    name: Literal["lion"]
    beta_1: Fraction
    beta_2: Fraction


OptimizerConfig = Annotated[Sgd | Adam | RmsProp | Lion, Field(discriminator="name")]


# ------------------------------------------------------------------------------------------- trainer


class TrainerConfig(Settings):
    """How long and on what a network is trained."""

    epochs: int = Field(ge=1, le=100_000, description="passes over the training split, at most")
    max_steps: int | None = Field(ge=1, description="optimizer steps, at most; may end inside an epoch; null: no limit")
    batch_size: int = Field(ge=1, description="images per step; an epoch's incomplete last batch is left out")
    patience: int | None = Field(ge=1, description="stop after this many epochs without a better one; null: never")
    restore_best_weights: bool = Field(description="keep the best epoch's weights by validation, else the last's")
    label_smoothing: Fraction
    device: Literal["auto", "cpu", "gpu"]
    threads: int = Field(ge=1, le=1024, description="CPU threads of one training; part of what fixes its bits")
    timeout: Positive | None = Field(
        description="seconds without a finished epoch after which a training counts as hung; null: never"
    )


# ------------------------------------------------------- study, search, executor, tracking: no effect on a run


class SamplerConfig(Settings):
    """Where the next trial's values come from."""

    name: Literal["tpe", "random", "grid", "qmc", "gp", "cmaes"]
    startup_trials: int = Field(ge=1, description="random trials before tpe, gp or cmaes start to model")


class PrunerConfig(Settings):
    """Which trials are stopped early, by their validation accuracy after each epoch."""

    name: Literal["none", "median", "hyperband"]
    startup_trials: int = Field(ge=0, description="median: trials that are never pruned, first")
    warmup_epochs: int = Field(ge=0, description="median: epochs before which no trial is pruned")
    min_epochs: int = Field(ge=1, description="hyperband: epochs that every trial gets")
    reduction_factor: int = Field(ge=2, description="hyperband: one in this many goes on at each rung")


class StudyConfig(Settings):
    """A search: its name, budget and stores."""

    name: Name | None = Field(description="null: the data set's name")
    trials: int = Field(ge=1, description="total over all sessions; the same name again goes on up to it")
    timeout: Positive | None = Field(description="seconds of this session after which no trial starts")
    target: Annotated[float, Field(gt=0, le=1)] | None = Field(
        description="validation accuracy at which the study stops; null: never"
    )
    max_failures: int = Field(ge=1, description="trials in a row that fail with the same cause and end the session")
    storage: str = Field(description="Optuna's database: sqlite:///FILE.db on this machine, or postgresql://… for many")
    lease: float = Field(
        ge=10, description="seconds without a sign of life after which another machine's driver is dead"
    )
    sampler: SamplerConfig
    pruner: PrunerConfig


class _Executor(Settings):
    name: str
    workers: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = Field(
        description="processes; auto: cores // trainer.threads, or one per GPU (ray: what the cluster has room for)"
    )
    max_worker_memory: Positive = Field(description="GB; a worker that holds more is replaced between trials")
    retries: int = Field(
        ge=0, le=100, description="how often a training whose worker or driver died is run again before it has failed"
    )


class LocalExecutorConfig(_Executor):
    """Worker processes on this machine."""

    name: Literal["local"]


class RayExecutorConfig(_Executor):
    """Workers as Ray actors, on this machine or on a cluster."""

    name: Literal["ray"]
    address: Annotated[str, Field(min_length=1)] | None = Field(
        description="HOST:PORT, ray://HOST:10001, auto, or local (a new one here); null: one that runs here, else local"
    )
    cpus_per_trial: Positive = Field(description="CPUs that Ray sets aside for each worker; trainer.threads uses them")
    gpus_per_trial: float = Field(ge=0, description="GPUs for each worker; a fraction shares one between trials")


ExecutorConfig = Annotated[LocalExecutorConfig | RayExecutorConfig, Field(discriminator="name")]


class TrackingConfig(Settings):
    """Where runs are logged."""

    name: Literal["mlflow", "none"]
    uri: str | None = Field(description="null: MLFLOW_TRACKING_URI, else sqlite mlflow.db in the working folder")
    experiment: Name | None = Field(description="null: the study's name")
    save_weights: bool = Field(description="log each run's kept weights, as a .weights.h5 file")


class Config(Settings):
    """One resolved config."""

    seed: int = Field(
        ge=0, lt=2**32, description="of weights, minibatches and dropout; a study derives its trials' from it"
    )
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    trainer: TrainerConfig
    search: dict[str, str | None] = Field(
        description="override key: distribution, in Hydra's sweep grammar; null: fixed"
    )
    study: StudyConfig
    executor: ExecutorConfig
    tracking: TrackingConfig


class RunConfig(Settings):
    """The part of a Config that decides what one training does: what a worker gets and a run records."""

    seed: int = Field(ge=0, lt=2**32)
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    trainer: TrainerConfig


# ------------------------------------------------------------------------------ what is wrong, in plain words


def validated(plain: Mapping[str, Any]) -> Config:
    """A plain config as a Config. Raises: ConfigError with every fault."""
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(*_sentences(error, plain)) from None


PHRASES = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a text",
    "model_attributes_type": "must be a node with settings of its own",
    "model_type": "must be a node with settings of its own",
    "tuple_type": "must be a list, such as [300, 100]",
    "finite_number": "must be finite",
    NAME_PATTERN: "must be 1 to 100 letters, digits, dots, hyphens, underscores or spaces",
    FILE_PATTERN: "must be a file's name without folders: letters, digits, dots, hyphens and underscores",
    MIRROR_PATTERN: "must be like https://HOST/FOLDER/, without user and password",
}
"""pydantic's messages in plainer words, by its type of fault (or the pattern that wasn't matched)."""


def _sentences(error: ValidationError, plain: Mapping[str, Any]) -> list[str]:
    """One sentence a key: what was given and what is allowed. A union's members count as one key."""
    problems: dict[str, list[str]] = {}
    for fault in error.errors():
        subject, problem = _problem(dict(fault), ".".join(_without_tags(fault["loc"], plain)))
        problems.setdefault(subject, []).append(problem)
    return [f"{subject}: {', or '.join(found)}" if subject else found[0] for subject, found in problems.items()]


def _problem(fault: Mapping[str, Any], key: str) -> tuple[str, str]:
    """What was given ('key=value') and what is wrong with it."""
    given, kind, context = fault["input"], fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return key, "the config has no such key"
    if kind == "union_tag_not_found":
        key, kind = f"{key}.name", "missing"
    if kind == "missing":
        return key, "needs a value, and no option file gives one"
    if kind == "value_error":
        return "", str(context["error"])
    if kind == "union_tag_invalid":
        key, given = f"{key}.name", given["name"]
    words = re.findall(r"'([^']*)'", str(context.get("expected") or context.get("expected_tags") or ""))
    if words:
        one_of = "one of " * (len(words) > 1)
        return f"{key}={shown(given)}", f"must be {one_of}{', '.join(words)}{suggestion(given, words)}"
    message = PHRASES.get(context.get("pattern", kind)) or fault["msg"].removeprefix("Input ").replace("should", "must")
    return f"{key}={shown(given)}", message[0].lower() + message[1:]


def _without_tags(place: Sequence[str | int], plain: Mapping[str, Any]) -> Iterator[str]:
    """pydantic puts the chosen member of a union into the place of a fault ('optimizer.sgd.momentum'); drop it."""
    node: Any = plain
    for key in place:
        if isinstance(node, list | Mapping) and (isinstance(node, list) or key in node):
            yield str(key)
            node = node[key]  # type: ignore[index]  # pydantic gives numbers for lists, names for nodes
        elif isinstance(node, Mapping) and key != node.get("name"):
            yield str(key)  # a key that is missing
            node = None


class TrialRecord(Settings):
    """What a study keeps of a trial from its claim on."""

    overrides: tuple[str, ...] = Field(strict=False)
    seed: int
    config: str  # a RunConfig as JSON


class DriverEntry(Settings):
    """What a study keeps of each of its drivers: see drivers.py."""

    host: str
    boot: str
    namespace: str
    pid: int
    started: float  # in the system's own units, to be compared alone
    ended: bool
    beat: float  # seconds since 1970


Kept = TypeVar("Kept", bound=Settings)


def kept(model: type[Kept], value: object, what: str) -> Kept:
    """A study's attribute as its type. Raises: StoreError if something else wrote it."""
    try:
        return model.model_validate(value)
    except ValidationError:
        raise StoreError(f"{what} was not written by this version of mnistexp; give another study.name") from None


def recorded_config(text: str) -> RunConfig:
    """A run's config from a record's JSON. Raises: StoreError if another version of mnistexp wrote it."""
    try:
        return RunConfig.model_validate_json(_with_later_settings(text))
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise StoreError(
            f"this study was recorded by a version of mnistexp with other settings ({key}); "
            f"use that version, or give another study.name"
        ) from None


def _with_later_settings(text: str) -> str:
    """A record with the settings that came after it and change no result: trainer.timeout. Nonsense stays as it is."""
    try:
        plain = json.loads(text)
        plain["trainer"].setdefault("timeout", None)
    except (ValueError, LookupError, TypeError, AttributeError):
        return text
    return json.dumps(plain)


def shown(value: object) -> str:
    """A value in one line, spelled as on the command line."""
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if text.isprintable() else repr(text)


def suggestion(word: object, known: Iterable[str]) -> str:
    """'; did you mean …?' where one known word is close, else nothing."""
    spelled = {other.lower(): other for other in known}
    close = difflib.get_close_matches(str(word).lower(), spelled, n=1, cutoff=0.6)
    return f"; did you mean {spelled[close[0]]}?" if close else ""
