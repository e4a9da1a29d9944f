"""Failed reads as a user of the job sees them: exit status, table, `status` and `check`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import duckdb

from helpers.hooks import spool, typing, workspace_in
from helpers.job import Job
from helpers.warehouse_rows import differences
from msgbubbles_sync.groups.ledger import LEDGER
from msgbubbles_sync.sandbox import Knobs, NewMessage
from msgbubbles_sync.webhooks.spool import spool_folder

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


def test_part_of_a_run_that_fails_stops_no_other_part(new_job: Callable[..., Job]) -> None:
    job = new_job(chats=20, messages=100)
    workspace = workspace_in(job.folder)
    workspace.make_folders()
    job.selected = {"run": "state:modified"}  # dbt does not start without an earlier state
    outcome = job.run(transform=True, status=1)
    assert "the marts could not be built" in outcome.errors
    assert outcome.summary["published"]
    assert differences(job.database, job.server.truth()) == {}

    ledger, segment = workspace.folder / LEDGER, spool_folder(workspace) / "1-1.jsonl"
    ledger.write_bytes(b"not a database" * 500)
    spool(workspace, [typing(1)])
    segment.mkdir()
    job.selected = {}
    contacts = job.folder / "contacts.csv"
    contacts.write_text("handle,contact\n+14155550111,Ann\n4155550112,Ben\n")
    job.environment["TRANSFORMS__CONTACT_ALIASES"] = str(contacts)
    message = NewMessage(job.server.truth().chats[0]["id"], "inbound", "again", datetime.now(UTC), "received")
    job.server.account.add_message(message)
    outcome = job.run(status=3)
    parts = outcome.summary["failed_parts"]
    assert outcome.summary["outcome"] == "complete"
    assert f"{ledger} is damaged" in parts["group operations"]
    assert "1 file in webhooks/spool" in parts["webhook events"]
    assert f"{contacts}:3: the handle is not a valid phone number" in parts["contacts"]
    assert all(reason in outcome.errors for reason in parts.values())
    assert job.ask("status")["runs"][-1]["failed_parts"] == parts
    assert parts["webhook events"] in job.ask("status", "--text")
    with duckdb.connect(str(job.database), read_only=True) as database:
        assert database.execute("SELECT count(*) FROM msgbubbles.webhook_events").fetchall() == [(1,)]
        assert database.execute("SELECT contact FROM msgbubbles.contact_aliases").fetchall() == [("Ann",)]
    assert differences(job.database, job.server.truth()) == {}

    ledger.unlink()
    segment.rmdir()
    contacts.write_text("handle,contact\n+14155550111,Ann\n")
    assert job.run().summary["failed_parts"] == {}
