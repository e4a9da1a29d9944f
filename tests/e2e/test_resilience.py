"""Kills, stops, a second job, readers: nothing is lost, blocked or leaked."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime

import duckdb
import pytest

from helpers.job import Job
from helpers.sizes import nightly
from helpers.warehouse_rows import differences
from msgbubbles_sync.lock import STALLED_AFTER
from msgbubbles_sync.sandbox import Account, Knobs, NewMessage

NewJob = Callable[..., Job]


def wait_for_requests(job: Job, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(job.server.requests) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_first_run_killed_three_times_is_completed(new_job: NewJob) -> None:
    batch_pages = 20
    job = new_job(Knobs(latency_seconds=0.02), chats=400, messages=12000)
    job.environment["SYNC__BATCH_PAGES"] = str(batch_pages)
    chance = random.Random(4)
    kills = 3
    for _ in range(kills):
        process = job.start()
        wait_for_requests(job, len(job.server.requests) + chance.randint(1, 40))
        time.sleep(chance.random() * 0.6)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    job.run()
    assert differences(job.database, job.server.truth()) == {}
    # Committed batches are not read again. A kill costs at most the batch in flight of each stream, and every batch
    # reads the newest pages and the numbers again.
    asked = len(job.server.requests)
    pages = 400 // 99 + 12000 // 99 + 2
    batches = pages // batch_pages + kills + 2
    assert asked <= pages + kills * 2 * batch_pages + batches * 3


# By day, another test stops a run with SIGTERM.
@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=nightly)])
def test_signal_stops_after_the_page_in_flight_and_loads_it(new_job: NewJob, stop: signal.Signals) -> None:
    job = new_job(Knobs(latency_seconds=0.05), chats=200, messages=4000)
    process = job.start()
    wait_for_requests(job, 12)
    process.send_signal(stop)
    before = len(job.server.requests)
    outcome = job.finish(process)
    assert outcome.status == 130
    assert len(job.server.requests) <= before + 5, "of the forty that it would take"
    assert outcome.summary["outcome"] == "stopped"
    read = outcome.summary["streams"]["messages"]["landed"]  # codespell:ignore landed
    assert read >= 900
    asked = len(job.server.requests)

    job.run()
    assert differences(job.database, job.server.truth()) == {}
    assert len(job.server.requests) - asked <= (4000 - read) // 99 + 200 // 99 + 8


def test_second_job_is_refused_with_the_id_of_the_first(new_job: NewJob) -> None:
    job = new_job(Knobs(latency_seconds=0.2), chats=200, messages=2000)
    first = job.start()
    wait_for_requests(job, 5)
    second = job.run(status=75)
    assert str(first.pid) in second.errors
    status = job.ask("status")
    assert str(first.pid) in status["job"]
    assert re.search(r"\d requests?$", status["job_progress"])

    # The same job, stopped, and half an hour later.
    first.send_signal(signal.SIGSTOP)
    holder = job.folder / ".msgbubbles" / "company" / "job.json"
    long_ago = time.time() - STALLED_AFTER.total_seconds() - 60
    os.utime(holder, (long_ago, long_ago))
    stuck = job.run(status=1)
    assert f"kill -9 {first.pid}" in stuck.errors
    first.send_signal(signal.SIGCONT)
    assert job.finish(first).status == 0
    assert differences(job.database, job.server.truth()) == {}


def test_reader_with_an_open_file_blocks_no_job(loaded_job: Job) -> None:
    job = loaded_job
    chat_id = job.server.truth().chats[0]["id"]
    count = "SELECT count(*) FROM msgbubbles.messages"
    with duckdb.connect(str(job.database), read_only=True) as reader:
        (at_first,) = reader.execute(count).fetchall()
        for _ in range(2):
            job.server.account.add_message(NewMessage(chat_id, "inbound", "again", datetime.now(UTC), "received"))
            process = job.start()
            while process.poll() is None:
                assert reader.execute(count).fetchall() == [at_first]
                time.sleep(0.02)
            assert job.finish(process).summary["published"] is True
    assert differences(job.database, job.server.truth()) == {}


def test_lost_working_files_cost_no_rows_and_few_requests(loaded_job: Job) -> None:
    job = loaded_job
    for lost in (".msgbubbles", ".msgbubbles/company/dlt", ".msgbubbles/company/company.duckdb"):
        path = job.folder / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        chat_id = job.server.truth().chats[0]["id"]
        job.server.account.add_message(NewMessage(chat_id, "inbound", "again", datetime.now(UTC), "received"))
        outcome = job.run()
        assert differences(job.database, job.server.truth()) == {}, lost
        assert outcome.requests <= 5, lost


def test_kill_while_publishing_leaves_the_old_file_intact(loaded_job: Job) -> None:
    job = loaded_job
    published = job.database.stat()
    leftover = job.folder / ".company.duckdb.99999.publishing"
    leftover.write_bytes(b"half a file")
    (job.folder / ".msgbubbles" / "company" / "publish.pending").touch()
    assert differences(job.database, job.server.truth()) == {}
    outcome = job.run()
    assert outcome.summary["published"] is True, "what a killed run owes is done by the next, though nothing is new"
    assert job.database.stat().st_ino != published.st_ino
    assert not leftover.exists()


def test_failing_api_fails_the_run_and_loads_what_was_read(new_job: NewJob) -> None:
    def break_down(account: Account, number: int) -> None:  # noqa: ARG001
        if number == 10:
            job.server.knobs.server_errors = 1.0

    job = new_job(Knobs(on_request=break_down), chats=200, messages=3000)
    job.environment["SOURCES__MSGBUBBLES__MAX_ATTEMPTS"] = "3"
    outcome = job.run(status=1)
    assert outcome.summary["outcome"] == "failed"
    assert outcome.summary["streams"]["messages"]["landed"] >= 700  # codespell:ignore landed
    job.server.knobs.server_errors = 0.0
    job.server.knobs.on_request = None
    job.run()
    assert differences(job.database, job.server.truth()) == {}


@pytest.mark.parametrize(
    ("knobs", "says", "requests"),
    # That the key is refused, or the whole account is closed, shows when the numbers, the feed and the chats are.
    [(Knobs(keys={"sk_test_other"}), "unauthorized", 2), (Knobs(active=False), "forbidden", 3)],
)
def test_refused_key_fails_at_once_with_a_message(new_job: NewJob, knobs: Knobs, says: str, requests: int) -> None:
    job = new_job(knobs)
    outcome = job.run(status=1)
    assert says in outcome.summary["error"]
    assert len(job.server.requests) == requests
    assert not job.database.exists(), "it would hide the database of the demo"
    assert outcome.summary["published"] is False
    assert re.search(rf"20\d\d-\d\d-\d\d \d\d:\d\d .*{says}", job.ask("status", "--text"))


def test_max_requests_ends_a_run_and_the_next_resumes(new_job: NewJob) -> None:
    job = new_job(chats=200, messages=1200)
    for _ in range(3):
        outcome = job.run("--max-requests", "10")
        assert outcome.requests <= 10
    assert differences(job.database, job.server.truth()) == {}


def test_run_waits_for_the_rate_limit(new_job: NewJob) -> None:
    job = new_job(Knobs(rate_limit_per_minute=5, retry_after="seconds"), chats=60, messages=300)
    process = job.start()
    wait_for_requests(job, 6)
    job.server.knobs.rate_limit_per_minute = None
    process.send_signal(signal.SIGTERM)
    outcome = job.finish(process)
    assert outcome.status == 130
    assert [seen.status for seen in job.server.requests].count(429) == 1, "it waits, and does not ask again at once"


def test_missing_key_message_names_both_fixes(new_job: NewJob) -> None:
    job = new_job(chats=0)
    job.environment["SOURCES__MSGBUBBLES__API_KEY"] = ""
    outcome = job.run(status=2)
    assert "--sandbox" in outcome.errors
    assert "SOURCES__MSGBUBBLES__API_KEY" in outcome.errors


@pytest.mark.parametrize(("key", "value"), [("BASE_URL", "http://api.msgbubbles.com/v1"), ("START_DATE", "last week")])
def test_invalid_configuration_is_named(new_job: NewJob, key: str, value: str) -> None:
    job = new_job(chats=0)
    job.environment |= {"SOURCES__MSGBUBBLES__REQUESTS_PER_MINUTE": "120", f"SOURCES__MSGBUBBLES__{key}": value}
    outcome = job.run(status=2)
    assert key.lower() in outcome.errors
    assert job.server.requests == []


def test_run_whose_requests_cannot_be_recorded_says_so_and_goes_on(new_job: NewJob) -> None:
    job = new_job(chats=3, messages=20)
    job.environment |= {
        "SOURCES__MSGBUBBLES__REQUESTS_PER_MINUTE": "120",
        "SOURCES__MSGBUBBLES__BUDGET_DIR": "/dev/null/folder",
    }
    assert "Set budget_dir to a writable folder" in job.run().errors
    assert differences(job.database, job.server.truth()) == {}


@pytest.mark.parametrize("name", ["msgbubbles.duckdb", "marts.duckdb", "staging.duckdb"])
def test_database_named_like_a_schema_is_refused(new_job: NewJob, name: str) -> None:
    outcome = new_job(chats=0).run("--database", name, status=2)
    assert "schema" in outcome.errors


def test_sandbox_account_is_not_mixed_with_a_real_one(loaded_job: Job) -> None:
    job = loaded_job
    outcome = job.run("--sandbox", status=2)
    assert "choose another --database" in outcome.errors
    assert differences(job.database, job.server.truth()) == {}


def test_key_is_in_no_file_and_no_output(new_job: NewJob) -> None:
    job = new_job()
    process = job.start()
    output, errors = process.communicate()
    key = job.server.key
    assert key not in output + errors
    for folder, _, files in os.walk(job.folder):  # codespell:ignore walk
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:  # noqa: PTH118, PTH123
                assert key.encode() not in file.read(), name
