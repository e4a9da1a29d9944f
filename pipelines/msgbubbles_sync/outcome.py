"""Map what ended a command to an exit status, and to a message that says how to fix it.

Messages of DuckDB, dlt and sqlite may quote rows, so they are not repeated: only the kind of failure, and its file.
"""

from __future__ import annotations

import errno
import re
import shutil
import sqlite3
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import duckdb

from msgbubbles.errors import ConfigurationError, Interrupted, LimitReached, MsgBubblesError

from .context import Context
from .destinations.publish import DAMAGE_WORDS
from .errors import TransformError, list_causes, was_interrupted
from .extras import missing_extra
from .files import FULL, write_privately
from .lock import AnotherJobRunsError, JobStalledError
from .policy.applied import describe_error

EXIT_FAILED, EXIT_USAGE, EXIT_INCOMPLETE, EXIT_LOCKED, EXIT_STOPPED = 1, 2, 3, 75, 130
STOPPED = "stopped immediately; loaded rows stay, and the next run continues from there"

REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
# Something else is in the place of a file or a folder of the job.
WRONG_KINDS = {
    errno.EISDIR: "is a folder, and has to be a file",
    errno.ENOTDIR: "is in a file, which has to be a folder",
    errno.EEXIST: "is a file, or a link that leads nowhere, and has to be a folder",
    errno.ELOOP: "is a link that leads nowhere, or back to itself",
}
# DuckDB, sqlite and dlt report these in words only.
FULL_WORDS = re.compile(
    "no space left on device|file too large|disk quota exceeded|database or disk is full|out of disk space", re.I
)
REFUSED_WORDS = re.compile("read-only file system|permission denied|readonly database|in read-only mode", re.I)
# In Python, a thread that cannot start is a RuntimeError, and a library that cannot be mapped an ImportError.
MEMORY_WORDS = re.compile("cannot allocate memory|out of memory|can't start new thread|failed to map segment", re.I)
# The file that DuckDB could not open.
OPENED = re.compile(r'cannot open file "([^"]+)"', re.I)
CHANGED_TABLE = re.compile(
    r'(?:column "\w+" of )?relation "[\w.]+" does not exist|Table with name \w+ does not exist'
    r'|column "\w+" is of type [\w ]+ but expression is of type [\w ]+'
)
LOCK_WORDS = re.compile(r"could not set lock on file .*?(?:\(PID (\d+)\)|$)", re.I | re.S)


@dataclass(frozen=True)
class Outcome:
    """The exit status of a command, and what ended it early; `message` is empty if nothing did."""

    exit_status: int
    message: str = ""


def explain_end(ended_by: BaseException | None, context: Context | None, *, is_incomplete: bool = False) -> Outcome:
    """Return the outcome of a command that `ended_by` ended early; null if it reached its end.

    `is_incomplete` is whether something needs a look. Details of an error, which may quote rows, are written to a file
    of the workspace that only its owner can read.
    """
    if ended_by is None or isinstance(ended_by, LimitReached):
        return Outcome(EXIT_INCOMPLETE if is_incomplete else 0, str(ended_by or ""))
    if isinstance(ended_by, AnotherJobRunsError):
        return Outcome(EXIT_FAILED if isinstance(ended_by, JobStalledError) else EXIT_LOCKED, str(ended_by))
    if isinstance(ended_by, ConfigurationError):
        return Outcome(EXIT_USAGE, str(ended_by))
    if isinstance(ended_by, ModuleNotFoundError) and (missing := missing_extra(ended_by)):
        return Outcome(EXIT_USAGE, missing)
    if was_interrupted(ended_by):
        return Outcome(EXIT_STOPPED, STOPPED)
    if isinstance(ended_by, Interrupted):
        return Outcome(EXIT_STOPPED, str(ended_by))
    if isinstance(ended_by, MsgBubblesError | TransformError) or context is None:
        return Outcome(EXIT_FAILED, str(ended_by))
    # By its name, because importing dlt takes seconds.
    if type(ended_by).__name__ == "ConfigValueCannotBeCoercedException":
        field = getattr(ended_by, "field_name", "a setting")
        return Outcome(EXIT_USAGE, f"{field} has a value of the wrong type; set it as dlt_config/config.toml shows")
    message = find_cause(ended_by, context) or f"{type(ended_by).__name__}; loaded rows stay"
    with suppress(OSError):  # a full or read-only disk
        path = write_privately(context.workspace.folder / "last_error.txt", describe_error(ended_by, context.workspace))
        message += f". Details, which may quote your data: {path}"
    return Outcome(EXIT_FAILED, message)


def find_cause(error: BaseException, context: Context) -> str | None:
    """Return what is wrong and how to fix it; null if that is not known."""
    causes, workspace = list_causes(error), context.workspace
    reason = context.destination.explain("\n".join(str(cause) for cause in causes))
    if reason is not None:
        return reason
    if any(_is_out_of_memory(cause) for cause in causes):
        return (
            "out of memory: give this process more (ulimit -v, or its container's limit), lower parallel_requests or "
            "batch_pages, or raise [sync] memory_limit; loaded rows stay, and the next run continues from there"
        )
    if any(_matches(cause, FULL, FULL_WORDS) for cause in causes):
        path = _find_path(causes, FULL) or _find_fullest(context)
        return (
            f"no space left for {path}, or a file may not grow that large: free some space; loaded rows stay, and the "
            "next run continues from there"
        )
    if any(_matches(cause, REFUSED, REFUSED_WORDS) for cause in causes):
        path = _find_path(causes, REFUSED) or workspace.folder
        if not path.is_relative_to(workspace.file.parent) and not path.is_relative_to(workspace.folder):
            return f"{path} cannot be read or written: give the user of this job access"
        return (
            f"{path} cannot be written: give the user of this job access, or choose another --database; the "
            "published file has not changed"
        )
    locked = next(filter(None, (LOCK_WORDS.search(str(cause)) for cause in causes if _names_its_kind(cause))), None)
    if locked is not None:
        holder = f"process {locked[1]}" if locked[1] else "another process"
        return f"{workspace.work} is open in {holder}: close it there; readers should open {workspace.database}"
    if any(isinstance(cause, duckdb.Error) and DAMAGE_WORDS.search(str(cause)) for cause in causes):
        return (
            f"{workspace.work} or {workspace.database} is damaged: run again; the next run restores one from the "
            "other, and reads again what neither has"
        )
    failed = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno is not None), None)
    if failed is not None:
        path = failed.filename2 or failed.filename  # the new name, if a file could not be renamed
        if path and failed.errno in WRONG_KINDS:
            return f"{path} {WRONG_KINDS[failed.errno]}: move it away, and run again; loaded rows stay"
        return f"{f'{path}: ' if path else ''}{failed.strerror}; loaded rows stay"
    changed = next(filter(None, (CHANGED_TABLE.search(str(cause)) for cause in causes)), None)
    if changed is not None:
        return (
            f"{context.destination.title}: {changed[0]}, because somebody has changed the table. Run again: the next "
            "run changes it back and reads its rows again"
        )
    if any(type(cause).__module__.startswith("dlt.") for cause in causes):
        return (
            f"a load did not finish ({type(causes[-1]).__name__}): run again; the next run continues it, and loaded "
            "rows stay"
        )
    return None


def _matches(cause: BaseException, numbers: set[int], words: re.Pattern[str]) -> bool:
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.errno in numbers
    return _names_its_kind(cause) and bool(words.search(str(cause)))


def _names_its_kind(cause: BaseException) -> bool:
    """Return whether the message of an error can be searched for the kind of the failure."""
    modules = ("dlt.", "pyarrow")
    return isinstance(cause, duckdb.Error | sqlite3.Error | OSError) or type(cause).__module__.startswith(modules)


def _is_out_of_memory(cause: BaseException) -> bool:
    kinds = (MemoryError, duckdb.OutOfMemoryException)
    is_searched = isinstance(cause, RuntimeError | ImportError) or _names_its_kind(cause)
    return isinstance(cause, kinds) or (is_searched and bool(MEMORY_WORDS.search(str(cause))))


def _find_fullest(context: Context) -> Path:
    """Return the folder that a run writes to whose disk has the least space."""
    workspace, vault = context.workspace, context.settings.vault
    folders = [workspace.folder, workspace.file.parent, *([vault.parent] if vault else [])]
    with suppress(FileNotFoundError):  # no folder for temporary files has space left
        folders.append(Path(tempfile.gettempdir()))
    return min(filter(Path.exists, folders), key=lambda folder: shutil.disk_usage(folder).free)


def _find_path(causes: list[BaseException], numbers: set[int]) -> Path | None:
    """Return the file that a system error names."""
    names = [cause.filename for cause in causes if isinstance(cause, OSError) and cause.errno in numbers]
    names += [found[1] for cause in causes if isinstance(cause, duckdb.Error) and (found := OPENED.search(str(cause)))]
    return next((Path(str(name)) for name in names if name), None)
