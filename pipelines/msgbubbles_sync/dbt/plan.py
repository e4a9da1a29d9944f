"""Run the statements of an incremental dbt run again, without dbt.

dbt takes seconds to start and to decide what to do; DuckDB then takes a fraction of one to do it. What dbt decides
depends on the project, its variables, and the relations in the database with their columns. While none of these
changes, neither do the statements: they are recorded when dbt runs, and executed again while the key matches.
docs/decisions/planned-runs.md has the reasons and the limits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.lock import record_progress
from msgbubbles_sync.sql import quote_name

# Everything that dbt looks up before it decides: relations, columns with their types, views, keys and indexes.
RELATIONS = """
SELECT 'column', schema_name, table_name, column_index::VARCHAR, column_name || ' ' || data_type, is_nullable::VARCHAR
FROM duckdb_columns() WHERE database_name = current_database() AND NOT internal
UNION ALL
SELECT 'view', schema_name, view_name, '', sql, '' FROM duckdb_views()
WHERE database_name = current_database() AND NOT internal
UNION ALL
SELECT 'constraint', schema_name, table_name, constraint_index::VARCHAR, constraint_text, '' FROM duckdb_constraints()
WHERE database_name = current_database()
UNION ALL
SELECT 'index', schema_name, table_name, index_name, sql, '' FROM duckdb_indexes()
WHERE database_name = current_database()
ORDER BY ALL"""
FIRST_WORD = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(\w+)", re.S)
CHANGES = frozenset({"begin", "commit", "create", "alter", "drop", "delete", "insert", "update", "comment"})
# What only reads is dbt's own: its outcome is in the key.
READS = frozenset({"select", "describe"})
TESTS_AT_ONCE = 12
MART_VIEWS = "SELECT view_name FROM duckdb_views() WHERE database_name = current_database() AND schema_name = 'marts'"


class Plan(msgspec.Struct, frozen=True):
    """The statements of one incremental run, in order, and those of its data tests. It holds while `key` is the same.

    The statement of a test yields one row, with a column `should_error`.
    """

    key: str
    statements: list[str]
    tests: list[str]


class PlanFile:
    """The file with the plan of one warehouse."""

    def __init__(self, path: Path, depends_on: Sequence[str]) -> None:
        self._path, self._depends_on = path, (*depends_on, duckdb.__version__)
        self._key_before = ""
        self._plan: Plan | None = None

    def execute(self, destination: Destination) -> bool:
        """Return whether there was a plan and it built the tables."""
        with suppress(duckdb.Error), destination.open_writer() as connection:
            self._key_before = self._read_key(connection)
            self._plan = self._load()
            if self._plan is not None:
                for statement in self._plan.statements:
                    connection.execute(statement)
                    record_progress()
                return True
        return False

    def passes_tests(self, destination: Destination) -> bool:
        """Return whether the data tests of the executed plan pass."""
        tests = self._plan.tests if self._plan else []
        with suppress(duckdb.Error), destination.open_writer() as connection:
            tests = _compute_views_once(tests, connection)
            return all(
                _pass(tests[start : start + TESTS_AT_ONCE], connection) for start in range(0, len(tests), TESTS_AT_ONCE)
            )
        return False

    def record(self, destination: Destination, nodes: Sequence[Any], executed: Sequence[tuple[str, str]]) -> None:
        """Store the statements that dbt has just executed, unless they have changed a relation's columns.

        `nodes` are those of the run and of the tests; `executed` are pairs of a node's id and a statement, in order.
        """
        statements, tests = select_statements(nodes, executed), select_tests(nodes, executed)
        with destination.open_writer() as connection:
            key = self._read_key(connection)
        if key == self._key_before and statements is not None and tests is not None:
            write_privately(self._path, msgspec.json.encode(Plan(key, statements, tests)))

    def _load(self) -> Plan | None:
        with suppress(OSError, msgspec.MsgspecError):
            plan = msgspec.json.decode(self._path.read_bytes(), type=Plan)
            return plan if plan.key == self._key_before else None
        return None

    def _read_key(self, connection: duckdb.DuckDBPyConnection) -> str:
        digest = hashlib.sha256("\0".join(self._depends_on).encode())
        for row in connection.execute(RELATIONS).fetchall():
            digest.update(repr(row).encode())
        return digest.hexdigest()


def select_statements(nodes: Iterable[Any], executed: Iterable[tuple[str, str]]) -> list[str] | None:
    """Return the statements that build tables; null if it is unclear what one of them does.

    Views are left out: the key includes them.
    """
    tables = {node.unique_id for node in nodes if node.config.materialized in ("table", "incremental")}
    statements = []
    for node_id, statement in executed:
        if node_id not in tables:
            continue
        first = FIRST_WORD.match(statement)
        word = first[1].lower() if first else ""
        if word in CHANGES:
            statements.append(statement)
        elif word not in READS:
            return None
    return statements


def select_tests(nodes: Iterable[Any], executed: Sequence[tuple[str, str]]) -> list[str] | None:
    """Return the statement of each data test that can fail; null if it is unclear which that is.

    Tests of severity `warn` have no outcome that the job reports.
    """
    tests = {
        node.unique_id for node in nodes if node.resource_type == "test" and node.config.severity.lower() != "warn"
    }
    found = [
        (node_id, statement) for node_id, statement in executed if node_id in tests and "should_error" in statement
    ]
    if sorted(tests) != sorted(node_id for node_id, _ in found):
        return None
    return [statement for _, statement in found]


def _compute_views_once(tests: list[str], connection: duckdb.DuckDBPyConnection) -> list[str]:
    """Return tests that read temporary tables instead of marts that are views: planning those takes most time."""
    for (view,) in connection.execute(MART_VIEWS).fetchall():
        name, table = f'"marts".{quote_name(view)}', f"temp.main.{quote_name(f'marts.{view}')}"
        if sum(name in test for test in tests) > 1:
            connection.execute(f"CREATE TEMPORARY TABLE {table} AS FROM {name}")
            record_progress()
            tests = [test.replace(name, table) for test in tests]
    return tests


def _pass(tests: Sequence[str], connection: duckdb.DuckDBPyConnection) -> bool:
    """Return whether all of these tests pass."""
    rows = connection.execute(
        "\nUNION ALL\n".join(f"SELECT should_error FROM (\n{test}\n)" for test in tests)
    ).fetchall()
    record_progress()
    return [has_failed for (has_failed,) in rows] == [False] * len(tests)
