"""Run the data tests of a planned run.

Planning and starting a test takes longer than reading what it tests, so those that read the same table are one.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import duckdb
import msgspec

from msgbubbles_sync.sql import limit_seconds, quote_name

# Tests in one statement, and statements at once. Readers wait for the tests.
TESTS_AT_ONCE, TEST_THREADS = 12, 2
# dbt's generic tests that each row passes or fails: the table, and the condition of rows that fail.
ROW_TESTS = {
    "not_null": r"select \w+\s+from (?P<table>.+)\s+where (?P<condition>\w+ is null)",
    "expression_is_true": r"select \*\s+from (?P<table>.+?)\s+where (?P<condition>not \(.+\))",
    "accepted_values": (
        r"with all_values as \(\s*select\s+(?P<column>\w+) as value_field,\s+count\(\*\) as n_records"
        r"\s+from (?P<table>.+)\s+group by \w+\s*\)\s*"
        r"select \*\s+from all_values\s+where value_field (?P<condition>not in \(.+\))"
    ),
}
RELATIONSHIP = re.compile(
    r"with child as \(\s*(?P<child>select \w+ as from_field\s+from .+\s+where \w+ is not null)\s*\),"
    r"\s*parent as \(\s*(?P<parent>select \w+ as to_field\s+from .+?)\s*\)"
    r"\s*select\s+from_field\s+from child\s+left join parent\s.*",
    re.S,
)


class View(msgspec.Struct, frozen=True):
    """A mart that is a view: its name in SQL, and its query."""

    name: str
    query: str


class DataTest(msgspec.Struct, frozen=True):
    """A data test.

    Attributes:
        statement: It yields one row, with a column `should_error`.
        inputs: The ids of the tables and sources that it reads, also through views.
    """

    statement: str
    inputs: list[str]


def select_tests(
    nodes: Iterable[Any], executed: Sequence[tuple[str, str]], models: Mapping[str, Any]
) -> list[DataTest] | None:
    """Return the data tests that can fail, some of them as one; null if it is unclear which statement is that of one.

    Tests of severity `warn` have no outcome that the job reports.
    """
    tests = {
        node.unique_id: node
        for node in nodes
        if node.resource_type == "test" and node.config.severity.lower() != "warn"
    }
    tested = [
        (node_id, statement) for node_id, statement in executed if node_id in tests and "should_error" in statement
    ]
    if sorted(tests) != sorted(node_id for node_id, _ in tested):
        return None
    return _unite_tests([(tests[node_id], statement) for node_id, statement in tested], models)


def _unite_tests(tests: Iterable[tuple[Any, str]], models: Mapping[str, Any]) -> list[DataTest]:
    """Unite the tests of the rows of one table, and those that look for keys in one table."""
    conditions, children = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    inputs, united = defaultdict[str, set[str]](set), list[DataTest]()
    for node, statement in tests:
        own_inputs = find_inputs(node, models)
        kind = _find_kind(node)
        code = node.compiled_code.strip()
        if kind in ROW_TESTS and (match := re.fullmatch(ROW_TESTS[kind], code, re.S)):
            table, column = match["table"].strip(), match.groupdict().get("column", "")
            conditions[table].append(f"({column} {match['condition']})")
            inputs[table].update(own_inputs)
        elif kind == "relationships" and (match := RELATIONSHIP.fullmatch(code)):
            children[match["parent"]].append(match["child"])
            inputs[match["parent"]].update(own_inputs)
        else:
            united.append(DataTest(statement, own_inputs))
    queries = {table: f"FROM {table}\nWHERE " + "\nOR ".join(own) for table, own in conditions.items()}
    for parent, own in children.items():
        keys = "\nUNION ALL\n".join(own)
        queries[parent] = f"FROM (\n{keys}\n) ANTI JOIN (\n{parent}\n) ON from_field = to_field"
    for key, query in queries.items():
        united.append(DataTest(f"SELECT count(*) <> 0 AS should_error {query}", sorted(inputs[key])))
    return united


def _find_kind(node: Any) -> str:
    """Return the name of a generic test that fails if its query yields a row; empty for others."""
    metadata, config = getattr(node, "test_metadata", None), node.config  # singular tests have none
    is_default = (config.fail_calc, config.error_if, config.limit) == ("count(*)", "!= 0", None)
    return metadata.name if metadata and is_default else ""


def find_inputs(node: Any, models: Mapping[str, Any]) -> list[str]:
    """Return the ids of the tables and sources that a model or test reads, also through views."""
    inputs: set[str] = set()
    for node_id in node.depends_on.nodes:
        inputs.update(follow(node_id, models))
    # One without inputs reads something that dbt does not know.
    return sorted(inputs or {node.unique_id})


def follow(node_id: str, models: Mapping[str, Any]) -> list[str]:
    """Return the id of a table or source, and for a view those that it reads."""
    node = models.get(node_id)
    return find_inputs(node, models) if node is not None and is_view(node) else [node_id]


def is_view(node: Any) -> bool:
    return bool(node.config.materialized == "view")


def batch_tests(tests: Sequence[str], views: Sequence[View]) -> list[tuple[str, int]]:
    """Return queries that yield a row for each of these tests, and how many rows that are.

    Tests that read marts that are views come in one query, which computes each view once.
    """
    texts, shared = [*tests], list[View]()
    for view in reversed(views):  # a view comes after those that it reads
        if sum(view.name in text for text in texts) > 1:
            shared.insert(0, view)
            texts.append(view.query)
    aliases = {view.name: quote_name(view.name.replace('"', "")) for view in shared}

    def replace(text: str) -> str:
        for name, alias in aliases.items():
            text = text.replace(name, alias)
        return text

    computed = ",\n".join(f"{aliases[view.name]} AS MATERIALIZED (\n{replace(view.query)}\n)" for view in shared)
    on_views = [test for test in tests if any(name in test for name in aliases)]
    others = [test for test in tests if test not in on_views]
    batches = [others[start : start + TESTS_AT_ONCE] for start in range(0, len(others), TESTS_AT_ONCE)]
    first = [(f"WITH {computed}\n{replace(_unite(on_views))}", len(on_views))] if on_views else []
    return first + [(_unite(batch), len(batch)) for batch in batches]


def _unite(tests: Iterable[str]) -> str:
    return "\nUNION ALL\n".join(f"SELECT should_error FROM (\n{test}\n)" for test in tests)


def passes(batch: tuple[str, int], connection: duckdb.DuckDBPyConnection, database: str, timeout_seconds: int) -> bool:
    """Return whether all tests of a batch pass, in a database. May be called in several threads."""
    query, count = batch
    with connection.cursor() as cursor, limit_seconds(cursor, timeout_seconds):
        cursor.execute(f"USE {quote_name(database)}")  # a cursor uses the first database of a connection
        rows = cursor.execute(query).fetchall()
    return [has_failed for (has_failed,) in rows] == [False] * count
