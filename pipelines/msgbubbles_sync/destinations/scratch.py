"""Copy tables to a DuckDB file of the workspace, to change rows that the destination cannot change cheaply itself.

A killed process leaves the file; the next one removes it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb

from msgbubbles_sync.files import remove
from msgbubbles_sync.sql import quote_literal, quote_name
from msgbubbles_sync.tables import TABLES
from msgbubbles_sync.workspace import DATASET

FILE = "rewriting.duckdb"


@contextmanager
def open_scratch(connection: duckdb.DuckDBPyConnection, folder: Path, sources: Mapping[str, str]) -> Iterator[None]:
    """Copy tables to an empty database, and make that the default one until the block ends.

    Args:
        connection: The connection.
        folder: Where the file is created.
        sources: The query of each table, by the name that it gets in the schema `msgbubbles`.
    """
    _remove_file(folder)
    before = connection.execute("SELECT current_database()").fetchall()[0][0]
    connection.execute(f"ATTACH {quote_literal(str(folder / FILE))} AS scratch")
    (folder / FILE).chmod(0o600)
    try:
        connection.execute(f"CREATE SCHEMA scratch.{DATASET}")
        for name, query in sources.items():
            connection.execute(f"CREATE TABLE scratch.{DATASET}.{quote_name(name)} AS {_with_json(name, query)}")
        connection.execute("USE scratch")
        yield
    finally:
        with suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        with suppress(duckdb.Error):
            connection.execute(f"USE {quote_name(before)}")
            connection.execute("DETACH scratch")
        _remove_file(folder)


def _with_json(name: str, query: str) -> str:
    """Give the columns that are declared as JSON this type, which not every destination has."""
    declared = [column.name for column in TABLES[name].columns if column.type == "json"] if name in TABLES else []
    replaced = ", ".join(f"CAST({column} AS JSON) AS {column}" for column in declared)
    return f"SELECT * REPLACE ({replaced}) FROM ({query})" if declared else query  # noqa: S608


def _remove_file(folder: Path) -> None:
    for path in folder.glob(f"{FILE}*"):
        remove(path)
