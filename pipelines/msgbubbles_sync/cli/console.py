"""What the job says: progress while it works, a summary, and the same as JSON. Never a handle, a text or a key."""

from __future__ import annotations

import json
import math
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from msgbubbles_sync.destinations import build_destination
from msgbubbles_sync.lock import record_progress
from msgbubbles_sync.run_log import describe_failed_reads
from msgbubbles_sync.workspace import Workspace

if TYPE_CHECKING:
    from msgbubbles.source.coverage import Coverage
    from msgbubbles.source.run import Run, StreamProgress
    from msgbubbles_sync.check_result import CheckResult
    from msgbubbles_sync.inspect.plan import Step
    from msgbubbles_sync.inspect.verify import Verdict
    from msgbubbles_sync.job import Report

SECONDS_BETWEEN_LINES = 15.0
DIFFERENCES_SHOWN = 50
# dlt's own steps, which are parts of the phase `load`.
LOAD_STEPS = ("extract", "normalize", "commit", "sync")


class Reporter:
    """Progress and errors go to standard error, the summary to standard output."""

    def __init__(self, *, quiet: bool, as_json: bool) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self._progress = Console(stderr=True, quiet=quiet, highlight=False)
        self._output = Console(quiet=quiet, highlight=False)
        self._status: Status | None = None
        self._said_at = time.monotonic()

    def fail(self, message: str) -> None:
        """Errors are told whatever was asked for."""
        sys.stderr.write(f"{message}\n")

    def say(self, message: str) -> None:
        record_progress()
        self._progress.print(f"[dim]{message}[/dim]")
        self._said_at = time.monotonic()

    @contextmanager
    def following(self, run: Run) -> Iterator[None]:
        """Show how far the run has come: a line that moves on a terminal, now and then a line elsewhere."""
        run.on_page = lambda: self.progress(_described(run))
        run.on_wait = lambda why, seconds: self.progress(
            f"{_described(run)} · waiting {seconds:.0f} s ({why})", seconds
        )
        if not self._progress.is_terminal:
            yield
            return
        with self._progress.status("reading") as self._status:
            yield

    def progress(self, line: str, waiting_seconds: float = 0.0) -> None:
        """Show how far the work has come, now and then."""
        record_progress(waiting_seconds)
        if self._status is not None:
            self._status.update(line)
        elif time.monotonic() - self._said_at > SECONDS_BETWEEN_LINES:
            self.say(line)

    def summary(self, workspace: Workspace, run: Run, report: Report, policy: str, *, sandbox: bool) -> None:
        """The closing words."""
        if self.as_json:
            return
        table = Table(box=None, pad_edge=False)
        for heading in ("stream", "read", "new or changed", "rejected", "back to"):
            table.add_column(heading, justify="left" if heading in ("stream", "back to") else "right")
        for name, progress in run.streams.items():
            table.add_row(
                name, f"{progress.rows:,}", f"{run.loaded(name):,}", f"{progress.rejected:,}", _day(progress.reached_ms)
            )
        self._output.print(table)
        if run.repaired:
            counts = ", ".join(f"{count:,} {what}" for what, count in run.repaired.items() if count)
            self._output.print(f"read by id: {counts}")
        seconds = ", ".join(
            f"{phase} {spent:.1f} s" for phase, spent in report.seconds.items() if phase not in LOAD_STEPS
        )
        self._output.print(f"{_requests(run)}; {seconds}")
        self._output.print(f"privacy policy: {policy}", soft_wrap=True)
        for warning in [*warnings(run), *describe_failed_reads(report.failed_reads), *held_back(report)]:
            self._output.print(f"[yellow]{warning}[/yellow]")
        if not report.published:
            if run.error is None and run.halt is None:
                self._output.print("Nothing is new: the published file stays as it is.")
        else:
            size = "" if report.published_bytes is None else f" ({report.published_bytes / 1e6:.1f} MB)"
            self._output.print(f"Published {build_destination(workspace).title}{size}:")
            rows = "  ".join(f"{table} {count:,}" for table, count in report.rows_in_warehouse.items())
            self._output.print(f"  {rows}", soft_wrap=True)
        if sandbox and run.error is None and run.halt is None:
            self._output.print("This was a made-up account. Run it again: time moves on in there.")
        if run.error is not None:
            self.fail(f"failed: {run.error}; what was read before is kept, and the next run goes on from there")
        elif run.halt is not None:
            self.fail(f"{run.halt}; what was read is kept, and the next run goes on from there")

    # -- the other commands

    def print(self, as_dict: Any, show: Callable[[Console], None]) -> None:
        """One line of JSON, or what `show` prints."""
        if self.as_json:
            sys.stdout.write(json.dumps(as_dict) + "\n")
        else:
            show(self._output)

    def plan(self, steps: list[Step], fresh: int | None, per_minute: int) -> None:
        known = sum(step.requests or 0 for step in steps)
        is_open = any(step.requests is None for step in steps)

        def show(console: Console) -> None:
            table = Table(box=None, pad_edge=False)
            for heading in ("stream", "what", "from", "to", "requests"):
                table.add_column(heading, justify="right" if heading == "requests" else "left")
            for step in steps:
                requests = "not known" if step.requests is None else f"{step.requests:,}"
                table.add_row(step.stream, step.kind, _moment(step.from_ms), _moment(step.to_ms), requests)
            console.print(table)
            if fresh is not None:
                console.print(f"{fresh} of the newest 100 chats have changed since the last run.")
            minutes = max(math.ceil(known / per_minute) - 1, 0) if per_minute else 0
            waits = f", {minutes:,} minutes at the limit of {per_minute} a minute" if minutes else ""
            more = ", and as many as it takes to read what is not known" if is_open else ""
            console.print(f"About {known:,} requests{waits}{more}.")

        as_dict = {"steps": [step.as_dict() for step in steps], "requests": known, "more": is_open, "changed": fresh}
        self.print(as_dict, show)

    def check_results(self, results: Iterable[CheckResult]) -> list[CheckResult]:
        """Print the results of checks as they come, and return them."""
        marks = {"ok": "[green]ok[/green]", "info": "[cyan]--[/cyan]", "failed": "[red]!![/red]"}
        taken = []
        for one in results:
            taken.append(one)
            if not self.as_json:
                fix = f"\n   -> {one.fix}" if one.state == "failed" else ""
                self._output.print(f"{marks[one.state]} {one.name}: ", end="", soft_wrap=True)
                self._output.print(f"{one.what}{fix}", markup=False, soft_wrap=True)
        if self.as_json:
            sys.stdout.write(json.dumps([one.as_dict() for one in taken]) + "\n")
        return taken

    def verdict(self, verdict: Verdict, run: Run) -> None:
        def show(console: Console) -> None:
            for one in verdict.differences[:DIFFERENCES_SHOWN]:
                console.print(str(one), markup=False, soft_wrap=True)
            left = len(verdict.differences) - DIFFERENCES_SHOWN
            if left > 0:
                console.print(f"... and {left:,} more; --json lists all")
            compared = ", ".join(f"{count:,} {table}" for table, count in verdict.compared.items()) or "nothing"
            result = "equal" if verdict.is_equal else f"{len(verdict.differences):,} differences"
            newer = f"; {verdict.newer:,} rows are newer than the last run" if verdict.newer else ""
            unreadable = f"; {verdict.unreadable:,} rows of the API cannot be read" if verdict.unreadable else ""
            console.print(f"Compared {compared}: {result}{newer}{unreadable}. {_requests(run)}.", soft_wrap=True)

        self.print(verdict.as_dict() | {"requests": run.traffic.total}, show)


def warnings(run: Run) -> list[str]:
    """What the user should look at, with where to look."""
    found = []
    for name, progress in run.streams.items():
        if progress.rejected:
            found.append(
                f"{name}: {progress.rejected:,} rows could not be read or loaded; they are in msgbubbles.rejected_rows"
            )
        if progress.odd:
            found.append(
                f"{name}: {progress.odd:,} rows hold values that are not valid JSON; these are null or text now"
            )
        if progress.order_contradictions:
            found.append(
                f"{name}: {progress.order_contradictions:,} pages are not in the order of the time that their rows "
                "show; the next pages were taken from rows that are"
            )
        if progress.new_fields:
            names = ", ".join(sorted(progress.new_fields)[:10])
            found.append(f"{name}: fields that this version does not know are kept in the column extra: {names}")
        for overflow in sorted(progress.standing, key=lambda span: span.to_ms or 0)[:5]:
            at = "without a time" if overflow.to_ms is None else f"at {_instant(overflow.to_ms)}"
            found.append(
                f"{name}: tie overflow: more rows {at} than a page holds; some may be out of reach "
                "(--accept-ties, if you know that all are there)"
            )
    if run.feed is False:
        found.append(
            "messages: the API does not answer the account's whole feed, so each changed thread costs a request"
        )
    return found


def held_back(report: Report) -> list[str]:
    """What the data tests found, for people."""
    tested = report.tested
    if not tested.failed_tests:
        return []
    what = (
        "readers see them as they were last published"
        if report.held_marts
        else "they are published all the same, as transforms.data_tests says"
    )
    return [
        f"data tests failed: {', '.join(tested.failed_tests)}; they concern the marts "
        f"{', '.join(tested.marts) or '(none)'}; {what}"
    ]


def outcome_of(run: Run) -> str:
    return "failed" if run.error else "stopped" if run.stop.is_set() else "partial" if run.halt else "complete"


def as_dict(
    workspace: Workspace, run: Run, report: Report, exit_status: int, *, error: str | None = None
) -> dict[str, Any]:
    """The record of a run that ends now, for log collectors and `sync_runs`; instants are ISO 8601, durations
    seconds."""
    error = error or (None if run.error is None else str(run.error))
    return {
        "run_id": report.run_id,
        "started_at": report.started_at.isoformat(timespec="milliseconds"),
        "ended_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "outcome": "failed" if error else outcome_of(run),
        "exit_status": exit_status,
        "error": error,
        "account": workspace.account,
        "database": build_destination(workspace).title,
        "published": report.published,
        "slices": report.slices,
        "requests_total": run.traffic.total,
        "requests": dict(run.traffic.requests),
        "rate_limited": run.traffic.rate_limited,
        "retry_after": run.traffic.retry_after,
        "retries": run.traffic.retries,
        "received_bytes": run.traffic.received_bytes,
        "budget_used": run.traffic.window_requests,
        "budget_per_minute": run.traffic.window_limit,
        "paced_seconds": round(run.traffic.paced_seconds, 3),
        "seconds": {phase: round(spent, 3) for phase, spent in report.seconds.items()},
        "feed": run.feed,
        "tables": {
            table: {"new": changes.new, "changed": changes.changed, "unchanged": changes.unchanged}
            | ({"replaced": changes.replaced} if changes.replaced else {})
            for table, changes in run.changes.items()
        },
        "streams": {name: _stream_dict(progress, run.loaded(name)) for name, progress in run.streams.items()},
        "repaired": {what: count for what, count in run.repaired.items() if count},
        "expired": report.expired,
        "failed_reads": dict(Counter(one.kind for one in report.failed_reads)),
        "failed_tests": report.tested.failed_tests,
        "held_marts": report.held_marts,
        "versions": _versions(),
    }


def _stream_dict(progress: StreamProgress, loaded: int) -> dict[str, Any]:
    return {
        "pages": progress.pages,
        "refresh_pages": progress.refresh_pages,
        "rows": progress.rows,
        "landed": loaded,
        "rejected": progress.rejected,
        "odd": progress.odd,
        "new_fields": sorted(progress.new_fields),
        "order_contradictions": progress.order_contradictions,
        "tie_overflows": sorted(
            ([_instant(span.from_ms), _instant(span.to_ms)] for span in progress.standing), key=str
        ),
        "reached_back_to": _instant(progress.reached_ms),
        "covered_before": _stretch(progress.covered_before),
        "covered": _stretch(progress.covered),
    }


def _stretch(coverage: Coverage | None) -> dict[str, Any] | None:
    """From when to when rows have been read, and how many stretches between are missing."""
    if coverage is None or not coverage.pieces:
        return None
    lo_ms = coverage.pieces[0][0]
    return {"from": _instant(lo_ms), "to": _instant(coverage.newest_ms), "gaps": len(coverage.gaps(lo_ms))}


def _versions() -> dict[str, str]:
    from msgbubbles.transport import VERSION

    found = {name: _version(name) for name in ("dlt", "duckdb", "dbt-core")}
    ours = {"msgbubbles-sync": VERSION, "python": platform.python_version()}
    return ours | {name: one for name, one in found.items() if one}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _described(run: Run) -> str:
    streams = " · ".join(
        f"{name} {progress.rows:,}" + (f" back to {_day(progress.reached_ms)}" if progress.reached_ms else "")
        for name, progress in run.streams.items()
        if name != "numbers"
    )
    return f"{streams} · {_requests(run)}" if streams else _requests(run)


def _requests(run: Run) -> str:
    traffic = run.traffic
    budget = f" ({traffic.window_requests} of {traffic.window_limit} this minute)" if traffic.window_limit else ""
    return f"{traffic.total:,} requests{budget}"


def _instant(at_ms: int | None) -> str | None:
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")


def _moment(at_ms: int | None) -> str:
    return "" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}"


def _day(at_ms: int | None) -> str:
    return "" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d}"
