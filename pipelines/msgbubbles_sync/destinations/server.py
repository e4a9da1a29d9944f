"""Attach a PostgreSQL server, check that it can hold a warehouse, and explain what it refuses."""

from __future__ import annotations

import importlib.util
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import duckdb

from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.extras import format_install_command
from msgbubbles_sync.lock import AnotherJobRunsError
from msgbubbles_sync.sql import quote_literal, quote_name

from .libpq import format_dsn

# The messages of libpq and the server that may be shown. DuckDB's message around them quotes the address, with its
# password.
REASONS = re.compile(
    "server does not support SSL, but SSL was required"
    "|root certificate file .{0,200}? does not exist|certificate verify failed"
    "|server certificate for .{0,200}? does not match host name"
    "|could not (?:load|read) [a-z ]*(?:certificate|key)[a-z ]*file"
    '|(?:role|database) ".{1,63}?" does not exist'
    "|password authentication failed|no password supplied|no pg_hba.conf entry"
    "|timeout expired|[Cc]onnection refused|could not translate host name|permission denied for [a-z]+"
    "|unsupported startup parameter|invalid [a-z_]+ value"
    "|the database system is [a-z ]+|terminating connection due to [a-z ]+|server closed the connection unexpectedly"
    "|sorry, too many clients already|remaining connection slots are reserved|too many connections for [a-z]+"
    "|could not write init file|No space left on device"
)
POOLER = "unsupported startup parameter"
# PostgreSQL refuses CREATE SCHEMA IF NOT EXISTS to a role that may not create one, even if it exists.
CREATE_SCHEMA = """DO $schema$ BEGIN
    IF to_regnamespace('{schema}') IS NULL THEN CREATE SCHEMA {schema}; END IF;
END $schema$"""
# The server notices that a process was killed when its connection is closed, which may take a moment.
LOCK_WAIT_SECONDS, LOCK_POLL_SECONDS = 3.0, 0.2
# A firewall may drop a connection without traffic, and a machine may be gone: the server asks every minute.
TRY_LOCK = """SELECT set_config('idle_in_transaction_session_timeout', '0', true) AS a,
set_config('tcp_keepalives_idle', '60', true) AS b, pg_try_advisory_xact_lock({key}) AS is_held"""
LOCK_HOLDER = """SELECT pid, host(client_addr) AS host,
xact_start AT TIME ZONE 'UTC' AS since FROM pg_locks JOIN pg_stat_activity USING (pid)
WHERE (locktype, granted, objsubid) = ('advisory', true, 2) AND pg_locks.database = datid
AND datname = current_database() AND (classid::bigint::bit(32)::int, objid::bigint::bit(32)::int) = ({key})"""
SERVER_FACTS = """SELECT current_user::text AS role, current_database()::text AS database,
current_setting('server_encoding') AS encoding,
pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on' AS is_read_only,
has_database_privilege(current_database(), 'CREATE') AS may_create, current_setting('TimeZone') AS zone"""
MAY_USE_SCHEMAS = """SELECT nspname::text AS name,
has_schema_privilege(oid, 'USAGE') AND has_schema_privilege(oid, 'CREATE') AS is_open
FROM pg_namespace WHERE nspname IN ({schemas})"""
MAY_VACUUM = """SELECT rolsuper OR pg_has_role(datdba, 'USAGE') AS is_owner
FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()"""
OWN_TABLES = """SELECT format('%I.%I', nspname, relname) AS path
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'm') AND nspname IN ({schemas}) AND pg_has_role(relowner, 'USAGE')"""
# `ANALYZE` keeps the statistics of a table that is empty now. Older servers have no such function.
IS_BEFORE_18 = "SELECT current_setting('server_version_num')::int < 180000 AS is_before"
CLEAR_STATISTICS = """DO $clear$ BEGIN IF current_setting('server_version_num')::int >= 180000 THEN
    PERFORM pg_clear_attribute_stats(schemaname::text, tablename::text, attname::text, inherited)
    FROM pg_stats JOIN pg_class ON pg_class.oid = format('%I.%I', schemaname, tablename)::regclass
    WHERE relkind IN ('r', 'm') AND schemaname IN ({schemas}) AND pg_has_role(relowner, 'USAGE');
END IF; END $clear$"""
LOCKED = re.compile("lock timeout|deadlock detected")
TOO_LONG = re.compile("statement timeout|idle-in-transaction timeout")
# Messages about the server's own catalog, which several sessions change at a time.
RACED = re.compile(
    "tuple concurrently (?:updated|deleted)|could not open relation with OID|cache lookup failed for"
    '|violates unique constraint "pg_'
)
DENIED = re.compile(r'permission denied for ([a-z ]+) ([\w."]+)|must be owner of ([a-z ]+) ([\w."]+)')
# The others may still work.
OF_ONE_TABLE = re.compile("|".join(error.pattern for error in (LOCKED, TOO_LONG, DENIED)))
READ_ONLY = re.compile("in a read-only transaction")
FULL = re.compile("could not (?:extend|write to) file|No space left on device|disk full", re.I)
GONE = re.compile(
    "server closed the connection|terminating connection|[Cc]onnection refused|connection to server .{0,300}? failed"
    "|the database system is (?:shutting down|starting up|in recovery mode)"
)
HOLDERS = """SELECT pid, usename::text AS role, application_name AS name, state,
xact_start AT TIME ZONE 'UTC' AS since, string_agg(DISTINCT nspname || '.' || relname, ', ') AS tables
FROM pg_locks JOIN pg_stat_activity USING (pid) JOIN pg_class ON pg_class.oid = relation
JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE granted AND relkind IN ('r', 'p', 'v', 'm') AND nspname IN ({schemas}) AND pid <> pg_backend_pid()
AND application_name <> {application} AND datname = current_database()
GROUP BY pid, usename, application_name, state, xact_start ORDER BY xact_start NULLS LAST LIMIT 3"""

# The extensions that this process has loaded, and whose signatures DuckDB has checked.
loaded_extensions: set[str] = set()


def find_reason(error: Exception) -> str:
    """Return why a connection was refused, as the end of a sentence without secrets; empty if unknown."""
    reason = REASONS.search(str(error))
    if reason is not None and reason[0] == POOLER:
        return f": {POOLER} (set ignore_startup_parameters = options in pgbouncer.ini)"
    return f": {reason[0]}" if reason else ""


def find_extension(name: str, title: str) -> Path:
    """Return the file of a DuckDB extension that was installed as a package, because a job downloads nothing.

    Raises `UsageError` if the package is missing, which destination `title` needs.
    """
    package = importlib.util.find_spec(f"duckdb_extension_{name}")
    if package is None or package.origin is None:
        raise UsageError(f"--destination {title} needs more packages: {format_install_command(title)}")
    return Path(package.origin).parent / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"


def build_config(extensions: Collection[str]) -> dict[str, Any]:
    """Return the configuration of a connection that loads these extensions.

    Their signatures are checked once in a process: for each connection, DuckDB would hash 40 to 90 MB, which takes a
    third of a second of CPU time, and the run of a lake opens fifteen.
    """
    return {"allow_unsigned_extensions": "true"} if loaded_extensions.issuperset(extensions) else {}


@contextmanager
def attach(
    parameters: Mapping[str, str], title: str, refusal: str, *options: str
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a DuckDB connection with the server's database attached as `warehouse`.

    Raises `UsageError` if the connection is refused, with the message `refusal`, in which the reason replaces `{why}`,
    and if the extension is missing, which destination `title` needs.
    """
    extension = find_extension("postgres_scanner", title)
    with duckdb.connect(config=build_config(["postgres_scanner"])) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        address = quote_literal(format_dsn(parameters))
        try:
            connection.execute(f"LOAD {quote_literal(str(extension))}")
            loaded_extensions.add("postgres_scanner")
            connection.execute(f"ATTACH {address} AS warehouse ({', '.join(['TYPE postgres', *options])})")
            connection.execute("USE warehouse")
        except duckdb.Error as error:
            raise UsageError(refusal.replace("{why}", f"({type(error).__name__}){find_reason(error)}")) from None
        yield connection


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    """Run a query on the attached server, in its own SQL, and return the rows. Raises `duckdb.Error`."""
    return connection.execute(f"FROM postgres_query('warehouse', {quote_literal(sql)})").fetchall()


def execute(connection: duckdb.DuckDBPyConnection, *statements: str) -> None:
    """Execute statements of the server's own SQL, all or none. Raises `duckdb.Error`."""
    connection.execute(f"CALL postgres_execute('warehouse', {quote_literal('; '.join(statements))})")


def _execute_alone(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Execute a statement that the server refuses in a transaction."""
    connection.execute(f"CALL postgres_execute('warehouse', {quote_literal(statement)}, use_transaction => false)")


@contextmanager
def hold_lock(connection: duckdb.DuckDBPyConnection, name: str) -> Iterator[None]:
    """Hold a lock of the attached server by name, so that one job at a time writes to the tables.

    The lock belongs to a transaction, because a pooler may change the session between two. `connection` needs the
    isolation level READ COMMITTED: then the transaction keeps no deleted row from being removed. The server ends it
    when the connection breaks. Raises `AnotherJobRunsError` if it is not free within `LOCK_WAIT_SECONDS`.
    """
    key = f"hashtext('msgbubbles job'), hashtext({quote_literal(name)})"
    connection.execute("BEGIN")
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while query(connection, TRY_LOCK.format(key=key))[0][-1] is False:
        if time.monotonic() > deadline:
            raise AnotherJobRunsError(_describe_lock(query(connection, LOCK_HOLDER.format(key=key))))
        time.sleep(LOCK_POLL_SECONDS)
    try:
        yield
    finally:
        # The server may have been restarted meanwhile. DuckDB aborts the process if it closes such a transaction.
        with suppress(duckdb.Error):
            connection.execute("ROLLBACK")


def _describe_lock(holders: list[tuple[Any, ...]]) -> str:
    if not holders:
        return "another job was active on this warehouse; run again"
    [(pid, host, since), *_] = holders
    where = f" from {host}" if host else ""
    when = f", since {since:%Y-%m-%d %H:%M:%S} UTC" if since else ""
    return (
        f"another job is active on this warehouse: session {pid} of its server{where}{when}. Run again when it has "
        f"ended; if its machine is gone, end it with SELECT pg_terminate_backend({pid})"
    )


def check(connection: duckdb.DuckDBPyConnection, schemas: Sequence[str], title: str) -> None:
    """Check the server's encoding, that it is writable, and that the job's role may use its schemas.

    Raises `UsageError` with the statement that fixes it.
    """
    [(role, database, encoding, is_read_only, may_create, zone)] = query(connection, SERVER_FACTS)
    if encoding != "UTF8":
        raise UsageError(
            f"--destination {title}: the encoding of the database {database} is {encoding}, which cannot store every "
            "text. Create another one and use it: CREATE DATABASE name ENCODING 'UTF8' TEMPLATE template0"
        )
    if is_read_only:
        raise UsageError(
            f"--destination {title}: the server is read-only for the role {role} (it is a standby, or "
            "default_transaction_read_only is on). Use the primary's address, or unset that option"
        )
    if zone not in ("UTC", "Etc/UTC", "GMT"):  # a pooler has dropped the option with which the job sets it
        raise UsageError(
            f"--destination {title}: sessions of the role {role} have the time zone {zone}, and a pooler keeps the job "
            f"from changing it. Run as an administrator: ALTER ROLE {quote_name(role)} SET timezone = 'UTC'"
        )
    listed = ", ".join(quote_literal(schema) for schema in schemas)
    may_use = dict(query(connection, MAY_USE_SCHEMAS.format(schemas=listed)))
    missing = [schema for schema in schemas if schema not in may_use]
    if missing and not may_create:
        raise UsageError(
            f"--destination {title}: the role {role} may not create the schemas {', '.join(missing)}. Run as an "
            f"administrator: GRANT CREATE ON DATABASE {quote_name(database)} TO {quote_name(role)}"
        )
    closed = [schema for schema, is_open in may_use.items() if not is_open]
    if closed:
        raise UsageError(
            f"--destination {title}: the role {role} may not use the schemas {', '.join(closed)}. Run as an "
            f"administrator: GRANT USAGE, CREATE ON SCHEMA {', '.join(closed)} TO {quote_name(role)}"
        )


def remove_old_rows(connection: duckdb.DuckDBPyConnection, schemas: Sequence[str]) -> None:
    """Rewrite the job's tables in these schemas, whose files may hold deleted rows. Waits for their readers."""
    for (path,) in query(connection, OWN_TABLES.format(schemas=", ".join(map(quote_literal, schemas)))):
        _execute_alone(connection, f"VACUUM FULL {path}")


def renew_statistics(connection: duckdb.DuckDBPyConnection, schemas: Sequence[str]) -> None:
    """Replace the planner's statistics of the job's tables, because they quote values."""
    listed = ", ".join(map(quote_literal, schemas))
    execute(connection, CLEAR_STATISTICS.format(schemas=listed))
    for (path,) in query(connection, OWN_TABLES.format(schemas=listed)):
        _execute_alone(connection, f"ANALYZE {path}")
    if _may_vacuum_catalog(connection):
        _execute_alone(connection, "VACUUM FULL pg_catalog.pg_statistic")


def list_copies(connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return where a server may still have rows that were removed from its tables."""
    copies = [
        "the server's write-ahead log, until it is recycled, and its archive",
        "replicas that lag, backups and snapshots of the server",
        "the server's own log, which may quote statements",
        "tables and materialized views that you made from these",
        "old statistics, if another session's transaction was open during the erasure",
    ]
    if query(connection, IS_BEFORE_18)[0][0]:
        copies.append("the planner's old statistics of tables that are empty now, which PostgreSQL before 18 keeps")
    if not _may_vacuum_catalog(connection):
        copies.append(
            "the planner's old statistics, because the job's role does not own the database (as its owner, run: "
            "VACUUM FULL pg_catalog.pg_statistic)"
        )
    return copies


def _may_vacuum_catalog(connection: duckdb.DuckDBPyConnection) -> bool:
    return query(connection, MAY_VACUUM) == [(True,)]


def explain(message: str, title: str) -> str | None:
    """Return what an error message of a server means and how to fix it; null if unknown."""
    denied = DENIED.search(message)
    if denied:
        kind, name = denied[1] or denied[3], denied[2] or denied[4]
        fix = "grant it the missing privilege" if denied[1] else "make it a member of the owner's role"
        return f"{title}: the job's role may not write {kind} {name}; {fix}, and run again"
    if RACED.search(message):
        return f"{title}: another session changed tables of the database at the same moment; run again"
    if READ_ONLY.search(message):
        return f"{title}: the server is read-only; use the primary's address, and run again"
    if FULL.search(message):
        return f"{title}: the server's disk is full; free some space there, and run again"
    if TOO_LONG.search(message):
        return (
            f"{title}: a statement took longer than [sync] statement_timeout_seconds; raise it in "
            "dlt_config/config.toml, and run again"
        )
    if GONE.search(message):
        return f"{title}: the connection to the server was lost; check that it is up, and run again"
    return None


def explain_lock(title: str, parameters: Mapping[str, str], schemas: Sequence[str]) -> str:
    """Return a message that names the other sessions with locks in these schemas, and says how to go on."""
    listed = ", ".join(quote_literal(schema) for schema in schemas)
    sql = HOLDERS.format(schemas=listed, application=quote_literal(parameters["application_name"]))
    rows: list[tuple[Any, ...]] = []
    with suppress(UsageError, duckdb.Error), attach(parameters, title, "", "READ_ONLY") as connection:
        rows = query(connection, sql)
    holders = [
        f"session {pid} (user {user}, application {name or 'unnamed'}, {state or 'state unknown'}"
        f"{f' since {since:%Y-%m-%d %H:%M:%S} UTC' if since else ''}) holds {tables}"
        for pid, user, name, state, since, tables in rows
    ]
    who = "; ".join(holders) or "by a session that has ended since"
    end = f"End it with SELECT pg_terminate_backend({rows[0][0]}), and run" if rows else "Run"
    return (
        f"{title}: a table stayed locked for longer than [sync] lock_timeout_seconds: {who}. {end} again: the next run "
        "continues where this one ended"
    )
