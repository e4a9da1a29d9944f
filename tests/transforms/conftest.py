"""Provide a warehouse file with loaded rows, and run dbt on it in this process, as the job does."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from msgbubbles_sync.dbt import process as manifest
from msgbubbles_sync.dbt.project import Names
from msgbubbles_sync.tables import CLAIM, ERASURES, FAILED_READS, PRIVACY, SYNC_RUNS, TABLES, column_definitions

PROJECT = Path(__file__).parents[2] / "transforms"
READ_AT = datetime(2026, 6, 1, tzinfo=UTC)

# The job writes these tables itself, and their tests create them as the job does.
WRITTEN_BY_JOB = (SYNC_RUNS, FAILED_READS, CLAIM, PRIVACY, ERASURES)
# Without constraints, so that a test can load invalid rows.
DDL = [
    "create schema msgbubbles",
    *(
        f"create table msgbubbles.{table.name} ({column_definitions(table)}, _dlt_load_id varchar not null)"
        for table in TABLES.values()
        if table not in WRITTEN_BY_JOB
    ),
    "create table msgbubbles._dlt_loads (load_id varchar not null, schema_name varchar, status bigint not null,"
    " inserted_at timestamptz not null, schema_version_hash varchar)",
]

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


class Warehouse:
    """The job's database file."""

    ddl = DDL

    def __init__(self, path: Path, dbt_folder: Path) -> None:
        self.path = path
        self._dbt_folder = dbt_folder
        self.execute(*DDL)

    @property
    def target(self) -> Path:
        """Return the folder of dbt's artifacts."""
        return self._dbt_folder / "target"

    def execute(self, *statements: str) -> None:
        with duckdb.connect(str(self.path)) as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, query: str) -> list[Row]:
        with duckdb.connect(str(self.path), read_only=True) as connection:
            connection.execute("set TimeZone = 'UTC'")
            answer = connection.execute(query)
            names = [column[0] for column in answer.description]
            return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]

    def load(self, load_id: str, *, finished: bool = True, **tables: list[Row]) -> None:
        """Load rows by key, as dlt does. `finished=False` stops before dlt records the load as finished."""
        with duckdb.connect(str(self.path)) as connection:
            load_rows(connection, load_id, tables, finished=finished)

    def dbt(self, *command: str, folder: Path | None = None) -> Any:
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
            result = dbtRunner(self._parsed(command, [*arguments, *quiet])).invoke([*command, *arguments, *quiet])
            if not result.success:
                gc.collect()  # frees the cursors of failed models
            return result
        finally:
            DuckDBConnectionManager.close_all_connections()

    def _parsed(self, command: tuple[str, ...], arguments: list[str]) -> Any:
        """Return the parsed project, as the job caches it; null for a command that parses."""
        from dbt.cli.main import dbtRunner

        if command[0] in ("parse", "docs"):
            return None
        target = command[command.index("--target") + 1] if "--target" in command else "duckdb"
        names = Names(target, os.environ["PGDATABASE"] if target == "postgres" else self.path.stem, "")
        found = manifest.load_manifest(names)
        if found is None:
            parsed: Any = dbtRunner().invoke(["parse", "--target", target, *arguments]).result
            manifest.store_manifest(parsed, names)
            return parsed
        return found

    def transform(self, *options: str) -> None:
        """Run the models. A model that fails, fails the test."""
        answer = self.dbt("run", *options)
        assert answer.exception is None
        assert {node.node.name: node.message for node in answer.result if node.status != "success"} == {}

    def mart(self, name: str) -> list[Row]:
        return self.rows(f"select * from marts.{name} order by all")


@pytest.fixture(scope="session")
def new_warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Warehouse]]:
    """Return a function that creates a file with empty tables, always at the same path, so that dbt parses once."""
    folder = tmp_path_factory.mktemp("dbt")
    path = folder / "work.duckdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MSGBUBBLES_DUCKDB_PATH", str(path))
        yield lambda: Warehouse(path, folder)


@pytest.fixture
def warehouse(new_warehouse: Callable[[], Warehouse]) -> Iterator[Warehouse]:
    warehouse = new_warehouse()
    yield warehouse
    warehouse.path.unlink()


@pytest.fixture(scope="session")
def at() -> Callable[[int], datetime]:
    """Return a function from minutes to a timestamp."""
    return lambda minutes: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
