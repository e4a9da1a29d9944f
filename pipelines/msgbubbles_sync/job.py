"""Run the job once: load what is new, bring the marts up to date, publish."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from msgspec import structs

from msgbubbles.errors import Interrupted
from msgbubbles.settings import SourceSettings
from msgbubbles.source.run import MissingRows, Run

from .contact_aliases import load_contact_aliases
from .context import Context, Limits
from .dbt.build_result import describe_unbuilt, load_build_result
from .dbt.runner import check_tools, forget_build, is_outdated, transform
from .destinations import Destination, claims
from .destinations.version import store_version
from .groups.ledger import LEDGER, Ledger
from .groups.load import load_ledger
from .load_streams import StreamLoader
from .lock import AnotherJobRunsError
from .outcome import EXIT_STOPPED, explain_end
from .policy import applied as policy
from .privacy.erase import purge
from .privacy.files import purge_files
from .privacy.reapply import apply as apply_policy
from .privacy.retention import expire
from .report import COMBINED_FILE, RunReport, ends_run
from .restore import tidy
from .run_log import RunLog
from .sql import create_table, list_columns
from .tables import (
    CLAIM_TABLE,
    CONTACT_ALIASES,
    ERASURES,
    FAILED_READS,
    GROUP_MEMBER_OPERATIONS,
    GROUP_OPERATIONS,
    GROUP_SIGHTINGS,
    PRIVACY,
    SYNC_RUNS,
    VERSION_TABLE,
    WEBHOOK_EVENTS,
)
from .webhooks.health import with_refresh
from .webhooks.load import LoadResult, load_events

# How long a run takes at least before it publishes for the first time, and between two times.
EARLY_SECONDS = 20.0
PUBLISHED_EARLY = "published what has been read so far"

# The tables that group operations and webhook events change.
LEDGER_TABLES = {GROUP_OPERATIONS.name, GROUP_MEMBER_OPERATIONS.name, GROUP_SIGHTINGS.name}
EVENT_TABLES = {WEBHOOK_EVENTS.name, "messages", "chats"}

UNFINISHED = "a build has not finished, so readers keep all as they were; run chats.py without --no-transform"
NOT_PUBLISHED = "rows that should be removed could not be, so nothing is published; a sync tries again"
RESTORED = """{title}: the tables are older than the files of this job, as after a restored backup, or somebody has
changed or removed a table or a column. What they lack is read, and erased, again; lost is only what the API does not
keep: webhook events, and earlier titles and participants of groups"""


def run(context: Context, limits: Limits, *, accept_ties: bool = False) -> RunReport:
    """Bring the warehouse up to date with the API, as far as `limits` allow, and return how the run ended.

    An exception ends the run, and an error of the API ends the reading; both are in the report. What was read before is
    loaded and published. The next run continues from the last finished load. `accept_ties`: no rows are missing at the
    tie overflows that are known so far. The caller holds the lock `job`. Raises `AnotherJobRunsError` if a job of
    another machine is active on the tables.
    """
    report = RunReport(
        context,
        Run(
            batch_pages=context.settings.sync.batch_pages,
            max_requests=limits.max_requests,
            accept_overflows=accept_ties,
            stop=limits.stop,
        ),
    )
    with _log_run(context, report), context.destination.lock():
        with context.destination.stay_open():  # until dlt needs them
            _prepare(context, report)
            _schedule_lost_work(context)
            privacy_error = _finish_privacy_work(context, report)
            with report.isolate("group operations"):
                _load_ledger(context)
            with report.isolate("webhook events"):
                _load_events(context, report)
            with report.isolate("contacts"):
                if CONTACT_ALIASES.name not in context.destination.held:
                    load_contact_aliases(context)
            if limits.with_transform:
                check_tools(context.destination)  # before anything is read
            early = EarlyTables(context, report, with_transform=limits.with_transform)
            StreamLoader(context, report, _adjust_source(context, limits)).load_all(early.publish)
            if privacy_error is not None:
                raise privacy_error
            # A stopped run should end now; the next one brings the marts up to date.
            if limits.stop.is_set():
                report.run.halt = report.run.halt or Interrupted("stopped")
            else:
                with context.destination.stay_open():  # again, if dlt has closed them
                    _build_marts(context, report, with_transform=limits.with_transform)
                    _publish(context, report, max_age_minutes=context.settings.sync.publish_minutes)
        policy.save_found_chats(context.destination, context.redactor)
        tidy(context.workspace)
    return report


def repair(context: Context, missing: MissingRows, limits: Limits) -> RunReport:
    """Read missing rows by id, and nothing else; then build the marts and publish. Returns as `run` does."""
    report = RunReport(context, Run(stop=limits.stop), is_repair=True)
    with _log_run(context, report), context.destination.lock():
        _prepare(context, report)
        StreamLoader(context, report, context.settings.source).load_missing(missing)
        if not limits.stop.is_set():
            _build_marts(context, report, with_transform=True)
            _publish(context, report, max_age_minutes=math.inf)
    return report


def _adjust_source(context: Context, limits: Limits) -> SourceSettings:
    """Return the settings of the source for this run."""
    source = with_refresh(context)
    return source if limits.since is None else structs.replace(source, start_date=f"{limits.since:%Y-%m-%d}")


def load_webhooks(context: Context, limits: Limits, load: Callable[[Context], LoadResult] = load_events) -> RunReport:
    """Load what the webhook receiver has stored, build the marts and publish. Makes no request.

    Returns as `run` does. There is no record of it in the run log, unless it fails. `load` may load other events.
    """
    report = RunReport(context, Run(stop=limits.stop))
    with _report_end(report), context.destination.lock():
        with context.destination.stay_open():
            _prepare(context, report)
            _load_events(context, report, load)
            _build_marts(context, report, with_transform=limits.with_transform)
            if context.workspace.is_pending("publish"):
                _publish_tables(context, report, with_record=False)
        tidy(context.workspace)
    if report.failure is not None or report.transform_error is not None:
        _add_record(context, report)
    return report


@dataclass
class EarlyTables:
    """Builds and publishes the tables between the batches of a long run, so that readers need not wait for its end.

    It takes at most a tenth of the time. An error only means that readers wait longer.
    """

    context: Context
    report: RunReport
    with_transform: bool
    next_at: float = field(default_factory=lambda: time.monotonic() + EARLY_SECONDS)

    def publish(self) -> None:
        context, report, started_at = self.context, self.report, time.monotonic()
        if started_at < self.next_at or report.run.is_stopped:
            return
        try:
            with context.destination.stay_open():
                with report.isolate("webhook events"):
                    _load_events(context, report)
                _build_marts(context, report, with_transform=self.with_transform)
                report.conclude()
                _publish_tables(context, report)
            context.console.say(PUBLISHED_EARLY)
            if report.transform_error is not None:
                context.console.fail(f"only the rows: {report.transform_error}")
        except Exception as error:
            outcome = explain_end(error, context)
            if outcome.exit_status == EXIT_STOPPED:  # a signal during a load of dlt
                raise
            context.console.fail(f"the tables cannot be published yet: {outcome.message}")
        spent_seconds = time.monotonic() - started_at
        self.next_at = time.monotonic() + max(EARLY_SECONDS, 9 * spent_seconds)


@contextmanager
def _log_run(context: Context, report: RunReport) -> Iterator[None]:
    """Write the record of a run, however it ends."""
    with _report_end(report), context.console.follow(report.run):
        yield
    _add_record(context, report)


def _add_record(context: Context, report: RunReport) -> None:
    with suppress(OSError):  # a full disk has been reported already
        RunLog(context.workspace.folder).add(report.record)
        policy.save_confirmed_at(context.workspace, context.settings.policy, report.run.clock)


@contextmanager
def _report_end(report: RunReport) -> Iterator[None]:
    """Store in the report of a run what ends it."""
    try:
        yield
    except AnotherJobRunsError:  # on another machine: this one has not started
        raise
    except (Exception, KeyboardInterrupt) as error:
        report.failure = error
    report.conclude()


def _prepare(context: Context, report: RunReport) -> None:
    context.destination.prepare()
    with report.isolate("vault"):  # rows are loaded without it
        policy.open_vault(context.settings)
    for table, reason in (context.destination.held | context.destination.unwritable).items():
        report.add_failed_part(table, reason)


def _schedule_lost_work(context: Context) -> None:
    """Schedule what lost or restored tables lack and the API does not have: marts, erasures, the policy, the ledger."""
    workspace, destination = context.workspace, context.destination
    for change in destination.repaired:
        context.console.fail(change)
    is_restored = workspace.is_pending("restored")
    if is_restored:
        if destination.has_tables() and RunLog(workspace.folder).last():
            context.console.fail(RESTORED.format(title=destination.title))
        forget_build(workspace)
        if (workspace.folder / LEDGER).exists():
            workspace.set_pending("ledger")
    # Between an erasure and the next load, only their record shows that tables on a server were restored.
    if is_restored or workspace.destination != "duckdb":
        _schedule_lost_privacy_work(context, is_restored=is_restored)
    workspace.set_done("restored")


def _schedule_lost_privacy_work(context: Context, *, is_restored: bool) -> None:
    workspace, destination = context.workspace, context.destination
    record = policy.Record.load(workspace)
    if record is None or not destination.has_tables():
        return
    stored = None if PRIVACY.name in destination.unwritable else policy.read_copy(destination)
    if stored is None and not is_restored:
        return  # nothing was published yet
    stored = stored or policy.Record()
    if record.erased - stored.erased:
        workspace.set_pending("erase")
    if record.policy != stored.policy:
        workspace.set_pending("policy")


def _load_ledger(context: Context) -> None:
    workspace = context.workspace
    if workspace.is_pending("ledger"):
        if (workspace.folder / LEDGER).exists():
            with Ledger.open(workspace.folder) as ledger:
                ledger.forget_loaded()
        workspace.set_done("ledger")
    if not context.destination.held.keys() & LEDGER_TABLES:
        load_ledger(context.destination, context.redactor)


def _finish_privacy_work(context: Context, report: RunReport) -> Exception | None:
    """Finish a change of the policy and an erasure, and remove old rows. Returns the error if that fails.

    Then the run loads rows, but nothing publishes any: readers would get rows that should have been removed.
    """
    workspace = context.workspace
    try:
        if workspace.is_pending("policy"):
            context.console.say("finishing an interrupted change of the privacy policy")
            apply_policy(context)
        if workspace.is_pending("erase"):
            context.console.say("finishing an interrupted erasure")
            purge(context)
        report.expired = dict(expire(context))
    except Exception as error:
        if ends_run(error):
            raise
        workspace.set_pending("removal")
        return error
    workspace.set_done("removal")
    with report.isolate("privacy files"):  # readers see none of these files
        if failures := purge_files(context)[1]:
            report.add_failed_part("privacy files", "; ".join(failures))
    return None


def _load_events(context: Context, report: RunReport, load: Callable[[Context], LoadResult] = load_events) -> None:
    if context.destination.held.keys() & EVENT_TABLES:  # they stay in the spool
        return
    report.events = loaded = load(context)
    if loaded.malformed:
        context.console.fail(f"webhooks: {loaded}")
    elif loaded.deliveries:
        context.console.say(f"webhooks: {loaded}")
    if loaded.unreadable_files:
        report.add_failed_part("webhook events", loaded.describe_unreadable_files())


def _build_marts(context: Context, report: RunReport, *, with_transform: bool) -> None:
    """Bring the marts up to date if rows or models have changed. If that fails, readers keep those that they have."""
    workspace = context.workspace
    report.transform_error = None
    report.failed_parts.pop("marts", None)
    is_wanted = with_transform or workspace.is_pending("dropped_marts")
    is_due = is_wanted and (workspace.is_pending("transform", "build") or is_outdated(workspace, context.settings))
    # If the API has never answered, there is nothing to build from, and its error is what to report.
    if is_due and _has_streams(context.destination):
        workspace.set_pending("publish", "build")
        context.console.say("building the marts")
        try:
            # Views that are built without these tables would not show what this run stores in them.
            for table in (SYNC_RUNS, FAILED_READS):
                report.write_table(table, partial(create_table, table=table))
            with report.timed("transform"):
                report.built = transform(context.destination, context.settings)
        except Exception as error:  # dbt may not even be there
            if ends_run(error):
                raise
            report.add_transform_error(error)
            report.hold_marts()
            return
        # A model that fails would fail again: dbt starts again once there are new rows, or the project has changed.
        workspace.set_done("transform", "build", "dropped_marts")
    else:
        report.built = load_build_result(workspace)
    report.hold_marts()
    is_unfinished = workspace.is_pending("build") and report.held_marts
    if failures := UNFINISHED if is_unfinished else describe_unbuilt(workspace, report.built):
        report.add_failed_part("marts", failures)


def _publish(context: Context, report: RunReport, *, max_age_minutes: float) -> None:
    """Publish if something has changed, or if the published tables are older than `max_age_minutes`.

    Also publish if the run ends differently from the last one: readers should see in `sync_runs` that runs fail now,
    or no longer fail.
    """
    workspace, destination = context.workspace, context.destination
    report.conclude()
    last = RunLog(workspace.folder).last()
    has_other_status = last is not None and last["exit_status"] != report.outcome.exit_status
    if not (workspace.is_pending("publish") or destination.is_publish_due(max_age_minutes) or has_other_status):
        return
    # A first run without an answer would hide the demo's file. Of several accounts, each shows that it fails.
    has_answer = report.run.error is None or report.run.traffic.answered
    if not has_answer and not destination.exists() and workspace.account is None:
        return
    with destination.stay_open():  # dbt has closed them
        report.count_rows()
        _publish_tables(context, report)


def _publish_tables(context: Context, report: RunReport, *, with_record: bool = True) -> None:
    workspace, destination = context.workspace, context.destination
    if workspace.has_privacy_work or workspace.is_pending("removal"):
        report.add_failed_part("publish", NOT_PUBLISHED)
        return
    context.console.say("publishing")
    with report.timed("publish"):
        if with_record:
            workspace.set_pending("test_runs")  # before the tables change that the data tests have to read again
            report.store_runs()
            report.store_failed_reads()
        report.write_table(PRIVACY, lambda connection, schema: policy.store(connection, workspace, schema))
        report.write_table(CLAIM_TABLE, lambda connection, schema: claims.store(connection, workspace, schema))
        report.write_table(VERSION_TABLE, store_version)
        report.write_table(ERASURES, partial(create_table, table=ERASURES))
        with report.isolate("descriptions"), destination.open_writer() as connection:
            destination.store_comments(connection)
        report.publish()
    if shared := claims.explain_same_numbers(destination):
        context.console.fail(shared)
    if COMBINED_FILE not in report.failed_parts:
        workspace.set_done("publish")


def _has_streams(destination: Destination) -> bool:
    """Return whether the tables of both streams exist."""
    with destination.open_writer() as connection:
        return {"chats", "messages"} <= list_columns(connection, destination.write_schema).keys()
