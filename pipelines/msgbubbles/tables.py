"""Register the tables that are loaded, and which personal data each column has.

Derived from this are the Arrow schema and dlt's hints (`source.arrow`), the redaction of rows and of webhook payloads
(`redact`, `redact_payloads`), and in `msgbubbles_sync` the DDL, the change to a stricter policy, erasure and retention.
`msgbubbles_sync.tables` adds the tables of the application.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Literal, get_args, get_origin

import msgspec
from msgspec import Raw

from .models import Attachment, Chat, Message, Number, Row

# dlt's names, and `integer`, which only tables not loaded by dlt have.
ColumnType = Literal["text", "bigint", "bool", "timestamp", "json", "double", "integer"]
# How dlt merges rows by key. With `insert-only`, a stored row stays.
Strategy = Literal["delete-insert", "insert-only"]


class Pii(Enum):
    """The personal data in a column."""

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
    description: str = ""
    nullable: bool = True


@dataclass(frozen=True)
class Table:
    """A loaded table. `description` defines a row, `key` is the primary key.

    A row is deleted together with its chat, its message or its person, which the columns `chat_key`, `message_key` and
    `person_key` name. `dated_by` is SQL for the time from which `text_days` counts; null if no text expires.
    """

    name: str
    description: str
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
        """The columns of text and JSON: only these have personal data."""
        return [column for column in self.columns if column.type in ("text", "json")]

    def columns_with(self, *kinds: Pii) -> list[Column]:
        return [column for column in self.columns if column.pii in kinds]


def fetched_at(description: str = "When this row was read from the API.") -> Column:
    return Column("_fetched_at", "timestamp", Pii.NONE, description, nullable=False)


def text(name: str, pii: Pii, description: str = "", *, nullable: bool = True) -> Column:
    return Column(name, "text", pii, description, nullable)


def time(name: str, description: str = "", *, nullable: bool = True) -> Column:
    return Column(name, "timestamp", Pii.NONE, description, nullable)


def _build_columns(model: type[Row], *computed: Column, **decisions: tuple[Pii, str] | str) -> tuple[Column, ...]:
    """Build the columns that rows of `model` are loaded into.

    These are the fields of the struct in order, the columns that the loader computes, `extra`, and `_fetched_at`.
    `decisions` describe each field, and the personal data in text and JSON.

    Raises `ValueError` if a decision is missing, or its field.
    """
    columns = []
    for field in msgspec.structs.fields(model):
        if field.name in model.not_loaded or field.name == "extra":
            continue
        kind = choose_column_type(field.type)
        decision = decisions.pop(field.name, "")
        if isinstance(decision, str) and kind in ("text", "json"):
            raise ValueError(f"{model.__name__}.{field.name}: say what it holds")
        pii, description = (Pii.NONE, decision) if isinstance(decision, str) else decision
        columns.append(Column(field.name, kind, pii, description, nullable=field.name != model.key_field))
    if decisions:
        raise ValueError(f"{model.__name__} has no field {', '.join(decisions)}")
    extra = Column(
        "extra", "json", Pii.EXTRA, "Fields of the API that have no column, as JSON. Null if there are none."
    )
    return (*columns, *computed, extra, fetched_at())


def choose_column_type(annotation: object) -> ColumnType:
    """Return the type of the column that a field's values are loaded into."""
    annotation = _unannotated(annotation)
    if get_origin(annotation) in (dict, list):
        return "json"
    types = {_unannotated(part) for part in get_args(annotation) or (annotation,)} - {type(None)}
    names: dict[object, ColumnType] = {
        str: "text", int: "bigint", bool: "bool", float: "double", datetime: "timestamp", Raw: "json"
    }  # fmt: skip
    return names[types.pop()]


def _unannotated(annotation: object) -> object:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


FROM_EVENT_AT = time(
    "from_event_at", "When the webhook event came that the row is from. Null once the row was read from the API."
)
CHATS = Table(
    "chats",
    "One row per chat, as last read. A deleted chat keeps its row, with deleted_at.",
    _build_columns(
        Chat,
        FROM_EVENT_AT,
        id=(Pii.ID, "The API's id of the chat, a UUID."),
        from_handle=(Pii.OWN_HANDLE, "The account's number in the chat, as the API writes it."),
        remote_handle=(Pii.HANDLE, "The other side's phone number or e-mail address. Undocumented for groups."),
        is_group="Whether the chat is a group.",
        title=(Pii.TITLE, "The title, at most 100 characters. Null if the chat has none."),
        last_message_at="Time of the newest message, according to the API. Null if the API reports none.",
        created_at="When the chat was created.",
        updated_at="When the chat last changed. A rename updates it; a message may.",
        deleted_at="When the job found the chat deleted. Null while the chat exists.",
    ),
    key=("id",),
    chat_key="id",
)
MESSAGES = Table(
    "messages",
    "One row per message, as last read.",
    _build_columns(
        Message,
        Column(
            "attachment_count", "bigint", Pii.NONE, "Number of attachments that the message had when it was last read."
        ),
        time("cursor_at", "The time that the API orders the message by: created_at, or sent_at without it."),
        FROM_EVENT_AT,
        id=(Pii.ID, "The API's id of the message."),
        conversation_id=(Pii.ID, "The chat of the message. Null if the API reports none."),
        direction=(Pii.WORD, "inbound (to the account) or outbound (from it)."),
        status=(Pii.WORD, "queued, sent, delivered, read or failed; received for inbound messages."),
        channel=(Pii.WORD, "The network: imessage, sms or whatsapp. Null until it is known."),
        text=(Pii.TEXT, "The text. Null if missing, as for an attachment alone."),
        effect=(Pii.WORD, "The effect that the message was sent with. Null if missing."),
        reply_to=(Pii.ID, "The id of the message that this one is a reply to. Null if it is not a reply."),
        error=(Pii.ERROR, "Why sending failed, as JSON. Null if it did not fail."),
        metadata=(Pii.METADATA, "What the sender's software attached, as JSON."),
        sender_handle=(
            Pii.HANDLE,
            "Who wrote the message, for inbound messages of groups. Null if the API does not say.",
        ),
        sent_at="When the message was sent.",
        delivered_at="When the message was delivered. Null while unconfirmed.",
        read_at="When the recipient read the message. Null while no receipt came; not every network sends one.",
        created_at="When the message was created. Undocumented, so null where the API does not send it.",
        updated_at="When the message last changed. Undocumented, so null where the API does not send it.",
    ),
    key=("id",),
    chat_key="conversation_id",
    message_key="id",
    person_key="sender_handle",
    dated_by="cursor_at",
)
ATTACHMENTS = Table(
    "attachments",
    "One row per attachment, as last read. One that its message no longer has keeps its row, with removed_at.",
    _build_columns(
        Attachment,
        id=(Pii.ID, "The API's id of the attachment."),
        message_id=(Pii.ID, "The message of the attachment."),
        filename=(Pii.FILE_NAME, "The file's name."),
        mime_type=(Pii.MIME_TYPE, "The file's type, for example image/jpeg."),
        size_bytes="The file's size in bytes.",
        created_at="When the attachment was created.",
        removed_at="When its message was found without it. Null while the message has it.",
    ),
    key=("id",),
    message_key="message_id",
)
NUMBERS = Table(
    "numbers",
    "One row per number of the account, as last read, including numbers that the API no longer lists.",
    _build_columns(
        Number,
        handle=(Pii.OWN_HANDLE, "The number, as the API writes it."),
        channels=(Pii.WORDS, "The networks that the number can use, as a JSON list."),
        label=(Pii.TITLE, "The name that the account gave the number. Null if it has none."),
        status=(Pii.WORD, "The number's state, as the API reports it."),
    ),
    key=("handle",),
)
CHAT_TITLES = Table(
    "chat_titles",
    "One row each time that a chat was read with another title than before.",
    (
        text("chat_id", Pii.ID, "The chat.", nullable=False),
        text("title", Pii.TITLE, "The title. Null if it was removed."),
        time("updated_at", "When the chat had last changed: the rename happened then or earlier."),
        fetched_at("When the title was read from the API."),
    ),
    key=("chat_id", "_fetched_at"),
    chat_key="chat_id",
)
PARTICIPANT_READS = Table(
    "participant_reads",
    "One row per group whose participants were requested: the last answer.",
    (
        text("chat_id", Pii.ID, "The group.", nullable=False),
        Column("handles", "json", Pii.HANDLES, "The participants' handles, in the API's order, as a JSON list."),
        time("asked_at", "When the participants were last requested."),
        fetched_at(),
    ),
    key=("chat_id",),
    chat_key="chat_id",
)
PARTICIPANT_LISTS = Table(
    "participant_lists",
    "One row per handle of each list of participants that differed from the list before it.",
    (
        text("id", Pii.HANDLE_KEY, "The key: chat, time and handle, joined by |.", nullable=False),
        text("chat_id", Pii.ID, "The group."),
        text("handle", Pii.HANDLE, "A handle in the list. Null in the single row of an empty list."),
        fetched_at("When the list was read from the API. The rows of one list share it."),
    ),
    key=("id",),
    chat_key="chat_id",
)
STREAM_COVERAGE = Table(
    "stream_coverage",
    "One row per stream (chats, messages): the interval in which every row that the API lists is loaded.",
    (
        text("stream", Pii.NONE, "chats or messages.", nullable=False),
        time("complete_since", "Start of the interval, inclusive. 0001-01-02 once the backfill is finished."),
        time(
            "complete_to",
            "End of the interval, exclusive: the millisecond after the newest row; without rows, when it was read.",
        ),
        fetched_at(),
    ),
    key=("stream",),
)
REJECTED_ROWS = Table(
    "rejected_rows",
    "One row per row of the API that could not be parsed.",
    (
        text(
            "row_hash",
            Pii.NONE,
            "A hash of stream and row: the same row, read again, has the same hash.",
            nullable=False,
        ),
        text("stream", Pii.NONE, "The stream that the row was requested for: chats, messages or numbers."),
        text("reason", Pii.NONE, "Why the row could not be parsed."),
        text("row", Pii.ROW, "The row as the API sent it, as text. It may hold message texts."),
        text("request_id", Pii.ID, "The API's id of the request. Null if the API sent none."),
        fetched_at(),
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
