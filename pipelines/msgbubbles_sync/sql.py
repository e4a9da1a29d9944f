"""Quote SQL literals and identifiers that cannot be bind parameters; list tables; store and read single values."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import duckdb


def quote_literal(text: str) -> str:
    """Quote a text as a string literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """Quote the name of a table, column or the like as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def list_columns(connection: duckdb.DuckDBPyConnection, schema: str) -> dict[str, list[str]]:
    """Return the columns of each table and view of a schema. `schema` may begin with the name of its database."""
    database, _, name = schema.rpartition(".")
    rows = connection.execute(
        "SELECT table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() "
        "WHERE database_name = coalesce(nullif(?, ''), current_database()) AND schema_name = ? GROUP BY 1 ORDER BY 1",
        [database, name],
    )
    return dict(rows.fetchall())


def list_tables(connection: duckdb.DuckDBPyConnection, schema: str) -> list[str]:
    """Return the names of the tables in a schema, without views. `schema` may begin with the name of its database."""
    database, _, name = schema.rpartition(".")
    rows = connection.execute(
        "SELECT table_name FROM duckdb_tables() "
        "WHERE database_name = coalesce(nullif(?, ''), current_database()) AND schema_name = ? ORDER BY 1",
        [database, name],
    )
    return [table for (table,) in rows.fetchall()]


def store_value(connection: duckdb.DuckDBPyConnection, table: str, definition: str, value: str | int) -> None:
    """Store a value in a table of one row and one column, unless it is there already. Creates the table."""
    connection.execute(f"CREATE TABLE IF NOT EXISTS {table} ({definition})")
    if connection.execute(f"FROM {table}").fetchall() != [(value,)]:
        connection.execute(f"DELETE FROM {table}")  # noqa: S608
        connection.execute(f"INSERT INTO {table} VALUES (?)", [value])  # noqa: S608


def read_value(connection: duckdb.DuckDBPyConnection, table: str, column: str) -> Any:
    """Read a value that `store_value` has stored; null if the table is missing or empty."""
    with suppress(duckdb.CatalogException):
        row = connection.execute(f"SELECT {column} FROM {table}").fetchone()  # noqa: S608
        return None if row is None else row[0]
    return None
