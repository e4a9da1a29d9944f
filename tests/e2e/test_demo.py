"""What a newcomer runs, marts included."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from helpers.job import run_demo
from helpers.questions import questions


def one(database: Path, query: str) -> tuple[object, ...]:
    with duckdb.connect(str(database), read_only=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row


def test_the_second_run_is_visibly_small_and_the_marts_follow(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = shutil.copytree(demo.parent, tmp_path / "demo") / demo.name
    before = one(demo, "SELECT count(*) FROM msgbubbles.messages")
    monkeypatch.setenv("TRANSFORMS__DATA_TESTS", "off")  # those of the first run have tested all rows
    as_of = "SELECT min(as_of) = (SELECT max(started_at) FROM msgbubbles.sync_runs) FROM staging.stg_stream_coverage"
    assert one(demo, as_of) == (True,), "the first published file shows the run that made it"
    output = run_demo(demo)
    assert "3 requests (" in output
    assert " of 120 this minute)" in output
    assert "privacy policy: full, everything is stored" in output
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
    assert one(demo, "SELECT count(*), min(failed_tests::VARCHAR) FROM msgbubbles.sync_runs") == (2, "[]")
    assert (demo.parent / ".msgbubbles/demo/dbt/plan.json").exists(), "the third run does not start dbt"
    assert one(demo, "SELECT count(*) > 100 FROM marts.group_membership WHERE evidence = 'message'") == (True,)


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
        # The demo has no operations and no lists of participants.
        "Who left a group?",
        "How many members of a group are silent?",
        # By chance, or only after a second run.
        "Which chats went silent after our message?",
        "Which chats were renamed?",
        "Who writes to us over several channels?",
        # Known from webhooks only.
        "Who typed and sent nothing?",
        "How often does typing lead to no message?",
        "How do people react?",
        # The demo has neither targets nor business hours.
        "What share of targets do we meet?",
        "Which targets are we about to miss, or have missed?",
        "On which working days was a number silent?",
    }
    assert all(answered["How complete is the data?"][0][:2])
