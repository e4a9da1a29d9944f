"""One table of the tables of all accounts, with the account before every key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from msgbubbles_sync.sql import named, quoted

Key = tuple[str, str]
Columns = Mapping[str, Mapping[Key, Sequence[str]]]
SHOWN = ("msgbubbles", "marts")
ACCOUNTS = ("msgbubbles", "accounts")
MADE_AS = ("msgbubbles", "_accounts_made_as")
# What only the job itself looks at.
OWN_TABLES = re.compile(r"_dlt|_account|privacy$")


def union_of(
    columns: Columns, source: Callable[[str, str, str], str], before: Mapping[Key, Sequence[str]] | None = None
) -> dict[Key, tuple[list[str], str]]:
    """The tables that show all accounts, by schema and name: their columns, and a query that makes them.

    `columns` has the columns of each account's tables; `source` is how a query names one of them. An account whose
    tables are of another version has nulls where it lacks a column. Columns that were there `before` stay in their
    places, because a view can be replaced only by one that begins as it does.
    """
    found = {}
    tables_of_any = {key for tables in columns.values() for key in tables if key[0] in SHOWN}
    for schema, table in sorted(key for key in tables_of_any if not OWN_TABLES.match(key[1])):
        having = {
            account: tables[schema, table] for account, tables in sorted(columns.items()) if (schema, table) in tables
        }
        # By name, an account that has it.
        had_by = {name: account for account, names in having.items() for name in names}
        known = [name for name in (before or {}).get((schema, table), ())[1:] if name in had_by]
        # The widest first: what it has more than others is behind what they have.
        widest_first = sorted(having.values(), key=len, reverse=True)
        names = list(dict.fromkeys([*known, *(name for of_one in widest_first for name in of_one)]))
        parts = []
        for account, has in having.items():
            # A null of the column's type: a bare one takes its type from what happens to be beside it.
            taken = [
                named(name)
                if name in has
                else f"(SELECT {named(name)} FROM {source(had_by[name], schema, table)} LIMIT 0) AS {named(name)}"  # noqa: S608
                for name in names
            ]
            parts.append(
                f"SELECT {quoted(account)} AS account, {', '.join(taken)} FROM {source(account, schema, table)}"  # noqa: S608
            )
        found[schema, table] = (["account", *names], " UNION ALL ".join(parts))
    accounts = " UNION ALL ".join(f"SELECT {quoted(account)} AS account" for account in sorted(columns))
    return found | {ACCOUNTS: (["account"], accounts)}
