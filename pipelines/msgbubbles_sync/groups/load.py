"""The ledger's copy in the warehouse: `group_operations`, `group_member_operations` and `group_sightings`.

Importing this is cheap; dlt is only imported when there is something to land. `Workspace.configure_dlt` comes before.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from msgbubbles_sync.workspace import Workspace

from .ledger import Entry, Ledger, Observation

PIPELINE = "msgbubbles_groups"
MEMBER_OPERATIONS = {"create": "added", "add": "added", "remove": "removed"}
COLUMNS: dict[str, dict[str, str]] = {
    "group_operations": {
        "operation_id": "text", "plan_id": "text", "key": "text", "operation": "text", "chat_id": "text",
        "handles": "json", "title": "text", "requested_at": "timestamp", "finished_at": "timestamp", "outcome": "text",
        "http_status": "bigint", "error_code": "text", "error_message": "text", "request_id": "text",
        "_fetched_at": "timestamp",
    },
    "group_member_operations": {
        "id": "text", "operation_id": "text", "chat_id": "text", "handle": "text", "operation": "text",
        "happened_at": "timestamp", "_fetched_at": "timestamp",
    },
    "group_sightings": {
        "key": "text", "chat_id": "text", "from_handle": "text", "title": "text", "handles": "json", "is_gone": "bool",
        "seen_at": "timestamp", "_fetched_at": "timestamp",
    },
}  # fmt: skip


def load_ledger(workspace: Workspace) -> int:
    """Bring the copy of the ledger in the work database up to date. Returns how many rows of the ledger were new or had
    changed; without any, nothing is done. The marts and the published file are then due, and are marked so.

    The caller holds the warehouse's lock. May be repeated, and killed: rows are merged by their keys, and a row counts
    as landed once it is loaded. Without a work database nothing is landed: the first sync makes it.
    """
    path = workspace.folder / "groups.sqlite"
    if not path.exists() or not workspace.work.exists():
        return 0
    with Ledger.of(workspace.folder) as ledger:
        entries, observations = ledger.not_landed()
        if not entries and not observations:
            return 0
        from msgbubbles_sync.policy.applied import redactor_of

        from .redact import PrivateLedger

        workspace.set_pending("transform", "publish")
        private = PrivateLedger(redactor_of(workspace))
        _load(
            workspace,
            [kept for entry, _ in entries if (kept := private.entry(entry))],
            [private.observation(observation) for observation, _ in observations],
        )
        ledger.set_landed(entries, observations)
        return len(entries) + len(observations)


def _load(workspace: Workspace, entries: list[Entry], observations: list[Observation]) -> None:
    from msgbubbles_sync.destinations.load import build_pipeline

    pipeline = build_pipeline(workspace, PIPELINE)
    if pipeline.has_pending_data:
        # A run with a package left over loads that one and extracts nothing.
        pipeline.run()
    at = datetime.now(UTC)
    rows = {
        "group_operations": [_operation_row(entry, at) for entry in entries],
        "group_member_operations": [row for entry in entries for row in _member_rows(entry, at)],
        "group_sightings": [_sighting_row(observation, at) for observation in observations],
    }
    pipeline.run([_resource(table, rows[table]) for table in COLUMNS], loader_file_format="parquet")


def _resource(table: str, rows: list[dict[str, Any]]) -> Any:
    import dlt
    import pyarrow as pa

    from msgbubbles.source.buffer import arrow_types
    from msgbubbles.source.storable import storable

    columns = COLUMNS[table]
    types = arrow_types()
    key = next(iter(columns))
    schema = pa.schema(
        [pa.field(name, types[kind], nullable=name not in (key, "_fetched_at")) for name, kind in columns.items()]
    )
    hints: Any = {
        name: {"name": name, "data_type": kind, "nullable": name not in (key, "_fetched_at")}
        for name, kind in columns.items()
    }
    return dlt.resource(
        # With no rows as well: a query on an empty table finds it.
        [storable(pa.Table.from_pylist(rows, schema=schema), [name for name in columns if columns[name] == "json"])[0]],
        name=table,
        primary_key=key,
        columns=hints,
        write_disposition={"disposition": "merge", "strategy": "delete-insert"},
    )


def _operation_row(entry: Entry, at: datetime) -> dict[str, Any]:
    row = {name: getattr(entry, name) for name in COLUMNS["group_operations"] if name != "_fetched_at"}
    # Without a verdict, nobody knows yet.
    return row | {"handles": json.dumps(entry.handles), "outcome": entry.outcome or "unknown", "_fetched_at": at}


def _member_rows(entry: Entry, at: datetime) -> Iterator[dict[str, Any]]:
    if entry.outcome != "succeeded" or entry.operation not in MEMBER_OPERATIONS:
        return
    for handle in entry.handles:
        yield {
            "id": f"{entry.operation_id}|{handle}",
            "operation_id": entry.operation_id,
            "chat_id": entry.chat_id,
            "handle": handle,
            "operation": MEMBER_OPERATIONS[entry.operation],
            "happened_at": entry.happened_at,
            "_fetched_at": at,
        }


def _sighting_row(observation: Observation, at: datetime) -> dict[str, Any]:
    row = {name: getattr(observation, name) for name in COLUMNS["group_sightings"] if name != "_fetched_at"}
    return row | {
        "handles": None if observation.handles is None else json.dumps(observation.handles),
        "_fetched_at": at,
    }
