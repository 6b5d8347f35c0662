"""What a report is made of: a study's history, what was made of it afterwards, and its data, where they are here."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from optuna.storages import BaseStorage

from mnistexp.analysis import by_value, comparison, confirmation, history
from mnistexp.analysis.by_value import Groups
from mnistexp.analysis.comparison import BestComparison, Mistakes
from mnistexp.analysis.confirmation import Confirmation
from mnistexp.analysis.history import History, Importances, Trial
from mnistexp.config import user_code
from mnistexp.config.schema import DigitsData, UserData, suggestion
from mnistexp.data import dataset as data
from mnistexp.data.dataset import Dataset
from mnistexp.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class ReportData:
    """A study, read."""

    history: History
    importances: Importances
    standing: BestComparison | None  # None: no trial completed, or the records say too little of their hits
    confirmation: Confirmation | None
    dataset: Dataset | None
    missing: str  # why there is no data set
    axes: tuple[str, str] | None  # of the heat map; None: less than two parameters were searched
    stores: tuple[str, ...] = ()  # the overrides that say where the study and its runs are, without passwords
    groups: Groups | None = None  # by one key's values, if that was asked for

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest validation accuracy."""
        return next(iter(self.history.ranked), None)

    def command(self, name: str) -> str:
        """A command about this study, as one types it."""
        where = (f"study.name={self.history.name}", *self.stores, *user_code.cli_args())
        return shlex.join(["python", "-m", "mnistexp", name, *where])

    @property
    def keys(self) -> tuple[str, ...]:
        """The override keys that were searched, the most important ones first, if that is known."""
        return _by_importance(self.history, self.importances)

    @property
    def mistakes(self) -> Mistakes | None:
        """What the best trial got wrong; None without the data set's labels."""
        if self.standing is None or self.dataset is None:
            return None
        return comparison.mistakes(self.standing, self.dataset.validation.labels, self.dataset.classes)


def gather(
    storage: BaseStorage,
    name: str,
    root: str | None = None,
    heatmap: str = "",
    by: str = "",
    stores: Sequence[str] = (),
) -> ReportData:
    """Read a study, and its data set if that is on this machine; nothing is downloaded.

    Args:
        root: where the user says that the data are.
        heatmap: two parameters, `X,Y`; empty: the two most important numbers.
        by: a parameter whose values are to be compared over seeds; empty: none.

    Raises: StoreError if there is no such study, ConfigError if it has no such parameters.
    """
    found = history.load(storage, name)
    told = by_value.by(found, by) if by else None
    shares = history.importances(storage, name)
    dataset, missing = _data_of(found, root)
    return ReportData(
        history=found,
        importances=shares,
        standing=comparison.standing(found),
        confirmation=confirmation.load(storage, found),
        dataset=dataset,
        missing=missing,
        axes=_chosen_axes(found, heatmap) if heatmap else _usual_axes(found, shares),
        stores=tuple(stores),
        groups=told,
    )


def _by_importance(found: History, shares: Importances) -> tuple[str, ...]:
    known = comparison.by_key(shares.shares)
    return tuple(sorted(comparison.keys(found), key=lambda key: -known.get(key, 0.0)))  # stable: else in their order


def _usual_axes(found: History, shares: Importances) -> tuple[str, str] | None:
    """The two most important parameters that are numbers; where there is one number, or none, of any kind."""
    keys, numeric = _by_importance(found, shares), comparison.numeric(found)
    numbers = [key for key in keys if key in numeric]
    first, second, *_ = [*numbers, *(key for key in keys if key not in numbers), "", ""]
    return (first, second) if second else None


def _chosen_axes(found: History, text: str) -> tuple[str, str]:
    known = comparison.keys(found)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            searched = f"it searched {', '.join(known)}" if known else "it searched no parameter"
            raise ConfigError(f"heatmap={text}: the study has no {name!r}; {searched}{suggestion(name, known)}")
    if len(names) != 2 or names[0] == names[1]:
        example = ",".join((*known, "PARAMETER", "PARAMETER")[:2])
        raise ConfigError(f"heatmap={text}: takes two different parameters, such as heatmap={example}")
    return names[0], names[1]


def _data_of(found: History, root: str | None) -> tuple[Dataset | None, str]:
    """The data set that the trials were trained on, or why it isn't here."""
    record = next((trial.record for trial in found.trials if trial.record), None)
    if record is None:
        return None, "no trial was trained"
    user_code.refuse_unused(*(trial.record.config for trial in found.trials if trial.record))
    config = data.relocate(record.config.data, root)
    try:
        if not isinstance(config, DigitsData | UserData) and data.find(config) is None:  # load() would download it
            return None, f"the data set {record.data_name} isn't on this machine; give data.root=FOLDER"
        dataset = data.load(config)
    except (ConfigError, DataError) as error:  # ConfigError: its function is in a file of the user's
        return None, str(error)
    if dataset.fingerprint != record.data_fingerprint:
        return None, f"the data set {record.data_name} on this machine isn't the one that the study was trained on"
    return dataset, ""
