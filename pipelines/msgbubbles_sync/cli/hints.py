"""What a failure of this machine means, and how to fix it. What DuckDB, dlt and sqlite say may quote rows, so none of
it is repeated; only what kind of trouble it is, and where."""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import duckdb

from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.publish import DAMAGE_WORDS
from msgbubbles_sync.workspace import Workspace

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
# DuckDB and sqlite, and dlt around them, tell it in words only.
FULL_WORDS = re.compile(
    "no space left on device|file too large|disk quota exceeded|database or disk is full|out of disk space", re.I
)
REFUSED_WORDS = re.compile("read-only file system|permission denied|readonly database|in read-only mode", re.I)
# Python's own errors too: a thread that cannot start is a RuntimeError, a library that does not fit an ImportError.
MEMORY_WORDS = re.compile("cannot allocate memory|out of memory|can't start new thread|failed to map segment", re.I)
LOCK_WORDS = re.compile(r"could not set lock on file .*?(?:\(PID (\d+)\)|$)", re.I | re.S)


def trouble_of(error: BaseException, workspace: Workspace) -> str | None:
    """What is wrong and how to fix it; null where this cannot be said."""
    causes = list(causes_of(error))
    meant = build_destination(workspace).explain("\n".join(str(cause) for cause in causes))
    if meant is not None:
        return meant
    if any(_is_of_memory(cause) for cause in causes):
        return (
            "memory ran out: allow this process more (ulimit -v, or its container's limit), set less to do at once "
            "(parallel_requests, batch_pages), or a larger [sync] memory_limit; what was loaded stays, and the next "
            "run goes on from there"
        )
    if any(_is(cause, FULL, FULL_WORDS) for cause in causes):
        where = _path(causes, FULL)
        return (
            f"no space is left {f'for {where}' if where else f'to write next to {workspace.database}'} (or a file may "
            "not grow that large): free some; what was loaded stays, and the next run goes on from there"
        )
    if any(_is(cause, REFUSED, REFUSED_WORDS) for cause in causes):
        path = _path(causes, REFUSED) or workspace.folder
        if not path.is_relative_to(workspace.file.parent) and not path.is_relative_to(workspace.folder):
            return f"{path} cannot be used: let the user of this job read and write it"
        return (
            f"{path} cannot be written: let the user of this job write there, or choose another --database; the "
            "published file is as it was"
        )
    locked = next(filter(None, (LOCK_WORDS.search(str(one)) for one in causes if _is_named(one))), None)
    if locked is not None:
        holder = f"process {locked[1]}" if locked[1] else "another process"
        return f"{workspace.work} is open in {holder}: close it there; readers are to open {workspace.database}"
    if any(isinstance(cause, duckdb.Error) and DAMAGE_WORDS.search(str(cause)) for cause in causes):
        return (
            f"{workspace.work} or {workspace.database} is damaged: run again; a run restores the one from the other, "
            "and reads again what neither has"
        )
    failed = next((one for one in causes if isinstance(one, OSError) and one.errno is not None), None)
    if failed is not None:
        return f"{f'{failed.filename}: ' if failed.filename else ''}{failed.strerror}; what was loaded stays"
    if any(type(cause).__module__.startswith("dlt.") for cause in causes):
        return (
            f"a load could not be finished ({type(causes[-1]).__name__}): run again; the next run goes on with it, and "
            "what was loaded stays"
        )
    return None


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, and whatever it comes from."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop(0)
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        left += [one.__cause__, one.__context__, getattr(one, "exception", None)]


def _is(cause: BaseException, numbers: set[int], words: re.Pattern[str]) -> bool:
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.errno in numbers
    return _is_named(cause) and bool(words.search(str(cause)))


def _is_named(cause: BaseException) -> bool:
    """Whether the kind of an error is in its words, which are not a row's."""
    names = ("dlt.", "pyarrow")
    return isinstance(cause, duckdb.Error | sqlite3.Error | OSError) or type(cause).__module__.startswith(names)


def _is_of_memory(cause: BaseException) -> bool:
    kinds = (MemoryError, duckdb.OutOfMemoryException)
    is_worded = isinstance(cause, RuntimeError | ImportError) or _is_named(cause)
    return isinstance(cause, kinds) or (is_worded and bool(MEMORY_WORDS.search(str(cause))))


def _path(causes: list[BaseException], numbers: set[int]) -> Path | None:
    """The file that an error of the system names."""
    named = (one.filename for one in causes if isinstance(one, OSError) and one.errno in numbers)
    return next((Path(str(name)) for name in named if name), None)
