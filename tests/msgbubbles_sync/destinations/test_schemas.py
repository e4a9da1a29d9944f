"""Schemas of other names on a PostgreSQL server: `[sync] raw_schema`, `staging_schema` and `marts_schema`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import dlt
import psycopg2
import pytest

from helpers.context import build_destination
from msgbubbles_sync.destinations.load import build_pipeline
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.workspace import Workspace

pytestmark = pytest.mark.slow


@pytest.fixture
def execute(postgres_address: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that executes a statement on the server as somebody else."""
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", postgres_address)

    def run(statement: str) -> None:
        with closing(psycopg2.connect(postgres_address)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(statement)

    return run


def build_workspace(folder: Path, account: str | None = None) -> Workspace:
    workspace = Workspace.from_path(folder / "company.duckdb", "postgres", account)
    workspace.make_folders()
    workspace.configure_dlt()
    return workspace


def test_schema_with_tables_of_others_is_refused_by_a_first_run(
    execute: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute("CREATE SCHEMA marts; CREATE TABLE marts.orders (id int); CREATE SCHEMA msgbubbles")
    for account in (None, "north"):  # whose rows everybody sees in `marts`
        workspace = build_workspace(tmp_path, account)
        with pytest.raises(UsageError, match=r"the schema marts holds .* \(orders\)\. Set\n\[sync\] marts_schema in"):
            build_destination(workspace).prepare()
    monkeypatch.setenv("SYNC__MARTS_SCHEMA", "crm_marts")
    build_destination(workspace).prepare()
    execute(
        "CREATE SCHEMA crm_marts; CREATE TABLE crm_marts.thread_activity (id int); CREATE TABLE crm_marts.mine (id int)"
    )
    build_destination(workspace).prepare()


def test_renamed_schemas_are_refused_until_they_are_renamed_on_the_server(
    execute: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = build_workspace(tmp_path)
    build_destination(workspace).prepare()

    def load(number: int) -> None:
        pipeline = build_pipeline(build_destination(workspace))
        pipeline.sync_destination()
        pipeline.run([{"handle": str(number)}], table_name="numbers")

    load(1)
    (workspace.folder / "schemas.json").unlink()  # as of an earlier release
    execute("CREATE TABLE msgbubbles.by_analyst AS SELECT 1 AS id; CREATE SCHEMA marts")
    monkeypatch.setenv("SYNC__RAW_SCHEMA", "crm")
    monkeypatch.setenv("SYNC__MARTS_SCHEMA", "analytics")
    names = {"msgbubbles": "crm", "msgbubbles_staging": "crm_staging", "marts": "analytics"}
    renames = "; ".join(f"ALTER SCHEMA {old} RENAME TO {new}" for old, new in names.items())
    for step in ("exists", "prepare"):
        with pytest.raises(UsageError) as error:
            getattr(build_destination(workspace), step)()
        assert f"Rename them: BEGIN; {renames}; COMMIT, or set" in str(error.value)
    execute(renames)
    build_destination(workspace).prepare()
    load(2)
    with build_destination(workspace).open_reader() as connection:
        assert connection.execute("SELECT handle FROM msgbubbles.numbers ORDER BY handle").fetchall() == [
            ("1",),
            ("2",),
        ]
    assert dlt.current.pipeline().dataset_name == "crm"
