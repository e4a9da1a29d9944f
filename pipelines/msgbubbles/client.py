"""Every documented endpoint of the chats, messages, numbers and webhooks API, one typed method each.

    with Client.connect(api_key) as client:
        for chat in client.list_chats().rows:
            print(chat.title, chat.last_message_at)

Facts are from the vendor's conversations, messages, numbers and webhooks pages. Every method raises the errors of
`errors`: `AuthenticationError` (401, 403), `PermanentError` (other 4xx), and `RetryableError` once its retries are used
up. Every method may be repeated safely; those that create something carry an `Idempotency-Key`.
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
from .transport import Transport

BASE_URL = DEFAULTS.base_url
MAX_PAGE_SIZE = 100
# How an API may refuse a `limit` over its maximum, which can be smaller than documented.
TOO_LARGE, REFUSED = 413, (400, 413, 422)
# How often a larger page is tried when a reduced one has rows of one timestamp only.
TIE_ATTEMPTS = 3


class Client:
    """The API, as methods. Create one with `Client.connect`, or around a `Transport` of your own.

    `sender_field` is the field of a message that names its sender, if it is none of `SENDER_FIELDS`. `unknown_chats`
    are chats whose messages are left out of the feed, with the error because of which it is unknown whether they may be
    stored: see `PrivateClient`.
    """

    def __init__(self, transport: Transport, sender_field: str | None = None) -> None:
        self.transport = transport
        self.unknown_chats: dict[str, ApiError] = {}
        self.sender_fields = (sender_field, *SENDER_FIELDS) if sender_field else SENDER_FIELDS

    @classmethod
    def connect(
        cls, api_key: str, base_url: str = BASE_URL, requests_per_minute: int = DEFAULTS.requests_per_minute
    ) -> Client:
        """Build a client that shares the rate limit of `api_key` with every other process of this user."""
        return cls(Transport(base_url, api_key, RateLimiter.for_key(api_key, requests_per_minute)))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    # -- chats

    def list_chats(self, limit: int = MAX_PAGE_SIZE, before: str | None = None) -> Page[Chat]:
        """GET /v1/chats: chats, newest first by `last_message_at`; `before` is an ISO 8601 timestamp.

        `PermanentError` `invalid_request` for a `limit` over 100 or a `before` that is no timestamp.
        """
        return self._list("chats", Chat, limit=limit, before=before)

    def get_chat(self, chat_id: str) -> Chat:
        """GET /v1/chats/:id. `NotFoundError` when it is gone or another account's."""
        path, endpoint = _chat_route(chat_id, None, None)
        return self.transport.request("GET", path, endpoint=f"GET {endpoint}", decode=partial(decode_row, Chat))

    def create_group(
        self,
        from_handle: str,
        addresses: Sequence[str],
        message: str,
        title: str | None = None,
        idempotency_key: str | None = None,
    ) -> Chat:
        """POST /v1/chats: an iMessage group of 2 to 31 addresses, established by its first message.

        With the key of an earlier call the group of that call is returned and nothing is sent.
        `PermanentError` with code `invalid_handle`, `invalid_from_handle` or `invalid_request`; `NoIdError` where the
        answer was a success and does not say which group it is.
        """
        body = {"from_handle": from_handle, "addresses": list(addresses), "message": message}
        if title is not None:
            body["title"] = title
        key = idempotency_key or str(uuid4())
        return self._create("chats", decode_written_chat, body, key)

    def rename_group(self, chat_id: str, title: str) -> Chat | None:
        """PATCH /v1/chats/:id; a title has 100 characters at most. Returns the chat where the answer shows it.

        `ConflictError` `not_a_group`, `PermanentError` `invalid_request`, `NotFoundError`.
        """
        return self._change("PATCH", chat_id, json={"title": title})

    def add_participant(self, chat_id: str, handle: str) -> Chat | None:
        """POST /v1/chats/:id/participants: adds one person. Returns the chat where the answer shows it.

        `ConflictError` `not_a_group`, `PermanentError` `invalid_handle`, `NotFoundError`.
        """
        return self._change("POST", chat_id, "participants", json={"handle": handle})

    def remove_participant(self, chat_id: str, handle: str) -> Chat | None:
        """DELETE /v1/chats/:id/participants/:handle: removes one person. Returns the chat where the answer shows it.

        `ConflictError` `not_a_group`; `NotFoundError` when the chat is gone, or the person not in it.
        """
        return self._change("DELETE", chat_id, "participants", item=handle)

    def mark_read(self, chat_id: str) -> None:
        """POST /v1/chats/:id/read: marks the thread read; the other people see the receipt (iMessage, WhatsApp).

        `NotFoundError`.
        """
        self._act(chat_id, "read")

    def set_typing(self, chat_id: str, typing: bool) -> None:
        """POST /v1/chats/:id/typing: shows or hides the typing sign, which expires by itself. `NotFoundError`."""
        self._act(chat_id, "typing", {"typing": typing})

    # -- messages and numbers

    def list_messages(
        self, conversation_id: str | None = None, limit: int = MAX_PAGE_SIZE, before: str | None = None
    ) -> Page[Message]:
        """GET /v1/messages, newest first. Without `conversation_id` (undocumented): the whole account's feed.

        `NotFoundError` for a thread that is not there; `PermanentError` `invalid_request`.
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
        """POST /v1/messages into a thread (`conversation_id`), or to a contact (`to` and `from_handle`).

        With the key of an earlier call the message of that call is returned and nothing is sent. `PermanentError` with
        code `invalid_handle`, `invalid_from_handle` or `invalid_request`; `NotFoundError` for an unknown thread;
        `NoIdError` where the answer was a success and does not show the message.
        """
        addressed = {"conversation_id": conversation_id, "to": to, "from_handle": from_handle}
        body = {"text": text} | {name: value for name, value in addressed.items() if value is not None}
        return self._create(
            "messages",
            partial(decode_written_message, sender_fields=self.sender_fields),
            body,
            idempotency_key or str(uuid4()),
        )

    def list_numbers(self) -> Page[Number]:
        """GET /v1/numbers: the account's own numbers."""
        return self._list("numbers", Number)

    # -- webhooks

    def create_webhook(self, url: str, events: Sequence[str], idempotency_key: str | None = None) -> Webhook:
        """POST /v1/webhooks: sends these kinds of events to `url` from now on. Its `secret` is shown only here.

        `PermanentError` `invalid_url`, or `invalid_request` for a kind of event that there is not.
        """
        return self.transport.request(
            "POST",
            "webhooks",
            endpoint="POST /webhooks",
            decode=partial(decode_row, Webhook),
            json={"url": url, "events": list(events)},
            idempotency_key=idempotency_key or str(uuid4()),
        )

    def list_webhooks(self) -> Page[Webhook]:
        """GET /v1/webhooks (undocumented): the endpoints, without their secrets."""
        return self._list("webhooks", Webhook)

    def delete_webhook(self, webhook_id: str) -> None:
        """DELETE /v1/webhooks/:id (undocumented): sends nothing there any more. `NotFoundError`."""
        path = f"webhooks/{_quote_segment(webhook_id)}"
        self.transport.request("DELETE", path, endpoint="DELETE /webhooks/:id", decode=lambda _answer: None)

    # -- one place each for the three shapes of a call

    def _list(self, path: str, model: type[R], limit: int | None = None, **params: str | None) -> Page[R]:
        given: dict[str, str | int] = {name: value for name, value in params.items() if value is not None}
        try:
            return self._sized_page(path, model, limit, given)
        except NotFoundError as error:
            if not self.transport.traffic.answered:
                # Every address is unknown to a server that is not the API.
                error.args = (f"{error}: is /v1 missing from base_url?",)
            elif path != "messages":
                # One way to write an empty list. Of messages it may mean an unknown chat, or no feed.
                now = self.transport.clock.now()
                return Page([], [], has_more=False, full=False, fetched_at=now, server_at=now)
            raise

    def _sized_page(self, path: str, model: type[R], limit: int | None, given: dict[str, str | int]) -> Page[R]:
        endpoint = f"GET /{path}"
        if limit is None:
            decode = partial(decode_page, model, path, None, sender_fields=self.sender_fields)
            return self.transport.request("GET", path, endpoint=endpoint, decode=decode, params=lambda: given)
        size = self.transport.traffic.page_sizes.setdefault(endpoint, PageSize())
        asked = PageRequest(size, limit, self.transport.max_attempts)
        page = self._page(path, model, given, asked)
        attempts = 0
        # Of rows that share a timestamp, a small page may show the same ones for ever.
        while asked.is_reduced and page.full and _is_one_timestamp(page) and attempts < TIE_ATTEMPTS:
            failed = asked.limit
            asked.enlarge()
            page = self._page(path, model, given, asked)
            attempts += asked.limit <= failed
        return page

    def _page(self, path: str, model: type[R], params: dict[str, str | int], asked: PageRequest) -> Page[R]:
        """Ask for a page, as large as the API can make it."""
        is_size_refused, is_feed = False, path == "messages" and not params
        while True:
            try:
                page = self.transport.request(
                    "GET",
                    path,
                    endpoint=f"GET /{path}",
                    decode=lambda answer: decode_page(model, path, asked.limit, answer, self.sender_fields),
                    params=lambda: params | {"limit": asked.limit},
                    on_failure=asked.note_failure,
                )
            except PermanentError as error:
                if error.status not in REFUSED or asked.limit == 1:
                    raise
                # Any other parameter may be the reason too. Where a single row is answered, it is the limit. A refused
                # feed is most likely no feed, and its messages are read in another way.
                is_size_refused = is_size_refused or error.status == TOO_LARGE
                if not is_size_refused and (is_feed or not self._answers(path, params)):
                    raise
                is_size_refused = True
                asked.reduce()
            except RetryableError:
                asked.give_up()
                raise
            else:
                asked.note_answer()
                return page

    def _answers(self, path: str, params: dict[str, str | int]) -> bool:
        """Return whether the API answers a question with a single row."""
        try:
            self.transport.request(
                "GET",
                path,
                endpoint=f"GET /{path}",
                decode=lambda _answer: None,
                params=lambda: params | {"limit": 1},
                max_attempts=1,
            )
        except (PermanentError, RetryableError):
            return False
        return True

    def _create(self, path: str, decode: Callable[[Answer], R | None], body: Any, idempotency_key: str) -> R:
        endpoint = f"POST /{path}"
        row = self.transport.request(
            "POST", path, endpoint=endpoint, decode=decode, json=body, idempotency_key=idempotency_key
        )
        if row is None:
            answer = self.transport.last_answer
            raise NoIdError(
                f"{endpoint} succeeded, and its answer does not say which one it created",
                status=answer.status if answer else None,
                request_id=answer.request_id if answer else None,
            )
        return row

    def _change(
        self, method: str, chat_id: str, action: str | None = None, *, item: str | None = None, json: Any = None
    ) -> Chat | None:
        path, endpoint = _chat_route(chat_id, action, item)
        chat = self.transport.request(
            method, path, endpoint=f"{method} {endpoint}", decode=decode_written_chat, json=json
        )
        # The answer may show something else that has an id, as a participant.
        return chat if chat is not None and chat.id == chat_id else None

    def _act(self, chat_id: str, action: str, json: Any = None) -> None:
        path, endpoint = _chat_route(chat_id, action, None)
        # What these answer with is not documented: success is the status.
        self.transport.request("POST", path, endpoint=f"POST {endpoint}", decode=lambda _answer: None, json=json)


def _chat_route(chat_id: str, action: str | None, item: str | None) -> tuple[str, str]:
    """The path of a call on one chat, and its template, which names no chat and nobody."""
    path, template = f"chats/{_quote_segment(chat_id)}", "/chats/:id"
    if action:
        path, template = f"{path}/{action}", f"{template}/{action}"
    if item is not None:
        path, template = f"{path}/{_quote_segment(item)}", f"{template}/:handle"
    return path, template


def _quote_segment(value: str) -> str:
    """One part of a path. Where it is nothing, or dots, the path would be another route's."""
    if value in ("", ".", ".."):
        raise PermanentError("this is no id and no handle")
    return quote(value, safe="")


def _is_one_timestamp(page: Page[Any]) -> bool:
    return len({row.cursor_at for row in page.rows}) <= 1
