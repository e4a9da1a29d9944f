"""Tests of the notebooks on published files: no cell fails, and the figures match the rows."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from helpers import message_reference as reference
from helpers.job import CHATS, Job
from helpers.thread_reference import thread_activity
from helpers.turns_reference import thread_turns

PROJECT = CHATS.parents[1]
NOTEBOOKS = PROJECT / "notebooks"
UTC_ZONE = ZoneInfo("UTC")


def run_notebook(database: Path, **chosen: Any) -> tuple[str, Mapping[str, Any]]:
    """Run the notebook, and return its output as HTML and its variables. A failing cell raises."""
    from explore import app

    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # The notebook sets the same filter, but pytest resets filters after each test.
        warnings.filterwarnings("ignore", message="The inplace keyword", category=DeprecationWarning)
        patch.setenv("MSGBUBBLES_DATABASE", str(database))
        outputs, variables = app.run(defs=chosen)
    return "\n".join(getattr(output, "text", repr(output)) for output in outputs), variables


def rows(database: Path, query: str) -> list[dict[str, Any]]:
    with duckdb.connect(str(database), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        answer = connection.execute(query)
        return [dict(zip([c[0] for c in answer.description], values, strict=True)) for values in answer.fetchall()]


@pytest.fixture(scope="module")
def eventful(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the demo and add events.

    Members leave, a group is deleted, older messages have not been read, and the latest run is long after the newest
    message.
    """
    database = tmp_path_factory.mktemp("eventful") / "it's eventful.duckdb"
    database.write_bytes(demo.read_bytes())
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            """UPDATE marts.group_membership
               SET valid_to = valid_from + INTERVAL 9 DAY, is_current = false, end_evidence = 'operation'
               WHERE handle IN (SELECT handle FROM marts.group_membership WHERE evidence = 'message'
                                ORDER BY handle LIMIT 40)"""
        )
        connection.execute(
            """UPDATE msgbubbles.chats SET deleted_at = created_at + INTERVAL 20 DAY
               WHERE id = (SELECT chats.id FROM msgbubbles.chats JOIN marts.group_membership ON chat_id = chats.id
                           GROUP BY ALL HAVING count(*) >= 3 ORDER BY any_value(created_at) LIMIT 1)"""
        )
        connection.execute(
            """UPDATE msgbubbles.stream_coverage SET complete_since = complete_to - INTERVAL 60 DAY
               WHERE stream = 'messages'"""
        )
        connection.execute("UPDATE msgbubbles.sync_runs SET started_at = started_at + INTERVAL 40 HOUR")
        connection.execute(
            """DROP VIEW marts.sla_daily;
               CREATE TABLE marts.sla_daily AS
               SELECT max(from_handle) AS from_handle, max(day) AS day, 'first_response' AS metric,
                   3 AS targets_met, 1 AS targets_breached, 0 AS targets_running
               FROM marts.number_activity_daily"""
        )
    return database


def all_days(database: Path) -> dict[str, date]:
    """Return the first and the last day with messages, for the notebook to show."""
    [days] = rows(database, "SELECT min(day) AS first, max(day) AS last FROM marts.thread_activity_daily")
    return days


@pytest.fixture(scope="module")
def shown(eventful: Path) -> Mapping[str, Any]:
    return run_notebook(eventful, **all_days(eventful))[1]


@pytest.fixture(scope="module")
def world(eventful: Path) -> reference.World:
    return {
        table: rows(eventful, f"FROM msgbubbles.{table}")
        for table in ("chats", "messages", "numbers", "stream_coverage", "sync_runs")
    } | {"webhook_events": []}


@pytest.fixture(scope="module")
def messages(world: reference.World) -> list[reference.Message]:
    """Return the messages of all chats, with the messages that they answer, computed in Python."""
    return [message for thread in reference.threads(world, UTC_ZONE).values() for message in thread]


def counts(frame: pd.DataFrame, *key: str, value: str) -> dict[Any, int]:
    return {tuple(row[:-1]): row[-1] for row in frame[[*key, value]].itertuples(index=False, name=None)}


def test_documented_export_command_runs_every_cell(eventful: Path, tmp_path: Path) -> None:
    page = (PROJECT / "docs" / "tables.md").read_text()
    lines = re.findall(r"^\.venv/bin/(marimo export html .*)$", page, flags=re.MULTILINE)
    exported = tmp_path / "page.html"
    replaced = {"demo.duckdb": str(eventful), "conversations.html": str(exported)}
    command = [replaced.get(word, word) for word in shlex.split(lines[0])]
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=PROJECT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Messages by hour of the week" in exported.read_text()


def side_of(message: reference.Message) -> str:
    return {"inbound": "them", "outbound": "us"}.get(message.row["direction"], "unknown")


def test_volume_chart_counts_every_message(shown: Mapping[str, Any], messages: list[reference.Message]) -> None:
    assert shown["grain"] == "day"
    volume = shown["volume"].assign(day=shown["volume"]["began"].dt.date)
    assert counts(volume, "day", "side", value="messages") == Counter((m.day, side_of(m)) for m in messages)


def test_selected_number_limits_every_figure(
    eventful: Path, world: reference.World, messages: list[reference.Message]
) -> None:
    number = world["numbers"][0]["handle"]
    _, shown = run_notebook(eventful, number=number, **all_days(eventful))
    selected = [m for m in messages if m.chat["from_handle"] == number]
    assert 0 < len(selected) < len(messages)
    assert shown["volume"]["messages"].sum() == len(selected)
    assert shown["hours"]["messages"].sum() == len(selected)
    assert shown["replies"]["turns"].sum() == sum(turn["from_handle"] == number for turn in direct_turns(world))
    waiting = [row for row in thread_activity(world, UTC_ZONE) if row["waiting_on"] == "us"]
    ours = {row["chat_id"]: row["is_group"] for row in waiting if row["from_handle"] == number}
    assert set(shown["waiting"]["chat_id"]) == ours.keys()
    assert shown["waiting_times"]["threads"].sum() == sum(not is_group for is_group in ours.values())
    assert 0 < len(ours) < len(waiting)


def test_chosen_days_limit_figures_and_are_compared_with_those_before(
    eventful: Path, messages: list[reference.Message]
) -> None:
    last = max(m.day for m in messages) - timedelta(days=3)
    first = last - timedelta(days=9)
    chat = messages[0].chat["id"]
    _, shown = run_notebook(eventful, first=first, last=last, thread=chat)
    now, complete, before = shown["figures"].itertuples(index=False)
    for figures, begin, end in (
        (now, first, last),
        (complete, first, last),
        (before, first - timedelta(days=10), first - timedelta(days=1)),
    ):
        chosen = [m for m in messages if begin <= m.day <= end and m.chat["from_handle"] is not None]
        assert figures.messages_inbound == sum(m.inbound for m in chosen)
        assert figures.messages_outbound == sum(m.row["direction"] == "outbound" for m in chosen)
        direct = [m for m in chosen if not m.chat["is_group"]]
        # Every turn of ours but the first of a chat answers one of theirs.
        assert 0 < figures.answered <= figures.asked <= sum(m.inbound for m in direct)
    assert shown["volume"]["messages"].sum() == sum(first <= m.day <= last for m in messages)
    assert shown["hours"]["messages"].sum() == shown["volume"]["messages"].sum()
    assert set(shown["thread_messages"]["Text"]) == {m.row["text"] for m in messages if m.chat["id"] == chat}


def test_targets_are_counted_by_their_day(eventful: Path, shown: Mapping[str, Any]) -> None:
    [day] = rows(eventful, "SELECT max(day) AS day FROM marts.sla_daily")
    targets = shown["targets"].assign(day=shown["targets"]["began"].dt.date)
    assert counts(targets, "day", "metric", "state", value="targets") == {
        (day["day"], "first_response", "breached"): 1,
        (day["day"], "first_response", "met"): 3,
    }


def test_last_failure_is_shown_with_its_reason(tmp_path: Path) -> None:
    from explore import find_failure

    log = tmp_path / ".msgbubbles" / "warehouse" / "runs.jsonl"
    log.parent.mkdir(parents=True)
    assert find_failure(tmp_path / "warehouse.duckdb") is None
    lines = [
        {"started_at": f"2026-11-25T22:0{minute}:00.000+00:00", "exit_status": status, "error": error}
        for minute, status, error in ((0, 0, None), (5, 1, "no host api.example"))
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines[:1]))
    assert find_failure(tmp_path / "warehouse.duckdb") is None
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert find_failure(tmp_path / "warehouse.duckdb") == (
        "The last run, 2026-11-25 22:05 UTC, did not complete: no host api.example"
    )


BUCKETS = {60: "< 1 min", 300: "1–5 min", 900: "5–15 min", 3600: "15–60 min", 14400: "1–4 h", 86400: "4–24 h"}


def direct_turns(world: reference.World) -> list[reference.Row]:
    """Return the turns of direct chats, computed in Python."""
    return [turn for turn in thread_turns(world, UTC_ZONE) if turn["is_group"] is False]


def test_times_to_answers_match_the_turns(shown: Mapping[str, Any], world: reference.World) -> None:
    turns = direct_turns(world)

    def bucket(seconds: float | None) -> str:
        if seconds is None:
            return "no answer"
        late = "1–7 days" if seconds < 604800 else "> 7 days"
        return next((name for limit, name in BUCKETS.items() if seconds < limit), late)

    answers_by = {"us": "them", "them": "us"}
    expected = Counter((answers_by[turn["side"]], bucket(turn["reply_seconds"])) for turn in turns)
    assert len(expected) == 18
    assert counts(shown["replies"], "side", "took", value="turns") == expected
    for side, shares in shown["replies"].groupby("side")["share"]:
        assert shares.sum() == pytest.approx(1), side
    asked = [turn for turn in turns if turn["side"] == "them" and turn["from_handle"] is not None]
    assert shown["answers"]["asked"].sum() == len(asked)
    for row in shown["answers"].itertuples():
        waits = [
            timedelta(seconds=turn["reply_seconds"])
            for turn in asked
            if turn["from_handle"] == row.from_handle and turn["reply_seconds"] is not None
        ]
        assert row.answered == len(waits)
        assert row.median_seconds == pytest.approx(reference.percentile(Fraction(1, 2), waits), abs=0.001)
        assert row.p90_seconds == pytest.approx(reference.percentile(Fraction(9, 10), waits), abs=0.001)


def test_heat_map_has_every_hour_of_the_week(shown: Mapping[str, Any], messages: list[reference.Message]) -> None:
    hours = shown["hours"]
    names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
    for value, counted in (("messages", messages), ("inbound", [m for m in messages if m.inbound])):
        expected = Counter((names[m.local.weekday()], m.local.hour) for m in counted)
        assert counts(hours, "day", "hour", value=value) == {
            (day, hour): expected[day, hour] for day in names for hour in range(24)
        }


AGES = {3600: "< 1 h", 14400: "1–4 h", 86400: "4–24 h", 259200: "1–3 days", 604800: "3–7 days", 2419200: "1–4 weeks"}


def test_waiting_chats_match_the_messages(shown: Mapping[str, Any], world: reference.World) -> None:
    waiting = {
        row["chat_id"]: (row["is_group"], row["unanswered_since"])
        for row in thread_activity(world, UTC_ZONE)
        if row["waiting_on"] == "us"
    }
    assert 50 < len(waiting) < 200
    as_of = max(row["started_at"] for row in world["sync_runs"])
    assert as_of > max(row["cursor_at"] for row in world["messages"])

    def age(since: datetime) -> str:
        seconds = (as_of - since).total_seconds()
        return next((name for limit, name in AGES.items() if seconds < limit), "> 4 weeks")

    def place(chat: str) -> tuple[Any, ...]:
        is_group, since = waiting[chat]
        is_old = as_of - since >= timedelta(days=7)
        return is_group, is_old, as_of - since if is_old else since - as_of, chat

    assert list(shown["waiting"]["chat_id"]) == sorted(waiting, key=place)
    assert counts(shown["waiting_times"], "waited", value="threads") == Counter(
        (age(since),) for is_group, since in waiting.values() if not is_group
    )


def test_daily_members_match_the_rows(eventful: Path, shown: Mapping[str, Any]) -> None:
    membership = rows(
        eventful,
        """SELECT chat_id, handle, evidence, valid_from, valid_to, deleted_at
           FROM marts.group_membership JOIN msgbubbles.chats ON id = chat_id""",
    )
    assert sum(row["valid_to"] is not None for row in membership) >= 40
    assert sum(row["deleted_at"] is not None for row in membership) >= 3
    last = shown["members"]["began"].max().date()
    day = min(row["valid_from"] for row in membership).date()
    expected: dict[tuple[date, str], int] = {}
    while day <= last:
        end = datetime.combine(day + timedelta(days=1), datetime.min.time(), UTC)
        members_then = Counter(
            row["evidence"]
            for row in membership
            if row["valid_from"] < end and all(at is None or at >= end for at in (row["valid_to"], row["deleted_at"]))
        )
        expected |= {(day, kind): members_then[kind] for kind in {row["evidence"] for row in membership}}
        day += timedelta(days=1)
    members = shown["members"].assign(day=shown["members"]["began"].dt.date)
    assert counts(members, "day", "evidence", value="members") == expected
    chosen = [row for row in membership if row["chat_id"] == shown["group"]]
    assert len(chosen) == max(Counter(row["chat_id"] for row in membership).values())
    assert sorted(shown["membership"]["handle"]) == sorted(row["handle"] for row in chosen)


def test_unread_intervals_are_shown(shown: Mapping[str, Any], world: reference.World) -> None:
    since = reference.coverage(world)[0]
    as_of = max(row["started_at"] for row in world["sync_runs"])
    began = min(row["created_at"] for row in world["chats"])
    assert began < since
    intervals = [tuple(row) for row in shown["coverage"].itertuples(index=False, name=None)]
    assert intervals == [
        ("chats", "read", began, as_of),
        ("messages", "not read", began, since),
        ("messages", "read", since, as_of),
    ]
    standing = shown["standing"].iloc[0]
    assert standing["as_of"] == as_of
    assert (standing["messages"], standing["threads"]) == (len(world["messages"]), len(world["chats"]) - 1)
    assert standing["newest_message_at"] == max(row["cursor_at"] for row in world["messages"])


def test_long_history_is_grouped_by_month(eventful: Path, tmp_path: Path) -> None:
    database = tmp_path / "long.duckdb"
    database.write_bytes(eventful.read_bytes())
    before = rows(database, "SELECT sum(messages_total) AS n FROM marts.thread_activity_daily")[0]["n"]
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            """INSERT INTO marts.thread_activity_daily BY NAME
               SELECT * REPLACE (DATE '2021-02-14' AS day, 8 AS messages_total, 3 AS messages_inbound,
                                 4 AS messages_outbound)
               FROM marts.thread_activity_daily LIMIT 1"""
        )
        connection.execute(
            """UPDATE marts.group_membership SET valid_from = TIMESTAMPTZ '2024-06-11 11:00:00+00'
               WHERE rowid = (SELECT min(rowid) FROM marts.group_membership)"""
        )
        connection.execute("UPDATE msgbubbles.sync_runs SET started_at = started_at - INTERVAL 9 DAY")
        connection.execute("UPDATE msgbubbles.stream_coverage SET complete_to = complete_to - INTERVAL 3 DAY")
    as_of = rows(database, "SELECT max(complete_to) AS at FROM msgbubbles.stream_coverage WHERE stream = 'messages'")
    _, shown = run_notebook(database, **all_days(database))
    last = shown["coverage"].iloc[-1]
    assert (last["state"], last["from"]) == ("not read", as_of[0]["at"])
    assert (shown["grain"], shown["membership_grain"]) == ("month", "week")
    assert shown["volume"]["messages"].sum() == before + 8
    oldest = shown["volume"].iloc[:3]
    assert set(oldest["began"]) == {pd.Timestamp("2021-02-01", tz="UTC")}
    assert counts(oldest, "side", value="messages") == {("them",): 3, ("us",): 4, ("unknown",): 1}
    assert shown["members"]["began"].min() == pd.Timestamp("2024-06-10", tz="UTC")
    assert shown["members"].groupby("began")["members"].sum().iloc[0] == 1


def test_empty_account_shows_messages_instead_of_charts(new_job: Callable[..., Job]) -> None:
    job = new_job(chats=0)
    job.run(transform=True)
    page, shown = run_notebook(job.database)
    for frame in ("volume", "replies", "hours", "waiting", "members", "membership", "busiest_contacts"):
        assert shown[frame].empty, frame
    for message in ("No messages yet", "No replies yet", "No direct chat is waiting on us", "No groups yet"):
        assert message in page
    assert len(shown["runs"]) == 1
    run_in_jupyter(job.database)


def test_latest_published_file_is_shown_while_an_older_one_is_open(eventful: Path, tmp_path: Path) -> None:
    from explore import connect

    database = tmp_path / "replaced.duckdb"
    database.write_bytes(eventful.read_bytes())
    count = "SELECT count(*) FROM msgbubbles.numbers"
    with connect(database) as before:
        newer = tmp_path / "newer.duckdb"
        newer.write_bytes(eventful.read_bytes())
        with duckdb.connect(str(newer)) as connection:
            connection.execute("DELETE FROM msgbubbles.numbers")
        newer.replace(database)
        with connect(database) as after:
            assert after.execute(count).fetchall() == [(0,)]
            assert before.execute(count).fetchall() == [(3,)]
            with pytest.raises(duckdb.Error, match="read-only"):
                after.execute("CREATE TABLE mine AS SELECT 1")


def test_default_file_without_marts_is_skipped(eventful: Path, tmp_path: Path) -> None:
    import explore

    bare = tmp_path / "bare.duckdb"
    with duckdb.connect(str(bare)) as connection:
        connection.execute("CREATE TABLE loaded AS SELECT 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MSGBUBBLES_DATABASE", raising=False)
        patch.setattr("marimo.cli_args", dict)
        for defaults, shown in (((bare, eventful), eventful), ((eventful, bare), eventful), ((bare, bare), bare)):
            patch.setattr(explore, "DEFAULTS", defaults)
            assert explore.find_database() == shown


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.duckdb", "does not exist"),
        ("text.duckdb", "cannot be opened as a DuckDB file"),
        ("bare.duckdb", "has no marts"),
        ("all.duckdb", "contains several accounts, but this notebook shows one"),
        (".msgbubbles/work/work.duckdb", "Open the published file instead"),
    ],
)
def test_unusable_file_is_explained(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.duckdb").write_text("no database" * 5000)
    with duckdb.connect(str(tmp_path / "bare.duckdb")) as connection:
        connection.execute("CREATE TABLE nothing_else AS SELECT 1")
    with duckdb.connect(str(tmp_path / "all.duckdb")) as connection:
        connection.execute("CREATE SCHEMA msgbubbles")
        connection.execute("CREATE TABLE msgbubbles.accounts AS SELECT 'north' AS account")
    page, shown = run_notebook(tmp_path / name)
    assert message in page
    assert (
        "python pipelines/chats.py --database" in page or "Open the published file" in page or "Open its file" in page
    )
    assert "volume" not in shown


def test_what_a_file_of_an_earlier_release_lacks_is_reported_once(eventful: Path, tmp_path: Path) -> None:
    database = tmp_path / "earlier.duckdb"
    database.write_bytes(eventful.read_bytes())
    with duckdb.connect(str(database)) as connection:
        connection.execute(
            """DROP TABLE marts.sla_daily;
               DROP VIEW marts.contact;
               DROP VIEW marts.calendar;
               CREATE TABLE marts.turns_before AS SELECT * EXCLUDE (reply_seconds) FROM marts.thread_turns;
               DROP TABLE marts.thread_turns;
               ALTER TABLE marts.turns_before RENAME TO thread_turns"""
        )
    page, shown = run_notebook(database)
    for lacks in (
        "marts.sla_daily",
        "marts.contact",
        "marts.calendar",
        "the column reply_seconds of marts.thread_turns",
    ):
        assert page.count(f"lacks {lacks}. Build it with") == 1, lacks
    assert not {"figures", "answers", "replies", "met", "targets", "busiest_contacts"} & shown.keys()
    assert shown.keys() > {"volume", "delivery", "hours", "members", "coverage", "runs"}


def run_in_jupyter(database: Path, *cells: str) -> list[str]:
    """Run the pandas notebook with more cells, and return what these print. A failing cell raises."""
    notebook = nbformat.read(NOTEBOOKS / "pandas.ipynb", as_version=4)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)
    added = [nbformat.v4.new_code_cell(cell) for cell in cells]
    notebook.cells += added
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSGBUBBLES_DATABASE", str(database))
        NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    return ["".join(output.text for output in cell.outputs) for cell in added]


def test_pandas_notebook_skips_only_cells_whose_tables_are_missing(demo: Path, tmp_path: Path) -> None:
    database = tmp_path / "company.duckdb"
    database.write_bytes(demo.read_bytes())
    with duckdb.connect(str(database)) as connection:
        connection.execute("DROP VIEW marts.thread_activity; DROP TABLE staging.int_thread_messages")
    (names,) = run_in_jupyter(database, "print({'threads', 'weekly', 'replies', 'members'} & {*globals()})")
    assert names == "{'weekly'}\n"


def test_pandas_notebook_shows_the_same_figures(eventful: Path, messages: list[reference.Message]) -> None:
    weeks, quantiles = run_in_jupyter(
        eventful,
        "print(weekly.sum(axis=1).to_json(date_format='iso'))",
        "print(replies.groupby('side')['reply_seconds'].median().to_json())",
    )
    assert {datetime.fromisoformat(day).date(): count for day, count in json.loads(weeks).items()} == Counter(
        m.day - timedelta(days=m.day.weekday()) for m in messages
    )
    waits = [m.waited for m in messages if m.side == "us" and m.waited is not None]
    assert json.loads(quantiles)["us"] == pytest.approx(reference.percentile(Fraction(1, 2), waits), abs=0.001)
