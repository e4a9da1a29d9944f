"""A policy applied to what the API sends, before anything else sees it: rows, as `PrivateClient` returns them, and the
payloads of webhooks.

Rows are changed where they are decoded, so nothing of what the policy leaves out comes to fingerprints, to the
comparison with what is stored, to dlt's files or to the warehouse. What a column holds is in `tables`; what a policy
does not know follows `extra`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from .client import MAX_PAGE_SIZE, Client
from .decode import read_participants, without_senders
from .errors import ApiError, NotFoundError, is_unit_error
from .mentions import has_handle, replace_handles, unescaped
from .models import NOTHING, NULL, Chat, Message, Number, Page, R, RejectedRow, Row
from .policy import FULL, ORDERS, Policy, Pseudonyms
from .tables import TABLES, Pii
from .transport import Transport

# A text of which only the length is kept.
DOT = "·"
WORD = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
MIME_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+")
# An id that may be made of a handle; digits alone are none there.
NO_PLAIN_ID = re.compile(r"(?i)^(?:tel|sms):|[^a-z0-9_:-]")


class Names(Protocol):
    """Where it is noted who was replaced by a pseudonym."""

    def note(self, pseudonym: str, handle: str) -> None: ...

    def keep(self) -> None:
        """What was noted is about to be landed."""


# A column, and what becomes of its values.
Step = tuple[str, Callable[[Any], Any]]


class LeftOutChat(Chat):
    """A chat that does not land: of an erased person, or dormant. Its instant keeps the walk going."""


class LeftOutMessage(Message):
    """A message that does not land."""


@dataclass
class Redactor:
    """Applies `policy`. `erased` are hashes by `Pseudonyms.erased_handle` and `erased_chat`; threads that turn out to
    be an erased person's are added to `found`, and those that are dormant to `dormant`. `names` is told who was
    replaced, where somebody may look that up."""

    policy: Policy = FULL
    pseudonyms: Pseudonyms | None = None
    erased: frozenset[str] = frozenset()
    names: Names | None = None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    found: set[str] = field(default_factory=set)
    dormant: set[str] = field(default_factory=set)
    _words: set[str] = field(default_factory=set)
    _steps: dict[str, list[Step]] = field(default_factory=dict, init=False)
    # Our numbers by their pseudonyms, null until they are known.
    _own: dict[str, str] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether everything is kept as the API sends it."""
        policy = self.policy
        return not (policy.redacts or self.erased or policy.text_days or policy.thread_days)

    @property
    def asks_for_own_numbers(self) -> bool:
        return self._own is None and self._keeps_own

    @property
    def _keeps_own(self) -> bool:
        return self.policy.handles == "pseudonym" and self.policy.own_numbers == "keep"

    def know_own_numbers(self, handles: Iterable[str]) -> None:
        """These stay readable from now on, where the policy keeps ours; also where only their pseudonym is left."""
        if self._keeps_own:
            self._own = (self._own or {}) | {self._pseudonyms.handle(one): one for one in handles}

    # -- values

    def handle(self, written: str) -> str:
        """A handle of anybody; ours stays where it is known to be ours and the policy keeps ours."""
        if self.policy.handles == "keep" or written == ERASED:
            return written
        pseudonym = self._pseudonyms.handle(written)
        own = self._own.get(pseudonym) if self._own else None
        return self._noted(pseudonym, written) if own is None else own

    def own_handle(self, written: str) -> str:
        """A handle in a field that only one of ours can be in."""
        if self.policy.own_numbers == "keep" or written == ERASED:
            return written
        return self._noted(self._pseudonyms.handle(written), written)

    def _noted(self, pseudonym: str, written: str) -> str:
        if self.names is not None and pseudonym != written:
            self.names.note(pseudonym, written)
        return pseudonym

    def keep_names(self) -> None:
        """Before what was redacted is written."""
        if self.names is not None:
            self.names.keep()

    def text(self, written: str) -> str | None:
        if self.policy.text == "keep":
            return written
        return DOT * len(written) if self.policy.text == "length" else None

    def mark_of_text(self, written: str) -> str:
        """By what a text is known again where it is not kept."""
        return written if self.policy.text == "keep" else self._pseudonyms.row(written)

    def title(self, written: str) -> str | None:
        if self.policy.titles == "keep":
            return written
        return self._pseudonyms.title(written) if self.policy.titles == "pseudonym" else None

    def file_name(self, written: str) -> str | None:
        return written if self.policy.file_names == "keep" else None

    def mime_type(self, written: str) -> str | None:
        """Without its parameters, which may name the file."""
        if self._is_hidden_handle(written):
            return None
        if self.policy.file_names == "keep":
            return written
        found = MIME_TYPE.match(written)
        return found[0] if found else None

    def word(self, written: str) -> str | None:
        """A value of a field that holds one of a few words: anything else is something the policy does not know."""
        if written in self._words:
            return written
        if self._is_hidden_handle(written) or (self.policy.extra == "drop" and not WORD.fullmatch(written)):
            return None
        if len(self._words) < MAX_WORDS:
            self._words.add(written)
        return written

    def _is_hidden_handle(self, written: str) -> bool:
        """Whether a field that is none for handles holds one all the same, which the policy hides."""
        return self.policy.handles == "pseudonym" and written != ERASED and has_handle(written)

    def id(self, written: str) -> str:
        """An id of the API; another of its own where it is made of a handle."""
        is_hidden = NO_PLAIN_ID.search(written) is not None and self._is_hidden_handle(written)
        return self._pseudonyms.row(written) if is_hidden else written

    def error(self, raw: Raw) -> Raw:
        """Of an error, its stable code: the rest may quote anything."""
        if self.policy.extra == "keep" or raw in (NULL, NOTHING):
            return raw
        try:
            found = msgspec.json.decode(raw)
        except msgspec.DecodeError:
            return NULL
        kept = self.known_error(found)
        return NULL if kept is None else Raw(msgspec.json.encode(kept))

    def known_error(self, found: Any) -> Any:
        if self.policy.extra == "keep":
            return found
        if isinstance(found, dict):
            codes = {
                name: code
                for name in ("code", "error")
                if isinstance(code := found.get(name), str) and self._is_code(code)
            }
            return codes or None
        return found if isinstance(found, str) and self._is_code(found) else None

    def _is_code(self, written: str) -> bool:
        return CODE.fullmatch(written) is not None and not self._is_hidden_handle(written)

    @property
    def _pseudonyms(self) -> Pseudonyms:
        if self.pseudonyms is None:
            raise ValueError("a policy that needs a key was made without one")
        return self.pseudonyms

    # -- who is left out

    def is_erased(self, handle: str | None) -> bool:
        return bool(self.erased) and handle is not None and self._pseudonyms.was_erased(handle, self.erased)

    def without_erased(self, text: str) -> str:
        """A text with a word in the place of every handle in it that is erased."""
        if not self.erased:
            return text
        if SHORT_CODE.fullmatch(text) and self.is_erased(text):
            return ERASED
        return replace_handles(text, self.is_erased, ERASED)

    def mentions_erased(self, text: str) -> bool:
        """Whether somebody who is erased is in a text, or in JSON that is not decoded."""
        readable = unescaped(text)
        return self.without_erased(readable) != readable

    def json_without_erased(self, text: str) -> str:
        """The same of JSON text, which stays as it is written where nobody is in it."""
        if not self.erased or not text:
            return text
        try:
            value = msgspec.json.decode(text)
            left = self._value_without_erased(value)
        except (msgspec.DecodeError, RecursionError):
            # It cannot be taken apart, so it goes whole.
            return "null" if self.mentions_erased(text) else text
        return text if left == value else msgspec.json.encode(left).decode()

    def _value_without_erased(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.without_erased(value)
        if isinstance(value, dict):
            return {self.without_erased(name): self._value_without_erased(one) for name, one in value.items()}
        if isinstance(value, list):
            return [self._value_without_erased(one) for one in value]
        if isinstance(value, int | float) and self.mentions_erased(str(value)):
            return ERASED
        return value

    def _raw_without_erased(self, raw: Raw) -> Raw:
        return Raw(self.json_without_erased(bytes(raw).decode()).encode())

    def mark_of_chat(self, chat_id: str) -> str:
        """By what an erased person's thread is known again."""
        return self._pseudonyms.erased_chat(chat_id)

    def pseudonym(self, handle: str) -> str:
        return self._pseudonyms.handle(handle)

    def is_erased_chat(self, chat_id: str | None) -> bool:
        if not self.erased or chat_id is None:
            return False
        mark = self._pseudonyms.erased_chat(chat_id)
        return mark in self.erased or mark in self.found

    def erase_chat(self, chat_id: str) -> None:
        """Know a thread as an erased person's from now on."""
        mark = self._pseudonyms.erased_chat(chat_id)
        if mark not in self.erased:
            self.found.add(mark)

    def is_erased_thread(self, chat: Chat) -> bool:
        """Whether a chat is a thread with an erased person; noted, so that its messages are known too."""
        if not self.erased or not (
            self.is_erased_chat(chat.id) or (not chat.is_group and self.is_erased(chat.remote_handle))
        ):
            return False
        self.erase_chat(chat.id)
        return True

    def is_dormant(self, last_message_at: datetime | None) -> bool:
        days = self.policy.thread_days
        return days is not None and last_message_at is not None and last_message_at < self.now() - timedelta(days)

    def has_expired(self, at: datetime | None) -> bool:
        """Whether the text of a message of that time is not kept any more."""
        days = self.policy.text_days
        return days is not None and at is not None and at < self.now() - timedelta(days)

    # -- rows

    def page(self, page: Page[Any]) -> Page[Any]:
        rows = [_BY_MODEL[type(row)](self, row) for row in page.rows]
        self.keep_names()
        return replace(page, rows=rows, rejected=[self.rejected(one) for one in page.rejected])

    def rejected(self, row: RejectedRow) -> RejectedRow:
        """What could not be read is known to no policy: a hash tells it from others, and the reason stays."""
        if not self.policy.redacts and not self.erased:
            return row
        request_id = None if row.request_id is None else self.without_erased(row.request_id)
        is_hidden = self.policy.redacts or self.mentions_erased(row.row)
        left = self._pseudonyms.row(f"{row.stream}\0{row.row}") if is_hidden else row.row
        return replace(row, row=left, request_id=request_id)

    def chat(self, row: Chat) -> Chat:
        """The chat as the list shows it."""
        if self.is_dormant(row.last_message_at):
            self.dormant.add(row.id)
        if self.is_erased_thread(row) or row.id in self.dormant:
            return LeftOutChat(id=row.id, last_message_at=row.last_message_at)
        return self._left_of(row, "chats")

    def chat_by_id(self, row: Chat) -> Chat:
        """The chat as it is shown by its id: with its participants, where the API shows them."""
        participants = read_participants(row)
        chat = self.chat(row)
        if participants is not None and type(chat) is Chat:
            known = {} if self.policy.extra == "drop" else msgspec.json.decode(chat.extra)
            known["participants"] = [self.handle(one) for one in participants if not self.is_erased(one)]
            chat.extra = Raw(msgspec.json.encode(known))
        self.keep_names()
        return chat

    def message(self, row: Message) -> Message:
        if (
            self.is_erased(row.sender_handle)
            or self.is_erased_chat(row.conversation_id)
            or row.conversation_id in self.dormant
        ):
            return LeftOutMessage(id=row.id, created_at=row.created_at, sent_at=row.sent_at)
        if self.has_expired(row.cursor_at):
            row.text = None
        if self.policy.handles != "keep":
            row.extra = without_senders(row)
        for attachment in row.attachments or ():
            self._left_of(attachment, "attachments")
        return self._left_of(row, "messages")

    def number(self, row: Number) -> Number:
        return self._left_of(row, "numbers")

    def _left_of(self, row: R, table: str) -> R:
        """The row with each of its columns as the policy leaves it, by what the column holds."""
        steps = self._steps.get(table)
        if steps is None:
            steps = self._steps[table] = [
                (column.name, self._change(column.pii))
                for column in TABLES[table].text_columns
                if self.changes(column.pii)
            ]
        for column, change in steps:
            value = getattr(row, column)
            if value is not None:
                setattr(row, column, change(value))
        return row

    def changes(self, kind: Pii) -> bool:
        """Whether a column of that kind does not always stay as it is."""
        return bool(self.erased) or self.is_redacted(kind)

    def is_redacted(self, kind: Pii) -> bool:
        """Whether the policy says so, whoever is erased."""
        return any(getattr(self.policy, name) != ORDERS[name][0] for name in _OF_KIND[kind][0])

    def left_of(self, kind: Pii, value: Any) -> Any:
        """What may land of a value, which is not null, of a column of that kind."""
        return self._change(kind)(value)

    def _change(self, kind: Pii) -> Callable[[Any], Any]:
        redact = _OF_KIND[kind][1] if self.is_redacted(kind) else None

        def change(value: Any) -> Any:
            if self.erased:
                value = self._raw_without_erased(value) if isinstance(value, Raw) else self.without_erased(value)
            return value if redact is None else redact(self, value)

        return change

    def words(self, raw: Raw) -> Raw:
        """A list of words; null where it is anything else."""
        if raw in (NULL, NOTHING):
            return raw
        try:
            words = msgspec.json.decode(raw, type=list[str])
        except msgspec.DecodeError:
            return NULL
        return raw if all(map(self._is_code, words)) else NULL

    # -- payloads of webhooks

    def payload(self, value: Any) -> Any:
        """What the policy leaves of an event: of its objects, the fields that are known."""
        if self.erased:
            value = self._value_without_erased(value)
        if not self.policy.redacts or not isinstance(value, dict):
            return value if not self.policy.redacts or self.policy.extra == "keep" else None
        kept = {name: self._field(name, one) for name, one in value.items()}
        return {name: one for name, one in kept.items() if one is not None or value[name] is None}

    def concerns_erased(self, value: Any) -> bool:
        """Whether an event is about an erased person: in one of their threads, or with their handle."""
        if not self.erased or not isinstance(value, dict):
            return False
        for name, one in value.items():
            if name in CHAT_IDS and isinstance(one, str) and self.is_erased_chat(one):
                return True
            if name in HANDLES and self.is_erased(_text_of(one, "handle") if isinstance(one, dict) else _text(one)):
                return True
            if name in CHATS and isinstance(one, dict) and self.is_erased_chat(_text_of(one, "id")):
                return True
            if name in OBJECTS and self.concerns_erased(one):
                return True
        return False

    def _field(self, name: str, value: Any) -> Any:
        if value is None:
            return None
        if name in OBJECTS and isinstance(value, dict):
            return self.payload(value)
        if name == "attachments" and isinstance(value, list):
            return [self.payload(one) for one in value if isinstance(one, dict)]
        if name == "metadata":
            return value if self.policy.metadata == "keep" else None
        if name == "error":
            return self.known_error(value)
        of_kind = _OF_FIELD.get(name)
        if of_kind is None or not isinstance(value, of_kind[0]):
            return value if self.policy.extra == "keep" else None
        return of_kind[1](self, value)

    def _id(self, value: str) -> str | None:
        left = self.id(value)
        return left if self.policy.extra == "keep" or ID.fullmatch(left) else None

    def _instant(self, value: str | float) -> str | float | None:
        if self.policy.extra == "keep" or not isinstance(value, str):
            return value
        try:
            datetime.fromisoformat(value)
        except ValueError:
            return None
        return value


MAX_WORDS = 1000
ID = re.compile(r"[A-Za-z0-9_:-]{1,200}")
ERASED = "[erased]"
# Too short to be looked for within a text, so it is looked for where it is all of one.
SHORT_CODE = re.compile(r"\+?\d{3,6}")
OBJECTS = frozenset({"data", "object", "payload", "event", "message", "conversation", "chat"})
CHATS = frozenset({"conversation", "chat"})
CHAT_IDS = frozenset({"conversation_id", "chat_id"})
HANDLES = frozenset({"handle", "sender", "sender_handle", "from", "author", "to", "remote_handle"})


def _text_of(found: dict[str, Any], name: str) -> str | None:
    return _text(found.get(name))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _as_it_is(_redactor: Redactor, value: Any) -> Any:
    return value


# By what a column holds: the settings of a policy that concern it, and what becomes of a value by them.
_OF_KIND: dict[Pii, tuple[tuple[str, ...], Callable[[Redactor, Any], Any]]] = {
    Pii.HANDLE: (("handles",), Redactor.handle),
    Pii.OWN_HANDLE: (("own_numbers",), Redactor.own_handle),
    Pii.TITLE: (("titles",), Redactor.title),
    Pii.TEXT: (("text",), Redactor.text),
    Pii.FILE_NAME: (("file_names",), Redactor.file_name),
    Pii.MIME_TYPE: (("file_names", "handles"), Redactor.mime_type),
    Pii.WORD: (("extra", "handles"), Redactor.word),
    Pii.WORDS: (("extra",), Redactor.words),
    Pii.ERROR: (("extra",), Redactor.error),
    Pii.METADATA: (("metadata",), lambda _redactor, _raw: NULL),
    Pii.EXTRA: (("extra",), lambda _redactor, _raw: NOTHING),
    Pii.ID: (("handles",), Redactor.id),
    Pii.ANSWER: (tuple(ORDERS), lambda _redactor, _text: None),
    Pii.NONE: ((), _as_it_is),
}
# By the name of a field: of which type its value is, and what becomes of it.
_OF_FIELD: dict[str, tuple[Any, Callable[[Redactor, Any], Any]]] = {
    **dict.fromkeys(HANDLES, (str, Redactor.handle)),
    "from_handle": (str, Redactor.own_handle),
    **dict.fromkeys(("text", "reaction", "emoji"), (str, Redactor.text)),
    "title": (str, Redactor.title),
    "filename": (str, Redactor.file_name),
    "mime_type": (str, Redactor.mime_type),
    **dict.fromkeys(
        ("type", "event", "event_type", "direction", "status", "channel", "effect", "state"), (str, Redactor.word)
    ),
    **dict.fromkeys(("id", "event_id", "message_id", "reply_to", *CHAT_IDS), (str, Redactor._id)),
    **dict.fromkeys(
        (
            "occurred_at", "timestamp", "created_at", "updated_at", "sent_at", "delivered_at", "read_at",
            "last_message_at",
        ),
        ((str, int, float), Redactor._instant),
    ),
    **dict.fromkeys(("typing", "is_typing", "is_group"), (bool, _as_it_is)),
    "size_bytes": (int, _as_it_is),
}  # fmt: skip
_BY_MODEL: dict[type[Row], Callable[[Redactor, Any], Row]] = {
    Chat: Redactor.chat,
    Message: Redactor.message,
    Number: Redactor.number,
}


# What a redactor has to know is asked for no more often: the rows wait for it.
TRIES_OF_A_QUESTION = 2
StoredChats = Callable[[Sequence[str]], Sequence[str]]


class PrivateClient(Client):
    """A client whose answers are what a policy leaves of them.

    `stored_chats` says which of these ids are chats in the warehouse: whose thread the others are has to be asked for
    where somebody is erased, one request for each.
    """

    def __init__(
        self,
        transport: Transport,
        redactor: Redactor,
        stored_chats: StoredChats = lambda _ids: (),
        sender_field: str | None = None,
    ) -> None:
        super().__init__(transport, sender_field)
        self._redactor = redactor
        self._stored_chats = stored_chats
        self._kept_chats: set[str] = set()
        self._numbers: Page[Number] | None = None
        # Pages come side by side. What one shows of who is erased is known before the next is redacted.
        self._redacting = threading.RLock()

    def list_chats(self, limit: int = MAX_PAGE_SIZE, before: str | None = None) -> Page[Chat]:
        self._know_own_numbers()
        page = super().list_chats(limit, before)
        with self._redacting:
            return self._redactor.page(page)

    def get_chat(self, chat_id: str) -> Chat:
        self._know_own_numbers()
        chat = super().get_chat(chat_id)
        with self._redacting:
            return self._redactor.chat_by_id(chat)

    def list_messages(
        self, conversation_id: str | None = None, limit: int = MAX_PAGE_SIZE, before: str | None = None
    ) -> Page[Message]:
        self._know_own_numbers()
        page = super().list_messages(conversation_id, limit, before)
        with self._redacting:
            if self._redactor.erased:
                chat_ids = {row.conversation_id for row in page.rows if row.conversation_id is not None}
                self._know_threads(chat_ids, is_feed=conversation_id is None)
            is_hidden = [row.conversation_id in self.unknown_chats for row in page.rows]
            left = self._redactor.page(page)
            rows = [
                LeftOutMessage(id=row.id, created_at=row.created_at, sent_at=row.sent_at) if hidden else row
                for row, hidden in zip(left.rows, is_hidden, strict=True)
            ]
            return replace(left, rows=rows) if any(is_hidden) else left

    def list_numbers(self) -> Page[Number]:
        with self._redacting:
            page, self._numbers = self._numbers or super().list_numbers(), None
            self._redactor.know_own_numbers(row.handle for row in page.rows)
            return self._redactor.page(page)

    def _know_own_numbers(self) -> None:
        with self._redacting:
            if self._redactor.asks_for_own_numbers:
                try:
                    with self.transport.at_most(TRIES_OF_A_QUESTION):
                        self._numbers = super().list_numbers()
                except ApiError as error:
                    if not is_unit_error(error):
                        raise
                # Where they cannot be read, ours become pseudonyms as well, until they can.
                self._redactor.know_own_numbers(row.handle for row in (self._numbers.rows if self._numbers else ()))

    def _know_threads(self, chat_ids: set[str], *, is_feed: bool) -> None:
        """Find out of threads that were never seen whether they are an erased person's: their messages do not say.
        Where the API does not say either, one in the feed becomes one of `unknown_chats`; the error of any other is
        raised."""
        redactor = self._redactor
        unknown = {one for one in chat_ids - self._kept_chats if not redactor.is_erased_chat(one)}
        if unknown:
            self._kept_chats.update(self._stored_chats(sorted(unknown)))
        asked = unknown - self._kept_chats - (self.unknown_chats.keys() if is_feed else set())
        for chat_id in sorted(asked):
            try:
                if not redactor.is_erased_thread(super().get_chat(chat_id)):
                    self._kept_chats.add(chat_id)
            except NotFoundError:
                # Nobody can tell any more whose it was.
                redactor.erase_chat(chat_id)
            except ApiError as error:
                if not is_feed or not is_unit_error(error):
                    raise
                self.unknown_chats[chat_id] = error
            else:
                self.unknown_chats.pop(chat_id, None)


def client_of(
    transport: Transport,
    redactor: Redactor,
    stored_chats: StoredChats = lambda _ids: (),
    sender_field: str | None = None,
) -> Client:
    """A client by the policy; the plain one where that leaves everything as it is."""
    if redactor.is_idle:
        return Client(transport, sender_field)
    return PrivateClient(transport, redactor, stored_chats, sender_field)
