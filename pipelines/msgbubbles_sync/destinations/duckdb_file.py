"""Tables in a DuckDB file: the job writes to a work file, and then replaces the published file with a copy."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb
from filelock import FileLock
from tenacity import retry, retry_if_exception, stop_after_attempt, wait_exponential

from msgbubbles_sync.errors import CombinedFileError, UsageError
from msgbubbles_sync.files import is_older_than, read_json, write_privately
from msgbubbles_sync.settings import SyncSettings
from msgbubbles_sync.sql import list_columns, list_tables, quote_literal, quote_name, transaction
from msgbubbles_sync.workspace import DATASET, Workspace

from .base import Destination
from .claims import find_account_files
from .compaction import compact, drop_leftovers, should_compact
from .duckdb_load import SqlClient
from .loaded_tables import COLUMNS, find_repairs, has_lost_columns
from .publish import clone, has_foreign_log, is_damaged, publish, read_mark
from .union_accounts import MANY_ACCOUNTS, ONE_ACCOUNT, combine, shows_accounts

# The files that the file of all accounts was made from.
COMBINED_NOTE = "combined.json"
# The schemas that dbt builds.
BUILT_SCHEMAS = ("marts", "staging")


@contextmanager
def open_published(path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a published file for reading. Raises `UsageError`."""
    try:
        connection = duckdb.connect(str(path), read_only=True)
    except duckdb.Error as error:
        raise UsageError(f"{path} cannot be read as a DuckDB database: {_find_fix(path, error)}") from None
    with connection:
        connection.execute("SET TimeZone = 'UTC'")
        yield connection


def _find_fix(path: Path, error: duckdb.Error) -> str:
    if not os.access(path, os.R_OK):
        return "give the user of this command access to it"
    if "lock" in str(error):
        return "another process has it open for writing. Open it with read_only=True there"
    return (
        f"it is damaged ({type(error).__name__}), or not a DuckDB file. A sync publishes it again; if this is the "
        "sync, move the file away, or pass another --database"
    )


class DuckDBFile(Destination):
    """A DuckDB file."""

    updates_in_place = True

    def __init__(self, workspace: Workspace, settings: SyncSettings) -> None:
        super().__init__(workspace, settings)
        self.prefix, self.dataset = "", DATASET  # each account has its own file
        self.title = str(workspace.database)
        # The mark of the file that was published last.
        self._published_mark = workspace.folder / "published.json"

    def build_dlt_destination(self) -> Any:
        from .duckdb_dlt import build_database_file

        return build_database_file(self.workspace.work, self.options())

    def read_dbt_target(self) -> tuple[str, dict[str, str]]:
        return "duckdb", {"MSGBUBBLES_DUCKDB_PATH": str(self.workspace.work)}

    def exists(self) -> bool:
        return self.workspace.database.exists()

    def has_tables(self) -> bool:
        return os.access(self.workspace.work, os.F_OK)  # False in an unreadable folder

    def open_reader(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return open_published(self.workspace.database)

    def open_all_accounts(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return open_published(self.workspace.combined)

    @contextmanager
    def open_writer(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            if self._stays_open:
                # The first connection reads the catalog, and the last one to close writes all changes to the file.
                self._stays_open = False
                self._connections.enter_context(self._connect())
            yield connection

    def open_job_tables(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        if self._stays_open:  # to write: opening the file twice takes twice as long
            return self.open_writer()
        try:
            return duckdb.connect(str(self.workspace.work), read_only=True, config=self.options())
        except duckdb.ConnectionException:  # this process has it open for writing
            return self.open_writer()

    # Other commands, such as `status`, have the work file open for a moment.
    @retry(
        retry=retry_if_exception(lambda error: isinstance(error, duckdb.IOException) and "lock on file" in str(error)),
        stop=stop_after_attempt(5), wait=wait_exponential(0.05), reraise=True,
    )  # fmt: skip
    def _connect(self) -> duckdb.DuckDBPyConnection:
        connection = duckdb.connect(str(self.workspace.work))
        # As dlt does: options that are given to `connect` have to be those of all connections of a process.
        for name, value in self.options().items():
            connection.execute(f"SET GLOBAL {name} = {quote_literal(str(value))}")
        return connection

    @contextmanager
    def sql_client(self) -> Iterator[SqlClient]:
        """Open a client for `msgbubbles.source.stored.Warehouse`, which needs no dlt."""
        with self.open_writer() as connection:
            yield SqlClient(connection)

    @contextmanager
    def rewrite_rows(self, _tables: Collection[str] | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        with self.open_writer() as connection, transaction(connection):
            self._drop_replaced(connection)
            yield connection
            for table in list_tables(connection, "msgbubbles_staging"):
                connection.execute(f"DELETE FROM msgbubbles_staging.{quote_name(table)}")  # noqa: S608

    def drop_marts(self) -> bool:
        # Readers see the published file meanwhile.
        with self.open_writer() as connection:
            for schema in BUILT_SCHEMAS:
                connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        return True

    def remove_old_versions(self) -> None:
        self.close()
        compact(self.workspace.work, self.options())

    def list_out_of_reach(self) -> list[str]:
        return ["backups and other copies of the file", "readers that have the old file open"]

    def publish_rewritten(self) -> None:
        self.remove_old_versions()  # what is published is a copy of the file
        self.publish()

    def stay_open_for(self, pipeline: Any) -> AbstractContextManager[Any]:
        # Each job of a load opens the file, and the last connection that closes it writes every change to the disk.
        client: AbstractContextManager[Any] = pipeline.sql_client()
        return client

    def prepare(self) -> None:
        workspace, work = self.workspace, self.workspace.work
        self._check_accounts()
        if workspace.account is not None:
            # The warehouse was one of a single account, which now has a name.
            for end in (".wal", ""):
                with suppress(FileNotFoundError):
                    unnamed = workspace.folder / f"{workspace.combined.name}{end}"
                    unnamed.rename(workspace.folder / f"{work.name}{end}")
        if not work.exists():
            workspace.forget_loads()  # their rows are lost
            if self.exists() and not is_damaged(workspace.database, self.options()):
                # A killed process must not leave half a file under the final name.
                copy = work.with_suffix(".copying")
                clone(workspace.database, copy)
                copy.replace(work)
        if work.exists():
            self._repair_tables()

    def _repair_tables(self) -> None:
        with self.open_writer() as connection:
            columns = connection.execute(COLUMNS.format(schema=DATASET)).fetchall()
            has_lost_rows = has_lost_columns(connection, DATASET, list_columns(connection, DATASET))
            self._undo_changes(connection, find_repairs(columns, DATASET), has_lost_rows=has_lost_rows)

    def _check_accounts(self) -> None:
        """Raise `UsageError` if a named account would be mixed with an unnamed one."""
        account, combined, database = self.workspace.account, self.workspace.combined, self.workspace.database
        if account is not None and combined.exists() and shows_accounts(combined) is False:
            how = shlex.join(["mv", str(combined), str(database)])
            raise UsageError(ONE_ACCOUNT.format(where=combined, account=account, how=how, other="--database"))
        # A file that this job published shows its own account.
        if self.exists() and read_json(self._published_mark) != read_mark(database) and shows_accounts(database):
            raise UsageError(MANY_ACCOUNTS.format(where=self.title, other="--database"))

    def publish(self, held_marts: Sequence[str] = ()) -> int | None:
        workspace = self.workspace
        stamp = workspace.folder / "compacted"
        with self._connect() as connection:
            drop_leftovers(connection)
            is_wasteful = should_compact(connection, stamp)
        self.close()
        if is_wasteful:
            compact(workspace.work, self.options())
            stamp.touch()
        size = publish(workspace.work, workspace.database, held_marts)
        write_privately(self._published_mark, json.dumps(read_mark(workspace.database)))
        if workspace.account is not None:
            try:
                self._combine(workspace.account)
            except (OSError, duckdb.Error) as error:
                raise CombinedFileError from error
        return size

    def _combine(self, account: str) -> None:
        combined = Workspace.from_path(self.workspace.combined)
        combined.make_folders()
        with FileLock(combined.folder / "combine.lock"):
            files = find_account_files(self.workspace)
            combine(files, account, combined.database, combined.folder / COMBINED_NOTE, self.options())

    def is_publish_due(self, minutes: float) -> bool:
        return is_older_than(self.workspace.database, minutes * 60) or not self._is_as_published()

    def _is_as_published(self) -> bool:
        """Return whether the published files are as this job left them."""
        workspace = self.workspace
        marks: dict[Path, Any] = {workspace.database: read_json(self._published_mark)}
        if workspace.account is not None:
            note = read_json(Workspace.from_path(workspace.combined).folder / COMBINED_NOTE)
            marks[workspace.combined] = note[-1] if isinstance(note, list) and note else None
        # A file that an older release published has no mark.
        return all(
            not has_foreign_log(file) and (mark is None or mark == read_mark(file)) for file, mark in marks.items()
        )
