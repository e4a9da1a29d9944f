"""What the job says: progress while it works, a summary, and the same as JSON. Never a handle, a text or a key."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.status import Status
from rich.table import Table

from msgbubbles_sync.lock import record_progress
from msgbubbles_sync.run_log import describe_failed_reads, iso_timestamp
from msgbubbles_sync.workspace import IS_CHECKOUT

if TYPE_CHECKING:
    from msgbubbles.source.run import Run
    from msgbubbles_sync.check_result import CheckResult
    from msgbubbles_sync.inspect.plan import Step
    from msgbubbles_sync.inspect.verify import VerifyResult
    from msgbubbles_sync.report import RunReport

# A script of this project, as messages and help texts name it.
SCRIPT_NAME = re.compile(r"(?:python pipelines/)?\b(chats|groups|webhooks)\.py\b")
SECONDS_BETWEEN_LINES = 15.0
DIFFERENCES_SHOWN = 50
# dlt's own steps, which are parts of the phase `load`.
LOAD_STEPS = ("extract", "normalize", "commit", "sync")


def name_as_called(text: str) -> str:
    """Name commands as this process was called: as scripts, or as `msgbubbles chats` and so on."""
    is_script = IS_CHECKOUT and Path(sys.argv[0]).name != "msgbubbles"
    return text if is_script else SCRIPT_NAME.sub(r"msgbubbles \1", text)


class Reporter:
    """Progress and errors go to standard error, the summary to standard output."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self._progress = Console(stderr=True, quiet=quiet, highlight=False)
        self._output = Console(quiet=quiet, highlight=False)
        self._status: Status | None = None
        self._said_at = time.monotonic()

    def fail(self, message: str) -> None:
        """Print an error, also with `--quiet`."""
        sys.stderr.write(f"{name_as_called(message)}\n")

    def say(self, message: str) -> None:
        record_progress()
        self._progress.print(f"[dim]{message}[/dim]")
        self._said_at = time.monotonic()

    @contextmanager
    def follow(self, run: Run) -> Iterator[None]:
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

    def summary(self, report: RunReport, policy: str, *, sandbox: bool) -> None:
        """Print how a run ended."""
        run = report.run
        if self.as_json:
            sys.stdout.write(json.dumps(report.record) + "\n")
        if report.failure is not None:
            self.fail(report.outcome.message)
        if self.as_json or report.failure is not None:
            return
        table = Table(box=None, pad_edge=False)
        for heading in ("stream", "read", "new or changed", "rejected", "back to"):
            table.add_column(heading, justify="left" if heading in ("stream", "back to") else "right")
        for name, progress in run.streams.items():
            table.add_row(
                name, f"{progress.rows:,}", f"{run.loaded(name):,}", f"{progress.rejected:,}", _day(progress.reached_ms)
            )
        self._output.print(table)
        if run.reconciled:
            counts = ", ".join(f"{count:,} {what}" for what, count in run.reconciled.items() if count)
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
            self._output.print(f"Published {report.context.destination.title}{size}:")
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

    def print_text(self, as_dict: Any, text: str) -> None:
        """Print one line of JSON, or the text."""
        self.print(as_dict, lambda console: console.print(name_as_called(text), markup=False, soft_wrap=True))

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
        printed = []
        for result in results:
            result = replace(result, what=name_as_called(result.what), fix=name_as_called(result.fix))
            printed.append(result)
            if not self.as_json:
                fix = f"\n   -> {result.fix}" if result.state == "failed" else ""
                self._output.print(f"{marks[result.state]} {result.name}: ", end="", soft_wrap=True)
                self._output.print(f"{result.what}{fix}", markup=False, soft_wrap=True)
        if self.as_json:
            sys.stdout.write(json.dumps([result.as_dict() for result in printed]) + "\n")
        return printed

    def verify_result(self, result: VerifyResult, run: Run) -> None:
        def show(console: Console) -> None:
            for difference in result.differences[:DIFFERENCES_SHOWN]:
                console.print(str(difference), markup=False, soft_wrap=True)
            left = len(result.differences) - DIFFERENCES_SHOWN
            if left > 0:
                console.print(f"... and {left:,} more; --json lists all")
            compared = ", ".join(f"{count:,} {table}" for table, count in result.compared.items()) or "nothing"
            outcome = "equal" if result.is_equal else f"{len(result.differences):,} differences"
            newer = f"; {result.newer:,} rows are newer than the last run" if result.newer else ""
            unreadable = f"; {result.unreadable:,} rows of the API cannot be read" if result.unreadable else ""
            console.print(f"Compared {compared}: {outcome}{newer}{unreadable}. {_requests(run)}.", soft_wrap=True)

        self.print(result.as_dict() | {"requests": run.traffic.total}, show)


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
            at = "without a time" if overflow.to_ms is None else f"at {iso_timestamp(overflow.to_ms)}"
            found.append(
                f"{name}: tie overflow: more rows {at} than a page holds; some may be out of reach "
                "(--accept-ties, if you know that all are there)"
            )
    if run.feed is False:
        found.append(
            "messages: the API does not answer the account's whole feed, so each changed thread costs a request"
        )
    return found


def held_back(report: RunReport) -> list[str]:
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


def _moment(at_ms: int | None) -> str:
    return "" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}"


def _day(at_ms: int | None) -> str:
    return "" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d}"
