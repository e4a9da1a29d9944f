"""The tables that a database should have after the first run, and the descriptions it should have as comments."""

from __future__ import annotations

from typing import Any

from helpers.context import build_destination
from helpers.lake import query, select
from msgbubbles_sync.tables import TABLES
from msgbubbles_sync.workspace import Workspace

# The policy is stored once there is one.
FIRST = TABLES.keys() - {"privacy"}
TABLES_FOUND = "SELECT table_name FROM information_schema.tables WHERE table_schema = 'msgbubbles'"
COMMENTED = """SELECT table_name, column_name FROM duckdb_columns() WHERE comment IS NOT NULL
AND schema_name = 'msgbubbles' AND database_name = current_database()"""


def describe(node: Any) -> dict[str, str]:
    """Return the descriptions of a dbt model's columns by name, and under the empty name that of the model."""
    columns = {column.name: column.description for column in node.columns.values()}
    return {name: " ".join(text.split()) for name, text in ({"": node.description} | columns).items()}


def check_first_tables(workspace: Workspace) -> None:
    """Check that readers find every table that is documented, even the empty ones."""
    with build_destination(workspace).open_reader() as connection:
        assert {row["table_name"] for row in select(connection, TABLES_FOUND)} >= FIRST
        for table in ("group_operations", "group_member_operations", "group_sightings", "erasures"):
            assert select(connection, f"FROM msgbubbles.{table}") == []


def check_descriptions(workspace: Workspace) -> None:
    """Check that every column of these tables has its description. DuckDB does not show the comments of a server."""
    described = {(row["table_name"], row["column_name"]) for row in query(workspace, COMMENTED)}
    assert described >= {(name, column) for name in FIRST for column in TABLES[name].column_names}
