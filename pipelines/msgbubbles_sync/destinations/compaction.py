"""Rewrite a DuckDB file without the space of deleted rows, which DuckDB would reuse but not release."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import duckdb

from msgbubbles_sync.files import follow_links, is_older_than, sync_to_disk
from msgbubbles_sync.sql import quote_literal, quote_name, use_one_thread
from msgbubbles_sync.workspace import DATASET

from .publish import Options

# A file is rewritten if more than this share is free: a large one, which takes seconds, once a day at most, a small one
# every few minutes.
MAX_FREE_SHARE = 0.2
LARGE_BYTES = 64 * 1024 * 1024
LARGE_INTERVAL_SECONDS = 24 * 3600
SMALL_INTERVAL_SECONDS = 240
# dlt adds a row for each change of its state, and reads only the newest.
MAX_STATES = 10
STATES = "_dlt_pipeline_state"


def drop_leftovers(connection: duckdb.DuckDBPyConnection) -> None:
    """Drop what dlt has left in a database, and write all changes to its file."""
    drop_old_states(connection, DATASET)
    connection.execute(f"DROP SCHEMA IF EXISTS {DATASET}_staging CASCADE")  # dlt creates it again
    with use_one_thread(connection):
        connection.execute("CHECKPOINT")


def should_compact(connection: duckdb.DuckDBPyConnection, stamp: Path) -> bool:
    """Return whether too much of a database's file is free. `stamp` is a file modified when it was last compacted."""
    free, total, bytes_each = connection.execute(
        "SELECT free_blocks, total_blocks, block_size FROM pragma_database_size() "
        "WHERE database_name = current_catalog()"
    ).fetchall()[0]
    interval_seconds = SMALL_INTERVAL_SECONDS if total * bytes_each < LARGE_BYTES else LARGE_INTERVAL_SECONDS
    return bool(free > MAX_FREE_SHARE * total and is_older_than(stamp, interval_seconds))


def drop_old_states(connection: duckdb.DuckDBPyConnection, schema: str) -> None:
    """Delete the states of dlt that it no longer reads, which grow with each run."""
    states = f"{schema}.{STATES}"
    with suppress(duckdb.CatalogException):  # before the first load
        connection.execute(
            f"DELETE FROM {states} WHERE _dlt_load_id NOT IN (SELECT _dlt_load_id FROM {states} "  # noqa: S608
            f"QUALIFY row_number() OVER (PARTITION BY pipeline_name ORDER BY _dlt_load_id DESC) <= {MAX_STATES}) "
            f"AND (SELECT count(*) FROM {states}) > {2 * MAX_STATES}"  # not in each run: a lake writes a file
        )


def compact(work: Path, options: Options | None = None) -> None:
    """Write a database to a new file that then replaces it, all or nothing. No process may have it open."""
    file = follow_links(work)[-1]
    new = file.with_name(f"{file.name}.compacting")
    for leftover in (new, new.with_name(f"{new.name}.wal")):
        leftover.unlink(missing_ok=True)
    with duckdb.connect(str(work), config=options or {}) as connection:
        connection.execute("CHECKPOINT")
        [(catalog,)] = connection.execute("SELECT current_catalog()").fetchall()
        connection.execute(f"ATTACH {quote_literal(str(new))} AS compacted")
        connection.execute(f"COPY FROM DATABASE {quote_name(catalog)} TO compacted")
        connection.execute("CHECKPOINT compacted")
        connection.execute("DETACH compacted")
    new.chmod(0o600)
    sync_to_disk(new)
    new.replace(file)
    work.with_name(f"{work.name}.wal").unlink(missing_ok=True)
    sync_to_disk(file.parent)
