"""Measure each destination with the same account: first load, all marts, and 1,000 new messages, in seconds.

    python benchmarks/engines.py --messages 200000 --with-spark

Prints a table, with the ratio to a DuckDB file in brackets; each step runs on every destination in turn. PostgreSQL and
an S3 endpoint run on this machine. Spark needs `make test-spark` once, and uses all cores.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "pipelines"), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from goals import build_account, write_messages  # noqa: E402
from helpers import postgres, s3  # noqa: E402
from helpers.lake import lake_at, lake_in_bucket  # noqa: E402
from measure import own_command, own_environment, used  # noqa: E402
from msgbubbles_sync.sandbox import Server, serve  # noqa: E402

NEW_MESSAGES, IN_CHATS = 1000, 200
STEPS = ("first load", "all marts", "load of 1,000", "marts of 1,000", "peak MB")


# A lake whose files are in a bucket.
BUCKET = "ducklake on S3"


@contextmanager
def open_destination(engine: str, folder: Path) -> Iterator[dict[str, str]]:
    """Yield the variables with which a job finds an empty destination."""
    if engine == "duckdb":
        yield {}
    elif engine == "filesystem":
        yield {"DESTINATION__FILESYSTEM__BUCKET_URL": str(folder / "lake")}
    elif engine == BUCKET:
        with postgres.running(folder / "server") as address, s3.running() as port:
            s3.create_bucket(port, "bench")
            yield lake_in_bucket(address, "bench", port)
    else:
        with postgres.running(folder / "server") as address:
            yield lake_at(address, folder / "lake") | {"DESTINATION__POSTGRES__CREDENTIALS": address}


@dataclass
class Job:
    """A job of one destination, with an account of its own, because each step writes messages to it."""

    engine: str
    folder: Path
    server: Server
    environment: dict[str, str]
    seconds: list[float] = field(default_factory=list)
    peak: int = 0

    def measure(self, *options: str) -> None:
        """Run the job once more."""
        database = ("--destination", self.engine.split()[0], "--database", str(self.folder / "bench.duckdb"))
        variables = own_environment(self.server.url, self.server.key, self.folder) | self.environment
        usage = used(own_command("--json", *database, *options), self.folder, variables)
        self.seconds.append(usage.wall_seconds)
        self.peak = max(self.peak, usage.peak_bytes)
        Console(stderr=True).print(f"{self.engine}: {usage.wall_seconds:.1f}")


def main(messages: Annotated[int, typer.Option()] = 200_000, with_spark: bool = False) -> None:
    engines = ["duckdb", "postgres", "ducklake", BUCKET, *["filesystem"] * with_spark]
    with ExitStack() as stack:
        jobs = []
        for engine in engines:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            environment = stack.enter_context(open_destination(engine, folder))
            server = stack.enter_context(serve(build_account(messages // 10, messages)))
            jobs.append(Job(engine, folder, server, environment))
        for _ in range(2):
            for options in (["--no-transform"], []):
                for job in jobs:  # in turn, so that what else the machine does slows all of them
                    job.measure(*options)
            for job in jobs:
                write_messages(job.server, IN_CHATS, NEW_MESSAGES)
    table = Table(box=None)
    for heading in ("", *STEPS):
        table.add_column(heading, justify="right" if heading else "left")
    for job in jobs:
        cells = [
            f"{value:.1f} ({value / first:.1f})" for value, first in zip(job.seconds, jobs[0].seconds, strict=True)
        ]
        table.add_row(job.engine, *cells, f"{job.peak / 1e6:.0f}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
