"""Measure what users pay for every day: runs with little or nothing new, and the wait for an event.

    python benchmarks/daily.py --messages 20000

Next to the job runs what a user would wire from other parts: dlt's `rest_api` source, or a tap of the Singer SDK with
`target-duckdb`, and then `dbt build` with three models and six tests. They have this project's versions of dlt, dbt and
DuckDB; the Singer target needs a DuckDB of its own, in an environment of its own, and both open the same file. All run
in turn on one account. Prints the figures and their ratios, and adds them to `docs/performance.json`.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import sys
import tempfile
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "pipelines"), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from latency import DATABASE, measure_events, watching  # noqa: E402

from compare import singer  # noqa: E402
from helpers.job import CHATS  # noqa: E402
from measure import cpu_seconds_of, own_environment, used  # noqa: E402
from msgbubbles_sync.sandbox import Account, Server, seed, serve  # noqa: E402
from msgbubbles_sync.sandbox.seed import advance  # noqa: E402

PEERS = ROOT / "benchmarks" / "peers"
RESULTS = ROOT / "docs" / "performance.json"
NEW_MESSAGES = 40
# With cron every five minutes, an event waits for half of that.
CRON_WAIT_SECONDS = 150.0


@dataclass
class Tool:
    """A command that brings its marts up to date, and its folder. `figures` has the CPU seconds of runs, by kind."""

    folder: Path
    command: list[str]
    environment: dict[str, str]
    figures: dict[str, list[float]] = field(default_factory=dict)

    def run(self, kind: str) -> None:
        self.figures.setdefault(kind, []).append(used(self.command, self.folder, self.environment).cpu_seconds)

    @property
    def medians(self) -> dict[str, float]:
        return {kind: round(statistics.median(runs), 2) for kind, runs in self.figures.items()}


def build_ours(server: Server, folder: Path) -> Tool:
    folder.mkdir()
    environment = own_environment(server.url, server.key, folder) | {"TRANSFORMS__DATA_TESTS": "hold"}
    return Tool(folder, [sys.executable, str(CHATS), "--database", DATABASE, "--quiet"], environment)


def build_peer(server: Server, folder: Path, load: str, database: str, loaded: str) -> Tool:
    """Build a tool that loads by a shell command into a database, where a column says when a row was loaded."""
    folder.mkdir()
    dbt = [str(Path(sys.executable).with_name("dbt")), "--quiet", "build", "--project-dir", str(PEERS / "dbt")]
    dbt += ["--profiles-dir", str(PEERS / "dbt"), "--target-path", str(folder / "target")]
    dbt += ["--log-path", str(folder / "logs")]
    environment = {"BENCH_URL": server.url, "BENCH_KEY": server.key}
    environment |= {"PEER_DATABASE": str(folder / database), "PEER_LOADED": loaded}
    return Tool(folder, ["bash", "-euo", "pipefail", "-c", f"{load}; {shlex.join(dbt)}"], environment)


def measure_runs(account: Account, tools: list[Tool], repeats: int) -> None:
    # Later runs repeat what dbt executes in one of the first, once no table is created any more.
    for kind in ("first", "warm", "warm", "warm"):
        for tool in tools:
            tool.run(kind)
        advance(account, datetime.now(UTC), minimum=NEW_MESSAGES)
    for tool in tools:
        tool.run("warm")
    for _ in range(repeats):
        for tool in tools:
            tool.run("quiet")
        advance(account, datetime.now(UTC), minimum=NEW_MESSAGES)
        for tool in tools:
            tool.run("changed")


def measure_cycles(account: Account, tool: Tool, repeats: int) -> None:
    with watching(tool.folder, tool.environment, 1.0) as (process, wait):
        for _ in range(2):
            wait()
        for kind in ("watch, quiet", "watch, changed"):
            for _ in range(repeats):
                if kind == "watch, changed":
                    wait()  # so that the change falls between two cycles
                    advance(account, datetime.now(UTC), minimum=NEW_MESSAGES)
                before = cpu_seconds_of(process.pid)
                wait()
                tool.figures.setdefault(kind, []).append(cpu_seconds_of(process.pid) - before)


def main(
    messages: Annotated[int, typer.Option(help="Messages of the account.")] = 20_000,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    seconds: Annotated[int, typer.Option(help="Seconds with an event each.")] = 120,
    write: Annotated[bool, typer.Option(help="Add the results to docs/performance.json.")] = True,
) -> None:
    """Measure, print, and write the results."""
    with ExitStack() as stack:
        account = stack.enter_context(closing(Account()))
        seed(account, now=datetime.now(UTC), chats=max(messages // 10, 5), messages=messages, days=60)
        server = stack.enter_context(serve(account, None))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ours = build_ours(server, folder / "ours")
        dlt = shlex.join([sys.executable, str(PEERS / "dlt_rest_api.py")])
        peers = {
            "dlt_and_dbt": build_peer(server, folder / "dlt", dlt, "dlt.duckdb", "_dlt_load_id"),
            "singer_and_dbt": build_peer(server, folder / "singer", singer()[-1], "singer.duckdb", "_sdc_batched_at"),
        }
        measure_runs(account, [ours, *peers.values()], repeats)
        measure_cycles(account, ours, repeats)
        latency = measure_events(account, server, ours.folder, ours.environment, seconds)
    of_peer = {"quiet": "quiet", "watch, quiet": "quiet", "changed": "changed", "watch, changed": "changed"}
    own = ours.medians
    results: dict[str, Any] = {
        "messages": messages,
        "ours_cpu_seconds": own,
        **{f"{name}_cpu_seconds": peer.medians for name, peer in peers.items()},
        "ratios": {
            name: {kind: round(peer.medians[same] / own[kind], 1) for kind, same in of_peer.items()}
            for name, peer in peers.items()
        },
        "event_seconds": latency.as_dict(),
        "event_seconds_with_cron": CRON_WAIT_SECONDS,
        "load_average": os.getloadavg()[1],
    }
    typer.echo(json.dumps(results, indent=2))
    if write:
        previous = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(previous | {"daily": results}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
