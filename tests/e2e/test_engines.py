"""Compare the marts of one account between engines, row by row, after increments, late rows and deletes.

On every day, test_postgres.py and test_ducklake.py compare them with the reference after the same changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from helpers.job import Job
from helpers.lake import change, lake_at, needs_spark, query
from helpers.marts_reference import MARTS, differences
from helpers.sizes import nightly
from msgbubbles_sync.workspace import Workspace

# Times at which a job read something: the jobs of two engines read at different times.
READ_TIMES = {"fetched_at", "deleted_at"}
TITLE_TIMES = {"valid_from", "valid_to", "first_seen_at"}


def answers(workspace: Workspace, mart: str) -> list[dict[str, Any]]:
    """Return the rows of a mart without the times at which they were read.

    All other values are exact, even averages, which the marts round to the millisecond.
    """
    left_out = READ_TIMES | (TITLE_TIMES if mart == "chat_title_history" else set())
    rows = query(workspace, f"SELECT * FROM marts.{mart}")
    return [
        {name: value for name, value in row.items() if name not in left_out}
        | {"is_deleted": row.get("deleted_at") is not None}
        for row in rows
    ]


def check_same(job: Job, engines: Iterable[str]) -> None:
    job.environment["SOURCES__MSGBUBBLES__REFRESH_CHATS"] = '[{"every_hours": 0.0001}]'
    engines = ["duckdb", *engines]

    def run(*, transform: bool) -> None:
        for engine in engines:
            job.run("--destination", engine, transform=transform)

    run(transform=True)
    deleted, _ = change(job)
    for transform in (False, True):
        run(transform=transform)
    workspaces = {engine: Workspace.from_path(job.database, engine) for engine in engines}
    for mart in MARTS:
        expected = answers(workspaces["duckdb"], mart)
        assert expected or mart in ("typing_daily", "sla_events", "sla_daily", "reactions_daily"), mart
        for engine in engines[1:]:
            assert not (wrong := differences(answers(workspaces[engine], mart), expected)), (
                f"{engine}, {mart}: {wrong[:5]}"
            )
    for workspace in workspaces.values():
        gone = query(workspace, "SELECT chat_id FROM marts.thread_activity WHERE deleted_at IS NOT NULL")
        assert gone == [{"chat_id": deleted}]


@nightly
def test_server_and_lake_have_the_marts_of_the_file(
    new_job: Callable[..., Job], postgres_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in lake_at(postgres_address, tmp_path / "lake").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", postgres_address)
    check_same(new_job(chats=130, messages=1500), ["postgres", "ducklake"])


@needs_spark
def test_spark_has_the_marts_of_the_file(
    new_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(tmp_path / "lake"))
    check_same(new_job(chats=130, messages=1500), ["filesystem"])
