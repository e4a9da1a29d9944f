"""Failed reads as a user of the job sees them: exit status, table, `status` and `check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import duckdb

from helpers.job import Job
from helpers.warehouse_rows import differences
from msgbubbles_sync.sandbox import Knobs

Answer = tuple[int, dict[str, str], bytes]


def failed_reads(job: Job) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(job.database), read_only=True) as database:
        query = "SELECT kind, id, tries, http_status, error_code FROM msgbubbles.failed_reads ORDER BY kind"
        return database.execute(query).fetchall()


def test_failed_reads_are_shown_until_they_succeed(new_job: Callable[..., Job]) -> None:
    def answer(_method: str, path: str, query: Mapping[str, str]) -> Answer | None:
        if path == "/v1/numbers":
            return 500, {}, b"<html>"
        if path == "/v1/messages" and query.get("conversation_id") == broken:
            return 503, {}, b'{"error": "device_offline", "message": "private words"}'
        return None

    job = new_job(Knobs(feed=False), chats=20, messages=100)
    job.environment["SOURCES__MSGBUBBLES__MAX_ATTEMPTS"] = "2"
    broken = job.server.truth().chats[0]["id"]
    job.server.knobs.answer = answer
    outcome = job.run(status=3)
    assert outcome.summary["outcome"] == "complete"
    assert outcome.summary["failed_reads"] == {"numbers": 1, "thread": 1}
    assert failed_reads(job) == [("numbers", "numbers", 1, 500, None), ("thread", broken, 1, 503, "device_offline")]
    stored = {row["id"] for row in job.server.truth().messages if row["conversation_id"] == broken}
    found = differences(job.database, job.server.truth())
    assert {table: one["missing"] for table, one in found.items() if table != "attachments"} == {
        "messages": len(stored),
        "numbers": len(job.server.truth().numbers),
    }
    assert len(job.ask("status")["failed_reads"]) == 2
    report = job.ask("verify", "--full", status=3)
    assert [(one["table"], one["id"], one["kind"]) for one in report["differences"]] == [
        ("messages", broken, "unreadable")
    ]
    for command, status, parts in (("status", 0, [broken]), ("check", 3, [broken, "account is active", "!! numbers"])):
        printed = job.ask(command, "--text", status=status)
        assert all(part in printed for part in parts), printed
        assert "private words" not in printed

    job.server.knobs.answer = None
    assert job.run().summary["published"]
    assert failed_reads(job) == []
    assert differences(job.database, job.server.truth()) == {}
