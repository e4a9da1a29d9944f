"""The file that shows all accounts, made of the files that each of them has published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb

from msgbubbles_sync.files import move_damaged, sync_to_disk, write_privately
from msgbubbles_sync.sql import named, quoted

from .publish import beside, has_foreign_log, mark_of, replaced
from .union_accounts import ACCOUNTS, SHOWN, Key, union_of

# No name that an account could have.
BEFORE = "shown before"


def combine(files: Mapping[str, Path], own: str, database: Path, noted: Path, options: dict[str, Any]) -> None:
    """Replace `database` by one that shows all accounts, whose own are in `files`. What it was made of is in `noted`:
    where that is the same, it stays. `options` are DuckDB's.

    An account other than `own` whose file cannot be opened, because somebody has it open to write or it is damaged,
    stays as `database` shows it: it is to stop no other.
    """
    versions = {account: file.stat().st_mtime_ns for account, file in files.items()}
    if noted_of(noted) == [versions, mark_of(database)] and not has_foreign_log(database):
        return
    copy = beside(database)
    with duckdb.connect(str(copy), config=options) as connection:
        connection.execute("SET preserve_insertion_order = false")
        sources = {}
        for account, file in files.items():
            if account != own and has_foreign_log(file):
                continue  # its own job publishes it anew
            try:
                connection.execute(f"ATTACH {quoted(str(file))} AS {named(_alias(account))} (READ_ONLY)")
                sources[account] = _alias(account)
            except duckdb.Error:
                if account == own:
                    raise
        kept = files.keys() - sources.keys()
        if kept and database.exists():
            connection.execute(f"ATTACH {quoted(str(database))} AS {named(BEFORE)} (READ_ONLY)")
            shown = connection.execute(f"SELECT account FROM {named(BEFORE)}.{'.'.join(ACCOUNTS)}").fetchall()  # noqa: S608
            sources |= {account: BEFORE for (account,) in shown if account in kept}

        def source(account: str, schema: str, table: str) -> str:
            found = f"{named(sources[account])}.{schema}.{named(table)}"
            if sources[account] == BEFORE:
                return f"(SELECT * EXCLUDE (account) FROM {found} WHERE account = {quoted(account)}) AS kept"  # noqa: S608
            return found

        for schema in SHOWN:
            connection.execute(f"CREATE SCHEMA {schema}")
        columns = {account: _columns(connection, alias) for account, alias in sources.items()}
        for (schema, table), (_, made_by) in union_of(columns, source).items():
            connection.execute(f"CREATE TABLE {schema}.{named(table)} AS {made_by}")
        for alias in set(sources.values()):
            connection.execute(f"DETACH {named(alias)}")
        connection.execute("CHECKPOINT")
    sync_to_disk(copy)
    replaced(database, copy)
    if noted.is_dir():
        move_damaged(noted)
    made_of = {account: version for account, version in versions.items() if account not in kept}
    write_privately(noted, json.dumps([made_of, mark_of(database)]))


def noted_of(noted: Path) -> Any:
    """Return what a combined file was made of, and its mark; null where that is missing or damaged."""
    with suppress(OSError, ValueError):
        return json.loads(noted.read_text())
    return None


def _alias(account: str) -> str:
    return f"account {account}"  # a bare name may be one of DuckDB's own


def _columns(connection: duckdb.DuckDBPyConnection, alias: str) -> dict[Key, list[str]]:
    query = """SELECT schema_name, table_name, column_name FROM duckdb_columns()
               WHERE database_name = ? ORDER BY schema_name, table_name, column_index"""
    found: dict[Key, list[str]] = {}
    for schema, table, column in connection.execute(query, [alias]).fetchall():
        found.setdefault((schema, table), []).append(column)
    if alias == BEFORE:
        del found[ACCOUNTS]
        return {key: names[1:] for key, names in found.items()}
    return found
