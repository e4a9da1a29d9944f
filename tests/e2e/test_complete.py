"""Every row is loaded as the API shows it, whichever way the API uses the freedom of its pages."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from helpers.job import Job
from helpers.sizes import nightly
from helpers.warehouse_rows import differences, read_rows
from msgbubbles_sync.sandbox import Account, Knobs, NewMessage

NewJob = Callable[..., Job]


def new_message(account: Account, chance: random.Random, at: datetime) -> NewMessage:
    row = chance.choice(account.all("SELECT id, remote_handle FROM chats ORDER BY id"))
    return NewMessage(row["id"], "inbound", "hello", at, "received", sender=row["remote_handle"])


def test_a_first_run_lands_everything_and_a_second_finds_nothing(new_job: NewJob) -> None:
    job = new_job(chats=320, messages=2500)
    first = job.run()
    assert differences(job.database, job.server.truth()) == {}
    assert first.requests <= math.ceil(1.05 * (320 + 2500) / 100) + 4
    published = job.database.stat()

    second = job.run()
    assert second.requests <= 5
    assert second.summary["published"] is False
    loaded = {name: stream["landed"] for name, stream in second.summary["streams"].items()}  # codespell:ignore landed
    assert loaded == {"numbers": 0, "messages": 0, "chats": 0}
    assert job.database.stat().st_ino == published.st_ino


# By day, source/test_paginate.py and source/test_lossless.py read chats without a time, and accounts without a feed.
@pytest.mark.parametrize(
    "knobs",
    [
        pytest.param(
            Knobs(before_inclusive=True, tie_order="random", shuffled_pages=True, short_pages=0.5),
            id="short pages without an order, and before includes its timestamp",
        ),
        pytest.param(Knobs(nulls="last", nulls_with_before=True), id="chats without a time come last", marks=nightly),
        pytest.param(
            Knobs(feed=False, before_inclusive=True, short_pages=0.3, nulls="first"),
            id="no feed, short pages, and chats without a time come first",
            marks=nightly,
        ),
        pytest.param(
            Knobs(
                created_at_on_messages=False,
                sender_on_messages=False,
                server_errors=0.04,
                cut_bodies=0.03,
                malformed_bodies=0.03,
                seed=3,
            ),
            id="no undocumented fields, and one answer in ten is faulty",
        ),
    ],
)
def test_nothing_is_missing_duplicated_or_stale(new_job: NewJob, knobs: Knobs) -> None:
    """In all cases, the times of the account have microseconds that the API does not show."""
    job = new_job(knobs, chats=230)
    account = job.server.account
    for number in range(3):
        account.add_chat("+14155550100", f"+1415555012{number}", datetime.now(UTC) - timedelta(days=number))
    job.run()
    assert differences(job.database, job.server.truth()) == {}

    chance = random.Random(1)
    account.add_messages([new_message(account, chance, datetime.now(UTC)) for _ in range(20)])
    outcome = job.run()
    assert differences(job.database, job.server.truth()) == {}
    assert outcome.requests <= (60 if not knobs.feed else 30)


def test_more_chats_of_one_millisecond_than_a_page_are_reported(new_job: NewJob) -> None:
    job = new_job(Knobs(before_inclusive=True), chats=0)
    account, at = job.server.account, datetime(2026, 5, 1, 12, tzinfo=UTC)
    older = [
        account.add_chat("+14155550100", "+14155550123", at, last_message_at=at - timedelta(hours=n)) for n in (1, 2)
    ]
    newer = [
        account.add_chat("+14155550100", "+14155550123", at, last_message_at=at + timedelta(hours=n)) for n in (1, 2)
    ]
    for _ in range(130):
        account.add_chat("+14155550100", "+14155550123", at, last_message_at=at)
    outcome = job.run(status=3)
    chats = read_rows(job.database)["chats"]
    assert {*older, *newer} <= chats.keys()
    assert len(chats) == 104
    spans = outcome.summary["streams"]["chats"]["tie_overflows"]
    assert spans[-1][1] == "2026-05-01T12:00:00.000+00:00"

    job.server.knobs.tie_order = "random"
    other = job.folder / "other.duckdb"
    job.run("--database", str(other), status=3)
    assert differences(other, job.server.truth()) == {}, "all are reachable where the order of equals changes"


def test_messages_sent_during_a_run_are_loaded(new_job: NewJob) -> None:
    chance = random.Random(2)

    def write(account: Account, _number: int) -> None:
        account.add_message(new_message(account, chance, datetime.now(UTC)))

    job = new_job(Knobs(on_request=write))
    job.run()
    job.run()
    job.server.knobs.on_request = None
    job.run()
    assert differences(job.database, job.server.truth()) == {}


def test_messages_visible_two_seconds_late_are_loaded(new_job: NewJob) -> None:
    chance = random.Random(3)
    hidden: deque[NewMessage] = deque()

    def write_late(account: Account, _number: int) -> None:
        now = datetime.now(UTC)
        while hidden and hidden[0].at <= now - timedelta(seconds=2):
            account.add_message(hidden.popleft())
        hidden.append(new_message(account, chance, now))
        account.add_message(new_message(account, chance, now + timedelta(milliseconds=1)))

    job = new_job(Knobs(on_request=write_late, feed=False))
    job.run()
    job.run()
    job.server.knobs.on_request = None
    job.server.account.add_messages(hidden)
    job.run()
    assert differences(job.database, job.server.truth()) == {}


def test_unreadable_rows_are_rejected_and_the_rest_is_loaded(new_job: NewJob) -> None:
    job = new_job()
    hostile = {row["id"] for row in job.server.truth().messages[:5]}

    def spoil(kind: str, row: dict[str, object]) -> object:
        if kind == "messages" and row["id"] in hostile:
            return {**row, "created_at": "yesterday"}
        return {**row, "mood": "fine"} if kind == "chats" else row

    job.server.knobs.transform_row = spoil
    outcome = job.run(status=3)
    assert outcome.summary["streams"]["messages"]["rejected"] == 5
    assert outcome.summary["streams"]["chats"]["new_fields"] == ["mood"]
    assert differences(job.database, job.server.truth())["messages"] == {"missing": 5, "surplus": 0, "stale": 0}
    import duckdb

    with duckdb.connect(str(job.database), read_only=True) as connection:
        rejected = connection.execute("SELECT stream, reason, row->>'id' FROM msgbubbles.rejected_rows").fetchall()
        extra = connection.execute("SELECT DISTINCT extra->>'mood' FROM msgbubbles.chats").fetchall()
    assert {row[2] for row in rejected} == hostile
    assert {row[:2] for row in rejected} == {("messages", "created_at is not a timestamp")}
    assert extra == [("fine",)]
