"""A planned run leaves the tables that dbt would leave, and dbt runs whenever the plan may not hold."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_destination
from helpers.marts_account import Account
from helpers.sizes import pick_size
from msgbubbles_sync.dbt import runner
from msgbubbles_sync.dbt.runner import DataTestResult, load_test_result
from msgbubbles_sync.settings import Settings, TransformSettings
from msgbubbles_sync.workspace import Workspace

from .conftest import Warehouse

BUILT = "SELECT schema_name || '.' || table_name FROM duckdb_tables() WHERE schema_name IN ('staging', 'marts')"
COMMENTS = "SELECT schema_name, table_name, column_name, comment FROM duckdb_columns() WHERE NOT internal ORDER BY ALL"

# How many chats change before each build.
SIZES = (4, 1, 1, 2, 1)[: pick_size(4, nightly=5)]


class Built:
    """A warehouse that the job's dbt builds. `planned` says of each build whether it was done without dbt."""

    def __init__(self, folder: Path, *, planned_runs: bool = True, copy_of: Built | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.workspace = Workspace.from_path(folder / "company.duckdb")
        self.workspace.make_folders()
        if copy_of is None:
            self.warehouse = Warehouse(self.workspace.work, folder)
        else:
            shutil.copytree(copy_of.workspace.folder, self.workspace.folder, dirs_exist_ok=True)
            self.warehouse = copy_of.warehouse
            self.warehouse.path = self.workspace.work
        self._planned_runs = planned_runs
        self.planned: list[bool] = []

    @property
    def plan_path(self) -> Path:
        return self.workspace.folder / "dbt" / "plan.json"

    def build(self, **settings: Any) -> None:
        runs = 0
        run = runner._Dbt.run

        def count(dbt: Any, *command: str) -> Any:
            nonlocal runs
            runs += command[0] == "run"
            return run(dbt, *command)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runner._Dbt, "run", count)
            transforms = TransformSettings(planned_runs=self._planned_runs, **settings)
            runner.transform(self.workspace, build_destination(self.workspace), Settings(transforms=transforms))
        self.planned.append(runs == 0)

    def contents(self) -> dict[str, list[tuple[Any, ...]]]:
        with duckdb.connect(str(self.workspace.work), read_only=True) as connection:
            tables = [row[0] for row in connection.execute(BUILT).fetchall()]
            found = {table: connection.execute(f"FROM {table} ORDER BY ALL").fetchall() for table in sorted(tables)}
            return found | {"comments": connection.execute(COMMENTS).fetchall()}


def test_planned_runs_equal_dbt_over_a_random_history(tmp_path: Path, at: Callable[[int], Any]) -> None:
    planned, by_dbt = Built(tmp_path / "planned"), Built(tmp_path / "by_dbt", planned_runs=False)
    account = Account(random.randrange(10**6), at)
    for size in SIZES:
        for load_id in [account.load_ids.pop() for _ in range(account.random.choice([1, 1, 2]))]:
            load: dict[str, Any] = dict(account.next_load(size=size))
            for one in (planned, by_dbt):
                one.warehouse.load(load_id, **load)
        for one in (planned, by_dbt):
            # The first builds are full ones, by dbt in both. The data tests take most of their time.
            one.build(data_tests="publish" if one.planned else "off")
        assert planned.contents() == by_dbt.contents()
        assert load_test_result(planned.workspace) == load_test_result(by_dbt.workspace)
    assert planned.planned == [False, False, *[True] * (len(SIZES) - 2)]
    assert not any(by_dbt.planned)


@pytest.fixture(scope="module")
def with_plan(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build a warehouse whose next run is a planned one, if nothing changes."""
    built = Built(tmp_path_factory.mktemp("plan"))
    for load_id in ("0", "1"):
        built.warehouse.load(load_id, chats=[{"id": "a", "from_handle": "+1"}])
        built.build()
    assert built.plan_path.exists()
    return built


@pytest.fixture
def built(with_plan: Built, tmp_path: Path) -> Built:
    return Built(tmp_path, copy_of=with_plan)


def test_key_changes_with_relations_and_settings(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then dbt runs, as it does without a plan."""

    def is_planned(**settings: Any) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "is_outdated", lambda *_: False)
            patch.setattr(runner._Dbt, "run", lambda *_: pytest.fail("dbt"))
            built.planned.clear()
            try:
                built.build(**settings)
            except pytest.fail.Exception:
                return False
            return built.planned == [True]

    assert is_planned()
    assert not is_planned(time_zone="Asia/Tokyo")
    assert not is_planned(data_tests="off")
    for change in (
        "ALTER TABLE msgbubbles.messages ADD COLUMN another varchar",
        "CREATE TABLE staging.loads__dbt_backup (load_id varchar)",  # a run was killed
        "DROP TABLE msgbubbles.webhook_events",
        "CREATE OR REPLACE VIEW staging.stg_numbers AS SELECT * FROM msgbubbles.numbers",
        "CREATE INDEX added ON marts.group_membership (chat_id)",
    ):
        shutil.copy(built.workspace.work, built.workspace.work.with_suffix(".before"))
        built.warehouse.execute(change)
        assert not is_planned(), change
        built.workspace.work.with_suffix(".before").replace(built.workspace.work)
    assert is_planned()


def test_failing_statement_is_left_to_dbt(built: Built) -> None:
    plan = json.loads(built.plan_path.read_text())
    plan["statements"].insert(len(plan["statements"]) // 2, "SELECT * FROM missing")
    built.plan_path.write_text(json.dumps(plan))
    built.warehouse.load("2", chats=[{"id": "b", "from_handle": "+1"}])
    built.build()
    built.warehouse.load("3", chats=[{"id": "c", "from_handle": "+1"}])
    built.build()
    assert [row["chat_id"] for row in built.warehouse.mart("thread_activity")] == ["a", "b", "c"]
    assert built.planned == [False, True]


def test_only_a_failing_data_test_needs_dbt(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []
    run = runner._Dbt.run

    def record(dbt: Any, *command: str) -> Any:
        commands.append(command[0])
        return run(dbt, *command)

    monkeypatch.setattr(runner._Dbt, "run", record)
    built.warehouse.load("2", chats=[{"id": "b", "from_handle": "+1"}])
    built.build()
    assert (built.planned, commands) == ([True], [])
    # thread_activity is a view: the tests read what it shows now.
    built.warehouse.load("3", chats=[{"id": None, "from_handle": "+1"}])
    built.build()
    assert (built.planned, commands) == ([True, True], ["test"])
    assert load_test_result(built.workspace) != DataTestResult()
