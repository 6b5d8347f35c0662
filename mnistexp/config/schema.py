"""The types of the config: every setting with its type, range, unit and meaning. Defaults are in conf/ only.

pydantic checks them, because it reports all faults at once with their keys. OmegaConf's structured configs stop at the
first fault and have no ranges.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mnistexp.errors import ConfigError, StoreError

SETTING_PATTERN = r"^[A-Za-z]\w{0,63}$"
# A name becomes a part of paths and URLs, so it has more than dots and spaces.
Name = Annotated[str, Field(pattern=r"^[. ]*[A-Za-z0-9_-][A-Za-z0-9._ -]*$", max_length=100)]
# Without user and password, since a run records its mirrors.
Mirror = Annotated[str, Field(pattern=r"^https?://[^/@\s]+(/\S*)?$")]
Integer = Annotated[int, Field(ge=-(2**53), le=2**53)]
Number = Annotated[float, Field(ge=-(2**53), le=2**53)]
Text = Annotated[str, Field(max_length=1000)]
Integers = Annotated[tuple[Integer, ...], Field(strict=False, max_length=64)]
Setting = bool | Integer | Number | Text | Integers
SettingName = Annotated[str, Field(pattern=SETTING_PATTERN)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]


class Settings(BaseModel):
    """The base of every node: frozen, no unknown keys, no implicit conversions, no infinity or NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class UserCode(Settings):
    """The file that --code names: see `user_code`."""

    name: str  # the path as it was given
    text: str


class _Custom(Settings):
    """A node that a function of the user's file makes."""

    name: str
    function: str = Field(pattern=SETTING_PATTERN)  # its name in the file that --code names
    settings: dict[SettingName, Setting] = Field(max_length=64)  # its keyword arguments
    code: str | None = Field(pattern=r"^[0-9a-f]{64}$")  # SHA-256 of the file; filled in when composing

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of the function."""
        return dict(self.settings)


class _Data(Settings):
    name: str
    root: str | None  # folder (npz: file) with a local copy; null: search, then download
    validation_size: int = Field(ge=1)  # images taken from the training files for validation
    # first: validation is the first images, as in the tutorial; stratified: each class in proportion
    split: Literal["first", "stratified"]
    split_seed: int = Field(ge=0, lt=2**32)  # seed of a stratified split; `first` ignores it


class IdxFile(Settings):
    """One published file with its published digests."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    bytes: int = Field(gt=0)
    md5: str = Field(pattern=r"^[0-9a-f]{32}$")
    # null: a local copy is compared by its MD5, and nothing is downloaded
    sha256: str | None = Field(pattern=r"^[0-9a-f]{64}$")


class IdxFiles(Settings):
    """The four files of a data set in the IDX format."""

    train_images: IdxFile
    train_labels: IdxFile
    test_images: IdxFile
    test_labels: IdxFile


class IdxData(_Data):
    """MNIST and its drop-in replacements: four gzipped IDX files. `auto` is mnist, or else digits."""

    name: Literal["auto", "mnist", "fashion_mnist", "kmnist"]
    mirrors: tuple[Mirror, ...] = Field(strict=False)  # base addresses, tried in this order
    timeout: Positive  # seconds without a byte before the next mirror is tried
    files: IdxFiles


class DigitsData(_Data):
    """scikit-learn's bundled 8x8 digits, 1,797 of them: needs no download."""

    name: Literal["digits"]
    test_size: int = Field(ge=1)  # images held out as the test split, stratified by split_seed


class NpzData(_Data):
    """Arrays of the user: x_train, y_train, x_test, y_test in one .npz file at `data.root`."""

    name: Literal["npz"]


class UserData(_Custom, _Data):
    """Arrays that a function of the user's file returns: (**settings) to what an .npz file would hold."""

    POSITIONAL: ClassVar[int] = 0
    name: Literal["custom"]

    @property
    def keywords(self) -> dict[str, Any]:
        """The keyword arguments of the function: its settings, and `root` if it is given."""
        return {**self.settings, **({"root": self.root} if self.root is not None else {})}


DataConfig = Annotated[IdxData | DigitsData | NpzData | UserData, Field(discriminator="name")]
Activation = Literal["relu", "leaky_relu", "elu", "selu", "gelu", "silu", "softplus", "tanh", "sigmoid", "linear"]
Initializer = Literal[
    "glorot_uniform", "glorot_normal", "he_uniform", "he_normal", "lecun_uniform", "lecun_normal", "random_normal"
]


class Mlp(Settings):
    """A multilayer perceptron. Names are Keras's."""

    name: Literal["mlp"]
    # units of each hidden layer, in order; [] is softmax regression
    hidden_units: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = Field(strict=False, max_length=64)
    activation: Activation  # of every hidden layer
    batch_normalization: bool  # of each hidden layer, before its activation; its biases go
    input_dropout: Fraction  # share of the network's inputs dropped in training
    dropout: Fraction  # share of each hidden layer's outputs dropped in training
    initializer: Initializer  # of the weight matrices
    initializer_stddev: Positive  # standard deviation; used by random_normal alone
    bias_initializer_stddev: float = Field(ge=0)  # biases start at normal(0, this); 0: at zero


class UserModel(_Custom):
    """A network that a function of the user's file builds: (features, classes, **settings) to a Keras model."""

    POSITIONAL: ClassVar[int] = 2
    name: Literal["custom"]


ModelConfig = Annotated[Mlp | UserModel, Field(discriminator="name")]


class _Optimizer(Settings):
    name: str  # Keras's registry finds the class by it
    learning_rate: Annotated[float, Field(gt=0, le=1000)]  # the peak, where there is a schedule
    # after the warm-up; cosine ends at 0; one_cycle has a warm-up of its own, 30 % of the run
    schedule: Literal["constant", "cosine", "one_cycle"]
    warmup_epochs: float = Field(ge=0)  # the learning rate rises linearly from 0 for this long; not with one_cycle
    weight_decay: Fraction  # decoupled, per step, times the learning rate; biases are exempt


class Sgd(_Optimizer):
    """keras.optimizers.SGD: plain, with momentum, or Nesterov's."""

    name: Literal["sgd"]
    momentum: Fraction
    nesterov: bool


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
    beta_1: Annotated[float, Field(gt=0, lt=1)]  # Keras's Lion refuses 0
    beta_2: Fraction


OptimizerConfig = Annotated[Sgd | Adam | RmsProp | Lion, Field(discriminator="name")]


class AugmentationConfig(Settings):
    """Random warps of every training image, drawn again in each epoch. Each number is a maximum; 0: none."""

    shift: float = Field(ge=0, le=1000)  # pixels, down or up and left or right
    rotate: float = Field(ge=0, le=45)  # degrees, either way
    scale: Fraction  # share by which height and width each grow or shrink
    shear: float = Field(ge=0, le=45)  # degrees by which upright lines lean, either way
    # pixels: what the smoothed random field is multiplied by (Simard et al. 2003)
    elastic_alpha: float = Field(ge=0, le=1000)
    # pixels: standard deviation of the Gaussian that smoothes the field
    elastic_sigma: Annotated[float, Field(gt=0, le=1000)]

    @property
    def warps(self) -> tuple[bool, bool]:
        """Whether images are warped, and whether the warp is elastic. Both are compiled into the epoch."""
        elastic = self.elastic_alpha > 0
        return elastic or max(self.shift, self.rotate, self.scale, self.shear) > 0, elastic

    def check(self, image_shape: Sequence[int]) -> None:
        """Raises: ConfigError if there are warps and examples of this shape are not images."""
        if self.warps[0] and (len(image_shape) not in (2, 3) or min(image_shape) < 1):
            raise ConfigError(
                f"augmentation: needs images of [height, width] or [height, width, channels], but the examples have "
                f"the shape {list(image_shape)}; give augmentation=none"
            )


class TrainerConfig(Settings):
    """How long and on what a network is trained."""

    epochs: int = Field(ge=1, le=100_000)  # passes over the training split, at most
    max_steps: int | None = Field(ge=1)  # optimizer steps, at most; may end inside an epoch; null: no limit
    batch_size: int = Field(ge=1)  # images per step; an epoch's incomplete last batch is left out
    patience: int | None = Field(ge=1)  # stop after this many epochs without a better one; null: never
    restore_best_weights: bool  # keep the best epoch's weights by validation, else the last's
    label_smoothing: Fraction  # share of each target that is spread evenly over all classes
    ema_momentum: Fraction  # validate and keep a moving average of the weights, with this momentum per step; 0: none
    device: Literal["auto", "cpu", "gpu"]
    threads: int = Field(ge=1, le=1024)  # CPU threads of one training; part of what fixes its bits
    timeout: Positive | None  # seconds without a finished epoch after which a training counts as hung; null: never

    def steps_per_epoch(self, images: int) -> int:
        """Count the whole minibatches of an epoch. Raises: ConfigError if one needs more images than there are."""
        if self.batch_size > images:
            raise ConfigError(
                f"trainer.batch_size={self.batch_size}: must be at most {images}, the number of training images; "
                f"give e.g. trainer.batch_size={min(100, images)}"
            )
        return images // self.batch_size

    def most_epochs(self, epoch_steps: int) -> int:
        """Return the largest number of epochs: fewer than `epochs` if `max_steps` ends the training."""
        return self.epochs if self.max_steps is None else min(self.epochs, math.ceil(self.max_steps / epoch_steps))


class SamplerConfig(Settings):
    """How the values of the next trial are chosen."""

    name: Literal["tpe", "random", "grid", "qmc", "gp", "cmaes"]
    startup_trials: int = Field(ge=1)  # random until so many trials have ended (gp, cmaes: are complete)
    points: Annotated[int, Field(ge=2, le=1000)] | None  # grid: how many points replace an interval


class PrunerConfig(Settings):
    """Which trials are stopped early because of their validation accuracy after an epoch."""

    name: Literal["none", "median", "hyperband"]
    startup_trials: int = Field(ge=0)  # median: prunes nothing before so many trials are complete
    warmup_epochs: int = Field(ge=0)  # median: epochs before which no trial is pruned
    min_epochs: int = Field(ge=1)  # hyperband: epochs that every trial gets
    reduction_factor: int = Field(ge=2)  # hyperband: one in this many goes on at each rung


class StudyConfig(Settings):
    """A search: its name, budget and stores."""

    name: Name | None  # null: the data set's name
    trials: int = Field(ge=1)  # total over all sessions; the same name continues the study
    timeout: Positive | None  # seconds of this session after which no trial starts
    target: Annotated[float, Field(gt=0, le=1)] | None  # validation accuracy at which the study stops; null: never
    max_failures: int = Field(ge=1)  # trials in a row that fail with the same cause and end the session
    storage: str  # Optuna's database: sqlite:///FILE.db on this machine, or postgresql://… for many
    # seconds without a heartbeat after which a sweep process on another machine counts as dead
    lease: float = Field(ge=10)
    sampler: SamplerConfig
    pruner: PrunerConfig


class _Executor(Settings):
    name: str
    # processes; auto: cores // trainer.threads, or up to 4 per GPU (ray: what the cluster has room for)
    workers: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]
    max_worker_memory: Positive  # GB; a worker that holds more after its 8th trial is replaced
    retries: int = Field(ge=0, le=100)  # how often a training is run again after its worker or sweep process died


class LocalExecutorConfig(_Executor):
    """Worker processes on this machine."""

    name: Literal["local"]


class RayExecutorConfig(_Executor):
    """Workers as Ray actors, on this machine or on a cluster."""

    name: Literal["ray"]
    # HOST:PORT, ray://HOST:10001, auto, or local (a new one here); null: a cluster that runs here, else local
    address: Annotated[str, Field(min_length=1)] | None
    cpus_per_trial: Positive  # CPUs that Ray sets aside for each worker; trainer.threads uses them
    gpus_per_trial: float = Field(ge=0)  # GPUs for each worker; a fraction shares one between trials


ExecutorConfig = Annotated[LocalExecutorConfig | RayExecutorConfig, Field(discriminator="name")]


class TrackingConfig(Settings):
    """Where runs are logged."""

    name: Literal["mlflow", "none"]
    uri: str | None  # null: MLFLOW_TRACKING_URI, else sqlite mlflow.db in the working folder
    experiment: Name | None  # null: the study's name
    save_weights: bool  # log each run's kept weights, as a .weights.h5 file


class _RunNodes(Settings):
    seed: int = Field(ge=0, lt=2**32)  # of weights, minibatches, dropout and warps; a study derives its trials' from it
    data: DataConfig
    model: ModelConfig
    optimizer: OptimizerConfig
    augmentation: AugmentationConfig
    trainer: TrainerConfig


class RunConfig(_RunNodes):
    """The part of a config that decides the result of one training: what a worker gets and a run records."""


class Config(_RunNodes):
    """One resolved config. It is not a RunConfig: its addresses may hold passwords, which no run records."""

    search: dict[str, str | None]  # override key: distribution, in Hydra's sweep grammar; null: fixed
    study: StudyConfig
    executor: ExecutorConfig
    tracking: TrackingConfig


def recorded_config(text: str) -> RunConfig:
    """Read the config of a run from the JSON of its record. Raises: StoreError if another version wrote it."""
    try:
        return RunConfig.model_validate_json(text)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise StoreError(
            f"this study was recorded by a version of mnistexp with other settings ({key}); "
            f"use that version, or give another study.name"
        ) from None


def format_value(value: object, *, digits: int | None = None, max_length: int | None = None) -> str:
    """Format a value in one line, as it is written on the command line.

    >>> format_value(None), format_value([300, 100]), format_value(0.00123456, digits=3)
    ('null', '[300,100]', '0.00123')

    Args:
        digits: significant digits of a float; None: all.
        max_length: characters; a longer text is returned without its middle. None: no limit.
    """
    if isinstance(value, list | tuple):
        text = f"[{','.join(format_value(item, digits=digits) for item in value)}]"
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    else:
        text = f"{value:.{digits}g}" if digits and isinstance(value, float) else str(value)
    text = text if text.isprintable() else repr(text)
    if max_length is None or len(text) <= max_length:
        return text
    end = max_length // 3
    return f"{text[: max_length - end - 1]}…{text[len(text) - end :]}"


def suggestion(word: object, known: Iterable[str]) -> str:
    """'; did you mean …?' where one known word is close, else nothing."""
    spelled = {other.lower(): other for other in known}
    close = difflib.get_close_matches(str(word).lower(), spelled, n=1, cutoff=0.6)
    return f"; did you mean {spelled[close[0]]}?" if close else ""
