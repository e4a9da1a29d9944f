"""Rows that a destination refuses, found when a load has failed for its data: the load is dropped and read again, and
each row is tried first. Coverage commits with the rows, so nothing is lost by dropping them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb

from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.sql import named

if TYPE_CHECKING:
    import pyarrow as pa

# Of SQLSTATE: data exceptions, violated constraints, exceeded limits, and what a trigger raises.
OF_DATA = ("22", "23", "54", "P0")


def is_of_data(error: BaseException) -> bool:
    """Whether a destination refused a value, and not the load for another reason."""
    causes, met = [error], 0
    while met < len(causes):
        more = (causes[met].__cause__, causes[met].__context__, getattr(causes[met], "exception", None))
        causes += [one for one in more if isinstance(one, BaseException) and one not in causes]
        met += 1
    return any(_is_of_data(cause) for cause in causes)


def _is_of_data(error: BaseException) -> bool:
    if isinstance(error, duckdb.DataError | duckdb.IntegrityError | duckdb.InvalidInputException):
        return True
    state = getattr(error, "pgcode", None) or getattr(error, "sqlstate", None) or ""
    return str(state).startswith(OF_DATA)


class Screen:
    """Says which rows of a table a destination refuses: it writes them, in halves of halves, and rolls back. `found`
    counts them."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self.found = 0

    def __call__(self, table: str, rows: pa.Table) -> list[bool]:
        refused = [False] * rows.num_rows
        ranges = [(0, rows.num_rows)] if rows.num_rows else []
        with self._destination.writing() as connection:
            while ranges:
                begin, end = ranges.pop()
                if _takes(connection, f"{self._destination.landed}.{named(table)}", rows.slice(begin, end - begin)):
                    continue
                if end - begin == 1:
                    refused[begin] = True
                else:
                    middle = (begin + end) // 2
                    ranges += [(begin, middle), (middle, end)]
        self.found += sum(refused)
        return refused


def _takes(connection: duckdb.DuckDBPyConnection, table: str, rows: pa.Table) -> bool:
    connection.register("screened", rows)
    connection.execute("BEGIN")
    try:
        has = {name for name, *_ in connection.execute(f"DESCRIBE {table}").fetchall()}
        names = [name for name in rows.column_names if name in has]
        values = [named(name) for name in names]
        if "_dlt_load_id" in has:
            names, values = [*names, "_dlt_load_id"], [*values, "''"]
        columns = ", ".join(named(name) for name in names)
        connection.execute(f"INSERT INTO {table} ({columns}) SELECT {', '.join(values)} FROM screened")  # noqa: S608
    except duckdb.CatalogException:  # no such table yet
        return True
    except duckdb.Error as error:
        # A key that is stored is no fault: a load replaces its row.
        return rows.num_rows == 1 and "duplicate key" in str(error).lower()
    finally:
        connection.execute("ROLLBACK")
        connection.unregister("screened")
    return True
