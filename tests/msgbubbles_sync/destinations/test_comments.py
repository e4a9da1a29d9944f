"""Descriptions of tables and columns, stored as comments."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest

from helpers.context import build_destination
from msgbubbles_sync.destinations.attached import Attached
from msgbubbles_sync.destinations.comments import Comments, list_descriptions, read_comments, write_comments
from msgbubbles_sync.destinations.parquet_files import ParquetFiles
from msgbubbles_sync.destinations.postgres import Postgres
from msgbubbles_sync.destinations.postgres_marts import read_stored_comments
from msgbubbles_sync.destinations.union_accounts import combine
from msgbubbles_sync.settings import SyncSettings
from msgbubbles_sync.tables import TABLES
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow

CREATED = """CREATE SCHEMA IF NOT EXISTS {0}; CREATE TABLE {0}.chats (id VARCHAR, title VARCHAR, "o'wn" INTEGER);
CREATE TABLE {0}.sync_runs (run_id VARCHAR)"""
WRITTEN = {
    "chats": {
        "": TABLES["chats"].description,
        "id": "The API's id of the chat, a UUID.",
        "title": "The title, at most 100 characters. Null if the chat has none.",
    },
    "sync_runs": {"": TABLES["sync_runs"].description, "run_id": "The run."},
}


def comments_in(path: Path, schema: str = "msgbubbles") -> dict[str, Comments]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return comments_of(connection, path.stem, schema)


def comments_of(connection: duckdb.DuckDBPyConnection, database: str, schema: str) -> dict[str, Comments]:
    return {key[1]: texts for key, texts in read_comments(connection, database).items() if key[0] == schema}


def test_only_changed_comments_are_written(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "w.duckdb")) as connection:
        connection.execute(CREATED.format("msgbubbles"))
        for _ in range(2):
            write_comments(connection, "msgbubbles", list_descriptions())
            assert comments_of(connection, "w", "msgbubbles") == WRITTEN
        connection.execute("COMMENT ON COLUMN msgbubbles.chats.id IS 'other'; BEGIN")
        with pytest.raises(duckdb.TransactionException, match="within a transaction"):
            write_comments(connection, "msgbubbles", list_descriptions())
        connection.execute(
            "ROLLBACK; COMMENT ON COLUMN msgbubbles.chats.id IS 'The API''s id of the chat, a UUID.'; BEGIN"
        )
        write_comments(connection, "msgbubbles", list_descriptions())


def test_published_file_has_comments_and_no_staging_tables(tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "w.duckdb")
    workspace.make_folders()
    destination = build_destination(workspace)
    for text in ("first", "second"):
        with destination.open_writer() as connection:
            connection.execute("CREATE SCHEMA msgbubbles_staging; CREATE SCHEMA IF NOT EXISTS marts")
            connection.execute("CREATE TABLE msgbubbles_staging.chats AS SELECT 'chat' AS id")
            for mart in ("held", "new"):
                connection.execute(f"CREATE OR REPLACE TABLE marts.{mart} AS SELECT '{text}' AS value")
                connection.execute(f"COMMENT ON COLUMN marts.{mart}.value IS '{text}'")
        destination.publish(["held"] if text == "second" else ())
        with destination.open_reader() as connection:
            assert connection.execute("FROM duckdb_schemas() WHERE schema_name LIKE '%staging%'").fetchall() == []
    assert comments_in(workspace.database, "marts") == {"held": {"value": "first"}, "new": {"value": "second"}}


def test_file_of_all_accounts_has_their_comments(tmp_path: Path) -> None:
    files = {}
    for account in ("north", "south"):
        files[account] = tmp_path / f"w_{account}.duckdb"
        with duckdb.connect(str(files[account])) as connection:
            connection.execute(CREATED.format("msgbubbles"))
            write_comments(connection, "msgbubbles", list_descriptions())
            connection.execute("CREATE SCHEMA marts; CREATE TABLE marts.contact AS SELECT 1 AS handle")
            connection.execute("COMMENT ON TABLE marts.contact IS 'One row per handle.'")
    combine(files, "north", tmp_path / "w.duckdb", tmp_path / "combined.json", {})
    assert comments_in(tmp_path / "w.duckdb") == WRITTEN
    assert comments_in(tmp_path / "w.duckdb", "marts") == {"contact": {"": "One row per handle."}}


def test_views_of_parquet_files_have_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(tmp_path / "lake"))
    workspace = Workspace.from_path(tmp_path / "w.duckdb", "filesystem")
    workspace.make_folders()
    destination = ParquetFiles(workspace, SyncSettings())
    destination.prepare()
    with destination.open_writer() as connection:
        connection.execute("CREATE TABLE msgbubbles.sync_runs (run_id VARCHAR)")
        destination.store_comments(connection)
    destination.publish()
    assert comments_in(tmp_path / "lake" / "warehouse.duckdb") == {"sync_runs": WRITTEN["sync_runs"]}


@pytest.fixture(params=["postgres", "ducklake"])
def attached(
    request: pytest.FixtureRequest, postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Attached:
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", postgres_address)
    monkeypatch.setenv("DESTINATION__DUCKLAKE__CREDENTIALS__CATALOG", postgres_address)
    monkeypatch.setenv("DESTINATION__DUCKLAKE__CREDENTIALS__STORAGE__BUCKET_URL", str(tmp_path / "lake"))
    workspace = Workspace.from_path(tmp_path / f"company.{request.param}", request.param, "north")
    workspace.make_folders()
    destination = build_destination(workspace)
    assert isinstance(destination, Attached)
    return destination


def stored_comments(destination: Attached, connection: duckdb.DuckDBPyConnection, schema: str) -> dict[str, Comments]:
    if not isinstance(destination, Postgres):
        return comments_of(connection, "warehouse", schema)
    comments: dict[str, Comments] = {}
    for _, table, column, text, _ in read_stored_comments(connection, schema):
        if text is not None:
            comments.setdefault(table, {})[column] = text
    return comments


def test_server_and_lake_have_comments_on_tables_and_views(attached: Attached) -> None:
    attached.prepare()
    for _ in range(2):
        with attached.open_writer() as connection:
            connection.execute(
                CREATED.format(attached.write_schema).replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS")
            )
            attached.store_comments(connection)
            assert stored_comments(attached, connection, attached.dataset) == WRITTEN
    attached.publish()
    with attached.open_writer() as connection:
        views = stored_comments(attached, connection, "msgbubbles")
    account = {"account": "The account of the row."}
    if isinstance(attached, Postgres):
        described = {table: texts | account for table, texts in WRITTEN.items()}
        assert views == described | {"accounts": {"account": "The account's name."}}
    else:  # DuckLake stores no comments on the columns of views
        assert views == {table: {"": texts[""]} for table, texts in WRITTEN.items()}
