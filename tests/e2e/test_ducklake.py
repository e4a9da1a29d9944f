"""Run the job with its tables in a lake: Parquet files in a folder, with a catalog on a PostgreSQL server."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from e2e.test_groups import Groups, two

from helpers.catalog import check_descriptions, check_first_tables
from helpers.context import build_destination
from helpers.hooks import spool, typing
from helpers.job import NO_DBT, Job
from helpers.lake import COUNT_CONTACT, delete_chat, lake_at, list_contacts, rename_and_write, select
from helpers.marts_reference import MARTS, check_marts
from helpers.sizes import pick_size
from helpers.warehouse_rows import differences_of, select_rows
from msgbubbles_sync.destinations.comments import read_comments
from msgbubbles_sync.sandbox import NewMessage
from msgbubbles_sync.workspace import Workspace

NewJob = Callable[..., Job]
# A run takes long in a lake.
RUNS = int(os.environ.get("MSGBUBBLES_LAKE_RUNS", pick_size(2, nightly=4)))
# Opening a lake takes a second of CPU time.
READS_OF_A_CONNECTION = pick_size(10, nightly=1)
COUNTS = (
    "SELECT (SELECT count(*) FROM msgbubbles.messages) AS messages,"
    " (SELECT count(*) FROM marts.thread_activity) AS threads"
)
INTO = ("--destination", "ducklake")


@pytest.fixture
def lake(postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the variables with which a job finds a lake."""
    found = lake_at(postgres_address, tmp_path / "lake")
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def read_rows(workspace: Workspace) -> dict[str, dict[str, dict[str, Any]]]:
    with build_destination(workspace).open_reader() as connection:
        return select_rows(connection)


def create_bookkeeping_of_earlier_release(workspace: Workspace) -> None:
    """Create tables that a build from scratch drops."""
    workspace.make_folders()
    workspace.configure_dlt()
    destination = build_destination(workspace)
    destination.prepare()
    with destination.open_writer() as connection:
        for table in ("built_loads", "thread_messages"):
            connection.execute(f"CREATE TABLE warehouse.staging.{table} (mart VARCHAR)")


def change_tables(workspace: Workspace) -> list[str]:
    """Change tables by hand, and return what the next run reports."""
    changes = {
        "ALTER TABLE chats DROP COLUMN id": "chats (without id, now chats_replaced)",
        "ALTER TABLE attachments DROP COLUMN _dlt_load_id": "attachments._dlt_load_id (missing)",
        "ALTER TABLE messages DROP COLUMN _fetched_at": "messages._fetched_at (missing)",
        "ALTER TABLE messages DROP COLUMN text; ALTER TABLE messages ADD COLUMN text INT": "messages.text (INTEGER)",
        "ALTER TABLE numbers RENAME TO own; CREATE VIEW numbers AS FROM own": "numbers (a view, now numbers_replaced)",
    }
    with build_destination(workspace).open_writer() as connection:
        connection.execute("USE warehouse.msgbubbles")
        for statements in changes:
            connection.execute(statements)
    return [f"somebody has changed {what}: changed back" for what in changes.values()]


def test_lake_holds_the_rows_of_the_account_while_read(new_job: NewJob, lake: dict[str, str]) -> None:
    job = new_job(chats=40, messages=300)
    job.environment = lake | {
        "SOURCES__MSGBUBBLES__REFRESH_CHATS": '[{"every_hours": 0.0001}]',
        "TRANSFORMS__DATA_TESTS": "hold",
    }
    job.selected = {"test": "thread_activity_daily"}
    workspace = Workspace.from_path(job.database, "ducklake")
    create_bookkeeping_of_earlier_release(workspace)
    first = job.run(*INTO).summary
    assert differences_of(read_rows(workspace), job.server.truth()) == {}
    assert first["database"] == "ducklake"
    assert not job.database.exists()
    check_first_tables(workspace)
    check_descriptions(workspace)

    reported = change_tables(workspace)
    deleted = delete_chat(job)
    errors = job.run(*INTO, transform=True).errors
    assert [line for line in reported if line not in errors] == []
    # The chat is not listed again: its messages show that it existed.
    assert differences_of(read_rows(workspace), job.server.truth()) == {}

    account, reads, done = job.server.account, [0], threading.Event()

    def poll() -> None:
        while not done.is_set():
            with build_destination(workspace).open_reader() as connection:
                for _ in range(READS_OF_A_CONNECTION):
                    [(messages, threads)] = connection.execute(COUNTS).fetchall()
                    assert messages >= 300
                    assert threads > 0
                    reads[0] += 1
                    done.wait(pick_size(2, nightly=1) / 2)

    groups = Groups(job)
    groups.run("apply", groups.write(two()), "--yes", *INTO)
    reader = threading.Thread(target=poll)
    reader.start()
    try:
        written = rename_and_write(job)
        list_contacts(job)
        for number in range(RUNS):
            account.add_message(NewMessage(written, "outbound", "hello", datetime.now(UTC), "sent"))
            spool(workspace, [typing(number, conversation_id=written)])
            job.selected = NO_DBT if number else job.selected  # the first increment has recorded its statements
            assert job.run(*INTO, transform=True).summary["outcome"] == "complete"
        assert reader.is_alive(), "no read has failed"
    finally:
        done.set()
        reader.join()
    assert reads[0] >= 5 * RUNS
    with build_destination(workspace).open_reader() as connection:
        assert differences_of(select_rows(connection), job.server.truth()) == {}
        check_marts(partial(select, connection))
        assert select(connection, COUNT_CONTACT) == [{"n": 1}]
        gone = select(connection, "SELECT chat_id FROM marts.thread_activity WHERE deleted_at IS NOT NULL")
        assert gone == [{"chat_id": deleted}]
        events = select(connection, "SELECT DISTINCT chat_id FROM msgbubbles.webhook_events")
        assert events == [{"chat_id": written}]
        evidence = "SELECT count(*) AS n FROM marts.group_membership WHERE evidence = 'operation'"
        assert select(connection, evidence) == [{"n": 5}]
        comments = read_comments(connection, "warehouse")
    assert groups.run("plan", "groups.csv", *INTO)[0] == "No changes: the groups match the table.\n"
    marts = {table: columns for (schema, table), columns in comments.items() if schema == "marts"}
    assert set(marts) == set(MARTS)
    assert marts["thread_activity_daily"]["messages_total"].startswith("Number of messages, ")
    assert marts["thread_activity"][""].startswith("One row per chat, ")
    assert job.ask("verify", "--full", *INTO)["equal"]


def test_missing_configuration_of_the_lake_is_explained(new_job: NewJob) -> None:
    process = new_job(chats=0).start(*INTO)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "--destination ducklake: it has no catalog on a PostgreSQL server" in errors
    assert "[destination.ducklake.credentials]" in errors
