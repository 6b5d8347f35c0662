"""The data of a report: a study's history, what was computed from it, and its data set if that is on this machine."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from mnistexp.analysis import comparison, confirmation, history, parameters
from mnistexp.analysis.by_value import Groups, by_value
from mnistexp.analysis.comparison import BestComparison
from mnistexp.analysis.confirmation import Confirmation
from mnistexp.analysis.history import History, Importances, Storage, Trial
from mnistexp.config import user_code
from mnistexp.config.schema import DigitsData, UserData, suggestion
from mnistexp.data import dataset as data
from mnistexp.data.dataset import Dataset
from mnistexp.errors import ConfigError, DataError


@dataclass(frozen=True, eq=False)
class ReportData:
    """What is known about one study."""

    history: History
    importances: Importances
    comparison: BestComparison | None  # None: no trial completed, or the records do not fit the scores
    confirmation: Confirmation | None
    dataset: Dataset | None
    missing: str  # why there is no data set
    axes: tuple[str, str] | None = None  # of the heat map; None: the two most important parameters
    stores: tuple[str, ...] = ()  # the overrides that name the study's and the runs' database, without passwords
    groups: Groups | None = None  # by one key's values, if the user asked for it

    @property
    def best(self) -> Trial | None:
        """The complete trial with the highest validation accuracy."""
        return next(iter(self.history.ranked), None)

    @property
    def baseline(self) -> Trial | None:
        """The complete trial with the config from which the sweep started, unless nothing was searched."""
        return next((trial for trial in self.history.ranked if trial.baseline and self.keys), None)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The searched override keys, the most important ones first if importances are known."""
        known = parameters.by_key(self.importances.shares)
        return tuple(sorted(parameters.keys(self.history), key=lambda key: -known.get(key, 0.0)))

    def command(self, name: str, *more: str) -> str:
        """A command for this study, as the user types it."""
        where = (f"study.name={self.history.name}", *self.stores, *user_code.cli_args(), *more)
        return shlex.join(["python", "-m", "mnistexp", name, *where])


def gather(
    storage: Storage,
    name: str,
    root: str | None = None,
    heatmap: str = "",
    by: str = "",
    stores: Sequence[str] = (),
) -> ReportData:
    """Read a study, and its data set if that is on this machine. Nothing is downloaded.

    Args:
        root: the folder of the data, if the user gave one.
        heatmap: two parameters, `X,Y`; empty: the two most important ones.
        by: a parameter whose values are compared over seeds; empty: none.

    Raises: StoreError if the database has no such study, ConfigError if the study has no such parameters.
    """
    found = history.load(storage, name)
    groups = by_value(found, by) if by else None
    dataset, missing = _dataset(found, root)
    data = ReportData(
        history=found,
        importances=history.importances(storage, name),
        comparison=comparison.compare_best(found),
        confirmation=confirmation.load(storage, found),
        dataset=dataset,
        missing=missing,
        stores=tuple(stores),
        groups=groups,
    )
    return replace(data, axes=_axes(heatmap, parameters.keys(found))) if heatmap else data


def _axes(text: str, known: Sequence[str]) -> tuple[str, str]:
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            searched = ", ".join(known) or "no parameter"
            raise ConfigError(
                f"heatmap={text}: the study has no {name!r}; it searched {searched}{suggestion(name, known)}"
            )
    if len(names) != 2 or names[0] == names[1]:
        raise ConfigError(
            f"heatmap={text}: takes two different parameters, such as heatmap=model.dropout,model.activation"
        )
    return names[0], names[1]


def _dataset(found: History, root: str | None) -> tuple[Dataset | None, str]:
    """Load the data set on which the trials were trained, or return why it is not here."""
    if not found.records:
        return None, "no trial was trained"
    record = found.records[0]
    user_code.refuse_unused(*(each.config for each in found.records))
    config = data.relocate(record.config.data, root)
    try:
        if not isinstance(config, DigitsData | UserData) and data.find(config) is None:  # load() would download it
            return None, f"the data set {record.data_name} is not on this machine; give data.root=FOLDER"
        dataset = data.load(config)
    except (ConfigError, DataError) as error:  # ConfigError: its function is in the user's file
        return None, str(error)
    if dataset.fingerprint != record.data_fingerprint:
        return None, f"the data set {record.data_name} on this machine is not the one of the study"
    return dataset, ""
