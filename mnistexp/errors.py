"""Everything that mnistexp raises on purpose: one tree, one sentence each, one exit code each."""


class MnistexpError(Exception):
    """A fault that the user can act on: `str(error)` says what was wrong, what is allowed, what to type."""

    exit_code = 2


class ConfigError(MnistexpError):
    """The config or the search space holds something that can't be; raised before anything starts.

    Holds every fault that was found, so that the user mends them in one go.
    """

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        super().__init__(faults[0] if len(faults) == 1 else "\n  ".join([f"{len(faults)} faults:", *faults]))


class DataError(MnistexpError):
    """A data set is missing, damaged or not what it says it is."""


class StoreError(MnistexpError):
    """A database, an MLflow server or a folder can't be used, or holds something else."""


class WorkerError(MnistexpError):
    """Workers can't start: no such device, or an installation that doesn't work."""


class TrainingError(MnistexpError):
    """One training failed: its loss or a weight is not finite, or its worker died."""

    exit_code = 1
