"""Store the descriptions of tables and columns as comments, so that every client of the warehouse shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import duckdb

from msgbubbles_sync.sql import quote_literal, quote_name, transaction
from msgbubbles_sync.tables import TABLES

# Descriptions by column; under the empty name, that of the table.
Comments = dict[str, str]
# Schema, table, column, comment and kind of everything that may have a comment.
STORED = """SELECT schema_name, table_name, '', comment, 'TABLE' FROM duckdb_tables() WHERE database_name = $1
UNION ALL SELECT schema_name, view_name, '', comment, 'VIEW' FROM duckdb_views() WHERE database_name = $1
UNION ALL SELECT schema_name, table_name, column_name, comment, 'COLUMN' FROM duckdb_columns()
WHERE database_name = $1"""


def list_descriptions() -> dict[str, Comments]:
    """Return the descriptions of the tables that the job loads, by name."""
    descriptions = {
        "_dlt_loads": {"": "One row per finished load; old ones are removed."},
        "accounts": {"account": "The account's name."},
    }
    for table in TABLES.values():
        descriptions[table.name] = {
            "": table.description,
            # Columns that only tables loaded by dlt have, or those of several accounts.
            "_dlt_load_id": "The load that wrote this row; see _dlt_loads.",
            "account": "The account of the row.",
            **{column.name: column.description for column in table.columns},
        }
    return descriptions


def read_comments(connection: duckdb.DuckDBPyConnection, database: str) -> dict[tuple[str, str], Comments]:
    """Return the comments of each table and view of an attached database, by schema and name."""
    comments: dict[tuple[str, str], Comments] = {}
    for schema, table, column, text, _ in connection.execute(STORED, [database]).fetchall():
        if text is not None:
            comments.setdefault((schema, table), {})[column] = text
    return comments


def write_comments(connection: duckdb.DuckDBPyConnection, schema: str, comments: Mapping[str, Comments]) -> None:
    """Write the comments of tables in a DuckDB file or a lake, as far as they differ from the stored ones.

    Ignores comments of tables and columns that do not exist. `schema` may begin with the name of the database.
    """
    database, _, name = schema.rpartition(".")
    database = database or connection.execute("SELECT current_database()").fetchall()[0][0]
    stored = connection.execute(f"FROM ({STORED}) WHERE schema_name = $2", [database, name]).fetchall()
    statements = build_statements(f"{quote_name(database)}.{name}", stored, comments)
    if statements:
        with transaction(connection):
            connection.execute("; ".join(statements))


def build_statements(
    schema: str, stored: Iterable[tuple[str, str, str, str | None, str]], comments: Mapping[str, Comments]
) -> list[str]:
    """Return the statements that replace the stored comments of a schema."""
    statements = []
    for _, table, column, text, kind in stored:
        wanted = comments.get(table, {}).get(column)
        if wanted is not None and wanted != text:
            path = ".".join([schema, *map(quote_name, filter(None, (table, column)))])
            statements.append(f"COMMENT ON {kind} {path} IS {quote_literal(wanted)}")
    return statements
