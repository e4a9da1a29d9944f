"""Build dlt's destination for Parquet files: it stores the keys of tables, and reads only the current row of a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlt.common.schema.utils import get_columns_names_with_prop
from dlt.destinations import filesystem
from dlt.destinations.impl.filesystem.filesystem import FilesystemClient
from dlt.destinations.impl.filesystem.sql_client import FilesystemSqlClient
from dlt.destinations.sql_client import SqlClientBase

from .parquet_tables import TABLES_FILE, KeyedTable, read_described_tables, write_json

# dlt writes a file for each load, and reads none of them again.
MAX_LOADS = 1000


class TableFiles(filesystem):
    """A folder of Parquet files, and of the keys of their tables."""

    @property
    def destination_type(self) -> str:
        return "warehouse.lake_dlt.TableFiles"  # as it is in the state of earlier runs

    @property
    def client_class(self) -> type[FilesystemClient]:
        return _Client


class _Client(FilesystemClient):
    @FilesystemClient.sql_client.getter  # type: ignore[attr-defined, untyped-decorator]
    def sql_client(self) -> SqlClientBase[Any]:
        if self._sql_client is None:  # few steps of a load need its database
            self._sql_client = _SqlClient(self, self.dataset_name)
        return self._sql_client

    def list_table_files(self, table_name: str, schema_name: str | None = None) -> list[str]:
        """List the files of a table, without those that `move_damaged_files` has renamed."""
        files = super().list_table_files(table_name, schema_name=schema_name)
        return [path for path in files if ".damaged-" not in path.rpartition("/")[2]]

    def update_stored_schema(self, *args: Any, **kwargs: Any) -> Any:
        """Store the key of each table before its first rows."""
        update = super().update_stored_schema(*args, **kwargs)
        folder = Path(self.dataset_path)
        before = read_described_tables(folder)
        after = before | {table["name"]: _table_from_schema(table) for table in self.schema.data_tables()}
        if after != before:
            write_json(folder / TABLES_FILE, after)
        return update

    def complete_load(self, load_id: str) -> None:
        """Store that a load is complete, and remove the oldest of these records."""
        super().complete_load(load_id)
        folder = Path(self.dataset_path) / self.schema.loads_table_name
        records = sorted(folder.glob("*.jsonl"), key=lambda path: path.stem.rpartition("__")[2])
        for path in records[:-MAX_LOADS]:
            path.unlink(missing_ok=True)


class _SqlClient(FilesystemSqlClient):
    def create_view_select(self, table_schema: Any, schema: Any = None) -> tuple[str, str] | None:
        select = super().create_view_select(table_schema, schema)
        if select is None or self.remote_client.is_dlt_table(table_schema["name"]):
            return select
        return select[0], select[1] + _table_from_schema(table_schema).qualify


def _table_from_schema(schema: Any) -> KeyedTable:
    return KeyedTable(
        tuple(get_columns_names_with_prop(schema, "primary_key")),
        has_fetched_at="_fetched_at" in schema["columns"],
        first_stays=schema.get("x-merge-strategy") == "insert-only",
    )


def build_table_files(folder: Path) -> TableFiles:
    """Return dlt's destination for this folder."""
    return TableFiles(str(folder), kwargs={"auto_mkdir": True})
