"""Define the API's objects: the names, types and nullability of their fields.

The source of every field is the vendor's public documentation. Fields marked *undocumented* are null if the API does
not show them.

A struct defines a row on the wire, `tables` the columns it is loaded into; `decode` reads the wire format.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Generic, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .times import Timestamp

# The range of a bigint column; a larger number is stored in `extra`.
BigInt = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Key = Annotated[str, msgspec.Meta(min_length=1)]

NULL = Raw(b"null")
NOTHING = Raw(b"")


class Row(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Base of every row of the API.

    `extra` is a JSON object of the values that the declared fields cannot hold, or empty. Its wire name avoids a
    conflict with a field of the API called `extra`.
    """

    key_field: ClassVar[str] = "id"
    cursor_fields: ClassVar[tuple[str, ...]] = ()
    not_loaded: ClassVar[frozenset[str]] = frozenset()

    extra: Raw = msgspec.field(default=NOTHING, name="_extra")

    @property
    def key(self) -> str:
        return str(getattr(self, self.key_field))

    @property
    def cursor_at(self) -> datetime | None:
        """The timestamp by which the API orders this row; null if it has none."""
        for name in self.cursor_fields:
            at: datetime | None = getattr(self, name)
            if at is not None:
                return at if at.tzinfo else at.replace(tzinfo=UTC)
        return None


class Chat(Row):
    """A chat between one of the account's numbers and a contact, or a group.

    `from_event_at` is set in stored rows only: those of chats that have not been read from the API.
    """

    cursor_fields: ClassVar[tuple[str, ...]] = ("last_message_at",)
    from_event_at: ClassVar[None] = None

    id: Key
    from_handle: str | None = None
    remote_handle: str | None = None
    is_group: bool | None = None
    title: str | None = None
    last_message_at: Timestamp | None = None
    created_at: Timestamp | None = None
    updated_at: Timestamp | None = None
    # Not from the API: when we noticed that the chat was deleted.
    deleted_at: Timestamp | None = msgspec.field(default=None, name="_deleted_at")


class Attachment(Row):
    """A file of a message. `url` is signed and short-lived, and never stored."""

    not_loaded: ClassVar[frozenset[str]] = frozenset({"url"})

    id: Key
    message_id: str | None = None
    filename: str | None = None
    mime_type: str | None = None
    size_bytes: BigInt | None = None
    created_at: Timestamp | None = None
    url: str | None = None
    # Not from the API: when we noticed that its message no longer shows it.
    removed_at: Timestamp | None = msgspec.field(default=None, name="_removed_at")


class Message(Row):
    """A message of a chat. `created_at`, `updated_at` and the sender are undocumented.

    `sender_field` is the field that named the sender, null for `sender` itself. `attachments` is unset if the API does
    not show them. `from_event_at` is set in stored rows only: those of messages that have not been read from the API.
    """

    cursor_fields: ClassVar[tuple[str, ...]] = ("created_at", "sent_at")
    not_loaded: ClassVar[frozenset[str]] = frozenset({"attachments", "sender_field"})
    from_event_at: ClassVar[None] = None

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
    """An endpoint that the API sends events to; it is not loaded.

    The `secret` is shown only once, on creation. All fields but `url`, `events` and `secret` are undocumented.
    """

    id: Key
    url: str | None = None
    events: list[str] | None = None
    secret: str | None = None
    created_at: Timestamp | None = None


R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class RejectedRow:
    """A row that could not be read, as the API sent it. `key` is its id, if that is readable."""

    stream: str
    reason: str
    row: str
    request_id: str | None
    key: str | None = None

    @property
    def row_hash(self) -> str:
        """The key of this row: an unreadable row that is read again is the same rejected row."""
        return hashlib.blake2b(f"{self.stream}\0{self.row}".encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class StreamCoverage:
    """The interval in which a stream has been read without a gap."""

    stream: str
    complete_since: datetime
    complete_to: datetime


@dataclass(frozen=True)
class ParticipantRead:
    """The participants of a group at `asked_at`."""

    chat_id: str
    handles: Raw
    asked_at: datetime


@dataclass(frozen=True)
class Participant:
    """A participant of a group at `fetched_at`. A null handle means that there were none."""

    chat_id: str
    handle: str | None
    fetched_at: datetime

    @property
    def id(self) -> str:
        return f"{self.chat_id}|{self.fetched_at.isoformat()}|{self.handle or ''}"


@dataclass(frozen=True)
class Page(Generic[R]):
    """An answer of a list endpoint.

    `fetched_at` is when it was requested, `server_at` the same moment by the API's clock (both UTC). `full` is whether
    it has as many rows as requested. `has_more` is null if the API does not send it. `odd` are the keys of rows with
    values that only a lenient reader understands; they are null or text now.
    """

    rows: list[R]
    rejected: list[RejectedRow]
    has_more: bool | None
    full: bool
    fetched_at: datetime
    server_at: datetime
    request_id: str | None = None
    odd: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.rows) + len(self.rejected)

    @property
    def cursor_times(self) -> list[datetime]:
        """The cursor times of the rows that have one, in the order of the page."""
        return [at for row in self.rows if (at := row.cursor_at) is not None]

    @property
    def may_hide_rows(self) -> bool:
        """Whether the list may go on after this page."""
        return self.full or bool(self.has_more)


def fingerprint(row: Row) -> str:
    """Return a short hash of the loaded values of a row, to detect changes."""
    loaded = {
        name: value
        for name in row.__struct_fields__
        if name not in row.not_loaded and (value := getattr(row, name)) not in (None, NOTHING)
    }
    if isinstance(row, Message):
        loaded["attachments"] = [fingerprint(attachment) for attachment in row.attachments or ()]
    return hashlib.blake2b(msgspec.json.encode(loaded), digest_size=8).hexdigest()
