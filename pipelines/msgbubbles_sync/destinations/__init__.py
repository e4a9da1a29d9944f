"""Where a warehouse's tables are: in a DuckDB file, on a PostgreSQL server, in a lake, or in Parquet files.

Everything but the load and the transforms goes through a DuckDB connection, which reads and writes all of them: so each
query of a warehouse is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import duckdb

from msgbubbles_sync.workspace import Workspace

from .duckdb_file import DuckDBFile
from .ducklake import DuckLake
from .parquet_files import ParquetFiles
from .postgres import Postgres


class Destination(Protocol):
    """What the job asks of the place where its tables are."""

    # What people call it.
    title: str
    # What the names of its schemas begin with.
    prefix: str
    # The schema of the loaded tables.
    dataset: str
    # What that schema is called in a connection for writing. In one for reading it is always `msgbubbles`.
    write_schema: str
    # What dlt loads Arrow tables from.
    file_format: Literal["parquet", "csv"]

    def build_dlt_destination(self) -> Any:
        """Build the destination for dlt. Raises `UsageError`."""

    def read_dbt_target(self) -> tuple[str, dict[str, str]]:
        """Return the target in dbt's profile, and the environment that it needs. Raises `UsageError`."""

    def exists(self) -> bool:
        """Return whether there is something to read."""

    def open_reader(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection for readers. Raises `UsageError` where there is nothing to read."""

    def open_writer(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection to the tables that the job writes."""

    def keep_open(self, pipeline: Any, /) -> AbstractContextManager[Any]:
        """Make it cheap for `pipeline` to open and close the tables until the block ends."""

    def open_build(self) -> AbstractContextManager[tuple[Path, Path] | None]:
        """Enclose dbt's build and test of the marts, which counts when the block ends without an error.

        Yields the folder of the loaded tables and the one for the marts, where tables are folders.
        """

    def prepare(self) -> None:
        """Check before a run that the tables can be reached.

        Starts from the published ones where the job's own files are lost. Raises `UsageError`.
        """

    def publish(self, _held_marts: Sequence[str] = (), /) -> int | None:
        """Show readers what was written. Held marts stay as readers have them. Returns the size in bytes, if known."""

    def is_older_than(self, minutes: float) -> bool:
        """Return whether readers see something older, or something that others have changed."""

    def explain(self, message: str, /) -> str | None:
        """Return what a message of the database means and how to fix it; null where that is not known."""


DESTINATIONS: dict[str, Callable[[Workspace], Destination]] = {
    "duckdb": DuckDBFile,
    "postgres": Postgres,
    "ducklake": DuckLake,
    "filesystem": ParquetFiles,
}


def build_destination(workspace: Workspace) -> Destination:
    """Return the destination of a workspace."""
    return DESTINATIONS[workspace.destination](workspace)
