"""Show how fresh and how complete the copy is, and what the last runs did."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from msgbubbles.source.state import FailedRead
from msgbubbles_sync.destinations.claims import explain_other_job, explain_shared_key
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.lock import Holder, read_holder
from msgbubbles_sync.run_log import format_start
from msgbubbles_sync.run_record import RunRecord

from .local_state import LocalState

STREAMS = ("messages", "chats")
RUNS_SHOWN = 10
REASONS_SHOWN = 3


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
            "missing_intervals": self.missing,
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


def build_status(local: LocalState, now: datetime) -> Status:
    """Build the status of a warehouse."""
    records, start_ms = local.records, local.settings.source.start_ms
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
        return explain_other_job(local.destination)
    return None


def _find_holder(local: LocalState, lock: str) -> Holder | None:
    with suppress(OSError):  # the lock is another user's
        return read_holder(local.workspace.folder, lock)
    return None


def describe_failed_runs(runs: list[RunRecord]) -> list[str]:
    """Return why runs failed, the newest first; each reason once."""
    reasons: dict[str, str] = {}
    for record in reversed(runs):
        if record.get("error"):
            reasons.setdefault(str(record["error"]), format_start(record))
    return [f"{started_at} {reason}" for reason, started_at in list(reasons.items())[:REASONS_SHOWN]]
