"""One account in each destination: seconds of the first load, of all marts, and of 1,000 new messages.

    python benchmarks/engines.py --messages 200000 --with-spark

Prints a table; in brackets, how many times as long as in a DuckDB file. PostgreSQL is one of its own on this machine;
Spark needs `make test-spark` once, and runs on all cores.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "pipelines"), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from goals import account_of, write_messages  # noqa: E402
from helpers import postgres  # noqa: E402
from helpers.lake import lake_at  # noqa: E402
from measure import own_command, own_environment, used  # noqa: E402
from msgbubbles_sync.sandbox import Server, serve  # noqa: E402

NEW_MESSAGES, IN_CHATS = 1000, 200
STEPS = ("first load", "all marts", "load of 1,000", "marts of 1,000", "peak MB")


@contextmanager
def environment_of(engine: str, folder: Path) -> Iterator[dict[str, str]]:
    """How a job finds an empty one of these."""
    if engine == "duckdb":
        yield {}
    elif engine == "filesystem":
        yield {"DESTINATION__FILESYSTEM__BUCKET_URL": str(folder / "lake")}
    else:
        with postgres.running(folder / "server") as address:
            yield lake_at(address, folder / "lake") | {"DESTINATION__POSTGRES__CREDENTIALS": address}


def seconds_in(engine: str, server: Server, environment: dict[str, str], folder: Path) -> list[float]:
    """What the steps take."""
    database = ["--destination", engine, "--database", str(folder / "bench.duckdb")]
    given = own_environment(server.url, server.key, folder) | environment
    found, peak = [], 0
    for _ in range(2):
        for options in (["--no-transform"], []):
            usage = used(own_command("--json", *database, *options), folder, given)
            found.append(usage.wall_seconds)
            peak = max(peak, usage.peak_bytes)
        write_messages(server, IN_CHATS, NEW_MESSAGES)
    return [*found, peak / 1e6]


def main(messages: Annotated[int, typer.Option()] = 200_000, with_spark: bool = False) -> None:
    engines = ["duckdb", "postgres", "ducklake", *["filesystem"] * with_spark]
    table = Table(box=None)
    for heading in ("", *STEPS):
        table.add_column(heading, justify="right" if heading else "left")
    base: list[float] = []
    for engine in engines:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            environment = stack.enter_context(environment_of(engine, folder))
            # The same account again: what one engine's job wrote in is not there for the next.
            server = stack.enter_context(serve(account_of(messages // 10, messages)))
            found = seconds_in(engine, server, environment, folder)
        base = base or found
        cells = [f"{one:.1f} ({one / first:.1f})" for one, first in zip(found, base, strict=True)]
        table.add_row(engine, *cells[:-1], f"{found[-1]:.0f}")
        Console(stderr=True).print(f"{engine}: {', '.join(cells)}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
