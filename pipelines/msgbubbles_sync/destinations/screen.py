"""Find the rows that a destination refuses, after a load has failed because of its data.

The load is dropped and its rows are read again. Coverage commits with the rows, so nothing is lost.
"""

from __future__ import annotations

import duckdb

from msgbubbles.lazy_pyarrow import pa
from msgbubbles_sync.errors import list_causes
from msgbubbles_sync.sql import quote_name

from .base import Destination

# Classes of SQLSTATE: data exceptions, violated constraints, exceeded limits, and errors of triggers.
DATA_CLASSES = ("22", "23", "54", "P0")


def is_data_error(error: BaseException) -> bool:
    """Return whether a load failed because the destination refused a value."""
    return any(map(_refuses_value, list_causes(error)))


def _refuses_value(error: BaseException) -> bool:
    if isinstance(error, duckdb.DataError | duckdb.IntegrityError | duckdb.InvalidInputException):
        return True
    state = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None) or ""
    return str(state).startswith(DATA_CLASSES)


class Screen:
    """Finds the rows of a table that a destination refuses, by inserting ever smaller halves and rolling back.

    `refused_rows` counts them.
    """

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self.refused_rows = 0

    def __call__(self, table: str, rows: pa.Table) -> list[bool]:
        refused = [False] * rows.num_rows
        ranges = [(0, rows.num_rows)] if rows.num_rows else []
        path = f"{self._destination.write_schema}.{quote_name(table)}"
        with self._destination.open_writer() as connection:
            while ranges:
                begin, end = ranges.pop()
                if _accepts(self._destination, connection, path, rows.slice(begin, end - begin)):
                    continue
                if end - begin == 1:
                    refused[begin] = True
                else:
                    middle = (begin + end) // 2
                    ranges += [(begin, middle), (middle, end)]
        self.refused_rows += sum(refused)
        return refused


def _accepts(destination: Destination, connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> bool:
    """Return whether a table accepts these rows. Raises errors that say nothing about them: a lock, a full disk."""
    connection.register("screened", rows)
    connection.execute("BEGIN")
    try:
        stored = {name for name, *_ in connection.execute(f"DESCRIBE {table}").fetchall()}
        names = [name for name in rows.column_names if name in stored]
        values = [quote_name(name) for name in names]
        if "_dlt_load_id" in stored:
            names, values = [*names, "_dlt_load_id"], [*values, "''"]
        columns = ", ".join(quote_name(name) for name in names)
        connection.execute(f"INSERT INTO {table} ({columns}) SELECT {', '.join(values)} FROM screened")  # noqa: S608
    except duckdb.CatalogException:  # the table does not exist yet
        return True
    except duckdb.Error as error:
        if isinstance(error, duckdb.OperationalError) or destination.explain(str(error)):
            raise
        # A stored key is not an error: a load replaces its row.
        return rows.num_rows == 1 and "duplicate key" in str(error).lower()
    finally:
        connection.execute("ROLLBACK")
        connection.unregister("screened")
    return True
