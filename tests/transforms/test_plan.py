"""A planned run leaves the tables that dbt would leave, and dbt runs whenever the plan may not hold."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import msgspec
import pytest

from helpers.context import build_destination
from helpers.marts_account import Account
from helpers.sizes import IS_NIGHTLY, pick_size
from msgbubbles_sync.dbt import plan, runner
from msgbubbles_sync.dbt.build_result import BuildResult, get_details_path, load_build_result
from msgbubbles_sync.dbt.plan import Plan, PlanFile, Schemas, Step
from msgbubbles_sync.dbt.plan_tests import passes
from msgbubbles_sync.lock import hold_lock, read_holder
from msgbubbles_sync.workspace import Workspace

from .conftest import Built, Replica, Statements, separate

# How many chats change before each build.
SIZES = (4, 1, 2, 1, 1)[: pick_size(2, nightly=5)]


def test_planned_runs_equal_dbt_over_a_random_history(
    tmp_path: Path, recorded: Path, at: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # After a failed test, dbt would run for the statements that test all rows.
    monkeypatch.setattr(runner, "_read_full_tests_at", lambda _: time.time())
    # And loads whose tests are left out below would not be tested later.
    run_steps = plan._run_steps
    monkeypatch.setattr(plan, "_run_steps", lambda *args, **options: run_steps(*args, **options) and set())
    planned = Built(tmp_path / "planned", copy_of=recorded)
    by_dbt = Built(tmp_path / "by_dbt", copy_of=recorded, planned_runs=False)
    account = Account(random.randrange(10**6), at)
    for size in SIZES:
        for load_id in [account.load_ids.pop() for _ in range(account.random.choice([1, 1, 2]))]:
            load: dict[str, Any] = dict(account.next_load(size=size))
            for one in (planned, by_dbt):
                one.warehouse.load(load_id, **load)
        # The data tests take most of the time: by day, those of single tables are run below.
        is_tested = IS_NIGHTLY
        with monkeypatch.context() as patch:
            if not is_tested:
                patch.setattr(PlanFile, "passes_tests", lambda *_: True)
            planned.build()
        by_dbt.build(**{} if is_tested else {"data_tests": "off"})
        assert planned.contents() == by_dbt.contents()
        assert not is_tested or load_build_result(planned.workspace) == load_build_result(by_dbt.workspace)
    assert planned.planned == [True] * len(SIZES)
    assert not any(by_dbt.planned)


@pytest.fixture
def built(recorded: Path, tmp_path: Path) -> Built:
    return Built(tmp_path, copy_of=recorded)


@pytest.mark.parametrize("seed", range(pick_size(1, nightly=100)))
def test_increments_equal_full_builds_over_random_histories(
    seed: int, new_replica: Callable[[], Replica], at: Callable[[int], Any]
) -> None:
    """Loads change a few messages of two long threads, and columns of chats, so that most rows stay as they are."""
    incremental, whole = new_replica(), new_replica()
    account = Account(seed, at)
    chats: dict[str, Any] = {}
    for number in range(12):
        load: dict[str, Any] = dict(account.next_load(messages=[60, 1, 2, 5][number % 4]))
        for message in load["messages"]:
            if account.random.random() < 0.7:
                message["conversation_id"] = account.random.choice(["c0", "c1"])
                message["cursor_at"] = at(account.random.randrange(250) * account.random.choice([20, 200]))
                message["status"] = account.random.choice(["sent", "failed"])
        for column in ("deleted_at", account.random.choice(["from_handle", "remote_handle", "is_group", "created_at"])):
            changed = dict(account.random.choice([*chats.values(), *load["chats"], {"id": "c0"}]))
            load["chats"].append(changed | {column: account.chat("c0")[column]})
        chats |= {chat["id"]: chat for chat in load["chats"]}
        load_id = account.load_ids.pop()
        for replica in (incremental, whole):
            replica.load(load_id, **load)
        incremental.transform()
        if number % 4 == 3:
            whole.rebuild()
            assert incremental.contents() == whole.contents()


@pytest.mark.parametrize("seed", range(pick_size(1, nightly=100)))
def test_steps_without_work_are_skipped_without_a_difference(
    seed: int, new_replica: Callable[[], Replica], at: Callable[[int], Any]
) -> None:
    """Most loads bring rows of one or two tables. What counts as unchanged has the same rows as before."""
    skipping, plain = new_replica(), new_replica()
    account = Account(seed, at)
    skipped: set[str] = set()
    chats: list[Any] = []
    for number in range(pick_size(12, nightly=24)):
        load: dict[str, Any] = dict(account.next_load(messages=[60, 1, 0, 5][number % 4]))
        if number % 4 == 2 and chats:  # the API often says no more than this
            load = {"chats": [chat | {"deleted_at": (chat["deleted_at"] is None and at(99)) or None} for chat in chats]}
        elif number:
            load = {table: rows for table, rows in load.items() if account.random.random() < 0.2}
        load_id = account.load_ids.pop()
        chats = load.get("chats", [])[:3] or chats
        before = skipping.tables()
        for replica in (skipping, plain):
            replica.load(load_id, **load)
        plain.transform()
        if number == 0:
            skipping.transform()
            continue
        unchanged = skipping.run_steps()
        after = skipping.tables()
        assert after == plain.tables()
        for name in after:
            schema, _, table = name.partition(".")
            if {f"model.msgbubbles.{table}", f"source.msgbubbles.{schema}.{table}"} & unchanged:
                assert after[name] == before[name], name
        skipped |= unchanged
    assert {"int_thread_messages", "int_business_hours", "thread_turns", "group_membership", "messages"} <= {
        node_id.rpartition(".")[2] for node_id in skipped
    }


def test_queued_rows_are_built_although_no_input_has_changed() -> None:
    step = Step("model.mart", "mart", ["INSERT INTO builds VALUES (1)"], is_queued=True, inputs=["source.a"])
    with duckdb.connect() as connection:
        connection.execute("CREATE TABLE builds (number int); CREATE SCHEMA staging")
        connection.execute("CREATE TABLE staging.loads (load_id varchar)")
        for table in ("chats_to_build", "days_to_build", "built_loads"):
            connection.execute(f"CREATE TABLE staging.{table} (mart varchar, load_id varchar)")
        for queued in (0, 1):
            connection.execute("INSERT INTO staging.days_to_build FROM (VALUES ('mart', '')) LIMIT ?", [queued])
            plan._run_steps([step], connection, Schemas(), follows_success=True, unchanged_sources=["source.a"])
            assert connection.execute("FROM builds").fetchall() == [(1,)] * queued


class Prefixed(Replica):
    """A replica whose schemas have the names of an account's."""

    schemas = Schemas("north_msgbubbles", "north_staging", "north_marts")

    @contextmanager
    def open(self, *, read_only: bool = False) -> Iterator[Any]:
        with super().open(read_only=read_only) as connection:
            yield SimpleNamespace(execute=lambda sql, *values: connection.execute(add_prefix(sql), *values))


def add_prefix(sql: str) -> str:
    return re.sub(r'\b(?=(staging|marts|msgbubbles)"?\s*(\.|;|cascade|$))(?!marts\.mart\b)', "north_", sql, flags=re.M)


def test_schemas_may_have_a_prefix(statements: Statements, at: Callable[[int], Any]) -> None:
    usual, prefixed = Replica(statements), Prefixed(statements)
    account = Account(1, at)
    for size in (20, 2):
        load: dict[str, Any] = dict(account.next_load(messages=size))
        for replica in (usual, prefixed):
            replica.load(str(size), **load)
            if size == 20:
                replica.transform()
    assert prefixed.run_steps() == usual.run_steps() != set()
    assert {f"north_{name}": rows for name, rows in usual.tables().items()} == prefixed.tables()

    node = SimpleNamespace(unique_id="model.mart", alias="mart")
    read = SimpleNamespace(unique_id="model.a", alias="a", config=SimpleNamespace(materialized="table"))
    read.depends_on = SimpleNamespace(nodes=[])
    for sql, inputs in (("staging.a, staging.loads", ["model.a"]), ("staging.a, msgbubbles.a", [])):
        assert plan._find_inputs_of_increment(node, [add_prefix(sql)], {"model.a": read}, Prefixed.schemas) == inputs


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
    same_columns = ", ".join(
        f"null::{row['column_type']} AS {row['column_name']}"
        for row in built.warehouse.rows("DESCRIBE staging.stg_numbers")
    )
    for change in (
        "ALTER TABLE msgbubbles.messages ADD COLUMN another varchar",
        "ALTER TABLE msgbubbles.messages ALTER COLUMN attachment_count TYPE integer",
        "CREATE TABLE staging.loads__dbt_backup (load_id varchar)",  # a run was killed
        "DROP TABLE msgbubbles.webhook_events",
        f"CREATE OR REPLACE VIEW staging.stg_numbers AS SELECT {same_columns}",
        "CREATE INDEX added ON marts.group_membership (chat_id)",
    ):
        shutil.copy(built.workspace.work, built.workspace.work.with_suffix(".before"))
        built.warehouse.execute(change)
        assert not is_planned(), change
        built.workspace.work.with_suffix(".before").replace(built.workspace.work)
    assert is_planned()


def test_plan_is_recorded_only_if_relations_are_as_they_were(tmp_path: Path) -> None:
    """What dbt has changed itself, or another program meanwhile, it did not decide by."""
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    destination = build_destination(workspace)
    for change, is_recorded in (("CREATE TABLE added (id varchar)", False), ("SELECT 1", True)):
        plan_file = PlanFile(destination, [])
        assert not plan_file.execute(follows_success=True)
        with destination.open_writer() as connection:
            connection.execute(change)
        plan_file.record([], [])
        assert (workspace.dbt_folder / "plan.json").exists() == is_recorded


def test_statement_of_a_plan_and_data_test_that_never_end_are_interrupted(tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    endless = "SELECT waited IS NULL AS should_error FROM (SELECT sleep_ms(20000) AS waited)"
    with hold_lock(workspace.folder), PlanFile(build_destination(workspace), [], 3600)._open():
        holder = read_holder(workspace.folder)
        assert holder is not None
        assert holder.progress_at is not None
        assert holder.progress_at > datetime.now(UTC) + timedelta(minutes=50), "no other run takes it for stuck"
    with (
        pytest.raises(duckdb.InterruptException),
        PlanFile(build_destination(workspace), [], 1)._open() as connection,
    ):
        connection.execute(f"CREATE TABLE own AS SELECT count(*) AS rows FROM ({endless}) WHERE should_error")
    with duckdb.connect() as connection, pytest.raises(duckdb.InterruptException):
        passes((f"{endless} WHERE should_error", 0), connection, "memory", 1)


def test_failing_statement_is_left_to_dbt(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner._Dbt, "test", lambda *_: BuildResult())  # the data tests would take most of the time
    recorded = json.loads(built.plan_path.read_text())
    step = next(step for step in recorded["steps"] if step["name"] == "int_thread_measures")
    step["statements"].insert(1, "SELECT * FROM missing")
    built.plan_path.write_text(json.dumps(recorded))
    built.warehouse.load("2", chats=[{"id": "b", "from_handle": "+1"}])
    built.build()
    built.warehouse.load("3", chats=[{"id": "c", "from_handle": "+1"}])
    built.build()
    assert [row["chat_id"] for row in built.warehouse.mart("thread_activity")] == ["a", "b", "c"]
    assert built.planned == [False, True]


def run_few_tests(monkeypatch: pytest.MonkeyPatch, models: str) -> list[str]:
    """By day, have dbt test these models only: all data tests take seconds. Returns the commands that it runs."""
    commands: list[str] = []
    run = runner._Dbt.run

    def record(dbt: Any, *command: str) -> Any:
        commands.append(command[0])
        selected = ("--select", models) if command[0] == "test" and not IS_NIGHTLY else ()
        return run(dbt, *command, *selected)

    monkeypatch.setattr(runner._Dbt, "run", record)
    return commands


def test_only_a_failing_data_test_needs_dbt(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = run_few_tests(monkeypatch, "thread_activity")
    built.warehouse.load("2", chats=[{"id": "b", "from_handle": "+1"}])
    built.build()
    assert (built.planned, commands) == ([True], [])
    # thread_activity is a view: the tests read what it shows now.
    built.warehouse.load("3", chats=[{"id": None, "from_handle": "+1"}])
    built.build()
    assert (built.planned, commands) == ([True, True], ["test"])
    assert load_build_result(built.workspace) != BuildResult()


def test_tables_of_runs_are_tested_after_a_run_was_stored(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    tested: list[str] = []

    def record(batch: tuple[str, int], *options: Any) -> bool:
        tested.append(batch[0])
        return passes(batch, *options)

    monkeypatch.setattr(plan, "passes", record)
    calendars = []
    for load_id, stores_run in (("2", True), ("3", False), ("4", True)):
        if stores_run:
            built.workspace.set_pending("test_runs")
        tested.clear()
        built.warehouse.load(load_id, numbers=[{"handle": "+1"}])
        built.build()
        calendars.append(any("calendar" in test for test in tested))
        assert not built.workspace.is_pending("test_runs")
    assert calendars == [True, False, True]
    assert built.planned == [True] * 3


# Faults in a chat's second day, or in the turn and session before it, and how many tests of which tables find them.
FAULTS = {
    "insert into msgbubbles.messages from msgbubbles.messages where id = '{chat} 2'": {"stg_messages": 1},
    "insert into staging.int_thread_messages from staging.int_thread_messages where message_id = '{chat} 2'": {
        "int_thread_messages": 2
    },
    "insert into staging.int_thread_days from staging.int_thread_days"
    " where chat_id = '{chat}' and day = '2026-02-01'": {"int_thread_days": 1},
    "insert into marts.thread_activity_daily from marts.thread_activity_daily"
    " where chat_id = '{chat}' and day = '2026-02-01'": {"thread_activity_daily": 1},
    "insert into marts.thread_turns from marts.thread_turns where chat_id = '{chat}' and turn_number = 2": {
        "thread_turns": 2
    },
    "update marts.thread_turns set side = 'godot', ended_at = began_at + interval 1 hour, answered_at = began_at"
    " where chat_id = '{chat}' and turn_number = 2": {"thread_turns": 3},
    "update marts.thread_turns set answered_at = null where chat_id = '{chat}' and turn_number = 1": {
        "thread_turns": 1
    },
    "insert into marts.thread_sessions from marts.thread_sessions where chat_id = '{chat}' and session_number = 2": {
        "thread_sessions": 2
    },
    "update marts.thread_sessions set initiator = 'godot', ended_by = 'godot', reopened_by = 'godot',"
    " reopened_at = started_at where chat_id = '{chat}' and session_number = 2": {"thread_sessions": 5},
    "update marts.thread_sessions set reopened_at = null where chat_id = '{chat}' and session_number = 1": {
        "thread_sessions": 1
    },
    "delete from msgbubbles.chats where id = '{chat}'": {
        "int_thread_messages": 1,
        "int_thread_days": 1,
        "thread_activity_daily": 1,
        "thread_turns": 1,
        "thread_sessions": 1,
    },
}
LIMITED = re.compile(r'select (?:tested\.)?\* from "\w+"\."(\w+)"(?: as tested| where \(message_id, message_at\))')


def test_only_many_changed_messages_are_built_by_several_threads(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    run_steps = plan._run_steps

    def record(steps: Sequence[Step], connection: duckdb.DuckDBPyConnection, *args: Any, **options: Any) -> set[str]:
        unchanged = run_steps(steps, connection, *args, **options)
        threads.extend(connection.execute("SELECT current_setting('threads')").fetchall()[0])
        return unchanged

    monkeypatch.setattr(plan, "_run_steps", record)
    monkeypatch.setattr(plan, "FEW_MESSAGES", 1)
    messages = [{"id": str(number), "conversation_id": "a", "cursor_at": "2026-01-01"} for number in range(2)]
    for load_id, number in (("2", 1), ("3", 2)):
        built.warehouse.load(load_id, messages=messages[:number])
        built.build()
    assert built.planned == [True] * 2
    assert threads == [1, duckdb.sql("SELECT current_setting('threads')").fetchall()[0][0]]


def test_rows_that_a_run_has_touched_are_tested_by_it(built: Built) -> None:
    sides = {"1": ("inbound", "2026-01-01"), "2": ("outbound", "2026-02-01")}
    messages = [
        {"id": f"{chat} {number}", "conversation_id": chat, "cursor_at": time, "direction": direction}
        for chat in ("touched", "other")
        for number, (direction, time) in sides.items()
    ]
    built.warehouse.load("2", chats=[{"id": chat} for chat in ("touched", "other")], messages=messages)
    built.build()
    built.warehouse.load("3", messages=[messages[1] | {"status": "sent"}])
    built.build()
    assert built.planned == [True] * 2
    recorded = msgspec.json.decode(built.plan_path.read_bytes(), type=Plan)
    ids = {step.name: step.id for step in recorded.steps}
    for test in recorded.tests:  # or one would be left out although something that it reads has changed
        names = {name for _, name in Schemas().find_tables(test.statement)}
        assert {ids[name] for name in names & ids.keys() - plan.BOOKKEEPING} <= {*test.inputs}
    limited = [
        (match[1], statement)
        for test in recorded.tests
        for statement in separate(test.statement)
        if (match := LIMITED.search(statement))
    ]
    assert len(limited) == 20
    for fault, failures in FAULTS.items():
        for chat, expected in (("touched", failures), ("other", {})):
            with built.warehouse.open() as connection:
                connection.execute(f"begin; {fault.format(chat=chat)}")
                failed = [
                    table
                    for table, statement in limited
                    if connection.execute(f"select should_error from ({statement})").fetchall() == [(True,)]
                ]
                connection.execute("rollback")
            assert Counter(failed) == expected, fault


def test_all_rows_are_tested_once_a_day_and_until_they_pass(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between these runs, large tables are tested for the keys that the run touched."""
    run_few_tests(monkeypatch, "int_thread_messages thread_turns")
    at = built.workspace.folder / "dbt" / "full_tests_at"

    def build_after_load(load_id: str) -> dict[str, int]:
        built.warehouse.load(load_id, messages=[{"id": load_id, "conversation_id": "a", "cursor_at": "2026-01-01"}])
        built.build()
        return load_build_result(built.workspace).failed_rows

    built.warehouse.load("2", chats=[{"id": "b", "from_handle": "+1"}])
    assert build_after_load("3") == {}
    built.warehouse.execute(
        "insert into staging.int_thread_messages by name (select 'b' as chat_id, 'twice' as message_id,"
        " '+9' as from_handle, timestamptz '2026-01-05' as message_at, date '2026-01-05' as day from range(2))"
    )
    built.warehouse.execute(
        "insert into marts.thread_turns by name (select 'b' as chat_id, 1 as turn_number, 1 as session_number,"
        " true as starts_session, 'us' as side, now() as began_at, now() as ended_at, date '2026-01-05' as day,"
        " 1 as message_count, true as is_open from range(2))"
    )
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
