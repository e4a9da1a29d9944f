"""Change stored rows so that no byte of the old values is left: in the tables, in the marts, in the files.

Imports dlt, so `Workspace.configure_dlt` comes before it. The caller holds the warehouse's lock.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import duckdb
from dlt.common.versioned_state import compress_state, decompress_state

from msgbubbles.source.state import forget_fingerprints
from msgbubbles_sync.dbt.runner import forget_build, transform
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.compaction import compact
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import remove
from msgbubbles_sync.groups.load import PIPELINE as GROUPS
from msgbubbles_sync.policy import applied as privacy
from msgbubbles_sync.settings import TransformSettings
from msgbubbles_sync.sql import quote_name
from msgbubbles_sync.webhooks.load import PIPELINE as WEBHOOKS
from msgbubbles_sync.webhooks.load import load_events
from msgbubbles_sync.webhooks.spool import SEGMENT_SECONDS, list_segments, spool_folder
from msgbubbles_sync.workspace import PIPELINE, Workspace

# A receiver lets go of a segment after this.
SPOOL_SECONDS = 10 * SEGMENT_SECONDS
BUILT = ("marts", "staging")


@contextmanager
def rewriting(
    workspace: Workspace, transforms: TransformSettings, say: Callable[[str], None]
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a connection to change stored rows. First, what is under way (dlt's packages, the spool) is loaded. When the
    block ends, the marts are rebuilt, and the file is rewritten and published.

    May be repeated, and killed: until all of it is done, readers have what was published before. Raises `UsageError` if
    rows are on a server, or a receiver does not release what it has received.
    """
    if workspace.destination != "duckdb":
        raise UsageError("this rewrites a DuckDB file; on a server, delete the rows there and let it vacuum its tables")
    destination = build_destination(workspace)
    destination.prepare()
    _load_pending(workspace)
    with destination.open_writer() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("BEGIN")
        yield connection
        # After an interrupted attempt, only the published file shows whether there were any.
        has_marts = _has_marts(connection) or _has_published_marts(workspace)
        for schema in BUILT:
            connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        for (table,) in connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE schema_name = 'msgbubbles_staging'"
        ).fetchall():
            connection.execute(f"DELETE FROM msgbubbles_staging.{quote_name(table)}")
        _forget_fingerprints(connection)
        workspace.set_pending("publish", *(("transform",) if has_marts else ()))
        connection.execute("COMMIT")
    forget_build(workspace)
    if has_marts:
        say("building the marts")
        transform(workspace, destination, transforms)
        workspace.set_done("transform")
    with destination.open_writer() as connection:
        privacy.store(connection, workspace, destination.write_schema)
    say("writing the database anew")
    compact(workspace.work)
    destination.publish()
    workspace.set_done("publish")
    _remove_leftovers(workspace)


def tables_of(connection: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    """Return the tables that rows are loaded into, and their columns with their types."""
    found: dict[str, dict[str, str]] = {}
    for table, column, kind in connection.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE schema_name = 'msgbubbles' "
        "AND table_oid IN (SELECT table_oid FROM duckdb_tables()) AND table_name NOT IN ('privacy', 'erasures') "
        "AND table_name NOT LIKE '\\_dlt\\_%' ESCAPE '\\'"
    ).fetchall():
        found.setdefault(table, {})[column] = kind
    return found


def _forget_fingerprints(connection: duckdb.DuckDBPyConnection) -> None:
    """Remove from dlt's state which rows it has seen as they were."""
    table = "msgbubbles._dlt_pipeline_state"
    if connection.execute(
        f"SELECT 1 FROM duckdb_tables() WHERE schema_name || '.' || table_name = '{table}'"
    ).fetchall():
        connection.execute(
            f"DELETE FROM {table} WHERE (pipeline_name, version) NOT IN "
            f"(SELECT (pipeline_name, max(version)) FROM {table} GROUP BY pipeline_name)"
        )
        for name, packed in connection.execute(f"SELECT pipeline_name, state FROM {table}").fetchall():
            state: Any = decompress_state(packed)
            forget_fingerprints(state.get("sources", {}).get("msgbubbles", {}).get("resources", {}).values())
            connection.execute(f"UPDATE {table} SET state = ? WHERE pipeline_name = ?", [compress_state(state), name])


def _has_published_marts(workspace: Workspace) -> bool:
    destination = build_destination(workspace)
    if not destination.exists():
        return False
    with destination.open_reader() as published:
        return _has_marts(published)


def _has_marts(connection: duckdb.DuckDBPyConnection) -> bool:
    found = connection.execute("SELECT count(*) FROM duckdb_schemas() WHERE schema_name = 'marts'").fetchall()
    return bool(found != [(0,)])


def _load_pending(workspace: Workspace) -> None:
    """Load what is under way, and remove dlt's working folders, which it restores from the warehouse."""
    if (workspace.folder / "dlt" / PIPELINE).exists():
        pipeline = build_pipeline(workspace)
        if pipeline.has_pending_data:
            pipeline.run()
    time.sleep(0.2)  # what a receiver has already taken is in a segment now
    waiting = set(list_segments(spool_folder(workspace)))
    until = time.monotonic() + SPOOL_SECONDS
    while waiting:
        load_events(workspace)
        waiting &= set(list_segments(spool_folder(workspace)))
        if waiting and time.monotonic() > until:
            raise UsageError("a receiver still holds events; stop webhooks.py serve, and try again")
        time.sleep(0.2)
    for name in (PIPELINE, WEBHOOKS, GROUPS):
        shutil.rmtree(workspace.folder / "dlt" / name, ignore_errors=True)


def _remove_leftovers(workspace: Workspace) -> None:
    """Remove error reports, which may quote rows, and what killed processes left."""
    for path in (workspace.folder / "last_error.txt", workspace.folder / "dbt" / "last_error.txt"):
        path.unlink(missing_ok=True)
    for path in (*workspace.folder.glob("*.copying"), *workspace.find_damaged()):
        remove(path)
