"""What a failure of this machine means, and how to mend it. What DuckDB, dlt and sqlite say may quote rows, so none of
it is repeated; only what kind of trouble it is, and where."""

from __future__ import annotations

import errno
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import duckdb

from .destinations import destination_of
from .place import Place

FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
# DuckDB and sqlite, and dlt around them, tell it in words only.
FULL_WORDS = re.compile(
    "no space left on device|file too large|disk quota exceeded|database or disk is full|out of disk space", re.I
)
REFUSED_WORDS = re.compile("read-only file system|permission denied|readonly database|in read-only mode", re.I)
NO_DATABASE_WORDS = re.compile("not a valid duckdb database|corrupt|failed to deserialize|checksum", re.I)


def trouble_of(error: BaseException, place: Place) -> str | None:
    """What is wrong and how to mend it; null where this cannot be told."""
    causes = list(_causes(error))
    meant = destination_of(place).explain("\n".join(str(cause) for cause in causes))
    if meant is not None:
        return meant
    if any(_is(cause, FULL, FULL_WORDS) for cause in causes):
        return (
            f"no space is left to write beside {place.database} (or a file may not grow that large): free some; what "
            "was loaded stays, and the next run goes on from there"
        )
    if any(_is(cause, REFUSED, REFUSED_WORDS) for cause in causes):
        return (
            f"{_refused_path(causes, place)} cannot be written: let the user of this job write there, or choose "
            "another --database; the published file is as it was"
        )
    if any(isinstance(cause, duckdb.Error) and NO_DATABASE_WORDS.search(str(cause)) for cause in causes):
        return (
            f"{place.work} is damaged: remove it; the next run begins with the published file, and reads again what "
            "that does not have"
        )
    if any(_is_of_dlt(cause) for cause in causes):
        return (
            f"a load could not be finished, or dlt's files are damaged: run again, and if it stays so, remove "
            f"{place.folder / 'dlt'}; the next run restores it from the warehouse, and reads again what was not loaded"
        )
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and whatever it comes from."""
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
    if isinstance(cause, OSError):
        return cause.errno in numbers
    named = isinstance(cause, duckdb.Error | sqlite3.Error) or type(cause).__module__.startswith(("dlt.", "pyarrow"))
    return named and bool(words.search(str(cause)))


def _is_of_dlt(cause: BaseException) -> bool:
    return type(cause).__module__.startswith("dlt.") or isinstance(cause, ValueError)


def _refused_path(causes: list[BaseException], place: Place) -> Path:
    for cause in causes:
        if isinstance(cause, OSError) and cause.filename:
            return Path(str(cause.filename))
    return place.folder
