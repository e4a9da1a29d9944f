"""Messages as events have changed them: what an event shows of a message that is stored, laid over it.

Nothing older ever replaces something newer, and no two clocks are compared to find that out. What only moves one way
(a status, the times that are set once) moves that way. All else an event shows of a message is taken where the
message's own `updated_at` is later than the stored one. A message that is not stored is read, not made up of events.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from msgbubbles.landing import COLUMNS, arrow_table, json_text
from msgbubbles.models import Message, read_row
from msgbubbles.storable import storable

from .events import Event

if TYPE_CHECKING:
    import pyarrow as pa

    from msgbubbles.stored import Warehouse

RANKS = {"queued": 0, "sent": 1, "failed": 2, "delivered": 3, "read": 4}
STATUS_OF_TYPE = {
    "message.sent": "sent", "message.delivered": "delivered", "message.read": "read", "message.failed": "failed",
}  # fmt: skip
# Each is set once, by the event of that name.
TIMES = {"sent_at": "message.sent", "delivered_at": "message.delivered", "read_at": "message.read"}
WIRE_NAMES = {"sender_handle": "sender", "attachment_count": "", "cursor_at": "", "_read_at": ""}
Row = dict[str, Any]


def changed_messages(stored: Iterable[Row], events: Iterable[Event]) -> list[Row]:
    """The stored rows that the events have changed, as they are now; `events` in the order in which they occurred."""
    rows = {row["id"]: row for row in stored}
    changed: dict[str, Row] = {}
    for event in events:
        message_id = event.message_id or ""
        row = changed.get(message_id) or rows.get(message_id)
        if row is None or not event.is_of_a_message:
            continue
        after = _after(row, event)
        if after != row:
            changed[message_id] = after | {"_read_at": max(row["_read_at"], event.received_at)}
    return list(changed.values())


def stored_messages(warehouse: Warehouse, events: Iterable[Event]) -> list[Row]:
    """The stored rows of the messages that events are about."""
    import pyarrow as pa

    wanted = arrow_table(COLUMNS["messages"], ()).schema
    ids = list(dict.fromkeys(event.message_id for event in events if event.is_of_a_message))
    keys = pa.table({"id": ids, "cursor_at": pa.nulls(len(ids), wanted.field("cursor_at").type)})
    stored = warehouse.rows("messages", keys) if ids else None
    return [] if stored is None else list(stored.select(wanted.names).cast(wanted).to_pylist())


def messages_table(rows: list[Row]) -> pa.Table:
    """The rows as they land."""
    import pyarrow as pa

    table = pa.Table.from_pylist(rows, schema=arrow_table(COLUMNS["messages"], ()).schema)
    return storable(table, [column.name for column in COLUMNS["messages"] if column.type == "json"])[0]


def _after(row: Row, event: Event) -> Row:
    shown = _shown(event)
    updated_at = shown.get("updated_at")
    if updated_at is not None and row["updated_at"] is not None and updated_at > row["updated_at"]:
        after = row | shown | {"extra": _joined(row["extra"], shown.get("extra"))}
    else:
        after = row | _progress(row, event, shown)
    return after | {"cursor_at": after["created_at"] or after["sent_at"]}


def _progress(row: Row, event: Event, shown: Row) -> Row:
    """What moves one way only, as far as the event is ahead of the row."""
    progress: Row = {}
    # A message that came in keeps its status when it is read.
    status = shown.get("status") or (STATUS_OF_TYPE.get(event.event_type or "") if _is_outbound(row) else None)
    if _is_ahead(status, row["status"]):
        progress["status"] = status
        if status == "failed" and "error" in shown:
            progress["error"] = shown["error"]
    for name, event_type in TIMES.items():
        at = shown.get(name) or (event.occurred_at if event.event_type == event_type else None)
        if row[name] is None and at is not None:
            progress[name] = at
    return progress


def _is_outbound(row: Row) -> bool:
    return bool(row["direction"] != "inbound")


def _is_ahead(status: str | None, stored: str | None) -> bool:
    if status not in RANKS or (stored is not None and stored not in RANKS):
        return False
    return stored is None or RANKS[status] > RANKS[stored]


def _joined(stored: str | None, shown: str | None) -> str | None:
    """Fields that this version does not know, those of the event before those that are stored."""
    if stored is None or shown is None:
        return shown or stored
    return json.dumps(json.loads(stored) | json.loads(shown), ensure_ascii=False)


def _shown(event: Event) -> Row:
    """What an event shows of the message, as it would land: only the fields that are in it."""
    if not event.message:
        return {} if event.status is None else {"status": event.status}
    raw = msgspec.Raw(json.dumps(event.message | {"id": event.message_id}).encode())
    message, _ = read_row(Message, raw, "messages", None)
    if message is None:
        return {}
    found: Row = {}
    for column in COLUMNS["messages"]:
        wire = WIRE_NAMES.get(column.name, column.name)
        if wire in event.message or column.name == "extra":
            value = getattr(message, column.name)
            found[column.name] = json_text(value) if column.type == "json" else value
    return found
