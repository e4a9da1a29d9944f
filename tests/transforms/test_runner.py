"""Tests of running dbt in this process."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import duckdb

from helpers.context import build_destination
from msgbubbles_sync.dbt.runner import load_build_result, transform
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
