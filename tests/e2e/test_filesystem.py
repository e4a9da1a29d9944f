"""Run the job with Parquet files in a folder. Marts by Spark are tested in test_spark.py."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import duckdb
import pytest

from helpers.context import build_destination
from helpers.hooks import spool, typing
from helpers.job import CHATS, Job
from helpers.lake import CONTACT, change, list_contacts
from helpers.sizes import nightly, pick_size
from helpers.warehouse_rows import differences_of, select_rows
from msgbubbles_sync.destinations import parquet_files, parquet_tables
from msgbubbles_sync.sandbox import NewMessage
from msgbubbles_sync.workspace import Workspace

NewJob = Callable[..., Job]
INTO = ("--destination", "filesystem")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Configure a folder for this process and its jobs, and return it."""
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(tmp_path / "lake"))
    return tmp_path / "lake"


def query(files: Path, sql: str) -> list[tuple[Any, ...]]:
    """Query the views, as an analyst with only DuckDB does."""
    with duckdb.connect(str(files / "warehouse.duckdb"), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def differing(files: Path, job: Job) -> dict[str, dict[str, int]]:
    with duckdb.connect(str(files / "warehouse.duckdb"), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return differences_of(select_rows(connection), job.server.truth())


def test_files_hold_the_rows_of_the_account(new_job: NewJob, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = new_job(chats=130, messages=1500)
    job.environment = {"SOURCES__MSGBUBBLES__REFRESH_CHATS": '[{"every_hours": 0.0001}]'}
    workspace = Workspace.from_path(job.database, "filesystem")
    first = job.run(*INTO).summary
    assert differing(files, job) == {}
    assert first["database"] == "filesystem"
    assert not job.database.exists()

    deleted, written = change(job, {"b": [1], "a": {}})
    list_contacts(job)
    now = datetime.now(UTC)
    for at in (now, now + timedelta(hours=1)):
        spool(workspace, [typing(1, conversation_id=written, created_at=at.isoformat())])
        last = job.run(*INTO).summary
    assert differing(files, job) == {}
    assert query(files, "SELECT id FROM msgbubbles.chats WHERE deleted_at IS NOT NULL") == [(deleted,)]
    [(occurred_at,)] = query(files, "SELECT occurred_at FROM msgbubbles.webhook_events")
    assert occurred_at == now, "the first delivery stays"
    assert query(files, "SELECT * FROM msgbubbles.rejected_rows") == []
    assert query(files, "SELECT contact FROM msgbubbles.contact_aliases") == 2 * [(CONTACT,)]
    last = job.run(*INTO).summary
    assert [changes["changed"] for changes in last["tables"].values()] == [0] * len(last["tables"])
    runs = query(files, "SELECT run_id, outcome FROM msgbubbles.sync_runs ORDER BY started_at")
    assert [runs[0], runs[-1], len(runs)] == [(first["run_id"], "complete"), (last["run_id"], "complete"), 4]

    asked = len(job.server.requests)
    assert job.ask("plan", *INTO)["requests"] >= 3
    assert job.ask("status", *INTO)["missing_intervals"] == {"messages": 0, "chats": 0}
    assert len(job.server.requests) == asked
    assert job.ask("verify", "--full", *INTO)["equal"]

    # In another folder, everything is read again.
    monkeypatch.setenv("DESTINATION__FILESYSTEM__BUCKET_URL", str(files.with_name("elsewhere")))
    job.run(*INTO)
    assert differing(files.with_name("elsewhere"), job) == {}


def test_killed_jobs_lose_nothing_and_readers_never_wait(new_job: NewJob, files: Path) -> None:
    job = new_job(chats=130, messages=3000)
    reads, wrong, done = [0], [], threading.Event()

    def poll() -> None:
        while not done.is_set():
            if (files / "warehouse.duckdb").exists():
                [(count, ids)] = query(files, "SELECT count(*), count(DISTINCT id) FROM msgbubbles.messages")
                wrong.extend([(count, ids)] * (count != ids))
                reads[0] += 1
            time.sleep(0.1)

    job.environment = {"SYNC__BATCH_PAGES": "20"}
    reader = threading.Thread(target=poll)
    reader.start()
    try:
        for seconds in (1.5, 2.0, 2.5):
            process = job.start(*INTO)
            time.sleep(seconds)
            process.kill()
            process.communicate()
        for _ in range(2):
            assert job.run(*INTO).summary["outcome"] == "complete"
        assert reader.is_alive(), "no read has failed"
    finally:
        done.set()
        reader.join()
    assert wrong == []
    assert reads[0] > 5
    assert differing(files, job) == {}


@nightly  # destinations/test_parquet_files.py renames Delta tables by day
def test_delta_folder_is_read_again_into_parquet(new_job: NewJob, files: Path) -> None:
    job = new_job(chats=30, messages=200)
    workspace = Workspace.from_path(job.database, "filesystem")
    now = datetime.now(UTC)
    chat = job.server.truth().chats[0]["id"]
    spool(workspace, [typing(1, conversation_id=chat, created_at=now.isoformat())])
    job.run(*INTO)
    for table in ("chats", "messages", "attachments", "webhook_events"):
        (files / "msgbubbles" / table / "_delta_log").mkdir(exist_ok=True)
    before = query(files, "SELECT id FROM msgbubbles.messages ORDER BY id")

    job.server.account.add_message(NewMessage(chat, "outbound", "hello", now, "sent"))
    spool(workspace, [typing(2, conversation_id=chat, created_at=now.isoformat())])
    job.environment = {"SYNC__TABLE_FORMAT": "delta"}
    _, errors = (process := job.start(*INTO)).communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "SYNC__TABLE_FORMAT is no longer supported. Remove it: a folder of Delta tables is read again" in errors
    assert query(files, "SELECT id FROM msgbubbles.messages ORDER BY id") == before

    job.environment = {}
    _, errors = (process := job.start(*INTO)).communicate(timeout=120)
    assert process.returncode == 0, errors
    [moved] = files.glob("msgbubbles.delta-*")
    assert f"moved to {moved}" in errors
    assert differing(files, job) == {}
    assert query(files, "SELECT count(*) FROM msgbubbles.webhook_events") == [(1,)]
    assert not list((files / "msgbubbles").glob("*/_delta_log"))
    assert list((moved / "webhook_events").glob("*.parquet"))
    assert not job.run(*INTO).summary["tables"]["messages"]["changed"]


def test_file_that_was_cut_off_is_set_aside_and_its_rows_are_read_again(new_job: NewJob, files: Path) -> None:
    job = new_job(chats=20, messages=100)
    job.run(*INTO)
    # By day, destinations/test_parquet_files.py damages a state.
    for table in ("messages", "sync_runs", "_dlt_pipeline_state")[: pick_size(2, nightly=3)]:
        folder = files / "msgbubbles" / table
        path = max((path for path in folder.iterdir() if path.suffix in (".parquet", ".jsonl")), key=os.path.getmtime)
        path.write_bytes(path.read_bytes()[: 1000 * (table == "messages")])
        if table == "messages":
            assert f"{path} is damaged. Run a sync" in job.start_command("status", *INTO).communicate(timeout=60)[1]
        assert "was damaged: everything is read again" in job.run(*INTO).errors, table
        assert differing(files, job) == {}
    assert "damaged" not in job.run(*INTO).errors


def test_files_are_compacted_while_somebody_reads(
    new_job: NewJob, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job(chats=30, messages=200)
    chat = job.server.truth().chats[0]["id"]
    for number in range(3):
        at = datetime.now(UTC)
        job.server.account.add_message(NewMessage(chat, "outbound", f"hello {number}", at, "sent"))
        job.run(*INTO)
    folder = files / "msgbubbles" / "messages"
    before = set(folder.glob("*.parquet"))
    assert len(before) == 3
    monkeypatch.setattr(parquet_tables, "MAX_FILES", 2)
    destination = build_destination(Workspace.from_path(job.database, "filesystem"))
    with duckdb.connect(str(files / "warehouse.duckdb"), read_only=True) as reader:
        for seconds, stay in ((3600, True), (3600, True), (0, False)):
            monkeypatch.setattr(parquet_files, "REPLACED_FILES_SECONDS", seconds)
            destination.publish()
            [new] = set(folder.glob("*.parquet")) - before
            assert all(path.exists() == stay for path in before)
            assert differing(files, job) == {}
            counted = reader.execute("SELECT count(*) FROM msgbubbles.messages").fetchall()
            assert counted == [(len(job.server.truth().messages),)]
    with duckdb.connect() as connection:
        assert connection.execute(f"SELECT count(*) FROM '{new}'").fetchall() == counted
    job.server.account.add_message(NewMessage(chat, "outbound", "and on", datetime.now(UTC), "sent"))
    job.run(*INTO)
    assert differing(files, job) == {}


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({}, "it has no folder"),
        ({"DESTINATION__FILESYSTEM__BUCKET_URL": "s3://bucket/folder"}, "the absolute path of a folder"),
        ({"DESTINATION__FILESYSTEM__BUCKET_URL": "some/folder"}, "the absolute path of a folder"),
        ({"DESTINATION__FILESYSTEM__BUCKET_URL": "/tmp/o'clock"}, 'from a path with "\'"'),  # noqa: S108
        ({"DESTINATION__FILESYSTEM__BUCKET_URL": "/proc/none"}, "cannot be made"),
        (
            {"DESTINATION__FILESYSTEM__BUCKET_URL": "/tmp", "SYNC__TABLE_FORMAT": "delta"},  # noqa: S108 - nothing is written
            "SYNC__TABLE_FORMAT is no longer supported",
        ),
    ],
)
def test_unusable_folder_is_refused(new_job: NewJob, environment: dict[str, str], says: str) -> None:
    job = new_job(chats=0)
    job.environment = environment
    _, errors = (process := job.start(*INTO)).communicate(timeout=120)
    assert process.returncode == 2, errors
    assert says in errors
    assert job.server.requests == []


def test_missing_spark_is_reported_before_any_request(new_job: NewJob, files: Path) -> None:
    job = new_job(chats=0)
    job.environment = {"PATH": "/nowhere", "JAVA_HOME": "/nowhere"}
    _, errors = (process := job.start(*INTO, transform=True)).communicate(timeout=120)
    assert process.returncode == 2, errors
    assert "Spark builds the marts of --destination filesystem, and it needs" in errors
    if find_spec("pyspark") is None:
        assert f"{sys.executable} -m pip install '{CHATS.parents[1]}[spark]'" in errors
    assert "--no-transform" in errors
    assert job.server.requests == []
    assert not list(files.glob("msgbubbles/*"))
