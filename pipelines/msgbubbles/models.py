"""The API's objects: one place for their names, types and nullability.

Source of every field: the vendor's public pages as recorded in the project's API notes. Fields that no page
documents are marked *undocumented*: they are read where the API shows them and are null where it does not.

A struct says how a row looks on the wire; `columns_of` says how it lands. Decoding a row never loses anything:

- a field that is not declared here, or whose value has another type than declared, is kept as JSON in `extra`;
- a row that has no usable key, or whose cursor is not a timestamp, becomes a `RejectedRow`, whole;
- a link that may be signed is never part of either: `lenient.without_links` says which are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .lenient import is_storable, storable, strict_json, without_links
from .mentions import masked
from .times import TIME, Timestamp, read_time

ColumnType = Literal["text", "bigint", "bool", "timestamp", "json"]

# What a column of type bigint holds; a larger number is kept in `extra`.
BigInt = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Key = Annotated[str, msgspec.Meta(min_length=1)]

NULL = Raw(b"null")
NOTHING = Raw(b"")


class Row(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What every row of the API shares. `extra` is a JSON object of what the declared fields could not hold,
    or empty; its wire name only keeps it from shadowing a field that the API might call `extra`.
    """

    key_field: ClassVar[str] = "id"
    cursor_fields: ClassVar[tuple[str, ...]] = ()
    not_landed: ClassVar[frozenset[str]] = frozenset()

    extra: Raw = msgspec.field(default=NOTHING, name="_extra")

    @property
    def key(self) -> str:
        return str(getattr(self, self.key_field))

    @property
    def cursor_at(self) -> datetime | None:
        """The instant the API orders this row by; null where the row has none."""
        for name in self.cursor_fields:
            at: datetime | None = getattr(self, name)
            if at is not None:
                return at if at.tzinfo else at.replace(tzinfo=UTC)
        return None


class Chat(Row):
    """A thread between one of the account's numbers and a contact, or a group."""

    cursor_fields: ClassVar[tuple[str, ...]] = ("last_message_at",)

    id: Key
    from_handle: str | None = None
    remote_handle: str | None = None
    is_group: bool | None = None
    title: str | None = None
    last_message_at: Timestamp | None = None
    created_at: Timestamp | None = None
    updated_at: Timestamp | None = None
    # Not the API's: when the chat was found to be gone.
    deleted_at: Timestamp | None = msgspec.field(default=None, name="_deleted_at")


class Attachment(Row):
    """A file of a message. `url` is signed and short-lived: for use at once, never stored."""

    not_landed: ClassVar[frozenset[str]] = frozenset({"url"})

    id: Key
    message_id: str | None = None
    filename: str | None = None
    mime_type: str | None = None
    size_bytes: BigInt | None = None
    created_at: Timestamp | None = None
    url: str | None = None
    # Not the API's: when its message was found to show it no longer.
    removed_at: Timestamp | None = msgspec.field(default=None, name="_removed_at")


# Where a message may name its sender: by a handle, or by an object that has one.
SENDER_FIELDS = ("sender", "sender_handle", "from", "author")
HANDLE_FIELDS = ("handle", "address", "phone_number", "email")


class Message(Row):
    """One message of a thread. `created_at`, `updated_at` and the sender are undocumented. `sender_field` is the field
    that named the sender, null for `sender` itself. `attachments` is unset where the API does not show them."""

    cursor_fields: ClassVar[tuple[str, ...]] = ("created_at", "sent_at")
    not_landed: ClassVar[frozenset[str]] = frozenset({"attachments", "sender_field"})

    id: Key
    conversation_id: str | None = None
    direction: str | None = None
    status: str | None = None
    channel: str | None = None
    text: str | None = None
    effect: str | None = None
    reply_to: str | None = None
    error: Raw = NULL
    metadata: Raw = NULL
    sender_handle: str | None = msgspec.field(default=None, name="sender")
    sent_at: Timestamp | None = None
    delivered_at: Timestamp | None = None
    read_at: Timestamp | None = None
    created_at: Timestamp | None = None
    updated_at: Timestamp | None = None
    attachments: list[Attachment] | UnsetType | None = UNSET
    sender_field: str | None = msgspec.field(default=None, name="_sender_field")


class Number(Row):
    """One of the account's own numbers."""

    key_field: ClassVar[str] = "handle"

    handle: Key
    channels: Raw = NULL
    label: str | None = None
    status: str | None = None


class Webhook(Row):
    """An endpoint that the API sends events to. It is not landed. The `secret` is shown once, when it is made; all
    but `url`, `events` and `secret` is undocumented."""

    id: Key
    url: str | None = None
    events: list[str] | None = None
    secret: str | None = None
    created_at: Timestamp | None = None


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class RejectedRow:
    """A row that could not be read, as the API sent it. `key` is its id, where that could be read."""

    stream: str
    reason: str
    row: str
    request_id: str | None
    key: str | None = None

    @property
    def row_hash(self) -> str:
        """The same unreadable row, read again, is the same rejected row."""
        return hashlib.blake2b(f"{self.stream}\0{self.row}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class StreamCoverage:
    """Between which instants a stream has been read without a gap."""

    stream: str
    complete_since: datetime
    complete_to: datetime


@dataclass(frozen=True)
class ParticipantRead:
    """Who was in a group when it was asked for."""

    chat_id: str
    handles: Raw
    asked_at: datetime


@dataclass(frozen=True)
class Participant:
    """One of the participants that a group had at `read_at`; nobody is a null handle."""

    chat_id: str
    handle: str | None
    read_at: datetime

    @property
    def id(self) -> str:
        return f"{self.chat_id}|{self.read_at.isoformat()}|{self.handle or ''}"


@dataclass(frozen=True)
class Page(Generic[R]):
    """One answer of a list endpoint.

    `read_at` is when it was asked for, `server_at` the API's own clock then (UTC both). `full` is whether it
    holds as many rows as were asked for. `has_more` is null where the API does not say. `odd` are the keys of rows that
    held something that only a lenient reader takes; it is null or text now.
    """

    rows: list[R]
    rejected: list[RejectedRow]
    has_more: bool | None
    full: bool
    read_at: datetime
    server_at: datetime
    request_id: str | None = None
    odd: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejected)


@dataclass(frozen=True)
class Column:
    """A landed column. `attribute` is where its value is found on the row."""

    name: str
    type: ColumnType
    nullable: bool = True


def columns_of(model: type[Row]) -> tuple[Column, ...]:
    """The columns that rows of `model` land in, in order. `_fetched_at` is when the row was asked for."""
    columns = [
        Column(field.name, _column_type(field.type), nullable=field.name != model.key_field)
        for field in msgspec.structs.fields(model)
        if field.name not in model.not_landed and field.name != "extra"
    ]
    if model is Message:
        columns += [Column("attachment_count", "bigint"), Column("cursor_at", "timestamp")]
    return (*columns, Column("extra", "json"), Column("_fetched_at", "timestamp", nullable=False))


def _column_type(annotation: object) -> ColumnType:
    annotation = _unannotated(annotation)
    types = {_unannotated(one) for one in get_args(annotation) or (annotation,)} - {type(None)}
    names: dict[object, ColumnType] = {
        str: "text",
        int: "bigint",
        bool: "bool",
        datetime: "timestamp",
        Raw: "json",
    }
    return names[types.pop()]


def _unannotated(annotation: object) -> object:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


# A title of a chat, as it was when it was seen to be another than before; a null title took an earlier one away.
TITLE_COLUMNS = (
    Column("chat_id", "text", nullable=False),
    Column("title", "text"),
    Column("updated_at", "timestamp"),
    Column("_fetched_at", "timestamp", nullable=False),
)

# When a group's participants were asked for last, and who they were: a JSON list, in order.
PARTICIPANT_READ_COLUMNS = (
    Column("chat_id", "text", nullable=False),
    Column("handles", "json"),
    Column("asked_at", "timestamp"),
    Column("_fetched_at", "timestamp", nullable=False),
)

# Since when and up to when a stream is complete: every row that was visible with an instant in between has landed.
COVERAGE_COLUMNS = (
    Column("stream", "text", nullable=False),
    Column("complete_since", "timestamp"),
    Column("complete_to", "timestamp"),
    Column("_fetched_at", "timestamp", nullable=False),
)

# A participant of a group, as of a list that was another than the one before. A list of nobody is a null handle.
PARTICIPANT_LIST_COLUMNS = (
    Column("id", "text", nullable=False),
    Column("chat_id", "text"),
    Column("handle", "text"),
    Column("_fetched_at", "timestamp", nullable=False),
)

REJECTED_COLUMNS = (
    Column("row_hash", "text", nullable=False),
    Column("stream", "text"),
    Column("reason", "text"),
    Column("row", "text"),
    Column("request_id", "text"),
    Column("_fetched_at", "timestamp", nullable=False),
)


def read_row(
    model: type[R],
    raw: Raw,
    stream: str,
    request_id: str | None,
    *,
    sender_fields: Sequence[str] = SENDER_FIELDS,
    on_odd: Callable[[str], None] = lambda _key: None,
) -> tuple[R | None, list[RejectedRow]]:
    """Decode one row that did not fit the fast path. Returns the row, or None, and what was rejected of it.

    `on_odd` gets the key of a row in which only a lenient reader understands a value.
    """
    fields, is_odd = _fields_of(raw)
    if fields is None:
        return None, [_reject(stream, "not JSON" if is_odd else "not an object", raw, request_id)]

    values: dict[str, Any] = {}
    kept_aside: dict[str, Raw] = {}
    rejected: list[RejectedRow] = []
    declared, times = _declared(model), _times(model)
    if model is Message:
        values["sender_handle"], values["sender_field"] = _take_sender(fields, sender_fields)
    for name, value in fields.items():
        field = declared.get(name)
        if field is None or name.startswith("_"):
            kept_aside[name] = value
        elif field.name == "sender_handle":
            # Another field named the sender, or this one does not.
            kept_aside |= {} if value in (NULL, Raw(b'""')) else {name: value}
        elif field.name == "attachments":
            attachments = _attachments(value, request_id, rejected)
            if attachments is UNSET:
                kept_aside[name] = value
            else:
                values[field.name] = attachments
        elif field.type is Raw:
            values[field.name] = value
        else:
            try:
                values[field.name] = (
                    read_time(value) if field.name in times else msgspec.json.decode(value, type=field.type)
                )
            except (msgspec.DecodeError, RecursionError):
                if field.name in model.cursor_fields:
                    key = _key_in(fields.get(model.key_field, NULL))
                    return None, [_reject(stream, f"{name} is not a timestamp", raw, request_id, key)]
                kept_aside[name] = value
    if not values.get(model.key_field):
        return None, [_reject(stream, f"no usable {model.key_field}", raw, request_id)]
    for found in (values, kept_aside):
        for name, value in found.items():
            if isinstance(value, Raw) and not is_storable(bytes(value)):
                found[name] = Raw(storable(bytes(value)))
                is_odd = is_odd or found[name] != value
    if kept_aside:
        extra = msgspec.json.encode(kept_aside)
        values["extra"] = Raw(without_links(extra, of_attachment=model is Attachment))
    if is_odd:
        on_odd(values[model.key_field])
    return model(**values), rejected


def _fields_of(raw: Raw) -> tuple[dict[str, Raw] | None, bool]:
    """The fields of a row, null where it is no object; and whether it takes a lenient reader."""
    try:
        return msgspec.json.decode(raw, type=dict[str, Raw]), False
    except msgspec.ValidationError:
        return None, False
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return msgspec.json.decode(strict_json(bytes(raw)), type=dict[str, Raw]), True
    except msgspec.ValidationError:
        return None, False
    except (msgspec.DecodeError, RecursionError):
        return None, True


def is_row_of(model: type[Row], text: bytes) -> bool:
    """Whether a text is an object that looks like a row of `model`: with its key and another of its fields, and with
    hardly a field of something else. An attachment is no message."""
    fields = _fields_of(Raw(text))[0] or {}
    known = fields.keys() & _declared(model).keys()
    return model.key_field in fields and len(known) > 1 and 2 * len(known) > len(fields)


def _take_sender(fields: dict[str, Raw], names: Sequence[str]) -> tuple[str | None, str | None]:
    """Take the sender out of the fields of a message: the handle, and the name of the field unless that is `sender`.

    What else a field says of the sender, a name for example, stays in it.
    """
    for name in names:
        try:
            shown = msgspec.json.decode(fields.get(name, NULL), type=str | dict[str, Raw] | None)
            if isinstance(shown, dict):
                field = next((one for one in HANDLE_FIELDS if one in shown), "")
                handle = msgspec.json.decode(shown.pop(field, NULL), type=str | None)
            else:
                handle = shown
        except (msgspec.DecodeError, RecursionError):
            continue
        if not handle:
            continue
        del fields[name]
        if isinstance(shown, dict) and shown:
            fields[name] = Raw(msgspec.json.encode(shown))
        for other in names:
            if other in fields and bytes(fields[other]) in (b"null", msgspec.json.encode(handle)):
                del fields[other]
        return handle, None if name == "sender" else name
    return None, None


def without_senders(row: Message) -> Raw:
    """Return the `extra` of a message without what it says of the sender, for where handles are not kept."""
    if not bytes(row.extra):
        return row.extra
    fields = msgspec.json.decode(row.extra, type=dict[str, Raw])
    kept = {name: value for name, value in fields.items() if name not in (*SENDER_FIELDS, row.sender_field)}
    return row.extra if len(kept) == len(fields) else Raw(msgspec.json.encode(kept)) if kept else NOTHING


def is_plain_row(model: type[Row], rows: Sequence[Row]) -> bool:
    """Whether rows that were decoded at once hold only values that every destination takes."""
    times_of, raws_of = _checked(model)
    years = {at.year for row in rows for at in times_of(row) if at is not None}
    if years and not (min(years) > 1970 and max(years) < 9999):
        return False
    # Something is only in `extra` here if a field of the API is called as it is.
    raws = [raw for row in rows for raw in raws_of(row) if raw is not NOTHING and len(raw) > len("null")]
    if any(row.extra is not NOTHING for row in rows) or not all(is_storable(bytes(raw)) for raw in raws):
        return False
    attachments = [one for row in rows if isinstance(row, Message) and row.attachments for one in row.attachments]
    return not attachments or is_plain_row(Attachment, attachments)


@cache
def _checked(model: type[Row]) -> tuple[Callable[[Row], tuple[Any, ...]], Callable[[Row], tuple[Any, ...]]]:
    """How the times of a row are got, and its values that may be any JSON."""
    fields = [one for one in msgspec.structs.fields(model) if not one.encode_name.startswith("_")]
    times = [one.name for one in fields if one.type == TIME]
    raws = [one.name for one in fields if one.type is Raw]
    # With one name, `attrgetter` gives a value and no tuple.
    return tuple(attrgetter(*names, *names[:1]) if names else lambda _row: () for names in (times, raws))  # type: ignore[return-value]


@cache
def _times(model: type[Row]) -> frozenset[str]:
    return frozenset(one.name for one in msgspec.structs.fields(model) if one.type == TIME)


@cache
def _declared(model: type[Row]) -> dict[str, msgspec.structs.FieldInfo]:
    """The fields of a model by their names on the wire."""
    return {field.encode_name: field for field in msgspec.structs.fields(model)}


def _attachments(
    value: Raw, request_id: str | None, rejected: list[RejectedRow]
) -> list[Attachment] | UnsetType | None:
    try:
        items = msgspec.json.decode(value, type=list[Raw] | None)
    except (msgspec.DecodeError, RecursionError):
        return UNSET
    if items is None:
        return None
    attachments = []
    for item in items:
        attachment, faults = read_row(Attachment, item, "attachments", request_id)
        rejected += faults
        if attachment is not None:
            attachments.append(attachment)
    return attachments


def _key_in(value: Raw) -> str | None:
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(value, type=Key)
    return None


def _reject(stream: str, reason: str, raw: Raw, request_id: str | None, key: str | None = None) -> RejectedRow:
    row = without_links(bytes(raw), of_attachment=stream == "attachments")
    return RejectedRow(stream, reason, row.decode("utf-8", "replace"), request_id, key)


def rejected_twin(row: Row, stream: str, reason: str) -> RejectedRow:
    """Return a row that could be read, whole, as one that has no place in its table."""
    fields = {one.encode_name: getattr(row, one.name) for one in msgspec.structs.fields(row) if one.name != "extra"}
    extra = msgspec.json.decode(row.extra, type=dict[str, Raw]) if bytes(row.extra) else {}
    shown = {name: one for name, one in fields.items() if name[:1] != "_" and one not in (None, UNSET, NULL)}
    return _reject(stream, reason, Raw(msgspec.json.encode(shown | extra)), None)


def fingerprint(row: Row) -> str:
    """A short hash of all that lands of a row, to tell whether it changed since it was last landed."""
    landed = {
        name: value
        for name in row.__struct_fields__
        if name not in row.not_landed and not _is_empty(value := getattr(row, name))
    }
    if isinstance(row, Message):
        landed["attachments"] = [fingerprint(attachment) for attachment in row.attachments or ()]
    return hashlib.blake2b(msgspec.json.encode(landed), digest_size=8).hexdigest()


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, Raw) and bytes(value) == b"")


def participants_of(chat: Chat) -> list[str] | None:
    """The handles in the undocumented field `participants` of a chat that was asked for by id, in order: a list of
    handles, or of objects with a `handle`. Null where there is no such list."""
    if not bytes(chat.extra):
        return None
    try:
        shown = msgspec.json.decode(chat.extra, type=dict[str, Raw]).get("participants", NULL)
        found = msgspec.json.decode(shown, type=list[str | _Participant] | None)
    except msgspec.DecodeError:
        return None
    return None if found is None else sorted({one if isinstance(one, str) else one.handle for one in found})


class _Participant(msgspec.Struct):
    handle: str


def unknown_fields(rows: list[R]) -> Iterator[str]:
    """Names of fields that landed in `extra`, for the run record: without the handles that some may be."""
    for row in rows:
        if bytes(row.extra):
            yield from map(masked, msgspec.json.decode(row.extra, type=dict[str, Raw]))
