"""Measure what the marts cost: from scratch, after 1,000 new messages in 200 chats, and with data tests.

    python benchmarks/marts.py --messages 200000 --messages 2000000

Each size is a simulated account of 1,000 chats, inserted into the tables that a real run created. Prints a table of CPU
seconds and of peak memory. New messages are measured without dbt, by the statements of its last run. Needs about 0.15
GB of disk space per million messages, and the memory of a build from scratch: 6.5 GB for 10 million.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import duckdb
import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "pipelines"))

from msgbubbles_sync.dbt.runner import transform  # noqa: E402
from msgbubbles_sync.destinations import build_destination  # noqa: E402
from msgbubbles_sync.settings import DataTests, Settings, TransformSettings  # noqa: E402
from msgbubbles_sync.workspace import Workspace  # noqa: E402

NEW_MESSAGES = 1000
STORED_CHATS, CHANGED_CHATS = 1000, 200
CHATS = """
INSERT INTO msgbubbles.chats BY NAME
SELECT 'chat' || n AS id, '+1415555010' || n % 3 AS from_handle, n % 10 = 0 AS is_group,
    CASE WHEN n % 10 = 0 THEN 'group:' || n ELSE '+1415556' || lpad(n::VARCHAR, 7, '0') END AS remote_handle,
    TIMESTAMPTZ '2025-01-01 00:00:00+00' AS created_at, TIMESTAMPTZ '2025-01-01 00:00:00+00' AS updated_at,
    TIMESTAMPTZ '2026-01-01 00:00:00+00' AS last_message_at, now() AS _fetched_at, $load AS _dlt_load_id
FROM range($chats) AS numbers (n)
"""
# Messages of random chats in a year, or after it.
MESSAGES = """
INSERT INTO msgbubbles.messages BY NAME
SELECT uuid()::VARCHAR AS id, 'chat' || (hash(n) % $chats) AS conversation_id,
    CASE WHEN hash(n + 1) % 2 = 0 THEN 'inbound' ELSE 'outbound' END AS direction,
    CASE WHEN hash(n + 1) % 2 = 0 THEN 'received' ELSE 'delivered' END AS status,
    'sms' AS channel, 'hello' AS text, 0 AS attachment_count,
    '+1415557' || lpad((hash(n) % $chats)::VARCHAR, 7, '0') AS sender_handle,
    moment AS created_at, moment AS cursor_at, now() AS _fetched_at, $load AS _dlt_load_id
FROM (
    SELECT n, TIMESTAMPTZ '2025-01-01 00:00:00+00' + to_seconds(
        CASE WHEN $is_new THEN $load::DOUBLE * 365 * 86400 + n ELSE n * (365 * 86400.0 / $messages) END) AS moment
    FROM range($messages) AS numbers (n)
) AS times
"""


@dataclass(frozen=True)
class Cost:
    """What a build of the marts took in a process of its own."""

    cpu_seconds: float
    peak_mb: float


def main(messages: Annotated[list[int], typer.Option()] = [200_000, 2_000_000]) -> None:  # noqa: B006
    table = Table(box=None)
    for heading in ("messages", "from scratch", "MB", f"{NEW_MESSAGES:,} new", "MB", "with data tests", "MB"):
        table.add_column(heading, justify="right")
    for count in messages:
        with tempfile.TemporaryDirectory() as folder:
            costs = measure_size(Path(folder), count)
        cells = (
            f"{number:.{digits}f}" for cost in costs for number, digits in ((cost.cpu_seconds, 2), (cost.peak_mb, 0))
        )
        table.add_row(f"{count:,}", *cells)
    Console().print(table)


def measure_size(folder: Path, messages: int) -> tuple[Cost, Cost, Cost]:
    """Return the cost of a build from scratch, of an increment, and of one with data tests."""
    workspace = Workspace.from_path(folder / "bench.duckdb")
    command = [sys.executable, str(ROOT / "pipelines" / "chats.py"), "--sandbox", "--no-transform", "--quiet"]
    subprocess.run([*command, "--database", str(workspace.database)], check=True)  # noqa: S603 - our own command
    with duckdb.connect(str(workspace.work)) as connection:
        for table in ("chats", "messages", "attachments", "chat_titles"):
            connection.execute(f"TRUNCATE msgbubbles.{table}")
    load_messages(workspace, "1.0", STORED_CHATS, messages, is_new=False)
    whole = measure_transform(workspace, "off")
    increments = []
    modes: tuple[DataTests, ...] = ("off", "publish")
    for number, data_tests in enumerate(modes, 1):
        # dbt records the statements in the first run, and tests all rows in the first one with tests.
        for step in range(3):
            load_messages(workspace, f"{number}.{step + 1}", CHANGED_CHATS, NEW_MESSAGES, is_new=True)
            cost = measure_transform(workspace, data_tests)
        increments.append(cost)
    return whole, increments[0], increments[1]


def load_messages(workspace: Workspace, load: str, chats: int, messages: int, *, is_new: bool) -> None:
    """Load messages, and their chats, which a new message changes too."""
    with duckdb.connect(str(workspace.work)) as connection:
        connection.execute(
            "DELETE FROM msgbubbles.chats WHERE id IN (SELECT 'chat' || n FROM range(?) AS r (n))", [chats]
        )
        connection.execute(CHATS, {"chats": chats, "load": load})
        connection.execute(MESSAGES, {"load": load, "chats": chats, "messages": messages, "is_new": is_new})
        connection.execute("INSERT INTO msgbubbles._dlt_loads VALUES (?, 'msgbubbles', 0, now(), '')", [load])


def measure_transform(workspace: Workspace, data_tests: DataTests) -> Cost:
    """Build the marts in another process."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=build, args=(workspace.database, data_tests, queue))
    process.start()
    cost: Cost = queue.get()
    process.join()
    return cost


def build(database: Path, data_tests: DataTests, queue: Any) -> None:
    workspace, settings = Workspace.from_path(database), Settings(transforms=TransformSettings(data_tests=data_tests))
    before = resource.getrusage(resource.RUSAGE_SELF)
    transform(build_destination(workspace, settings.sync), settings)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    queue.put(Cost(cpu_seconds, after.ru_maxrss / 1024))


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    typer.run(main)
