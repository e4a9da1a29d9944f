"""How a command ended: its exit status, and the message that says why and how to fix it.

What DuckDB, dlt and sqlite say may quote rows, so no message repeats it: only what kind of failure it is, and where.
"""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb

from msgbubbles.errors import ConfigurationError, Interrupted, LimitReached, MsgBubblesError

from .context import Context
from .destinations.publish import DAMAGE_WORDS
from .errors import TransformError, UsageError
from .extras import missing_extra
from .files import write_privately
from .lock import AnotherJobRunsError, JobStalledError
from .policy.applied import describe_error

EXIT_FAILED, EXIT_USAGE, EXIT_INCOMPLETE, EXIT_LOCKED, EXIT_STOPPED = 1, 2, 3, 75, 130
STOPPED = "stopped at once; what was loaded stays, and the next run goes on from there"

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


@dataclass(frozen=True)
class Outcome:
    """`message` says what ended a command before its time; empty where nothing did."""

    exit_status: int
    message: str = ""


def explain_end(ended_by: BaseException | None, context: Context | None, *, is_incomplete: bool = False) -> Outcome:
    """Return how a command ended that `ended_by` has ended, or that came to its end and has left something to look at.

    The details of an error that may quote rows are written to a file of the workspace that only the user reads.
    """
    if ended_by is None or isinstance(ended_by, LimitReached):
        return Outcome(EXIT_INCOMPLETE if is_incomplete else 0, str(ended_by or ""))
    if isinstance(ended_by, AnotherJobRunsError):
        return Outcome(EXIT_FAILED if isinstance(ended_by, JobStalledError) else EXIT_LOCKED, str(ended_by))
    if isinstance(ended_by, UsageError):
        return Outcome(EXIT_USAGE, str(ended_by))
    if isinstance(ended_by, ModuleNotFoundError) and (missing := missing_extra(ended_by)):
        return Outcome(EXIT_USAGE, missing)
    if any(isinstance(cause, KeyboardInterrupt) for cause in _causes(ended_by)):  # dlt makes errors of it
        return Outcome(EXIT_STOPPED, STOPPED)
    if isinstance(ended_by, ConfigurationError):
        return Outcome(EXIT_USAGE, str(ended_by))
    if isinstance(ended_by, Interrupted):
        return Outcome(EXIT_STOPPED, str(ended_by))
    if isinstance(ended_by, MsgBubblesError | TransformError) or context is None:
        return Outcome(EXIT_FAILED, str(ended_by))
    # A wrong usage or a key that is missing is said without waiting for dlt.
    from dlt.common.configuration.exceptions import ConfigValueCannotBeCoercedException

    if isinstance(ended_by, ConfigValueCannotBeCoercedException):
        field = ended_by.field_name
        return Outcome(EXIT_USAGE, f"{field} has no value of its type; dlt_config/config.toml shows how it is set")
    message = find_cause(ended_by, context) or f"{type(ended_by).__name__}; what was loaded stays"
    with suppress(OSError):  # where the disk is full, or is not ours
        path = write_privately(context.workspace.folder / "last_error.txt", describe_error(ended_by, context.workspace))
        message += f". Details, which may quote your data: {path}"
    return Outcome(EXIT_FAILED, message)


def find_cause(error: BaseException, context: Context) -> str | None:
    """Return what is wrong and how to fix it; null where this is not known."""
    causes, workspace = list(_causes(error)), context.workspace
    meant = context.destination.explain("\n".join(str(cause) for cause in causes))
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
    locked = next(filter(None, (LOCK_WORDS.search(str(cause)) for cause in causes if _is_named(cause))), None)
    if locked is not None:
        holder = f"process {locked[1]}" if locked[1] else "another process"
        return f"{workspace.work} is open in {holder}: close it there; readers are to open {workspace.database}"
    if any(isinstance(cause, duckdb.Error) and DAMAGE_WORDS.search(str(cause)) for cause in causes):
        return (
            f"{workspace.work} or {workspace.database} is damaged: run again; a run restores the one from the other, "
            "and reads again what neither has"
        )
    failed = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno is not None), None)
    if failed is not None:
        return f"{f'{failed.filename}: ' if failed.filename else ''}{failed.strerror}; what was loaded stays"
    if any(type(cause).__module__.startswith("dlt.") for cause in causes):
        return (
            f"a load could not be finished ({type(causes[-1]).__name__}): run again; the next run goes on with it, and "
            "what was loaded stays"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, and whatever it comes from."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        cause = left.pop(0)
        if cause is None or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        left += [cause.__cause__, cause.__context__, getattr(cause, "exception", None)]


def _is(cause: BaseException, numbers: set[int], words: re.Pattern[str]) -> bool:
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.errno in numbers
    return _is_named(cause) and bool(words.search(str(cause)))


def _is_named(cause: BaseException) -> bool:
    """Return whether the words of an error say its kind, and quote no row."""
    names = ("dlt.", "pyarrow")
    return isinstance(cause, duckdb.Error | sqlite3.Error | OSError) or type(cause).__module__.startswith(names)


def _is_of_memory(cause: BaseException) -> bool:
    kinds = (MemoryError, duckdb.OutOfMemoryException)
    is_worded = isinstance(cause, RuntimeError | ImportError) or _is_named(cause)
    return isinstance(cause, kinds) or (is_worded and bool(MEMORY_WORDS.search(str(cause))))


def _path(causes: list[BaseException], numbers: set[int]) -> Path | None:
    """Return the file that an error of the system names."""
    named = (cause.filename for cause in causes if isinstance(cause, OSError) and cause.errno in numbers)
    return next((Path(str(name)) for name in named if name), None)
