"""Measure the job on growing accounts, on a quiet one, and with a slow or strict API.

    python benchmarks/goals.py requests memory growth state latency

Prints the figures, and adds them to `docs/performance.json`, next to those of `compare.py`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import duckdb
import typer

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "pipelines"), str(ROOT / "benchmarks")]

from measure import Usage, fresh_folder, own_command, own_environment, pages, used  # noqa: E402
from msgbubbles.settings import DEFAULTS  # noqa: E402
from msgbubbles.source.coverage import Coverage, plan_incremental, plan_refresh  # noqa: E402
from msgbubbles.times import DAY_MS  # noqa: E402
from msgbubbles_sync.sandbox import Account, NewMessage, Server, seed, serve  # noqa: E402

RESULTS = ROOT / "docs" / "performance.json"
MINUTE_MS = 60_000
# Adds messages of a long history to the existing chats.
STORED = """
INSERT INTO msgbubbles.messages BY NAME
WITH threads AS (SELECT id, row_number() OVER () - 1 AS number FROM msgbubbles.chats)
SELECT 'stored-' || n AS id, threads.id AS conversation_id,
    CASE WHEN hash(n) % 2 = 0 THEN 'inbound' ELSE 'outbound' END AS direction,
    CASE WHEN hash(n) % 2 = 0 THEN 'received' ELSE 'delivered' END AS status,
    'sms' AS channel, 'hello' AS text, 0 AS attachment_count, moment AS created_at, moment AS cursor_at,
    now() AS _fetched_at, (SELECT max(load_id) FROM msgbubbles._dlt_loads) AS _dlt_load_id
FROM (SELECT n, hash(n + 1) % (SELECT count(*) FROM threads) AS number,
        TIMESTAMPTZ '2025-01-01 00:00:00+00' + to_milliseconds(n * $step_ms) AS moment
    FROM range($messages) AS numbers (n)) AS made
JOIN threads USING (number)
"""


def run(
    folder: Path, url: str, key: str, *options: str, per_minute: int = 0, memory_limit: str = "none"
) -> tuple[dict[str, Any], Any]:
    """Run the job, and return its run record and resource usage."""
    environment = own_environment(url, key, folder, per_minute) | {"SYNC__MEMORY_LIMIT": memory_limit}
    usage = used(own_command("--json", *options), folder, environment)
    return json.loads(usage.output.strip().splitlines()[-1]), usage


def build_account(chats: int, messages: int) -> Account:
    account = Account()
    seed(account, now=datetime.now(UTC) - timedelta(hours=1), chats=chats, messages=messages, days=120)
    return account


def write_messages(server: Server, chats: int, messages: int) -> None:
    """Add messages with the current time to the chats that have been quiet longest."""
    rows = server.account.all("SELECT id, from_handle FROM chats ORDER BY last_us LIMIT ?", (chats,))
    now = datetime.now(UTC)
    server.account.add_messages(
        NewMessage(
            row["id"], "outbound", "hello", now - timedelta(milliseconds=messages - number), "sent", sender=row[1]
        )
        for number, row in ((number, rows[number % len(rows)]) for number in range(messages))
    )


def requests() -> dict[str, Any]:
    """Count the requests of a first run, a quiet run, and a run with 100 changed chats and 300 new messages."""
    folder, account = fresh_folder("requests"), build_account(2000, 20_000)
    figures = {}
    with serve(account) as server:
        for name in ("first", "quiet", "changed"):
            if name == "changed":
                write_messages(server, 100, 300)
            before = len(server.requests)
            run(folder, server.url, server.key, "--no-transform")
            figures[name] = len(server.requests) - before
    account.close()
    return figures | {"first_at_least": 220}


def memory() -> dict[str, Any]:
    """Measure the peak memory of a first run by number of messages."""
    figures = {}
    sizes = ((20_000, 200_000), (200_000, 2_000_000))
    for (chats, messages), limit in product(sizes, ("none", "128MB")):
        folder = fresh_folder("memory")
        with pages(chats, messages) as server:
            _, usage = run(folder, server.url, server.key, "--no-transform", memory_limit=limit)
            figures[f"{messages}, memory_limit {limit}"] = {
                "peak_mb": round(usage.peak_bytes / 1e6),
                "seconds": round(usage.wall_seconds, 1),
                "cpu_seconds": round(usage.cpu_seconds, 1),
                "requests": server.taken()["requests"],
            }
    return figures


def growth() -> dict[str, Any]:
    """Measure the load and each model for 1,000 new messages by number of stored messages."""
    figures = {}
    for stored in (200_000, 2_000_000, 10_000_000):
        folder, account = fresh_folder("growth"), build_account(1000, 5000)
        with serve(account) as server:
            run(folder, server.url, server.key, "--no-transform")
            work = folder / ".msgbubbles" / "bench" / "bench.duckdb"
            with duckdb.connect(str(work)) as connection:
                step_ms = int(400 * DAY_MS / stored)
                connection.execute(STORED, {"messages": stored, "step_ms": step_ms})
            write_messages(server, 20, 100)
            run(folder, server.url, server.key)  # builds the marts from all messages
            write_messages(server, 200, 1000)
            record, usage = run(folder, server.url, server.key, "--no-transform")
        account.close()
        models, building = build(folder, work)
        figures[str(stored)] = {
            "load_seconds": round(record["seconds"]["load"], 2),
            "publish_seconds": round(record["seconds"].get("publish", 0), 2),
            "peak_mb": round(usage.peak_bytes / 1e6),
            "models": models,
            "models_peak_mb": round(building.peak_bytes / 1e6),
        }
    return figures


def build(folder: Path, work: Path) -> tuple[dict[str, float], Usage]:
    """Build the marts, and return the seconds of each model and the total resource usage."""
    target = folder / "target"
    project = str(ROOT / "transforms")
    where = ["--project-dir", project, "--profiles-dir", project, "--target-path", str(target)]
    dbt = [sys.executable, "-c", "from dbt.cli.main import cli; cli()"]
    usage = used([*dbt, "run", *where], folder, {"MSGBUBBLES_DUCKDB_PATH": str(work)})
    results = json.loads((target / "run_results.json").read_text())["results"]
    return {node["unique_id"].split(".")[-1]: round(node["execution_time"], 2) for node in results}, usage


def state() -> dict[str, Any]:
    """Measure the size of the coverage and the time to plan from it, after a year of runs every five minutes."""
    figures = {}
    for stream, rules in DEFAULTS.refresh_rules.items():
        lookback_ms, now_ms = DEFAULTS.lookback_ms, 0
        covered = Coverage([(0, 1, 0)])
        largest = slowest = 0.0
        for number, now_ms in enumerate(range(5 * MINUTE_MS, 365 * DAY_MS, 5 * MINUTE_MS)):
            began = time.process_time()
            if number % 1000 == 0:
                Coverage(covered.intervals)  # as when it is read from the state; too slow to do every time
            task = plan_incremental(covered, 0, lookback_ms)
            refreshed = plan_refresh(covered, rules, 0, now_ms)
            covered.gaps(0)
            slowest = max(slowest, time.process_time() - began)
            covered.add(task.lo_ms, now_ms, now_ms)
            if refreshed and refreshed.hi_ms:
                covered.add(refreshed.lo_ms, refreshed.hi_ms, now_ms)
            covered = covered.compact(now_ms)
            largest = max(largest, len(json.dumps(covered.intervals)))
        figures[stream] = {"largest_bytes": largest, "slowest_planning_ms": round(slowest * 1000, 1)}
    return figures


def latency() -> dict[str, Any]:
    """Measure the share of the rate limit that a first run uses with 200 ms per request."""
    figures = {}
    for limit in (1200, 120):
        folder, count = fresh_folder("latency"), 2 * limit + 1
        with pages(20_000, 400_000, "--latency-seconds", "0.2", "--limit-per-minute", str(limit)) as server:
            options = ("--no-transform", "--max-requests", str(count))
            run(folder, server.url, server.key, *options, per_minute=limit)
            taken = server.taken()
        # The requests of a minute may come in a burst.
        least_seconds = (taken["requests"] - 1) // limit * 60
        figures[str(limit)] = {
            "requests": taken["requests"],
            "refused": taken["refused"],
            "seconds": round(taken["seconds"], 1),
            "share_of_the_limit": round(least_seconds / taken["seconds"], 3),
        }
    return figures


GOALS: dict[str, Callable[[], dict[str, Any]]] = {
    goal.__name__: goal for goal in (requests, memory, growth, state, latency)
}


def main(
    goals: Annotated[
        list[str] | None, typer.Argument(help=f"Goals to measure: {', '.join(GOALS)}. Default: all.")
    ] = None,
) -> None:
    for name in goals or GOALS:
        figures = GOALS[name]()
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        results[name] = figures
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
        sys.stdout.write(f"{name}: {json.dumps(figures, indent=2)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)
