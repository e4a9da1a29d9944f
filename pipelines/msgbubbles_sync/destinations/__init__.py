"""The destinations of a warehouse: a DuckDB file, a PostgreSQL server, a lake, or Parquet files.

Loads go through dlt, and transforms through dbt. Everything else uses a DuckDB connection, which reads and writes all
destinations, so each query is written once.
"""

from __future__ import annotations

from collections.abc import Callable

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.settings import SyncSettings
from msgbubbles_sync.workspace import Workspace

from .base import Destination as Destination
from .duckdb_file import DuckDBFile
from .ducklake import DuckLake
from .parquet_files import ParquetFiles
from .postgres import Postgres

DESTINATIONS: dict[str, Callable[[Workspace, SyncSettings], Destination]] = {
    "duckdb": DuckDBFile,
    "postgres": Postgres,
    "ducklake": DuckLake,
    "filesystem": ParquetFiles,
}


def build_destination(workspace: Workspace, settings: SyncSettings) -> Destination:
    """Return the destination of a workspace. Raises `UsageError` if it cannot have the configured schemas."""
    if workspace.destination in ("duckdb", "filesystem") and settings.schema_names != SyncSettings().schema_names:
        raise UsageError(
            f"--destination {workspace.destination}: the names of its schemas are fixed. Remove raw_schema, "
            "staging_schema and marts_schema from [sync]."
        )
    return DESTINATIONS[workspace.destination](workspace, settings)
