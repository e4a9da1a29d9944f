"""What an older release wrote is brought to this one's version, wherever it stopped, and a newer one is refused."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers import postgres
from helpers.job import Job
from helpers.lake import lake_at
from helpers.warehouse_rows import differences_of, landed_in
from msgbubbles_sync import migrations
from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.destinations.parquet_tables import Table
from msgbubbles_sync.destinations.version import check_version
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.migrations import PIPELINES, migrate, rename_column
from msgbubbles_sync.sandbox import Account, NewMessage, seed, serve
from msgbubbles_sync.workspace import VERSION, Workspace

HERE = Path(__file__).parent
OLD, NEW = "_read_at", "_fetched_at"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """The fixture `plain`, which the release before versions wrote."""
    with tarfile.open(HERE / "plain.tar.xz") as archive:
        archive.extractall(tmp_path, filter="tar")
    found = Workspace.from_path(tmp_path / "company.duckdb")
    found.make_folders()
    found.configure_dlt()
    return found


def tables_with(workspace: Workspace, column: str) -> set[tuple[str, str]]:
    with build_destination(workspace).open_writer() as connection:
        return set(
            connection.execute(
                "SELECT schema_name, table_name FROM duckdb_columns() "
                "WHERE column_name = ? AND schema_name LIKE 'msgbubbles%'",
                [column],
            ).fetchall()
        )


def dlt_knows(workspace: Workspace) -> dict[str, tuple[set[str], Any]]:
    """The columns that the stored schema of each pipeline has, and what its state remembers."""
    found = {}
    for name in PIPELINES:
        shutil.rmtree(workspace.folder / "dlt" / name, ignore_errors=True)
        pipeline = build_pipeline(workspace, name)
        pipeline.sync_destination()
        [schema_name] = pipeline.schema_names
        tables = pipeline.schemas[schema_name].tables.values()
        found[name] = ({column for table in tables for column in table["columns"]}, pipeline.state.get("sources"))
    return found


class StopHereError(Exception):
    """As if the process had been killed."""


def stopping_after(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """Stop a migration after so many of the things that it does."""
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


@pytest.mark.parametrize("calls", [2, 4, 6, 8])
def test_migration_goes_on_where_it_was_killed(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    expected = {name: state for name, (_, state) in dlt_knows(workspace).items()}
    tables = tables_with(workspace, OLD)
    assert tables
    with monkeypatch.context() as patch:
        stopping_after(patch, calls)
        with pytest.raises(StopHereError):
            migrate(workspace, print)
    with pytest.raises(UsageError, match=r"Run chats\.py once"):
        check_version(workspace, build_destination(workspace))

    migrate(workspace, print)
    assert (tables_with(workspace, OLD), tables_with(workspace, NEW)) == (set(), tables)
    for name, (columns, state) in dlt_knows(workspace).items():
        assert NEW in columns
        assert OLD not in columns
        assert state == expected[name]
    with build_destination(workspace).open_writer() as connection:
        assert connection.execute("SELECT version FROM msgbubbles._version").fetchall() == [(VERSION,)]
        for mart in ("thread_activity", "contact", "typing_daily"):
            connection.execute(f"FROM marts.{mart}").fetchall()
    said: list[str] = []
    migrate(workspace, said.append)
    assert (workspace.version, said) == (VERSION, [])


def test_published_file_of_older_release_is_migrated_without_its_workspace(workspace: Workspace) -> None:
    shutil.rmtree(workspace.folder)
    workspace.make_folders()
    assert workspace.version == VERSION
    migrate(workspace, print)
    assert tables_with(workspace, OLD) == set()


def test_tables_of_groups_get_the_load_id_that_marts_need(workspace: Workspace) -> None:
    with duckdb.connect(str(workspace.work)) as connection:
        for table in migrations.GROUP_TABLES:
            connection.execute(f"ALTER TABLE msgbubbles.{table} DROP COLUMN _dlt_load_id")
    migrate(workspace, print)
    with duckdb.connect(str(workspace.work)) as connection:
        for table in migrations.GROUP_TABLES:
            [(count,)] = connection.execute(
                f"SELECT count(*) FROM msgbubbles.{table} WHERE _dlt_load_id IS NULL"
            ).fetchall()
            assert count == 0


def test_what_a_newer_release_wrote_is_refused(workspace: Workspace) -> None:
    migrate(workspace, print)
    destination = build_destination(workspace)
    destination.publish()
    check_version(workspace, destination)
    with destination.open_writer() as connection:
        connection.execute(f"UPDATE msgbubbles._version SET version = {VERSION + 1}")
    destination.publish()
    with pytest.raises(UsageError, match=r"newer release.*Upgrade,\nor choose another --database"):
        check_version(workspace, destination)
    # Also where the workspace is lost.
    shutil.rmtree(workspace.folder)
    workspace.make_folders()
    with pytest.raises(UsageError, match="newer release"):
        migrate(workspace, print)
    workspace.store_version(VERSION + 1)
    for command in (migrate, lambda place, _say: check_version(place, destination)):
        with pytest.raises(UsageError, match="newer release"):
            command(workspace, print)


@pytest.fixture(params=["postgres", "ducklake", "filesystem"])
def job(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Job, Any]]:
    """A job with another destination than a DuckDB file."""
    account = Account()
    seed(account, now=datetime.now(UTC), chats=20, messages=150, days=20)
    with serve(account) as server, postgres.running(tmp_path / "server") as address:
        found = {"DESTINATION__POSTGRES__CREDENTIALS": address, **lake_at(address, tmp_path / "lake")}
        for name, value in {**found, "DESTINATION__FILESYSTEM__BUCKET_URL": str(tmp_path / "files")}.items():
            monkeypatch.setenv(name, value)
        yield Job(tmp_path, server), request.param
    account.close()


def drop_version(workspace: Workspace, destination: Any) -> None:
    (workspace.folder / "version").unlink()
    if workspace.destination == "filesystem":
        shutil.rmtree(destination._tables / "_version")
        destination.publish()
    else:
        with destination.open_writer() as connection:
            connection.execute(f"DROP TABLE {destination.write_schema}._version")


def test_tables_elsewhere_are_migrated_and_not_read_again(
    job: tuple[Job, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, name = job
    into = ("--destination", name)
    runner.run(*into)
    workspace = Workspace.from_path(runner.database, name)
    workspace.configure_dlt()
    destination = build_destination(workspace)
    # As the release before versions would have left it.
    rank = Table.rank.fget  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setattr(Table, "rank", property(lambda table: rank(table).replace(NEW, OLD)))
        rename_column(workspace, destination, NEW, OLD)
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
        assert differences_of(landed_in(connection), runner.server.truth()) == {}
    assert runner.ask("status", *into)
