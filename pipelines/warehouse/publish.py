"""The file that readers open, replaced as a whole.

A DuckDB file that one process has open cannot be written by another, so the job and its readers never share one. A
reader that has the old file open keeps it, unchanged, until it closes it; who opens it next gets the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import duckdb

from .names import named, quoted
from .place import sync_to_disk

FICLONE = 0x40049409  # <linux/fs.h>: share the blocks of another file, on file systems that can


def publish(work: Path, database: Path, held_marts: Sequence[str] = ()) -> int:
    """Replace `database` by a copy of `work`, all or nothing. Returns its size in bytes.

    The marts that are held stay as `database` has them; where it does not have them, nobody gets to see them.

    Nobody may have `work` open; all of it is in the file (`CHECKPOINT`). A process that is killed in here leaves the
    old file whole.
    """
    copy = beside(database)
    clone(work, copy)
    if held_marts:
        _hold(held_marts, copy, database)
    return replaced(database, copy)


def beside(database: Path) -> Path:
    """Where what is to replace a file is made. What a process that was killed has left there goes."""
    for leftover in database.parent.glob(f".{database.name}.*.publishing*"):
        if leftover.is_dir():  # what DuckDB had no memory for
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    return database.with_name(f".{database.name}.{os.getpid()}.publishing")


def replaced(database: Path, copy: Path) -> int:
    """Put a copy in the place of a database. Returns its size in bytes."""
    if database.exists():
        # Who let others read it once, did so for all that is published there.
        copy.chmod(database.stat().st_mode & 0o777)
    copy.replace(database)
    # The log of somebody who wrote into the old file has nothing to say about the new one.
    database.with_name(f"{database.name}.wal").unlink(missing_ok=True)
    sync_to_disk(database.parent)
    return database.stat().st_size


def _hold(marts: Sequence[str], copy: Path, database: Path) -> None:
    with duckdb.connect(str(copy)) as connection:
        known: set[str] = set()
        if database.exists():
            connection.execute(f"ATTACH {quoted(str(database))} AS published (READ_ONLY)")
            known = set(_relations(connection, "published"))
        for mart, kind in _relations(connection).items():
            if mart not in marts:
                continue
            connection.execute(f"DROP {kind} marts.{named(mart)}")
            if mart in known:
                # What was a view is a table here: it would show what others have now.
                connection.execute(f"CREATE TABLE marts.{named(mart)} AS FROM published.marts.{named(mart)}")
        connection.execute("CHECKPOINT")
    sync_to_disk(copy)


def _relations(connection: duckdb.DuckDBPyConnection, catalog: str | None = None) -> dict[str, str]:
    """Of the marts, by name, what kind of relation each is."""
    query = """SELECT table_name, CASE table_type WHEN 'VIEW' THEN 'VIEW' ELSE 'TABLE' END
               FROM information_schema.tables
               WHERE table_schema = 'marts' AND table_catalog = coalesce(?, current_catalog())"""
    return dict(connection.execute(query, [catalog]).fetchall())


def clone(source: Path, target: Path) -> None:
    """Copy a file durably; without copying its bytes, where the file system can share them."""
    with source.open("rb") as original, target.open("wb") as copy:
        try:
            import fcntl

            fcntl.ioctl(copy.fileno(), FICLONE, original.fileno())
        except (ImportError, OSError):
            shutil.copyfileobj(original, copy, 16 * 1024 * 1024)
        copy.flush()
        os.fsync(copy.fileno())
