"""Destinations that DuckDB attaches: a PostgreSQL server, or a lake.

Readers see each table as soon as it is written.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import duckdb
from tenacity import TryAgain, retry, retry_if_exception, stop_after_attempt, wait_random

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.files import read_json, write_privately
from msgbubbles_sync.settings import ACCOUNT_NAME, SyncSettings
from msgbubbles_sync.sql import fetch_rows, list_tables, quote_literal, quote_name, read_columns, transaction
from msgbubbles_sync.tables import REPLACED_NAME, TABLES
from msgbubbles_sync.workspace import DATASET, PIPELINE, Workspace

from . import server
from .base import HELD_TABLES, Destination
from .compaction import drop_old_states
from .loaded_tables import COLUMNS, Repair, find_repairs, has_lost_columns, has_own_rows
from .scratch import open_scratch
from .union_accounts import ACCOUNTS, MANY_ACCOUNTS, ONE_ACCOUNT, READER_SCHEMAS, Key, build_union

# The schemas that a connection shows.
OPENED_SCHEMAS = ("msgbubbles", "marts", "staging")
# A view that holds a digest of the queries of the views of all accounts.
VIEWS_DIGEST = ("msgbubbles", "_accounts_made_as")
# The file that records the names of the schemas.
NAMES = "schemas.json"
# The table by which the job recognizes each of its schemas.
MARKER_TABLES = {
    "msgbubbles": "accounts",
    "msgbubbles_staging": "_dlt_version",
    "staging": "built_loads",
    "marts_build": "thread_activity",
    "marts": "thread_activity",
}
STATE_VERSION = """SELECT version FROM {schema}._dlt_pipeline_state JOIN {schema}._dlt_loads ON load_id = _dlt_load_id
WHERE pipeline_name = ? AND status = 0 ORDER BY load_id DESC LIMIT 1"""
FOREIGN = """--destination {title}: the schema {schema} holds tables that this job did not create ({tables}). Set
[sync] {key} in dlt_config/config.toml to another name"""
RENAMED = """--destination {title}: the names of the schemas have changed in the configuration, and the tables are in
the old ones. {how}, or set the old names in dlt_config/config.toml"""


class Attached(Destination):
    """A server or a lake."""

    # For error messages: what to choose another of if this one is taken, and how to rename the schemas.
    _another: str
    _rename: str

    def __init__(self, workspace: Workspace, settings: SyncSettings) -> None:
        super().__init__(workspace, settings)
        self.write_schema = f"warehouse.{self.dataset}"
        self._sessions = ExitStack()
        self._lock_session: duckdb.DuckDBPyConnection | None = None
        # The connection that `stay_open` keeps.
        self._open_session: duckdb.DuckDBPyConnection | None = None

    @abstractmethod
    def _attach(self, *options: str) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection that has the tables attached as `warehouse`, with these options of ATTACH."""

    @contextmanager
    def _open(self, *options: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """Do as `_attach`, or borrow the connection that `stay_open` keeps, which has no options.

        What another session has done to tables on a server since may not be seen in that one.
        """
        if not self._stays_open:
            with self._attach(*options) as connection:
                yield connection
            return
        if self._open_session is None:
            self._open_session = self._connections.enter_context(self._attach())
        try:
            with self._open_session.cursor() as connection:
                connection.execute("SET TimeZone = 'UTC'; USE warehouse")
                yield connection
        except BaseException:
            self._reopen()
            raise

    @contextmanager
    def _open_to_change(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a connection that changes which tables there are, or which columns they have."""
        self._reopen()
        with self._attach() as connection:
            yield connection

    def _reopen(self) -> None:
        """Have the next connection see the tables as they are, if one stays open."""
        stays_open = self._stays_open
        self.close()
        self._stays_open = stays_open

    def close(self) -> None:
        super().close()
        self._open_session = None

    @abstractmethod
    def _attach_server(self, *options: str) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """Open a connection that has the database on the server attached as `warehouse`."""

    @abstractmethod
    def _replace_views(self, connection: duckdb.DuckDBPyConnection, views: Mapping[Key, str]) -> None:
        """Create or replace views, given as queries: all or none."""

    @abstractmethod
    def _empty_table(self, connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> None:
        """Delete all rows of a table, so that its files no longer hold them."""

    def _find_repairs(self, connection: duckdb.DuckDBPyConnection) -> list[Repair]:
        """Find what somebody has changed in the loaded tables."""
        return find_repairs(connection.execute(COLUMNS.format(schema=self.dataset)).fetchall(), self.dataset)

    @abstractmethod
    def _describe_schema(self, connection: duckdb.DuckDBPyConnection, schema: str) -> None:
        """Store the descriptions of the tables or views in a schema as comments."""

    @property
    def _lock_scope(self) -> str:
        """A text that distinguishes schemas of one name in a database."""
        return ""

    @property
    def _own_schemas(self) -> list[str]:
        return [f"{self.prefix}{name}" for name in self._names.values()]

    @property
    def _names(self) -> dict[str, str]:
        """The names of the job's schemas without the prefix, by their default names."""
        built = {"msgbubbles", "msgbubbles_staging", "staging", self.marts_schema, "marts"}
        return {schema: name for schema, name in self._settings.schema_names.items() if schema in built}

    @property
    def _schemas(self) -> list[str]:
        """The schemas that the job writes to."""
        return [*self._own_schemas, *(self._names[schema] for schema in READER_SCHEMAS if self.prefix)]

    @contextmanager
    def lock(self) -> Iterator[None]:
        with ExitStack() as self._sessions:
            self._lock_session = self._take_lock()
            yield
        self._lock_session = None

    def _take_lock(self) -> duckdb.DuckDBPyConnection:
        session = self._sessions.enter_context(self._attach_server("ISOLATION_LEVEL 'READ COMMITTED'"))
        self._sessions.enter_context(server.hold_lock(session, f"{self._lock_scope}{self.dataset}"))
        return session

    def keep_lock(self) -> None:
        if self._lock_session is None:
            return
        try:
            server.query(self._lock_session, "SELECT 1")  # the session has one transaction, to which the lock belongs
        except duckdb.Error as lost:
            try:
                self._lock_session = self._take_lock()
            except UsageError:  # the server does not answer yet
                raise lost from None

    def store_comments(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._describe_schema(connection, self.dataset)

    def exists(self) -> bool:
        with self._open("READ_ONLY") as connection:
            schemas = _list_schemas(connection)
        self._refuse_renamed(schemas)
        return self.dataset in schemas

    def open_reader(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return self._open_schemas(self.prefix, "READ_ONLY")

    def open_all_accounts(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return self._open_schemas("", "READ_ONLY")

    def open_writer(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        self.keep_lock()
        return self._open_schemas(self.prefix)

    def open_relations(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        self.keep_lock()
        return self._open()

    @contextmanager
    def _open_schemas(self, prefix: str, *options: str) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a connection in which the schemas with a prefix have their default names, without it."""
        with self._open(*options) as connection:
            if prefix or any(schema != name for schema, name in self._names.items()):
                with transaction(connection):  # the job may create and drop tables meanwhile
                    for schema in OPENED_SCHEMAS:
                        connection.execute(f"DROP SCHEMA IF EXISTS memory.{schema} CASCADE")
                    for schema, table in self._read_columns_by_prefix(connection).get(prefix, {}):
                        connection.execute(f"CREATE SCHEMA IF NOT EXISTS memory.{schema}")
                        connection.execute(
                            f"CREATE VIEW memory.{schema}.{quote_name(table)} AS "
                            f"FROM warehouse.{prefix}{self._names[schema]}.{quote_name(table)}"
                        )
                connection.execute("USE memory")
            yield connection

    @contextmanager
    def rewrite_rows(self, tables: Collection[str] | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._open_to_change() as connection:
            loaded = _list_own_tables(connection, self.dataset)
            names = [name for name in loaded if not tables or name in tables]
            sources = {name: f"FROM {self.write_schema}.{quote_name(name)}" for name in names}
            with open_scratch(connection, self.workspace.folder, sources):
                yield connection
                with transaction(connection):
                    for name in list_tables(connection, f"scratch.{DATASET}"):
                        path = f"{self.write_schema}.{quote_name(name)}"
                        rows = f"FROM scratch.{DATASET}.{quote_name(name)}"
                        if name in names:
                            self._empty_table(connection, self.dataset, name)
                            connection.execute(f"INSERT INTO {path} BY NAME {rows}")
                        else:
                            connection.execute(f"CREATE TABLE {path} AS {rows}")
                    self._drop_replaced(connection)
                    staging = self.name_schema("msgbubbles_staging")
                    for name in _list_own_tables(connection, staging):
                        self._empty_table(connection, staging, name)

    def empty_marts(self, marts: Collection[str]) -> None:
        with self._open_to_change() as connection:
            for schema in sorted({"staging", "marts", self.marts_schema}):
                name = self.name_schema(schema)
                for table in self._list_tables(connection, name):
                    if schema == "staging" or table in marts:
                        self._empty_table(connection, name, table)

    def _list_tables(self, connection: duckdb.DuckDBPyConnection, schema: str) -> list[str]:
        """Return the names of the tables in a schema, without views, which DuckDB shows as tables of a server."""
        return list_tables(connection, f"warehouse.{schema}")

    def list_replaced(self, connection: duckdb.DuckDBPyConnection) -> list[str]:
        return [name for name in self._list_tables(connection, self.dataset) if REPLACED_NAME.fullmatch(name)]

    def prepare(self) -> None:
        with self._open() as connection:
            shown, schemas = self._read_columns_by_prefix(connection).get("", {}), _list_schemas(connection)
            is_own = has_own_rows(connection, self.write_schema)
            stored = read_columns(connection, "warehouse")
            version = self._read_state_version(connection)
            if is_own:
                drop_old_states(connection, self.write_schema)
            repairs = self._find_repairs(connection) if is_own else []
            loaded = {table: columns for (schema, table), columns in stored.items() if schema == self.dataset}
            has_lost_rows = has_lost_columns(connection, self.write_schema, loaded)
        self._refuse_renamed(schemas)
        shows_accounts = ACCOUNTS in shown
        if self.prefix and shown and not shows_accounts:
            account, how = self.workspace.account, self._rename.format(prefix=self.prefix)
            raise UsageError(ONE_ACCOUNT.format(where=self.title, account=account, how=how, other=self._another))
        if not self.prefix and shows_accounts:
            raise UsageError(MANY_ACCOUNTS.format(where=self.title, other=self._another))
        if not is_own:
            self._refuse_foreign_tables(stored)
        if repairs or has_lost_rows or (self.workspace.folder / HELD_TABLES).exists():
            with self._open_to_change() as connection:
                self._undo_changes(connection, repairs, has_lost_rows=has_lost_rows)
        if self.dataset not in schemas:
            self.workspace.forget_loads()
        self._discard_foreign_loads(version)
        record = self.workspace.folder / NAMES
        if read_json(record) != self._names:
            write_privately(record, json.dumps(self._names))

    def publish(self, _held_marts: Sequence[str] = ()) -> int | None:
        if self.prefix:
            self._update_views()
        return None

    # The jobs of other accounts may do the same at the same time, with conflicting locks.
    @retry(
        retry=retry_if_exception(lambda error: isinstance(error, TryAgain) or _is_passing(error)),
        stop=stop_after_attempt(20), wait=wait_random(0, 1), reraise=True,
    )  # fmt: skip
    def _update_views(self) -> None:
        """Create the views that show all accounts.

        A concurrent job may replace them by views without this account's tables, so check until they are up to date.
        """
        for _ in range(2):
            with self._open_to_change() as connection:
                views = self._find_outdated_views(connection)
                if not views:
                    return
                self._replace_views(connection, views)
                self._describe_schema(connection, self._names[DATASET])
        raise TryAgain

    def _find_outdated_views(self, connection: duckdb.DuckDBPyConnection) -> dict[Key, str]:
        """Return the queries of all views; none if all views are up to date."""
        columns = self._read_columns_by_prefix(connection)
        shown = columns.pop("", {})
        accounts = {prefix.removesuffix("_"): tables for prefix, tables in columns.items()}

        def source(account: str, schema: str, table: str) -> str:
            return f"{account}_{self._names[schema]}.{quote_name(table)}"

        union = build_union(accounts, source, shown)
        # A database rewrites the query of a view, so changes are detected by a digest.
        text = repr(sorted((key, (table.columns, table.query)) for key, table in union.items()))
        digest = hashlib.sha256(text.encode()).hexdigest()
        stored: list[tuple[str]] = []
        if VIEWS_DIGEST in shown:
            schema, table = self._names[VIEWS_DIGEST[0]], VIEWS_DIGEST[1]
            stored = connection.execute(f"SELECT digest FROM warehouse.{schema}.{table}").fetchall()  # noqa: S608
        if stored == [(digest,)] and all(shown.get(key) == table.columns for key, table in union.items()):
            return {}
        queries = {key: table.query for key, table in union.items()}
        queries[VIEWS_DIGEST] = f"SELECT {quote_literal(digest)} AS digest"
        return {(self._names[schema], table): query for (schema, table), query in queries.items()}

    def _read_columns_by_prefix(self, connection: duckdb.DuckDBPyConnection) -> dict[str, dict[Key, list[str]]]:
        """Return the columns of the tables for readers, by the prefix of the account's schemas.

        The prefix is empty for the views of all accounts, and for the tables of a single one.
        """
        schemas = {self._names[schema]: schema for schema in OPENED_SCHEMAS}
        pattern = re.compile(rf"((?:{ACCOUNT_NAME.pattern}_)?)({'|'.join(schemas)})")
        columns: dict[str, dict[Key, list[str]]] = {}
        for (name, table), of_table in read_columns(connection, "warehouse").items():
            if match := pattern.fullmatch(name):
                columns.setdefault(match[1], {})[schemas[match[2]], table] = of_table
        # The name of dlt's staging schema looks like that of an account's schema.
        return {prefix: tables for prefix, tables in columns.items() if any(schema == DATASET for schema, _ in tables)}

    def _read_state_version(self, connection: duckdb.DuckDBPyConnection) -> int:
        """Return the version of dlt's state that was stored with the last finished load; 0 without one."""
        rows = fetch_rows(connection, STATE_VERSION.format(schema=self.write_schema), [PIPELINE])
        return rows[0][0] if rows else 0

    def _refuse_foreign_tables(self, stored: Iterable[Key]) -> None:
        """Raise `UsageError` if one of the schemas holds tables, and none by which the job recognizes its own."""
        tables: dict[str, list[str]] = {}
        for schema, table in stored:
            tables.setdefault(schema, []).append(table)
        for schema, name in self._names.items():
            key = {"msgbubbles": "raw", "msgbubbles_staging": "raw", "staging": "staging"}.get(schema, "marts")
            for path in {f"{self.prefix}{name}", *([name] if schema in READER_SCHEMAS else [])}:
                present = tables.get(path, [])
                if present and MARKER_TABLES[schema] not in present:
                    some = ", ".join(present[:3]) + (", ..." if len(present) > 3 else "")
                    raise UsageError(FOREIGN.format(title=self.title, schema=path, tables=some, key=f"{key}_schema"))

    def _refuse_renamed(self, schemas: Collection[str]) -> None:
        """Raise `UsageError` if the tables are in schemas that have other names in the configuration."""
        recorded = read_json(self.workspace.folder / NAMES)
        if not isinstance(recorded, dict):
            is_used = (self.workspace.dlt_folder / PIPELINE / "state.json").exists()
            recorded = {schema: schema for schema in self._names} if is_used else self._names
        moved = [
            (f"{self.prefix}{recorded[schema]}", self.name_schema(schema))
            for schema in self._names
            if recorded.get(schema, schema) != self._names[schema] and f"{self.prefix}{recorded[schema]}" in schemas
        ]
        if moved:
            raise UsageError(RENAMED.format(title=self.title, how=self._explain_move(moved)))

    def is_timeout(self, message: str) -> bool:
        return bool(server.TOO_LONG.search(message))

    @abstractmethod
    def _explain_move(self, schemas: Sequence[tuple[str, str]]) -> str:
        """Return how to rename schemas, as the beginning of a sentence."""


def _list_own_tables(connection: duckdb.DuckDBPyConnection, schema: str) -> list[str]:
    """Return the tables that the job loads. A schema may hold tables and views of analysts as well."""
    names = list_tables(connection, f"warehouse.{schema}")
    return [name for name in names if name in TABLES or name.startswith("_dlt_")]


def _is_passing(error: BaseException) -> bool:
    """Return whether an error may pass with another attempt. A lock timeout does not: that was a long wait."""
    return isinstance(error, duckdb.Error) and "lock timeout" not in str(error)


def _list_schemas(connection: duckdb.DuckDBPyConnection) -> set[str]:
    rows = connection.execute("SELECT schema_name FROM duckdb_schemas() WHERE database_name = 'warehouse'").fetchall()
    return {name for (name,) in rows}
