"""What a newcomer runs, marts included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import duckdb

from job import CHATS, run_demo

PROJECT = CHATS.parents[1] / "transforms"


def one(database: Path, query: str) -> tuple[object, ...]:
    with duckdb.connect(str(database), read_only=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row


def test_the_second_run_is_visibly_small_and_the_marts_follow(demo: Path) -> None:
    before = one(demo, "SELECT count(*) FROM msgbubbles.messages")
    output = run_demo(demo)
    assert "3 requests (" in output
    assert " of 120 this minute)" in output
    added = one(demo, "SELECT count(*) FROM msgbubbles.messages")[0] - before[0]  # type: ignore[operator]
    assert 40 <= added < 200
    assert one(demo, "SELECT count(*), sum(messages_total) FROM marts.thread_activity") == one(
        demo, "SELECT (SELECT count(*) FROM msgbubbles.chats), (SELECT count(*) FROM msgbubbles.messages)"
    )
    assert one(
        demo,
        """SELECT count(*) FROM marts.thread_activity AS mart
           WHERE messages_inbound <> (SELECT count(*) FROM msgbubbles.messages AS m
                                      WHERE m.conversation_id = mart.chat_id AND m.direction = 'inbound')""",
    ) == (0,)
    assert one(demo, "SELECT count(*) > 100 FROM marts.group_membership WHERE evidence = 'message'") == (True,)


def test_the_data_tests_hold_on_what_the_job_built(demo: Path, tmp_path: Path) -> None:
    """`unique`, `not_null` and `relationships`, by dbt, on a copy of what the job published."""
    copy = tmp_path / "copy.duckdb"
    copy.write_bytes(demo.read_bytes())
    dbt = [sys.executable, "-m", "dbt.cli.main", "test", "--exclude-resource-type", "unit_test"]
    folders = ["--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT), "--target-path", str(tmp_path)]
    done = subprocess.run(
        [*dbt, *folders, "--log-path", str(tmp_path)],
        env={**os.environ, "MSGBUBBLES_DUCKDB_PATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "PASS=0" not in done.stdout
    assert "ERROR=0" in done.stdout


def test_the_published_file_answers_under_another_name(demo: Path, tmp_path: Path) -> None:
    copy = tmp_path / "for_the_team.duckdb"
    copy.write_bytes(demo.read_bytes())
    assert one(copy, "SELECT count(*) > 0 FROM staging.stg_messages") == (True,)
