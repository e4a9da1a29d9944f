"""Run `chats.py watch` for many cycles under everything that may happen to it, and compare the result with the truth.

    python benchmarks/soak.py --cycles 1000

The account changes all the time and sends events, a reader opens the published file, the process is killed, and its
disk is full for a while. At the end rows and marts have to equal those of an account that was read again, and the
memory and the file descriptors of each process have to be flat.
"""

from __future__ import annotations

import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import duckdb
import typer

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "pipelines"), str(ROOT / "tests")]

from helpers.full_disk import full_disk  # noqa: E402
from helpers.hooks import SECRET, WEBHOOKS, Process  # noqa: E402
from helpers.job import CHATS, Job  # noqa: E402
from helpers.warehouse_rows import differences  # noqa: E402
from msgbubbles_sync.sandbox import Account, Server, seed, serve  # noqa: E402
from msgbubbles_sync.sandbox.seed import advance  # noqa: E402

DATABASE = ("--database", "company.duckdb")
MARTS = ("thread_activity", "thread_activity_daily", "thread_activity_hours", "number_activity_daily", "contact")
# The marts' columns that depend on when a row was read, on when marts were built (`dormant_days`), or on events alone.
OWN_COLUMNS = ("fetched_at", "dormant_days", "typing_at", "typed_unsent")
COUNTED = """
SELECT (SELECT sum(messages_total) FROM marts.thread_activity), count(*)
FROM staging.stg_messages WHERE counts_in_thread AND chat_id IN (SELECT chat_id FROM staging.stg_chats)"""
# With full disks in between, some seconds pass without a cycle.
SECONDS_WITHOUT_CYCLE = 600.0
# Growth of one process from the second quarter of its cycles to the last that is still flat.
MAX_GROWTH = 0.1
EVERYTHING_AGAIN = {
    "SOURCES__MSGBUBBLES__REFRESH_CHATS": '[{"every_hours": 0.0001}]',
    "SOURCES__MSGBUBBLES__REFRESH_MESSAGES": '[{"every_hours": 0.0001}]',
    "SOURCES__MSGBUBBLES__REFRESH_SHARE": "1",
}


@dataclass
class Watched:
    """A process of `chats.py watch`: its cycles, and its memory (bytes) and descriptors after each of them."""

    process: subprocess.Popen[str]
    records: list[dict[str, Any]] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def follow(self) -> None:
        """Sample the process after each cycle that it prints, until it ends."""
        proc = Path(f"/proc/{self.process.pid}")
        for line in self.process.stdout or ():
            self.records.append(json.loads(line))
            with suppress(OSError):
                self.memory.append(int((proc / "statm").read_text().split()[1]) * 4096)
                self.descriptors.append(len(list((proc / "fd").iterdir())))


def start_watch(job: Job, every_seconds: float) -> Watched:
    command = [sys.executable, str(CHATS), "watch", *DATABASE, "--every", str(every_seconds), "--json"]
    process = subprocess.Popen(  # noqa: S603 - our own command
        command, cwd=job.folder, env=job.whole_environment(), stdout=subprocess.PIPE, text=True
    )
    watched = Watched(process)
    threading.Thread(target=watched.follow, daemon=True).start()
    return watched


def change_account(account: Account, stop: threading.Event, done: Counter[str]) -> None:
    """Write, edit, rename and type until `stop` is set."""
    chance = random.Random(4)  # noqa: S311 - test data
    while not stop.wait(chance.uniform(0.1, 1.5)):
        now = datetime.now(UTC)
        done["messages"] += advance(account, now, minimum=chance.randint(1, 5))
        chat = account.all("SELECT id FROM chats ORDER BY random() LIMIT 1")[0]["id"]
        message = account.all("SELECT id FROM messages ORDER BY random() LIMIT 1")[0]["id"]
        what = chance.choice(("type", "rename", "edit", "react"))
        done[what] += 1
        if what == "type":
            account.type(chat, "+14155550123", typing=True, at=now)
        elif what == "rename":
            account.rename(chat, f"title {done[what]}", now)
        elif what == "edit":
            account.edit_text(message, f"edited {done[what]}", now)
        else:
            account.react(message, "+14155550123", "love", now)


def read_published(database: Path, stop: threading.Event, done: Counter[str]) -> None:
    """Check again and again that the published marts count what the published messages are."""
    while not stop.wait(0.5):
        try:
            with duckdb.connect(str(database), read_only=True) as connection:
                counted, stored = connection.execute(COUNTED).fetchall()[0]
        except (duckdb.IOException, duckdb.CatalogException):
            done["nothing published yet"] += 1
            continue
        done["consistent reads" if counted == stored else "INCONSISTENT READS"] += 1


def subscribe(job: Job, stack: ExitStack) -> None:
    """Start a receiver that is registered at the account."""
    secrets = job.folder / "secrets.toml"
    secrets.write_text(f'[webhooks]\nsecrets = ["{SECRET}"]\n')
    receiver = Process(job.folder, job.whole_environment(), *DATABASE, "--secrets-file", str(secrets))
    stack.callback(receiver.stop)
    command = [sys.executable, str(WEBHOOKS), "register", receiver.url, *DATABASE, "--secrets-file", str(secrets)]
    subprocess.run(command, cwd=job.folder, env=job.whole_environment(), check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def run_cycles(job: Job, cycles: int, kills: int, full_disks: int, every_seconds: float) -> list[Watched]:
    """Run this many cycles, and kill the process or fill its disk in between, in regular intervals."""
    lives = [start_watch(job, every_seconds)]
    faults = ["kill"] * kills + ["full disk"] * full_disks
    random.Random(5).shuffle(faults)  # noqa: S311 - test data
    try:
        for number, fault in enumerate([*faults, "end"], 1):
            wait_for_cycles(lives, cycles * number // (len(faults) + 1))
            if fault == "kill":
                lives[-1].process.kill()
                lives[-1].process.wait()
                lives.append(start_watch(job, every_seconds))
            elif fault == "full disk":
                failures = count_failures(lives)
                with full_disk(lives[-1].process.pid, room_bytes=job.database.stat().st_size // 2):
                    until = time.monotonic() + SECONDS_WITHOUT_CYCLE
                    while count_failures(lives) == failures and time.monotonic() < until:
                        time.sleep(0.2)
            typer.echo(f"{count_cycles(lives)} cycles, then {fault}", err=True)
        lives[-1].process.send_signal(signal.SIGTERM)
        if lives[-1].process.wait(30):
            raise SystemExit("watch did not end in order")
    finally:
        lives[-1].process.kill()
    return lives


def count_cycles(lives: list[Watched]) -> int:
    return sum(len(watched.records) for watched in lives)


def count_failures(lives: list[Watched]) -> int:
    return sum(record["exit_status"] != 0 for watched in lives for record in watched.records)


def wait_for_cycles(lives: list[Watched], wanted: int) -> None:
    before, since = -1, time.monotonic()
    while (now := count_cycles(lives)) < wanted:
        if now != before:
            before, since = now, time.monotonic()
        if lives[-1].process.poll() is not None or time.monotonic() - since > SECONDS_WITHOUT_CYCLE:
            raise SystemExit(f"watch has ended, or makes no progress, after {now} cycles")
        time.sleep(0.1)


def compare_with_truth(job: Job, server: Server) -> dict[str, Any]:
    """Return the differences of rows and marts from an account that is read again; empty if there are none."""
    job.environment |= EVERYTHING_AGAIN
    for _ in range(3):
        job.run(transform=True)
    fresh = Job(job.folder / "fresh", server, start_anew=True)
    fresh.folder.mkdir()
    fresh.run(transform=True)
    found: dict[str, Any] = differences(job.database, server.truth())
    for mart in MARTS:
        rows, expected = read_mart(job, mart), read_mart(fresh, mart)
        if rows != expected:
            pairs = [pair for pair in zip(rows, expected, strict=False) if pair[0] != pair[1]]
            columns = sorted({name for one, other in pairs for name in one if one[name] != other[name]})
            found[mart] = {"rows": [len(rows), len(expected)], "different": len(pairs), "columns": columns}
    return found


def read_mart(job: Job, mart: str) -> list[dict[str, Any]]:
    with duckdb.connect(str(job.database), read_only=True) as connection:
        columns = [row[0] for row in connection.execute(f"DESCRIBE marts.{mart}").fetchall()]
        names = [column for column in columns if not column.endswith(OWN_COLUMNS)]
        rows = connection.execute(f"SELECT {', '.join(names)} FROM marts.{mart} ORDER BY ALL").fetchall()  # noqa: S608
        return [dict(zip(names, row, strict=True)) for row in rows]


def measure_growth(samples: list[int]) -> float | None:
    """Return how much samples grow from the second quarter to the last; null if there are too few."""
    quarter = len(samples) // 4
    if quarter < 5:
        return None
    return statistics.median(samples[-quarter:]) / statistics.median(samples[quarter : 2 * quarter]) - 1


def main(
    cycles: Annotated[int, typer.Option(help="Cycles that publish, or run the whole job.")] = 1000,
    messages: Annotated[int, typer.Option(help="Messages of the account at the start.")] = 2000,
    kills: Annotated[int, typer.Option(help="How often the process is killed.")] = 10,
    full_disks: Annotated[int, typer.Option(help="How often its disk is full.")] = 2,
    every_seconds: Annotated[float, typer.Option("--every", help="Seconds between full cycles.")] = 20,
) -> None:
    stop, changed, reads = threading.Event(), Counter[str](), Counter[str]()
    with ExitStack() as stack:
        account = stack.enter_context(closing(Account()))
        seed(account, now=datetime.now(UTC), chats=max(messages // 25, 5), messages=messages, days=60)
        server = stack.enter_context(serve(account, None))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        job = Job(folder, server, {"TRANSFORMS__DATA_TESTS": "hold"}, start_anew=True)
        subscribe(job, stack)
        threads = [
            threading.Thread(target=change_account, args=(account, stop, changed)),
            threading.Thread(target=read_published, args=(job.database, stop, reads)),
        ]
        stack.callback(stop.set)
        for thread in threads:
            thread.start()
        began = time.monotonic()
        lives = run_cycles(job, cycles, kills, full_disks, every_seconds)
        seconds = time.monotonic() - began
        stop.set()
        for thread in threads:
            thread.join()
        is_drained = server.deliverer.wait_until_delivered(timeout_seconds=60)
        different = compare_with_truth(job, server)
    growth = [(measure_growth(watched.memory), measure_growth(watched.descriptors)) for watched in lives]
    summary = {
        "cycles": count_cycles(lives),
        "failed_cycles": count_failures(lives),
        "seconds": round(seconds),
        "changes": dict(changed),
        "reads": dict(reads),
        "differences": different,
        "memory_growth": [round(memory, 3) for memory, _ in growth if memory is not None],
        "descriptor_growth": [round(descriptors, 3) for _, descriptors in growth if descriptors is not None],
    }
    typer.echo(json.dumps(summary, indent=2))
    grown = [value for both in growth for value in both if value is not None and value > MAX_GROWTH]
    if different or grown or not is_drained or "INCONSISTENT READS" in reads:
        raise SystemExit(1)


if __name__ == "__main__":
    typer.run(main)
