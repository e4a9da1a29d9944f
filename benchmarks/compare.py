"""Compare the job with its alternatives on the same account, in turn: speed, cost and lost rows.

    python benchmarks/compare.py --repeats 3

Peers run in their own environments, which are built from `peers/*.txt`. Prints a table, and writes the figures as JSON
and as a chart next to `docs/performance.md`. Figures are medians. A quiet run repeats the command when nothing is new.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import socket
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import duckdb
import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "pipelines"), str(ROOT / "benchmarks")]

from changing import changing_account  # noqa: E402
from measure import (  # noqa: E402
    BUILD,
    PageServer,
    cpu_seconds_of,
    fresh_folder,
    own_command,
    own_environment,
    pages,
    python_of,
    used,
)

PEERS = ROOT / "benchmarks" / "peers"
RESULTS = ROOT / "docs" / "performance.json"
CHART = ROOT / "docs" / "performance.svg"
TARGET = {
    "path": "singer.duckdb",
    "default_target_schema": "account",
    "batch_size_rows": 100_000,
    "add_metadata_columns": True,
}

Ids = tuple[set[str], set[str]]


@dataclass(frozen=True)
class Contestant:
    """A tool to measure. `command` builds its command line; `tables` are its tables of chats and of messages."""

    title: str
    command: Callable[[], list[str]]
    database: str
    tables: tuple[str, str]
    environment: Callable[[str, str, Path], dict[str, str]] = lambda url, key, _folder: {
        "BENCH_URL": url,
        "BENCH_KEY": key,
    }

    def count_missing(self, folder: Path, *expected: set[str]) -> int:
        """Return how many of the expected chats and messages its database lacks."""
        with duckdb.connect(str(folder / self.database), read_only=True) as connection:
            stored = [
                {str(row[0]) for row in connection.execute(f"SELECT id FROM {table}").fetchall()}  # noqa: S608
                for table in self.tables
            ]
        return sum(len(ids - rows) for ids, rows in zip(expected, stored, strict=True))


def singer() -> list[str]:
    python = python_of("singer")
    tap = [str(python), str(PEERS / "tap_msgbubbles.py"), "--config", "tap.json"]
    target = [str(python.with_name("target-duckdb")), "--config", "target.json"]
    # The next run begins at the last state.
    return [
        "bash", "-euo", "pipefail", "-c",
        f"echo '{{}}' > tap.json; echo {shlex.quote(json.dumps(TARGET))} > target.json; "
        f"{shlex.join(tap)} $(test -s state.json && echo --state state.json) | {shlex.join(target)} > states.jsonl; "
        "tail -n 1 states.jsonl > state.json",
    ]  # fmt: skip


CONTESTANTS = {
    "ours": Contestant(
        "this project",
        lambda: own_command("--no-transform"),
        "bench.duckdb",
        ("msgbubbles.chats", "msgbubbles.messages"),
        own_environment,
    ),
    "floor": Contestant(
        "the floor", lambda: [sys.executable, str(PEERS / "floor.py")], "floor.duckdb", ("chats", "messages")
    ),
    "dlt": Contestant(
        "dlt rest_api",
        lambda: [str(python_of("dlt_rest_api")), str(PEERS / "dlt_rest_api.py")],
        "dlt.duckdb",
        ("account.chats", "account.messages"),
    ),
    "singer": Contestant("Singer SDK, target-duckdb", singer, "singer.duckdb", ("account.chats", "account.messages")),
    "airbyte": Contestant(
        "PyAirbyte",
        lambda: [str(python_of("airbyte")), str(PEERS / "pyairbyte.py")],
        "airbyte.duckdb",
        ("account.chats", "account.messages"),
    ),
}


@dataclass(frozen=True)
class Figures:
    """Figures of one contestant.

    `server_share` is the server's load as a share of one core. `lost` counts the rows that existed before the first run
    and are missing after it; `lost_for_good` counts those still missing after another run.
    """

    first_seconds: float
    first_cpu_seconds: float
    rows_per_second: float
    first_peak_mb: float
    first_requests: int
    server_share: float
    missing: int
    quiet_seconds: float
    quiet_cpu_seconds: float
    quiet_peak_mb: float
    quiet_requests: int
    lost: int | None = None
    lost_for_good: int | None = None


def measure(name: str, contestant: Contestant, server: PageServer, ids: Ids) -> Figures:
    folder = fresh_folder(name)
    environment = contestant.environment(server.url, server.key, folder)
    command = contestant.command()
    server.taken()
    before = cpu_seconds_of(server.pid)
    first = used(command, folder, environment)
    busy = cpu_seconds_of(server.pid) - before
    first_taken = server.taken()
    missing = contestant.count_missing(folder, *ids)
    quiet = used(command, folder, environment)
    return Figures(
        round(first.wall_seconds, 2),
        round(first.cpu_seconds, 2),
        round(sum(map(len, ids)) / first.wall_seconds),
        round(first.peak_bytes / 1e6),
        first_taken["requests"],
        round(busy / first.wall_seconds, 3),
        missing,
        round(quiet.wall_seconds, 2),
        round(quiet.cpu_seconds, 2),
        round(quiet.peak_bytes / 1e6),
        server.taken()["requests"],
    )


def measure_losses(name: str, contestant: Contestant, figures: Figures) -> Figures:
    """Measure lost rows on an account with ties across page boundaries, and with changes while it is read."""
    folder = fresh_folder(f"{name}-changing")
    with changing_account() as (server, changes):
        environment = contestant.environment(server.url, server.key, folder)
        before = set(changes.chats), set(changes.messages)
        used(contestant.command(), folder, environment)
        lost = contestant.count_missing(folder, *before)
        changes.is_on = False
        everything = set(changes.chats), set(changes.messages)
        used(contestant.command(), folder, environment)
        return replace(figures, lost=lost, lost_for_good=contestant.count_missing(folder, *everything))


def median(runs: list[Figures]) -> Figures:
    rows = [asdict(run) for run in runs]
    names = [name for name in rows[0] if rows[0][name] is not None]
    return Figures(**{name: statistics.median(row[name] for row in rows) for name in names})


def pages_per_second(server: PageServer, count: int = 2000) -> float:
    """Measure the server's speed over one connection, with a client that parses no row."""
    host, _, port = server.url.removeprefix("http://").removesuffix("/v1").partition(":")
    request = b"GET /v1/messages?limit=100&before=2026-06-01T00:00:00.000Z HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection((host, int(port))) as connection:
        began = time.monotonic()
        for _ in range(count):
            connection.sendall(request)
            received, size = b"", None
            while size is None or len(received) < size:
                received += connection.recv(1 << 18)
                if size is None and b"\r\n\r\n" in received:
                    head, _, _ = received.partition(b"\r\n\r\n")
                    size = len(head) + 4 + int(head.rpartition(b"Content-Length: ")[2])
        return count / (time.monotonic() - began)


def print_table(figures: dict[str, Figures]) -> None:
    table = Table(box=None)
    headings = (
        "", "first load s", "CPU s", "rows/s", "peak MB", "requests", "missing", "server busy",
        "quiet run s", "CPU s", "peak MB", "requests", "lost", "for good",
    )  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for name, result in figures.items():
        table.add_row(
            CONTESTANTS[name].title,
            f"{result.first_seconds:.1f}",
            f"{result.first_cpu_seconds:.1f}",
            f"{result.rows_per_second:,.0f}",
            f"{result.first_peak_mb:.0f}",
            f"{result.first_requests:,.0f}",
            f"{result.missing}",
            f"{result.server_share:.0%}",
            f"{result.quiet_seconds:.1f}",
            f"{result.quiet_cpu_seconds:.1f}",
            f"{result.quiet_peak_mb:.0f}",
            f"{result.quiet_requests:,.0f}",
            *("" if value is None else str(value) for value in (result.lost, result.lost_for_good)),
        )
    Console(width=max(140, Console().width)).print(table)


def main(
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    chats: Annotated[int, typer.Option()] = 20_000,
    messages: Annotated[int, typer.Option()] = 200_000,
    only: Annotated[list[str] | None, typer.Option(help=f"Contestants to run: {', '.join(CONTESTANTS)}.")] = None,
    chart: Annotated[bool, typer.Option(help="Write the results into docs/.")] = True,
) -> None:
    """Measure, print, and write the results."""
    chosen = {name: contestant for name, contestant in CONTESTANTS.items() if not only or name in only}
    for contestant in chosen.values():
        contestant.command()  # builds its environment
    with pages(chats, messages) as server:
        fastest = pages_per_second(server)
        ids = read_ids(chats, messages)
        runs: dict[str, list[Figures]] = {name: [] for name in chosen}
        for _ in range(repeats):
            for name, contestant in chosen.items():
                runs[name].append(measure(name, contestant, server, ids))
    figures = {name: measure_losses(name, contestant, median(runs[name])) for name, contestant in chosen.items()}
    print_table(figures)
    sys.stdout.write(f"The server answers up to {fastest:,.0f} pages a second ({fastest * 100:,.0f} rows).\n")
    if chart:
        write_results(figures, fastest, repeats, chats, messages)
        used([python_of("chart"), ROOT / "benchmarks" / "chart.py", RESULTS, CHART], fresh_folder("chart"))


def read_ids(chats: int, messages: int) -> Ids:
    """Return the ids of the rows that the server serves."""
    rows = BUILD / f"{chats}-{messages}"
    return tuple(  # type: ignore[return-value]
        {row["id"] for row in json.loads(b"[" + (rows / f"{name}.json").read_bytes().rstrip(b",") + b"]")}
        for name in ("chats", "messages")
    )


def write_results(figures: dict[str, Figures], fastest: float, repeats: int, chats: int, messages: int) -> None:
    results: dict[str, Any] = {
        "chats": chats,
        "messages": messages,
        "repeats": repeats,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[1],
        "server_pages_per_second": round(fastest),
        "contestants": {name: {"title": CONTESTANTS[name].title, **asdict(result)} for name, result in figures.items()},
    }
    previous = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(previous | results, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
