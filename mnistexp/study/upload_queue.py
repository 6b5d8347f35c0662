"""Runs on their way to MLflow: at once where it answers, later where it doesn't, exactly once in the end.

A trial's record is in the study's database before its score is, so nothing has to be kept twice: what MLflow
lacks of a study's finished trials is what is still to be delivered, by whichever driver comes next. Weights,
where they are kept, wait in a folder of this machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import platformdirs

from mnistexp.errors import StoreError
from mnistexp.study.study import SharedStudy
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.runs import Ending, Tracker

FIRST_PAUSE = 5.0  # seconds until a store that was away is tried again; then twice as long each time
LONGEST_PAUSE = 60.0
SLICE = 1.0  # seconds of delivering at a time: workers wait for a word, and the lease for a beat


class UploadQueue:
    """Logs a study's runs.

    Args:
        open_parent: opens the sweep's own run, in which the others are grouped. Returns: its id.
        on_wait: told once, each time that the store is found to be away, what is wrong.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        study: SharedStudy,
        tracker: Tracker,
        open_parent: Callable[[], str],
        on_wait: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._tracker, self._on_wait, self._clock = study, tracker, on_wait, clock
        self._open_parent = open_parent
        self._waiting: deque[RunRecord] = deque()
        self._pause, self._next_try = 0.0, 0.0
        self.parent: str | None = None  # the id of the sweep's own run, once it could be opened
        self.weights = Path(platformdirs.user_state_dir("mnistexp")) / "weights" / study.weights_folder

    def __len__(self) -> int:
        """How many runs MLflow hasn't got yet."""
        return len(self._waiting)

    def open(self) -> None:
        """Open the sweep's own run, now or before the first run is delivered."""
        try:
            self.parent = self._open_parent()
        except StoreError as error:
            self._failed(error)

    def weights_path(self, number: int) -> Path:
        """Where a worker of this machine writes a trial's weights."""
        try:
            self.weights.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.weights}: can't be made ({error.strerror}), and weights wait there until they are logged; "
                f"give XDG_STATE_HOME=FOLDER, or tracking.save_weights=false"
            ) from None
        return self.weights / f"{number}.weights.h5"

    def forget(self, number: int) -> None:
        """Delete the weights of a trial that this driver has lost."""
        (self.weights / f"{number}.weights.h5").unlink(missing_ok=True)

    @property
    def away(self) -> bool:
        """Whether the store didn't answer when it was tried last."""
        return self._pause > 0

    def put(self, record: RunRecord, *, again: bool = False) -> None:
        """Deliver a run, now or later; `again`: another driver may have done so meanwhile."""
        if not self._waiting and self._deliver(record, again=again):
            return
        self._waiting.append(record)
        self.flush()

    def flush(self, *, now: bool = False) -> None:
        """Deliver what waits, for a second at a time, where the store is due to be tried; with `now`, in any case."""
        until = time.monotonic() + SLICE
        while self._waiting and time.monotonic() < until and (now or self._clock() >= self._next_try):
            if not self._deliver(self._waiting[0], again=True):
                return
            self._waiting.popleft()

    def try_once(self, record: RunRecord) -> None:
        """Deliver a run that nobody would miss: an interrupted trial's curves."""
        if not self._waiting and not self.away:
            self._deliver(record, again=False)

    def catch_up(self, parents_ending: Ending | None = None) -> None:
        """Mend what dead drivers left half done: runs half written, runs that were never written.

        Args:
            parents_ending: how to close a parent run that was left open; None if somebody is at work on it.
        """
        try:
            self._tracker.close_stale_runs(self._study.tags, parents_ending, self._study.lives)
            runs = self._tracker.find({**self._study.tags, "kind": "trial"}, deleted=True)
            known = {int(run.tags["trial"]) for run in runs if run.state != "INTERRUPTED"}
        except StoreError as error:
            self._failed(error)
            return
        known |= {int(record.tags["trial"]) for record in self._waiting}
        self._waiting.extend(self._study.finished_records(known))
        self.flush()

    def _deliver(self, record: RunRecord, *, again: bool) -> bool:
        """Try once. A try whose answer was lost may have worked, so the next looks first."""
        path = self.weights / f"{record.tags['trial']}.weights.h5"
        whole = replace(record, weights_path=path) if path.exists() else record
        try:
            if self.parent is None:
                self.parent = self._open_parent()
            log = partial(self._tracker.log, whole, self.parent, may_exist=again)
            if not again:
                log()
            elif not self._study.try_upload_lock(log):  # two drivers that look at once would both write
                return False
        except StoreError as error:
            self._failed(error)
            return False
        self.forget(int(record.tags["trial"]))
        self._pause = 0.0
        return True

    def _failed(self, error: StoreError) -> None:
        if not self._pause:
            self._on_wait(f"{error}. Trials go on; their runs are kept in the study and logged when it is back")
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        self._next_try = self._clock() + self._pause
