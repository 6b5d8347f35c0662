"""Finished runs on their way to MLflow: uploaded at once, or later if MLflow is away; in the end each exactly once.

A trial's record is in the study's database before its value, so the queue needs no storage of its own: the finished
trials that MLflow lacks are uploaded by the next sweep. Kept weights wait in a folder of this machine.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import platformdirs

from mnistexp.errors import StoreError
from mnistexp.storage.foreign_errors import StoreRefusal
from mnistexp.study.study import SharedStudy
from mnistexp.tracking.records import RunRecord
from mnistexp.tracking.runs import Ending, Tracker

FIRST_PAUSE = 5.0  # seconds before the next try when the store is away; doubled after each failure
LONGEST_PAUSE = 60.0
SLICE_SECONDS = 1.0  # of uploads at a time, because workers wait for an answer and the lease for a heartbeat


class UploadQueue:
    """Uploads a study's runs.

    Args:
        open_parent: opens the sweep's own run, in which the others are grouped, and returns its id.
        on_note: called with a message for the user.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        study: SharedStudy,
        tracker: Tracker,
        open_parent: Callable[[], str],
        on_note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study, self._tracker, self._on_note, self._clock = study, tracker, on_note, clock
        self._open_parent = open_parent
        self._waiting: deque[RunRecord] = deque()
        self._refused: dict[int, RunRecord] = {}  # trial → its run
        self._reported: set[object] = set()
        self._pause, self._next_try = 0.0, 0.0
        self.parent: str | None = None  # id of the sweep's own run, when it is open
        self.weights_folder = Path(platformdirs.user_state_dir("mnistexp")) / "weights" / study.id

    def __len__(self) -> int:
        """Return how many runs MLflow doesn't have yet."""
        return len(self._waiting) + len(self._refused)

    @property
    def is_away(self) -> bool:
        """Return whether the last try found that the store can't be used."""
        return self._pause > 0

    def open_parent_run(self) -> None:
        """Open the sweep's own run; if the store is away, the first upload tries again."""
        try:
            self.parent = self._open_parent()
        except StoreError as error:
            self._back_off(error)

    # ------------------------------------------------------------------------------------ uploads

    def put(self, record: RunRecord, *, check_first: bool = False) -> None:
        """Upload a run, now or later; with `check_first` another process may have uploaded it."""
        if not self._waiting and self._upload(record, check_first=check_first):
            return
        self._waiting.append(record)
        self.flush()

    def flush(self, *, now: bool = False) -> None:
        """Upload waiting runs for at most a second, if the store is due for a try; with `now`, in any case."""
        until = time.monotonic() + SLICE_SECONDS
        while self._waiting and time.monotonic() < until and (now or self._clock() >= self._next_try):
            if not self._upload(self._waiting[0], check_first=True):
                return
            self._waiting.popleft()

    def flush_all(self, should_stop: Callable[[], bool]) -> None:
        """Upload all waiting runs, and the refused ones again, until the store fails or `should_stop`."""
        self._waiting.extend(self._refused.values())
        self._refused.clear()
        left = len(self._waiting) + 1
        while 0 < len(self._waiting) < left and not should_stop():
            left = len(self._waiting)
            self.flush(now=True)

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
        known |= {int(record.tags["trial"]) for record in self._waiting} | self._refused.keys()
        self._waiting.extend(self._study.finished_records(known))
        self.flush()

    def _upload(self, record: RunRecord, *, check_first: bool) -> bool:
        """Try to upload a run. Returns: whether it leaves the queue.

        A failed try may have worked without an answer, so the next one checks first, under the upload lock: two
        processes that check at the same time would both upload it.
        """
        number = int(record.tags["trial"])
        if self.parent is None:
            self.open_parent_run()
        if self.parent is None:
            return False
        upload = partial(self._tracker.log, self._with_weights(number, record), self.parent, may_exist=check_first)
        try:
            if not check_first:
                upload()
            elif not self._study.try_upload_lock(upload):
                return False
        except StoreRefusal as error:
            self._refused[number] = record
            self._note_once(number, f"trial {number}: {error}. The next sweep tries again; other runs are logged")
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

    def _note_once(self, key: object, text: str) -> None:
        if key not in self._reported:
            self._reported.add(key)
            self._on_note(text)

    # ------------------------------------------------------------------------------------ weights

    def make_weights_folder(self) -> None:
        """Make the folder for weights. Raises: StoreError."""
        try:
            self.weights_folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{self.weights_folder}: can't be made ({error.strerror}), and weights wait there until they are "
                f"logged; give XDG_STATE_HOME=FOLDER, or tracking.save_weights=false"
            ) from None

    def weights_path(self, number: int) -> Path | None:
        """Return where a worker writes a trial's weights; None, with a note, if the folder was lost meanwhile."""
        try:
            self.make_weights_folder()
        except StoreError as error:
            self._note_once("weights", f"{error}. Trials go on, and their weights are not kept")
            return None
        return self.weights_folder / f"{number}.weights.h5"

    def _with_weights(self, number: int, record: RunRecord) -> RunRecord:
        path = self.weights_folder / f"{number}.weights.h5"
        with suppress(OSError):  # a folder without permission
            return record.model_copy(update={"weights_path": path}) if path.exists() else record
        return record

    def discard_weights(self, number: int) -> None:
        """Delete a trial's weights; a file that can't be deleted is only a waste of space."""
        with suppress(OSError):
            (self.weights_folder / f"{number}.weights.h5").unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the weights folder, unless weights wait there, for this process or another one."""
        with suppress(OSError):
            self.weights_folder.rmdir()
