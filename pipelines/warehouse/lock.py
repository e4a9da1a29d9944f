"""One job at a time on a warehouse: two dlt runs of one pipeline can destroy each other's load."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout


class AnotherJobRunsError(Exception):
    """The message names the job that runs."""


@contextmanager
def one_job(folder: Path, name: str = "job") -> Iterator[None]:
    """Hold the warehouse's lock, or another of its locks by name. The system lets go of it when the process ends,
    however it ends.

    Raises `AnotherJobRunsError` at once when another process holds it.
    """
    holder = folder / f"{name}.json"
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise AnotherJobRunsError(f"another {name} runs on this database: {_described(holder)}") from None
    try:
        holder.write_text(json.dumps({"pid": os.getpid(), "since": datetime.now(UTC).isoformat(timespec="seconds")}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def holder_of(folder: Path) -> str | None:
    """Who holds the lock now, in words; null when nobody does."""
    if not (folder / "job.lock").exists():
        return None
    lock = FileLock(folder / "job.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return _described(folder / "job.json")
    lock.release()
    return None


def _described(holder: Path) -> str:
    try:
        job = json.loads(holder.read_text())
        return f"process {job['pid']}, since {job['since']}"
    except (OSError, ValueError, KeyError):
        return "it has only just begun"
