"""Webhooks from end to end: the sandbox sends events, `webhooks.py serve` receives them, a sync loads them."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_context
from helpers.hooks import WEBHOOKS, Process, spool, typing
from helpers.job import Job
from helpers.process import run_process
from helpers.warehouse_rows import differences
from msgbubbles_sync.dbt.build_result import BuildResult, store_build_result
from msgbubbles_sync.files import remove
from msgbubbles_sync.sandbox import Knobs, NewMessage
from msgbubbles_sync.webhooks import health
from msgbubbles_sync.workspace import Workspace

NewJob = Callable[..., Job]
# For the full test: MSGBUBBLES_FLOOD=20000 MSGBUBBLES_KILLS=10.
EVENTS = int(os.environ.get("MSGBUBBLES_FLOOD", "600"))
KILLS = int(os.environ.get("MSGBUBBLES_KILLS", "2"))
DATABASE = ("--database", "company.duckdb")
# Runs a script that is killed when it begins to publish.
KILLED_BEFORE_PUBLISHING = """
import os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from msgbubbles_sync.destinations.duckdb_file import DuckDBFile

DuckDBFile.publish = lambda *_: os.kill(os.getpid(), 9)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command(job: Job, *arguments: str, status: int = 0) -> Any:
    """Run a command of webhooks.py and return its JSON."""
    done = run_process(
        [sys.executable, str(WEBHOOKS), *arguments, *DATABASE, "--json"],
        cwd=job.folder,
        env=job.whole_environment(),
        capture_output=True,
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout else None


@contextmanager
def subscribed(job: Job) -> Iterator[Process]:
    """Run a receiver that is registered at the account."""
    secrets = job.folder / "secrets.toml"
    secrets.write_text('[webhooks]\nsecrets = ["whsec_b2Y="]\n')
    process = Process(job.folder, job.whole_environment(), *DATABASE, "--secrets-file", str(secrets))
    try:
        command(job, "register", process.url, "--secrets-file", str(secrets))
        yield process
    finally:
        assert process.stop() == 0


def rows(job: Job, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(str(job.database), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.execute(sql).fetchall()


def test_every_answered_event_is_loaded_once_despite_kills(new_job: NewJob) -> None:
    job = new_job(Knobs(webhook_repeats=0.02), chats=0)
    account, deliverer = job.server.account, job.server.deliverer
    chance, at = random.Random(5), datetime.now(UTC)
    with subscribed(job) as receiver:
        with account.bulk():
            for number in range(EVENTS):
                account.type(f"chat-{number % 97}", "+14155550123", True, at + timedelta(milliseconds=number))
        sent = {json.loads(row["body"])["id"] for row in account.all("SELECT body FROM deliveries")}
        began = time.monotonic()
        for kill in range(KILLS):
            while deliverer.delivered < EVENTS * (kill + 1) / (KILLS + 1):
                time.sleep(0.01)
                assert time.monotonic() - began < 600
            time.sleep(chance.random() / 20)
            receiver.kill()
            receiver.start()
        assert deliverer.wait_until_delivered(timeout_seconds=300)
        seconds = time.monotonic() - began
    print(f"{EVENTS} events, {deliverer.failures} failures, {seconds:.1f} s")  # noqa: T201
    loaded = command(job, "load")
    assert (loaded["deliveries"] >= EVENTS, loaded["malformed"]) == (True, 0)
    event_ids = [row[0] for row in rows(job, "SELECT event_id FROM msgbubbles.webhook_events WHERE _dlt_load_id > ''")]
    assert len(event_ids) == len(set(event_ids)) == EVENTS
    assert set(event_ids) == sent


def test_events_update_messages_and_name_missing_ones(loaded_job: Job) -> None:
    job = loaded_job
    job.environment = {"WEBHOOKS__REFRESH_MESSAGES": '[{"within_hours": 500, "every_hours": 1000}]'}
    account, knobs, now = job.server.account, job.server.knobs, datetime.now(UTC)
    older = account.all(
        "SELECT id FROM messages WHERE direction = 'outbound' AND status = 'delivered' ORDER BY created_us LIMIT 20"
    )
    quiet = account.all("SELECT id FROM chats ORDER BY last_us LIMIT 1")[0]["id"]
    long_ago = now - timedelta(days=80)
    with subscribed(job) as receiver:
        tested = command(job, "test", receiver.url, "--secrets-file", str(job.folder / "secrets.toml"))
        assert (tested["accepted"], tested["in_spool"]) == (True, True)
        (listed,) = command(job, "list")
        assert (listed["url"], listed["receiver"]["running"]) == (receiver.url, True)
        # Payloads of every structure.
        for number, payload in enumerate(("nested", "flat", "ids")):
            knobs.webhook_payload = payload  # type: ignore[assignment]
            for row in older[number::3]:
                account.set_status(row["id"], "read", now)
        knobs.webhook_payload = "nested"
        account.react(older[0]["id"], "+14155550123", "love", now + timedelta(seconds=1))
        account.type(quiet, "+14155550123", True, now)
        # In a quiet chat, in an unknown chat, and in a chat that is deleted before it is read.
        late = NewMessage(quiet, "inbound", "I was offline", long_ago, "received", sender="+14155550123")
        unknown = account.add_chat("+14155550100", "+14155550177", long_ago)
        account.add_messages([late, NewMessage(unknown, "inbound", "hello", long_ago, "received")])
        gone = account.add_chat("+14155550100", "+14155550188", long_ago)
        account.add_message(NewMessage(gone, "inbound", "bye", long_ago, "received"))
        account.delete_chat(gone)
        # Events about chats that do not exist, with a possible and an impossible id.
        for made_up in ("conv_123", ".."):
            account.type(made_up, "+14155550123", True, now)
        assert job.server.deliverer.wait_until_delivered(timeout_seconds=60)
    asked = len(job.server.requests)
    # The receiver has not run for an hour, so messages are refreshed as without it.
    job.environment["SOURCES__MSGBUBBLES__REFRESH_MESSAGES"] = '[{"within_hours": 500, "every_hours": 0.0001}]'
    outcome = job.run()
    assert outcome.summary["streams"]["messages"]["refresh_pages"] > 0
    found = differences(job.database, job.server.truth())
    # After events with ids only, `updated_at` is outdated.
    stale = found.pop("messages", {"missing": 0, "surplus": 0})
    assert found == {}
    assert (stale["missing"], stale["surplus"]) == (0, 0)
    read = {row["id"] for row in older}
    assert {row[0] for row in rows(job, "SELECT id FROM msgbubbles.messages WHERE status = 'read'")} >= read
    by_id = [row for row in job.server.requests[asked:] if row.path.count("/") > 2 or "conversation_id" in row.query]
    assert {row.path.rpartition("/")[2] for row in by_id} == {unknown, gone, "conv_123", "messages"}
    intervals = [row.query for row in by_id if row.path.endswith("/messages")]
    assert {query["conversation_id"] for query in intervals} == {quiet, unknown, gone}
    # Only that interval: a whole chat would be read from its newest message.
    assert all("before" in query for query in intervals)
    assert outcome.summary["repaired"]["intervals from events"] == 3
    ((extra,),) = rows(job, f"SELECT extra FROM msgbubbles.messages WHERE id = '{older[0]['id']}'")
    assert json.loads(extra)["reactions"] == [{"handle": "+14155550123", "reaction": "love"}]
    typed = rows(job, "SELECT chat_id, handle, is_typing FROM msgbubbles.webhook_events WHERE is_typing IS NOT NULL")
    assert {row[0] for row in typed} == {quiet, "conv_123", None}
    chats = dict(rows(job, "SELECT id, deleted_at IS NOT NULL FROM msgbubbles.chats WHERE from_event_at IS NULL"))
    assert (chats[unknown], chats[gone], chats.keys() & {"conv_123", ".."}) == (False, True, set())
    assert rows(job, "SELECT 1 FROM msgbubbles.chats WHERE from_event_at IS NOT NULL") == []

    # The same events cause no second request, and while events arrive, the refresh is slower.
    asked = len(job.server.requests)
    write_heartbeat(job, alive=True)
    assert job.run().summary["streams"]["messages"]["refresh_pages"] == 0
    assert not [row for row in job.server.requests[asked:] if "conversation_id" in row.query or "/chats/" in row.path]
    states = {one.name: one.state for one in health.check(build_context(Workspace.from_path(job.database)))}
    assert states == {"webhook receiver": "ok", "webhook events": "ok", "webhook spool": "ok"}
    write_heartbeat(job, alive=False)
    states = {one["name"]: one["state"] for one in job.ask("check", status=3)}
    assert states["webhook receiver"] == "failed"


def write_heartbeat(job: Job, *, alive: bool) -> None:
    """Write the heartbeat of a receiver on another machine that has run for two hours, and runs or has stopped."""
    [path] = (job.folder / ".msgbubbles" / "company" / "webhooks" / "receivers").glob("*/heartbeat.json")
    beat = json.loads(path.read_text())
    now = datetime.now(UTC)
    beat |= {"host": "elsewhere", "is_stopped": False}
    beat["uninterrupted_since"] = (now - timedelta(hours=2)).isoformat()
    beat["beat_at"] = (now + timedelta(minutes=5) if alive else now - timedelta(minutes=5)).isoformat()
    path.write_text(json.dumps(beat))


def test_serve_needs_a_secret_and_a_free_port(new_job: NewJob) -> None:
    job = new_job(chats=0)
    empty = job.folder / "empty.toml"
    done = start(job, "--secrets-file", str(empty))
    assert (done.returncode, "has no signing secret" in done.stderr) == (2, True)
    empty.write_text('[webhooks]\nsecrets = ["whsec_b2Y="]\n')
    done = start(job, "--secrets-file", str(empty), "--host", "192.0.2.1")
    assert (done.returncode, "cannot listen on" in done.stderr) == (2, True)
    job.environment = {"WEBHOOKS__TOLERANCE_SECONDS": "soon"}
    done = start(job, "--secrets-file", str(empty))
    assert (done.returncode, "[webhooks] tolerance_seconds" in done.stderr) == (2, True)


def test_unknown_event_type_needs_a_confirmation(new_job: NewJob) -> None:
    job = new_job(chats=0)
    arguments = ("register", "http://127.0.0.1:9/", "--show", "--event", "message.recieved")
    done = run(job, *arguments)
    assert (done.returncode, done.stderr) == (
        2,
        'unknown event type "message.recieved". Did you mean message.received? Pass --yes to register it anyway.\n',
    )
    assert job.server.requests == []
    done = run(job, *arguments, "--yes")
    assert (done.returncode, done.stderr.split(" (")[0]) == (1, "the API answered 400 invalid_request")


def test_quiet_load_prints_nothing(new_job: NewJob) -> None:
    done = run(new_job(chats=0), "load", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_register_reports_retries(new_job: NewJob) -> None:
    job = new_job(chats=0)
    job.environment = {
        "SOURCES__MSGBUBBLES__BASE_URL": "https://api.invalid",
        "SOURCES__MSGBUBBLES__MAX_ATTEMPTS": "2",
    }
    done = run(job, "register", "http://127.0.0.1:9/", "--show")
    assert done.returncode == 1
    reason, _, wait = done.stderr.splitlines()[0].rpartition("; ")
    assert reason.startswith("the API could not be reached: ")
    assert wait == "next attempt in 1 s"


def test_endpoints_are_managed_while_the_server_of_the_warehouse_is_down(new_job: NewJob) -> None:
    job = new_job(chats=0)
    job.environment = {"DESTINATION__POSTGRES__CREDENTIALS": "postgresql://nobody@localhost/none?host=/nowhere"}
    assert command(job, "list", "--destination", "postgres") == []


def run(job: Job, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(WEBHOOKS), *arguments, *DATABASE]
    return run_process(
        command, cwd=job.folder, env=job.whole_environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=120
    )


def start(job: Job, *options: str) -> subprocess.CompletedProcess[str]:
    return run(job, "serve", "--port", "0", *options)


@pytest.mark.parametrize("missing", ["load/normalized", "schemas/msgbubbles_webhooks.schema.json"])
def test_load_needs_no_files_of_a_killed_load(new_job: NewJob, missing: str) -> None:
    """Dlt creates its folders and files one by one: a kill leaves only some of them."""
    job = new_job(chats=0)
    spool = fill_spool(job)
    command(job, "load", status=3)
    (spool / "3-1.jsonl").write_text(spool_line(3000))
    remove(job.folder / ".msgbubbles" / "company" / "dlt" / "msgbubbles_webhooks" / missing)
    command(job, "load")
    assert rows(job, "SELECT count(*), count(DISTINCT event_id) FROM msgbubbles.webhook_events") == [(3001, 3001)]


def test_killed_load_stores_every_event_once(new_job: NewJob) -> None:
    job = new_job(chats=0)
    spool = fill_spool(job)
    arguments = [sys.executable, str(WEBHOOKS), "load", *DATABASE]
    chance = random.Random(11)
    for _ in range(2):
        process = subprocess.Popen(
            arguments, cwd=job.folder, env=job.whole_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 60
        while not (job.folder / ".msgbubbles" / "company" / "dlt" / "msgbubbles_webhooks").exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(chance.random())
        process.kill()
        process.communicate()
    (spool / "3-1.jsonl").write_text(spool_line(3000))
    arguments[1:1] = ["-c", KILLED_BEFORE_PUBLISHING]
    done = run_process(arguments, cwd=job.folder, env=job.whole_environment(), capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert list(spool.glob("*.jsonl")) == []
    assert command(job, "load")["deliveries"] == 0
    event_ids = [row[0] for row in rows(job, "SELECT event_id FROM msgbubbles.webhook_events")]
    assert len(event_ids) == len(set(event_ids)) == 3001
    (dead_letters,) = (spool.parent / "malformed").glob("*.jsonl")
    assert dead_letters.read_text() == "this is no event\n"
    (finding,) = health.check(build_context(Workspace.from_path(job.database)))
    assert (finding.name, finding.state, finding.what.split()[0]) == ("webhook lines", "failed", "1")


@pytest.mark.parametrize("destination", ["duckdb", "postgres"])
def test_load_publishes_by_the_rules_of_a_sync(
    new_job: NewJob, postgres_address: str, monkeypatch: pytest.MonkeyPatch, destination: str
) -> None:
    """Nothing while rows cannot be removed, no mart that fails its data tests, and with the tables of the job."""
    monkeypatch.setenv("DESTINATION__POSTGRES__CREDENTIALS", postgres_address)
    job = new_job(chats=0)
    job.environment = {"TRANSFORMS__DATA_TESTS": "hold"}
    workspace = Workspace.from_path(job.database, destination)
    workspace.make_folders()
    tables = build_context(workspace).destination
    schema = tables.name_schema(tables.marts_schema)

    def build(number: int) -> None:
        with tables.open_writer() as connection:
            if "." in tables.write_schema:
                connection.execute("USE warehouse")
            connection.execute(f"CREATE SCHEMA IF NOT EXISTS {schema}")
            for mart in ("good", "bad"):
                connection.execute(f"DROP TABLE IF EXISTS {schema}.{mart}")
                connection.execute(f"CREATE TABLE {schema}.{mart} AS SELECT {number} AS build")
        workspace.set_pending("marts")

    def load(number: int | None = None, *, status: int) -> list[tuple[Any, ...]]:
        """Load an event, and return which build of each mart readers see."""
        spool(workspace, [] if number is None else [typing(number)])
        assert command(job, "load", "--destination", destination, status=status)["deliveries"] == (number is not None)
        with tables.open_reader() as connection:
            connection.execute("FROM msgbubbles.erasures")
            return connection.execute("FROM marts.good, marts.bad SELECT good.build, bad.build").fetchall()

    spool(workspace, [typing(0)])
    command(job, "load", "--destination", destination)  # creates the tables of the job
    build(1)
    assert load(1, status=0) == [(1, 1)]
    build(2)
    store_build_result(workspace, BuildResult(failed_tests=["unique_bad_build"], marts=["bad"]))
    workspace.set_pending("removal")
    assert load(2, status=3) == [(1, 1)]
    workspace.set_done("removal")
    assert load(status=3) == [(2, 1)]


def fill_spool(job: Job) -> Path:
    """Write 3,000 events to a spool, a third of them twice, and a line that is not an event."""
    spool = job.folder / ".msgbubbles" / "company" / "webhooks" / "spool"
    Workspace.from_path(job.database).make_folders()
    spool.mkdir(parents=True)
    lines = [spool_line(number) for number in range(3000)]
    (spool / "1-1.jsonl").write_text("".join(lines[:2000]) + "this is no event\n" + lines[0][:40])
    (spool / "2-1.jsonl").write_text("".join(lines[1000:]))
    return spool


def spool_line(number: int) -> str:
    body = json.dumps({"type": "conversation.typing", "conversation_id": "c", "typing": True, "n": number})
    line = {"event_id": f"evt_{number}", "received_at": "2026-11-23T10:00:00Z", "body": body}
    return json.dumps(line) + "\n"
