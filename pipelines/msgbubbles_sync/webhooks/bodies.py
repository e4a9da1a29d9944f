"""Bodies of deliveries: out of their content encodings, to text, and to what their JSON says."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

GZIP, ZLIB, DEFLATE = 31, 15, -15  # as zlib calls the formats
GZIP_MAGIC = b"\x1f\x8b"
MAX_ENCODINGS = 3
# A gzip file may have several members; each costs a copy of what follows it.
MAX_MEMBERS = 16
# What reads a payload later (redaction, the JSON encoders) calls itself for each level.
MAX_DEPTH = 200


class TooLong(Exception):  # noqa: N818 - says what to answer
    """The body is over the limit."""


def decompress(body: bytes, content_encoding: str, max_bytes: int) -> bytes | None:
    """Return a body without its content encodings (gzip, deflate), null where it has none or cannot be decompress.

    Some proxies decompress and leave the header, others leave the header out: the bytes decide.
    Raises `TooLong` for more than `max_bytes`, having made hardly more.
    """
    encodings = [one.strip().lower() for one in content_encoding.split(",")]
    encodings = [one for one in encodings if one not in ("", "identity")]
    if not encodings and body.startswith(GZIP_MAGIC):
        encodings = ["gzip"]
    if not 0 < len(encodings) <= MAX_ENCODINGS:
        return None
    try:
        for encoding in reversed(encodings):
            body = _undone(body, encoding, max_bytes)
    except (zlib.error, ValueError):
        return None
    return body


def _undone(body: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding in ("gzip", "x-gzip"):
        return _inflated(body, GZIP, max_bytes)
    if encoding != "deflate":
        raise ValueError(encoding)
    try:
        return _inflated(body, ZLIB, max_bytes)
    except zlib.error:
        return _inflated(body, DEFLATE, max_bytes)


def _inflated(body: bytes, kind: int, max_bytes: int) -> bytes:
    plain = b""
    for _ in range(MAX_MEMBERS):
        inflater = zlib.decompressobj(kind)
        plain += inflater.decompress(body, max_bytes + 1 - len(plain))
        if len(plain) > max_bytes:
            raise TooLong
        if not inflater.eof:
            raise ValueError("cut off")
        body = inflater.unused_data
        if not body:
            return plain
    raise ValueError("too many members")


def decode_text(body: bytes) -> str:
    """Return a body as text, by its byte-order mark or else as UTF-8; bytes that are no text become U+FFFD."""
    return body.decode(json.detect_encoding(body), "replace")


def parse_json(text: str) -> Any:
    """Return what the JSON of a text says, read leniently where only one reading is possible: a byte-order mark, raw
    control characters in a text, and half an emoji, which is left where a text was cut. A number that JSON has not, or
    that no database takes (`NaN`, `1e999`), becomes a text.

    Raises `ValueError` where it is no JSON or nests deeper than `MAX_DEPTH`, `RecursionError` for a very deep one.
    """
    text = text.removeprefix("\ufeff")
    value = json.loads(text, strict=False, parse_constant=str, parse_float=_number, parse_int=_integer)
    if _is_deep(value):
        raise ValueError("nested too deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for one in level
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return False
    return True


def _number(written: str) -> float | str:
    number = float(written)
    return number if math.isfinite(number) else written


def _integer(written: str) -> int | str:
    try:
        return int(written)
    except ValueError:  # thousands of digits
        return written
