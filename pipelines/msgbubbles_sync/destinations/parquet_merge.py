"""Merge the small files of Parquet tables, so that their number stays limited."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import duckdb

from msgbubbles_sync.files import sync_to_disk
from msgbubbles_sync.sql import quote_literal

from .parquet_tables import read_tables
from .publish import Options

# If a table has more files than this, the small ones are merged into one.
MAX_FILES = 100
# A file of up to this size is small; so is one that is not larger than all smaller ones together. Then a row is written
# again only when the table has doubled, and not with every hundredth load.
SMALL_BYTES = 16 * 1024 * 1024


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
