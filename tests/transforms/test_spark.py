"""Tests that the models build the same rows on Spark (`make test-spark`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.lake import needs_spark
from helpers.marts_engines import FULL_ACCOUNT, ZONE, Files, build_account, check_increments
from helpers.sizes import pick_size
from helpers.turns_reference import BUSINESS, dbt_variables
from msgbubbles_sync.workspace import Workspace

# Two executors, each in its own process.
CLUSTER = {"spark.master": "local-cluster[2,1,1024]", "spark.sql.shuffle.partitions": "4"}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(tmp_path / "lake"))
    return tmp_path / "lake"


def executors(log: Path) -> set[str]:
    """Return the executors that finished tasks, according to Spark's event log."""
    events = [json.loads(line) for path in log.iterdir() for line in path.read_text().splitlines()]
    ended = [event["Task Info"] for event in events if event["Event"] == "SparkListenerTaskEnd"]
    return {task["Executor ID"] for task in ended if not task["Failed"]}


@needs_spark
@pytest.mark.parametrize("seed", range(FULL_ACCOUNT, FULL_ACCOUNT + pick_size(1, nightly=5)))
def test_marts_from_two_executors_equal_the_reference(seed: int, files: Path, warehouse: Any, tmp_path: Path) -> None:
    log = tmp_path / "events"
    log.mkdir()
    event_log_options = {"enabled": "true", "dir": log.as_uri(), "rolling.enabled": "false", "compress": "false"}
    settings = CLUSTER | {f"spark.eventLog.{name}": value for name, value in event_log_options.items()}
    engine = Files(files, Workspace.from_path(tmp_path / "company.duckdb", "filesystem"), warehouse, spark=settings)
    account = build_account(seed)
    account.load_ids.sort(reverse=True)  # as with dlt, a later load has a higher id
    marts = check_increments(engine, account, (40, 4) if seed == FULL_ACCOUNT else (12, 2))
    if seed == FULL_ACCOUNT:
        warehouse.transform("--vars", dbt_variables(BUSINESS, ZONE))
        assert {name: list(rows[0]) for name, rows in marts.items()} == {
            name: list(warehouse.mart(name)[0]) for name in marts
        }
    assert executors(log) == {"0", "1"}
    assert len(list((files / "marts").iterdir())) == 2, "readers of the previous build can go on"
