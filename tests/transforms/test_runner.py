"""Tests of running dbt in this process."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_destination
from msgbubbles_sync.dbt.runner import transform
from msgbubbles_sync.errors import TransformError
from msgbubbles_sync.settings import Settings
from msgbubbles_sync.workspace import Workspace


def test_failed_model_leaves_the_database_closed(warehouse: Any, tmp_path: Path) -> None:
    workspace = Workspace.from_path(tmp_path / "company.duckdb")
    workspace.make_folders()
    warehouse.load("1", chats=[{"id": "a", "from_handle": "+1"}])
    warehouse.execute("alter table msgbubbles._dlt_loads drop column status")
    shutil.copy(warehouse.path, workspace.work)
    gc.disable()  # a collection by chance would hide the fault
    try:
        with pytest.raises(TransformError, match="the marts could not be built"):
            transform(workspace, build_destination(workspace), Settings())
        # DuckDB refuses this while dbt has the file open for writing.
        with duckdb.connect(str(workspace.work), read_only=True) as connection:
            connection.execute("from duckdb_tables()").fetchall()
    finally:
        gc.enable()
