"""Measure how long an event takes from the account to a reader of the published file, and what `watch` takes for it.

    python benchmarks/latency.py --events 120 --messages 6000

Sends one event a second, typing and new messages in turn, while `watch` runs with all data tests. Prints the seconds
until readers see an event, the requests to the API, and how much of one core `watch` took.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any

import duckdb
import typer

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "pipelines"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from helpers.hooks import SECRET, WEBHOOKS, Process  # noqa: E402
from helpers.job import CHATS  # noqa: E402
from measure import cpu_seconds_of, own_environment, used  # noqa: E402
from msgbubbles_sync.sandbox import Account, NewMessage, Server, seed, serve  # noqa: E402
from msgbubbles_sync.sandbox.seed import advance  # noqa: E402

DATABASE = "bench.duckdb"
HANDLE = "+14155550123"
KINDS = {"typing": ("typing",), "message": ("message",), "mixed": ("typing", "message")}
# Events wait at most so long. Before the first one, `watch` rests.
WAIT_SECONDS, REST_SECONDS = 300.0, 15.0
# What the published marts contain: messages, and the times of typing events.
SHOWN = """SELECT message_id FROM staging.int_thread_messages
UNION ALL SELECT epoch_ms(occurred_at)::VARCHAR FROM msgbubbles.webhook_events
WHERE event_type = 'conversation.typing'"""


@dataclass
class Latency:
    """When each event was sent and shown, and what it cost."""

    sent: dict[str, float] = field(default_factory=dict)
    shown: dict[str, float] = field(default_factory=dict)
    requests: int = 0
    cpu_seconds: float = 0.0
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        waits = sorted(self.shown[event] - self.sent[event] for event in self.shown) or [0.0]
        return {
            "sent": len(self.sent),
            "shown": len(self.shown),
            **{f"p{percent}": round(waits[len(waits) * percent // 100], 2) for percent in (50, 90, 99)},
            "max": round(waits[-1], 2),
            "requests": self.requests,
            "cores": round(self.cpu_seconds / max(self.seconds, 1.0), 3),
        }


@contextmanager
def watching(
    folder: Path, environment: dict[str, str], every_seconds: float
) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None]]]:
    """Run `watch`. Yields the process and a function that waits for its next cycle."""
    command = [sys.executable, str(CHATS), "watch", "--database", DATABASE, "--every", str(every_seconds), "--json"]
    with subprocess.Popen(  # noqa: S603 - our own command
        command, cwd=folder, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        cycles = SimpleQueue[str]()

        def follow() -> None:
            for line in process.stdout or ():
                cycles.put(line)

        threading.Thread(target=follow, daemon=True).start()  # a full pipe would stop the process
        try:
            yield process, lambda: json.loads(cycles.get(timeout=WAIT_SECONDS))
        finally:
            process.send_signal(signal.SIGTERM)


def measure_events(
    account: Account, server: Server, folder: Path, environment: dict[str, str], events: int, kind: str = "mixed"
) -> Latency:
    """Send one event a second while `watch` runs on the warehouse in a folder."""
    secrets = folder / "secrets.toml"
    secrets.write_text(f'[webhooks]\nsecrets = ["{SECRET}"]\n')
    options = ("--database", DATABASE, "--secrets-file", str(secrets))
    receiver = Process(folder, environment, *options)
    command = [sys.executable, str(WEBHOOKS), "register", receiver.url, *options]
    subprocess.run(  # noqa: S603 - our own command
        command, cwd=folder, env={**os.environ, **environment}, check=True, stdout=subprocess.DEVNULL
    )
    chats = cycle(row["id"] for row in account.all("SELECT id FROM chats ORDER BY last_us LIMIT 100"))
    kinds = cycle(KINDS[kind])
    latency = Latency()
    try:
        with watching(folder, environment, 3600) as (process, wait):
            wait()
            send(account, next(chats), "typing")
            wait()
            time.sleep(REST_SECONDS)
            requests, cpu_seconds = len(server.requests), cpu_seconds_of(process.pid)
            began, mark = time.time(), 0
            while len(latency.shown) < events and time.time() < began + events + WAIT_SECONDS:
                if len(latency.sent) < events and time.time() >= began + len(latency.sent):
                    latency.sent[send(account, next(chats), next(kinds))] = time.time()
                mark = note_published(folder / DATABASE, mark, latency)
                time.sleep(0.05)
            latency.seconds = time.time() - began
            latency.requests = len(server.requests) - requests
            latency.cpu_seconds = cpu_seconds_of(process.pid) - cpu_seconds
    finally:
        receiver.stop()
    return latency


def send(account: Account, chat_id: str, kind: str) -> str:
    """Let the account send an event. Returns by what the marts show it."""
    now = datetime.now(UTC)
    at = now.replace(microsecond=now.microsecond // 1000 * 1000)
    if kind == "message":
        return account.add_message(NewMessage(chat_id, "inbound", "hello", at, "received", sender=HANDLE))
    account.type(chat_id, HANDLE, True, at)
    return str(round(at.timestamp() * 1000))


def note_published(database: Path, mark: int, latency: Latency) -> int:
    """Note which events the published marts show, if the file is another one than before. Returns its mark."""
    new_mark = database.stat().st_mtime_ns
    if new_mark != mark:
        with duckdb.connect(str(database), read_only=True) as connection:
            rows = connection.execute(SHOWN).fetchall()
        for (event,) in rows:
            if event in latency.sent:
                latency.shown.setdefault(event, time.time())
    return new_mark


def main(
    events: Annotated[int, typer.Option(min=1, help="Events, one a second.")] = 120,
    messages: Annotated[int, typer.Option(help="Messages of the account.")] = 6_000,
    kind: Annotated[str, typer.Option(help=f"What events are about: {', '.join(KINDS)}.")] = "mixed",
) -> None:
    """Measure and print."""
    with ExitStack() as stack:
        account = stack.enter_context(closing(Account()))
        seed(account, now=datetime.now(UTC), chats=max(messages // 25, 5), messages=messages, days=60)
        server = stack.enter_context(serve(account, None))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        environment = own_environment(server.url, server.key, folder) | {"TRANSFORMS__DATA_TESTS": "hold"}
        # Later runs repeat what dbt executes in one of the first.
        for _ in range(3):
            used([sys.executable, str(CHATS), "--database", DATABASE, "--quiet"], folder, environment)
            advance(account, datetime.now(UTC), minimum=5)
        latency = measure_events(account, server, folder, environment, events, kind)
    typer.echo(json.dumps({"messages": messages, "kind": kind, **latency.as_dict()}, indent=2))


if __name__ == "__main__":
    typer.run(main)
