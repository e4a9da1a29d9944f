"""Show how fresh and how complete the copy is, and what the last runs did."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec
from rich.console import Console
from rich.table import Table

from msgbubbles.source.coverage import Coverage
from msgbubbles.source.state import FailedRead
from msgbubbles.times import HOUR_MS, from_epoch_ms
from msgbubbles_sync.destinations.claims import explain_other_job, explain_shared_key
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import Holder, read_holder
from msgbubbles_sync.run_log import RunRecord, describe_failed_parts, describe_failed_reads
from msgbubbles_sync.text import format_count, format_span

from .local_state import LocalState

STREAMS = ("messages", "chats")
TIMELINE_CELLS = 60
# The table of the runs needs this many columns of a terminal; a narrower one gets the outcomes only.
NARROW_WIDTH = 70
RUNS_SHOWN = 10
REASONS_SHOWN = 3
# The darker a cell, the more recently it was read.
SHADES = ((HOUR_MS, "█", "1 hour"), (24 * HOUR_MS, "▓", "24 hours"), (7 * 24 * HOUR_MS, "▒", "7 days"))
OLD, NEVER = "░", "·"


@dataclass(frozen=True)
class Status:
    """How fresh and how complete a copy is.

    `last_complete_at` is when the last complete run started, null if there was none. By stream, `missing` counts the
    intervals that were never read, and `overflows` the tie overflows that are neither repaired nor accepted. `job` is
    the active one, and `watch` the process that runs one after another. `shared_key` says which other warehouses are
    filled with the same API key, and `other_job` that a job of another machine loads this one.
    """

    last_complete_at: datetime | None
    age_minutes: float | None
    missing: dict[str, int]
    overflows: dict[str, int]
    requests_last_hour: int
    failed_reads: list[FailedRead]
    runs: list[RunRecord]
    job: Holder | None = None
    watch: Holder | None = None
    shared_key: str | None = None
    other_job: str | None = None

    def as_dict(self) -> dict[str, object]:
        return {
            "last_complete_at": self.last_complete_at.isoformat() if self.last_complete_at else None,
            "age_minutes": None if self.age_minutes is None else round(self.age_minutes, 1),
            "missing_stretches": self.missing,
            "tie_overflows": self.overflows,
            "failed_reads": [msgspec.structs.asdict(entry) for entry in self.failed_reads],
            "requests_last_hour": self.requests_last_hour,
            "job": None if self.job is None else str(self.job),
            "job_progress": None if self.job is None else self.job.progress,
            "watch": None if self.watch is None else str(self.watch),
            "shared_key": self.shared_key,
            "other_job": self.other_job,
            "runs": self.runs,
        }


def build_status(local: LocalState, start_ms: int, now: datetime) -> Status:
    """Build the status of a warehouse."""
    records = local.records
    complete = [record for record in records if record["outcome"] == "complete"]
    last = datetime.fromisoformat(complete[-1]["started_at"]) if complete else None
    hour_ago = now - timedelta(hours=1)
    return Status(
        last_complete_at=last,
        age_minutes=None if last is None else (now - last).total_seconds() / 60,
        missing={stream: len(local.load_coverage(stream).gaps(start_ms)) for stream in STREAMS},
        overflows={stream: len(local.states.get_list(stream).overflows) for stream in STREAMS},
        requests_last_hour=sum(
            record.get("requests_total") or 0
            for record in records
            if datetime.fromisoformat(record["started_at"]) > hour_ago
        ),
        failed_reads=local.states.failed_reads,
        runs=records[-RUNS_SHOWN:],
        job=_find_holder(local, "job"),
        watch=_find_holder(local, "watch"),
        shared_key=explain_shared_key(local.workspace, local.settings),
        other_job=_find_other_job(local),
    )


def _find_other_job(local: LocalState) -> str | None:
    with suppress(UsageError):  # the tables cannot be opened, as `check` says
        return explain_other_job(local.workspace, local.destination)
    return None


def _find_holder(local: LocalState, lock: str) -> Holder | None:
    with suppress(OSError):  # the lock is another user's
        return read_holder(local.workspace.folder, lock)
    return None


def print_status(status: Status, local: LocalState, start_ms: int, now: datetime, console: Console) -> None:
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
        begin_ms = max(local.find_oldest_ms(stream) or now_ms - 24 * HOUR_MS, start_ms)
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
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    if status.runs:
        console.print(_build_table(status.runs, is_narrow=console.width < NARROW_WIDTH))
    for line in [*describe_failures(status.runs), *(describe_failed_parts(status.runs[-1]) if status.runs else ())]:
        console.print(line, style="yellow", markup=False, soft_wrap=True)


def describe_failures(runs: list[RunRecord]) -> list[str]:
    """Return why runs failed, the newest first; each reason once."""
    reasons: dict[str, str] = {}
    for record in reversed(runs):
        if record.get("error"):
            reasons.setdefault(str(record["error"]), str(record["started_at"])[:16].replace("T", " "))
    return [f"{started_at} {reason}" for reason, started_at in list(reasons.items())[:REASONS_SHOWN]]


def _build_table(runs: list[RunRecord], *, is_narrow: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    headings = ("run", "outcome", "requests", "new", "changed", "rejected", "seconds")
    for heading in headings[:2] if is_narrow else headings:
        table.add_column(heading, justify="left" if heading in ("run", "outcome") else "right")
    for record in reversed(runs):
        tables, streams = (record.get("tables") or {}).values(), (record.get("streams") or {}).values()
        row = [
            str(record["started_at"])[:16].replace("T", " "),
            f"{record['outcome']} ({record['exit_status']})",
            f"{record.get('requests_total') or 0:,}",
            f"{sum(counts['new'] for counts in tables):,}",
            f"{sum(counts['changed'] for counts in tables):,}",
            f"{sum(counts['rejected'] for counts in streams):,}",
            f"{_compute_seconds(record):.1f}",
        ]
        table.add_row(*row[: len(table.columns)])
    return table


def timeline(coverage: Coverage, begin_ms: int, now_ms: int, cell_count: int = TIMELINE_CELLS) -> str:
    """Return a character for each part of the time from `begin_ms` to now: the shade of what was read longest ago."""
    cells = []
    width = max((now_ms - begin_ms) / cell_count, 1)
    newest_ms = coverage.newest_ms or 0
    for number in range(cell_count):
        lo, hi = begin_ms + round(number * width), begin_ms + round((number + 1) * width)
        if lo > newest_ms and coverage.intervals:
            # There was nothing newer than the newest row when it was last read.
            reads, is_whole = [coverage.intervals[-1][2]], True
        else:
            hi = min(hi, newest_ms + 1)
            inside = [(max(a, lo), min(b, hi), read) for a, b, read in coverage.intervals if a < hi and b > lo]
            reads = [read for _, _, read in inside]
            is_whole = sum(b - a for a, b, _ in inside) >= hi - lo
        if reads and is_whole:
            cells.append(next((shade for limit, shade, _ in SHADES if now_ms - min(reads) <= limit), OLD))
        else:
            cells.append(NEVER)
    return "".join(cells)


def _compute_seconds(record: RunRecord) -> float:
    if not record.get("ended_at"):
        return 0.0
    return (datetime.fromisoformat(record["ended_at"]) - datetime.fromisoformat(record["started_at"])).total_seconds()
