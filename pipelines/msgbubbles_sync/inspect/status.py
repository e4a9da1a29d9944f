"""How the copy stands: how fresh it is, what has been read, what is left, what the last runs did."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from msgbubbles.source.coverage import Coverage
from msgbubbles.source.state import FailedRead
from msgbubbles.times import HOUR_MS, from_epoch_ms
from msgbubbles_sync.lock import Holder, read_holder
from msgbubbles_sync.run_log import describe_failed_reads

from .local_state import Known

TIMELINE_CELLS = 60
RUNS_SHOWN = 10
# Darker was read more lately.
SHADES = ((HOUR_MS, "█"), (24 * HOUR_MS, "▓"), (7 * 24 * HOUR_MS, "▒"))
OLD, NEVER = "░", "·"


@dataclass(frozen=True)
class Status:
    """`age_minutes` is since the last run that was complete began; null when there was none. `missing` are stretches
    that were never read, by stream. `job` is the one that runs now; null when none does.
    """

    last_complete_at: datetime | None
    age_minutes: float | None
    missing: dict[str, int]
    standing: dict[str, int]
    requests_last_hour: int
    failed_reads: list[FailedRead]
    runs: list[dict[str, Any]]
    job: Holder | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "last_complete_at": self.last_complete_at.isoformat() if self.last_complete_at else None,
            "age_minutes": None if self.age_minutes is None else round(self.age_minutes, 1),
            "missing_stretches": self.missing,
            "tie_overflows": self.standing,
            "failed_reads": [msgspec.structs.asdict(entry) for entry in self.failed_reads],
            "requests_last_hour": self.requests_last_hour,
            "job": None if self.job is None else str(self.job),
            "runs": self.runs,
        }


def status_of(known: Known, start_ms: int, now: datetime) -> Status:
    """Everything that was asked for has been read by a run that ended with 0 or 3."""
    records = known.records()
    complete = [record for record in records if record.get("exit_status") in (0, 3)]
    last = datetime.fromisoformat(complete[-1]["started_at"]) if complete else None
    hour_ago = now - timedelta(hours=1)
    streams = ("messages", "chats")
    return Status(
        last_complete_at=last,
        age_minutes=None if last is None else (now - last).total_seconds() / 60,
        missing={stream: len(known.coverage(stream).gaps(start_ms)) for stream in streams},
        standing={stream: len(overflows(known, stream)) for stream in streams},
        requests_last_hour=sum(
            record.get("requests_total") or 0
            for record in records
            if datetime.fromisoformat(record["started_at"]) > hour_ago
        ),
        failed_reads=known.states().failed_reads,
        runs=records[-RUNS_SHOWN:],
        job=_job(known),
    )


def _job(known: Known) -> Holder | None:
    with suppress(OSError):  # another user's
        return read_holder(known.workspace.folder)
    return None


def overflows(known: Known, stream: str) -> list[Any]:
    """Tie overflows that are neither repaired nor accepted."""
    return known.states().of_list(stream).overflows


def show(status: Status, known: Known, start_ms: int, now: datetime, console: Console) -> None:
    """Print a status for people."""
    if status.last_complete_at is None:
        console.print("No run has been complete yet.")
    else:
        console.print(f"Fresh as of {status.last_complete_at:%Y-%m-%d %H:%M} UTC, {_age(status.age_minutes)} ago.")
    if status.job is not None:
        console.print(f"A job {'is stuck' if status.job.is_stalled else 'runs'}: {status.job}", soft_wrap=True)
    console.print(f"{status.requests_last_hour:,} requests in the last hour.")
    now_ms = int(now.timestamp() * 1000)
    for stream in ("messages", "chats"):
        coverage = known.coverage(stream)
        begin_ms = max(known.oldest_ms(stream) or now_ms - 24 * HOUR_MS, start_ms)
        line = timeline(coverage, begin_ms, now_ms)
        console.print(
            f"{stream:>8} {from_epoch_ms(begin_ms):%Y-%m-%d} [green]{line}[/green] now", highlight=False, soft_wrap=True
        )
        if status.missing[stream]:
            console.print(f"         {status.missing[stream]:,} stretches were never read; the next run goes on there")
        if status.standing[stream]:
            console.print(f"         {status.standing[stream]:,} tie overflows: rows of these instants may be missing")
    shades = "  ".join(f"{shade} read within {_hours(ms)}" for ms, shade in SHADES)
    console.print(f"         [dim]{shades}  {OLD} longer ago  {NEVER} never[/dim]", highlight=False, soft_wrap=True)
    for line in describe_failed_reads(status.failed_reads):
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for heading in ("run", "outcome", "requests", "new", "changed", "rejected", "seconds"):
        table.add_column(heading, justify="left" if heading in ("run", "outcome") else "right")
    for record in reversed(status.runs):
        tables, streams = record.get("tables") or {}, record.get("streams") or {}
        table.add_row(
            str(record["started_at"])[:16].replace("T", " "),
            f"{record['outcome']} ({record['exit_status']})",
            f"{record.get('requests_total') or 0:,}",
            f"{sum(one['new'] for one in tables.values()):,}",
            f"{sum(one['changed'] for one in tables.values()):,}",
            f"{sum(one['rejected'] for one in streams.values()):,}",
            f"{_seconds(record):.1f}",
        )
    if status.runs:
        console.print(table)


def timeline(coverage: Coverage, begin_ms: int, now_ms: int) -> str:
    """One character for each part of the time from `begin_ms` to now; the worst that is in it."""
    cells = []
    width = max((now_ms - begin_ms) / TIMELINE_CELLS, 1)
    newest_ms = coverage.newest_ms or 0
    for number in range(TIMELINE_CELLS):
        lo, hi = begin_ms + round(number * width), begin_ms + round((number + 1) * width)
        if lo > newest_ms and coverage.intervals:
            # Nothing is there since the newest row, as of the last reading.
            reads = [coverage.intervals[-1][2]]
            whole = True
        else:
            hi = min(hi, newest_ms + 1)
            inside = [(max(a, lo), min(b, hi), read) for a, b, read in coverage.intervals if a < hi and b > lo]
            reads = [read for _, _, read in inside]
            whole = sum(b - a for a, b, _ in inside) >= hi - lo
        age_ms = now_ms - min(reads) if reads and whole else None
        shade = OLD if age_ms is not None else NEVER
        cells.append(next((mark for limit, mark in SHADES if age_ms is not None and age_ms <= limit), shade))
    return "".join(cells)


def _seconds(record: dict[str, Any]) -> float:
    if not record.get("ended_at"):
        return 0.0
    return (datetime.fromisoformat(record["ended_at"]) - datetime.fromisoformat(record["started_at"])).total_seconds()


def _age(minutes: float | None) -> str:
    minutes = minutes or 0.0
    if minutes < 120:
        return f"{minutes:.0f} minutes"
    return f"{minutes / 60:.0f} hours" if minutes < 2880 else f"{minutes / 1440:.0f} days"


def _hours(ms: int) -> str:
    hours = ms // HOUR_MS
    return "1 hour" if hours == 1 else f"{hours} hours" if hours <= 48 else f"{hours // 24} days"
