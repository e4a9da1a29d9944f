"""Quote what cannot be a bind parameter; list, create, read and fill tables; enclose transactions; set limits."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import duckdb

from msgbubbles.tables import Table

from .tables import SQL_TYPES, define_columns


def quote_literal(text: str) -> str:
    """Quote a text as a string literal."""
    return "'" + text.replace("'", "''") + "'"


def quote_name(name: str) -> str:
    """Quote the name of a table, column or the like as an identifier."""
    return '"' + name.replace('"', '""') + '"'


def read_columns(connection: duckdb.DuckDBPyConnection, database: str) -> dict[tuple[str, str], list[str]]:
    """Return the columns of each table and view of a database, by schema and name. It is the current one if empty."""
    rows = connection.execute(
        "SELECT schema_name, table_name, list(column_name ORDER BY column_index) FROM duckdb_columns() "
        "WHERE database_name = coalesce(nullif(?, ''), current_database()) GROUP BY 1, 2 ORDER BY 1, 2",
        [database],
    )
    return {(schema, table): columns for schema, table, columns in rows.fetchall()}


def list_columns(connection: duckdb.DuckDBPyConnection, schema: str) -> dict[str, list[str]]:
    """Return the columns of each table and view of a schema. `schema` may begin with the name of its database."""
    database, _, name = schema.rpartition(".")
    stored = read_columns(connection, database)
    return {table: columns for (of_schema, table), columns in stored.items() if of_schema == name}


def list_tables(connection: duckdb.DuckDBPyConnection, schema: str) -> list[str]:
    """Return the names of the tables in a schema, without views. `schema` may begin with the name of its database."""
    database, _, name = schema.rpartition(".")
    rows = connection.execute(
        "SELECT table_name FROM duckdb_tables() "
        "WHERE database_name = coalesce(nullif(?, ''), current_database()) AND schema_name = ? ORDER BY 1",
        [database, name],
    )
    return [table for (table,) in rows.fetchall()]


def create_table(connection: duckdb.DuckDBPyConnection, schema: str, table: Table) -> str:
    """Create a table, or the columns that it lacks because an older release created it, and return its path."""
    path = f"{schema}.{table.name}"
    connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
    connection.execute(f"CREATE TABLE IF NOT EXISTS {path} ({define_columns(table)})")
    has = {row[0] for row in connection.execute(f"DESCRIBE {path}").fetchall()}
    for column in table.columns:
        if column.name not in has:
            connection.execute(f"ALTER TABLE {path} ADD COLUMN {column.name} {SQL_TYPES[column.type]}")
    return path


def insert_rows(
    connection: duckdb.DuckDBPyConnection, path: str, table: Table, rows: Sequence[Sequence[object]]
) -> None:
    """Insert rows with a value for each column of a table, in their order."""
    if rows:
        names, marks = ", ".join(table.column_names), ", ".join("?" * len(table.columns))
        connection.executemany(f"INSERT INTO {path} ({names}) VALUES ({marks})", rows)  # noqa: S608


def fetch_rows(connection: duckdb.DuckDBPyConnection, query: str, values: Sequence[object] = ()) -> list[Any]:
    """Return the rows of a query; none if a table or a column is missing."""
    with suppress(duckdb.CatalogException, duckdb.BinderException):
        return connection.execute(query, values).fetchall()
    return []


def store_value(connection: duckdb.DuckDBPyConnection, schema: str, table: Table, value: str | int) -> None:
    """Store a value in a table of one row and one column, unless it is there already. Creates the table."""
    path = create_table(connection, schema, table)
    if connection.execute(f"FROM {path}").fetchall() != [(value,)]:
        connection.execute(f"DELETE FROM {path}")  # noqa: S608
        insert_rows(connection, path, table, [[value]])


def read_value(connection: duckdb.DuckDBPyConnection, schema: str, table: Table) -> Any:
    """Read a value that `store_value` has stored; null if the table is missing or empty."""
    rows = fetch_rows(connection, f"SELECT {table.column_names[0]} FROM {schema}.{table.name}")  # noqa: S608
    return rows[0][0] if rows else None


@contextmanager
def transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Commit what the block changes, or undo it if the block raises."""
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(duckdb.Error):  # none is open after some errors
            connection.execute("ROLLBACK")
        raise


@contextmanager
def use_one_thread(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Let the database use one thread. For few rows, more take up to twice the CPU time, and no less time."""
    connection.execute("SET threads = 1")
    try:
        yield
    finally:
        with suppress(duckdb.Error):  # after a fatal error
            connection.execute("RESET threads")


@contextmanager
def limit_seconds(connection: duckdb.DuckDBPyConnection, seconds: int) -> Iterator[None]:
    """End the statement of this connection that is running after so many seconds, unless the block has ended.

    0 is no limit. The statement raises `duckdb.InterruptException`.
    """
    if not seconds:
        yield
        return
    timer = threading.Timer(seconds, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
