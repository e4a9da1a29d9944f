"""Carry the descriptions of tables and columns, which a database has as comments, over to copies."""

from __future__ import annotations

from collections.abc import Mapping

import duckdb

from msgbubbles_sync.sql import quote_literal, quote_name

# Descriptions by column; under the empty name, that of the table.
Comments = dict[str, str]
QUERY = """SELECT schema_name, table_name, column_name, comment FROM duckdb_columns()
WHERE database_name = $database AND comment IS NOT NULL
UNION ALL SELECT schema_name, table_name, '', comment FROM duckdb_tables()
WHERE database_name = $database AND comment IS NOT NULL
UNION ALL SELECT schema_name, view_name, '', comment FROM duckdb_views()
WHERE database_name = $database AND comment IS NOT NULL"""


def read_comments(connection: duckdb.DuckDBPyConnection, database: str) -> dict[tuple[str, str], Comments]:
    """Return the comments of each table and view of an attached database, by schema and name."""
    comments: dict[tuple[str, str], Comments] = {}
    for schema, table, column, comment in connection.execute(QUERY, {"database": database}).fetchall():
        comments.setdefault((schema, table), {})[column] = comment
    return comments


def write_comments(connection: duckdb.DuckDBPyConnection, schema: str, table: str, comments: Mapping[str, str]) -> None:
    """Set the comments of a table. Every column that they name must exist."""
    path = f"{quote_name(schema)}.{quote_name(table)}"
    for column, comment in comments.items():
        subject = f"COLUMN {path}.{quote_name(column)}" if column else f"TABLE {path}"
        connection.execute(f"COMMENT ON {subject} IS {quote_literal(comment)}")
