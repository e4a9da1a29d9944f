"""Decode bodies of deliveries: from their content encodings, to text, to JSON."""

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
# Later readers of a payload (redaction, JSON encoders) recurse once per level.
MAX_DEPTH = 200


class BodyTooLongError(Exception):
    """The body is over the limit."""


def decompress(body: bytes, content_encoding: str, max_bytes: int) -> bytes | None:
    """Decompress a body (gzip, deflate). Returns null if it is not compressed or cannot be decompressed.

    Some proxies decompress and keep the header, others drop the header, so the bytes decide. Raises
    `BodyTooLongError` as soon as the result exceeds `max_bytes`.
    """
    encodings = [name.strip().lower() for name in content_encoding.split(",")]
    encodings = [name for name in encodings if name not in ("", "identity")]
    if not encodings and body.startswith(GZIP_MAGIC):
        encodings = ["gzip"]
    if not 0 < len(encodings) <= MAX_ENCODINGS:
        return None
    try:
        for encoding in reversed(encodings):
            body = _decode(body, encoding, max_bytes)
    except (zlib.error, ValueError):
        return None
    return body


def _decode(body: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding in ("gzip", "x-gzip"):
        return _inflate(body, GZIP, max_bytes)
    if encoding != "deflate":
        raise ValueError(encoding)
    try:
        return _inflate(body, ZLIB, max_bytes)
    except zlib.error:
        return _inflate(body, DEFLATE, max_bytes)


def _inflate(body: bytes, kind: int, max_bytes: int) -> bytes:
    plain = b""
    for _ in range(MAX_MEMBERS):
        inflater = zlib.decompressobj(kind)
        plain += inflater.decompress(body, max_bytes + 1 - len(plain))
        if len(plain) > max_bytes:
            raise BodyTooLongError
        if not inflater.eof:
            raise ValueError("cut off")
        body = inflater.unused_data
        if not body:
            return plain
    raise ValueError("too many members")


def decode_text(body: bytes) -> str:
    """Decode a body by its byte-order mark, or else as UTF-8. Invalid bytes become U+FFFD."""
    return body.decode(json.detect_encoding(body), "replace")


def parse_json(text: str) -> Any:
    """Parse JSON, accepting deviations that have only one meaning.

    These are a byte-order mark, raw control characters in strings, and lone surrogates of truncated emoji. Numbers that
    JSON or databases lack (`NaN`, `1e999`) become text. Raises `ValueError` for anything else and for nesting deeper
    than `MAX_DEPTH`; `RecursionError` for extreme nesting.
    """
    text = text.removeprefix("\ufeff")
    value = json.loads(text, strict=False, parse_constant=str, parse_float=_parse_float, parse_int=_parse_int)
    if _is_deep(value):
        raise ValueError("nested too deep")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _parse_float(text: str) -> float | str:
    number = float(text)
    return number if math.isfinite(number) else text


def _parse_int(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:  # thousands of digits
        return text
