"""groups.py and webhooks.py with their tables on a server, in schemas of other names, and in a folder.

`test_ducklake` has them in a lake.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from e2e.test_groups import Groups, two
from e2e.test_webhooks import command

from helpers.context import build_destination
from helpers.hooks import spool, typing
from helpers.job import Job
from helpers.lake import query
from helpers.sizes import nightly
from msgbubbles_sync.sql import read_columns
from msgbubbles_sync.workspace import Workspace

NewJob = Callable[..., Job]
DESIRED = """
SELECT key, chats.from_handle, chats.title, handles AS addresses, 'Hello' AS message
FROM msgbubbles.group_operations JOIN msgbubbles.chats ON chats.id = chat_id"""
OPERATIONS = (
    "SELECT operation, outcome, json_array_length(handles) AS people FROM msgbubbles.group_operations ORDER BY 3"
)


@pytest.fixture
def variables(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return the variables with which a command finds the destination."""
    if request.param == "postgres":
        names = {"SYNC__RAW_SCHEMA": "crm", "SYNC__STAGING_SCHEMA": "crm_work", "SYNC__MARTS_SCHEMA": "analytics"}
        found = {"DESTINATION__POSTGRES__CREDENTIALS": request.getfixturevalue("postgres_address"), **names}
    else:
        found = {"DESTINATION__FILESYSTEM__BUCKET_URL": str(tmp_path / "files")}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


# By day, privacy/test_restored.py loads a ledger into a folder, and test_filesystem.py events.
@pytest.mark.parametrize(
    ("variables", "destination"),
    [("postgres", "postgres"), pytest.param("filesystem", "filesystem", marks=nightly)],
    indirect=["variables"],
)
def test_ledger_and_events_are_on_the_destination(
    new_job: NewJob, variables: dict[str, str], destination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_marts = destination != "filesystem"  # Spark takes minutes; test_filesystem compares its marts
    job = new_job(chats=0)
    job.environment = variables
    job.selected = {"run": "+group_membership"}
    workspace, into = Workspace.from_path(job.database, destination), ("--destination", destination)
    groups = Groups(job)
    table = groups.write(two())
    job.run(*into)
    groups.run("apply", table, "--yes", *into)
    spool(workspace, [typing(1), typing(2)])
    assert command(job, "load", *into)["deliveries"] == 2
    loads = "SELECT max(_dlt_load_id) AS last FROM msgbubbles.webhook_events"
    before = query(workspace, loads) if destination == "postgres" else None
    assert command(job, "replay", "--since", "2026-01-01", *into)["events_replayed"] == 2
    if before is not None:
        assert query(workspace, loads) != before, "a replayed event replaces its row"
    if not has_marts:
        job.run(*into)
    created = {"operation": "create", "outcome": "succeeded"}
    assert query(workspace, OPERATIONS) == [created | {"people": 2}, created | {"people": 3}]
    assert query(workspace, "SELECT count(*) AS n FROM msgbubbles.webhook_events") == [{"n": 2}]
    assert not (job.folder / ".msgbubbles" / "company").exists(), "nothing is in the workspace of the DuckDB file"

    if has_marts:
        job.run(*into, transform=True)
        evidence = "SELECT evidence, count(*) AS n FROM marts.group_membership GROUP BY evidence ORDER BY evidence"
        assert query(workspace, evidence) == [{"evidence": "operation", "n": 5}, {"evidence": "own_number", "n": 2}]
        with build_destination(workspace)._attach("READ_ONLY") as connection:  # type: ignore[attr-defined]
            found = {schema for schema, _ in read_columns(connection, "warehouse")}
        assert found >= {"crm", "crm_staging", "crm_work", "analytics_build", "analytics"}
        assert not found & {"msgbubbles", "msgbubbles_staging", "staging", "marts_build", "marts"}
        assert job.ask("status", *into)["missing_intervals"] == {"messages": 0, "chats": 0}
        assert job.ask("verify", "--full", *into)["equal"]
    # A lost ledger is restored from there, and a query reads the desired table from there.
    for path in workspace.folder.glob("groups.sqlite*"):
        path.unlink()
    assert groups.run("plan", table, *into)[0] == "No changes: the groups match the table.\n"
    desired = (
        "SELECT key, from_handle, title, handles AS addresses, 'Hi' AS message FROM msgbubbles.group_operations JOIN "
    )
    desired += "(SELECT id, from_handle FROM msgbubbles.chats) ON id = chat_id"
    if has_marts:
        assert groups.run("plan", DESIRED, *into)[0] == "No changes: the groups match the table.\n"
    # The schemas of the DuckDB file cannot have other names.
    job.environment = {}
    for name in variables:
        monkeypatch.delenv(name)
    _, errors = groups.run("plan", table, status=2)
    assert f"the ledger of company is in {workspace.folder}" in errors
