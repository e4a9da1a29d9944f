"""Tests of running dbt in this process."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_destination
from msgbubbles_sync.dbt import process, project, runner
from msgbubbles_sync.dbt.runner import find_unreadable_file, load_build_result, transform
from msgbubbles_sync.errors import TransformError
from msgbubbles_sync.settings import Settings, TransformSettings
from msgbubbles_sync.workspace import Workspace

from .conftest import READ_AT


def test_failed_model_leaves_the_database_closed(warehouse: Any, tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    warehouse.load("1", chats=[{"id": "a", "from_handle": "+1"}])
    warehouse.execute("alter table msgbubbles._dlt_loads drop column status")
    shutil.copy(warehouse.path, workspace.work)
    gc.disable()  # a collection by chance would hide the fault
    try:
        transform(workspace, build_destination(workspace), Settings())
        assert load_build_result(workspace).failed_models == ["loads"]
        # DuckDB refuses this while dbt has the file open for writing.
        with duckdb.connect(str(workspace.work), read_only=True) as connection:
            connection.execute("from duckdb_tables()").fetchall()
    finally:
        gc.enable()


def test_failing_model_keeps_only_its_marts_from_being_built(warehouse: Any, tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    settings = Settings(transforms=TransformSettings(data_tests="off"))

    def load(number: int) -> None:
        row = {"id": f"m{number}", "conversation_id": "a", "direction": "inbound", "cursor_at": READ_AT}
        warehouse.load(f"{number}", chats=[{"id": "a", "from_handle": "+1"}], messages=[row])
        shutil.copy(warehouse.path, workspace.work)

    def build(*statements: str) -> tuple[list[str], list[str], list[tuple[int, ...]]]:
        with duckdb.connect(str(workspace.work)) as connection:
            for statement in statements:
                connection.execute(statement)
        transform(workspace, build_destination(workspace), settings)
        built = load_build_result(workspace)
        with duckdb.connect(str(workspace.work)) as connection:
            counts = "select messages_total, (select sum(message_count)::int from marts.thread_turns)"
            rows = connection.execute(f"{counts} from marts.thread_activity").fetchall()
            shutil.copy(workspace.work, warehouse.path)
        return built.failed_models, built.unbuilt_marts, rows

    load(1)
    assert build() == ([], [], [(1, 1)])
    load(2)
    failing = (["stg_attachments"], ["attachments_daily"])
    rename = "alter table msgbubbles.attachments rename {} to {}"
    # A mart that somebody has replaced is built from scratch.
    replace_mart = ("drop table marts.thread_turns", "create table marts.thread_turns as select 1 as message_count")
    assert build(rename.format("size_bytes", "bytes"), *replace_mart) == (*failing, [(2, 2)])
    load(3)
    assert build() == (*failing, [(3, 3)]), "it fails again, and the others are updated"
    assert build(rename.format("bytes", "size_bytes")) == ([], [], [(3, 3)])


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
    assert found == file or (found is not None and file is not None and found.endswith(f"/{file}"))


def test_project_that_dbt_cannot_read_is_tried_again_once_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    copy = tmp_path / "transforms"
    shutil.copytree(project.PROJECT, copy, ignore=shutil.ignore_patterns(*project.MADE_BY_DBT))
    for module in (process, project, runner):
        monkeypatch.setattr(module, "PROJECT", copy)
    own = copy / "models" / "marts" / "own.yml"
    own.write_text("version: 2\nmodels:\n  - name: x\n   description: y")
    starts = []

    def run_dbt(*arguments: Any) -> Any:
        starts.append(arguments)
        return process_run_dbt(*arguments)

    process_run_dbt = process.run_dbt
    monkeypatch.setattr(process, "run_dbt", run_dbt)
    for _ in range(2):
        with pytest.raises(TransformError, match=r"dbt cannot read .*marts/own.yml, line 4. Correct it"):
            transform(workspace, build_destination(workspace), Settings())
    assert len(starts) == 1
    own.write_text("version: 2\nmodels: {")
    with pytest.raises(TransformError, match=r"marts/own.yml"):
        transform(workspace, build_destination(workspace), Settings())
    assert len(starts) == 2
