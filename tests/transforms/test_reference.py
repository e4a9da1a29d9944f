"""Compare the marts' SQL with the same computation in Python, over small worlds full of ties, gaps and contradictions.

dbt compiles the models once, and DuckDB runs them without dbt, so that a world takes milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers.marts_account import ONE, OTHER
from helpers.marts_reference import LOADED, build_references, differences
from helpers.message_reference import EPOCH, World
from helpers.questions import questions
from helpers.sizes import pick_size
from helpers.turns_reference import BUSINESS, dbt_variables
from msgbubbles_sync.tables import SYNC_RUNS, define_columns

ZONE = ZoneInfo("Europe/Berlin")
# Around midnight in Berlin, and around the night in which its clocks go forward.
TIMES = [
    datetime(2026, 3, 27, 22, 59, 59, 999_000, tzinfo=UTC),
    datetime(2026, 3, 27, 23, 0, tzinfo=UTC),
    datetime(2026, 3, 27, 23, 0, 0, 7_000, tzinfo=UTC),
    datetime(2026, 3, 29, 0, 59, tzinfo=UTC),
    datetime(2026, 3, 29, 1, 0, tzinfo=UTC),
    datetime(2026, 3, 29, 22, 0, tzinfo=UTC),
    datetime(2026, 4, 4, 21, 59, tzinfo=UTC),
    datetime(2026, 4, 27, 22, 0, tzinfo=UTC),
    datetime(2026, 5, 9, 12, 0, tzinfo=UTC),
]
times_of_events = st.sampled_from(TIMES) | st.sampled_from(TIMES).map(lambda at: at + timedelta(milliseconds=1))
CHATS = ["a", "b", "c"]
HANDLES = ["+1", "+2", "Ann@b.de", ONE, OTHER, "ann@b.de"]


def row_lists(
    key: Callable[[dict[str, Any]], Any], max_size: int, *, min_size: int = 0, **columns: st.SearchStrategy[Any]
) -> Any:
    return st.lists(st.fixed_dictionaries(columns), min_size=min_size, max_size=max_size, unique_by=key)


worlds = st.fixed_dictionaries(
    {
        "chats": row_lists(
            lambda row: row["id"],
            3,
            min_size=2,  # hypothesis prefers short lists, in which few rules meet
            id=st.sampled_from(CHATS),
            from_handle=st.sampled_from(["+1", "+1", "+2", None]),
            remote_handle=st.sampled_from([ONE, OTHER, "ann@b.de", None]),
            is_group=st.sampled_from([True, True, False, None]),
            title=st.sampled_from(["T", None]),
            last_message_at=st.none() | times_of_events,
            created_at=st.none() | times_of_events,
            deleted_at=st.sampled_from([None, None, TIMES[-1]]),
            _fetched_at=times_of_events,
        ),
        "messages": st.lists(
            st.fixed_dictionaries(
                {
                    "conversation_id": st.sampled_from([*CHATS, *CHATS, "elsewhere", None]),
                    "cursor_at": st.none() | times_of_events | times_of_events | times_of_events,
                    "direction": st.sampled_from(["inbound", "outbound", "inbound", "outbound", "sideways", None]),
                    "status": st.sampled_from(["sent", "queued", "failed", "delivered", "read", "received", None]),
                    "channel": st.sampled_from(["imessage", "sms", "whatsapp", "fax", None]),
                    "sender_handle": st.sampled_from([*HANDLES, None]),
                    "attachment_count": st.sampled_from([None, 0, 2]),
                    "error": st.sampled_from(
                        [None, '{"code": "send_failed"}', '{"error": "blocked"}', '"text"', "[1]"]
                    ),
                    "sent_at": st.none() | times_of_events,
                    "delivered_at": st.none() | times_of_events,
                    "read_at": st.none() | st.none() | times_of_events,
                    "_fetched_at": times_of_events,
                }
            ),
            min_size=6,
            max_size=16,
        ).map(lambda rows: [{"id": f"m{n}", **row} for n, row in enumerate(rows)]),
        "numbers": row_lists(lambda row: row["handle"], 1, handle=st.sampled_from(["+2", OTHER])),
        "stream_coverage": row_lists(
            lambda row: row["stream"],
            2,
            min_size=1,
            stream=st.sampled_from(["messages", "messages", "chats"]),
            complete_since=st.sampled_from([datetime(1970, 1, 1, tzinfo=UTC)] * 2 + TIMES[:3]),
            complete_to=st.none() | times_of_events | times_of_events,
        ).map(lambda rows: [row if row["complete_to"] else row | {"complete_since": None} for row in rows]),
        "sync_runs": row_lists(
            lambda row: row["run_id"],
            2,
            run_id=st.sampled_from(["r1", "r2"]),
            started_at=times_of_events,
            outcome=st.sampled_from(["complete", "complete", "partial"]),
        ),
        "participant_lists": st.lists(
            st.tuples(
                st.sampled_from(CHATS),
                times_of_events,
                st.frozensets(st.sampled_from(HANDLES), max_size=3),
            ),
            max_size=3,
            unique_by=lambda seen: seen[:2],
        ).map(
            lambda lists: [
                {"id": f"{chat}|{at}|{handle}", "chat_id": chat, "handle": handle, "_fetched_at": at}
                for chat, at, handles in lists
                for handle in (sorted(handles) or (None,))
            ]
        ),
        "group_member_operations": st.lists(
            st.fixed_dictionaries(
                {
                    "chat_id": st.sampled_from(CHATS),
                    "handle": st.sampled_from(HANDLES),
                    "operation": st.sampled_from(["added", "removed"]),
                    "happened_at": times_of_events,
                    "_fetched_at": times_of_events,
                }
            ),
            max_size=5,
        ).map(lambda rows: [{"id": f"o{n}"} | row for n, row in enumerate(rows)]),
        "webhook_events": st.lists(
            st.fixed_dictionaries(
                {
                    "event_type": st.sampled_from(["conversation.typing", "message.received", "message.reaction"]),
                    "chat_id": st.sampled_from([*CHATS, *CHATS, "elsewhere", None]),
                    "handle": st.sampled_from([*HANDLES, None]),
                    "is_typing": st.sampled_from([True, True, False, None]),
                    "direction": st.sampled_from(["inbound", None, "outbound"]),
                    "message_id": st.sampled_from(["m0", "m1", None]),
                    "reaction": st.sampled_from(["love", "like", None]),
                    # Slightly less and slightly more than five minutes before other events and messages.
                    "occurred_at": st.builds(
                        lambda at, before: at - before,
                        times_of_events,
                        st.sampled_from([0, 1, 150_000, 299_999, 300_000]).map(lambda ms: timedelta(milliseconds=ms)),
                    ),
                }
            ),
            max_size=6,
        ).map(
            lambda rows: [{"event_id": f"e{n}", "received_at": row["occurred_at"]} | row for n, row in enumerate(rows)]
        ),
        "attachments": row_lists(
            lambda row: row["id"],
            4,
            id=st.sampled_from(["1", "2", "3", "4"]),
            message_id=st.sampled_from(["m0", "m1", "gone"]),
            mime_type=st.sampled_from(["image/png", "Image/jpeg", "video/mp4", "pdf", None]),
            size_bytes=st.sampled_from([None, 0, 3_000_000_000]),
            removed_at=st.sampled_from([None, None, TIMES[0]]),
            _fetched_at=times_of_events,
        ),
        "contact_aliases": row_lists(
            lambda row: row["handle"],
            3,
            handle=st.sampled_from([ONE, "ann@b.de", "+1", "+2"]),
            contact=st.sampled_from(["Ann", "Ann", "ben", None]),
        ),
        "chat_titles": row_lists(
            lambda row: (row["chat_id"], row["_fetched_at"]),
            5,
            chat_id=st.sampled_from(CHATS),
            title=st.sampled_from(["old", "new", None]),
            updated_at=st.none() | times_of_events,
            _fetched_at=times_of_events,
        ),
    }
)


class Models:
    """The compiled models in an in-memory database. Each world rebuilds them, as `--full-refresh` does."""

    def __init__(self, nodes: list[Any], ddl: list[str], zone: str = ZONE.key) -> None:
        self._connection = duckdb.connect()
        for statement in [
            *ddl,
            "set TimeZone = 'UTC'",
            "set threads = 1",
            "create schema staging",
            "create schema marts",
            "create table staging.built_loads (mart varchar, load_id varchar)",
            "create table staging.thread_chats (chat_id varchar, from_handle varchar, remote_handle varchar,"
            " is_group boolean)",
        ]:
            self._connection.execute(statement)
        self._build = []
        for node in nodes:
            relation, code = f"{node.schema}.{node.name}", node.compiled_code.replace(ZONE.key, zone)
            if node.config.materialized == "view":
                self._connection.execute(f"create view {relation} as {code}")
                continue
            self._connection.execute(f"create table {relation} as {code}")
            self._build.append(f"truncate {relation}; insert into {relation} {code}")
            for hook in node.config.post_hook:
                if hook_condition := re.fullmatch(r"\{\{ delete_where\('(.*)'\) \}\}", hook.sql):
                    self._build.append(f"delete from {relation} where {hook_condition[1]}")
        assert sum(statement.startswith("delete") for statement in self._build) == 7

    def close(self) -> None:
        self._connection.close()

    def build(self, world: World) -> None:
        for table, rows in world.items():
            self._connection.execute(f"truncate msgbubbles.{table}")
            if rows:
                columns = list(rows[0])  # the keys of rows have no fixed order
                marks = f"('1', {', '.join('?' * len(columns))})"
                self._connection.execute(
                    f"insert into msgbubbles.{table} (_dlt_load_id, {', '.join(columns)})"
                    f" values {', '.join([marks] * len(rows))}",
                    [row[column] for row in rows for column in columns],
                )
        for statement in self._build:
            self._connection.execute(statement)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()

    def mart(self, name: str) -> list[dict[str, Any]]:
        answer = self._connection.execute(f"from marts.{name}")
        columns = [column[0] for column in answer.description]
        return [
            {
                name: value.astimezone(UTC) if isinstance(value, datetime) else value
                for name, value in zip(columns, row, strict=True)
            }
            for row in answer.fetchall()
        ]


@pytest.fixture(scope="module")
def compiled(new_warehouse: Callable[[], Any]) -> tuple[list[Any], list[str]]:
    """Return the compiled models, and the statements that create the tables that they read."""
    warehouse = new_warehouse()
    sync_runs = f"create table msgbubbles.sync_runs ({define_columns(SYNC_RUNS)}, _dlt_load_id varchar)"
    warehouse.execute(sync_runs)
    answer = warehouse.dbt(
        "compile", "--select", "resource_type:model", "--full-refresh", "--vars", dbt_variables(BUSINESS, ZONE)
    )
    assert answer.exception is None
    nodes = [result.node for result in answer.result if result.node.resource_type == "model"]
    warehouse.path.unlink()
    return nodes, [*warehouse.ddl, sync_runs]


@pytest.fixture(scope="module")
def models(compiled: tuple[list[Any], list[str]]) -> Iterator[Models]:
    with closing(Models(*compiled)) as models:
        yield models


@settings(
    max_examples=pick_size(24, nightly=100),
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(world=worlds)
def test_every_mart_equals_the_reference(models: Models, world: World) -> None:
    models.build(world)
    for name, reference in build_references(BUSINESS).items():
        assert not (wrong := differences(models.mart(name), reference(world, ZONE))), f"{name}: {wrong}"


def make_direct(world: World) -> World:
    """Give each chat a contact and a share of the messages, most of which are turns."""
    chats = [chat | {"is_group": False, "remote_handle": chat["remote_handle"] or ONE} for chat in world["chats"]]
    messages = [
        message
        | {
            "conversation_id": chats[number % 2]["id"],
            "cursor_at": message["cursor_at"] or TIMES[number % len(TIMES)],
            "direction": ("inbound", "outbound")[number // 2 % 2],
        }
        for number, message in enumerate(world["messages"])
    ]
    return world | {"chats": chats, "messages": messages}


@settings(
    max_examples=pick_size(8, nightly=100),
    phases=[Phase.generate],
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(world=worlds.map(make_direct))
def test_reply_times_of_contacts_equal_the_reference(models: Models, world: World) -> None:
    models.build(world)
    wrong = differences(models.mart("contact"), build_references(BUSINESS)["contact"](world, ZONE))
    assert not wrong


def build_chat(models: Models, messages: list[tuple[str, datetime]], **tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Build a chat with these messages, by direction and time, and return its row of thread_activity."""
    at = messages[-1][1]
    rows = [
        {"id": f"{n:02}", "conversation_id": "a", "direction": direction, "status": "sent", "cursor_at": at}
        | dict.fromkeys(("channel", "sender_handle", "attachment_count", "read_at", "delivered_at"))
        | {"_fetched_at": at}
        for n, (direction, at) in enumerate(messages)
    ]
    chat = {"id": "a", "from_handle": "+1", "remote_handle": "+3", "is_group": False, "title": None, "_fetched_at": at}
    others = ("numbers", "stream_coverage", "sync_runs", "participant_lists", "group_member_operations", "chat_titles")
    world = {"chats": [chat | dict.fromkeys(("last_message_at", "created_at", "deleted_at"))], "messages": rows}
    models.build(world | {table: [] for table in (*others, "webhook_events")} | tables)
    [thread] = models.mart("thread_activity")
    return thread


def test_percentile_rounds_half_milliseconds_up_after_long_waits(models: Models) -> None:
    """Nine replies take a second and one takes six weeks, where binary fractions are too coarse to decide."""
    at, messages = TIMES[0], []
    for seconds in [1.0] * 9 + [3_732_230.975]:
        for direction, wait in (("outbound", 1.0), ("inbound", seconds)):
            at += timedelta(seconds=wait)
            messages.append((direction, at))
    assert build_chat(models, messages)["their_p90_reply_seconds"] == 373223.998


@pytest.mark.parametrize(("hours", "waiting_on"), [(14 * 24 - 1, "us"), (14 * 24, "nobody")])
def test_silent_chat_closes_by_the_clock_of_the_latest_run(models: Models, hours: int, waiting_on: str) -> None:
    asked_at = TIMES[0]
    coverage = {"stream": "messages", "complete_since": TIMES[0], "complete_to": asked_at + timedelta(seconds=1)}
    ran = {"run_id": "r", "started_at": asked_at + timedelta(hours=hours), "outcome": "complete"}
    thread = build_chat(models, [("inbound", asked_at)], stream_coverage=[coverage], sync_runs=[ran])
    assert (thread["waiting_on"], thread["dormant_days"]) == (waiting_on, hours // 24)
    assert thread["unanswered_since"] == (asked_at if waiting_on == "us" else None)


COUNTED = "How complete is the data?"
IN_USE = {
    *(COUNTED, "How busy is each number?", "How many chats are new each week, and where do they come from?"),
    "On which working days was a number silent?",
}
SENT = {"Which channel delivers?", "Why do messages fail?", "How long do delivery and reading take?"}
RECEIVED = {"When is each number busiest?", "How has the backlog grown?"}


@pytest.mark.parametrize(
    ("message", "chat", "answered"),
    [
        (None, None, {COUNTED}),
        (("outbound", "failed"), {}, IN_USE | SENT | {"How many contacts come back, month after month?"}),
        (("inbound", "received"), {"is_group": True, "remote_handle": None}, IN_USE | RECEIVED),
    ],
    ids=["empty account", "failed message", "group"],
)
def test_questions_without_an_answer_have_none(
    models: Models, message: tuple[str, str] | None, chat: dict[str, Any] | None, answered: set[str]
) -> None:
    """Divide by no zero, and count no message that failed, or to a group, as a question of a contact."""
    at = TIMES[3]
    world: World = {name: [] for name in LOADED}
    if message is not None:
        direct = {"id": "a", "from_handle": "+1", "remote_handle": "+3", "is_group": False, "created_at": at}
        coverage = {"stream": "messages", "complete_since": EPOCH, "complete_to": at + timedelta(days=2)}
        sent = {"id": "1", "conversation_id": "a", "cursor_at": at, "channel": "sms", "_fetched_at": at}
        world |= {
            "chats": [direct | {"_fetched_at": at} | (chat or {})],
            "messages": [sent | dict(zip(("direction", "status"), message, strict=True))],
            "numbers": [{"handle": "+1", "_fetched_at": at}],
            "stream_coverage": [coverage],
        }
    models.build(world | {name: [] for name in ("sync_runs", "participant_lists")})
    answers = {question.title: models.ask(question.query) for question in questions()}
    assert {title for title, rows in answers.items() if rows} == answered
    assert answers[COUNTED][0][0] == (message is not None)


# When clocks change, in the night to a Sunday, and what they show half an hour before and after.
CHANGES = {
    "Europe/Berlin forward": ("2026-03-29T01:00Z", 1, 3),
    "Europe/Berlin back": ("2026-10-25T01:00Z", 2, 2),
    "America/New_York forward": ("2026-03-08T07:00Z", 1, 3),
    "America/New_York back": ("2026-11-01T06:00Z", 1, 1),
}


@pytest.mark.parametrize("change", CHANGES)
def test_questions_are_answered_over_a_change_of_clocks(compiled: tuple[list[Any], list[str]], change: str) -> None:
    """Business hours are from Saturday 22:00 to Sunday 4:00, on Sunday from 23:30, and on Monday from 9:00 to 12:30.

    The Saturday before clocks go forward in Berlin is a holiday.
    """
    zone, _, direction = change.partition(" ")
    text, hour_before, hour_after = CHANGES[change]
    changed_at = datetime.fromisoformat(text)
    sunday, monday = changed_at.date(), changed_at.date() + timedelta(days=1)
    is_back, is_holiday = direction == "back", change == "Europe/Berlin forward"

    def at(days: int, hour: int, minute: int = 0) -> datetime:
        local = datetime.combine(sunday + timedelta(days=days), time(hour, minute), ZoneInfo(zone))
        return local.astimezone(UTC)

    messages = [
        ("a", at(-1, 23), "inbound"),
        ("a", at(0, 5), "outbound"),  # after 5 or 7 hours; 4, 6 or, with the holiday, 3 business hours
        ("a", at(0, 12), "inbound"),
        ("a", at(1, 9, 30), "outbound"),  # after 21 hours and 30 minutes; one business hour
        ("b", at(-1, 12), "inbound"),
        ("b", at(0, 12), "outbound"),  # after 23 or 25 hours; 5, 7 or 3 business hours
        ("c", changed_at - timedelta(minutes=30), "inbound"),
        ("c", changed_at + timedelta(minutes=30), "inbound"),
    ]
    chat = {"is_group": False, "title": None, "_fetched_at": changed_at, "deleted_at": None}
    world: World = {name: [] for name in (*LOADED, "sync_runs", "participant_lists")} | {
        "chats": [
            chat | {"id": key, "from_handle": own, "remote_handle": f"+3{key}", "created_at": at(-1, 12)}
            for key, own in (("a", "+1"), ("b", "+1"), ("c", "+7"))
        ],
        "messages": [
            {"id": str(n), "conversation_id": key, "cursor_at": when, "direction": direction, "status": "sent"}
            | {"channel": "imessage", "_fetched_at": when}
            for n, (key, when, direction) in enumerate(messages)
        ],
        "stream_coverage": [{"stream": "messages", "complete_since": EPOCH, "complete_to": at(1, 13)}],
    }
    week = monday - timedelta(days=7)
    business_minutes = 180 if is_holiday else 360 if is_back else 240
    first_hours = ("+7", 7, hour_before)
    expected = {
        "How fast do we answer?": [("+1", 3, 1290, 1458 if is_back else 1362, 0)],
        "What share of questions do we answer within an hour?": [("+1", 3, 3, 0), ("+7", 1, 0, 0)],
        "What became of the questions of each week?": [(week, 4, 2, 1, 1) if is_back else (week, 4, 3, 0, 1)],
        "How fast is our first response in a conversation?": [
            ("+1", 2, 1, 420, 50) if is_back else ("+1", 2, 2, 840, 100),  # 5 and 23 hours
            ("+7", 1, 0, None, 0),
        ],
        "How long do people wait within our business hours?": [("+1", 3, 1290, business_minutes)],
        "What share of targets do we meet?": [
            (week, "first_response", *((2, 1, 67) if is_holiday else (0, 3, 0))),  # within 3 hours and a half
            (week, "next_response", 1, 0, 100),
        ],
        "How has the backlog grown?": [(sunday, "+1", 1, 0, 0), (sunday, "+7", 1, 0, 0)],
        "How many conversations take a single answer?": [] if is_back else [(week, 1, 1, 100)],
        "How many chats have waited for more than four hours?": [("+7", 1, 1, 0)],
        "How busy is each number?": [
            (monday, "+1", None, 0, 1, 1, 1),
            (week, "+1", None, 3, 2, 2, 2),
            (week, "+7", None, 2, 0, 0, 1),
        ],
        "When is each number busiest?": [
            *(("+1", weekday, hour, 1) for weekday, hour in ((6, 12), (6, 23), (7, 12))),
            *([(*first_hours, 2)] if is_back else [(*first_hours, 1), ("+7", 7, hour_after, 1)]),
        ],
    }
    with closing(Models(*compiled, zone)) as models:
        models.build(world)
        asked = {question.title: question.query for question in questions()}
        assert {title: models.ask(asked[title]) for title in expected} == expected
