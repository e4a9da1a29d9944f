"""Find loaded tables that somebody has changed by hand, and give them the columns that a load needs.

dlt creates what is missing, and everything is read again, if the tables do not say which schema and state they have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import duckdb

from msgbubbles.tables import CHAT_TITLES, CHATS, PARTICIPANT_LISTS, ColumnType
from msgbubbles_sync.sql import fetch_rows, quote_name
from msgbubbles_sync.tables import CLAIM_TABLE, JOB_TABLES, REPLACED, SQL_TYPES, TABLES
from msgbubbles_sync.workspace import PIPELINE

# DuckDB and PostgreSQL understand this.
COLUMNS = """SELECT columns.table_name::text AS name, column_name::text AS column_name, data_type::text AS kind,
is_nullable = 'YES' AS may_be_null, table_type = 'VIEW' AS is_view
FROM information_schema.columns JOIN information_schema.tables
ON columns.table_schema = tables.table_schema AND columns.table_name = tables.table_name
WHERE columns.table_catalog = current_database() AND tables.table_catalog = current_database()
AND columns.table_schema = '{schema}' ORDER BY 1, ordinal_position"""
# A row of it.
StoredColumn = tuple[str, str, str, bool, bool]
STORED_SCHEMA = "SELECT schema FROM {schema}._dlt_version WHERE schema_name = ? ORDER BY inserted_at DESC LIMIT 1"
# By any of these rows, the job recognizes a schema of its own, whatever else somebody has dropped: a table, a column,
# and how its value starts.
OWN_ROWS = (
    ("_dlt_version", "schema_name", PIPELINE),
    ("_dlt_loads", "schema_name", PIPELINE),
    (CLAIM_TABLE.name, "claim", "{"),
)
LOAD_ID = "_dlt_load_id"
# A column of tables without a version.
READ_AT = "_read_at"
# The names of types in DuckDB and in PostgreSQL. A column of text serves for JSON in DuckDB.
KINDS: dict[ColumnType, set[str]] = {
    "text": {"VARCHAR", "character varying", "text"},
    "bigint": {"BIGINT", "bigint"},
    "bool": {"BOOLEAN", "boolean"},
    "timestamp": {"TIMESTAMP WITH TIME ZONE", "timestamp with time zone"},
    "json": {"JSON", "VARCHAR", "jsonb", "json"},
    "double": {"DOUBLE", "double precision"},
    "integer": {"INTEGER", "integer"},
}
# Columns outside of the key by which rows of different times differ.
VERSIONED = {PARTICIPANT_LISTS.name: {"_fetched_at"}}
CHANGED = "somebody has changed {what}: changed back"
IRREPARABLE = """{title}: somebody has changed {what}, and the database refuses to change it back ({why}): nothing is
written into this table until then. Remove what is in its way there, and run {statement}"""


@dataclass(frozen=True)
class Repair:
    """A change of somebody to a table, and the statements that undo it: the first that the database accepts."""

    table: str
    what: str
    statements: tuple[str, ...]
    # The table may be missing because the account has no rows for it.
    only_if_rows_are_lost: bool = False


def find_repairs(
    stored: Iterable[StoredColumn], schema: str, types: Mapping[ColumnType, str] = SQL_TYPES
) -> list[Repair]:
    """Find what somebody has changed in the loaded tables of a schema.

    That is a column of another type, a column that must not be null, a table without a column that is null in no row,
    and a view in the place of a table. `types` are the names of types in the statements.
    """
    expected = {(table.name, column.name): column for table in TABLES.values() for column in table.columns}
    repairs: list[Repair] = []
    views: dict[str, list[str]] = {}
    tables: dict[str, list[str]] = {}
    for table, name, kind, may_be_null, is_view in stored:
        (views if is_view and table in TABLES else tables).setdefault(table, []).append(name)
        if is_view or (table, name) not in expected:
            continue
        wanted = expected[table, name]
        alter = f"ALTER TABLE {schema}.{quote_name(table)}"
        column = quote_name(name)
        if wanted.nullable and not may_be_null:
            allow = f"{alter} ALTER COLUMN {column} DROP NOT NULL"
            repairs.append(Repair(table, f"{table}.{name} (NOT NULL)", (allow,)))
        if kind not in KINDS[wanted.type]:
            sql_type = types[wanted.type]
            cast = f"{alter} ALTER COLUMN {column} TYPE {sql_type} USING CAST(CAST({column} AS VARCHAR) AS {sql_type})"
            drop = f"{alter} DROP COLUMN {column}"
            rename = f"{alter} RENAME TO {quote_name(REPLACED.format(table=table))}"
            # All rows are read again, except those that the API no longer has, so their values are cast if possible.
            others = ((drop,) if wanted.nullable else ()) + ((rename,) if table in JOB_TABLES else ())
            repairs.append(Repair(table, f"{table}.{name} ({kind})", (cast, *others)))
    is_old = any(READ_AT in columns for columns in tables.values())  # the upgrade gives them these columns
    for table in () if is_old else sorted(TABLES.keys() & tables.keys() - JOB_TABLES.keys()):
        missing = _list_needed(table) - {*tables[table]}
        alter = f"ALTER TABLE {schema}.{quote_name(table)}"
        if missing & ({*TABLES[table].key} | VERSIONED.get(table, set())):
            new = _choose_name(table, {*tables, *views})
            what = f"{table} (without {', '.join(sorted(missing))}, now {new})"
            repairs.append(Repair(table, what, (f"{alter} RENAME TO {quote_name(new)}",)))
            continue
        for name in sorted(missing):  # dlt cannot add these columns to a table with rows
            value = f"{types['text']} DEFAULT '0'" if name == LOAD_ID else f"{types['timestamp']} DEFAULT now()"
            repairs.append(
                Repair(table, f"{table}.{name} (missing)", (f"{alter} ADD COLUMN {quote_name(name)} {value}",))
            )
    # Chats that are read again unchanged bring no title.
    needed = {*CHAT_TITLES.column_names, LOAD_ID, "id"} - {"chat_id"}
    if not is_old and CHAT_TITLES.name not in {*tables, *views} and needed <= {*tables.get(CHATS.name, ())}:
        path = f"{schema}.{quote_name(CHAT_TITLES.name)}"
        titles = f"id AS chat_id, title, updated_at, _fetched_at, {LOAD_ID}"
        chats = f"{schema}.{quote_name(CHATS.name)}"
        create = f"CREATE TABLE {path} AS SELECT {titles} FROM {chats} WHERE title IS NOT NULL"  # noqa: S608
        what = f"{CHAT_TITLES.name} (missing)"
        repairs.append(Repair(CHAT_TITLES.name, what, (create,), only_if_rows_are_lost=True))
    for table, shown in views.items():
        new = _choose_name(table, {*tables, *views})
        renamed, path = quote_name(new), f"{schema}.{quote_name(table)}"
        rename = f"ALTER VIEW {path} RENAME TO {renamed}"
        columns = {column.name: types[column.type] for column in TABLES[table].columns} | {LOAD_ID: types["text"]}
        casts = ", ".join(f"CAST({name} AS {kind}) AS {name}" for name, kind in columns.items() if name in shown)
        # The API may no longer have some of its rows. dlt cannot add these columns to a table with rows.
        copy = f"{rename}; CREATE TABLE {path} AS SELECT {casts} FROM {schema}.{renamed}"  # noqa: S608
        statements = (copy, rename) if _list_needed(table) <= {*shown} else (rename,)
        repairs.append(Repair(table, f"{table} (a view, now {new})", statements))
    return repairs


def _list_needed(table: str) -> set[str]:
    """Return the columns of a loaded table that are null in no row."""
    return {column.name for column in TABLES[table].columns if not column.nullable} | {LOAD_ID}


def _choose_name(table: str, taken: Collection[str]) -> str:
    """Return a new name for what somebody has put in the place of a table."""
    new = REPLACED.format(table=table)
    names = [new, *(f"{new}_{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def repair(repairs: Sequence[Repair], execute: Callable[[str], object], title: str) -> tuple[list[str], dict[str, str]]:
    """Undo what somebody has changed. Return that, and which tables the database refuses to change back, and why.

    `execute` executes statements, all or none.
    """
    changed: list[str] = []
    held: dict[str, str] = {}
    for change in repairs:
        refusals = []
        for statement in change.statements:
            try:
                execute(statement)
                break
            except duckdb.Error as error:
                refusals.append(type(error).__name__)
        if len(refusals) < len(change.statements):
            changed.append(CHANGED.format(what=change.what))
            continue
        why, statement = refusals[-1], change.statements[-1]
        held[change.table] = IRREPARABLE.format(title=title, what=change.what, why=why, statement=statement)
    return changed, held


def has_own_rows(connection: duckdb.DuckDBPyConnection, path: str) -> bool:
    """Return whether this job, or one of its account, has loaded a schema."""
    return any(
        fetch_rows(connection, f"SELECT 1 FROM {path}.{table} WHERE starts_with({column}, ?) LIMIT 1", [start])  # noqa: S608
        for table, column, start in OWN_ROWS
    )


def has_lost_columns(connection: duckdb.DuckDBPyConnection, path: str, stored: Mapping[str, Collection[str]]) -> bool:
    """Return whether somebody has removed or renamed a loaded table of the schema `path`, or a column of one.

    `stored` are the columns of each table and view of the schema.
    """
    with suppress(duckdb.CatalogException, duckdb.BinderException, ValueError, KeyError):
        row = connection.execute(STORED_SCHEMA.format(schema=path), [PIPELINE]).fetchone()
        created = json.loads(row[0])["tables"] if row else {}
        return (bool(created) and "_dlt_loads" not in stored) or any(
            not set(table["columns"]) & {*TABLES[name].column_names} <= {*stored.get(name, ())}
            for name, table in created.items()
            if name in TABLES and table.get("x-normalizer", {}).get("seen-data")
        )
    return False


def forget_schema(connection: duckdb.DuckDBPyConnection, path: str) -> None:
    """Delete which schema and state the tables have."""
    for table, name in (("_dlt_version", "schema_name"), ("_dlt_pipeline_state", "pipeline_name")):
        with suppress(duckdb.CatalogException):
            connection.execute(f"DELETE FROM {path}.{table} WHERE starts_with({name}, ?)", [PIPELINE])  # noqa: S608
