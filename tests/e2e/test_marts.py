"""Tests of the marts that the command builds, tests and publishes."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pytest

from helpers.hooks import spool, typing, workspace_in
from helpers.job import Job
from helpers.marts_reference import MARTS, differences
from helpers.sizes import IS_NIGHTLY, pick_size
from helpers.warehouse_rows import expected
from msgbubbles_sync.sandbox import NewMessage

ZONE = ZoneInfo("Asia/Kolkata")  # its offset from UTC has a half hour
HOLD = {"TRANSFORMS__DATA_TESTS": "hold"}


def rows(job: Job, query: str) -> list[dict[str, Any]]:
    with duckdb.connect(str(job.database), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        answer = connection.execute(query)
        names = [column[0] for column in answer.description]
        return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def spool_typing(job: Job) -> list[dict[str, Any]]:
    """Put typing events into the spool, some before and some after a chat's latest message, and return them."""
    events = []
    for number, chat in enumerate(job.server.truth().chats[:150]):
        at = datetime.fromisoformat(chat["last_message_at"]) + timedelta(seconds=[-20, 20, 400][number % 3])
        events.append({"chat_id": chat["id"], "handle": chat["remote_handle"], "occurred_at": at})
    bodies = [
        typing(n, conversation_id=event["chat_id"], handle=event["handle"], created_at=event["occurred_at"].isoformat())
        for n, event in enumerate(events)
    ]
    spool(workspace_in(job.folder), bodies)
    common = {"event_type": "conversation.typing", "is_typing": True, "direction": None}
    return [event | common for event in events]


def build_world(job: Job) -> dict[str, list[dict[str, Any]]]:
    """Return the rows that the API returns, and the loaded rows of tables that only the job knows."""
    truth = expected(job.server.truth())
    read_at = {
        table: {row["id"]: row["_fetched_at"] for row in rows(job, f"SELECT id, _fetched_at FROM msgbubbles.{table}")}
        for table in ("chats", "messages")
    }
    return {
        table: [row | {"_fetched_at": read_at[table][key]} for key, row in truth[table].items()]
        for table in ("chats", "messages")
    } | {
        "numbers": list(truth["numbers"].values()),
        "group_member_operations": [],
        **{
            table: rows(job, f"FROM msgbubbles.{table}")
            for table in ("stream_coverage", "sync_runs", "participant_lists", "chat_titles", "attachments")
        },
    }


# They need targets and reactions, or have a row for a month or a day.
FEW_ROWS = ("sla_events", "sla_daily", "reactions_daily", "contact_retention", "calendar")


def test_marts_of_400_chats_equal_the_reference(new_job: Callable[..., Job]) -> None:
    job = new_job(chats=400, messages=pick_size(2400, nightly=4000))
    job.environment = {
        "TRANSFORMS__TIME_ZONE": ZONE.key,
        "SOURCES__MSGBUBBLES__READ_PARTICIPANTS": "true",
    }
    events = spool_typing(job)
    for _ in range(2):  # a full build, then an increment
        job.run(transform=True)
        world = build_world(job) | {"webhook_events": events}
        assert len(world["participant_lists"]) > 100
        for name, reference in MARTS.items():
            built = rows(job, f"FROM marts.{name}")
            assert not (wrong := differences(built, reference(world, ZONE))), f"{name}: {wrong[:5]}"
            assert len(built) > 50 or name in FEW_ROWS, name
        for chat in job.server.truth().chats[:40]:
            write(job, chat["id"])


def write(job: Job, chat_id: str) -> None:
    job.server.account.add_messages([NewMessage(chat_id, "inbound", "hello", datetime.now(UTC), "received")])


def execute_in_work_database(job: Job, statement: str) -> None:
    with duckdb.connect(str(job.folder / ".msgbubbles" / "company" / "company.duckdb")) as connection:
        connection.execute(statement)


def test_marts_that_fail_a_data_test_are_held_until_they_pass(built_job: Job) -> None:
    job, held = built_job, ["contact", "group_membership"]
    if not IS_NIGHTLY:
        job.selected = {"test": "group_membership"}
    job.environment = HOLD
    direct = rows(job, "FROM msgbubbles.chats WHERE NOT is_group ORDER BY last_message_at DESC LIMIT 1")[0]["id"]
    before = {mart: rows(job, f"FROM marts.{mart} ORDER BY ALL") for mart in held}
    count = f"SELECT messages_total FROM marts.thread_activity WHERE chat_id = '{direct}'"
    [had] = rows(job, count)

    execute_in_work_database(job, "INSERT INTO marts.group_membership FROM marts.group_membership")
    write(job, direct)
    summary = job.run(transform=True, status=3).summary
    assert summary["failed_tests"]
    assert summary["held_marts"] == held
    assert {mart: rows(job, f"FROM marts.{mart} ORDER BY ALL") for mart in held} == before
    assert rows(job, count) == [{"messages_total": had["messages_total"] + 1}], "other marts are published"
    recorded = "FROM msgbubbles.sync_runs WHERE exit_status = 3 AND held_marts::VARCHAR LIKE '%group_membership%'"
    assert rows(job, recorded)

    for option, shows in (("--no-transform", 0), ("--quiet", 1)):  # on the output, or as an error
        process = job.start_for_people("--no-transform", option)
        printed = process.communicate(timeout=120)
        assert "readers see the last published version" in printed[shows], printed
        assert process.returncode == 3, "nothing is new, and the failure remains"
        assert printed[1 - shows] == "" or not shows, "an error is reported once"

    job.environment = {"TRANSFORMS__DATA_TESTS": "publish"}
    write(job, direct)
    assert job.run(status=3).summary["held_marts"] == []
    assert len(rows(job, "FROM marts.group_membership")) == 2 * len(before["group_membership"])

    job.environment = HOLD
    job.database.unlink()
    job.run(status=3)
    shown = {row["table_name"] for row in rows(job, "FROM information_schema.tables WHERE table_schema = 'marts'")}
    assert shown == MARTS.keys() - set(held), "marts that never passed are not published"

    execute_in_work_database(job, "CREATE TABLE stored AS SELECT DISTINCT * FROM marts.group_membership")
    execute_in_work_database(job, "DELETE FROM marts.group_membership")
    execute_in_work_database(job, "INSERT INTO marts.group_membership FROM stored")
    write(job, direct)
    assert job.run(transform=True).summary["failed_tests"] == []
    assert rows(job, "FROM marts.group_membership ORDER BY ALL") == before["group_membership"]


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("TRANSFORMS__TIME_ZONE", "Berlin", "[transforms] time_zone"),
        ("TRANSFORMS__DATA_TESTS", "maybe", "[transforms] data_tests"),
        ("SYNC__MEMORY_LIMIT", "little", '[sync] memory_limit must be a size like "512MB"'),
    ],
)
def test_invalid_setting_is_refused_before_any_request(
    new_job: Callable[..., Job], key: str, value: str, named: str
) -> None:
    job = new_job(chats=0)
    job.environment = {key: value}
    outcome = job.finish(job.start(transform=True))
    assert outcome.status == 2
    assert named in outcome.errors
    assert job.server.requests == []
