"""Decode rows of the API into the structs of `models`, without losing anything.

- Fields that are not declared, or have a value of another type, are stored as JSON in `extra`.
- A row without a usable key, or whose cursor is not a timestamp, becomes a `RejectedRow` as a whole.
- Links that may be signed are removed from both; see `lenient.remove_links`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import cache
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import UNSET, Raw

from .lenient import is_storable, remove_links, rewrite_json
from .mentions import mask_handles
from .models import NOTHING, NULL, Attachment, Chat, Key, Message, R, RejectedRow, Row
from .times import TIME, read_time

# Fields in which a message may name its sender, by a handle or an object with one of `HANDLE_FIELDS`.
SENDER_FIELDS = ("sender", "sender_handle", "from", "author")
HANDLE_FIELDS = ("handle", "address", "phone_number", "email")


def read_row(
    model: type[R],
    raw: Raw,
    stream: str,
    request_id: str | None,
    *,
    sender_fields: Sequence[str] = SENDER_FIELDS,
    on_odd: Callable[[str], None] = lambda _key: None,
) -> tuple[R | None, list[RejectedRow]]:
    """Decode one row that did not fit the fast path. Return the row, or null, and what was rejected of it.

    `on_odd` is called with the key of a row that has values which only a lenient reader understands.
    """
    fields, is_odd = _read_fields(raw)
    if fields is None:
        return None, [_reject(stream, "not JSON" if is_odd else "not an object", raw, request_id)]
    values: dict[str, Any] = {}
    undeclared: dict[str, Raw] = {}
    rejected: list[RejectedRow] = []
    if model is Message:
        values["sender_handle"], values["sender_field"] = _take_sender(fields, sender_fields)
    for name, value in fields.items():
        field = _declared(model).get(name)
        if field is None or name.startswith("_"):
            undeclared[name] = value
        elif field.name == "sender_handle":
            # Another field named the sender, or this one does not.
            undeclared |= {} if value in (NULL, Raw(b'""')) else {name: value}
        else:
            try:
                values[field.name] = _read_value(field, value, request_id, rejected)
            except (msgspec.DecodeError, RecursionError):
                if field.name in model.cursor_fields:
                    key = _read_key(fields.get(model.key_field, NULL))
                    return None, [_reject(stream, f"{name} is not a timestamp", raw, request_id, key)]
                undeclared[name] = value
    if not values.get(model.key_field):
        return None, [_reject(stream, f"no usable {model.key_field}", raw, request_id)]
    for part in (values, undeclared):
        for name, value in part.items():
            if isinstance(value, Raw) and not is_storable(bytes(value)):
                part[name] = Raw(rewrite_json(bytes(value), member_depth=0))
                is_odd = is_odd or part[name] != value
    if undeclared:
        extra = msgspec.json.encode(undeclared)
        values["extra"] = Raw(remove_links(extra, of_attachment=model is Attachment))
    if is_odd:
        on_odd(values[model.key_field])
    return model(**values), rejected


def _read_value(
    field: msgspec.structs.FieldInfo, value: Raw, request_id: str | None, rejected: list[RejectedRow]
) -> Any:
    if field.name == "attachments":
        return _read_attachments(value, request_id, rejected)
    if field.type is Raw:
        return value
    return read_time(value) if field.type == TIME else msgspec.json.decode(value, type=field.type)


def _read_fields(raw: Raw) -> tuple[dict[str, Raw] | None, bool]:
    """Return the fields of a row, null if it is not an object, and whether only a lenient reader understands it."""
    try:
        return msgspec.json.decode(raw, type=dict[str, Raw]), False
    except msgspec.ValidationError:
        return None, False
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return msgspec.json.decode(rewrite_json(bytes(raw)), type=dict[str, Raw]), True
    except msgspec.ValidationError:
        return None, False
    except (msgspec.DecodeError, RecursionError):
        return None, True


def looks_like_row(model: type[Row], text: bytes) -> bool:
    """Return whether a text is an object with the key of `model`, mostly with fields that `model` declares.

    An attachment does not look like a message.
    """
    fields = _read_fields(Raw(text))[0] or {}
    declared = fields.keys() & _declared(model).keys()
    return model.key_field in fields and len(declared) > 1 and 2 * len(declared) > len(fields)


def _take_sender(fields: dict[str, Raw], names: Sequence[str]) -> tuple[str | None, str | None]:
    """Remove the sender from the fields of a message. Return the handle, and the field unless that is `sender`.

    Other data about the sender, such as a name, stays in the field.
    """
    for name in names:
        try:
            sender = msgspec.json.decode(fields.get(name, NULL), type=str | dict[str, Raw] | None)
            if isinstance(sender, dict):
                field = next((name for name in HANDLE_FIELDS if name in sender), "")
                handle = msgspec.json.decode(sender.pop(field, NULL), type=str | None)
            else:
                handle = sender
        except (msgspec.DecodeError, RecursionError):
            continue
        if not handle:
            continue
        del fields[name]
        if isinstance(sender, dict) and sender:
            fields[name] = Raw(msgspec.json.encode(sender))
        for other in names:
            if other in fields and bytes(fields[other]) in (b"null", msgspec.json.encode(handle)):
                del fields[other]
        return handle, None if name == "sender" else name
    return None, None


def drop_fields(extra: Raw, names: Collection[str | None]) -> Raw:
    """Return the `extra` of a row without these fields."""
    if not bytes(extra):
        return extra
    fields = msgspec.json.decode(extra, type=dict[str, Raw])
    others = {name: value for name, value in fields.items() if name not in names}
    return extra if len(others) == len(fields) else Raw(msgspec.json.encode(others)) if others else NOTHING


def are_plain_rows(model: type[Row], rows: Sequence[Row]) -> bool:
    """Return whether rows that were decoded at once hold only values that every destination can store."""
    get_times, get_raws = _build_getters(model)
    years = {at.year for row in rows for at in get_times(row) if at is not None}
    if years and not (min(years) > 1970 and max(years) < 9999):
        return False
    # `extra` is filled here only if the API has a field of its wire name.
    raws = [raw for row in rows for raw in get_raws(row) if raw is not NOTHING and len(raw) > len("null")]
    if any(row.extra is not NOTHING for row in rows) or not all(is_storable(bytes(raw)) for raw in raws):
        return False
    attachments = [file for row in rows if isinstance(row, Message) and row.attachments for file in row.attachments]
    return not attachments or are_plain_rows(Attachment, attachments)


@cache
def _build_getters(model: type[Row]) -> tuple[Callable[[Row], tuple[Any, ...]], Callable[[Row], tuple[Any, ...]]]:
    """Build a function that returns a row's timestamps, and one for its values that may be any JSON."""
    fields = [field for field in msgspec.structs.fields(model) if not field.encode_name.startswith("_")]
    times = [field.name for field in fields if field.type == TIME]
    raws = [field.name for field in fields if field.type is Raw]
    # With a single name, `attrgetter` returns a value instead of a tuple.
    return tuple(attrgetter(*names, *names[:1]) if names else lambda _row: () for names in (times, raws))  # type: ignore[return-value]


@cache
def _declared(model: type[Row]) -> dict[str, msgspec.structs.FieldInfo]:
    """Return the fields of a model by their names on the wire."""
    return {field.encode_name: field for field in msgspec.structs.fields(model)}


def _read_attachments(value: Raw, request_id: str | None, rejected: list[RejectedRow]) -> list[Attachment] | None:
    items = msgspec.json.decode(value, type=list[Raw] | None)
    if items is None:
        return None
    attachments = []
    for item in items:
        attachment, faults = read_row(Attachment, item, "attachments", request_id)
        rejected += faults
        if attachment is not None:
            attachments.append(attachment)
    return attachments


def _read_key(value: Raw) -> str | None:
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(value, type=Key)
    return None


def _reject(stream: str, reason: str, raw: Raw, request_id: str | None, key: str | None = None) -> RejectedRow:
    row = remove_links(bytes(raw), of_attachment=stream == "attachments")
    return RejectedRow(stream, reason, row.decode("utf-8", "replace"), request_id, key)


def reject_row(row: Row, stream: str, reason: str) -> RejectedRow:
    """Return a row that was decoded, but cannot be stored in its table, as a rejected row."""
    fields = {
        field.encode_name: getattr(row, field.name) for field in msgspec.structs.fields(row) if field.name != "extra"
    }
    extra = msgspec.json.decode(row.extra, type=dict[str, Raw]) if bytes(row.extra) else {}
    sent = {name: value for name, value in fields.items() if name[:1] != "_" and value not in (None, UNSET, NULL)}
    return _reject(stream, reason, Raw(msgspec.json.encode(sent | extra)), None)


def read_participants(chat: Chat) -> list[str] | None:
    """Return the sorted handles in the undocumented field `participants` of a chat that was read by id.

    That is a list of handles, or of objects with a `handle`. Null if there is no such list.
    """
    if not bytes(chat.extra):
        return None
    try:
        shown = msgspec.json.decode(chat.extra, type=dict[str, Raw]).get("participants", NULL)
        participants = msgspec.json.decode(shown, type=list[str | _Participant] | None)
    except msgspec.DecodeError:
        return None
    if participants is None:
        return None
    return sorted({person if isinstance(person, str) else person.handle for person in participants} - {""})


class _Participant(msgspec.Struct):
    handle: str


def list_unknown_fields(rows: list[R]) -> Iterator[str]:
    """Yield the names of the fields in `extra`, for the run record. They may contain handles, which are masked."""
    for row in rows:
        if bytes(row.extra):
            yield from map(mask_handles, msgspec.json.decode(row.extra, type=dict[str, Raw]))
