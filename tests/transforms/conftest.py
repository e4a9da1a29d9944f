"""Provide warehouses with loaded rows, and run dbt on them in this process, as the job does."""

from __future__ import annotations

import gc
import os
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pytest
from filelock import FileLock

from helpers.context import build_destination
from helpers.empty_tables import DDL
from msgbubbles_sync.dbt import plan, runner
from msgbubbles_sync.dbt import process as manifest
from msgbubbles_sync.dbt.plan import Plan, Step
from msgbubbles_sync.dbt.project import Names
from msgbubbles_sync.settings import Settings, TransformSettings
from msgbubbles_sync.tables import TABLES
from msgbubbles_sync.workspace import Workspace

PROJECT = Path(__file__).parents[2] / "transforms"
READ_AT = datetime(2026, 6, 1, tzinfo=UTC)

BUILT = "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE schema_name IN ('staging', 'marts')"
# Tables that describe one build, or how the others came about.
OF_ONE_BUILD = {
    f"staging.{name}"
    for name in (
        "loads",
        "unbuilt_loads",
        "changed_messages",
        "chats_to_build",
        "built_loads",
        "days_to_build",
        "thread_tails",
    )
}
TABLES_OF_REPLICA = """SELECT schema_name || '.' || table_name FROM duckdb_tables()
WHERE NOT temporary AND table_name <> '_dlt_loads'"""
COMMENTS = "SELECT schema_name, table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"

Row = dict[str, Any]


def load_rows(
    connection: duckdb.DuckDBPyConnection, load_id: str, tables: dict[str, list[Row]], *, finished: bool = True
) -> None:
    """Load rows by key, as dlt does."""
    for table, rows in tables.items():
        key = TABLES[table].key
        for row in rows:
            values = {"_fetched_at": READ_AT} | row | {"_dlt_load_id": load_id}
            connection.execute(
                f"delete from msgbubbles.{table} where ({', '.join(key)}) = ({', '.join('?' * len(key))})",
                [values[column] for column in key],
            )
            connection.execute(
                f"insert into msgbubbles.{table} ({', '.join(values)}) values ({', '.join('?' * len(values))})",
                list(values.values()),
            )
    if finished:
        connection.execute("insert into msgbubbles._dlt_loads values (?, 'msgbubbles', 0, now(), '')", [load_id])


@dataclass(frozen=True)
class Statements:
    """The statements of dbt: those of a full build, and the steps of an increment."""

    full: list[str]
    steps: list[Step]

    @property
    def increment(self) -> list[str]:
        return [statement for step in self.steps for statement in step.statements]


class Tables(ABC):
    """The loaded tables, and what is built from them."""

    def __init__(self, statements: Statements) -> None:
        self.statements = statements
        self._reader: duckdb.DuckDBPyConnection | None = None

    @abstractmethod
    def open(self, *, read_only: bool = False) -> AbstractContextManager[duckdb.DuckDBPyConnection]: ...

    @contextmanager
    def kept_open(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Read within one connection: opening a file takes DuckDB longer than a small query."""
        if self._reader:
            yield self._reader
            return
        with self.open(read_only=True) as connection:
            self._reader = connection
            try:
                yield connection
            finally:
                self._reader = None

    def execute(self, *statements: str) -> None:
        with self.open() as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, query: str) -> list[Row]:
        with self.kept_open() as connection:
            connection.execute("set TimeZone = 'UTC'")
            answer = connection.execute(query)
            names = [column[0] for column in answer.description]
            return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    def load(self, load_id: str, *, finished: bool = True, **tables: list[Row]) -> None:
        """Load rows by key, as dlt does. `finished=False` stops before dlt records the load as finished."""
        with self.open() as connection:
            load_rows(connection, load_id, tables, finished=finished)

    def mart(self, name: str) -> list[Row]:
        return self.rows(f"select * from marts.{name} order by all")

    def marts(self, names: Iterable[str]) -> dict[str, list[Row]]:
        with self.kept_open():
            return {name: self.mart(name) for name in names}

    def rebuild(self) -> None:
        """Build the models from scratch, by the statements of dbt."""
        drop = [f"drop schema if exists {schema} cascade" for schema in ("marts", "staging")]
        self.execute(*drop, *self.statements.full)


class Warehouse(Tables):
    """The job's database file, on which dbt runs."""

    ddl = DDL

    def __init__(self, path: Path, dbt_folder: Path, statements: Statements) -> None:
        super().__init__(statements)
        self.path = path
        self._dbt_folder = dbt_folder
        if not path.exists():
            self.execute(*DDL)

    @property
    def target(self) -> Path:
        """Return the folder of dbt's artifacts."""
        return self._dbt_folder / "target"

    def open(self, *, read_only: bool = False) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return duckdb.connect(str(self.path), read_only=read_only)

    def dbt(self, *command: str, folder: Path | None = None, on_event: Callable[[Any], None] | None = None) -> Any:
        """Run a dbt command, close the file, and return dbt's result."""
        from dbt.adapters.duckdb.connections import DuckDBConnectionManager
        from dbt.cli.main import dbtRunner

        folders = {
            "--project-dir": PROJECT,
            "--profiles-dir": PROJECT,
            "--target-path": (folder or self._dbt_folder) / "target",
            "--log-path": (folder or self._dbt_folder) / "logs",
        }
        arguments = [str(part) for pair in folders.items() for part in pair]
        quiet = ["--quiet", "--log-level", "none", "--log-level-file", "none", "--no-write-json"]
        try:
            result = dbtRunner(
                self._parsed(command, [*arguments, *quiet]), callbacks=[on_event] if on_event else None
            ).invoke([*command, *arguments, *quiet])
            if not result.success:
                gc.collect()  # frees the cursors of failed models
            return result
        finally:
            DuckDBConnectionManager.close_all_connections()

    def _parsed(self, command: tuple[str, ...], arguments: list[str]) -> Any:
        """Return the parsed project, as the job caches it; null for the command that parses."""
        from dbt.cli.main import dbtRunner

        if command[0] == "parse":
            return None
        target = command[command.index("--target") + 1] if "--target" in command else "duckdb"
        names = Names(target, self.path.stem, "")
        if target == "postgres":  # not in the schemas where the job builds
            names = Names(target, os.environ["PGDATABASE"], "", "msgbubbles.staging.marts")
        found = manifest.load_manifest(names)
        if found is None:
            parsed: Any = dbtRunner().invoke(["parse", "--target", target, *arguments]).result
            manifest.store_manifest(parsed, names)
            return parsed
        return found

    def load_manifest(self) -> Any:
        """Return the parsed project. A build has stored it."""
        return manifest.load_manifest(Names("duckdb", self.path.stem, ""))

    def transform(self, *options: str) -> None:
        """Run the models. A model that fails, fails the test."""
        answer = self.dbt("run", *options)
        assert answer.exception is None
        assert {node.node.name: node.message for node in answer.result if node.status != "success"} == {}


class Replica(Tables):
    """A warehouse in memory, in which dbt's statements are executed without dbt, which takes a tenth of the time.

    test_plan.py compares what they leave with what dbt leaves.
    """

    schemas = plan.Schemas()

    def __init__(self, statements: Statements) -> None:
        super().__init__(statements)
        self._database = duckdb.connect()
        self._database.execute("attach ':memory:' as company; set global TimeZone = 'UTC'; set threads = 1")
        self._is_built = False
        self.execute(*DDL)

    @contextmanager
    def open(self, *, read_only: bool = False) -> Iterator[duckdb.DuckDBPyConnection]:  # noqa: ARG002
        """Open a connection, which has no temporary tables."""
        with self._database.cursor() as connection:
            connection.execute("use company")
            yield connection

    def transform(self) -> None:
        """Run the models: from scratch at first, then as an increment."""
        if self._is_built:
            self.execute(*self.statements.increment)
        else:
            self.rebuild()

    def rebuild(self) -> None:
        super().rebuild()
        self._is_built = True

    def run_steps(self) -> set[str]:
        """Build an increment as a planned run does. Returns the ids of the models and sources that have not changed."""
        with self.open() as connection:
            return plan._run_steps(self.statements.steps, connection, self.schemas, follows_success=True)

    def tables(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the rows of all tables but that of the loads, which have a time."""
        with self.open() as connection:
            tables = connection.execute(TABLES_OF_REPLICA).fetchall()
            return {name: connection.execute(f"from {name} order by all").fetchall() for (name,) in tables}

    def contents(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the rows of all models that contain more than the changes of the last build."""
        with self.open() as connection:
            tables = [row[0] for row in connection.execute(BUILT).fetchall() if row[0] not in OF_ONE_BUILD]
            views = ["marts.thread_activity", "marts.contact", "marts.typing_daily"]
            return {name: connection.execute(f"from {name} order by all").fetchall() for name in [*tables, *views]}


class Built:
    """A warehouse that the job's dbt builds. `planned` says of each build whether it was done without dbt."""

    def __init__(self, folder: Path, *, planned_runs: bool = True, copy_of: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if copy_of:
            shutil.copytree(copy_of / ".msgbubbles", folder / ".msgbubbles")
        self.workspace = Workspace.from_path(folder / "company.duckdb")
        self.workspace.make_folders()
        self.warehouse = Warehouse(self.workspace.work, folder, Statements([], []))
        self._planned_runs = planned_runs
        self.planned: list[bool] = []
        # The statements of the last build by dbt.
        self.executed: list[str] = []

    @property
    def plan_path(self) -> Path:
        return self.workspace.folder / "dbt" / "plan.json"

    def build(self, **settings: Any) -> None:
        runs = 0
        run = runner._Dbt.run

        def count(dbt: Any, *command: str) -> Any:
            nonlocal runs
            runs += command[0] == "run"
            result = run(dbt, *command)
            if command[0] == "run":
                # Without BEGIN and COMMIT, of which not all are recorded.
                self.executed = [statement for _, statement in dbt.executed if statement.count(" ") > 10]
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner._Dbt, "run", count)
            transforms = TransformSettings(planned_runs=self._planned_runs, **settings)
            runner.transform(build_destination(self.workspace), Settings(transforms=transforms))
        self.planned.append(runs == 0)

    def contents(self) -> dict[str, list[tuple[Any, ...]]]:
        with duckdb.connect(str(self.workspace.work), read_only=True) as connection:
            tables = [row[0] for row in connection.execute(BUILT).fetchall()]
            found = {table: connection.execute(f"FROM {table} ORDER BY ALL").fetchall() for table in sorted(tables)}
            return found | {"comments": connection.execute(COMMENTS).fetchall()}


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Build a small warehouse twice with dbt, once for all workers: its next run is a planned one.

    Returns its folder.
    """
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "recorded"
    with FileLock(folder.with_suffix(".lock")), pytest.MonkeyPatch.context() as patch:
        if not (folder / "statements.json").exists():
            # All rows need no tests in the second run, as in the next.
            patch.setattr(runner, "_read_full_tests_at", lambda _: time.time())
            built = Built(folder)
            chats = [{"id": "a", "from_handle": "+1"}]
            built.warehouse.load("0", chats=chats)
            built.build(data_tests="off")
            full = built.executed
            built.warehouse.load("1", chats=chats)
            built.build()
            steps = msgspec.json.decode(built.plan_path.read_bytes(), type=Plan).steps
            (folder / "statements.json").write_bytes(msgspec.json.encode(Statements(full, steps)))
    return folder


@pytest.fixture(scope="session")
def statements(recorded: Path) -> Statements:
    return msgspec.json.decode((recorded / "statements.json").read_bytes(), type=Statements)


@pytest.fixture
def new_replica(statements: Statements) -> Callable[[], Replica]:
    return lambda: Replica(statements)


@pytest.fixture
def replica(new_replica: Callable[[], Replica]) -> Replica:
    return new_replica()


@pytest.fixture(scope="session")
def new_warehouse(
    tmp_path_factory: pytest.TempPathFactory, statements: Statements
) -> Iterator[Callable[[], Warehouse]]:
    """Return a function that creates a file with empty tables, always at the same path."""
    folder = tmp_path_factory.mktemp("dbt")
    path = folder / "company.duckdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSGBUBBLES_DUCKDB_PATH", str(path))
        yield lambda: Warehouse(path, folder, statements)


@pytest.fixture
def warehouse(new_warehouse: Callable[[], Warehouse]) -> Iterator[Warehouse]:
    warehouse = new_warehouse()
    yield warehouse
    warehouse.path.unlink()


@pytest.fixture(scope="session")
def at() -> Callable[[int], datetime]:
    """Return a function from minutes to a timestamp."""
    return lambda minutes: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)


def separate(statement: str) -> list[str]:
    """Return the tests of which a data test of a plan consists."""
    if not statement.startswith("SELECT count(*) <> 0"):
        return [statement]
    if "\n) ANTI JOIN " in statement:
        head, children, parent = re.split(r"(?<= FROM \()\n|\n(?=\) ANTI JOIN )", statement, maxsplit=2)
        return [f"{head}{child}{parent}" for child in children.split("\nUNION ALL\n")]
    table, conditions = statement.split("\nWHERE ")
    return [f"{table} WHERE {condition}" for condition in conditions.split("\nOR ")]
