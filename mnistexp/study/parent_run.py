"""The sweep's own run in MLflow, in which its trials' runs are grouped: opened, described and closed here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from mnistexp.errors import StoreError
from mnistexp.search.space import Space
from mnistexp.storage.urls import storage_overrides
from mnistexp.study.database import Database
from mnistexp.study.progress import Progress
from mnistexp.study.study import SharedStudy
from mnistexp.tracking.records import LoggedRun
from mnistexp.tracking.run_context import RunContext
from mnistexp.tracking.runs import Ending, Tracker
from mnistexp.tracking.ui_pages import SEARCHED, BestTrial, fitting, sweep_description


class ParentRun:
    """One sweep's own run.

    Args:
        title, page: its name and description, if it is not a search.
    """

    def __init__(
        self,
        database: Database,
        context: RunContext,
        space: Space,
        study: SharedStudy,
        tracker: Tracker,
        title: str = "",
        page: Callable[[Progress], str] | None = None,
    ) -> None:
        self._database, self._context, self._space = database, context, space
        self._study, self._tracker = study, tracker
        self._title, self._page = title or f"sweep {study.name}", page

    def open(self, progress: Progress, worker_info: Mapping[str, Any]) -> str:
        """Open the run, under the lock: two processes that start together share one. Returns: its id."""
        searched = {SEARCHED: " ".join(fitting(self._space.descriptions()))} if self._page is None else {}
        process = {"device": str(worker_info.get("device", "")), "process": str(self._study.lease.number)}
        tags = {**self._study.tags, "kind": "sweep", **process, **searched, **self._context.tags()}
        # A folder for each session: the next one may run other code, and must not overwrite this session's files.
        folder, kept = f"sessions/{self._context.session_id}", self._context.files(worker_info)
        files = {f"{folder}/{name}": text for name, text in kept.items()}
        page = self._description(progress)
        return self._database.locked(lambda: self._tracker.start_parent(self._title, tags, page, files))

    def close(self, run_id: str, progress: Progress, seconds: float, cpu_seconds: float, ending: Ending | None) -> None:
        """Write the summary and close the run; with `ending` None it stays open for other processes.

        Args:
            seconds, cpu_seconds: of this session.
        """
        metrics: dict[str, float] = {
            "sweep/trials": progress.done,
            "sweep/pruned": progress.pruned,
            "sweep/failed": progress.failed,
            "sweep/session_seconds": seconds,
            "sweep/session_parent_cpu_seconds": cpu_seconds,
        }
        metrics |= {"best_val_accuracy": progress.best.val_accuracy} if progress.best else {}
        self._tracker.finish_parent(run_id, metrics, self._description(progress), ending)

    def best_run(self, progress: Progress) -> LoggedRun | None:
        """Return the best trial's run, if it is logged and MLflow answers."""
        if progress.best is None:
            return None
        tags = {**self._study.tags, "trial": str(progress.best.number), "kind": "trial", "state": "COMPLETE"}
        with suppress(StoreError):
            return next(self._tracker.find(tags), None)
        return None

    def _description(self, progress: Progress) -> str:
        """The run's page in MLflow, as Markdown."""
        if self._page is not None:
            return self._page(progress)
        prepared = self._context.prepared
        found, best = progress.best, None
        if found is not None:
            run = self.best_run(progress)
            test = run.metrics.get("test_accuracy") if run else None
            best = BestTrial(found.number, found.val_accuracy, test, found.config, found.overrides)
        return sweep_description(
            self._study.name,
            prepared.dataset.name,
            prepared.config.study,
            self._space.descriptions(),
            {"complete": progress.complete, "pruned": progress.pruned, "failed": progress.failed},
            best,
            storage_overrides(prepared.request.overrides),
        )
