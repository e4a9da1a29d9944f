"""Change stored rows so that no byte of the old values is left in the tables, the marts or the files.

The caller holds the warehouse's lock.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb

from msgbubbles.source.lazy_dlt import versioned_state
from msgbubbles.source.state import forget_fingerprints
from msgbubbles_sync.contact_aliases import PIPELINE as CONTACTS
from msgbubbles_sync.context import Context
from msgbubbles_sync.dbt.build_result import store_build_result
from msgbubbles_sync.dbt.project import list_models
from msgbubbles_sync.dbt.runner import check_tools, forget_build, transform
from msgbubbles_sync.destinations.compaction import STATES
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.errors import TransformError
from msgbubbles_sync.groups.load import PIPELINE as GROUPS
from msgbubbles_sync.policy import applied as policy
from msgbubbles_sync.sql import list_tables
from msgbubbles_sync.tables import TABLES
from msgbubbles_sync.webhooks.load import PIPELINE as WEBHOOKS
from msgbubbles_sync.webhooks.load import load_events
from msgbubbles_sync.webhooks.spool import SEGMENT_SECONDS, list_segments, list_unreadable, spool_folder
from msgbubbles_sync.workspace import DATASET, PIPELINE, Step

# dlt's states. They hold fingerprints of rows, and ids of chats.
STORED_STATES = f"{DATASET}.{STATES}"
# A receiver releases a segment after `SEGMENT_SECONDS`.
SPOOL_SECONDS = 10 + SEGMENT_SECONDS
COLUMN_TYPES = r"""SELECT table_name, column_name, data_type FROM duckdb_columns()
WHERE database_name = current_database() AND schema_name = 'msgbubbles'
AND (database_oid, table_oid) IN (SELECT (database_oid, table_oid) FROM duckdb_tables())
AND table_name NOT IN ('privacy', 'erasures') AND table_name NOT LIKE '\_dlt\_%' ESCAPE '\'"""


@contextmanager
def rewriting(context: Context, finishes: Step | None = None) -> Iterator[StoredRows]:
    """Open the stored rows to change them. First, pending loads and the spool are loaded.

    When the block ends, the marts are rebuilt and published. `files.purge_files` has to follow: until then,
    the step `privacy_files` is pending. A process that is killed in between leaves work that can be repeated. The step
    `finishes` is done once the tables are published. A change of the policy leaves marts and publishing to the erasure
    that is pending, which has to follow.

    Raises `UsageError` if marts cannot be rebuilt here, and `TransformError` if that fails. The tables are published
    before, with marts that cannot be rebuilt empty or missing: readers would keep rows that should have changed.
    """
    workspace, destination, say = context.workspace, context.destination, context.console.say
    destination.prepare()
    # After an interrupted attempt, only the published tables may show whether marts were built.
    has_marts = destination.has_marts()
    if has_marts:
        check_tools(destination)
    _load_pending(context)
    with destination.rewrite_rows() as connection:
        yield StoredRows(connection)
        _forget_fingerprints(connection)
        workspace.set_pending("privacy_files", "publish", *(("transform",) if has_marts else ()))
    if finishes == "policy" and workspace.is_pending("erase"):
        workspace.set_done(finishes)
        return
    if has_marts:
        workspace.set_pending("dropped_marts")
    has_dropped_all, failure = destination.drop_marts(), None
    forget_build(workspace)
    if has_marts:
        say("building the marts")
        try:
            built = transform(destination, context.settings)
            store_build_result(workspace, replace(built, is_published=True))
            unbuilt = built.unbuilt_marts
            workspace.set_done("transform", "build")
        except (TransformError, OSError, ImportError) as error:  # dbt may not even be there
            unbuilt, failure = list_models(), error
        if unbuilt and not has_dropped_all:
            workspace.set_pending("transform")
            forget_build(workspace)
            destination.empty_marts(unbuilt)
    policy.store_copy(destination)
    say("rewriting the database")
    destination.publish_rewritten()
    workspace.set_done("publish", "dropped_marts")
    if finishes is not None:
        workspace.set_done(finishes)
    if failure is not None:
        what_is_left = "missing" if has_dropped_all else "empty"
        raise TransformError(
            f"the tables are changed and published, but the marts are {what_is_left}: {failure}"
        ) from failure


class StoredRows:
    """The rows of a connection that changes them.

    `types` are those of the columns of each loaded table that exists; other tables have no rows. `counts` are the rows
    that were deleted or changed, by table.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.connection = connection
        self.types: dict[str, dict[str, str]] = {}
        self.counts: Counter[str] = Counter()
        for table, column, kind in connection.execute(COLUMN_TYPES).fetchall():
            self.types.setdefault(table, {})[column] = kind
        for gone in ("gone_chats", "gone_messages", "gone_people"):
            connection.execute(f"CREATE OR REPLACE TEMP TABLE {gone} (id VARCHAR)")

    def fetch(self, table: str, query: str, *values: Any) -> list[Any]:
        """Return the rows of a query on a table."""
        return self.connection.execute(query, values).fetchall() if table in self.types else []

    def change(self, table: str, statement: str, *values: Any) -> int:
        """Execute a DELETE or UPDATE of a table, and return how many rows it changed."""
        (row,) = self.fetch(table, statement, *values) or [(0,)]
        if row[0]:
            self.counts[table] += row[0]
        return int(row[0])

    def delete_gone(self) -> None:
        """Delete the rows of what is in the temporary tables `gone_chats`, `gone_messages` and `gone_people`."""
        for table in TABLES.values():
            keys = {table.chat_key: "gone_chats", table.message_key: "gone_messages", table.person_key: "gone_people"}
            stored = self.types.get(table.name, {})
            conditions = [f"{key} IN (SELECT id FROM {gone})" for key, gone in keys.items() if key in stored]
            if conditions:
                self.change(table.name, f"DELETE FROM msgbubbles.{table.name} WHERE {' OR '.join(conditions)}")


def _forget_fingerprints(connection: duckdb.DuckDBPyConnection) -> None:
    """Remove the hashes of the rows that were read from dlt's state, and all but its newest version."""
    if STATES not in list_tables(connection, DATASET):
        return
    connection.execute(
        f"DELETE FROM {STORED_STATES} WHERE (pipeline_name, version) NOT IN "
        f"(SELECT (pipeline_name, max(version)) FROM {STORED_STATES} GROUP BY pipeline_name)"
    )
    for name, packed in connection.execute(f"SELECT pipeline_name, state FROM {STORED_STATES}").fetchall():
        state: Any = versioned_state.decompress_state(packed)
        forget_fingerprints(state.get("sources", {}).get("msgbubbles", {}).get("resources", {}).values())
        statement = f"UPDATE {STORED_STATES} SET state = ? WHERE pipeline_name = ?"
        connection.execute(statement, [versioned_state.compress_state(state), name])


def _load_pending(context: Context) -> None:
    """Load pending packages and the spool, and remove dlt's folders, which it restores from the warehouse."""
    workspace = context.workspace
    if (workspace.dlt_folder / PIPELINE).exists():
        pipeline = build_pipeline(context.destination)
        if pipeline.has_pending_data:
            pipeline.run()
    time.sleep(0.2)  # events that a receiver has just accepted are in a segment by then
    with suppress(OSError):  # `purge_files` tries again
        load_spool(context)
    for name in (PIPELINE, WEBHOOKS, GROUPS, CONTACTS):
        shutil.rmtree(workspace.dlt_folder / name, ignore_errors=True)


def load_spool(context: Context) -> list[Path]:
    """Load the events that are in the spool now, as they are under the current policy.

    Returns the files that cannot be loaded: they cannot be read, or a receiver does not release them.
    """
    spool = spool_folder(context.workspace)
    waiting, unreadable = set(list_segments(spool)), set[Path]()
    current = replace(context)  # with a new redactor: the policy or the erased people have changed
    deadline = time.monotonic() + SPOOL_SECONDS
    while waiting - unreadable and time.monotonic() < deadline:
        load_events(current)
        waiting &= set(list_segments(spool))
        unreadable = set(list_unreadable(spool))
        if waiting - unreadable:
            time.sleep(0.2)
    return sorted({*waiting, *list_unreadable(spool)})
