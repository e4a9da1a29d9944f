"""A lost folder of the job, and tables and folders that are restored from a backup, on each destination."""

from __future__ import annotations

import shutil

import duckdb
import pytest

from helpers.context import RecordingConsole, build_context, build_destination
from helpers.sizes import nightly
from helpers.two_versions import ANN, BEN, KEY, NOW, OURS, load, query, run_on_server
from msgbubbles.policy import PRESETS, Pseudonymizer
from msgbubbles_sync import job
from msgbubbles_sync.destinations import claims
from msgbubbles_sync.destinations.attached import Attached
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.groups.ledger import Ledger, Observation
from msgbubbles_sync.groups.load import load_ledger
from msgbubbles_sync.groups.observed import open_ledger
from msgbubbles_sync.policy import applied
from msgbubbles_sync.policy.applied import Record
from msgbubbles_sync.privacy import erase as erasing
from msgbubbles_sync.restore import restore
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow
# What is done for any server is seen by day in PostgreSQL.
of_a_lake = pytest.param("ducklake", marks=nightly)


@pytest.mark.parametrize(
    "workspace", ["duckdb", "postgres", of_a_lake, pytest.param("bucket", marks=nightly), "filesystem"], indirect=True
)
def test_lost_folder_is_restored_from_the_destination(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    destination, names = build_destination(workspace), Pseudonymizer(KEY)
    claims.claim(destination, sandbox=False, say=print)
    monkeypatch.setenv("SOURCES__MSGBUBBLES__PRIVACY__PRESET", "minimal")
    Record(PRESETS["minimal"], names.check, frozenset({names.erased_handle(ANN)})).save(workspace)
    context = build_context(workspace)
    with Ledger.open(workspace.folder) as ledger:
        ledger.record_observation(Observation("support", "g", OURS, None, (BEN,), False, NOW))
    load_ledger(destination, context.redactor)
    with destination.open_writer() as connection:
        for store in (claims.store, applied.store):
            store(connection, workspace, destination.write_schema)
    destination.publish()
    shutil.rmtree(workspace.folder)
    workspace.make_folders()

    destination.prepare()
    with pytest.raises(UsageError, match="holds the rows of account north"):
        claims.claim(destination, sandbox=True, say=print)
    claims.claim(destination, sandbox=False, say=print)
    assert build_context(workspace).redactor.is_erased(ANN)
    with open_ledger(build_context(workspace)) as ledger:
        assert [(group.key, group.chat_id) for group in ledger.list_observations()] == [("support", "g")]
    pipeline = build_pipeline(destination)
    pipeline.sync_destination()
    states = pipeline.state["sources"]["msgbubbles"]["resources"]
    assert states["load"] == {"covered": "now"}, "what is covered is in a state like this"
    for name, value, message in (
        ("PRESET", "full", "keeps more than this warehouse was filled with"),
        ("KEY", f"{KEY}.", "is not the one that this warehouse was filled with"),
    ):
        (workspace.folder / applied.FILE).unlink()
        with monkeypatch.context() as patch:
            patch.setenv(f"SOURCES__MSGBUBBLES__PRIVACY__{name}", value)
            with pytest.raises(UsageError, match=message):
                build_context(workspace).check_policy()


@pytest.mark.parametrize("workspace", ["postgres", of_a_lake, "filesystem"], indirect=True)
def test_restored_backup_of_the_tables_is_followed(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    destination, covered = build_destination(workspace), {"load": {"covered": "now"}}
    destination.prepare()
    assert build_pipeline(destination).state["sources"]["msgbubbles"]["resources"] == covered
    Record(erased=frozenset({Pseudonymizer(KEY).erased_handle(ANN)})).save(workspace)
    with Ledger.open(workspace.folder) as ledger:
        ledger.record_observation(Observation("support", "g", OURS, None, (BEN,), False, NOW))
        ledger.set_loaded(*ledger.list_unloaded())
    if isinstance(destination, Attached):  # the tables are as after the first load
        with destination.open_writer() as connection:
            of_last_load = f"FROM {destination.write_schema}._dlt_loads"
            last = f"(SELECT max(load_id) {of_last_load})"
            connection.execute(f"DELETE {of_last_load} WHERE load_id = {last}")
    else:
        max((workspace.database.parent / "lake").glob("*/_dlt_pipeline_state/msgbubbles__*.jsonl")).unlink()

    unfinished = workspace.folder / "dlt" / "msgbubbles" / "load" / "normalized" / "1"
    unfinished.mkdir()
    destination.prepare()
    assert unfinished.exists(), "a load that has not finished is one ahead"
    unfinished.rmdir()
    destination.prepare()
    context = build_context(workspace)
    job._schedule_lost_work(context)
    pipeline = build_pipeline(destination)
    pipeline.sync_destination()
    assert pipeline.state["sources"]["msgbubbles"]["resources"] == {"load": {"covered": "before"}}
    assert workspace.is_pending("erase"), "they may be in the backup"
    monkeypatch.setattr(job, "load_ledger", lambda *_arguments: None)
    job._load_ledger(context)
    with open_ledger(context) as ledger:
        assert len(ledger.list_unloaded()[1]) == 1
    destination.prepare()
    assert not workspace.is_pending("restored", "ledger")


@pytest.mark.parametrize("workspace", ["postgres", of_a_lake, "filesystem"], indirect=True)
def test_tables_restored_before_the_next_load_are_erased_again(workspace: Workspace) -> None:
    destination = build_destination(workspace)
    destination.prepare()
    Record().save(workspace)
    context = build_context(workspace)
    job._schedule_lost_work(context)
    with destination.open_writer() as connection:
        applied.store(connection, workspace, destination.write_schema)  # what the backup has
    job._schedule_lost_work(context)
    assert not workspace.is_pending("erase", "policy")
    Record(PRESETS["minimal"], erased=frozenset({Pseudonymizer(KEY).erased_handle(ANN)})).save(workspace)
    job._schedule_lost_work(context)
    assert workspace.is_pending("erase")
    assert workspace.is_pending("policy")


@pytest.mark.parametrize("workspace", ["ducklake", pytest.param("bucket", marks=nightly)], indirect=True)
def test_restored_catalog_whose_files_were_erased_is_read_again(workspace: Workspace) -> None:
    destination = build_destination(workspace)
    assert isinstance(destination, Attached)
    with destination.open_writer() as connection:  # so many that they are in a file, and not in the catalog
        connection.execute(
            f"INSERT INTO {destination.write_schema}.messages BY NAME SELECT old.* REPLACE (number || old.id AS id) "
            f"FROM {destination.write_schema}.messages AS old, range(50) AS numbers (number)"
        )
    catalog = destination._lock_scope.removesuffix(".")
    names = f"SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('{catalog}') AND relkind = 'r'"
    run_on_server("CREATE SCHEMA backup")
    for (name,) in run_on_server(names):
        run_on_server(
            f'CREATE TABLE backup."{name}" (LIKE {catalog}."{name}" INCLUDING ALL)',
            f'INSERT INTO backup."{name}" SELECT * FROM {catalog}."{name}"',
        )
    stored = [*workspace.database.parent.rglob("messages/ducklake-*.parquet")]
    assert stored
    erasing.erase(build_context(workspace), [ANN])
    assert [path for path in stored if path.exists()] == [], "no snapshot needs them any more"
    run_on_server(f"DROP SCHEMA {catalog} CASCADE", f"ALTER SCHEMA backup RENAME TO {catalog}")

    with pytest.raises(duckdb.Error) as lost:
        query(workspace, "FROM msgbubbles.messages")
    assert "run chats.py: it empties the tables" in (destination.explain(str(lost.value)) or "")
    context = build_context(workspace, console=(console := RecordingConsole()))
    restore(context.destination, console.fail)
    assert f"{destination.dataset}.messages" in console.errors[0]
    context.destination.prepare()
    job._schedule_lost_work(context)
    assert workspace.is_pending("erase"), "they are in the catalog, and may be in files"
    erasing.purge(context)
    load(workspace, "now")
    assert query(workspace, "SELECT count(*), count(DISTINCT id) FROM msgbubbles.messages") == [(4, 4)]


@pytest.mark.parametrize("workspace", ["postgres", of_a_lake, "filesystem"], indirect=True)
def test_restored_folder_of_the_job_continues_from_the_tables(workspace: Workspace) -> None:
    state = workspace.folder / "dlt" / "msgbubbles" / "state.json"
    state.write_text(state.read_text().replace('"_state_version":2', '"_state_version":1'))
    unfinished = workspace.folder / "dlt" / "msgbubbles" / "load" / "normalized" / "1"
    destination = build_destination(workspace)
    destination.prepare()
    assert state.exists(), "dlt itself continues from a newer state"
    unfinished.mkdir()
    destination.prepare()
    assert not unfinished.exists(), "its rows are older than those of the tables"
