"""Measure how long the marts take to build: from scratch, after 1,000 new messages, and with nothing new.

    python benchmarks/marts.py --messages 100000 --messages 1000000

Each size is a simulated account with 25 messages per chat, inserted into the tables that a real run created. Prints a
table of wall-clock seconds without the import of dbt. Needs about 0.7 GB of disk space per million messages.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import duckdb
import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "pipelines"))

from msgbubbles_sync.dbt.runner import transform  # noqa: E402
from msgbubbles_sync.destinations import build_destination  # noqa: E402
from msgbubbles_sync.settings import Settings, TransformSettings  # noqa: E402
from msgbubbles_sync.workspace import Workspace  # noqa: E402

NEW_MESSAGES = 1000
CHATS = """
INSERT INTO msgbubbles.chats BY NAME
SELECT 'chat' || n AS id, '+1415555010' || n % 3 AS from_handle, n % 10 = 0 AS is_group,
    CASE WHEN n % 10 = 0 THEN 'group:' || n ELSE '+1415556' || lpad(n::VARCHAR, 7, '0') END AS remote_handle,
    TIMESTAMPTZ '2025-01-01 00:00:00+00' AS created_at, TIMESTAMPTZ '2025-01-01 00:00:00+00' AS updated_at,
    TIMESTAMPTZ '2026-01-01 00:00:00+00' AS last_message_at, now() AS _fetched_at, $load AS _dlt_load_id
FROM range($chats) AS numbers (n)
"""
# Messages of random chats over a year, or of now.
MESSAGES = """
INSERT INTO msgbubbles.messages BY NAME
SELECT $load || '-' || n AS id, 'chat' || (hash(n) % $chats) AS conversation_id,
    CASE WHEN hash(n + 1) % 2 = 0 THEN 'inbound' ELSE 'outbound' END AS direction,
    CASE WHEN hash(n + 1) % 2 = 0 THEN 'received' ELSE 'delivered' END AS status,
    'sms' AS channel, 'hello' AS text, 0 AS attachment_count,
    '+1415557' || lpad((hash(n) % $chats)::VARCHAR, 7, '0') AS sender_handle,
    moment AS created_at, moment AS cursor_at, now() AS _fetched_at, $load AS _dlt_load_id
FROM (
    SELECT n, TIMESTAMPTZ '2025-01-01 00:00:00+00' + to_seconds(
        CASE WHEN $is_new THEN 365 * 86400 + n ELSE hash(n + 2) % (365 * 86400) END) AS moment
    FROM range($messages) AS numbers (n)
) AS times
"""


def main(messages: Annotated[list[int], typer.Option()] = [100_000, 1_000_000]) -> None:  # noqa: B006
    table = Table(box=None)
    for heading in ("messages", "from scratch", f"{NEW_MESSAGES:,} new", "nothing new", "share", "with data tests"):
        table.add_column(heading, justify="right")
    for count in messages:
        with tempfile.TemporaryDirectory() as folder:
            whole, increment, quiet, tested = measure_size(Path(folder), count)
        table.add_row(
            f"{count:,}",
            f"{whole:.1f}",
            f"{increment:.1f}",
            f"{quiet:.1f}",
            f"{increment / whole:.0%}",
            f"{tested:.1f}",
        )
    Console().print(table)


def measure_size(folder: Path, messages: int) -> tuple[float, float, float, float]:
    """Return the seconds from scratch, of an increment, with nothing new, and of the latter with data tests."""
    workspace = Workspace.from_path(folder / "bench.duckdb")
    command = [sys.executable, str(ROOT / "pipelines" / "chats.py"), "--sandbox", "--no-transform", "--quiet"]
    subprocess.run([*command, "--database", str(workspace.database)], check=True)  # noqa: S603 - our own command
    chats = messages // 25
    with duckdb.connect(str(workspace.work)) as connection:
        for table in ("chats", "messages", "attachments", "chat_titles"):
            connection.execute(f"TRUNCATE msgbubbles.{table}")
        connection.execute(CHATS, {"chats": chats, "load": "1.0"})
    load_messages(workspace, "1.0", chats, messages, is_new=False)
    time_transform(workspace)  # imports dbt and parses the project
    (workspace.folder / "dbt" / "built_with").unlink()
    whole = time_transform(workspace)
    load_messages(workspace, "2.0", chats, NEW_MESSAGES, is_new=True)
    increment = time_transform(workspace)
    quiet = time_transform(workspace)
    tested = time_transform(workspace, TransformSettings(data_tests="publish"))
    return whole, increment, quiet, tested


def load_messages(workspace: Workspace, load: str, chats: int, messages: int, *, is_new: bool) -> None:
    with duckdb.connect(str(workspace.work)) as connection:
        connection.execute(MESSAGES, {"load": load, "chats": chats, "messages": messages, "is_new": is_new})
        connection.execute("INSERT INTO msgbubbles._dlt_loads VALUES (?, 'msgbubbles', 0, now(), '')", [load])


def time_transform(workspace: Workspace, transforms: TransformSettings = TransformSettings(data_tests="off")) -> float:  # noqa: B008
    began = time.monotonic()
    settings = Settings(transforms=transforms)
    transform(workspace, build_destination(workspace, settings.sync), settings)
    return time.monotonic() - began


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    typer.run(main)
