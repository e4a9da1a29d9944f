"""Tables that are files in a folder: which they are, and how a row of each key is taken of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .names import quoted
from .place import sync_to_disk

# What the tables of a dataset are, in its folder.
TABLES = "_tables.json"
TYPES = {"string": "STRING", "long": "BIGINT", "boolean": "BOOLEAN"}


@dataclass(frozen=True)
class Table:
    """A table with its key. Where a key has several rows, that of the latest load counts, and of one load the one that
    was read last; with `first_stays`, the first of the first."""

    name: str
    key: tuple[str, ...]
    has_read_at: bool = True
    first_stays: bool = False

    @property
    def rank(self) -> str:
        """1 for the row of a key that counts: SQL that DuckDB and Spark understand."""
        direction = "" if self.first_stays else " DESC"
        order = [f"{name}{direction}" for name in ("_dlt_load_id", *["_read_at"] * self.has_read_at)]
        return f"row_number() OVER (PARTITION BY {', '.join(self.key)} ORDER BY {', '.join(order)})"

    @property
    def qualify(self) -> str:
        return f" QUALIFY {self.rank} = 1"

    def as_dict(self) -> dict[str, Any]:
        return {"key": list(self.key), "has_read_at": self.has_read_at, "first_stays": self.first_stays}


def one_of_each(table: Table, files: Sequence[str]) -> str:
    """A query of DuckDB for the row of each key that counts."""
    listed = ", ".join(map(quoted, files))
    return f"SELECT * FROM read_parquet([{listed}], union_by_name = true){table.qualify}"  # noqa: S608


def tables_in(folder: Path) -> list[Table]:
    """Those of a dataset that have files."""
    try:
        known = json.loads((folder / TABLES).read_text())
    except FileNotFoundError:
        return []
    return [
        Table(name, tuple(one.pop("key")), **one)
        for name, one in sorted(known.items())
        if is_delta(folder / name) or any((folder / name).glob("*.parquet"))
    ]


def write_json(path: Path, value: Any) -> None:
    """Replace a file durably, all or nothing."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value, indent=1))
    sync_to_disk(new)
    new.replace(path)


def is_delta(folder: Path) -> bool:
    """Whether a table's folder is a Delta table."""
    return (folder / "_delta_log").is_dir()


def delta_files(folder: Path) -> list[str]:
    """The files that a Delta table now consists of. A row a key is in them, and no row is deleted in place."""
    from deltalake import DeltaTable

    return [uri.removeprefix("file://") for uri in DeltaTable(str(folder)).file_uris()]


def rows_of_delta(folder: Path) -> str:
    """A query of DuckDB for the rows of a Delta table."""
    files = ", ".join(map(quoted, delta_files(folder)))
    return f"SELECT * FROM read_parquet([{files}], union_by_name = true)" if files else no_rows_of_delta(folder)  # noqa: S608


def no_rows_of_delta(folder: Path, instant: str = "TIMESTAMPTZ") -> str:
    """A query for no rows with the columns of a Delta table; `instant` is what the engine calls that type."""
    from deltalake import DeltaTable

    fields = [(field.name, getattr(field.type, "type", "")) for field in DeltaTable(str(folder)).schema().fields]
    columns = ", ".join(f"CAST(NULL AS {TYPES.get(kind, instant)}) AS {name}" for name, kind in fields)
    return f"SELECT {columns} WHERE false"
