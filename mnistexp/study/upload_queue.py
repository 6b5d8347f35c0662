"""Finished runs on their way to MLflow: uploaded at once, or later if MLflow is away; in the end each exactly once.

A trial's record is in the study's database before its value, so the queue needs no storage of its own: the finished
trials that MLflow lacks are uploaded by the next sweep. Kept weights wait in a folder of this machine.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import platformdirs

from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import StoreRefusal
from mnistexp.study.parent_run import ParentRun
from mnistexp.study.progress import Progress
from mnistexp.study.study import SharedStudy
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.runs import Ending, Tracker

FIRST_PAUSE = 5.0  # seconds before the next try when the store is away; doubled after each failure
LONGEST_PAUSE = 60.0
SLICE_SECONDS = 1.0  # of uploads at a time, because workers wait for an answer and the lease for a heartbeat


class UploadQueue:
    """Uploads a study's runs.

    Args:
        parent: the sweep's own run, in which the others are grouped.
        save_weights: make the folder for weights now.
        on_note: called with a message for the user.
        clock: seconds, monotonic.

    Raises: StoreError if the folder for weights can't be made.
    """

    def __init__(
        self,
        study: SharedStudy,
        tracker: Tracker,
        parent: ParentRun,
        save_weights: bool,
        on_note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._tracker, self._on_note, self._clock = study, tracker, on_note, clock
        self._parent = parent
        self._parent_id: str | None = None  # when it is open
        self._waiting: deque[RunRecord] = deque()
        self._refused: set[int] = set()  # trials
        self._pause, self._next_try = 0.0, 0.0
        self._folder = Path(platformdirs.user_state_dir("mnistexp")) / "weights" / study.id
        self._folder_is_lost = False
        if save_weights:
            self._make_folder()

    def __len__(self) -> int:
        """Return how many runs MLflow doesn't have yet."""
        return len(self._waiting) + len(self._refused)

    @property
    def is_away(self) -> bool:
        """Return whether the last try found that the store can't be used."""
        return self._pause > 0

    # ------------------------------------------------------------------------------------ uploads

    def open_parent(self) -> bool:
        """Open the sweep's own run, unless it is open. Returns: False if the store is away; the next upload tries."""
        if self._parent_id is None:
            try:
                self._parent_id = self._parent.open()
            except StoreError as error:
                self._back_off(error)
        return self._parent_id is not None

    def put(self, record: RunRecord, *, check_first: bool = False) -> None:
        """Upload a run, now or later; with `check_first` another process may have uploaded it."""
        if self._waiting or not self._upload(record, check_first=check_first):
            self._waiting.append(record)

    def flush(
        self, seconds: float = SLICE_SECONDS, *, now: bool = False, should_stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Upload waiting runs for at most so many seconds, if the store is due for a try; with `now`, in any case."""
        began = self._clock()
        if not now and began < self._next_try:
            return
        while self._waiting and self._clock() < began + seconds and not should_stop():
            if not self._upload(self._waiting[0], check_first=True):
                return
            self._waiting.popleft()

    def try_once(self, record: RunRecord) -> None:
        """Upload a run that may be lost: the curves of an interrupted trial."""
        if not self._waiting and not self.is_away:
            self._upload(record, check_first=False)

    def catch_up(self, ending: Ending | None = None) -> None:
        """Complete the uploads of dead processes: delete partial runs, and queue the runs that MLflow lacks.

        Args:
            ending: closes a parent run that was left open; None while another process uses it.
        """
        try:
            self._tracker.close_stale_runs(self._study.tags, ending, self._study.is_alive)
            runs = self._tracker.find({**self._study.tags, "kind": "trial"}, deleted=True)
            known = {int(run.tags["trial"]) for run in runs if run.state != "INTERRUPTED"}
        except StoreError as error:
            self._back_off(error)
            return
        known |= {int(record.tags["trial"]) for record in self._waiting} | self._refused
        self._waiting.extend(self._study.finished_records(known))
        self.flush()

    def close(self, progress: Progress, seconds: float, ending: Ending | None) -> None:
        """Close the sweep's own run: see ParentRun.close. Remove the weights folder, unless weights wait there."""
        with suppress(OSError):
            self._folder.rmdir()
        if self._parent_id is None or self.is_away:
            return  # the next sweep closes it
        try:
            self._parent.close(self._parent_id, progress, seconds, ending)
        except StoreError as error:
            self._on_note(f"{error}. The next sweep closes this one's parent run")

    def _upload(self, record: RunRecord, *, check_first: bool) -> bool:
        """Try to upload a run. Returns: whether it leaves the queue.

        A failed try may have worked without an answer, so the next one checks first, under the upload lock: two
        processes that check at the same time would both upload it.
        """
        number = int(record.tags["trial"])
        if not self.open_parent():
            return False
        weights = self._weights(number)
        record = record.model_copy(update={"weights_path": weights if os.access(weights, os.R_OK) else None})
        upload = partial(self._tracker.log, record, self._parent_id or "", may_exist=check_first)
        try:
            if not check_first:
                upload()
            elif not self._study.database.try_upload_lock(upload):
                return False
        except StoreRefusal as error:
            self._refused.add(number)
            self._on_note(f"trial {number}: {error}. The next sweep tries again; other runs are logged")
            return True
        except StoreError as error:
            self._back_off(error)
            return False
        self.discard_weights(number)
        self._pause = 0.0
        return True

    def _back_off(self, error: StoreError) -> None:
        if not self._pause:
            self._on_note(f"{error}. Trials go on; their runs are kept in the study and logged when it is back")
        self._pause = min(max(2 * self._pause, FIRST_PAUSE), LONGEST_PAUSE)
        self._next_try = self._clock() + self._pause

    # ------------------------------------------------------------------------------------ weights

    def _make_folder(self) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self._folder}: can't be made ({error.strerror}), and weights wait there until they are logged; "
                f"give XDG_STATE_HOME=FOLDER, or tracking.save_weights=false"
            ) from None

    def weights_path(self, number: int) -> Path | None:
        """Return where a worker writes a trial's weights; None, with a note, if the folder was lost."""
        if self._folder_is_lost:
            return None
        try:
            self._make_folder()
        except StoreError as error:
            self._folder_is_lost = True
            self._on_note(f"{error}. Trials go on, and their weights are not kept")
            return None
        return self._weights(number)

    def _weights(self, number: int) -> Path:
        return self._folder / f"{number}.weights.h5"

    def discard_weights(self, number: int) -> None:
        """Delete a trial's weights; a file that can't be deleted is only a waste of space."""
        with suppress(OSError):
            self._weights(number).unlink(missing_ok=True)
