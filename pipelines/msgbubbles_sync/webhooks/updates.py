"""Apply events to the messages that they are about, and to the chats of these messages.

Older values never replace newer ones, and clocks are never compared. Values that move one way only (the status, times
that are set once) move that way. Other fields are taken from an event if the message's own `updated_at` is later than
the stored one.

A message that is not stored gets a row from the first event that shows when it was sent, and so does its chat. The rows
have `from_event_at` until they are read from the API: for everything that reads, they do not exist.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from msgbubbles.decode import read_row
from msgbubbles.lazy_pyarrow import pa
from msgbubbles.models import Chat, Message
from msgbubbles.redact import Redactor
from msgbubbles.source.arrow import build_arrow_schema, to_json_text
from msgbubbles.source.message_progress import SET_ONCE, get_status_rank, is_ahead
from msgbubbles.tables import CHATS, MESSAGES, Table
from msgbubbles.times import parse_time, to_epoch_ms

from .events import Event

STATUSES = {
    "message.sent": "sent", "message.delivered": "delivered", "message.read": "read", "message.failed": "failed",
}  # fmt: skip
# The directions of messages, where an event does not say.
DIRECTIONS = {"message.received": "inbound", "message.sent": "outbound"}
# The type of event that sets each time of SET_ONCE.
TIME_TYPES = ("message.sent", "message.delivered", "message.read")
TIMES = {column.name for table in (CHATS, MESSAGES) for column in table.columns if column.type == "timestamp"}
WIRE_NAMES = {"sender_handle": "sender"}
# Columns that are not fields of the message in an event. A message stays in its chat.
NOT_SHOWN = frozenset({"id", "conversation_id", "attachment_count", "cursor_at", "from_event_at", "_fetched_at"})
Row = dict[str, Any]


@dataclass(frozen=True)
class Scope:
    """Which messages events may add: those of `chats`, since `start_ms`, by the policy of `redactor`."""

    chats: Collection[str]
    start_ms: int
    redactor: Redactor


def apply_events(stored: Iterable[Row], events: Iterable[Event], scope: Scope) -> list[Row]:
    """Return the stored rows that events change, with the changes, and rows of messages that are not stored.

    `events` are in the order they occurred.
    """
    rows = {row["id"]: row for row in stored}
    changed: dict[str, Row] = {}
    for event in events:
        message_id = event.message_id or ""
        row = changed.get(message_id) or rows.get(message_id)
        if not event.is_about_message:
            continue
        message = _read_message(event, scope.redactor, row["cursor_at"] if row else None)
        if row is None:
            new = _build_row(event, message, scope)
            changed |= {} if new is None else {message_id: new}
            continue
        if event.chat_id is not None and row["conversation_id"] not in (None, event.chat_id):
            continue  # a message of another chat with the same id
        after = _apply_event(row, event, message)
        if after != row:
            changed[message_id] = after | {"_fetched_at": max(row["_fetched_at"], event.received_at)}
    return list(changed.values())


def build_chats(stored: Iterable[Row], events: Iterable[Event], redactor: Redactor) -> dict[str, Row]:
    """Return rows of chats that have not been read, by id, as events about their messages show them.

    If anybody is erased, a chat is left to the next read unless an event shows who is in it.
    """
    rows = {row["id"]: row for row in stored}
    for event in events:
        row = rows.get(event.chat_id or "")
        if event.chat_id is None or not event.is_about_message or (row is not None and row["from_event_at"] is None):
            continue
        chat = _read_chat(event, redactor)
        if chat is not None:
            new = {"from_event_at": event.received_at, "_fetched_at": event.received_at}
            shown = {name: value for name, value in chat.items() if value is not None}
            rows[event.chat_id] = (row or dict.fromkeys(CHATS.column_names) | new) | shown
    return {chat_id: row for chat_id, row in rows.items() if row["from_event_at"] is not None}


def select_changed_chats(stored: Iterable[Row], chats: dict[str, Row], messages: Iterable[Row]) -> list[Row]:
    """Return the rows that differ from the stored ones, of chats that have messages; `messages` are those to load."""
    before = {row["id"]: row for row in stored}
    latest = {chat_id: row["last_message_at"] for chat_id, row in before.items()}
    for message in messages:
        at = latest.get(message["conversation_id"])
        latest[message["conversation_id"]] = max(filter(None, (at, message["cursor_at"])), default=None)
    rows = [row | {"last_message_at": latest[chat_id]} for chat_id, row in chats.items() if chat_id in latest]
    return [row for row in rows if row != before.get(row["id"])]


def list_messages(events: Iterable[Event]) -> list[str]:
    """Return the ids of the messages that events are about."""
    return list(dict.fromkeys(event.message_id for event in events if event.is_about_message and event.message_id))


def to_rows(stored: pa.Table | None, table: Table) -> list[Row]:
    """Convert stored rows to rows with all columns."""
    wanted = build_arrow_schema(table)
    if stored is None:
        return []
    for field in wanted:
        if field.name not in stored.column_names:  # a warehouse of an older version
            stored = stored.append_column(field, pa.nulls(stored.num_rows, field.type))
    return list(stored.select(wanted.names).cast(wanted).to_pylist())


def _build_row(event: Event, message: Message | None, scope: Scope) -> Row | None:
    """Return the row of a message that is not stored; null if it is not in scope, or the event does not show enough."""
    at = None if message is None else message.cursor_at
    if message is None or at is None or event.chat_id not in scope.chats or to_epoch_ms(at) < scope.start_ms:
        return None
    row = dict.fromkeys(column.name for column in MESSAGES.columns) | _list_values(event, message)
    row |= {
        "id": event.message_id,
        "conversation_id": event.chat_id,
        "sender_handle": message.sender_handle,
        "direction": message.direction or DIRECTIONS.get(event.event_type or ""),
        "attachment_count": len(message.attachments or ()),
        "from_event_at": event.received_at,
        "_fetched_at": event.received_at,
    }
    row |= _find_progress(row, event, {})
    return row | {"cursor_at": row["created_at"] or row["sent_at"]}


def _apply_event(row: Row, event: Event, message: Message | None) -> Row:
    shown = _list_values(event, message)
    updated_at, progress = shown.get("updated_at"), _find_progress(row, event, shown)
    after = row | progress
    if updated_at is not None and row["updated_at"] is not None and updated_at > row["updated_at"]:
        newer = {name: value for name, value in shown.items() if name not in (*SET_ONCE, "status")}
        newer["created_at"] = row["created_at"] or newer.get("created_at")
        if is_ahead(row["status"], shown.get("status") or row["status"]):
            newer.pop("error", None)  # of a status that was passed
        if get_status_rank(row["status"]) is None and "status" not in progress:
            newer["status"] = shown.get("status") or row["status"]
        after |= newer | {"extra": _merge_extra(row["extra"], shown.get("extra"))}
    return after | {"cursor_at": after["created_at"] or after["sent_at"]}


def _find_progress(row: Row, event: Event, shown: Row) -> Row:
    """Return the values that move one way only and that the event moves on."""
    progress: Row = {}
    # An inbound message keeps its status when it is read. The message in a payload may be older than the event.
    by_type = STATUSES.get(event.event_type or "") if row["direction"] != "inbound" else None
    for status in (shown.get("status"), by_type):
        if is_ahead(status, progress.get("status", row["status"])):
            progress["status"] = status
    if progress.get("status") == "failed" and "error" in shown:
        progress["error"] = shown["error"]
    for name, event_type in zip(SET_ONCE, TIME_TYPES, strict=True):
        at = shown.get(name) or (event.occurred_at if event.event_type == event_type else None)
        if row[name] is None and at is not None:
            progress[name] = at
    return progress


def _merge_extra(stored: str | None, shown: str | None) -> str | None:
    """Merge unknown fields; those of the event win."""
    if stored is None or shown is None:
        return shown or stored
    return json.dumps(json.loads(stored) | json.loads(shown), ensure_ascii=False)


def _read_message(event: Event, redactor: Redactor, stored_at: datetime | None) -> Message | None:
    """Read the message of an event as one from the API; null if the event has none, or the policy leaves it out.

    `stored_at` is the time of the stored message.
    """
    if not event.message:
        return None
    message, _ = read_row(Message, _encode_row(event.message, event.message_id), "messages", None)
    if message is None or redactor.is_idle:
        return message
    message.conversation_id = event.chat_id
    message = redactor.message(message)
    if redactor.has_expired(stored_at):
        message.text = None
    return message if type(message) is Message else None


def _read_chat(event: Event, redactor: Redactor) -> Row | None:
    """Read the chat of an event as one from the API; null if the policy leaves it out."""
    chat = read_row(Chat, _encode_row(event.chat, event.chat_id), "chats", None)[0] or Chat(id=event.chat_id or "")
    if not redactor.is_idle:
        chat = redactor.chat(chat)
        if type(chat) is not Chat or (redactor.erased and chat.remote_handle is None):
            return None
    values = {column.name: getattr(chat, column.name) for column in CHATS.columns if column.name != "_fetched_at"}
    return values | {"extra": to_json_text(chat.extra)}


def _list_values(event: Event, message: Message | None) -> Row:
    """Return the columns of the message whose fields the event has."""
    if message is None:
        return {} if event.status is None or event.message else {"status": event.status}
    values: Row = {}
    for column in MESSAGES.columns:
        if column.name in NOT_SHOWN:
            continue
        if WIRE_NAMES.get(column.name, column.name) in event.message or column.name == "extra":
            value = getattr(message, column.name)
            values[column.name] = to_json_text(value) if column.type == "json" else value
    return values


def _encode_row(fields: Row, row_id: str | None) -> msgspec.Raw:
    """Encode fields of an event as a row of the API, which writes times in one way only."""
    times = {name: parse_time(fields[name]) for name in TIMES if name in fields}
    return msgspec.Raw(json.dumps(fields | times | {"id": row_id}, default=datetime.isoformat).encode())
