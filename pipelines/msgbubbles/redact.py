"""Apply a policy to the rows of the API, before anything else sees them.

Rows are redacted right after they are decoded. So nothing that the policy drops reaches fingerprints, the comparison
with stored rows, dlt's files or the warehouse. `tables` classifies the columns; unknown fields follow `extra`.
`redact_payloads` does the same for the payloads of webhooks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
from msgspec import Raw

from .decode import SENDER_FIELDS, drop_fields, read_participants
from .mentions import has_handle, replace_handles, unescape_json
from .models import NOTHING, NULL, Chat, Message, Number, Page, R, RejectedRow, Row
from .policy import FULL, ORDERS, Policy, Pseudonymizer
from .tables import ATTACHMENTS, CHATS, MESSAGES, NUMBERS, Pii, Table

# Replaces each character of a text of which only the length is stored.
DOT = "·"
ERASED = "[erased]"
WORD = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")
MIME_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+")
# An id that may contain a handle; digits alone do not count.
HANDLE_LIKE_ID = re.compile(r"(?i)^(?:tel|sms):|[^a-z0-9_:-]")
# Too short to be searched for within a text; it has to be the whole text.
SHORT_CODE = re.compile(r"\+?\d{3,6}")
MAX_CACHED_WORDS = 1000

# A column, and the function that redacts its values.
Step = tuple[str, Callable[[Any], Any]]


class Vault(Protocol):
    """Records the handles behind pseudonyms."""

    def add(self, pseudonym: str, handle: str) -> None: ...

    def save(self) -> None:
        """Write new entries to disk, before the redacted rows are loaded."""


class ExcludedChat(Chat):
    """A chat that is not loaded: of an erased person, or dormant. The paginator needs its timestamp."""


class ExcludedMessage(Message):
    """A message that is not loaded."""


@dataclass
class Redactor:
    """Applies `policy`.

    `erased` are hashes by `Pseudonymizer.erased_handle` and `erased_chat`. Chats that turn out to be an erased person's
    are added to `found_chats`, dormant ones to `dormant`, and pseudonyms with their handles to `vault`. Ages count from
    `now`.
    """

    policy: Policy = FULL
    pseudonymizer: Pseudonymizer | None = None
    erased: frozenset[str] = frozenset()
    vault: Vault | None = None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    found_chats: set[str] = field(default_factory=set)
    dormant: set[str] = field(default_factory=set)
    _words: set[str] = field(default_factory=set)
    _steps: dict[str, list[Step]] = field(default_factory=dict, init=False)
    # Our own numbers by their pseudonyms, null until they are read.
    _own: dict[str, str] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether everything is stored as the API sends it."""
        return not (self.policy.redacts or self.erased or self.policy.text_days or self.policy.thread_days)

    @property
    def needs_own_numbers(self) -> bool:
        return self._own is None and self._keeps_own

    @property
    def _keeps_own(self) -> bool:
        return self.policy.handles == "pseudonym" and self.policy.own_numbers == "keep"

    def add_own_numbers(self, handles: Iterable[str]) -> None:
        """Keep these numbers readable if the policy keeps ours, and restore them where only a pseudonym is left."""
        if self._keeps_own:
            self._own = (self._own or {}) | {self.pseudonyms.handle(handle): handle for handle in handles}

    def save_vault(self) -> None:
        """Save the vault, if there is one. Call this before redacted rows are written."""
        if self.vault is not None:
            self.vault.save()

    # -- values

    def redact(self, pii: Pii, value: Any) -> Any:
        """Redact a value that is not null, of a column of this kind."""
        return self._redaction(pii)(value)

    def is_redacted(self, pii: Pii) -> bool:
        """Return whether the policy changes columns of this kind, regardless of erased people."""
        return any(getattr(self.policy, name) != ORDERS[name][0] for name in _REDACTIONS[pii][0])

    def _redaction(self, pii: Pii) -> Callable[[Any], Any]:
        redact = _REDACTIONS[pii][1] if self.is_redacted(pii) else None

        def change(value: Any) -> Any:
            if self.erased:
                value = self.replace_erased_in_value(value)
            return value if redact is None else redact(self, value)

        return change

    def handle(self, written: str) -> str:
        """Redact anybody's handle. Our own numbers stay if the policy keeps them."""
        if self.policy.handles == "keep" or written == ERASED:
            return written
        own = (self._own or {}).get(self.pseudonyms.handle(written))
        return self._replace_handle(written) if own is None else own

    def own_handle(self, written: str) -> str:
        """Redact a handle in a field that has only our own numbers."""
        return written if self.policy.own_numbers == "keep" or written == ERASED else self._replace_handle(written)

    def _replace_handle(self, written: str) -> str:
        pseudonym = self.pseudonyms.handle(written)
        if self.vault is not None and pseudonym != written:
            self.vault.add(pseudonym, written)
        return pseudonym

    def text(self, written: str) -> str | None:
        if self.policy.text == "keep":
            return written
        return DOT * len(written) if self.policy.text == "length" else None

    def text_mark(self, written: str) -> str:
        """Return a value by which a text can be recognized."""
        return written if self.policy.text == "keep" else self.pseudonyms.row(written)

    def title(self, written: str) -> str | None:
        if self.policy.titles == "keep":
            return written
        return self.pseudonyms.title(written) if self.policy.titles == "pseudonym" else None

    def _file_name(self, written: str) -> str | None:
        return written if self.policy.file_names == "keep" else None

    def _mime_type(self, written: str) -> str | None:
        """Remove the parameters, which may name the file."""
        if self._is_hidden_handle(written):
            return None
        if self.policy.file_names == "keep":
            return written
        match = MIME_TYPE.match(written)
        return match[0] if match else None

    def _word(self, written: str) -> str | None:
        """Keep a word in a field with a fixed set of words; treat anything else like an unknown field."""
        if written in self._words:
            return written
        if self._is_hidden_handle(written) or (self.policy.extra == "drop" and not WORD.fullmatch(written)):
            return None
        if len(self._words) < MAX_CACHED_WORDS:
            self._words.add(written)
        return written

    def _word_list(self, raw: Raw) -> Raw:
        if raw in (NULL, NOTHING):
            return raw
        try:
            words = msgspec.json.decode(raw, type=list[str])
        except msgspec.DecodeError:
            return NULL
        return raw if all(map(self._is_code, words)) else NULL

    def _is_hidden_handle(self, written: str) -> bool:
        """Return whether a field that is not for handles has one that the policy hides."""
        return self.policy.handles == "pseudonym" and written != ERASED and has_handle(written)

    def _id(self, written: str) -> str:
        """Replace an id that contains a handle by a hash."""
        is_hidden = HANDLE_LIKE_ID.search(written) is not None and self._is_hidden_handle(written)
        return self.pseudonyms.row(written) if is_hidden else written

    def _error(self, raw: Raw) -> Raw:
        """Keep only the stable code of an error: the rest may quote anything."""
        if self.policy.extra == "keep" or raw in (NULL, NOTHING):
            return raw
        try:
            code = self.error_code(msgspec.json.decode(raw))
        except msgspec.DecodeError:
            return NULL
        return NULL if code is None else Raw(msgspec.json.encode(code))

    def error_code(self, error: Any) -> Any:
        if self.policy.extra == "keep":
            return error
        if isinstance(error, dict):
            return {name: error[name] for name in ("code", "error") if self._is_code(error.get(name))} or None
        return error if self._is_code(error) else None

    def _is_code(self, value: Any) -> bool:
        return isinstance(value, str) and CODE.fullmatch(value) is not None and not self._is_hidden_handle(value)

    @property
    def pseudonyms(self) -> Pseudonymizer:
        if self.pseudonymizer is None:
            raise ValueError("this policy needs a Pseudonymizer")
        return self.pseudonymizer

    # -- erased people

    def is_erased(self, handle: str | None) -> bool:
        return bool(self.erased) and handle is not None and self.pseudonyms.was_erased(handle, self.erased)

    def replace_erased(self, text: str) -> str:
        """Replace every erased handle in a text by `ERASED`."""
        if not self.erased:
            return text
        if SHORT_CODE.fullmatch(text) and self.is_erased(text):
            return ERASED
        return replace_handles(text, self.is_erased, ERASED)

    def mentions_erased(self, text: str) -> bool:
        """Return whether a text, or JSON that is not decoded, has an erased handle."""
        readable = unescape_json(text)
        return self.replace_erased(readable) != readable

    def replace_erased_in_json(self, text: str) -> str:
        """Replace erased handles in JSON text. Without any, the text stays as it is."""
        if not self.erased or not text:
            return text
        try:
            value = msgspec.json.decode(text)
            redacted = self.replace_erased_in_value(value)
        except (msgspec.DecodeError, RecursionError):
            # It cannot be decoded, so it is dropped as a whole.
            return "null" if self.mentions_erased(text) else text
        return text if redacted == value else msgspec.json.encode(redacted).decode()

    def replace_erased_in_value(self, value: Any) -> Any:
        """Replace erased handles in a JSON value, raw or decoded, the names of fields included."""
        if isinstance(value, Raw):
            return Raw(self.replace_erased_in_json(bytes(value).decode()).encode())
        if isinstance(value, str):
            return self.replace_erased(value)
        if isinstance(value, dict):
            return {self.replace_erased(name): self.replace_erased_in_value(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [self.replace_erased_in_value(inner) for inner in value]
        if isinstance(value, int | float) and self.mentions_erased(str(value)):
            return ERASED
        return value

    def is_erased_chat(self, chat_id: str | None) -> bool:
        if not self.erased or chat_id is None:
            return False
        mark = self.pseudonyms.erased_chat(chat_id)
        return mark in self.erased or mark in self.found_chats

    def erase_chat(self, chat_id: str) -> None:
        """Treat a chat as an erased person's from now on."""
        mark = self.pseudonyms.erased_chat(chat_id)
        if mark not in self.erased:
            self.found_chats.add(mark)

    def is_of_erased_person(self, chat: Chat) -> bool:
        """Return whether a chat is with an erased person, and record it, so that its messages are recognized."""
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
        """Return whether the text of a message of this time is not stored any more."""
        days = self.policy.text_days
        return days is not None and at is not None and at < self.now() - timedelta(days)

    # -- rows

    def page(self, page: Page[Any]) -> Page[Any]:
        rows = [_BY_MODEL[type(row)](self, row) for row in page.rows]
        self.save_vault()
        return replace(page, rows=rows, rejected=[self.rejected(row) for row in page.rejected])

    def rejected(self, row: RejectedRow) -> RejectedRow:
        """Replace a row that could not be read by a hash, because its contents are unknown. The reason stays."""
        if not self.policy.redacts and not self.erased:
            return row
        request_id = None if row.request_id is None else self.replace_erased(row.request_id)
        is_hidden = self.policy.redacts or self.mentions_erased(row.row)
        redacted = self.pseudonyms.row(f"{row.stream}\0{row.row}") if is_hidden else row.row
        return replace(row, row=redacted, request_id=request_id)

    def chat(self, row: Chat) -> Chat:
        if self.is_dormant(row.last_message_at):
            self.dormant.add(row.id)
        if self.is_of_erased_person(row) or row.id in self.dormant:
            return ExcludedChat(id=row.id, last_message_at=row.last_message_at)
        return self._redact_row(row, CHATS)

    def chat_by_id(self, row: Chat) -> Chat:
        """Redact a chat that was read by its id, including its participants."""
        participants = read_participants(row)
        chat = self.chat(row)
        if participants is not None and type(chat) is Chat:
            extra = {} if self.policy.extra == "drop" else msgspec.json.decode(chat.extra)
            extra["participants"] = [self.handle(handle) for handle in participants if not self.is_erased(handle)]
            chat.extra = Raw(msgspec.json.encode(extra))
        self.save_vault()
        return chat

    def message(self, row: Message) -> Message:
        if (
            self.is_erased(row.sender_handle)
            or self.is_erased_chat(row.conversation_id)
            or row.conversation_id in self.dormant
        ):
            return exclude(row)
        if self.has_expired(row.cursor_at):
            row.text = None
        if self.policy.handles != "keep":
            row.extra = drop_fields(row.extra, (*SENDER_FIELDS, row.sender_field))
        for attachment in row.attachments or ():
            self._redact_row(attachment, ATTACHMENTS)
        return self._redact_row(row, MESSAGES)

    def number(self, row: Number) -> Number:
        return self._redact_row(row, NUMBERS)

    def _redact_row(self, row: R, table: Table) -> R:
        """Redact each column of a row in place, by its kind."""
        steps = self._steps.get(table.name)
        if steps is None:
            steps = self._steps[table.name] = [
                (column.name, self._redaction(column.pii))
                for column in table.text_columns
                if self.erased or self.is_redacted(column.pii)
            ]
        for column, redact in steps:
            value = getattr(row, column)
            if value is not None:
                setattr(row, column, redact(value))
        return row


def exclude(row: Message) -> ExcludedMessage:
    """Return the parts of a message that the paginator needs, if it is not loaded."""
    return ExcludedMessage(id=row.id, created_at=row.created_at, sent_at=row.sent_at)


# By kind: the settings that apply to it, and the function that changes a value. Rows of the API have no other kinds.
_REDACTIONS: dict[Pii, tuple[tuple[str, ...], Callable[[Redactor, Any], Any]]] = {
    Pii.HANDLE: (("handles",), Redactor.handle),
    Pii.OWN_HANDLE: (("own_numbers",), Redactor.own_handle),
    Pii.TITLE: (("titles",), Redactor.title),
    Pii.TEXT: (("text",), Redactor.text),
    Pii.FILE_NAME: (("file_names",), Redactor._file_name),
    Pii.MIME_TYPE: (("file_names", "handles"), Redactor._mime_type),
    Pii.WORD: (("extra", "handles"), Redactor._word),
    Pii.WORDS: (("extra",), Redactor._word_list),
    Pii.ERROR: (("extra",), Redactor._error),
    Pii.METADATA: (("metadata",), lambda _redactor, _raw: NULL),
    Pii.EXTRA: (("extra",), lambda _redactor, _raw: NOTHING),
    Pii.ID: (("handles",), Redactor._id),
    Pii.ANSWER: (tuple(ORDERS), lambda _redactor, _text: None),
    Pii.NONE: ((), lambda _redactor, value: value),
}
_BY_MODEL: dict[type[Row], Callable[[Redactor, Any], Row]] = {
    Chat: Redactor.chat,
    Message: Redactor.message,
    Number: Redactor.number,
}
