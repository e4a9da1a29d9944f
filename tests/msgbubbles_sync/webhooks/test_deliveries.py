"""Ids by which repeated events are recognized."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from msgbubbles_sync.webhooks.deliveries import MAX_EVENTS, split_deliveries

AT = datetime(2026, 11, 25, 9, tzinfo=UTC)


def ids(payload: Any, delivery_id: str | None = None, timestamp: str = "") -> list[str]:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return [one.event_id for one in split_deliveries(body, delivery_id, timestamp, AT)]


TYPING = {"type": "conversation.typing", "conversation_id": "c1", "typing": True}
READ = {"event": "message.read", "message_id": "m1", "conversation_id": "c1"}


@pytest.mark.parametrize(
    "payload", [TYPING, READ | {"event": "message.reaction"}, {"type": "contact.seen"}, {}, [TYPING]]
)
def test_repeatable_event_signed_later_is_another_event(payload: Any) -> None:
    first = ids(payload, timestamp="1795600000")
    assert first == ids(payload, timestamp="1795600000"), "a delivery that is repeated as it was"
    assert first != ids(payload, timestamp="1795600200")


@pytest.mark.parametrize(
    ("payload", "delivery_id"),
    [
        (TYPING | {"id": "evt_1"}, None),
        (TYPING | {"event_id": "5"}, None),
        (TYPING, "msg_1"),
        (READ, None),
        ({"type": "message.received", "message": {"id": "m1"}}, None),
        ([TYPING, READ], "msg_1"),
        ([READ], None),
        (b"no json", None),
    ],
)
def test_retry_with_a_new_signature_is_the_same_event(payload: Any, delivery_id: str | None) -> None:
    assert ids(payload, delivery_id, "1795600000") == ids(payload, delivery_id, "1795600200")


def test_each_event_of_a_list_has_its_own_id() -> None:
    events = [TYPING | {"id": "evt_1"}, READ, TYPING, TYPING, "ping"]
    assert ids(events, "msg_1") == ["evt_1", "msg_1:1", "msg_1:2", "msg_1:3", "msg_1:4"]
    by_hash = ids(events, timestamp="1795600000")
    assert len(set(by_hash)) == 5
    assert ids(events[:2], timestamp="1795600000") == by_hash[:2], "whatever it is delivered with"
    assert ids([READ]) == ids([READ, TYPING])[:1]


@pytest.mark.parametrize("name", ["events", "data"])
def test_list_in_an_object_is_split_with_shared_fields(name: str) -> None:
    body = json.dumps({"id": "evt_9", "type": "message.read", "account": "a", name: [{"message_id": "m1"}, READ]})
    found = split_deliveries(body.encode(), None, "", AT)
    assert [one.event_id for one in found] == ["evt_9:0", "evt_9:1"]
    assert [json.loads(one.body) for one in found] == [
        {"type": "message.read", "account": "a", "message_id": "m1"},
        {"type": "message.read", "account": "a", **READ},
    ]


@pytest.mark.parametrize("payload", [[], ["batch"], [1, 2], [{}] * (MAX_EVENTS + 1), {"data": [1]}, {"events": []}])
def test_list_without_events_or_too_long_is_not_split(payload: Any) -> None:
    (found,) = split_deliveries(json.dumps(payload).encode(), "msg_1", "", AT)
    assert (found.event_id, json.loads(found.body)) == ("msg_1", payload)


def test_body_that_is_not_json_is_stored_unchanged() -> None:
    (found,) = split_deliveries(b"{\xff\x00", "msg_1", "", AT)
    assert found.body == "{\\xff\x00"
