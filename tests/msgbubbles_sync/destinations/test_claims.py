"""Whose rows a warehouse holds is restored from what it knows, and never to what that contradicts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pytest

from helpers.context import build_context, build_destination
from helpers.damage import DAMAGE
from msgbubbles.client import Client
from msgbubbles.settings import SourceSettings
from msgbubbles_sync.check_result import CheckResult
from msgbubbles_sync.destinations.claims import (
    claim,
    explain_other_job,
    explain_same_numbers,
    explain_shared_key,
    find_account_files,
    note_key,
    store,
)
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import MAX_DAMAGED
from msgbubbles_sync.inspect.check import list_checks
from msgbubbles_sync.inspect.local_state import LocalState
from msgbubbles_sync.inspect.status import build_status
from msgbubbles_sync.run_log import RunLog
from msgbubbles_sync.run_log import store as store_runs
from msgbubbles_sync.run_record import RunRecord
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.workspace import CLAIM_FILE, Workspace

pytestmark = pytest.mark.slow

damage = pytest.mark.parametrize("damage", DAMAGE)


def claimed(workspace: Workspace, messages: list[str] | None = None, *, sandbox: bool = False) -> Workspace:
    workspace.make_folders()
    claim(build_destination(workspace), sandbox=sandbox, say=(messages if messages is not None else []).append)
    return workspace


def publish(workspace: Workspace, *, with_claim: bool = True) -> None:
    with build_destination(workspace).open_writer() as connection:
        connection.execute("CREATE SCHEMA IF NOT EXISTS msgbubbles")
        if with_claim:
            store(connection, workspace, "msgbubbles")
    build_destination(workspace).publish()


@damage
@pytest.mark.parametrize("sandbox", [True, False])
@pytest.mark.parametrize("account", [None, "north"])
def test_damaged_claim_is_restored_to_its_own_account_only(
    tmp_path: Path, damage: str, account: str | None, sandbox: bool
) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb", account=account)
    publish(claimed(workspace, sandbox=sandbox))
    path = workspace.folder / CLAIM_FILE
    before = path.read_text()
    DAMAGE[damage](path)
    with pytest.raises(UsageError, match="choose another --database"):
        claimed(workspace, sandbox=not sandbox)
    messages: list[str] = []
    claimed(workspace, messages, sandbox=sandbox)
    assert path.read_text() == before
    [line] = messages
    assert f"{path} was damaged: restored" in line
    assert len(workspace.find_damaged()) == 1


@pytest.mark.parametrize("lost", ["published", "work", "both"])
def test_claim_without_tables_is_inferred_from_other_files(tmp_path: Path, lost: str) -> None:
    for sandbox in (True, False):
        workspace = Workspace.from_path(tmp_path / f"{sandbox}.duckdb")
        publish(claimed(workspace, sandbox=sandbox), with_claim=lost != "both")
        if sandbox:
            (workspace.folder / "sandbox.sqlite").touch()
        if lost != "both":
            (workspace.database if lost == "published" else workspace.work).unlink()
        (workspace.folder / CLAIM_FILE).write_text("{")
        with pytest.raises(UsageError, match="holds the rows of"):
            claimed(workspace, sandbox=not sandbox)
        claimed(workspace, sandbox=sandbox)


def test_published_file_alone_keeps_its_account(tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    publish(claimed(workspace, sandbox=True))
    shutil.rmtree(workspace.folder.parent)
    with pytest.raises(UsageError, match="holds the rows of the sandbox"):
        claimed(workspace)
    claimed(workspace, sandbox=True)


def test_unnamed_warehouse_accepts_a_name_but_no_other_account(tmp_path: Path) -> None:
    whole = claimed(Workspace.from_path(tmp_path / "company.duckdb"))
    publish(whole)
    north = Workspace.from_path(whole.database, account="north")
    whole.folder.rename(north.folder)
    whole.database.rename(north.database)
    with pytest.raises(UsageError, match="holds the rows of a MsgBubbles account"):
        claimed(north)
    (north.folder / CLAIM_FILE).unlink()
    with pytest.raises(UsageError, match="holds the rows of"):
        claimed(north, sandbox=True)
    publish(claimed(north))
    assert find_account_files(north) == {"north": north.database}


def test_account_with_a_damaged_claim_or_an_unreadable_folder_is_still_shown(tmp_path: Path) -> None:
    workspaces = [
        claimed(Workspace.from_path(tmp_path / "company.duckdb", account=name)) for name in ("north", "south")
    ]
    other = claimed(Workspace.from_path(tmp_path / "company_west.duckdb"))
    for workspace in (*workspaces, other):
        publish(workspace)
        (workspace.folder / CLAIM_FILE).write_text("{")
    files = {"north": workspaces[0].database, "south": workspaces[1].database}
    assert find_account_files(workspaces[0]) == files
    # A folder that not even root can open.
    shutil.rmtree(workspaces[1].folder)
    workspaces[1].folder.symlink_to(workspaces[1].folder)
    assert find_account_files(workspaces[0]) == files


def test_only_the_newest_damaged_files_are_kept(tmp_path: Path) -> None:
    workspace = claimed(Workspace.from_path(tmp_path / "company.duckdb"))
    for number in range(MAX_DAMAGED + 2):
        (workspace.folder / CLAIM_FILE).write_text(f"{number}")
        claimed(workspace)
    assert [path.read_text() for path in sorted(workspace.find_damaged())] == ["2", "3", "4"]
    assert json.loads((workspace.folder / CLAIM_FILE).read_text()) == {"account": "a MsgBubbles account"}


def test_accounts_with_the_same_numbers_are_noticed(tmp_path: Path) -> None:
    for name, handle in (("north", "+14155550100"), ("south", "+14155550101"), ("west", "+14155550100")):
        workspace = claimed(Workspace.from_path(tmp_path / "company.duckdb", account=name))
        destination = build_destination(workspace)
        assert explain_same_numbers(destination) is None, "not published yet"
        with destination.open_writer() as connection:
            connection.execute("CREATE SCHEMA msgbubbles; CREATE TABLE msgbubbles.numbers (handle VARCHAR)")
            connection.execute("INSERT INTO msgbubbles.numbers VALUES (?)", [handle])
        destination.publish()
        message = explain_same_numbers(destination)
        assert (message is None) == (name != "west")
    assert "the accounts west and north have the same numbers" in (message or "")
    assert handle not in (message or "")


def test_other_warehouses_with_the_same_key_are_shown(tmp_path: Path) -> None:
    settings = Settings(source=SourceSettings(budget_dir=str(tmp_path / "state")), api_key="sk_live_one")
    dev = claimed(Workspace.from_path(tmp_path / "dev.duckdb"))
    prod = claimed(Workspace.from_path(tmp_path / "prod.duckdb"))
    note_key(dev, settings)
    assert explain_shared_key(dev, settings) is None
    for _ in range(2):
        note_key(prod, settings)
    context = build_context(dev, settings)
    status = build_status(LocalState(context), datetime.now(UTC))

    def connect() -> Client:
        raise AssertionError("this check makes no request")

    [check] = [make for name, make in list_checks(context, connect) if name == "accounts"]
    result = check()
    assert isinstance(result, CheckResult)
    assert result.state == "info", "a warehouse for tests is no error"
    for message in (status.shared_key, result.what):
        assert message is not None
        assert (
            f"the same API key fills the warehouses with their files in {prod.folder}: they hold the same rows"
            in message
        )
        assert "sk_live" not in message
    assert explain_shared_key(dev, replace(settings, api_key="sk_live_two")) is None
    shutil.rmtree(prod.folder)
    assert explain_shared_key(dev, settings) is None
    assert "sk_live" not in str([*(tmp_path / "state").rglob("*")])


def test_runs_of_another_job_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(tmp_path / "lake"))
    (tmp_path / "lake" / "msgbubbles").mkdir(parents=True)
    workspace = claimed(Workspace.from_path(tmp_path / "company.duckdb", "filesystem"))
    destination, now = build_destination(workspace), datetime.now(UTC)

    def build_run(number: int) -> RunRecord:
        started_at = (now - timedelta(hours=30 - number)).isoformat()
        return {"run_id": f"run-{number}", "started_at": started_at, "outcome": "complete", "exit_status": 0,
                "ended_at": started_at}  # fmt: skip

    def publish_runs(*numbers: int) -> str | None:
        with destination.open_writer() as connection:
            store_runs(connection, [*map(build_run, numbers)], destination.write_schema)
        destination.publish()
        return explain_other_job(destination)

    destination.prepare()
    assert publish_runs(*range(6)) is None, "no run of its own: its folder was lost"
    for own in (3, 20):
        RunLog(workspace.folder).add(build_run(own))
    assert publish_runs(3, 20, 21, 22) is None, "some may have been killed before they wrote their record"
    message = publish_runs(23)
    assert message is not None
    assert message.startswith("3 runs since ")
    assert "another one loads the same tables" in message
    assert build_status(LocalState(build_context(workspace)), now).other_job == message


def test_claims_are_left_out_of_the_combined_tables(tmp_path: Path) -> None:
    workspace = claimed(Workspace.from_path(tmp_path / "company.duckdb", account="north"))
    publish(workspace)
    with duckdb.connect(str(workspace.combined), read_only=True) as connection:
        assert connection.execute("SELECT table_name FROM duckdb_tables()").fetchall() == [("accounts",)]
