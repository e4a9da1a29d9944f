"""Values of events in any structure of a payload."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.sizes import pick_size
from msgbubbles.times import parse_time
from msgbubbles_sync.webhooks.events import KNOWN_TYPES, Event, drop_duplicates, parse_event
from msgbubbles_sync.webhooks.spool import Delivery

RECEIVED_AT = datetime(2026, 11, 23, 10, 0, 5, tzinfo=UTC)
AT = "2026-11-23T10:00:00.000Z"
MESSAGE = {
    "id": "m1", "conversation_id": "c1", "direction": "outbound", "status": "delivered", "text": "hi", "sender": "+1",
    "created_at": "2026-11-23T09:00:00.000Z", "sent_at": "2026-11-23T09:00:01.000Z", "delivered_at": AT,
    "read_at": None,
}  # fmt: skip


def event(payload: Any) -> Event:
    body = payload if isinstance(payload, str) else json.dumps(payload)
    found = parse_event(Delivery("evt_1", RECEIVED_AT, body))
    assert found is not None
    return found


@pytest.mark.parametrize(
    "payload",
    [
        {"id": "evt_1", "type": "message.delivered", "created_at": AT, "message": MESSAGE},
        {"id": "evt_1", "type": "message.delivered", "created_at": AT, "data": MESSAGE},
        {"id": "evt_1", "type": "message.delivered", "created_at": AT, "data": {"message": MESSAGE}},
        {"id": "evt_1", "type": "message.delivered", "created_at": AT, "data": {"object": MESSAGE}},
        {"event": "message.delivered", "timestamp": AT, "payload": MESSAGE},
        {"event": "message.delivered", **MESSAGE},
    ],
)
def test_message_event_is_read_in_any_structure(payload: dict[str, Any]) -> None:
    found = event(payload)
    assert (found.event_type, found.chat_id, found.message_id) == ("message.delivered", "c1", "m1")
    assert (found.direction, found.status, found.handle) == ("outbound", "delivered", "+1")
    assert found.message_at == datetime(2026, 11, 23, 9, tzinfo=UTC)
    assert found.occurred_at == datetime(2026, 11, 23, 10, tzinfo=UTC)
    assert found.message["status"] == "delivered"
    assert "event" not in found.message
    assert json.loads(bytes(found.payload)) == payload
    assert found.is_about_message


@pytest.mark.parametrize(
    ("payload", "is_typing"),
    [
        (
            {"type": "conversation.typing", "conversation_id": "c1", "handle": "+1", "typing": True, "created_at": AT},
            True,
        ),
        ({"event": "conversation.typing", "conversation": {"id": "c1"}, "from": "+1", "state": "stopped"}, False),
        ({"event_type": "conversation.typing", "data": {"chat_id": "c1", "handle": "+1", "is_typing": False}}, False),
        ({"type": "conversation.typing", "chat": {"id": "c1"}, "handle": "+1", "status": "started"}, True),
        ({"type": "conversation.typing", "conversation_id": "c1", "handle": "+1"}, None),
    ],
)
def test_typing_event_is_read_in_any_structure(payload: dict[str, Any], is_typing: bool | None) -> None:
    found = event(payload)
    assert (found.event_type, found.chat_id, found.handle, found.is_typing) == (
        "conversation.typing", "c1", "+1", is_typing,
    )  # fmt: skip
    assert found.message_id is None
    assert found.occurred_at == (parse_time(AT) if "created_at" in payload else RECEIVED_AT)
    assert not found.is_about_message


@pytest.mark.parametrize(
    ("payload", "reaction"),
    [
        ({"type": "message.reaction", "message_id": "m1", "conversation_id": "c1", "reaction": "love"}, "love"),
        ({"type": "message.reaction", "message_id": "m1", "conversation_id": "c1", "emoji": "👍"}, "👍"),
        (
            {"type": "message.reaction", "message": {"id": "m1", "conversation_id": "c1"}, "reaction": {"type": "x"}},
            "x",
        ),
    ],
)
def test_reaction_names_its_message(payload: dict[str, Any], reaction: str) -> None:
    found = event(payload)
    assert (found.message_id, found.chat_id, found.reaction) == ("m1", "c1", reaction)


def test_id_of_another_object_is_no_message_id() -> None:
    assert event({"id": "evt_2", "type": "message.read", "status": "read"}).message_id is None
    assert event({"id": "m1", "type": "conversation.typing", "status": "started"}).message_id is None
    assert event({"id": "x", "type": "contact.created", "status": "new"}).message_id is None


@pytest.mark.parametrize("payload", ["[1, 2]", "5", '"text"', "null", "{}", '{"type": 5, "message": [], "data": "x"}'])
def test_other_payloads_are_stored_unchanged(payload: str) -> None:
    found = event(payload)
    assert bytes(found.payload).decode() == payload
    assert (found.event_type, found.chat_id, found.message_id) == (None, None, None)
    assert found.occurred_at == RECEIVED_AT


def test_characters_that_databases_refuse_are_replaced() -> None:
    stored = bytes(event(r'{"type": "a\u0000", "b": "\\u0000", "c": "\\\u0000", "d": "\ud83d"}').payload).decode()
    assert json.loads(stored) == {"type": "a\ufffd", "b": "\\u0000", "c": "\\\ufffd", "d": "?"}


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        ('\ufeff{"type": "t", "a": 1}', {"type": "t", "a": 1}),
        ('{"type": "t", "a": "one\ntwo\0"}', {"type": "t", "a": "one\ntwo\ufffd"}),
        ('{"type": "t", "a": [NaN, 1e999], "message": {"text": NaN}}',
         {"type": "t", "a": ["NaN", "1e999"], "message": {"text": "NaN"}}),
    ],
)  # fmt: skip
def test_odd_json_is_stored_as_strict_json(body: str, payload: Any) -> None:
    found = event(body)
    assert msgspec.json.decode(bytes(found.payload)) == payload
    assert found.event_type == "t"


IMPOSSIBLE = [
    "",
    " ",
    ".",
    "..",
    " ..",
    "a/b",
    "..\\\\x",
    "a\nb",
    "a\0",
    "c\u202e1",
    "x" * 201,
    5,
    5.0,
    True,
    [],
    {},
    ["c1"],
]


@pytest.mark.parametrize("chat_id", IMPOSSIBLE)
def test_event_with_impossible_chat_id_is_stored_without_chat(chat_id: Any) -> None:
    for payload in (
        {"type": "conversation.typing", "conversation_id": chat_id, "typing": True},
        {"type": "message.read", "message": {"id": "m1", "conversation_id": chat_id}},
        {"type": "conversation.typing", "chat": {"id": chat_id}},
    ):
        found = event(payload)
        assert (found.chat_id, found.has_impossible_chat) == (None, True)
        assert json.loads(bytes(found.payload)).keys() == payload.keys()


@pytest.mark.parametrize(
    "chat_id", ["conv_123", "0b5e6b9e-5d8c-4a0e-9d6f-0c8a3c1f7a55", "a..b", "a b", "é%2e", "x" * 200]
)
def test_possible_chat_id_is_stored(chat_id: str) -> None:
    found = event({"type": "conversation.typing", "conversation_id": chat_id})
    assert (found.chat_id, found.has_impossible_chat) == (chat_id, False)
    found = event({"type": "message.read", "conversation_id": "..", "message": {"id": "m", "conversation_id": chat_id}})
    assert (found.chat_id, found.has_impossible_chat) == (chat_id, False)
    assert not event({"type": "conversation.typing", "conversation_id": None}).has_impossible_chat


@pytest.mark.parametrize(
    ("value", "at"),
    [
        (AT, datetime(2026, 11, 23, 10, tzinfo=UTC)),
        ("2026-11-23T12:00:00+02:00", datetime(2026, 11, 23, 10, tzinfo=UTC)),
        ("2026-11-23T10:00:00", datetime(2026, 11, 23, 10, tzinfo=UTC)),
        (1795428000, datetime(2026, 11, 23, 10, tzinfo=UTC)),
        (1795428000.5, datetime(2026, 11, 23, 10, 0, 0, 500_000, tzinfo=UTC)),
        (1795428000500, datetime(2026, 11, 23, 10, 0, 0, 500_000, tzinfo=UTC)),
        (1795428000500_000, datetime(2026, 11, 23, 10, 0, 0, 500_000, tzinfo=UTC)),
        (1795428000500_000_000, datetime(2026, 11, 23, 10, 0, 0, 500_000, tzinfo=UTC)),
        ("1795428000500", datetime(2026, 11, 23, 10, 0, 0, 500_000, tzinfo=UTC)),
        ("1795428000.5", datetime(2026, 11, 23, 10, 0, 0, 500_000, tzinfo=UTC)),
        ("Mon, 23 Nov 2026 10:00:00 GMT", datetime(2026, 11, 23, 10, tzinfo=UTC)),
        ("Mon, 23 Nov 2026 12:00:00 +0200", datetime(2026, 11, 23, 10, tzinfo=UTC)),
        (" 2026-11-23T10:00:00.123456789Z ", datetime(2026, 11, 23, 10, 0, 0, 123_456, tzinfo=UTC)),
        *[
            (value, None)
            for value in ("soon", "", 0, -1, True, None, [], 10**30, float("inf"), "0001-01-01T00:00:00+09:00")
        ],
        *[
            (value, None)
            for value in (
                "0001-01-01T00:00:00Z",
                "1970-01-01T00:00:00Z",
                "0",
                "NaN",
                "9" * 21,
                "Thu, 01 Jan 1970 00:00:00 GMT",
            )
        ],
    ],
)
def test_timestamps_are_read_in_any_spelling(value: Any, at: datetime | None) -> None:
    assert parse_time(value) == at


names = st.sampled_from(
    ["id", "type", "event", "data", "message", "object", "payload", "created_at", "timestamp", "conversation", "chat",
     "conversation_id", "message_id", "handle", "typing", "reaction", "status", "sent_at", "text"]
) | st.text(max_size=3)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=6),
    max_leaves=20,
)


@pytest.mark.slow
@settings(max_examples=pick_size(40, nightly=1000))
@given(st.dictionaries(names, json_values, max_size=8), st.sampled_from(KNOWN_TYPES))
def test_any_payload_can_be_parsed(payload: dict[str, Any], event_type: str) -> None:
    found = event(payload | {"type": event_type})
    assert found.event_type == event_type
    assert found.occurred_at.utcoffset() == timedelta(0)


def test_first_of_repeated_events_stays() -> None:
    one, two = event({"n": 1}), event({"n": 2})
    assert drop_duplicates([one, two]) == [one]


def test_link_of_an_attachment_is_not_stored() -> None:
    link = "https://files.example/a1?signature=canary"
    message = MESSAGE | {"text": f"see {link}", "attachments": [{"id": "a1", "url": link, "sizes": {"small": [link]}}]}
    stored = json.loads(bytes(event({"type": "message.received", "message": message, "media": link}).payload))
    assert stored["message"]["attachments"] == [{"id": "a1", "url": "[link]", "sizes": {"small": ["[link]"]}}]
    assert (stored["message"]["text"], stored["media"]) == (f"see {link}", "[link]")
