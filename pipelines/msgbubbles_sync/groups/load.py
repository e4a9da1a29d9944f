"""Load the ledger into the warehouse: `group_operations`, `group_member_operations` and `group_sightings`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from msgbubbles.redact import Redactor
from msgbubbles.tables import Table
from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.destinations.load import load_rows
from msgbubbles_sync.tables import GROUP_MEMBER_OPERATIONS, GROUP_OPERATIONS, GROUP_SIGHTINGS

from .ledger import LEDGER, Entry, Ledger, Observation
from .redact import redact_row

PIPELINE = "msgbubbles_groups"
MEMBER_OPERATIONS = {"create": "added", "add": "added", "remove": "removed"}


def load_ledger(destination: Destination, redactor: Redactor) -> int:
    """Load new and changed rows of the ledger into the destination. Returns how many there were.

    If there were any, the marts and publishing are marked as pending. The caller holds the lock `job`. May be killed
    and repeated: rows are merged by key, and marked only after they are loaded. Does nothing if the destination has no
    tables, which the first sync creates. Raises `UsageError` if it cannot be reached.
    """
    workspace = destination.workspace
    if not (workspace.folder / LEDGER).exists():
        return 0
    with Ledger.open(workspace.folder) as ledger:
        entries, observations = ledger.list_unloaded()
        if not (entries or observations) or not destination.has_tables():
            return 0

        workspace.set_pending("transform", "publish")
        at = datetime.now(UTC)
        operations = [redacted for entry, _ in entries if (redacted := redact_row(redactor, GROUP_OPERATIONS, entry))]
        states = [redact_row(redactor, GROUP_SIGHTINGS, observation) for observation, _ in observations]
        rows = (
            (GROUP_OPERATIONS, [_build_row(GROUP_OPERATIONS, entry, at) for entry in operations]),
            (GROUP_MEMBER_OPERATIONS, [row for entry in operations for row in _list_members(entry, at)]),
            (GROUP_SIGHTINGS, [_build_row(GROUP_SIGHTINGS, state, at) for state in states]),
        )
        load_rows(destination, PIPELINE, rows)
        ledger.set_loaded(entries, observations)
        return len(entries) + len(observations)


def _build_row(table: Table, record: Entry | Observation | None, at: datetime) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in table.column_names if name != "_fetched_at"}
    row |= {"handles": None if row["handles"] is None else json.dumps(row["handles"]), "_fetched_at": at}
    # The request of an operation without an outcome is in flight, or its process was killed.
    return row if "outcome" not in row else row | {"outcome": row["outcome"] or "unknown"}


def _list_members(entry: Entry, at: datetime) -> Iterator[dict[str, Any]]:
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
