"""The contents of a page, up to the rows that are loaded."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msgbubbles.decode import SENDER_FIELDS
from msgbubbles.envelope import decode_page
from msgbubbles.lenient import remove_links
from msgbubbles.models import Chat, Message, Page, fingerprint
from msgbubbles.responses import Answer
from msgbubbles.source.arrow import build_arrow_table
from msgbubbles.source.buffer import RowBuffer
from msgbubbles.tables import ATTACHMENTS, MESSAGES

OURS, ANNA, BEN = "+14155550100", "+14155550111", "ben@example.com"


def build_page(rows: list[Any], model: Any = Chat, body: bytes | None = None) -> Page[Any]:
    now = datetime.now(UTC)
    body = body or json.dumps({"data": rows, "has_more": False}).encode()
    return decode_page(model, "chats", 100, Answer(200, body, "req_9", now, now))


GOOD = {"id": "c1", "from_handle": OURS, "last_message_at": "2026-01-01T00:00:00.123Z", "is_group": False}


def test_odd_row_does_not_affect_the_others() -> None:
    fast, slow = build_page([GOOD]), build_page([GOOD, {"id": "c2", "new": 1}])
    assert fast.rows[0] == slow.rows[0]
    assert len(slow.rows) == 2


def test_undeclared_fields_are_stored_unchanged() -> None:
    body = b'{"data":[{"id":"c1","big":12345678901234567890123,"dec":1.10000000000000000001,"title":7,"o":{"a":[1]}}]}'
    (row,) = build_page([], body=body).rows
    extra = msgspec.json.decode(row.extra, type=dict[str, msgspec.Raw])
    assert {name: bytes(value) for name, value in extra.items()} == {
        "big": b"12345678901234567890123",
        "dec": b"1.10000000000000000001",
        "title": b"7",
        "o": b'{"a":[1]}',
    }
    assert row.title is None


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"from_handle": OURS}, "no usable id"),
        ({"id": ""}, "no usable id"),
        ({"id": 5}, "no usable id"),
        ({"id": None}, "no usable id"),
        ({"id": "c1", "last_message_at": "yesterday"}, "last_message_at is not a timestamp"),
        ({"id": "c1", "last_message_at": 17}, "last_message_at is not a timestamp"),
        ("text", "not an object"),
        (None, "not an object"),
    ],
)
def test_unreadable_row_is_rejected_whole_with_the_reason(row: Any, reason: str) -> None:
    page = build_page([GOOD, row])
    (rejected,) = page.rejected
    assert (rejected.reason, json.loads(rejected.row), rejected.request_id) == (reason, row, "req_9")
    assert len(page.rows) == 1


@pytest.mark.parametrize("other", [b'{"id":"m0"}', b'{"id":"m0","new":1}'])
@pytest.mark.parametrize(("sent", "read"), [(b"party \\ud83c", "party ?"), (b"caf\xe9", "caf\ufffd")])
def test_text_with_invalid_characters_affects_no_other_field(other: bytes, sent: bytes, read: str) -> None:
    body = b'{"data":[' + other + b',{"id":"m1","text":"' + sent + b'"},{"id":"m2","text":"\\ud83c\\udf89"}]}'
    assert [row.text for row in build_page([], Message, body).rows] == [None, read, "🎉"]


@pytest.mark.parametrize(
    "body",
    [b'{"data":[{"id":"m1"', b"<html>", b"{}", b'{"data":{}}', b'{"data":[],"has_more":"x"}', b"\xff", b"[]",
     b'{"error":"unavailable","request_id":"req_1"}', b'{"has_more":true}', b'{"data":"null"}'],
)  # fmt: skip
def test_answer_that_is_not_a_page_is_malformed(body: bytes) -> None:
    now = datetime.now(UTC)
    with pytest.raises(msgspec.DecodeError):
        decode_page(Chat, "chats", 100, Answer(200, body, "req_9", now, now))


@pytest.mark.parametrize(
    ("status", "body", "has_more"),
    [
        (200, b'{"data":[]}', None),
        (200, b'{"data":null,"has_more":false}', False),
        (200, b'{"request_id":"req_1","has_more":false}', False),
        (200, b'\xef\xbb\xbf{"data":null}', None),
        (204, b"", False),
        # The answer may have been cut off, so it is requested again.
        (200, b"", True),
    ],
)
def test_empty_list_has_many_spellings(status: int, body: bytes, has_more: bool | None) -> None:
    now = datetime.now(UTC)
    page = decode_page(Message, "messages", 100, Answer(status, body, "req_9", now, now))
    assert (len(page), page.full, page.has_more) == (0, False, has_more)


# -- JSON that strict decoders refuse


def around(row: bytes) -> bytes:
    """Build a page with a row between two valid ones."""
    return b'{"data":[{"id":"m1","text":"a"},' + row + b',{"id":"m3","text":"c"}],"has_more":true,"request_id":"r"}'


DEEP, DEEPER = "[" * 120 + "]" * 120, "[" * 1500 + "]" * 1500


@pytest.mark.parametrize(
    ("row", "text", "metadata", "extra"),
    [
        (b'{"id":"m2","text":"two\nlines\x00\x1b"}', "two\nlines\0\x1b", None, None),
        (b'{"id":"m2","text":"b","metadata":{"a":NaN,"b":[1e999]}}', "b", {"a": None, "b": ["1e999"]}, None),
        (b'{"id":"m2","text":NaN,"created_at":NaN,"new":Infinity}', None, None, {"new": None}),
        (b'{"id":"m2","text":"b","metadata":' + DEEPER.encode() + b"}", "b", DEEPER, None),
        (b'{"id":"m2","text":"b","metadata":' + DEEP.encode() + b"}", "b", DEEP, None),
        (b'{"id":"m2","text":"b","new":{"a":' + DEEPER.encode() + b"}}", "b", None, {"new": '{"a":' + DEEPER + "}"}),
        (b'{"id":"m2","text":"b","metadata":' + b"9" * 5000 + b"}", "b", "9" * 5000, None),
        (b'{"id":"m2","text":"b",}', "b", None, None),
        (b'{"id":"m2","text":"it\\\'s \\x41","new":}', "it's \\x41", None, {"new": None}),
        (b'{"id":"m2","text":"b","new":True,"old":.5}', "b", None, {"new": True, "old": ".5"}),
        (b'{"id":"m2","id":"m2","text":"a","text":"b"}', "b", None, None),
    ],
)  # fmt: skip
def test_lenient_json_is_read(row: bytes, text: str | None, metadata: Any, extra: Any) -> None:
    page = build_page([], Message, around(row))
    assert [one.id for one in page.rows] == ["m1", "m2", "m3"]
    assert not page.rejected
    read = page.rows[1]
    assert (read.text, json.loads(bytes(read.metadata)), json.loads(bytes(read.extra) or b"null")) == (
        text, metadata, extra,
    )  # fmt: skip
    assert page.odd == (set() if b'"id":"m2","id"' in row else {"m2"})
    # Read again on the other path, it is the same row, and can be stored.
    assert fingerprint(build_page([], Message, around(row)).rows[1]) == fingerprint(read)
    build_arrow_table(MESSAGES, [(read, page.fetched_at)])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"id":"m2","text":"5" tall"}', "not JSON"),
        (b'{"id":"m2","text":"say "hi" all"}', "not JSON"),
        (b'{"id":"m2","text":"cut', "not JSON"),
        (b'{"id":"m2","te', "not JSON"),
        (b'{"id":"m2","attachments":[{"id":"a1"},{"id":"a2"}', "not JSON"),
        (b"{'id': 'm2'}", "no usable id"),
        (b"<html>", "not an object"),
        (DEEPER.encode(), "not an object"),
        (b'{"id":"m2","created_at":' + DEEPER.encode() + b"}", "created_at is not a timestamp"),
    ],
)
def test_unreadable_row_is_rejected_alone_and_whole(row: bytes, reason: str) -> None:
    page = build_page([], Message, around(row))
    assert [one.id for one in page.rows] == ["m1", "m3"]
    assert [(one.reason, one.row) for one in page.rejected] == [(reason, row.decode())]
    assert page.has_more


def test_answer_with_a_missing_byte_loses_one_row_at_most() -> None:
    body = around(b'{"id":"m2","text":"b","attachments":[{"id":"a1"}]}')
    first, last = body.index(b"["), body.rindex(b"]")
    for at in range(first + 1, last):
        page = build_page([], Message, body[:at] + body[at + 1 :])
        whole = [one for one in page.rejected if one.stream == "chats"]
        # A missing bracket or comma between two rows costs both.
        assert len(page.rows) + len(whole) == 3 - (body[at : at + 1] in b"{}," and len(page.rows) == 1), body[at:]
        assert page.rows
    for end in range(1, len(body)):
        with pytest.raises(msgspec.DecodeError):
            build_page([], Message, body[:end])


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_answer_in_any_unicode_encoding_is_read(encoding: str) -> None:
    body = '{"data":[{"id":"m1","text":"caf\u00e9 🎉"}]}'.encode(encoding)
    assert build_page([], Message, body).rows[0].text == "café 🎉"


# -- times

NO_TIMES = ["", "0001-01-01T00:00:00Z", "0001-01-01T00:00:00", "0001-01-01T00:00:00-05:00", "1970-01-01T00:00:00.000Z",
            "1970-01-01T01:00:00+01:00", "0000-00-00 00:00:00", 0, -62135596800]  # fmt: skip
SPELLINGS = ["2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", "2026-01-01 00:00:00", "2026-01-01T00:00:00",
             "2026-01-01", "20260101", "2025-12-31T23:59:60Z", "Thu, 01 Jan 2026 00:00:00 GMT",
             "2026-01-01 00:00:00 UTC", 1767225600, 1767225600000, 1767225600000000, "1767225600"]  # fmt: skip
IMPOSSIBLE = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "9999-12-31T23:59:59.999Z",
              "0000-06-01T00:00:00Z", "12026-01-01T00:00:00Z", "2026-02-30T00:00:00Z", "01/02/2026",
              True, 1e30, 17]  # fmt: skip


@pytest.mark.parametrize("written", NO_TIMES)
def test_zero_time_is_no_time_in_any_field(written: Any) -> None:
    times = dict.fromkeys(("created_at", "sent_at", "delivered_at", "read_at", "updated_at"), written)
    page = build_page([{"id": "m1", "attachments": [{"id": "a1", "created_at": written}]} | times], Message)
    (row,) = page.rows
    assert [getattr(row, name) for name in (*times, "cursor_at")] == [None] * 6
    assert [(one.created_at, bytes(one.extra)) for one in row.attachments] == [(None, b"")]
    assert bytes(row.extra) == b""
    assert build_page([GOOD | {"last_message_at": written}]).rows[0].cursor_at is None


@pytest.mark.parametrize("written", SPELLINGS)
def test_time_is_read_in_any_unambiguous_spelling(written: Any) -> None:
    (row,) = build_page([{"id": "c1", "last_message_at": written, "created_at": written}]).rows
    assert row.last_message_at == row.created_at == row.cursor_at == datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("written", IMPOSSIBLE)
def test_time_that_no_destination_stores_is_rejected_or_in_extra(written: Any) -> None:
    page = build_page([{"id": "m1", "created_at": written}, {"id": "m2", "read_at": written}, {"id": "m3"}], Message)
    assert [one.reason for one in page.rejected] == ["created_at is not a timestamp"]
    assert [(row.id, row.read_at) for row in page.rows] == [("m2", None), ("m3", None)]
    assert json.loads(bytes(page.rows[0].extra)) == {"read_at": written}


# -- senders

ANNA_IS = {"handle": ANNA, "name": "Anna"}


@pytest.mark.parametrize(
    ("fields", "sender", "field", "extra"),
    [
        ({"sender": ANNA}, ANNA, None, None),
        ({"sender_handle": ANNA}, ANNA, "sender_handle", None),
        ({"from": ANNA}, ANNA, "from", None),
        ({"author": ANNA_IS}, ANNA, "author", {"author": {"name": "Anna"}}),
        ({"sender": None, "from": {"handle": ANNA}}, ANNA, "from", None),
        ({"sender": {"id": 7}, "author": ANNA}, ANNA, "author", {"sender": {"id": 7}}),
        ({"sender": ANNA, "from": ANNA, "author": BEN}, ANNA, None, {"author": BEN}),
        ({"from_handle": OURS}, None, None, {"from_handle": OURS}),
        ({"sender": 5}, None, None, {"sender": 5}),
        ({"who": ANNA_IS, "sender": BEN}, ANNA, "who", {"who": {"name": "Anna"}, "sender": BEN}),
    ],
)
def test_sender_is_read_from_the_fields_that_may_name_it(
    fields: dict[str, Any], sender: str | None, field: str | None, extra: Any
) -> None:
    now = datetime.now(UTC)
    body = json.dumps({"data": [{"id": "m1", **fields}]}).encode()
    (row,) = decode_page(Message, "messages", 100, Answer(200, body, None, now, now), ("who", *SENDER_FIELDS)).rows
    assert (row.sender_handle, row.sender_field) == (sender, field)
    assert json.loads(bytes(row.extra) or b"null") == extra


# -- links

SIGNED = "https://files.example/x/canary?sig=canary"


@pytest.mark.parametrize(
    "attachments",
    [
        [{"id": "a1", "url": SIGNED, "thumbnail": {"url": SIGNED}, "sizes": [SIGNED]}],
        {"id": "a1", "url": SIGNED, "filename": "a.jpg"},
        {"a1": {"urls": ["/x/canary", SIGNED]}, "note": f"see {SIGNED}"},
        [[{"url": SIGNED}]],
        [SIGNED, {"url": SIGNED}, {"id": 5, "href": "/x/canary"}],
        SIGNED,
        json.dumps([{"url": SIGNED}]),
        [{"id": "a1", "url": {"href": "files.example/canary", "ttl": 5}}],
        {"deep": [[[[[[{"attachments": [{"src": SIGNED.replace("/", "\\/")}]}]]]]]]},
    ],
)
@pytest.mark.parametrize("more", [{}, {"created_at": "never"}, {"media": {"url": SIGNED}, "preview": f"x {SIGNED}"}])
def test_no_signed_link_is_stored_from_any_json(attachments: Any, more: dict[str, Any]) -> None:
    link = "https://example.com/?q=1"
    sound = {"text": f"see {link}", "metadata": {"page": link}, "site": "https://a.example/b"}
    row = {"id": "m1", "attachments": attachments} | sound | more
    sent = json.dumps({"data": [row]})
    for body in (sent, sent.replace('"m1"', 'NaN"m1"').replace("/", r"\/")):
        body = body[:-1] + ', "has_more": false}'
        page = build_page([], Message, body.encode())
        buffer = RowBuffer(("messages", "attachments"))
        buffer.add(page)
        stored = json.dumps([item.data.to_pylist() for item in buffer.flush()], default=str)
        assert "canary" not in stored
        assert len(page) >= 1
        for allowed in (link, "https://a.example/b") if "NaN" not in body else ():
            assert allowed in stored, "what people write is theirs"


@pytest.mark.parametrize("before", ["see\n", "\t", "\u770b", "\\", "\\\n1", '"', ""])
def test_json_around_a_removed_link_stays_valid(before: str) -> None:
    for nested in (False, True):
        value = json.dumps(before + SIGNED) if nested else before + SIGNED
        removed = json.loads(remove_links(json.dumps({"note": value, "attachments": [{"u": value}]}).encode()))
        assert removed["note"] == removed["attachments"][0]["u"]
        assert "canary" not in removed["note"]
        assert nested or removed["note"] == f"{before}[link]"


def test_links_of_a_long_text_without_spaces_are_found_in_linear_time() -> None:
    text = "f" * 60_000  # a picture in hexadecimal digits; trying each of them took seconds
    began = time.process_time()
    assert json.loads(remove_links(json.dumps([text, SIGNED]).encode())) == [text, "[link]"]
    assert time.process_time() - began < 1


@pytest.mark.parametrize(("opens", "closes"), [("[", "]"), ('{"a":', "}"), ("[", "")])
def test_values_that_nest_very_deep_are_read_quickly(opens: str, closes: str) -> None:
    levels = 50_000
    value = f"{opens * levels}1{closes * levels}"
    rows = [f'{{"id":"m{number}","direction":"inbound","new":{value if number else 1}}}' for number in range(8)]
    body = f'{{"data":[{",".join(rows)}],"has_more":false}}'.encode()
    began = time.process_time()
    answer = Answer(200, body, None, datetime.now(UTC), datetime.now(UTC))
    page = decode_page(Message, "messages", 100, answer)
    assert time.process_time() - began < 0.3 * len(rows)
    assert len(page.rows) == len(rows) or (not closes and len(page.rows) == len(page.rejected) == 1)
    assert all(json.loads(bytes(row.extra))["new"] == value for row in page.rows[1:])


def test_unreadable_attachment_is_rejected_alone() -> None:
    message = {"id": "m1", "attachments": [{"id": "a1", "url": "https://x", "new": 1}, {"filename": "no id"}]}
    page = build_page([message], Message)
    assert [file.id for file in page.rows[0].attachments] == ["a1"]
    assert [(one.stream, one.reason) for one in page.rejected] == [("attachments", "no usable id")]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
names = st.sampled_from(["id", "text", "created_at", "sent_at", "attachments", "metadata", "extra", "_extra", "new"])


@pytest.mark.slow
@settings(deadline=None)  # the first example imports pyarrow
@given(st.lists(st.dictionaries(names, json_values | st.just("x1"), max_size=6) | json_values, max_size=5))
def test_every_row_is_read_or_rejected_and_can_be_loaded(rows: list[Any]) -> None:
    page = build_page(rows, Message)
    whole = [one for one in page.rejected if one.stream == "chats"]
    assert len(page.rows) + len(whole) == len(rows)
    buffer = RowBuffer(("messages", "attachments"))
    buffer.add(page)
    list(buffer.flush())
    for row in page.rows:
        fingerprint(row)


def test_signed_link_is_not_loaded_and_not_compared() -> None:
    rows = [build_page([{"id": "m1", "attachments": [{"id": "a1", "url": url}]}], Message).rows[0] for url in "ab"]
    assert fingerprint(rows[0]) == fingerprint(rows[1])
    assert "url" not in ATTACHMENTS.column_names


@pytest.mark.parametrize(
    "change", [{"title": "b"}, {"is_group": True}, {"new": 1}, {"updated_at": "2026-01-01T00:00:00Z"}]
)
def test_change_of_any_loaded_field_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert fingerprint(build_page([GOOD]).rows[0]) != fingerprint(build_page([GOOD | change]).rows[0])


def test_columns_have_the_declared_types() -> None:
    import pyarrow as pa

    message = {"id": "m1", "sent_at": "2026-01-01T01:00:00+01:00", "metadata": {"a": 1}, "error": None, "new": [1]}
    page = build_page([message], Message)
    table = build_arrow_table(MESSAGES, [(page.rows[0], page.fetched_at)])
    row = table.to_pylist()[0]
    assert row["sent_at"] == row["cursor_at"] == datetime(2026, 1, 1, tzinfo=UTC)
    assert (row["metadata"], row["error"], row["extra"]) == ('{"a": 1}', None, '{"new":[1]}')
    assert table.schema.field("sent_at").type == pa.timestamp("us", tz="UTC")
    assert row["attachment_count"] == 0


def test_later_reading_of_a_row_replaces_the_earlier_one() -> None:
    buffer = RowBuffer(("messages", "attachments"))
    for text in ("first", "second"):
        buffer.add(build_page([{"id": "m1", "text": text, "attachments": [{"id": "a1"}]}], Message))
    messages, attachments = (item.data.to_pylist() for item in buffer.flush())
    assert [row["text"] for row in messages] == ["second"]
    assert [row["message_id"] for row in attachments] == ["m1"]
