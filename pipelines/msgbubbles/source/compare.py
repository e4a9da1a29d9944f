"""Compare the rows that were read with the stored ones: Arrow tables, column by column."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from msgbubbles.tables import Table

from .lazy_pyarrow import pa, pc

# When a row was read and loaded says nothing about the row.
NOT_COMPARED = frozenset({"_fetched_at"})


class Comparison:
    """Rows that were read (`incoming`), compared with the stored rows that have their keys.

    `incoming` has one row a key, `stored` too, in any order and with any keys; columns that `stored` lacks are null
    there.
    """

    def __init__(self, incoming: pa.Table, stored: pa.Table | None, table: Table) -> None:
        (key,) = table.key
        self._json = {*table.json_columns}
        self.incoming = incoming
        self.keys: list[str] = incoming.column(key).to_pylist()
        places = {} if stored is None else {one: place for place, one in enumerate(stored.column(key).to_pylist())}
        self.is_stored: list[bool] = [one in places for one in self.keys]
        indices = pa.array([places.get(one) for one in self.keys], pa.int64())
        self._stored = {} if stored is None else {name: stored.column(name) for name in stored.column_names}
        self._indices = indices

    def stored(self, column: str) -> pa.Array:
        """Return the stored values of a column in the order of `incoming`, null where the row is not stored."""
        kind = self.incoming.schema.field(column).type
        if column not in self._stored:
            return pa.nulls(len(self.keys), kind)
        return self._stored[column].cast(kind).take(self._indices).combine_chunks()

    def differing(self, columns: Iterable[str] | None = None) -> dict[str, list[bool]]:
        """Return for each column whether the value that was read differs from the stored one. Rows that are not stored
        differ wherever their value is not null.
        """
        found = {}
        for column in columns or (name for name in self.incoming.column_names if name not in NOT_COMPARED):
            read, stored = self.incoming.column(column).combine_chunks(), self.stored(column)
            same = pc.or_(pc.and_(pc.is_null(read), pc.is_null(stored)), pc.fill_null(pc.equal(read, stored), False))
            differs = pc.invert(same).to_pylist()
            if column in self._json and any(differs):
                # A warehouse may store JSON normalized, and not as it was written.
                pairs = zip(differs, read.to_pylist(), stored.to_pylist(), strict=True)
                differs = [differ and _parse_json(one) != _parse_json(other) for differ, one, other in pairs]
            found[column] = differs
        return found

    def changed(self) -> list[bool]:
        """Return whether each row is stored and differs from what was read."""
        if not any(self.is_stored):
            return self.is_stored

        different = pa.nulls(len(self.keys), pa.bool_()).fill_null(False)
        for mask in self.differing().values():
            different = pc.or_(different, pa.array(mask, pa.bool_()))
        return list(pc.and_(different, pa.array(self.is_stored, pa.bool_())).to_pylist())


def _parse_json(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError):
        return text  # stored by an older version, and deeper than can be read


def filter_rows(table: pa.Table, mask: list[bool]) -> pa.Table:
    """Return the rows of a table for which the mask is true."""
    return table.filter(pa.array(mask, pa.bool_()))
