"""One job at a time on a warehouse: two dlt runs of one pipeline can destroy each other's load."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout

# A job that has made no progress for so long is stuck. A page, a phase and a wait each are progress; what takes longest
# without any is to build a large mart from scratch, or to load a slice, which are minutes.
STALLED_AFTER = timedelta(minutes=30)
# Progress is noted no more often: it is made with every page.
SECONDS_BETWEEN_NOTES = 1.0

# The files of the locks that this process holds, and when progress was last noted in them.
_held: dict[Path, float] = {}


class AnotherJobRunsError(Exception):
    """The message names the job that runs."""


class JobStalledError(AnotherJobRunsError):
    """The job that runs has made no progress for `STALLED_AFTER`; the message names it."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lock: `pid` and `since` are null while it has not said so, `progress_at` (UTC) is when it last made
    progress. That is in the future for one that waits."""

    pid: int | None
    since: str | None
    progress_at: datetime | None

    @property
    def is_stalled(self) -> bool:
        return self.progress_at is not None and datetime.now(UTC) - self.progress_at > STALLED_AFTER

    def __str__(self) -> str:
        who = "it has only just begun" if self.pid is None else f"process {self.pid}, since {self.since}"
        if not self.is_stalled or self.progress_at is None:
            return who
        progress_at = self.progress_at.isoformat(timespec="seconds")
        return f"{who}, without progress since {progress_at}; end it (kill -9 {self.pid or 'PID'}) and run again"


@contextmanager
def one_job(folder: Path, name: str = "job") -> Iterator[None]:
    """Hold the warehouse's lock, or another of its locks by name. The system lets go of it when the process ends,
    however it ends.

    Raises `AnotherJobRunsError` at once when another process holds it, `JobStalledError` when that one is stuck.
    """
    path = folder / f"{name}.json"
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _read(path)
        kind = JobStalledError if holder.is_stalled else AnotherJobRunsError
        raise kind(f"another {name} runs on this database: {holder}") from None
    try:
        path.write_text(json.dumps({"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}))
        _held[path] = time.monotonic()
        yield
    finally:
        _held.pop(path, None)
        path.unlink(missing_ok=True)
        lock.release()


def note_progress(waiting_seconds: float = 0.0) -> None:
    """Show in the locks of this process that it makes progress, or that it is about to wait on purpose."""
    now = time.monotonic()
    for path, noted in list(_held.items()):
        if now - noted < SECONDS_BETWEEN_NOTES and not waiting_seconds:
            continue
        _held[path] = now
        at = time.time() + waiting_seconds
        with suppress(OSError):  # it only serves to find a stuck job
            os.utime(path, (at, at))


def holder_of(folder: Path) -> Holder | None:
    """Return who holds the lock now, null when nobody does. Raises `OSError` where the lock cannot be tried."""
    # The lock is tried only where somebody has left a name: to try it keeps a job that begins just now from running.
    if not (folder / "job.json").exists():
        return None
    lock = FileLock(folder / "job.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _read(folder / "job.json")
    lock.release()
    return None


def _read(path: Path) -> Holder:
    try:
        progress_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return Holder(None, None, None)
    try:
        job = json.loads(path.read_text())
        return Holder(int(job["pid"]), str(job["since"]), progress_at)
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(None, None, progress_at)
