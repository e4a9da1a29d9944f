"""Tests of running dbt in this process."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_destination
from msgbubbles_sync.dbt import build_result, process, project, runner, unreadable
from msgbubbles_sync.dbt.build_result import load_build_result
from msgbubbles_sync.dbt.command_result import TIMED_OUT
from msgbubbles_sync.dbt.runner import compile_models, transform
from msgbubbles_sync.dbt.unreadable import MACROS, find_unreadable_file
from msgbubbles_sync.errors import TransformError
from msgbubbles_sync.settings import Settings, SyncSettings, TransformSettings
from msgbubbles_sync.workspace import Workspace

from .conftest import READ_AT, Built


def test_failed_model_leaves_the_database_closed(
    warehouse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, int] = {}
    monkeypatch.setattr(
        runner, "record_progress", lambda wait=0, progress="", **_: shown.update({progress: wait} if progress else {})
    )
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    warehouse.load("1", chats=[{"id": "a", "from_handle": "+1"}])
    warehouse.execute("alter table msgbubbles._dlt_loads drop column status")
    shutil.copy(warehouse.path, workspace.work)
    gc.disable()  # a collection by chance would hide the fault
    try:
        transform(build_destination(workspace), Settings())
        assert load_build_result(workspace).failed_models == ["loads"]
        # While one takes long, `status` names it, and no other run takes the job for stuck within the limit.
        assert shown["building loads"] == Settings().sync.statement_timeout_seconds
        assert shown["building the marts"] == 0
        # DuckDB refuses this while dbt has the file open for writing.
        with duckdb.connect(str(workspace.work), read_only=True) as connection:
            connection.execute("from duckdb_tables()").fetchall()
    finally:
        gc.enable()


def test_interrupt_while_the_marts_are_built_is_no_failure_of_them(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = build_destination(Built(tmp_path, copy_of=recorded).workspace)
    settings = Settings(transforms=TransformSettings(data_tests="off", planned_runs=False))
    signals = iter([signal.SIGINT])
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
    with monkeypatch.context() as patch, ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGINT, before)
        patch.setattr(runner, "record_progress", lambda *_, **__: [*map(partial(os.kill, os.getpid()), signals)])
        with pytest.raises(KeyboardInterrupt):
            transform(destination, settings)
    assert transform(destination, settings).failed_models == []


def test_failing_model_keeps_only_its_marts_from_being_built(recorded: Path, tmp_path: Path) -> None:
    warehouse, workspace = (built := Built(tmp_path, copy_of=recorded)).warehouse, built.workspace
    settings = Settings(transforms=TransformSettings(data_tests="off"))

    def load(number: int) -> None:
        row = {"id": f"m{number}", "conversation_id": "a", "direction": "inbound", "cursor_at": READ_AT}
        warehouse.load(f"1{number}", chats=[{"id": "a", "from_handle": "+1"}], messages=[row])

    def build(*statements: str) -> tuple[list[str], list[str], list[tuple[int, ...]]]:
        with duckdb.connect(str(workspace.work)) as connection:
            for statement in statements:
                connection.execute(statement)
        transform(build_destination(workspace), settings)
        built = load_build_result(workspace)
        with duckdb.connect(str(workspace.work)) as connection:
            counts = "select sum(messages_total)::int, (select sum(message_count)::int from marts.thread_turns)"
            rows = connection.execute(f"{counts} from marts.thread_activity_daily").fetchall()
        return built.failed_models, built.unbuilt_marts, rows

    load(1)
    load(2)
    failed = {
        "attachments.size_bytes": ["attachments_daily"],
        "chat_titles.title": ["chat_title_history"],
        "contact_aliases.contact": ["contact", "contact_monthly", "contact_retention"],
        "participant_lists.handle": ["group_membership"],
        "webhook_events.reaction": ["reactions_daily", "thread_activity", "typing_daily"],
    }
    names = [column.split(".") for column in failed]
    failing = ([f"stg_{table}" for table, _ in names], sorted(mart for marts in failed.values() for mart in marts))
    rename_all = [f"alter table msgbubbles.{table} rename {name} to gone" for table, name in names]
    undo_all = [f"alter table msgbubbles.{table} rename gone to {name}" for table, name in names]
    # A mart that somebody has replaced is built from scratch.
    replace_mart = ("drop table marts.thread_turns", "create table marts.thread_turns as select 1 as message_count")
    assert build(*rename_all, *replace_mart) == (*failing, [(2, 2)])
    load(3)
    assert build() == (*failing, [(3, 3)]), "it fails again, and the others are updated"
    assert build(*undo_all) == ([], [], [(3, 3)])


def test_check_compiles_every_model_and_no_data_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, nodes = Workspace.from_path(tmp_path / "company.duckdb"), []
    workspace.make_folders()
    run = runner._Dbt.run

    def record(dbt: Any, *command: str) -> Any:
        result = run(dbt, *command)
        nodes.extend(result.nodes)
        return result

    monkeypatch.setattr(runner._Dbt, "run", record)
    compile_models(build_destination(workspace), Settings())
    models = project.PROJECT.glob("models/**/*.sql")
    assert sorted((node.resource_type, node.name) for node in nodes) == sorted(("model", path.stem) for path in models)


@pytest.mark.parametrize(
    ("message", "file"),
    [
        ("Compilation Error in model own (models/marts/own.sql)\n  unexpected end\n    line 3\n", "own.sql, line 3"),
        (
            "Model 'model.msgbubbles.own' (models/marts/own.sql) depends on a node named 'no' which",
            "models/marts/own.sql",
        ),
        (
            "Error reading msgbubbles: marts/own.yml - Runtime Error\n  Syntax error near line 4",
            "marts/own.yml, line 4",
        ),
        ("Could not connect to the database at line 4", None),
    ],
)
def test_file_in_a_message_of_dbt_is_found(message: str, file: str | None) -> None:
    found = find_unreadable_file(message)
    assert (found is None and file is None) or (file is not None and str(found).endswith(f"/{file}"))


def find_models(folder: Path, *names: str) -> set[str]:
    """Return the names of models and of those that they are built from."""
    queries = {path.stem: path.read_text() for path in folder.glob("models/**/*.sql")}
    found, queue = set(names), [*names]
    while queue:
        new = set(re.findall(r"ref\('(\w+)'\)", queries[queue.pop()])) - found
        found |= new
        queue += new
    return found


@pytest.fixture
def own_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the project without descriptions and data tests, which take most of the time to parse, and most marts."""
    copy = tmp_path / "transforms"
    shutil.copytree(project.PROJECT, copy, ignore=shutil.ignore_patterns(*project.MADE_BY_DBT))
    for path in copy.glob("models/**/*.yml"):
        if path.name not in ("_groups.yml", "_sources.yml"):
            path.unlink()
    shutil.rmtree(copy / "tests")
    for path in copy.glob("models/**/*.sql"):
        if path.stem not in find_models(copy, "calendar", "stg_stream_coverage", "stg_failed_reads"):
            path.unlink()
    for module in (process, project, runner, unreadable):
        monkeypatch.setattr(module, "PROJECT", copy)
    return copy


@pytest.mark.parametrize(
    ("path", "content", "line"),
    [
        ("macros/own.sql", b"\n{% macro own( %}", "2"),
        ("macros/own.sql", b"{% macro own() %}", "1"),
        ("macros/dialects.sql", b"{% macro own() %}{{ 1 {% endmacro %}", "1"),
        ("models/marts/own.sql", b"select '\xff'", None),
    ],
)
def test_file_that_dbt_does_not_name_is_found(path: str, content: bytes, line: str | None, own_project: Path) -> None:
    (own_project / path).write_bytes(content)
    found = find_unreadable_file("Compilation Error\n  unexpected EOF", own_project)
    assert found == unreadable.UnreadableFile(path, line, path not in MACROS)


def test_macros_of_this_project_are_never_left_out() -> None:
    files = project.PROJECT.glob("macros/**/*.sql")
    assert {file.relative_to(project.PROJECT).as_posix() for file in files} == MACROS


def test_data_test_of_a_view_that_cannot_be_read_concerns_only_that_view(
    warehouse: Any, tmp_path: Path, own_project: Path
) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    own = own_project / "models" / "marts" / "own.sql"
    own.write_text(
        "{{ config(materialized='view') }}\nselect cast(chat_id as integer) as number from {{ ref('stg_chats') }}"
    )
    own.with_suffix(".yml").write_text("models: [{name: own, columns: [{name: number, data_tests: [not_null]}]}]")
    warehouse.load("1", chats=[{"id": "a", "from_handle": "+1"}])
    shutil.copy(warehouse.path, workspace.work)
    result = transform(build_destination(workspace), Settings())
    assert (result.failed_models, result.failed_tests, result.marts) == ([], ["not_null_own_number"], ["own"])
    assert "Could not convert string 'a'" in build_result.get_details_path(workspace).read_text()


def test_model_and_data_test_that_never_end_fail_alone(warehouse: Any, tmp_path: Path, own_project: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    own = own_project / "models" / "marts" / "own.sql"
    own.write_text("select sleep_ms(20000) as number")
    view = "{{ config(materialized='view') }}\nselect sleep_ms(20000) as number"
    own.with_name("own_view.sql").write_text(view)
    test = "{accepted_values: {arguments: {values: [1]}}}"
    own.with_suffix(".yml").write_text(
        f"models: [{{name: own_view, columns: [{{name: number, data_tests: [{test}]}}]}}]"
    )
    warehouse.load("1", chats=[{"id": "a", "from_handle": "+1"}])
    shutil.copy(warehouse.path, workspace.work)
    settings = Settings(sync=SyncSettings(statement_timeout_seconds=3))
    result = transform(build_destination(workspace), settings)
    assert (result.failed_models, result.unbuilt_marts, result.marts) == (["own"], ["own"], ["own_view"])
    assert TIMED_OUT in build_result.get_details_path(workspace).read_text()
    # It would cost the limit in each run: it is built again after a pause, or with another limit.
    for limit_seconds, tries in ((3, 1), (2, 2)):
        settings = Settings(sync=SyncSettings(statement_timeout_seconds=limit_seconds))
        again = transform(build_destination(workspace), settings)
        assert replace(again, timed_out={}) == replace(result, timed_out={})
        assert {name: value[0] for name, value in again.timed_out.items()} == dict.fromkeys(result.timed_out, tries)
    assert "; own took too long, and is not built before 20" in build_result.describe_unbuilt(workspace, again)
    assert again.list_waiting(2) == [*result.timed_out]
    with duckdb.connect(str(workspace.work)) as connection:
        assert connection.execute(
            "select count(*) from staging.stg_chats, (select count(*) from marts.calendar)"
        ).fetchall() == [(1,)]


def test_marts_are_built_without_files_that_dbt_cannot_read(
    warehouse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_project: Path
) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    for option in ("EMPTY", "WARN_ERROR", "ENGINE_FAIL_FAST"):  # of another project
        monkeypatch.setenv(f"DBT_{option}", "1")
    settings = Settings(transforms=TransformSettings(data_tests="off"))
    starts: list[Any] = []
    process_run_dbt = process.run_dbt

    def run_dbt(*arguments: Any) -> Any:
        starts.append(arguments)
        return process_run_dbt(*arguments)

    monkeypatch.setattr(process, "run_dbt", run_dbt)

    def build(number: int) -> int:
        row = {"id": f"m{number}", "conversation_id": "a", "direction": "inbound", "cursor_at": READ_AT}
        warehouse.load(f"{number}", chats=[{"id": "a", "from_handle": "+1"}], messages=[row])
        shutil.copy(warehouse.path, workspace.work)
        transform(build_destination(workspace), settings)
        with duckdb.connect(str(workspace.work)) as connection:
            (rows,) = connection.execute("select sum(messages_total) from marts.thread_activity_daily").fetchall()
            shutil.copy(workspace.work, warehouse.path)
        return int(rows[0])

    own = own_project / "models" / "marts" / "own.sql"
    own.write_text("select * from {{ ref('missing') }}")
    own.with_suffix(".yml").write_text("models: {")
    (own_project / "macros" / "own.sql").write_text("{% macro own( %}")
    link, cycle = own.with_name("link.sql"), own.with_name("cycle.sql")
    link.symlink_to("nowhere.sql")
    cycle.write_text("select * from {{ ref('cycle') }}")
    # They keep no copy of the project from being made.
    (own_project / "models" / "loop").symlink_to(".")
    os.mkfifo(own_project / "pipe")
    assert build(1) == 1
    result = load_build_result(workspace)
    assert (result.failed_models, result.unbuilt_marts) == ([], ["cycle", "link", "own"])
    marts = (f"models/marts/{name}" for name in ("own.yml, line 2", "own.sql", "link.sql", "cycle.sql"))
    files = ("macros/own.sql, line 1", *marts)
    assert [file for file in files if str(own_project / file) not in result.unreadable_files] == []
    assert len(starts) == 6
    assert build(2) == 2
    assert len(starts) == 7, "the second build begins without these files"
    assert load_build_result(workspace) == result

    (own_project / "macros" / "views.sql").write_text("{% macro own( %}")
    for _ in range(2):
        with pytest.raises(TransformError, match=r"dbt cannot read .*macros/views.sql, line 1. Correct it"):
            build(3)
        starts.clear()
    assert not starts, "a project that needs what cannot be read is read again once it has changed"

    for path in (own, own.with_suffix(".yml"), link, cycle, own_project / "macros" / "own.sql"):
        path.unlink()
    (own_project / "macros" / "views.sql").write_text(
        (Path(__file__).parents[2] / "transforms/macros/views.sql").read_text()
    )
    assert build(4) == 4
    assert load_build_result(workspace) == build_result.BuildResult()

    # From here on, there is a project from which all marts were built.
    original = Path(__file__).parents[2] / "transforms"
    broken = {
        "dbt_project.yml": (original / "dbt_project.yml").read_text() + "\n bad: [1",
        "macros/dialects.sql": "{% macro other() %}{% endmacro %}",
    }
    for number, (name, text) in enumerate(broken.items(), 5):
        (own_project / name).write_text(text)
        assert build(number) == number
        result = load_build_result(workspace)
        assert (result.failed_models, result.unbuilt_marts) == ([], [])
        assert "built from the project as it was before" in result.unreadable_files
        assert (f"{name}, line" in result.unreadable_files) == (name == "dbt_project.yml")
        shutil.copy(original / name, own_project / name)
    hook = "on-run-start: ['{{ create_bookkeeping() }}', 'select x from nowhere']"
    text = re.sub("on-run-start:.*", hook, (original / "dbt_project.yml").read_text())
    (own_project / "dbt_project.yml").write_text(text)
    assert build(7) == 7
    assert "built from the project as it was before" in load_build_result(workspace).unreadable_files
    shutil.copy(original / "dbt_project.yml", own_project / "dbt_project.yml")
    copied = own_project / "models" / "staging" / "calendar.sql"
    copied.write_text("select 1 as x")
    assert build(8) == 8
    result = load_build_result(workspace)
    assert (result.failed_models, result.unbuilt_marts) == ([], [])
    assert f"{copied} (it has the name of {own_project / 'models/marts/calendar.sql'})" in result.unreadable_files

    copied.unlink()
    copied.with_name("own.sql").write_text("{{ config(alias='calendar', schema='marts') }} select 1 as x")
    loaded = copied.with_name("replaces_messages.sql")
    loaded.write_text("{{ config(alias='messages', schema='msgbubbles', materialized='table') }} select 1 as x")
    (own_project / "packages.yml").write_text("packages: [{package: dbt-labs/dbt_utils, version: 1.3.0}]")
    (own_project / "dependencies.yml").write_text("packages: [")
    exposure = own_project / "models" / "exposure.yml"
    exposure.write_text("exposures: [{name: own, type: page, owner: {name: us}}]")
    # dbt says what is wrong with these two, and names neither.
    (own_project / "selectors.yml").write_text("selectors: [{name: own}]")
    snapshot = own_project / "snapshots" / "own.sql"
    snapshot.parent.mkdir()
    snapshot.write_text(
        "{% snapshot own %}{{ config(unique_key='day') }} select * from {{ ref('calendar') }}{% endsnapshot %}"
    )
    seed = own_project / "seeds" / "own_seed.csv"
    seed.parent.mkdir()
    seed.write_text("number\n1\n")
    (own_project / "models" / "of_seed.sql").write_text("select * from {{ ref('own_seed') }}")
    assert build(9) == 9
    left_out = load_build_result(workspace).unreadable_files
    assert f"{copied.with_name('own.sql')} (it has the name of" in left_out
    assert str(loaded) in left_out
    assert f"{own_project / 'dependencies.yml'}, line 1 and " in left_out
    assert [
        path
        for path in (exposure, snapshot, own_project / "packages.yml", own_project / "selectors.yml")
        if str(path) not in left_out
    ] == []
    assert "own_seed" not in left_out, "what dbt can read stays"
    assert "of_seed" not in left_out
