"""The sweep's own run in MLflow, in which its trials' runs are grouped: opened, described and closed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mnistexp.storage.urls import storage_overrides
from mnistexp.study.progress import Progress
from mnistexp.study.study import SharedStudy
from mnistexp.tracking.runs import Ending, Tracker
from mnistexp.tracking.ui_pages import SEARCHED, BestTrial, column_keys, sweep_description


class ParentRun:
    """One sweep's own run.

    Args:
        title, page: its name and description, if it is not a search.

    Attributes:
        worker_info: the device, flags and versions of the workers, as far as they are known.
    """

    def __init__(
        self, study: SharedStudy, tracker: Tracker, title: str = "", page: Callable[[Progress], str] | None = None
    ) -> None:
        self._study, self._tracker = study, tracker
        self._title, self._page = title or f"sweep {study.name}", page
        self.worker_info: Mapping[str, Any] = {}

    def open(self) -> str:
        """Open the run, under the lock: two processes that start together share one. Returns: its id."""
        study, context = self._study, self._study.context
        searched = {SEARCHED: " ".join(column_keys(study.space.descriptions()))} if self._page is None else {}
        process = {"device": str(self.worker_info.get("device", "")), "process": str(study.lease.number)}
        tags = {**study.tags, "kind": "sweep", **process, **searched, **context.tags()}
        # A folder for each session: the next one may run other code, and must not overwrite this session's files.
        kept = context.files(self.worker_info)
        files = {f"sessions/{context.session_id}/{name}": text for name, text in kept.items()}
        page = self._description(study.progress())
        return study.database.locked(lambda: self._tracker.start_parent(self._title, tags, page, files))

    def close(self, run_id: str, progress: Progress, seconds: float, ending: Ending | None) -> None:
        """Write the summary and close the run; with `ending` None it stays open for other processes.

        Args:
            seconds: of this session.
        """
        metrics: dict[str, float] = {
            "sweep/trials": progress.done,
            "sweep/pruned": progress.pruned,
            "sweep/failed": progress.failed,
            "sweep/session_seconds": seconds,
        }
        metrics |= {"best_val_accuracy": progress.best.val_accuracy} if progress.best else {}
        self._tracker.finish_parent(run_id, metrics, self._description(progress), ending)

    def _description(self, progress: Progress) -> str:
        """The run's page in MLflow, as Markdown."""
        if self._page is not None:
            return self._page(progress)
        prepared, found, best = self._study.context.prepared, progress.best, None
        if found is not None:
            result = self._study.stored_record(found.number).result
            test = result.test_accuracy if result else None
            best = BestTrial(found.number, found.val_accuracy, test, found.overrides)
        return sweep_description(
            self._study.name,
            prepared.dataset.name,
            prepared.config.study,
            self._study.space.descriptions(),
            {"complete": progress.complete, "pruned": progress.pruned, "failed": progress.failed},
            best,
            storage_overrides(prepared.request.overrides),
        )
