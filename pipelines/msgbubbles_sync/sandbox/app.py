"""Serve an account over HTTP: every documented endpoint of chats, messages, numbers and webhooks, on starlette.

The API's pages leave some answers open. Where no knob covers one, this server accepts a participant who is already in
the group, answers 404 to the removal of a handle that is not, and 409 to an `Idempotency-Key` with another body.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import time
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from secrets import token_bytes
from typing import Any
from uuid import uuid4

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .account import HANDLE, Account, Fault, NewMessage, is_uuid, to_us
from .http import CutResponse, Reply, no_route, read_body, read_text, read_title
from .knobs import Knobs
from .listing import Row, chat_row, list_chats, list_messages, message_rows, number_rows, page_before, page_size
from .webhooks import EVENTS, webhook_row

Handler = Callable[[Request], Awaitable[Reply]]


@dataclass(frozen=True)
class LoggedRequest:
    """A request that was answered. `query` has `limit`, `before` and so on; `rows` were on the page."""

    method: str
    path: str
    query: dict[str, str]
    status: int
    rows: int


@dataclass(frozen=True)
class GroupChange:
    """A change of a group that a request made: `create`, `rename`, `add` or `remove`.

    A repeated request, or one that changes nothing, is no operation.
    """

    operation: str
    chat_id: str
    handles: tuple[str, ...] = ()
    title: str | None = None


@dataclass
class Api:
    """The account over HTTP. `requests` logs all requests, `operations` the changes of groups."""

    account: Account
    knobs: Knobs = field(default_factory=Knobs)
    requests: list[LoggedRequest] = field(default_factory=list)
    operations: list[GroupChange] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.knobs.seed)  # noqa: S311 - faults, not secrets
        self._recent: dict[str, deque[float]] = {}
        self._number = 0

    def app(self) -> Starlette:
        chat = "/v1/chats/{chat_id}"
        handlers: list[tuple[str, str, Handler]] = [
            ("/v1/chats", "GET", self.get_chats),
            ("/v1/chats", "POST", self.create_group),
            (chat, "GET", self.get_chat),
            (chat, "PATCH", self.rename),
            (f"{chat}/participants", "POST", self.add_participant),
            (f"{chat}/participants/{{handle}}", "DELETE", self.remove_participant),
            (f"{chat}/read", "POST", self.mark_read),
            (f"{chat}/typing", "POST", self.set_typing),
            ("/v1/messages", "GET", self.get_messages),
            ("/v1/messages", "POST", self.send_message),
            ("/v1/numbers", "GET", self.get_numbers),
            ("/v1/webhooks", "GET", self.get_webhooks),
            ("/v1/webhooks", "POST", self.create_webhook),
            ("/v1/webhooks/{webhook_id}", "DELETE", self.delete_webhook),
        ]
        routes = [Route(path, self._answer_with(handler), methods=[method]) for path, method, handler in handlers]
        return Starlette(routes=[*routes, Route("/{rest:path}", self._answer_with(no_route))])

    def _answer_with(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            knobs, method, path = self.knobs, request.method, request.url.path
            request_id = f"req_{uuid4().hex[:20]}"
            headers = {"X-Request-Id": request_id}
            self._number += 1
            if knobs.on_request:
                knobs.on_request(self.account, self._number)
            if knobs.latency_seconds:
                await asyncio.sleep(knobs.latency_seconds)
            try:
                self._check_key(request, headers)
                if self.random.random() < knobs.server_errors:
                    raise self.random.choice([Fault(502, "send_failed", "Bad gateway"), Fault(503, "unavailable", "")])
                if knobs.refusal and (refused := knobs.refusal(method, path)):
                    raise Fault(*refused, "Refused")
                if knobs.answer and (given := knobs.answer(method, path, request.query_params)):
                    self.requests.append(LoggedRequest(method, path, dict(request.query_params), given[0], 0))
                    return Response(given[2], given[0], {**headers, **given[1]})
                reply = await handler(request)
                status, body = reply.status, reply.body
                if self.random.random() < knobs.errors_after_acting:
                    raise Fault(502, "send_failed", "Bad gateway, after all was done")
            except Fault as fault:
                status, body = fault.status, {"error": fault.code, "message": str(fault)}
            rows = body.get("data")
            count = len(rows) if isinstance(rows, list) else 0
            self.requests.append(LoggedRequest(method, path, dict(request.query_params), status, count))
            content = msgspec.json.encode({**body, "request_id": request_id})
            if status < 300 and method != "GET" and knobs.write_answer:
                status, content = knobs.write_answer
            if status < 300 and knobs.transform_body:
                content = knobs.transform_body(path, content)
            if status < 300 and self.random.random() < knobs.malformed_bodies:
                content = content[: len(content) // 2] if self.random.random() < 0.5 else content.replace(b'"', b"'", 9)
            kind = CutResponse if status < 300 and self.random.random() < knobs.cut_bodies else Response
            return kind(content, status, headers, media_type="application/json")

        return answer

    def _check_reachable(self, *handles: str) -> None:
        for handle in handles:
            if handle in self.knobs.unreachable:
                raise Fault(400, "invalid_handle", f"{handle} cannot be reached by iMessage")

    def _check_key(self, request: Request, headers: dict[str, str]) -> None:
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        if scheme != "Bearer" or key not in self.knobs.keys:
            raise Fault(401, "unauthorized", "Missing or unknown API key")
        if not self.knobs.active:
            raise Fault(403, "forbidden", "Account is inactive")
        limit, window_seconds = self.knobs.rate_limit_per_minute, self.knobs.rate_window_seconds
        if limit is None:
            return
        now = time.monotonic()
        is_fixed = self.knobs.rate_window == "fixed"
        counted_from = now - now % window_seconds if is_fixed else now - window_seconds
        recent = self._recent.setdefault(key, deque())
        while recent and recent[0] <= counted_from:
            recent.popleft()
        if len(recent) >= limit:
            began_at = counted_from if is_fixed else recent[0] if recent else now
            seconds = began_at + window_seconds - now
            if self.knobs.retry_after == "seconds":
                headers["Retry-After"] = str(int(seconds) + 1)
            elif self.knobs.retry_after == "date":
                headers["Retry-After"] = format_datetime(
                    datetime.fromtimestamp(time.time() + seconds + 1, UTC), usegmt=True
                )
            raise Fault(429, "rate_limited", "Too many requests")
        recent.append(now)

    # -- reads

    async def get_chats(self, request: Request) -> Reply:
        rows, has_more = list_chats(self.account, self.knobs, page_size(request), page_before(request), self.random)
        return Reply(self._transformed("chats", rows), has_more=has_more)

    async def get_chat(self, request: Request) -> Reply:
        return Reply(self._show_chat(self._chat_id(request)))

    async def get_messages(self, request: Request) -> Reply:
        chat_id = request.query_params.get("conversation_id")
        if chat_id is None and not self.knobs.feed:
            raise Fault(400, "invalid_request", "conversation_id is required")
        if chat_id is not None:
            self._check_chat(chat_id)
        rows, has_more = list_messages(
            self.account, self.knobs, page_size(request), page_before(request), self.random, chat_id
        )
        return Reply(self._transformed("messages", rows), has_more=has_more)

    async def get_numbers(self, _request: Request) -> Reply:
        return Reply(self._transformed("numbers", number_rows(self.account)), has_more=False)

    # -- writes

    async def create_group(self, request: Request) -> Reply:
        body = await read_body(request)
        addresses = body.get("addresses")
        if not isinstance(addresses, list) or not all(isinstance(item, str) for item in addresses):
            raise Fault(400, "invalid_request", "addresses must be a list of handles")
        if not 2 <= len(set(addresses)) <= 31:
            raise Fault(400, "invalid_request", "addresses must be 2 to 31 distinct handles")
        if not all(HANDLE.fullmatch(address) for address in addresses):
            raise Fault(400, "invalid_handle", "An address is neither E.164 nor an e-mail address")
        self._check_reachable(*addresses)
        text = read_text(body, "message")
        title = read_title(body.get("title"))
        from_handle = self._own_number(body.get("from_handle"))

        def create() -> str:
            now = datetime.now(UTC)
            chat_id = self.account.add_chat(
                from_handle, f"group:{uuid4().hex[:16]}", now, is_group=True, title=title, participants=addresses
            )
            self.account.add_message(NewMessage(chat_id, "outbound", text, now, "sent", sender=from_handle))
            self.operations.append(GroupChange("create", chat_id, tuple(sorted(set(addresses))), title))
            return chat_id

        chat_id, is_new = self._write_once(request, body, create)
        return Reply(self._show_chat(chat_id), status=201 if is_new else 200)

    async def rename(self, request: Request) -> Reply:
        chat_id = self._group_id(request)
        body = await read_body(request)
        if "title" not in body:
            raise Fault(400, "invalid_request", "title is required")
        title = read_title(body["title"])
        before = self.account.all("SELECT title FROM chats WHERE id = ?", (chat_id,))[0]["title"]
        self.account.rename(chat_id, title, datetime.now(UTC))
        if title != before:
            self.operations.append(GroupChange("rename", chat_id, title=title))
        return Reply(self._show_chat(chat_id))

    async def add_participant(self, request: Request) -> Reply:
        chat_id = self._group_id(request)
        handle = (await read_body(request)).get("handle")
        if not isinstance(handle, str) or not HANDLE.fullmatch(handle):
            raise Fault(400, "invalid_handle", "handle is neither E.164 nor an e-mail address")
        self._check_reachable(handle)
        if self.account.add_participant(chat_id, handle, datetime.now(UTC)):
            self.operations.append(GroupChange("add", chat_id, (handle,)))
        return Reply(self._show_chat(chat_id))

    async def remove_participant(self, request: Request) -> Reply:
        chat_id = self._group_id(request)
        handle = request.path_params["handle"]
        if not self.account.remove_participant(chat_id, handle, datetime.now(UTC)):
            raise Fault(404, "not_found", "Not in the group")
        self.operations.append(GroupChange("remove", chat_id, (handle,)))
        return Reply(self._show_chat(chat_id))

    async def mark_read(self, request: Request) -> Reply:
        chat_id = self._chat_id(request)
        self.account.mark_read(chat_id, datetime.now(UTC))
        return Reply(self._show_chat(chat_id))

    async def set_typing(self, request: Request) -> Reply:
        chat_id = self._chat_id(request)
        typing = (await read_body(request)).get("typing")
        if not isinstance(typing, bool):
            raise Fault(400, "invalid_request", "typing must be true or false")
        return Reply({"id": chat_id, "typing": typing})

    async def send_message(self, request: Request) -> Reply:
        body = await read_body(request)
        text = read_text(body, "text")
        chat_id = body.get("conversation_id")
        if chat_id is not None:
            self._check_chat(str(chat_id))
            from_handle = self.account.all("SELECT from_handle FROM chats WHERE id = ?", (chat_id,))[0]["from_handle"]
            to = None
        else:
            to = body.get("to")
            if not isinstance(to, str) or not HANDLE.fullmatch(to):
                raise Fault(400, "invalid_handle", "to is neither E.164 nor an e-mail address")
            from_handle = self._own_number(body.get("from_handle"))

        def send() -> str:
            now = datetime.now(UTC)
            thread = chat_id or self._thread(from_handle, str(to), now)
            message = NewMessage(str(thread), "outbound", text, now, "queued", channel=None, sender=from_handle)
            return self.account.add_message(message)

        message_id, is_new = self._write_once(request, body, send)
        rows = self.account.all("SELECT * FROM messages WHERE id = ?", (message_id,))
        return Reply(message_rows(self.account, self.knobs, rows)[0], status=202 if is_new else 200)

    # -- webhooks

    async def get_webhooks(self, _request: Request) -> Reply:
        rows = self.account.all("SELECT * FROM webhooks ORDER BY created_us, id")
        return Reply([webhook_row(row) for row in rows], has_more=False)

    async def create_webhook(self, request: Request) -> Reply:
        body = await read_body(request)
        url, events = body.get("url"), body.get("events")
        if not isinstance(url, str) or not re.match(r"https://.|http://(127\.0\.0\.1|localhost)[:/]", url):
            raise Fault(400, "invalid_url", "url must begin with https://")
        if not isinstance(events, list) or not events or not set(events) <= set(EVENTS):
            raise Fault(400, "invalid_request", "events must be a list of kinds of events")

        def create() -> str:
            webhook_id, secret = f"wh_{uuid4().hex[:16]}", f"whsec_{b64encode(token_bytes(24)).decode()}"
            values = (webhook_id, url, json.dumps(events), secret, to_us(datetime.now(UTC)))
            self.account.run("INSERT INTO webhooks VALUES (?, ?, ?, ?, ?)", values)
            return webhook_id

        webhook_id, is_new = self._write_once(request, body, create)
        row = self.account.all("SELECT * FROM webhooks WHERE id = ?", (webhook_id,))[0]
        return Reply(webhook_row(row) | {"secret": row["secret"]}, status=201 if is_new else 200)

    async def delete_webhook(self, request: Request) -> Reply:
        webhook_id = request.path_params["webhook_id"]
        with self.account.bulk():
            self.account.run("DELETE FROM deliveries WHERE webhook_id = ?", (webhook_id,))
            if not self.account.run("DELETE FROM webhooks WHERE id = ?", (webhook_id,)):
                raise Fault(404, "not_found", "No such webhook")
        return Reply({"id": webhook_id, "deleted": True})

    # -- what they share

    def _thread(self, from_handle: str, to: str, now: datetime) -> str:
        row = self.account.one(
            "SELECT id FROM chats WHERE from_handle = ? AND remote_handle = ? AND NOT is_group", (from_handle, to)
        )
        return str(row["id"]) if row else self.account.add_chat(from_handle, to, now)

    def _write_once(self, request: Request, body: Mapping[str, object], create: Callable[[], str]) -> tuple[str, bool]:
        """Run a write once per `Idempotency-Key`. Returns the result id, and whether the write ran now."""
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return create(), True
        digest = hashlib.sha256(f"{request.url.path} {json.dumps(body, sort_keys=True)}".encode()).hexdigest()
        with self.account.bulk():
            row = self.account.one("SELECT request, result FROM idempotency WHERE key = ?", (key,))
            if row is not None:
                if row["request"] != digest:
                    raise Fault(409, "conflict", "This Idempotency-Key was used with another body")
                return str(row["result"]), False
            result = create()
            self.account.run("INSERT INTO idempotency VALUES (?, ?, ?)", (key, digest, result))
            return result, True

    def _own_number(self, handle: object) -> str:
        if not isinstance(handle, str) or not self.account.one("SELECT 1 FROM numbers WHERE handle = ?", (handle,)):
            raise Fault(400, "invalid_from_handle", "from_handle is not one of the account's numbers")
        return handle

    def _chat_id(self, request: Request) -> str:
        return self._check_chat(request.path_params["chat_id"])

    def _check_chat(self, chat_id: str) -> str:
        if not is_uuid(chat_id) or not self.account.one("SELECT 1 FROM chats WHERE id = ? AND NOT deleted", (chat_id,)):
            raise Fault(404, "not_found", "No such chat")
        return chat_id

    def _group_id(self, request: Request) -> str:
        chat_id = self._chat_id(request)
        if not self.account.one("SELECT 1 FROM chats WHERE id = ? AND is_group", (chat_id,)):
            raise Fault(409, "not_a_group", "Not an established group")
        return chat_id

    def _show_chat(self, chat_id: str) -> Row:
        row = chat_row(self.account.all("SELECT * FROM chats WHERE id = ?", (chat_id,))[0], self.knobs)
        if row["is_group"] and self.knobs.participants_on_detail:
            row["participants"] = self.account.participants(chat_id)
        return row

    def _transformed(self, kind: str, rows: list[Row]) -> list[Any]:
        transform = self.knobs.transform_row
        return [transform(kind, row) for row in rows] if transform else rows
