"""`chats.py plan`, `check`, `verify` and `status`: inspect a warehouse and the API."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime

from msgbubbles.source.run import MissingRows
from msgbubbles_sync import job
from msgbubbles_sync.check_result import run_checks
from msgbubbles_sync.cli.connection import Connection, connect, connect_until_stopped
from msgbubbles_sync.cli.inspect_report import print_checks, print_plan, print_status, print_verify_result
from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.cli.signals import stopped_by_signals
from msgbubbles_sync.context import Limits
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.inspect import plan as planning
from msgbubbles_sync.inspect.check import list_checks
from msgbubbles_sync.inspect.local_state import LocalState
from msgbubbles_sync.inspect.status import build_status
from msgbubbles_sync.inspect.verify import VerifyResult
from msgbubbles_sync.inspect.verify import verify as compare
from msgbubbles_sync.lock import hold_lock
from msgbubbles_sync.outcome import EXIT_INCOMPLETE, explain_end
from msgbubbles_sync.webhooks import health
from msgbubbles_sync.workspace import PRIVACY_WORK

from . import sync

MAX_CHECK_REQUESTS = 20
UNFINISHED = f"""{PRIVACY_WORK}, so all rows that it concerns would differ.
Run chats.py, which finishes it, and then verify again"""


def plan(session: Session, *, probe: bool) -> int:
    local = LocalState(session.context)
    _check_policy(session)
    with connect_until_stopped(session, serve=probe) as connection:
        steps = planning.plan_steps(local, int(time.time() * 1000))
        changed = None
        if probe:
            with connection.client() as client:
                changed = planning.count_changed_chats(local, client)
        print_plan(session.reporter, steps, changed, local.settings.source.requests_per_minute)
    return 0


def _check_policy(session: Session) -> None:
    with suppress(PermissionError):  # the folder is another user's, as has been reported
        session.context.check_policy()


def check(session: Session) -> int:
    context = session.context
    with connect_until_stopped(session) as connection:
        connection.run.max_requests = MAX_CHECK_REQUESTS
        checks = list_checks(context, lambda: connection.client(max_attempts=2))
        checks.insert(-1, ("webhooks", lambda: health.check(context)))
        results = run_checks(checks, lambda error: explain_end(error, context).message)
        printed = print_checks(session.reporter, results)
    return EXIT_INCOMPLETE if any(result.state == "failed" for result in printed) else 0


def verify(session: Session, *, sample: int | None, repair: bool) -> int:
    context, reporter = session.context, session.reporter
    if context.workspace.has_privacy_work:
        raise UsageError(UNFINISHED)
    with connect(session) as connection:
        run = connection.run
        with stopped_by_signals(run.stop), reporter.follow(run):
            for is_last in (not repair, True):
                with connection.client(context.redactor) as client:
                    result = compare(LocalState(context), client, sample=sample, on_page=run.on_page)
                if is_last or result.is_equal:
                    break
                _repair(session, connection, result)
    print_verify_result(reporter, result, run)
    return 0 if result.is_equal else EXIT_INCOMPLETE


def _repair(session: Session, connection: Connection, result: VerifyResult) -> None:
    """Read the rows that differ by id. Raises the error that ended the run early."""
    chats = [row.id for row in result.differences if row.table == "chats" and row.id]
    threads = [row.chat_id for row in result.differences if row.table != "chats" and row.chat_id]
    missing = MissingRows(chats=list(dict.fromkeys(chats)), threads=list(dict.fromkeys(threads)))
    limits = Limits()
    with hold_lock(connection.context.workspace.folder), stopped_by_signals(limits.stop):
        sync.prepare(session)
        report = job.repair(connection.context, missing, limits)
    if report.ended_by is not None:
        raise report.ended_by


def status(session: Session, *, max_age_minutes: float | None) -> int:
    local, now = LocalState(session.context), datetime.now(UTC)
    _check_policy(session)
    status = build_status(local, now)
    session.reporter.print(status.as_dict(), lambda console: print_status(status, local, now, console))
    if max_age_minutes is None or (status.age_minutes is not None and status.age_minutes <= max_age_minutes):
        return 0
    session.reporter.fail(f"no complete run started in the last {max_age_minutes:g} minutes")
    return EXIT_INCOMPLETE
