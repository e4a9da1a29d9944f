"""Tables in a database on a PostgreSQL server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import duckdb
from tenacity import Retrying, retry_if_exception, stop_after_delay, stop_never, wait_fixed

from msgbubbles_sync.errors import RefusedMartsError, UsageError
from msgbubbles_sync.sql import quote_name
from msgbubbles_sync.tables import SQL_TYPES, TABLES

from . import server
from .attached import Attached
from .comments import build_statements, list_descriptions
from .libpq import build_environment, read_parameters
from .loaded_tables import COLUMNS, Repair, find_repairs
from .postgres_marts import copy_marts, find_refused, read_relations, read_stored_comments
from .union_accounts import Key

SET_ADDRESS = """set its address in dlt_config/secrets.toml, [destination.postgres] credentials =
"postgresql://user:password@host:5432/database", or as DESTINATION__POSTGRES__CREDENTIALS"""
NO_ADDRESS = f"--destination postgres: it has no address that can be used;\n{SET_ADDRESS}"
NO_SERVER = f"--destination postgres: the server cannot be reached {{why}}; check that it is up, or\n{SET_ADDRESS}"
REFUSED = """could not be copied to readers: {marts}; readers see the version before. Select from them in the schema
{schema} to see whether their query fails; otherwise remove the constraints or triggers that were added to them"""
# Between two attempts to change the columns of a mart, its readers go on.
LOCK_PAUSE_SECONDS = 3
# A view is replaced in place, so that views of others on top of it stay, unless its columns changed.
REPLACE_VIEW = """DO $view$ BEGIN
    CREATE OR REPLACE VIEW {view} AS {query};
EXCEPTION WHEN invalid_table_definition THEN
    DROP VIEW {view} CASCADE;
    CREATE VIEW {view} AS {query};
END $view$"""


# The tables of a schema that the job's role may not read and write.
CLOSED_TABLES = """SELECT relname::text, oid::regclass::text AS path, current_user::text AS role FROM pg_class
WHERE relnamespace = to_regnamespace('{schema}') AND relkind = 'r' AND NOT
(SELECT bool_and(has_table_privilege(oid, kind)) FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS kind)"""


class Postgres(Attached):
    """A database on a server."""

    title = "postgres"
    marts_schema = "marts_build"
    # ADBC cannot copy JSON from Parquet into columns that other loads have created.
    file_format: Literal["parquet", "csv"] = "csv"
    _another = "database on the server"
    _drop = "DROP TABLE {table} CASCADE"
    _rename = "put {prefix} before the names of the schemas msgbubbles, msgbubbles_staging, staging, marts_build, marts"

    def build_dlt_destination(self) -> Any:
        from .postgres_dlt import build_postgres

        return build_postgres(self._read_parameters())

    def read_dbt_target(self) -> tuple[str, dict[str, str]]:
        return "postgres", build_environment(self._read_parameters())

    def _attach(self, *options: str) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return server.attach(self._read_parameters(), self.title, NO_SERVER, *options)

    _attach_server = _attach

    @contextmanager
    def lock(self) -> Iterator[None]:
        with super().lock():
            self._reopen()  # the job of another machine may have created tables before that
            yield

    def prepare(self) -> None:
        with self._open() as connection:
            server.check(connection, self._schemas, self.title)
        super().prepare()

    @contextmanager
    def open_build(self) -> Iterator[None]:
        yield
        self.workspace.set_pending("marts")

    def publish(self, held_marts: Sequence[str] = ()) -> int | None:
        refused: list[str] = []
        if self.workspace.is_pending("marts"):
            refused = self._copy_marts(held_marts)
            if not (held_marts or refused):  # they are copied as soon as they are no longer held
                self.workspace.set_done("marts")
        size = super().publish(held_marts)
        if refused:
            schema = self.name_schema(self.marts_schema)
            raise RefusedMartsError(REFUSED.format(marts=", ".join(refused), schema=schema))
        return size

    def _copy_marts(self, held_marts: Sequence[str]) -> list[str]:
        """Copy the marts that can be copied, and return the others, which readers keep as they were."""
        limit, refused = self._settings.lock_timeout_seconds, list[str]()
        for attempt in Retrying(
            retry=retry_if_exception(lambda error: "lock timeout" in str(error)),
            stop=stop_after_delay(limit) if limit else stop_never, wait=wait_fixed(LOCK_PAUSE_SECONDS), reraise=True,
        ):  # fmt: skip
            with attempt, self._open() as connection:
                schemas = self.name_schema(self.marts_schema), self.name_schema("marts")
                try:
                    copy_marts(connection, *schemas, held_marts)
                except duckdb.Error as error:
                    if server.LOCKED.search(str(error)) or not self.concerns_one_table(str(error)):
                        raise
                    refused = find_refused(connection, *schemas, held_marts)
                    if not refused:
                        raise
                    copy_marts(connection, *schemas, [*held_marts, *refused])
        return refused

    def _explain_move(self, schemas: Sequence[tuple[str, str]]) -> str:
        renames = "; ".join(f"ALTER SCHEMA {old} RENAME TO {new}" for old, new in schemas)
        return f"Rename them: BEGIN; {renames}; COMMIT"

    def explain(self, message: str) -> str | None:
        if server.LOCKED.search(message):
            return server.explain_lock(self.title, self._read_parameters(), self._schemas)
        return server.explain(message, self.title)

    def concerns_one_table(self, message: str) -> bool:
        return bool(server.OF_ONE_TABLE.search(message)) or super().concerns_one_table(message)

    def _replace_views(self, connection: duckdb.DuckDBPyConnection, views: Mapping[Key, str]) -> None:
        statements = ["BEGIN", "SELECT pg_advisory_xact_lock(hashtext('msgbubbles accounts'))"]
        statements += [server.CREATE_SCHEMA.format(schema=schema) for schema in sorted({schema for schema, _ in views})]
        statements += [
            REPLACE_VIEW.format(view=f"{key[0]}.{quote_name(key[1])}", query=views[key]) for key in sorted(views)
        ]
        server.execute(connection, *statements, "COMMIT")

    def _empty_table(self, connection: duckdb.DuckDBPyConnection, schema: str, table: str) -> None:
        # It gives the table new files, so the old rows need no VACUUM FULL.
        server.execute(connection, f"TRUNCATE {schema}.{quote_name(table)}")

    def _list_tables(self, connection: duckdb.DuckDBPyConnection, schema: str) -> list[str]:
        return [name for name, relation in read_relations(connection, schema).items() if relation.kind != "v"]

    def remove_old_versions(self) -> None:
        with self._open_to_change() as connection:
            server.remove_old_rows(connection, [self.name_schema("marts")])
            server.renew_statistics(connection, self._schemas)

    def list_out_of_reach(self) -> list[str]:
        with self._attach("READ_ONLY") as connection:
            return server.list_copies(connection)

    def _find_repairs(self, connection: duckdb.DuckDBPyConnection) -> list[Repair]:
        columns = server.query(connection, COLUMNS.format(schema=self.dataset))
        repairs = find_repairs(columns, self.dataset, {**SQL_TYPES, "json": "JSONB", "double": "DOUBLE PRECISION"})
        closed = server.query(connection, CLOSED_TABLES.format(schema=self.dataset))
        return repairs + [
            Repair(table, f"{table} (its owner or privileges)", (f"ALTER TABLE {path} OWNER TO {quote_name(role)}",))
            for table, path, role in closed
            if table in TABLES
        ]

    def _execute(self, connection: duckdb.DuckDBPyConnection, statements: str) -> None:
        server.execute(connection, statements)

    def _describe_schema(self, connection: duckdb.DuckDBPyConnection, schema: str) -> None:
        statements = build_statements(schema, read_stored_comments(connection, schema), list_descriptions())
        if statements:
            server.execute(connection, *statements)

    def _read_parameters(self) -> dict[str, str]:
        parameters = read_parameters("destination.postgres.credentials", self._settings)
        if parameters is None:
            raise UsageError(NO_ADDRESS)
        return parameters
