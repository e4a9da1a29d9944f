"""Apply a privacy policy to the answers of the API."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from .client import MAX_PAGE_SIZE, Client
from .errors import ApiError, NotFoundError, is_unit_error
from .models import Chat, Message, Number, Page
from .redact import Redactor, exclude
from .transport import Transport

# Attempts of the requests that a redactor needs, because rows wait for their answers.
LOOKUP_ATTEMPTS = 2
StoredChats = Callable[[Sequence[str]], Sequence[str]]


class PrivateClient(Client):
    """A client that applies a policy to every answer.

    `stored_chats` returns which of some ids are stored chats. If anybody is erased, the client reads each other chat by
    its id before it returns messages of it, to find out whose chat it is. If a chat cannot be read, its messages are
    left out of the feed, and it is in `unknown_chats` with the error.
    """

    def __init__(
        self, transport: Transport, redactor: Redactor, stored_chats: StoredChats, sender_field: str | None
    ) -> None:
        super().__init__(transport, sender_field)
        self._redactor = redactor
        redactor.now = transport.clock.ages_from
        self._stored_chats = stored_chats
        self._allowed_chats: set[str] = set()
        self._numbers: Page[Number] | None = None
        # Several threads read pages; erased chats found on one page matter for the next.
        self._redacting = threading.RLock()

    def list_chats(self, limit: int = MAX_PAGE_SIZE, before: str | None = None) -> Page[Chat]:
        self._read_own_numbers()
        page = super().list_chats(limit, before)
        with self._redacting:
            return self._redactor.page(page)

    def get_chat(self, chat_id: str) -> Chat:
        self._read_own_numbers()
        chat = super().get_chat(chat_id)
        with self._redacting:
            return self._redactor.chat_by_id(chat)

    def list_messages(
        self, conversation_id: str | None = None, limit: int = MAX_PAGE_SIZE, before: str | None = None
    ) -> Page[Message]:
        self._read_own_numbers()
        page = super().list_messages(conversation_id, limit, before)
        with self._redacting:
            if self._redactor.erased:
                chat_ids = {row.conversation_id for row in page.rows if row.conversation_id is not None}
                self._check_chats(chat_ids, is_feed=conversation_id is None)
            is_hidden = [row.conversation_id in self.unknown_chats for row in page.rows]
            redacted = self._redactor.page(page)
            rows = [exclude(row) if hidden else row for row, hidden in zip(redacted.rows, is_hidden, strict=True)]
            return replace(redacted, rows=rows) if any(is_hidden) else redacted

    def list_numbers(self) -> Page[Number]:
        with self._redacting:
            page, self._numbers = self._numbers or super().list_numbers(), None
            self._redactor.add_own_numbers(row.handle for row in page.rows)
            return self._redactor.page(page)

    def _read_own_numbers(self) -> None:
        with self._redacting:
            if self._redactor.needs_own_numbers:
                try:
                    with self.transport.at_most(LOOKUP_ATTEMPTS):
                        self._numbers = super().list_numbers()
                except ApiError as error:
                    if not is_unit_error(error):
                        raise
                # Our numbers become pseudonyms, too, until they can be read.
                self._redactor.add_own_numbers(row.handle for row in (self._numbers.rows if self._numbers else ()))

    def _check_chats(self, chat_ids: set[str], *, is_feed: bool) -> None:
        """Find out whether new chats are an erased person's, because messages do not show that.

        If a chat in the feed cannot be read, it is added to `unknown_chats`; the error of any other chat is raised.
        """
        redactor = self._redactor
        new = {chat_id for chat_id in chat_ids - self._allowed_chats if not redactor.is_erased_chat(chat_id)}
        if new:
            self._allowed_chats.update(self._stored_chats(sorted(new)))
        for chat_id in sorted(new - self._allowed_chats - (self.unknown_chats.keys() if is_feed else set())):
            try:
                if not redactor.is_of_erased_person(super().get_chat(chat_id)):
                    self._allowed_chats.add(chat_id)
            except NotFoundError:
                # It is too late to find out whose chat it was.
                redactor.erase_chat(chat_id)
            except ApiError as error:
                if not is_feed or not is_unit_error(error):
                    raise
                self.unknown_chats[chat_id] = error
            else:
                self.unknown_chats.pop(chat_id, None)


def build_client(
    transport: Transport,
    redactor: Redactor,
    stored_chats: StoredChats = lambda _ids: (),
    sender_field: str | None = None,
) -> Client:
    """Build a client that applies the policy; a plain one if the policy changes nothing."""
    if redactor.is_idle:
        return Client(transport, sender_field)
    return PrivateClient(transport, redactor, stored_chats, sender_field)
