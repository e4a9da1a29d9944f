"""What readers find after the first run: every documented table, described, and nothing of dlt's staging."""

from __future__ import annotations

from collections.abc import Callable

from helpers.catalog import check_descriptions, check_first_tables
from helpers.hooks import spool, typing
from helpers.job import Job
from helpers.lake import change, query
from msgbubbles_sync.workspace import Workspace


def test_first_run_publishes_every_table_with_descriptions(new_job: Callable[..., Job]) -> None:
    job = new_job(chats=20, messages=60)
    job.run()
    workspace = Workspace.from_path(job.database)
    check_first_tables(workspace)
    check_descriptions(workspace)
    assert query(workspace, "SELECT 1 FROM duckdb_schemas() WHERE schema_name LIKE '%_staging'") == []
    assert query(workspace, "FROM msgbubbles.webhook_events") == []

    # dlt creates its staging tables again where the work file is restored from the published one.
    workspace.work.unlink()
    _, chat = change(job)
    spool(workspace, [typing(1, conversation_id=chat)])
    job.run()
    stored = {row["id"] for row in query(workspace, "SELECT id FROM msgbubbles.messages")}
    assert stored >= {message["id"] for message in job.server.truth().messages}
    assert query(workspace, "SELECT chat_id FROM msgbubbles.webhook_events") == [{"chat_id": chat}]
    check_descriptions(workspace)
