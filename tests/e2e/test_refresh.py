"""Changes that move no cursor: renames, statuses, deletes, and rows that paging cannot reach."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest

from helpers.job import Job
from helpers.warehouse_rows import differences, read_rows
from msgbubbles_sync.sandbox import Knobs, NewMessage

NewJob = Callable[..., Job]


def reading_again(every_hours: float) -> dict[str, str]:
    return {
        "SOURCES__MSGBUBBLES__REFRESH_CHATS": f'[{{"every_hours": {every_hours}}}]',
        "SOURCES__MSGBUBBLES__REFRESH_MESSAGES": f'[{{"within_hours": 72, "every_hours": {every_hours}}}]',
    }


# What was read a third of a second ago is read again.
AT_ONCE = reading_again(0.0001)


def rows(job: Job, query: str) -> list[Any]:
    with duckdb.connect(str(job.database), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(query).fetchall()


def asked_by_id(job: Job) -> list[str]:
    return [seen.path.rpartition("/")[2] for seen in job.server.requests if seen.path.startswith("/v1/chats/")]


def test_rename_and_edit_of_old_rows_are_seen_when_due(new_job: NewJob) -> None:
    job = new_job(chats=230, messages=2000, days=20)
    job.run()
    truth, now = job.server.truth(), datetime.now(UTC)
    old_chat = min((row for row in truth.chats if row["title"]), key=lambda row: row["last_message_at"])
    lately = (now - timedelta(hours=71)).isoformat()
    recent = sorted((row for row in truth.messages if row["created_at"] > lately), key=lambda row: row["created_at"])
    assert len(recent) > 150
    job.server.account.rename(old_chat["id"], "Another name", now)
    job.server.account.edit_text(recent[0]["id"], "edited", now)

    quiet = job.run()
    assert quiet.requests == 3
    assert differences(job.database, job.server.truth()) == {
        "chats": {"missing": 0, "surplus": 0, "stale": 1},
        "messages": {"missing": 0, "surplus": 0, "stale": 1},
    }

    # One after another: on a slow machine several at once, and each of them may ask for a page more.
    # And due after so long that what was read again is not due once more before the run ends.
    job.environment = reading_again(0.001) | {"SOURCES__MSGBUBBLES__PARALLEL_REQUESTS": "1"}
    time.sleep(4)
    outcome = job.run()
    assert differences(job.database, job.server.truth()) == {}
    in_window = sum(row["created_at"] > (now - timedelta(hours=72)).isoformat() for row in truth.messages)
    assert outcome.requests <= 3 + 230 // 99 + 1 + in_window // 99 + 2
    assert outcome.summary["tables"]["chats"]["changed"] == 1
    assert outcome.summary["tables"]["messages"]["changed"] == 1
    assert outcome.summary["streams"]["chats"]["refresh_pages"] >= 2
    # test_postgres.py and test_ducklake.py compare the mart of these with the reference, after a rename as well.
    titles = f"SELECT title FROM msgbubbles.chat_titles WHERE chat_id = '{old_chat['id']}' ORDER BY _fetched_at"
    assert rows(job, titles) == [(old_chat["title"],), ("Another name",)]


def test_deleted_chat_is_marked_after_two_sweeps_and_may_return(loaded_job: Job) -> None:
    job = loaded_job
    job.environment = AT_ONCE
    by_age = sorted(job.server.truth().chats, key=lambda row: row["last_message_at"] or "")
    gone = {by_age[10]["id"], by_age[20]["id"]}
    for chat_id in gone:
        job.server.account.delete_chat(chat_id)

    def deleted() -> set[str]:
        return {row[0] for row in rows(job, "SELECT id FROM msgbubbles.chats WHERE deleted_at IS NOT NULL")}

    job.run()
    assert deleted() == set(), "one sweep is no proof"
    assert asked_by_id(job) == []
    job.run()
    assert deleted() == gone
    assert sorted(asked_by_id(job)) == sorted(gone)
    assert differences(job.database, job.server.truth()) == {}
    mine = f"SELECT count(*) FROM msgbubbles.messages WHERE conversation_id = '{by_age[20]['id']}'"
    assert rows(job, mine)[0][0] > 0, "its messages stay"
    job.run()
    assert sorted(asked_by_id(job)) == sorted(gone), "nobody asks again"

    for chat_id in gone:
        job.server.account.restore_chat(chat_id)
    job.run()
    assert deleted() == set()
    assert differences(job.database, job.server.truth()) == {}


def test_tied_chats_are_found_by_their_messages(new_job: NewJob) -> None:
    job = new_job(chats=0)
    account, at = job.server.account, datetime(2026, 5, 1, 12, tzinfo=UTC)
    for number in range(130):
        chat_id = account.add_chat("+14155550100", "+14155550123", at, last_message_at=at)
        account.add_message(
            NewMessage(chat_id, "inbound", "hi", at - timedelta(seconds=number), "received", sender="+14155550123")
        )
    later = at + timedelta(hours=1)
    account.add_message(NewMessage(chat_id, "inbound", "hi", later, "received", sender="+14155550123"))
    outcome = job.run()
    assert differences(job.database, job.server.truth()) == {}
    assert outcome.summary["repaired"] == {"chats": 29, "tie overflows": 1}
    assert len(asked_by_id(job)) == 29
    assert job.run().requests == 3, "and that is the end of it"


def test_tied_messages_are_read_chat_by_chat(new_job: NewJob) -> None:
    job = new_job(chats=0)
    account, at = job.server.account, datetime(2026, 5, 1, 12, tzinfo=UTC)
    for _ in range(13):
        chat_id = account.add_chat("+14155550100", "+14155550123", at - timedelta(days=1))
        account.add_messages([NewMessage(chat_id, "outbound", "hi", at, "sent") for _ in range(10)])
    outcome = job.run()
    assert differences(job.database, job.server.truth()) == {}
    assert outcome.summary["repaired"] == {"tie overflows": 1}
    assert outcome.summary["streams"]["messages"]["tie_overflows"] == []


def test_unrepaired_overflow_stands_until_it_is_accepted(new_job: NewJob) -> None:
    """All messages of one timestamp are in one chat: there is no other way to request them."""
    job = new_job(chats=0)
    account, at = job.server.account, datetime(2026, 5, 1, 12, tzinfo=UTC)
    chat_id = account.add_chat("+14155550100", "+14155550123", at - timedelta(days=1))
    account.add_messages([NewMessage(chat_id, "outbound", "hi", at, "sent") for _ in range(130)])
    for _ in range(2):
        outcome = job.run(status=3)
        assert len(outcome.summary["streams"]["messages"]["tie_overflows"]) == 1
    assert len(read_rows(job.database)["messages"]) == 100
    job.run("--accept-ties")
    assert job.run().summary["streams"]["messages"]["tie_overflows"] == []


@pytest.mark.parametrize("feed", [True, False])
def test_status_is_seen_within_an_hour_with_and_without_a_feed(new_job: NewJob, feed: bool) -> None:
    job = new_job(Knobs(feed=feed), chats=40, messages=300)
    job.run()
    lately = (datetime.now(UTC) - timedelta(hours=60)).isoformat()
    recent = [row for row in job.server.truth().messages if row["created_at"] > lately]
    for row in recent:
        job.server.account.set_status(row["id"], "read", datetime.now(UTC))
    job.environment = AT_ONCE
    job.run()
    assert len(recent) > 3
    assert differences(job.database, job.server.truth()) == {}


def test_participants_are_read_only_if_configured_and_shown(new_job: NewJob) -> None:
    job = new_job(chats=60, messages=300)
    groups = {row["id"] for row in job.server.truth().chats if row["is_group"]}
    job.run()
    assert asked_by_id(job) == []

    job.environment = {"SOURCES__MSGBUBBLES__READ_PARTICIPANTS": "true"}
    job.server.account.add_message(NewMessage(min(groups), "outbound", "hello", datetime.now(UTC), "sent"))
    job.server.knobs.participants_on_detail = False
    job.run()
    assert len(asked_by_id(job)) == 3, "the first answers show none"

    other = job.folder / "other.duckdb"
    job.server.knobs.participants_on_detail = True
    job.run("--database", str(other))
    assert set(asked_by_id(job)) == groups
    with duckdb.connect(str(other), read_only=True) as connection:
        found = connection.execute(
            "SELECT chat_id, list(handle ORDER BY handle) FROM msgbubbles.participant_lists GROUP BY 1"
        )
        assert dict(found.fetchall()) == {group: job.server.account.participants(group) for group in groups}
    asked = len(asked_by_id(job))
    job.run("--database", str(other))
    assert len(asked_by_id(job)) == asked
