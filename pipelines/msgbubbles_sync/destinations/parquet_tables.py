"""The tables of a dataset of Parquet files: their keys, and which row of a key is current.

Parquet files cannot be changed, so a row that is loaded again is another row with the same key.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from msgbubbles_sync.files import sync_to_disk
from msgbubbles_sync.sql import quote_literal

# The file that describes the tables of a dataset, in its folder.
TABLES_FILE = "_tables.json"


class KeyedTable(msgspec.Struct, frozen=True):
    """The key of a table. The current row of a key is that of the latest load, and in it the one fetched last.

    With `first_stays`, it is the first row of the first load.
    """

    key: tuple[str, ...]
    has_fetched_at: bool = msgspec.field(default=True, name="has_read_at")  # as it is in the files of earlier runs
    first_stays: bool = False

    @property
    def rank(self) -> str:
        """An SQL expression, for DuckDB and Spark, that is 1 for the current row of a key."""
        direction = "" if self.first_stays else " DESC"
        order = [f"{name}{direction}" for name in ("_dlt_load_id", *["_fetched_at"] * self.has_fetched_at)]
        return f"row_number() OVER (PARTITION BY {', '.join(self.key)} ORDER BY {', '.join(order)})"

    @property
    def qualify(self) -> str:
        return f" QUALIFY {self.rank} = 1"

    def build_query(self, files: Sequence[str]) -> str:
        """Return a query of DuckDB for the current row of each key."""
        listed = ", ".join(map(quote_literal, files))
        return f"SELECT * FROM read_parquet([{listed}], union_by_name = true){self.qualify}"  # noqa: S608


def read_described_tables(folder: Path) -> dict[str, KeyedTable]:
    """Return the tables of a dataset by name, with or without files."""
    try:
        return msgspec.json.decode((folder / TABLES_FILE).read_bytes(), type=dict[str, KeyedTable])
    except FileNotFoundError:
        return {}


def read_tables(folder: Path) -> dict[str, KeyedTable]:
    """Return the tables of a dataset that have files, by name."""
    tables = sorted(read_described_tables(folder).items())
    return {name: table for name, table in tables if any((folder / name).glob("*.parquet"))}


def select_all(folder: Path) -> str:
    """Return a query of DuckDB for all rows of the files in a folder."""
    return f"SELECT * FROM read_parquet({quote_literal(f'{folder}/*.parquet')})"  # noqa: S608


def write_json(path: Path, value: Any) -> None:
    """Replace a file durably, all or nothing."""
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=1))
    sync_to_disk(new)
    new.replace(path)
