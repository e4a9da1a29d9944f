"""Updates of stored messages by events."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest

from msgbubbles.policy import FULL, Policy, Pseudonymizer
from msgbubbles.redact import Redactor
from msgbubbles_sync.webhooks.events import Event, parse_event
from msgbubbles_sync.webhooks.spool import Delivery
from msgbubbles_sync.webhooks.updates import Scope, apply_events

NINE = datetime(2026, 11, 23, 9, tzinfo=UTC)
SENT = {
    "id": "m1", "conversation_id": "c1", "direction": "outbound", "status": "sent", "channel": "sms", "text": "hi",
    "effect": None, "reply_to": None, "error": None, "metadata": '{"a":1}', "sender_handle": "+1", "sent_at": NINE,
    "delivered_at": None, "read_at": None, "created_at": NINE, "updated_at": NINE, "attachment_count": 2,
    "cursor_at": NINE, "from_event_at": None, "extra": '{"new":1}', "_fetched_at": NINE,
}  # fmt: skip


def at(minutes: int) -> datetime:
    return NINE + timedelta(minutes=minutes)


def event(kind: str, minutes: int, received: int | None = None, **message: Any) -> Event:
    """Build an event `message.kind` with these fields of the message; without any, it has only the id."""
    shown = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in message.items()}
    about: dict[str, Any] = (
        {"message": {"id": "m1", "conversation_id": "c1", **shown}} if shown else {"message_id": "m1"}
    )
    payload = {"type": f"message.{kind}", "created_at": at(minutes).isoformat(), **about}
    found = parse_event(
        Delivery(f"evt_{kind}{minutes}", at(minutes if received is None else received), json.dumps(payload))
    )
    assert found is not None
    return found


STORED = Scope(frozenset({"c1"}), 0, Redactor())


def after(*events: Event, **stored: Any) -> dict[str, Any]:
    """Return the changed row; empty if it did not change."""
    changed = apply_events([SENT | stored], events, STORED)
    return changed[0] if changed else {}


def test_event_with_ids_only_moves_status_and_time() -> None:
    row = after(event("delivered", 1))
    assert row == SENT | {"status": "delivered", "delivered_at": at(1), "_fetched_at": at(1)}
    row = after(event("delivered", 1), event("read", 2))
    assert row == SENT | {"status": "read", "delivered_at": at(1), "read_at": at(2), "_fetched_at": at(2)}


def test_statuses_never_go_back_in_any_order_of_events() -> None:
    events = [event("sent", 1), event("delivered", 2), event("read", 3)]
    want = after(*events)
    assert want["status"] == "read"
    for order in permutations(events):
        assert after(*order) == want


READ = {"status": "read", "delivered_at": at(1), "read_at": at(2), "updated_at": at(2)}


@pytest.mark.parametrize("kind", ["sent", "delivered", "failed", "reaction"])
@pytest.mark.parametrize(
    "status", ["queued", "received", "sent", "failed", "delivered", "Delivered", "unheard_of", None]
)
def test_late_event_with_a_newer_time_undoes_nothing(kind: str, status: str | None) -> None:
    shown = {"status": status, "delivered_at": at(1), "read_at": None, "text": "edited", "updated_at": at(9)}
    row = after(event(kind, 3, 9, **shown), **READ)
    assert row == SENT | READ | {"text": "edited", "updated_at": at(9), "_fetched_at": at(9)}


@pytest.mark.parametrize("status", ["sent", None])
def test_failure_after_a_delivery_sets_no_error(status: str | None) -> None:
    failed = event("failed", 1, status="failed", error={"code": "x"}, updated_at=at(5))
    delivered = event("delivered", 2, status="delivered", updated_at=at(4), delivered_at=at(2))
    row = after(failed, delivered, status=status)
    assert (row["status"], row["delivered_at"]) == ("delivered", at(2))
    row = after(delivered, failed, status=status)
    assert (row["status"], row["delivered_at"], row["error"]) == ("delivered", at(2), None)


def test_message_in_an_event_may_be_older_than_the_event() -> None:
    row = after(event("read", 3, status="sent", updated_at=at(1)))
    assert (row["status"], row["read_at"]) == ("read", at(3))
    row = after(event("read", 3, 9, read_at=at(2), updated_at=at(5)), **READ | {"read_at": None, "status": "delivered"})
    assert (row["status"], row["read_at"], row["delivered_at"]) == ("read", at(2), at(1))


def test_two_late_events_commute() -> None:
    read = event("read", 2, status="read", read_at=at(2), delivered_at=at(1), updated_at=at(2))
    late = event("delivered", 3, status="delivered", delivered_at=at(1), read_at=None, updated_at=at(3))
    rows = [after(read, late), after(late, read)]
    assert [(row["status"], row["read_at"], row["delivered_at"], row["updated_at"]) for row in rows] == [
        ("read", at(2), at(1), at(3))
    ] * 2


@pytest.mark.parametrize("written", [1795424460_000, "1795424460", "Mon, 23 Nov 2026 09:01:00 GMT"])
def test_times_of_a_message_are_read_in_any_spelling(written: Any) -> None:
    zero = "0001-01-01T00:00:00Z"
    shown = {
        "created_at": written,
        "updated_at": written,
        "delivered_at": written,
        "read_at": zero,
        "status": "delivered",
    }
    row = after(event("delivered", 5, **shown))
    assert (row["delivered_at"], row["read_at"], row["updated_at"], row["created_at"]) == (at(1), None, at(1), NINE)


def test_event_about_another_chat_changes_nothing() -> None:
    assert after(event("read", 1, conversation_id="c2", status="read", updated_at=at(5))) == {}
    shown = {"type": "message.read", "message": {"id": "m1", "conversation_id": "..", "updated_at": at(5).isoformat()}}
    found = parse_event(Delivery("evt_1", at(5), json.dumps(shown)))
    assert found is not None
    assert after(found)["conversation_id"] == "c1"


def test_newer_stored_values_stay() -> None:
    stored = {"status": "read", "delivered_at": at(1), "read_at": at(2), "updated_at": at(2), "_fetched_at": at(3)}
    old: dict[str, Any] = {"status": "sent", "text": "before the edit", "updated_at": at(0), "delivered_at": None}
    assert after(event("sent", 0, 9, **old), event("delivered", 1, 9), event("failed", 1, 9), **stored) == {}
    # The time of an event does not count: it may be late, and clocks differ.
    assert after(event("sent", 60, 60, **old), **stored) == {}
    # A time that is set does not change.
    assert after(event("read", 50), **stored) == {}


def test_values_of_a_newer_message_are_taken() -> None:
    shown: dict[str, Any] = {"text": "edited", "updated_at": at(5), "reactions": [{"handle": "+2", "reaction": "love"}]}
    row = after(event("reaction", 5, **shown))
    assert json.loads(row.pop("extra")) == {"new": 1, "reactions": [{"handle": "+2", "reaction": "love"}]}
    assert row == {name: value for name, value in SENT.items() if name != "extra"} | {
        "text": "edited", "updated_at": at(5), "_fetched_at": at(5),
    }  # fmt: skip
    # Fields that the event lacks stay, including the attachments.
    assert row["attachment_count"] == 2
    assert row["metadata"] == '{"a":1}'


def test_equal_state_is_no_change() -> None:
    assert after(event("sent", 0, status="sent", updated_at=at(0), text="hi")) == {}
    assert after(event("reaction", 3)) == {}
    assert apply_events([], [event("read", 3)], STORED) == []


def test_inbound_message_keeps_its_status_when_read() -> None:
    inbound = {"direction": "inbound", "status": "received"}
    row = after(event("read", 4), **inbound)
    assert (row["status"], row["read_at"]) == ("received", at(4))


def test_failure_sets_its_error() -> None:
    row = after(event("failed", 1, status="failed", error={"code": "x"}), status="queued", sent_at=None)
    assert (row["status"], json.loads(row["error"])) == ("failed", {"code": "x"})


def test_unknown_status_waits_for_the_next_read() -> None:
    assert after(event("delivered", 1), status="archived") | {"delivered_at": None, "_fetched_at": NINE} == SENT | {
        "status": "archived"
    }
    assert after(event("sent", 1, status="archived")) == {}


def test_cursor_time_of_a_message_stays() -> None:
    """Without `created_at`, the cursor time is `sent_at`."""
    row = after(event("sent", 1), status="queued", created_at=None, sent_at=None, cursor_at=None)
    assert (row["sent_at"], row["cursor_at"]) == (at(1), at(1))


def test_fetch_time_never_goes_back() -> None:
    row = after(event("delivered", 1), _fetched_at=at(30))
    assert row["_fetched_at"] == at(30)


def added(*events: Event, scope: Scope = STORED) -> dict[str, Any]:
    """Return the row of the message that is not stored; empty if there is none."""
    rows = apply_events([], events, scope)
    return rows[0] if rows else {}


WHOLE: dict[str, Any] = {
    "created_at": NINE, "sent_at": NINE, "updated_at": NINE, "direction": "outbound", "channel": "sms", "text": "hi",
    "attachments": [{"id": "a1", "url": "https://files.example/a1"}], "sender": "+1", "metadata": {"a": 1}, "new": 1,
}  # fmt: skip


def test_message_in_an_event_gets_a_row_that_says_so() -> None:
    row = added(event("sent", 0, 1, **WHOLE, status="sent"))
    assert row == SENT | {"attachment_count": 1, "from_event_at": at(1), "_fetched_at": at(1), "metadata": '{"a": 1}'}
    received = {name: value for name, value in WHOLE.items() if name not in ("direction", "sent_at", "sender")}
    row = added(event("received", 1, **received, author={"handle": "+2"}))
    assert (row["direction"], row["status"], row["sent_at"]) == ("inbound", None, None)
    assert (row["sender_handle"], row["cursor_at"]) == ("+2", NINE)


def test_events_of_a_new_message_lead_to_one_row_in_any_order() -> None:
    steps = (("sent", 0), ("delivered", 1), ("read", 2))
    events = [event(kind, minutes, **WHOLE, status=kind) for kind, minutes in steps]
    want = {"status": "read", "sent_at": NINE, "delivered_at": at(1), "read_at": at(2), "text": "hi"}
    for order in permutations(events):
        rows: list[dict[str, Any]] = []
        for one in (*order, order[0]):  # the first is delivered twice
            rows = apply_events(rows, [one], STORED) or rows
        assert rows[0].items() >= want.items()
        assert rows[0]["from_event_at"] == order[0].received_at
        assert added(*order).items() >= want.items()


def test_event_without_a_whole_message_adds_none() -> None:
    assert added(event("sent", 0)) == {}
    assert added(event("sent", 0, **WHOLE | {"created_at": None, "sent_at": None})) == {}
    # The next read knows more of it: its chat, or whether it is read at all.
    assert added(event("sent", 0, **WHOLE), scope=Scope(frozenset({"c2"}), 0, Redactor())) == {}
    assert added(event("read", 0, **WHOLE), scope=Scope(frozenset({"c1"}), 4102444800000, Redactor())) == {}


def test_older_event_changes_nothing_that_was_read() -> None:
    read = SENT | {"status": "delivered", "delivered_at": at(1), "text": "as read", "updated_at": at(1)}
    late = event("sent", 0, 9, **WHOLE, status="sent")
    assert apply_events([read], [late], STORED) == []


def test_policy_applies_to_messages_in_events() -> None:
    policy = Policy(handles="pseudonym", text="length", metadata="drop", extra="keep", text_days=30)
    names = Pseudonymizer("of a test, and long enough to be a key")
    redactor = Redactor(policy, names, now=lambda: at(60))
    shown = WHOLE | {"sender": {"handle": "+14155550123", "name": "Ann"}, "metadata": {"a": "Ann"}}
    row = added(event("sent", 0, **shown), scope=Scope(frozenset({"c1"}), 0, redactor))
    assert (row["text"], row["sender_handle"]) == ("··", names.handle("+14155550123"))
    assert "Ann" not in repr(row)
    redactor.now = lambda: NINE + timedelta(days=31)
    assert added(event("sent", 0, **shown), scope=Scope(frozenset({"c1"}), 0, redactor))["text"] is None
    # A new text of a stored message, too.
    edited = event("reaction", 5, text="edited", updated_at=at(5))
    (row,) = apply_events([SENT], [edited], Scope(frozenset({"c1"}), 0, redactor))
    assert row["text"] is None
    erased = Redactor(FULL, names, frozenset({names.erased_handle("+1 415 555 0123")}))
    assert added(event("sent", 0, **shown), scope=Scope(frozenset({"c1"}), 0, erased)) == {}
