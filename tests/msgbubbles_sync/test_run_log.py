"""Runs in the table `sync_runs`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import duckdb

from msgbubbles_sync.run_log import store
from msgbubbles_sync.run_record import RunRecord

ENDED = "2026-01-01T00:01:00.250+00:00"
STORED = "SELECT run_id, outcome FROM msgbubbles.sync_runs ORDER BY run_id"


def build_record(run_id: str, outcome: str, ended_at: str = ENDED) -> RunRecord:
    started_at = "2026-01-01T00:00:00.125+00:00"
    return {"run_id": run_id, "started_at": started_at, "ended_at": ended_at, "outcome": outcome, "exit_status": 0}


def test_only_new_and_continued_runs_are_written() -> None:
    with duckdb.connect() as connection:
        store(connection, [build_record("a", "complete"), build_record("b", "complete")], "msgbubbles")
        later = ENDED.replace("250", "251")
        records = [build_record("a", "failed"), build_record("b", "failed", later), build_record("c", "stopped")]
        store(connection, records, "msgbubbles")
        assert connection.execute(STORED).fetchall() == [("a", "complete"), ("b", "failed"), ("c", "stopped")]
        store(connection, [], "msgbubbles")
        assert len(connection.execute(STORED).fetchall()) == 3
        now = datetime.now(UTC)
        new = build_record("d", "complete") | {"started_at": now.isoformat()}
        store(connection, [*records, new], "msgbubbles", oldest=now - timedelta(90))
        assert connection.execute(STORED).fetchall() == [("d", "complete")]
