"""Upgrade a workspace and a warehouse that an older release wrote.

To rename something on users' disks or in their warehouses, add a step to `STEPS` and raise `workspace.VERSION`. A step
may be killed anywhere and is then repeated, so it must do nothing to what it has changed already.

Imports dlt, so `Workspace.configure_dlt` comes before it. The caller holds the warehouse's lock.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from msgbubbles_sync.dbt.runner import forget_build
from msgbubbles_sync.sql import quote_literal, quote_name

from .destinations import Destination, build_destination
from .destinations.load import build_pipeline
from .destinations.parquet_files import ParquetFiles
from .destinations.version import READ_AT, published_version, refuse_newer, store_version, stored_version
from .files import remove, sync_to_disk
from .workspace import PIPELINE, VERSION, VERSION_TABLE, Workspace

PIPELINES = (PIPELINE, "msgbubbles_groups", "msgbubbles_webhooks")
GROUP_TABLES = ("group_operations", "group_member_operations", "group_sightings")


def migrate(workspace: Workspace, say: Callable[[str], None]) -> None:
    """Bring workspace and warehouse to the version of this release. Raises `UsageError` if they have a newer one."""
    refuse_newer(workspace.version, str(workspace.folder))
    destination = build_destination(workspace)
    is_file = workspace.destination == "duckdb"
    if is_file and not workspace.work.exists():  # it is restored from the published file
        workspace.store_version(min(workspace.version, published_version(destination)))
    elif is_file and workspace.version == VERSION:  # that database is a part of the workspace
        return
    if is_file:
        destination.prepare()
    has_tables = _has_tables(workspace, destination)
    version = _warehouse_version(destination) if has_tables else VERSION
    refuse_newer(version, destination.title)
    if workspace.version == version == VERSION:
        return
    destination.prepare()
    say("upgrading the files and tables of an older release")
    workspace.set_pending("transform", "publish")
    forget_build(workspace)
    # What an older release has extracted and not loaded is read again, from where the last finished load ended.
    for name in PIPELINES:
        remove(workspace.folder / "dlt" / name)
    for number in range(min(workspace.version, version), VERSION):
        # A run that is killed leaves what makes the next one repeat the step.
        workspace.store_version(number)
        if has_tables:
            _store_version(destination, number)
            STEPS[number](workspace, destination)
            _store_version(destination, number + 1)
        workspace.store_version(number + 1)


def _has_tables(workspace: Workspace, destination: Destination) -> bool:
    if isinstance(destination, ParquetFiles):
        return destination._tables.exists()
    return workspace.work.exists() if workspace.destination == "duckdb" else destination.exists()


def _warehouse_version(destination: Destination) -> int:
    """Return the version of the tables that the job writes."""
    if not isinstance(destination, ParquetFiles):
        with destination.open_writer() as connection:
            return stored_version(connection, destination.write_schema)
    # Views of an older release's files cannot be made.
    file = destination._tables / VERSION_TABLE / f"{VERSION_TABLE}.parquet"
    if file.exists():
        return int(pq.read_table(file)["version"][0].as_py())
    files = destination._tables.glob("[!_]*/*.parquet")
    return 0 if any(READ_AT in pq.read_schema(path).names for path in files) else VERSION


def _store_version(destination: Destination, version: int) -> None:
    if not isinstance(destination, ParquetFiles):
        with destination.open_writer() as connection:
            store_version(connection, destination.write_schema, version)
        return
    folder = destination._tables / VERSION_TABLE
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"version": [version]}), folder / ".new")
    sync_to_disk(folder / ".new")
    (folder / ".new").replace(folder / f"{VERSION_TABLE}.parquet")


def _rename_read_at(workspace: Workspace, destination: Destination) -> None:
    """`_read_at` became `_fetched_at`; and tables of groups may lack `_dlt_load_id`, of a load without dlt's
    configuration.
    """
    if not isinstance(destination, ParquetFiles):
        with destination.open_writer() as connection:
            for schema in (destination.write_schema, f"{destination.write_schema}_staging"):
                _add_load_ids(connection, schema)
    rename_column(workspace, destination, READ_AT, "_fetched_at")


# Step n brings version n to n + 1.
STEPS: list[Callable[[Workspace, Destination], None]] = [_rename_read_at]


def rename_column(workspace: Workspace, destination: Destination, old: str, new: str) -> None:
    """Rename a column in every table that dlt has made, in its stored schemas, and in the views that use it."""
    if isinstance(destination, ParquetFiles):
        _rename_in_files(destination, old, new)
    else:
        with destination.open_writer() as connection:
            if "." in destination.write_schema:
                connection.execute("USE warehouse")
            connection.execute("BEGIN")
            _rename_in_tables(connection, destination, old, new)
            connection.execute("COMMIT")
    for name in PIPELINES:
        pipeline = build_pipeline(workspace, name)
        pipeline.sync_destination()
        for schema_name in pipeline.schema_names:
            schema = pipeline.schemas[schema_name]
            for table in schema.tables.values():
                columns = table["columns"].items()
                table["columns"] = {
                    new if column == old else column: {**hints, "name": new} if column == old else hints
                    for column, hints in columns
                }
            pipeline.schemas.save_schema(schema)
            pipeline.sync_schema(schema_name)
    if isinstance(destination, ParquetFiles):  # readers' queries name the column
        destination.publish()


def _rename_in_tables(connection: duckdb.DuckDBPyConnection, destination: Destination, old: str, new: str) -> None:
    for schema in (destination.write_schema, f"{destination.write_schema}_staging"):
        for table, columns in _tables(connection, schema).items():
            if old in columns:
                connection.execute(
                    f"ALTER TABLE {schema}.{quote_name(table)} RENAME COLUMN {quote_name(old)} TO {quote_name(new)}"
                )
    # On a server, they follow by themselves.
    views = connection.execute(
        "SELECT sql FROM duckdb_views() WHERE database_name = current_database() AND contains(sql, ?) "
        "AND schema_name IN (?, ?)", [old, f"{destination.prefix}staging", f"{destination.prefix}marts"],
    ).fetchall()  # fmt: skip
    for (sql,) in views:
        query = re.sub(rf"\b{old}\b", new, sql)
        connection.execute(re.sub(r"^CREATE VIEW", "CREATE OR REPLACE VIEW", query))


def _rename_in_files(destination: ParquetFiles, old: str, new: str) -> None:
    """Replace each file by one with the new name; who reads the old one goes on reading it."""
    for path in destination._tables.glob("[!_]*/*.parquet"):
        if old in pq.read_schema(path).names:
            copy = path.with_suffix(".new")
            with duckdb.connect() as connection:
                connection.execute("SET preserve_insertion_order = false")
                rows = f"SELECT * RENAME ({old} AS {new}) FROM read_parquet({quote_literal(str(path))})"  # noqa: S608
                connection.execute(f"COPY ({rows}) TO {quote_literal(str(copy))} (FORMAT parquet)")
            sync_to_disk(copy)
            copy.replace(path)


def _add_load_ids(connection: duckdb.DuckDBPyConnection, schema: str) -> None:
    """Add `_dlt_load_id` to the tables of groups that lack it: the marts need it."""
    tables = _tables(connection, schema)
    for table in GROUP_TABLES:
        if table in tables and "_dlt_load_id" not in tables[table]:
            connection.execute(f"ALTER TABLE {schema}.{table} ADD COLUMN _dlt_load_id VARCHAR")
            connection.execute(f"UPDATE {schema}.{table} SET _dlt_load_id = '0'")  # noqa: S608


def _tables(connection: duckdb.DuckDBPyConnection, schema: str) -> dict[str, list[str]]:
    """The columns of each table in a schema."""
    found: dict[str, list[str]] = {}
    database, _, name = schema.rpartition(".")
    rows = connection.execute(
        "SELECT table_name, column_name FROM duckdb_columns() JOIN duckdb_tables() USING (database_name, schema_name, "
        "table_name) WHERE database_name = coalesce(nullif(?, ''), current_database()) AND schema_name = ?",
        [database, name],
    ).fetchall()
    for table, column in rows:
        found.setdefault(table, []).append(column)
    return found
