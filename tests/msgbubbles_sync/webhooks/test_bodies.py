from __future__ import annotations

import gzip
import json
import zlib
from typing import Any

import pytest

from msgbubbles_sync.webhooks.bodies import MAX_MEMBERS, BodyTooLongError, decode_text, decompress, parse_json

BODY = b'{"type": "message.read"}'
RAW = zlib.compressobj(wbits=-15)
LIMIT = 10_000


@pytest.mark.parametrize(
    ("sent", "encoding"),
    [
        (gzip.compress(BODY, mtime=0), "gzip"),
        (gzip.compress(BODY, mtime=0), "X-GZIP"),
        (gzip.compress(BODY, mtime=0), ""),
        (gzip.compress(BODY[:9], mtime=0) + gzip.compress(BODY[9:], mtime=0), "gzip"),
        (zlib.compress(BODY), "deflate"),
        (RAW.compress(BODY) + RAW.flush(), "deflate"),
        (gzip.compress(zlib.compress(BODY), mtime=0), "deflate, identity, gzip"),
    ],
)
def test_compressed_body_is_read_in_any_encoding(sent: bytes, encoding: str) -> None:
    assert decompress(sent, encoding, LIMIT) == BODY


@pytest.mark.parametrize(
    ("sent", "encoding"),
    [
        (BODY, ""),
        (BODY, "identity"),
        (BODY, "gzip"),
        (BODY, "br"),
        (gzip.compress(BODY, mtime=0)[:-5], "gzip"),
        (gzip.compress(BODY, mtime=0) + b"more", "gzip"),
        (gzip.compress(b"", mtime=0) * (MAX_MEMBERS + 1), "gzip"),
        (BODY, "gzip, gzip, gzip, gzip"),
        (b"", "gzip"),
    ],
)
def test_uncompressed_or_damaged_body_is_left_alone(sent: bytes, encoding: str) -> None:
    assert decompress(sent, encoding, LIMIT) is None


@pytest.mark.parametrize("layers", [1, 2])
def test_zip_bomb_is_not_inflated(layers: int) -> None:
    bomb = gzip.compress(b"0" * 50_000_000, mtime=0)
    if layers == 2:
        bomb = gzip.compress(bomb, mtime=0)
    with pytest.raises(BodyTooLongError):
        decompress(bomb, ", ".join(["gzip"] * layers), LIMIT)
    assert decompress(gzip.compress(b"0" * LIMIT, mtime=0), "gzip", LIMIT) == b"0" * LIMIT


@pytest.mark.parametrize(
    ("sent", "value"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        ('{"a": "\u00e9"}'.encode("utf-16"), {"a": "\u00e9"}),
        (b'{"a": "one\ntwo\t\x00"}', {"a": "one\ntwo\t\0"}),
        (b'{"a": NaN, "b": [-Infinity, 1e999, 1.5, -7]}', {"a": "NaN", "b": ["-Infinity", "1e999", 1.5, -7]}),
        (b'{"a": ' + b"9" * 5000 + b"}", {"a": "9" * 5000}),
        (b'{"a": "\xff"}', {"a": "\ufffd"}),
        (b'{"a": "\\ud83d"}', {"a": "\ud83d"}),
        (b"[" * 100 + b"]" * 100, json.loads("[" * 100 + "]" * 100)),
    ],
)
def test_unambiguous_json_is_read(sent: bytes, value: Any) -> None:
    assert parse_json(decode_text(sent)) == value


@pytest.mark.parametrize(
    "sent", [b"", b"{", b"{'a': 1}", b"a=1&b=2", b"<xml/>", b"[" * 100_000, b"{}{}", b"[" * 201 + b"]" * 201]
)
def test_ambiguous_json_is_refused(sent: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        json.dumps(parse_json(decode_text(sent)))
