"""A planned run leaves the tables that dbt would leave, and dbt runs whenever the plan may not hold."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_destination
from helpers.marts_account import Account
from helpers.message_reference import World
from helpers.sizes import pick_size
from msgbubbles_sync.dbt import runner
from msgbubbles_sync.dbt.runner import DataTestResult, get_details_path, load_test_result
from msgbubbles_sync.settings import Settings, TransformSettings
from msgbubbles_sync.workspace import Workspace

from .conftest import DDL, Warehouse, load_rows

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
            runner.transform(self.workspace, build_destination(self.workspace), Settings(transforms=transforms))
        self.planned.append(runs == 0)

    def contents(self) -> dict[str, list[tuple[Any, ...]]]:
        with duckdb.connect(str(self.workspace.work), read_only=True) as connection:
            tables = [row[0] for row in connection.execute(BUILT).fetchall()]
            found = {table: connection.execute(f"FROM {table} ORDER BY ALL").fetchall() for table in sorted(tables)}
            return found | {"comments": connection.execute(COMMENTS).fetchall()}


def test_planned_runs_equal_dbt_over_a_random_history(
    tmp_path: Path, at: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # After a failed test, dbt would run for the statements that test all rows.
    monkeypatch.setattr(runner, "_read_full_tests_at", lambda _: time.time())
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


@dataclass(frozen=True)
class Statements:
    """The statements of dbt: those of a full build, and those of an increment."""

    full: list[str]
    increment: list[str]


@pytest.fixture(scope="module")
def with_plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Built, Statements]:
    """Build a warehouse whose next run is a planned one, if nothing changes."""
    built = Built(tmp_path_factory.mktemp("plan"))
    full: list[str] = []
    for load_id in ("0", "1"):
        built.warehouse.load(load_id, chats=[{"id": "a", "from_handle": "+1"}])
        built.build()
        full = full or built.executed
    return built, Statements(full, json.loads(built.plan_path.read_text())["statements"])


@pytest.fixture
def built(with_plan: tuple[Built, Statements], tmp_path: Path) -> Built:
    return Built(tmp_path, copy_of=with_plan[0])


class Replica:
    """A warehouse in memory, in which dbt's statements are executed without dbt."""

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self._database = duckdb.connect()
        self._database.execute("attach ':memory:' as company; set global TimeZone = 'UTC'; set threads = 1")
        self._connect()
        for statement in DDL:
            self._connection.execute(statement)

    def _connect(self) -> None:
        """Open a connection without temporary tables."""
        self._connection = self._database.cursor()
        self._connection.execute("use company")

    def load(self, load_id: str, load: World) -> None:
        load_rows(self._connection, load_id, load)

    def build(self, *, full: bool) -> None:
        self._connect()
        if full:
            for schema in ("marts", "staging"):
                self._connection.execute(f"drop schema if exists {schema} cascade")
        for statement in self._statements.full if full else self._statements.increment:
            self._connection.execute(statement)

    def contents(self) -> dict[str, list[tuple[Any, ...]]]:
        """Return the rows of all models that contain more than the changes of the last build."""
        tables = [row[0] for row in self._connection.execute(BUILT).fetchall() if row[0] not in OF_ONE_BUILD]
        views = ["marts.thread_activity", "marts.contact", "marts.typing_daily"]
        return {name: self._connection.execute(f"from {name} order by all").fetchall() for name in [*tables, *views]}


@pytest.mark.parametrize("seed", range(pick_size(2, nightly=100)))
def test_increments_equal_full_builds_over_random_histories(
    seed: int, with_plan: tuple[Built, Statements], at: Callable[[int], Any]
) -> None:
    """Loads change a few messages of two long threads, and columns of chats, so that most rows stay as they are."""
    incremental, whole = Replica(with_plan[1]), Replica(with_plan[1])
    account = Account(seed, at)
    chats: dict[str, Any] = {}
    for number in range(12):
        load = account.next_load(messages=[60, 1, 2, 5][number % 4])
        for message in load["messages"]:
            if account.random.random() < 0.7:
                message["conversation_id"] = account.random.choice(["c0", "c1"])
                message["cursor_at"] = at(account.random.randrange(500) * 20)
        for column in ("deleted_at", account.random.choice(["from_handle", "remote_handle", "is_group", "created_at"])):
            changed = dict(account.random.choice([*chats.values(), *load["chats"], {"id": "c0"}]))
            load["chats"].append(changed | {column: account.chat("c0")[column]})
        chats |= {chat["id"]: chat for chat in load["chats"]}
        load_id = account.load_ids.pop()
        for replica in (incremental, whole):
            replica.load(load_id, load)
        incremental.build(full=number == 0)
        if number % 4 == 3:
            whole.build(full=True)
            assert incremental.contents() == whole.contents()


def test_key_changes_with_relations_and_settings(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then dbt runs, as it does without a plan."""

    def is_planned(**settings: Any) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(runner, "is_outdated", lambda *_: False)
            patch.setattr(runner, "_read_full_tests_at", lambda _: time.time())
            patch.setattr(runner._Dbt, "run", lambda *_: pytest.fail("dbt"))
            built.planned.clear()
            try:
                built.build(**settings)
            except pytest.fail.Exception:
                return False
            return built.planned == [True]

    assert is_planned()
    assert not is_planned(full_tests_hours=0)
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


def test_all_rows_are_tested_once_a_day_and_until_they_pass(built: Built) -> None:
    """Between these runs, large tables are tested for the keys that the run touched."""
    at = built.workspace.folder / "dbt" / "full_tests_at"

    def build_after_load(load_id: str) -> dict[str, int]:
        built.warehouse.load(load_id, messages=[{"id": load_id, "conversation_id": "a", "cursor_at": "2026-01-01"}])
        built.build()
        return load_test_result(built.workspace).failed_rows

    assert build_after_load("2") == {}
    built.warehouse.execute(
        "insert into staging.int_thread_messages by name (select 'b' as chat_id, 'twice' as message_id,"
        " '+9' as from_handle, timestamptz '2026-01-05' as message_at, date '2026-01-05' as day from range(2))"
    )
    built.warehouse.execute(
        "insert into marts.thread_turns by name (select 'b' as chat_id, 1 as turn_number, 1 as session_number,"
        " true as starts_session, 'us' as side, now() as began_at, now() as ended_at, date '2026-01-05' as day,"
        " 1 as message_count, true as is_open from range(2))"
    )
    built.warehouse.load("3", chats=[{"id": "b", "from_handle": "+1"}])
    built.warehouse.execute("insert into staging.built_loads select mart, '3' from staging.built_loads group by mart")
    assert build_after_load("4") == {}
    at.write_text(str(time.time() - 25 * 3600))
    failed = build_after_load("5")
    for name in (
        "unique_int_thread_messages_message_id",
        "unique_combination_of_columns_thread_turns",
        "thread_turns_",
    ):
        assert any(test.startswith(name) for test in failed)
    assert failed.items() <= build_after_load("6").items()
    assert "having count(*) > 1" in get_details_path(built.workspace).read_text()
    assert not at.exists()
    built.warehouse.execute("delete from staging.int_thread_messages where message_id = 'twice'")
    built.warehouse.execute("delete from marts.thread_turns where chat_id = 'b'")
    assert build_after_load("7") == {}
    assert time.time() - float(at.read_text()) < 3600
