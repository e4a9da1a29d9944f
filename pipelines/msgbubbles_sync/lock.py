"""Run one job at a time on a warehouse: two dlt runs of one pipeline can destroy each other's load."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock, Timeout

from .files import FULL

# A job without progress for this long is stuck. A page, a phase and a wait each count as progress. Building a large
# mart from scratch, or loading a batch, takes longest without any: minutes.
STALLED_AFTER = timedelta(minutes=30)
# Progress is recorded at most this often: every page is progress.
PROGRESS_INTERVAL_SECONDS = 1.0

# The files of the locks that this process holds, since when, and when progress was last recorded (monotonic seconds).
_held: dict[Path, tuple[str, float]] = {}


class AnotherJobRunsError(Exception):
    """Another job is active; the message names it."""


class JobStalledError(AnotherJobRunsError):
    """The active job has made no progress for `STALLED_AFTER`; the message names it."""


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock. `pid` and `since` are null until it has written them; `host` is its machine.

    `progress_at` (UTC) is when it last made progress; in the future while it waits. `progress` describes how far it is.
    """

    pid: int | None
    since: datetime | None
    progress_at: datetime | None
    progress: str = ""
    host: str = ""

    @property
    def is_stalled(self) -> bool:
        return self.progress_at is not None and datetime.now(UTC) - self.progress_at > STALLED_AFTER

    def __str__(self) -> str:
        elsewhere = f" on {self.host}" if self.host not in ("", socket.gethostname()) else ""
        who = f"process {self.pid}{elsewhere}" if self.pid else "it has just started"
        who += f", since {self.since:%Y-%m-%d %H:%M} UTC" if self.since else ""
        if not self.is_stalled:
            return who
        since = f"{self.progress_at:%Y-%m-%d %H:%M} UTC"
        return f"{who}, without progress since {since}; end it (kill -9 {self.pid or 'PID'}) and run again"


@contextmanager
def hold_lock(folder: Path, name: str = "job") -> Iterator[None]:
    """Hold the warehouse's lock, or another of its locks by name.

    The system releases it when the process ends, however it ends. In a folder that other machines see, it applies to
    them too, if the file system shares locks. Raises `AnotherJobRunsError` immediately if another process holds it, and
    `JobStalledError` if that process is stuck.
    """
    path = folder / f"{name}.json"
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = _read(path)
        kind = JobStalledError if holder.is_stalled else AnotherJobRunsError
        raise kind(f"another {name} is active on this database: {holder}") from None
    try:
        _held[path] = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
        try:
            _write(path)
        except OSError as error:
            if error.errno not in FULL:
                raise
            path.unlink(missing_ok=True)  # it may name an earlier job
        yield
    finally:
        _held.pop(path, None)
        with suppress(OSError):  # without the lock, the file means nothing
            path.unlink()
        lock.release()


def is_any_held() -> bool:
    """Return whether this process holds a lock, which others may wait for."""
    return bool(_held)


def record_progress(waiting_seconds: float = 0.0, progress: str = "", *, at_once: bool = False) -> None:
    """Record in the locks of this process that it makes progress, or that it is about to wait on purpose.

    `progress` describes how far it is, for `status`. It names no person and quotes no text. With `at_once` it is shown
    whenever the last one was recorded, because the next may come late.
    """
    now = time.monotonic()
    for path, (since, last) in list(_held.items()):
        if now - last < PROGRESS_INTERVAL_SECONDS and not (waiting_seconds or at_once):
            continue
        _held[path] = since, now
        at = time.time() + waiting_seconds
        with suppress(OSError):  # progress only helps to find a stuck job
            if progress:
                _write(path, progress)
            os.utime(path, (at, at))


def read_holder(folder: Path, name: str = "job") -> Holder | None:
    """Return the holder of a lock; null if it is free. Raises `OSError` if the lock cannot be tried."""
    # Trying the lock refuses a job that starts at this moment, so try it only if a holder is recorded.
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _read(path)
    lock.release()
    return None


def _write(path: Path, progress: str = "") -> None:
    """Replace the record of a lock that this process holds. A reader sees the old one or the new one."""
    new = path.with_suffix(".new")
    job = {"pid": os.getpid(), "host": socket.gethostname(), "since": _held[path][0], "progress": progress}
    new.write_text(json.dumps(job))
    new.replace(path)


def _read(path: Path) -> Holder:
    try:
        progress_at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except OSError:
        return Holder(None, None, None)
    try:
        job = json.loads(path.read_text())
        more = [str(job.get(name, "")) for name in ("progress", "host")]
        return Holder(int(job["pid"]), datetime.fromisoformat(job["since"]), progress_at, *more)
    except (OSError, ValueError, KeyError, TypeError):
        return Holder(None, None, progress_at)
