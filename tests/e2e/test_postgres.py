"""Run the job with its tables on a PostgreSQL server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg2
import pytest

from helpers.catalog import check_first_tables
from helpers.context import build_destination
from helpers.hooks import spool, typing
from helpers.job import Job
from helpers.lake import COUNT_CONTACT, list_contacts
from helpers.marts_reference import check_marts
from helpers.sizes import IS_NIGHTLY
from helpers.warehouse_rows import differences_of
from msgbubbles_sync.sandbox import NewMessage
from msgbubbles_sync.sandbox.account import to_us
from msgbubbles_sync.workspace import Workspace

NewJob = Callable[..., Job]
READ_AT = datetime(2026, 11, 18, tzinfo=UTC)


@pytest.fixture
def address(postgres_address: str) -> str:
    return postgres_address


def seen(message: Mapping[str, Any]) -> bytes:
    """Build the event that a message was read, with characters that no database accepts."""
    ids = {"message_id": message["id"], "conversation_id": message["chat_id"]}
    at = {"created_at": READ_AT.isoformat()}
    return json.dumps({"id": "evt_2", "type": "message.read", "text": "nul \0 \ud83d"} | ids | at).encode()


def query(address: str, sql: str) -> list[dict[str, Any]]:
    connection = psycopg2.connect(address)
    try:
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return [dict(zip([column.name for column in cursor.description or ()], row, strict=True)) for row in cursor]
    finally:
        connection.close()


def read_rows(address: str) -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for table, key in (("chats", "id"), ("messages", "id"), ("attachments", "id"), ("numbers", "handle")):
        rows = query(address, f"SELECT * FROM msgbubbles.{table}")
        for row in rows:
            for name in ("_fetched_at", "_dlt_load_id", "extra"):
                row.pop(name, None)
        found[table] = {row[key]: row for row in rows}
        assert len(found[table]) == len(rows), f"{table}: a row is there twice"
    return found


def say_hello(job: Job, text: str = "hello", metadata: dict[str, Any] | None = None) -> None:
    chat = job.server.truth().chats[0]["id"]
    job.server.account.add_message(NewMessage(chat, "outbound", text, datetime.now(UTC), "sent", metadata=metadata))


def test_server_holds_the_rows_of_the_account(new_job: NewJob, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", address)
    job = new_job(chats=130, messages=1500)
    job.environment = {
        "DESTINATION__POSTGRES__CREDENTIALS": address,
        "SOURCES__MSGBUBBLES__REFRESH_CHATS": '[{"every_hours": 0.0001}]',
        "SOURCES__MSGBUBBLES__REFRESH_MESSAGES": '[{"within_hours": 72, "every_hours": 0.0001}]',
    }
    # The next run reads these again. The server stores parsed JSON, which must not look like a change.
    chat = job.server.truth().chats[0]["id"]
    refused: dict[str, Any] = {"error": {"code": "refused", "message": "no"}, "metadata": {"b": [1], "a": {}}}
    changes: list[dict[str, Any]] = [{}, {"metadata": {"c": 1}}, {"metadata": {}}]
    for more in changes:
        job.server.account.add_message(
            NewMessage(chat, "outbound", "hello", datetime.now(UTC), "failed", **refused | more)
        )
    job.server.account.add_message(NewMessage(chat, "outbound", "", datetime.now(UTC), "sent"))
    with build_destination(Workspace.from_path(job.folder / "elsewhere.duckdb", "postgres")).lock():
        errors = job.run("--destination", "postgres", status=75).errors
    assert "another job is active on this warehouse: session" in errors
    assert job.server.requests == []
    first = job.run("--destination", "postgres").summary
    assert differences_of(read_rows(address), job.server.truth()) == {}
    assert first["database"] == "postgres"
    assert not job.database.exists()
    check_first_tables(Workspace.from_path(job.database, "postgres"))

    account, now = job.server.account, datetime.now(UTC)
    chats = sorted(job.server.truth().chats, key=lambda row: row["last_message_at"] or "")
    account.rename(chats[3]["id"], "Another name", now)
    account.delete_chat(chats[5]["id"])
    for minutes in (0, 3):  # now, and at a time that has been read already
        late, metadata = now - timedelta(minutes=minutes), {"b": [1], "a": {}}
        account.add_message(NewMessage(chats[9]["id"], "outbound", "hello", late, "sent", metadata=metadata))
    read = account.all("SELECT id, chat_id FROM messages WHERE status = 'delivered' ORDER BY created_us LIMIT 1")[0]
    account.run("UPDATE messages SET status = 'read', read_us = ? WHERE id = ?", (to_us(READ_AT), read["id"]))
    spool(Workspace.from_path(job.database, "postgres"), [typing(1, conversation_id=chats[9]["id"]), seen(dict(read))])
    list_contacts(job)
    for transform in (False, False, True):
        last = job.run("--destination", "postgres", transform=transform).summary
    [event] = query(
        address, "SELECT payload ->> 'text' AS text FROM msgbubbles.webhook_events WHERE event_id = 'evt_2'"
    )
    assert event["text"] == "nul \ufffd ?", "PostgreSQL refuses these characters"
    assert differences_of(read_rows(address), job.server.truth()) == {}
    assert [changes["changed"] for changes in last["tables"].values()] == [0] * len(last["tables"]), (
        "equal JSON is no change"
    )
    runs = query(address, "SELECT run_id, outcome, exit_status FROM msgbubbles.sync_runs ORDER BY started_at")
    assert [run["run_id"] for run in runs][::3] == [first["run_id"], last["run_id"]]
    assert {(run["outcome"], run["exit_status"]) for run in runs} == {("complete", 0)}

    check_marts(partial(query, address))
    assert query(address, COUNT_CONTACT) == [{"n": 1}]
    gone = query(address, "SELECT chat_id FROM marts.thread_activity WHERE deleted_at IS NOT NULL")
    assert gone == [{"chat_id": chats[5]["id"]}]

    asked = len(job.server.requests)
    assert job.ask("plan", "--destination", "postgres")["requests"] >= 3
    assert job.ask("status", "--destination", "postgres")["missing_intervals"] == {"messages": 0, "chats": 0}
    assert len(job.server.requests) == asked
    assert job.ask("verify", "--full", "--destination", "postgres")["equal"]
    assert all(one["state"] != "failed" for one in job.ask("check", "--destination", "postgres"))


def test_runs_continue_after_locks_and_refused_rows(new_job: NewJob, address: str) -> None:
    job = new_job(chats=30, messages=200)
    job.environment = {"DESTINATION__POSTGRES__CREDENTIALS": address, "SYNC__LOCK_TIMEOUT_SECONDS": "1"}
    if not IS_NIGHTLY:  # the test before this one builds all marts
        job.selected = {"run": "+thread_activity +contact"}
    job.run("--destination", "postgres", transform=True)
    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA mine")
        cursor.execute("CREATE VIEW mine.waiting AS SELECT chat_id, messages_total FROM marts.thread_activity")
        cursor.execute("CREATE VIEW mine.texts AS SELECT message_id, text FROM staging.stg_messages")
        cursor.execute("ALTER TABLE marts.contact RENAME COLUMN handle TO somebody")
    connection.close()
    reader = psycopg2.connect(f"{address}&application_name=report")
    with reader.cursor() as cursor:
        say_hello(job)
        cursor.execute("SELECT count(*) FROM marts.thread_activity")
        job.run("--destination", "postgres", transform=True)  # a reader of the marts blocks nothing
        cursor.execute("LOCK TABLE msgbubbles.messages IN SHARE MODE")
        say_hello(job)
        errors = job.run("--destination", "postgres", transform=True, status=1).errors
        named = f"session {reader.get_backend_pid()} (user postgres, application report, idle in transaction since 20"
        assert "[sync] lock_timeout_seconds" in errors
        assert named in errors
        assert query(address, "SELECT chat_id FROM marts.thread_activity"), "the job released its locks"
        reader.rollback()
    reader.close()
    say_hello(job)
    say_hello(job, "nul \0", {"nul \0": ["\0"]})
    say_hello(job, "unwanted")
    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("ALTER TABLE msgbubbles.messages ADD CHECK (text <> 'unwanted')")
    connection.close()
    summary = job.run("--destination", "postgres", transform=True, status=3).summary
    assert summary["tables"]["messages"]["replaced"] == 1
    assert query(address, "SELECT text, metadata FROM msgbubbles.messages WHERE text LIKE 'nul%'") == [
        {"text": "nul \ufffd", "metadata": {"nul \ufffd": ["\ufffd"]}}
    ]
    [rejected] = query(address, "SELECT stream, reason, row FROM msgbubbles.rejected_rows")
    assert (rejected["stream"], rejected["reason"]) == ("messages", "the destination refuses it")
    assert json.loads(rejected["row"])["text"] == "unwanted"
    total = len(job.server.truth().messages) - 1
    assert query(address, "SELECT sum(messages_total) AS total FROM mine.waiting") == [{"total": total}]
    assert query(address, "SELECT count(*) AS total FROM mine.texts") == [{"total": total}]
    assert query(address, "SELECT handle FROM marts.contact"), "a column that is missing is added again"

    if not IS_NIGHTLY:  # destinations/test_postgres_marts.py holds a mart back, and test_marts.py the job
        return
    # A row that no chat explains, which an increment does not rebuild.
    job.environment["TRANSFORMS__DATA_TESTS"] = "hold"
    with psycopg2.connect(address) as connection, connection.cursor() as cursor:
        cursor.execute("UPDATE marts_build.thread_activity_daily SET messages_total = messages_total + 1")
    connection.close()
    before = query(address, "SELECT * FROM marts.thread_activity_daily ORDER BY 1, 2, 3")
    say_hello(job)
    summary = job.run("--destination", "postgres", transform=True, status=3).summary
    assert "marts_count_every_message" in summary["failed_tests"]
    assert "thread_activity_daily" in summary["held_marts"]
    assert query(address, "SELECT * FROM marts.thread_activity_daily ORDER BY 1, 2, 3") == before


def test_tables_and_columns_that_somebody_removed_are_read_again(new_job: NewJob, address: str) -> None:
    job = new_job(chats=20, messages=100)
    job.environment = {"DESTINATION__POSTGRES__CREDENTIALS": address}
    job.run("--destination", "postgres")

    def change(*statements: str) -> None:
        with psycopg2.connect(address) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        connection.close()
        say_hello(job)

    change("DROP TABLE msgbubbles.attachments", "ALTER TABLE msgbubbles.chats RENAME COLUMN title TO heading")
    assert "changed or removed a table" in job.run("--destination", "postgres").errors
    change(
        "ALTER TABLE msgbubbles.messages ALTER COLUMN text TYPE integer USING 1",
        "ALTER TABLE msgbubbles.messages ALTER COLUMN extra TYPE text",
        "ALTER TABLE msgbubbles.attachments DROP COLUMN _fetched_at",
        "UPDATE msgbubbles.numbers SET label = ''",
        "ALTER TABLE msgbubbles.numbers ALTER COLUMN label SET NOT NULL",
        "ALTER TABLE msgbubbles.chats RENAME TO chats_before",
        "CREATE VIEW msgbubbles.chats AS SELECT * FROM msgbubbles.chats_before",
        "ALTER TABLE msgbubbles.sync_runs ALTER COLUMN batches TYPE text USING 'many'",
    )
    errors = job.run("--destination", "postgres").errors
    for what in (
        "messages.text (integer)",
        "messages.extra (text)",
        "attachments._fetched_at (missing)",
        "numbers.label (NOT NULL)",
        "chats (a view, now chats_replaced)",
        "sync_runs.batches (text)",
    ):
        assert f"somebody has changed {what}: changed back" in errors
    change(
        "ALTER TABLE msgbubbles.numbers ALTER COLUMN label TYPE integer USING 1",
        "CREATE VIEW public.labels AS SELECT label FROM msgbubbles.numbers",
    )
    errors = job.run("--destination", "postgres", status=3).errors
    assert "somebody has changed numbers.label (integer), and the database refuses to change it back" in errors
    assert differences_of(read_rows(address), job.server.truth()).keys() == {"numbers"}, "the others are loaded"
    change("DROP VIEW public.labels")
    job.run("--destination", "postgres")
    change("DROP TABLE msgbubbles._dlt_loads, msgbubbles._dlt_version")
    job.run("--destination", "postgres")
    change("DROP TABLE msgbubbles._dlt_loads, msgbubbles._dlt_version, msgbubbles._dlt_pipeline_state")
    job.run("--destination", "postgres")
    assert differences_of(read_rows(address), job.server.truth()) == {}


@pytest.mark.parametrize(
    ("credentials", "why"),
    [
        (None, "it has no address that can be used;\nset its address in"),
        (
            "postgresql://somebody:secret-password@localhost/none?host=/nowhere",
            "the server cannot be reached (IOException)",
        ),
    ],
)
def test_unreachable_server_is_refused_without_its_password(new_job: NewJob, credentials: str | None, why: str) -> None:
    job = new_job(chats=0)
    job.environment = {} if credentials is None else {"DESTINATION__POSTGRES__CREDENTIALS": credentials}
    process = job.start("--destination", "postgres")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert f"--destination postgres: {why}" in errors
    assert "secrets.toml" in errors
    assert "secret-password" not in errors
    assert job.server.requests == []
