"""Compare Arrow tables of new rows with the stored rows, column by column."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from msgbubbles.lazy_pyarrow import pa, pc
from msgbubbles.tables import Table

# The time of reading is no property of the row.
NOT_COMPARED = frozenset({"_fetched_at"})


class Comparison:
    """Compares rows that were read (`incoming`) with the stored rows that have the same keys.

    Each has one row per key, in any order. Columns that `stored` lacks count as null.
    """

    def __init__(self, incoming: pa.Table, stored: pa.Table | None, table: Table) -> None:
        (key,) = table.key
        self._json = {*table.json_columns}
        self.incoming = incoming
        self.keys: list[str] = incoming.column(key).to_pylist()
        indices = {} if stored is None else {value: at for at, value in enumerate(stored.column(key).to_pylist())}
        self.is_stored: list[bool] = [value in indices for value in self.keys]
        self._indices = pa.array([indices.get(value) for value in self.keys], pa.int64())
        self._stored = {} if stored is None else {name: stored.column(name) for name in stored.column_names}

    def stored(self, column: str) -> pa.Array:
        """Return the stored values of a column in the order of `incoming`; null for rows that are not stored."""
        kind = self.incoming.schema.field(column).type
        if column not in self._stored:
            return pa.nulls(len(self.keys), kind)
        return self._stored[column].cast(kind).take(self._indices).combine_chunks()

    def differing(self, columns: Iterable[str] | None = None) -> dict[str, list[bool]]:
        """Return for each column which values differ from the stored ones; for new rows, those that are not null."""
        differing = {}
        for column in columns or (name for name in self.incoming.column_names if name not in NOT_COMPARED):
            read, stored = self.incoming.column(column).combine_chunks(), self.stored(column)
            same = pc.or_(pc.and_(pc.is_null(read), pc.is_null(stored)), pc.fill_null(pc.equal(read, stored), False))
            differs = pc.invert(same).to_pylist()
            if column in self._json and any(differs):
                # Some warehouses normalize the text of JSON.
                texts = zip(differs, read.to_pylist(), stored.to_pylist(), strict=True)
                differs = [differ and _parse_json(new) != _parse_json(old) for differ, new, old in texts]
            differing[column] = differs
        return differing

    def changed(self) -> list[bool]:
        """Return which rows are stored with other values."""
        if not any(self.is_stored):
            return self.is_stored
        return [row[0] and any(row[1:]) for row in zip(self.is_stored, *self.differing().values(), strict=True)]


def _parse_json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text  # nested too deep: stored by an older version


def filter_rows(table: pa.Table, mask: list[bool]) -> pa.Table:
    return table.filter(pa.array(mask, pa.bool_()))
