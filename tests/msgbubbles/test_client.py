"""Every method against the sandbox, and pages that are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msgbubbles.client import Client, _decode_page
from msgbubbles.errors import ConflictError, NotFoundError, PermanentError
from msgbubbles.landing import COLUMNS, Landing, arrow_table
from msgbubbles.models import Chat, Message, Page, fingerprint
from msgbubbles.transport import Answer, Transport
from sandbox import Account, Knobs, Server, seed, serve

OURS, ANNA, BEN = "+14155550100", "+14155550111", "ben@example.com"


@pytest.fixture
def server() -> Iterator[Server]:
    account = Account()
    seed(account, now=datetime.now(UTC), chats=20, messages=60, days=20)
    with serve(account, Knobs()) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(Transport(server.url, server.key, None)) as connected:
        yield connected


def code_of(raised: pytest.ExceptionInfo[Any]) -> str:
    return str(raised.value.code)


def test_lists_and_single_chats(client: Client, server: Server) -> None:
    chats = client.list_chats()
    assert {chat.id for chat in chats.rows} == {row["id"] for row in server.truth().chats}
    assert client.get_chat(chats.rows[0].id).id == chats.rows[0].id
    thread = client.list_messages(chats.rows[0].id)
    assert {message.conversation_id for message in thread.rows} == {chats.rows[0].id}
    assert len(client.list_messages()) == 60
    assert {number.handle for number in client.list_numbers().rows} == {n["handle"] for n in server.truth().numbers}
    with pytest.raises(NotFoundError):
        client.get_chat("00000000-0000-4000-8000-000000000000")


def test_a_group_is_created_once_for_a_key(client: Client, server: Server) -> None:
    group = client.create_group(OURS, [ANNA, BEN], "Hello", "Trip", idempotency_key="k1")
    again = client.create_group(OURS, [ANNA, BEN], "Hello", "Trip", idempotency_key="k1")
    assert again.id == group.id
    assert group.is_group
    assert group.title == "Trip"
    assert [seen.status for seen in server.requests] == [201, 200]
    assert len(client.list_messages(group.id)) == 1
    with pytest.raises(ConflictError) as raised:
        client.create_group(OURS, [ANNA, BEN], "Other", "Trip", idempotency_key="k1")
    assert code_of(raised) == "conflict"


@pytest.mark.parametrize(
    ("from_handle", "addresses", "message", "title", "code"),
    [
        ("+19999999999", [ANNA, BEN], "Hi", None, "invalid_from_handle"),
        (OURS, [ANNA, "nobody"], "Hi", None, "invalid_handle"),
        (OURS, [ANNA], "Hi", None, "invalid_request"),
        (OURS, [f"+141555501{n:02}" for n in range(32)], "Hi", None, "invalid_request"),
        (OURS, [ANNA, BEN], "", None, "invalid_request"),
        (OURS, [ANNA, BEN], "Hi", "x" * 101, "invalid_request"),
    ],
)
def test_a_group_that_cannot_be_says_why(
    client: Client, from_handle: str, addresses: list[str], message: str, title: str | None, code: str
) -> None:
    with pytest.raises(PermanentError) as raised:
        client.create_group(from_handle, addresses, message, title)
    assert code_of(raised) == code


def test_a_group_is_renamed_and_people_come_and_go(client: Client, server: Server) -> None:
    group = client.create_group(OURS, [ANNA, BEN], "Hello")
    renamed = client.rename_group(group.id, "New")
    assert renamed is not None
    assert renamed.title == "New"
    client.add_participant(group.id, "carl+1@example.com")
    client.remove_participant(group.id, "carl+1@example.com")
    client.remove_participant(group.id, ANNA)
    assert server.account.participants(group.id) == [BEN]
    with pytest.raises(NotFoundError):
        client.remove_participant(group.id, ANNA)
    extra = json.loads(bytes(client.get_chat(group.id).extra))
    assert extra == {"participants": [BEN]}


def test_what_is_not_a_group_cannot_be_changed(client: Client, server: Server) -> None:
    direct = next(row["id"] for row in server.truth().chats if not row["is_group"])
    calls = [
        lambda: client.rename_group(direct, "x"),
        lambda: client.add_participant(direct, ANNA),
        lambda: client.remove_participant(direct, ANNA),
    ]
    for call in calls:
        with pytest.raises(ConflictError) as raised:
            call()
        assert code_of(raised) == "not_a_group"


def test_receipts_and_typing(client: Client, server: Server) -> None:
    message = next(row for row in server.truth().messages if row["direction"] == "inbound")
    client.mark_read(message["conversation_id"])
    client.set_typing(message["conversation_id"], True)
    read = [row["read_at"] for row in server.truth().messages if row["id"] == message["id"]]
    assert read != [None]
    with pytest.raises(NotFoundError):
        client.mark_read("00000000-0000-4000-8000-000000000000")


def test_messages_are_sent_once_for_a_key(client: Client, server: Server) -> None:
    first = client.send_message("Hi", to=ANNA, from_handle=OURS, idempotency_key="m1")
    again = client.send_message("Hi", to=ANNA, from_handle=OURS, idempotency_key="m1")
    reply = client.send_message("More", conversation_id=first.conversation_id)
    assert again.id == first.id
    assert reply.conversation_id == first.conversation_id
    assert [seen.status for seen in server.requests] == [202, 200, 202]
    assert first.status == "queued"


# -- what a page may hold


def page_of(rows: list[Any], model: Any = Chat, body: bytes | None = None) -> Page[Any]:
    now = datetime.now(UTC)
    body = body or json.dumps({"data": rows, "has_more": False}).encode()
    return _decode_page(model, "chats", 100, Answer(200, body, "req_9", now, now))


GOOD = {"id": "c1", "from_handle": OURS, "last_message_at": "2026-01-01T00:00:00.123Z", "is_group": False}


def test_one_odd_row_changes_nothing_about_the_others() -> None:
    fast, slow = page_of([GOOD]), page_of([GOOD, {"id": "c2", "new": 1}])
    assert fast.rows[0] == slow.rows[0]
    assert len(slow.rows) == 2


def test_what_is_not_declared_is_kept_to_the_letter() -> None:
    body = b'{"data":[{"id":"c1","big":12345678901234567890123,"dec":1.10000000000000000001,"title":7,"o":{"a":[1]}}]}'
    (row,) = page_of([], body=body).rows
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
        ({"id": "c1", "last_message_at": 1700000000}, "last_message_at is not a timestamp"),
        ("text", "not an object"),
        (None, "not an object"),
    ],
)
def test_a_row_that_cannot_be_read_is_kept_whole_with_the_reason(row: Any, reason: str) -> None:
    page = page_of([GOOD, row])
    (rejected,) = page.rejected
    assert (rejected.reason, json.loads(rejected.row), rejected.request_id) == (reason, row, "req_9")
    assert len(page.rows) == 1


@pytest.mark.parametrize("other", [b'{"id":"m0"}', b'{"id":"m0","new":1}'])
@pytest.mark.parametrize(("sent", "read"), [(b"party \\ud83c", "party ?"), (b"caf\xe9", "caf\ufffd")])
def test_a_text_that_is_no_text_costs_only_itself(other: bytes, sent: bytes, read: str) -> None:
    body = b'{"data":[' + other + b',{"id":"m1","text":"' + sent + b'"},{"id":"m2","text":"\\ud83c\\udf89"}]}'
    assert [row.text for row in page_of([], Message, body).rows] == [None, read, "🎉"]


@pytest.mark.parametrize(
    "body", [b'{"data":[{"id":"m1"', b"<html>", b"", b'{"data":{}}', b'{"data":[],"has_more":"x"}', b"\xff"]
)
def test_what_is_no_page_is_malformed(body: bytes) -> None:
    now = datetime.now(UTC)
    with pytest.raises(msgspec.DecodeError):
        _decode_page(Chat, "chats", 100, Answer(200, body, "req_9", now, now))


def test_an_attachment_that_cannot_be_read_is_rejected_alone() -> None:
    message = {"id": "m1", "attachments": [{"id": "a1", "url": "https://x", "new": 1}, {"filename": "no id"}]}
    page = page_of([message], Message)
    assert [file.id for file in page.rows[0].attachments] == ["a1"]
    assert [(one.stream, one.reason) for one in page.rejected] == [("attachments", "no usable id")]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
names = st.sampled_from(["id", "text", "created_at", "sent_at", "attachments", "metadata", "extra", "_extra", "new"])


@settings(deadline=None)  # the first example imports pyarrow
@given(st.lists(st.dictionaries(names, json_values | st.just("x1"), max_size=6) | json_values, max_size=5))
def test_every_row_is_read_or_rejected_and_can_land(rows: list[Any]) -> None:
    page = page_of(rows, Message)
    whole = [one for one in page.rejected if one.stream == "chats"]
    assert len(page.rows) + len(whole) == len(rows)
    landing = Landing(("messages", "attachments"))
    landing.add(page)
    list(landing.rest())
    for row in page.rows:
        fingerprint(row)


def test_the_signed_link_never_lands_and_is_no_change() -> None:
    rows = [page_of([{"id": "m1", "attachments": [{"id": "a1", "url": url}]}], Message).rows[0] for url in "ab"]
    assert fingerprint(rows[0]) == fingerprint(rows[1])
    assert "url" not in {column.name for column in COLUMNS["attachments"]}


@pytest.mark.parametrize(
    "change", [{"title": "b"}, {"is_group": True}, {"new": 1}, {"updated_at": "2026-01-01T00:00:00Z"}]
)
def test_a_change_of_anything_that_lands_is_a_change(change: dict[str, Any]) -> None:
    assert fingerprint(page_of([GOOD]).rows[0]) != fingerprint(page_of([GOOD | change]).rows[0])


def test_rows_become_columns_of_the_declared_types() -> None:
    import pyarrow as pa

    message = {"id": "m1", "sent_at": "2026-01-01T01:00:00+01:00", "metadata": {"a": 1}, "error": None, "new": [1]}
    page = page_of([message], Message)
    table = arrow_table(COLUMNS["messages"], [(page.rows[0], page.read_at)])
    row = table.to_pylist()[0]
    assert row["sent_at"] == row["cursor_at"] == datetime(2026, 1, 1, tzinfo=UTC)
    assert (row["metadata"], row["error"], row["extra"]) == ('{"a": 1}', None, '{"new":[1]}')
    assert table.schema.field("sent_at").type == pa.timestamp("us", tz="UTC")
    assert row["attachment_count"] == 0


def test_the_later_reading_of_a_row_replaces_the_earlier() -> None:
    landing = Landing(("messages", "attachments"))
    for text in ("first", "second"):
        landing.add(page_of([{"id": "m1", "text": text, "attachments": [{"id": "a1"}]}], Message))
    messages, attachments = (item.data.to_pylist() for item in landing.rest())
    assert [row["text"] for row in messages] == ["second"]
    assert [row["message_id"] for row in attachments] == ["m1"]
