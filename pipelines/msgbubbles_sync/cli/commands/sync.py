"""`chats.py sync`: run the job once."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime

from msgbubbles_sync import job
from msgbubbles_sync.cli.connection import check_api_key, connect
from msgbubbles_sync.cli.main import Session
from msgbubbles_sync.cli.output import limit_waiting
from msgbubbles_sync.cli.signals import stopped_by_signals
from msgbubbles_sync.cli.sync_report import print_report
from msgbubbles_sync.context import Limits
from msgbubbles_sync.destinations.claims import claim, note_key
from msgbubbles_sync.destinations.version import refuse_newer
from msgbubbles_sync.errors import UsageError
from msgbubbles_sync.inspect.local_state import LocalState
from msgbubbles_sync.migrations import migrate
from msgbubbles_sync.restore import restore
from msgbubbles_sync.workspace import CLAIM_FILE


def run(
    session: Session, since: datetime | None, max_requests: int | None, *, accept_ties: bool, with_transform: bool
) -> int:
    """Bring the warehouse up to date, and print how that ended. The caller holds the lock `job`."""
    limit_waiting()  # also at the end: the next runs would leave processes that wait
    limits = Limits(since, max_requests, with_transform)
    with session.context.destination.stay_open():
        prepare(session)
        with stopped_by_signals(limits.stop), connect(session) as connection:
            report = job.run(connection.context, limits, accept_ties=accept_ties)
    print_report(session.reporter, report, session.context.settings.describe_policy(), sandbox=session.sandbox)
    return report.outcome.exit_status


def prepare(session: Session) -> None:
    """Bring the workspace and the tables to where a run can start. Raises `UsageError` if they are not for this run."""
    context, reporter = session.context, session.reporter
    workspace, destination = context.workspace, context.destination
    workspace.leave_deleted_folder()  # while `watch` waited
    if not session.sandbox:
        check_api_key(context.settings)
    refuse_newer(workspace.version, str(workspace.folder))
    if not (workspace.folder / CLAIM_FILE).exists():
        # A newer version is the more useful error, even if the tables belong to another account.
        with suppress(UsageError):
            _ = LocalState(context).states
    claim(destination, sandbox=session.sandbox, say=reporter.fail)
    if not session.sandbox:
        note_key(workspace, context.settings)
    restore(destination, reporter.fail)
    migrate(context)
    context.check_policy()
