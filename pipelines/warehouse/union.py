"""One table of the tables of all accounts, with the account before every key."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from .names import named, quoted

Columns = Mapping[str, Mapping[tuple[str, str], Sequence[str]]]
SHOWN = ("msgbubbles", "marts")
# What only the job itself looks at.
OWN_TABLES = re.compile(r"_dlt|privacy$")


def union_of(columns: Columns, source: Callable[[str, str, str], str]) -> dict[tuple[str, str], tuple[list[str], str]]:
    """The tables that show all accounts, by schema and name: their columns, and a query that makes them.

    `columns` has the columns of each account's tables; `source` is how a query names one of them. An account whose
    tables are of an older version has nulls where it lacks a column."""
    found = {}
    tables_of_any = {key for tables in columns.values() for key in tables if key[0] in SHOWN}
    for schema, table in sorted(key for key in tables_of_any if not OWN_TABLES.match(key[1])):
        having = [account for account, tables in columns.items() if (schema, table) in tables]
        # The widest first: a null takes its type from what is before it.
        having.sort(key=lambda account: -len(columns[account][schema, table]))
        names = columns[having[0]][schema, table]
        parts = []
        for account in having:
            has = columns[account][schema, table]
            taken = [named(name) if name in has else f"NULL AS {named(name)}" for name in names]
            parts.append(
                f"SELECT {quoted(account)} AS account, {', '.join(taken)} FROM {source(account, schema, table)}"  # noqa: S608
            )
        found[schema, table] = (["account", *names], " UNION ALL ".join(parts))
    accounts = " UNION ALL ".join(f"SELECT {quoted(account)} AS account" for account in columns)
    return found | {("msgbubbles", "accounts"): (["account"], accounts)}
