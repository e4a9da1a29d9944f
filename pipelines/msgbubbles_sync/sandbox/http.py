"""Read request bodies, and cut responses off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .account import MAX_TITLE, Fault


class CutResponse(Response):
    """A response with a shorter body than announced, after which the connection closes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": bytes(self.body[: len(self.body) // 2]), "more_body": True})
        raise ConnectionAbortedError


@dataclass(frozen=True)
class Reply:
    """The answer to a request: an object, or with `has_more` a page of rows."""

    data: object
    has_more: bool | None = None
    status: int = 200

    @property
    def body(self) -> dict[str, object]:
        page = {} if self.has_more is None else {"has_more": self.has_more}
        return {"data": self.data, **page}


async def no_route(_request: Request) -> Reply:
    raise Fault(404, "not_found", "No such route")


async def read_body(request: Request) -> dict[str, object]:
    try:
        body = msgspec.json.decode(await request.body())
    except msgspec.DecodeError:
        body = None
    if not isinstance(body, dict):
        raise Fault(400, "invalid_request", "The body must be a JSON object")
    return body


def read_text(body: Mapping[str, object], name: str) -> str:
    text = body.get(name)
    if not isinstance(text, str) or not text.strip():
        raise Fault(400, "invalid_request", f"{name} is required")
    return text


def read_title(title: object) -> str | None:
    if title is not None and (not isinstance(title, str) or len(title) > MAX_TITLE):
        raise Fault(400, "invalid_request", f"title must be text of at most {MAX_TITLE} characters")
    return title
