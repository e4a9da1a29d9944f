"""Webhooks from end to end: the sandbox sends, `webhooks.py serve` receives and is killed, a sync loads."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest

import postgres
from hooks import WEBHOOKS, Process
from job import Job
from sandbox import Knobs, NewMessage
from warehouse_rows import differences

NewJob = Callable[..., Job]
# The whole of it, once in a while: MSGBUBBLES_FLOOD=20000 MSGBUBBLES_KILLS=10.
EVENTS = int(os.environ.get("MSGBUBBLES_FLOOD", "600"))
KILLS = int(os.environ.get("MSGBUBBLES_KILLS", "2"))
DATABASE = ("--database", "company.duckdb")


def command(job: Job, *arguments: str, status: int = 0) -> Any:
    """What a command of webhooks.py answers, as JSON."""
    done = subprocess.run(
        [sys.executable, str(WEBHOOKS), *arguments, *DATABASE, "--json"],
        cwd=job.folder,
        env=job.whole_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return json.loads(done.stdout) if done.stdout else None


@contextmanager
def subscribed(job: Job) -> Iterator[Process]:
    """A receiver that the account sends its events to."""
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


def test_every_event_that_was_answered_is_in_the_warehouse_once_whatever_is_killed(new_job: NewJob) -> None:
    job = new_job(Knobs(webhook_repeats=0.02), chats=0)
    account, deliverer = job.server.account, job.server.deliverer
    chance, at = random.Random(5), datetime.now(UTC)
    with subscribed(job) as receiver:
        with account.bulk():
            for number in range(EVENTS):
                account.type(f"chat-{number % 97}", "+14155550123", number % 2 == 0, at + timedelta(milliseconds=number))
        sent = {json.loads(row["body"])["id"] for row in account.all("SELECT body FROM deliveries")}
        began = time.monotonic()
        for kill in range(KILLS):
            while deliverer.delivered < EVENTS * (kill + 1) / (KILLS + 1):
                time.sleep(0.01)
                assert time.monotonic() - began < 600
            time.sleep(chance.random() / 20)
            receiver.kill()
            receiver.start()
        assert deliverer.drained(timeout_seconds=300)
        seconds = time.monotonic() - began
    print(f"{EVENTS} events, {deliverer.failures} failures, {seconds:.1f} s")  # noqa: T201
    loaded = command(job, "load")
    assert loaded == {"events": EVENTS, "messages_changed": 0, "malformed": 0}
    landed = [row[0] for row in rows(job, "SELECT event_id FROM msgbubbles.webhook_events")]
    assert len(landed) == len(set(landed)) == EVENTS
    assert set(landed) == sent
    assert command(job, "load")["events"] == 0
