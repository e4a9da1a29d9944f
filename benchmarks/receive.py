"""Measure how long a delivery takes until it is stored and answered, and until readers see it.

    python benchmarks/receive.py answered --rate 400 --seconds 30
    python benchmarks/receive.py published --every-minutes 5 --runs 3

Starts its own receiver, and for `published` the job on a simulated account, as a scheduler would. Latencies are
measured from the time a delivery was due, so that a receiver that falls behind is visible.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import duckdb
import httpx
import typer

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "pipelines"), str(ROOT / "tests")]

from helpers.hooks import SECRET, Process, signed, typing  # noqa: E402
from helpers.job import Job  # noqa: E402
from msgbubbles_sync.sandbox import Account, Knobs, seed, serve  # noqa: E402

SENDERS = 16


async def send_deliveries(url: httpx.URL, rate: float, seconds: float) -> list[float]:
    taken: list[float] = []
    numbers = iter(range(int(rate * seconds)))
    began = time.perf_counter()

    async def send() -> None:
        # Without an HTTP client, which is slower than the receiver and would be measured instead.
        reader, writer = await asyncio.open_connection(url.host, url.port)
        for number in numbers:
            due = began + number / rate
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            body = typing(number)
            headers = signed(body, f"msg_{number}") | {"host": url.host, "content-length": str(len(body))}
            lines = [f"POST {url.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
            writer.write("\r\n".join(lines).encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 204"):
                raise SystemExit(answer.decode())
            taken.append(time.perf_counter() - due)
        writer.close()

    await asyncio.gather(*(send() for _ in range(SENDERS)))
    return taken


app = typer.Typer(add_completion=False)


@app.command()
def answered(
    rate: Annotated[float, typer.Option(help="Deliveries per second.")] = 400,
    seconds: Annotated[float, typer.Option(help="Duration in seconds.")] = 30,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        receiver = Process(Path(folder), {"WEBHOOKS__SECRETS": SECRET}, "--database", "benchmark.duckdb")
        began = time.perf_counter()
        try:
            taken = sorted(asyncio.run(send_deliveries(httpx.URL(receiver.url), rate, seconds)))
            spent = time.perf_counter() - began
            memory = re.findall(r"VmHWM:\s*(.*)", Path(f"/proc/{receiver.pid}/status").read_text())
            metrics = httpx.get(receiver.url + "metrics", trust_env=False).text
        finally:
            receiver.stop()
    syncs = next(line.split()[1] for line in metrics.splitlines() if line.startswith("msgbubbles_webhook_spool_syncs "))
    more = {"a second": round(len(taken) / spent), "syncs": float(syncs), "memory": memory}
    sys.stdout.write(json.dumps(percentiles(taken, 1000, "ms") | more) + "\n")


@app.command()
def published(
    every_minutes: Annotated[float, typer.Option(help="How often the job runs.")] = 5,
    runs: Annotated[int, typer.Option(help="How often in all, after the first load.")] = 3,
    messages: Annotated[int, typer.Option(help="In the made-up account.")] = 6000,
) -> None:
    """One event a second; each is timed until the file is published that holds it."""
    due: dict[str, float] = {}
    taken: list[float] = []
    with tempfile.TemporaryDirectory() as name, closing(Account()) as account:
        seed(account, now=datetime.now(UTC), chats=240, messages=messages, days=60)
        with serve(account, Knobs()) as server:
            job = Job(Path(name), server, {"WEBHOOKS__SECRETS": SECRET, "TRANSFORMS__DATA_TESTS": "hold"})
            job.run(transform=True)
            receiver = Process(Path(name), job.whole_environment(), "--database", "company.duckdb")
            done = threading.Event()
            sender = threading.Thread(target=send_each_second, args=(receiver.url, due, done))
            sender.start()
            try:
                for number in range(1, runs + 1):
                    began = time.time()
                    time.sleep(every_minutes * 60 - began % (every_minutes * 60))
                    job.run(transform=True)
                    shown = job.database.stat().st_mtime
                    with duckdb.connect(str(job.database), read_only=True) as connection:
                        ids = {
                            row[0]
                            for row in connection.execute("SELECT event_id FROM msgbubbles.webhook_events").fetchall()
                        }
                    new = [due.pop(event_id) for event_id in ids & due.keys()]
                    # The first cycle began in the middle.
                    taken += [shown - at for at in new] if number > 1 else []
            finally:
                done.set()
                sender.join()
                receiver.stop()
    sys.stdout.write(json.dumps(percentiles(sorted(taken), 1, "s")) + "\n")


def send_each_second(url: str, due: dict[str, float], done: threading.Event) -> None:
    with httpx.Client(trust_env=False, timeout=60) as http:
        number = 0
        while not done.wait(1):
            number += 1
            body, at = typing(number), time.time()
            http.post(url, content=body, headers=signed(body, f"msg_{number}")).raise_for_status()
            due[f"evt_{number}"] = at


def percentiles(taken: list[float], factor: float, unit: str) -> dict[str, Any]:
    figures = {f"p{part}": f"{taken[int(len(taken) * part / 100)] * factor:.1f} {unit}" for part in (50, 90, 99)}
    return figures | {"max": f"{taken[-1] * factor:.1f} {unit}", "deliveries": len(taken)}


if __name__ == "__main__":
    app()
