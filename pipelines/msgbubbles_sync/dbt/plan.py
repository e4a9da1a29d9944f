"""Run the statements of an incremental dbt run again, without dbt.

dbt takes seconds to start and to decide what to do; DuckDB then takes a fraction of one to do it. What dbt decides
depends on the project, its variables, and the relations in the database with their columns. While none of these
changes, neither do the statements: they are recorded when dbt runs, and executed again while the key matches.
docs/decisions/planned-runs.md has the reasons and the limits.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import duckdb
import msgspec

from msgbubbles_sync.destinations import Destination
from msgbubbles_sync.files import write_privately
from msgbubbles_sync.lock import record_progress
from msgbubbles_sync.sql import limit_seconds, use_one_thread

from .plan_tests import TEST_THREADS, DataTest, View, batch_tests, find_inputs, follow, is_view, passes, select_tests

# The file in the workspace's folder `dbt`.
FILE = "plan.json"
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
# Statements that only read are dbt's own: their outcome is in the key.
READS = frozenset({"select", "describe"})
# An increment of more changed messages is worth more than one thread.
FEW_MESSAGES = 10_000
COMMENT = re.compile(r"/\*.*?\*/", re.S)
# The tables that say what an increment has to build: the rows of a chat or day, by mart, and changed messages.
QUEUES = ("chats_to_build", "days_to_build")
CHANGED_MESSAGES, TAILS = "changed_messages", "thread_tails"
BOOKKEEPING = frozenset({*QUEUES, CHANGED_MESSAGES, TAILS, "loads", "unbuilt_loads", "built_loads", "thread_chats"})
ALIASED = ("marts", "mart")  # a column, where a list of marts is called `marts`
# The rows of these tables change only with a load; what changes them otherwise builds the marts from scratch.
SOURCE = "source.msgbubbles.msgbubbles"
LOADED = (
    *(f"{SOURCE}.{name}" for name in ("chats", "messages", "numbers", "attachments", "chat_titles")),
    *(f"{SOURCE}.{name}" for name in ("participant_lists", "group_operations", "group_member_operations")),
    *(f"{SOURCE}.{name}" for name in ("contact_aliases", "stream_coverage")),
)
# The job writes these tables when it stores a run.
RUN_TABLES = (f"{SOURCE}.sync_runs", f"{SOURCE}.failed_reads")
RECORD_BUILDS = """INSERT INTO {staging}.built_loads (mart, load_id)
SELECT mart, load_id FROM (SELECT unnest(?) AS mart) AS marts CROSS JOIN {staging}.loads
EXCEPT SELECT mart, load_id FROM {staging}.built_loads"""


class Schemas(NamedTuple):
    """The names of the schemas in the warehouse."""

    raw: str = "msgbubbles"
    staging: str = "staging"
    marts: str = "marts"

    def find_tables(self, sql: str) -> set[tuple[str, str]]:
        """Return the schema and the name of each table that a statement mentions."""
        return {*re.findall(rf'\b({"|".join(self)})"?\."?(\w+)', COMMENT.sub("", sql))} - {ALIASED}


class Step(msgspec.Struct, frozen=True):
    """The statements that build a table.

    Attributes:
        id: The id of its model.
        name: The name of the table.
        statements: In order.
        is_queued: It is built in increments, of what QUEUES and the tables of changed messages have for it.
        inputs: The ids of the other tables and sources that it reads, also through views. Empty if they are not known.
    """

    id: str
    name: str
    statements: list[str]
    is_queued: bool
    inputs: list[str]


class Plan(msgspec.Struct, frozen=True):
    """The statements of one incremental run, in order, and its data tests. It holds while `key` is the same."""

    key: str
    steps: list[Step]
    views: list[View]
    tests: list[DataTest]


class PlanFile:
    """The file with the plan of one warehouse."""

    def __init__(self, destination: Destination, depends_on: Sequence[str], timeout_seconds: int = 0) -> None:
        self._destination, self._timeout_seconds = destination, timeout_seconds
        self._path, self._depends_on = destination.workspace.dbt_folder / FILE, (*depends_on, duckdb.__version__)
        self._schemas = Schemas(*(destination.name_schema(name) for name in Schemas()))
        self._key_before = ""
        self._plan: Plan | None = None
        self._unchanged: set[str] = set()

    def execute(self, *, follows_success: bool, unchanged: Collection[str] = ()) -> bool:
        """Return whether there was a plan and it built the tables.

        `follows_success`: the last run has built all tables, and they passed the data tests. `unchanged` are the ids of
        sources that are as they were then.
        """
        with suppress(duckdb.Error), self._open() as connection:
            self._key_before = self._read_key(connection)
            self._plan = self._load()
            if self._plan is not None:
                self._unchanged = _run_steps(
                    self._plan.steps, connection, self._schemas,
                    follows_success=follows_success, unchanged_sources=unchanged,
                )  # fmt: skip
                return True
        return False

    def passes_tests(self) -> bool:
        """Return whether the data tests of the executed plan pass: those of unchanged tables have passed before."""
        if self._plan is None:
            return False
        due = [test.statement for test in self._plan.tests if not set(test.inputs) <= self._unchanged]
        batches = batch_tests(due, self._plan.views)
        with (
            suppress(duckdb.Error),
            self._open() as connection,
            ThreadPoolExecutor(TEST_THREADS) as pool,
        ):
            [(database,)] = connection.execute("SELECT current_database()").fetchall()
            return all(pool.map(lambda batch: passes(batch, connection, database, self._timeout_seconds), batches))
        return False

    def record(self, nodes: Sequence[Any], executed: Sequence[tuple[str, str]]) -> None:
        """Store the statements that dbt has just executed, unless they have changed a relation's columns.

        `nodes` are those of the run and of the tests; `executed` are pairs of a node's id and a statement, in order.
        """
        models = {node.unique_id: node for node in nodes if node.resource_type == "model"}
        steps, tests = select_steps(models, executed, self._schemas), select_tests(nodes, executed, models)
        views = [
            View(f'"{node.schema}"."{node.alias}"', node.compiled_code)
            for node in models.values()
            if is_view(node) and node.schema == self._schemas.marts
        ]
        with self._destination.open_relations() as connection:
            key = self._read_key(connection)
        if key == self._key_before and steps is not None and tests is not None:
            write_privately(self._path, msgspec.json.encode(Plan(key, steps, views, tests)))

    @contextmanager
    def _open(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with (
            self._destination.open_relations() as connection,
            limit_seconds(connection, self._timeout_seconds),
            use_one_thread(connection),
        ):
            record_progress(self._timeout_seconds, at_once=True)
            yield connection
            record_progress(at_once=True)

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


def select_steps(models: Mapping[str, Any], executed: Iterable[tuple[str, str]], schemas: Schemas) -> list[Step] | None:
    """Return the steps that build tables; null if it is unclear what one of them does.

    Views are left out: the key includes them.
    """
    statements: dict[str, list[str]] = {}
    for node_id, statement in executed:
        if node_id not in models or is_view(models[node_id]):
            continue
        first = FIRST_WORD.match(statement)
        word = first[1].lower() if first else ""
        if word in CHANGES:
            statements.setdefault(node_id, []).append(statement)
        elif word not in READS:
            return None
    return [_build_step(models[node_id], own, models, schemas) for node_id, own in statements.items()]


def _build_step(node: Any, statements: list[str], models: Mapping[str, Any], schemas: Schemas) -> Step:
    is_queued = node.config.materialized == "incremental"
    inputs = _find_inputs_of_increment(node, statements, models, schemas) if is_queued else find_inputs(node, models)
    return Step(node.unique_id, node.alias, statements, is_queued, inputs)


def _find_inputs_of_increment(
    node: Any, statements: Iterable[str], models: Mapping[str, Any], schemas: Schemas
) -> list[str]:
    """Return the ids of the tables and sources that an incremental model and its hooks read. Empty if it is unclear."""
    ids = {model.alias: model.unique_id for model in models.values()}
    tables = schemas.find_tables(";".join(statements))
    names = {name for _, name in tables}
    if any(schema == schemas.raw for schema, _ in tables) or not names <= ids.keys() | BOOKKEEPING:
        return []
    # Models built from this one may be read as the last run has left them, and change only after this one has.
    later = {model.alias for model in models.values() if node.unique_id in model.depends_on.nodes}
    own = BOOKKEEPING | later | {node.alias}
    return sorted({read for name in names - own for read in follow(ids[name], models)})


def _run_steps(
    steps: Sequence[Step],
    connection: duckdb.DuckDBPyConnection,
    schemas: Schemas,
    *,
    follows_success: bool,
    unchanged_sources: Collection[str] = (),
) -> set[str]:
    """Execute the steps that may change something.

    `unchanged_sources` are the ids of sources that are as they were after the last run.

    Returns the ids of the tables and sources that are as they were after the last run, if that was a success.
    """
    unchanged = {*unchanged_sources}
    skipped: list[str] = []
    for step in steps:
        is_same = follows_success and bool(step.inputs) and unchanged.issuperset(step.inputs)
        if is_same and not (step.is_queued and _has_work(step, connection, schemas.staging)):
            unchanged.add(step.id)
            if step.is_queued:
                skipped.append(step.name)
            continue
        for statement in step.statements:
            connection.execute(statement)
        if step.name == CHANGED_MESSAGES and _count_messages(connection, schemas.staging) > FEW_MESSAGES:
            connection.execute("RESET threads")
        if step.name == "unbuilt_loads" and follows_success:
            unchanged.update(_find_unchanged_sources(connection, schemas))
    # As each of them would have done.
    if "int_thread_messages" in skipped:
        connection.execute(f"DELETE FROM {schemas.staging}.{TAILS}")
    connection.execute(RECORD_BUILDS.format(staging=schemas.staging), [skipped])
    return unchanged if follows_success else set()


def _count_messages(connection: duckdb.DuckDBPyConnection, staging: str) -> int:
    row = connection.execute(f"SELECT count(*) FROM {staging}.{CHANGED_MESSAGES}").fetchone()
    return row[0] if row else 0


def _find_unchanged_sources(connection: duckdb.DuckDBPyConnection, schemas: Schemas) -> Iterator[str]:
    """Yield the ids of the LOADED tables that the new loads have left as they were."""
    for source in LOADED:
        table = f"{schemas.raw}.{source.rpartition('.')[2]}"
        query = f"FROM {table} WHERE _dlt_load_id IN (SELECT load_id FROM {schemas.staging}.unbuilt_loads)"
        try:
            has_changed = bool(connection.execute(f"SELECT 1 {query} LIMIT 1").fetchall())
        except duckdb.CatalogException:
            has_changed = False  # the table is missing, as it was before: the key says so
        if not has_changed:
            yield source


def _has_work(step: Step, connection: duckdb.DuckDBPyConnection, staging: str) -> bool:
    """Return whether a table that drives a step has rows for it."""
    text = "".join(step.statements)
    queries = [f"SELECT 1 FROM {staging}.{queue} WHERE mart = $1" for queue in QUEUES]
    if f'"{CHANGED_MESSAGES}"' in text:
        queries.append(f"SELECT 1 FROM {staging}.{CHANGED_MESSAGES}")
    if TAILS in text and step.name != "int_thread_messages":  # which fills it
        queries.append(f"SELECT 1 FROM {staging}.{TAILS}")
    return bool(connection.execute(" UNION ALL ".join(queries) + " LIMIT 1", [step.name]).fetchall())
