"""What readers find after the first run: every documented table, described, and nothing of dlt's staging."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers import postgres
from helpers.hooks import spool, typing
from helpers.job import Job
from helpers.lake import change, lake_at, query
from msgbubbles_sync.tables import TABLES
from msgbubbles_sync.workspace import Workspace

# The policy is stored once there is one.
FIRST = TABLES.keys() - {"privacy"}
TABLES_FOUND = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'msgbubbles'"
COMMENTED = """SELECT table_name, column_name FROM duckdb_columns() WHERE comment IS NOT NULL
AND schema_name = 'msgbubbles' AND database_name = current_database()"""


def described_columns(workspace: Workspace) -> set[tuple[str, str]]:
    return {(row["table_name"], row["column_name"]) for row in query(workspace, COMMENTED)}


def expected_columns() -> set[tuple[str, str]]:
    return {(name, column) for name in FIRST for column in TABLES[name].column_names}


def test_first_run_publishes_every_table_with_descriptions(new_job: Callable[..., Job]) -> None:
    job = new_job(chats=20, messages=60)
    job.run()
    workspace = Workspace.from_path(job.database)
    assert {row["table_name"] for row in query(workspace, TABLES_FOUND)} >= FIRST
    assert described_columns(workspace) >= expected_columns()
    assert query(workspace, "SELECT 1 FROM duckdb_schemas() WHERE schema_name LIKE '%_staging'") == []
    for table in ("webhook_events", "group_operations", "group_member_operations", "group_sightings", "erasures"):
        assert query(workspace, f"FROM msgbubbles.{table}") == []

    # dlt creates its staging tables again where the work file is restored from the published one.
    workspace.work.unlink()
    _, chat = change(job)
    spool(workspace, [typing(1, conversation_id=chat)])
    job.run()
    stored = {row["id"] for row in query(workspace, "SELECT id FROM msgbubbles.messages")}
    assert stored >= {message["id"] for message in job.server.truth().messages}
    assert query(workspace, "SELECT chat_id FROM msgbubbles.webhook_events") == [{"chat_id": chat}]
    assert described_columns(workspace) >= expected_columns()


@pytest.mark.parametrize("destination", ["postgres", "ducklake"])
def test_server_and_lake_have_every_table_after_the_first_run(
    new_job: Callable[..., Job], destination: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres.running(tmp_path / "server") as address:
        for name, value in lake_at(address, tmp_path / "lake").items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", address)
        job = new_job(chats=20, messages=60)
        workspace = Workspace.from_path(job.database, destination)
        for _ in range(2):
            job.run("--destination", destination)
            assert {row["table_name"] for row in query(workspace, TABLES_FOUND)} >= FIRST
            assert query(workspace, "FROM msgbubbles.group_member_operations") == []
            if destination == "ducklake":  # DuckDB does not show the comments of a server
                assert described_columns(workspace) >= expected_columns()
            _, chat = change(job)
            spool(workspace, [typing(1, conversation_id=chat)])
        assert query(workspace, "SELECT chat_id FROM msgbubbles.webhook_events") != []
