"""Tests that the models build the same rows on Spark (`make test-spark`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import msgspec
import pytest

from helpers.context import build_destination
from helpers.lake import needs_spark, query
from helpers.marts_account import Account
from helpers.marts_reference import build_references, differences
from helpers.message_reference import World
from helpers.turns_reference import BUSINESS, dbt_variables
from msgbubbles_sync.dbt.runner import transform
from msgbubbles_sync.destinations.parquet_tables import TABLES
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.tables import TABLES as DECLARED
from msgbubbles_sync.workspace import Workspace

ZONE = ZoneInfo("America/New_York")
# Two executors, each in its own process.
CLUSTER = {"spark.master": "local-cluster[2,1,1024]", "spark.sql.shuffle.partitions": "4"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(tmp_path / "lake"))
    return tmp_path / "lake"


def load_files(folder: Path, warehouse: Any, load_id: str, load: World) -> None:
    """Load rows into the DuckDB warehouse, and write the rows that it then has of this load to files."""
    warehouse.load(load_id, **load)
    tables = {name: {"key": DECLARED[name].key} for name in (*load, "attachments")}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TABLES).write_text(json.dumps(tables))
    with duckdb.connect(str(warehouse.path)) as connection:
        for name in tables:
            (folder / name).mkdir(exist_ok=True)
            rows = f"SELECT * FROM msgbubbles.{name} WHERE _dlt_load_id = '{load_id}'"
            connection.execute(f"COPY ({rows}) TO '{folder / name / load_id}.parquet' (FORMAT parquet)")


def executors(log: Path) -> set[str]:
    """Return the executors that finished tasks, according to Spark's event log."""
    events = [json.loads(line) for path in log.iterdir() for line in path.read_text().splitlines()]
    ended = [event["Task Info"] for event in events if event["Event"] == "SparkListenerTaskEnd"]
    return {task["Executor ID"] for task in ended if not task["Failed"]}


@needs_spark
def test_marts_from_two_executors_equal_those_on_duckdb(files: Path, warehouse: Any, at: Any, tmp_path: Path) -> None:
    log = tmp_path / "events"
    log.mkdir()
    event_log_options = {"enabled": "true", "dir": log.as_uri(), "rolling.enabled": "false", "compress": "false"}
    settings = CLUSTER | {f"spark.eventLog.{name}": value for name, value in event_log_options.items()}
    workspace = Workspace.from_path(tmp_path / "company.duckdb", "filesystem")
    workspace.make_folders()
    destination = build_destination(workspace)
    destination.prepare()
    account = Account(11, at)
    # As with dlt, a later load has a higher id.
    load_ids = iter(sorted(account.load_ids))
    for size, options in ((12, ["--full-refresh"]), (2, [])):
        load_files(files / "msgbubbles", warehouse, next(load_ids), account.next_load(size=size))
        transform(
            workspace,
            build_destination(workspace),
            Settings(
                transforms=msgspec.structs.replace(
                    BUSINESS, time_zone=ZONE.key, data_tests="publish", spark={**settings}
                )
            ),
        )
        destination.publish()
        warehouse.transform("--vars", dbt_variables(BUSINESS, ZONE), *options)
        for name, reference in build_references(BUSINESS).items():
            built = query(workspace, f"SELECT * FROM marts.{name}")
            assert built, name
            assert list(built[0]) == list(warehouse.mart(name)[0]), name
            assert not (wrong := differences(built, warehouse.mart(name))), f"{name}: {wrong}"
            assert not (wrong := differences(built, reference(account.world, ZONE))), f"{name}: {wrong}"
    assert executors(log) == {"0", "1"}
    assert len(list((files / "marts").iterdir())) == 2, "readers of the previous build can go on"
