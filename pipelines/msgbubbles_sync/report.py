"""Report what a run did and how it ended, and build its record for the run log."""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from uuid import uuid4

import duckdb

from msgbubbles.errors import ConfigurationError, Interrupted
from msgbubbles.source.buffer import Changes
from msgbubbles.source.coverage import Coverage
from msgbubbles.source.run import Run
from msgbubbles.source.state import FailedRead
from msgbubbles.tables import Table
from msgbubbles.version import VERSION

from .context import Context
from .dbt.build_result import BuildResult
from .errors import CombinedFileError, InputFileError, RefusedMartsError, TransformError, list_causes
from .lock import AnotherJobRunsError
from .outcome import Outcome, explain_end
from .run_log import RunLog, store, store_failed_reads, to_iso
from .run_record import CoveredRecord, RowCounts, RunRecord, StreamRecord
from .sql import list_columns
from .tables import FAILED_READS, JOB_TABLES, SYNC_RUNS, TABLES
from .webhooks.load import LoadResult

# The part of a run that publishes the file that shows all accounts.
COMBINED_FILE = "combined file"
# The tables whose rows a run counts, in this order.
COUNTED_TABLES = (
    *(f"msgbubbles.{table}" for table in ("chats", "messages", "attachments", "numbers", "rejected_rows")),
    *(f"marts.{table}" for table in ("thread_activity", "group_membership", "chat_title_history")),
)


def ends_run(error: Exception) -> bool:
    """Return whether an error in a part of a run ends all of it.

    The configuration is wrong, a signal arrived, or the job of another machine has the lock.
    """
    kinds = ConfigurationError | KeyboardInterrupt | AnotherJobRunsError
    return any(isinstance(cause, kinds) for cause in list_causes(error))


@dataclass
class RunReport:
    """The work of a run, and how it ended.

    Attributes:
        run: What it has read.
        is_repair: Whether it read single rows only, so that it cannot be complete.
        seconds: Wall-clock seconds by phase; those of dlt's steps are part of `load`.
        events: The webhook events that were loaded last.
        built: What failed when the marts were last built.
        expired: How many rows and texts were removed because the privacy policy limits their age.
        failed_reads: What could not be read, in this run or one before, and is tried again.
        failed_parts: The parts of the run that failed alone, such as the webhook events, and why.
        transform_error: Why the marts could not be built or tested. The rows are published.
        failure: The exception that ended the run, if one did.
        outcome: The outcome as of the last `conclude`; `record` too.
    """

    context: Context
    run: Run
    is_repair: bool = False
    run_id: str = field(default_factory=lambda: str(uuid4()))
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    batches: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    published: bool = False
    published_bytes: int | None = None
    rows_in_warehouse: dict[str, int] = field(default_factory=dict)
    events: LoadResult = field(default_factory=LoadResult)
    built: BuildResult = field(default_factory=BuildResult)
    held_marts: list[str] = field(default_factory=list)
    expired: dict[str, int] = field(default_factory=dict)
    failed_reads: list[FailedRead] = field(default_factory=list)
    failed_parts: dict[str, str] = field(init=False)
    transform_error: TransformError | None = None
    failure: BaseException | None = None
    outcome: Outcome = field(default_factory=lambda: Outcome(0))
    record: RunRecord = field(init=False, repr=False)
    _shown: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.failed_parts = {**self.context.failed_parts}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.add_seconds(phase, time.monotonic() - started)

    def add_seconds(self, phase: str, seconds: float) -> None:
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    @contextmanager
    def isolate(self, part: str) -> Iterator[None]:
        """Let a part of the run fail alone: the others go on, and the next run does this one again."""
        self.failed_parts.pop(part, None)
        try:
            yield
        except Exception as error:
            if ends_run(error) and not isinstance(error, InputFileError):
                raise
            self.add_failed_part(part, explain_end(error, self.context).message)

    def write_table(self, table: Table, write: Callable[[duckdb.DuckDBPyConnection, str], object]) -> None:
        """Write a table that the job writes itself, which may fail alone."""
        destination = self.context.destination
        if table.name not in destination.unwritable:  # which `prepare` has reported
            with self.isolate(table.name):
                destination.write_table(table, write)

    def hold_marts(self) -> None:
        """Let readers keep what could not be built, or fails its data tests; all marts if a build has not finished."""
        destination, transforms = self.context.destination, self.context.settings.transforms
        if self.context.workspace.is_pending("build"):
            with destination.open_writer() as connection:
                self.held_marts = [*list_columns(connection, destination.marts_schema)]
        else:
            failed = self.built.marts if transforms.data_tests == "hold" and not self.built.is_published else ()
            self.held_marts = sorted({*self.built.unbuilt_marts, *failed})

    def store_runs(self) -> None:
        """Write the table of the runs."""
        records = [*RunLog(self.context.workspace.folder).records(), self.record]
        keep_days = self.context.settings.sync.run_days
        oldest = self.run.clock.ages_from() - timedelta(keep_days) if keep_days else None
        self.write_table(SYNC_RUNS, lambda connection, schema: store(connection, records, schema, oldest))

    def store_failed_reads(self) -> None:
        """Write the table of what could not be read."""
        reads = self.failed_reads
        self.write_table(FAILED_READS, lambda connection, schema: store_failed_reads(connection, reads, schema))

    def count_rows(self) -> None:
        """Count the rows of some tables."""
        with self.context.destination.open_writer() as connection:
            for table in COUNTED_TABLES:
                with suppress(duckdb.Error):  # it is missing, or held back, and may not even be readable
                    query = f"SELECT count(*) FROM {table}"  # noqa: S608
                    self.rows_in_warehouse[table] = connection.execute(query).fetchall()[0][0]

    def publish(self) -> None:
        """Publish everything but the held marts, and those that cannot be copied to readers.

        The file that shows all accounts may fail alone.
        """
        self.failed_parts.pop(COMBINED_FILE, None)
        try:
            self.published_bytes = self.context.destination.publish(self.held_marts)
        except RefusedMartsError as error:
            self.add_failed_part("marts", "; ".join(filter(None, (self.failed_parts.get("marts"), str(error)))))
        except CombinedFileError as error:
            self.add_failed_part(COMBINED_FILE, explain_end(error, self.context).message)
        self.published = True

    def add_failed_part(self, part: str, reason: str) -> None:
        self.failed_parts[part] = reason
        if (part, reason) not in self._shown:
            self._shown.add((part, reason))
            self.context.console.fail(f"{part}: {reason}")

    def add_transform_error(self, error: Exception) -> None:
        """Record why the marts could not be built or tested; the rows can be published."""
        if not isinstance(error, TransformError):
            error = TransformError(f"the marts could not be built: {explain_end(error, self.context).message}")
        self.transform_error = error

    @property
    def ended_by(self) -> BaseException | None:
        """The cause of an early end: an exception, a signal, an error of the API, or a limit."""
        if self.failure is not None or isinstance(self.run.halt, Interrupted):
            return self.failure or self.run.halt
        return self.run.error or self.transform_error or self.run.halt

    def conclude(self) -> None:
        """Set the outcome and the record of the run so far."""
        is_lossy = any(progress.rejected or progress.standing for progress in self.run.streams.values())
        is_incomplete = bool(is_lossy or self.failed_reads or self.failed_parts or self.built.failed_tests)
        self.outcome = explain_end(self.ended_by, self.context, is_incomplete=is_incomplete)
        self.record = self._build_record()

    def _build_record(self) -> RunRecord:
        run = self.run
        has_ended = self.failure is not None
        error = self.outcome.message if has_ended else str(run.error or self.transform_error or "") or None
        return {
            "run_id": self.run_id,
            "started_at": self.started_at.isoformat(timespec="milliseconds"),
            "ended_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "outcome": "failed" if error else self._describe_outcome(),
            "exit_status": self.outcome.exit_status,
            "error": error,
            "account": self.context.workspace.account,
            "database": self.context.destination.title,
            "published": self.published,
            "batches": self.batches,
            "requests_total": run.traffic.total,
            "requests": dict(run.traffic.requests),
            "rate_limited": run.traffic.rate_limited,
            "retry_after": run.traffic.retry_after,
            "retries": run.traffic.retries,
            "received_bytes": run.traffic.received_bytes,
            "budget_used": run.traffic.window_requests,
            "budget_per_minute": run.traffic.window_limit,
            "paced_seconds": round(run.traffic.paced_seconds, 3),
            "seconds": {phase: round(spent, 3) for phase, spent in self.seconds.items()},
            "feed": run.feed,
            "tables": {table: _count_rows(changes) for table, changes in run.changes.items()},
            "streams": {name: _build_stream_record(run, name) for name in run.streams},
            "repaired": {what: count for what, count in run.reconciled.items() if count},
            "expired": self.expired,
            "failed_reads": dict(Counter(failed.kind for failed in self.failed_reads)),
            "failed_parts": self.failed_parts,
            "failed_tests": self.built.failed_tests,
            "held_marts": self.held_marts,
            "versions": _find_versions(),
        }

    def _describe_outcome(self) -> str:
        if self.run.stop.is_set():
            return "stopped"
        lacks_rows = self.failed_parts.keys() & (TABLES.keys() - JOB_TABLES.keys())
        is_partial = self.run.halt or self.run.is_unfinished or self.is_repair or lacks_rows
        return "partial" if is_partial else "complete"


def _count_rows(changes: Changes) -> RowCounts:
    counts = RowCounts(new=changes.new, changed=changes.changed, unchanged=changes.unchanged)
    if changes.replaced:
        counts["replaced"] = changes.replaced
    return counts


def _build_stream_record(run: Run, stream: str) -> StreamRecord:
    progress = run.streams[stream]
    return {
        "pages": progress.pages,
        "refresh_pages": progress.refresh_pages,
        "rows": progress.rows,
        "landed": run.count_loaded(stream),  # codespell:ignore landed
        "rejected": progress.rejected,
        "odd": progress.odd,
        "new_fields": sorted(progress.new_fields),
        "order_contradictions": progress.order_contradictions,
        "tie_overflows": sorted(([to_iso(span.from_ms), to_iso(span.to_ms)] for span in progress.standing), key=str),
        "reached_back_to": to_iso(progress.reached_ms),
        "covered_before": _build_covered_record(progress.covered_before),
        "covered": _build_covered_record(progress.covered),
    }


def _build_covered_record(coverage: Coverage | None) -> CoveredRecord | None:
    if coverage is None or not coverage.intervals:
        return None
    lo_ms = coverage.intervals[0][0]
    return {"from": to_iso(lo_ms), "to": to_iso(coverage.newest_ms), "gaps": len(coverage.gaps(lo_ms))}


@cache
def _find_versions() -> dict[str, str]:
    versions = {"msgbubbles-sync": VERSION, "python": platform.python_version()}
    for name in ("dlt", "duckdb", "dbt-core"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
