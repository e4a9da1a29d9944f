"""Print how a run of the job ended."""

from __future__ import annotations

import json
import sys

from rich.console import Console

from msgbubbles.errors import AuthenticationError, ForbiddenError, MsgBubblesError
from msgbubbles.source.run import Run
from msgbubbles_sync.dbt.build_result import get_details_path
from msgbubbles_sync.outcome import EXIT_INCOMPLETE
from msgbubbles_sync.report import RunReport
from msgbubbles_sync.run_log import describe_failed_reads, to_iso
from msgbubbles_sync.text import format_count

from .console import Reporter, build_table, count_requests, format_day

# dlt's own steps, which are parts of the phase `load`.
LOAD_STEPS = ("extract", "normalize", "commit", "sync")


def print_report(reporter: Reporter, report: RunReport, policy: str, *, sandbox: bool) -> None:
    """Print the result of a run, and what ended it early."""
    run = report.run
    if report.failure is not None:
        if reporter.as_json:
            sys.stdout.write(json.dumps(report.record) + "\n")
        reporter.fail(report.outcome.message)
        return
    if reporter.as_json or run.error is None or run.traffic.answered:
        reporter.print(report.record, lambda console: _show(console, report, policy, sandbox=sandbox))
    if reporter.quiet and not reporter.as_json:
        print_incomplete(reporter, report)
    if reporter.as_json:
        if report.transform_error is not None:
            reporter.fail(str(report.transform_error))
        return
    if run.error is not None and not run.traffic.answered:
        reporter.fail(describe_refusal(run.error))
        return
    ending = "the rows read before are stored, and the next run continues from there"
    if run.error is not None:
        reporter.fail(f"failed: {run.error}; {ending}")
    elif report.transform_error is not None:
        reporter.fail(
            f"failed: {report.transform_error}; the rows are published, and readers have the marts as they were"
        )
    elif run.halt is not None:
        reporter.fail(f"{run.halt}; {ending}")


def print_incomplete(reporter: Reporter, report: RunReport) -> None:
    """Print as errors what the user should look at if a run is complete but for that."""
    if report.outcome.exit_status == EXIT_INCOMPLETE:
        for warning in list_warnings(report):
            reporter.fail(warning)


def describe_refusal(error: MsgBubblesError) -> str:
    """Return how to fix an error of a run that the API never answered, and the error."""
    if isinstance(error, AuthenticationError) and not isinstance(error, ForbiddenError):
        fix = "Check the API key in dlt_config/secrets.toml, or the variable that sets it, and run again"
    else:
        fix = "Nothing was read. Run again, or find the cause with chats.py check"
    reason = str(error)
    return f"{fix}. {reason[0].upper()}{reason[1:]}{'' if reason.endswith('?') else '.'}"


def _show(console: Console, report: RunReport, policy: str, *, sandbox: bool) -> None:
    run = report.run
    headings = ("stream", "read", "new or changed", "rejected", "back to")
    table = build_table(headings, left=("stream", "back to"))
    for name, progress in run.streams.items():
        table.add_row(
            name,
            f"{progress.rows:,}",
            f"{run.count_loaded(name):,}",
            f"{progress.rejected:,}",
            format_day(progress.reached_ms),
        )
    console.print(table)
    if run.reconciled:
        counts = ", ".join(f"{count:,} {table}" for table, count in run.reconciled.items() if count)
        console.print(f"read by id: {counts}")
    seconds = ", ".join(
        f"{phase} {duration:.1f} s" for phase, duration in report.seconds.items() if phase not in LOAD_STEPS
    )
    console.print(f"{count_requests(run)}; {seconds}")
    console.print(f"privacy policy: {policy}", soft_wrap=True)
    for warning in list_warnings(report):
        console.print(f"[yellow]{warning}[/yellow]")
    if report.published:
        size = "" if report.published_bytes is None else f" ({report.published_bytes / 1e6:.1f} MB)"
        console.print(f"Published {report.context.destination.title}{size}:")
        rows = "  ".join(f"{table} {count:,}" for table, count in report.rows_in_warehouse.items())
        console.print(f"  {rows}", soft_wrap=True)
    elif run.error is None and run.halt is None:
        console.print("Nothing is new: the published file is unchanged.")
    if sandbox and run.error is None and run.halt is None:
        console.print("This is simulated data. Run it again to see new activity arrive.")


def list_warnings(report: RunReport) -> list[str]:
    """List what the user should look at, but for the parts that failed, which are reported when they do."""
    reads = describe_failed_reads(report.failed_reads)
    return [*find_warnings(report.run), *reads, *describe_failed_tests(report)]


def find_warnings(run: Run) -> list[str]:
    """Return what the user should look at, and where."""
    warnings = []
    for name, progress in run.streams.items():
        if progress.rejected:
            rows = format_count(progress.rejected, "row")
            warnings.append(f"{name}: {rows} could not be read or loaded; see msgbubbles.rejected_rows")
        if progress.odd:
            rows = format_count(progress.odd, "row")
            warnings.append(f"{name}: values in {rows} are not valid JSON; they are stored as null or text")
        if progress.order_contradictions:
            pages = format_count(progress.order_contradictions, "page")
            warnings.append(
                f"{name}: {pages} did not follow the order of the timestamps in the rows; paging used the rows that do"
            )
        if progress.new_fields:
            names = ", ".join(sorted(progress.new_fields)[:10])
            warnings.append(f"{name}: fields unknown to this version are stored in the column extra: {names}")
        for overflow in sorted(progress.standing, key=lambda span: span.to_ms or 0)[:5]:
            at = "without a timestamp" if overflow.to_ms is None else f"at {to_iso(overflow.to_ms)}"
            warnings.append(
                f"{name}: tie overflow: more rows {at} than fit on a page; some may be missing "
                "(pass --accept-ties if you know that none are)"
            )
    if run.feed is False:
        warnings.append("messages: the API does not serve the account's feed, so each changed chat costs a request")
    return warnings


def describe_failed_tests(report: RunReport) -> list[str]:
    """Return which data tests failed, and what that means for readers."""
    tested = report.built
    if not tested.failed_tests:
        return []
    if set(tested.marts) <= set(report.held_marts):
        consequence = "readers see the last published version"
    else:
        why = "because rows were removed or redacted" if tested.is_published else "as transforms.data_tests says"
        consequence = f"they are published anyway, {why}"
    names = [
        f"{name} ({format_count(tested.failed_rows[name], 'row')})" if name in tested.failed_rows else name
        for name in tested.failed_tests
    ]
    return [
        f"data tests failed: {', '.join(names)}; marts concerned: {', '.join(tested.marts) or '(none)'}; "
        f"{consequence}; queries that select the rows: {get_details_path(report.context.workspace)}"
    ]
