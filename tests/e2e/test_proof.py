"""Every run is recorded, and plan, check, verify and status report the facts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb

from helpers.job import Job
from helpers.warehouse_rows import differences
from msgbubbles_sync.destinations.claims import SANDBOX
from msgbubbles_sync.sandbox import Knobs, NewMessage

NewJob = Callable[..., Job]
AN_HOUR_AGO = timedelta(hours=1)


def by_time(job: Job) -> list[dict[str, Any]]:
    return sorted(job.server.truth().chats, key=lambda row: row["last_message_at"] or "")


def write(job: Job, chat_id: str) -> None:
    job.server.account.add_message(NewMessage(chat_id, "outbound", "hello", datetime.now(UTC), "sent"))


def test_every_run_is_recorded_in_the_warehouse_and_as_json(new_job: NewJob) -> None:
    job = new_job(Knobs(extra_fields={"mood": "fine"}))
    first = job.run().summary
    job.server.knobs.server_errors = 1.0
    job.environment = {"SOURCES__MSGBUBBLES__MAX_ATTEMPTS": "2"}
    failed = job.run(status=1).summary
    job.server.knobs.server_errors = 0.0
    for chat in by_time(job)[-12:-2]:
        write(job, chat["id"])
    last = job.run().summary

    with duckdb.connect(str(job.database), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        records = (
            connection.execute("SELECT * FROM msgbubbles.sync_runs ORDER BY started_at").to_arrow_table().to_pylist()
        )
    assert [row["run_id"] for row in records] == [first["run_id"], failed["run_id"], last["run_id"]]
    assert [(row["outcome"], row["exit_status"]) for row in records] == [
        ("complete", 0),
        ("failed", 1),
        ("complete", 0),
    ]
    assert all(row["ended_at"] > row["started_at"] for row in records)
    assert "502" in records[1]["error"] or "503" in records[1]["error"]
    assert records[1]["retries"] >= 1

    assert first["requests"] == {"GET /numbers": 1, "GET /messages": 8, "GET /chats": 2}
    assert first["requests_total"] == 11 == records[0]["requests_total"]
    assert first["tables"]["messages"] == {"new": 700, "changed": 0, "unchanged": 0}
    assert last["tables"]["messages"] == {"new": 10, "changed": 0, "unchanged": 90}
    assert last["tables"]["chats"]["changed"] == 10
    assert first["streams"]["chats"]["new_fields"] == ["mood"]
    assert first["streams"]["messages"]["covered_before"] is None
    assert last["streams"]["messages"]["covered_before"]["to"] < last["streams"]["messages"]["covered"]["to"]
    assert first["batches"] == 1
    assert first["received_bytes"] > 100_000
    assert {"extract", "normalize", "commit", "load", "publish"} <= first["seconds"].keys()
    assert {"msgbubbles-sync", "dlt", "duckdb", "python"} <= first["versions"].keys()
    assert job.server.key not in repr([first, failed, last])


def test_plan_sends_no_request_and_predicts_the_next_run(new_job: NewJob) -> None:
    job = new_job(chats=230, messages=2500)
    before = job.ask("plan")
    assert before["more"]
    assert {step["kind"] for step in before["steps"]} == {"list", "everything"}
    assert job.server.requests == []

    job.run("--max-requests", "10", status=0)
    planned = job.ask("plan")
    assert [step for step in planned["steps"] if step["kind"] == "backfill"]
    # The plan expects as many rows as came in the same time before, which is hours if the seeded account is silent.
    write(job, by_time(job)[-1]["id"])
    job.run()
    for chat in by_time(job)[40:47]:
        write(job, chat["id"])

    asked = len(job.server.requests)
    planned = job.ask("plan")
    assert len(job.server.requests) == asked
    assert planned["changed"] is None
    probed = job.ask("plan", "--probe")
    assert len(job.server.requests) == asked + 1
    assert probed["changed"] == 7
    assert job.run().requests == planned["requests"] == 3

    job.environment = {"SOURCES__MSGBUBBLES__REFRESH_CHATS": '[{"every_hours": 0.0001}]'}
    planned = job.ask("plan")
    assert [step["kind"] for step in planned["steps"] if step["stream"] == "chats"] == ["incremental", "refresh"]
    assert abs(job.run().requests - planned["requests"]) <= 1
    job.environment |= {"SOURCES__MSGBUBBLES__REQUESTS_PER_MINUTE": "2"}
    assert re.search(r"About \d+ requests, \d+ minutes? at the limit of 2 a minute", job.ask("plan", "--text"))


def findings(job: Job, status: int = 0) -> dict[str, Any]:
    return {one["name"]: one for one in job.ask("check", status=status)}


def test_check_of_a_healthy_setup_reports_the_api(loaded_job: Job) -> None:
    job = loaded_job
    found = findings(job)
    assert all(one["state"] in ("ok", "info") for one in found.values())
    assert found["api"]["what"] == "the API key is valid, the account is active and has 3 numbers"
    infos = {name: one["what"] for name, one in found.items() if one["state"] == "info"}
    assert infos == {
        "messages": "the API lists all messages of the account, 100 a request",
        "senders": 'messages name their sender in the field "sender"',
        "participants": "a group read by id shows its participants",
        "timestamps": "precise to milliseconds",
        "before": "a list leaves out rows of that timestamp, or timestamps are more precise than they are shown",
        "Retry-After": "not seen yet",
    }


def test_check_reports_an_api_that_behaves_differently(new_job: NewJob) -> None:
    job = new_job(
        Knobs(before_inclusive=True, feed=False, sender_on_messages=False, participants_on_detail=False), chats=0
    )
    account, at = job.server.account, datetime(2026, 5, 1, tzinfo=UTC)
    for number in range(3):
        chat_id = account.add_chat("+14155550100", "+14155550123", at, is_group=True)
        sent_at = at + timedelta(hours=number)
        account.add_message(NewMessage(chat_id, "inbound", "hi", sent_at, "received", sender="+14155550123"))
    infos = {name: one["what"] for name, one in findings(job).items() if one["state"] == "info"}
    assert infos["messages"].startswith("no list of all messages")
    assert infos["senders"].startswith("no message in a group names its sender")
    assert infos["participants"] == "a group read by id does not show its participants"
    assert infos["before"] == "a list includes rows of that timestamp"


def test_check_names_each_fault_with_its_fix(new_job: NewJob) -> None:
    job = new_job()
    job.server.knobs.server_errors = 1.0
    job.environment = {"SOURCES__MSGBUBBLES__MAX_ATTEMPTS": "2"}
    job.run(status=1)
    text = job.ask("check", "--text", status=3)
    assert re.search(r"^!! last run: failed \(exit status 1\), .*\n   -> fix the error and run again", text, re.M)
    assert re.search(r"^!! api: .*50[23].*\n   -> check base_url, the network, and the key", text, re.MULTILINE)
    assert re.search(r"^ok transforms: ", text, re.MULTILINE)
    assert job.server.key not in text


def test_verify_compares_as_many_chats_as_asked(new_job: NewJob) -> None:
    job = new_job(silence=timedelta(hours=1))  # a chat with a newer message would be left to the next run
    job.run()
    assert job.ask("verify", "--sample", "5")["compared"]["chats"] == 5


def test_verify_finds_and_repairs_every_kind_of_difference(loaded_job: Job) -> None:
    job = loaded_job
    report = job.ask("verify", "--full")
    assert report["equal"]
    assert report["differences"] == []
    compared = report["compared"]
    assert compared["chats"] + compared["messages"] + report["newer"] == 150 + 700
    assert compared["attachments"] <= len(files(job))
    assert report["newer"] < 20, "what came just now is the next run's"
    assert report["requests"] == 2 + 8 + 2, "an empty page ends each list"

    chats, account, now = by_time(job), job.server.account, datetime.now(UTC)
    renamed, deleted = chats[3]["id"], chats[7]["id"]
    account.rename(renamed, "Another name", now)
    account.delete_chat(deleted)
    old = [row for row in job.server.truth().messages if row["conversation_id"] not in (renamed, deleted)][-200:]
    edited, lost = old[0], old[1]
    account.edit_text(edited["id"], "edited", now)
    for path in (job.database, job.folder / ".msgbubbles" / "company" / "company.duckdb"):
        with duckdb.connect(str(path)) as connection:
            connection.execute("DELETE FROM msgbubbles.messages WHERE id = ?", [lost["id"]])
    published = job.database.stat()

    report = job.ask("verify", "--full", status=3)
    assert sorted((one["table"], one["id"], one["kind"], tuple(one["fields"])) for one in report["differences"]) == (
        sorted(
            [
                ("chats", renamed, "different", ("title", "updated_at")),
                ("chats", deleted, "surplus", ()),
                ("messages", edited["id"], "different", ("text", "updated_at")),
                ("messages", lost["id"], "missing", ()),
                *(("messages", row, "surplus", ()) for row in read_texts(job, deleted)),
            ]
        )
    )
    assert job.database.stat().st_mtime_ns == published.st_mtime_ns, "nothing was touched"
    text = job.ask("verify", "--text", "--sample", "150", status=3)
    assert f"chats {renamed} different: title, updated_at" in text
    assert "Another name" not in text
    assert "edited" not in text

    interrupted = job.folder / ".msgbubbles" / "company" / "policy.pending"
    interrupted.touch()
    assert job.ask("verify", "--full", "--repair", status=2) == "", "every chat would be read again"
    interrupted.unlink()
    # A repair prepares the folder of the job as a run does.
    claim = job.folder / ".msgbubbles" / "company" / "account.json"
    own = claim.read_text()
    claim.write_text(json.dumps({"account": SANDBOX}))
    assert job.ask("verify", "--full", "--repair", status=2) == "", "the warehouse has the rows of another account"
    claim.write_text(own)
    (job.folder / ".msgbubbles" / "company" / "dlt" / "msgbubbles" / "state.json").write_text("{")
    assert job.ask("verify", "--full", "--repair")["equal"]
    assert differences(job.database, job.server.truth()) == {}


def files(job: Job) -> list[Any]:
    return [file for row in job.server.truth().messages for file in row["attachments"]]


def read_texts(job: Job, chat_id: str) -> list[str]:
    with duckdb.connect(str(job.database), read_only=True) as connection:
        query = "SELECT id FROM msgbubbles.messages WHERE conversation_id = ?"
        return [row[0] for row in connection.execute(query, [chat_id]).fetchall()]


def test_verify_names_its_missing_option(new_job: NewJob) -> None:
    job = new_job(chats=0)
    process = job.start()
    job.finish(process)
    job.ask("verify", status=2)
    job.ask("verify", "--full", "--sample", "3", status=2)
    job.database.unlink()
    job.ask("verify", "--full", status=2)


def test_status_reports_freshness_without_a_request(new_job: NewJob) -> None:
    job = new_job(chats=230, messages=2500)
    job.ask("status", "--max-age-minutes", "60", status=2)
    assert not list(job.folder.glob(".msgbubbles"))

    # One after another: on a slow machine several at once may leave the newest messages unread.
    job.environment = {"SOURCES__MSGBUBBLES__PARALLEL_REQUESTS": "1"}
    job.run("--max-requests", "10")
    asked = len(job.server.requests)
    behind = job.ask("status")
    assert behind["missing_intervals"]["messages"] >= 1
    text = job.ask("status", "--text")
    assert re.search(r"messages \d{4}-\d\d-\d\d ·+█+ now", text)
    assert "1 interval was never read; the next run continues there" in text
    assert len(job.server.requests) == asked

    outcome = job.run()
    found = job.ask("status", "--max-age-minutes", "60")
    assert found["missing_intervals"] == {"messages": 0, "chats": 0}
    assert found["age_minutes"] < 60
    assert found["requests_last_hour"] == len(job.server.requests)
    assert [run["run_id"] for run in found["runs"]][-1] == outcome.summary["run_id"]
    assert "·" not in re.search(r"messages \d{4}-\d\d-\d\d (.+) now", job.ask("status", "--text"))[1]  # type: ignore[index]
    job.ask("status", "--max-age-minutes", "0.0001", status=3)

    job.server.knobs.server_errors = 1.0
    job.environment = {"SOURCES__MSGBUBBLES__MAX_ATTEMPTS": "1"}
    job.run(status=1)
    after = job.ask("status")
    assert after["last_complete_at"] == found["last_complete_at"], "a run that failed makes nothing fresh"
    assert [run["outcome"] for run in after["runs"]][-1] == "failed"
