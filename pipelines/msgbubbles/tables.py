"""The tables that are loaded, and what each column holds of people.

This is the one place that says so. From it follow the Arrow schema and dlt's hints (`source.buffer`), what a policy
leaves of rows and of webhook payloads (`redact`, `redact_payloads`), and in `msgbubbles_sync` the DDL, the change to a
stricter policy, erasure and retention. `msgbubbles_sync.tables` adds the tables of the application.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Literal, get_args, get_origin

import msgspec
from msgspec import Raw

from .models import Attachment, Chat, Message, Number, Row

# dlt's names, and `integer`, which only tables that dlt does not load have.
ColumnType = Literal["text", "bigint", "bool", "timestamp", "json", "double", "integer"]


class Pii(Enum):
    """What the values of a column are, as far as they are about people."""

    HANDLE = "a number or an address of anybody"
    OWN_HANDLE = "one of the account's own numbers"
    HANDLES = "a JSON list of handles"
    HANDLE_KEY = "a key that ends with `|` and a handle"
    TITLE = "a title or a label that people chose"
    TEXT = "what people wrote"
    FILE_NAME = "the name of a file"
    MIME_TYPE = "the type of a file; its parameters may name the file"
    WORD = "one of a few words, by the API's documentation"
    WORDS = "a JSON list of such words"
    ERROR = "JSON: a stable code, and anything else"
    METADATA = "JSON of the sender's software"
    EXTRA = "JSON of fields that this version does not know"
    PAYLOAD = "JSON of a whole event"
    ROW = "a whole row that could not be read"
    ID = "an id of the API"
    ANSWER = "the API's own words about a request"
    NONE = "a number, a flag, a timestamp, or a text of this product or its user"


@dataclass(frozen=True)
class Column:
    """A column of a table. `pii` has no default: each column needs a decision."""

    name: str
    type: ColumnType
    pii: Pii
    nullable: bool = True


@dataclass(frozen=True)
class Table:
    """A loaded table. `key` is its primary key.

    A row is deleted together with its chat, its message or its person, which are in the columns `chat_key`,
    `message_key` and `person_key`. `dated_by` is SQL for the time from which `text_days` counts; null where no text
    expires.
    """

    name: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    chat_key: str | None = None
    message_key: str | None = None
    person_key: str | None = None
    dated_by: str | None = None

    @property
    def column_names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def json_columns(self) -> list[str]:
        return [column.name for column in self.columns if column.type == "json"]

    @property
    def text_columns(self) -> list[Column]:
        """The columns of text and JSON: in others there is nobody."""
        return [column for column in self.columns if column.type in ("text", "json")]

    def columns_with(self, *kinds: Pii) -> list[Column]:
        return [column for column in self.columns if column.pii in kinds]


FETCHED_AT = Column("_fetched_at", "timestamp", Pii.NONE, nullable=False)


def text(name: str, pii: Pii, *, nullable: bool = True) -> Column:
    """Return a column of text."""
    return Column(name, "text", pii, nullable)


def time(name: str, *, nullable: bool = True) -> Column:
    """Return a column of timestamps."""
    return Column(name, "timestamp", Pii.NONE, nullable)


def _model_columns(model: type[Row], *computed: Column, **decisions: Pii) -> tuple[Column, ...]:
    """Return the columns that rows of `model` are loaded into: the fields of the struct in order, those that the
    loader computes, `extra`, and when the row was read. `decisions` say what each text and JSON field holds.

    Raises `ValueError` if a decision is missing, or is about no field.
    """
    columns = []
    for field in msgspec.structs.fields(model):
        if field.name in model.not_loaded or field.name == "extra":
            continue
        kind = _column_type(field.type)
        pii = decisions.pop(field.name, None) if kind in ("text", "json") else Pii.NONE
        if pii is None:
            raise ValueError(f"{model.__name__}.{field.name}: say what it holds")
        columns.append(Column(field.name, kind, pii, nullable=field.name != model.key_field))
    if decisions:
        raise ValueError(f"{model.__name__} has no text or JSON field {', '.join(decisions)}")
    return (*columns, *computed, Column("extra", "json", Pii.EXTRA), FETCHED_AT)


def _column_type(annotation: object) -> ColumnType:
    annotation = _unannotated(annotation)
    types = {_unannotated(part) for part in get_args(annotation) or (annotation,)} - {type(None)}
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


CHATS = Table(
    "chats",
    _model_columns(Chat, id=Pii.ID, from_handle=Pii.OWN_HANDLE, remote_handle=Pii.HANDLE, title=Pii.TITLE),
    key=("id",),
    chat_key="id",
)
MESSAGES = Table(
    "messages",
    _model_columns(
        Message,
        Column("attachment_count", "bigint", Pii.NONE),
        time("cursor_at"),
        id=Pii.ID,
        conversation_id=Pii.ID,
        direction=Pii.WORD,
        status=Pii.WORD,
        channel=Pii.WORD,
        text=Pii.TEXT,
        effect=Pii.WORD,
        reply_to=Pii.ID,
        error=Pii.ERROR,
        metadata=Pii.METADATA,
        sender_handle=Pii.HANDLE,
    ),
    key=("id",),
    chat_key="conversation_id",
    message_key="id",
    person_key="sender_handle",
    dated_by="cursor_at",
)
ATTACHMENTS = Table(
    "attachments",
    _model_columns(Attachment, id=Pii.ID, message_id=Pii.ID, filename=Pii.FILE_NAME, mime_type=Pii.MIME_TYPE),
    key=("id",),
    message_key="message_id",
)
NUMBERS = Table(
    "numbers",
    _model_columns(Number, handle=Pii.OWN_HANDLE, channels=Pii.WORDS, label=Pii.TITLE, status=Pii.WORD),
    key=("handle",),
)
# A title of a chat, each time that another one than before was read; null if the title was removed.
CHAT_TITLES = Table(
    "chat_titles",
    (text("chat_id", Pii.ID, nullable=False), text("title", Pii.TITLE), time("updated_at"), FETCHED_AT),
    key=("chat_id", "_fetched_at"),
    chat_key="chat_id",
)
# When a group's participants were last asked for, and who they were, in order.
PARTICIPANT_READS = Table(
    "participant_reads",
    (text("chat_id", Pii.ID, nullable=False), Column("handles", "json", Pii.HANDLES), time("asked_at"), FETCHED_AT),
    key=("chat_id",),
    chat_key="chat_id",
)
# A participant of a group, by a list that differs from the one before. An empty list is one row without a handle.
PARTICIPANT_LISTS = Table(
    "participant_lists",
    (text("id", Pii.HANDLE_KEY, nullable=False), text("chat_id", Pii.ID), text("handle", Pii.HANDLE), FETCHED_AT),
    key=("id",),
    chat_key="chat_id",
)
# The interval in which a stream is complete: every row that was visible with a time in it has been loaded.
STREAM_COVERAGE = Table(
    "stream_coverage",
    (text("stream", Pii.NONE, nullable=False), time("complete_since"), time("complete_to"), FETCHED_AT),
    key=("stream",),
)
REJECTED_ROWS = Table(
    "rejected_rows",
    (
        text("row_hash", Pii.NONE, nullable=False),
        text("stream", Pii.NONE),
        text("reason", Pii.NONE),
        text("row", Pii.ROW),
        text("request_id", Pii.ID),
        FETCHED_AT,
    ),
    key=("row_hash",),
    dated_by="_fetched_at",
)
# The tables of the source, by name.
TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        CHATS, MESSAGES, ATTACHMENTS, NUMBERS, REJECTED_ROWS, CHAT_TITLES, PARTICIPANT_LISTS, PARTICIPANT_READS,
        STREAM_COVERAGE,
    )
}  # fmt: skip
