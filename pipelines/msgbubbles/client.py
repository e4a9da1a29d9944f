"""Call the chats, messages, numbers and webhooks API: one typed method per endpoint.

    with Client.connect(api_key) as client:
        for chat in client.list_chats().rows:
            print(chat.title, chat.last_message_at)

The facts are from the vendor's conversations, messages, numbers and webhooks pages. Every method raises the errors of
`errors`: `AuthenticationError` (401, 403), `PermanentError` (other 4xx), and `RetryableError` after its last retry.
Every method is safe to repeat; those that create something send an `Idempotency-Key`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from .decode import SENDER_FIELDS
from .envelope import decode_page, decode_row, decode_written_chat, decode_written_message
from .errors import ApiError, NoIdError, NotFoundError, PermanentError, RetryableError
from .models import Chat, Message, Number, Page, R, Webhook
from .page_size import PageRequest, PageSize
from .rate_limit import RateLimiter
from .responses import Answer
from .settings import DEFAULTS
from .transport import T, Transport

BASE_URL = DEFAULTS.base_url
MAX_PAGE_SIZE = 100
# Statuses with which an API may refuse a `limit` over its maximum, which can be smaller than documented.
TOO_LARGE, REFUSED = 413, (400, 413, 422)
# How often a larger page is tried when a reduced one has only rows of one timestamp.
TIE_ATTEMPTS = 3


class Client:
    """The API as methods. Create one with `Client.connect`, or with a `Transport` of your own.

    `sender_field` is the field of a message that names its sender, if it is not one of `SENDER_FIELDS`. For
    `unknown_chats` see `PrivateClient`.
    """

    def __init__(self, transport: Transport, sender_field: str | None = None) -> None:
        self.transport = transport
        self.unknown_chats: dict[str, ApiError] = {}
        self.sender_fields = (sender_field, *SENDER_FIELDS) if sender_field else SENDER_FIELDS

    @classmethod
    def connect(
        cls, api_key: str, base_url: str = BASE_URL, requests_per_minute: int = DEFAULTS.requests_per_minute
    ) -> Client:
        """Build a client that shares the rate limit of `api_key` with all other processes of this user."""
        return cls(Transport(base_url, api_key, RateLimiter.for_key(api_key, requests_per_minute)))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    # -- chats

    def list_chats(self, limit: int = MAX_PAGE_SIZE, before: str | None = None) -> Page[Chat]:
        """GET /v1/chats: list chats, newest first by `last_message_at`; `before` is an ISO 8601 timestamp.

        `PermanentError` `invalid_request` for a `limit` over 100 or an invalid `before`.
        """
        return self._list("chats", Chat, limit=limit, before=before)

    def get_chat(self, chat_id: str) -> Chat:
        """GET /v1/chats/:id. `NotFoundError` if it is gone, or belongs to another account."""
        return self._call("GET", "/chats/:id", chat_id, decode=partial(decode_row, Chat))

    def create_group(
        self,
        from_handle: str,
        addresses: Sequence[str],
        message: str,
        title: str | None = None,
        idempotency_key: str | None = None,
    ) -> Chat:
        """POST /v1/chats: create an iMessage group of 2 to 31 addresses with its first message.

        With the key of an earlier call, return the group of that call and send nothing.
        `PermanentError` with code `invalid_handle`, `invalid_from_handle` or `invalid_request`; `NoIdError` if the
        group was created and the answer has no id.
        """
        body = {"from_handle": from_handle, "addresses": list(addresses), "message": message}
        if title is not None:
            body["title"] = title
        return self._create("/chats", decode_written_chat, body, idempotency_key)

    def rename_group(self, chat_id: str, title: str) -> Chat | None:
        """PATCH /v1/chats/:id: rename; a title has at most 100 characters. Return the chat if the answer has it.

        `ConflictError` `not_a_group`, `PermanentError` `invalid_request`, `NotFoundError`.
        """
        return self._change("PATCH", "/chats/:id", chat_id, json={"title": title})

    def add_participant(self, chat_id: str, handle: str) -> Chat | None:
        """POST /v1/chats/:id/participants: add one person. Return the chat if the answer has it.

        `ConflictError` `not_a_group`, `PermanentError` `invalid_handle`, `NotFoundError`.
        """
        return self._change("POST", "/chats/:id/participants", chat_id, json={"handle": handle})

    def remove_participant(self, chat_id: str, handle: str) -> Chat | None:
        """DELETE /v1/chats/:id/participants/:handle: remove one person. Return the chat if the answer has it.

        `ConflictError` `not_a_group`; `NotFoundError` if the chat is gone, or the person is not in it.
        """
        return self._change("DELETE", "/chats/:id/participants/:handle", chat_id, handle)

    def mark_read(self, chat_id: str) -> None:
        """POST /v1/chats/:id/read: mark as read; the others see the receipt (iMessage, WhatsApp). `NotFoundError`."""
        self._call("POST", "/chats/:id/read", chat_id, decode=_ignore)

    def set_typing(self, chat_id: str, typing: bool) -> None:
        """POST /v1/chats/:id/typing: show or hide the typing indicator, which expires by itself. `NotFoundError`."""
        self._call("POST", "/chats/:id/typing", chat_id, decode=_ignore, json={"typing": typing})

    # -- messages and numbers

    def list_messages(
        self, conversation_id: str | None = None, limit: int = MAX_PAGE_SIZE, before: str | None = None
    ) -> Page[Message]:
        """GET /v1/messages, newest first. Without `conversation_id` (undocumented): the feed of the whole account.

        `NotFoundError` for an unknown chat; `PermanentError` `invalid_request`.
        """
        return self._list("messages", Message, conversation_id=conversation_id, limit=limit, before=before)

    def send_message(
        self,
        text: str,
        *,
        conversation_id: str | None = None,
        to: str | None = None,
        from_handle: str | None = None,
        idempotency_key: str | None = None,
    ) -> Message:
        """POST /v1/messages: send to a chat (`conversation_id`), or to a contact (`to` and `from_handle`).

        With the key of an earlier call, return the message of that call and send nothing. `PermanentError` with code
        `invalid_handle`, `invalid_from_handle` or `invalid_request`; `NotFoundError` for an unknown chat; `NoIdError`
        if the message was sent and the answer does not show it.
        """
        address = {"conversation_id": conversation_id, "to": to, "from_handle": from_handle}
        body = {"text": text} | {name: value for name, value in address.items() if value is not None}
        decode = partial(decode_written_message, sender_fields=self.sender_fields)
        return self._create("/messages", decode, body, idempotency_key)

    def list_numbers(self) -> Page[Number]:
        """GET /v1/numbers: list the account's own numbers."""
        return self._list("numbers", Number)

    # -- webhooks

    def create_webhook(self, url: str, events: Sequence[str], idempotency_key: str | None = None) -> Webhook:
        """POST /v1/webhooks: send these kinds of events to `url`. Only this answer shows the `secret`.

        `PermanentError` `invalid_url`, or `invalid_request` for an unknown kind of event.
        """
        body = {"url": url, "events": list(events)}
        return self._create("/webhooks", partial(decode_row, Webhook), body, idempotency_key)

    def list_webhooks(self) -> Page[Webhook]:
        """GET /v1/webhooks (undocumented): list the endpoints, without their secrets."""
        return self._list("webhooks", Webhook)

    def delete_webhook(self, webhook_id: str) -> None:
        """DELETE /v1/webhooks/:id (undocumented): stop sending events there. `NotFoundError`."""
        self._call("DELETE", "/webhooks/:id", webhook_id, decode=_ignore)

    # -- the kinds of calls

    def _list(self, path: str, model: type[R], limit: int | None = None, **params: str | None) -> Page[R]:
        query: dict[str, str | int] = {name: value for name, value in params.items() if value is not None}
        try:
            if limit is not None:
                return self._read_sized_page(path, model, limit, query)
            decode = partial(decode_page, model, path, None, sender_fields=self.sender_fields)
            return self._call("GET", f"/{path}", decode=decode)
        except NotFoundError as error:
            if not self.transport.traffic.answered:
                # A server that is not the API knows no path.
                error.args = (f"{error}: is /v1 missing from base_url?",)
            elif path != "messages":
                # Some APIs answer an empty list so. For messages, it may mean an unknown chat, or no feed.
                now = self.transport.clock.now()
                return Page([], [], has_more=False, full=False, fetched_at=now, server_at=now)
            raise

    def _read_sized_page(self, path: str, model: type[R], limit: int, query: dict[str, str | int]) -> Page[R]:
        size = self.transport.traffic.page_sizes.setdefault(f"GET /{path}", PageSize())
        request = PageRequest(size, limit, self.transport.max_attempts)
        page = self._read_page(path, model, query, request)
        attempts = 0
        # A small page may show the same rows of one timestamp for ever.
        while request.is_reduced and page.full and _is_one_timestamp(page) and attempts < TIE_ATTEMPTS:
            failed = request.limit
            request.enlarge()
            page = self._read_page(path, model, query, request)
            attempts += request.limit <= failed
        return page

    def _read_page(self, path: str, model: type[R], query: dict[str, str | int], request: PageRequest) -> Page[R]:
        """Read a page, as large as the API can make it."""
        is_size_refused, is_feed = False, path == "messages" and not query
        while True:
            try:
                page = self._call(
                    "GET",
                    f"/{path}",
                    decode=lambda answer: decode_page(model, path, request.limit, answer, self.sender_fields),
                    params=lambda: query | {"limit": request.limit},
                    on_failure=request.note_failure,
                )
            except PermanentError as error:
                if error.status not in REFUSED or request.limit == 1:
                    raise
                # Any parameter may be the reason; it is the limit if a single row is answered. If the feed is refused,
                # there is most likely none, and messages are read in another way.
                is_size_refused = is_size_refused or error.status == TOO_LARGE
                if not is_size_refused and (is_feed or not self._answers_one_row(path, query)):
                    raise
                is_size_refused = True
                request.reduce()
            except RetryableError:
                request.give_up()
                raise
            else:
                request.note_answer()
                return page

    def _answers_one_row(self, path: str, query: dict[str, str | int]) -> bool:
        try:
            self._call("GET", f"/{path}", decode=_ignore, params=lambda: query | {"limit": 1}, max_attempts=1)
        except (PermanentError, RetryableError):
            return False
        return True

    def _create(self, route: str, decode: Callable[[Answer], R | None], body: Any, idempotency_key: str | None) -> R:
        row = self._call("POST", route, decode=decode, json=body, idempotency_key=idempotency_key or str(uuid4()))
        if row is None:
            answer = self.transport.last_answer
            raise NoIdError(
                f"POST {route} succeeded, and its answer does not say which one it created",
                status=answer.status if answer else None,
                request_id=answer.request_id if answer else None,
            )
        return row

    def _change(self, method: str, route: str, chat_id: str, *ids: str, json: Any = None) -> Chat | None:
        chat = self._call(method, route, chat_id, *ids, decode=decode_written_chat, json=json)
        # The answer may show another object with an id, such as a participant.
        return chat if chat is not None and chat.id == chat_id else None

    def _call(self, method: str, route: str, *ids: str, decode: Callable[[Answer], T], **options: Any) -> T:
        """Make a request to a route, in which `ids` replace the segments that begin with a colon.

        `options` are those of `Transport.request`.
        """
        values = iter(ids)
        parts = [_quote_segment(next(values)) if part[:1] == ":" else part for part in route[1:].split("/")]
        return self.transport.request(method, "/".join(parts), endpoint=f"{method} {route}", decode=decode, **options)


def _ignore(_answer: Answer) -> None:
    """Ignore an answer whose body is not documented."""


def _quote_segment(value: str) -> str:
    """Quote one segment of a path. Raises `PermanentError` for a value that would make it another route."""
    if value in ("", ".", ".."):
        raise PermanentError("not a valid id or handle")
    return quote(value, safe="")


def _is_one_timestamp(page: Page[Any]) -> bool:
    return len({row.cursor_at for row in page.rows}) <= 1
