"""`chats.py watch` as a process: events are published within seconds and without a request, and it ends in order."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb

from helpers.full_disk import full_disk
from helpers.hooks import receiving, typing
from helpers.job import Job
from helpers.warehouse_rows import differences
from msgbubbles_sync.sandbox import NewMessage
from msgbubbles_sync.workspace import Workspace

NewJob = Callable[..., Job]
SECONDS = 600  # a deadline, also on a machine that does other things


def count(job: Job, table: str) -> int:
    try:
        with duckdb.connect(str(job.database), read_only=True) as connection:
            row = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
            return row[0] if row else 0
    except duckdb.Error:
        return 0


def wait_for(process: subprocess.Popen[str], is_there: Callable[[], Any]) -> None:
    until = time.monotonic() + SECONDS
    while not is_there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.2)  # opening the database takes CPU time


@contextmanager
def running(job: Job, *options: str) -> Iterator[subprocess.Popen[str]]:
    process = job.start_command("watch", *options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def stop(process: subprocess.Popen[str]) -> tuple[list[dict[str, Any]], str]:
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    return [json.loads(line) for line in output.splitlines()], errors


def test_watch_publishes_events_without_a_request_and_stops(new_job: NewJob, tmp_path: Path) -> None:
    job = new_job(chats=5, messages=20)
    account, texts = job.server.account, [f"hello {number}" for number in range(5)]
    with running(job, "--every", "3600") as process:
        wait_for(process, lambda: count(job, "marts.thread_activity") == 5)
        requests = len(job.server.requests)
        chat_id, at = account.all("SELECT id FROM chats")[0]["id"], datetime.now(UTC)
        # In chats that are not stored: events show one of them, and neither its older message.
        then = at - timedelta(days=80)
        new = [account.add_chat("+14155550100", f"+1415555017{number}", then) for number in range(2)]
        messages = zip([chat_id, chat_id, chat_id, *new], texts, strict=True)
        account.add_messages([NewMessage(chat, "inbound", text, at, "received") for chat, text in messages])
        account.add_messages([NewMessage(chat, "inbound", "earlier", then, "received") for chat in new])
        # The second is shown twice, and before the others.
        truth = job.server.truth()
        received = {row["text"]: row for row in truth.messages if row["text"] in texts}
        (chat,) = (row for row in truth.chats if row["id"] == new[0])
        with receiving(Workspace.from_path(job.database), secrets_file=tmp_path / "secrets.toml") as served:
            for text in (texts[1], texts[0], texts[2], texts[1], texts[4]):
                assert served.post(show_message(received[text])).status_code == 204
            assert served.post(show_message(received[texts[3]], conversation=chat)).status_code == 204
            assert served.post(typing(1)).status_code == 204
        counted = "(SELECT unnest(range(messages_total::BIGINT)) FROM marts.thread_activity)"
        wait_for(process, lambda: count(job, counted) == 25)
        assert count(job, "msgbubbles.messages WHERE from_event_at IS NOT NULL AND text LIKE 'hello %'") == 5
        assert count(job, "msgbubbles.chats WHERE from_event_at IS NOT NULL AND last_message_at > created_at") == 1
        assert count(job, "marts.contact WHERE handle = '+14155550170' AND threads_waiting_on_us IS NOT NULL") == 1
        assert count(job, "marts.thread_activity WHERE is_complete") == 4
        assert len(job.server.requests) == requests
        assert "process" in job.ask("status")["watch"]
        assert job.run(transform=True).status == 0, "the lock is free between two cycles"
        assert len(stop(process)[0]) == 2
    assert job.ask("status")["watch"] is None
    assert differences(job.database, job.server.truth()) == {}
    assert count(job, "msgbubbles.chats WHERE from_event_at IS NOT NULL") == 0
    # No mart shows that events came first.
    without = Job(tmp_path / "without", job.server)
    without.folder.mkdir()
    without.run(transform=True)
    for mart in ("thread_activity", "thread_activity_daily", "number_activity_daily", "contact"):
        assert read_mart(job, mart) == read_mart(without, mart)


def show_message(row: dict[str, Any], **more: Any) -> bytes:
    """Return the event that shows a message."""
    event = {"id": f"evt_{row['id']}", "type": "message.received", "created_at": row["created_at"], "message": row}
    return json.dumps(event | more).encode()


def read_mart(job: Job, mart: str) -> list[Any]:
    with duckdb.connect(str(job.database), read_only=True) as connection:
        columns = [row[0] for row in connection.execute(f"DESCRIBE marts.{mart}").fetchall()]
        names = ", ".join(column for column in columns if not column.endswith(("fetched_at", "typing_at", "unsent")))
        return connection.execute(f"SELECT {names} FROM marts.{mart} ORDER BY ALL").fetchall()


def test_second_watch_is_refused_and_a_failing_one_goes_on_without_dlt(built_job: Job) -> None:
    job = built_job
    job.run()  # by dlt, since the copied account has another address
    job.environment["PYTHONPROFILEIMPORTTIME"] = "1"  # writes every import to the standard error
    with running(job, "--every", "1") as process:
        assert process.stderr
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 1_000_000)
        del job.environment["PYTHONPROFILEIMPORTTIME"]  # the other commands are forks
        wait_for(process, lambda: '"complete"' in read_output(process))
        second = job.finish(job.start_command("watch"))
        assert (second.status, "another watch" in second.errors) == (75, True)
        job.server.knobs.active = False
        wait_for(process, lambda: read_last_status(job) == 1)
        new = NewMessage(job.server.truth().chats[0]["id"], "inbound", "long" * 25_000, datetime.now(UTC), "received")
        job.server.account.add_message(new)
        with full_disk(process.pid, room_bytes=50_000):  # the load fails, but not what comes before it
            job.server.knobs.active = True
            wait_for(process, lambda: "no space left" in read_output(process))
        wait_for(process, lambda: read_last_status(job) == 0)
        assert job.ask("status")["runs"][-1]["exit_status"] == 0
        assert differences(job.database, job.server.truth()) == {}
        _, errors = stop(process)
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in errors.splitlines()}
    assert imported & {"duckdb", "dlt"} == {"duckdb"}


def read_output(process: subprocess.Popen[str]) -> str:
    """Return what a process has written since the last call."""
    assert process.stdout
    os.set_blocking(process.stdout.fileno(), False)
    with suppress(BlockingIOError):
        return os.read(process.stdout.fileno(), 1_000_000).decode()
    return ""


def read_last_status(job: Job) -> int | None:
    """Return the exit status of the last recorded run: `status` says the same, and is a process of its own."""
    path = job.folder / ".msgbubbles" / "company" / "runs.jsonl"
    if not path.exists():
        return None
    whole_lines, _, _ = path.read_text().rpartition("\n")
    status: int = json.loads(whole_lines.rpartition("\n")[2])["exit_status"]
    return status


def test_watch_starts_again_with_a_changed_configuration(built_job: Job) -> None:
    job = built_job
    (job.folder / "dlt_config").mkdir()
    config = job.folder / "dlt_config" / "config.toml"
    config.write_text("[sync]\npublish_minutes = 60\n")
    job.environment = {"DLT_PROJECT_DIR": str(job.folder)}
    job.start_anew = True
    with running(job, "--every", "1") as process:
        wait_for(process, lambda: '"complete"' in read_output(process))
        config.write_text("[sync]\npublish_minute = 60\n")
        wait_for(process, lambda: read_last_status(job) == 3)
        config.write_text("[sync]\npublish_minutes = 61\n")
        wait_for(process, lambda: read_last_status(job) == 0)
        _, errors = stop(process)
    assert "Did you mean publish_minutes?" in errors
    assert "starting again" in errors
