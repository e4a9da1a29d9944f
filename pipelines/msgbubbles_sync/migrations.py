"""Upgrade a workspace and a warehouse that an older release wrote.

To rename something on users' disks or in their warehouses, add a step to `STEPS` and raise `workspace.LAYOUT_VERSION`.
A step may be killed anywhere and is then repeated, so it must skip what it has changed already.

The caller holds the warehouse's lock.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import duckdb

from msgbubbles.lazy_pyarrow import pa, pq
from msgbubbles_sync.dbt.build_result import load_build_result
from msgbubbles_sync.dbt.runner import forget_build
from msgbubbles_sync.sql import list_columns, list_tables, quote_literal, quote_name, transaction

from .context import Context
from .destinations import Destination
from .destinations.load import build_pipeline
from .destinations.loaded_tables import READ_AT
from .destinations.parquet_files import ParquetFiles
from .destinations.version import read_published_version, read_stored_version, refuse_newer, store_version
from .files import remove, sync_to_disk, write_privately
from .run_log import FILE as RUN_LOG
from .tables import VERSION_TABLE
from .workspace import LAYOUT_VERSION, PIPELINE

PIPELINES = (PIPELINE, "msgbubbles_groups", "msgbubbles_webhooks")
GROUP_TABLES = ("group_operations", "group_member_operations", "group_sightings")


def migrate(context: Context) -> None:
    """Bring workspace and warehouse to the version of this release. Raises `UsageError` if they have a newer one."""
    workspace, destination = context.workspace, context.destination
    refuse_newer(workspace.version, str(workspace.folder))
    is_file = workspace.destination == "duckdb"
    if is_file and not workspace.work.exists():  # `prepare` restores it from the published file
        workspace.store_version(min(workspace.version, read_published_version(destination)))
    elif is_file and workspace.version == LAYOUT_VERSION:  # the work database is a part of the workspace
        return
    if is_file:
        destination.prepare()
    has_tables = destination.has_tables()
    version = _read_warehouse_version(destination) if has_tables else LAYOUT_VERSION
    refuse_newer(version, destination.title)
    if workspace.version == version == LAYOUT_VERSION:
        return
    with destination.lock():
        destination.prepare()
        context.console.say("upgrading the files and tables of an older release")
        _upgrade(destination, version, has_tables=has_tables)


def _upgrade(destination: Destination, version: int, *, has_tables: bool) -> None:
    workspace = destination.workspace
    workspace.set_pending("transform", "publish")
    forget_build(workspace)
    # Rows that an older release has extracted and not loaded are read again, from the end of the last finished load.
    for name in PIPELINES:
        remove(workspace.dlt_folder / name)
    for number in range(min(workspace.version, version), LAYOUT_VERSION):
        # If this run is killed, the next one finds the version of the step, and repeats it.
        workspace.store_version(number)
        if has_tables:
            _store_version(destination, number)
            STEPS[number](destination)
            _store_version(destination, number + 1)
        workspace.store_version(number + 1)


def _read_warehouse_version(destination: Destination) -> int:
    """Return the version of the tables that the job writes."""
    if not isinstance(destination, ParquetFiles):
        with destination.open_writer() as connection:
            return read_stored_version(connection, destination.write_schema)
    # No views can be created on the files of an older release.
    if (file := _get_version_file(destination)).exists():
        return int(pq.read_table(file)["version"][0].as_py())
    files = destination.tables_folder.glob("[!_]*/*.parquet")
    return 0 if any(READ_AT in pq.read_schema(path).names for path in files) else LAYOUT_VERSION


def _store_version(destination: Destination, version: int) -> None:
    if not isinstance(destination, ParquetFiles):
        with destination.open_writer() as connection:
            store_version(connection, destination.write_schema, version)
        return
    file = _get_version_file(destination)
    file.parent.mkdir(exist_ok=True)
    new = file.with_name(".new")
    pq.write_table(pa.table({"version": [version]}), new)
    sync_to_disk(new)
    new.replace(file)


def _get_version_file(destination: ParquetFiles) -> Path:
    return destination.tables_folder / VERSION_TABLE.name / f"{VERSION_TABLE.name}.parquet"


def _rename_read_at(destination: Destination) -> None:
    """Rename `_read_at` to `_fetched_at`, and add `_dlt_load_id` to the tables of groups.

    They lack it if an older release loaded them without dlt's configuration.
    """
    if not isinstance(destination, ParquetFiles):
        with destination.open_writer() as connection:
            for schema in (destination.write_schema, f"{destination.write_schema}_staging"):
                _add_load_ids(connection, schema)
    rename_column(destination, READ_AT, "_fetched_at")


def _rename_slices(destination: Destination) -> None:
    _rename_in_warehouse(destination, "slices", "batches")  # codespell:ignore slices
    path = destination.workspace.folder / RUN_LOG
    if path.exists():
        write_privately(path, path.read_bytes().replace(b'"slices":', b'"batches":'))  # codespell:ignore slices
    _republish(destination)


# Step n brings version n to n + 1.
STEPS: list[Callable[[Destination], None]] = [_rename_read_at, _rename_slices]


def rename_column(destination: Destination, old: str, new: str) -> None:
    """Rename a column in every table, in dlt's stored schemas, and in the views that use it."""
    _rename_in_warehouse(destination, old, new)
    for name in PIPELINES:
        pipeline = build_pipeline(destination, name)
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
    _republish(destination)


def _republish(destination: Destination) -> None:
    """Publish files again, for the names of columns in the queries of views; marts that failed stay as they were."""
    if isinstance(destination, ParquetFiles):
        built = load_build_result(destination.workspace)
        destination.publish([*built.unbuilt_marts, *built.marts])


def _rename_in_warehouse(destination: Destination, old: str, new: str) -> None:
    if isinstance(destination, ParquetFiles):
        _rename_in_files(destination, old, new)
        return
    with destination.open_writer() as connection:
        if "." in destination.write_schema:
            connection.execute("USE warehouse")
        with transaction(connection):
            _rename_in_tables(connection, destination, old, new)


def _rename_in_tables(connection: duckdb.DuckDBPyConnection, destination: Destination, old: str, new: str) -> None:
    for schema in (destination.write_schema, f"{destination.write_schema}_staging"):
        columns = list_columns(connection, schema)
        for table in list_tables(connection, schema):
            if old in columns[table]:
                connection.execute(
                    f"ALTER TABLE {schema}.{quote_name(table)} RENAME COLUMN {quote_name(old)} TO {quote_name(new)}"
                )
    # A server renames the column in its views by itself.
    views = connection.execute(
        "SELECT sql FROM duckdb_views() WHERE database_name = current_database() AND contains(sql, ?) "
        "AND schema_name IN (?, ?)", [old, destination.name_schema("staging"), destination.name_schema("marts")],
    ).fetchall()  # fmt: skip
    for (sql,) in views:
        query = re.sub(rf"\b{old}\b", new, sql)
        connection.execute(re.sub(r"^CREATE VIEW", "CREATE OR REPLACE VIEW", query))


def _rename_in_files(destination: ParquetFiles, old: str, new: str) -> None:
    """Replace each file by one with the new name; readers that have the old file open keep reading it."""
    for path in destination.tables_folder.glob("[!_]*/*.parquet"):
        if old in pq.read_schema(path).names:
            copy = path.with_suffix(".new")
            with duckdb.connect() as connection:
                connection.execute("SET preserve_insertion_order = false")
                rows = f"SELECT * RENAME ({old} AS {new}) FROM read_parquet({quote_literal(str(path))})"  # noqa: S608
                connection.execute(f"COPY ({rows}) TO {quote_literal(str(copy))} (FORMAT parquet)")
            sync_to_disk(copy)
            copy.replace(path)


def _add_load_ids(connection: duckdb.DuckDBPyConnection, schema: str) -> None:
    """Add `_dlt_load_id`, which the marts need, to the tables of groups that lack it."""
    tables = list_columns(connection, schema)
    for table in GROUP_TABLES:
        if table in tables and "_dlt_load_id" not in tables[table]:
            connection.execute(f"ALTER TABLE {schema}.{table} ADD COLUMN _dlt_load_id VARCHAR")
            connection.execute(f"UPDATE {schema}.{table} SET _dlt_load_id = '0'")  # noqa: S608
