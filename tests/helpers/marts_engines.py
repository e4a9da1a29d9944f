"""Compare the marts of an engine with the reference, after each load of a random account and after a full build."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import duckdb
import msgspec

from helpers.context import build_destination
from helpers.lake import query
from helpers.marts_account import Account
from helpers.marts_reference import build_references, differences
from helpers.message_reference import Row, World
from helpers.turns_reference import BUSINESS
from msgbubbles_sync.dbt.runner import forget_build, transform
from msgbubbles_sync.destinations.parquet_tables import TABLES_FILE
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.sql import quote_literal
from msgbubbles_sync.tables import TABLES
from msgbubbles_sync.workspace import Workspace

ZONE = ZoneInfo("America/New_York")
# In the days after these, in New York the year ends, clocks go forward, and clocks go back. Each time, a day with
# business hours is a holiday.
STARTS = [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 4, tzinfo=UTC), datetime(2026, 10, 30, tzinfo=UTC)]
# The seed of an account that begins at the last of them, and has rows in all marts.
FULL_ACCOUNT = 20


class Engine(Protocol):
    """A warehouse with the tables of one account."""

    def load(self, load_id: str, load: World) -> None:
        """Load rows by key, as dlt does."""

    def build(self, *, is_full: bool = False) -> None:
        """Build the marts with the settings `BUSINESS`, by default by an increment. Fails if a model does."""

    def mart(self, name: str) -> list[Row]:
        """Return the rows of a mart, with times in UTC."""


def build_account(seed: int) -> Account:
    """Build a random account with days around one of `STARTS`."""
    start = STARTS[seed % len(STARTS)]
    return Account(seed, lambda minutes: start + timedelta(minutes=minutes))


def check_increments(engine: Engine, account: Account, sizes: Sequence[int]) -> dict[str, list[Row]]:
    """Load changes of as many chats as `sizes` says, build the marts after each load, and return their rows."""
    marts = {}
    for size in sizes:
        engine.load(account.load_ids.pop(), account.next_load(size=size))
        engine.build()
        marts = check_marts(engine, account)
    return marts


def check_full_build(engine: Engine, account: Account) -> None:
    """Build the marts from scratch."""
    engine.build(is_full=True)
    check_marts(engine, account)


def check_marts(engine: Engine, account: Account) -> dict[str, list[Row]]:
    """Compare all marts with the reference, and return them."""
    marts = {}
    for name, reference in build_references(BUSINESS).items():
        marts[name] = engine.mart(name)
        assert not (wrong := differences(marts[name], reference(account.world, ZONE))), f"{name}: {wrong}"
    return marts


class JobEngine:
    """A warehouse whose marts the job builds. `warehouse`, a DuckDB file, gets the same rows, with their types."""

    def __init__(self, workspace: Workspace, warehouse: Any, **settings: Any) -> None:
        self.workspace = workspace
        self.warehouse = warehouse
        self._settings = Settings(
            transforms=msgspec.structs.replace(BUSINESS, time_zone=ZONE.key, data_tests="off", **settings)
        )
        workspace.make_folders()
        build_destination(workspace).prepare()

    def build(self, *, is_full: bool = False) -> None:
        if is_full:
            forget_build(self.workspace)
        destination = build_destination(self.workspace)
        assert transform(destination, self._settings).failed_models == []
        destination.publish()

    def mart(self, name: str) -> list[Row]:
        return query(self.workspace, f"SELECT * FROM marts.{name}")


class Lake(JobEngine):
    """A DuckLake."""

    def load(self, load_id: str, load: World) -> None:
        self.warehouse.load(load_id, **load)
        with build_destination(self.workspace).open_writer() as connection:
            connection.execute(f"ATTACH {quote_literal(str(self.warehouse.path))} AS loaded (READ_ONLY)")
            connection.execute("BEGIN")
            connection.execute("CREATE SCHEMA IF NOT EXISTS msgbubbles")
            tables = [name for (name,) in connection.execute("FROM (SHOW TABLES FROM loaded.msgbubbles)").fetchall()]
            for table in tables:
                rows = f"FROM loaded.msgbubbles.{table}"
                connection.execute(f"CREATE TABLE IF NOT EXISTS msgbubbles.{table} AS {rows} LIMIT 0")
                if table in load or table == "_dlt_loads":
                    connection.execute(f"DELETE FROM msgbubbles.{table}")
                    connection.execute(f"INSERT INTO msgbubbles.{table} BY NAME {rows}")
            connection.execute("COMMIT")


class Files(JobEngine):
    """Parquet files, of which Spark builds the marts, always from scratch. A later load needs a higher id."""

    def __init__(self, folder: Path, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._folder = folder / "msgbubbles"

    def load(self, load_id: str, load: World) -> None:
        self.warehouse.load(load_id, **load)
        tables = {name: {"key": TABLES[name].key} for name in (*load, "attachments")}
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / TABLES_FILE).write_text(json.dumps(tables))
        with duckdb.connect(str(self.warehouse.path)) as connection:
            for name in tables:
                (self._folder / name).mkdir(exist_ok=True)
                rows = f"SELECT * FROM msgbubbles.{name} WHERE _dlt_load_id = '{load_id}'"
                connection.execute(f"COPY ({rows}) TO '{self._folder / name / load_id}.parquet' (FORMAT parquet)")
