"""How long a delivery takes until it is on disk and answered: signed deliveries at a steady rate over loopback.

    python benchmarks/webhooks.py --rate 400 --seconds 30

Starts a receiver of its own. Latencies are from the moment a delivery was due, so that a receiver that falls behind
shows it.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import httpx
import typer

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "pipelines"), str(ROOT / "tests" / "support")]

from hooks import SECRET, Process, signed, typing  # noqa: E402

SENDERS = 16


async def seconds_taken(url: httpx.URL, rate: float, seconds: float) -> list[float]:
    taken: list[float] = []
    numbers = iter(range(int(rate * seconds)))
    began = time.perf_counter()

    async def send() -> None:
        # By hand: an HTTP client takes longer than the receiver, and would be measured instead.
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


def main(
    rate: Annotated[float, typer.Option(help="Deliveries a second.")] = 400,
    seconds: Annotated[float, typer.Option(help="For how long.")] = 30,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        receiver = Process(Path(folder), {"WEBHOOKS__SECRETS": SECRET}, "--database", "benchmark.duckdb")
        began = time.perf_counter()
        try:
            taken = sorted(asyncio.run(seconds_taken(httpx.URL(receiver.url), rate, seconds)))
            spent = time.perf_counter() - began
            memory = re.findall(r"VmHWM:\s*(.*)", Path(f"/proc/{receiver.pid}/status").read_text())
            metrics = httpx.get(receiver.url + "metrics", trust_env=False).text
        finally:
            receiver.stop()
    syncs = next(line.split()[1] for line in metrics.splitlines() if line.startswith("msgbubbles_webhook_spool_syncs "))
    figures = {f"p{part}": f"{taken[int(len(taken) * part / 100)] * 1000:.1f} ms" for part in (50, 90, 99)}
    more = {"max": f"{taken[-1] * 1000:.1f} ms", "deliveries": len(taken), "a second": round(len(taken) / spent)}
    sys.stdout.write(json.dumps(figures | more | {"syncs": float(syncs), "memory": memory}) + "\n")


if __name__ == "__main__":
    typer.run(main)
