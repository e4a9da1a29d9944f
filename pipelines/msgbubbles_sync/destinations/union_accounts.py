"""Show the tables of several accounts together, with the account as the first column.

On a server and in a lake these are views. For DuckDB files, one more file is copied from the published ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import duckdb
import msgspec

from msgbubbles_sync.files import move_damaged, read_json, sync_to_disk, write_privately
from msgbubbles_sync.sql import quote_literal, quote_name, read_columns

from .comments import Comments, read_comments, write_comments
from .publish import Options, has_foreign_log, prepare_copy, read_mark, replace_database

# Schema and name of a table.
Key = tuple[str, str]
READER_SCHEMAS = ("msgbubbles", "marts")
ACCOUNTS = ("msgbubbles", "accounts")
# Tables that only the job reads.
OWN_TABLES = re.compile(r"_dlt|_account|_version$|privacy$")
# The name of the attached old combined file; no account can have this name.
BEFORE = "shown before"
ONE_ACCOUNT = """{where} holds one account, which has no name. To continue it as account {account}:

  {how}

Or choose another {other} for the named accounts"""
MANY_ACCOUNTS = """{where} shows several accounts, so this account needs a name: see [accounts.NAME] in
dlt_config/config.toml, or choose another {other}"""


class ReaderTable(msgspec.Struct, frozen=True):
    """The columns of a table for readers, and the query that returns its rows."""

    columns: list[str]
    query: str


def build_union(
    columns: Mapping[str, Mapping[Key, Sequence[str]]],
    source: Callable[[str, str, str], str],
    before: Mapping[Key, Sequence[str]] | None = None,
) -> dict[Key, ReaderTable]:
    """Build the tables that show all accounts.

    Columns that an account lacks, because another release loaded its tables, are null.

    Args:
        columns: The columns of each account's tables.
        source: A function that returns a table in SQL, from account, schema and name.
        before: The columns of the tables that are to be replaced. They keep their positions, because a view can be
            replaced only by one that starts with the same columns.
    """
    tables: dict[Key, ReaderTable] = {}
    keys = {key for of_account in columns.values() for key in of_account if key[0] in READER_SCHEMAS}
    for key in sorted(key for key in keys if not OWN_TABLES.match(key[1])):
        by_account = {account: own[key] for account, own in sorted(columns.items()) if key in own}
        owner = {name: account for account, names in by_account.items() for name in names}
        positioned = [name for name in (before or {}).get(key, ())[1:] if name in owner]
        # New columns come after the others: the widest table determines the order.
        widest_first = sorted(by_account.values(), key=len, reverse=True)
        names = list(dict.fromkeys([*positioned, *(name for own in widest_first for name in own)]))
        parts = []
        for account, own in by_account.items():
            # The subquery is a null of the column's type.
            values = [
                quote_name(name)
                if name in own
                else f"(SELECT {quote_name(name)} FROM {source(owner[name], *key)} LIMIT 0) AS {quote_name(name)}"  # noqa: S608
                for name in names
            ]
            selected = ", ".join([f"{quote_literal(account)} AS account", *values])
            parts.append(f"SELECT {selected} FROM {source(account, *key)}")  # noqa: S608
        tables[key] = ReaderTable(["account", *names], " UNION ALL ".join(parts))
    accounts = " UNION ALL ".join(f"SELECT {quote_literal(account)} AS account" for account in sorted(columns))
    return tables | {ACCOUNTS: ReaderTable(["account"], accounts)}


def shows_accounts(database: Path) -> bool | None:
    """Return whether a file shows several accounts; null if it cannot be read."""
    try:
        with duckdb.connect(str(database), read_only=True) as connection:
            query = "SELECT 1 FROM duckdb_tables() WHERE (schema_name, table_name) = (?, ?)"
            return connection.execute(query, ACCOUNTS).fetchone() is not None
    except duckdb.Error:
        return None


def combine(files: Mapping[str, Path], own: str, database: Path, note: Path, options: Options) -> None:
    """Replace `database` by a copy of the files of all accounts, unless it has their versions already.

    If the file of another account cannot be opened, because it is damaged or being written, the account stays as it is
    in `database`.

    Args:
        files: The published file of each account.
        own: The account of this job. Raises `duckdb.Error` if its file cannot be opened.
        database: The file that shows all accounts.
        note: A file with the versions that `database` was copied from.
        options: DuckDB's options for the connection.
    """
    versions = {account: file.stat().st_mtime_ns for account, file in files.items()}
    if read_json(note) == [versions, read_mark(database)] and not has_foreign_log(database):
        return
    copy = prepare_copy(database)
    with duckdb.connect(str(copy), config=options) as connection:
        connection.execute("SET preserve_insertion_order = false")
        sources = _attach_accounts(connection, files, own)
        unreadable = files.keys() - sources.keys()
        if unreadable and database.exists():
            connection.execute(f"ATTACH {quote_literal(str(database))} AS {quote_name(BEFORE)} (READ_ONLY)")
            shown = connection.execute(f"SELECT account FROM {quote_name(BEFORE)}.{'.'.join(ACCOUNTS)}").fetchall()  # noqa: S608
            sources |= {account: BEFORE for (account,) in shown if account in unreadable}
        _copy_accounts(connection, sources)
    sync_to_disk(copy)
    replace_database(database, copy)
    if note.is_dir():
        move_damaged(note)
    copied = {account: version for account, version in versions.items() if account not in unreadable}
    write_privately(note, json.dumps([copied, read_mark(database)]))


def _attach_accounts(connection: duckdb.DuckDBPyConnection, files: Mapping[str, Path], own: str) -> dict[str, str]:
    """Attach the file of each account that can be opened, and return the names of the attached databases."""
    sources = {}
    for account, file in files.items():
        if account != own and has_foreign_log(file):
            continue  # its own job will publish it again
        name = f"account {account}"  # a bare name may be one of DuckDB's own
        try:
            connection.execute(f"ATTACH {quote_literal(str(file))} AS {quote_name(name)} (READ_ONLY)")
        except duckdb.Error:
            if account == own:
                raise
        else:
            sources[account] = name
    return sources


def _copy_accounts(connection: duckdb.DuckDBPyConnection, sources: Mapping[str, str]) -> None:
    def source(account: str, schema: str, table: str) -> str:
        path = f"{quote_name(sources[account])}.{schema}.{quote_name(table)}"
        if sources[account] == BEFORE:
            return f"(SELECT * EXCLUDE (account) FROM {path} WHERE account = {quote_literal(account)}) AS before"  # noqa: S608
        return path

    columns = {}
    for account, name in sources.items():
        columns[account] = read_columns(connection, name)
        if name == BEFORE:
            del columns[account][ACCOUNTS]
            columns[account] = {key: names[1:] for key, names in columns[account].items()}
    for schema in READER_SCHEMAS:
        connection.execute(f"CREATE SCHEMA {schema}")
    for (schema, table), shown in build_union(columns, source).items():
        connection.execute(f"CREATE TABLE {schema}.{quote_name(table)} AS {shown.query}")
    comments: dict[Key, Comments] = {}
    for name in set(sources.values()):
        for key, described in read_comments(connection, name).items():
            comments[key] = comments.get(key, {}) | described
    for schema in READER_SCHEMAS:
        write_comments(connection, schema, {key[1]: texts for key, texts in comments.items() if key[0] == schema})
    for name in set(sources.values()):
        connection.execute(f"DETACH {quote_name(name)}")
    connection.execute("CHECKPOINT")
