"""Print the results of `plan`, `check` and `verify`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from msgbubbles.source.run import Run
from msgbubbles_sync.check_result import CheckResult
from msgbubbles_sync.inspect.plan import Step
from msgbubbles_sync.inspect.verify import VerifyResult
from msgbubbles_sync.text import estimate_minutes, format_count

from .console import Reporter, count_requests, name_as_called

DIFFERENCES_SHOWN = 50
MARKS = {"ok": "[green]ok[/green]", "info": "[cyan]--[/cyan]", "failed": "[red]!![/red]"}


def print_plan(reporter: Reporter, steps: list[Step], changed: int | None, per_minute: int) -> None:
    """Print what a run would read. `changed` is how many of the newest chats have changed, null without a probe."""
    requests = sum(step.requests or 0 for step in steps)
    is_open = any(step.requests is None for step in steps)

    def show(console: Console) -> None:
        table = Table(box=None, pad_edge=False)
        for heading in ("stream", "what", "from", "to", "requests"):
            table.add_column(heading, justify="right" if heading == "requests" else "left")
        for step in steps:
            count = "unknown" if step.requests is None else f"{step.requests:,}"
            table.add_row(step.stream, step.kind, _format_minute(step.from_ms), _format_minute(step.to_ms), count)
        console.print(table)
        if changed is not None:
            console.print(f"{changed} of the newest 100 chats have changed since the last run.")
        minutes = estimate_minutes(requests, per_minute)
        waits = f", {format_count(minutes, 'minute')} at the limit of {per_minute} a minute" if minutes else ""
        more = ", and an unknown number for intervals that were never read" if is_open else ""
        console.print(f"About {format_count(requests, 'request')}{waits}{more}.")

    as_dict = {"steps": [asdict(step) for step in steps], "requests": requests, "more": is_open, "changed": changed}
    reporter.print(as_dict, show)


def print_checks(reporter: Reporter, results: Iterable[CheckResult]) -> list[CheckResult]:
    """Print the results of checks as they come, and return them."""
    printed = []
    for result in results:
        result = replace(result, what=name_as_called(result.what), fix=name_as_called(result.fix))
        printed.append(result)
        if not reporter.as_json:
            reporter.print(None, lambda console, result=result: _show_check(console, result))  # type: ignore[misc]
    if reporter.as_json:
        sys.stdout.write(json.dumps([asdict(result) for result in printed]) + "\n")
    return printed


def _show_check(console: Console, result: CheckResult) -> None:
    fix = f"\n   -> {result.fix}" if result.state == "failed" else ""
    console.print(f"{MARKS[result.state]} {result.name}: ", end="", soft_wrap=True)
    console.print(f"{result.what}{fix}", markup=False, soft_wrap=True)


def print_verify_result(reporter: Reporter, result: VerifyResult, run: Run) -> None:
    """Print the differences between the warehouse and the API."""

    def show(console: Console) -> None:
        for difference in result.differences[:DIFFERENCES_SHOWN]:
            console.print(str(difference), markup=False, soft_wrap=True)
        more = len(result.differences) - DIFFERENCES_SHOWN
        if more > 0:
            console.print(f"... and {more:,} more; --json lists all")
        compared = ", ".join(f"{count:,} {table}" for table, count in result.compared.items()) or "nothing"
        outcome = "equal" if result.is_equal else format_count(len(result.differences), "difference")
        newer = f"; newer than the last run: {format_count(result.newer, 'row')}" if result.newer else ""
        unreadable = f"; unreadable: {format_count(result.unreadable, 'row')} of the API" if result.unreadable else ""
        console.print(f"Compared {compared}: {outcome}{newer}{unreadable}. {count_requests(run)}.", soft_wrap=True)

    reporter.print(result.as_dict() | {"requests": run.traffic.total}, show)


def _format_minute(at_ms: int | None) -> str:
    return "" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}"
