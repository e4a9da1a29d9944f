"""The files and tables of an older release are upgraded, wherever it stopped; those of a newer one are refused."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import RecordingConsole, build_context, build_destination
from helpers.full_disk import full_disk
from helpers.job import Job
from helpers.lake import lake_at
from helpers.sizes import nightly, pick_size
from helpers.warehouse_rows import differences_of, select_rows
from msgbubbles_sync import migrations
from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.destinations.parquet_tables import KeyedTable
from msgbubbles_sync.destinations.version import check_version
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.migrations import PIPELINES, migrate, rename_column
from msgbubbles_sync.run_log import RunLog
from msgbubbles_sync.sandbox import Account, NewMessage, seed, serve
from msgbubbles_sync.workspace import LAYOUT_VERSION, Workspace

HERE = Path(__file__).parent
OLD, NEW = "_read_at", "_fetched_at"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Unpack the fixture `plain`, which the release before versions wrote."""
    with tarfile.open(HERE / "plain.tar.xz") as archive:
        archive.extractall(tmp_path, filter="tar")
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    workspace.configure_dlt()
    return workspace


def tables_with(workspace: Workspace, column: str) -> set[tuple[str, str]]:
    with build_destination(workspace).open_writer() as connection:
        return set(
            connection.execute(
                "SELECT schema_name, table_name FROM duckdb_columns() "
                "WHERE column_name = ? AND schema_name LIKE 'msgbubbles%'",
                [column],
            ).fetchall()
        )


def read_dlt_files(workspace: Workspace) -> dict[str, tuple[set[str], Any]]:
    """Return the columns in the stored schema of each pipeline, and its state."""
    pipelines = {}
    for name in PIPELINES:
        shutil.rmtree(workspace.folder / "dlt" / name, ignore_errors=True)
        pipeline = build_pipeline(build_destination(workspace), name)
        pipeline.sync_destination()
        [schema_name] = pipeline.schema_names
        tables = pipeline.schemas[schema_name].tables.values()
        pipelines[name] = ({column for table in tables for column in table["columns"]}, pipeline.state.get("sources"))
    return pipelines


class StopHereError(Exception):
    """Stands for a kill of the process."""


def stop_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Stop a migration after this many calls."""
    done = 0

    def stops(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if done == calls:
                raise StopHereError
            done += 1
            return function(*arguments, **options)

        return run

    for name in ("remove", "store_version", "_rename_in_tables", "build_pipeline"):
        monkeypatch.setattr(migrations, name, stops(getattr(migrations, name)))


@pytest.mark.parametrize("calls", range(2, 9, pick_size(4, nightly=2)))
def test_killed_migration_is_continued(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    expected = {name: state for name, (_, state) in read_dlt_files(workspace).items()}
    tables = tables_with(workspace, OLD)
    assert tables
    with monkeypatch.context() as patch:
        stop_after(patch, calls)
        with pytest.raises(StopHereError):
            migrate(build_context(workspace))
    with pytest.raises(UsageError, match=r"Run chats\.py once"):
        check_version(build_destination(workspace))

    migrate(build_context(workspace))
    assert (tables_with(workspace, OLD), tables_with(workspace, NEW)) == (set(), tables)
    for name, (columns, state) in read_dlt_files(workspace).items():
        assert NEW in columns
        assert OLD not in columns
        assert state == expected[name]
    with build_destination(workspace).open_writer() as connection:
        assert connection.execute("SELECT version FROM msgbubbles._version").fetchall() == [(LAYOUT_VERSION,)]
        for mart in ("thread_activity", "contact", "typing_daily"):
            connection.execute(f"FROM marts.{mart}").fetchall()
    console = RecordingConsole()
    migrate(build_context(workspace, console=console))
    assert (workspace.version, console.lines) == (LAYOUT_VERSION, [])


def test_version_is_stored_once_its_step_is_done(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    versions: list[tuple[int, int]] = []

    def step(destination: Destination) -> None:
        versions.append((destination.workspace.version, migrations._read_warehouse_version(destination)))

    monkeypatch.setattr(migrations, "STEPS", [step] * LAYOUT_VERSION)
    migrate(build_context(workspace))
    assert versions == [(number, number) for number in range(LAYOUT_VERSION)]


def test_published_file_is_migrated_without_its_workspace(workspace: Workspace) -> None:
    shutil.rmtree(workspace.folder)
    workspace.make_folders()
    assert workspace.version == LAYOUT_VERSION
    migrate(build_context(workspace))
    assert tables_with(workspace, OLD) == set()


def test_group_tables_get_the_load_id_that_marts_need_and_runs_keep_their_number_of_batches(
    workspace: Workspace,
) -> None:
    with duckdb.connect(str(workspace.work)) as connection:
        for table in migrations.GROUP_TABLES:
            connection.execute(f"ALTER TABLE msgbubbles.{table} DROP COLUMN _dlt_load_id")
        query = "SELECT run_id, slices FROM msgbubbles.sync_runs ORDER BY 1"  # codespell:ignore slices
        before = connection.execute(query).fetchall()
    records: list[Any] = RunLog(workspace.folder).records()
    logged = [record["slices"] for record in records]  # codespell:ignore slices
    assert before
    assert logged
    migrate(build_context(workspace))
    with duckdb.connect(str(workspace.work)) as connection:
        for table in migrations.GROUP_TABLES:
            [(count,)] = connection.execute(
                f"SELECT count(*) FROM msgbubbles.{table} WHERE _dlt_load_id IS NULL"
            ).fetchall()
            assert count == 0
        assert connection.execute("SELECT run_id, batches FROM msgbubbles.sync_runs ORDER BY 1").fetchall() == before
    assert [record["batches"] for record in RunLog(workspace.folder).records()] == logged


def test_newer_release_is_refused(workspace: Workspace) -> None:
    migrate(build_context(workspace))
    destination = build_destination(workspace)
    destination.publish()
    check_version(destination)
    with destination.open_writer() as connection:
        connection.execute(f"UPDATE msgbubbles._version SET version = {LAYOUT_VERSION + 1}")
    destination.publish()
    with pytest.raises(UsageError, match=r"newer release.*Upgrade,\nor choose another --database"):
        check_version(destination)
    # It is refused without its workspace too.
    shutil.rmtree(workspace.folder)
    workspace.make_folders()
    with pytest.raises(UsageError, match="newer release"):
        migrate(build_context(workspace))
    workspace.store_version(LAYOUT_VERSION + 1)
    with pytest.raises(UsageError, match="newer release"):
        migrate(build_context(workspace))
    with pytest.raises(UsageError, match="newer release"):
        check_version(destination)


def test_new_workspace_after_a_full_disk_needs_no_upgrade(tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    with full_disk(), pytest.raises(OSError, match="too large"):
        workspace.make_folders()
    workspace.make_folders()
    check_version(build_destination(workspace))
    assert workspace.version == LAYOUT_VERSION
    (workspace.folder / "version").unlink()
    (workspace.dlt_folder / "state.json").touch()
    workspace.make_folders()
    with pytest.raises(UsageError, match=r"Run chats\.py once"):
        check_version(build_destination(workspace))


@pytest.fixture(params=["postgres", pytest.param("ducklake", marks=nightly), "filesystem"])
def job(
    request: pytest.FixtureRequest, postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Job, Any]]:
    """Build a job with another destination than a DuckDB file."""
    account = Account()
    seed(account, now=datetime.now(UTC), chats=20, messages=150, days=20)
    with serve(account) as server:
        variables = {
            "DESTINATION__POSTGRES__CREDENTIALS": postgres_address,
            **lake_at(postgres_address, tmp_path / "lake"),
        }
        for name, value in {**variables, "DESTINATION__FILESYSTEM__BUCKET_URL": str(tmp_path / "files")}.items():
            monkeypatch.setenv(name, value)
        yield Job(tmp_path, server), request.param
    account.close()


def drop_version(workspace: Workspace, destination: Any) -> None:
    (workspace.folder / "version").unlink()
    if workspace.destination == "filesystem":
        shutil.rmtree(destination.tables_folder / "_version")
        destination.publish()
    else:
        with destination.open_writer() as connection:
            connection.execute(f"DROP TABLE {destination.write_schema}._version")


def test_tables_of_other_destinations_are_migrated_without_reading_again(
    job: tuple[Job, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, name = job
    into = ("--destination", name)
    runner.run(*into)
    workspace = Workspace.from_path(runner.database, name)
    workspace.configure_dlt()
    destination = build_destination(workspace)
    # Rename back what the release before versions called otherwise.
    rank = KeyedTable.rank.fget  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(KeyedTable, "rank", property(lambda table: rank(table).replace(NEW, OLD)))
        rename_column(destination, NEW, OLD)
        migrations._rename_in_warehouse(destination, "batches", "slices")  # codespell:ignore slices
        drop_version(workspace, destination)
    with destination.open_reader() as connection:
        assert OLD in {row[0] for row in connection.execute("DESCRIBE msgbubbles.messages").fetchall()}
    runner.ask("status", *into, status=2)

    chat = runner.server.truth().chats[0]["id"]
    runner.server.account.add_message(NewMessage(chat, "outbound", "since", datetime.now(UTC), "sent"))
    outcome = runner.run(*into)
    assert outcome.requests <= 5
    with destination.open_reader() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        columns = {row[0] for row in connection.execute("DESCRIBE msgbubbles.messages").fetchall()}
        assert (OLD in columns, NEW in columns) == (False, True)
        assert differences_of(select_rows(connection), runner.server.truth()) == {}
    assert runner.ask("status", *into)
