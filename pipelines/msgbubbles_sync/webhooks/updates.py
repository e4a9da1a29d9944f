"""Messages as events have changed them: what an event shows of a message that is stored, laid over it.

Nothing older ever replaces something newer, and no two clocks are compared to find that out. What only moves one way
(a status, the times that are set once) moves that way. All else an event shows of a message is taken where the
message's own `updated_at` is later than the stored one. A message that is not stored is read, not made up of events.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import msgspec

from msgbubbles.decode import read_row
from msgbubbles.models import Message
from msgbubbles.source.arrow import arrow_schema, to_json_text
from msgbubbles.source.lazy_pyarrow import pa
from msgbubbles.source.progress import SET_ONCE, get_status_rank, is_ahead
from msgbubbles.source.storable import storable
from msgbubbles.source.stored import Warehouse
from msgbubbles.tables import MESSAGES

from .events import Event
from .times import parse_time

STATUS_OF_TYPE = {
    "message.sent": "sent", "message.delivered": "delivered", "message.read": "read", "message.failed": "failed",
}  # fmt: skip
# Which kind of event sets each time of SET_ONCE.
TYPES_OF_TIMES = ("message.sent", "message.delivered", "message.read")
TIMES = tuple(column.name for column in MESSAGES.columns if column.type == "timestamp")
WIRE_NAMES = {"sender_handle": "sender", "attachment_count": "", "cursor_at": "", "_fetched_at": ""}
Row = dict[str, Any]


def apply_events(stored: Iterable[Row], events: Iterable[Event]) -> list[Row]:
    """The stored rows that the events have changed, as they are now; `events` in the order in which they occurred."""
    rows = {row["id"]: row for row in stored}
    changed: dict[str, Row] = {}
    for event in events:
        message_id = event.message_id or ""
        row = changed.get(message_id) or rows.get(message_id)
        if row is None or not event.is_of_a_message:
            continue
        if event.chat_id is not None and row["conversation_id"] not in (None, event.chat_id):
            continue  # a message of another chat that has the same id
        after = _after(row, event)
        if after != row:
            changed[message_id] = after | {"_fetched_at": max(row["_fetched_at"], event.received_at)}
    return list(changed.values())


def read_stored_messages(warehouse: Warehouse, events: Iterable[Event]) -> list[Row]:
    """The stored rows of the messages that events are about."""
    wanted = arrow_schema(MESSAGES)
    ids = list(dict.fromkeys(event.message_id for event in events if event.is_of_a_message))
    keys = pa.table({"id": ids, "cursor_at": pa.nulls(len(ids), wanted.field("cursor_at").type)})
    stored = warehouse.rows("messages", keys) if ids else None
    return [] if stored is None else list(stored.select(wanted.names).cast(wanted).to_pylist())


def build_messages_table(rows: list[Row]) -> pa.Table:
    """The rows as they land."""
    table = pa.Table.from_pylist(rows, schema=arrow_schema(MESSAGES))
    return storable(table, MESSAGES.json_columns)[0]


def _after(row: Row, event: Event) -> Row:
    shown = _shown(event)
    updated_at, progress = shown.get("updated_at"), _progress(row, event, shown)
    after = row | progress
    if updated_at is not None and row["updated_at"] is not None and updated_at > row["updated_at"]:
        newer = {name: value for name, value in shown.items() if name not in (*SET_ONCE, "status")}
        newer["created_at"] = row["created_at"] or newer.get("created_at")
        if is_ahead(row["status"], shown.get("status") or row["status"]):
            newer.pop("error", None)  # of the status that is left behind
        if get_status_rank(row["status"]) is None and "status" not in progress:
            newer["status"] = shown.get("status") or row["status"]
        after |= newer | {"extra": _joined(row["extra"], shown.get("extra"))}
    return after | {"cursor_at": after["created_at"] or after["sent_at"]}


def _progress(row: Row, event: Event, shown: Row) -> Row:
    """What moves one way only, as far as the event is ahead of the row."""
    progress: Row = {}
    # A message that came in keeps its status when it is read. What is shown of a message may be older than the event.
    by_type = STATUS_OF_TYPE.get(event.event_type or "") if _is_outbound(row) else None
    for status in (shown.get("status"), by_type):
        if is_ahead(status, progress.get("status", row["status"])):
            progress["status"] = status
    if progress.get("status") == "failed" and "error" in shown:
        progress["error"] = shown["error"]
    for name, event_type in zip(SET_ONCE, TYPES_OF_TIMES, strict=True):
        at = shown.get(name) or (event.occurred_at if event.event_type == event_type else None)
        if row[name] is None and at is not None:
            progress[name] = at
    return progress


def _is_outbound(row: Row) -> bool:
    return bool(row["direction"] != "inbound")


def _joined(stored: str | None, shown: str | None) -> str | None:
    """Fields that this version does not know, those of the event before those that are stored."""
    if stored is None or shown is None:
        return shown or stored
    return json.dumps(json.loads(stored) | json.loads(shown), ensure_ascii=False)


def _shown(event: Event) -> Row:
    """What an event shows of the message, as it would land: only the fields that are in it."""
    if not event.message:
        return {} if event.status is None else {"status": event.status}
    times = {name: _iso(event.message[name]) for name in TIMES if name in event.message}
    raw = msgspec.Raw(json.dumps(event.message | times | {"id": event.message_id}).encode())
    message, _ = read_row(Message, raw, "messages", None)
    if message is None:
        return {}
    found: Row = {}
    for column in MESSAGES.columns:
        if column.name == "conversation_id":
            continue  # a message stays in its chat
        wire = WIRE_NAMES.get(column.name, column.name)
        if wire in event.message or column.name == "extra":
            value = getattr(message, column.name)
            found[column.name] = to_json_text(value) if column.type == "json" else value
    return found


def _iso(value: object) -> str | None:
    at = parse_time(value)
    return None if at is None else at.isoformat()
