"""Print the results of `plan`, `check`, `verify` and `status`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import datetime

from rich.console import Console
from rich.table import Table

from msgbubbles.source.coverage import Coverage
from msgbubbles.source.run import Run
from msgbubbles.times import HOUR_MS, from_epoch_ms
from msgbubbles_sync.check_result import CheckResult
from msgbubbles_sync.inspect.local_state import LocalState
from msgbubbles_sync.inspect.plan import Step
from msgbubbles_sync.inspect.status import STREAMS, Status, describe_failed_runs
from msgbubbles_sync.inspect.verify import VerifyResult
from msgbubbles_sync.run_log import describe_failed_parts, describe_failed_reads, format_start
from msgbubbles_sync.run_record import RunRecord
from msgbubbles_sync.text import estimate_minutes, format_count, format_span

from .console import Reporter, build_table, count_requests, name_as_called, print_warning

DIFFERENCES_SHOWN = 50
MARKS = {"ok": "[green]ok[/green]", "info": "[cyan]--[/cyan]", "failed": "[red]!![/red]"}
TIMELINE_CELLS = 60
# The table of the runs needs this many columns of a terminal; a narrower one gets the outcomes only.
NARROW_WIDTH = 70
# The darker a cell, the more recently it was read.
SHADES = ((HOUR_MS, "█", "1 hour"), (24 * HOUR_MS, "▓", "24 hours"), (7 * 24 * HOUR_MS, "▒", "7 days"))
OLD, NEVER = "░", "·"


def print_plan(reporter: Reporter, steps: list[Step], changed: int | None, per_minute: int) -> None:
    """Print what a run would read. `changed` is how many of the newest chats have changed, null without a probe."""
    requests = sum(step.requests or 0 for step in steps)
    is_open = any(step.requests is None for step in steps)

    def show(console: Console) -> None:
        text = ("stream", "what", "from", "to")
        table = build_table((*text, "requests"), left=text)
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


def print_status(status: Status, local: LocalState, now: datetime, console: Console) -> None:
    """Print a status for people."""
    if status.last_complete_at is None:
        console.print("No run has completed yet.")
    else:
        age = format_span(60 * (status.age_minutes or 0.0))
        console.print(f"Fresh as of {status.last_complete_at:%Y-%m-%d %H:%M} UTC, {age} ago.")
    for name, holder in (("watch", status.watch), ("job", status.job)):
        if holder is not None:
            console.print(f"A {name} is {'stuck' if holder.is_stalled else 'active'}: {holder}", soft_wrap=True)
    if status.job is not None and status.job.progress:
        console.print(f"         {status.job.progress}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{format_count(status.requests_last_hour, 'request')} in the last hour.")
    now_ms = int(now.timestamp() * 1000)
    for stream in STREAMS:
        begin_ms = max(local.find_oldest_ms(stream) or now_ms - 24 * HOUR_MS, local.settings.source.start_ms)
        line = timeline(local.load_coverage(stream), begin_ms, now_ms, max(min(TIMELINE_CELLS, console.width - 26), 10))
        console.print(
            f"{stream:>8} {from_epoch_ms(begin_ms):%Y-%m-%d} [green]{line}[/green] now", highlight=False, soft_wrap=True
        )
        if missing := status.missing[stream]:
            verb = "was" if missing == 1 else "were"
            console.print(
                f"         {format_count(missing, 'interval')} {verb} never read; the next run continues there"
            )
        if overflows := status.overflows[stream]:
            console.print(
                f"         {format_count(overflows, 'tie overflow')}: rows of these timestamps may be missing"
            )
    shades = "  ".join(f"{shade} read within {span}" for _, shade, span in SHADES)
    console.print(f"         [dim]{shades}  {OLD} longer ago  {NEVER} never[/dim]", highlight=False, soft_wrap=True)
    warnings = [warning for warning in (status.other_job, status.shared_key) if warning]
    for line in [*describe_failed_reads(status.failed_reads), *warnings]:
        print_warning(console, line)
    if status.runs:
        console.print(_build_table(status.runs, is_narrow=console.width < NARROW_WIDTH))
    failed_parts = describe_failed_parts(status.runs[-1]) if status.runs else ()
    for line in [*describe_failed_runs(status.runs), *failed_parts]:
        print_warning(console, line)


def _build_table(runs: list[RunRecord], *, is_narrow: bool) -> Table:
    headings = ("run", "outcome", "requests", "new", "changed", "rejected", "seconds")
    table = build_table(headings[:2] if is_narrow else headings, left=headings[:2])
    for record in reversed(runs):
        tables, streams = (record.get("tables") or {}).values(), (record.get("streams") or {}).values()
        row = [
            format_start(record),
            f"{record['outcome']} ({record['exit_status']})",
            f"{record.get('requests_total') or 0:,}",
            f"{sum(counts['new'] for counts in tables):,}",
            f"{sum(counts['changed'] for counts in tables):,}",
            f"{sum(counts['rejected'] for counts in streams):,}",
            f"{_compute_seconds(record):.1f}",
        ]
        table.add_row(*row[: len(table.columns)])
    return table


def timeline(coverage: Coverage, begin_ms: int, now_ms: int, cell_count: int) -> str:
    """Return a character for each part of the time from `begin_ms` to now: the shade of what was read longest ago."""
    cells = []
    width = max((now_ms - begin_ms) / cell_count, 1)
    newest_ms = coverage.newest_ms or 0
    for number in range(cell_count):
        lo, hi = begin_ms + round(number * width), begin_ms + round((number + 1) * width)
        if lo > newest_ms and coverage.intervals:
            # There was nothing newer than the newest row when it was last read.
            reads = [coverage.intervals[-1][2]]
        else:
            hi = min(hi, newest_ms + 1)
            inside = [(max(a, lo), min(b, hi), read) for a, b, read in coverage.intervals if a < hi and b > lo]
            is_whole = sum(b - a for a, b, _ in inside) >= hi - lo
            reads = [read for _, _, read in inside] if is_whole else []
        shade = next((shade for limit, shade, _ in SHADES if reads and now_ms - min(reads) <= limit), OLD)
        cells.append(shade if reads else NEVER)
    return "".join(cells)


def _compute_seconds(record: RunRecord) -> float:
    if not record.get("ended_at"):
        return 0.0
    return (datetime.fromisoformat(record["ended_at"]) - datetime.fromisoformat(record["started_at"])).total_seconds()


def _format_minute(at_ms: int | None) -> str:
    return "" if at_ms is None else f"{from_epoch_ms(at_ms):%Y-%m-%d %H:%M}"
