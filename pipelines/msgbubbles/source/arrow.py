"""Build items for dlt: Arrow tables with an explicit schema, and hints to merge them by key."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from msgbubbles.lazy_pyarrow import pa
from msgbubbles.storable import replace_unstorable
from msgbubbles.tables import ColumnType, Strategy, Table
from msgbubbles.times import to_epoch_us

from .lazy_dlt import dlt


def build_item(table: Table, rows: pa.Table, strategy: Strategy = "delete-insert") -> Any:
    """Build an item for dlt from rows to merge into a table by its key."""
    hints = dlt.mark.make_hints(
        table_name=table.name,
        primary_key=list(table.key),
        write_disposition={"disposition": "merge", "strategy": strategy},
        columns=_build_column_hints(table),
    )
    return dlt.mark.with_hints(rows, hints, create_table_variant=True)


def _build_column_hints(table: Table) -> Any:
    """Build dlt's hints for the columns of a table. Of rows with one key, the one that was read last is loaded."""
    hints: dict[str, dict[str, Any]] = {
        column.name: {
            "name": column.name,
            "data_type": column.type,
            "nullable": column.nullable,
            "description": column.description,
        }
        for column in table.columns
    }
    if "_fetched_at" not in table.key:
        hints["_fetched_at"]["dedup_sort"] = "desc"
    return hints


def build_arrow_schema(table: Table) -> pa.Schema:
    types: dict[ColumnType, pa.DataType] = {
        "text": pa.string(),
        "bigint": pa.int64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "json": pa.string(),
    }
    return pa.schema([pa.field(column.name, types[column.type], column.nullable) for column in table.columns])


def build_arrow_rows(table: Table, rows: list[dict[str, Any]]) -> pa.Table:
    """Build an Arrow table from rows by column, with values that every destination can store."""
    return replace_unstorable(pa.Table.from_pylist(rows, schema=build_arrow_schema(table)), table.json_columns)[0]


def build_arrow_table(
    table: Table, rows: Iterable[tuple[Any, datetime]], on_replaced: Callable[[int], None] = lambda _rows: None
) -> pa.Table:
    """Build an Arrow table from rows and the times at which they were fetched.

    JSON columns hold JSON text, or null for a JSON null. Values that some destination cannot store are replaced (see
    `replace_unstorable`); `on_replaced` gets the number of rows with such values.
    """
    schema = build_arrow_schema(table)
    pairs = list(rows)
    arrays = []
    for column, kind in zip(table.columns, schema.types, strict=True):
        if column.name == "_fetched_at":
            values: list[Any] = [fetched_at for _, fetched_at in pairs]
        elif column.name == "attachment_count":
            values = [len(row.attachments or ()) for row, _ in pairs]
        else:
            values = [getattr(row, column.name) for row, _ in pairs]
            if column.type == "json":
                values = [to_json_text(value) for value in values]
        if column.type == "timestamp":
            # Four times as fast as converting timestamps with Arrow.
            values = [None if at is None else to_epoch_us(at) for at in values]
            arrays.append(pa.array(values, pa.int64()).cast(kind))
        else:
            arrays.append(pa.array(values, kind))
    loaded, changed = replace_unstorable(pa.Table.from_arrays(arrays, schema=schema), table.json_columns)
    on_replaced(sum(changed))
    return loaded


def to_json_text(value: Any) -> str | None:
    """Return raw JSON as text; null for a JSON null, or if the field is missing."""
    text = bytes(value).decode()
    return None if text in ("", "null") else text
