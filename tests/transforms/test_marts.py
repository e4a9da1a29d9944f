"""Tests of the marts: input rows and expected rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import duckdb
import pytest

from helpers.context import build_destination
from msgbubbles.source.state import FailedRead
from msgbubbles_sync.dbt.runner import _Dbt
from msgbubbles_sync.run_log import store_failed_reads
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.workspace import Workspace

CHAT_MESSAGES: dict[str, list[tuple[int, str | None, str | None]]] = {
    # The messages of a chat in load order: (minute, direction, status).
    "no messages": [],
    "they wrote": [(1, "inbound", "received")],
    "we wrote": [(1, "outbound", "queued")],
    "we answered": [(1, "inbound", "received"), (2, "outbound", "sent")],
    "loaded backwards": [(2, "outbound", "sent"), (1, "inbound", "received")],
    "tie": [(1, "inbound", "received"), (1, "outbound", "sent")],
    "tie loaded backwards": [(1, "outbound", "sent"), (1, "inbound", "received")],
    "tie with a failed one": [(0, "outbound", "sent"), (1, "inbound", None), (1, "outbound", "failed")],
    "answer queued": [(1, "inbound", "received"), (2, "outbound", "queued")],
    "answer failed": [(1, "inbound", "received"), (2, "outbound", "failed")],
    "answer failed, then sent": [(1, "inbound", "received"), (2, "outbound", "failed"), (3, "outbound", "sent")],
    "only failed": [(1, "outbound", "failed")],
    "failed after an answer": [(1, "inbound", None), (2, "outbound", "read"), (3, "outbound", "failed")],
    "answer without status": [(1, "inbound", None), (2, "outbound", None)],
    "no direction": [(1, None, "sent")],
    "unknown direction last": [(1, "inbound", None), (2, "sideways", "sent")],
    "inbound with status failed": [(1, "inbound", "failed")],
}
EXPECTED: dict[str, tuple[Any, ...]] = {
    # Total, inbound, outbound, failed, last inbound, last outbound, waiting on.
    "no messages": (None, None, None, None, None, None, None),
    "they wrote": (1, 1, 0, 0, 1, None, "us"),
    "we wrote": (1, 0, 1, 0, None, 1, "them"),
    "we answered": (2, 1, 1, 0, 1, 2, "them"),
    "loaded backwards": (2, 1, 1, 0, 1, 2, "them"),
    "tie": (2, 1, 1, 0, 1, 1, "us"),
    "tie loaded backwards": (2, 1, 1, 0, 1, 1, "us"),
    "tie with a failed one": (3, 1, 2, 1, 1, 1, "us"),
    "answer queued": (2, 1, 1, 0, 1, 2, "them"),
    "answer failed": (2, 1, 1, 1, 1, 2, "us"),
    "answer failed, then sent": (3, 1, 2, 1, 1, 3, "them"),
    "only failed": (1, 0, 1, 1, None, 1, "nobody"),
    "failed after an answer": (3, 1, 2, 1, 1, 3, "them"),
    "answer without status": (2, 1, 1, 0, 1, 2, "them"),
    "no direction": (1, 0, 0, 0, None, None, "nobody"),
    "unknown direction last": (2, 1, 0, 0, 1, None, "us"),
    "inbound with status failed": (1, 1, 0, 0, 1, None, "us"),
}


def test_counts_and_waiting_side_of_a_chat(replica: Any, at: Any) -> None:
    messages = [
        {
            "id": f"{chat} {n}",
            "conversation_id": chat,
            "cursor_at": at(minute),
            "direction": direction,
            "status": status,
        }
        for chat, rows in CHAT_MESSAGES.items()
        for n, (minute, direction, status) in enumerate(rows)
    ]
    replica.load("1", chats=[{"id": chat} for chat in CHAT_MESSAGES], messages=messages)
    replica.transform()

    def time(minute: int | None) -> Any:
        return None if minute is None else at(minute)

    assert {
        row["chat_id"]: (
            *(row[f"messages_{count}"] for count in ("total", "inbound", "outbound", "failed")),
            *(row["last_inbound_at"], row["last_outbound_at"], row["waiting_on"]),
        )
        for row in replica.mart("thread_activity")
    } == {chat: (*row[:4], time(row[4]), time(row[5]), row[6]) for chat, row in EXPECTED.items()}


def test_queued_answer_that_fails_later_opens_the_turn_again(replica: Any, at: Any) -> None:
    asked = {"id": "1", "conversation_id": "a", "cursor_at": at(1), "direction": "inbound", "status": "received"}
    answer = {"id": "2", "conversation_id": "a", "cursor_at": at(2), "direction": "outbound"}

    def load(load_id: str, status: str) -> tuple[Any, ...]:
        replica.load(load_id, chats=[{"id": "a"}], messages=[asked, answer | {"status": status}])
        replica.transform()
        [thread] = replica.mart("thread_activity")
        turns = [row["is_open"] for row in replica.mart("thread_turns") if row["side"] == "them"]
        return thread["waiting_on"], thread["unanswered_since"], thread["messages_delivered"], turns

    assert load("1", "queued") == ("them", None, 0, [False])
    assert load("2", "failed") == ("us", at(1), 0, [True])
    assert load("3", "delivered") == ("them", None, 1, [False])


def test_contact_waits_since_the_earliest_unanswered_question(replica: Any, at: Any) -> None:
    asked = {"+1": at(3), "+2": at(1), "+3": at(2)}
    replica.load(
        "1",
        chats=[{"id": own, "is_group": False, "from_handle": own, "remote_handle": "+9"} for own in asked],
        messages=[
            {"id": own, "conversation_id": own, "cursor_at": asked_at, "direction": "inbound"}
            for own, asked_at in asked.items()
        ],
    )
    replica.transform()
    [contact] = replica.mart("contact")
    assert (contact["threads_waiting_on_us"], contact["unanswered_since"]) == (3, at(1))


def test_thread_activity_has_these_columns_and_values(replica: Any, at: Any) -> None:
    chat = {
        "from_handle": "+1",
        "remote_handle": "+2",
        "is_group": False,
        "title": "Ärger 😀",
        "created_at": at(0),
        "last_message_at": at(9),
    }
    read_at = at(0) + timedelta(days=200)
    replica.load(
        "1",
        chats=[chat | {"id": "a"}, {"id": "not read", "last_message_at": at(3)}],
        messages=[
            {"id": "m1", "conversation_id": "a", "cursor_at": at(2), "direction": "inbound", "attachment_count": 2},
            {"id": "m2", "conversation_id": "a", "cursor_at": at(1), "direction": "inbound", "attachment_count": None},
            {"id": "m3", "conversation_id": "a", "cursor_at": at(5), "attachment_count": 1, "_fetched_at": read_at},
            {"id": "no chat", "conversation_id": None, "cursor_at": at(1), "direction": "inbound"},
            {"id": "no time", "conversation_id": "a", "cursor_at": None, "direction": "outbound"},
            {"id": "unknown chat", "conversation_id": "elsewhere", "cursor_at": at(1), "direction": "inbound"},
        ],
        stream_coverage=[{"stream": "messages", "complete_since": at(0), "complete_to": at(60 * 49)}],
    )
    replica.transform()

    read, not_read = replica.mart("thread_activity")
    assert read == {
        "chat_id": "a",
        "from_handle": "+1",
        "remote_handle": "+2",
        "is_group": False,
        "title": "Ärger 😀",
        "chat_created_at": at(0),
        "deleted_at": None,
        "last_message_at": at(9),
        "first_message_at": at(1),
        "latest_message_at": at(5),
        "messages_total": 3,
        "messages_inbound": 2,
        "messages_outbound": 0,
        "messages_failed": 0,
        "messages_delivered": 0,
        "messages_read": 0,
        "delivery_rate": None,
        "read_rate": None,
        "messages_imessage": 0,
        "messages_sms": 0,
        "messages_whatsapp": 0,
        "main_channel": None,
        "attachments_total": 3,
        "distinct_senders": 1,
        "active_days": 1,
        "messages_last_7_days": 3,
        "messages_last_30_days": 3,
        "dormant_days": 2,
        "longest_gap_seconds": 180.0,
        "last_inbound_at": at(2),
        "last_outbound_at": None,
        "began_on": at(1).date(),
        "initiator": "them",
        "waiting_on": "us",
        "unanswered_since": at(1),
        "our_replies": 0,
        "their_replies": 0,
        "our_first_response_seconds": None,
        "their_first_response_seconds": None,
        "our_median_reply_seconds": None,
        "our_p90_reply_seconds": None,
        "their_median_reply_seconds": None,
        "their_p90_reply_seconds": None,
        "last_typing_at": None,
        "has_typed_unsent": None,
        "messages_complete_since": at(0),
        "is_complete": True,
        "fetched_at": read_at,
    }
    assert (not_read["chat_id"], not_read["messages_total"], not_read["waiting_on"]) == ("not read", None, None)
    assert {row["message_id"]: row["counts_in_thread"] for row in replica.rows("from staging.stg_messages")} == {
        "m1": True,
        "m2": True,
        "m3": True,
        "no chat": False,
        "no time": False,
        "unknown chat": True,
    }


def test_chat_whose_latest_message_is_not_visible_yet_is_not_complete(
    warehouse: Any, at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = 60 * 24
    complete_to = 50 * day
    last = {
        "not visible": complete_to - 4,
        "only one": complete_to - 4,
        "deleted message": complete_to - 6,
        "read": day,
    }
    warehouse.load(
        "1",
        chats=[{"id": chat, "created_at": at(0), "last_message_at": at(minute)} for chat, minute in last.items()],
        messages=[
            {"id": chat, "conversation_id": chat, "cursor_at": at(day), "direction": "inbound"}
            for chat in last
            if chat != "only one"
        ],
        stream_coverage=[{"stream": "messages", "complete_since": at(0), "complete_to": at(complete_to)}],
    )
    warehouse.rebuild()

    def activity() -> dict[str, tuple[Any, ...]]:
        names = ("is_complete", "dormant_days", "waiting_on", "messages_total")
        return {row["chat_id"]: tuple(map(row.get, names)) for row in warehouse.mart("thread_activity")}

    not_visible = {"not visible": (False, None, None, 1), "only one": (False, None, None, None)}
    assert activity() == not_visible | {"deleted message": (True, 49, "us", 1), "read": (True, 49, "us", 1)}
    # The source's lookback applies, although the project was parsed with another one.
    monkeypatch.setenv("SOURCES__MSGBUBBLES__LOOKBACK_SECONDS", "420")
    destination = build_destination(Workspace.from_path(warehouse.path))
    dbt = _Dbt(destination, load_settings(), "duckdb", {"MSGBUBBLES_DUCKDB_PATH": str(warehouse.path)})
    assert not dbt.run("run", "--select", "thread_activity").failed
    assert activity() == not_visible | {"deleted message": (False, None, None, 1), "read": (True, 49, "us", 1)}


def test_chat_whose_messages_could_not_be_read_is_not_complete(warehouse: Any, at: Any) -> None:
    warehouse.load(
        "1",
        chats=[
            {"id": chat, "created_at": at(0), "last_message_at": at(1)} for chat in ("failed", "never read", "read")
        ],
        messages=[
            {"id": chat, "conversation_id": chat, "cursor_at": at(1), "direction": "inbound"}
            for chat in ("failed", "read")
        ],
        stream_coverage=[{"stream": "messages", "complete_since": at(0), "complete_to": at(60 * 24)}],
    )
    failed = [FailedRead("thread", chat, 0, 0, 1) for chat in ("failed", "never read")]
    with duckdb.connect(str(warehouse.path)) as connection:
        store_failed_reads(connection, [*failed, FailedRead("chat", "read", 0, 0, 1)], "msgbubbles")
    warehouse.transform()
    names = ("is_complete", "messages_total", "waiting_on")
    activity = {row["chat_id"]: tuple(map(row.get, names)) for row in warehouse.mart("thread_activity")}
    assert activity == {"failed": (False, 1, None), "never read": (False, None, None), "read": (True, 1, "us")}
    with duckdb.connect(str(warehouse.path)) as connection:
        store_failed_reads(connection, [], "msgbubbles")
    assert {row["is_complete"] for row in warehouse.mart("thread_activity")} == {True}


def test_deleted_chat_keeps_its_messages_and_waits_on_nobody(replica: Any, at: Any) -> None:
    group = {"id": "group", "is_group": True, "from_handle": "+1", "title": "T", "created_at": at(0)}
    chats = [{"id": "direct", "last_message_at": at(3)}, group]
    messages = [
        {"id": key, "conversation_id": chat, "cursor_at": at(1), "direction": "inbound", "sender_handle": "+2"}
        for key, chat in (("m", "group"), ("n", "never read"))
    ]
    replica.load("1", chats=chats, messages=messages)
    replica.transform()
    threads, members = replica.mart("thread_activity"), replica.mart("group_membership")
    assert [(row["chat_id"], row["waiting_on"]) for row in threads] == [("direct", None), ("group", "us")]

    deleted = {"deleted_at": at(9)}
    replica.load("2", chats=[*(chat | deleted for chat in chats), {"id": "never read"} | deleted])
    replica.transform()
    *read, never_read = replica.mart("thread_activity")
    assert read == [row | deleted | {"waiting_on": "nobody", "unanswered_since": None} for row in threads]
    assert {name: never_read[name] for name in ("messages_total", "waiting_on", "initiator", "is_complete")} == {
        "messages_total": 1,
        "waiting_on": "nobody",
        "initiator": None,
        "is_complete": False,
    }
    assert replica.mart("group_membership") == members
    assert len(members) == 2

    replica.load("3", chats=chats)  # they come back
    replica.transform()
    assert replica.mart("thread_activity")[:2] == threads


def test_attachments_and_numbers_are_in_staging(replica: Any) -> None:
    extra = {"extra": '{"new": 1}'}
    attachment = {"id": "a", "message_id": "m", "filename": "f", "mime_type": "image/png", "size_bytes": 3} | extra
    number = {"handle": "+1", "label": "desk", "status": "active", "channels": '["sms"]'} | extra
    replica.load("1", attachments=[attachment], numbers=[number])
    replica.transform()
    rows: dict[str, dict[str, Any]] = {"stg_attachments": attachment, "stg_numbers": number}
    for view, row in rows.items():
        [staged] = replica.rows(f"from staging.{view}")
        assert set(row.values()) | {"1"} <= set(staged.values())
