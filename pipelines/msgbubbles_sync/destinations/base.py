"""What the job asks of the place where its tables are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import duckdb

from msgbubbles_sync.workspace import DATASET, Workspace

from .comments import list_descriptions, write_comments


class Destination(ABC):
    """The tables of a warehouse, or of one of its accounts."""

    # What people call it.
    title: str
    # What dlt loads Arrow tables from.
    file_format: Literal["parquet", "csv"] = "parquet"

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        # What the names of its schemas begin with.
        self.prefix = workspace.prefix
        # The schema of the loaded tables.
        self.dataset = f"{self.prefix}{DATASET}"
        # What a connection for writing calls that schema. A connection for reading always calls it `msgbubbles`.
        self.write_schema = DATASET

    @abstractmethod
    def build_dlt_destination(self) -> Any:
        """Build the destination for dlt. Raises `UsageError`."""

    @abstractmethod
    def read_dbt_target(self) -> tuple[str, dict[str, str]]:
        """Return the target in dbt's profile, and the environment that it needs. Raises `UsageError`."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether there is something to read."""

    def has_tables(self) -> bool:
        """Return whether the job has written tables here."""
        return self.exists()

    @abstractmethod
    def open_reader(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection for readers. Raises `UsageError` where there is nothing to read."""

    @abstractmethod
    def open_writer(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection to the tables that the job writes."""

    @abstractmethod
    def prepare(self) -> None:
        """Check before a run that the tables can be reached.

        Starts from the published ones where the job's own files are lost. Raises `UsageError`.
        """

    @abstractmethod
    def publish(self, held_marts: Sequence[str] = ()) -> int | None:
        """Show readers what was written. Held marts stay as readers have them. Returns the size in bytes, if known."""

    def describe_tables(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Store the descriptions of tables and columns as comments. Needs a connection for writing."""
        write_comments(connection, self.write_schema, list_descriptions())

    def is_older_than(self, minutes: float) -> bool:
        """Return whether readers see something older, or something that others have changed."""
        return minutes >= 0  # the record of a run costs a row, not a new file

    def keep_open(self, _pipeline: Any) -> AbstractContextManager[Any]:
        """Make it cheap for a pipeline to open and close the tables until the block ends."""
        return nullcontext()

    def open_build(self) -> AbstractContextManager[tuple[Path, Path] | None]:
        """Enclose dbt's build and test of the marts, which counts when the block ends without an error.

        Yields the folder of the loaded tables and the one for the marts, where tables are folders.
        """
        return nullcontext()

    def explain(self, _message: str) -> str | None:
        """Return what a message of the database means and how to fix it; null where that is not known."""
        return None
