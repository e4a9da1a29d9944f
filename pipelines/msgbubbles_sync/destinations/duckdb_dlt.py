"""Build dlt's destination for a DuckDB file, whose path may have any character that dlt's own cannot quote."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlt.destinations.impl.duckdb.configuration import DuckDbCredentials
from dlt.destinations.impl.duckdb.duck import DuckDbClient, DuckDbCopyJob
from dlt.destinations.impl.duckdb.factory import duckdb

from msgbubbles_sync.sql import quote_literal


class DatabaseFile(duckdb):
    """A DuckDB destination that quotes the paths of what it loads."""

    @property
    def destination_type(self) -> str:
        return "dlt.destinations.duckdb"  # as it is in the state of earlier runs

    @property
    def client_class(self) -> type[DuckDbClient]:
        return _Client


class _Client(DuckDbClient):
    def create_load_job(self, table: Any, file_path: str, load_id: str, restore: bool = False) -> Any:
        job = super().create_load_job(table, file_path, load_id, restore)
        return _Copy(file_path) if isinstance(job, DuckDbCopyJob) else job


class _Copy(DuckDbCopyJob):
    def run(self) -> None:
        client = self._job_client.sql_client
        table = client.make_qualified_table_name(self.load_table_name)
        # DuckDB expands * and so on, and reads a column from a folder `name=value`.
        files = f"read_parquet({quote_literal(glob.escape(self._file_path))}, hive_partitioning = false)"
        client.execute_sql(f"INSERT INTO {table} BY NAME SELECT * FROM {files}")  # noqa: S608


def build_database_file(path: Path, options: Mapping[str, Any]) -> DatabaseFile:
    """Return dlt's destination for a file, with the configuration of DuckDB."""
    return DatabaseFile(DuckDbCredentials(str(path), global_config=dict(options)))
