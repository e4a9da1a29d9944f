"""How dlt writes the tables of a folder that has no database: Parquet files, or Delta tables.

Parquet files cannot be changed, so a row that comes again is another row of its key, and whoever reads takes the
newest. Delta tables are merged by key.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
from dlt.common.destination.client import JobClientBase
from dlt.common.schema import Schema
from dlt.common.schema.utils import get_columns_names_with_prop
from dlt.destinations import filesystem
from dlt.destinations.impl.filesystem.filesystem import DeltaLoadFilesystemJob, FilesystemClient
from dlt.destinations.impl.filesystem.sql_client import FilesystemSqlClient

from .names import quoted
from .tables import TABLES, Table, is_delta, one_of_each, rows_of_delta, write_json


class TableFiles(filesystem):
    """The destination `filesystem`, with a row a key for whoever reads."""

    @property
    def client_class(self) -> type[FilesystemClient]:
        return _Client


class DeltaTables(filesystem):
    """The same with Delta tables."""

    def _raw_capabilities(self) -> Any:
        found = super()._raw_capabilities()
        found.supported_merge_strategies = ["delete-insert", *(found.supported_merge_strategies or ())]
        return found

    @property
    def client_class(self) -> type[FilesystemClient]:
        return _DeltaClient


class _Client(FilesystemClient):
    def __init__(self, schema: Schema, config: Any, capabilities: Any) -> None:
        super().__init__(schema, config, capabilities)
        self._sql_client = _SqlClient(self, self.dataset_name)

    def update_stored_schema(self, *args: Any, **kwargs: Any) -> Any:
        """Say beside the tables what is a key in each, before there are rows."""
        update = super().update_stored_schema(*args, **kwargs)
        path = Path(self.dataset_path, TABLES)
        known = json.loads(path.read_text()) if path.exists() else {}
        found = known | {table["name"]: _table(table).as_dict() for table in self.schema.data_tables()}
        if found != known:
            write_json(path, found)
        return update


class _DeltaClient(_Client):
    def prepare_load_table(self, table_name: str) -> Any:
        """All that is merged is a Delta table."""
        table: Any = JobClientBase.prepare_load_table(self, table_name)
        if table["write_disposition"] != "merge":
            return super().prepare_load_table(table_name)
        table["table_format"] = "delta"
        if table["x-merge-strategy"] == "delete-insert":
            table["x-merge-strategy"] = "upsert"  # with a row a key the same
        return table

    @staticmethod
    def get_reference_followup_job_class(table: Any) -> Any:
        return _Merge if table.get("table_format") == "delta" else None


class _Merge(DeltaLoadFilesystemJob):
    """Delta's merge puts in a new row as often as a load has it."""

    def run(self) -> None:
        table = _table(self._load_table)
        with TemporaryDirectory() as folder, duckdb.connect() as connection:
            path = Path(folder, "rows.parquet")
            rows = one_of_each(table, [*self.file_paths])
            connection.execute(f"COPY ({rows}) TO {quoted(str(path))} (FORMAT parquet)")
            self.file_paths = [str(path)]
            super().run()


class _SqlClient(FilesystemSqlClient):
    def create_view_select(self, table_schema: Any, schema: Any = None) -> tuple[str, str] | None:
        name = table_schema["name"]
        location = self.remote_client.get_table_dir(name)
        if is_delta(Path(location)):
            return location, rows_of_delta(Path(location))
        found = super().create_view_select(table_schema, schema)
        if found is None or self.remote_client.is_dlt_table(name):
            return found
        return found[0], found[1] + _table(table_schema).qualify


def _table(schema: Any) -> Table:
    return Table(
        schema["name"],
        tuple(get_columns_names_with_prop(schema, "primary_key")),
        has_read_at="_read_at" in schema["columns"],
        first_stays=schema.get("x-merge-strategy") == "insert-only",
    )
