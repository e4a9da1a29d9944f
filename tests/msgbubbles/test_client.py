"""Every method against the sandbox."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from helpers.served import serve_seeded
from msgbubbles.client import Client
from msgbubbles.errors import ConflictError, NotFoundError, PermanentError
from msgbubbles.transport import Transport
from msgbubbles_sync.sandbox import Server

OURS, ANNA, BEN = "+14155550100", "+14155550111", "ben@example.com"


@pytest.fixture
def server() -> Iterator[Server]:
    with serve_seeded(chats=20, messages=60) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(Transport(server.url, server.key, None)) as connected:
        yield connected


def read_code(raised: pytest.ExceptionInfo[Any]) -> str:
    return str(raised.value.code)


def test_lists_and_single_chats_are_read(client: Client, server: Server) -> None:
    chats = client.list_chats()
    assert {chat.id for chat in chats.rows} == {row["id"] for row in server.truth().chats}
    assert client.get_chat(chats.rows[0].id).id == chats.rows[0].id
    thread = client.list_messages(chats.rows[0].id)
    assert {message.conversation_id for message in thread.rows} == {chats.rows[0].id}
    assert len(client.list_messages()) == 60
    assert {number.handle for number in client.list_numbers().rows} == {n["handle"] for n in server.truth().numbers}
    with pytest.raises(NotFoundError):
        client.get_chat("00000000-0000-4000-8000-000000000000")


def test_group_is_created_once_per_key(client: Client, server: Server) -> None:
    group = client.create_group(OURS, [ANNA, BEN], "Hello", "Trip", idempotency_key="k1")
    again = client.create_group(OURS, [ANNA, BEN], "Hello", "Trip", idempotency_key="k1")
    assert again.id == group.id
    assert group.is_group
    assert group.title == "Trip"
    assert [seen.status for seen in server.requests] == [201, 200]
    assert len(client.list_messages(group.id)) == 1
    with pytest.raises(ConflictError) as raised:
        client.create_group(OURS, [ANNA, BEN], "Other", "Trip", idempotency_key="k1")
    assert read_code(raised) == "conflict"


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
def test_invalid_group_is_refused_with_its_code(
    client: Client, from_handle: str, addresses: list[str], message: str, title: str | None, code: str
) -> None:
    with pytest.raises(PermanentError) as raised:
        client.create_group(from_handle, addresses, message, title)
    assert read_code(raised) == code


def test_group_is_renamed_and_participants_change(client: Client, server: Server) -> None:
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


def test_chat_that_is_not_a_group_cannot_be_changed(client: Client, server: Server) -> None:
    direct = next(row["id"] for row in server.truth().chats if not row["is_group"])
    calls: list[Callable[[], object]] = [
        lambda: client.rename_group(direct, "x"),
        lambda: client.add_participant(direct, ANNA),
        lambda: client.remove_participant(direct, ANNA),
    ]
    for call in calls:
        with pytest.raises(ConflictError) as raised:
            call()
        assert read_code(raised) == "not_a_group"


def test_receipts_and_typing_are_sent(client: Client, server: Server) -> None:
    message = next(row for row in server.truth().messages if row["direction"] == "inbound")
    client.mark_read(message["conversation_id"])
    client.set_typing(message["conversation_id"], True)
    read = [row["read_at"] for row in server.truth().messages if row["id"] == message["id"]]
    assert read != [None]
    with pytest.raises(NotFoundError):
        client.mark_read("00000000-0000-4000-8000-000000000000")


def test_message_is_sent_once_per_key(client: Client, server: Server) -> None:
    first = client.send_message("Hi", to=ANNA, from_handle=OURS, idempotency_key="m1")
    again = client.send_message("Hi", to=ANNA, from_handle=OURS, idempotency_key="m1")
    reply = client.send_message("More", conversation_id=first.conversation_id)
    assert again.id == first.id
    assert reply.conversation_id == first.conversation_id
    assert [seen.status for seen in server.requests] == [202, 200, 202]
    assert first.status == "queued"


def test_chat_by_id_is_read_leniently(client: Client, server: Server) -> None:
    deep = "[" * 1500 + "]" * 1500
    chat_id = client.list_chats().rows[0].id
    server.knobs.transform_body = lambda _path, body: (
        b"\xef\xbb\xbf"
        + body.replace(b'"is_group"', b'"score":NaN,"note":"a\nb","deep":' + deep.encode() + b',"is_group"')
    )
    chat = client.get_chat(chat_id)
    assert chat.id == chat_id
    extra = json.loads(bytes(chat.extra))
    assert (extra["score"], extra["note"], extra["deep"]) == (None, "a\nb", deep)
