"""The interface of a destination."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import duckdb

from msgbubbles.tables import Table
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import read_json, write_privately
from msgbubbles_sync.settings import SyncSettings
from msgbubbles_sync.sql import fetch_rows, list_columns, list_tables, quote_name, transaction
from msgbubbles_sync.tables import JOB_TABLES, REPLACED_NAME
from msgbubbles_sync.workspace import DATASET, PIPELINE, Workspace

from .comments import list_descriptions, write_comments
from .loaded_tables import Repair, forget_schema, repair
from .publish import Options

# The file that lists the tables that nothing could be loaded into.
HELD_TABLES = "held_tables.json"

# Takes a query and its parameters, and returns its rows.
Query = Callable[..., list[Any]]


class Destination(ABC):
    """The tables of a warehouse, or of one of its accounts."""

    # The name in messages.
    title: str
    # The schema in which dbt builds the marts, without the prefix; `publish` copies them if readers see another.
    marts_schema = "marts"
    # The files that dlt loads Arrow tables from.
    file_format: Literal["parquet", "csv"] = "parquet"
    # Whether a change of a few stored rows costs little. Otherwise, whole tables are rewritten.
    updates_in_place = False
    # With views of others on top of it.
    _drop = "DROP TABLE {table}"

    def __init__(self, workspace: Workspace, settings: SyncSettings) -> None:
        self.workspace, self._settings = workspace, settings
        # The prefix of its schemas.
        self.prefix = workspace.prefix
        # The schema of the loaded tables.
        self.dataset = self.name_schema(DATASET)
        # The name of that schema in a connection for writing. In a connection for reading, it is always `msgbubbles`.
        self.write_schema = DATASET
        # The changes of others to the tables that `prepare` has undone.
        self.repaired: list[str] = []
        # The tables that are held back, because nothing can be loaded into them, and why: somebody has changed them.
        self.held: dict[str, str] = {}
        # The same of tables that the job writes itself.
        self.unwritable: dict[str, str] = {}
        # What `stay_open` keeps open, and whether it keeps the next connection.
        self._connections, self._stays_open = ExitStack(), False

    def name_schema(self, schema: str) -> str:
        """Return the name of a schema in the warehouse. A connection for reading shows the default names."""
        return f"{self.prefix}{self._settings.schema_names[schema]}"

    def options(self) -> Options:
        """Return DuckDB's options for a connection that reads or writes whole tables."""
        limit = self._settings.memory_limit
        return {} if limit == "none" else {"memory_limit": limit}

    @abstractmethod
    def build_dlt_destination(self) -> Any:
        """Build the destination for dlt, which is imported here: it reads its configuration then. Raises `UsageError`.

        So `Workspace.configure_dlt` has to run first.
        """

    @abstractmethod
    def read_dbt_target(self) -> tuple[str, dict[str, str]]:
        """Return the target in dbt's profile, and the environment that it needs. Raises `UsageError`."""

    @abstractmethod
    def exists(self) -> bool:
        """Return whether there are tables to read."""

    def has_tables(self) -> bool:
        """Return whether the job has written tables here."""
        return self.exists()

    @abstractmethod
    def open_reader(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection for reading tables that exist. Raises `UsageError` if they cannot be opened."""

    def open_tables(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection for reading. Raises `UsageError` if there are no tables."""
        if not self.exists():
            raise UsageError(f"{self.title} has no tables. Run chats.py first.")
        return self.open_reader()

    @contextmanager
    def open_query(self) -> Iterator[Query]:
        """Yield a function that returns the rows of a query on the published tables: none if a table is missing.

        Raises `UsageError` if the tables cannot be opened.
        """
        if not self.exists():
            yield lambda _sql, *_values: []
            return
        with self.open_reader() as connection:
            yield lambda sql, *values: fetch_rows(connection, sql, values)

    @abstractmethod
    def open_all_accounts(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection for reading the tables that show all accounts. Raises `UsageError` if there are none."""

    @abstractmethod
    def open_writer(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection to the tables that the job writes."""

    def open_relations(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection that names the tables that the job writes, and the marts, as dbt does."""
        return self.open_writer()

    def open_job_tables(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection for reading the tables that the job writes, without its lock."""
        return self.open_writer()

    def probe(self) -> None:
        """Check that the tables can be opened, if there are any. Raises `UsageError`."""
        if self.exists():
            with self.open_reader():
                pass

    @abstractmethod
    def prepare(self) -> None:
        """Check before a run that the tables can be reached and loaded.

        Restores lost tables from the published copy, and what somebody has changed in them. Raises `UsageError`.
        """

    def _execute(self, connection: duckdb.DuckDBPyConnection, statements: str) -> None:
        """Execute statements that undo what somebody has changed, all or none."""
        with transaction(connection):
            connection.execute(statements)

    def _undo_changes(
        self, connection: duckdb.DuckDBPyConnection, repairs: Sequence[Repair], *, has_lost_rows: bool
    ) -> None:
        """Undo what somebody has changed in loaded tables, and hold back those in which the database refuses that.

        Everything is read again if tables may lack rows or values: those that are changed back, and those that were
        held back before. A killed process begins again.
        """
        repairs = [change for change in repairs if has_lost_rows or not change.only_if_rows_are_lost]
        file = self.workspace.folder / HELD_TABLES
        before = read_json(file)
        suspects = {
            *(before if isinstance(before, list) else ()),
            *(change.table for change in repairs),
        } - JOB_TABLES.keys()
        if suspects:
            write_privately(file, json.dumps(sorted(suspects)))
        changed, refused = repair(repairs, partial(self._execute, connection), self.title)
        self.repaired += changed
        self.unwritable = {table: why for table, why in refused.items() if table in JOB_TABLES}
        self.held = {table: why for table, why in refused.items() if table not in JOB_TABLES}
        if has_lost_rows or suspects - self.held.keys():
            forget_schema(connection, self.write_schema)
            self.workspace.forget_loads()
        if self.held:
            write_privately(file, json.dumps(sorted(self.held)))
        else:
            file.unlink(missing_ok=True)

    def write_table(self, table: Table, write: Callable[[duckdb.DuckDBPyConnection, str], object]) -> None:
        """Write a table that the job writes itself, unless somebody has changed it in a way that stays."""
        if table.name not in self.unwritable:
            with self.open_writer() as connection:
                write(connection, self.write_schema)

    def _discard_foreign_loads(self, version: int) -> None:
        """Discard dlt's files if their state, which says what has been read, is not that of the tables.

        `version` is that of the tables' state, 0 if they have none. A load that has not finished is one ahead.
        """
        state = read_json(self.workspace.dlt_folder / PIPELINE / "state.json")
        own = state.get("_state_version") if isinstance(state, dict) else None
        if not isinstance(own, int):
            return
        has_load = self.workspace.has_pending_load
        if version < own - has_load or (version > own and has_load):  # dlt itself continues from a newer state
            self.workspace.forget_loads()

    @abstractmethod
    def publish(self, held_marts: Sequence[str] = ()) -> int | None:
        """Publish what was written, except the held marts. Returns the size in bytes, if known."""

    def has_marts(self) -> bool:
        """Return whether marts have been built, or are published."""
        with self.open_writer() as connection:
            if list_columns(connection, "marts"):
                return True
        with suppress(UsageError):  # a damaged file, which is published again
            if self.exists():
                with self.open_reader() as connection:
                    return bool(list_columns(connection, "marts"))
        return False

    @abstractmethod
    def rewrite_rows(self, tables: Collection[str] | None = None) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection to change stored rows, by default of all tables, in the schema `msgbubbles`.

        The changes become visible when the block ends, all or none. It also empties dlt's staging tables, and drops
        those of `list_replaced`, which may lack the columns that show whose rows they hold.
        """

    def list_replaced(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        """Return the tables that somebody has changed beyond repair, and that got another name then."""
        return [name for name in list_tables(connection, self.write_schema) if REPLACED_NAME.fullmatch(name)]

    def _drop_replaced(self, connection: duckdb.DuckDBPyConnection) -> None:
        for name in self.list_replaced(connection):
            connection.execute(self._drop.format(table=f"{self.write_schema}.{quote_name(name)}"))

    def drop_marts(self) -> bool:
        """Drop the marts, where a build does not replace all of them. Returns whether none is left."""
        return False

    def empty_marts(self, _marts: Collection[str]) -> None:
        """Remove the rows of marts that could not be rebuilt after rows were rewritten, unless `drop_marts` has.

        What these were built from is emptied as well, so the next build has to start from scratch.
        """
        return

    @abstractmethod
    def remove_old_versions(self) -> None:
        """Remove what may hold values that rows and marts had before they were rewritten, as far as it can be reached.

        `list_out_of_reach` names the rest.
        """

    def remove_failed_loads(self) -> None:
        """Remove what a load that failed has left, after it was completed."""
        return

    @abstractmethod
    def list_out_of_reach(self) -> list[str]:
        """Return where old values may stay, for the certificate of an erasure."""

    def publish_rewritten(self) -> None:
        """Publish after rows were rewritten and marts rebuilt, and remove old versions."""
        self.publish()
        self.remove_old_versions()

    def store_comments(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Store the descriptions of tables and columns as comments. Needs a connection for writing."""
        write_comments(connection, self.write_schema, list_descriptions())

    def is_publish_due(self, minutes: float) -> bool:
        """Return whether the published tables are older than that, or were changed by others."""
        return minutes >= 0  # publishing is cheap: the record of a run costs a row, not a new file

    def lock(self) -> AbstractContextManager[None]:
        """Keep jobs of other machines from writing to the tables until the block ends.

        Raises `AnotherJobRunsError` if one is active, and `UsageError`.
        """
        return nullcontext()

    def keep_lock(self) -> None:
        """Take the lock again if its session has ended, as when the server was restarted.

        Raises `AnotherJobRunsError` if the job of another machine has it now, and `duckdb.Error` without a server.
        """
        return

    def stay_open_for(self, _pipeline: Any) -> AbstractContextManager[Any]:
        """Keep the tables open until the block ends, so that a pipeline opens and closes them cheaply."""
        return nullcontext()

    @contextmanager
    def stay_open(self) -> Iterator[None]:
        """Keep the tables open from the first connection on, so that later ones cost little.

        Ends with the block, and with each call of `close`.
        """
        self._stays_open = True
        try:
            yield
        finally:
            self.close()

    def close(self) -> None:
        """Close what `stay_open` keeps open: dlt and dbt open the tables with options of their own."""
        self._stays_open = False
        self._connections.close()

    def open_build(self) -> AbstractContextManager[tuple[Path, Path] | None]:
        """Enclose dbt's build and tests of the marts. The build is discarded if the block raises.

        Where tables are folders, yields the folder of the loaded tables and the one for the marts.
        """
        return nullcontext()

    def explain(self, _message: str) -> str | None:
        """Return what an error message of the database means and how to fix it; null if unknown.

        If it names a damaged file, the next run looks for others.
        """
        return None

    def concerns_one_table(self, message: str) -> bool:
        """Return whether statements about other tables than that of an error may succeed."""
        return self.explain(message) is None

    def is_timeout(self, _message: str) -> bool:
        """Return whether an error message is of a statement that a server has ended for its time limit."""
        return False
