"""Apply a policy to the payloads of webhooks, and drop their unknown fields.

A field that rows of the API have, too, is redacted like its column in `tables`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from .models import Attachment, Chat, Message, Row
from .redact import Redactor
from .settings import is_date
from .tables import ATTACHMENTS, CHATS, MESSAGES, Column, ColumnType, Pii, Table, text, time

ID = re.compile(r"[A-Za-z0-9_:-]{1,200}")
# Objects of a payload that may contain the event or parts of it, its message and its chat.
INNER = ("data", "object", "payload", "event")
MESSAGE_OBJECT = "message"
CHAT_OBJECTS = ("conversation", "chat")
OBJECTS = frozenset({*INNER, MESSAGE_OBJECT, *CHAT_OBJECTS})
CHAT_IDS = ("conversation_id", "chat_id")
HANDLES = frozenset({"handle", "sender", "sender_handle", "from", "author", "to", "remote_handle"})


def _row_fields(model: type[Row], table: Table) -> Iterator[tuple[str, Column]]:
    """Yield the names of the fields that the API sends, with their columns."""
    columns = {column.name: column for column in table.columns}
    for field in msgspec.structs.fields(model):
        if field.name in columns and not field.encode_name.startswith("_"):
            yield field.encode_name, columns[field.name]


# The kinds of fields, by name.
FIELDS: dict[str, Column] = {
    **dict(_row_fields(Chat, CHATS)),
    **dict(_row_fields(Message, MESSAGES)),
    **dict(_row_fields(Attachment, ATTACHMENTS)),
    # Fields that only events have.
    **{name: text(name, Pii.HANDLE) for name in HANDLES},
    **{name: text(name, Pii.ID) for name in ("event_id", *CHAT_IDS)},
    **{name: text(name, Pii.TEXT) for name in ("reaction", "emoji")},
    **{name: text(name, Pii.WORD) for name in ("type", "event", "event_type", "state")},
    **{name: time(name) for name in ("occurred_at", "timestamp")},
    **{name: Column(name, "bool", Pii.NONE) for name in ("typing", "is_typing")},
}
_PYTHON_TYPES: dict[ColumnType, Any] = {
    "text": str,
    "bigint": int,
    "bool": bool,
    "timestamp": (str, int, float),
    "json": object,
}


def redact_payload(redactor: Redactor, payload: Any) -> Any:
    """Redact an event."""
    if redactor.erased:
        payload = redactor.replace_erased_in_value(payload)
    if not redactor.policy.redacts:
        return payload
    if not isinstance(payload, dict):
        return payload if redactor.policy.extra == "keep" else None
    fields = {name: _redact_field(redactor, name, value) for name, value in payload.items()}
    return {name: value for name, value in fields.items() if value is not None or payload[name] is None}


def concerns_erased(redactor: Redactor, payload: Any) -> bool:
    """Return whether an event has an erased person's chat or handle."""
    if not redactor.erased or not isinstance(payload, dict):
        return False
    for name, value in payload.items():
        if name in CHAT_IDS and redactor.is_erased_chat(_text(value)):
            return True
        if name in HANDLES and redactor.is_erased(_text(value.get("handle") if isinstance(value, dict) else value)):
            return True
        if name in CHAT_OBJECTS and isinstance(value, dict) and redactor.is_erased_chat(_text(value.get("id"))):
            return True
        if name in OBJECTS and concerns_erased(redactor, value):
            return True
    return False


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _redact_field(redactor: Redactor, name: str, value: Any) -> Any:
    policy = redactor.policy
    if value is None:
        return None
    if name in OBJECTS and isinstance(value, dict):
        return redact_payload(redactor, value)
    if name == "attachments" and isinstance(value, list):
        return [redact_payload(redactor, item) for item in value if isinstance(item, dict)]
    column = FIELDS.get(name)
    if column is None:
        return value if policy.extra == "keep" else None
    if not isinstance(value, _PYTHON_TYPES[column.type]):
        return _redact_unexpected(redactor, name, column, value) if policy.extra == "keep" else None
    if column.pii is Pii.METADATA:
        return value if policy.metadata == "keep" else None
    if column.pii is Pii.ERROR:
        return redactor.error_code(value)
    redacted = redactor.redact(column.pii, value)
    if policy.extra == "keep":
        return redacted
    if column.pii is Pii.ID:
        return redacted if ID.fullmatch(redacted) else None
    if column.type == "timestamp" and isinstance(redacted, str):
        return redacted if is_date(redacted) else None
    return redacted


def _redact_unexpected(redactor: Redactor, name: str, column: Column, value: Any) -> Any:
    """Redact the value of a known field that has another type; null if it may hold what the policy removes."""
    if isinstance(value, list):
        return [_redact_field(redactor, name, item) for item in value]
    if isinstance(value, dict) and column.pii is Pii.HANDLE:
        return redact_payload(redactor, value)
    return value if column.pii is Pii.NONE else None
