"""Rows to what dlt loads: Arrow tables with an explicit schema, merged by key, the newest reading of a row first.

dlt's own `upsert` does not deduplicate within a load, so rows are deduplicated here within a table, and by
`dedup_sort` between the tables of one load.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

import dlt

from .models import (
    REJECTED_COLUMNS,
    Attachment,
    Chat,
    Column,
    Message,
    Number,
    Page,
    R,
    RejectedRow,
    Row,
    columns_of,
    fingerprint,
)

if TYPE_CHECKING:
    import pyarrow as pa

REJECTED = "rejected_rows"
MODELS: dict[str, type[Row]] = {"chats": Chat, "messages": Message, "attachments": Attachment, "numbers": Number}
COLUMNS: dict[str, tuple[Column, ...]] = {name: columns_of(model) for name, model in MODELS.items()}
COLUMNS[REJECTED] = REJECTED_COLUMNS
# One Arrow table holds this many rows at most: 100 full pages. Larger ones are hardly faster and cost memory.
ROWS_PER_TABLE = 10_000


class Landing:
    """Gathers the rows of one stream and turns them into items for dlt.

    `tables` are the tables that the stream fills, its own first. `landed` counts the rows given to dlt for that one.
    """

    def __init__(self, tables: tuple[str, ...]) -> None:
        self.stream = tables[0]
        self.landed = 0
        self._rows: dict[str, dict[str, tuple[Any, datetime]]] = {table: {} for table in (*tables, REJECTED)}

    def add(self, page: Page[R], skip: frozenset[str] = frozenset()) -> None:
        """Take the rows of a page, except those whose fingerprint is in `skip`."""
        for row in page.rows:
            if skip and fingerprint(row) in skip:
                continue
            self._put(self.stream, row.key, row, page.read_at)
            if isinstance(row, Message):
                for attachment in row.attachments or ():
                    attachment.message_id = attachment.message_id or row.id
                    self._put("attachments", attachment.key, attachment, page.read_at)
        self.add_rejected(page)

    def add_rejected(self, page: Page[Any]) -> None:
        """Take only what could not be read of a page."""
        for rejected in page.rejected:
            self._put(REJECTED, rejected.row_hash, rejected, page.read_at)

    def _put(self, table: str, key: str, row: Row | RejectedRow, read_at: datetime) -> None:
        # Pages come in the order of their reading, so the later reading of a row replaces the earlier.
        self._rows[table][key] = (row, read_at)

    def full_tables(self) -> Iterator[Any]:
        """Items for dlt, for the tables that have enough rows."""
        return self._items(ROWS_PER_TABLE)

    def rest(self) -> Iterator[Any]:
        """Items for dlt, for all rows that are left."""
        return self._items(1)

    def empty_tables(self) -> Iterator[Any]:
        """Items for dlt that make it create the tables, so that a query on an empty one finds it."""
        return (_item(table, ()) for table in self._rows)

    def _items(self, at_least: int) -> Iterator[Any]:
        for table, rows in self._rows.items():
            if len(rows) >= at_least:
                if table == self.stream:
                    self.landed += len(rows)
                yield _item(table, rows.values())
                rows.clear()


def _item(table: str, rows: Iterable[tuple[Any, datetime]]) -> Any:
    columns = COLUMNS[table]
    key = next(column.name for column in columns if not column.nullable)
    hints = dlt.mark.make_hints(
        table_name=table,
        primary_key=key,
        write_disposition={"disposition": "merge", "strategy": "delete-insert"},
        columns={column.name: _column_hints(column) for column in columns},
    )
    return dlt.mark.with_hints(arrow_table(columns, rows), hints, create_table_variant=True)


def _column_hints(column: Column) -> Any:
    hints: dict[str, Any] = {"name": column.name, "data_type": column.type, "nullable": column.nullable}
    if column.name == "_read_at":
        hints["dedup_sort"] = "desc"
    return hints


def arrow_table(columns: tuple[Column, ...], rows: Iterable[tuple[Any, datetime]]) -> pa.Table:
    """An Arrow table of rows and when each was read. JSON columns hold JSON text, null where the API sent null."""
    # pyarrow takes a second to import with pandas installed: a run that finds nothing does not pay for it.
    import pyarrow as pa

    types = {
        "text": pa.string(),
        "bigint": pa.int64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "json": pa.string(),
    }
    taken = list(rows)
    arrays = []
    for column in columns:
        if column.name == "_read_at":
            values: list[Any] = [read_at for _, read_at in taken]
        elif column.name == "attachment_count":
            values = [len(row.attachments or ()) for row, _ in taken]
        else:
            values = [getattr(row, column.name) for row, _ in taken]
            if column.type == "json":
                values = [_json_text(value) for value in values]
        arrays.append(pa.array(values, types[column.type]))
    schema = pa.schema([pa.field(c.name, types[c.type], nullable=c.nullable) for c in columns])
    return pa.Table.from_arrays(arrays, schema=schema)


def _json_text(value: Any) -> str | None:
    text = bytes(value).decode()
    return None if text in ("", "null") else text
