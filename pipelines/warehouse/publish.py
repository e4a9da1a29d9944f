"""The file that readers open, replaced as a whole.

A DuckDB file that one process has open cannot be written by another, so the job and its readers never share one. A
reader that has the old file open keeps it, unchanged, until it closes it; who opens it next gets the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb

from .names import named, quoted
from .place import sync_to_disk
from .union import SHOWN, union_of

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
    """Where what is to replace a file is made."""
    for leftover in database.parent.glob(f".{database.name}.*.publishing*"):
        leftover.unlink()
    return database.with_name(f".{database.name}.{os.getpid()}.publishing")


def replaced(database: Path, copy: Path) -> int:
    """Put `copy` into the place of `database`. Returns its size in bytes."""
    if database.exists():
        # Who let others read it once, did so for all that is published there.
        copy.chmod(database.stat().st_mode & 0o777)
    copy.replace(database)
    # The log of somebody who wrote into the old file has nothing to say about the new one.
    database.with_name(f"{database.name}.wal").unlink(missing_ok=True)
    sync_to_disk(database.parent)
    return database.stat().st_size


def combine(files: Mapping[str, Path], database: Path, noted: Path, options: dict[str, Any]) -> None:
    """Replace `database` by one that shows all accounts, whose own are in `files`. What it was made of is in `noted`:
    where that is the same, it stays. `options` are DuckDB's."""
    versions = {account: file.stat().st_mtime_ns for account, file in files.items()}
    with suppress(OSError, ValueError):
        if database.exists() and json.loads(noted.read_text()) == versions:
            return
    copy = beside(database)
    with duckdb.connect(str(copy), config=options) as connection:
        connection.execute("SET preserve_insertion_order = false")
        columns: dict[str, dict[tuple[str, str], list[str]]] = {account: {} for account in files}
        for account, file in files.items():
            connection.execute(f"ATTACH {quoted(str(file))} AS {named(account)} (READ_ONLY)")
        query = """SELECT database_name, schema_name, table_name, column_name FROM duckdb_columns()
                   ORDER BY database_name, schema_name, table_name, column_index"""
        for account, schema, table, column in connection.execute(query).fetchall():
            if account in columns:
                columns[account].setdefault((schema, table), []).append(column)
        for schema in SHOWN:
            connection.execute(f"CREATE SCHEMA {schema}")
        shown = union_of(columns, lambda account, schema, table: f"{named(account)}.{schema}.{named(table)}")
        for (schema, table), (_, made_by) in shown.items():
            connection.execute(f"CREATE TABLE {schema}.{named(table)} AS {made_by}")
        for account in files:
            connection.execute(f"DETACH {named(account)}")
        connection.execute("CHECKPOINT")
    sync_to_disk(copy)
    replaced(database, copy)
    noted.write_text(json.dumps(versions))


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
