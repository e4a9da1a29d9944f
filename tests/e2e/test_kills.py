"""SIGKILL at any moment of a run, with a reader attached: the published file is always whole, and nothing is lost.

`KILLS=100` takes some ten minutes, and `NIGHTLY=1` twelve kills; `pytest -s` prints the phases that were hit.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from helpers.job import Job
from helpers.sizes import pick_size
from helpers.warehouse_rows import differences
from msgbubbles_sync.sandbox import Account, NewMessage

KILLS = int(os.environ.get("KILLS", pick_size(3, nightly=12)))
PHASES = ("start", "extract", "normalize", "load", "transform", "publish")
# Those that take a hundredth of a run, and one more.
AIMED_AT = ("publish", "normalize", "extract", "load")
# How much longer a run takes in an interpreter of its own.
IMPORT_SECONDS = 3

# Opens the published file again and again until its standard input ends. Counts only grow, because nothing is deleted.
READER = """
import json, sys, threading, duckdb

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
opened, before = 0, (0, 0)
while not ended.wait(float(sys.argv[2])):
    with duckdb.connect(sys.argv[1], read_only=True) as database:
        chats, messages = now = database.execute(
            "SELECT (SELECT count(*) FROM msgbubbles.chats), (SELECT count(*) FROM msgbubbles.messages)"
        ).fetchone()
        marts = database.execute("SELECT count(*), sum(messages_total) FROM marts.thread_activity").fetchone()
        assert chats >= before[0] and messages >= before[1], (before, now)
        assert marts == now, (marts, now)
        database.execute("SELECT count(DISTINCT id), max(text), max(_fetched_at) FROM msgbubbles.messages").fetchone()
    opened, before = opened + 1, now
print(json.dumps(opened))
"""


@contextmanager
def run_reader(database: Path) -> Iterator[list[int]]:
    """Run a process that reads the file all the time. Yield a list that gets the number of its readings."""
    readings: list[int] = []
    # One that never pauses takes a core from the job.
    pause = "0.02" if KILLS >= 50 else "0.5"
    command = [sys.executable, "-c", READER, str(database), pause]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield readings
        finally:
            output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    readings.append(json.loads(output))


def change(account: Account, chance: random.Random) -> None:
    """Write a few messages, change the status of one, and rename a chat of the newest page."""
    now = datetime.now(UTC)
    chats = account.all("SELECT id FROM chats ORDER BY id")
    messages = [NewMessage(chance.choice(chats)["id"], "outbound", "news", now, "sent") for _ in range(5)]
    ids = account.add_messages(messages)
    account.set_status(ids[0], "read", now)
    account.rename(messages[1].chat_id, f"Title {chance.random()}", now)


class Victim:
    """A run of the job that is going to be killed, and its progress. If `with_dlt`, dlt loads what it reads."""

    def __init__(self, job: Job, *, with_dlt: bool) -> None:
        if with_dlt:
            job.need_dlt()
        self._dlt = job.folder / ".msgbubbles" / job.database.stem / "dlt" / "msgbubbles"
        self._server = job.server
        self._asked_before = len(job.server.requests)
        self._said: list[str] = []
        # The rest of an earlier run does not show the progress of this one, unless it continues with that.
        self._left_over = self._packages()
        self.process = job.start(transform=True)
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self._said.append(line.strip())

    @property
    def phase(self) -> str:
        if "publishing" in self._said:
            return "publish"
        if "building the marts" in self._said:
            return "transform"
        packages = self._packages()
        if not any("finishing the load" in line for line in self._said):
            packages -= self._left_over
        if any(kind == "normalized" for kind, _ in packages):
            return "load"
        if packages:
            return "normalize"
        return "extract" if len(self._server.requests) > self._asked_before else "start"

    def _packages(self) -> set[tuple[str, str]]:
        """Return what dlt has extracted or normalized, but not loaded: (kind, package)."""
        folders = ("normalize/extracted", "load/new", "load/normalized")
        return {(path.parent.name, path.name) for folder in folders for path in self._dlt.glob(f"{folder}/*")}

    def wait_for(self, phase: str) -> None:
        """Wait until the run has reached a phase, or ended."""
        while self.process.poll() is None and PHASES.index(self.phase) < PHASES.index(phase):
            time.sleep(0.002)

    def kill(self) -> str:
        """Kill the run, and return its phase."""
        ended = self.process.poll() is not None
        self.process.kill()
        self.process.wait()
        self._listener.join()
        phase = "ended" if ended else self.phase
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()
        return phase


def test_kill_at_the_end_of_normalization_loses_nothing(loaded_job: Job) -> None:
    """Dlt moves the normalized package to its place, then removes the extracted one: here both exist."""
    job = loaded_job
    change(job.server.account, random.Random(7))
    dlt = job.folder / ".msgbubbles" / job.database.stem / "dlt" / "msgbubbles"
    victim = Victim(job, with_dlt=True)
    victim.wait_for("normalize")
    victim.process.send_signal(signal.SIGSTOP)
    (extracted,) = (dlt / "normalize" / "extracted").iterdir()
    moved = job.folder / "moved"
    shutil.copytree(extracted, moved)
    victim.process.send_signal(signal.SIGCONT)
    normalized = dlt / "load" / "normalized" / extracted.name
    while not normalized.exists():
        assert victim.process.poll() is None
        time.sleep(0.001)
    assert victim.kill() != "ended"
    assert normalized.exists()
    if not extracted.exists():
        moved.replace(extracted)
    job.run()
    assert differences(job.database, job.server.truth()) == {}


def test_random_kills_lose_nothing_and_readers_see_whole_runs(built_job: Job) -> None:
    job, chance = built_job, random.Random(6)
    change(job.server.account, chance)
    began = time.monotonic()
    job.run(transform=True)
    run_seconds = time.monotonic() - began

    hit: Counter[str] = Counter()
    with run_reader(job.database) as readings:
        for number in range(KILLS):
            change(job.server.account, chance)
            job.start_anew = bool(number % 2)  # a kill while it imports counts as well
            victim = Victim(job, with_dlt=not number % 2)
            if number % 2:
                # Any moment of the run.
                time.sleep(chance.random() * (run_seconds + IMPORT_SECONDS))
            else:
                victim.wait_for(AIMED_AT[number // 2 % len(AIMED_AT)])
                time.sleep(chance.random() * 0.1)
            hit[victim.kill()] += 1
        job.start_anew = False
        outcome = job.run(transform=True)
    assert outcome.summary["outcome"] == "complete"
    assert differences(job.database, job.server.truth()) == {}
    assert readings[0] > KILLS
    sys.stdout.write(f"{KILLS} kills: {dict(hit)}; the published file was read {readings[0]} times\n")
    assert hit["ended"] < KILLS / 2
    if KILLS >= 50:
        assert set(PHASES) <= hit.keys()
