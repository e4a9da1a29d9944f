"""What a newcomer runs, marts included."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from job import CHATS, inherited_environment
from questions import questions

PROJECT = CHATS.parents[1] / "transforms"


def run_demo(database: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(CHATS), "--sandbox", "--database", str(database)],
        cwd=database.parent,
        env=inherited_environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("demo") / "demo.duckdb"
    assert "marts.thread_activity 240" in run_demo(database)
    return database


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


def test_the_data_tests_hold_on_what_the_job_built(demo: Path) -> None:
    """`unique`, `not_null` and `relationships`, by dbt, on the job's own database."""
    work = demo.parent / ".msgbubbles" / "demo" / "demo.duckdb"
    dbt = [sys.executable, "-m", "dbt.cli.main", "test", "--exclude-resource-type", "unit_test"]
    folders = ["--project-dir", str(PROJECT), "--profiles-dir", str(PROJECT), "--target-path", str(demo.parent / "dbt")]
    done = subprocess.run(
        [*dbt, *folders, "--log-path", str(demo.parent / "dbt")],
        env={**os.environ, "MSGBUBBLES_DUCKDB_PATH": str(work)},
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


def test_the_questions_of_the_readme_are_answered(demo: Path) -> None:
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    with duckdb.connect(str(demo), read_only=True) as connection:
        answered = {
            question.title: connection.execute(
                # A day and a title that are sure to be in there.
                question.query.replace("2026-11-13", today).replace("Book club", "Moving day")
            ).fetchall()
            for question in questions()
        }
    assert {title for title, rows in answered.items() if not rows} <= {
        # Nothing here says so: the demo has no operations and no lists of participants.
        "Who left a group?",
        "How many members of a group say nothing?",
        # By chance, or only after a second run.
        "Whom did we answer in vain?",
        "Which chats were renamed?",
        "Who reaches us in several ways?",
    }
    assert all(answered["How much of this can I trust?"][0][:2])
