from __future__ import annotations

import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import duckdb
import pytest
from msgspec import structs

from helpers.canary import find_words
from helpers.context import build_context, serve_to_this_process
from msgbubbles.api_time import Clock
from msgbubbles.policy import Policy
from msgbubbles_sync import job
from msgbubbles_sync.context import Limits
from msgbubbles_sync.policy.applied import CONFIRMED, read_ages_from, save_confirmed_at
from msgbubbles_sync.privacy.retention import DONE, expire
from msgbubbles_sync.settings import load_settings
from msgbubbles_sync.workspace import Workspace

TABLES = {
    "chats": "id VARCHAR, last_message_at TIMESTAMPTZ",
    "messages": "id VARCHAR, conversation_id VARCHAR, text VARCHAR, cursor_at TIMESTAMPTZ",
    "attachments": "id VARCHAR, message_id VARCHAR",
    "chat_titles": "chat_id VARCHAR, title VARCHAR, _fetched_at TIMESTAMPTZ",
    "webhook_events": "event_id VARCHAR, chat_id VARCHAR, payload JSON, message_at TIMESTAMPTZ, "
    "occurred_at TIMESTAMPTZ",
    "rejected_rows": "row_hash VARCHAR, row VARCHAR, _fetched_at TIMESTAMPTZ",
}


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Create chats of 5 and 50 days ago, with texts named after the days, and one without a time."""
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    now = datetime.now(UTC)
    with duckdb.connect(str(workspace.work)) as connection:
        connection.execute("CREATE SCHEMA msgbubbles")
        for table, columns in TABLES.items():
            connection.execute(f"CREATE TABLE msgbubbles.{table} ({columns})")
        for days in (5, 50):
            at, chat = now - timedelta(days), f"c{days}"
            connection.execute("INSERT INTO msgbubbles.chats VALUES (?, ?)", [chat, at])
            connection.execute(
                "INSERT INTO msgbubbles.messages VALUES (?, ?, ?, ?)", [f"m{days}", chat, f"canary {days}", at]
            )
            connection.execute("INSERT INTO msgbubbles.attachments VALUES (?, ?)", [f"a{days}", f"m{days}"])
            connection.execute("INSERT INTO msgbubbles.chat_titles VALUES (?, 'title', ?)", [chat, at])
            connection.execute(
                "INSERT INTO msgbubbles.webhook_events VALUES (?, ?, ?, NULL, ?)",
                [f"e{days}", chat, f'"canary {days}"', at],
            )
            rejected = [f"r{days}", f"canary {days}", at]
            connection.execute("INSERT INTO msgbubbles.rejected_rows VALUES (?, ?, ?)", rejected)
        connection.execute("INSERT INTO msgbubbles.chats VALUES ('timeless', NULL)")
        # What is left of a table whose key somebody has dropped.
        connection.execute("CREATE TABLE msgbubbles.messages_replaced_2 AS SELECT text FROM msgbubbles.messages")
    (tmp_path / "company.duckdb").write_bytes(workspace.work.read_bytes())
    answered(workspace, ahead=timedelta(0))
    return workspace


def answered(workspace: Workspace, ahead: timedelta) -> None:
    """Record a run in which the API answered, by whose clock it is this much later than by ours."""
    clock = Clock()
    clock.note_date(datetime.now(UTC) + ahead, datetime.now(UTC), is_success=True)
    save_confirmed_at(workspace, Policy(text_days=10), clock)


def expired(workspace: Workspace, **days: int) -> dict[str, int]:
    settings = replace(load_settings(), policy=Policy(**days))  # type: ignore[arg-type]
    return dict(expire(build_context(workspace, settings)))


def ids(workspace: Workspace) -> dict[str, int]:
    with duckdb.connect(str(workspace.work), read_only=True) as connection:
        count = "SELECT count(*) FROM msgbubbles."
        return {table: (connection.execute(count + table).fetchone() or (0,))[0] for table in TABLES}


def test_policy_without_days_changes_nothing(workspace: Workspace) -> None:
    before = workspace.work.read_bytes()
    assert expired(workspace) == {}
    assert workspace.work.read_bytes() == before


@pytest.mark.parametrize("hours", [25, -1000])
def test_old_texts_are_dropped_each_run_and_their_bytes_daily(workspace: Workspace, hours: int) -> None:
    assert expired(workspace, text_days=10) == {"texts": 1}
    assert find_words(workspace.folder, ["canary 5", "canary 50"]).keys() == {"canary 5"}
    assert workspace.is_pending("publish")
    assert ids(workspace) == {
        "chats": 3,
        "messages": 2,
        "attachments": 2,
        "chat_titles": 2,
        "webhook_events": 2,
        "rejected_rows": 1,
    }
    assert expired(workspace, text_days=4) == {"texts": 1}
    assert workspace.is_pending("compact")
    long_ago = time.time() - hours * 3600  # or before the clock was set back
    os.utime(workspace.folder / DONE, (long_ago, long_ago))
    assert expired(workspace, text_days=4) == {}
    assert not workspace.is_pending("compact")
    assert find_words(workspace.folder, ["canary"]) == {}


def test_wrong_clock_removes_nothing(workspace: Workspace) -> None:
    answered(workspace, ahead=-timedelta(45))  # ours is ahead
    assert expired(workspace, thread_days=10, text_days=10) == {}
    (workspace.folder / CONFIRMED).unlink()
    assert expired(workspace, thread_days=10, text_days=10) == {}, "the API has not answered yet"
    answered(workspace, ahead=timedelta(300))  # the API's is ahead
    assert expired(workspace, thread_days=100, text_days=10) == {"texts": 1}


@pytest.mark.parametrize("is_refused", [False, True])
def test_ages_count_from_a_run_in_which_the_api_answers(tmp_path: Path, is_refused: bool) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    began = datetime.now(UTC)
    with serve_to_this_process(chats=2, messages=5):
        settings = replace(load_settings(), policy=Policy(text_days=30))
        if is_refused:
            settings = replace(settings, api_key="revoked")
        job.run(build_context(workspace, settings), Limits(with_transform=False))
    assert began - timedelta(seconds=2) < read_ages_from(workspace) <= datetime.now(UTC)


def test_rows_of_old_runs_are_removed_by_a_run_in_which_the_api_answers(tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")

    def list_runs(**changes: Any) -> list[Any]:
        settings = load_settings()
        settings = replace(settings, sync=structs.replace(settings.sync, run_days=90), **changes)
        job.run(build_context(workspace, settings), Limits(with_transform=False))
        with duckdb.connect(str(workspace.work), read_only=True) as connection:
            return connection.execute("SELECT run_id = 'old' FROM msgbubbles.sync_runs ORDER BY started_at").fetchall()

    with serve_to_this_process(chats=2, messages=5):
        assert list_runs() == [(False,)]
        with duckdb.connect(str(workspace.work)) as connection:
            old = "'old' AS run_id, now() - INTERVAL 91 DAY AS started_at"
            runs = "msgbubbles.sync_runs"
            connection.execute(f"INSERT INTO {runs} BY NAME (SELECT * REPLACE ({old}) FROM {runs})")
        unreachable = structs.replace(load_settings().source, base_url="http://127.0.0.1:9/v1", max_attempts=1)
        assert list_runs(source=unreachable) == [(True,), (False,), (False,)]
        assert list_runs() == [(False,)] * 3


def test_dormant_chat_is_removed_whole_once_a_day(workspace: Workspace) -> None:
    assert expired(workspace, thread_days=10) == {"threads": 1, "messages": 1}
    left = {"chats": 2, "messages": 1, "attachments": 1, "chat_titles": 1, "webhook_events": 1, "rejected_rows": 2}
    assert ids(workspace) == left
    assert expired(workspace, thread_days=4) == {}
    (workspace.folder / DONE).unlink()
    assert expired(workspace, thread_days=4) == {"threads": 1, "messages": 1}
    assert ids(workspace)["chats"] == 1, "a chat without a time is not dormant"


def test_bytes_of_removed_chats_are_removed_after_a_kill(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with duckdb.connect(str(workspace.work)) as connection:
        connection.execute("DELETE FROM msgbubbles.rejected_rows")  # they belong to no chat
        connection.execute("DROP TABLE msgbubbles.messages_replaced_2")  # it asks for the same
    with monkeypatch.context() as patch:
        patch.setattr("msgbubbles_sync.destinations.duckdb_file.compact", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            expired(workspace, thread_days=10)
    assert ids(workspace)["chats"] == 2
    report = job.load_webhooks(build_context(workspace), Limits(with_transform=False))
    assert not report.published, "the marts may be missing"
    assert expired(workspace, thread_days=10) == {}
    assert find_words(workspace.folder, ["canary 50"]) == {}
    assert workspace.is_pending("publish")
