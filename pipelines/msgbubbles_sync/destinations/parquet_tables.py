"""The tables of a dataset of Parquet files: their keys, which row of a key is current, and how their files are merged.

Parquet files cannot be changed, so a row that is loaded again is another row with the same key.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from msgbubbles_sync.files import sync_to_disk
from msgbubbles_sync.sql import quote_literal

from .publish import Options

# The file that describes the tables of a dataset, in its folder.
TABLES_FILE = "_tables.json"
# If a table has more files than this, the small ones are merged into one.
MAX_FILES = 100
# A file of up to this size is small; so is one that is not larger than all smaller ones together. Then a row is written
# again only when the table has doubled, and not with every hundredth load.
SMALL_BYTES = 16 * 1024 * 1024


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


def merge_small_files(tables: Path, replaced: Collection[Path], options: Options) -> Iterator[Path]:
    """Merge the small files of each table that has too many, and yield the files that this replaces.

    While old and new files exist, each row exists twice; only one of them is current.

    Args:
        tables: The folder with a folder for each table.
        replaced: Files that were replaced before.
        options: DuckDB's options for the merge.
    """
    for name, table in read_tables(tables).items():
        folder = tables / name
        for leftover in folder.glob(".*.new"):  # of a killed run
            leftover.unlink()
        files = [path for path in folder.glob("*.parquet") if path not in replaced]
        if len(files) <= MAX_FILES:
            continue
        small = _find_small(files)
        new = folder / f".{time.time_ns()}.new"
        rows = table.build_query([str(path) for path in small])
        with duckdb.connect(config=options) as connection:
            connection.execute("SET preserve_insertion_order = false")
            connection.execute(f"COPY ({rows}) TO {quote_literal(str(new))} (FORMAT parquet)")
        sync_to_disk(new)
        new.rename(folder / f"compacted.{time.time_ns()}.parquet")
        yield from small


def _find_small(files: Sequence[Path]) -> list[Path]:
    """Return the files to merge: the smaller ones, up to one that is larger than all of them together."""
    sizes = sorted((path.stat().st_size, path) for path in files)
    count = total = 0
    for number, (size, _) in enumerate(sizes, 1):
        if size <= max(total, SMALL_BYTES):
            count = number
        total += size
    return [path for _, path in sizes[:count]]
