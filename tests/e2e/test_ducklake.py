"""Run the job with its tables in a lake: Parquet files in a folder, with a catalog on a PostgreSQL server."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from e2e.test_groups import Groups, two

from helpers import postgres
from helpers.context import build_destination
from helpers.hooks import spool, typing
from helpers.job import Job
from helpers.lake import lake_at, query
from helpers.marts_reference import MARTS, check_marts
from helpers.warehouse_rows import differences_of, select_rows
from msgbubbles_sync.destinations.comments import read_comments
from msgbubbles_sync.sandbox import NewMessage
from msgbubbles_sync.workspace import Workspace

NewJob = Callable[..., Job]
# More runs than one take long.
RUNS = int(os.environ.get("MSGBUBBLES_LAKE_RUNS", "1"))
INTO = ("--destination", "ducklake")


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Start a lake, and return the variables with which a job finds it."""
    with postgres.running(tmp_path / "server") as address:
        found = lake_at(address, tmp_path / "lake")
        for name, value in found.items():
            monkeypatch.setenv(name, value)
        yield found


def read_rows(workspace: Workspace) -> dict[str, dict[str, dict[str, Any]]]:
    with build_destination(workspace).open_reader() as connection:
        return select_rows(connection)


def test_lake_holds_the_rows_of_the_account_while_read(new_job: NewJob, lake: dict[str, str]) -> None:
    job = new_job(chats=130, messages=1500)
    job.environment = lake
    workspace = Workspace.from_path(job.database, "ducklake")
    first = job.run(*INTO, transform=True).summary
    assert differences_of(read_rows(workspace), job.server.truth()) == {}
    assert first["database"] == "ducklake"
    assert not job.database.exists()

    account, reads, done = job.server.account, [0], threading.Event()

    def poll() -> None:
        while not done.is_set():
            assert query(workspace, "SELECT count(*) AS n FROM msgbubbles.messages")[0]["n"] >= 1500
            assert query(workspace, "SELECT count(*) AS n FROM marts.thread_activity")[0]["n"] > 0
            reads[0] += 1
            time.sleep(0.1)

    groups = Groups(job)
    groups.run("apply", groups.write(two()), "--yes", *INTO)
    reader = threading.Thread(target=poll)
    reader.start()
    try:
        chats = sorted(job.server.truth().chats, key=lambda row: row["last_message_at"] or "")
        for number in range(RUNS):
            now = datetime.now(UTC)
            account.add_message(NewMessage(chats[9 + number % 9]["id"], "outbound", "hello", now, "sent"))
            spool(workspace, [typing(number, conversation_id=chats[9]["id"])])
            assert job.run(*INTO, transform=True).summary["outcome"] == "complete"
        assert reader.is_alive(), "no read has failed"
    finally:
        done.set()
        reader.join()
    assert reads[0] >= 5 * RUNS
    assert differences_of(read_rows(workspace), job.server.truth()) == {}

    check_marts(partial(query, workspace))
    evidence = "SELECT count(*) AS n FROM marts.group_membership WHERE evidence = 'operation'"
    assert query(workspace, evidence) == [{"n": 5}]
    assert groups.run("plan", "groups.csv", *INTO)[0] == "No changes: the groups match the table.\n"
    with build_destination(workspace).open_reader() as connection:
        comments = read_comments(connection, "warehouse")
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
