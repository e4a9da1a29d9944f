"""Tests that each question of transforms/README.md has the right answer on DuckDB and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import psycopg2
import pytest
from psycopg2.extras import execute_values

from helpers.questions import questions
from helpers.turns_reference import dbt_variables
from msgbubbles_sync.service_levels import BusinessHours, ServiceLevels, Target
from msgbubbles_sync.settings import TransformSettings


def at(day: int, clock: str = "00:00", *, month: int = 11) -> datetime:
    return datetime.fromisoformat(f"2026-{month:02}-{day:02}T{clock}Z").astimezone(UTC)


def on(day: int, *, month: int = 11) -> date:
    return date(2026, month, day)


def chat(key: str, from_handle: str, remote_handle: str, created_at: datetime, **columns: Any) -> dict[str, Any]:
    return {
        "id": key,
        "from_handle": from_handle,
        "remote_handle": remote_handle,
        "is_group": False,
        "created_at": created_at,
    } | columns


def inbound(chat: str, when: datetime, channel: str, sender: str | None = None) -> dict[str, Any]:
    return {
        "conversation_id": chat,
        "cursor_at": when,
        "direction": "inbound",
        "status": "received",
        "channel": channel,
        "sender_handle": sender,
    }


def outbound(chat: str, when: datetime, channel: str, status: str) -> dict[str, Any]:
    return {"conversation_id": chat, "cursor_at": when, "direction": "outbound", "status": status, "channel": channel}


# 2 November 2026 is a Monday. Messages have been read from 26 October to 22 November, 12:00 UTC.
CHATS = [
    chat("ann", "+1", "+11", at(3, "09:00")),
    chat("ann, too", "+2", "+11", at(17, "09:00")),
    chat("bob", "+1", "+12", at(10, "08:00")),
    chat("cat", "+2", "cat@example.com", at(16, "15:00")),
    chat("old", "+1", "+13", at(1, month=10)),  # its beginning has not been read
    chat("not read", "+1", "+14", at(1, month=9), last_message_at=at(2, month=9)),
    chat("deleted", "+2", "+19", at(11, "09:00"), deleted_at=at(13)),
    chat("eve", "+2", "+20", at(26, "07:00", month=10)),
    chat("fay", "+3", "+13", at(4, "12:00")),  # on a number that the account has given up
    chat("books", "+1", "group:1", at(5, "18:00"), is_group=True, title="Book club"),
    chat("quiet", "+1", "group:2", at(6, "12:00"), is_group=True),
    chat("early", "+1", "group:4", at(5, month=9), is_group=True, last_message_at=at(5, month=9)),
    chat("unnamed", "+1", "group:3", at(9, "13:00"), is_group=True, title="Who is who"),
]
MESSAGES = [
    inbound("ann", at(3, "09:00"), "imessage"),
    inbound("ann", at(3, "09:05"), "imessage"),
    outbound("ann", at(3, "09:20"), "imessage", "delivered")  # after 20 minutes
    | {"sent_at": at(3, "09:21"), "delivered_at": at(3, "09:23")},
    inbound("ann", at(3, "10:00"), "imessage"),
    outbound("ann", at(3, "12:00"), "imessage", "read")  # after 120 minutes
    | {"delivered_at": at(3, "12:01"), "read_at": at(3, "12:30")},
    inbound("ann, too", at(17, "09:00"), "sms"),
    outbound("ann, too", at(17, "09:30"), "sms", "read"),  # after 30 minutes
    inbound("bob", at(10, "08:00"), "sms"),
    inbound("bob", at(10, "10:00"), "sms"),
    outbound("bob", at(10, "10:05"), "sms", "failed") | {"error": '{"code": "landline"}'},
    outbound("cat", at(16, "15:00"), "whatsapp", "delivered"),
    inbound("cat", at(16, "15:30"), "whatsapp"),
    inbound("cat", at(18, "15:30"), "whatsapp"),
    outbound("cat", at(18, "16:00"), "whatsapp", "sent"),  # after 48 hours and 30 minutes: 2,910 minutes
    inbound("cat", at(21, "10:00"), "whatsapp"),
    inbound("old", at(10, "10:00", month=10), "imessage"),
    outbound("old", at(10, "10:01", month=10), "imessage", "sent"),  # more than 30 days ago
    inbound("old", at(4, "11:00"), "imessage"),
    outbound("old", at(4, "11:06"), "imessage", "sent"),  # after 6 minutes
    inbound("deleted", at(11, "09:00"), "sms"),
    inbound("eve", at(26, "07:00", month=10), "imessage"),
    inbound("eve", at(2, "07:00"), "sms"),
    inbound("fay", at(4, "12:00"), "imessage"),
    outbound("fay", at(4, "12:40"), "imessage", "delivered"),  # after 40 minutes
    outbound("books", at(5, "18:00"), "imessage", "delivered"),
    inbound("books", at(5, "18:30"), "imessage", "+11"),
    inbound("books", at(6, "09:00"), "imessage", "+15"),
    outbound("quiet", at(6, "12:00"), "imessage", "sent"),
    outbound("quiet", at(13, "12:00"), "imessage", "sent"),
    inbound("unnamed", at(9, "13:00"), "imessage"),
    inbound("unnamed", at(20, "12:00"), "imessage"),
    inbound("unnamed", at(21, "12:00"), "imessage"),
    inbound("elsewhere", at(9, "13:00"), "sms"),
    outbound("bob", None, "sms", "queued"),  # type: ignore[arg-type]
    outbound("eve", at(27, "07:00", month=10), "imessage", "failed"),  # they wrote again
    outbound("books", at(6, "10:00"), "imessage", "sent"),  # an answer in a group
]
OPERATIONS = [
    ("books", "+11", "added", at(5, "18:00")),
    ("books", "+12", "added", at(5, "18:00")),
    ("books", "dora@example.com", "added", at(5, "18:00")),
    ("books", "dora@example.com", "removed", at(12, "10:00")),
    ("books", "+12", "added", at(20, "09:00")),  # it had left by the 14th
]
LISTS = {
    ("books", at(14)): ["+1", "+11", "+15", "+16"],
    ("quiet", at(10)): ["+11", "+17"],
    ("unnamed", at(10)): ["+18"],
    ("early", at(10)): ["+22"],
}
TYPING = [
    ("ann", at(3, "08:58")),  # sent
    ("ann", at(3, "09:04")),  # sent
    ("ann", at(3, "09:59")),  # sent
    ("ann", at(3, "10:05")),
    ("cat", at(21, "09:58")),  # sent
    ("cat", at(21, "10:01")),
    ("books", at(6, "09:30")),
]
TITLES = [
    {"chat_id": "books", "title": "Readers", "updated_at": at(5, "18:00"), "_fetched_at": at(6)},
    {"chat_id": "books", "title": "Book club", "updated_at": at(15, "07:00"), "_fetched_at": at(16)},
    {"chat_id": "quiet", "title": "Plans", "updated_at": at(9, "12:00"), "_fetched_at": at(9, "13:00")},
    {"chat_id": "quiet", "title": None, "updated_at": at(17), "_fetched_at": at(18)},
]
NEVER = None

ANSWERS: dict[str, list[tuple[Any, ...]]] = {
    "How fast do we answer?": [
        ("+1", 3, 20, 100, 67),  # 6, 20 and 120 minutes
        ("+2", 2, 1470, 2622, 50),  # 30 and 2,910 minutes
        ("+3", 1, 40, 40, 100),
    ],
    "What share of questions do we answer within an hour?": [
        ("+1", 4, 3, 50),  # 6, 20 and 120 minutes; bob is open
        ("+2", 5, 2, 20),  # 30 and 2,910 minutes; cat and eve are open, deleted is gone
        ("+3", 1, 1, 100),
    ],
    "What became of the questions of each week?": [
        (on(16), 3, 1, 1, 1),  # ann, cat, cat
        (on(9), 2, 0, 0, 1),  # bob; deleted is not open
        (on(2), 4, 4, 0, 0),  # ann, ann, old, fay
        (on(26, month=10), 1, 0, 0, 1),  # eve, whose second message is in the same turn
        (on(5, month=10), 1, 1, 0, 0),
    ],
    "How fast is our first response in a conversation?": [
        ("+1", 3, 2, 13, 67),  # ann 20, old 6; bob
        ("+2", 6, 2, 30, 33),  # ann 30, cat 30; cat, deleted, eve twice
        ("+3", 1, 1, 40, 100),
    ],
    "How long do people wait within our business hours?": [
        ("+1", 4, 13, 13),  # 1, 6, 20 and 120 minutes; 1 was on a Saturday
        ("+2", 2, 1470, 510),  # 30 minutes; from Monday 15:30 to Wednesday 16:00 are 16 hours and 30 minutes
        ("+3", 1, 40, 40),
    ],
    "How fast do we answer each contact, and how fast do they answer us?": [
        ("cat@example.com", 50, 2910, 990, 1995, 1),  # its second question is open; it took 30 and 3,960 minutes
        ("+11", 100, 30, 30, 40, 0),  # 20, 120 and, on another number, 30 minutes
        ("+13", 100, 6, 6, 36059, 0),  # 1 minute on a Saturday, 6 and 40
    ],
    "What share of targets do we meet?": [
        (on(16), "first_response", 1, 0, 100),  # ann; cat's latest is still running
        (on(16), "next_response", 0, 1, 0),  # cat waited two days
        (on(9), "first_response", 0, 2, 0),  # bob, deleted
        (on(2), "first_response", 3, 0, 100),  # ann, old, fay
        (on(2), "next_response", 1, 0, 100),  # ann
        (on(26, month=10), "first_response", 0, 1, 0),  # eve
        (on(5, month=10), "first_response", 1, 0, 100),  # old
    ],
    "Which targets are we about to miss, or have missed?": [
        ("+2", "cat@example.com", "first_response", "running", at(23, "10:00")),
        ("+1", "+12", "first_response", "breached", at(10, "10:00")),
        ("+2", "+20", "first_response", "breached", at(26, "10:00", month=10)),
    ],
    "How has the backlog grown?": [
        (on(22), "+1", 1, 1, 1),  # bob
        (on(22), "+2", 2, 2, 1),  # cat since the 21st, eve
        (on(22), "+3", 0, 0, 0),
        (on(15), "+1", 1, 1, 0),  # bob since the 10th
        (on(15), "+2", 1, 1, 1),  # eve; deleted has gone
        (on(15), "+3", 0, 0, 0),
        (on(8), "+1", 0, 0, 0),
        (on(8), "+2", 1, 1, 1),
        (on(8), "+3", 0, 0, 0),
        (on(1), "+1", 0, 0, 0),
    ],
    "Why do messages fail?": [("+1", "sms", "landline", 1), ("+2", "imessage", "no code", 1)],
    "How long do delivery and reading take?": [
        ("+1", "imessage", 2, 90, 1, 30),  # after 60 and 120 seconds; one was read
        ("+1", "sms", 0, NEVER, 0, NEVER),
        ("+2", "imessage", 0, NEVER, 0, NEVER),
        ("+2", "sms", 0, NEVER, 0, NEVER),
        ("+2", "whatsapp", 0, NEVER, 0, NEVER),
        ("+3", "imessage", 0, NEVER, 0, NEVER),
    ],
    "What kinds of files are exchanged?": [
        ("image", "inbound", 2, 1500),
        ("application", "outbound", 1, 9),
    ],
    "How do people react?": [("love", 2, 2), ("laugh", 1, 1)],
    "On which working days was a number silent?": [
        *(("+1", on(day)) for day in (11, 12, 13, 16, 17, 18, 19)),
        *(("+2", on(day)) for day in (9, 10, 12, 13, 19, 20)),
    ],  # the account has given up +3
    "How many conversations take a single answer?": [
        (on(16), 2, 2, 100),  # ann, cat
        (on(2), 3, 2, 67),  # old and fay; ann took two
        (on(5, month=10), 1, 1, 100),
    ],
    "Who reopens silent chats, and is there an answer?": [
        (on(16), False, 0, 0, 2, 1),  # cat, answered the first time
        (on(16), True, 0, 0, 2, 0),  # unnamed twice
        (on(9), True, 1, 0, 0, 0),  # quiet
        (on(2), False, 0, 0, 2, 1),  # old, answered; eve
    ],
    "How long do new contacts wait for the first answer?": [
        (on(16), 1, 1, 30),
        (on(9), 2, 0, NEVER),  # bob, deleted
        (on(2), 2, 2, 30),  # ann 20, fay 40
        (on(26, month=10), 1, 0, NEVER),
    ],
    "Who is waiting for our answer, and since when?": [
        ("+2", "+20", None, at(26, "07:00", month=10)),
        ("+1", "+12", None, at(10, "08:00")),
        ("+2", "cat@example.com", None, at(21, "10:00")),
    ],
    "How many chats have waited for more than four hours?": [
        ("+2", 2, 2, 1),  # eve, and cat since yesterday
        ("+1", 1, 1, 1),  # bob
    ],
    "Which answers failed?": [
        ("+2", "+20", None, at(26, "07:00", month=10), at(27, "07:00", month=10)),
        ("+1", "+12", None, at(10, "08:00"), at(10, "10:05")),
    ],
    "Which chats went silent after our message?": [
        ("+3", "+13", None, at(4, "12:40"), 17),
        ("+1", "+13", None, at(4, "11:06"), 18),
        ("+1", "+11", None, at(3, "12:00"), 19),
    ],
    "How busy is each number?": [
        (on(16), "+1", "Support", 2, 0, 0, 1),
        (on(16), "+2", "Sales", 4, 3, 2, 1),
        (on(9), "+1", "Support", 3, 2, 0, 1),
        (on(9), "+2", "Sales", 1, 0, 0, 1),
        (on(2), "+1", "Support", 6, 6, 4, 2),
        (on(2), "+2", "Sales", 1, 0, 0, 1),
        (on(2), "+3", None, 1, 1, 1, 1),
        (on(26, month=10), "+2", "Sales", 1, 1, 0, 1),
        (on(5, month=10), "+1", "Support", 1, 1, 1, 1),
    ],
    "When is each number busiest?": [
        ("+1", 2, 9, 2),
        ("+1", 2, 10, 2),  # in two chats
        ("+1", 1, 13, 1),
        ("+2", 1, 7, 2),
        ("+2", 1, 15, 1),
        ("+2", 2, 9, 1),
        ("+3", 3, 12, 1),
    ],
    "How many chats are new each week, and where do they come from?": [
        (on(16), "+2", 2, 1, 1, 0, 1, 1),
        (on(9), "+1", 2, 2, 0, 1, 1, 0),
        (on(9), "+2", 1, 1, 0, 0, 1, 0),
        (on(2), "+1", 3, 1, 2, 3, 0, 0),
        (on(2), "+3", 1, 1, 0, 1, 0, 0),
        (on(26, month=10), "+2", 1, 1, 0, 1, 0, 0),
    ],
    "Do people come back?": [(on(1, month=10), 1, 1), (on(1), 2, 0)],  # eve did, ann and fay did not
    "How many contacts come back, month after month?": [
        (on(1, month=10), 0, 2, 2, 100, True),  # +13 and eve
        (on(1, month=10), 1, 2, 2, 100, False),
        (on(1), 0, 4, 4, 100, False),  # ann, bob, cat and +19
    ],
    "Which channel delivers?": [
        ("imessage", 10, 10, 40, 25),
        ("sms", 2, 50, 50, 100),
        ("whatsapp", 2, 0, 50, 0),
    ],
    "Which contacts have not written for two weeks?": [
        ("+20", None, at(2, "07:00"), at(27, "07:00", month=10), 2),
        ("+13", None, at(4, "12:00"), at(4, "12:40"), 3),
    ],
    "Who writes to us over several channels?": [
        ("+11", "imessage,sms", 2, 2, at(17, "09:30")),
        ("+13", "imessage", 2, 0, at(4, "12:40")),
        ("+20", "imessage,sms", 1, 0, at(2, "07:00")),
    ],
    "Who was in this group on a given day?": [
        ("+1", at(5, "18:00"), "participant_list", "high"),
        ("+11", at(5, "18:00"), "operation", "high"),
        ("+12", at(5, "18:00"), "operation", "high"),
        ("+15", at(6, "09:00"), "participant_list", "high"),
    ],
    "Who left a group?": [
        ("Book club", "+12", at(14), "participant_list", True),
        ("Book club", "dora@example.com", at(12, "10:00"), "operation", False),
    ],
    "How many members of a group are silent?": [
        ("quiet", None, 2, 2, 100),
        ("books", "Book club", 4, 2, 50),  # +12 has not written since it joined again
    ],
    "Which chats were renamed?": [
        ("quiet", "Plans", None, at(17)),
        ("books", "Readers", "Book club", at(15, "07:00")),
    ],
    "Who typed and sent nothing?": [
        ("+2", "cat@example.com", None, at(21, "10:01"), "us"),
        ("+1", "+11", None, at(3, "10:05"), "them"),
    ],
    "How often does typing lead to no message?": [(on(16), 2, 50), (on(2), 5, 40)],
    "How complete is the data?": [(13, 10, 2, at(26, month=10), at(22, "12:00"), 2, 1)],
}
POSTGRES_TYPES = {"DOUBLE": "double precision", "VARCHAR": "text", "JSON": "text"}


@pytest.fixture(scope="module")
def conversations(new_warehouse: Callable[[], Any]) -> Iterator[Any]:
    warehouse = new_warehouse()
    newest = {row["conversation_id"]: row["cursor_at"] for row in MESSAGES if row["cursor_at"]}
    warehouse.load(
        "1",
        chats=[{"last_message_at": newest.get(row["id"])} | row for row in CHATS],
        messages=[{"id": f"m{n:02}"} | row for n, row in enumerate(MESSAGES)],
        numbers=[{"handle": "+1", "label": "Support"}, {"handle": "+2", "label": "Sales"}],
        chat_titles=TITLES,
        stream_coverage=[
            {"stream": "messages", "complete_since": at(26, month=10), "complete_to": at(22, "12:00")},
            {"stream": "chats", "complete_since": at(1, month=9), "complete_to": at(22, "12:00")},
        ],
        participant_lists=[
            {"id": f"{chat}|{handle}", "chat_id": chat, "handle": handle, "_fetched_at": read_at}
            for (chat, read_at), handles in LISTS.items()
            for handle in handles
        ],
        group_member_operations=[
            {"id": str(n), "chat_id": chat, "handle": handle, "operation": operation, "happened_at": happened_at}
            for n, (chat, handle, operation, happened_at) in enumerate(OPERATIONS)
        ],
        webhook_events=[
            {
                "event_id": str(n),
                "event_type": "conversation.typing",
                "chat_id": chat,
                "occurred_at": typed_at,
                "received_at": typed_at,
            }
            for n, (chat, typed_at) in enumerate(TYPING)
        ]
        + [
            {
                "event_id": f"{chat} {reaction}",
                "event_type": "message.reaction",
                "chat_id": chat,
                "message_id": message,
                "reaction": reaction,
                "occurred_at": at(20),
                "received_at": at(20),
            }
            for chat, message, reaction in (("ann", "m00", "love"), ("cat", "m14", "love"), ("cat", "m15", "laugh"))
        ],
        attachments=[
            {"id": "a", "message_id": "m00", "mime_type": "image/jpeg", "size_bytes": 1000},
            {"id": "b", "message_id": "m00", "mime_type": "image/png", "size_bytes": 500},
            {"id": "c", "message_id": "m02", "mime_type": "application/pdf", "size_bytes": 9},
            {"id": "d", "message_id": "m02", "mime_type": "image/png", "size_bytes": 7, "removed_at": at(4)},
        ],
        rejected_rows=[{"row_hash": "r", "stream": "chats", "reason": "no id", "_fetched_at": at(9)}],
    )
    targets = (Target(metric="first_response", minutes=60), Target(metric="next_response", minutes=240))
    transforms = TransformSettings(
        business_hours=BusinessHours(hours=("mon-fri 09:00-17:00",)), sla=ServiceLevels(targets=targets)
    )
    warehouse.transform("--vars", dbt_variables(transforms, ZoneInfo("UTC")))
    warehouse.path = warehouse.path.rename(warehouse.path.with_name("conversations.duckdb"))
    with warehouse.kept_open():
        yield warehouse


@pytest.fixture
def on_postgres(conversations: Any, postgres_address: str) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """Return a function that queries a PostgreSQL server with the same rows."""
    with closing(psycopg2.connect(postgres_address)) as connection:
        cursor = connection.cursor()
        cursor.execute("set time zone 'UTC'; create schema msgbubbles; create schema staging; create schema marts")
        for table in conversations.rows("select table_schema, table_name from information_schema.tables"):
            name = ".".join(table.values())
            columns = {row["column_name"]: row["column_type"] for row in conversations.rows(f"describe {name}")}
            types = (f'"{column}" {POSTGRES_TYPES.get(kind, kind)}' for column, kind in columns.items())
            cursor.execute(f"create table {name} ({', '.join(types)})")
            rows = [tuple(row.values()) for row in conversations.rows(f"from {name}")]
            execute_values(cursor, f"insert into {name} values %s", rows)

        def ask(query: str) -> list[tuple[Any, ...]]:
            cursor.execute(query)
            rows: list[tuple[Any, ...]] = cursor.fetchall()
            return rows

        yield ask


def test_each_question_has_the_right_answer(conversations: Any, on_postgres: Any) -> None:
    asked = {question.title: question.query for question in questions()}
    assert asked.keys() == ANSWERS.keys()
    assert {title: [tuple(row.values()) for row in conversations.rows(asked[title])] for title in asked} == ANSWERS
    on_server = {title: [tuple(map(plain, row)) for row in on_postgres(asked[title])] for title in asked}
    assert on_server == ANSWERS


def test_printed_results_have_the_columns_of_their_queries(conversations: Any) -> None:
    shown = {question.title: question.shown[0].split() for question in questions() if question.shown}
    assert len(shown) >= 6
    asked = {question.title: question.query.rstrip().removesuffix(";") for question in questions()}
    assert shown == {
        title: [column["column_name"] for column in conversations.rows(f"describe {asked[title]}")] for title in shown
    }


def plain(value: Any) -> Any:
    """Convert a value to the type that DuckDB returns."""
    return float(value) if isinstance(value, Decimal) else value
