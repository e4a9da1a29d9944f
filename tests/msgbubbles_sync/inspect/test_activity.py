"""The page of `chats.py report`, from rows whose figures are known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import duckdb
import pytest

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.inspect.activity import format_duration, read_activity, render_activity

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
SALES, SUPPORT = "+14155550101", "+14155550100"
TABLES = f"""
CREATE SCHEMA msgbubbles;
CREATE SCHEMA marts;
CREATE TABLE msgbubbles.sync_runs AS SELECT TIMESTAMPTZ '2026-11-25 12:00:00Z' AS started_at, 'complete' AS outcome;
CREATE TABLE msgbubbles.stream_coverage AS
    SELECT 'messages' AS stream, TIMESTAMPTZ '2026-11-25 11:00:00Z' AS complete_to;
CREATE TABLE msgbubbles.numbers AS FROM (VALUES ('{SUPPORT}', 'Support'), ('{SALES}', NULL)) AS n (handle, label);
CREATE TABLE marts.calendar AS
    SELECT unnest(range(DATE '2026-11-20', DATE '2026-11-26', INTERVAL 1 DAY))::DATE AS day,
        day < '2026-11-25' AS is_complete;
CREATE TABLE marts.number_activity_daily AS FROM (VALUES
    ('{SUPPORT}', DATE '2026-11-25', 5, 4),
    ('{SALES}', DATE '2026-11-24', 2, 3),
    ('{SUPPORT}', DATE '2026-11-23', 10, 1)
) AS n (from_handle, day, messages_inbound, messages_outbound);
CREATE TABLE marts.thread_turns AS
    SELECT *, epoch(answered_at - began_at) AS reply_seconds, began_at::DATE AS day
    FROM (VALUES
        ('them', false, '{SUPPORT}', TIMESTAMPTZ '2026-11-25 09:00:00Z', TIMESTAMPTZ '2026-11-25 09:01:00Z'),
        ('them', false, '{SUPPORT}', TIMESTAMPTZ '2026-11-24 09:00:00Z', TIMESTAMPTZ '2026-11-24 11:00:00Z'),
        ('them', false, '{SUPPORT}', TIMESTAMPTZ '2026-11-25 11:30:00Z', NULL), -- may still be answered within an hour
        ('them', false, '{SALES}', TIMESTAMPTZ '2026-11-24 09:00:00Z', NULL),
        ('them', false, '{SALES}', TIMESTAMPTZ '2026-11-23 09:00:00Z', TIMESTAMPTZ '2026-11-23 09:10:00Z'),
        ('them', true, '{SALES}', TIMESTAMPTZ '2026-11-24 09:00:00Z', NULL),
        ('us', false, '{SALES}', TIMESTAMPTZ '2026-11-24 10:00:00Z', NULL)
    ) AS t (side, is_group, from_handle, began_at, answered_at);
CREATE TABLE marts.thread_activity AS FROM (VALUES
    ('one', '<b>Ann</b>', '+15550001', '{SUPPORT}', false, 'us', TIMESTAMPTZ '2026-11-25 11:30:00Z', 3),
    ('two', NULL, '+15550002', '{SALES}', false, 'us', TIMESTAMPTZ '2026-11-24 09:00:00Z', 1),
    ('three', 'Club', NULL, '{SALES}', true, 'us', TIMESTAMPTZ '2026-11-20 09:00:00Z', 9),
    ('four', NULL, '+15550004', '{SALES}', false, 'them', NULL, 9),
    ('five', NULL, '+15550005', '{SUPPORT}', false, 'us', TIMESTAMPTZ '2026-11-24 12:00:00Z', 1),
    ('six', NULL, '+15550006', '{SUPPORT}', false, 'us', TIMESTAMPTZ '2026-01-24 12:00:00Z', 1),
    ('seven', NULL, '+15550007', '{SUPPORT}', false, 'us', TIMESTAMPTZ '2026-11-18 12:00:00Z', 1)
) AS t (chat_id, title, remote_handle, from_handle, is_group, waiting_on, unanswered_since, messages_total);
ALTER TABLE marts.thread_activity ADD COLUMN main_channel VARCHAR;
ALTER TABLE marts.thread_activity ADD COLUMN latest_message_at TIMESTAMPTZ;
ALTER TABLE marts.thread_activity ADD COLUMN began_on DATE;
UPDATE marts.thread_activity SET began_on = DATE '2026-11-25' WHERE chat_id = 'one';
CREATE TABLE marts.sla_events AS FROM (VALUES
    ('two', 'breached', NULL, TIMESTAMPTZ '2026-11-24 10:00:00Z'),
    ('one', 'running', NULL, TIMESTAMPTZ '2026-11-25 12:30:00Z'),
    ('one', 'met', TIMESTAMPTZ '2026-11-24 09:00:00Z', TIMESTAMPTZ '2026-11-24 10:00:00Z')
) AS s (chat_id, state, answered_at, due_at);
CREATE TABLE marts.sla_daily AS FROM (VALUES
    ('{SALES}', DATE '2026-11-24', 'first_response', 0, 1, 0),
    ('{SUPPORT}', DATE '2026-11-25', 'next_response', 0, 0, 1),
    ('{SUPPORT}', DATE '2026-11-24', 'first_response', 3, 0, 0),
    ('{SUPPORT}', DATE '2026-11-23', 'first_response', 1, 0, 0)
) AS s (from_handle, day, metric, targets_met, targets_breached, targets_running);
CREATE TABLE marts.backlog_daily AS FROM (VALUES
    ('{SALES}', DATE '2026-11-24', 2, 1), ('{SUPPORT}', DATE '2026-11-24', 1, 1), ('{SALES}', DATE '2026-11-23', 9, 9)
) AS b (from_handle, day, waiting_on_us, waiting_on_us_1_day);
CREATE TABLE marts.delivery_daily AS FROM (VALUES
    ('{SALES}', DATE '2026-11-24', 'sms', 'delivered', NULL, 2),
    ('{SUPPORT}', DATE '2026-11-24', 'sms', 'read', NULL, 1),
    ('{SUPPORT}', DATE '2026-11-25', 'sms', 'failed', 'unreachable', 1),
    ('{SUPPORT}', DATE '2026-11-23', 'sms', 'failed', 'blocked', 9)
) AS d (from_handle, day, channel, status, error_code, messages_total);
"""


@pytest.fixture
def warehouse() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(TABLES)
        yield connection


def test_figures_count_unanswered_turns_once_their_time_has_passed(warehouse: duckdb.DuckDBPyConnection) -> None:
    activity: Any = read_activity(warehouse, "UTC", 2, None)
    assert (activity.as_of, activity.first, activity.last) == (NOON, date(2026, 11, 24), date(2026, 11, 25))
    now, complete, before = activity.rows["figures"]
    assert (now.messages_inbound, now.messages_outbound, now.threads_new) == (7, 7, 1)
    assert (now.asked, now.answered, now.within_hour, now.within_5_minutes) == (4, 2, 1 / 3, 1 / 4)
    # The day of the run is not over, so the day before it is compared with the one before that.
    assert (complete.messages_inbound, complete.messages_outbound, complete.asked) == (2, 3, 2)
    assert (before.messages_inbound, before.asked, before.within_hour, before.within_5_minutes) == (10, 1, 1, 0)
    assert [(row.label, row.asked, row.within_hour) for row in activity.rows["responses"]] == [
        ("Support", 3, 1 / 2),
        (None, 1, 0),
    ]
    assert [row.messages_inbound for row in activity.rows["volume"]] == [2, 5]
    assert sorted(activity.rows["hours"]) == [(2, 9, 2), (3, 9, 1), (3, 11, 1)]
    assert [(row.who, row.target, row.age) for row in activity.rows["waiting"]] == [
        ("<b>Ann</b>", "running", "< 1 h"),
        ("+15550002", "breached", "1–3 days"),
        ("+15550005", None, "1–3 days"),
        ("+15550007", None, "1–4 weeks"),
        ("+15550006", None, "> 4 weeks"),
        ("Club", None, "3–7 days"),
    ]
    assert activity.rows["targets"] == [("first_response", 3, 1, 0, 3 / 4), ("next_response", 0, 0, 1, None)]
    assert activity.rows["backlog"] == [(date(2026, 11, 24), 3, 2)]
    assert activity.rows["delivery"] == [("sms", 4, 1 / 4, 3 / 4, 1 / 4, "unreachable")]


def test_number_and_time_zone_limit_every_figure(warehouse: duckdb.DuckDBPyConnection) -> None:
    activity: Any = read_activity(warehouse, "Asia/Tokyo", 2, SALES)
    assert activity.rows["figures"][0].messages_inbound == 2
    assert activity.rows["figures"][0].asked == 1
    assert activity.rows["hours"] == [(2, 18, 1)]
    assert {row.from_handle for row in activity.rows["waiting"]} == {SALES}
    assert activity.last == date(2026, 11, 25)


def test_unknown_number_and_missing_marts_are_refused(warehouse: duckdb.DuckDBPyConnection) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--number +1: the account has {SUPPORT}, {SALES}")):
        read_activity(warehouse, "UTC", 2, "+1")
    warehouse.execute("DROP SCHEMA marts CASCADE")
    with pytest.raises(UsageError, match="no marts"):
        read_activity(warehouse, "UTC", 2, None)


@pytest.mark.parametrize(
    ("mart", "missing"),
    [
        ("thread_turns", ["figures", "responses", "hours"]),
        ("thread_activity", ["figures", "waiting"]),
        ("sla_events", ["waiting"]),
        ("sla_daily", ["targets"]),
        ("backlog_daily", ["backlog"]),
        ("delivery_daily", ["delivery"]),
        ("calendar", ["figures"]),
        ("number_activity_daily", ["figures", "volume"]),
    ],
)
@pytest.mark.parametrize("change", ["DROP TABLE marts.{}", "ALTER TABLE marts.{} RENAME from_handle TO former"])
def test_missing_mart_leaves_the_rest_of_the_page(
    warehouse: duckdb.DuckDBPyConnection, mart: str, missing: list[str], change: str
) -> None:
    if "RENAME" in change and mart in ("sla_events", "calendar"):
        change = change.replace("from_handle", "state" if mart == "sla_events" else "day")
    warehouse.execute(change.format(mart))
    activity: Any = read_activity(warehouse, "UTC", 2, None)
    column = re.search(r"RENAME (\w+)", change)
    assert list(activity.missing) == missing
    for lacks in activity.missing.values():
        assert f"marts.{mart}" in lacks
        assert column is None or lacks.startswith(f"the column {column[1]} of ")
    page = render_activity(activity, "MsgBubbles", NOON, None)
    assert page.count("Not available") == len(missing)
    assert page.count("</section>") == 7


def test_page_escapes_titles_and_needs_no_network(warehouse: duckdb.DuckDBPyConnection) -> None:
    page = render_activity(read_activity(warehouse, "UTC", 2, None), "MsgBubbles", NOON, "2026-11-25 11:00 <failed>")
    assert "&lt;b&gt;Ann&lt;/b&gt;" in page
    assert "&lt;failed&gt;" in page
    assert not re.search(r"<script|https?:|<link|<b>|@import|url\(", page)
    assert page.count("<rect") == 6


def test_page_of_an_empty_account_says_so(warehouse: duckdb.DuckDBPyConnection) -> None:
    tables = (
        "number_activity_daily",
        "calendar",
        "thread_turns",
        "thread_activity",
        "sla_events",
        "sla_daily",
        "backlog_daily",
        "delivery_daily",
    )
    for table in tables:
        warehouse.execute(f"DELETE FROM marts.{table}")
    page = render_activity(read_activity(warehouse, "UTC", 30, None), "MsgBubbles", NOON, None)
    assert "No chat is waiting on us." in page
    assert "did not complete" not in page


def test_durations_have_the_largest_unit_of_which_there_are_two() -> None:
    assert [format_duration(seconds) for seconds in (0, 119, 120, 7199, 7200, 172800, None)] == [
        "0 s", "119 s", "2 min", "120 min", "2 hours", "2 days", "–",
    ]  # fmt: skip
