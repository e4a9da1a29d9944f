"""Copy marts on a PostgreSQL server from the schema where they are built to the one that readers see.

dbt replaces relations, which locks out readers and drops views of analysts. Here rows that differ are deleted and
inserted, in one transaction for all marts: readers wait for nothing and see all of a run at once, views on the marts
stay, and rows that did not change are not written.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import duckdb

from msgbubbles_sync.sql import quote_literal, quote_name

from . import server
from .comments import Comments, build_statements

# The columns of each table and view of a schema, in order, with their types.
COLUMNS = """SELECT relname::text AS name, relkind::text AS kind, attname::text AS of_column,
format_type(atttypid, atttypmod) AS type
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
WHERE relnamespace = to_regnamespace({schema}) AND relkind IN ('r', 'p', 'v') ORDER BY relname, attnum"""
COMMENTS = """SELECT {schema} AS in_schema, relname::text, '' AS of_column, obj_description(oid, 'pg_class'),
CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END AS kind
FROM pg_class WHERE relnamespace = to_regnamespace({schema}) AND relkind IN ('r', 'p', 'v')
UNION ALL SELECT {schema}, relname, attname, col_description(pg_class.oid, attnum), 'COLUMN'
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid AND attnum > 0 AND NOT attisdropped
WHERE relnamespace = to_regnamespace({schema}) AND relkind IN ('r', 'p', 'v')"""
COLUMN_LOCK_SECONDS = 2
# Rows are compared by 128 bits of hash of their text, which exists for all types and for nulls. Rows that are there
# twice, in a mart without tests, are found by the number of rows.
DIGESTS = """CREATE TEMPORARY TABLE {digests} ON COMMIT DROP AS
SELECT id, hashtextextended(text, 0) AS high, hashtextextended(text, 1) AS low
FROM (SELECT ctid AS id, ROW({columns})::text AS text FROM {table} OFFSET 0) AS texts"""
ONLY_IN = """ctid IN (SELECT id FROM {digests} AS own
WHERE NOT EXISTS (SELECT FROM {others} AS other WHERE other.high = own.high AND other.low = own.low))"""
IF_NUMBERS_DIFFER = """DO $copy$ BEGIN
    IF (SELECT count(*) FROM {target}) <> (SELECT count(*) FROM {source}) THEN
        DELETE FROM {target};
        INSERT INTO {target} ({columns}) SELECT {columns} FROM {source};
    END IF;
END $copy$"""


@dataclass(frozen=True)
class Relation:
    """A table or view: its kind in PostgreSQL's catalog, and the types of its columns by name."""

    kind: str
    columns: dict[str, str]


def copy_marts(connection: duckdb.DuckDBPyConnection, build: str, readers: str, held_marts: Collection[str]) -> None:
    """Copy all marts but the held ones from the schema `build` to the schema `readers`, all or none.

    A change of columns waits for the transactions that have read the mart, and new readers wait for it. So it gives up
    after some seconds, with an error about its lock timeout, and the caller tries again.
    """
    server.execute(connection, *_build_copy(connection, build, readers, held_marts), "COMMIT")
    wanted: dict[str, Comments] = {}
    for _, table, column, text, _ in read_stored_comments(connection, build):
        if text is not None and table not in held_marts:
            wanted.setdefault(table, {})[column] = text
    if comments := build_statements(readers, read_stored_comments(connection, readers), wanted):
        server.execute(connection, *comments)


def find_refused(
    connection: duckdb.DuckDBPyConnection, build: str, readers: str, held_marts: Collection[str]
) -> list[str]:
    """Return the marts, other than the held ones, that cannot be copied. Raises `duckdb.Error` if one is locked."""
    refused = []
    names = read_relations(connection, build).keys() - held_marts
    for name in sorted(names):
        try:
            statements = _build_copy(connection, build, readers, {*held_marts, *names} - {name})
            server.execute(connection, *statements, "ROLLBACK")
        except duckdb.Error as error:
            if server.LOCKED.search(str(error)):
                raise
            refused.append(name)
    return refused


def _build_copy(
    connection: duckdb.DuckDBPyConnection, build: str, readers: str, held_marts: Collection[str]
) -> list[str]:
    """Return the statements that copy all marts but the held ones, without the end of their transaction."""
    built, stored = read_relations(connection, build), read_relations(connection, readers)
    marts = {name: mart for name, mart in built.items() if name not in held_marts}
    statements = [
        "BEGIN",
        server.CREATE_SCHEMA.format(schema=readers),
        f"SET LOCAL lock_timeout = '{COLUMN_LOCK_SECONDS}s'",
    ]
    for name, mart in marts.items():
        statements += _fit_table(f"{readers}.{quote_name(name)}", mart, stored.get(name))
    statements.append("SET LOCAL lock_timeout TO DEFAULT")
    for name, mart in marts.items():
        statements += _copy_rows(name, mart, build, readers)
    return statements


def read_stored_comments(connection: duckdb.DuckDBPyConnection, schema: str) -> list[tuple[Any, ...]]:
    """Return schema, table, column, comment and kind of everything in a schema that may have a comment."""
    return server.query(connection, COMMENTS.format(schema=quote_literal(schema)))


def read_relations(connection: duckdb.DuckDBPyConnection, schema: str) -> dict[str, Relation]:
    relations: dict[str, Relation] = {}
    for name, kind, column, of_type in server.query(connection, COLUMNS.format(schema=quote_literal(schema))):
        relations.setdefault(name, Relation(kind, {})).columns[column] = of_type
    return relations


def _fit_table(path: str, mart: Relation, stored: Relation | None) -> list[str]:
    """Return the statements that give readers a table with the columns of a mart.

    Views of analysts stay, except for those on a column that is gone or has another type.
    """
    columns = {name: f"{quote_name(name)} {of_type}" for name, of_type in mart.columns.items()}
    create = f"CREATE TABLE {path} ({', '.join(columns.values())})"
    if stored is None:
        return [create]
    if stored.kind == "v":  # of an earlier release
        return [f"DROP VIEW {path} CASCADE", create]
    gone = [name for name, of_type in stored.columns.items() if mart.columns.get(name) != of_type]
    new = [name for name, of_type in mart.columns.items() if stored.columns.get(name) != of_type]
    return [
        *(f"ALTER TABLE {path} DROP COLUMN {quote_name(name)} CASCADE" for name in gone),
        *(f"ALTER TABLE {path} ADD COLUMN {columns[name]}" for name in new),
    ]


def _copy_rows(name: str, mart: Relation, build: str, readers: str) -> list[str]:
    columns = ", ".join(map(quote_name, mart.columns))
    source, target = f"{build}.{quote_name(name)}", f"{readers}.{quote_name(name)}"
    new, old = quote_name(f"new {name}"), quote_name(f"old {name}")
    statements = []
    if mart.kind == "v":  # evaluated once; and it has no ctid
        rows = quote_name(f"rows {name}")
        statements.append(f"CREATE TEMPORARY TABLE {rows} ON COMMIT DROP AS SELECT * FROM {source}")  # noqa: S608
        source = rows
    return [
        *statements,
        DIGESTS.format(digests=new, columns=columns, table=source),
        DIGESTS.format(digests=old, columns=columns, table=target),
        f"ANALYZE {new}",
        f"ANALYZE {old}",
        f"DELETE FROM {target} WHERE {ONLY_IN.format(digests=old, others=new)}",  # noqa: S608
        f"INSERT INTO {target} ({columns}) SELECT {columns} FROM {source} "  # noqa: S608
        f"WHERE {ONLY_IN.format(digests=new, others=old)}",
        IF_NUMBERS_DIFFER.format(source=source, target=target, columns=columns),
    ]
