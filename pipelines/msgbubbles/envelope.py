"""Decode the answers of the API: lists, single rows, and answers to writes.

A page of well-formed rows is decoded in one pass. Otherwise each row is decoded separately, so that one that does not
fit `models` becomes a rejected row and affects no other.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Generic, TypeVar

import msgspec
from msgspec import UNSET, Raw, UnsetType

from .decode import SENDER_FIELDS, are_plain_rows, looks_like_row, read_row
from .lenient import split_answer, split_broken_answer
from .models import NULL, Chat, Key, Message, Page, R, Row
from .responses import Answer

D = TypeVar("D")


class _Envelope(msgspec.Struct, Generic[D]):
    data: D
    has_more: bool | None = None


class _LenientEnvelope(msgspec.Struct):
    """The envelope of a list without its rows, leniently typed. Some encoders omit an empty `data`."""

    data: Raw | UnsetType = UNSET
    has_more: Raw = NULL
    request_id: str | None = None
    error: Raw = NULL

    @property
    def is_list(self) -> bool:
        is_known = self.has_more != NULL or self.request_id is not None
        return self.data is not UNSET or (self.error == NULL and is_known and not self.says_more)

    @property
    def says_more(self) -> bool | None:
        """The value of `has_more`. Raises `msgspec.DecodeError` if that is neither true, false nor null."""
        try:
            return _FLAGS[bytes(self.has_more)]
        except KeyError:
            raise msgspec.DecodeError("has_more is no flag") from None


_FLAGS: dict[bytes, bool | None] = {
    b"null": None, b"true": True, b"false": False, b"1": True, b"0": False, b'"true"': True, b'"false"': False,
}  # fmt: skip
NO_CONTENT = 204


@cache
def _build_page_decoder(model: type[R]) -> msgspec.json.Decoder[_Envelope[list[R]]]:
    return msgspec.json.Decoder(_Envelope[list[model]])  # type: ignore[valid-type]


def decode_page(
    model: type[R], stream: str, limit: int | None, answer: Answer, sender_fields: Sequence[str] = SENDER_FIELDS
) -> Page[R]:
    """Decode a page of a list that was requested with `limit`. Raises `msgspec.DecodeError` if it is not a list."""
    page: Page[R] = Page([], [], None, False, answer.fetched_at, answer.server_at, answer.request_id)
    if not answer.body.strip():
        # An empty list, or a body that was cut off: `has_more` makes the paginator request it once more.
        return replace(page, has_more=answer.status != NO_CONTENT)
    body = fix_encoding(answer.body)
    try:
        envelope = _build_page_decoder(model).decode(body)
    except (msgspec.DecodeError, RecursionError):
        pass
    else:
        if are_plain_rows(model, envelope.data):
            full = limit is not None and len(envelope.data) >= limit
            return replace(page, rows=envelope.data, has_more=envelope.has_more, full=full)
    raws, has_more = _read_raw_rows(model, body)
    rows, rejected, odd = [], [], set[str]()
    for raw in raws:
        row, faults = read_row(model, raw, stream, answer.request_id, sender_fields=sender_fields, on_odd=odd.add)
        rejected += faults
        if row is not None:
            rows.append(row)
    full = limit is not None and len(raws) >= limit
    return replace(page, rows=rows, rejected=rejected, has_more=has_more, full=full, odd=frozenset(odd))


def _read_raw_rows(model: type[Row], body: bytes) -> tuple[Sequence[Raw], bool | None]:
    """Return the rows of a list as sent, and its `has_more`. Raises `msgspec.DecodeError` if it is not a list."""
    try:
        envelope = msgspec.json.decode(body, type=_Envelope[list[Raw]])
    except (msgspec.DecodeError, RecursionError):
        pass
    else:
        return envelope.data, envelope.has_more
    try:
        answer = split_answer(body)
    except msgspec.DecodeError:
        answer = split_broken_answer(body, lambda text: looks_like_row(model, text))
    odd = msgspec.json.decode(answer.envelope, type=_LenientEnvelope)
    if not odd.is_list or (answer.rows is None and odd.data is not UNSET and answer.data != b"null"):
        raise msgspec.DecodeError("not a list")
    return [Raw(row) for row in answer.rows or ()], odd.says_more


def decode_row(model: type[R], answer: Answer, sender_fields: Sequence[str] = SENDER_FIELDS) -> R:
    """Decode an answer that is one row. Raises `msgspec.DecodeError` if it is not a row."""
    body = fix_encoding(answer.body)
    try:
        data = msgspec.json.decode(body, type=_Envelope[Raw]).data
    except (msgspec.DecodeError, RecursionError):
        data = Raw(split_answer(body).data or NULL)
    row, _ = read_row(model, data, model.__name__, answer.request_id, sender_fields=sender_fields)
    if row is None:
        raise msgspec.DecodeError
    return row


def decode_written_message(answer: Answer, sender_fields: Sequence[str]) -> Message | None:
    """Decode the message in the answer to a write; null if it has none."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return decode_row(Message, answer, sender_fields=sender_fields)
    return None


def decode_written_chat(answer: Answer) -> Chat | None:
    """Decode the chat in the answer to a write; null if it has none. The body of such an answer is undocumented."""
    with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        body = msgspec.json.decode(fix_encoding(answer.body), type=dict[str, Raw])
        shown = msgspec.json.decode(body["data"], type=dict[str, Raw]) if "data" in body else body
        for name in ("chat", "conversation", "group"):
            if name in shown:
                shown = msgspec.json.decode(shown[name], type=dict[str, Raw])
        # An object that belongs to a chat, such as its first message, names the chat.
        owner = next((shown[name] for name in ("chat_id", "conversation_id") if name in shown), None)
        if owner is not None:
            return Chat(id=msgspec.json.decode(owner, type=Key))
        shown.pop("request_id", None)
        row, _ = read_row(Chat, Raw(msgspec.json.encode(shown)), Chat.__name__, answer.request_id)
        return row or Chat(id=msgspec.json.decode(shown.get("id", NULL), type=Key))
    return None


# A pair of surrogates, half of one, or another escape, in this order, so that `\\\\ud83d` is text.
_ESCAPES = re.compile(rb"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|(\\u[dD][89a-fA-F]..)|\\.", re.DOTALL)
# The first byte of a byte-order mark, or of an answer that is not UTF-8.
_MARKS = (b"\xef", b"\xfe", b"\xff", b"\0")
_MAY_HOLD_HALVES = re.compile(rb"\\u[dD][89a-fA-F]")


def fix_encoding(body: bytes) -> bytes:
    """Convert a body to UTF-8 without a byte-order mark, also from UTF-16 or UTF-32.

    Halves of surrogate pairs, with which a truncated text may end, and invalid bytes become question marks, so that one
    text does not make the page unreadable.
    """
    if body[:1] in _MARKS or body[1:2] == b"\0":
        body = body.decode(json.detect_encoding(body), "replace").encode()
    try:
        body.decode()
    except UnicodeDecodeError:
        body = body.decode("utf-8", "replace").encode()
    if _MAY_HOLD_HALVES.search(body):
        body = _ESCAPES.sub(lambda match: b"?" if match[1] else match[0], body)
    return body
