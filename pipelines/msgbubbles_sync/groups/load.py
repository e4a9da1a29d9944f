"""Load the ledger into the warehouse: `group_operations`, `group_member_operations` and `group_sightings`.

Imports dlt, so `Workspace.configure_dlt` comes before it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import dlt

from msgbubbles.lazy_pyarrow import pa
from msgbubbles.redact import Redactor
from msgbubbles.source.arrow import build_arrow_schema
from msgbubbles.storable import replace_unstorable
from msgbubbles.tables import Table
from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.destinations.load import build_fresh_pipeline, build_table_item
from msgbubbles_sync.tables import GROUP_MEMBER_OPERATIONS, GROUP_OPERATIONS, GROUP_SIGHTINGS
from msgbubbles_sync.workspace import Workspace

from .ledger import LEDGER, Entry, Ledger, Observation
from .redact import LedgerRedactor

PIPELINE = "msgbubbles_groups"
MEMBER_OPERATIONS = {"create": "added", "add": "added", "remove": "removed"}


def load_ledger(workspace: Workspace, destination: Destination, redactor: Redactor) -> int:
    """Load new and changed rows of the ledger into the destination. Returns how many there were.

    If there were any, the marts and publishing are marked as pending. The caller holds the lock `job`. May be killed
    and repeated: rows are merged by key, and marked only after they are loaded. Does nothing if the destination has no
    tables, which the first sync creates. Raises `UsageError` if it cannot be reached.
    """
    if not (workspace.folder / LEDGER).exists():
        return 0
    with Ledger.open(workspace.folder) as ledger:
        entries, observations = ledger.not_loaded()
        if not (entries or observations) or not destination.has_tables():
            return 0

        workspace.set_pending("transform", "publish")
        private = LedgerRedactor(redactor)
        _load(
            build_fresh_pipeline(workspace, destination, PIPELINE),
            destination.file_format,
            [redacted for entry, _ in entries if (redacted := private.redact_entry(entry))],
            [private.redact_observation(observation) for observation, _ in observations],
        )
        ledger.set_loaded(entries, observations)
        return len(entries) + len(observations)


def _load(
    pipeline: dlt.Pipeline,
    file_format: Literal["parquet", "csv"],
    entries: list[Entry],
    observations: list[Observation],
) -> None:
    at = datetime.now(UTC)
    resources = [
        _build_resource(GROUP_OPERATIONS, [_build_operation_row(entry, at) for entry in entries]),
        _build_resource(GROUP_MEMBER_OPERATIONS, [row for entry in entries for row in _build_member_rows(entry, at)]),
        _build_resource(GROUP_SIGHTINGS, [_build_observation_row(observation, at) for observation in observations]),
    ]
    pipeline.run(resources, loader_file_format=file_format)


def _build_resource(table: Table, rows: list[dict[str, object]]) -> Any:
    # Without rows, too: the table should exist.
    storable = replace_unstorable(pa.Table.from_pylist(rows, schema=build_arrow_schema(table)), table.json_columns)[0]
    return dlt.resource([build_table_item(table, storable, "delete-insert")], name=table.name)


def _build_operation_row(entry: Entry, at: datetime) -> dict[str, object]:
    row = {name: getattr(entry, name) for name in GROUP_OPERATIONS.column_names if name != "_fetched_at"}
    return row | {"handles": json.dumps(entry.handles), "outcome": entry.outcome or "unknown", "_fetched_at": at}


def _build_member_rows(entry: Entry, at: datetime) -> Iterator[dict[str, object]]:
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


def _build_observation_row(observation: Observation, at: datetime) -> dict[str, object]:
    row = {name: getattr(observation, name) for name in GROUP_SIGHTINGS.column_names if name != "_fetched_at"}
    return row | {
        "handles": None if observation.handles is None else json.dumps(observation.handles),
        "_fetched_at": at,
    }
